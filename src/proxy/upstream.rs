//! Where requests go: the endpoints of one app or service, and this worker's connections to them.
//!
//! One pool a worker, so no lock and no hand-over between threads: a request is served by connections that its own
//! worker drives. On HTTP/2 requests share connections; on HTTP/1.1 the most recently used idle one is taken. A request
//! that provably was never sent is sent once more on a new connection, whatever its method; nothing else is retried.
//! Knows nothing of policy or audit.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::{Inflow, RequestBody};
use super::clock::Clock;
use super::dial::{Dialer, Life, Sender};
use super::exchange::Exchange;
use super::http2;
use super::outcome::Failure;
use super::waiting::Waiting;

/// One app or service as one worker sees it.
pub(crate) struct Upstream {
    /// The service's name, or the listener's for an app.
    pub(crate) name: String,
    dialer: Dialer,
    addresses: RefCell<watch::Receiver<Arc<[SocketAddr]>>>,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    next: Cell<usize>,
    settings: UpstreamSettings,
    clock: Rc<Clock>,
    waiting: Waiting,
    /// The same service over HTTP/1.1, where the ordinary protocol is HTTP/2 and cannot carry an `Upgrade`.
    upgrades: Option<Rc<Upstream>>,
}

/// What does not change while a sidecar runs.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamSettings {
    pub(crate) protocol: Protocol,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) idle: Duration,
    pub(crate) head_bytes: u32,
    /// Requests at a time on one HTTP/2 connection before another is opened.
    pub(crate) streams: u32,
}

/// What is spoken on the wire to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

/// One address of an upstream and this worker's connections to it.
struct Endpoint {
    addr: SocketAddr,
    clock: Rc<Clock>,
    in_flight: Cell<u32>,
    /// After a failed connect, left alone until then unless there is no other.
    rest_until: Cell<Option<Instant>>,
    failures: Cell<u32>,
    idle_h1: RefCell<Vec<H1>>,
    h2: RefCell<Vec<Rc<H2>>>,
    dialing: tokio::sync::Mutex<()>,
}

struct H1 {
    sender: http1::SendRequest<RequestBody>,
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
    H1(H1),
    /// And what still uploads when the response has come.
    H2(Rc<H2>, Option<http2::Upload>),
    /// Given back, or torn from a lease that ends.
    Nothing,
}

/// A request on its way, and the connection that carries it.
pub(crate) struct Sent {
    lease: Lease,
    answer: Answer,
}

enum Answer {
    /// Boxed, because hyper's type for it has no name.
    H1(Pin<Box<dyn Future<Output = Http1Answer>>>),
    H2(http2::Reply),
    Unsent(http2::Unsent),
}

type Http1Answer = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

/// No response: with the request itself where it provably never left.
struct Unanswered(Option<Box<Request<RequestBody>>>);

impl Future for Answer {
    type Output = Result<Response<Inflow>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match &mut *self {
            Self::H1(answer) => match ready!(answer.as_mut().poll(cx)) {
                Ok(response) => Ok(response.map(Inflow::Whole)),
                Err(mut error) => Err(Unanswered(error.take_message().map(Box::new))),
            },
            Self::H2(answer) => ready!(Pin::new(answer).poll(cx)).map_err(|_| Unanswered(None)),
            Self::Unsent(http2::Unsent(request)) => Err(Unanswered(request.take())),
        })
    }
}

/// Whether a connection that carried requests before will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Allowed,
    Never,
}

const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MOST: Duration = Duration::from_secs(5);
/// How many endpoints a request tries to connect to before it fails.
const CONNECT_ATTEMPTS: usize = 3;

impl Upstream {
    pub(crate) fn new(
        name: String,
        dialer: Dialer,
        addresses: watch::Receiver<Arc<[SocketAddr]>>,
        settings: UpstreamSettings,
        clock: Rc<Clock>,
        upgrades: Option<Rc<Self>>,
    ) -> Rc<Self> {
        let upstream = Self {
            name,
            dialer,
            addresses: RefCell::new(addresses),
            endpoints: RefCell::default(),
            next: Cell::new(0),
            settings,
            clock,
            waiting: Waiting::default(),
            upgrades,
        };
        upstream.adopt_addresses();
        Rc::new(upstream)
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.settings.protocol
    }

    /// Where requests that ask to switch protocols go.
    pub(crate) fn for_upgrades(self: Rc<Self>) -> Rc<Self> {
        self.upgrades.clone().unwrap_or(self)
    }

