//! Where requests go: the endpoints of one app or service, and this worker's connections to them.
//!
//! One pool a worker, so no lock and no hand-over between threads: a request is served by connections that its own
//! worker drives. On HTTP/2 requests share connections; on HTTP/1.1 the most recently used idle one is taken. A request
//! that provably was never sent is sent once more on a new connection, whatever its method; nothing else is retried.
//! Knows nothing of policy or audit.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::{Inflow, RequestBody};
use super::clock::Clock;
use super::dial::Dialer;
use super::endpoint::{Endpoint, Lease, Sent, Unanswered};
use super::exchange::Exchange;
use super::http1::Io;
use super::outcome::Failure;
use super::vouched::Tenure;
use super::waiting::Waiting;
use crate::config::Limits;

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

impl UpstreamSettings {
    pub(crate) fn new(limits: &Limits, protocol: Protocol) -> Self {
        Self {
            protocol,
            connect_timeout: limits.connect_timeout,
            response_timeout: limits.response_timeout,
            idle: limits.upstream_idle,
            head_bytes: limits.head_bytes,
            streams: limits.streams,
        }
    }
}

/// What is spoken on the wire to an upstream. Whole streams ([`Upstream::open`]) are either's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

/// Whether a connection that carried requests before will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    Allowed,
    Never,
}

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

    /// One that is spoken to in the clear and stays where it is.
    pub(crate) fn plain(
        name: String,
        addr: SocketAddr,
        settings: UpstreamSettings,
        clock: Rc<Clock>,
    ) -> Rc<Self> {
        let h1 = UpstreamSettings { protocol: Protocol::H1, ..settings.clone() };
        let upgrades =
            (settings.protocol == Protocol::H2).then(|| Self::plain(name.clone(), addr, h1, clock.clone()));
        let (_, addresses) = watch::channel(Arc::from([addr]));
        Self::new(name, Dialer::Plain, addresses, settings, clock, upgrades)
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
        // Its connection may just have turned out to be over, and others be better.
        let first = first.filter(|endpoint| endpoint.rests_until(self.clock.latest()).is_none());
        // What is rare is boxed: a future is as large as the largest thing it may ever wait for, and it is moved about
        // for every request.
        Box::pin(self.new_lease(first, Reuse::Allowed)).await
    }

    /// A connection of its own for a whole stream.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn open(&self) -> Result<(Io, Option<Tenure>, Lease), Failure> {
        self.adopt_addresses();
        let mut failure = Failure::UNRESOLVED;
        for _ in 0..CONNECT_ATTEMPTS {
            let Some(endpoint) = self.choose_endpoint() else { break };
            match self.dialer.open(endpoint.addr(), self.settings.connect_timeout).await {
                Ok((stream, tenure)) => return Ok((stream, tenure, endpoint.lent())),
                Err(connect_failure) => failure = self.unreachable(&endpoint, connect_failure),
            }
            if self.endpoints.borrow().len() == 1 {
                break;
            }
        }
        Err(failure)
    }

    /// Whether `address` is one of its own.
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        self.addresses.borrow().borrow().contains(&address)
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
        match self.waiting.in_time(exchange, &mut sent).await.ok_or(Failure::TIMEOUT)? {
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
        match self.waiting.in_time(exchange, &mut sent).await.ok_or(Failure::TIMEOUT)? {
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
        for endpoint in self.endpoints.borrow().iter() {
            endpoint.sweep(generation, now, self.settings.idle);
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
                let _turn = at.turn_to_dial().await;
                match self.reuse(&endpoint) {
                    Some(lease) => Ok(lease),
                    None => self.dial(endpoint).await,
                }
            }
        }
    }

    fn reuse(&self, endpoint: &Rc<Endpoint>) -> Option<Lease> {
        let (generation, now) = (self.dialer.generation(), self.clock.latest());
        match self.settings.protocol {
            Protocol::H1 => endpoint.idle(generation, now),
            Protocol::H2 => endpoint.shared(generation, now, self.settings.streams),
        }
    }

    async fn dial(&self, endpoint: Rc<Endpoint>) -> Result<Lease, Failure> {
        let dialed = self.dialer.dial(endpoint.addr(), &self.settings).await;
        let now = self.clock.now();
        match dialed {
            Ok((sender, life)) => Ok(endpoint.connected(sender, life, now)),
            Err(failure) => Err(self.unreachable(&endpoint, failure)),
        }
    }

    fn unreachable(&self, endpoint: &Endpoint, failure: Failure) -> Failure {
        endpoint.rest(self.clock.now());
        tracing::debug!(upstream = self.name, addr = %endpoint.addr(), reason = failure.reason, "no connection");
        failure
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
        let now = self.clock.latest();
        let rotated = (0..endpoints.len()).map(|i| &endpoints[(start.wrapping_add(i)) % endpoints.len()]);
        rotated.min_by_key(|e| (e.rests_until(now), e.in_flight())).cloned()
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
                .find(|e| e.addr() == *addr)
                .cloned()
                .unwrap_or_else(|| Endpoint::new(*addr, self.clock.clone()))
        }));
    }
}
