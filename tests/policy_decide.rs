//! Decisions: what is denied and what is allowed, by which rule, and that the compiled form agrees with the obvious one.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use phiward::identity::SpiffeId;
use phiward::policy::{
    Admitted, Decision, Outcome, PathRules, Policy, RawRequest, Reason, Request, UnixSeconds, admit, explain,
};
use proptest::prelude::*;

const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";
const NOW: UnixSeconds = UnixSeconds(1_800_000_000); // 2027-01-15T08:00:00Z

fn policy(body: &str) -> Policy {
    let text = format!("apiVersion: phiward/v1\nkind: Policy\nmetadata: {{name: p, revision: r}}\n{body}");
    Policy::parse(text.as_bytes()).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn raw<'a>(method: &'a str, target: &'a str, host: &'a str) -> RawRequest<'a> {
    RawRequest {
        method,
        target,
        authority: None,
        host: Some(host.as_bytes()),
        more_hosts: false,
        method_override: false,
        http2: false,
        headers: &phiward::policy::NoHeaders,
    }
}

fn request<'a>(policy: &Policy, line: &'a str) -> Admitted<'a> {
    let (method, target) = line.split_once(' ').unwrap();
    admit(&raw(method, target, "h"), policy.path_rules())
        .unwrap_or_else(|reason| panic!("{line}: {reason:?}"))
}

fn decide<'p>(policy: &'p Policy, who: &str, line: &str) -> Decision<'p> {
    policy.decide(&policy.grants(&id(who), NOW), &request(policy, line))
}

fn short(decision: &Decision<'_>) -> (Reason, Option<String>, Option<String>) {
    let template = decision.template.map(|template| template.as_str().to_owned());
    (decision.reason, decision.rule.map(str::to_owned), template)
}

