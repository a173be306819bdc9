//! A running sidecar: what it is made of, how it starts, and the order in which it ends.
//!
//! The control side (accepting, admin, reloads, names) lives on the caller's tokio runtime; traffic lives on worker threads
//! that share nothing with it, and delivery of events on a thread that stands back for both. Several sidecars can run in one
//! process, as `phiward dev` does, so nothing here is global.

mod collector;
mod loaded;
mod shipping;
mod sockets;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::{self, AdminState, Health};
use crate::audit::{
    self, Audit, AuditError, InstanceFacts, KeyFileError, PostureFacts, SecretError, SpoolConfig, SpoolKey,
};
use crate::collector::CollectorError;
use crate::config::{
    AppProtocol, InboundConfig, InboundListener, MeshProtocol, Mode, OutboundAudit, ProbesConfig,
    ServiceConfig, SidecarConfig, Unknown,
};
use crate::drain::Drain;
use crate::identity::IdentityError;
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::proxy::{self, DirectionSpec, ListenerSpec, Protocol, ServiceSpec, WorkerInbox, WorkerSpec};
use crate::reload::{self, Outcome, PolicyFile, ReloadStatus};
use crate::resolve::{Resolution, ResolveError};
use crate::spire::{ApiError, SpireError};
use crate::tls::{RootsError, TlsError, TlsSettings};

pub use collector::BoundCollector;
pub use loaded::Loaded;
pub use sockets::Addresses;

use shipping::Shipping;
use sockets::Bound;

/// How long the flush of events to sinks may take at the end; the spool keeps what is left.
const FLUSH_AT_END: Duration = Duration::from_secs(5);

/// How often the trail's health is looked at for the log.
const AUDIT_LOOK: Duration = Duration::from_secs(1);

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The policy file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    PolicyUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The policy file is wrong: every finding, `file:line:column: error: ...` each.
    #[error("{0}")]
    PolicyInvalid(String),
    /// SVID, key or bundle.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The SPIRE agent.
    #[error(transparent)]
    Spire(#[from] SpireError),
    /// TLS cannot be set up with that identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The pseudonyms' key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The spool.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A secret of a sink.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The CA certificates of a sink.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The collector.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// Names of endpoints.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// An address cannot be listened on.
    #[error("cannot listen on {addr} ({what}): {source}; is another process using it?")]
    Bind {
        /// Which of the configuration's addresses.
        what: String,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread or a metric could not be made.
    #[error("cannot start: {0}")]
    Internal(String),
}

impl StartError {
    /// 2 for an input that cannot be read, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PolicyUnreadable { .. } => 2,
            Self::Identity(IdentityError::Read { .. }) | Self::Key(KeyFileError::Read { .. }) => 2,
            Self::Spire(SpireError::Api(ApiError::Connect { .. })) => 2,
            Self::Secret(SecretError::Read { .. }) | Self::Roots(RootsError::Read { .. }) => 2,
            _ => 1,
        }
    }
}

/// A running sidecar.
pub struct Sidecar {
    addresses: Addresses,
    config: SidecarConfig,
    audit: Audit,
    health: Arc<Health>,
    drain: Drain,
    drain_asked: Arc<Notify>,
    places: Arc<Semaphore>,
    acceptors: JoinSet<()>,
    control: JoinSet<()>,
    shipping: Shipping,
    workers: Vec<JoinHandle<()>>,
    inboxes: Vec<WorkerInbox>,
    _names: Resolution,
}

