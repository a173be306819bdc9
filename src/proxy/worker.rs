//! A worker: one thread, one single-threaded runtime, its share of the connections.
//!
//! Owns the start and the end of the thread's work. What a worker needs crosses the thread border once, as plain data
//! ([`WorkerSpec`]), and becomes the worker's own, unshared state here.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Semaphore, mpsc, watch};

use super::clock::Clock;
use super::connection::serve;
use super::context::{ClientAddr, Direction, ListenerContext, PolicyCell, Routes, Worker};
use super::dial::Dialer;
use super::http1::Scratch;
use super::ids::IdSource;
use super::listener::Accepted;
use super::patience::Owing;
use super::upstream::{Protocol, Upstream, UpstreamSettings};
use super::vouched::Peers;
use crate::admin::Health;
use crate::audit;
use crate::config::Limits;
use crate::drain::DrainWatch;
use crate::identity::SpiffeId;
use crate::metrics::WorkerMetrics;
use crate::policy::Policy;
use crate::tls::{Alpn, TlsSettings};

/// Everything a worker is made of.
pub(crate) struct WorkerSpec {
    pub(crate) recorder: audit::RecorderSeed,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) tls: watch::Receiver<Arc<TlsSettings>>,
    pub(crate) pseudonyms: Arc<audit::PseudonymKey>,
    pub(crate) limits: Limits,
    pub(crate) drain: DrainWatch,
    pub(crate) listeners: Vec<ListenerSpec>,
}

/// A listener, and where its requests go.
#[derive(Clone)]
pub(crate) struct ListenerSpec {
    pub(crate) name: String,
    pub(crate) direction: DirectionSpec,
}

/// As [`Direction`], before it belongs to a worker.
#[derive(Clone)]
pub(crate) enum DirectionSpec {
    Inbound {
        app: SocketAddr,
        protocol: Option<Protocol>,
        policy: watch::Receiver<Arc<Policy>>,
        permissive: bool,
    },
    Outbound {
        services: Vec<ServiceSpec>,
        passthrough: bool,
        audit_all: bool,
    },
    Stream {
        service: ServiceSpec,
        audit_all: bool,
    },
    Probes {
        app: SocketAddr,
        protocol: Protocol,
        paths: Vec<String>,
        health: Arc<Health>,
    },
}

/// A service that the outbound side knows.
#[derive(Clone)]
pub(crate) struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: watch::Receiver<Arc<[SocketAddr]>>,
    pub(crate) identities: Arc<[SpiffeId]>,
    /// None for what is not HTTP.
    pub(crate) protocol: Option<Protocol>,
}

/// How often a worker looks for what has waited too long or is no longer used: often enough that no limit is overrun by more
/// than a quarter, or a second.
fn round(limits: &Limits) -> Duration {
    let shortest = limits.head_timeout.min(limits.response_timeout);
    (shortest / 4).clamp(Duration::from_millis(2), Duration::from_secs(1))
}

/// Works until `inbox` is closed, then drops what is left: completions are recorded as it goes.
///
/// # Errors
/// The runtime could not be built: no file descriptors left for its event queue.
pub(crate) fn run(spec: WorkerSpec, inbox: mpsc::UnboundedReceiver<Accepted>) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(work(spec, inbox));
    Ok(()) // dropping the runtime drops every task that is left, and with it each open exchange
}

async fn work(spec: WorkerSpec, mut inbox: mpsc::UnboundedReceiver<Accepted>) {
    let (clock, mut upstreams) = (Rc::new(Clock::new()), Vec::new());
    let peers = Peers::new(spec.tls.clone());
    drop(tokio::task::spawn_local(peers.clone().watch()));
    let listeners: Vec<Rc<ListenerContext>> = spec
        .listeners
        .into_iter()
        .map(|listener| {
            let maker = Maker { limits: &spec.limits, tls: &spec.tls, peers: &peers, clock: &clock };
            let direction = maker.direction(listener.name.clone(), listener.direction, &mut upstreams);
            Rc::new(ListenerContext { name: listener.name, direction })
        })
        .collect();
    let worker = Rc::new(Worker {
        recorder: spec.recorder.attach(),
        metrics: spec.metrics,
        clock,
        owing: Owing::default(),
        ids: IdSource::new(),
        tls: spec.tls,
        peers,
        pseudonyms: spec.pseudonyms,
        handshakes: Rc::new(Semaphore::new(spec.limits.handshakes)),
        scratch: Scratch::default(),
        limits: spec.limits,
        drain: spec.drain,
        beyond: RefCell::default(),
    });
    let mut sweep = tokio::time::interval(round(&worker.limits));
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = inbox.recv() => match accepted {
                Some(accepted) => take(&worker, &listeners, accepted),
                None => return,
            },
            _ = sweep.tick() => {
                let now = worker.clock.now();
                worker.owing.look(now, worker.limits.head_timeout);
                upstreams.iter().for_each(|upstream| upstream.sweep(now));
                worker.beyond.borrow_mut().retain(|beyond| {
                    beyond.upgrade().inspect(|upstream| upstream.sweep(now)).is_some()
                });
            }
        }
    }
}

