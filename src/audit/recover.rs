//! What a process finds in the spool when it starts: the lock, the end of the last epoch, and damage.
//!
//! Owns the repair of the newest segment. A record that a crash cut short at the very end is removed and told in
//! `audit.open`; damage before the end is tampering or a bad disk, so the whole segment is kept aside as `.corrupt` before
//! anything is changed. Older segments are left to `audit verify`, because starting must not take seconds.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::AuditError;
use super::chain::{Epoch, NO_PREVIOUS, Record};
use super::cipher::Cipher;
use super::encode::Previous;
use super::lines::Lines;
use super::{replay, segment};

/// The name of the file whose lock says that a process uses the folder.
pub(crate) const LOCK_FILE: &str = "lock";
/// How damaged segments that were kept end.
pub(crate) const CORRUPT: &str = ".corrupt";

/// The folder of batches that a sink refused for good.
pub(crate) const QUARANTINE: &str = "quarantine";

/// What was found.
pub(crate) struct Recovered {
    /// Held until the process ends.
    pub(crate) lock: File,
    /// In chain order, without the epoch that begins now.
    pub(crate) segments: Vec<(String, u64)>,
    pub(crate) previous: Option<Previous>,
    /// For `audit.open`: `new`, `spool_lost`, `clean`, `unclean`, `torn_tail` or `corrupt`.
    pub(crate) recovery: &'static str,
    /// Bytes that were cut off.
    pub(crate) lost_bytes: u64,
    /// Events that a killed process had journaled and not appended.
    pub(crate) recovered: u64,
}

/// Locks the folder (made if it is missing) and repairs its newest segment; what it appends is encrypted with `cipher`.
///
/// # Errors
/// Another process uses it, or it cannot be read or changed.
pub(crate) fn recover(dir: &Path, cipher: Option<&mut Cipher>) -> Result<Recovered, AuditError> {
    let io_error = |error| AuditError::Spool { path: dir.into(), error };
    let lock = lock_dir(dir)?;
    let mut segments = segment::list(dir).map_err(io_error)?;
    let mut damage = Damage::None;
    let mut lost_bytes = 0;
    let mut last = None;
    while let Some((name, len)) = segments.last_mut() {
        let path = dir.join(&*name);
        let found = scan(&path).map_err(io_error)?;
        lost_bytes += *len - found.good_bytes.min(*len);
        damage = damage.max(found.damage);
        repair(&path, &found).map_err(io_error)?;
        *len = found.good_bytes;
        if found.last.is_some() {
            last = found.last;
            break;
        }
        segments.pop(); // nothing was left of it
    }
    let recovered = replay::bring_over(dir, &mut segments, &mut last, cipher).map_err(io_error)?;
    if let Some((name, _)) = segments.last() {
        // Costs only space where it fails.
        let _ = segment::release(&dir.join(name));
    }
    if let Some(last) = &last {
        sync_epoch(dir, &segments, &last.record.epoch).map_err(io_error)?;
    }
    let recovery = match (&last, damage) {
        (_, Damage::Corrupt) => "corrupt",
        (_, Damage::Torn) => "torn_tail",
        (Some(last), Damage::None) if last.closed => "clean",
        (Some(_), Damage::None) => "unclean",
        (None, Damage::None) if has_cursor(dir).map_err(io_error)? => "spool_lost",
        (None, Damage::None) => "new",
    };
    let previous = last.map(|last| last.record);
    Ok(Recovered { lock, segments, previous, recovery, lost_bytes, recovered })
}

/// Brings the killed process's last records onto the disk before `audit.open`, which is synced, says that they are there: a
/// power failure after it would look as if somebody had cut them off.
fn sync_epoch(dir: &Path, segments: &[(String, u64)], epoch: &str) -> io::Result<()> {
    let disk = segment::Disk::default();
    for (name, _) in segments.iter().filter(|(name, _)| name.starts_with(epoch)) {
        disk.sync(&File::open(dir.join(name))?)?;
    }
    Ok(())
}

