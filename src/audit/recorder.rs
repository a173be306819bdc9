//! The worker's side: a place first, then events, then the wait until they are recorded.
//!
//! Lives on one single-threaded runtime and takes no lock that another worker holds. At the end of a turn of the event loop,
//! in a task that runs after the tasks already queued, the turn's events are written to the worker's journal (see `journal`)
//! and the requests that wait for them go on; the writer gets them in company with those of other turns. What cannot be
//! journaled goes to the writer at once, and its requests wait for the writer. A reservation makes every later step
//! infallible, so that the completion can be recorded in a `Drop`.

mod worker;

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::Poll;

use super::brief;
use super::clock::unix_ns;
use super::coalesce::{Denial, Verdict};
use super::encode::{Pieces, Speller};
use super::event::{AccessComplete, AccessDecision, ConnFragment, ConnRejected};
use super::frame::Batch;
use super::spool::{Durability, OnFailure, PLACE_BYTES, Shared};
use super::wait::{Entry, Level};
use super::writer::Message;
use worker::{Haste, Worker};

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
        Recorder { worker: Worker::attach(self.shared, self.writer) }
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
        let worker = self.worker.clone();
        self.push(Haste::AtOnce, |batch| {
            let mut routes = worker.routes.borrow_mut();
            let route = routes.of(ev);
            let own = |out: &mut Vec<u8>| brief::decision(out, ev, route.pseudonyms(ev));
            batch.add(Some(&ev.conn.common), Some(&route.common), own);
        })
    }

    /// Records how an allowed request ended.
    ///
    /// # Panics
    /// In a debug build, when more events are recorded than were reserved.
    pub fn complete(&mut self, ev: &AccessComplete<'_>) {
        if !self.counts_only {
            // Nobody waits for a completion.
            let _ = self.push(Haste::InCompany, |batch| {
                batch.add(Some(&ev.conn.common), None, |out| brief::complete(out, ev));
            });
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
            let _ = self.push(Haste::InCompany, |batch| {
                let mut speller = Speller::default();
                let Pieces { head, tail } = speller.rejected(ev, &conn);
                batch.add(None, None, |out| brief::whole(out, &head, &tail));
            });
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

    fn push(&mut self, haste: Haste, add: impl FnOnce(&mut Batch)) -> Recorded {
        debug_assert!(self.places > 0, "more events are recorded than were reserved");
        match self.places.checked_sub(1) {
            Some(left) => self.places = left,
            // A mistake of the caller must not lose an event: the budget is overdrawn by one place instead.
            None => drop(self.worker.shared.free.fetch_sub(PLACE_BYTES, Ordering::AcqRel)),
        }
        #[cfg(phiward_bench_switch)]
        if super::bench_switch::is_off() {
            return Recorded { worker: self.worker.clone(), position: 0 }; // which waits for nothing
        }
        let position = self.worker.push(haste, add);
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
        let mut entry = Entry::new(&self.worker.waiters, level, self.position);
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

#[cfg(test)]
mod tests;
