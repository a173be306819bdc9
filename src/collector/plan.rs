//! What a batch adds to the store, before anything is written.
//!
//! Owns which bytes go to which segment. Knows no file: a plan that is not carried out changes nothing.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use super::evidence::{Evidence, Kind};
use super::sender::{Sender, writer_of};
use super::store::Counts;
use crate::audit::SEGMENT_BYTES;
use crate::audit::trail::{
    Epoch, Hash, NO_PREVIOUS, Range as Tree, Record, Tombstone, VerifierKey, body_of, line_bytes, subtrees,
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
    pub(super) tree: Option<Tree>,
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
            tree: Some(Tree::default()),
            key: None,
        }
    }
}

/// What a batch adds.
pub(super) struct Plan<'b> {
    pub(super) counts: Counts,
    pub(super) appends: Vec<Append>,
    pub(super) evidence: Evidence<'b>,
    /// The newest checkpoint of each epoch that fits the records before it.
    pub(super) checkpoints: BTreeMap<Epoch, String>,
    chapters: BTreeMap<Epoch, Chapter<'b>>,
    /// Whether lines are longer on the disk than they are.
    encrypts: bool,
}

/// Lines of a batch for one segment.
pub(super) struct Append {
    pub(super) epoch: Epoch,
    pub(super) first_seq: u64,
    /// Where in the segment.
    pub(super) at: u64,
    /// Where in the batch, with their line ends; neighbours are one.
    pub(super) lines: Vec<Range<usize>>,
}

/// An epoch as it will be when the batch is in the store.
struct Chapter<'b> {
    epoch: Epoch,
    tip: Tip,
    /// The batch's own records, in order: their numbers and hashes.
    added: Vec<(u64, &'b [u8])>,
    /// What is appended to its newest segment.
    open: Option<usize>,
    /// The member `instance` of the last record that was added: another one like it has the same writer, and is not read again.
    admitted: &'b str,
}

/// Where a record belongs.
pub(super) enum Place {
    /// It is the next of its chain, or one after a hole.
    Next,
    /// There is, or was, a record with its number.
    Earlier,
    /// It has the next number and is not chained to the last record.
    Astray,
    /// It is not the sender's to bring, or not of this epoch.
    Foreign(&'static str),
}

impl<'b> Plan<'b> {
    pub(super) fn new(evidence: Evidence<'b>, encrypts: bool) -> Self {
        Self {
            counts: Counts::default(),
            appends: Vec::new(),
            evidence,
            checkpoints: BTreeMap::new(),
            chapters: BTreeMap::new(),
            encrypts,
        }
    }

    /// Keeps a record that has no place in a chain.
    pub(super) fn keep(&mut self, kind: Kind, why: &str, epoch: Option<&str>, line: &[u8]) {
        self.evidence.keep(kind, why, epoch, line);
        self.counts.evidence += 1;
    }

    /// Whether a record of this epoch was seen in the batch.
    pub(super) fn knows(&self, epoch: &str) -> bool {
        self.chapters.contains_key(epoch)
    }

    /// Goes on with an epoch that is stored as far as `tip`.
    pub(super) fn go_on(&mut self, epoch: Epoch, tip: Tip) {
        let chapter = Chapter { epoch: epoch.clone(), tip, added: Vec::new(), open: None, admitted: "" };
        self.chapters.insert(epoch, chapter);
    }

    /// The place of a record whose hash is right, in an epoch that is known.
    pub(super) fn place_of(&self, record: &Record<'b>, sender: &Sender) -> Option<Place> {
        let Chapter { tip, admitted, .. } = self.chapters.get(record.epoch)?;
        if admitted.is_empty() || *admitted != record.instance {
            let writer = writer_of(record.instance);
            if !sender.may_bring(&writer) {
                return Some(Place::Foreign("its instance.spiffe_id is not its sender"));
            }
            if tip.writer.as_ref().is_some_and(|owner| *owner != writer) {
                return Some(Place::Foreign("the epoch belongs to another instance.spiffe_id"));
            }
        }
        Some(match record.seq.cmp(&tip.next_seq) {
            Ordering::Less => Place::Earlier,
            Ordering::Equal if record.prev != tip.hash => Place::Astray,
            Ordering::Equal | Ordering::Greater => Place::Next,
        })
    }

