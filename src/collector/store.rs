//! What the collector keeps: each epoch's chain in segments like a spool's, and apart from them what did not fit.
//!
//! Owns the rules of acceptance. A record is acknowledged only when it is on disk, and every record is kept somewhere:
//!
//! - the next of its chain: appended;
//! - one that is there already, byte for byte: counted, nothing else (delivery is at least once);
//! - a valid record after a hole: appended in a new segment, because losing what follows a hole would be worse; the hole is
//!   noted as evidence, and `audit verify` names it;
//! - everything else (a wrong hash, a second record for a place, one that does not follow): kept as evidence and
//!   acknowledged. To refuse it would make the sender set aside a whole batch, or send it for ever.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::audit::trail::{self, Disk, EVIDENCE, Epoch, Lines, MAX_LINE, NO_PREVIOUS, Record, SegmentFile};
use crate::audit::{AuditError, SEGMENT_BYTES};

/// The most bytes of evidence that are kept; beyond it the collector takes nothing more until somebody has looked.
const MAX_EVIDENCE_BYTES: u64 = 64 * 1024 * 1024;
/// How many epochs are remembered; a forgotten one is read from disk when it is needed again.
const MAX_REMEMBERED: usize = 4096;

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A line is longer than a record may be.
    #[error("line {0} is longer than 64 KiB or has no end")]
    Line(u64),
    /// The store cannot be read or written.
    #[error("{}: the collector's store cannot be used: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process uses the store, or it cannot be made.
    #[error(transparent)]
    Lock(#[from] AuditError),
    /// A sync failed, after which nothing that was written can be trusted to be on disk.
    #[error("{}: the disk failed at a sync: check it and restart the collector", path.display())]
    Failed {
        /// The store's folder.
        path: PathBuf,
    },
    /// Too much evidence.
    #[error("{}: 64 MiB of evidence are here: find out who sends it, and move it away", path.display())]
    EvidenceFull {
        /// The folder of evidence.
        path: PathBuf,
    },
}

/// What became of the records of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Appended to their chains.
    pub stored: u64,
    /// There already.
    pub duplicates: u64,
    /// Kept as evidence.
    pub evidence: u64,
}

/// The store of one collector.
pub(crate) struct Store {
    dir: PathBuf,
    _lock: File,
    disk: Disk,
    epochs: BTreeMap<Epoch, Tip>,
    evidence_bytes: u64,
    /// The hashes of the segment (by name) that was last looked into for records that were sent again. They come in order,
    /// so the segment of one is that of the next thousands.
    looked_up: (String, BTreeMap<u64, Vec<u8>>),
    total: Counts,
    failed: bool,
}

/// The end of a stored chain.
#[derive(Clone)]
struct Tip {
    next_seq: u64,
    hash: Vec<u8>,
    /// The newest segment's first record and length.
    first_seq: u64,
    bytes: u64,
}

/// What a batch adds, before anything is written.
#[derive(Default)]
struct Plan {
    counts: Counts,
    appends: Vec<Append>,
    tips: BTreeMap<Epoch, Tip>,
    evidence: Vec<u8>,
    /// The records in `appends`.
    added: Vec<(Epoch, u64, Vec<u8>)>,
}

/// Bytes for one segment.
struct Append {
    epoch: Epoch,
    first_seq: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl Store {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        let lock = trail::lock_dir(&dir)?;
        let evidence_bytes = match std::fs::metadata(dir.join(EVIDENCE).join("evidence.jsonl")) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(at(&dir)(error)),
        };
        let mut store = Self {
            dir: dir.clone(),
            _lock: lock,
            disk: Disk::default(),
            epochs: BTreeMap::new(),
            evidence_bytes,
            looked_up: Default::default(),
            total: Counts::default(),
            failed: false,
        };
        store.repair_tails().map_err(at(&dir))?;
        Ok(store)
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn total(&self) -> Counts {
        self.total
    }

    /// Takes one batch: when this returns `Ok`, all of it is on disk.
    pub(crate) fn take(&mut self, batch: &[u8]) -> Result<Counts, StoreError> {
        if self.failed {
            return Err(StoreError::Failed { path: self.dir.clone() });
        }
        let plan = self.plan(batch)?;
        if self.evidence_bytes + plan.evidence.len() as u64 > MAX_EVIDENCE_BYTES {
            return Err(StoreError::EvidenceFull { path: self.dir.join(EVIDENCE) });
        }
        if !plan.evidence.is_empty() {
            self.keep_evidence(&plan.evidence).map_err(at(&self.dir))?;
            self.evidence_bytes += plan.evidence.len() as u64;
            tracing::error!(
                records = plan.counts.evidence,
                "audit records that do not fit their chain were kept as evidence"
            );
        }
        for append in &plan.appends {
            self.append(append).map_err(at(&self.dir))?;
        }
        self.epochs.extend(plan.tips);
        self.total.stored += plan.counts.stored;
        self.total.duplicates += plan.counts.duplicates;
        self.total.evidence += plan.counts.evidence;
        Ok(plan.counts)
    }

