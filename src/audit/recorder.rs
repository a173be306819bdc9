//! The worker's side: a place first, then events, then the wait until they are recorded.
//!
//! Lives on one single-threaded runtime and takes no lock that another worker holds. At the end of a turn of the event loop,
//! in a task that runs after the tasks already queued, the turn's events are written to the worker's journal (see `journal`)
//! and the requests that wait for them go on; the writer gets them in company with those of other turns. What cannot be
//! journaled goes to the writer at once, and its requests wait for the writer. A reservation makes every later step
//! infallible, so that the completion can be recorded in a `Drop`.

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

use super::clock::{InstantText, unix_ns};
use super::coalesce::{Coalescer, Denial, Verdict};
use super::event::{AccessComplete, AccessDecision, ConnFragment, ConnRejected};
use super::frame::Batch;
use super::journal::{self, Journal, Owner};
use super::spool::{Durability, Health, OnFailure, PLACE_BYTES, Shared, WorkerLink};
use super::wait::{Level, Waiters};
use super::writer::Message;

/// How far the writer may be behind one worker before requests are refused.
const MAX_UNWRITTEN_EVENTS: u64 = 16 * 1024;
/// The same in bytes of encoded events: 8 MiB.
const MAX_UNWRITTEN_BYTES: u64 = 8 * 1024 * 1024;
/// A batch of this many bytes does not wait for the end of the turn.
const FULL_BATCH_BYTES: usize = 256 * 1024;
/// How long events for which nobody waits (any more) stay before they go to the writer: those of many turns share its write,
/// and its wake-up. With the syncer's own delay it is less than the 100 ms after which they are on disk. What the writer does
/// each time it comes costs it 0.7 us a request less than with half as long and as much (`docs/performance.md`).
const COMPANY: Duration = Duration::from_millis(20);
/// So many bytes of them do not stay, so that the writer is done with them before the other half of the journal is full. Small
/// segments and journals take less at a time.
const MUCH_COMPANY_BYTES: u64 = 128 * 1024;
/// The most places a worker takes from the spool at once, so that the shared counter is touched once in many requests.
const LEASE_PLACES: i64 = 32;

const JOURNAL_FAILED: &str = "the audit journal cannot be written: requests are slower until the next start, and each denial is an event";

/// Why no event can be recorded. The request is answered 503 with this code: `audit_unavailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The spool is full of events that no sink has acknowledged.
    #[error("the audit spool is full: bring its sinks back or give it more max_bytes")]
    SpoolFull,
    /// More events wait to be written than may.
    #[error("the audit spool's disk is too slow for the requests that arrive")]
    WriterBehind,
    /// The disk refused the spool's writes.
    #[error("the audit spool cannot be written: see the log for the disk's error")]
    WriterFailed,
    /// The trail was closed.
    #[error("the audit trail is closed, the process is ending")]
    Closed,
}

impl Unavailable {
    /// The stable code of the answer and of the metrics.
    pub fn code(self) -> &'static str {
        "audit_unavailable"
    }
}

/// What becomes a [`Recorder`] inside a worker.
#[derive(Clone)]
pub struct RecorderSeed {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Sender<Message>,
}