/// Makes the folder if it is missing and takes its lock, which the system lets go of when the process ends in any way.
///
/// # Errors
/// Another process has it, or the folder cannot be made.
pub(crate) fn lock_dir(dir: &Path) -> Result<File, AuditError> {
    let io_error = |error| AuditError::Spool { path: dir.into(), error };
    DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(io_error)?;
    let lock =
        OpenOptions::new().create(true).write(true).truncate(false).mode(0o640).open(dir.join(LOCK_FILE));
    let lock = lock.map_err(io_error)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(AuditError::InUse { path: dir.into() }),
        Err(TryLockError::Error(error)) => Err(io_error(error)),
    }
}

/// How a segment is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Damage {
    None,
    /// What follows the good records is no record at all: a write that a crash cut short.
    Torn,
    /// What follows the good records is a record that does not fit or a whole frame that cannot be unpacked, or good records follow it.
    Corrupt,
}

/// What a segment holds.
pub(crate) struct Scan {
    /// The length of the records that are good and follow each other. Of a packed segment, that of the frames which hold nothing else: it
    /// cannot be cut in the middle of one.
    pub(crate) good_bytes: u64,
    pub(crate) damage: Damage,
    pub(crate) last: Option<Last>,
}

/// The last good record of a segment.
#[derive(Clone)]
pub(crate) struct Last {
    pub(crate) record: Previous,
    /// Whether it is `audit.close`.
    pub(crate) closed: bool,
}

/// Reads a segment and checks each record against the one before and against the file's name.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn scan(path: &Path) -> io::Result<Scan> {
    let named = path.file_name().and_then(|name| name.to_str()).and_then(segment::parse_name);
    let (epoch, first_seq) =
        named.ok_or_else(|| io::Error::other("the file has not the name of a segment"))?;
    let mut found = Scan { good_bytes: 0, damage: Damage::None, last: None };
    let mut lines = Lines::open(path)?;
    let mut scratch = Vec::new();
    let mut newest: Option<Last> = None;
    while let Some(line) = lines.next()? {
        let record = Record::parse(line.bytes).ok().filter(|_| line.whole);
        let hash_is_right = record.as_ref().is_some_and(|record| record.hash_is_right(&mut scratch));
        if found.damage != Damage::None {
            if hash_is_right {
                found.damage = Damage::Corrupt;
                break;
            }
            continue;
        }
        match record {
            Some(record) if hash_is_right && follows(&record, &epoch, first_seq, newest.as_ref()) => {
                let hash = String::from_utf8_lossy(record.hash).into_owned();
                let record_end = Previous { epoch: record.epoch.to_owned(), seq: record.seq, hash };
                newest = Some(Last { record: record_end, closed: record.kind == "audit.close" });
                if line.closes {
                    found.good_bytes = line.end;
                    found.last.clone_from(&newest);
                }
            }
            Some(_) => found.damage = Damage::Corrupt,
            None if line.is_damage => found.damage = Damage::Corrupt,
            None => found.damage = Damage::Torn,
        }
    }
    Ok(found)
}

fn follows(record: &Record<'_>, epoch: &Epoch, first_seq: u64, last: Option<&Last>) -> bool {
    let in_order = match last {
        Some(last) => record.seq == last.record.seq + 1 && record.prev == last.record.hash.as_bytes(),
        None => record.seq == first_seq && (first_seq > 0 || record.prev == NO_PREVIOUS),
    };
    in_order && record.epoch == epoch.as_str()
}

/// Brings a segment back to its good records; a damaged one is copied to `.corrupt` before.
///
/// # Errors
/// The disk's.
pub(crate) fn repair(path: &Path, found: &Scan) -> io::Result<()> {
    if found.damage == Damage::Corrupt {
        let mut kept = path.as_os_str().to_owned();
        kept.push(CORRUPT);
        std::fs::copy(path, &kept)?;
        File::open(&kept)?.sync_all()?;
        tracing::error!(kept = %Path::new(&kept).display(), "a record of the audit trail is damaged: the segment is kept for inspection");
    }
    if found.last.is_none() {
        return std::fs::remove_file(path);
    }
    if found.damage != Damage::None {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(found.good_bytes)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Whether a sink had read from this folder, so that it cannot be new.
fn has_cursor(dir: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if entry?.file_name().to_str().is_some_and(|name| name.starts_with("cursor-")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes in the folder that are kept and are no segments: quarantined batches and `.corrupt` files.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn other_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for folder in [dir.to_owned(), dir.join(QUARANTINE)] {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_none_or(|name| segment::parse_name(name).is_none())
                && entry.file_type()?.is_file()
            {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}
