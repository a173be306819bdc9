//! One worker's events on their way out of its thread: its batch, its journal, and the pump that ends a turn of the event loop.
//!
//! Owns when events are journaled, when they go to the writer, and who is woken then. Refuses to know what an event says.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::Unavailable;
use crate::audit::brief;
use crate::audit::clock::unix_ns;
use crate::audit::coalesce::{Coalescer, Denial, Verdict};
use crate::audit::frame::Batch;
use crate::audit::journal::{self, Journal, Owner};
use crate::audit::route::Routes;
use crate::audit::spool::{Durability, Health, OnFailure, PLACE_BYTES, Shared, WorkerLink};
use crate::audit::wait::{Level, Waiters};
use crate::audit::writer::Message;

/// How far the writer may be behind one worker before requests are refused.
pub(super) const MAX_UNWRITTEN_EVENTS: u64 = 16 * 1024;
/// The same in bytes, as events are in a batch: 8 MiB.
const MAX_UNWRITTEN_BYTES: u64 = 8 * 1024 * 1024;
/// A batch of this many bytes does not wait for the end of the turn.
const FULL_BATCH_BYTES: usize = 256 * 1024;
/// How long events for which nobody waits (any more) stay before they go to the writer: those of many turns share its write,
/// and its wake-up. With the syncer's own delay it is less than the 100 ms after which they are on disk. Each time it comes costs
/// the writer as much as some 20 requests' events; with half as long it takes 0.4 us a request more (`docs/performance.md`).
pub(super) const COMPANY: Duration = Duration::from_millis(20);
/// So many bytes of them do not stay, so that the writer is done with them before the other half of the journal is full. Small
/// journals take less at a time, and so do small segments: a record is some ten times as long as what is recorded of it.
const MUCH_COMPANY_BYTES: u64 = 128 * 1024;
/// The most places a worker takes from the spool at once, so that the shared counter is touched once in many requests.
const LEASE_PLACES: i64 = 32;

const JOURNAL_FAILED: &str = "the audit journal cannot be written: requests are slower until the next start, and each denial is an event";

/// When an event must leave the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// With this turn of the event loop: a request waits for it.
    AtOnce,
    /// With the next one that cannot wait, or after [`COMPANY`].
    InCompany,
}

/// What the recorder, its reservations and what they record share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    writer: Sender<Message>,
    pub(super) link: Arc<WorkerLink>,
    batch: RefCell<Batch>,
    pub(super) routes: RefCell<Routes>,
    /// Events, and encoded bytes, ever recorded by this worker.
    recorded: Cell<u64>,
    recorded_bytes: Cell<u64>,
    pub(super) coalescer: RefCell<Coalescer>,
    journal: RefCell<Option<Journal>>,
    /// The last event that the journal has.
    pub(super) journaled: Cell<u64>,
    /// Events up to this one may have gone to the writer without having been journaled.
    pub(super) detour: Cell<u64>,
    /// Places that were taken from the spool and are not reserved.
    lease: Cell<i64>,
    chunk: i64,
    /// So many bytes do not stay for company.
    much_company: usize,
    pump: RefCell<Option<Waker>>,
    /// Whether a request waits for an event that is not settled.
    hasty: Cell<bool>,
    /// Whether the pump's timer runs.
    timed: Cell<bool>,
    pub(super) waiters: RefCell<Waiters>,
}

impl Worker {
    /// Makes this thread a worker of the trail.
    pub(super) fn attach(shared: Arc<Shared>, writer: Sender<Message>) -> Rc<Self> {
        let link = Arc::new(WorkerLink::default());
        shared.tail().workers.push(link.clone());
        let journal = open_journal(&shared, &link);
        let chunk = (shared.config.max_bytes as i64 / (1024 * PLACE_BYTES)).clamp(1, LEASE_PLACES);
        let half_of_journal = journal::half_bytes(shared.config.max_bytes);
        let much_company = MUCH_COMPANY_BYTES.min(shared.segment_bytes() / 16).min(half_of_journal / 2);
        let worker = Rc::new(Self {
            shared,
            writer,
            link: link.clone(),
            batch: RefCell::default(),
            routes: RefCell::new(Routes::new()),
            recorded: Cell::new(0),
            recorded_bytes: Cell::new(0),
            coalescer: RefCell::new(Coalescer::new()),
            journal: RefCell::new(journal),
            journaled: Cell::new(0),
            detour: Cell::new(0),
            lease: Cell::new(0),
            chunk,
            much_company: much_company as usize,
            pump: RefCell::new(None),
            hasty: Cell::new(false),
            timed: Cell::new(false),
            waiters: RefCell::default(),
        });
        tokio::task::spawn_local(pump(Rc::downgrade(&worker), link));
        worker
    }

