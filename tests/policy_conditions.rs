//! Rules about queries, headers, TCP and shadow: what they decide, and that tests, dates and shadow are told exactly.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use phiward::identity::SpiffeId;
use phiward::policy::{
    Decision, Explanation, Outcome, Policy, Reason, Request, Severity, Shadow, UnixSeconds, explain, load,
    validate,
};

const NOW: UnixSeconds = UnixSeconds(1_800_000_000); // 2027-01-15T08:00:00Z
const HEAD: &str = "apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n";

const POLICY: &str = r#"
service: {hosts: [a]}
roles:
  reader:
    - {name: search, methods: [GET, POST], paths: [/o], query: {allow: [patient, _count], require_any: [patient], max: {_count: 100}}}
    - {name: versioned, methods: [GET], paths: [/v], query: {require: {format: [json, fhir+json]}}}
    - {name: bare, methods: [GET], paths: [/bare], query: {allow: []}}
    - {name: post, methods: [POST], paths: [/o], headers: {content-type: [application/fhir+json]}}
  db: [{name: sql, tcp: {listeners: [postgres, mysql]}}]
bindings:
  - {role: reader, identities: ["spiffe://d/w"]}
  - {role: db, identities: ["spiffe://d/w", "spiffe://d/bad"]}
deny:
  - {name: xml, headers: {content-type: [text/xml, application/xml]}}
  - {name: bad, identities: ["spiffe://d/bad"]}
"#;

fn policy(body: &str) -> Policy {
    Policy::parse(format!("{HEAD}{body}").as_bytes()).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

fn ask<'p>(policy: &'p Policy, who: &str, line: &str, headers: &[(&str, &str)]) -> Explanation<'p> {
    let mut request = Request::parse(line).unwrap();
    assert!(headers.iter().all(|(name, value)| request.add_header(name, value)));
    explain(policy, &SpiffeId::parse(who).unwrap(), &request, NOW)
}

fn rule(decision: &Decision<'_>) -> String {
    decision.rule.map_or_else(|| decision.reason.as_str().to_owned(), str::to_owned)
}

/// If this fails, a query rule is passed by, or the explanation blames something else.
#[test]
fn a_permission_holds_for_the_queries_it_means() {
    let policy = policy(POLICY);
    let table = [
        ("GET /o?patient=1", "search", ""),
        ("GET /o?patient=1&_count=100", "search", ""),
        ("GET /o?%70atient=1&_count=%39", "search", ""),
        ("GET /o", "no_allow_rule", "it needs one of the query parameters patient"),
        ("GET /o?patient=", "no_allow_rule", "it needs one of the query parameters patient"),
        ("GET /o?patient=1&_count=101", "no_allow_rule", "`_count` must be a number up to 100"),
        ("GET /o?patient=1&_count=0100", "no_allow_rule", "`_count` must be a number up to 100"),
        ("GET /o?patient=1&patient=2", "no_allow_rule", "the query has `patient` more than once"),
        (
            "GET /o?patient=1&Patient=2",
            "no_allow_rule",
            "the query has a parameter that `query.allow` does not list",
        ),
        (
            "GET /o?patient=1;x",
            "no_allow_rule",
            "the query has a ';', which separates parameters to some servers",
        ),
        ("GET /v?format=json&x=1", "versioned", ""),
        ("GET /v?format=fhir%2Bjson", "versioned", ""),
        ("GET /v?format=fhir+json", "no_allow_rule", "`format` must be json or fhir+json"),
        ("GET /v?x", "no_allow_rule", "it needs the query parameter `format`"),
        (
            "GET /v?format=json&FORMAT=xml",
            "no_allow_rule",
            "the query has a parameter that some servers take for `format`",
        ),
        ("GET /bare", "bare", ""),
        ("GET /bare?", "bare", ""),
        ("GET /bare?x", "no_allow_rule", "the query has a parameter that `query.allow` does not list"),
    ];
    for (line, want, mismatch) in table {
        let found = ask(&policy, "spiffe://d/w", line, &[]);
        assert_eq!(rule(&found.decision), want, "{line}");
        let texts: Vec<_> = found.candidates.iter().filter_map(|row| row.mismatch.as_deref()).collect();
        assert!(mismatch.is_empty() || texts.contains(&mismatch), "{line}: {texts:#?}");
    }
}

