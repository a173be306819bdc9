//! The policy file: every error has a place, a code and a way out, and nothing that is not enforced is accepted.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

use phiward::policy::{Finding, Policy, Severity, UnixSeconds, validate};

const HEAD: &str = "apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n";
const NOW: UnixSeconds = UnixSeconds(1_800_000_000); // 2027-01-15T08:00:00Z

fn errors(text: &str) -> Vec<Finding> {
    Policy::parse(text.as_bytes()).err().unwrap_or_default()
}

/// If this fails, the example that the documentation points to is wrong.
#[test]
fn the_example_is_valid_without_a_warning() {
    let source = include_bytes!("../config/policy.yaml");
    let report = validate(source, NOW);
    assert_eq!(report.findings, []);
    assert_eq!((report.tests_run, report.tests_failed), (13, 0));
    let policy = report.policy.unwrap();
    assert_eq!((policy.name(), policy.revision()), ("fhir-store", "2026-11-20.3"));
    assert_eq!(policy.sha256_hex().len(), 64);
}

/// If this fails, a wrong file is accepted, or the message does not help.
#[test]
fn each_error_has_a_code_a_line_and_words() {
    let permission = |rest: &str| format!("{HEAD}roles:\n  r:\n    - {{{rest}}}\n");
    let ok = "name: a, methods: [GET], paths: [/a]";
    let role = permission(ok);
    let deny = |rest: &str| format!("{HEAD}deny:\n  - {{{rest}}}\n");
    let case = |rest: &str| format!("{HEAD}tests:\n  - {{{rest}}}\n");
    let table = [
        ("a: ]".into(), "yaml", 1, "not valid YAML"),
        ("[]".into(), "document", 1, "the policy must be a mapping"),
        (format!("{HEAD}kind: Policy\n"), "yaml", 4, "already in this mapping"),
        (HEAD.replace("v1", "v2"), "document", 1, "apiVersion cannot be `phiward/v2`"),
        (HEAD.replace("Policy", "Config"), "document", 2, "kind cannot be"),
        (HEAD.replace("name: p, ", ""), "document", 3, "needs the key `name`"),
        (HEAD.replace("name: p", "name: 'a b'"), "bad_name", 3, "cannot be `a b`"),
        (HEAD.replace("revision: r", "revision: 1.0"), "document", 3, "must be a string, found a number"),
        (HEAD.replace("revision: r", "revision: ''"), "document", 3, "one line"),
        (
            HEAD.replace("revision: r", "revision: r, review: {by: x, due: soon}"),
            "document",
            3,
            "must be a date",
        ),
        (format!("{HEAD}role: {{}}\n"), "document", 4, "has no key `role`"),
        (format!("{HEAD}mode: audit\n"), "document", 4, "cannot be `audit`"),
        (format!("{HEAD}jwt: {{}}\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}rate_limits: {{}}\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}break_glass: []\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}audit: {{}}\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}service: {{fhir: {{}}}}\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}service: {{hosts: []}}\n"), "document", 4, "empty list"),
        (format!("{HEAD}service: {{hosts: [A.b]}}\n"), "bad_host", 4, "compared as `a.b`"),
        (format!("{HEAD}service: {{hosts: ['a:80']}}\n"), "bad_host", 4, "not a host"),
        (format!("{HEAD}service: {{hosts: ['*.a']}}\n"), "bad_host", 4, "not a host"),
        (format!("{HEAD}service: {{hosts: [a, a]}}\n"), "duplicate", 4, "twice"),
        (format!("{HEAD}service: {{health: [/a/*]}}\n"), "bad_path", 4, "exact paths only"),
        (format!("{HEAD}path: {{encoded_slash: allow}}\n"), "document", 4, "cannot be `allow`"),
        (format!("{HEAD}path: {{matrix_params: true}}\n"), "document", 4, "cannot be `true`"),
        (format!("{HEAD}path: {{max_bytes: 1}}\n"), "document", 4, "between"),
        (format!("{HEAD}path: {{trailing_dot: reject}}\n"), "document", 4, "not supported by this version"),
        (format!("{HEAD}roles: [a]\n"), "document", 4, "roles must be a mapping"),
        (format!("{HEAD}roles: {{r: []}}\n"), "document", 4, "empty list"),
        (format!("{HEAD}roles: {{'a b': [{{{ok}}}]}}\n"), "bad_name", 4, "cannot be called"),
        (permission("methods: [GET], paths: [/a]"), "document", 6, "needs the key `name`"),
        (permission("name: a, paths: [/a]"), "document", 6, "needs the key `methods`"),
        (permission("name: a, methods: [GET]"), "document", 6, "needs the key `paths`"),
        (permission("name: a, methods: [], paths: [/a]"), "document", 6, "empty list"),
        (permission("name: a, methods: [get], paths: [/a]"), "bad_method", 6, "not a method"),
        (permission("name: a, methods: ['*'], paths: [/a]"), "bad_method", 6, "not a method"),
        (permission("name: a, methods: [CONNECT], paths: [/a]"), "bad_method", 6, "not a method"),
        (permission("name: a, methods: [GET, GET], paths: [/a]"), "duplicate", 6, "twice"),
        (permission("name: a, methods: [GET], paths: [a]"), "bad_path", 6, "must begin with '/'"),
        (
            permission("name: a, methods: [GET], paths: ['/a%2Fb']"),
            "bad_path",
            6,
            "no request can have this path",
        ),
        (permission("name: a, methods: [GET], paths: ['/%41']"), "bad_path", 6, "compared as `/A`"),
        (permission("name: a, methods: [GET], paths: [/a, /a]"), "duplicate", 6, "twice"),
        (
            permission(&format!("{ok}, hosts: [b]")).replace("roles", "service: {hosts: [a]}\nroles"),
            "bad_host",
            7,
            "not one of",
        ),
        (permission(&format!("{ok}, fhir: {{}}")), "document", 6, "not supported by this version"),
        (permission(&format!("{ok}, when: {{}}")), "document", 6, "not supported by this version"),
        (permission(&format!("{ok}, max_response_bytes: 1")), "document", 6, "not supported by this version"),
        (format!("{role}    - {{{ok}}}\n"), "duplicate", 7, "twice"),
        (
            format!("{role}bindings: [{{role: x, identities: ['spiffe://a/b']}}]\n"),
            "unknown_role",
            7,
            "no role `x`",
        ),
        (format!("{role}bindings: [{{role: r, identities: []}}]\n"), "document", 7, "empty list"),
        (
            format!("{role}bindings: [{{role: r, identities: ['spiffe://*/b']}}]\n"),
            "bad_identity",
            7,
            "trust domain",
        ),
        (
            format!("{role}bindings: [{{role: r, identities: ['spiffe://a/b'], jwt: {{}}}}]\n"),
            "document",
            7,
            "not supported",
        ),
        (
            format!("{role}bindings: [{{role: r, identities: ['spiffe://a/b'], valid: {{}}}}]\n"),
            "document",
            7,
            "needs `from`",
        ),
        (
            format!(
                "{role}bindings: [{{role: r, identities: ['spiffe://a/b'], valid: {{from: 2026-02-01, until: 2026-01-01}}}}]\n"
            ),
            "never_valid",
            7,
            "ends before it begins",
        ),
        (deny("name: a"), "document", 5, "without a condition"),
        (deny("name: a, until: 2026-01-01"), "document", 5, "without a condition"),
        (deny("paths: [/a]"), "document", 5, "needs the key `name`"),
        (deny("name: a, paths: []"), "document", 5, "empty list"),
        (deny("name: a, paths: [/a], overridable: true"), "document", 5, "not supported by this version"),
        (deny("name: a, paths: [/a], query: {}"), "document", 5, "not supported by this version"),
        (
            case("as: any, request: GET /, expect: allow, claims: {}"),
            "document",
            5,
            "not supported by this version",
        ),
        (case("as: web, request: GET /, expect: allow"), "bad_identity", 5, "not an identity"),
        (case("as: any, request: GET, expect: allow"), "document", 5, "a method and a target"),
        (case("as: any, request: GET /, expect: yes"), "document", 5, "expect cannot be `yes`"),
        (
            case("as: any, request: GET /, expect: deny, reason: dot_segment"),
            "document",
            5,
            "goes with reject",
        ),
        (case("as: any, request: GET /, expect: deny, reason: nope"), "document", 5, "no reason `nope`"),
        (
            case("as: any, request: GET /, expect: deny, headers: {accept: a}"),
            "document",
            5,
            "no rule is about",
        ),
    ];
    for (text, code, line, words) in table {
        let found = errors(&text);
        let first = found.first().unwrap_or_else(|| panic!("accepted:\n{text}"));
        assert_eq!((first.code, first.at.line), (code, line), "{text}\n{found:#?}");
        assert!(first.message.contains(words), "{text}\n{found:#?}");
        assert!(found.iter().all(|finding| finding.severity == Severity::Error));
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
    }
}

