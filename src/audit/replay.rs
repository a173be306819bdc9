//! Brings over what a killed process had journaled and not appended: to the end of its own epoch, before a new one begins.
//!
//! Owns the answer to "which of these events are in the segments already". A kill can fall between an append and the mark
//! that tells of it, so events after the mark are compared with the records that were appended after it. Doing all of this
//! again after a kill in the middle changes nothing. Knows nothing of who waits for what.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::chain::{Chain, Epoch, Record};
use super::cipher::Cipher;
use super::encode::Pieces;
use super::encode::Previous;
use super::journal::{self, Left};
use super::lines::Lines;
use super::recover::Last;
use super::segment::{self, Disk, Form, SegmentFile};
use super::stored;

/// Appends to the newest of `segments`, whose last record is `last`, what the journals in `dir` hold beyond it, and removes
/// the journals. Gives the number of events.
///
/// # Errors
/// The disk's.
pub(crate) fn bring_over(
    dir: &Path,
    segments: &mut [(String, u64)],
    last: &mut Option<Last>,
    cipher: Option<&mut Cipher>,
) -> io::Result<u64> {
    let mut recovered = 0;
    if let (Some(last), Some((name, len))) = (last.as_mut(), segments.last().cloned()) {
        let left = left_of(dir, &last.record.epoch)?;
        let mut appended = Appended::read(dir, segments, &left)?;
        let epoch =
            Epoch::parse(&last.record.epoch).ok_or_else(|| io::Error::other("the epoch is no UUID"))?;
        let mut chain = Chain::resume(epoch, last.record.seq + 1, last.record.hash.as_bytes());
        let mut out = Vec::new();
        for left in &left {
            for event @ (head, tail) in &left.events {
                if !appended.has(left, head, tail) {
                    chain.append(&mut out, Pieces::of(event), &left.owner.instance);
                    recovered += 1;
                }
            }
        }
        if recovered > 0 {
            let len = append(&dir.join(&name), len, &stored(Form::of(&name), cipher, out)?)?;
            if let Some(newest) = segments.last_mut() {
                newest.1 = len;
            }
            last.closed = false;
            let (epoch, hash) =
                (last.record.epoch.clone(), String::from_utf8_lossy(chain.prev()).into_owned());
            last.record = Previous { epoch, seq: chain.next_seq() - 1, hash };
            tracing::info!(
                events = recovered,
                "audit events of a killed process were brought over from its journal"
            );
        }
    }
    journal::remove_all(dir)?;
    Ok(recovered)
}

/// What the journals hold for `epoch`. After the machine went down nothing can be brought over: see [`journal::Owner`].
fn left_of(dir: &Path, epoch: &str) -> io::Result<Vec<Left>> {
    let mut all = Vec::new();
    for path in journal::list(dir)? {
        if let Some(kept) = journal::set_unreadable_aside(&path)? {
            tracing::error!(kept = %kept.display(), "another version of phiward was killed and left this journal: its last events may be in no segment");
            continue;
        }
        let left = journal::read(&path)?.filter(|left| left.owner.epoch == epoch && !left.events.is_empty());
        all.extend(left.filter(|left| left.owner.is_of_this_boot()));
    }
    Ok(all)
}

fn append(path: &Path, len: u64, records: &[u8]) -> io::Result<u64> {
    let (mut segment, disk) = (SegmentFile::open(path.into(), len)?, Disk::default());
    segment.append(&disk, records)?;
    disk.sync(segment.file())?;
    Ok(segment.len())
}

/// The records that were appended after the oldest mark: their numbers by what they say.
struct Appended(HashMap<Vec<u8>, Vec<u64>>);

impl Appended {
    fn read(dir: &Path, segments: &[(String, u64)], left: &[Left]) -> io::Result<Self> {
        let mut known: HashMap<_, Vec<u64>> = HashMap::new();
        let Some(from) = left.iter().map(|left| left.mark.next_seq).min() else { return Ok(Self(known)) };
        let first = |name: &str| segment::parse_name(name).map_or(0, |(_, first)| first);
        let epoch = left.first().map_or("", |left| left.owner.epoch.as_str());
        let of_epoch: Vec<_> = segments.iter().filter(|(name, _)| name.starts_with(epoch)).collect();
        for (at, (name, _)) in of_epoch.iter().enumerate() {
            if of_epoch.get(at + 1).is_some_and(|(next, _)| first(next) <= from) {
                continue;
            }
            let mut lines = Lines::open(&dir.join(name))?;
            while let Some(line) = lines.next()? {
                let record = Record::parse(line.bytes).ok().filter(|record| record.seq >= from);
                if let Some((record, (head, tail))) =
                    record.and_then(|record| Some((record, record.pieces()?)))
                {
                    known.entry(key(head, &[], tail)).or_default().push(record.seq);
                }
            }
        }
        Ok(Self(known))
    }

    /// Whether the event is in a record; each record is taken for one event.
    fn has(&mut self, left: &Left, head: &[u8], tail: &[u8]) -> bool {
        let Some(numbers) = self.0.get_mut(&key(head, &left.owner.instance, tail)) else { return false };
        let found = numbers.iter().position(|seq| *seq >= left.mark.next_seq);
        found.map(|at| numbers.remove(at)).is_some()
    }
}

fn key(head: &[u8], instance: &[u8], tail: &[u8]) -> Vec<u8> {
    [head, b"\0", instance, tail].concat()
}
