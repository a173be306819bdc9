//! The events a worker records, typed so that what must not be in the trail has no place to stand.
//!
//! Owns the field names of schema `phiward.audit/1` on the process side. There is no field for a body, a header value, a raw
//! path, a query value or a token; path parameters enter as [`Pseudonym`]s. What is the same for a whole connection or
//! policy generation is encoded once, in a fragment. Knows nothing of HTTP types, the policy or the proxy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::frame::Common;
use super::json::Members;
use super::pseudonym::Pseudonym;

/// Every `type` that an event of schema `phiward.audit/1` can have.
pub const EVENT_TYPES: [&str; 14] = [
    "access.decision",
    "access.complete",
    "conn.rejected",
    "policy.loaded",
    "policy.shadow",
    "policy.refused",
    "identity.rotated",
    "identity.lost",
    "audit.open",
    "audit.checkpoint",
    "audit.close",
    "audit.gap",
    "audit.summary",
    "audit.quarantine",
];

/// Who writes the trail; the same in every event of a process.
#[derive(Debug, Clone, Default)]
pub struct InstanceFacts {
    /// The workload's service name.
    pub service: String,
    /// Its namespace.
    pub namespace: String,
    /// The pod, where there is one.
    pub pod: Option<String>,
    /// The node, where it is known.
    pub node: Option<String>,
    /// The workload's own SPIFFE ID.
    pub spiffe_id: Option<String>,
    /// phiward's version.
    pub version: String,
    /// The SVID's key, which vouches for the key that signs checkpoints.
    pub svid: Option<Arc<CertifiedKey>>,
    /// What its handshakes may agree on; told once an epoch.
    pub tls: Option<PostureFacts>,
}

/// What a process' handshakes may agree on.
#[derive(Debug, Clone, Copy)]
pub struct PostureFacts {
    /// The oldest version, such as `1.3`.
    pub min_version: &'static str,
    /// Whether a hybrid key exchange comes first: `off` or `prefer`.
    pub post_quantum: &'static str,
    /// Whether the cryptography is a FIPS module's.
    pub fips: bool,
}

/// Toward the app of this pod, or away from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A peer calls our app.
    Inbound,
    /// Our app calls a peer.
    Outbound,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What is known of a connection when its first request is decided.
#[derive(Debug, Clone, Copy)]
pub struct ConnFacts<'a> {
    /// Which way requests on it go.
    pub direction: Direction,
    /// The listener's name from the configuration.
    pub listener: &'a str,
    /// The peer's address, without port.
    pub peer: IpAddr,
    /// Outbound: where the app had meant a connection to go that was led to us instead.
    pub destination: Option<SocketAddr>,
    /// Outbound: the configured service that the whole connection is for, where it is not HTTP's.
    pub service: Option<&'a str>,
    /// The handshake's outcome; absent on plaintext.
    pub tls: Option<TlsFacts<'a>>,
    /// The verified peer; absent on plaintext and before the handshake ended.
    pub subject: Option<SubjectFacts<'a>>,
}

/// What a TLS handshake agreed on.
#[derive(Debug, Clone, Copy)]
pub struct TlsFacts<'a> {
    /// Such as `1.3`.
    pub version: &'a str,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: &'a str,
    /// Such as `h2`; absent when none was agreed on.
    pub alpn: Option<&'a str>,
}

/// A peer whose SVID was verified.
#[derive(Debug, Clone, Copy)]
pub struct SubjectFacts<'a> {
    /// The peer's SPIFFE ID.
    pub spiffe_id: &'a str,
    /// SHA-256 of the leaf certificate, in lower-case hexadecimal.
    pub cert_sha256: &'a str,
}

/// The members `conn` and `subject`, encoded once a connection. Clones share them.
#[derive(Debug, Clone)]
pub struct ConnFragment {
    /// `conn`, and `subject`.
    pub(super) common: Common,
    /// The member `conn` of a summary, which many connections have a part in.
    pub(super) origin: Arc<str>,
}