    pub(super) fn take_places(&self, n: i64) -> Result<(), Unavailable> {
        match self.shared.health() {
            Health::Good => {}
            Health::Short | Health::Stalled | Health::Poisoned => return Err(Unavailable::WriterFailed),
            Health::Closed => return Err(Unavailable::Closed),
        }
        let unwritten = self.recorded.get() - self.link.written.load(Ordering::Acquire);
        let unwritten_bytes = self.recorded_bytes.get() - self.link.written_bytes.load(Ordering::Acquire);
        if unwritten > MAX_UNWRITTEN_EVENTS || unwritten_bytes > MAX_UNWRITTEN_BYTES {
            return Err(Unavailable::WriterBehind);
        }
        if self.lease.get() < n {
            let missing = n - self.lease.get();
            let took =
                [missing.max(self.chunk), missing].into_iter().find(|places| self.take_from_spool(*places));
            self.lease.set(self.lease.get() + took.ok_or(Unavailable::SpoolFull)?);
        }
        self.lease.set(self.lease.get() - n);
        Ok(())
    }

    fn take_from_spool(&self, places: i64) -> bool {
        let bytes = places * PLACE_BYTES;
        let fits = self.shared.free.fetch_sub(bytes, Ordering::AcqRel) >= bytes;
        if !fits {
            self.shared.free.fetch_add(bytes, Ordering::AcqRel);
        }
        fits
    }

    pub(super) fn return_places(&self, n: i64) {
        let lease = self.lease.get() + n;
        let keep = lease.min(2 * self.chunk);
        self.lease.set(keep);
        if lease > keep {
            self.shared.free.fetch_add((lease - keep) * PLACE_BYTES, Ordering::AcqRel);
        }
    }

    pub(super) fn push(&self, haste: Haste, add: impl FnOnce(&mut Batch)) -> u64 {
        let mut batch = self.batch.borrow_mut();
        let before = batch.bytes();
        add(&mut batch);
        self.recorded.set(self.recorded.get() + 1);
        self.recorded_bytes.set(self.recorded_bytes.get() + (batch.bytes() - before) as u64);
        let full = batch.bytes() >= FULL_BATCH_BYTES;
        drop(batch);
        // The pump is told once: of the first event that cannot wait, and of the first that its timer is for.
        let pump_knows = match haste {
            Haste::AtOnce => self.hasty.replace(true),
            Haste::InCompany => self.timed.replace(true),
        };
        if !pump_knows && let Some(pump) = &*self.pump.borrow() {
            pump.wake_by_ref();
        }
        if full {
            self.flush();
        }
        self.recorded.get()
    }

    /// Counts a denial with others like it, or lets it be an event. Without a journal a count would end with the process.
    pub(super) fn admit(&self, denial: &Denial<'_>) -> Verdict {
        if self.journal.borrow().is_none() {
            return Verdict::Single;
        }
        let is_recorded = |number| number == 0 || self.outcome(Level::Written, number) == Some(Ok(()));
        let verdict = self.coalescer.borrow_mut().admit(denial, Instant::now(), is_recorded);
        if verdict != Verdict::Single {
            self.shared.coalesced_events.fetch_add(1, Ordering::Relaxed);
            // The count is in the journal at the end of the turn, as an event would be.
            if !self.hasty.replace(true)
                && let Some(pump) = &*self.pump.borrow()
            {
                pump.wake_by_ref();
            }
        }
        verdict
    }

    /// Makes events of the summaries whose window is over at `now`, or of all.
    fn end_windows(&self, now: Option<Instant>) {
        self.coalescer.borrow_mut().end(now, unix_ns(), |slot, summary| {
            // In the slot it has its number before anything of it is elsewhere, so that it is never recovered twice.
            let number = self.recorded.get() + 1;
            let mut journal = self.journal.borrow_mut();
            let kept = journal
                .as_mut()
                .map_or(Ok(()), |journal| journal.keep(&self.shared.disk, slot, Some(number), summary));
            if let Err(error) = kept {
                tracing::warn!(%error, "{JOURNAL_FAILED}");
                *journal = None;
            }
            drop(journal);
            self.push(Haste::InCompany, |batch| {
                batch.add(None, None, |out| brief::whole(out, &summary.head, &summary.tail));
            })
        });
    }

    /// Ends a turn of the event loop: after it every request that waits is either woken or waits for the writer.
    fn settle(&self) {
        if !self.journal_turn() {
            return self.flush();
        }
        self.hasty.set(false);
        self.wake_waiters();
        // What waits for the disk cannot wait for company, and neither can a journal that fills.
        let durable = self.shared.config.durability != Durability::Write;
        if durable || self.batch.borrow().bytes() >= self.much_company {
            self.flush();
        } else {
            self.timed.set(true);
        }
    }

    /// Writes what this turn recorded to the journal. False when it cannot be.
    fn journal_turn(&self) -> bool {
        let mut journal = self.journal.borrow_mut();
        let Some(open) = journal.as_mut().filter(|_| self.shared.health() == Health::Good) else {
            return false;
        };
        let disk = &self.shared.disk;
        let kept = self.coalescer.borrow_mut().grown(|slot, summary| open.keep(disk, slot, None, summary));
        let mut batch = self.batch.borrow_mut();
        let appended = self.link.written.load(Ordering::Acquire);
        let outcome = match kept {
            Ok(()) if !batch.has_frame() => return true,
            Ok(()) => open.append(disk, &mut batch, self.recorded.get(), appended),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(true) => {
                self.journaled.set(self.recorded.get());
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(%error, "{JOURNAL_FAILED}");
                *journal = None;
                drop((journal, batch));
                self.end_windows(None);
                false
            }
        }
    }