fn take(worker: &Rc<Worker>, listeners: &[Rc<ListenerContext>], accepted: Accepted) {
    let Some(listener) = listeners.get(accepted.listener) else { return };
    // Fails when the process is out of file descriptors for its event queue; the connection is closed.
    let Ok(stream) = TcpStream::from_std(accepted.stream) else { return };
    let addr = ClientAddr(accepted.addr.ip());
    drop(tokio::task::spawn_local(serve(worker.clone(), listener.clone(), stream, addr, accepted.slot)));
}

struct Maker<'a> {
    limits: &'a Limits,
    tls: &'a watch::Receiver<Arc<TlsSettings>>,
    peers: &'a Rc<Peers>,
    clock: &'a Rc<Clock>,
}

impl Maker<'_> {
    fn direction(&self, name: String, spec: DirectionSpec, all: &mut Vec<Rc<Upstream>>) -> Direction {
        match spec {
            DirectionSpec::Inbound { app, protocol, policy, permissive } => {
                let app = self.app(name, app, protocol.unwrap_or(Protocol::H1));
                all.push(app.clone());
                // A host that cannot be (RFC 2606, section 2), and so nobody's trust domain.
                let stranger =
                    permissive.then(|| SpiffeId::parse("spiffe://unauthenticated.invalid/plaintext").ok());
                let stranger = stranger.flatten();
                Direction::Inbound {
                    app,
                    policy: PolicyCell::new(policy),
                    streams: protocol.is_none(),
                    stranger,
                }
            }
            DirectionSpec::Outbound { services, passthrough, audit_all } => {
                let mut routes = Routes { passthrough, ..Routes::default() };
                for service in services {
                    let (hosts, http) = (service.hosts.clone(), service.protocol.is_some());
                    let upstream = self.service(service);
                    all.push(upstream.clone());
                    routes.hosts.extend(hosts.into_iter().map(|host| (host, upstream.clone())));
                    if http { routes.http.push(upstream) } else { routes.tcp.push(upstream) }
                }
                Direction::Outbound { routes: Rc::new(routes), audit_all }
            }
            DirectionSpec::Stream { service, audit_all } => {
                let service = self.service(service);
                all.push(service.clone());
                Direction::Stream { service, audit_all }
            }
            DirectionSpec::Probes { app, protocol, paths, health } => {
                let app = self.app(name, app, protocol);
                all.push(app.clone());
                Direction::Probes { app, paths: paths.into(), health }
            }
        }
    }

    fn app(&self, name: String, addr: SocketAddr, protocol: Protocol) -> Rc<Upstream> {
        Upstream::plain(name, addr, UpstreamSettings::new(self.limits, protocol), self.clock.clone())
    }

    fn service(&self, spec: ServiceSpec) -> Rc<Upstream> {
        let upgrades = (spec.protocol == Some(Protocol::H2))
            .then(|| self.service(ServiceSpec { protocol: Some(Protocol::H1), ..spec.clone() }));
        let alpn = match spec.protocol {
            Some(Protocol::H1) => Alpn::Http1,
            Some(Protocol::H2) => Alpn::H2,
            None => Alpn::Nothing,
        };
        let dialer = Dialer::mesh(self.tls.clone(), self.peers.clone(), spec.identities, alpn);
        let settings = UpstreamSettings::new(self.limits, spec.protocol.unwrap_or(Protocol::H1));
        Upstream::new(spec.name, dialer, spec.addresses, settings, self.clock.clone(), upgrades)
    }
}
