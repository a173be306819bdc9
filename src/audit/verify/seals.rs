//! The checkpoints of one epoch, checked while its records are gone through.
//!
//! Owns what a checkpoint must say: signed by the key of the epoch's `audit.open`, which the writer's SVID signed, and with
//! the number and the root of the records before it. Where older segments were removed the tree begins with the subtrees that
//! the first checkpoint holds; signatures cannot be checked then, because the key went with `audit.open`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::binding;
use super::super::chain::Record;
use super::super::merkle::{Hash, Range, subtrees};
use super::super::note::{Checkpoint, VerifierKey, body_of};
use super::super::receipt::Receipt;
use super::clean::Clean;
use super::{FindingKind, VerifyOptions};

/// What is wrong with a record that speaks of the whole.
pub(super) type Fault = (FindingKind, String);

/// The state of going through one epoch.
pub(super) struct Seals<'o> {
    options: &'o VerifyOptions,
    epoch: &'o str,
    /// Over all records so far; `None` as long as earlier ones are missing.
    tree: Option<Range>,
    key: Key,
    /// Checkpoints that were kept elsewhere and are still to be met, the smallest last.
    kept: Vec<(Checkpoint, &'o str)>,
    /// How many checkpoints there are, and how many records the last one is of.
    pub(super) checkpoints: u64,
    pub(super) covered: u64,
    /// The roots of the checkpoints so far, for receipts.
    roots: BTreeMap<u64, Hash>,
    /// How many receipts the checkpoints carry.
    receipts: u64,
    /// The last one that was checked: how many records it is of, and the time, Unix seconds.
    received: Option<(u64, u64)>,
}

enum Key {
    /// `audit.open` is not here.
    Unknown,
    /// It names none.
    None,
    Known(VerifierKey),
}

/// Whether a record of this type can say something of the whole.
pub(super) fn concerns(kind: &str) -> bool {
    matches!(kind, "audit.open" | "audit.checkpoint" | "audit.close")
}

impl<'o> Seals<'o> {
    pub(super) fn new(options: &'o VerifyOptions, epoch: &'o str, begins_at: u64) -> Self {
        let notes = options.checkpoints.iter().map(String::as_str);
        let kept = notes.filter_map(|note| body_of(note).map(|body| (body, note)));
        let mut kept: Vec<_> = kept.filter(|(body, _)| is_of(body, epoch)).collect();
        kept.sort_by_key(|(body, _)| std::cmp::Reverse(body.size));
        let tree = (begins_at == 0).then(Range::default);
        Self {
            options,
            epoch,
            tree,
            key: Key::Unknown,
            kept,
            checkpoints: 0,
            covered: 0,
            roots: BTreeMap::new(),
            receipts: 0,
            received: None,
        }
    }

