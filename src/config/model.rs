//! What a configuration file says, after every check: plain data, paths resolved, defaults filled in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::identity::{FilePaths, SpiffeId, TrustDomain};
use crate::tls::Posture;

/// Everything `phiward run` needs to know.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// How the workload is named in audit events.
    pub workload: Workload,
    /// Where the workload's identity comes from.
    pub identity: IdentityConfig,
    /// What handshakes may agree on.
    pub tls: Posture,
    /// Toward the app of this pod; absent for a pure caller.
    pub inbound: Option<InboundConfig>,
    /// Away from the app of this pod; absent for a pure server.
    pub outbound: Option<OutboundConfig>,
    /// The policy file; present whenever `inbound` is.
    pub policy: Option<PathBuf>,
    /// The audit trail.
    pub audit: AuditConfig,
    /// The admin endpoint.
    pub admin: AdminConfig,
    /// Bounds on everything a peer can make grow.
    pub limits: Limits,
    /// Worker threads that carry traffic; each is one single-threaded runtime.
    pub workers: usize,
}

/// The names of this workload in audit events.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The service, such as `records`.
    pub service: String,
    /// The namespace, such as `clinic`.
    pub namespace: String,
    /// The pod, where there is one.
    pub pod: Option<String>,
    /// The node, where there is one.
    pub node: Option<String>,
}

/// Where SVID and bundles come from.
#[derive(Debug, Clone)]
pub struct IdentityConfig {
    /// The trust domain of this workload.
    pub trust_domain: TrustDomain,
    /// Who gives it.
    pub source: IdentitySource,
}

/// Who gives a workload its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// Files that somebody writes and renews, and endpoints that other trust domains publish their bundles at.
    Files(FilePaths, Vec<BundleEndpoint>),
    /// A SPIRE agent, at this Unix socket. Bundles of other trust domains come from it too.
    Spire(PathBuf),
}

/// Where another trust domain publishes its bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// The host of its URL.
    pub host: String,
    /// The port of its URL.
    pub port: u16,
    /// The path of its URL, with the query.
    pub path: String,
    /// How it is known.
    pub trust: EndpointTrust,
}

/// How a bundle endpoint is known (SPIFFE Federation, section 5.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointTrust {
    /// By its host name, by the CAs of a file or (none) those of the system: `https_web`.
    Web(Option<PathBuf>),
    /// By its SPIFFE ID: `https_spiffe`.
    Spiffe(SpiffeId),
}

/// The mTLS side, in front of the app.
#[derive(Debug, Clone)]
pub struct InboundConfig {
    /// One for each port of the app.
    pub listeners: Vec<InboundListener>,
    /// Plain HTTP for the kubelet, limited to named paths.
    pub probes: Option<ProbesConfig>,
}

/// One mTLS port and the app port behind it.
#[derive(Debug, Clone)]
pub struct InboundListener {
    /// The listener's name in audit events and metrics.
    pub name: String,
    /// Where mTLS connections arrive.
    pub bind: Bind,
    /// The app, on loopback.
    pub app: SocketAddr,
    /// What is spoken to the app.
    pub app_protocol: AppProtocol,
    /// Whether who shows no certificate is let in.
    pub mode: Mode,
}

/// Addresses to listen on, at least one. Where there are several, those of an address family that the host lacks are left out: a
/// pod is told its families only when it starts.
pub type Bind = Vec<SocketAddr>;

/// Whether who shows no certificate is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No.
    Strict,
    /// Yes, in plain text, as `unauthenticated`: while callers get their sidecars.
    Permissive,
}

/// What is spoken to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
    /// Anything over TCP: the policy decides about whole streams.
    Tcp,
}

/// The plaintext probe port.
#[derive(Debug, Clone)]
pub struct ProbesConfig {
    /// Where probes arrive.
    pub bind: Bind,
    /// Which app is probed; that of the first HTTP listener where none is named.
    pub app: Option<SocketAddr>,
    /// The app paths that may be probed, exactly.
    pub paths: Vec<String>,
}

/// The plain side, behind the callers of this pod.
#[derive(Debug, Clone)]
pub struct OutboundConfig {
    /// Whether calls that went through are recorded on this side too.
    pub audit: OutboundAudit,
    /// Where the pod's apps connect to.
    pub bind: Bind,
    /// What becomes of a captured connection that is for none of the services.
    pub unknown: Unknown,
    /// Where a call can go.
    pub services: Vec<ServiceConfig>,
}

/// What becomes of a captured connection that is for none of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is refused.
    Deny,
    /// It goes where it was meant to, as it came, and is recorded.
    Passthrough,
}

