//! What all events of allowed requests by one way say of the decision and of the request: the same rule of the same policy, the same host,
//! method and template. It is most of such an event, so it is encoded once and then named, as what a connection's events have in common.
//!
//! Owns which ways are known, and that a way is what its event would say. Knows nothing of batches.

use super::encode;
use super::event::{AccessDecision, Decision, HttpFacts};
use super::frame::Common;
use super::json::{self, Members};

/// So many ways are known at a time, one for each place that their addresses choose.
const PLACES: usize = 64;
/// A way that was met so often more than the others which choose its place keeps it.
const MOST_MET: u8 = 16;

/// The ways that a worker knows.
pub(crate) struct Routes(Box<[Option<Route>; PLACES]>);

struct Route {
    said: Said,
    common: Common,
    met: u8,
}

/// What is said, on which all else depends.
#[derive(PartialEq, Eq)]
struct Said {
    policy: Option<Box<str>>,
    rule: Option<Box<str>>,
    role: Option<Box<str>>,
    host: Option<Box<str>>,
    method: Option<&'static str>,
    service: Option<Box<str>>,
    template: Option<Box<str>>,
    version: &'static str,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self(Box::new([const { None }; PLACES]))
    }

    /// What an event has in common with others of its way: what stands before its parameters, and after them. `None` for one that has not
    /// much, or whose way is not known yet.
    pub(crate) fn of(&mut self, ev: &AccessDecision<'_>) -> Option<Common> {
        if !may_be_common(&ev.decision, &ev.http) {
            return None;
        }
        let address = |text: Option<&str>| text.map_or(0, |text| text.as_ptr().addr() / 8 + text.len());
        let place =
            address(ev.http.template) + address(ev.decision.rule) + ev.http.method.map_or(0, str::len);
        let place = &mut self.0[place % PLACES];
        match place {
            Some(route) if route.said.is_of(ev) => {
                route.met = (route.met + 1).min(MOST_MET);
                return Some(route.common.clone());
            }
            Some(route) if route.met > 0 => {
                route.met -= 1;
                return None;
            }
            _ => {}
        }
        let route = place.insert(Route { said: Said::by(ev), common: common(ev), met: 1 });
        Some(route.common.clone())
    }
}

fn may_be_common(decision: &Decision<'_>, http: &HttpFacts<'_>) -> bool {
    (decision.outcome, decision.reason) == ("allow", "rule")
        && decision.shadow.is_none()
        && http.host_h.is_none()
        && http.target_h.is_none()
        && !http.version.is_empty()
}

fn common(ev: &AccessDecision<'_>) -> Common {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    encode::decision(&mut Members::new(&mut before), &ev.decision, ev.policy);
    before.extend_from_slice(b"\"http\":{");
    encode::http_before_params(&mut Members::new(&mut before), &ev.http);
    encode::http_after_query(&mut Members::new(&mut after), &ev.http);
    json::close(&mut after);
    after.push(b',');
    // Whole strings were written and ASCII, so nothing is replaced here.
    let [before, after] = [before, after].map(|bytes| String::from_utf8_lossy(&bytes).into());
    Common::new(before, after)
}

impl Said {
    fn by(ev: &AccessDecision<'_>) -> Self {
        let owned = |text: Option<&str>| text.map(Box::from);
        Self {
            policy: owned(ev.policy.map(|policy| &*policy.0)),
            rule: owned(ev.decision.rule),
            role: owned(ev.decision.role),
            host: owned(ev.http.host),
            method: ev.http.method,
            service: owned(ev.http.service),
            template: owned(ev.http.template),
            version: ev.http.version,
        }
    }

