//! What a batch adds to the store, before anything is written.
//!
//! Owns which bytes go to which segment. Knows no file: a plan that is not carried out changes nothing.

use std::collections::BTreeMap;

use super::evidence::{Evidence, Kind};
use super::store::Counts;
use crate::audit::SEGMENT_BYTES;
use crate::audit::trail::{
    Epoch, NO_PREVIOUS, Range, Record, Tombstone, VerifierKey, body_of, line_bytes, subtrees,
};

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
    /// Over all records of the epoch; `None` where some are not here, or were not seen by this process, until a checkpoint tells.
    pub(super) tree: Option<Range>,
    /// What `audit.open` says checks its checkpoints; `None` where it is not here.
    pub(super) key: Option<VerifierKey>,
}

impl Tip {
    /// Of a chain of which retention has removed all.
    pub(super) fn removed(stone: &Tombstone) -> Self {
        let (next_seq, hash) = (stone.last_seq + 1, stone.last_hash.clone().into_bytes());
        Self {
            next_seq,
            hash,
            first_seq: 0,
            bytes: 0,
            writer: Some(stone.spiffe_id.clone()),
            tree: None,
            key: None,
        }
    }

    /// Of a chain of which nothing was ever stored.
    pub(super) fn none() -> Self {
        Self {
            next_seq: 0,
            hash: NO_PREVIOUS.to_vec(),
            first_seq: 0,
            bytes: 0,
            writer: None,
            tree: Some(Range::default()),
            key: None,
        }
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
    /// The newest checkpoint of each epoch that fits the records before it.
    pub(super) checkpoints: BTreeMap<Epoch, String>,
    /// Whether lines are longer on the disk than they are.
    encrypts: bool,
}

/// Bytes for one segment.
pub(super) struct Append {
    pub(super) epoch: Epoch,
    pub(super) first_seq: u64,
    /// Where in the segment.
    pub(super) at: u64,
    /// Not encrypted yet.
    pub(super) bytes: Vec<u8>,
}

impl<'s> Plan<'s> {
    pub(super) fn new(evidence: Evidence<'s>, encrypts: bool) -> Self {
        let (appends, tips, added) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            counts: Counts::default(),
            appends,
            tips,
            evidence,
            added,
            checkpoints: BTreeMap::new(),
            encrypts,
        }
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
        let stored = if self.encrypts { line_bytes(line.len()) } else { line.len() + 1 } as u64;
        let full = tip.bytes + stored > SEGMENT_BYTES;
        let begins = is_first || full || after_hole;
        let (first_seq, at) = if begins { (record.seq, 0) } else { (tip.first_seq, tip.bytes) };
        let open = self.appends.iter().position(|a| !begins && a.epoch == epoch && a.first_seq == first_seq);
        let open = open.unwrap_or_else(|| {
            self.appends.push(Append { epoch: epoch.clone(), first_seq, at, bytes: Vec::new() });
            self.appends.len() - 1
        });
        self.appends[open].bytes.extend_from_slice(line);
        self.appends[open].bytes.push(b'\n');
        let bytes = at + stored;
        self.added.insert((epoch.clone(), record.seq), record.hash.to_vec());
        let (next_seq, hash) = (record.seq + 1, record.hash.to_vec());
        let mut tree = tip.tree.filter(|_| !after_hole);
        let mut key = tip.key;
        match record.kind {
            "audit.open" => key = key_in(line),
            "audit.checkpoint" => tree = self.checkpoint(&epoch, record.seq, line, tree, key.as_ref()),
            _ => {}
        }
        if let Some(tree) = &mut tree {
            tree.append(record.leaf());
        }
        self.tips.insert(epoch, Tip { next_seq, hash, first_seq, bytes, writer: tip.writer, tree, key });
        self.counts.stored += 1;
    }

    /// Compares a checkpoint with `tree`, that of the records before it, and keeps it for a receipt if it fits. Without a tree the
    /// checkpoint's own is believed from here on, so that the next one can be compared.
    fn checkpoint(
        &mut self,
        epoch: &Epoch,
        seq: u64,
        line: &[u8],
        tree: Option<Range>,
        key: Option<&VerifierKey>,
    ) -> Option<Range> {
        let event: serde_json::Value = serde_json::from_slice(line).unwrap_or_default(); // it is canonical JSON
        let note = event.pointer("/checkpoint/note").and_then(serde_json::Value::as_str).unwrap_or_default();
        if let Some(Err(why)) = key.map(|key| key.open(note)) {
            self.evidence.note(Kind::BadSignature, &format!("record {seq}: {why}"), epoch);
            return tree;
        }
        let said = body_of(note).filter(|said| said.size == seq && said.origin.ends_with(epoch.as_str()));
        let own = || subtrees(event.get("checkpoint")?, seq);
        let is_known = tree.is_some();
        let tree = tree.or_else(own);
        let fits = said.is_some() && said.map(|said| said.root) == tree.as_ref().and_then(Range::root);
        if !fits {
            let why = format!("record {seq}: the checkpoint is not that of the records before it");
            self.evidence.note(Kind::BadCheckpoint, &why, epoch);
        } else if is_known {
            self.checkpoints.insert(epoch.clone(), note.to_owned());
        }
        tree.filter(|_| fits || is_known)
    }
}

/// The key in an `audit.open`.
pub(super) fn key_in(line: &[u8]) -> Option<VerifierKey> {
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    VerifierKey::parse(event.pointer("/open/checkpoint_key")?.as_str()?)
}