    fn plan(&mut self, batch: &[u8]) -> Result<Plan, StoreError> {
        let mut plan = Plan::default();
        let mut lines = Lines::new(batch);
        let mut scratch = Vec::new();
        let mut found = Vec::new();
        while let Some(line) = lines.next().map_err(at(&self.dir))? {
            if !line.whole || line.bytes.len() > MAX_LINE {
                return Err(StoreError::Line(line.number));
            }
            let from = line.offset as usize; // the batch is in memory
            if !line.bytes.is_empty() {
                found.push(from..from + line.bytes.len());
            }
        }
        for range in found {
            let line = &batch[range];
            match Record::parse(line) {
                Err(why) => plan.keep("bad_json", why, line),
                Ok(record) if !record.hash_is_right(&mut scratch) => {
                    plan.keep("flip", "its hash is not that of its bytes", line);
                }
                Ok(record) => self.place(&record, line, &mut plan)?,
            }
        }
        Ok(plan)
    }

    /// Finds the place of a record whose hash is right.
    fn place(&mut self, record: &Record<'_>, line: &[u8], plan: &mut Plan) -> Result<(), StoreError> {
        // Record::parse has checked the epoch's shape.
        let Some(epoch) = Epoch::parse(record.epoch) else { return Ok(()) };
        let tip = match plan.tips.get(&epoch) {
            Some(tip) => tip.clone(),
            None => self.tip(&epoch)?,
        };
        if record.seq < tip.next_seq {
            let stored = self.stored_hash(&epoch, record.seq, plan).map_err(at(&self.dir))?;
            match stored {
                Some(hash) if hash == record.hash => plan.counts.duplicates += 1,
                Some(_) => plan.keep("fork", "another record has this place", line),
                None => plan.keep("late", "its place was passed over as a hole", line),
            }
            return Ok(());
        }
        let after_hole = record.seq > tip.next_seq;
        if !after_hole && record.prev != tip.hash {
            plan.keep("fork", "it does not follow the record that is stored before it", line);
            return Ok(());
        }
        if after_hole {
            let why = format!("records {} to {} are missing", tip.next_seq, record.seq - 1);
            plan.note("gap", &why, &epoch);
        }
        plan.append(epoch, tip, record, line, after_hole);
        Ok(())
    }

    fn tip(&mut self, epoch: &Epoch) -> Result<Tip, StoreError> {
        if let Some(tip) = self.epochs.get(epoch) {
            return Ok(tip.clone());
        }
        let tip = self.read_tip(epoch).map_err(at(&self.dir))?;
        if self.epochs.len() >= MAX_REMEMBERED {
            self.epochs.clear();
        }
        self.epochs.insert(epoch.clone(), tip.clone());
        Ok(tip)
    }

