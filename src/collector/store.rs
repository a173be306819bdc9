//! What the collector keeps: each epoch's chain in segments like a spool's, and apart from them what did not fit.
//!
//! Owns the rules of acceptance. A record is acknowledged only when it is on disk, and every record is kept somewhere:
//!
//! - the next of its chain: appended;
//! - one that is there already, byte for byte: counted, nothing else (delivery is at least once);
//! - a valid record after a hole: appended in a new segment, because losing what follows a hole would be worse; the hole is
//!   noted as evidence, and `audit verify` names it;
//! - everything else (a wrong hash, a second record for a place, one that does not follow, one that the sender did not
//!   write): kept as evidence and acknowledged. To refuse it would make the sender set aside a whole batch, or send it for
//!   ever.

mod evidence_file;
mod tombs;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::evidence::{Evidence, Kind};
use super::metrics::{CollectorMetrics, Refusing};
use super::plan::{Append, Place, Plan, Tip, key_in};
use super::room::has_room;
use super::sender::{Sender, writer_of};
use crate::audit::trail::{
    self, Cipher, Disk, Epoch, Form, Hash, Lines, MAX_LINE, ReceiptKey, Record, SegmentFile, VerifierKey,
    lines_of,
};
use crate::audit::{AuditError, SpoolKey};

use tombs::Tombs;

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
    /// What retention wrote was changed.
    #[error("{}: line {line} is not what retention wrote: run `phiward audit verify`, and move the file away once it was looked at", path.display())]
    Retention {
        /// The file.
        path: PathBuf,
        /// The line.
        line: u64,
    },
    /// The volume is nearly full.
    #[error("{}: the disk has less room than the collector leaves free: make room, or set retention", path.display())]
    DiskFull {
        /// The store's folder.
        path: PathBuf,
    },
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
    /// What retention has removed.
    removed: Tombs,
    receipt_key: ReceiptKey,
    /// Encrypts what is written, where the store has a key.
    cipher: Option<Cipher>,
    metrics: CollectorMetrics,
    failed: bool,
}

/// What a sender is told of its batch.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Taken {
    #[serde(flatten)]
    pub(crate) counts: Counts,
    /// For the newest checkpoint of each epoch in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) receipts: Vec<String>,
}

impl Store {
    pub(crate) fn open(
        dir: PathBuf,
        key: Option<&SpoolKey>,
        metrics: CollectorMetrics,
    ) -> Result<Self, StoreError> {
        let lock = trail::lock_dir(&dir)?;
        let mut store = Self {
            dir: dir.clone(),
            _lock: lock,
            disk: Disk::default(),
            epochs: BTreeMap::new(),
            evidence_bytes: 0,
            looked_up: Default::default(),
            removed: Tombs::open(&dir)?,
            cipher: key.map(Cipher::new).transpose().map_err(at(&dir))?,
            receipt_key: ReceiptKey::of_store(&dir).map_err(at(&dir))?,
            metrics,
            failed: false,
        };
        tracing::info!(
            key = store.receipt_key.verifier().to_text(),
            "receipts are signed by this key: receipt.pub of the store"
        );
        store.measure_evidence().map_err(at(&dir))?;
        store.repair_tails().map_err(at(&dir))?;
        Ok(store)
    }

    /// Takes one batch that arrived at `now`: when this returns `Ok`, all of it is on disk.
    pub(crate) fn take(
        &mut self,
        batch: &[u8],
        sender: &Sender,
        now: jiff::Timestamp,
    ) -> Result<Taken, StoreError> {
        let taken = self.try_take(batch, sender, now);
        match &taken {
            Ok(Taken { counts, .. }) => {
                self.metrics.refusing(None);
                self.metrics.bytes.inc_by(batch.len() as u64);
                self.metrics.stored.inc_by(counts.stored);
                self.metrics.duplicates.inc_by(counts.duplicates);
                if counts.stored > 0 {
                    self.metrics.last_arrival.set(now.as_second());
                }
            }
            Err(error) => {
                if let Some(reason) = error.refusing() {
                    self.metrics.refused(reason);
                }
            }
        }
        taken
    }

    fn try_take(&mut self, batch: &[u8], sender: &Sender, now: jiff::Timestamp) -> Result<Taken, StoreError> {
        if self.failed {
            return Err(StoreError::Failed { path: self.dir.clone() });
        }
        if !has_room(&self.dir, batch.len()).map_err(at(&self.dir))? {
            return Err(StoreError::DiskFull { path: self.dir.clone() });
        }
        let plan = self.plan(batch, sender, Evidence::new(sender, now))?;
        if !plan.evidence.lines().is_empty() {
            self.keep_evidence(&plan.evidence)?;
        }
        for append in &plan.appends {
            self.append(append, batch).map_err(at(&self.dir))?;
        }
        let seconds = u64::try_from(now.as_second()).unwrap_or(0);
        let receipts =
            plan.checkpoints.values().filter_map(|note| self.receipt_key.sign(note, seconds)).collect();
        let counts = plan.counts;
        self.epochs.extend(plan.into_tips());
        Ok(Taken { counts, receipts })
    }

