//! The writer: the one thread that owns the chain and the newest segment.
//!
//! It takes what all workers sent, chains it, appends it by one `write` and only then moves the marks that the workers wait
//! for. It never syncs while workers wait: that is the syncer's (see `sync`). While the disk refuses writes it keeps what
//! was recorded (the reservations bound how much) and tries again; no event is skipped, because the next one's hash would
//! not fit.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use super::ahead::{self, Ahead, Look};
use super::batch;
use super::chain::Chain;
use super::cipher::Cipher;
use super::clock::{InstantText, unix_ns};
use super::encode::TrailEvent;
use super::event::ControlEvent;
use super::frame::Batch;
use super::fresh::{self, Piece};
use super::journal::Mark;
use super::repeats::Repeats;
use super::seal::Sealer;
use super::segment::{self, SegmentFile};
use super::spool::{Health, PLACE_BYTES, Segment, Shared, WorkerLink, footprint};

/// The most that is gathered before a write, or a segment where that is smaller; a burst beyond it takes another.
const MAX_WRITE: usize = 1024 * 1024;
/// How long to wait before a refused write is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How many buffers a worker gets back at most.
const SPARE_BATCHES: usize = 4;

/// What the writer is told.
pub(crate) enum Message {
    /// Events of one worker.
    Batch { worker: Arc<WorkerLink>, batch: Batch },
    /// An event of the control thread.
    Control(Box<ControlEvent>),
    /// An event about the trail itself.
    Trail(Box<TrailEvent>),
    /// A sink has acknowledged a whole segment, so space may be won back.
    Delivered,
    /// Write what is queued, then end: with `audit.close`, or without when the process gives up.
    End { close: bool },
}

/// The writer's own state.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
    chain: Chain,
    sealer: Sealer,
    segment: SegmentFile,
    /// Encrypts what is written, where the spool has a key.
    cipher: Option<Cipher>,
    /// A record that is not encrypted yet.
    plain: Vec<u8>,
    ahead: Ahead,
    repeats: Option<Repeats>,
    clock: InstantText,
    /// Records that were chained and not written yet.
    out: Vec<u8>,
    out_events: u64,
    owed: Vec<Owed>,
    retry_at: Option<Instant>,
    ending: Option<Ending>,
}

struct Ending {
    close: bool,
}

/// Marks to move when `out` is written.
struct Owed {
    worker: Arc<WorkerLink>,
    events: u64,
    bytes: u64,
    /// Whether the worker waits for some of them.
    expected: bool,
}

