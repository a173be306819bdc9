//! `audit verify`: reads a spool or a collector's store and names the first record of each epoch that is not as it was
//! written.
//!
//! Owns what counts as tampering. It trusts nothing but the bytes: hashes are taken of the lines as they stand, and a line
//! must be canonical, so that there is one spelling of each event. It needs no key and no network. What it cannot see: what
//! became of the records after the last checkpoint, and a chain that was rewritten whole; for these compare with a checkpoint
//! or a copy that was kept elsewhere.

mod clean;
mod removed;
mod report;
mod seals;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use super::chain::{NO_PREVIOUS, Record};
use super::encode::Previous;
use super::layout::{EpochFiles, Layout, SegmentPath};
use super::lines::Lines;
use super::receipt::ReceiptVerifier;
use super::retention;
use super::segment::Form;
use crate::identity::Bundles;
use clean::Clean;
use seals::Seals;

pub use report::{EpochReport, Finding, FindingKind, Report};

/// Why a folder cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file or the folder cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is no segment in the folder.
    #[error("{}: there is no audit trail here: name a spool's folder or a collector's store", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// What a trail is compared with.
#[derive(Debug, Default)]
pub struct VerifyOptions {
    /// The CA certificates that the writers' SVIDs must lead to. Without them it is not judged who vouches for a key.
    pub bundles: Option<Bundles>,
    /// Checkpoints that were kept elsewhere: signed notes.
    pub checkpoints: Vec<String>,
    /// What checks the receipts of collectors. Without one they are compared with the checkpoints, and their signatures are not checked.
    pub collectors: Vec<ReceiptVerifier>,
    /// Grows by the bytes that were looked at, for who waits.
    pub done: AtomicU64,
}

/// Verifies every epoch in a spool's folder or a collector's store.
///
/// # Errors
/// The folder cannot be read, or is neither.
pub fn verify(dir: &Path) -> Result<Report, VerifyError> {
    verify_with(dir, &VerifyOptions::default())
}

/// Verifies every epoch, and compares with what is known from elsewhere.
///
/// # Errors
/// The folder cannot be read, or is neither.
pub fn verify_with(dir: &Path, options: &VerifyOptions) -> Result<Report, VerifyError> {
    let layout = Layout::read(dir).map_err(|error| VerifyError::Read { path: dir.into(), error })?;
    let gone = retention::read(dir).map_err(|error| VerifyError::Read { path: dir.into(), error })?;
    if layout.epochs.is_empty() && layout.kept.is_empty() && gone.epochs.is_empty() {
        return Err(VerifyError::Empty { path: dir.into() });
    }
    let mut report = Report {
        intact: false,
        events: 0,
        by_type: BTreeMap::new(),
        epochs: Vec::new(),
        findings: Vec::new(),
        notes: Vec::new(),
    };
    let mut ends = BTreeMap::new();
    let mut clean = clean::read_all(&layout, &options.done);
    for (at, epoch) in layout.epochs.iter().enumerate() {
        let oldest_of_spool = at == 0 && !layout.is_store;
        let mut check = EpochCheck::new(epoch, oldest_of_spool, options);
        if let Some(stones) = gone.epochs.get(&epoch.epoch) {
            check.begin_after(stones, options);
        }
        for (at, segment) in epoch.segments.iter().enumerate() {
            let is_last = at + 1 == epoch.segments.len();
            let read = |error| VerifyError::Read { path: segment.path.clone(), error };
            match clean.remove(&segment.path).filter(|clean| check.continues_with(clean)) {
                Some(clean) => check.skip(segment, clean),
                None => check.segment(segment, is_last).map_err(read)?,
            }
        }
        check.into_report(&mut report, &mut ends);
    }
    removed::tell(dir, &gone, &mut report, &mut ends);
    check_links(&mut report, &ends, layout.is_store);
    let present = layout.epochs.iter().map(|files| &files.epoch);
    let here: Vec<_> = present.chain(gone.epochs.keys()).map(|epoch| epoch.as_str()).collect();
    report.findings.extend(seals::of_no_epoch(options, &here).map(|(epoch, size)| Finding {
        kind: FindingKind::Truncated,
        file: dir.into(),
        line: 0,
        epoch: Some(epoch),
        seq: None,
        detail: format!(
            "a checkpoint that was kept is of {size} records of this epoch, and none of them is here"
        ),
    }));
    for kept in &layout.kept {
        report.findings.push(evidence(kept)?);
    }
    report.intact = report.findings.is_empty();
    Ok(report)
}

