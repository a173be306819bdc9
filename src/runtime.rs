//! A running sidecar: what it is made of, how it starts, and the order in which it ends.
//!
//! The control side (accepting, admin, reloads, names, delivery of events) lives on the caller's tokio runtime; traffic
//! lives on worker threads that share nothing with it. Several sidecars can run in one process, as `phiward dev` does, so
//! nothing here is global.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::admin::{self, AdminState, Health};
use crate::audit::{self, Audit, AuditError, InstanceFacts, KeyFileError, PseudonymKey, SpoolConfig};
use crate::config::{AppProtocol, MeshProtocol, OutboundAudit, SidecarConfig, SinkConfig};
use crate::drain::Drain;
use crate::identity::{FileContents, FilePaths, IdentityError};
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::policy::{Finding, Policy};
use crate::proxy::{self, DirectionSpec, ListenerSpec, Protocol, ServiceSpec, WorkerInbox, WorkerSpec};
use crate::reload::{self, IdentityFiles, Outcome, PolicyFile, ReloadStatus, Watcher};
use crate::resolve::{Resolution, ResolveError};
use crate::tls::{Alpn, TlsError, TlsSettings};
use crate::yaml;

/// How long the flush of events to sinks may take at the end; the spool keeps what is left.
const FLUSH_AT_END: Duration = Duration::from_secs(5);

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
    /// TLS cannot be set up with that identity.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The pseudonyms' key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The spool.
    #[error(transparent)]
    Audit(#[from] AuditError),
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
            _ => 1,
        }
    }
}

/// Everything that a configuration names, read and checked, with nothing started.
pub struct Loaded {
    config: SidecarConfig,
    tls: TlsSettings,
    identity: ([u8; 32], FilePaths),
    policy: Option<(PathBuf, Vec<u8>, Policy)>,
    pseudonyms: PseudonymKey,
}

impl Loaded {
    /// Reads what `config` names. `phiward check` ends here, `run` goes on from here.
    ///
    /// # Errors
    /// The first file that cannot be used, with everything that is wrong with it.
    pub fn load(config: SidecarConfig) -> Result<Self, StartError> {
        let paths = FilePaths {
            certificate: config.identity.certificate.clone(),
            private_key: config.identity.private_key.clone(),
            bundle: config.identity.bundle.clone(),
            federation: config.identity.federation.clone(),
        };
        let contents = FileContents::read(&paths)?;
        let now = rustls_pki_types::UnixTime::now();
        let material = contents.material(&config.identity.trust_domain, now)?;
        let tls = TlsSettings::new(Arc::new(material))?;
        let policy = config.policy.as_ref().map(load_policy).transpose()?;
        let pseudonyms = PseudonymKey::from_file(&config.audit.key_file)?;
        Ok(Self { config, tls, identity: (contents.digest(), paths), policy, pseudonyms })
    }

    /// One line each about what was loaded, for `phiward check`.
    pub fn summary(&self) -> Vec<String> {
        let svid = &self.tls.material().svid;
        let mut lines = vec![format!("identity {}", svid.id())];
        if let Some((_, _, policy)) = &self.policy {
            lines.push(format!("policy {} revision {}", policy.name(), policy.revision()));
        }
        if let Some(inbound) = &self.config.inbound {
            lines.push(format!("inbound {} listener(s)", inbound.listeners.len()));
        }
        if let Some(outbound) = &self.config.outbound {
            lines.push(format!("outbound {} service(s)", outbound.services.len()));
        }
        lines.push(format!("audit {} sink(s)", self.config.audit.sinks.len()));
        lines
    }
}

fn load_policy(path: &PathBuf) -> Result<(PathBuf, Vec<u8>, Policy), StartError> {
    let content = std::fs::read(path)
        .map_err(|source| StartError::PolicyUnreadable { path: path.clone(), source })?;
    let policy = Policy::parse(&content).map_err(|findings| {
        let problems: Vec<yaml::Problem> = findings.iter().map(Finding::to_problem).collect();
        let text = String::from_utf8_lossy(&content);
        StartError::PolicyInvalid(yaml::render(&path.display().to_string(), &text, &problems))
    })?;
    Ok((path.clone(), content, policy))
}