    /// The hash of a record that this batch adds.
    pub(super) fn added(&self, epoch: &str, seq: u64) -> Option<&'b [u8]> {
        let added = &self.chapters.get(epoch)?.added;
        added.binary_search_by_key(&seq, |(seq, _)| *seq).ok().map(|at| added[at].1)
    }

    /// The ends of the chains, once the plan was carried out.
    pub(super) fn into_tips(self) -> impl Iterator<Item = (Epoch, Tip)> {
        self.chapters.into_iter().map(|(epoch, chapter)| (epoch, chapter.tip))
    }

    /// Adds a record to its chain; `line` is where it is in the batch, with its line end, and `leaf` its hash.
    pub(super) fn append(&mut self, record: &Record<'b>, leaf: Hash, line: Range<usize>) {
        let Some(chapter) = self.chapters.get_mut(record.epoch) else { return }; // the caller has asked for its place
        let (epoch, tip) = (&chapter.epoch, &mut chapter.tip);
        let after_hole = record.seq > tip.next_seq;
        if after_hole {
            let why = format!("records {} to {} are missing", tip.next_seq, record.seq - 1);
            self.evidence.note(Kind::Gap, &why, epoch);
            tip.tree = None;
        }
        let stored = if self.encrypts { line_bytes(line.len() - 1) } else { line.len() } as u64;
        if tip.bytes == 0 || tip.bytes + stored > SEGMENT_BYTES || after_hole {
            (tip.first_seq, tip.bytes) = (record.seq, 0);
            chapter.open = None;
        }
        let open = *chapter.open.get_or_insert_with(|| {
            let (first_seq, at) = (tip.first_seq, tip.bytes);
            self.appends.push(Append { epoch: epoch.clone(), first_seq, at, lines: Vec::new() });
            self.appends.len() - 1
        });
        match self.appends[open].lines.last_mut() {
            Some(before) if before.end == line.start => before.end = line.end,
            _ => self.appends[open].lines.push(line),
        }
        match record.kind {
            "audit.open" => tip.key = key_in(record.line()),
            "audit.checkpoint" => checkpoint(&mut self.evidence, &mut self.checkpoints, epoch, record, tip),
            _ => {}
        }
        if let Some(tree) = &mut tip.tree {
            tree.append(leaf);
        }
        tip.bytes += stored;
        tip.next_seq = record.seq + 1;
        tip.hash.clear();
        tip.hash.extend_from_slice(record.hash);
        if tip.writer.is_none() {
            tip.writer = Some(writer_of(record.instance).into_owned());
        }
        chapter.admitted = record.instance;
        chapter.added.push((record.seq, record.hash));
        self.counts.stored += 1;
    }
}

/// Compares a checkpoint with the tree of the records before it, and keeps it for a receipt if it fits. Without a tree the
/// checkpoint's own is believed from here on, so that the next one can be compared.
fn checkpoint(
    evidence: &mut Evidence<'_>,
    checkpoints: &mut BTreeMap<Epoch, String>,
    epoch: &Epoch,
    record: &Record<'_>,
    tip: &mut Tip,
) {
    let event: serde_json::Value = serde_json::from_slice(record.line()).unwrap_or_default(); // it is canonical JSON
    let note = event.pointer("/checkpoint/note").and_then(serde_json::Value::as_str).unwrap_or_default();
    let seq = record.seq;
    if let Some(Err(why)) = tip.key.as_ref().map(|key| key.open(note)) {
        return evidence.note(Kind::BadSignature, &format!("record {seq}: {why}"), epoch);
    }
    let said = body_of(note).filter(|said| said.size == seq && said.origin.ends_with(epoch.as_str()));
    let own = || subtrees(event.get("checkpoint")?, seq);
    let is_known = tip.tree.is_some();
    let tree = tip.tree.take().or_else(own);
    let fits = said.is_some() && said.map(|said| said.root) == tree.as_ref().and_then(Tree::root);
    if !fits {
        let why = format!("record {seq}: the checkpoint is not that of the records before it");
        evidence.note(Kind::BadCheckpoint, &why, epoch);
    } else if is_known {
        checkpoints.insert(epoch.clone(), note.to_owned());
    }
    tip.tree = tree.filter(|_| fits || is_known);
}

/// The key in an `audit.open`.
pub(super) fn key_in(line: &[u8]) -> Option<VerifierKey> {
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    VerifierKey::parse(event.pointer("/open/checkpoint_key")?.as_str()?)
}