/// How an epoch ends, and which end its `audit.open` says the one before has.
struct End {
    last: Previous,
    file: PathBuf,
    line: u64,
    opened_after: Option<Previous>,
}

/// The state of going through one epoch.
struct EpochCheck<'e> {
    epoch: &'e EpochFiles,
    /// The next record's number, and what its `prev` must be when that is known.
    expected: (u64, Option<Vec<u8>>),
    first_seq: Option<u64>,
    events: u64,
    by_type: Vec<(String, u64)>,
    last_seq: u64,
    closed: bool,
    opened_after: Option<Previous>,
    seals: Seals<'e>,
    finding: Option<Finding>,
    place: (PathBuf, u64),
    scratch: Vec<u8>,
}

impl<'e> EpochCheck<'e> {
    fn new(epoch: &'e EpochFiles, may_begin_late: bool, options: &'e VerifyOptions) -> Self {
        let begins_at =
            epoch.segments.first().filter(|_| may_begin_late).map_or(0, |segment| segment.first_seq);
        let prev = (begins_at == 0).then(|| NO_PREVIOUS.to_vec());
        Self {
            epoch,
            expected: (begins_at, prev),
            first_seq: None,
            events: 0,
            by_type: Vec::new(),
            last_seq: 0,
            closed: false,
            opened_after: None,
            seals: Seals::new(options, epoch.epoch.as_str(), begins_at),
            finding: None,
            place: (PathBuf::new(), 0),
            scratch: Vec::new(),
        }
    }

    /// Begins where retention has left off.
    fn begin_after(&mut self, stones: &[retention::Tombstone], options: &'e VerifyOptions) {
        let first = self.epoch.segments.first().map_or(0, |segment| segment.first_seq);
        // A crash may have left a segment whose tombstone is written.
        let left = stones.iter().any(|stone| stone.first_seq == first);
        let before = stones.iter().rev().find(|stone| !left || stone.last_seq.checked_add(1) == Some(first));
        match before {
            Some(stone) => {
                self.expected =
                    (stone.last_seq.saturating_add(1), Some(stone.last_hash.clone().into_bytes()));
            }
            None if first > 0 => self.expected = (first, None),
            None => {}
        }
        self.seals = Seals::new(options, self.epoch.epoch.as_str(), self.expected.0);
    }

    /// Whether a segment that is good in itself stands in its place.
    fn continues_with(&self, clean: &Clean) -> bool {
        let (seq, prev) = &self.expected;
        self.finding.is_none()
            && clean.first_seq == *seq
            && prev.as_ref().is_none_or(|prev| *prev == clean.first_prev)
            && !self.seals.stops_in(clean)
    }

    /// Goes past a segment that was checked already.
    fn skip(&mut self, segment: &SegmentPath, clean: Clean) {
        if let Err((seq, (kind, detail))) = self.seals.take_all(&clean) {
            self.place = (segment.path.clone(), seq - clean.first_seq + 1);
            self.find(kind, Some(seq), &detail);
        }
        self.place = (segment.path.clone(), clean.lines);
        self.events += clean.lines;
        for (kind, count) in clean.by_type {
            self.count(&kind, count);
        }
        self.opened_after = clean.opened_after.or(self.opened_after.take());
        self.closed = clean.closed;
        self.first_seq.get_or_insert(clean.first_seq);
        self.last_seq = clean.last_seq;
        self.expected = (clean.last_seq.saturating_add(1), Some(clean.last_hash));
    }