/// Where a running sidecar listens, which port 0 leaves to the system.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The inbound listeners, in the order of the configuration.
    pub inbound: Vec<SocketAddr>,
    /// The probe listener.
    pub probes: Option<SocketAddr>,
    /// The outbound listener.
    pub outbound: Option<SocketAddr>,
    /// The admin endpoint.
    pub admin: SocketAddr,
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
    shipping: (),
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
        let Loaded { config, tls, identity, policy, pseudonyms } = loaded;
        let pseudonyms = Arc::new(pseudonyms);
        let bound = Bound::bind(&config).await?;
        let sinks: Vec<audit::SinkConfig> = config.audit.sinks.iter().map(audit_sink).collect();
        let audit = Audit::start(spool_config(&config), &instance(&config, &tls), &sinks)?;
        let metrics = Metrics::new().map_err(|error| StartError::Internal(error.to_string()))?;
        let status = ReloadStatus::default();
        let mut names = Resolution::new();

        let (tls_sender, tls) = watch::channel(Arc::new(tls));
        let (digest, paths) = identity;
        let identity = IdentityFiles::new(paths, config.identity.trust_domain.clone(), digest, tls_sender);
        let (policy_file, policy) = match policy {
            Some((path, content, policy)) => {
                audit.control().record(reload::loaded(&policy));
                let (sender, receiver) = watch::channel(Arc::new(policy));
                (Some(PolicyFile::new(path, content, sender)), Some(receiver))
            }
            None => (None, None),
        };
        let health = Arc::new(Health::new(audit.status_reader(), tls.clone(), policy.clone(), status.clone()));
        let shipping = ship(&config.audit.sinks, &audit, &tls, &mut names)?;
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
        for (index, (socket, _)) in bound.traffic.into_iter().enumerate() {
            acceptors.spawn(proxy::accept(socket, index, inboxes.clone(), places.clone()));
        }
        let drain_asked = Arc::new(Notify::new());
        let mut control = JoinSet::new();
        let state =
            AdminState { health: health.clone(), metrics: metrics.clone(), drain: drain_asked.clone(), log };
        control.spawn(admin::serve(bound.admin, state));
        let outcome = Outcome { audit: audit.control(), metrics, status };
        control.spawn(Watcher { policy: policy_file, identity, outcome }.run());
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

    /// Ends without cutting: turns readiness off, accepts for `drain_delay` more, lets what is open finish until
    /// `drain_deadline`, then closes the trail and tries to deliver what is left of it.
    ///
    /// # Errors
    /// The trail could not be closed; its spool is told at the next start.
    pub async fn shut_down(mut self) -> Result<(), AuditError> {
        self.health.drain();
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
        self.control.shutdown().await;
        tracing::info!("drained");
        closed
    }
}

/// Sockets that are listened on, before anything is served: an address that is taken is found out first.
struct Bound {
    admin: TcpListener,
    /// Inbound, then probes, then outbound, as [`listener_specs`] orders them.
    traffic: Vec<(TcpListener, Kind)>,
}

enum Kind {
    Inbound,
    Probes,
    Outbound,
}

impl Bound {
    async fn bind(config: &SidecarConfig) -> Result<Self, StartError> {
        let mut traffic = Vec::new();
        if let Some(inbound) = &config.inbound {
            for listener in &inbound.listeners {
                traffic.push((bind(&listener.name, listener.bind).await?, Kind::Inbound));
            }
            if let Some(probes) = &inbound.probes {
                traffic.push((bind("probes", probes.bind).await?, Kind::Probes));
            }
        }
        if let Some(outbound) = &config.outbound {
            traffic.push((bind("outbound", outbound.bind).await?, Kind::Outbound));
        }
        Ok(Self { admin: bind("admin", config.admin.bind).await?, traffic })
    }

