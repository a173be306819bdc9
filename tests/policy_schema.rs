//! The published JSON Schema of the policy file: it is current, it knows the keys that the reader knows, and it judges files
//! as the reader does.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod schema_support;

use std::collections::BTreeSet;

use phiward::policy::Policy;
use phiward::policy::schema::schema;
use phiward::yaml;
use schema_support::{accepts, as_json};

const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/policy.json");

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// If this fails, editors check policies by an old schema. `PHIWARD_REWRITE_SNAPSHOTS=1` writes the new one.
#[test]
fn the_published_schema_is_current() {
    let current = format!("{:#}\n", schema());
    if std::env::var_os("PHIWARD_REWRITE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(PUBLISHED).parent().unwrap()).unwrap();
        std::fs::write(PUBLISHED, &current).unwrap();
    }
    assert!(
        std::fs::read_to_string(PUBLISHED).unwrap_or_default() == current,
        "docs/schema/policy.json is out of date"
    );
}

/// A file that has each mapping there is, with a key in each that nobody knows.
const STRANGE: &str = r#"zzz: 1
apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r, review: {by: x, due: 2026-01-01, zzz: 1}, zzz: 1}
service: {zzz: 1}
path: {zzz: 1}
roles:
  r:
    - {name: a, methods: [GET], paths: [/a], query: {allow: [x], zzz: 1}, zzz: 1}
    - {name: b, tcp: {listeners: [x], zzz: 1}}
bindings: [{role: r, identities: ["spiffe://d/a"], valid: {from: 2026-01-01, zzz: 1}, zzz: 1}]
deny: [{name: d, paths: [/a], zzz: 1}]
tests: [{as: any, request: GET /a, expect: deny, zzz: 1}]
"#;

/// If this fails, editors mark a key as wrong that the reader accepts, or offer one that it refuses.
#[test]
fn the_schema_has_the_keys_that_the_reader_knows_and_no_others() {
    let found: Vec<(String, BTreeSet<String>)> = Policy::parse(STRANGE.as_bytes())
        .unwrap_err()
        .into_iter()
        .map(|finding| {
            let (what, _) =
                finding.message.split_once(" has no key `zzz`").unwrap_or_else(|| panic!("{finding:?}"));
            let hint = finding.hint.unwrap();
            let (_, keys) = hint.split_once(" are: ").unwrap();
            (what.to_owned(), keys.split(", ").map(str::to_owned).collect())
        })
        .collect();
    let schema = schema();
    let keys = |pointer: &str| -> BTreeSet<String> {
        let object = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
        assert_eq!(object["additionalProperties"], false, "{pointer}");
        object["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let places = [
        ("the policy", ""),
        ("metadata.review", "/$defs/metadata/properties/review"),
        ("metadata", "/$defs/metadata"),
        ("service", "/$defs/service"),
        ("path", "/$defs/path"),
        ("query", "/$defs/query"),
        ("a permission of role `r`", "/$defs/permission"),
        ("tcp", "/$defs/permission/properties/tcp"),
        ("valid", "/$defs/binding/properties/valid"),
        ("a binding", "/$defs/binding"),
        ("a deny rule", "/$defs/deny"),
        ("a test", "/$defs/test"),
    ];
    let want: Vec<_> = places.iter().map(|(what, pointer)| ((*what).to_owned(), keys(pointer))).collect();
    assert_eq!(found, want);
}

/// If this fails, an editor marks a good policy as wrong, or lets pass what the reader refuses.
#[test]
fn the_schema_judges_files_as_the_reader_does() {
    let schema = schema();
    let judge = |text: &str| accepts(&schema, &schema, &as_json(&yaml::parse(text.as_bytes()).unwrap()));
    for name in [
        "config/policy.yaml",
        "src/dev/policy.yaml",
        "tests/fixtures/policy/next.yaml",
        "tests/fixtures/policy/doubtful.yaml",
    ] {
        assert!(Policy::parse(file(name).as_bytes()).is_ok() && judge(&file(name)), "{name}");
    }
    let head = "apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n";
    for rest in [
        "mode: audit",
        "roles: {r: []}",
        "roles: {r: [{name: a, methods: [GET]}]}",
        "roles: {r: [{name: a, methods: [FETCH], paths: [/a]}]}",
        "roles: {r: [{name: a, methods: [GET], paths: [/a], tcp: {listeners: [x]}}]}",
        "roles: {r: [{name: a, methods: [GET], paths: [/a], query: {}}]}",
        "roles: {r: [{name: a, methods: [GET], paths: [/a], query: {max: {m: -1}}}]}",
        "roles: {r: [{name: a, methods: [GET], paths: [/a], headers: {x: []}}]}",
        "roles: {r: [{name: a, methods: [GET, GET], paths: [/a]}]}",
        "deny: [{name: d}]",
        "deny: []",
        "tests: [{as: any, request: GET /, expect: maybe}]",
        "path: {max_bytes: 1}",
        "rate_limits: {}",
    ] {
        let text = format!("{head}{rest}\n");
        assert!(Policy::parse(text.as_bytes()).is_err(), "{rest}");
        assert!(!judge(&text), "{rest}");
    }
    assert!(judge(head) && !judge("kind: Policy\n"));
}
