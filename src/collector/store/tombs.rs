//! How a segment is removed: the tombstone is on disk before the segment goes, so that nothing is ever missing unsaid.
//!
//! Owns the order of the steps. What is due is `retention`'s to say; this refuses a segment that is not as it was verified
//! when it arrived, because that is evidence.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::super::retention::Candidate;
use super::{Store, StoreError, at, writer_of};
use crate::audit::trail::{
    self, Damage, Disk, Epoch, Form, NO_PREVIOUS, RETENTION, Record, SegmentFile, Tombstone,
};

/// What was removed.
pub(super) struct Tombs {
    /// The newest tombstone of each epoch.
    pub(super) last: BTreeMap<Epoch, Tombstone>,
    /// What the next one names as the one before.
    next_prev: String,
    /// The length of the file's good lines.
    bytes: u64,
}

impl Tombs {
    /// Reads the tombstones, and ends what a crash has left half done.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let removed = trail::read_removed(dir).map_err(at(dir))?;
        let path = dir.join(RETENTION);
        if let Some((line, _)) = removed.broken {
            return Err(StoreError::Retention { path, line });
        }
        // Each segment is gone from the disk before the next tombstone is written, so that there can be no other.
        if let Some((epoch, newest)) =
            removed.newest.as_ref().and_then(|t| Some((Epoch::parse(&t.epoch)?, t)))
        {
            let folder = dir.join(epoch.as_str());
            let segment = folder.join(trail::name(&epoch, newest.first_seq, Form::Lines));
            if segment.exists() {
                unlink(&Disk::default(), dir, &folder, &segment).map_err(at(dir))?;
            }
        }
        let last = removed.epochs.into_iter().filter_map(|(epoch, mut stones)| Some((epoch, stones.pop()?)));
        Ok(Self { last: last.collect(), next_prev: removed.next_prev, bytes: removed.good_bytes })
    }
}

impl Store {
    /// Removes a segment and leaves a tombstone. `false` when it stays: it is not as it was verified, or was written to since.
    pub(crate) fn remove(&mut self, candidate: &Candidate, now: SystemTime) -> Result<bool, StoreError> {
        if self.failed {
            return Err(StoreError::Failed { path: self.dir.clone() });
        }
        let dir = self.dir.join(candidate.epoch.as_str());
        let path = dir.join(&candidate.name);
        let meta = std::fs::metadata(&path).map_err(at(&path))?;
        if meta.len() != candidate.bytes || meta.modified().map_err(at(&path))? != candidate.modified {
            return Ok(false);
        }
        let Some(stone) = self.tombstone(candidate, &path, now).map_err(at(&path))? else {
            self.metrics.kept.inc();
            tracing::error!(
                segment = %path.display(),
                "retention leaves a segment that is not as it was verified: run `phiward audit verify`"
            );
            return Ok(false);
        };
        let (line, hash) = stone.line().map_err(at(&path))?;
        self.bury(&line).map_err(at(&self.dir))?;
        let unlinked = unlink(&self.disk, &self.dir, &dir, &path);
        self.failed |= unlinked.is_err();
        unlinked.map_err(at(&path))?;
        self.epochs.remove(&candidate.epoch);
        self.looked_up = Default::default();
        self.removed.last.insert(candidate.epoch.clone(), stone);
        self.removed.next_prev = hash;
        self.metrics.removed.inc();
        Ok(true)
    }

    /// What is left of a segment that is good and follows what was removed before it.
    fn tombstone(
        &self,
        candidate: &Candidate,
        path: &Path,
        now: SystemTime,
    ) -> io::Result<Option<Tombstone>> {
        let found = trail::scan(path)?;
        let Some(last) =
            found.last.filter(|_| found.damage == Damage::None && found.good_bytes == candidate.bytes)
        else {
            return Ok(None);
        };
        let line = trail::first_of(path)?;
        let Ok(first) = Record::parse(&line) else { return Ok(None) };
        let before = self.removed.last.get(&candidate.epoch);
        let (next_seq, hash) =
            before.map_or((0, &NO_PREVIOUS[..]), |stone| (stone.last_seq + 1, stone.last_hash.as_bytes()));
        if first.seq < next_seq || first.seq == next_seq && first.prev != hash {
            return Ok(None);
        }
        Ok(Some(Tombstone {
            epoch: candidate.epoch.as_str().to_owned(),
            first_seq: first.seq,
            last_seq: last.record.seq,
            last_hash: last.record.hash,
            spiffe_id: writer_of(first.instance).into_owned(),
            removed: jiff::Timestamp::try_from(now).map(|now| format!("{now:.0}")).unwrap_or_default(),
            why: candidate.why.to_owned(),
            prev: self.removed.next_prev.clone(),
        }))
    }

    /// Appends a tombstone, all of it or nothing.
    fn bury(&mut self, line: &[u8]) -> io::Result<()> {
        let path = self.dir.join(RETENTION);
        let is_new = !path.exists();
        let mut file =
            if is_new { SegmentFile::create(path)? } else { SegmentFile::open(path, self.removed.bytes)? };
        file.append(&self.disk, line)?;
        let synced = self
            .disk
            .sync(file.file())
            .and_then(|()| if is_new { self.disk.sync(&trail::open_dir(&self.dir)?) } else { Ok(()) });
        self.failed |= synced.is_err();
        self.removed.bytes = file.len();
        synced
    }
}

/// Removes a segment, and its folder when it was the last.
fn unlink(disk: &Disk, store: &Path, folder: &Path, segment: &Path) -> io::Result<()> {
    std::fs::remove_file(segment)?;
    disk.sync(&trail::open_dir(folder)?)?;
    // Fails while the folder holds anything, which is as it should be.
    if std::fs::remove_dir(folder).is_ok() { disk.sync(&trail::open_dir(store)?) } else { Ok(()) }
}