/// If this fails, a condition that cannot hold, or that nobody checks, stands in a policy.
#[test]
fn each_wrong_condition_has_a_code_a_line_and_words() {
    let permission =
        |rest: &str| format!("{HEAD}roles:\n  r:\n    - {{name: a, methods: [GET], paths: [/a], {rest}}}\n");
    let query = |rest: &str| permission(&format!("query: {{{rest}}}"));
    let headers = |rest: &str| permission(&format!("headers: {{{rest}}}"));
    let bare = |rest: &str| format!("{HEAD}roles:\n  r:\n    - {{name: a, {rest}}}\n");
    let deny = |rest: &str| format!("{HEAD}\n\ndeny: [{{name: a, {rest}}}]\n");
    let case = |rest: &str| format!("{HEAD}\n\ntests: [{{as: any, expect: deny, {rest}}}]\n");
    let many: Vec<_> = (0..65).map(|at| format!("p{at}")).collect();
    let table = [
        (query(""), "document", "query without a rule"),
        (query("alow: [a]"), "document", "no key `alow`"),
        (query("allow: a"), "document", "must be a list"),
        (query("allow: ['a b']"), "bad_query", "not the name of a query parameter"),
        (query("allow: ['%61']"), "bad_query", "not the name of a query parameter"),
        (query("allow: [a, a]"), "duplicate", "twice"),
        (query(&format!("allow: [{}]", many.join(", "))), "document", "more than 64"),
        (query("require_any: []"), "document", "empty list"),
        (query("allow: [a], require_any: [b]"), "bad_query", "not in query.allow"),
        (query("allow: [], max: {a: 1}"), "bad_query", "not in query.allow"),
        (query("require: {}"), "document", "names no parameter"),
        (query("require: {a: ''}"), "bad_query", "one line of 1 to 256"),
        (query("require: {a: 1}"), "document", "must be a string"),
        (query("require: {a: [x, x]}"), "duplicate", "twice"),
        (query("max: {a: -1}"), "document", "a whole number"),
        (query("max: {a: ten}"), "document", "a whole number"),
        (query("max: {a: 1}, require: {a: '1'}"), "document", "both a `require` and a `max`"),
        (headers(""), "document", "names no header"),
        (headers("Accept: [a]"), "bad_header", "not the name of a header"),
        (headers("x_tenant: [a]"), "bad_header", "not the name of a header"),
        (headers("accept: a"), "document", "must be a list"),
        (headers("accept: []"), "document", "empty list"),
        (headers("accept: ['a, b']"), "bad_header", "not one value"),
        (headers("accept: [' a']"), "bad_header", "not one value"),
        (headers("accept: [a, a]"), "duplicate", "twice"),
        (headers("host: [a]"), "bad_header", "no rule can be about"),
        (headers("connection: [close]"), "bad_header", "no rule can be about"),
        (headers("x-forwarded-client-cert: [a]"), "bad_header", "no rule can be about"),
        (headers("x-phiward-user: [a]"), "bad_header", "no rule can be about"),
        (headers("x-http-method: [GET]"), "bad_header", "no rule can be about"),
        (headers("authorization: [secret]"), "bad_header", "no rule can be about"),
        (permission("mode: off"), "document", "mode cannot be"),
        (
            permission("mode: shadow").replace("kind", "mode: shadow\nkind"),
            "document",
            "in shadow mode already",
        ),
        (permission("tcp: {listeners: [x]}").replace("methods: [GET], ", ""), "document", "has no `paths`"),
        (bare("tcp: {}"), "document", "needs the key `listeners`"),
        (bare("tcp: {listeners: []}"), "document", "empty list"),
        (bare("tcp: {listeners: ['a b']}"), "bad_name", "cannot be"),
        (bare("tcp: {listeners: [a], ports: [1]}"), "document", "no key `ports`"),
        (bare("tcp: {listeners: [a]}, hosts: [b]"), "document", "has no `hosts`"),
        (deny("headers: {}"), "document", "names no header"),
        (deny("mode: shadow"), "document", "without a condition"),
        (deny("paths: [/a], tcp: {}"), "document", "no key `tcp`"),
        (case("request: GET /, now: soon"), "document", "must be a date"),
        (case("request: GET /, shadow: reject"), "document", "shadow cannot be"),
        (case("request: GET /, host: 1"), "document", "must be a string"),
        (case("request: TCP db, host: a"), "document", "no `host`"),
        (case("request: GET /, headers: {host: [a, 1]}"), "document", "must be a string"),
        (case("request: GET /, headers: {host: a, Host: b}"), "duplicate", "twice"),
        (case("request: GET /, headers: {content-type: a}"), "document", "no rule is about"),
        (case("request: GET /, headers: {host: \"a\\tb\\u00e9\"}"), "", ""),
    ];
    for (text, code, words) in table {
        let found = errors(&text);
        if code.is_empty() {
            assert_eq!(found, [], "{text}");
            continue;
        }
        let first = found.first().unwrap_or_else(|| panic!("accepted:\n{text}"));
        assert!(
            first.at.line == 6 || text.starts_with("apiVersion: phiward/v1\nmode") && first.at.line == 7,
            "{text}"
        );
        assert_eq!((first.code, found.len()), (code, 1), "{text}\n{found:#?}");
        assert!(first.message.contains(words), "{text}\n{found:#?}");
    }
}

