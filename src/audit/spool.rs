//! What the workers, the writer, the syncer and the shippers share: limits, marks, health, the list of segments.
//!
//! Owns no thread and no file. A worker reads and changes atomics alone; the one mutex is taken by the writer, the syncer and
//! the shippers, once a batch.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::cipher::SpoolKey;
use super::frame::Batch;
use super::fresh::Fresh;
use super::journal::Marker;
use super::progress::SinkState;
use super::segment::{Disk, Form};

/// How much a segment holds before the next one is begun, unless told otherwise: 16 MiB of records, which are some six times fewer bytes.
/// The newest one is read at the start, so it is the records that count.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// The smallest spool that is accepted: 1 MiB.
pub const MIN_SPOOL_BYTES: u64 = 1024 * 1024;

/// What a place in the spool is counted as until the event's length is known; most events have 700 to 1100 bytes.
pub(crate) const PLACE_BYTES: i64 = 2048;
/// Kept free for the events of the trail itself, so that a full spool can still say so.
const HEADROOM_BYTES: u64 = 64 * 1024;
/// A file takes at least a block.
const BLOCK_BYTES: u64 = 4096;

/// Where the trail is written, and what happens when it cannot be.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// The folder; it is made if it is missing, and only one process may use it at a time.
    pub dir: PathBuf,
    /// The most bytes of segments and quarantine, at least [`MIN_SPOOL_BYTES`].
    pub max_bytes: u64,
    /// When an event counts as recorded.
    pub durability: Durability,
    /// What happens to a request whose event cannot be recorded.
    pub on_failure: OnFailure,
    /// The length of the records in a segment at which the next one is begun (see [`SEGMENT_BYTES`]); at most an eighth of `max_bytes` is used.
    pub segment_bytes: u64,
    /// What is written is encrypted with this key, line by line; without one it is packed.
    pub key: Option<Arc<SpoolKey>>,
}

impl SpoolConfig {
    /// That of the segments that are written now.
    pub(crate) fn form(&self) -> Form {
        if self.key.is_some() { Form::Lines } else { Form::Packed }
    }
}

/// When an event counts as recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the kernel before the request is forwarded: survives the death of the process, not of the machine.
    Write,
    /// In the kernel before the request is forwarded, on disk before the response is released.
    Fsync,
    /// On disk before the request is forwarded.
    FsyncBeforeForward,
}

/// What happens to a request whose event cannot be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is refused.
    Deny,
    /// It passes and is counted, and an `audit.gap` event tells the count when the spool takes events again.
    AllowWithGap,
}

/// Whether the spool takes events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Health {
    /// It does.
    Good = 0,
    /// What was let in has a place, and there is none for more.
    Short = 1,
    /// The disk refused a write; it is tried again.
    Stalled = 2,
    /// The disk failed in a way that cannot be tried over.
    Poisoned = 3,
    /// The trail was closed.
    Closed = 4,
}

/// The shared state of one audit trail.
pub(crate) struct Shared {
    pub(crate) config: SpoolConfig,
    pub(crate) epoch: String,
    /// The member `instance`, encoded.
    pub(crate) instance: Vec<u8>,
    pub(crate) disk: Disk,
    pub(crate) gap: Gap,
    pub(crate) sinks: Vec<Arc<SinkState>>,
    pub(crate) fresh: Fresh,
    /// Bytes that may still be reserved.
    pub(crate) free: AtomicI64,
    /// Records, and bytes of records, written by this process.
    pub(crate) written_events: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    /// Checkpoints among the records.
    pub(crate) checkpoints: AtomicU64,
    /// Denials that were counted in summaries, or will be.
    pub(crate) coalesced_events: AtomicU64,
    /// Events that could not be written after the disk failed for good.
    pub(crate) lost_events: AtomicU64,
    /// Workers that were ever attached; each has a journal of its own.
    pub(crate) attached: AtomicU64,
    health: AtomicU8,
    last_error: Mutex<Option<String>>,
    tail: Mutex<Tail>,
    pub(crate) sync_wanted: Condvar,
}

/// The segments, and what of them is not on disk yet.
pub(crate) struct Tail {
    /// In chain order; the last one is being written.
    pub(crate) segments: VecDeque<Segment>,
    /// Files (and folders) with bytes that were written and not synced.
    pub(crate) unsynced: Vec<Arc<File>>,
    /// The syncer was told of `unsynced`; telling it costs a system call, so it is told once.
    pub(crate) sync_asked: bool,
    pub(crate) stop: bool,
    pub(crate) workers: Vec<Arc<WorkerLink>>,
}

/// A segment as the shippers see it.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    /// Counts up in chain order within this process.
    pub(crate) ordinal: u64,
    pub(crate) name: String,
    /// How many bytes of the file are whole records, as they are stored.
    pub(crate) bytes: u64,
}

/// What one worker and the writer share.
#[derive(Default)]
pub(crate) struct WorkerLink {
    /// How many of the worker's events, and encoded bytes, were written.
    pub(crate) written: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    /// How many of its events are on disk.
    pub(crate) synced: AtomicU64,
    pub(crate) wake: Notify,
    /// The worker waits until this many of its events were written. Waking it costs a system call, and for what is journaled
    /// nobody waits.
    pub(crate) expects: AtomicU64,
    /// The worker's journal, where it has one.
    pub(crate) marker: OnceLock<Marker>,
    /// Buffers on their way back. Shared with the writer alone, and either side goes on without it when it is taken.
    pub(crate) spare: Mutex<Vec<Batch>>,
}