    /// Sends the batch to the writer.
    fn flush(&self) {
        if self.hasty.replace(false) {
            self.detour.set(self.recorded.get());
            self.link.expects.store(self.recorded.get(), Ordering::Release);
        }
        self.timed.set(false);
        if self.batch.borrow().is_empty() {
            return;
        }
        let fresh = self.link.spare.try_lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default();
        let batch = self.batch.replace(fresh);
        // Fails only after the trail was closed, which every later reservation and wait is told.
        let _ = self.writer.send(Message::Batch { worker: self.link.clone(), batch });
    }

    /// How the wait for `position` ended, or `None` while it has not.
    pub(super) fn outcome(&self, level: Level, position: u64) -> Option<Result<(), Unavailable>> {
        let reached = match level {
            Level::Written => {
                let journaled = self.detour.get() < position && position <= self.journaled.get();
                journaled || self.link.written.load(Ordering::Acquire) >= position
            }
            Level::Synced => self.link.synced.load(Ordering::Acquire) >= position,
        };
        if reached {
            return Some(Ok(()));
        }
        let unavailable = match self.shared.health() {
            // What was let in has a place on the disk.
            Health::Good | Health::Short => return None,
            Health::Stalled | Health::Poisoned => Unavailable::WriterFailed,
            Health::Closed => Unavailable::Closed,
        };
        Some(match self.shared.config.on_failure {
            OnFailure::Deny => Err(unavailable),
            OnFailure::AllowWithGap => Ok(()),
        })
    }

    fn wake_waiters(&self) {
        self.waiters.borrow_mut().wake(|level, position| self.outcome(level, position).is_some());
    }

    fn poll_pump(&self, cx: &Context<'_>) {
        let mut pump = self.pump.borrow_mut();
        if !pump.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *pump = Some(cx.waker().clone());
        }
        drop(pump);
        if self.hasty.get() {
            self.settle();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end_windows(None);
        self.flush();
        let journal = self.journal.take().map_or(0, |_| journal::bytes(self.shared.config.max_bytes) as i64);
        self.shared.free.fetch_add(self.lease.get() * PLACE_BYTES + journal, Ordering::AcqRel);
        self.shared.tail().workers.retain(|worker| !Arc::ptr_eq(worker, &self.link));
        if let Some(pump) = self.pump.take() {
            pump.wake(); // it finds the worker gone, and ends
        }
    }
}

/// The journal of a worker that begins. Without one its requests wait for the writer.
fn open_journal(shared: &Shared, link: &WorkerLink) -> Option<Journal> {
    let number = shared.attached.fetch_add(1, Ordering::AcqRel);
    let bytes = journal::bytes(shared.config.max_bytes) as i64;
    // Where events count as recorded once they are on disk, a journal would only be written in vain.
    if shared.config.durability == Durability::FsyncBeforeForward
        || shared.free.load(Ordering::Acquire) < bytes
    {
        return None;
    }
    let owner = Owner::new(shared.epoch.clone(), shared.instance.clone());
    match Journal::create(
        &shared.config.dir,
        number,
        shared.config.max_bytes,
        &owner,
        shared.config.key.as_deref(),
    ) {
        Ok((journal, marker)) => {
            shared.free.fetch_sub(bytes, Ordering::AcqRel);
            let _ = link.marker.set(marker); // the link is new
            Some(journal)
        }
        Err(error) => {
            tracing::warn!(dir = %shared.config.dir.display(), %error, "a worker has no audit journal: its requests are slower");
            None
        }
    }
}

/// Settles what was recorded in a turn of the event loop, sends it on in time, and wakes who waits when the writer has moved
/// the marks.
async fn pump(worker: Weak<Worker>, link: Arc<WorkerLink>) {
    let mut notified = pin!(link.wake.notified());
    let mut company = pin!(tokio::time::sleep(COMPANY));
    let mut running = false;
    let mut window = pin!(tokio::time::sleep(Duration::ZERO));
    poll_fn(|cx| {
        let Some(worker) = worker.upgrade() else {
            return Poll::Ready(());
        };
        worker.poll_pump(cx);
        if worker.timed.get() {
            if !running {
                running = true;
                company.as_mut().reset(Instant::now() + COMPANY);
            }
            if company.as_mut().poll(cx).is_ready() {
                running = false;
                worker.flush();
            }
        } else {
            // What it ran for has gone by size. Were it not begun anew, the writer would come again at once for a few events.
            running = false;
        }
        let due = worker.coalescer.borrow().due();
        if let Some(due) = due {
            if window.deadline() != due {
                window.as_mut().reset(due);
            }
            if window.as_mut().poll(cx).is_ready() {
                worker.end_windows(Some(due));
                cx.waker().wake_by_ref(); // for what was recorded just now, and for the next window
            }
        }
        while notified.as_mut().poll(cx).is_ready() {
            notified.set(link.wake.notified());
            worker.wake_waiters();
        }
        Poll::Pending
    })
    .await;
}
