//! Where an outbound request goes: by its host, or by where its captured connection was meant to go.
//!
//! Owns the events of this side. What is let in on the other side is [`super::authorize`]'s.

use std::rc::Rc;

use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode};

use super::authorize::{
    Arrived, Granted, Refused, TRANSFER_CODING, has_foreign_coding, method_name, raw_request,
};
use super::context::{ConnContext, PASSTHROUGH, Route, Routes};
use super::ids::RequestIds;
use super::outcome::Failure;
use super::upstream::{Protocol, Upstream};
use crate::audit::{self, AccessDecision, HttpFacts};
use crate::policy::{self, RawRequest};

/// A service, and the host that was asked for where it is known in this form.
type LeadsTo = (Rc<Upstream>, Option<Authority>);

impl Arrived<'_> {
    pub(super) fn outbound<B>(
        &self,
        request: &Request<B>,
        routes: &Routes,
        audit_all: bool,
    ) -> Result<Granted, Refused> {
        let worker = &self.conn.worker;
        let mut place = worker.recorder.reserve(2).map_err(|_| self.refused(Failure::AUDIT.into()))?;
        let method = method_name(request);
        if has_foreign_coding(request) {
            drop(place.decision(&self.unroutable(method, None, ("reject", TRANSFER_CODING))));
            return Err(self.refused(Refused::silent(StatusCode::BAD_REQUEST)));
        }
        let raw = raw_request(request);
        let known = self.conn.route.borrow().as_ref().filter(|route| route.is_of(&raw)).map(Route::leads_to);
        let (upstream, authority) = match known {
            Some(known) => known,
            None => match self.route(&raw, method, routes, &mut place)? {
                Some(found) => found,
                None => return self.pass_through(method, place),
            },
        };
        worker.metrics.allowed.inc();
        let recorded = audit_all.then(|| {
            let asked = (method, self.version);
            let answered = ("allow", "route");
            let name = Some(upstream.name.as_str());
            place.decision(&outbound_event(self.conn, &self.ids, self.now_ns, asked, name, answered))
        });
        Ok(Granted { authority, ..self.granted(&upstream, None, Some(place), recorded, method) })
    }

    /// A captured call to nobody that is known goes where it was meant to, and is recorded whatever else is.
    fn pass_through(&self, method: &'static str, mut place: audit::Reservation) -> Result<Granted, Refused> {
        let protocol = if self.version == "2" { Protocol::H2 } else { Protocol::H1 };
        let captured = self.conn.captured.as_ref().ok_or(Refused::silent(StatusCode::NOT_FOUND))?;
        let upstream = captured.beyond(&self.conn.worker, protocol);
        let (asked, answered) = ((method, self.version), ("allow", PASSTHROUGH));
        let event = outbound_event(self.conn, &self.ids, self.now_ns, asked, None, answered);
        let recorded = place.decision(&event);
        self.conn.worker.metrics.allowed.inc();
        Ok(self.granted(&upstream, None, Some(place), Some(recorded), method))
    }

    /// Where a request leads: by its host, or else by where its connection was meant to go. None where it may pass as it came.
    fn route(
        &self,
        raw: &RawRequest<'_>,
        method: &'static str,
        routes: &Routes,
        place: &mut audit::Reservation,
    ) -> Result<Option<LeadsTo>, Refused> {
        let host = match policy::admit_host(raw) {
            Ok(host) => host,
            Err(reason) => {
                drop(place.decision(&self.unroutable(method, None, ("reject", reason.as_str()))));
                return Err(self.refused(Refused::silent(StatusCode::BAD_REQUEST)));
            }
        };
        let captured = self.conn.captured.as_ref();
        let by_address = || captured.and_then(|captured| routes.http_at(captured.meant));
        let Some(upstream) = routes.hosts.get(&*host).or_else(by_address) else {
            if captured.is_some() && routes.passthrough {
                return Ok(None);
            }
            let host_h = self.conn.worker.pseudonyms.pseudonym(host.as_bytes());
            drop(place.decision(&self.unroutable(method, Some(host_h), ("deny", "unknown_host"))));
            let refused = Refused { status: StatusCode::NOT_FOUND, told: Some("unknown_host") };
            return Err(self.refused(refused));
        };
        let Some(host) =
            raw.host.filter(|_| raw.authority.is_none()).and_then(|h| HeaderValue::from_bytes(h).ok())
        else {
            return Ok(Some((upstream.clone(), None))); // in the target, where there is an authority already
        };
        let route =
            Route { authority: Authority::try_from(host.as_bytes()).ok(), host, upstream: upstream.clone() };
        let leads_to = route.leads_to();
        *self.conn.route.borrow_mut() = Some(route);
        Ok(Some(leads_to))
    }

    fn unroutable(
        &self,
        method: &'static str,
        host_h: Option<audit::Pseudonym>,
        (outcome, reason): (&'static str, &'static str),
    ) -> AccessDecision<'_> {
        AccessDecision {
            time_unix_ns: self.now_ns,
            request_id: self.ids.request_id(),
            trace_id: Some(self.ids.trace_id()),
            conn: &self.conn.fragment,
            http: HttpFacts { method: Some(method), host_h, version: self.version, ..HttpFacts::default() },
            decision: audit::Decision { outcome, reason, rule: None, role: None, shadow: None },
            policy: None,
        }
    }
}

impl Route {
    fn leads_to(&self) -> LeadsTo {
        (self.upstream.clone(), self.authority.clone())
    }

    /// Whether `raw` asks for the same host in the same words, so that it need not be looked at again.
    fn is_of(&self, raw: &RawRequest<'_>) -> bool {
        raw.authority.is_none()
            && !raw.more_hosts
            && raw.host.is_some_and(|host| host == self.host.as_bytes())
            && raw.method != "CONNECT"
    }
}

/// The event of an outbound call: how it was asked (method and version), of which service, and what became of it.
pub(crate) fn outbound_event<'a>(
    conn: &'a ConnContext,
    ids: &'a RequestIds,
    now_ns: u64,
    (method, version): (&'static str, &'static str),
    service: Option<&'a str>,
    (outcome, reason): (&'static str, &'static str),
) -> AccessDecision<'a> {
    AccessDecision {
        time_unix_ns: now_ns,
        request_id: ids.request_id(),
        trace_id: Some(ids.trace_id()),
        conn: &conn.fragment,
        http: HttpFacts { method: Some(method), service, version, ..HttpFacts::default() },
        decision: audit::Decision { outcome, reason, rule: None, role: None, shadow: None },
        policy: None,
    }
}