const CHARTS: &str = r#"
service: {health: [/healthz]}
roles:
  chart-read:
    - {name: read-patient, methods: [GET, HEAD], paths: ["/fhir/Patient/{id}", "/fhir/Patient/*/history/**"]}
    - {name: search, methods: [GET], paths: [/fhir/Observation]}
  lab-write:
    - {name: post-result, methods: [POST], paths: [/fhir/Observation]}
    - {name: everything, methods: [GET], paths: [/fhir/**]}
bindings:
  - {role: chart-read, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
  - {role: lab-write, identities: ["spiffe://hospital.local/ns/lab/sa/*"]}
deny:
  - {name: no-admin, paths: ["/admin/**", "/fhir/$reindex", "/fhir/{type}/$purge"]}
  - {name: quarantine, identities: ["spiffe://hospital.local/ns/lab/sa/legacy"]}
"#;

/// If this fails, somebody is granted what no rule grants, or the event names the wrong rule.
#[test]
fn a_request_needs_a_permission_of_a_bound_role() {
    let policy = policy(CHARTS);
    let lab = "spiffe://hospital.local/ns/lab/sa/bridge";
    let table = [
        (WEB, "GET /fhir/Patient/1", Reason::Rule, Some("read-patient"), Some("/fhir/Patient/{id}")),
        (WEB, "HEAD /fhir/Patient/1", Reason::Rule, Some("read-patient"), Some("/fhir/Patient/{id}")),
        (
            WEB,
            "GET /fhir/Patient/1/history",
            Reason::Rule,
            Some("read-patient"),
            Some("/fhir/Patient/*/history/**"),
        ),
        (WEB, "GET /fhir/Observation?x=1", Reason::Rule, Some("search"), Some("/fhir/Observation")),
        (WEB, "HEAD /fhir/Observation", Reason::NoAllowRule, None, Some("/fhir/Observation")),
        (WEB, "POST /fhir/Observation", Reason::NoAllowRule, None, Some("/fhir/Observation")),
        (WEB, "GET /fhir/patient/1", Reason::NoAllowRule, None, Some("/fhir/**")),
        (WEB, "GET /fhir/Patient/1/", Reason::NoAllowRule, None, Some("/fhir/**")),
        (WEB, "GET /fhir/Patient/", Reason::NoAllowRule, None, Some("/fhir/**")),
        (WEB, "GET /elsewhere", Reason::NoAllowRule, None, None),
        (lab, "GET /fhir/Patient/1", Reason::Rule, Some("everything"), Some("/fhir/**")),
        (lab, "POST /fhir/Observation", Reason::Rule, Some("post-result"), Some("/fhir/Observation")),
        (lab, "DELETE /fhir/Patient/1", Reason::NoAllowRule, None, Some("/fhir/Patient/{id}")),
        (lab, "GET /fhir/x/%24Purge/", Reason::DenyRule, Some("no-admin"), Some("/fhir/{type}/$purge")),
        (lab, "GET /fhir/$REINDEX", Reason::DenyRule, Some("no-admin"), Some("/fhir/$reindex")),
        (
            "spiffe://hospital.local/ns/lab/sa/legacy",
            "GET /fhir/a",
            Reason::DenyRule,
            Some("quarantine"),
            None,
        ),
        ("spiffe://hospital.local/ns/lab/sa/a/b", "GET /fhir/a", Reason::NoAllowRule, None, Some("/fhir/**")),
        (
            "spiffe://partner.example/ns/lab/sa/bridge",
            "GET /fhir/a",
            Reason::NoAllowRule,
            None,
            Some("/fhir/**"),
        ),
    ];
    for (who, line, reason, rule, template) in table {
        let decision = decide(&policy, who, line);
        let want = (reason, rule.map(str::to_owned), template.map(str::to_owned));
        assert_eq!(short(&decision), want, "{who} {line}");
        assert_eq!(decision.outcome, reason.outcome());
        assert_eq!(decision.role.is_some(), decision.is_allowed());
    }
    let role = decide(&policy, WEB, "GET /fhir/Patient/1").role;
    assert_eq!(role, Some("chart-read"));
}

/// If this fails, a policy without rules lets something through.
#[test]
fn an_empty_policy_denies_everything() {
    let policy = policy("");
    assert_eq!(decide(&policy, WEB, "GET /").reason, Reason::NoAllowRule);
    assert!(policy.grants(&id(WEB), NOW).is_empty());
}

/// If this fails, health checks need an identity, or something else than an exact GET needs none.
#[test]
fn health_is_an_exact_get_from_anyone_for_any_host() {
    let body = "service: {hosts: [a.b], health: [/healthz]}\ndeny: [{name: all, paths: [/**]}]\n";
    let policy = policy(body);
    let stranger = "spiffe://x/y";
    assert_eq!(
        short(&decide(&policy, stranger, "GET /healthz")),
        (Reason::Health, None, Some("/healthz".into()))
    );
    for line in ["HEAD /healthz", "GET /healthz/", "GET /Healthz", "GET /healthz/a", "POST /healthz"] {
        assert_eq!(decide(&policy, stranger, line).reason, Reason::UnknownHost, "{line}");
    }
}

/// If this fails, requests for another service are decided as if they were for this one.
#[test]
fn hosts_bound_what_is_decided_and_what_a_rule_means() {
    let policy = policy(
        "service: {hosts: [a.b, a.c]}\nroles: {r: [{name: on-c, methods: [GET], paths: [/x], hosts: [a.c]}, {name: both, methods: \
         [GET], paths: [/y]}]}\nbindings: [{role: r, identities: [\"spiffe://d/w\"]}]\ndeny: [{name: no-b, paths: [/y], hosts: [a.b]}]\n",
    );
    let grants = policy.grants(&id("spiffe://d/w"), NOW);
    let on = |target, host| {
        policy.decide(&grants, &admit(&raw("GET", target, host), policy.path_rules()).ok().unwrap())
    };
    assert_eq!(on("/x", "A.C:80").rule, Some("on-c"));
    assert_eq!(on("/x", "a.b").reason, Reason::NoAllowRule);
    assert_eq!(on("/y", "a.b.").rule, Some("no-b"));
    assert_eq!(on("/y", "a.c").rule, Some("both"));
    assert_eq!(on("/y", "a.d").reason, Reason::UnknownHost);
    assert!(policy.knows_host("a.b") && !policy.knows_host("a.d"));
}

/// If this fails, access begins early, ends late, or outlives its end on an open connection.
#[test]
fn dated_rules_hold_from_the_first_second_to_the_last() {
    let policy = policy(
        "roles: {r: [{name: p, methods: [GET], paths: [/x]}]}\nbindings: [{role: r, identities: [\"spiffe://d/*\"], valid: {from: \
         1970-01-02, until: 1970-01-03}}]\ndeny: [{name: q, paths: [/x], until: \"1970-01-02T12:00:00Z\"}]\n",
    );
    let day = 86_400;
    let at = |seconds: i64| {
        let grants = policy.grants(&id("spiffe://d/w"), UnixSeconds(seconds));
        let reason = policy.decide(&grants, &request(&policy, "GET /x")).reason;
        assert_eq!(grants.is_empty(), !(day..3 * day).contains(&seconds), "{seconds}");
        (reason, grants.valid_until().map(|time| time.0))
    };
    assert_eq!(at(day - 1), (Reason::DenyRule, Some(day)));
    assert_eq!(at(0), (Reason::DenyRule, Some(day)));
    assert_eq!(at(day), (Reason::DenyRule, Some(day + day / 2)));
    assert_eq!(at(day + day / 2 - 1), (Reason::DenyRule, Some(day + day / 2)));
    assert_eq!(at(day + day / 2), (Reason::Rule, Some(3 * day)));
    assert_eq!(at(3 * day - 1), (Reason::Rule, Some(3 * day)));
    assert_eq!(at(3 * day), (Reason::NoAllowRule, None));
}

/// If this fails, rights of an old policy are used with a new one after a reload.
#[test]
fn grants_of_another_policy_allow_nothing() {
    let one = policy(CHARTS);
    let two = policy(&CHARTS.replace("no-admin", "no-administration"));
    let grants = one.grants(&id(WEB), NOW);
    assert_eq!(one.decide(&grants, &request(&one, "GET /fhir/Patient/1")).outcome, Outcome::Allow);
    assert_eq!(two.decide(&grants, &request(&two, "GET /fhir/Patient/1")).reason, Reason::NoPolicy);
}

/// If this fails, what a policy lets pass in paths gets past its deny rules.
#[test]
fn deny_rules_see_both_readings_of_what_the_path_block_lets_pass() {
    let policy = policy(
        "path: {encoded_slash: preserve, matrix_params: allow}\nroles: {r: [{name: p, methods: [GET], paths: [/**]}]}\nbindings: \
         [{role: r, identities: [\"spiffe://d/**\"]}]\ndeny: [{name: a, paths: [\"/admin/**\", \"/x/{id}/secret\"]}]\n",
    );
    for line in
        ["GET /admin%2Fx", "GET /Admin;v=1/x", "GET /admin%3bv/x", "GET /admin;v%2fx", "GET /x/a%2Fb/secret"]
    {
        assert_eq!(decide(&policy, "spiffe://d/w", line).reason, Reason::DenyRule, "{line}");
    }
    for line in ["GET /y%2Fadmin", "GET /x;admin/y", "GET /x/a%2Fb/public"] {
        assert_eq!(decide(&policy, "spiffe://d/w", line).reason, Reason::Rule, "{line}");
    }
}

fn small_path() -> impl Strategy<Value = String> {
    "(/(a|b|A|%24|a\\.)){0,3}(/a|/b|/|/B|/c\\.\\.\\.)"
}

fn small_pattern() -> impl Strategy<Value = String> {
    "(/(a|b|\\*|\\$|\\{x\\})){0,2}(/a|/B|/\\*|/\\*\\*|/)"
        .prop_filter("names are unique", |text| text.matches("{x}").count() < 2)
}

fn list(items: &[String]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A policy of some permissions in three roles, some bindings and some deny rules.
fn small_policy() -> impl Strategy<Value = String> {
    let methods = || proptest::sample::subsequence(vec!["GET".to_owned(), "POST".to_owned()], 1..=2);
    let paths = || {
        proptest::collection::btree_set(small_pattern(), 1..3)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>())
    };
    let hosts = || proptest::sample::select(vec!["", ", hosts: [h]", ", hosts: [other]"]);
    let ids = || {
        proptest::sample::select(vec![
            "spiffe://d/a",
            "spiffe://d/b",
            "spiffe://d/*",
            "spiffe://d/**",
            "spiffe://e/a",
        ])
    };
    let permission = (0..3usize, methods(), paths(), hosts());
    let deny = (
        proptest::option::of(methods()),
        proptest::option::of(paths()),
        hosts(),
        proptest::option::of(ids()),
    );
    let all = (
        proptest::collection::vec(permission, 1..10),
        proptest::collection::vec((0..3usize, ids()), 1..4),
        proptest::collection::vec(deny, 0..4),
    );
    all.prop_map(|(permissions, bindings, denies)| {
        let mut text = String::from("roles:\n");
        for role in 0..3 {
            text += &format!("  r{role}:\n    - {{name: last{role}, methods: [PUT], paths: [/never]}}\n");
            for (at, (_, methods, paths, hosts)) in
                permissions.iter().enumerate().filter(|(_, p)| p.0 == role)
            {
                text += &format!(
                    "    - {{name: p{at}, methods: {}, paths: {}{hosts}}}\n",
                    list(methods),
                    list(paths)
                );
            }
        }
        text += "bindings:\n";
        for (role, id) in bindings {
            text += &format!("  - {{role: r{role}, identities: [\"{id}\"]}}\n");
        }
        text += "deny:\n  - {name: never, paths: [/never/never]}\n";
        for (at, (methods, paths, hosts, ids)) in denies.iter().enumerate() {
            let mut parts = format!("name: d{at}");
            parts += &methods.as_ref().map(|m| format!(", methods: {}", list(m))).unwrap_or_default();
            parts += &paths.as_ref().map(|p| format!(", paths: {}", list(p))).unwrap_or_default();
            parts += &ids.map(|id| format!(", identities: [\"{id}\"]")).unwrap_or_default();
            let none = methods.is_none() && paths.is_none() && ids.is_none() && hosts.is_empty();
            parts += if none { ", methods: [PUT]" } else { hosts };
            text += &format!("  - {{{parts}}}\n");
        }
        text
    })
}

/// Spellings of `path` that some server takes for the same.
fn respell(path: &str, how: u8) -> String {
    let inner = path.trim_end_matches('/');
    match how % 6 {
        0 => path.to_ascii_uppercase().replace("%24", "$"),
        1 => format!("{inner}/"),
        2 if !inner.is_empty() => format!("{inner}."),
        3 => path.replace('$', "%24"),
        4 => path.replace("%24", "$"),
        5 => inner
            .split('/')
            .map(|s| if s.is_empty() { String::new() } else { format!("{s}...") })
            .collect::<Vec<_>>()
            .join("/"),
        _ => path.to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// If this fails, the tree that decides in production and the plain reading of the file's rules differ.
    #[test]
    fn the_compiled_decision_agrees_with_rule_by_rule_matching(
        text in small_policy(), paths in proptest::collection::vec(small_path(), 8),
        who in proptest::sample::select(vec!["spiffe://d/a", "spiffe://d/b", "spiffe://d/x/y", "spiffe://e/a", "spiffe://f/a"]),
        method in proptest::sample::select(vec!["GET", "POST"]),
    ) {
        let policy = policy(&text);
        for path in paths {
            let line = format!("{method} {path}");
            let mut asked = Request::parse(&line).unwrap();
            asked.add_header("host", "h");
            let decision = decide(&policy, who, &line);
            let explanation = explain(&policy, &id(who), &asked, NOW);
            let first = explanation.candidates.iter().find(|candidate| candidate.mismatch.is_none());
            prop_assert_eq!(decision.rule, first.map(|candidate| candidate.rule), "{}", line);
            prop_assert_eq!(decision.role, first.and_then(|candidate| candidate.role));
            prop_assert_eq!(decision.reason == Reason::NoAllowRule, first.is_none());
            prop_assert_eq!(short(&decision), short(&explanation.decision));
        }
    }

    /// If this fails, a deny rule is passed by by writing the path in another way.
    #[test]
    fn what_is_denied_stays_denied_however_it_is_spelt(text in small_policy(), path in small_path(), how in any::<u8>()) {
        let policy = policy(&text);
        let other = respell(&path, how);
        if other.starts_with('/') && decide(&policy, "spiffe://d/a", &format!("GET {path}")).reason == Reason::DenyRule {
            let again = decide(&policy, "spiffe://d/a", &format!("GET {other}"));
            prop_assert_eq!(again.reason, Reason::DenyRule, "{} {}", path, other);
        }
    }
}

/// If this fails, an identity is given, or refused, what another identity's rule says about the same path.
#[test]
fn many_roles_and_quarantines_share_a_path() {
    use std::fmt::Write;
    let (mut roles, mut bindings, mut denies) = (String::new(), String::new(), String::new());
    for at in 0..50 {
        let _ = writeln!(roles, "  r{at}: [{{name: p{at}, methods: [GET], paths: [/x]}}]");
        let _ =
            writeln!(bindings, "  - {{role: r{at}, identities: [\"spiffe://d/w{at}\", \"spiffe://d/all\"]}}");
        let _ = writeln!(denies, "  - {{name: d{at}, paths: [/x/y], identities: [\"spiffe://d/w{at}\"]}}");
    }
    let policy = policy(&format!("roles:\n{roles}bindings:\n{bindings}deny:\n{denies}"));
    for at in 0..50 {
        let who = format!("spiffe://d/w{at}");
        assert_eq!(decide(&policy, &who, "GET /x").rule, Some(format!("p{at}").as_str()));
        assert_eq!(decide(&policy, &who, "GET /x/y").rule, Some(format!("d{at}").as_str()));
    }
    assert_eq!(decide(&policy, "spiffe://d/all", "GET /x").rule, Some("p0"));
    assert_eq!(decide(&policy, "spiffe://d/all", "GET /x/y").reason, Reason::NoAllowRule);
    assert_eq!(decide(&policy, "spiffe://d/none", "GET /x").reason, Reason::NoAllowRule);
}

/// If this fails, 10,000 rules are looked at one by one: the decision must name the right one of many look-alikes.
#[test]
fn one_of_ten_thousand_rules_is_found() {
    use std::fmt::Write;
    let mut text = String::from("roles:\n");
    for role in 0..100 {
        let _ = writeln!(text, "  r{role}:");
        for at in 0..100 {
            let _ = writeln!(
                text,
                "    - {{name: p{role}-{at}, methods: [GET], paths: [\"/api/v{role}/{{id}}/part{at}\"]}}"
            );
        }
    }
    text += "bindings: [{role: r42, identities: [\"spiffe://d/w\"]}, {role: r7, identities: [\"spiffe://d/**\"]}]\n";
    let policy = policy(&text);
    assert_eq!(decide(&policy, "spiffe://d/w", "GET /api/v42/1/part99").rule, Some("p42-99"));
    assert_eq!(decide(&policy, "spiffe://d/w", "GET /api/v7/1/part0").rule, Some("p7-0"));
    assert_eq!(decide(&policy, "spiffe://d/w", "GET /api/v43/1/part99").reason, Reason::NoAllowRule);
    assert_eq!(policy.path_rules(), &PathRules::default());
}