/// What the outbound side records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundAudit {
    /// Only what never became an authenticated exchange.
    Refused,
    /// Every call.
    All,
}

/// One destination of the outbound side.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The service's name in audit events and metrics.
    pub name: String,
    /// The Host or `:authority` values that mean this service: lower case, without port. None for TCP.
    pub hosts: Vec<String>,
    /// Where its sidecars listen.
    pub endpoints: Vec<Endpoint>,
    /// Who may answer.
    pub identities: Arc<[SpiffeId]>,
    /// What is spoken on the mesh leg.
    pub mesh: MeshProtocol,
}

impl ServiceConfig {
    /// Where connections of a `protocol: tcp` service arrive that were not captured.
    pub fn tcp_bind(&self) -> Option<&Bind> {
        match &self.mesh {
            MeshProtocol::Tcp { bind } => bind.as_ref(),
            MeshProtocol::H2 | MeshProtocol::H1 => None,
        }
    }
}

/// What is spoken between two sidecars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshProtocol {
    /// HTTP/2: many requests share a connection (the default: a third less CPU a request under load).
    H2,
    /// HTTP/1.1, one request a connection at a time.
    H1,
    /// Anything over TCP, one connection for each that the app makes. `bind` is where those arrive that were not captured.
    Tcp {
        /// Where the app connects to.
        bind: Option<Bind>,
    },
}

/// A host name or address with a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A DNS name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// The audit trail of this sidecar.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// The folder of the durable local log.
    pub dir: PathBuf,
    /// The most disk it may take, in bytes.
    pub max_bytes: u64,
    /// When an event counts as recorded.
    pub durability: crate::audit::Durability,
    /// What happens to requests when the spool cannot take their events.
    pub on_failure: crate::audit::OnFailure,
    /// The key of the pseudonyms.
    pub key_file: PathBuf,
    /// The first one's key encrypts the spool, the others' open what is older; without one it is not encrypted.
    pub spool_key_files: Vec<PathBuf>,
    /// Who the events are sent to.
    pub sinks: Vec<SinkConfig>,
}

/// One receiver of audit events.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// What the trail needs to know of it.
    pub sink: crate::audit::SinkConfig,
    /// How the receiver shows who it is.
    pub trust: SinkTrust,
}

/// How a receiver shows who it is.
#[derive(Debug, Clone)]
pub enum SinkTrust {
    /// Not at all: `http://`.
    Plain,
    /// By an SVID with one of these identities; we show ours (`https://`).
    Identities(Arc<[SpiffeId]>),
    /// By a certificate for its host name (`https://`), from a CA of this file, or of the system.
    Roots(Option<PathBuf>),
}

/// The admin endpoint.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Loopback unless told.
    pub bind: SocketAddr,
    /// Where `/metrics` is served besides, and nothing else, for a Prometheus that is not on this machine. A sidecar's alone.
    pub metrics: Option<Bind>,
}

/// Bounds and time-outs.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most bytes of a request or response head, trailers included; more is answered with 431.
    pub head_bytes: u32,
    /// Accepted connections, all listeners together; more wait in the kernel's queue.
    pub connections: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: u32,
    /// TLS handshakes at a time on one worker, so that a reconnect storm cannot starve live traffic.
    pub handshakes: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take to arrive, and how long a connection may idle between two requests.
    pub head_timeout: Duration,
    /// How long connecting to an app or a peer may take, its TLS handshake included.
    pub connect_timeout: Duration,
    /// How long the head of a response may take to arrive once the request was sent.
    pub response_timeout: Duration,
    /// How long an unused connection to an app or a peer is kept.
    pub upstream_idle: Duration,
    /// How long new connections are still accepted after a drain began.
    pub drain_delay: Duration,
    /// When a drain ends, whatever peers do.
    pub drain_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            connections: 20_000,
            streams: 256,
            handshakes: 64,
            handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            drain_deadline: Duration::from_secs(30),
        }
    }
}

/// Everything `phiward collect` needs to know.
#[derive(Debug, Clone)]
pub struct CollectorConfig {
    /// The collector's own identity.
    pub identity: IdentityConfig,
    /// What handshakes may agree on.
    pub tls: Posture,
    /// Where sidecars send their events, over mTLS.
    pub bind: SocketAddr,
    /// The folder of the store.
    pub store: PathBuf,
    /// The first one's key encrypts the store, the others' open what is older; without one it is not encrypted.
    pub key_files: Vec<PathBuf>,
    /// Who may bring records that others have written.
    pub relays: Vec<SpiffeId>,
    /// How much the store keeps.
    pub retention: crate::collector::Retention,
    /// The admin endpoint.
    pub admin: AdminConfig,
}
