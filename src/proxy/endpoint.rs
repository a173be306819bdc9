//! One address of an upstream: this worker's connections to it, and a request's hold on one of them.
//!
//! Owns which connection carries what, and gives it back when the response has been read to its end. Which address a request
//! goes to, and what happens when it fails, is [`super::upstream`]'s.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::body::{Inflow, RequestBody};
use super::clock::Clock;
use super::dial::{Life, Sender};
use super::upload::Upload;
use super::vouched::Tenure;
use super::{http1, http2};

/// One address of an upstream and this worker's connections to it.
pub(crate) struct Endpoint {
    addr: SocketAddr,
    clock: Rc<Clock>,
    in_flight: Cell<u32>,
    /// After a failed connect, or a connection that the other side ended, left alone until then unless there is no other.
    rest_until: Cell<Option<Instant>>,
    failures: Cell<u32>,
    idle_h1: RefCell<Vec<H1>>,
    h2: RefCell<Vec<Rc<H2>>>,
    dialing: tokio::sync::Mutex<()>,
}

struct H1 {
    connection: http1::Connection,
    life: Life,
    idle_since: Instant,
}

struct H2 {
    connection: http2::Connection,
    life: Life,
    in_flight: Cell<u32>,
    last_used: Cell<Instant>,
}

/// A request's hold on the connection that carries it; released when the response has been read to its end.
pub(crate) struct Lease {
    endpoint: Rc<Endpoint>,
    held: Held,
}

enum Held {
    /// A connection, and what still uploads when the response has come.
    H1(H1, Option<Upload>),
    /// The same.
    H2(Rc<H2>, Option<Upload>),
    /// Given back, torn from a lease that ends, or a stream's own.
    Nothing,
}

/// A request on its way, and the connection that carries it.
pub(crate) struct Sent {
    lease: Lease,
    answer: Answer,
}

enum Answer {
    H1(http1::Reply),
    H2(http2::Reply),
    /// Itself, unless it was lost on the way.
    Unsent(Option<Box<Request<RequestBody>>>),
}

/// No response: with the request itself where it provably never left.
pub(crate) struct Unanswered(pub(crate) Option<Box<Request<RequestBody>>>);

/// How long an endpoint is left alone that ended a connection: who does so is about to go, and is among the names' addresses until
/// they are looked up again.
const REST_LEAVING: Duration = Duration::from_secs(10);
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MOST: Duration = Duration::from_secs(5);

impl Endpoint {
    pub(crate) fn new(addr: SocketAddr, clock: Rc<Clock>) -> Rc<Self> {
        Rc::new(Self {
            addr,
            clock,
            in_flight: Cell::new(0),
            rest_until: Cell::new(None),
            failures: Cell::new(0),
            idle_h1: RefCell::default(),
            h2: RefCell::default(),
            dialing: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests on their way or being answered.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Until when it is better left alone, if that is not over.
    pub(crate) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rest_until.get().filter(|until| *until > now)
    }

    /// Held by who makes a connection that others may wait to share.
    pub(crate) async fn turn_to_dial(&self) -> MutexGuard<'_, ()> {
        self.dialing.lock().await
    }

    /// An HTTP/1.1 connection that waits for a request: the last one in, which is the least likely to be closed by the other
    /// side. Those that are of no more use are dropped as they are met, and the rest of them by [`Endpoint::sweep`]: to look at
    /// all each time would make a request cost more the more connections there are.
    pub(crate) fn idle(self: &Rc<Self>, generation: u64, now: Instant) -> Option<Lease> {
        let mut idle = self.idle_h1.borrow_mut();
        for at in (0..idle.len()).rev() {
            let conn = &idle[at];
            let usable = !conn.connection.stirs() && conn.life.usable(generation, now);
            let conn = idle.remove(at);
            if usable {
                return Some(Lease::new(self.clone(), Held::H1(conn, None)));
            }
        }
        None
    }

    /// The HTTP/2 connection with the fewest requests on it, and fewer than `most`.
    pub(crate) fn shared(self: &Rc<Self>, generation: u64, now: Instant, most: u32) -> Option<Lease> {
        let mut live = self.h2.borrow_mut();
        live.retain(|c| self.may_carry(c, generation, now));
        let roomy = live.iter().filter(|c| c.in_flight.get() < most);
        let least = roomy.min_by_key(|c| c.in_flight.get())?.clone();
        Some(Lease::new(self.clone(), Held::H2(least, None)))
    }

    /// A new connection, and the request that it was made for.
    pub(crate) fn connected(self: Rc<Self>, sender: Sender, life: Life, now: Instant) -> Lease {
        self.is_reachable();
        let held = match sender {
            Sender::H1(connection) => Held::H1(H1 { connection, life, idle_since: now }, None),
            Sender::H2(connection) => {
                let conn =
                    Rc::new(H2 { connection, life, in_flight: Cell::new(0), last_used: Cell::new(now) });
                self.h2.borrow_mut().push(conn.clone());
                Held::H2(conn, None)
            }
        };
        Lease::new(self, held)
    }

    /// A stream's hold on an address, which has a connection of its own.
    pub(crate) fn lent(self: Rc<Self>) -> Lease {
        self.is_reachable();
        Lease::new(self, Held::Nothing)
    }

    /// No connection could be made: it is left alone for a while, and longer each time.
    pub(crate) fn rest(&self, now: Instant) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        self.rest_at_least(now + (REST_FIRST * 2u32.pow(failures.min(6))).min(REST_MOST));
    }