impl RecorderSeed {
    /// Makes this thread a worker of the trail.
    ///
    /// # Panics
    /// Outside a tokio `LocalRuntime` or `LocalSet`, or where the runtime has no timer.
    pub fn attach(self) -> Recorder {
        let link = Arc::new(WorkerLink::default());
        self.shared.tail().workers.push(link.clone());
        let journal = open_journal(&self.shared, &link);
        let chunk = (self.shared.config.max_bytes as i64 / (1024 * PLACE_BYTES)).clamp(1, LEASE_PLACES);
        let half_of_journal = journal::half_bytes(self.shared.config.max_bytes);
        let much_company = MUCH_COMPANY_BYTES.min(self.shared.segment_bytes() / 4).min(half_of_journal / 2);
        let worker = Rc::new(Worker {
            shared: self.shared,
            writer: self.writer,
            link: link.clone(),
            batch: RefCell::default(),
            clock: RefCell::new(InstantText::new()),
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
        Recorder { worker }
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

/// Records the events of one worker. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Recorder {
    worker: Rc<Worker>,
}

impl Recorder {
    /// Takes places for `n` events (two for a request: its decision and its completion).
    ///
    /// # Errors
    /// The spool is full, or the writer is too far behind or failed; under `allow_with_gap` never: then the reservation
    /// counts instead of recording.
    pub fn reserve(&self, n: u32) -> Result<Reservation, Unavailable> {
        let worker = &self.worker;
        match worker.take_places(i64::from(n)) {
            Ok(()) => Ok(Reservation { worker: worker.clone(), places: n, counts_only: false }),
            Err(_) if worker.shared.config.on_failure == OnFailure::AllowWithGap => {
                Ok(Reservation { worker: worker.clone(), places: 0, counts_only: true })
            }
            Err(unavailable) => {
                worker.shared.gap.count(false, unix_ns());
                Err(unavailable)
            }
        }
    }
}

/// Places in the spool. What is not used goes back when it is dropped.
#[must_use = "a reservation that records nothing leaves no trace of the request"]
pub struct Reservation {
    worker: Rc<Worker>,
    places: u32,
    /// The spool takes nothing and the operator chose to let requests pass: they are counted for the `audit.gap` event.
    counts_only: bool,
}

impl Reservation {
    /// Records a decision. Wait for [`Recorded::before_forward`] before anything is forwarded.
    ///
    /// # Panics
    /// In a debug build, when more events are recorded than were reserved.
    pub fn decision(&mut self, ev: &AccessDecision<'_>) -> Recorded {
        if self.counts_only {
            self.worker.shared.gap.count(ev.decision.outcome == "allow", ev.time_unix_ns);
            return Recorded { worker: self.worker.clone(), position: 0 };
        }
        if is_denial(ev.decision.outcome) {
            let denial = Denial {
                time_unix_ns: ev.time_unix_ns,
                of: "access.decision",
                conn: ev.conn,
                decision: ev.decision,
                policy: ev.policy,
                template: ev.http.template,
            };
            if self.coalesce(&denial) {
                return Recorded { worker: self.worker.clone(), position: 0 };
            }
        }
        self.push(Haste::AtOnce, |batch, clock| batch.decision(ev, clock))
    }

    /// Records how an allowed request ended.
    ///
    /// # Panics
    /// In a debug build, when more events are recorded than were reserved.
    pub fn complete(&mut self, ev: &AccessComplete<'_>) {
        if !self.counts_only {
            let _ = self.push(Haste::InCompany, |batch, clock| batch.complete(ev, clock)); // nobody waits for a completion
        }
    }

    /// Records a connection that never became an authenticated exchange.
    ///
    /// # Panics
    /// In a debug build, when more events are recorded than were reserved.
    pub fn conn_rejected(&mut self, ev: &ConnRejected<'_>) {
        if self.counts_only {
            return self.worker.shared.gap.count(false, ev.time_unix_ns);
        }
        let conn = ConnFragment::new(&ev.conn);
        let denial = Denial {
            time_unix_ns: ev.time_unix_ns,
            of: "conn.rejected",
            conn: &conn,
            decision: ev.decision(),
            policy: None,
            template: None,
        };
        if !self.coalesce(&denial) {
            // Nothing is forwarded, so nobody waits.
            let _ = self.push(Haste::InCompany, |batch, clock| batch.conn_rejected(ev, &conn, clock));
        }
    }

    /// Counts a denial in a summary; false when it is an event of its own.
    fn coalesce(&mut self, denial: &Denial<'_>) -> bool {
        match self.worker.admit(denial) {
            Verdict::Single => return false,
            // The summary will be an event, and this request has a place that it will not use.
            Verdict::First => self.places = self.places.saturating_sub(1),
            Verdict::Counted => {}
        }
        true
    }

    fn push(&mut self, haste: Haste, encode: impl FnOnce(&mut Batch, &mut InstantText)) -> Recorded {
        debug_assert!(self.places > 0, "more events are recorded than were reserved");
        match self.places.checked_sub(1) {
            Some(left) => self.places = left,
            // A mistake of the caller must not lose an event: the budget is overdrawn by one place instead.
            None => drop(self.worker.shared.free.fetch_sub(PLACE_BYTES, Ordering::AcqRel)),
        }
        // Position 0 waits for nothing. A build for `benches/mesh --noaudit` alone: no feature or option of phiward leads here.
        let position = if cfg!(phiward_bench_no_audit) { 0 } else { self.worker.push(haste, encode) };
        Recorded { worker: self.worker.clone(), position }
    }
}

/// Whether an outcome may be counted with others like it. What failed is told one by one, as what passed is.
fn is_denial(outcome: &str) -> bool {
    matches!(outcome, "deny" | "reject")
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.worker.return_places(i64::from(self.places));
    }
}

/// When an event must leave the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// With this turn of the event loop: a request waits for it.
    AtOnce,
    /// With the next one that cannot wait, or after [`COMPANY`].
    InCompany,
}

/// An event that is on its way to the spool. Dropping it changes nothing: the event is recorded all the same.
#[derive(Clone)]
#[must_use = "nothing may be forwarded before the decision is recorded"]
pub struct Recorded {
    worker: Rc<Worker>,
    /// The worker's count of events when this one was the last; 0 for one that is only counted.
    position: u64,
}

impl Recorded {
    /// Waits until the event is in the kernel.
    ///
    /// # Errors
    /// The spool cannot be written and the operator chose to deny.
    pub async fn written(&self) -> Result<(), Unavailable> {
        self.reached(Level::Written).await
    }