    fn plan<'b>(
        &mut self,
        batch: &'b [u8],
        sender: &Sender,
        evidence: Evidence<'b>,
    ) -> Result<Plan<'b>, StoreError> {
        let mut plan = Plan::new(evidence, self.cipher.is_some());
        let lines: Vec<_> = lines_of(batch).collect();
        let end = lines.last().map_or(0, |last| last.end);
        let too_long = lines.iter().position(|line| line.len() > MAX_LINE + 1);
        if let Some(at) = too_long.or((end < batch.len()).then_some(lines.len())) {
            return Err(StoreError::Line(at as u64 + 1));
        }
        let mut scratch = Vec::new();
        for range in lines.into_iter().filter(|line| line.len() > 1) {
            let line = &batch[range.start..range.end - 1];
            match Record::parse(line) {
                Err(why) => plan.keep(Kind::BadJson, why, None, line),
                Ok(record) => match record.checked_leaf(&mut scratch) {
                    Some(leaf) => self.place(&record, leaf, range, sender, &mut plan)?,
                    None => {
                        let why = "its hash is not that of its bytes";
                        plan.keep(Kind::Flip, why, Some(record.epoch), line);
                    }
                },
            }
        }
        Ok(plan)
    }

    /// Finds the place of a record whose hash is right.
    fn place<'b>(
        &mut self,
        record: &Record<'b>,
        leaf: Hash,
        line: Range<usize>,
        sender: &Sender,
        plan: &mut Plan<'b>,
    ) -> Result<(), StoreError> {
        if !plan.knows(record.epoch)
            && let Some(epoch) = Epoch::parse(record.epoch)
        {
            let tip = self.tip(&epoch)?;
            plan.go_on(epoch, tip);
        }
        // Record::parse has checked the epoch's shape, so it is known now.
        let Some(place) = plan.place_of(record, sender) else { return Ok(()) };
        let (kind, why) = match place {
            Place::Next => {
                plan.append(record, leaf, line);
                return Ok(());
            }
            Place::Earlier => match self.stored_hash(record, plan).map_err(at(&self.dir))? {
                Some(hash) if hash == record.hash => {
                    plan.counts.duplicates += 1;
                    return Ok(());
                }
                Some(_) => (Kind::Fork, "another record has this place"),
                None => (Kind::Late, "its place was passed over as a hole, or removed by retention"),
            },
            Place::Astray => (Kind::Fork, "it does not follow the record that is stored before it"),
            Place::Foreign(why) => (Kind::Foreign, why),
        };
        plan.keep(kind, why, Some(record.epoch), record.line());
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
                let (next_seq, hash) = (last.record.seq + 1, last.record.hash.into_bytes());
                let oldest = segments.first().map_or(name, |(oldest, _)| oldest.clone());
                let (writer, key) = first_record(&dir.join(oldest))?;
                return Ok(Tip {
                    next_seq,
                    hash,
                    first_seq,
                    bytes: found.good_bytes,
                    writer,
                    tree: None,
                    key,
                });
            }
        }
        Ok(self.removed.last.get(epoch).map_or_else(Tip::none, Tip::removed))
    }

    /// The hash of the record that has this one's place, stored or about to be.
    fn stored_hash(&mut self, record: &Record<'_>, plan: &Plan<'_>) -> io::Result<Option<Vec<u8>>> {
        let (epoch, seq) = (record.epoch, record.seq);
        if let Some(hash) = plan.added(epoch, seq) {
            return Ok(Some(hash.to_vec()));
        }
        if let Some(stone) = self.removed.last.get(epoch).filter(|stone| stone.last_seq == seq) {
            return Ok(Some(stone.last_hash.clone().into_bytes()));
        }
        let dir = self.dir.join(epoch);
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

    fn append(&mut self, append: &Append, batch: &[u8]) -> io::Result<()> {
        let dir = self.dir.join(append.epoch.as_str());
        let path = dir.join(trail::name(&append.epoch, append.first_seq, Form::Lines));
        let is_new = append.at == 0;
        self.looked_up = Default::default();
        if is_new {
            std::fs::create_dir_all(&dir)?;
            if path.exists() {
                std::fs::remove_file(&path)?; // an attempt that was never acknowledged
            }
        }
        let mut file = if is_new { SegmentFile::create(path)? } else { SegmentFile::open(path, append.at)? };
        let lines = match &append.lines[..] {
            // One sender's own trail comes in one piece.
            [lines] => Cow::Borrowed(&batch[lines.clone()]),
            many => many.iter().flat_map(|lines| &batch[lines.clone()]).copied().collect(),
        };
        let stored = stored(&mut self.cipher, &lines)?;
        file.append(&self.disk, &stored)?;
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

impl StoreError {
    /// Why the batch has to be sent again; `None` when it is the batch that is wrong.
    pub(super) fn refusing(&self) -> Option<Refusing> {
        match self {
            Self::Line(_) => None,
            Self::Io { .. } | Self::Lock(_) | Self::Retention { .. } => Some(Refusing::DiskError),
            Self::DiskFull { .. } => Some(Refusing::DiskFull),
            Self::Failed { .. } => Some(Refusing::DiskFailed),
            Self::EvidenceFull { .. } => Some(Refusing::EvidenceFull),
        }
    }
}

/// Whole lines as they stand on the disk.
fn stored<'l>(cipher: &mut Option<Cipher>, lines: &'l [u8]) -> io::Result<Cow<'l, [u8]>> {
    let Some(cipher) = cipher else { return Ok(Cow::Borrowed(lines)) };
    let mut out = Vec::new();
    cipher.lines(&mut out, lines)?;
    Ok(Cow::Owned(out))
}

/// Who wrote the first record of a segment, and the key that it names.
fn first_record(path: &Path) -> io::Result<(Option<String>, Option<VerifierKey>)> {
    let line = trail::first_of(path)?;
    let writer = Record::parse(&line).ok().map(|record| writer_of(record.instance).into_owned());
    Ok((writer, key_in(&line)))
}

fn hashes_in(path: &Path) -> io::Result<BTreeMap<u64, Vec<u8>>> {
    let mut hashes = BTreeMap::new();
    let mut lines = Lines::open(path)?;
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