    /// A connection for one request: a live one where there is one with room, else a new one.
    ///
    /// # Errors
    /// Why there is none; nothing of the request has been sent.
    pub(crate) async fn lease(&self) -> Result<Lease, Failure> {
        self.adopt_addresses();
        let first = self.choose_endpoint();
        if let Some(lease) = first.as_ref().and_then(|endpoint| self.reuse(endpoint)) {
            return Ok(lease);
        }
        // What is rare is boxed: a future is as large as the largest thing it may ever wait for, and it is moved about
        // for every request.
        Box::pin(self.new_lease(first, Reuse::Allowed)).await
    }

    /// Waits for the head of the response to what was sent; what turns out not to have been sent is sent once more.
    ///
    /// # Errors
    /// Why there is no response; the request may have reached the upstream.
    pub(crate) async fn answer(
        &self,
        mut sent: Sent,
        exchange: &Rc<Exchange>,
    ) -> Result<(Response<Inflow>, Lease), Failure> {
        match self.waiting.in_time(exchange, &mut sent.answer).await.ok_or(Failure::TIMEOUT)? {
            Ok(response) => Ok((response, sent.answered())),
            Err(Unanswered(Some(request))) => Box::pin(self.resend(*request, exchange)).await,
            Err(Unanswered(None)) => Err(exchange.unanswered()),
        }
    }

    async fn resend(
        &self,
        request: Request<RequestBody>,
        exchange: &Rc<Exchange>,
    ) -> Result<(Response<Inflow>, Lease), Failure> {
        let mut sent = self.new_lease(None, Reuse::Never).await?.send(request);
        match self.waiting.in_time(exchange, &mut sent.answer).await.ok_or(Failure::TIMEOUT)? {
            Ok(response) => Ok((response, sent.answered())),
            Err(_) => Err(exchange.unanswered()),
        }
    }

    /// Gives up on answers that take too long, and closes connections that carried nothing for a while or may carry nothing
    /// more.
    pub(crate) fn sweep(&self, now: Instant) {
        self.waiting.look(now, self.settings.response_timeout);
        if let Some(upgrades) = &self.upgrades {
            upgrades.sweep(now);
        }
        let generation = self.dialer.generation();
        let old = |since: Instant| now.duration_since(since) >= self.settings.idle;
        for endpoint in self.endpoints.borrow().iter() {
            endpoint
                .idle_h1
                .borrow_mut()
                .retain(|c| !c.sender.is_closed() && c.life.usable(generation, now) && !old(c.idle_since));
            endpoint.h2.borrow_mut().retain(|c| {
                let closing = c.connection.is_closed() || !c.life.usable(generation, now);
                !(closing || c.in_flight.get() == 0 && old(c.last_used.get()))
            });
        }
    }

    /// Tries `first`, whose turn it is, and then others.
    async fn new_lease(&self, first: Option<Rc<Endpoint>>, reuse: Reuse) -> Result<Lease, Failure> {
        let mut failure = Failure::UNRESOLVED;
        let mut first = first;
        for _ in 0..CONNECT_ATTEMPTS {
            let Some(endpoint) = first.take().or_else(|| self.choose_endpoint()) else { break };
            match self.lease_at(endpoint, reuse).await {
                Ok(lease) => return Ok(lease),
                Err(connect_failure) => failure = connect_failure,
            }
            if self.endpoints.borrow().len() == 1 {
                break;
            }
        }
        Err(failure)
    }

    async fn lease_at(&self, endpoint: Rc<Endpoint>, reuse: Reuse) -> Result<Lease, Failure> {
        if reuse == Reuse::Allowed
            && let Some(lease) = self.reuse(&endpoint)
        {
            return Ok(lease);
        }
        match self.settings.protocol {
            Protocol::H1 => self.dial(endpoint).await,
            Protocol::H2 => {
                // A burst of requests to a peer without a connection dials once, and shares what comes of it.
                let at = endpoint.clone();
                let _turn = at.dialing.lock().await;
                match self.reuse(&endpoint) {
                    Some(lease) => Ok(lease),
                    None => self.dial(endpoint).await,
                }
            }
        }
    }

    fn reuse(&self, endpoint: &Rc<Endpoint>) -> Option<Lease> {
        let generation = self.dialer.generation();
        let now = self.clock.latest();
        match self.settings.protocol {
            Protocol::H1 => {
                let mut idle = endpoint.idle_h1.borrow_mut();
                idle.retain(|c| !c.sender.is_closed() && c.life.usable(generation, now));
                // The last one in is the least likely to be closed by the other side; one whose request body is still
                // on its way out is not ready yet.
                let at = idle.iter().rposition(|c| c.sender.is_ready())?;
                Some(Lease::new(endpoint.clone(), Held::H1(idle.remove(at))))
            }
            Protocol::H2 => {
                let mut live = endpoint.h2.borrow_mut();
                live.retain(|c| !c.connection.is_closed() && c.life.usable(generation, now));
                let roomy = live.iter().filter(|c| c.in_flight.get() < self.settings.streams);
                let least = roomy.min_by_key(|c| c.in_flight.get())?.clone();
                Some(Lease::new(endpoint.clone(), Held::H2(least, None)))
            }
        }
    }

