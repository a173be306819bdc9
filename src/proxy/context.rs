//! What requests share: the worker they run on, the listener they came by, the connection they came over.
//!
//! Everything here belongs to one thread. Shared state of the process arrives through `watch` channels whose version is
//! one atomic load to look at, so that no request takes a lock that another worker holds.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use tokio::sync::{Semaphore, watch};

use super::hangup::Hangup;
use super::linger::Remainder;
use super::listener::Slot;
use super::upstream::Upstream;
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
    pub(crate) clock: Clock,
    pub(crate) ids: IdSource,
    pub(crate) tls: watch::Receiver<Arc<TlsSettings>>,
    pub(crate) pseudonyms: Arc<audit::PseudonymKey>,
    pub(crate) limits: Limits,
    pub(crate) handshakes: Rc<Semaphore>,
    pub(crate) drain: DrainWatch,
    pub(crate) builders: super::connection::Builders,
}

/// Which way requests of a listener go, and by which rule.
pub(crate) enum Direction {
    /// Toward the app: the policy decides, and both events are recorded.
    Inbound {
        /// The app.
        app: Rc<Upstream>,
        /// Who may do what there.
        policy: PolicyCell,
    },
    /// Away from the app: the Host decides where to.
    Outbound {
        /// Host (lower case, without port) to service.
        routes: Rc<RouteTable>,
        /// Whether calls that went through are recorded here too.
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
            Self::Outbound { .. } => Side::Outbound,
            Self::Probes { .. } => Side::Probes,
        }
    }
}

/// The outbound side's table of services by host.
pub(crate) type RouteTable = std::collections::HashMap<String, Rc<Upstream>>;

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
    /// Tells when the client has gone, on plain HTTP/1.1 connections.
    pub(crate) hangup: Option<Hangup>,
    /// What may still come in when the connection is closed.
    pub(crate) remainder: Remainder,
    grants: RefCell<Option<(u64, Rc<Grants>)>>,
    /// Held here because exchanges hold the connection's context: an upgraded stream counts until it ends.
    _slot: Slot,
}