    /// Reads the end of a stored chain, repairing what a crash left.
    fn read_tip(&self, epoch: &Epoch) -> io::Result<Tip> {
        let dir = self.dir.join(epoch.as_str());
        let mut segments = match trail::list(&dir) {
            Ok(segments) => segments,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        while let Some((name, _)) = segments.pop() {
            let path = dir.join(&name);
            let found = trail::scan(&path)?;
            trail::repair(&path, &found)?;
            if let (Some(last), Some((_, first_seq))) = (found.last, trail::parse_name(&name)) {
                let hash = last.record.hash.into_bytes();
                return Ok(Tip { next_seq: last.record.seq + 1, hash, first_seq, bytes: found.good_bytes });
            }
        }
        Ok(Tip { next_seq: 0, hash: NO_PREVIOUS.to_vec(), first_seq: 0, bytes: 0 })
    }

    /// The hash of a record that is stored, or about to be.
    fn stored_hash(&mut self, epoch: &Epoch, seq: u64, plan: &Plan) -> io::Result<Option<Vec<u8>>> {
        if let Some((.., hash)) = plan.added.iter().find(|(e, s, _)| (e, *s) == (epoch, seq)) {
            return Ok(Some(hash.clone()));
        }
        let dir = self.dir.join(epoch.as_str());
        let mut segments = match trail::list(&dir) {
            Ok(segments) => segments,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        segments.retain(|(name, _)| trail::parse_name(name).is_some_and(|(_, first)| first <= seq));
        let Some((name, _)) = segments.pop() else { return Ok(None) };
        if self.looked_up.0 != name {
            self.looked_up = (name.clone(), hashes_in(&dir.join(name))?);
        }
        Ok(self.looked_up.1.get(&seq).cloned())
    }

    fn append(&mut self, append: &Append) -> io::Result<()> {
        let dir = self.dir.join(append.epoch.as_str());
        let path = dir.join(trail::name(&append.epoch, append.first_seq));
        let is_new = append.at == 0;
        self.looked_up = Default::default();
        if is_new {
            std::fs::create_dir_all(&dir)?;
            if path.exists() {
                std::fs::remove_file(&path)?; // an attempt that was never acknowledged
            }
        }
        let mut file = if is_new { SegmentFile::create(path)? } else { SegmentFile::open(path, append.at)? };
        file.append(&self.disk, &append.bytes)?;
        let synced = self.disk.sync(file.file()).and_then(|()| {
            if is_new {
                self.disk.sync(&trail::open_dir(&dir)?)?;
                self.disk.sync(&trail::open_dir(&self.dir)?)?;
            }
            Ok(())
        });
        self.failed |= synced.is_err();
        synced
    }

    fn keep_evidence(&mut self, bytes: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(EVIDENCE);
        std::fs::create_dir_all(&dir)?;
        let mut file =
            OpenOptions::new().append(true).create(true).mode(0o640).open(dir.join("evidence.jsonl"))?;
        file.write_all(bytes)?;
        let synced = self.disk.sync(&file).and_then(|()| {
            self.disk.sync(&trail::open_dir(&dir)?)?;
            self.disk.sync(&trail::open_dir(&self.dir)?) // it may just have been made
        });
        self.failed |= synced.is_err();
        synced
    }

    /// Repairs the newest segment of each epoch whose last line is not whole, so that a tool that reads the store after a
    /// crash does not take a cut write for tampering. What a killed process had written and not synced is synced: a sender will
    /// be told that it is there already, and may forget it.
    fn repair_tails(&mut self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(epoch) = name.to_str().and_then(Epoch::parse) else { continue };
            let dir = self.dir.join(epoch.as_str());
            if let Some((name, len)) = trail::list(&dir)?.pop() {
                let newest = File::open(dir.join(name))?;
                self.disk.sync(&newest)?;
                if !ends_with_line_end(&newest, len)? {
                    self.read_tip(&epoch)?;
                }
            }
            self.disk.sync(&trail::open_dir(&dir)?)?;
        }
        self.disk.sync(&trail::open_dir(&self.dir)?)
    }
}

impl Plan {
    fn append(&mut self, epoch: Epoch, tip: Tip, record: &Record<'_>, line: &[u8], after_hole: bool) {
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
        self.tips
            .insert(epoch, Tip { next_seq: record.seq + 1, hash: record.hash.to_vec(), first_seq, bytes });
        self.counts.stored += 1;
    }

    /// Keeps a record that has no place in a chain.
    fn keep(&mut self, kind: &str, why: &str, line: &[u8]) {
        let line = match std::str::from_utf8(line) {
            Ok(text) => serde_json::json!({"kind": kind, "why": why, "line": text}),
            Err(_) => serde_json::json!({"kind": kind, "why": why, "line_bytes": line}),
        };
        self.evidence.extend_from_slice(line.to_string().as_bytes());
        self.evidence.push(b'\n');
        self.counts.evidence += 1;
    }

    /// Notes something that is no record.
    fn note(&mut self, kind: &str, why: &str, epoch: &Epoch) {
        let line = serde_json::json!({"kind": kind, "why": why, "epoch": epoch.as_str()});
        self.evidence.extend_from_slice(line.to_string().as_bytes());
        self.evidence.push(b'\n');
    }
}

fn hashes_in(path: &Path) -> io::Result<BTreeMap<u64, Vec<u8>>> {
    let mut hashes = BTreeMap::new();
    let mut lines = Lines::new(File::open(path)?);
    while let Some(line) = lines.next()? {
        if let Ok(record) = Record::parse(line.bytes) {
            hashes.insert(record.seq, record.hash.to_vec());
        }
    }
    Ok(hashes)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io { path, error }
}

fn ends_with_line_end(file: &File, len: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    match len.checked_sub(1) {
        Some(at) => file.read_exact_at(&mut last, at).map(|()| last == *b"\n"),
        None => Ok(false),
    }
}
