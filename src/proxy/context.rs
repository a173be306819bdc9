//! What requests share: the worker they run on, the listener they came by, the connection they came over.
//!
//! Everything here belongs to one thread. Shared state of the process arrives through `watch` channels whose version is
//! one atomic load to look at, so that no request takes a lock that another worker holds.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;
use tokio::sync::{Semaphore, watch};

use super::clock::Clock;
use super::http1::Scratch;
use super::ids::IdSource;
use super::listener::Slot;
use super::patience::Owing;
use super::upstream::{Protocol, Upstream, UpstreamSettings};
use super::vouched::{Peers, Tenure};
use crate::audit;
use crate::config::Limits;
use crate::drain::DrainWatch;
use crate::identity::SpiffeId;
use crate::metrics::{Side, WorkerMetrics};
use crate::policy::{Grants, Policy, UnixSeconds};
use crate::tls::TlsSettings;

/// What all connections of one worker share.
pub(crate) struct Worker {
    pub(crate) recorder: audit::Recorder,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) clock: Rc<Clock>,
    /// HTTP/1 connections, while they owe a request's head.
    pub(crate) owing: Owing,
    pub(crate) ids: IdSource,
    pub(crate) tls: watch::Receiver<Arc<TlsSettings>>,
    /// What its mesh connections stand on.
    pub(crate) peers: Rc<Peers>,
    pub(crate) pseudonyms: Arc<audit::PseudonymKey>,
    pub(crate) limits: Limits,
    pub(crate) handshakes: Rc<Semaphore>,
    pub(crate) drain: DrainWatch,
    /// Where captured connections go on to.
    pub(crate) beyond: RefCell<Vec<Weak<Upstream>>>,
    /// Where its HTTP/1 connections read to while they wait.
    pub(crate) scratch: Scratch,
}

/// Which way requests of a listener go, and by which rule.
pub(crate) enum Direction {
    /// Toward the app: the policy decides, and both events are recorded.
    Inbound {
        /// The app.
        app: Rc<Upstream>,
        /// Who may do what there.
        policy: PolicyCell,
        /// Whether connections are decided about as a whole: they are not HTTP's.
        streams: bool,
        /// Whom those without a certificate are taken for, where they are let in. Nobody can have that identity.
        stranger: Option<SpiffeId>,
    },
    /// Away from the app: the Host decides where to.
    Outbound {
        /// Where they can go.
        routes: Rc<Routes>,
        /// Whether calls that went through are recorded here too.
        audit_all: bool,
    },
    /// Away from the app: all that comes here is for one service, whatever it is.
    Stream {
        /// The service.
        service: Rc<Upstream>,
        /// As above.
        audit_all: bool,
    },
    /// Kubelet probes: plain, exact paths, no identity, no events.
    Probes {
        /// The app.
        app: Rc<Upstream>,
        /// The paths.
        paths: Rc<[String]>,
        /// Where `/live` and `/ready` are answered from.
        health: Arc<crate::admin::Health>,
    },
}

impl Direction {
    /// The kind of listener, for metrics.
    pub(crate) fn side(&self) -> Side {
        match self {
            Self::Inbound { .. } => Side::Inbound,
            Self::Outbound { .. } | Self::Stream { .. } => Side::Outbound,
            Self::Probes { .. } => Side::Probes,
        }
    }
}

/// The services that the outbound side knows.
#[derive(Default)]
pub(crate) struct Routes {
    /// By host, in lower case and without port.
    pub(crate) hosts: HashMap<String, Rc<Upstream>>,
    /// All that speak HTTP, for calls that name none of the hosts and were meant for one of the addresses.
    pub(crate) http: Vec<Rc<Upstream>>,
    /// Those that do not, known by their addresses alone.
    pub(crate) tcp: Vec<Rc<Upstream>>,
    /// Whether captured connections for anybody else go where they were meant to.
    pub(crate) passthrough: bool,
}

impl Routes {
    /// The HTTP service that is at `address`.
    pub(crate) fn http_at(&self, address: SocketAddr) -> Option<&Rc<Upstream>> {
        self.http.iter().find(|service| service.is_at(address))
    }

    /// The other service that is at `address`.
    pub(crate) fn tcp_at(&self, address: SocketAddr) -> Option<&Rc<Upstream>> {
        self.tcp.iter().find(|service| service.is_at(address))
    }
}

/// A listener as one worker sees it.
pub(crate) struct ListenerContext {
    pub(crate) name: String,
    pub(crate) direction: Direction,
}

/// One accepted connection: what is known of its peer, worked out once.
pub(crate) struct ConnContext {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Rc<ListenerContext>,
    /// Who the peer proved to be; `None` on plain listeners.
    pub(crate) peer: Option<PeerId>,
    pub(crate) fragment: audit::ConnFragment,
    /// Where the client had meant to connect to, of a captured connection.
    pub(crate) captured: Option<Box<Captured>>,
    /// The client is a sidecar that is to go elsewhere, and its answers say so.
    pub(crate) leaving: Cell<bool>,
    /// The client has gone, whatever is under way for it.
    pub(crate) client_gone: Cell<bool>,
    grants: RefCell<Option<(u64, Rc<Grants>)>>,
    /// The last request's route.
    pub(crate) route: RefCell<Option<Route>>,
    /// Held here because exchanges hold the connection's context: an upgraded stream counts until it ends.
    _slot: Slot,
}