impl Sidecar {
    /// Starts everything on the current tokio runtime and on worker threads of its own.
    ///
    /// # Errors
    /// What could not be started; nothing keeps running then.
    pub async fn start(loaded: Loaded, log: Option<LogLevel>) -> Result<Self, StartError> {
        let Loaded { config, tls, origin, policy, pseudonyms, spool_key } = loaded;
        let pseudonyms = Arc::new(pseudonyms);
        let bound = Bound::bind(&config).await?;
        let sinks: Vec<audit::SinkConfig> = config.audit.sinks.iter().map(|sink| sink.sink.clone()).collect();
        if sinks.is_empty() {
            tracing::warn!(
                "no audit sink: when the spool is full, on_failure applies, as nothing may be deleted"
            );
        }
        let audit = Audit::start(spool_config(&config, spool_key), &instance(&config, &tls), &sinks)?;
        let internal = |error: prometheus::Error| StartError::Internal(error.to_string());
        let metrics = Metrics::new().map_err(internal)?;
        metrics.watch_sinks(audit.status_reader()).map_err(internal)?;
        let status = ReloadStatus::default();
        let mut names = Resolution::new();

        let (tls_sender, tls) = watch::channel(Arc::new(tls));
        let (policy_file, policy) = match policy {
            Some((path, content, policy)) => {
                audit.control().record(reload::loaded(&policy));
                let (sender, receiver) = watch::channel(Arc::new(policy));
                (Some(PolicyFile::new(path, content, sender)), Some(receiver))
            }
            None => (None, None),
        };
        let health =
            Arc::new(Health::new(audit.status_reader(), tls.clone(), policy.clone(), status.clone()));
        let shipping = Shipping::start(&config.audit.sinks, &audit, &tls, &mut names)?;
        let (drain, drain_watch) = Drain::new();

        let listeners = listener_specs(&config, policy.as_ref(), &health, &mut names)?;
        let (inboxes, workers) = spawn_workers(config.workers, |index| WorkerSpec {
            recorder: audit.recorder(),
            metrics: metrics.worker(index),
            tls: tls.clone(),
            pseudonyms: pseudonyms.clone(),
            limits: config.limits.clone(),
            drain: drain_watch.clone(),
            listeners: listeners.clone(),
        })?;

        let addresses = bound.addresses();
        let places = Arc::new(Semaphore::new(config.limits.connections));
        let mut acceptors = JoinSet::new();
        for socket in bound.traffic {
            acceptors.spawn(proxy::accept(socket.socket, socket.listener, inboxes.clone(), places.clone()));
        }
        let drain_asked = Arc::new(Notify::new());
        let mut control = JoinSet::new();
        let state = AdminState {
            health: health.clone(),
            metrics: metrics.clone(),
            leave: drain.clone(),
            drain: drain_asked.clone(),
            log,
        };
        for socket in bound.metrics {
            control.spawn(admin::serve_metrics(socket, state.clone()));
        }
        control.spawn(admin::serve(bound.admin, state));
        let outcome = Outcome { audit: audit.control(), metrics, status };
        control.spawn(tell_audit_health(audit.status_reader()));
        if let Some(policy_file) = policy_file {
            control.spawn(policy_file.run(outcome.clone()));
        }
        control.spawn(origin.renew(tls_sender, Some(outcome)));
        Ok(Self {
            addresses,
            config,
            audit,
            health,
            drain,
            drain_asked,
            places,
            acceptors,
            control,
            shipping,
            workers,
            inboxes,
            _names: names,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Returns once `POST /drain` has asked for the end.
    pub async fn drain_asked(&self) {
        self.drain_asked.notified().await;
    }

    /// Ends without cutting: turns readiness off, sends callers elsewhere while it accepts for `drain_delay` more, lets what is open
    /// finish until `drain_deadline`, then closes the trail and tries to deliver what is left of it.
    ///
    /// # Errors
    /// The trail could not be closed; its spool is told at the next start.
    pub async fn shut_down(mut self) -> Result<(), AuditError> {
        self.health.drain();
        self.drain.leave();
        tracing::info!("draining");
        tokio::time::sleep(self.config.limits.drain_delay).await;
        self.acceptors.shutdown().await;
        self.drain.begin();
        let all = u32::try_from(self.config.limits.connections).unwrap_or(u32::MAX);
        let idle = self.places.acquire_many(all);
        if tokio::time::timeout(self.config.limits.drain_deadline, idle).await.is_err() {
            tracing::warn!("the drain's deadline has passed; open connections are cut");
        }
        // Without senders the workers end, and drop what is left.
        self.inboxes.clear();
        let workers = std::mem::take(&mut self.workers);
        let joined = tokio::task::spawn_blocking(move || {
            workers.into_iter().for_each(|worker| drop(worker.join()));
        });
        drop(joined.await);
        let closed = self.audit.close();
        self.shipping.finish(FLUSH_AT_END).await;
        self.control.shutdown().await;
        tracing::info!("drained");
        closed
    }
}

/// Says once, and not a request, that the trail stopped or started to take events.
async fn tell_audit_health(audit: audit::StatusReader) {
    let mut was_healthy = true;
    let mut told = 0;
    loop {
        tokio::time::sleep(AUDIT_LOOK).await;
        let status = audit.status();
        // Full segments that were delivered go at seven eighths, so more than that is a sink that lags, or none.
        let full = status.spool_bytes * 100 / (status.spool_bytes + status.free_bytes).max(1);
        let level = match full {
            95.. => 95,
            90.. => 90,
            _ => 0,
        };
        if level > told {
            tracing::warn!(
                full_percent = full,
                free_bytes = status.free_bytes,
                "the audit spool fills up: bring its sinks back, or give it more max_bytes; when it is full, audit.on_failure applies"
            );
        }
        // Told again once it has been well below.
        if level > told || full + 5 < told {
            told = level;
        }
        match (was_healthy, status.healthy) {
            (true, false) => tracing::error!(
                free_bytes = status.free_bytes,
                error = status.last_error,
                "the audit trail takes no events: bring its sinks back, or give the spool more max_bytes"
            ),
            (false, true) => tracing::info!("the audit trail takes events again"),
            _ => {}
        }
        was_healthy = status.healthy;
    }
}

fn listener_specs(
    config: &SidecarConfig,
    policy: Option<&watch::Receiver<Arc<Policy>>>,
    health: &Arc<Health>,
    names: &mut Resolution,
) -> Result<Vec<ListenerSpec>, StartError> {
    let mut specs = Vec::new();
    if let Some(inbound) = &config.inbound {
        // The loader refuses listeners without a policy.
        if let Some(policy) = policy {
            specs.extend(inbound.listeners.iter().map(|listener| inbound_spec(listener, policy)));
        }
        specs.extend(inbound.probes.as_ref().map(|probes| probes_spec(inbound, probes, health)));
    }
    if let Some(outbound) = &config.outbound {
        let audit_all = outbound.audit == OutboundAudit::All;
        let mut services = Vec::new();
        let mut bound = Vec::new();
        for service in &outbound.services {
            let spec = service_spec(service, names)?;
            if service.tcp_bind().is_some() {
                let direction = DirectionSpec::Stream { service: spec.clone(), audit_all };
                bound.push(ListenerSpec { name: service.name.clone(), direction });
            }
            services.push(spec);
        }
        let passthrough = outbound.unknown == Unknown::Passthrough;
        let direction = DirectionSpec::Outbound { services, passthrough, audit_all };
        specs.push(ListenerSpec { name: "outbound".to_owned(), direction });
        specs.extend(bound);
    }
    Ok(specs)
}

fn inbound_spec(listener: &InboundListener, policy: &watch::Receiver<Arc<Policy>>) -> ListenerSpec {
    let direction = DirectionSpec::Inbound {
        app: listener.app,
        protocol: app_protocol(listener.app_protocol),
        policy: policy.clone(),
        permissive: listener.mode == Mode::Permissive,
    };
    ListenerSpec { name: listener.name.clone(), direction }
}

fn probes_spec(inbound: &InboundConfig, probes: &ProbesConfig, health: &Arc<Health>) -> ListenerSpec {
    let mut listeners = inbound.listeners.iter();
    let first = match probes.app {
        Some(app) => listeners.find(|listener| listener.app == app),
        None => listeners.find(|listener| listener.app_protocol != AppProtocol::Tcp),
    };
    let direction = DirectionSpec::Probes {
        // Without an app there are no paths either: the loader refuses them.
        app: probes.app.or(first.map(|first| first.app)).unwrap_or(probes.bind[0]),
        protocol: first.and_then(|first| app_protocol(first.app_protocol)).unwrap_or(Protocol::H1),
        paths: probes.paths.clone(),
        health: health.clone(),
    };
    ListenerSpec { name: "probes".to_owned(), direction }
}

fn app_protocol(app: AppProtocol) -> Option<Protocol> {
    match app {
        AppProtocol::Http => Some(Protocol::H1),
        AppProtocol::H2c => Some(Protocol::H2),
        AppProtocol::Tcp => None,
    }
}

fn service_spec(service: &ServiceConfig, names: &mut Resolution) -> Result<ServiceSpec, ResolveError> {
    Ok(ServiceSpec {
        name: service.name.clone(),
        hosts: service.hosts.clone(),
        addresses: names.watch(&service.endpoints)?,
        identities: service.identities.clone(),
        protocol: match service.mesh {
            MeshProtocol::H2 => Some(Protocol::H2),
            MeshProtocol::H1 => Some(Protocol::H1),
            MeshProtocol::Tcp { .. } => None,
        },
    })
}

fn spawn_workers(
    count: usize,
    spec: impl Fn(usize) -> WorkerSpec,
) -> Result<(Vec<WorkerInbox>, Vec<JoinHandle<()>>), StartError> {
    let mut inboxes = Vec::new();
    let mut threads = Vec::new();
    for index in 0..count {
        let (sender, inbox) = mpsc::unbounded_channel();
        let spec = spec(index);
        let work = move || {
            if let Err(error) = proxy::run(spec, inbox) {
                tracing::error!(%error, "a worker could not start");
            }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(work);
        threads.push(thread.map_err(|error| StartError::Internal(error.to_string()))?);
        inboxes.push(WorkerInbox { sender, live: Arc::new(AtomicUsize::new(0)) });
    }
    Ok((inboxes, threads))
}

fn spool_config(config: &SidecarConfig, key: Option<Arc<SpoolKey>>) -> SpoolConfig {
    SpoolConfig {
        dir: config.audit.dir.clone(),
        max_bytes: config.audit.max_bytes,
        segment_bytes: audit::SEGMENT_BYTES,
        durability: config.audit.durability,
        on_failure: config.audit.on_failure,
        key,
    }
}

fn instance(config: &SidecarConfig, tls: &TlsSettings) -> InstanceFacts {
    InstanceFacts {
        service: config.workload.service.clone(),
        namespace: config.workload.namespace.clone(),
        pod: config.workload.pod.clone(),
        node: config.workload.node.clone(),
        spiffe_id: Some(tls.material().svid.id().to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        svid: Some(tls.material().svid.certified_key().clone()),
        tls: Some(PostureFacts {
            min_version: config.tls.min_version(),
            post_quantum: config.tls.post_quantum(),
            fips: tls.fips(),
        }),
    }
}