/// If this fails, a header rule is passed by with a second line, a list or another spelling.
#[test]
fn headers_are_matched_wide_by_deny_rules_and_narrow_by_permissions() {
    let policy = policy(POLICY);
    let json = ("content-type", "application/fhir+json");
    let table: [(&[(&str, &str)], &str); 9] = [
        (&[json], "post"),
        (&[], "no_allow_rule"),
        (&[json, json], "no_allow_rule"),
        (&[json, ("content_type", "text/plain")], "no_allow_rule"),
        (&[("content-type", "application/fhir+json; charset=utf-8")], "no_allow_rule"),
        (&[json, ("connection", "content-type")], "no_allow_rule"),
        (&[json, ("Content-Type", "TEXT/XML")], "xml"),
        (&[("content-type", "a/b, text/xml;q=1")], "xml"),
        (&[("content_type", "\"application/xml\"")], "xml"),
    ];
    for (headers, want) in table {
        assert_eq!(rule(&ask(&policy, "spiffe://d/w", "POST /o", headers).decision), want, "{headers:?}");
    }
    let found = ask(&policy, "spiffe://d/w", "POST /o", &[]);
    let texts: Vec<_> =
        found.candidates.iter().map(|row| (row.rule, row.mismatch.as_deref().unwrap_or(""))).collect();
    assert_eq!(texts[0], ("xml", "`content-type` is not text/xml or application/xml"));
    assert_eq!(texts[5], ("post", "it needs the header `content-type`"));
}

/// If this fails, a form in the body carries the parameters that the query rule forbids.
#[test]
fn a_query_rule_does_not_let_a_form_pass() {
    let policy = policy(POLICY);
    let form = [("content-type", "Application/x-www-form-urlencoded; charset=utf-8")];
    assert_eq!(rule(&ask(&policy, "spiffe://d/w", "POST /o?patient=1", &[]).decision), "search");
    let found = ask(&policy, "spiffe://d/w", "POST /o?patient=1", &form);
    assert_eq!(found.decision.reason, Reason::NoAllowRule);
    assert!(found.candidates[2].mismatch.as_deref().unwrap().contains("the body is a form"));
}

/// If this fails, a stream is opened to what nobody granted, or a quarantined workload keeps its database.
#[test]
fn tcp_is_granted_by_listener_and_denied_by_identity() {
    let policy = policy(POLICY);
    assert_eq!(policy.tcp_listeners().into_iter().collect::<Vec<_>>(), ["mysql", "postgres"]);
    let table = [
        ("spiffe://d/w", "TCP postgres", "sql"),
        ("spiffe://d/w", "TCP mysql", "sql"),
        ("spiffe://d/w", "TCP redis", "no_allow_rule"),
        ("spiffe://d/other", "TCP postgres", "no_allow_rule"),
        ("spiffe://d/bad", "TCP postgres", "bad"),
    ];
    for (who, line, want) in table {
        let found = ask(&policy, who, line, &[]);
        assert_eq!(rule(&found.decision), want, "{who} {line}");
        let first = found.candidates.iter().find(|row| row.mismatch.is_none()).map(|row| row.rule);
        assert_eq!(found.decision.rule, first, "{who} {line}");
    }
    let found = ask(&policy, "spiffe://d/w", "TCP redis", &[]);
    assert_eq!(found.candidates[0].mismatch.as_deref(), Some("it is about HTTP"));
    assert_eq!(found.candidates[6].mismatch.as_deref(), Some("it opens postgres, mysql, not redis"));
    assert_eq!(ask(&policy, "spiffe://d/w", "TCP /postgres", &[]).decision.reason, Reason::UnknownMethod);
}