impl ConnFragment {
    /// Encodes what is known of a connection.
    pub fn new(facts: &ConnFacts<'_>) -> Self {
        let conn = encoded(|m| {
            m.object("conn", |m| {
                m.text_opt("alpn", facts.tls.and_then(|tls| tls.alpn));
                m.text_opt("cipher", facts.tls.map(|tls| tls.cipher));
                m.text_opt("destination", facts.destination.map(|at| at.to_string()).as_deref());
                m.text("direction", facts.direction.as_str());
                m.text("listener", facts.listener);
                m.text("peer_addr", &facts.peer.to_canonical().to_string());
                m.text_opt("service", facts.service);
                m.text_opt("tls_version", facts.tls.map(|tls| tls.version));
            });
        });
        let origin = encoded(|m| {
            m.object("conn", |m| {
                m.text("direction", facts.direction.as_str());
                m.text("listener", facts.listener);
            });
        });
        let subject = encoded(|m| {
            if let Some(subject) = facts.subject {
                m.object("subject", |m| {
                    m.text("cert_sha256", subject.cert_sha256);
                    m.text("spiffe_id", subject.spiffe_id);
                });
            }
        });
        Self { common: Common::new(conn, subject), origin: origin.into() }
    }

    pub(super) fn subject(&self) -> &str {
        self.common.second()
    }
}

/// The policy's revision and digest, encoded once a policy generation.
#[derive(Debug, Clone)]
pub struct PolicyFragment(pub(super) Box<str>);

impl PolicyFragment {
    /// Encodes the policy's `metadata.revision` and the SHA-256 of its file in hexadecimal.
    pub fn new(revision: Option<&str>, sha256: &str) -> Self {
        Self(encoded(|m| {
            m.text_opt("policy_revision", revision);
            m.text("policy_sha256", sha256);
        }))
    }
}

/// `access.decision`: what was asked, by whom, and what was answered; written before anything is forwarded.
#[derive(Debug, Clone, Copy)]
pub struct AccessDecision<'a> {
    /// When, in nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The request's id, as the peer was told.
    pub request_id: &'a str,
    /// The W3C trace id, when there is one.
    pub trace_id: Option<&'a str>,
    /// The connection it came on.
    pub conn: &'a ConnFragment,
    /// What was asked.
    pub http: HttpFacts<'a>,
    /// What was answered.
    pub decision: Decision<'a>,
    /// The policy that decided; absent when none was asked.
    pub policy: Option<&'a PolicyFragment>,
}

/// A request as the trail may know it.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpFacts<'a> {
    /// The method, from the closed list of methods; absent when the peer's is not on it.
    pub method: Option<&'static str>,
    /// The host, when it is one that the policy or configuration names.
    pub host: Option<&'a str>,
    /// The pseudonym of a host that nobody named.
    pub host_h: Option<Pseudonym>,
    /// The path pattern that matched, such as `/fhir/Patient/{id}`.
    pub template: Option<&'a str>,
    /// The pattern's parameters, in any order.
    pub params: &'a [(&'a str, Pseudonym)],
    /// The pseudonym of the target of a request that no pattern matched.
    pub target_h: Option<Pseudonym>,
    /// The query parameters that the policy names, as far as they are there: sorted, each once.
    pub query_names: &'a [&'a str],
    /// Outbound: the configured service that the host names.
    pub service: Option<&'a str>,
    /// `1.0`, `1.1` or `2`; empty where it is no HTTP, and then nothing of this is written.
    pub version: &'static str,
}

impl HttpFacts<'_> {
    /// Whether it is HTTP.
    pub(super) fn is_said(&self) -> bool {
        !self.version.is_empty()
    }
}

/// The decision and the reason for it.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// `allow`, `deny`, `reject`, `limit` or `error`.
    pub outcome: &'static str,
    /// A code from the closed list of reasons.
    pub reason: &'static str,
    /// The permission or deny rule that decided.
    pub rule: Option<&'a str>,
    /// The role through which a permission was held.
    pub role: Option<&'a str>,
    /// What would have been decided with everything in shadow enforced; absent when that is the same.
    pub shadow: Option<ShadowFacts<'a>>,
}