    fn segment(&mut self, segment: &SegmentPath, is_last: bool) -> std::io::Result<()> {
        let file = File::open(&segment.path)?;
        let mut lines = Lines::of(Form::of(&segment.path), &file)?;
        self.place = (segment.path.clone(), 0);
        while let Some(line) = lines.next()? {
            self.place.1 = line.number;
            if line.is_damage {
                let seq = self.expected.0;
                self.find(
                    FindingKind::Flip,
                    Some(seq),
                    "it is in a part of the segment that cannot be unpacked: bytes of it were changed",
                );
            } else if line.whole {
                self.line(line.bytes)?;
            } else if is_last && file.metadata()?.len() == line.end {
                self.find(
                    FindingKind::TornTail,
                    None,
                    "the last line is not whole: a crash, or bytes were cut off",
                );
            } else if !is_last {
                self.find(FindingKind::Truncated, None, "the segment's last line is not whole");
            } // else the file grew since: its writer was in the middle of this line
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> std::io::Result<()> {
        let record = match Record::parse(line) {
            Ok(record) => record,
            Err(why) => {
                self.find(FindingKind::BadJson, None, why);
                return Ok(());
            }
        };
        if self.finding.is_none() {
            self.check(&record)?;
        }
        if self.finding.is_none()
            && let Err((kind, detail)) = self.seals.take(&record)
        {
            self.find(kind, Some(record.seq), &detail);
        }
        self.events += 1;
        self.count(record.kind, 1);
        if record.kind == "audit.open" {
            self.opened_after = opened_after(line);
        }
        self.closed = record.kind == "audit.close";
        self.first_seq.get_or_insert(record.seq);
        let (_, prev) = &mut self.expected;
        let prev = prev.get_or_insert_default();
        prev.clear();
        prev.extend_from_slice(record.hash);
        self.expected.0 = record.seq.saturating_add(1);
        self.last_seq = record.seq;
        Ok(())
    }

    fn count(&mut self, kind: &str, more: u64) {
        match self.by_type.iter_mut().find(|(known, _)| known == kind) {
            Some((_, count)) => *count += more,
            None => self.by_type.push((kind.to_owned(), more)),
        }
    }

    fn check(&mut self, record: &Record<'_>) -> std::io::Result<()> {
        let seq = Some(record.seq);
        let (expected, prev) = &self.expected;
        let expected = *expected;
        if !record.hash_is_right(&mut self.scratch) {
            self.find(FindingKind::Flip, seq, "its hash is not that of its bytes: the record was changed");
        } else if record.epoch != self.epoch.epoch.as_str() {
            self.find(FindingKind::Reorder, seq, "it belongs to another epoch than the file's name says");
        } else if record.seq > expected {
            let elsewhere = self.hash_of(expected)?.is_some();
            let kind = if elsewhere { FindingKind::Reorder } else { FindingKind::Gap };
            self.find(kind, seq, &format!("record {expected} should stand here"));
        } else if record.seq < expected {
            let same = self.hash_of(record.seq)?.as_deref() == Some(record.hash);
            let kind = if same { FindingKind::Duplicate } else { FindingKind::Fork };
            self.find(
                kind,
                seq,
                &format!("a record with this number stands before; record {expected} should stand here"),
            );
        } else if prev.as_ref().is_some_and(|prev| prev != record.prev) {
            self.find(FindingKind::Fork, seq, "its prev is not the hash of the record before it");
        }
        Ok(())
    }

    fn find(&mut self, kind: FindingKind, seq: Option<u64>, detail: &str) {
        let (file, line) = self.place.clone();
        let epoch = Some(self.epoch.epoch.as_str().to_owned());
        self.finding.get_or_insert(Finding { kind, file, line, epoch, seq, detail: detail.to_owned() });
    }

    /// The hash of the first record with this number anywhere in the epoch; only asked once something is wrong.
    fn hash_of(&self, seq: u64) -> std::io::Result<Option<Vec<u8>>> {
        for segment in &self.epoch.segments {
            let mut lines = Lines::open(&segment.path)?;
            while let Some(line) = lines.next()? {
                if let Some(record) = Record::parse(line.bytes).ok().filter(|record| record.seq == seq) {
                    return Ok(Some(record.hash.to_vec()));
                }
            }
        }
        Ok(None)
    }

    fn into_report(mut self, report: &mut Report, ends: &mut BTreeMap<String, End>) {
        if let Some(size) = self.seals.missing() {
            let detail = format!("a checkpoint that was kept says that the epoch had {size} records");
            self.find(FindingKind::Truncated, Some(self.last_seq), &detail);
        }
        report.events += self.events;
        for (kind, count) in self.by_type {
            *report.by_type.entry(kind).or_default() += count;
        }
        let epoch = self.epoch.epoch.as_str().to_owned();
        let last_seq = self.last_seq;
        report.notes.extend(self.seals.note());
        if let (Some(first_seq), Some(hash)) = (self.first_seq, self.expected.1.take()) {
            report.epochs.push(EpochReport {
                epoch: epoch.clone(),
                first_seq,
                last_seq,
                events: self.events,
                closed: self.closed,
                checkpoints: self.seals.checkpoints,
                sealed: self.seals.covered,
            });
            let last =
                Previous { epoch: epoch.clone(), seq: last_seq, hash: String::from_utf8_lossy(&hash).into() };
            let (file, line) = self.place;
            ends.insert(epoch, End { last, file, line, opened_after: self.opened_after });
        }
        report.findings.extend(self.finding);
    }
}

/// Compares what each `audit.open` says of the epoch before with what is there.
fn check_links(report: &mut Report, ends: &BTreeMap<String, End>, is_store: bool) {
    for (at, (epoch, end)) in ends.iter().enumerate() {
        let Some(said) = &end.opened_after else { continue };
        let Some(found) = ends.get(&said.epoch) else {
            if at > 0 || is_store {
                report.notes.push(format!("epoch {epoch} follows epoch {}, which is not here", said.epoch));
            }
            continue;
        };
        if report.findings.iter().any(|finding| finding.epoch.as_ref() == Some(&said.epoch)) {
            continue; // its first bad record is named already
        }
        let kind = match found.last.seq.cmp(&said.seq) {
            std::cmp::Ordering::Less => FindingKind::Truncated,
            std::cmp::Ordering::Equal if found.last.hash == said.hash => continue,
            std::cmp::Ordering::Equal => FindingKind::Fork,
            std::cmp::Ordering::Greater if is_store => {
                // A machine that loses power forgets what was not synced yet, but the collector has it.
                report.notes.push(format!(
                    "epoch {} has records after {}, which its spool lost",
                    said.epoch, said.seq
                ));
                continue;
            }
            std::cmp::Ordering::Greater => FindingKind::Fork,
        };
        report.findings.push(Finding {
            kind,
            file: found.file.clone(),
            line: found.line,
            epoch: Some(said.epoch.clone()),
            seq: Some(found.last.seq),
            detail: format!(
                "the next epoch says that this one ended with record {}, hash {}",
                said.seq, said.hash
            ),
        });
    }
}

fn opened_after(line: &[u8]) -> Option<Previous> {
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    let previous = event.get("open")?.get("previous")?;
    let text = |key| previous.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    Some(Previous { epoch: text("epoch")?, seq: previous.get("seq")?.as_u64()?, hash: text("hash")? })
}

fn evidence(kept: &Path) -> Result<Finding, VerifyError> {
    let read = |error| VerifyError::Read { path: kept.into(), error };
    let mut lines = Lines::open(kept).map_err(read)?;
    let mut count = 0u64;
    while lines.next().map_err(read)?.is_some() {
        count += 1;
    }
    let detail = format!("{count} lines were kept aside because they did not fit the chain: look at them");
    Ok(Finding { kind: FindingKind::Evidence, file: kept.into(), line: 1, epoch: None, seq: None, detail })
}
