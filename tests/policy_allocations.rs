//! What a decision costs in allocations: none, on the way to an allow, whatever the rule is about.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use allocation_counter::measure;
use phiward::identity::SpiffeId;
use phiward::policy::{Headers, Policy, RawRequest, Reason, UnixSeconds, admit};

const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r}
service: {hosts: [records.clinic]}
roles:
  r:
    - {name: plain, methods: [GET], paths: ["/fhir/Patient/{id}", "/fhir/**"]}
    - {name: query, methods: [GET], paths: [/o], query: {allow: [p, v, _count], require_any: [p], require: {v: ["a b", c]}, max: {_count: 9}}}
    - {name: open-query, methods: [GET], paths: [/q], query: {max: {_count: 9}}}
    - {name: headers, methods: [POST], paths: [/h], hosts: [records.clinic], headers: {content-type: [a/b], x-a: [c]}}
    - {name: trial, methods: [GET], paths: [/s], mode: shadow}
    - {name: sql, tcp: {listeners: [db]}}
bindings: [{role: r, identities: ["spiffe://d/w"]}]
deny:
  - {name: admin, paths: ["/admin/**", "/*/$purge"]}
  - {name: xml, headers: {content-type: [text/xml]}}
  - {name: soon, paths: [/fhir/Patient/2], mode: shadow}
"#;

struct Lines(&'static [(&'static str, &'static str)]);

impl Headers for Lines {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        self.0.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
    }
}

/// If this fails, each request pays the allocator for its decision.
#[test]
fn no_decision_allocates() {
    let policy = Policy::parse(POLICY.as_bytes()).unwrap();
    let grants = policy.grants(&SpiffeId::parse("spiffe://d/w").unwrap(), UnixSeconds(0));
    let headers = Lines(&[("accept", "*/*"), ("content-type", "a/b"), ("x-a", "c"), ("user-agent", "x")]);
    let table = [
        ("GET", "/fhir/Patient/8412", Reason::Rule),
        ("GET", "/fhir/Patient/2", Reason::Rule),
        ("GET", "/fhir/a%20b/c/d/e/f/g/h?x=y", Reason::Rule),
        ("GET", "/o?%70=1&v=a%20b&_count=9", Reason::Rule),
        ("GET", "/q?x=1&y&_count=9&p%5B0%5D=3", Reason::Rule),
        ("POST", "/h", Reason::Rule),
        ("GET", "/s", Reason::NoAllowRule),
        ("GET", "/x/%24Purge", Reason::DenyRule),
    ];
    for (method, target, want) in table {
        let raw = RawRequest {
            method,
            target,
            authority: None,
            host: Some(b"records.clinic"),
            more_hosts: false,
            method_override: false,
            http2: false,
            headers: &headers,
        };
        let mut found = None;
        let counted = measure(|| {
            let admitted = admit(&raw, policy.path_rules()).ok().unwrap();
            found = Some(policy.decide(&grants, &admitted).reason);
        });
        assert_eq!(found, Some(want), "{target}");
        // An escaped path is brought into canonical form on the heap; the decision itself takes nothing.
        let limit = if target.contains("/a%20") || target.contains("%24") { 3 } else { 0 };
        assert!(counted.count_total <= limit, "{target}: {} allocations", counted.count_total);
    }
    let tcp = measure(|| assert!(policy.decide_tcp(&grants, "db").is_allowed()));
    assert_eq!(tcp.count_total, 0);
    assert_eq!(
        measure(|| drop(policy.named_params(Some("x=1&y")))).count_total,
        0,
        "no named parameter is there"
    );
    assert!(measure(|| drop(policy.named_params(Some("p=1")))).count_total > 0, "the counter counts");
}