    fn addresses(&self) -> Addresses {
        // A bound socket has an address; the fallback is never seen.
        let addr = |socket: &TcpListener| {
            socket.local_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
        };
        let mut addresses =
            Addresses { inbound: Vec::new(), probes: None, outbound: None, admin: addr(&self.admin) };
        for (socket, kind) in &self.traffic {
            match kind {
                Kind::Inbound => addresses.inbound.push(addr(socket)),
                Kind::Probes => addresses.probes = Some(addr(socket)),
                Kind::Outbound => addresses.outbound = Some(addr(socket)),
            }
        }
        addresses
    }
}

async fn bind(what: &str, addr: SocketAddr) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(addr).await;
    bound.map_err(|source| StartError::Bind { what: what.to_owned(), addr, source })
}

fn listener_specs(
    config: &SidecarConfig,
    policy: Option<&watch::Receiver<Arc<Policy>>>,
    health: &Arc<Health>,
    names: &mut Resolution,
) -> Result<Vec<ListenerSpec>, StartError> {
    let mut specs = Vec::new();
    // The loader refuses an inbound side without a policy.
    if let (Some(inbound), Some(policy)) = (&config.inbound, policy) {
        let protocol = |app: AppProtocol| match app {
            AppProtocol::Http => Protocol::H1,
            AppProtocol::H2c => Protocol::H2,
        };
        for listener in &inbound.listeners {
            let direction = DirectionSpec::Inbound {
                app: listener.app,
                protocol: protocol(listener.app_protocol),
                policy: policy.clone(),
            };
            specs.push(ListenerSpec { name: listener.name.clone(), direction });
        }
        // Probes go to the app of the first listener.
        if let (Some(probes), Some(first)) = (&inbound.probes, inbound.listeners.first()) {
            let direction = DirectionSpec::Probes {
                app: first.app,
                protocol: protocol(first.app_protocol),
                paths: probes.paths.clone(),
                health: health.clone(),
            };
            specs.push(ListenerSpec { name: "probes".to_owned(), direction });
        }
    }
    if let Some(outbound) = &config.outbound {
        let services = outbound.services.iter().map(|service| {
            Ok(ServiceSpec {
                name: service.name.clone(),
                hosts: service.hosts.clone(),
                addresses: names.watch(&service.endpoints)?,
                identities: service.identities.clone(),
                protocol: match service.mesh {
                    MeshProtocol::H2 => Protocol::H2,
                    MeshProtocol::H1 => Protocol::H1,
                },
            })
        });
        let services = services.collect::<Result<Vec<_>, ResolveError>>()?;
        let audit_all = outbound.audit == OutboundAudit::All;
        let direction = DirectionSpec::Outbound { services, audit_all };
        specs.push(ListenerSpec { name: "outbound".to_owned(), direction });
    }
    Ok(specs)
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

fn spool_config(config: &SidecarConfig) -> SpoolConfig {
    SpoolConfig {
        dir: config.audit.dir.clone(),
        max_bytes: config.audit.max_bytes,
        segment_bytes: audit::SEGMENT_BYTES,
        durability: config.audit.durability,
        on_failure: config.audit.on_failure,
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
    }
}

fn audit_sink(sink: &SinkConfig) -> audit::SinkConfig {
    audit::SinkConfig {
        name: sink.name.clone(),
        endpoint: audit::Endpoint {
            https: sink.https,
            host: sink.endpoint.host.clone(),
            port: sink.endpoint.port,
        },
        required: sink.required,
    }
}

fn ship(
    sinks: &[SinkConfig],
    audit: &Audit,
    tls: &watch::Receiver<Arc<TlsSettings>>,
    names: &mut Resolution,
) -> Result<(), StartError> {
    let _ = (sinks, audit, tls, names, Alpn::Http1);
    Ok(())
}