    /// Whether a segment must be gone through record by record: because the tree begins with a checkpoint in it, or because a
    /// kept checkpoint ends in it.
    pub(super) fn stops_in(&self, clean: &Clean) -> bool {
        if self.tree.is_none() && !clean.seals.is_empty() {
            return true;
        }
        self.kept.last().is_some_and(|(body, _)| (clean.first_seq..=clean.last_seq + 1).contains(&body.size))
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// What is wrong with what it, or a kept checkpoint, says.
    pub(super) fn take(&mut self, record: &Record<'_>) -> Result<(), Fault> {
        if concerns(record.kind) {
            let tree = self.tree.clone();
            self.look_at(record.line(), record.seq, tree)?;
        }
        if let Some(tree) = &mut self.tree {
            tree.append(record.leaf());
        }
        self.meet_kept()
    }

    /// Takes a segment that is good in itself. A fault comes with the number of its record.
    ///
    /// # Errors
    /// As [`Seals::take`].
    pub(super) fn take_all(&mut self, clean: &Clean) -> Result<(), (u64, Fault)> {
        for (seq, line, before) in &clean.seals {
            let mut tree = self.tree.clone();
            let joined = tree.as_mut().is_some_and(|tree| tree.join(before));
            self.look_at(line, *seq, tree.filter(|_| joined)).map_err(|fault| (*seq, fault))?;
        }
        if let Some(tree) = &mut self.tree {
            tree.join(&clean.range);
        }
        Ok(())
    }

    /// What of the kept checkpoints the epoch has not come to.
    pub(super) fn missing(&self) -> Option<u64> {
        self.kept.first().filter(|_| self.tree.is_some()).map(|(body, _)| body.size)
    }

    /// What a reader should know.
    pub(super) fn note(&self) -> Option<String> {
        let epoch = self.epoch;
        match (&self.key, self.checkpoints) {
            (Key::Unknown, 1..) => Some(format!(
                "epoch {epoch} begins late, so the signatures of its {} checkpoints were not checked",
                self.checkpoints
            )),
            (Key::None, _) => Some(format!("epoch {epoch} has no signed checkpoints")),
            _ => self.note_of_receipts(),
        }
    }

    fn note_of_receipts(&self) -> Option<String> {
        let (epoch, receipts) = (self.epoch, self.receipts);
        match self.received {
            Some((size, time)) => {
                let time = i64::try_from(time).ok().and_then(|time| jiff::Timestamp::from_second(time).ok());
                let time = time.map_or_else(String::new, |time| format!(" at {time}"));
                Some(format!("epoch {epoch}: the collector has signed for the first {size} records{time}"))
            }
            None if receipts > 0 => Some(format!(
                "epoch {epoch} has {receipts} receipts, which were not checked: give --collector-key, the receipt.pub of the collector's store"
            )),
            None => None,
        }
    }

    /// Checks a record that says something of the whole, where `tree` is of the records before it.
    fn look_at(&mut self, line: &[u8], seq: u64, tree: Option<Range>) -> Result<(), Fault> {
        let event: Value = serde_json::from_slice(line).unwrap_or_default(); // it is canonical JSON
        if let Some(open) = event.get("open") {
            return self.open(&event, open);
        }
        let sealed = event.get("checkpoint").or_else(|| event.pointer("/close/checkpoint"));
        let Some(sealed) = sealed else { return Ok(()) };
        let note = sealed.get("note").and_then(Value::as_str).unwrap_or_default();
        let said = match &self.key {
            Key::Known(key) => key.open(note).map_err(bad_signature)?,
            Key::Unknown => body_of(note).ok_or(bad_signature("the checkpoint is no signed note"))?,
            Key::None => return Err(bad_signature("audit.open names no key for the epoch's checkpoints")),
        };
        let whole = || (FindingKind::BadCheckpoint, format!("the checkpoint does not fit record {seq}"));
        if !is_of(&said, self.epoch)
            || said.size != seq
            || sealed.get("size").and_then(Value::as_u64) != Some(seq)
        {
            return Err(whole());
        }
        let tree = tree.or_else(|| subtrees(sealed, seq)).ok_or_else(whole)?;
        if tree.root() != Some(said.root) {
            let detail =
                "the root is not that of the records before it: some of them were changed and hashed again";
            return Err((FindingKind::BadCheckpoint, detail.to_owned()));
        }
        self.tree.get_or_insert(tree);
        self.checkpoints += 1;
        self.covered = seq;
        self.roots.insert(seq, said.root);
        let receipts = sealed.get("receipts").and_then(Value::as_object);
        receipts.into_iter().flatten().try_for_each(|(sink, receipt)| self.receipt(sink, receipt))
    }

    /// Checks what a collector has signed for, and the checkpoint carries.
    fn receipt(&mut self, sink: &str, receipt: &Value) -> Result<(), Fault> {
        let receipt = receipt.as_str().and_then(Receipt::parse).filter(|r| is_of(&r.checkpoint, self.epoch));
        let Some(receipt) = receipt else {
            return Err((FindingKind::BadCheckpoint, format!("the receipt by {sink} is none of this epoch")));
        };
        self.receipts += 1;
        let size = receipt.checkpoint.size;
        if self.roots.get(&size).is_some_and(|root| *root != receipt.checkpoint.root) {
            let detail =
                format!("the receipt by {sink} is of other records than the first {size} that are here");
            return Err((FindingKind::BadCheckpoint, detail));
        }
        if self.options.collectors.is_empty() {
            return Ok(());
        }
        let time = self.options.collectors.iter().find_map(|key| key.check(&receipt));
        let time = time.ok_or_else(|| {
            (FindingKind::BadSignature, format!("the receipt by {sink} is not signed by the collector's key"))
        })?;
        self.received = Some((size, time));
        Ok(())
    }

    fn open(&mut self, event: &Value, open: &Value) -> Result<(), Fault> {
        let Some(text) = open.get("checkpoint_key").and_then(Value::as_str) else {
            self.key = Key::None;
            return Ok(());
        };
        let key = VerifierKey::parse(text).ok_or(bad_signature("the epoch's key is no verifier key"))?;
        if open.get("svid").is_some() {
            binding::check(event, &key, self.options.bundles.as_ref())
                .map_err(|why| (FindingKind::BadSignature, why))?;
        } else if event.pointer("/instance/spiffe_id").is_some() || self.options.bundles.is_some() {
            return Err(bad_signature("no SVID vouches for the epoch's key"));
        }
        self.key = Key::Known(key);
        Ok(())
    }

    /// Compares with the kept checkpoints of as many records as there were so far.
    fn meet_kept(&mut self) -> Result<(), Fault> {
        let Some(tree) = &self.tree else { return Ok(()) };
        while let Some((body, note)) = self.kept.pop_if(|(body, _)| body.size <= tree.end()) {
            if let Key::Known(key) = &self.key {
                key.open(note)
                    .map_err(|_| bad_signature("a checkpoint that was kept is signed by another key"))?;
            }
            if body.size == tree.end() && tree.root() != Some(body.root) {
                let detail = format!(
                    "a checkpoint that was kept has another root for the first {} records",
                    body.size
                );
                return Err((FindingKind::BadCheckpoint, detail));
            }
        }
        Ok(())
    }
}

/// The kept checkpoints of epochs that are not `here`: each epoch and its number of records.
pub(super) fn of_no_epoch<'o>(
    options: &'o VerifyOptions,
    here: &'o [&'o str],
) -> impl Iterator<Item = (String, u64)> + 'o {
    let kept = options.checkpoints.iter().filter_map(|note| body_of(note));
    kept.filter(|body| !here.iter().any(|epoch| is_of(body, epoch))).map(|body| {
        let epoch = body.origin.rsplit('/').next().unwrap_or_default().to_owned();
        (epoch, body.size)
    })
}

fn is_of(body: &Checkpoint, epoch: &str) -> bool {
    body.origin.strip_suffix(epoch).is_some_and(|before| before.ends_with('/'))
}

fn bad_signature(why: &str) -> Fault {
    (FindingKind::BadSignature, why.to_owned())
}