/// If this fails, an author mends one error a run.
#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_file() {
    let text = format!(
        "{HEAD}modes: enforce\nroles:\n  r:\n    - {{name: a, methods: [GTE], paths: [a, /b c]}}\nbindings:\n  - {{role: s, identities: [x]}}\n"
    );
    let found: Vec<_> =
        errors(&text).iter().map(|finding| (finding.code, finding.at.line, finding.at.column)).collect();
    let want = [
        ("document", 4, 1),
        ("bad_method", 7, 27),
        ("bad_path", 7, 41),
        ("bad_path", 7, 44),
        ("unknown_role", 9, 12),
        ("bad_identity", 9, 28),
    ];
    assert_eq!(found, want);
    assert_eq!(errors(&text)[1].hint.as_deref().map(|hint| hint.contains("did you mean `GET`?")), Some(true));
}

fn codes(text: &str) -> Vec<(&'static str, u32)> {
    validate(text.as_bytes(), NOW).findings.iter().map(|finding| (finding.code, finding.at.line)).collect()
}

/// If this fails, a rule that can never match, or that matches far too much, goes unnoticed.
#[test]
fn each_doubtful_rule_is_a_warning() {
    let text = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r, review: {by: x, due: 2026-12-31}}
roles:
  r:
    - {name: a, methods: [GET, POST], paths: [/a/**]}
    - {name: b, methods: [GET], paths: ["/a/{id}"]}
    - {name: c, methods: [GET], paths: [/admin/x, /Admin/y]}
    - {name: d, methods: [GET], paths: [/admin/x, /ok]}
    - {name: e, methods: [GET, PUT], paths: ["/a/{id}"]}
    - {name: f, methods: [DELETE], paths: [/**]}
  unused: [{name: a, methods: [GET], paths: [/x]}]
bindings:
  - {role: r, identities: ["spiffe://d/**"]}
  - {role: r, identities: ["spiffe://d/a"], valid: {until: 2026-12-31}}
deny:
  - {name: no-admin, paths: [/admin/**]}
  - {name: again, paths: ["/ADMIN/*"], methods: [GET]}
  - {name: past, paths: [/z], until: 2026-12-31}
  - {name: other, paths: [/a/b], identities: ["spiffe://d/x"]}
tests:
  - {as: "spiffe://d/a", request: "GET /a/b", expect: allow, rule: a}
"#;
    let want = [
        ("no_hosts", 1),
        ("review_overdue", 3),
        ("shadowed", 7),
        ("unreachable", 8),
        ("unreachable_path", 9),
        ("wide_path", 11),
        ("unbound_role", 12),
        ("untested_role", 12),
        ("wide_identity", 14),
        ("expired_binding", 15),
        ("shadowed_deny", 18),
        ("expired_deny", 19),
    ];
    assert_eq!(codes(text), want);
    let report = validate(text.as_bytes(), NOW);
    assert!(report.is_valid(false) && !report.is_valid(true));
}

/// If this fails, a policy ships whose own tests say that it is wrong.
#[test]
fn a_failing_test_is_an_error_and_any_means_everyone() {
    let head = format!(
        "{HEAD}service: {{hosts: [b, a], health: [/healthz]}}\nroles: {{r: [{{name: p, methods: [GET], paths: [/x]}}]}}\nbindings: \
         [{{role: r, identities: ['spiffe://d/w']}}]\ndeny: [{{name: q, paths: [/x], identities: ['spiffe://d/v']}}, {{name: z, \
         paths: [/z]}}]\ntests:\n"
    );
    let table = [
        ("as: 'spiffe://d/w', request: GET /x, expect: allow", true),
        ("as: 'spiffe://d/w', request: GET /x, expect: allow, rule: p", true),
        ("as: 'spiffe://d/w', request: GET /x, expect: allow, rule: other", false),
        ("as: 'spiffe://d/w', request: GET /x, expect: deny", false),
        ("as: 'spiffe://d/v', request: GET /x, expect: deny, rule: q, reason: deny_rule", true),
        ("as: 'spiffe://d/v', request: GET /x, expect: deny, reason: no_allow_rule", false),
        ("as: 'spiffe://d/w', request: GET /x, headers: {host: c}, expect: deny, reason: unknown_host", true),
        ("as: 'spiffe://d/w', request: GET http://B:80/x, expect: allow", true),
        (
            "as: 'spiffe://d/w', request: GET /x, headers: {X-HTTP-Method: PUT}, expect: reject, reason: method_override",
            true,
        ),
        ("as: any, request: GET /healthz, expect: allow, reason: health", true),
        ("as: any, request: GET /z/, expect: deny, rule: z", true),
        ("as: any, request: GET /y, expect: deny", true),
        ("as: any, request: GET /x, expect: allow", false), // not everyone
        ("as: any, request: GET /x, expect: deny", false),  // not everyone either
        ("as: any, request: GET /x/../z, expect: reject, reason: dot_segment", true),
        ("as: any, request: GET /x, expect: reject", false),
    ];
    for (case, passes) in table {
        let report = validate(format!("{head}  - {{{case}}}\n").as_bytes(), NOW);
        assert_eq!(
            (report.tests_run, report.tests_failed),
            (1, usize::from(!passes)),
            "{case}: {:#?}",
            report.findings
        );
        assert_eq!(report.is_valid(false), passes, "{case}");
        assert_eq!(report.findings.iter().any(|finding| finding.code == "test_failed"), !passes);
    }
}

/// If this fails, a generated policy of ordinary size is refused or takes the start-up time of a pod.
#[test]
fn twenty_thousand_rules_are_read_and_one_more_is_refused() {
    use std::fmt::Write;
    let mut text = format!("{HEAD}roles:\n  r:\n");
    for at in 0..20_000 {
        let _ = writeln!(text, "    - {{name: p{at}, methods: [GET], paths: [/a/{at}]}}");
    }
    assert!(Policy::parse(text.as_bytes()).is_ok());
    text += "    - {name: more, methods: [GET], paths: [/b]}\n";
    assert!(errors(&text)[0].message.contains("more than 20000"));
}
