//! May this request pass, and where to? The answer, recorded before anything is forwarded.
//!
//! Both directions come through here: a target is read from what arrived, somebody decides (the policy inbound, the
//! route table outbound), and the audit trail gets its event. What arrives is never repaired: the bytes that are matched
//! are the bytes that are forwarded.

use std::borrow::Cow;
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Request, StatusCode, Version};

use super::clock::unix_seconds;
use super::context::{ConnContext, CurrentPolicy, Direction, PolicyCell};
use super::exchange::Exchange;
use super::ids::RequestIds;
use super::outcome::{Failure, UNAUTHENTICATED};
use super::stream::{Asked, Standing};
use super::upstream::Upstream;
use crate::audit::{self, AccessDecision, HttpFacts};
use crate::identity::SpiffeId;
use crate::policy::{self, Admitted, Decision, Outcome, RawRequest, Reason};

/// The reason of a request whose body came in a transfer coding that would be lost on the way.
pub(super) const TRANSFER_CODING: &str = "transfer_coding";

/// A request that may pass.
pub(crate) struct Granted {
    pub(crate) upstream: Rc<Upstream>,
    /// The host that was asked for, where it is known in this form.
    pub(crate) authority: Option<Authority>,
    /// The canonical path with the query, where it differs from what arrived.
    pub(crate) target: Option<PathAndQuery>,
    /// Lets the target and every host pass as they came: a policy in shadow mode would have rejected them.
    pub(crate) as_it_came: bool,
    pub(crate) exchange: Rc<Exchange>,
    /// The decision's event on its way to the trail; absent where this side records none.
    pub(crate) recorded: Option<audit::Recorded>,
    /// Whether it may switch protocols. Probes and health checks, which need no right and leave no event, may not: a tunnel
    /// to the app would be open to everybody.
    pub(crate) may_switch: bool,
    /// Method and version, for the event of a failure.
    pub(crate) asked: (&'static str, &'static str),
}

/// A request that may not.
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    /// Told to the client only where it says nothing of the policy.
    pub(crate) told: Option<&'static str>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { status: failure.status, told: Some(failure.reason) }
    }
}

impl Refused {
    pub(super) const fn silent(status: StatusCode) -> Self {
        Self { status, told: None }
    }
}

/// Decides about `request`, which arrived at `now_ns`, and records the decision.
///
/// # Errors
/// The refusal, already recorded.
pub(crate) fn authorize<B>(
    conn: &Rc<ConnContext>,
    request: &Request<B>,
    ids: RequestIds,
    now_ns: u64,
) -> Result<Granted, Refused> {
    let arrived = Arrived { conn, ids, now_ns, version: version_name(request.version()) };
    match &conn.listener.direction {
        Direction::Inbound { app, policy, stranger, .. } => {
            arrived.inbound(request, app, policy, stranger.as_ref())
        }
        Direction::Outbound { routes, audit_all } => arrived.outbound(request, routes, *audit_all),
        Direction::Stream { .. } => Err(Refused::silent(StatusCode::NOT_FOUND)), // no request comes by it
        Direction::Probes { app, paths, .. } => arrived.probe(request, app, paths),
    }
}

/// Returns once what a stream was let in for is no longer allowed: on the inbound side, when a policy or the end of a dated
/// binding takes the right away.
pub(crate) async fn revoked(Standing { conn, asked }: &Standing) {
    let Direction::Inbound { policy, stranger, .. } = &conn.listener.direction else {
        return std::future::pending().await;
    };
    let Some(id) = conn.peer.as_ref().map(|peer| &peer.id).or(stranger.as_ref()) else { return };
    loop {
        let changed = policy.changed();
        let current = policy.current();
        let now = unix_seconds(conn.worker.clock.now_ns());
        let grants = conn.grants(&current, id, now);
        let decision = match asked {
            Asked::Stream => current.policy.decide_tcp(&grants, &conn.listener.name),
            Asked::Request(head) => {
                let raw = raw_request(head);
                match policy::admit(&raw, current.policy.path_rules()) {
                    Ok(admitted) => current.policy.decide(&grants, &admitted),
                    Err(reason) => current.policy.reject(&raw, reason),
                }
            }
        };
        let allowed = match &conn.peer {
            Some(_) => decision.is_allowed(),
            None => of_stranger(&decision).outcome == Outcome::Allow.as_str(),
        };
        if !allowed {
            return;
        }
        match grants.valid_until() {
            None => changed.await,
            Some(until) => {
                let left =
                    std::time::Duration::from_secs(until.0.saturating_sub(now.0).max(1).unsigned_abs());
                // Whichever comes first.
                drop(tokio::time::timeout(left, changed).await);
            }
        }
    }
}

/// A request that came by a connection.
pub(super) struct Arrived<'c> {
    pub(super) conn: &'c Rc<ConnContext>,
    pub(super) ids: RequestIds,
    pub(super) now_ns: u64,
    pub(super) version: &'static str,
}