/// The verified identity at the other end.
pub(crate) struct PeerId {
    pub(crate) id: SpiffeId,
    pub(crate) cert_sha256: String,
    /// When the connection takes nothing new, and when it ends: with the peer's certificate.
    pub(crate) life: (tokio::time::Instant, tokio::time::Instant),
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
        hangup: Option<Hangup>,
        slot: Slot,
    ) -> Rc<Self> {
        let (grants, remainder) = (RefCell::new(None), Remainder::default());
        Rc::new(Self { worker, listener, peer, fragment, hangup, remainder, grants, _slot: slot })
    }

    /// What `policy` grants the peer: worked out when the connection's first request arrives and again when the
    /// policy's generation moved or a dated binding began or ended.
    pub(crate) fn grants(&self, current: &CurrentPolicy, peer: &PeerId, now: UnixSeconds) -> Rc<Grants> {
        let mut slot = self.grants.borrow_mut();
        if let Some((generation, grants)) = &*slot
            && *generation == current.generation
            && grants.valid_until().is_none_or(|until| now < until)
        {
            return grants.clone();
        }
        let grants = Rc::new(current.policy.grants(&peer.id, now));
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

/// Wall-clock time from the monotonic clock, re-anchored each second so that steps of the wall clock are followed.
pub(crate) struct Clock {
    anchor: Cell<(Instant, u64)>,
}

const REANCHOR_NS: u64 = 1_000_000_000;

impl Clock {
    pub(crate) fn new() -> Self {
        Self { anchor: Cell::new((Instant::now(), wall_ns())) }
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn now_ns(&self) -> u64 {
        let (at, wall) = self.anchor.get();
        let now = Instant::now();
        let elapsed = now.duration_since(at).as_nanos() as u64;
        if elapsed < REANCHOR_NS {
            return wall + elapsed;
        }
        let wall = wall_ns();
        self.anchor.set((now, wall));
        wall
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// `ns` since the Unix epoch in whole seconds, as the policy counts time.
pub(crate) fn unix_seconds(ns: u64) -> UnixSeconds {
    UnixSeconds((ns / 1_000_000_000) as i64)
}

/// The identifiers of one request, fixed-size text.
#[derive(Clone, Copy)]
pub(crate) struct RequestIds {
    request: [u8; 32],
    traceparent: [u8; 55],
}

/// Makes request and trace identifiers. A request ID is unique, not secret: 64 random bits of the worker, then a count.
pub(crate) struct IdSource {
    prefix: [u8; 16],
    next: Cell<u64>,
    random: RefCell<fastrand::Rng>,
}

impl IdSource {
    pub(crate) fn new() -> Self {
        let mut random = fastrand::Rng::new();
        Self { prefix: hex16(random.u64(..)), next: Cell::new(0), random: RefCell::new(random) }
    }

    /// New identifiers. A valid `traceparent` (W3C Trace Context, section 3.2) is continued as it is, its parent span
    /// too: phiward exports no spans, so a span of its own would tear the caller's trace.
    pub(crate) fn next(&self, traceparent: Option<&[u8]>) -> RequestIds {
        let count = self.next.get();
        self.next.set(count + 1);
        let mut request = [0; 32];
        request[..16].copy_from_slice(&self.prefix);
        request[16..].copy_from_slice(&hex16(count));
        let traceparent = traceparent.and_then(valid_traceparent).unwrap_or_else(|| self.new_traceparent());
        RequestIds { request, traceparent }
    }

    fn new_traceparent(&self) -> [u8; 55] {
        let mut random = self.random.borrow_mut();
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..19].copy_from_slice(&hex16(random.u64(..)));
        text[19..35].copy_from_slice(&hex16(random.u64(1..))); // never all zero, which would be invalid
        text[36..52].copy_from_slice(&hex16(random.u64(1..)));
        text
    }
}

impl RequestIds {
    pub(crate) fn request_id(&self) -> &str {
        ascii(&self.request)
    }

    pub(crate) fn trace_id(&self) -> &str {
        ascii(&self.traceparent[3..35])
    }

    /// `traceparent` for the next hop.
    pub(crate) fn traceparent(&self) -> &[u8] {
        &self.traceparent
    }
}

/// The version 00 reading of a `traceparent`, whatever came after it in a later version.
fn valid_traceparent(value: &[u8]) -> Option<[u8; 55]> {
    let lower_hex = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    let mut text: [u8; 55] = value.get(..55)?.try_into().ok()?;
    let well_formed = text[2] == b'-'
        && text[35] == b'-'
        && text[52] == b'-'
        && (value.len() == 55 || (value[55] == b'-' && &text[..2] != b"00"))
        && &text[..2] != b"ff"
        && text[..2].iter().chain(&text[3..35]).chain(&text[36..52]).chain(&text[53..]).all(lower_hex)
        && text[3..35] != [b'0'; 32]
        && text[36..52] != [b'0'; 16];
    text[..2].copy_from_slice(b"00");
    well_formed.then_some(text)
}

fn hex16(value: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|i| DIGITS[(value >> (60 - 4 * i)) as usize & 15])
}

fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default() // only hex digits are ever put in
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// If this fails, traces break at the sidecar, or a peer writes what it likes into the audit trail.
    #[test]
    fn only_a_valid_traceparent_is_continued() {
        let source = IdSource::new();
        assert_eq!(source.next(Some(TRACE)).trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let bad: [&[u8]; 6] = [
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            b"jane-doe-mrn-4711",
            b"",
        ];
        for value in bad {
            let ids = source.next(Some(value));
            assert_ne!(ids.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert!(valid_traceparent(ids.traceparent()).is_some());
        }
    }

    /// If this fails, two requests share an ID and an auditor cannot tell them apart.
    #[test]
    fn request_ids_do_not_repeat() {
        let source = IdSource::new();
        let ids: std::collections::HashSet<String> =
            (0..1000).map(|_| source.next(None).request_id().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
