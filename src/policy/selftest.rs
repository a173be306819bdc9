//! The tests that a policy file carries, run with the engine that decides in production.

use crate::yaml::Mark;

use super::document::{Case, Document, Subject};
use super::{Decision, Finding, Grants, Outcome, Policy, Reason, Shadow, UnixSeconds, admit};

/// How many rules [`expiring`] looks at, at most: a fraction of a second.
const MAX_LOOKS: usize = 5_000_000;

/// What one test's request came to.
pub(super) struct Ran<'p> {
    pub(super) decision: Decision<'p>,
    /// The role that a passed `allow` test showed to work.
    pub(super) proved_role: Option<&'p str>,
    pub(super) failure: Option<Finding>,
}

/// Runs every test of `document`, which `policy` was compiled from; those that name no time of their own, at `now`.
pub(super) fn run<'p>(policy: &'p Policy, document: &Document, now: UnixSeconds) -> Vec<Ran<'p>> {
    document.cases.iter().map(|case| run_one(policy, case, now)).collect()
}

/// The tests that pass at `now` and fail once a date of the policy has come: where each stands, and that time. A policy is
/// not loaded while a test of it fails, so such a test would one day stop a restart.
pub(super) fn expiring(policy: &Policy, document: &Document, now: UnixSeconds) -> Vec<(Mark, UnixSeconds)> {
    let undated = document.cases.iter().filter(|case| case.now.is_none());
    let fails = |case: &Case, at| run_one(policy, case, at).failure.is_some();
    // Bindings and deny rules are looked at one by one for each date: enough for any file that people read.
    let mut budget = MAX_LOOKS / (policy.denies.len() + policy.bindings.wild.len() + 1);
    let mut found = Vec::new();
    for case in undated.filter(|case| !fails(case, now)) {
        let mut at = now;
        while let Some(next) = grants(policy, case, at).valid_until().filter(|_| budget > 0) {
            (at, budget) = (next, budget - 1);
            if fails(case, at) {
                found.push((case.at, at));
                break;
            }
        }
    }
    found
}

/// Runs one test, of the file that `policy` was compiled from or of another, at its own time or else at `now`.
pub(super) fn run_one<'p>(policy: &'p Policy, case: &Case, now: UnixSeconds) -> Ran<'p> {
    let grants = grants(policy, case, case.now.unwrap_or(now));
    let decision = match case.request.tcp_listener() {
        Some(listener) => policy.decide_tcp(&grants, listener),
        None => {
            let raw = case.request.raw(policy.default_host());
            match admit(&raw, policy.path_rules()) {
                Err(reason) => policy.reject(&raw, reason),
                Ok(request) => policy.decide(&grants, &request),
            }
        }
    };
    let failure = complaint(case, &decision).map(|text| Finding::error("test_failed", case.at, text));
    let proved_role = if failure.is_none() { decision.role } else { None };
    Ran { decision, proved_role, failure }
}

/// For `as: any` the answer must hold for everyone. What the identity with the widest rights is denied, everyone is; what
/// the one with the narrowest is allowed, everyone is. So each expectation is tried on the identity that makes it hardest.
fn grants(policy: &Policy, case: &Case, now: UnixSeconds) -> Grants {
    match (&case.subject, case.expect) {
        (Subject::Id(id), _) => policy.grants(id, now),
        (Subject::Any, Outcome::Allow) => policy.narrowest_grants(now),
        (Subject::Any, Outcome::Deny | Outcome::Reject) => policy.widest_grants(now),
    }
}

/// What is not as the test says. A policy in shadow mode is tested for what it would do: that is what its tests are about.
fn complaint(case: &Case, decision: &Decision<'_>) -> Option<String> {
    let would = decision.unshadowed();
    let got = if decision.reason == Reason::ShadowMode { would } else { Shadow::of(decision) };
    let found = describe(got);
    if got.outcome != case.expect {
        return Some(format!("the test expects {}, but the request is {found}", case.expect.as_str()));
    }
    if let Some(reason) = case.reason.filter(|reason| *reason != got.reason) {
        return Some(format!("the test expects the reason {}, but the request is {found}", reason.as_str()));
    }
    match &case.rule {
        Some(rule) if got.rule != Some(rule) => {
            return Some(format!("the test expects the rule `{rule}`, but the request is {found}"));
        }
        _ => {}
    }
    let expected = case.shadow.filter(|expected| *expected != would.outcome)?;
    let (expected, found) = (expected.as_str(), describe(would));
    Some(format!("the test expects {expected} with the rules in shadow, but the request would be {found}"))
}

pub(super) fn describe(decision: Shadow<'_>) -> String {
    let outcome = match decision.outcome {
        Outcome::Allow => "allowed",
        Outcome::Deny => "denied",
        Outcome::Reject => "rejected",
    };
    let rule = decision.rule.map(|rule| format!(" by `{rule}`")).unwrap_or_default();
    format!("{outcome}{rule} ({})", decision.reason.as_str())
}

impl Policy {
    /// The host of requests that name none, in tests and explanations: the first of the file's hosts in the alphabet.
    pub fn default_host(&self) -> &str {
        self.hosts.as_ref().and_then(|hosts| hosts.first()).map_or("localhost", String::as_str)
    }
}