const SHADOWED: &str = r#"
roles:
  r:
    - {name: soon, methods: [GET], paths: [/x, /new], mode: shadow}
    - {name: now, methods: [GET], paths: [/x, /y, /z]}
bindings: [{role: r, identities: ["spiffe://d/w"]}]
deny:
  - {name: stricter, paths: [/y, /z], mode: shadow}
  - {name: strict, paths: [/z]}
"#;

/// If this fails, a rule in shadow changes what happens, or the trail does not say what it would have changed.
#[test]
fn rules_in_shadow_are_told_beside_what_is_enforced() {
    let policy = policy(SHADOWED);
    let shadow = |outcome, reason, rule| Some(Shadow { outcome, reason, rule });
    let table = [
        ("GET /x", Outcome::Allow, "now", shadow(Outcome::Allow, Reason::Rule, Some("soon"))),
        ("GET /new", Outcome::Deny, "no_allow_rule", shadow(Outcome::Allow, Reason::Rule, Some("soon"))),
        ("GET /y", Outcome::Allow, "now", shadow(Outcome::Deny, Reason::DenyRule, Some("stricter"))),
        ("GET /z", Outcome::Deny, "strict", shadow(Outcome::Deny, Reason::DenyRule, Some("stricter"))),
        ("POST /x", Outcome::Deny, "no_allow_rule", None),
        ("GET /other", Outcome::Deny, "no_allow_rule", None),
    ];
    for (line, outcome, want, shadow) in table {
        let found = ask(&policy, "spiffe://d/w", line, &[]);
        let decision = &found.decision;
        assert_eq!(
            (decision.outcome, rule(decision).as_str(), decision.shadow),
            (outcome, want, shadow),
            "{line}"
        );
        assert_eq!(decision.is_shadow_denial(), line == "GET /y");
    }
    let marked: Vec<_> =
        ask(&policy, "spiffe://d/w", "GET /x", &[]).candidates.iter().map(|row| row.shadow).collect();
    assert_eq!(marked, [true, false, true, false]);
}

/// If this fails, a policy that is being tried out blocks somebody, or hides what it would do.
#[test]
fn a_policy_in_shadow_blocks_nothing_and_tells_what_it_would() {
    let policy = policy(&format!("mode: shadow\n{POLICY}"));
    assert!(policy.is_shadow());
    let denied = |reason, rule| Some(Shadow { outcome: Outcome::Deny, reason, rule });
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Reason, Option<Shadow<'a>>);
    let table: [Row<'_>; 5] = [
        ("GET /o?patient=1", &[], Reason::Rule, None),
        ("GET /o", &[], Reason::ShadowMode, denied(Reason::NoAllowRule, None)),
        ("GET /o", &[("host", "b")], Reason::ShadowMode, denied(Reason::UnknownHost, None)),
        (
            "GET /o",
            &[("content-type", "text/xml")],
            Reason::ShadowMode,
            denied(Reason::DenyRule, Some("xml")),
        ),
        ("TCP redis", &[], Reason::ShadowMode, denied(Reason::NoAllowRule, None)),
    ];
    for (line, headers, reason, shadow) in table {
        let found = ask(&policy, "spiffe://d/w", line, headers);
        assert_eq!((found.decision.reason, found.decision.shadow), (reason, shadow), "{line}");
        assert_eq!(
            (found.decision.outcome, found.decision.rule.is_some()),
            (Outcome::Allow, shadow.is_none())
        );
    }
    // What can be read in two ways passes too, but for what no proxy may forward.
    let rejected = |line| ask(&policy, "spiffe://d/w", line, &[]).decision;
    let shadow = rejected("GET /o/../x").shadow.unwrap();
    assert_eq!((shadow.outcome, shadow.reason), (Outcome::Reject, Reason::DotSegment));
    assert!(rejected("GET /o/../x").is_shadow_denial());
    assert_eq!(rejected("CONNECT a:1").outcome, Outcome::Reject);
    assert_eq!(rejected("GET o").outcome, Outcome::Reject);
}

