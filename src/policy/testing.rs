//! Tests of a policy as a list of results: those the file carries, and those of further files.
//!
//! Owns what a person needs to understand a failure: who asked, what was asked, and the explanation of the decision.

use crate::identity::SpiffeId;
use crate::yaml::Mark;

use super::document::{self, Case, Subject};
use super::selftest::{self, describe};
use super::{Decision, Explanation, Finding, Outcome, Policy, Reason, Shadow, UnixSeconds, explain};

/// Tests that were read from one file.
#[derive(Debug)]
pub struct TestSet {
    cases: Vec<Case>,
}

/// What one test came to.
#[derive(Debug)]
pub struct TestResult<'p> {
    /// Where the test stands in its file.
    pub at: Mark,
    /// Who asks: a SPIFFE ID, or `any`.
    pub subject: String,
    /// What is asked: method and target, as written.
    pub request: String,
    /// What the test expects.
    pub expect: Outcome,
    /// What was decided, in words: `allowed by `read` (rule)`.
    pub found: String,
    /// What is not as the test says; none when it passed.
    pub failure: Option<String>,
    /// For a failure: who the explanation is for, and the explanation. For `as: any` it is an identity for which the test
    /// fails; none when the bindings of the file make nobody such.
    pub explanation: Option<(SpiffeId, Explanation<'p>)>,
}

impl TestSet {
    /// The tests that a policy file carries.
    ///
    /// # Errors
    /// Every error of the file, in its order.
    pub fn of_policy(source: &[u8]) -> Result<Self, Vec<Finding>> {
        document::read(source).map(|document| Self { cases: document.cases })
    }

    /// The tests of a file of `kind: PolicyTests`.
    ///
    /// # Errors
    /// Every error of the file, in its order.
    pub fn parse(source: &[u8]) -> Result<Self, Vec<Finding>> {
        document::read_tests(source).map(|cases| Self { cases })
    }

    /// Runs every test on `policy`, with the engine that decides in production, as of `now`.
    pub fn run<'p>(&self, policy: &'p Policy, now: UnixSeconds) -> Vec<TestResult<'p>> {
        self.cases.iter().map(|case| result(policy, case, now)).collect()
    }
}

fn result<'p>(policy: &'p Policy, case: &Case, now: UnixSeconds) -> TestResult<'p> {
    let now = case.now.unwrap_or(now);
    let ran = selftest::run_one(policy, case, now);
    let subject = match &case.subject {
        Subject::Any => "any".to_owned(),
        Subject::Id(id) => id.as_str().to_owned(),
    };
    let explanation = if ran.failure.is_some() { explanation(policy, case, &ran, now) } else { None };
    TestResult {
        at: case.at,
        subject,
        request: case.request.line(),
        expect: case.expect,
        found: found(&ran.decision),
        failure: ran.failure.map(|finding| finding.message),
        explanation,
    }
}

/// What was decided. A policy in shadow mode is tested for what it would do.
fn found(decision: &Decision<'_>) -> String {
    let enforced = Shadow { outcome: decision.outcome, reason: decision.reason, rule: decision.rule };
    match decision.shadow {
        None => describe(enforced),
        Some(would) if decision.reason == Reason::ShadowMode => describe(would),
        Some(would) => format!("{}; with what is in shadow {}", describe(enforced), describe(would)),
    }
}

fn explanation<'p>(
    policy: &'p Policy,
    case: &Case,
    ran: &selftest::Ran<'p>,
    now: UnixSeconds,
) -> Option<(SpiffeId, Explanation<'p>)> {
    let ids = match &case.subject {
        Subject::Id(id) => vec![id.clone()],
        Subject::Any => policy.sample_identities(),
    };
    ids.into_iter().find_map(|id| {
        let explanation = explain(policy, &id, &case.request, now);
        let same = |found: &Explanation<'_>| {
            (found.decision.outcome, found.decision.reason) == (ran.decision.outcome, ran.decision.reason)
        };
        same(&explanation).then_some((id, explanation))
    })
}

impl Policy {
    /// An identity for each pattern of the bindings, and one that no pattern matches.
    fn sample_identities(&self) -> Vec<SpiffeId> {
        let literal = self.bindings.literal.keys().filter_map(|id| SpiffeId::parse(id).ok());
        let mut ids: Vec<_> = literal.collect();
        ids.sort();
        ids.extend(self.bindings.wild.iter().map(|(pattern, _)| pattern.example()));
        ids.extend(SpiffeId::parse("spiffe://nobody.invalid/nobody"));
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r}
service: {hosts: [a.b]}
roles: {reader: [{name: read, methods: [GET], paths: ["/x/{id}"]}]}
bindings: [{role: reader, identities: ["spiffe://d/ns/*"]}]
tests: [{as: "spiffe://d/ns/w", request: "GET /x/1", expect: allow}]
"#;

    /// If this fails, a failed test does not say why, or blames an identity for which it would pass.
    #[test]
    fn a_failure_is_explained_with_an_identity_that_shows_it() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let extra = "apiVersion: phiward/v1\nkind: PolicyTests\ntests:\n  \
                     - {as: any, request: GET /x/1, expect: deny}\n  - {as: any, request: GET /x/1, expect: allow}\n";
        let results = TestSet::parse(extra.as_bytes()).unwrap().run(&policy, UnixSeconds(0));
        let who: Vec<_> = results
            .iter()
            .map(|result| {
                let (id, explanation) = result.explanation.as_ref().unwrap();
                (id.as_str().to_owned(), explanation.decision.outcome)
            })
            .collect();
        let want = [("spiffe://d/ns/x", Outcome::Allow), ("spiffe://nobody.invalid/nobody", Outcome::Deny)];
        assert_eq!(who, want.map(|(id, outcome)| (id.to_owned(), outcome)));
        let own = TestSet::of_policy(POLICY.as_bytes()).unwrap().run(&policy, UnixSeconds(0));
        assert!(own.len() == 1 && own[0].failure.is_none() && own[0].explanation.is_none());
        assert_eq!(own[0].found, "allowed by `read` (rule)");
    }

    /// If this fails, a file of tests with a slip in it runs fewer tests than its author thinks.
    #[test]
    fn a_file_of_tests_is_read_strictly() {
        let bad = "apiVersion: phiward/v1\nkind: Policy\ntest: []\n";
        let findings = TestSet::parse(bad.as_bytes()).unwrap_err();
        let lines: Vec<_> = findings.iter().map(|finding| (finding.at.line, finding.code)).collect();
        assert_eq!(lines, [(1, "document"), (2, "document"), (3, "document")]);
    }
}
