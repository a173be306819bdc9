//! What all decisions by one way say: the same rule of the same policy, the same host, method and template. It is most of such an event, so it
//! is spelled out once and then named, as what a connection's events have in common; each event has its pseudonyms besides.
//!
//! Owns which ways a worker knows, that a way is what its events would say, and where the pseudonyms go. Knows nothing of batches.

use super::encode;
use super::event::AccessDecision;
use super::frame::Common;
use super::json::Members;
use super::pseudonym::Pseudonym;

/// So many ways are known at a time, one for each place that their addresses choose.
const PLACES: usize = 64;
/// A way that was met so often more than the others which choose its place keeps it.
const MOST_MET: u8 = 16;

/// What stands where a pseudonym goes. JSON has no such byte, in a string or outside (RFC 8259 section 7).
pub(super) const HOLE: u8 = 0;

/// The ways that a worker knows.
pub(crate) struct Routes {
    places: Box<[Option<Route>; PLACES]>,
    /// The last one that found its place taken.
    other: Option<Route>,
}

/// A way.
pub(crate) struct Route {
    said: Said,
    /// What is said between `conn` and `id`, with a [`HOLE`] for each pseudonym; the second text is empty.
    pub(crate) common: Common,
    /// Which of the parameters' pseudonyms come one after the other.
    order: Box<[u8]>,
    met: u8,
}

/// What is said, on which all else depends.
struct Said {
    policy: Option<Box<str>>,
    outcome: &'static str,
    reason: &'static str,
    rule: Option<Box<str>>,
    role: Option<Box<str>>,
    shadow: Option<(&'static str, &'static str, Option<Box<str>>)>,
    host: Option<Box<str>>,
    method: Option<&'static str>,
    service: Option<Box<str>>,
    template: Option<Box<str>>,
    params: Box<[Box<str>]>,
    query_names: Box<[Box<str>]>,
    version: &'static str,
    /// Whether there is `host_h`, and `target_h`.
    hidden: [bool; 2],
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { places: Box::new([const { None }; PLACES]), other: None }
    }

    /// The way of this decision.
    pub(crate) fn of(&mut self, ev: &AccessDecision<'_>) -> &Route {
        let address = |text: Option<&str>| text.map_or(0, |text| text.as_ptr().addr() / 8 + text.len());
        let place =
            address(ev.http.template) + address(ev.decision.rule) + ev.http.method.map_or(0, str::len);
        let place = &mut self.places[place % PLACES];
        let (place, is_known) = match place {
            Some(route) if route.said.is_of(ev) => {
                route.met = (route.met + 1).min(MOST_MET);
                (place, true)
            }
            Some(route) if route.met > 0 => {
                route.met -= 1;
                let is_known = self.other.as_ref().is_some_and(|route| route.said.is_of(ev));
                (&mut self.other, is_known)
            }
            _ => (place, false),
        };
        if !is_known {
            *place = None;
        }
        place.get_or_insert_with(|| Route::by(ev))
    }
}

impl Route {
    fn by(ev: &AccessDecision<'_>) -> Self {
        let mut text = Vec::with_capacity(512);
        let mut members = Members::new(&mut text);
        encode::decision(&mut members, &ev.decision, ev.policy);
        let order = encode::http(&mut members, &ev.http, |out| out.push(HOLE));
        // Whole strings were written and ASCII, so nothing is replaced here.
        let common = Common::new(String::from_utf8_lossy(&text).into(), "".into());
        Self { said: Said::by(ev), common, order, met: 1 }
    }

    /// The pseudonyms of a decision by this way, in the order of the holes.
    pub(crate) fn pseudonyms(&self, ev: &AccessDecision<'_>) -> impl Iterator<Item = Pseudonym> {
        let params = self.order.iter().filter_map(|at| ev.http.params.get(usize::from(*at)));
        let [host, target] =
            [ev.http.host_h, ev.http.target_h].map(|hidden| hidden.filter(|_| ev.http.is_said()));
        host.into_iter().chain(params.map(|(_, pseudonym)| *pseudonym)).chain(target)
    }
}

impl Said {
    fn by(ev: &AccessDecision<'_>) -> Self {
        let (http, decision) = (&ev.http, &ev.decision);
        let owned = |text: Option<&str>| text.map(Box::from);
        Self {
            policy: owned(ev.policy.map(|policy| &*policy.0)),
            outcome: decision.outcome,
            reason: decision.reason,
            rule: owned(decision.rule),
            role: owned(decision.role),
            shadow: decision.shadow.map(|shadow| (shadow.outcome, shadow.reason, owned(shadow.rule))),
            host: owned(http.host),
            method: http.method,
            service: owned(http.service),
            template: owned(http.template),
            params: http.params.iter().map(|(name, _)| Box::from(*name)).collect(),
            query_names: http.query_names.iter().map(|name| Box::from(*name)).collect(),
            version: http.version,
            hidden: [http.host_h.is_some(), http.target_h.is_some()],
        }
    }

    fn is_of(&self, ev: &AccessDecision<'_>) -> bool {
        let (http, decision) = (&ev.http, &ev.decision);
        let shadow = self.shadow.as_ref().map(|(outcome, reason, rule)| (*outcome, *reason, rule.as_deref()));
        self.template.as_deref() == http.template
            && self.method == http.method
            && self.rule.as_deref() == decision.rule
            && self.role.as_deref() == decision.role
            && self.host.as_deref() == http.host
            && self.service.as_deref() == http.service
            && self.version == http.version
            && (self.outcome, self.reason) == (decision.outcome, decision.reason)
            && shadow == decision.shadow.map(|shadow| (shadow.outcome, shadow.reason, shadow.rule))
            && self.hidden == [http.host_h.is_some(), http.target_h.is_some()]
            && self.params.iter().map(|name| &**name).eq(http.params.iter().map(|(name, _)| *name))
            && self.query_names.iter().map(|name| &**name).eq(http.query_names.iter().copied())
            && self.policy.as_deref() == ev.policy.map(|policy| &*policy.0)
    }
}

#[cfg(test)]
mod tests;
