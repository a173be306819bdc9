//! The tests that a policy file carries, run with the engine that decides in production.

use super::document::{Case, Document, Subject};
use super::{Admitted, Decision, Finding, Grants, Outcome, Policy, UnixSeconds, admit};

/// What one test's request came to.
pub(super) struct Ran<'p> {
    pub(super) decision: Decision<'p>,
    /// The role that a passed `allow` test showed to work.
    pub(super) proved_role: Option<&'p str>,
    pub(super) failure: Option<Finding>,
}

/// Runs every test of `document`, which `policy` was compiled from.
pub(super) fn run<'p>(policy: &'p Policy, document: &Document, now: UnixSeconds) -> Vec<Ran<'p>> {
    document.cases.iter().map(|case| run_one(policy, case, now)).collect()
}

/// Runs one test, of the file that `policy` was compiled from or of another.
pub(super) fn run_one<'p>(policy: &'p Policy, case: &Case, now: UnixSeconds) -> Ran<'p> {
    let raw = case.request.raw(policy.default_host());
    let decision = match admit(&raw, policy.path_rules()) {
        Err(reason) => Decision::rejected(reason),
        Ok(request) => decide(policy, case, &request, now),
    };
    let failure = complaint(case, &decision).map(|text| Finding::error("test_failed", case.at, text));
    let proved_role = if failure.is_none() { decision.role } else { None };
    Ran { decision, proved_role, failure }
}

/// For `as: any` the answer must hold for everyone. What the identity with the widest rights is denied, everyone is; what
/// the one with the narrowest is allowed, everyone is. So each expectation is tried on the identity that makes it hardest.
fn decide<'p>(policy: &'p Policy, case: &Case, request: &Admitted<'_>, now: UnixSeconds) -> Decision<'p> {
    let grants: Grants = match (&case.subject, case.expect) {
        (Subject::Id(id), _) => policy.grants(id, now),
        (Subject::Any, Outcome::Allow) => policy.narrowest_grants(),
        (Subject::Any, Outcome::Deny | Outcome::Reject) => policy.widest_grants(),
    };
    policy.decide(&grants, request)
}

/// What is not as the test says.
fn complaint(case: &Case, got: &Decision<'_>) -> Option<String> {
    let found = describe(got);
    if got.outcome != case.expect {
        return Some(format!("the test expects {}, but the request is {found}", case.expect.as_str()));
    }
    if let Some(reason) = case.reason.filter(|reason| *reason != got.reason) {
        return Some(format!("the test expects the reason {}, but the request is {found}", reason.as_str()));
    }
    match &case.rule {
        Some(rule) if got.rule != Some(rule) => {
            Some(format!("the test expects the rule `{rule}`, but the request is {found}"))
        }
        _ => None,
    }
}

pub(super) fn describe(decision: &Decision<'_>) -> String {
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
