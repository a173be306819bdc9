//! The writer: the one thread that owns the chain and the newest segment.
//!
//! It takes what all workers sent, chains it, packs it, appends it by one `write` and only then moves the marks that the workers wait
//! for. It never syncs while workers wait: that is the syncer's (see `sync`). While the disk refuses writes it keeps what
//! was recorded (the reservations bound how much) and tries again; no event is skipped, because the next one's hash would
//! not fit.

mod append;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, TryLockError};
use std::time::Instant;

use super::ahead::{self, Ahead, Look};
use super::chain::Chain;
use super::cipher::Cipher;
use super::clock::unix_ns;
use super::encode::{Pieces, Speller, TrailEvent};
use super::event::ControlEvent;
use super::frame::Batch;
use super::packed::Packer;
use super::repeats::Repeats;
use super::seal::Sealer;
use super::segment::SegmentFile;
use super::spool::{Health, PLACE_BYTES, Shared, WorkerLink, footprint};

/// The most records that are gathered before a write, or a segment where that is smaller; a burst beyond it takes another.
const MAX_WRITE: u64 = 1024 * 1024;
/// So many bytes of records make a frame. While a burst is chained its records go through a buffer of this length, which stays in the core's
/// second cache beside what the worker on it has there.
const FRAME_BYTES: usize = 64 * 1024;
/// As much memory for what is due stays when it is written.
const KEPT_BYTES: usize = 512 * 1024;
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
    /// How long the records in it are.
    segment_holds: u64,
    /// Encrypts what is written, where the spool has a key.
    cipher: Option<Cipher>,
    ahead: Ahead,
    repeats: Option<Repeats>,
    packer: Packer,
    speller: Speller,
    /// Records that were chained and not packed or encrypted yet.
    out: Vec<u8>,
    /// What is to be written next.
    due: Due,
    owed: Vec<Owed>,
    retry_at: Option<Instant>,
    ending: Option<Ending>,
}

struct Ending {
    close: bool,
}

/// Records that were chained and not written yet.
#[derive(Default)]
struct Due {
    /// As they will stand in the segment; what is in `out` comes after them.
    stored: Vec<u8>,
    /// How many they are, and how long before they are packed, with those in `out`.
    events: u64,
    bytes: u64,
    /// When the first of them happened, in nanoseconds since 1970; 0 while they are not packed.
    oldest_ns: u64,
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
        let (out, owed) = (Vec::with_capacity(FRAME_BYTES + 4096), Vec::new());
        let ahead = Ahead::new(shared.segment_bytes());
        let segment_holds = segment.len(); // audit.open alone
        Self {
            shared,
            inbox,
            chain,
            sealer,
            segment,
            segment_holds,
            cipher,
            ahead,
            repeats: None,
            packer: Packer::default(),
            speller: Speller::default(),
            out,
            due: Due::default(),
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
        let most = MAX_WRITE.min(self.shared.segment_bytes());
        let ending = loop {
            if let Some(ending) = self.ending.take() {
                break ending;
            }
            match self.next_message() {
                Some(message) => self.take(message),
                None => {
                    self.repeats = None;
                    self.packer.rest();
                }
            }
            while self.due.bytes < most && self.ending.is_none() {
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
            Some(_) => append::RETRY_AFTER,
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
                self.chain_up(|speller, chain| chain(speller.control(&event)));
            }
            Message::Trail(event) => self.take_trail(&event),
            Message::Delivered => self.reclaim(),
            Message::End { close } => self.ending = Some(Ending { close }),
        }
    }

    fn take_batch(&mut self, worker: Arc<WorkerLink>, mut batch: Batch) {
        let (events, bytes) = (batch.events(), batch.bytes() as u64);
        let read = self.chain_up(|speller, chain| {
            batch.told().try_for_each(|told| {
                chain(speller.told(&told?)?);
                Some(())
            })
        });
        if read.is_none() {
            // It never is: a worker of this process has written it.
            tracing::error!("recorded events cannot be read back; please report this");
            self.shared.set_health(Health::Poisoned, Some("recorded events cannot be read back".into()));
        }
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
        self.chain_up(|speller, chain| chain(speller.trail(event, unix_ns())));
    }

    /// Chains the events that `spell` gives, and takes their bytes from the budget.
    fn chain_up<R>(&mut self, spell: impl FnOnce(&mut Speller, &mut dyn FnMut(Pieces<'_>)) -> R) -> R {
        let (mut speller, before, mut saved) = (std::mem::take(&mut self.speller), self.due.bytes, 0);
        let given = spell(&mut speller, &mut |event| saved += self.append(event));
        self.speller = speller;
        self.shared.free.fetch_sub((self.due.bytes - before) as i64 - saved, Ordering::AcqRel);
        given
    }

    /// Appends an event to the chain. Gives by how much shorter what was packed with it is.
    fn append(&mut self, event: Pieces<'_>) -> i64 {
        let at = self.out.len();
        let record = self.chain.append(&mut self.out, event, &self.shared.instance);
        self.sealer.append(record.hash);
        self.due.events += 1;
        if let Some(cipher) = &mut self.cipher {
            let had = self.due.stored.len();
            if let Err(error) = cipher.lines(&mut self.due.stored, &self.out) {
                // It never does: the key and the length are what the library takes.
                tracing::error!(%error, "an audit record cannot be encrypted");
                self.shared.set_health(Health::Poisoned, Some(error.to_string()));
            }
            self.due.bytes += (self.due.stored.len() - had) as u64;
            self.out.clear();
            return 0;
        }
        let repeats = self.repeats.get_or_insert_with(Repeats::new);
        if at == 0 {
            repeats.begin();
        }
        repeats.record(&self.out, at, record.ends);
        self.due.bytes += (self.out.len() - at) as u64;
        if self.out.len() >= FRAME_BYTES { self.pack() } else { 0 }
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
        let written = self.due.stored.is_empty() && self.shared.health() != Health::Poisoned;
        self.shared.tail().stop = true;
        self.shared.sync_wanted.notify_one();
        if written { Ok(()) } else { Err(self.shared.last_error().unwrap_or_default()) }
    }
}

#[cfg(test)]
mod tests;
