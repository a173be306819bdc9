//! What a batch adds to the store, before anything is written.
//!
//! Owns which bytes go to which segment. Knows no file: a plan that is not carried out changes nothing.

use std::collections::BTreeMap;

use super::evidence::{Evidence, Kind};
use super::store::Counts;
use crate::audit::SEGMENT_BYTES;
use crate::audit::trail::{Epoch, NO_PREVIOUS, Record, Tombstone};

/// The end of a stored chain.
#[derive(Clone)]
pub(super) struct Tip {
    pub(super) next_seq: u64,
    pub(super) hash: Vec<u8>,
    /// The newest segment's first record and length.
    pub(super) first_seq: u64,
    pub(super) bytes: u64,
    /// `instance.spiffe_id` of the first stored record, to whom the epoch belongs; `None` before there is one.
    pub(super) writer: Option<String>,
}

impl Tip {
    /// Of a chain of which retention has removed all.
    pub(super) fn removed(stone: &Tombstone) -> Self {
        let (next_seq, hash) = (stone.last_seq + 1, stone.last_hash.clone().into_bytes());
        Self { next_seq, hash, first_seq: 0, bytes: 0, writer: Some(stone.spiffe_id.clone()) }
    }

    /// Of a chain of which nothing was ever stored.
    pub(super) fn none() -> Self {
        Self { next_seq: 0, hash: NO_PREVIOUS.to_vec(), first_seq: 0, bytes: 0, writer: None }
    }
}

/// What a batch adds.
pub(super) struct Plan<'s> {
    pub(super) counts: Counts,
    pub(super) appends: Vec<Append>,
    pub(super) tips: BTreeMap<Epoch, Tip>,
    pub(super) evidence: Evidence<'s>,
    /// The records in `appends`.
    pub(super) added: BTreeMap<(Epoch, u64), Vec<u8>>,
}

/// Bytes for one segment.
pub(super) struct Append {
    pub(super) epoch: Epoch,
    pub(super) first_seq: u64,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

impl<'s> Plan<'s> {
    pub(super) fn new(evidence: Evidence<'s>) -> Self {
        let (appends, tips, added) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { counts: Counts::default(), appends, tips, evidence, added }
    }

    /// Keeps a record that has no place in a chain.
    pub(super) fn keep(&mut self, kind: Kind, why: &str, epoch: Option<&str>, line: &[u8]) {
        self.evidence.keep(kind, why, epoch, line);
        self.counts.evidence += 1;
    }

    /// Adds a record to its chain.
    pub(super) fn append(
        &mut self,
        epoch: Epoch,
        tip: Tip,
        record: &Record<'_>,
        line: &[u8],
        after_hole: bool,
    ) {
        let is_first = tip.bytes == 0;
        let full = tip.bytes + line.len() as u64 + 1 > SEGMENT_BYTES;
        let begins = is_first || full || after_hole;
        let (first_seq, at) = if begins { (record.seq, 0) } else { (tip.first_seq, tip.bytes) };
        let open = self.appends.iter().position(|a| !begins && a.epoch == epoch && a.first_seq == first_seq);
        let open = open.unwrap_or_else(|| {
            self.appends.push(Append { epoch: epoch.clone(), first_seq, at, bytes: Vec::new() });
            self.appends.len() - 1
        });
        self.appends[open].bytes.extend_from_slice(line);
        self.appends[open].bytes.push(b'\n');
        let bytes = at + line.len() as u64 + 1;
        self.added.insert((epoch.clone(), record.seq), record.hash.to_vec());
        let (next_seq, hash) = (record.seq + 1, record.hash.to_vec());
        self.tips.insert(epoch, Tip { next_seq, hash, first_seq, bytes, writer: tip.writer });
        self.counts.stored += 1;
    }
}