/// If this fails, what a rule names of a query does not reach the trail, or what it does not name does.
#[test]
fn only_parameters_that_rules_name_are_named() {
    let policy = policy(POLICY);
    let named = |query| policy.named_params(query);
    assert_eq!(
        named(Some("patient=1&%5Fcount=2&secret=3&format&Patient&patient=4")),
        ["_count", "format", "patient"]
    );
    assert!(named(Some("secret=3")).is_empty() && named(None).is_empty());
}

fn tests(body: &str, case: &str) -> (usize, Vec<&'static str>) {
    let text = format!("{HEAD}{body}tests:\n  - {{{case}}}\n");
    let report = validate(text.as_bytes(), NOW);
    let about = report.findings.iter().filter(|finding| finding.code.ends_with("_test"));
    let errors = report.findings.iter().filter(|f| f.severity == Severity::Error && f.code != "test_failed");
    assert_eq!(errors.count(), 0, "{case}: {:#?}", report.findings);
    assert_eq!(load(text.as_bytes(), NOW).is_ok(), report.tests_failed == 0, "{case}");
    (report.tests_failed, about.map(|finding| finding.code).collect())
}

/// If this fails, a test of the file asks something other than it says.
#[test]
fn tests_have_headers_hosts_times_and_shadow() {
    let dated = "roles: {r: [{name: p, methods: [GET], paths: [/x]}]}\nbindings: [{role: r, identities: ['spiffe://d/w'], valid: \
                 {from: 2026-01-01, until: 2026-12-31}}]\ndeny: [{name: freeze, paths: [/x], until: 2026-06-30}]\n";
    let table = [
        (
            POLICY,
            "as: 'spiffe://d/w', request: POST /o, headers: {content-type: application/fhir+json}, expect: allow, rule: post",
            0,
        ),
        (
            POLICY,
            "as: 'spiffe://d/w', request: POST /o, headers: {content-type: [application/fhir+json, a/b]}, expect: deny",
            0,
        ),
        (POLICY, "as: any, request: POST /o, headers: {Content_Type: text/xml}, expect: deny, rule: xml", 0),
        (
            POLICY,
            "as: 'spiffe://d/w', request: 'GET /o?patient=1', host: b, expect: deny, reason: unknown_host",
            0,
        ),
        (POLICY, "as: 'spiffe://d/w', request: 'GET /o?patient=1', host: A, expect: allow, rule: search", 0),
        (POLICY, "as: 'spiffe://d/w', request: TCP postgres, expect: allow, rule: sql", 0),
        (POLICY, "as: any, request: TCP redis, expect: deny", 0),
        (POLICY, "as: any, request: TCP mysql, expect: deny", 1),
        (dated, "as: 'spiffe://d/w', request: GET /x, now: 2026-07-01, expect: allow", 0),
        (
            dated,
            "as: 'spiffe://d/w', request: GET /x, now: '2026-06-30T23:59:59Z', expect: deny, rule: freeze",
            0,
        ),
        (dated, "as: 'spiffe://d/w', request: GET /x, expect: allow", 1),
        (dated, "as: any, request: GET /x, now: 2026-06-01, expect: deny, rule: freeze", 0),
        (dated, "as: any, request: GET /x, expect: deny, reason: no_allow_rule", 0),
        (SHADOWED, "as: 'spiffe://d/w', request: GET /y, expect: allow, shadow: deny", 0),
        (SHADOWED, "as: 'spiffe://d/w', request: GET /y, expect: allow, shadow: allow", 1),
        (SHADOWED, "as: 'spiffe://d/w', request: GET /new, expect: deny, shadow: allow", 0),
    ];
    for (body, case, failed) in table {
        assert_eq!(tests(body, case).0, failed, "{case}");
        if failed == 0 && body == POLICY {
            assert_eq!(
                tests(&format!("mode: shadow\n{body}"), case).0,
                0,
                "tests are about the rules: {case}"
            );
        }
    }
}