    async fn dial(&self, endpoint: Rc<Endpoint>) -> Result<Lease, Failure> {
        let dialed = self.dialer.dial(endpoint.addr, &self.settings).await;
        let now = Instant::now();
        let (sender, life) = match dialed {
            Ok(made) => made,
            Err(failure) => {
                endpoint.rest(now);
                tracing::debug!(upstream = self.name, addr = %endpoint.addr, reason = failure.reason, "no connection");
                return Err(failure);
            }
        };
        endpoint.failures.set(0);
        endpoint.rest_until.set(None);
        let held = match sender {
            Sender::H1(sender) => Held::H1(H1 { sender, life, idle_since: now }),
            Sender::H2(connection) => {
                let conn =
                    Rc::new(H2 { connection, life, in_flight: Cell::new(0), last_used: Cell::new(now) });
                endpoint.h2.borrow_mut().push(conn.clone());
                Held::H2(conn, None)
            }
        };
        Ok(Lease::new(endpoint, held))
    }

    /// The endpoint with the fewest requests on it, from a moving start so that equals take turns; one that just failed
    /// to connect only when all did.
    fn choose_endpoint(&self) -> Option<Rc<Endpoint>> {
        let endpoints = self.endpoints.borrow();
        if endpoints.len() < 2 {
            return endpoints.first().cloned();
        }
        let start = self.next.get();
        self.next.set(start.wrapping_add(1));
        let now = Instant::now();
        let rotated = (0..endpoints.len()).map(|i| &endpoints[(start.wrapping_add(i)) % endpoints.len()]);
        rotated.min_by_key(|e| (e.rest_until.get().filter(|until| *until > now), e.in_flight.get())).cloned()
    }

    fn adopt_addresses(&self) {
        let mut source = self.addresses.borrow_mut();
        if !source.has_changed().unwrap_or(false) && !self.endpoints.borrow().is_empty() {
            return;
        }
        let addresses = source.borrow_and_update().clone();
        let mut endpoints = self.endpoints.borrow_mut();
        let known = std::mem::take(&mut *endpoints);
        endpoints.extend(addresses.iter().map(|addr| {
            known
                .iter()
                .find(|e| e.addr == *addr)
                .cloned()
                .unwrap_or_else(|| Rc::new(Endpoint::new(*addr, self.clock.clone())))
        }));
    }
}

impl Endpoint {
    fn new(addr: SocketAddr, clock: Rc<Clock>) -> Self {
        Self {
            addr,
            clock,
            in_flight: Cell::new(0),
            rest_until: Cell::new(None),
            failures: Cell::new(0),
            idle_h1: RefCell::default(),
            h2: RefCell::default(),
            dialing: tokio::sync::Mutex::new(()),
        }
    }

    fn rest(&self, now: Instant) {
        let failures = self.failures.get();
        self.failures.set(failures.saturating_add(1));
        self.rest_until.set(Some(now + (REST_FIRST * 2u32.pow(failures.min(6))).min(REST_MOST)));
    }
}

impl Sent {
    /// The lease, once the response is there.
    fn answered(self) -> Lease {
        let Self { mut lease, answer } = self;
        if let (Held::H2(_, upload), Answer::H2(reply)) = (&mut lease.held, answer) {
            *upload = reply.into_upload();
        }
        lease
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
            Held::H1(conn) => Answer::H1(Box::pin(conn.sender.try_send_request(request))),
            Held::H2(conn, _) => conn.connection.send(request).map_or_else(Answer::Unsent, Answer::H2),
            Held::Nothing => unreachable!("only release() empties a lease, and it consumes it"),
        };
        Sent { lease: self, answer }
    }

    /// When the peer's certificate runs out.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        match &self.held {
            Held::H1(conn) => conn.life.ends_at(),
            Held::H2(conn, _) => conn.life.ends_at(),
            Held::Nothing => None,
        }
    }

    /// The response was read to its end: an HTTP/1.1 connection may carry the next request.
    pub(crate) fn release(mut self) {
        match &mut self.held {
            Held::H1(_) => {
                if let Held::H1(mut conn) = std::mem::replace(&mut self.held, Held::Nothing)
                    && !conn.sender.is_closed()
                {
                    conn.idle_since = self.endpoint.clock.latest();
                    self.endpoint.idle_h1.borrow_mut().push(conn);
                }
            }
            Held::H2(_, upload) => {
                if let Some(upload) = upload.take() {
                    upload.detach();
                }
            }
            Held::Nothing => {}
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
