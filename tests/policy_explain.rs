//! Explanations: the decision of the engine, and for every rule that did not decide, the first condition that did not hold.

#![allow(clippy::unwrap_used)] // a failure here is a failed test

use phiward::identity::SpiffeId;
use phiward::policy::{Explanation, Policy, Reason, Request, UnixSeconds, explain};

const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r}
service: {hosts: [a.b, c.d], health: [/healthz]}
roles:
  reader:
    - {name: read, methods: [GET, HEAD], paths: ["/x/{id}"]}
    - {name: read-on-c, methods: [POST], paths: ["/x/{id}"], hosts: [c.d]}
  writer: [{name: write, methods: [POST], paths: [/x]}]
bindings: [{role: reader, identities: ["spiffe://d/w"]}]
deny:
  - {name: ended, paths: [/**], until: 1970-01-01, reason: "old"}
  - {name: others, identities: ["spiffe://d/v"]}
  - {name: deletes, methods: [DELETE], paths: [/**]}
  - {name: on-c, paths: [/**], hosts: [c.d]}
  - {name: admin, paths: ["/admin/**"]}
"#;

fn ask<'p>(policy: &'p Policy, line: &str, host: Option<&str>, now: i64) -> Explanation<'p> {
    let mut request = Request::parse(line).unwrap();
    if let Some(host) = host {
        request.add_header("host", host);
    }
    explain(policy, &SpiffeId::parse("spiffe://d/w").unwrap(), &request, UnixSeconds(now))
}

fn mismatches(explanation: &Explanation<'_>) -> Vec<(String, u32, Option<String>)> {
    let row = |candidate: &phiward::policy::Candidate<'_>| {
        (candidate.rule.to_owned(), candidate.at.line, candidate.mismatch.clone())
    };
    explanation.candidates.iter().map(row).collect()
}

/// If this fails, a security engineer is told a wrong reason.
#[test]
fn every_rule_says_the_first_condition_that_does_not_hold() {
    let policy = Policy::parse(POLICY.as_bytes()).unwrap();
    let found = ask(&policy, "POST /x/1", None, 86_400);
    let want = [
        ("ended", 12, Some("it has ended")),
        ("others", 13, Some("it concerns other identities")),
        ("deletes", 14, Some("it denies DELETE, not POST")),
        ("on-c", 15, Some("it is for the host c.d, not a.b")),
        ("admin", 16, Some("no path of it matches")),
        ("read", 7, Some("it grants GET, HEAD, not POST")),
        ("read-on-c", 8, Some("it is for the host c.d, not a.b")),
        ("write", 9, Some("the identity does not have the role `writer`")),
    ];
    let want = want.map(|(rule, line, text)| (rule.to_owned(), line, text.map(str::to_owned)));
    assert_eq!(mismatches(&found), want);
    assert_eq!(found.decision.reason, Reason::NoAllowRule);
    assert_eq!((found.roles, found.candidates[0].note), (vec!["reader"], Some("old")));
    assert_eq!((found.path.as_deref(), found.host.as_deref()), (Some("/x/1"), Some("a.b")));
    assert_eq!(mismatches(&ask(&policy, "GET /x/1", None, 86_399))[0].2, None);
}

/// If this fails, a role that has run out looks like one that was never given.
#[test]
fn a_binding_that_is_not_in_force_says_since_when() {
    let body = "roles: {soon: [{name: a, methods: [GET], paths: [/x]}], past: [{name: b, methods: [GET], paths: [/x]}], never: \
                [{name: c, methods: [GET], paths: [/x]}]}\nbindings:\n  - {role: soon, identities: ['spiffe://d/*'], valid: {from: \
                2026-01-01}}\n  - {role: past, identities: ['spiffe://d/w'], valid: {until: 1970-01-01}}\n";
    let text = format!("apiVersion: phiward/v1\nkind: Policy\nmetadata: {{name: p, revision: r}}\n{body}");
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let texts: Vec<_> =
        mismatches(&ask(&policy, "GET /x", None, 86_400)).into_iter().map(|row| row.2.unwrap()).collect();
    let want = [
        "the identity has the role `soon` only from 2026-01-01T00:00:00Z on",
        "the identity had the role `past` until 1970-01-02T00:00:00Z",
        "the identity does not have the role `never`",
    ];
    assert_eq!(texts, want);
}

/// If this fails, the most common mistake, a path that is nearly right, looks like any other.
#[test]
fn a_path_that_is_nearly_right_is_told_apart() {
    let policy = Policy::parse(POLICY.as_bytes()).unwrap();
    let found = ask(&policy, "GET /X/1/", None, 86_400);
    let text = mismatches(&found)[5].2.clone().unwrap();
    assert!(text.starts_with("`/x/{id}` matches only exactly"), "{text}");
}

/// If this fails, rules are blamed for a request that no rule was asked about.
#[test]
fn what_is_decided_before_any_rule_names_none() {
    let policy = Policy::parse(POLICY.as_bytes()).unwrap();
    let table = [
        ("GET /a//b", None, Reason::EmptySegment),
        ("GET /healthz", Some("e.f"), Reason::Health),
        ("GET /x/1", Some("e.f"), Reason::UnknownHost),
    ];
    for (line, host, reason) in table {
        let found = ask(&policy, line, host, 86_400);
        assert_eq!((found.decision.reason, found.candidates.len()), (reason, 0), "{line}");
    }
}