/// A decision that was not enforced.
#[derive(Debug, Clone, Copy)]
pub struct ShadowFacts<'a> {
    /// `allow`, `deny` or `reject`.
    pub outcome: &'static str,
    /// A code from the closed list of reasons.
    pub reason: &'static str,
    /// The permission or deny rule that would have decided.
    pub rule: Option<&'a str>,
}

/// `access.complete`: how an allowed request ended.
#[derive(Debug, Clone, Copy)]
pub struct AccessComplete<'a> {
    /// When, in nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The request's id, as in its decision.
    pub request_id: &'a str,
    /// The W3C trace id, when there is one.
    pub trace_id: Option<&'a str>,
    /// The connection it came on.
    pub conn: &'a ConnFragment,
    /// The answer.
    pub response: ResponseFacts<'a>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseFacts<'a> {
    /// The status the peer was given; 0 (left out of the event) when it was given none.
    pub status: u16,
    /// Bytes of the request's body that were forwarded.
    pub request_bytes: u64,
    /// Bytes of the response's body that were forwarded.
    pub response_bytes: u64,
    /// From the request's head to the end of the response's body, in microseconds.
    pub duration_us: u64,
    /// Whether either side left before the end.
    pub aborted: bool,
    /// Why phiward itself answered or cut it, such as `upstream_connect`.
    pub reason: Option<&'a str>,
}

/// `conn.rejected`: a connection that never became an authenticated exchange.
#[derive(Debug, Clone, Copy)]
pub struct ConnRejected<'a> {
    /// When, in nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// Where it came from and to.
    pub conn: ConnFacts<'a>,
    /// A code from the closed list of reasons, such as `no_certificate`; never text of the peer.
    pub reason: &'static str,
}

impl ConnRejected<'_> {
    pub(super) fn decision(&self) -> Decision<'static> {
        Decision { outcome: "reject", reason: self.reason, rule: None, role: None, shadow: None }
    }
}

/// What the control thread records. `time_unix_ns` is in nanoseconds since 1970 everywhere.
#[derive(Debug, Clone)]
pub enum ControlEvent {
    /// `policy.loaded`: from now on this policy decides.
    PolicyLoaded {
        /// When.
        time_unix_ns: u64,
        /// The policy's `metadata.revision`.
        revision: Option<String>,
        /// SHA-256 of the file, in hexadecimal.
        sha256: String,
    },
    /// `policy.shadow`: the policy in force decides and refuses nothing.
    PolicyShadow {
        /// When.
        time_unix_ns: u64,
        /// The policy's `metadata.revision`.
        revision: String,
        /// SHA-256 of the file, in hexadecimal.
        sha256: String,
    },
    /// `policy.refused`: a new version has errors, the last good one stays. Nothing of the file's text is recorded.
    PolicyRefused {
        /// When.
        time_unix_ns: u64,
        /// SHA-256 of the refused file, in hexadecimal; absent when it could not be read.
        sha256: Option<String>,
        /// How many errors it has.
        errors: u64,
        /// The first error's line and column, from 1.
        first_at: Option<(u64, u64)>,
    },
    /// `identity.rotated`: a new SVID is in use.
    IdentityRotated {
        /// When.
        time_unix_ns: u64,
        /// The SVID's identity.
        spiffe_id: String,
        /// SHA-256 of the leaf certificate, in hexadecimal.
        cert_sha256: String,
        /// Its end, in seconds since 1970.
        not_after_unix_s: u64,
    },
    /// `identity.lost`: the SVID expired or was taken away, or a new one was refused.
    IdentityLost {
        /// When.
        time_unix_ns: u64,
        /// A code from the closed list of reasons, such as `expired`.
        reason: String,
    },
}

fn encoded(fill: impl FnOnce(&mut Members<'_>)) -> Box<str> {
    let mut out = Vec::with_capacity(256);
    fill(&mut Members::new(&mut out));
    // The JSON writer writes whole &str values and ASCII, so the bytes are UTF-8 and nothing is replaced here.
    String::from_utf8_lossy(&out).into()
}