/// A connection that was led to us.
pub(crate) struct Captured {
    pub(crate) meant: SocketAddr,
    beyond: OnceCell<Rc<Upstream>>,
}

impl Captured {
    pub(crate) fn new(meant: SocketAddr) -> Box<Self> {
        Box::new(Self { meant, beyond: OnceCell::new() })
    }

    /// Where it was meant to go, spoken to as the app would have.
    pub(crate) fn beyond(&self, worker: &Worker, protocol: Protocol) -> Rc<Upstream> {
        let made = self.beyond.get_or_init(|| {
            let settings = UpstreamSettings::new(&worker.limits, protocol);
            let upstream = Upstream::plain(PASSTHROUGH.into(), self.meant, settings, worker.clock.clone());
            worker.beyond.borrow_mut().push(Rc::downgrade(&upstream));
            upstream
        });
        made.clone()
    }
}

/// The reason of what is let through to where nobody is known.
pub(crate) const PASSTHROUGH: &str = "passthrough";

/// Where the requests for one host go. A connection's requests mostly ask for the host that the one before asked for.
pub(crate) struct Route {
    /// The one `Host` line, as it came.
    pub(crate) host: HeaderValue,
    /// The same as an authority, for HTTP/2.
    pub(crate) authority: Option<Authority>,
    pub(crate) upstream: Rc<Upstream>,
}

/// The verified identity at the other end.
pub(crate) struct PeerId {
    pub(crate) id: SpiffeId,
    pub(crate) cert_sha256: String,
    /// When the connection takes nothing new.
    pub(crate) retire_at: tokio::time::Instant,
    /// Until when it lives at all.
    pub(crate) tenure: Tenure,
    /// `x-forwarded-client-cert` for the app.
    pub(crate) told_to_app: Option<HeaderValue>,
}

impl PeerId {
    /// The identity as the audit trail writes it.
    pub(crate) fn facts(&self) -> audit::SubjectFacts<'_> {
        audit::SubjectFacts { spiffe_id: self.id.as_str(), cert_sha256: &self.cert_sha256 }
    }
}

/// The address at the other end of an accepted connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientAddr(pub(crate) IpAddr);

impl ConnContext {
    pub(crate) fn new(
        worker: Rc<Worker>,
        listener: Rc<ListenerContext>,
        peer: Option<PeerId>,
        fragment: audit::ConnFragment,
        captured: Option<Box<Captured>>,
        slot: Slot,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker,
            listener,
            peer,
            fragment,
            captured,
            leaving: Cell::new(false),
            client_gone: Cell::new(false),
            grants: RefCell::new(None),
            route: RefCell::new(None),
            _slot: slot,
        })
    }

    /// Ends what is under way for a client that gave it up, on a connection that stays: what is let go of says so in its account.
    pub(crate) fn give_up(&self, let_go: impl FnOnce()) {
        let before = self.client_gone.replace(true);
        let_go();
        self.client_gone.set(before);
    }

    /// What `policy` grants the peer, who is `id`: worked out when the connection's first request arrives and again when the
    /// policy's generation moved or a dated binding began or ended.
    pub(crate) fn grants(&self, current: &CurrentPolicy, id: &SpiffeId, now: UnixSeconds) -> Rc<Grants> {
        let mut slot = self.grants.borrow_mut();
        if let Some((generation, grants)) = &*slot
            && *generation == current.generation
            && grants.valid_until().is_none_or(|until| now < until)
        {
            return grants.clone();
        }
        let grants = Rc::new(current.policy.grants(id, now));
        *slot = Some((current.generation, grants.clone()));
        grants
    }
}

/// A policy with what goes into every event decided by it.
pub(crate) struct CurrentPolicy {
    pub(crate) policy: Arc<Policy>,
    pub(crate) fragment: audit::PolicyFragment,
    generation: u64,
}

/// The worker's view of the policy in force.
pub(crate) struct PolicyCell {
    source: RefCell<watch::Receiver<Arc<Policy>>>,
    current: RefCell<Rc<CurrentPolicy>>,
}

impl PolicyCell {
    pub(crate) fn new(mut source: watch::Receiver<Arc<Policy>>) -> Self {
        let current = CurrentPolicy::new(source.borrow_and_update().clone(), 0);
        Self { source: RefCell::new(source), current: RefCell::new(Rc::new(current)) }
    }

    /// Returns when another policy comes into force than the one at the time of the call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + use<> {
        let mut source = self.source.borrow().clone();
        source.mark_unchanged();
        // An error means that the process ends, and every connection with it.
        async move { drop(source.changed().await) }
    }

    /// The policy in force now. Costs one atomic load unless it just changed. The returned value is used for the whole
    /// decision, so no request is decided by a mixture of two versions.
    pub(crate) fn current(&self) -> Rc<CurrentPolicy> {
        let mut source = self.source.borrow_mut();
        if source.has_changed().unwrap_or(false) {
            let policy = source.borrow_and_update().clone();
            let generation = self.current.borrow().generation + 1;
            *self.current.borrow_mut() = Rc::new(CurrentPolicy::new(policy, generation));
        }
        self.current.borrow().clone()
    }
}

impl CurrentPolicy {
    fn new(policy: Arc<Policy>, generation: u64) -> Self {
        let fragment = audit::PolicyFragment::new(Some(policy.revision()), policy.sha256_hex());
        Self { policy, fragment, generation }
    }
}