impl Arrived<'_> {
    fn inbound<B>(
        &self,
        request: &Request<B>,
        app: &Rc<Upstream>,
        policy: &PolicyCell,
        stranger: Option<&SpiffeId>,
    ) -> Result<Granted, Refused> {
        let worker = &self.conn.worker;
        // A listener of this direction serves nobody without a verified identity, unless it was told to.
        let peer = self.conn.peer.as_ref().map(|peer| &peer.id);
        let id = peer.or(stranger).ok_or(Refused::silent(StatusCode::UNAUTHORIZED))?;
        let current = policy.current();
        let mut place = worker.recorder.reserve(2).map_err(|_| self.refused(Failure::AUDIT.into()))?;

        if has_foreign_coding(request) {
            let facts = audit::Decision {
                outcome: Outcome::Reject.as_str(),
                reason: TRANSFER_CODING,
                rule: None,
                role: None,
                shadow: None,
            };
            drop(place.decision(&self.unread(request, &current, facts)));
            return Err(self.refused(Refused::silent(StatusCode::BAD_REQUEST)));
        }
        let raw = raw_request(request);
        let admitted = match policy::admit(&raw, current.policy.path_rules()) {
            Ok(admitted) => admitted,
            Err(reason) => {
                let decision = current.policy.reject(&raw, reason);
                let recorded = place.decision(&self.unread(request, &current, facts(&decision)));
                if !decision.is_allowed() {
                    return Err(self.refused(Refused::silent(StatusCode::BAD_REQUEST)));
                }
                self.count_allowed(facts(&decision));
                let granted = self.granted(app, None, Some(place), Some(recorded), method_name(request));
                return Ok(Granted { as_it_came: true, ..granted });
            }
        };
        let grants = self.conn.grants(&current, id, unix_seconds(self.now_ns));
        let decision = current.policy.decide(&grants, &admitted);
        let told = if peer.is_some() { facts(&decision) } else { of_stranger(&decision) };
        let allowed = told.outcome == Outcome::Allow.as_str();
        if allowed && decision.reason == Reason::Health {
            drop(place);
            return Ok(self.granted(app, target_of(&admitted), None, None, admitted.method.as_str()));
        }
        let recorded = self.record_decision(&mut place, &current, &admitted, (&decision, told));
        if !allowed {
            return Err(self.refused(Refused::silent(StatusCode::FORBIDDEN)));
        }
        self.count_allowed(told);
        Ok(self.granted(app, target_of(&admitted), Some(place), Some(recorded), admitted.method.as_str()))
    }

    fn probe<B>(
        &self,
        request: &Request<B>,
        app: &Rc<Upstream>,
        paths: &[String],
    ) -> Result<Granted, Refused> {
        let named = paths.iter().any(|path| path == request.uri().path());
        if request.method() != http::Method::GET || !named {
            return Err(Refused::silent(StatusCode::NOT_FOUND)); // nothing was decided, so nothing is counted
        }
        // The query is not part of what may be probed.
        let target = PathAndQuery::try_from(request.uri().path()).ok();
        Ok(self.granted(app, target, None, None, "GET"))
    }

    pub(super) fn granted(
        &self,
        upstream: &Rc<Upstream>,
        target: Option<PathAndQuery>,
        place: Option<audit::Reservation>,
        recorded: Option<audit::Recorded>,
        method: &'static str,
    ) -> Granted {
        let (completes, may_switch) = (recorded.is_some(), place.is_some());
        let exchange = Exchange::open(self.conn.clone(), self.ids, self.now_ns, place, completes);
        let asked = (method, self.version);
        Granted {
            upstream: upstream.clone(),
            authority: None,
            target,
            as_it_came: false,
            exchange,
            recorded,
            may_switch,
            asked,
        }
    }

    fn count_allowed(&self, decision: audit::Decision<'_>) {
        let metrics = &self.conn.worker.metrics;
        metrics.allowed.inc();
        if decision.shadow.is_some_and(|shadow| shadow.outcome != Outcome::Allow.as_str()) {
            metrics.shadow_denied.inc();
        }
    }

    pub(super) fn refused(&self, refused: Refused) -> Refused {
        self.conn.worker.metrics.refused(refused.status);
        refused
    }

    fn record_decision(
        &self,
        place: &mut audit::Reservation,
        current: &CurrentPolicy,
        admitted: &Admitted<'_>,
        (decision, told): (&Decision<'_>, audit::Decision<'_>),
    ) -> audit::Recorded {
        let pseudonyms = &self.conn.worker.pseudonyms;
        let params: Vec<(&str, audit::Pseudonym)> = decision.template.map_or_else(Vec::new, |template| {
            let params = template.params(&admitted.path);
            params.map(|(name, value)| (name, pseudonyms.pseudonym(value.as_bytes()))).collect()
        });
        // Only what the policy itself names is written; the rest of a target may hold anything about anybody.
        let known_host = current.policy.knows_host(&admitted.host);
        let target_h = decision.template.is_none().then(|| pseudonyms.pseudonym(admitted.path.as_bytes()));
        place.decision(&AccessDecision {
            time_unix_ns: self.now_ns,
            request_id: self.ids.request_id(),
            trace_id: Some(self.ids.trace_id()),
            conn: &self.conn.fragment,
            http: HttpFacts {
                method: Some(admitted.method.as_str()),
                host: known_host.then_some(&*admitted.host),
                host_h: (!known_host).then(|| pseudonyms.pseudonym(admitted.host.as_bytes())),
                template: decision.template.map(policy::Template::as_str),
                params: &params,
                target_h,
                query_names: &current.policy.named_params(admitted.query),
                version: self.version,
                service: None,
            },
            decision: told,
            policy: Some(&current.fragment),
        })
    }

    /// The event of a request whose target has no one reading, so that nothing of it is written.
    fn unread<'a, B>(
        &'a self,
        request: &Request<B>,
        current: &'a CurrentPolicy,
        decision: audit::Decision<'a>,
    ) -> AccessDecision<'a> {
        AccessDecision {
            time_unix_ns: self.now_ns,
            request_id: self.ids.request_id(),
            trace_id: Some(self.ids.trace_id()),
            conn: &self.conn.fragment,
            http: HttpFacts {
                method: policy::Method::parse(request.method().as_str()).map(policy::Method::as_str),
                target_h: Some(self.conn.worker.pseudonyms.pseudonym(request.uri().path().as_bytes())),
                version: self.version,
                ..HttpFacts::default()
            },
            decision,
            policy: Some(&current.fragment),
        }
    }
}

