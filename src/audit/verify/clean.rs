//! The fast way through a trail: segments that are good in themselves, checked side by side on all cores.
//!
//! Owns no verdict: a segment in which anything is odd is simply not vouched for, and is then gone through line by line by
//! the one that names findings. So there is one place that says what tampering is, and this can only make it faster.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::super::chain::{Epoch, Record};
use super::super::encode::Previous;
use super::super::layout::Layout;
use super::super::lines::Lines;
use super::super::merkle::Range;
use super::super::spool::lock;
use super::{opened_after, seals};

const MAX_THREADS: usize = 16;
/// After so many bytes it is told how far a thread has come.
const TELL_EVERY: u64 = 256 * 1024;

/// A segment whose lines are all whole, canonical records of one epoch that follow each other.
#[derive(Default)]
pub(super) struct Clean {
    pub(super) first_seq: u64,
    /// The `prev` of the first record, which only the segment before can confirm.
    pub(super) first_prev: Vec<u8>,
    pub(super) last_seq: u64,
    pub(super) last_hash: Vec<u8>,
    pub(super) lines: u64,
    pub(super) by_type: Vec<(String, u64)>,
    pub(super) closed: bool,
    pub(super) opened_after: Option<Previous>,
    /// The records.
    pub(super) range: Range,
    /// Records that say something of the whole: number, line, and the records of the segment before them.
    pub(super) seals: Vec<(u64, Vec<u8>, Range)>,
}

/// Reads every segment and keeps what can be vouched for, by path.
pub(super) fn read_all(layout: &Layout, done: &AtomicU64) -> BTreeMap<PathBuf, Clean> {
    let segments: Vec<_> =
        layout.epochs.iter().flat_map(|e| e.segments.iter().map(|s| (&e.epoch, &s.path))).collect();
    let threads =
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(segments.len());
    let (next, clean) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some((epoch, path)) = segments.get(next.fetch_add(1, Ordering::Relaxed)) {
            // A file that cannot be read is met again by the one that reports errors.
            if let Ok(Some(segment)) = read(epoch, path, done) {
                lock(&clean).insert(path.to_path_buf(), segment);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    clean.into_inner().unwrap_or_default()
}

fn read(epoch: &Epoch, path: &Path, done: &AtomicU64) -> io::Result<Option<Clean>> {
    let mut lines = Lines::open(path)?;
    let mut clean = Clean::default();
    let (mut scratch, mut said, mut read) = (Vec::new(), 0, 0);
    while let Some(line) = lines.next()? {
        let Some(record) = Record::parse(line.bytes).ok().filter(|_| line.whole) else { return Ok(None) };
        let leaf = record.checked_leaf(&mut scratch).filter(|_| record.epoch == epoch.as_str());
        let Some(leaf) = leaf else { return Ok(None) };
        if clean.lines == 0 {
            clean.first_seq = record.seq;
            clean.range = Range::at(record.seq);
            clean.first_prev = record.prev.to_vec();
        } else if record.seq != clean.last_seq + 1 || record.prev != clean.last_hash {
            return Ok(None);
        }
        if record.kind == "audit.open" {
            clean.opened_after = opened_after(line.bytes);
        }
        if seals::concerns(record.kind) {
            clean.seals.push((record.seq, line.bytes.to_vec(), clean.range.clone()));
        }
        clean.range.append(leaf);
        match clean.by_type.iter_mut().find(|(kind, _)| kind == record.kind) {
            Some((_, count)) => *count += 1,
            None => clean.by_type.push((record.kind.to_owned(), 1)),
        }
        clean.closed = record.kind == "audit.close";
        clean.last_seq = record.seq;
        clean.last_hash.clear();
        clean.last_hash.extend_from_slice(record.hash);
        clean.lines += 1;
        read = line.end;
        if read - said >= TELL_EVERY {
            done.fetch_add(read - std::mem::replace(&mut said, read), Ordering::Relaxed);
        }
    }
    done.fetch_add(read - said, Ordering::Relaxed);
    Ok(Some(clean).filter(|clean| clean.lines > 0))
}
