//! The account of one request: what was decided, how much passed, how it ended.
//!
//! Owns the audit place reserved at admission and fills it when the last holder lets go, however that comes about: the
//! end of the body, a client that hangs up, an upstream that dies, a panic. Knows nothing of HTTP messages.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::time::Instant;

use super::context::ConnContext;
use super::ids::RequestIds;
use super::outcome::{CLIENT_GONE, Failure};
use crate::audit;

/// Shared by the request's future, its body and the response's body; completes when all of them are gone.
pub(crate) struct Exchange {
    conn: Rc<ConnContext>,
    ids: RequestIds,
    started_ns: u64,
    reservation: RefCell<Option<audit::Reservation>>,
    completes: Cell<bool>,
    upstream_owes: Cell<Option<Instant>>,
    late: Cell<bool>,
    request_broke: Cell<bool>,
    request_bytes: Cell<u64>,
    response_bytes: Cell<u64>,
    status: Cell<u16>,
    ended: Cell<bool>,
    failure: Cell<Option<&'static str>>,
}

impl Exchange {
    /// Opens the account of a request that was let through. `completes` says whether its end is an event of its own.
    pub(crate) fn open(
        conn: Rc<ConnContext>,
        ids: RequestIds,
        started_ns: u64,
        reservation: Option<audit::Reservation>,
        completes: bool,
    ) -> Rc<Self> {
        conn.worker.metrics.requests_in_flight.inc();
        let started = conn.worker.clock.latest();
        Rc::new(Self {
            conn,
            ids,
            started_ns,
            reservation: RefCell::new(reservation),
            completes: Cell::new(completes),
            upstream_owes: Cell::new(Some(started)),
            late: Cell::new(false),
            request_broke: Cell::new(false),
            request_bytes: Cell::new(0),
            response_bytes: Cell::new(0),
            status: Cell::new(0),
            ended: Cell::new(false),
            failure: Cell::new(None),
        })
    }

    /// Since when it is the upstream's turn: it has what there is of the request and has neither asked for more nor
    /// answered. `None` while the client is still to send.
    pub(crate) fn upstream_owes_since(&self) -> Option<Instant> {
        self.upstream_owes.get()
    }

    /// The upstream was handed a piece of the request's body, or its end.
    pub(crate) fn upstream_owes(&self) {
        self.upstream_owes.set(Some(self.conn.worker.clock.now()));
    }

    /// The upstream wants more of the request's body than the client has sent so far.
    pub(crate) fn client_owes(&self) {
        self.upstream_owes.set(None);
    }

    /// Its response has taken too long.
    pub(crate) fn give_up(&self) {
        self.late.set(true);
    }

    pub(crate) fn is_late(&self) -> bool {
        self.late.get()
    }

    /// The client's body broke off, or was malformed.
    pub(crate) fn request_broke(&self) {
        self.request_broke.set(true);
    }

    /// Why there is no response: a client whose body breaks off is told apart from an upstream that does.
    pub(crate) fn unanswered(&self) -> Failure {
        if self.request_broke.get() { Failure::CLIENT_BODY } else { Failure::RESET }
    }

    pub(crate) fn add_request_bytes(&self, n: usize) {
        self.request_bytes.set(self.request_bytes.get() + n as u64);
    }

    pub(crate) fn add_response_bytes(&self, n: usize) {
        self.response_bytes.set(self.response_bytes.get() + n as u64);
    }

    /// The status that goes to the client.
    pub(crate) fn status(&self, status: u16) {
        self.status.set(status);
    }

    /// The last byte of the response was handed to the client's connection.
    pub(crate) fn response_ended(&self) {
        self.ended.set(true);
    }

    /// What went wrong after the request was let through; the first cause stays.
    pub(crate) fn fail(&self, reason: &'static str) {
        if self.failure.get().is_none() {
            self.failure.set(Some(reason));
        }
    }

    /// The client wants no more of the response.
    pub(crate) fn given_up(&self) {
        if !self.ended.get() {
            self.fail(CLIENT_GONE);
        }
    }

    /// Records on the outbound side a call that never became an authenticated exchange, unless the call's own events
    /// tell it already.
    pub(crate) fn record_refusal(
        &self,
        failure: &Failure,
        service: &str,
        asked: (&'static str, &'static str),
    ) {
        self.fail(failure.reason);
        if self.completes.get() {
            return;
        }
        if let Some(mut place) = self.reservation.borrow_mut().take() {
            let facts = super::routing::outbound_event(
                &self.conn,
                &self.ids,
                self.started_ns,
                asked,
                Some(service),
                ("error", failure.reason),
            );
            drop(place.decision(&facts));
        }
    }

    pub(crate) fn ids(&self) -> &RequestIds {
        &self.ids
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let worker = &self.conn.worker;
        let now_ns = worker.clock.now_ns();
        let duration_us = now_ns.saturating_sub(self.started_ns) / 1000;
        worker.metrics.requests_in_flight.dec();
        worker.metrics.exchange(
            self.status.get(),
            duration_us,
            self.request_bytes.get(),
            self.response_bytes.get(),
        );
        if !self.completes.get() {
            return;
        }
        let gone = self.conn.client_gone.get() && !self.ended.get();
        if let Some(mut place) = self.reservation.borrow_mut().take() {
            place.complete(&audit::AccessComplete {
                time_unix_ns: now_ns,
                request_id: self.ids.request_id(),
                trace_id: Some(self.ids.trace_id()),
                conn: &self.conn.fragment,
                response: audit::ResponseFacts {
                    status: self.status.get(),
                    request_bytes: self.request_bytes.get(),
                    response_bytes: self.response_bytes.get(),
                    duration_us,
                    aborted: !self.ended.get(),
                    reason: self.failure.get().or(gone.then_some(CLIENT_GONE)),
                },
            });
        }
    }
}