/// A decision about somebody who has shown no certificate, on a listener that lets them in while their sidecars are rolled out.
/// What nobody may do stays refused; that nobody gave them a right does not count yet.
pub(super) fn of_stranger<'p>(decision: &Decision<'p>) -> audit::Decision<'p> {
    let lacks_right = matches!(decision.reason, Reason::NoAllowRule | Reason::NoPolicy);
    if decision.reason == Reason::Health || !decision.is_allowed() && !lacks_right {
        return facts(decision);
    }
    let strict =
        audit::ShadowFacts { outcome: Outcome::Reject.as_str(), reason: UNAUTHENTICATED, rule: None };
    audit::Decision {
        outcome: Outcome::Allow.as_str(),
        reason: UNAUTHENTICATED,
        rule: None,
        role: None,
        shadow: Some(strict),
    }
}

/// A decision as the trail tells it.
pub(super) fn facts<'p>(decision: &Decision<'p>) -> audit::Decision<'p> {
    audit::Decision {
        outcome: decision.outcome.as_str(),
        reason: decision.reason.as_str(),
        rule: decision.rule,
        role: decision.role,
        shadow: decision.shadow.map(|shadow| audit::ShadowFacts {
            outcome: shadow.outcome.as_str(),
            reason: shadow.reason.as_str(),
            rule: shadow.rule,
        }),
    }
}

/// What the policy's rules about headers see.
impl policy::Headers for HeaderMap {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.iter().for_each(|(name, value)| visit(name.as_str(), value.as_bytes()));
    }
}

/// What arrived, as raw as the HTTP library gives it.
pub(super) fn raw_request<B>(request: &Request<B>) -> RawRequest<'_> {
    let uri = request.uri();
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    RawRequest {
        method: request.method().as_str(),
        target: uri.path_and_query().map_or("", PathAndQuery::as_str),
        authority: uri.authority().map(Authority::as_str),
        host: hosts.next().map(HeaderValue::as_bytes),
        more_hosts: hosts.next().is_some(),
        method_override: overrides_method(headers),
        http2: request.version() == Version::HTTP_2,
        headers,
    }
}

/// Whether the body came in a transfer coding besides `chunked`. The HTTP library takes off the chunks alone and the field
/// ends at this hop, so the app would take the coded bytes for the body (RFC 9112, section 6.1).
pub(super) fn has_foreign_coding<B>(request: &Request<B>) -> bool {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let foreign =
        codings.next().is_some_and(|only| !only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
    foreign || codings.next().is_some()
}

fn overrides_method(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| policy::is_method_override_header(name.as_str()))
}

/// The target to forward, where canonical form changed it.
fn target_of(admitted: &Admitted<'_>) -> Option<PathAndQuery> {
    let Cow::Owned(path) = &admitted.path else { return None };
    let target = match admitted.query {
        Some(query) => format!("{path}?{query}"),
        None => path.clone(),
    };
    // Canonical form only ever replaces escapes by the unreserved characters they stand for.
    PathAndQuery::try_from(target).ok()
}

pub(super) fn method_name<B>(request: &Request<B>) -> &'static str {
    policy::Method::parse(request.method().as_str()).map_or("other", policy::Method::as_str)
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 | Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