    /// Waits until the event is on disk.
    ///
    /// # Errors
    /// The spool cannot be written or synced and the operator chose to deny.
    pub async fn synced(&self) -> Result<(), Unavailable> {
        self.reached(Level::Synced).await
    }

    /// Waits for what the configured durability asks before the app sees the request.
    ///
    /// # Errors
    /// The event was not recorded and the operator chose to deny: the request must not be forwarded.
    pub async fn before_forward(&self) -> Result<(), Unavailable> {
        match self.worker.shared.config.durability {
            Durability::Write | Durability::Fsync => self.written().await,
            Durability::FsyncBeforeForward => self.synced().await,
        }
    }

    /// Waits for what the configured durability asks before the peer sees the response.
    ///
    /// # Errors
    /// The event was not recorded and the operator chose to deny: the response must not be released.
    pub async fn before_response(&self) -> Result<(), Unavailable> {
        match self.worker.shared.config.durability {
            Durability::Write | Durability::FsyncBeforeForward => Ok(()),
            Durability::Fsync => self.synced().await,
        }
    }

    async fn reached(&self, level: Level) -> Result<(), Unavailable> {
        if self.position == 0 {
            return Ok(());
        }
        let mut entry = super::wait::Entry::new(&self.worker.waiters, level, self.position);
        poll_fn(|cx| match self.worker.outcome(level, self.position) {
            Some(outcome) => {
                entry.over();
                Poll::Ready(outcome)
            }
            None => {
                entry.park(cx);
                Poll::Pending
            }
        })
        .await
    }
}

struct Worker {
    shared: Arc<Shared>,
    writer: Sender<Message>,
    link: Arc<WorkerLink>,
    batch: RefCell<Batch>,
    clock: RefCell<InstantText>,
    /// Events, and encoded bytes, ever recorded by this worker.
    recorded: Cell<u64>,
    recorded_bytes: Cell<u64>,
    coalescer: RefCell<Coalescer>,
    journal: RefCell<Option<Journal>>,
    /// The last event that the journal has.
    journaled: Cell<u64>,
    /// Events up to this one may have gone to the writer without having been journaled.
    detour: Cell<u64>,
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
    waiters: RefCell<Waiters>,
}

impl Worker {
    fn take_places(&self, n: i64) -> Result<(), Unavailable> {
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

    fn return_places(&self, n: i64) {
        let lease = self.lease.get() + n;
        let keep = lease.min(2 * self.chunk);
        self.lease.set(keep);
        if lease > keep {
            self.shared.free.fetch_add((lease - keep) * PLACE_BYTES, Ordering::AcqRel);
        }
    }

    fn push(&self, haste: Haste, encode: impl FnOnce(&mut Batch, &mut InstantText)) -> u64 {
        let mut batch = self.batch.borrow_mut();
        let before = batch.bytes();
        encode(&mut batch, &mut self.clock.borrow_mut());
        self.recorded.set(self.recorded.get() + 1);
        self.recorded_bytes.set(self.recorded_bytes.get() + batch.bytes() - before);
        let full = batch.encoded() >= FULL_BATCH_BYTES;
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
    fn admit(&self, denial: &Denial<'_>) -> Verdict {
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
            let kept = journal.as_mut().map_or(Ok(()), |journal| {
                let keep = |pieces| journal.keep(&self.shared.disk, slot, Some(number), pieces);
                summary.pieces().try_for_each(keep)
            });
            if let Err(error) = kept {
                tracing::warn!(%error, "{JOURNAL_FAILED}");
                *journal = None;
            }
            drop(journal);
            self.push(Haste::InCompany, |batch, _| batch.append(summary))
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
        if durable || self.batch.borrow().encoded() >= self.much_company {
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
    fn outcome(&self, level: Level, position: u64) -> Option<Result<(), Unavailable>> {
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

#[cfg(test)]
mod tests;