    fn is_of(&self, ev: &AccessDecision<'_>) -> bool {
        self.template.as_deref() == ev.http.template
            && self.method == ev.http.method
            && self.rule.as_deref() == ev.decision.rule
            && self.role.as_deref() == ev.decision.role
            && self.host.as_deref() == ev.http.host
            && self.service.as_deref() == ev.http.service
            && self.version == ev.http.version
            && self.policy.as_deref() == ev.policy.map(|policy| &*policy.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::clock::InstantText;
    use crate::audit::event::{ConnFacts, ConnFragment, Direction, PolicyFragment, ShadowFacts};
    use crate::audit::frame::{Batch, Event, Pieces};
    use crate::audit::pseudonym::PseudonymKey;

    fn conn() -> ConnFragment {
        let peer = [10, 0, 0, 1].into();
        let (direction, listener) = (Direction::Inbound, "api");
        ConnFragment::new(&ConnFacts {
            direction,
            listener,
            peer,
            destination: None,
            service: None,
            tls: None,
            subject: None,
        })
    }

    fn said(ev: &AccessDecision<'_>, route: Option<&Common>) -> Event {
        let mut batch = Batch::default();
        batch.decision(ev, route, &mut InstantText::new());
        batch.pieces().map(Pieces::to_event).next().unwrap()
    }

    /// Events of which each differs from the first in one thing.
    fn of_each_kind(judge: &mut impl FnMut(&AccessDecision<'_>)) {
        let (conn, policies) = (conn(), ["1", "2"].map(|revision| PolicyFragment::new(Some(revision), "ab")));
        let pseudonym = PseudonymKey::from_bytes(&[7; 32]).unwrap().pseudonym(b"3");
        let params = [("id", pseudonym)];
        let http = HttpFacts {
            method: Some("GET"),
            host: Some("records"),
            template: Some("/fhir/Patient/{id}"),
            params: &params,
            version: "2",
            ..HttpFacts::default()
        };
        let decision = Decision {
            outcome: "allow",
            reason: "rule",
            rule: Some("read"),
            role: Some("chart"),
            shadow: None,
        };
        let first = AccessDecision {
            time_unix_ns: 5,
            request_id: "r",
            trace_id: None,
            conn: &conn,
            http,
            decision,
            policy: Some(&policies[0]),
        };
        let shadow = Some(ShadowFacts { outcome: "deny", reason: "deny_rule", rule: None });
        let https = [
            http,
            HttpFacts { method: Some("PUT"), ..http },
            HttpFacts { method: None, ..http },
            HttpFacts { host: None, ..http },
            HttpFacts { host: None, host_h: Some(pseudonym), ..http },
            HttpFacts { template: Some("/\"{id}\""), ..http },
            HttpFacts { template: None, target_h: Some(pseudonym), ..http },
            HttpFacts { params: &[], ..http },
            HttpFacts { query_names: &["_count", "\u{e9}"], ..http },
            HttpFacts { service: Some("records"), ..http },
            HttpFacts { version: "1.1", ..http },
            HttpFacts { version: "", ..http },
        ];
        https.into_iter().for_each(|http| judge(&AccessDecision { http, ..first }));
        let decisions = [
            Decision { rule: Some("write"), ..decision },
            Decision { rule: None, ..decision },
            Decision { role: Some("other"), ..decision },
            Decision { outcome: "deny", reason: "deny_rule", ..decision },
            Decision { shadow, ..decision },
        ];
        decisions.into_iter().for_each(|decision| judge(&AccessDecision { decision, ..first }));
        judge(&AccessDecision { policy: Some(&policies[1]), ..first });
        judge(&AccessDecision { policy: None, ..first });
    }

    /// If this fails, an event says that another rule, policy or path let the request pass.
    #[test]
    fn what_is_named_is_what_would_be_spelled_out() {
        let (mut routes, mut named) = (Routes::new(), 0);
        for _ in 0..5 {
            of_each_kind(&mut |ev| {
                let route = routes.of(ev);
                named += u32::from(route.is_some());
                assert_eq!(said(ev, route.as_ref()), said(ev, None));
            });
        }
        assert!(named > 40, "{named} of 95");
    }

    /// If this fails, a worker with many ways encodes each of them anew each time, or the one that is busy is forgotten for one that is not.
    #[test]
    fn a_busy_way_keeps_its_place() {
        let mut routes = Routes::new();
        of_each_kind(&mut |ev| {
            if (ev.http.params.len(), ev.decision.rule, ev.http.method) != (1, Some("read"), Some("GET")) {
                return;
            }
            let known = (0..4).filter_map(|_| routes.of(ev)).collect::<Vec<_>>();
            let texts =
                known.iter().map(|known| known.first().as_ptr()).collect::<std::collections::BTreeSet<_>>();
            assert!(texts.len() <= 1, "encoded once");
        });
        let (conn, mut found) = (conn(), 0);
        let templates: Vec<String> = (0..1000).map(|number| format!("/way/{number}")).collect();
        for round in 0..200 {
            for template in [&templates[0], &templates[1 + round % 999]] {
                let http = HttpFacts { template: Some(template), version: "2", ..HttpFacts::default() };
                let decision =
                    Decision { outcome: "allow", reason: "rule", rule: None, role: None, shadow: None };
                let ev = AccessDecision {
                    time_unix_ns: 5,
                    request_id: "r",
                    trace_id: None,
                    conn: &conn,
                    http,
                    decision,
                    policy: None,
                };
                found += usize::from(routes.of(&ev).is_some_and(|route| route.second().contains("/way/0\"")));
            }
        }
        assert!(found >= 199, "{found} of 200");
    }
}