impl Shared {
    pub(crate) fn new(
        config: SpoolConfig,
        epoch: String,
        instance: Vec<u8>,
        sinks: Vec<Arc<SinkState>>,
        segments: VecDeque<Segment>,
        other_bytes: u64,
    ) -> Self {
        let used: u64 = segments.iter().map(|segment| footprint(segment.bytes)).sum::<u64>() + other_bytes;
        let free = config.max_bytes.saturating_sub(HEADROOM_BYTES) as i64 - used as i64;
        Self {
            config,
            epoch,
            instance,
            disk: Disk::default(),
            gap: Gap::default(),
            sinks,
            fresh: Fresh::default(),
            free: AtomicI64::new(free),
            written_events: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            coalesced_events: AtomicU64::new(0),
            lost_events: AtomicU64::new(0),
            attached: AtomicU64::new(0),
            health: AtomicU8::new(Health::Good as u8),
            last_error: Mutex::new(None),
            tail: Mutex::new(Tail {
                segments,
                unsynced: Vec::new(),
                sync_asked: false,
                stop: false,
                workers: Vec::new(),
            }),
            sync_wanted: Condvar::new(),
        }
    }

    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }

    pub(crate) fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Good,
            1 => Health::Short,
            2 => Health::Stalled,
            3 => Health::Poisoned,
            _ => Health::Closed,
        }
    }

    /// Changes the health and lets every waiting request look at it. What is over stays over.
    pub(crate) fn set_health(&self, health: Health, error: Option<String>) {
        let next = |before: u8| {
            Some(if before >= Health::Poisoned as u8 { before.max(health as u8) } else { health as u8 })
        };
        let _ = self.health.fetch_update(Ordering::AcqRel, Ordering::Acquire, next); // it is never refused
        if error.is_some() {
            *lock(&self.last_error) = error;
        }
        for worker in &self.tail().workers {
            worker.wake.notify_one();
        }
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// Whether a sink takes what the writer has packed.
    pub(crate) fn wants_frames(&self) -> bool {
        self.sinks.iter().any(|sink| sink.takes_frames.load(Ordering::Acquire))
    }

    /// Forgets the pieces that every sink which takes them has acknowledged.
    pub(crate) fn drop_taken(&self) {
        let take = self.sinks.iter().filter(|sink| sink.takes_frames.load(Ordering::Acquire));
        let cursors =
            take.map(|sink| (sink.ordinal.load(Ordering::Acquire), sink.offset.load(Ordering::Acquire)));
        match cursors.min() {
            Some((ordinal, offset)) => self.fresh.drop_before(ordinal, offset),
            None => self.fresh.drop_before(u64::MAX, 0),
        }
    }

    /// What collectors have signed for and the trail does not carry yet.
    pub(crate) fn new_receipts(&self) -> Vec<(String, String)> {
        let new = self.sinks.iter().filter_map(|sink| Some((sink.name.clone(), lock(&sink.receipt).take()?)));
        let mut new: Vec<_> = new.collect();
        new.sort();
        new
    }

    /// The length of the records at which the next segment is begun.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.config.segment_bytes.min(self.config.max_bytes / 8)
    }

    /// The least that a segment's removal must leave free before nothing more is removed.
    pub(crate) fn reclaim_below(&self) -> i64 {
        // In a small spool, still room for a worker's journal and for what is under way.
        (self.config.max_bytes / 8).max(MIN_SPOOL_BYTES / 4) as i64
    }

    /// How far every sink that counts has acknowledged: segments with a lower ordinal have done their duty. `None` when
    /// nothing may be removed, because there is no sink.
    pub(crate) fn delivered_before(&self) -> Option<u64> {
        let any_required = self.sinks.iter().any(|sink| sink.required);
        let counts = self.sinks.iter().filter(|sink| sink.required || !any_required);
        counts.map(|sink| sink.ordinal.load(Ordering::Acquire)).min()
    }
}

/// What passed or was refused without an event.
pub(crate) struct Gap {
    allowed: AtomicU64,
    denied: AtomicU64,
    from: AtomicU64,
    to: AtomicU64,
}

impl Default for Gap {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self { allowed: zero(), denied: zero(), from: AtomicU64::new(u64::MAX), to: zero() }
    }
}

impl Gap {
    pub(crate) fn count(&self, allowed: bool, unix_ns: u64) {
        self.from.fetch_min(unix_ns, Ordering::AcqRel);
        self.to.fetch_max(unix_ns, Ordering::AcqRel);
        let counter = if allowed { &self.allowed } else { &self.denied };
        counter.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.allowed.load(Ordering::Acquire) + self.denied.load(Ordering::Acquire) > 0
    }

    /// Takes the counts out: allowed, denied, from, to.
    pub(crate) fn take(&self, now: u64) -> (u64, u64, u64, u64) {
        let allowed = self.allowed.swap(0, Ordering::AcqRel);
        let denied = self.denied.swap(0, Ordering::AcqRel);
        let from = self.from.swap(u64::MAX, Ordering::AcqRel);
        let to = self.to.swap(0, Ordering::AcqRel);
        // A request counted between these lines leaves its time with this gap and its count with the next.
        (allowed, denied, if from == u64::MAX { now } else { from }, if to == 0 { now } else { to })
    }
}

/// What a file of this length takes of the budget.
pub(crate) fn footprint(bytes: u64) -> u64 {
    bytes.max(BLOCK_BYTES)
}

/// Locks a mutex whose data stays valid when a holder panics: every change under it is a single assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