    /// A connection was made: what failed before does not count. Who is about to leave still is.
    fn is_reachable(&self) {
        if self.failures.replace(0) > 0 {
            self.rest_until.set(None);
        }
    }

    fn rest_at_least(&self, until: Instant) {
        self.rest_until.set(self.rest_until.get().max(Some(until)));
    }

    /// The other side takes no more on a connection.
    fn leaves(&self, now: Instant) {
        self.rest_at_least(now + REST_LEAVING);
    }

    /// Closes connections that carried nothing for as long as `idle` or may carry nothing more.
    pub(crate) fn sweep(&self, generation: u64, now: Instant, idle: Duration) {
        let old = |since: Instant| now.duration_since(since) >= idle;
        self.idle_h1
            .borrow_mut()
            .retain(|c| !c.connection.stirs() && c.life.usable(generation, now) && !old(c.idle_since));
        self.h2.borrow_mut().retain(|c| {
            self.may_carry(c, generation, now) && (c.in_flight.get() > 0 || !old(c.last_used.get()))
        });
    }

    /// Whether a connection may take another request. One that the other side has ended tells of the endpoint, too.
    fn may_carry(&self, conn: &H2, generation: u64, now: Instant) -> bool {
        let closed = conn.connection.is_closed();
        if closed {
            self.leaves(now);
        }
        !closed && conn.life.usable(generation, now)
    }
}

impl Sent {
    /// The lease, once the response is there.
    pub(crate) fn answered(self) -> Lease {
        let Self { mut lease, answer } = self;
        if let Held::H1(_, upload) | Held::H2(_, upload) = &mut lease.held {
            *upload = match answer {
                Answer::H1(reply) => reply.into_upload(),
                Answer::H2(reply) => reply.into_upload(),
                Answer::Unsent(_) => None,
            };
        }
        lease
    }
}

impl Future for Sent {
    type Output = Result<Response<Inflow>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut self.answer {
            Answer::H1(answer) => match ready!(Pin::new(answer).poll(cx)) {
                Ok(response) => Ok(response.map(Inflow::Http1)),
                Err(error) => {
                    tracing::debug!(%error, "no response");
                    Err(Unanswered(None))
                }
            },
            Answer::H2(answer) => ready!(Pin::new(answer).poll(cx)).map_err(|_| Unanswered(None)),
            Answer::Unsent(request) => Err(Unanswered(request.take())),
        })
    }
}

impl Lease {
    fn new(endpoint: Rc<Endpoint>, held: Held) -> Self {
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        if let Held::H2(conn, _) = &held {
            conn.in_flight.set(conn.in_flight.get() + 1);
        }
        Self { endpoint, held }
    }

    /// Hands `request` to the connection.
    pub(crate) fn send(mut self, request: Request<RequestBody>) -> Sent {
        let answer: Answer = match &mut self.held {
            Held::H1(conn, _) => conn
                .connection
                .send(request)
                .map_or_else(|http1::Unsent(request)| Answer::Unsent(Some(request)), Answer::H1),
            Held::H2(conn, _) => match conn.connection.send(request) {
                Ok(reply) => Answer::H2(reply),
                Err(http2::Unsent(request)) => {
                    if conn.connection.is_closed() {
                        self.endpoint.leaves(self.endpoint.clock.latest());
                    }
                    Answer::Unsent(request)
                }
            },
            Held::Nothing => unreachable!("only release() empties a lease, and it consumes it"),
        };
        Sent { lease: self, answer }
    }

    /// The stream under a connection that has stopped being HTTP's.
    pub(crate) fn take_stream(&mut self) -> Option<http1::Rewound> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::H1(conn, _) => conn.connection.into_stream(),
            Held::H2(..) | Held::Nothing => None,
        }
    }

    /// What ends the connection, whatever it carries.
    pub(crate) fn tenure(&self) -> Option<Tenure> {
        match &self.held {
            Held::H1(conn, _) => conn.life.tenure().cloned(),
            Held::H2(conn, _) => conn.life.tenure().cloned(),
            Held::Nothing => None,
        }
    }

    /// The response was read to its end: an HTTP/1.1 connection may carry the next request.
    pub(crate) fn release(mut self) {
        if let Held::H1(_, upload) | Held::H2(_, upload) = &mut self.held
            && let Some(upload) = upload.take()
        {
            upload.detach();
        }
        if matches!(&self.held, Held::H1(conn, _) if conn.connection.is_free())
            && let Held::H1(mut conn, _) = std::mem::replace(&mut self.held, Held::Nothing)
        {
            conn.idle_since = self.endpoint.clock.latest();
            self.endpoint.idle_h1.borrow_mut().push(conn);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        if let Held::H2(conn, _) = &self.held {
            conn.in_flight.set(conn.in_flight.get() - 1);
            conn.last_used.set(self.endpoint.clock.latest());
        }
    }
}
