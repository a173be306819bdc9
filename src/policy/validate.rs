//! Everything there is to say about a policy file: its errors, its doubtful parts and what its own tests came to.

use std::collections::HashSet;

use crate::identity::TrustDomain;
use crate::yaml;

use super::{Finding, Policy, Severity, UnixSeconds, contradict, document, lint, reach, selftest};

/// What a file is judged by besides itself.
#[derive(Debug, Clone, Copy)]
pub struct Checks<'a> {
    /// The time to judge dates by.
    pub now: UnixSeconds,
    /// The trust domains whose identities can reach the service; none when that is not known.
    pub trust_domains: Option<&'a [TrustDomain]>,
}

/// What [`validate`] found.
#[derive(Debug)]
pub struct Report {
    /// The compiled policy, unless the file has errors that prevent it.
    pub policy: Option<Policy>,
    /// Errors and warnings, in the order of the file.
    pub findings: Vec<Finding>,
    /// How many of the file's tests were run.
    pub tests_run: usize,
    /// How many of them failed; each is among the findings.
    pub tests_failed: usize,
}

impl Report {
    /// True when nothing is wrong; `deny_lints` makes warnings count.
    pub fn is_valid(&self, deny_lints: bool) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Warning && !deny_lints)
    }
}

/// Reads and compiles a policy file and runs its tests, as a sidecar does before the policy is in force.
///
/// # Errors
/// Every error of the file, the tests that fail as of `now` among them, in its order; never an empty list.
pub fn load(source: &[u8], now: UnixSeconds) -> Result<Policy, Vec<Finding>> {
    let document = document::read(source)?;
    let policy = Policy::compile(&document, source);
    let failures: Vec<_> =
        selftest::run(&policy, &document, now).into_iter().filter_map(|ran| ran.failure).collect();
    if failures.is_empty() { Ok(policy) } else { Err(failures) }
}

/// Reads a policy file, looks for what is doubtful and runs the file's tests, all as of `now`.
pub fn validate(source: &[u8], now: UnixSeconds) -> Report {
    validate_with(source, &Checks { now, trust_domains: None })
}

/// As [`validate`], with what is known of the sidecar that will use the file.
pub fn validate_with(source: &[u8], checks: &Checks<'_>) -> Report {
    let now = checks.now;
    let document = match document::read(source) {
        Ok(document) => document,
        Err(findings) => return Report { policy: None, findings, tests_run: 0, tests_failed: 0 },
    };
    let policy = Policy::compile(&document, source);
    let mut findings = lint::run(&document, now);
    findings.extend(contradict::run(&document, &policy, now, checks.trust_domains));
    findings.extend(reach::run(&document, &policy));
    let ran = selftest::run(&policy, &document, now);
    let tests_run = ran.len();
    let proved: HashSet<_> = ran.iter().filter_map(|ran| ran.proved_role).collect();
    let names = document.roles.iter().map(|role| &role.name);
    for role in names.filter(|role| !proved.contains(role.value.as_str())) {
        let message = format!("no test shows that the role `{}` works", role.value);
        let hint = "add a test that expects one of its permissions to allow a request";
        findings.push(Finding::warning("untested_role", role.at, message).hint(hint));
    }
    for (at, time) in selftest::expiring(&policy, &document, now) {
        let message = format!(
            "this test will fail from {} on, and the policy could not be loaded then",
            yaml::day(time.0)
        );
        let hint = "give it the time that it is about, as `now`";
        findings.push(Finding::warning("expiring_test", at, message).hint(hint));
    }
    let failures: Vec<_> = ran.into_iter().filter_map(|ran| ran.failure).collect();
    let tests_failed = failures.len();
    findings.extend(failures);
    findings.sort_by_key(|finding| (finding.at, finding.severity));
    Report { policy: Some(policy), findings, tests_run, tests_failed }
}