/// If this fails, a pod does not start one day because a test of its policy depends on the date, and nobody was warned.
#[test]
fn a_test_that_will_fail_one_day_is_a_warning() {
    let body = "roles: {r: [{name: p, methods: [GET], paths: [/x]}]}\nbindings: [{role: r, identities: ['spiffe://d/w'], valid: \
                {until: 2027-12-31}}, {role: r, identities: ['spiffe://d/v']}]\n";
    let case =
        |who: &str, rest: &str| tests(body, &format!("as: 'spiffe://d/{who}', request: GET /x, {rest}"));
    assert_eq!(case("w", "expect: allow"), (0, vec!["expiring_test"]));
    assert_eq!(case("w", "expect: allow, now: 2027-01-01"), (0, vec![]));
    assert_eq!(case("v", "expect: allow"), (0, vec![]));
    let text = format!("{HEAD}{body}tests: [{{as: 'spiffe://d/w', request: GET /x, expect: allow}}]\n");
    let report = validate(text.as_bytes(), NOW);
    let found = report.findings.iter().find(|finding| finding.code == "expiring_test").unwrap();
    assert!(found.message.contains("from 2028-01-01 on"), "{}", found.message);
    assert_eq!(load(text.as_bytes(), UnixSeconds(1_830_297_600)).unwrap_err()[0].code, "test_failed");
}

/// If this fails, a rule that adds nothing is kept, or a good one is called superfluous.
#[test]
fn conditions_count_when_rules_are_compared() {
    let codes = |rules: &str, deny: &str| {
        let text = format!(
            "{HEAD}service: {{hosts: [a]}}\nroles:\n  r:\n{rules}bindings: [{{role: r, identities: ['spiffe://d/w']}}]\n{deny}"
        );
        let report = validate(text.as_bytes(), NOW);
        let findings = report.findings.iter().filter(|finding| finding.code != "untested_role");
        findings.map(|finding| finding.code).collect::<Vec<_>>()
    };
    let p = |name: &str, rest: &str| format!("    - {{name: {name}, methods: [GET], paths: [/x], {rest}}}\n");
    let pair = |one: &str, two: &str| codes(&(p("a", one) + &p("b", two)), "");
    let none: [&str; 0] = [];
    assert_eq!(pair("hosts: [a]", "query: {allow: [x]}"), none);
    assert_eq!(pair("query: {allow: [x, z]}", "query: {allow: [x]}"), ["shadowed"]);
    assert_eq!(pair("query: {allow: [x]}", "query: {allow: [x, z]}"), ["void_limits"]);
    assert_eq!(pair("query: {allow: [x]}", "query: {allow: [z]}"), none);
    assert_eq!(pair("headers: {accept: [a, b]}", "headers: {accept: [b], x-y: [z]}"), ["shadowed"]);
    assert_eq!(pair("headers: {accept: [a]}", "headers: {accept: [b]}"), none);
    assert_eq!(pair("mode: shadow", "mode: enforce"), none);
    let tcp = |listeners: &str| {
        format!("    - {{name: t{}, tcp: {{listeners: [{listeners}]}}}}\n", listeners.len())
    };
    assert_eq!(codes(&(tcp("x, z") + &tcp("z")), ""), ["shadowed"]);
    assert_eq!(codes(&(tcp("x") + &tcp("x, z")), ""), none);
    let deny =
        |rest: &str| codes(&p("a", "headers: {accept: [a]}"), &format!("deny: [{{name: d, {rest}}}]\n"));
    assert_eq!(deny("headers: {accept: [A, b]}"), ["unreachable"]);
    assert_eq!(deny("headers: {accept: [b]}"), none);
    assert_eq!(deny("paths: [/x], mode: shadow"), none);
}