impl Writer {
    /// A writer that goes on with `chain` in `segment`, the last one of `shared`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        inbox: Receiver<Message>,
        chain: Chain,
        sealer: Sealer,
        segment: SegmentFile,
        cipher: Option<Cipher>,
    ) -> Self {
        let clock = InstantText::new();
        let (out, owed) = (Vec::with_capacity(MAX_WRITE / 4), Vec::new());
        let ahead = Ahead::new(shared.segment_bytes());
        Self {
            shared,
            inbox,
            chain,
            sealer,
            segment,
            cipher,
            plain: Vec::new(),
            ahead,
            repeats: None,
            clock,
            out,
            out_events: 0,
            owed,
            retry_at: None,
            ending: None,
        }
    }

    /// Works until it is told to end, or nobody is left to tell it anything.
    ///
    /// # Errors
    /// What kept the last events from being written.
    pub(crate) fn run(mut self) -> Result<(), String> {
        let most = MAX_WRITE.min(self.shared.segment_bytes() as usize);
        let ending = loop {
            if let Some(ending) = self.ending.take() {
                break ending;
            }
            match self.next_message() {
                Some(message) => self.take(message),
                None => self.repeats = None,
            }
            while self.out.len() < most && self.ending.is_none() {
                let Ok(message) = self.inbox.try_recv() else { break };
                self.take(message);
            }
            self.seal();
            self.flush();
            self.look_ahead();
            self.close_gap(self.shared.reclaim_below() / 4);
        };
        self.end(&ending)
    }

    fn next_message(&mut self) -> Option<Message> {
        let patience = match self.retry_at {
            None if self.ahead.is_short() => ahead::ASK_EVERY,
            None => self.sealer.left(Instant::now()),
            Some(_) => RETRY_AFTER,
        };
        match self.inbox.recv_timeout(patience) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::End { close: false }),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Batch { worker, batch } => self.take_batch(worker, batch),
            Message::Control(event) => {
                let mut batch = Batch::default();
                batch.control(&event, &mut self.clock);
                self.chain_up(&batch);
            }
            Message::Trail(event) => self.take_trail(&event),
            Message::Delivered => self.reclaim(),
            Message::End { close } => self.ending = Some(Ending { close }),
        }
    }

    fn take_batch(&mut self, worker: Arc<WorkerLink>, mut batch: Batch) {
        let (events, bytes) = (batch.events(), batch.bytes());
        self.chain_up(&batch);
        let places = events as i64 * PLACE_BYTES; // the worker paid for these
        self.shared.free.fetch_add(places, Ordering::AcqRel);
        match self.owed.iter_mut().find(|owed| Arc::ptr_eq(&owed.worker, &worker)) {
            Some(owed) => {
                owed.events += events;
                owed.bytes += bytes;
            }
            None => self.owed.push(Owed { worker: worker.clone(), events, bytes, expected: false }),
        }
        batch.clear();
        match worker.spare.try_lock() {
            Ok(mut spare) if spare.len() < SPARE_BATCHES => spare.push(batch),
            Ok(_) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
        }
    }

    fn take_trail(&mut self, event: &TrailEvent) {
        let mut batch = Batch::default();
        batch.trail(event, &mut self.clock, unix_ns());
        self.chain_up(&batch);
    }

    /// Chains the events of a batch into `out` and takes their bytes from the budget.
    fn chain_up(&mut self, batch: &Batch) {
        let before = self.out.len();
        if before == 0 {
            if self.cipher.is_none() && self.shared.wants_frames() {
                self.repeats.get_or_insert_with(Repeats::new).begin();
            } else {
                self.repeats = None;
            }
        }
        for event in batch.pieces() {
            let at = self.out.len();
            let record = match &mut self.cipher {
                None => self.chain.append(&mut self.out, event, &self.shared.instance),
                Some(cipher) => {
                    self.plain.clear();
                    let record = self.chain.append(&mut self.plain, event, &self.shared.instance);
                    if let Err(error) = cipher.lines(&mut self.out, &self.plain) {
                        // It never does: the key and the length are what the library takes.
                        tracing::error!(%error, "an audit record cannot be encrypted");
                        self.shared.set_health(Health::Poisoned, Some(error.to_string()));
                    }
                    record
                }
            };
            if let Some(repeats) = &mut self.repeats {
                repeats.record(&self.out, at, record.ends);
            }
            self.sealer.append(record.hash);
            self.out_events += 1;
        }
        self.shared.free.fetch_sub((self.out.len() - before) as i64, Ordering::AcqRel);
    }

    /// Says how far the epoch has come, when that is due. A disk that takes nothing is not given more to take.
    fn seal(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_none()
            && !self.ahead.is_short()
            && self.sealer.is_due(now)
            && let Some(mut sealed) = self.sealer.seal(now)
        {
            sealed.receipts = self.shared.new_receipts();
            self.shared.checkpoints.fetch_add(1, Ordering::Release);
            self.take_trail(&TrailEvent::Checkpoint(sealed));
        }
    }

    /// Writes `out`, unless it is too early to try again.
    fn flush(&mut self) {
        if self.out.is_empty() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.shared.health() == Health::Poisoned {
            return self.lose();
        }
        let outcome = match self.roll_if_full() {
            // Nothing was written yet, so whatever it is (too many open files, say), it can be tried again.
            Err(error) => Err((error, true)),
            Ok(()) => self.segment.append(&self.shared.disk, &self.out).map_err(|error| {
                let retry = can_be_retried(&error);
                (error, retry)
            }),
        };
        match outcome {
            Ok(()) => self.written(),
            Err((error, true)) => {
                if self.retry_at.is_none() {
                    tracing::error!(path = %self.segment.path().display(), %error, "the audit spool cannot be written; it is tried again");
                    self.shared.set_health(Health::Stalled, Some(self.describe(&error)));
                }
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
            Err((error, false)) => {
                tracing::error!(path = %self.segment.path().display(), %error, "the audit spool failed; check the disk and restart");
                self.shared.set_health(Health::Poisoned, Some(self.describe(&error)));
                self.lose();
            }
        }
    }

    /// Lets nobody in for whose record the disk has no place.
    fn look_ahead(&mut self) {
        if self.shared.health() >= Health::Poisoned {
            return;
        }
        let now = Instant::now();
        match self.ahead.look(&mut self.segment, &self.shared.disk, now) {
            Look::AsBefore => {}
            Look::Short(error) => {
                tracing::error!(path = %self.segment.path().display(), %error, "the audit spool's disk is full; it is asked again");
                // A write that was refused is worse: who waits for it must not wait for space.
                if self.retry_at.is_none() {
                    self.shared.set_health(Health::Short, Some(self.describe(&error)));
                }
            }
            Look::Enough => {
                tracing::info!("the audit spool's disk has space again");
                if self.retry_at.is_none() {
                    self.shared.set_health(Health::Good, None);
                }
            }
        }
        if self.ahead.is_short() {
            // What has been delivered makes room, however little of `max_bytes` is used.
            self.remove_oldest();
            if self.shared.gap.is_open() && self.retry_at.is_none() && self.ahead.may_tell(&self.segment, now)
            {
                self.tell_gap();
            }
        }
    }

    fn describe(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.segment.path().display())
    }

    /// Begins the next segment, with the first record of `out`, when it does not fit in this one.
    fn roll_if_full(&mut self) -> io::Result<()> {
        let full = self.segment.len() + self.out.len() as u64 > self.shared.segment_bytes();
        // On a full disk this one has space, and a new one has none.
        if self.segment.len() == 0 || !full || self.ahead.is_short() {
            return Ok(());
        }
        let dir = &self.shared.config.dir;
        let name = segment::name(self.chain.epoch(), self.chain.next_seq() - self.out_events);
        let path: PathBuf = dir.join(&name);
        let opened_dir = segment::open_dir(dir)?;
        let mut ended = std::mem::replace(&mut self.segment, SegmentFile::create(path)?);
        ended.release();
        let mut tail = self.shared.tail();
        let ordinal = tail.segments.back().map_or(0, |last| last.ordinal + 1);
        tail.segments.push_back(Segment { ordinal, name, bytes: 0 });
        tail.unsynced.push(Arc::new(opened_dir)); // the entry of the new file must reach the disk as its bytes must
        drop(tail);
        self.reclaim();
        Ok(())
    }

    fn written(&mut self) {
        let mut tail = self.shared.tail();
        let ordinal = tail.segments.back_mut().map_or(0, |segment| {
            segment.bytes = self.segment.len();
            segment.ordinal
        });
        if !tail.unsynced.last().is_some_and(|file| Arc::ptr_eq(file, self.segment.file())) {
            tail.unsynced.push(self.segment.file().clone());
        }
        if !std::mem::replace(&mut tail.sync_asked, true) {
            self.shared.sync_wanted.notify_one();
        }
        // Marks move while the list is locked: the syncer reads both under the same lock, so a mark it has read never
        // covers an event in a file it has not seen.
        for owed in &mut self.owed {
            let before = owed.worker.written.fetch_add(owed.events, Ordering::Release);
            owed.expected = owed.worker.expects.load(Ordering::Acquire) > before;
            owed.worker.written_bytes.fetch_add(owed.bytes, Ordering::Release);
        }
        drop(tail);
        let next_seq = self.chain.next_seq();
        for owed in self.owed.drain(..) {
            if owed.expected {
                owed.worker.wake.notify_one();
            }
            if let Some(marker) = owed.worker.marker.get() {
                let position = owed.worker.written.load(Ordering::Acquire);
                marker.mark(&self.shared.disk, Mark { position, next_seq });
            }
        }
        self.code(ordinal);
        self.shared.written_events.fetch_add(self.out_events, Ordering::Release);
        self.shared.written_bytes.fetch_add(self.out.len() as u64, Ordering::Release);
        for sink in &self.shared.sinks {
            sink.new_data.notify_one();
        }
        self.out.clear();
        self.out.shrink_to(2 * MAX_WRITE);
        self.out_events = 0;
        if self.retry_at.take().is_some() {
            tracing::info!("the audit spool is written again");
            self.shared.set_health(if self.ahead.is_short() { Health::Short } else { Health::Good }, None);
        }
        if self.shared.free.load(Ordering::Acquire) < self.shared.reclaim_below() {
            self.reclaim();
        }
    }

    /// Codes what was written, at the end of segment `ordinal`, for the sinks that take it so. It is still in this core's cache, which
    /// nothing of it is when delivery would read it.
    fn code(&mut self, ordinal: u64) {
        if self.out.len() < fresh::WORTH_BYTES {
            return;
        }
        let Some(coded) = self.repeats.as_mut().and_then(|repeats| repeats.end(self.out.len())) else {
            return;
        };
        debug_assert!(zstd::bulk::decompress(coded, self.out.len()).is_ok_and(|plain| plain == self.out));
        let (end, next_seq) = (self.segment.len(), self.chain.next_seq());
        self.shared.fresh.push(Piece {
            ordinal,
            place: end - self.out.len() as u64..end,
            seqs: next_seq - self.out_events..next_seq,
            oldest_ns: batch::time_ns(batch::first_line(&self.out)).unwrap_or(0),
            coded: coded.into(),
        });
    }

    /// The disk failed for good: what was recorded since cannot be kept, and is counted.
    fn lose(&mut self) {
        self.shared.lost_events.fetch_add(self.out_events, Ordering::Release);
        self.out.clear();
        self.out_events = 0;
        self.owed.clear();
        self.retry_at = None;
    }

    /// Removes delivered segments, oldest first, while space is short.
    fn reclaim(&mut self) {
        while self.shared.free.load(Ordering::Acquire) < self.shared.reclaim_below() && self.remove_oldest() {
        }
    }

    /// Removes the oldest segment, if every sink that counts has it. What is not delivered stays, in the list as on disk.
    fn remove_oldest(&mut self) -> bool {
        let Some(delivered_before) = self.shared.delivered_before() else { return false };
        let mut tail = self.shared.tail();
        let removable = tail.segments.len() > 1
            && tail.segments.front().is_some_and(|segment| segment.ordinal < delivered_before);
        let Some(segment) = removable.then(|| tail.segments.pop_front()).flatten() else { return false };
        drop(tail);
        if let Err(error) = std::fs::remove_file(self.shared.config.dir.join(&segment.name)) {
            tracing::error!(segment = segment.name, %error, "a delivered audit segment cannot be removed");
            self.shared.tail().segments.push_front(segment);
            return false;
        }
        self.shared.free.fetch_add(footprint(segment.bytes) as i64, Ordering::AcqRel);
        true
    }

    /// Tells what passed unrecorded, once there is room enough that the next event does not open another gap.
    fn close_gap(&mut self, room: i64) {
        let healthy = self.shared.health() == Health::Good && self.retry_at.is_none();
        if healthy && self.shared.gap.is_open() && self.shared.free.load(Ordering::Acquire) >= room {
            self.tell_gap();
        }
    }

    fn tell_gap(&mut self) {
        let (allowed, denied, from_unix_ns, to_unix_ns) = self.shared.gap.take(unix_ns());
        tracing::warn!(allowed, denied, "the audit trail had a gap");
        self.take_trail(&TrailEvent::Gap { from_unix_ns, to_unix_ns, allowed, denied });
        self.flush();
    }

    fn end(&mut self, ending: &Ending) -> Result<(), String> {
        self.retry_at = None; // the last attempt does not wait
        if self.shared.gap.is_open() && self.shared.health() < Health::Poisoned {
            self.tell_gap();
        }
        if ending.close {
            let mut checkpoint = self.sealer.seal(Instant::now());
            if let Some(sealed) = &mut checkpoint {
                sealed.receipts = self.shared.new_receipts();
            }
            self.take_trail(&TrailEvent::Close { reason: "stopped", checkpoint });
        }
        self.flush();
        self.segment.release();
        let written = self.out.is_empty() && self.shared.health() != Health::Poisoned;
        self.shared.tail().stop = true;
        self.shared.sync_wanted.notify_one();
        if written { Ok(()) } else { Err(self.shared.last_error().unwrap_or_default()) }
    }
}

/// Whether the disk refused the bytes as such, so that the same write may succeed later.
fn can_be_retried(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, QuotaExceeded, ReadOnlyFilesystem, StorageFull, WriteZero};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | Interrupted | WriteZero)
}

#[cfg(test)]
mod tests;
