//! The published JSON Schemas of the configuration files: they are current, they know the keys that the readers know, and
//! they judge files as the readers do.
#![allow(clippy::unwrap_used)] // a failure here is a failed test

mod schema_support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use phiward::config::{self, schema};
use phiward::yaml;
use schema_support::{accepts, as_json};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// If this fails, editors check configurations by old schemas. `PHIWARD_REWRITE_SNAPSHOTS=1` writes the new ones.
#[test]
fn the_published_schemas_are_current() {
    for (name, schema) in [("sidecar", schema::sidecar()), ("collector", schema::collector())] {
        let path = format!("{ROOT}/docs/schema/{name}.json");
        let current = format!("{schema:#}\n");
        if std::env::var_os("PHIWARD_REWRITE_SNAPSHOTS").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap_or_default() == current, "{path} is out of date");
    }
}

/// A file that has each mapping there is, with a key in each that nobody knows.
const STRANGE: &str = r#"zzz: 1
version: 1
workload: {service: a, namespace: b, zzz: 1}
identity: {trust_domain: d, files: {certificate: a, private_key: b, bundle: c, zzz: 1}, federation: [{trust_domain: e, bundle: f, zzz: 1}], zzz: 1}
inbound: {listeners: [{name: a, bind: "1.1.1.1:1", app: "1.1.1.1:1", zzz: 1}], probes: {bind: "1.1.1.1:1", zzz: 1}, zzz: 1}
outbound: {bind: "1.1.1.1:1", services: [{name: a, hosts: [a], endpoints: ["a:1"], identities: ["spiffe://d/a"], zzz: 1}], zzz: 1}
policy: {file: a, zzz: 1}
audit:
  spool: {dir: a, zzz: 1}
  key_file: a
  zzz: 1
  sinks:
    - {name: a, type: phiward, endpoint: "http://a:1", zzz: 1}
    - {name: b, type: ndjson, endpoint: "http://a:1", zzz: 1}
    - {name: c, type: otlp, endpoint: "http://localhost:1", basic: {username: a, password_file: b, zzz: 1}, zzz: 1}
    - {name: d, type: splunk_hec, endpoint: "https://a:1", token_file: a, zzz: 1}
    - {name: e, type: elasticsearch, endpoint: "http://a:1", zzz: 1}
admin: {zzz: 1}
limits: {zzz: 1}
"#;

/// What the readers say of unknown keys: the keys of each mapping.
fn keys_of_the_readers(problems: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut what = None;
    for line in problems.lines() {
        if let Some((before, _)) = line.split_once(" has no key `zzz`") {
            what = before.split_once("error: ").map(|(_, what)| what.to_owned());
        } else if let Some((_, keys)) = line.split_once(" are: ") {
            found.insert(what.take().unwrap(), keys.split(", ").map(str::to_owned).collect());
        }
    }
    found
}

fn keys(schema: &Value, pointer: &str) -> BTreeSet<String> {
    let object = schema.pointer(pointer).unwrap_or_else(|| panic!("{pointer}"));
    assert_eq!(object["additionalProperties"], false, "{pointer}");
    object["properties"].as_object().unwrap().keys().cloned().collect()
}

/// If this fails, editors mark a key as wrong that a reader accepts, or offer one that it refuses.
#[test]
fn the_schemas_have_the_keys_that_the_readers_know_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("strange.yaml");
    std::fs::write(&path, STRANGE).unwrap();
    let found = keys_of_the_readers(&config::load_sidecar(&path).unwrap_err().to_string());
    let sidecar = schema::sidecar();
    let places = [
        ("the configuration", ""),
        ("workload", "/$defs/workload"),
        ("identity", "/$defs/identity"),
        ("files", "/$defs/identity/properties/files"),
        ("a federation entry", "/$defs/identity/properties/federation/items"),
        ("inbound", "/$defs/inbound"),
        ("a listener", "/$defs/inbound/properties/listeners/items"),
        ("probes", "/$defs/inbound/properties/probes"),
        ("outbound", "/$defs/outbound"),
        ("a service", "/$defs/outbound/properties/services/items"),
        ("policy", "/properties/policy"),
        ("audit", "/$defs/audit"),
        ("spool", "/$defs/audit/properties/spool"),
        ("a sink of type `phiward`", "/$defs/sink/oneOf/0"),
        ("a sink of type `ndjson`", "/$defs/sink/oneOf/1"),
        ("a sink of type `otlp`", "/$defs/sink/oneOf/2"),
        ("basic", "/$defs/sink/oneOf/2/properties/basic"),
        ("a sink of type `splunk_hec`", "/$defs/sink/oneOf/3"),
        ("a sink of type `elasticsearch`", "/$defs/sink/oneOf/4"),
        ("admin", "/properties/admin"),
        ("limits", "/properties/limits"),
    ];
    let want: BTreeMap<_, _> =
        places.iter().map(|(what, pointer)| ((*what).to_owned(), keys(&sidecar, pointer))).collect();
    assert_eq!(found, want);

    let spire = STRANGE.replace("files: {certificate: a, private_key: b, bundle: c, zzz: 1}, federation: [{trust_domain: e, bundle: f, zzz: 1}]", "source: spire, spire: {socket: \"unix:///a\", zzz: 1}");
    std::fs::write(&path, spire).unwrap();
    let found = keys_of_the_readers(&config::load_sidecar(&path).unwrap_err().to_string());
    assert_eq!(found["spire"], keys(&sidecar, "/$defs/identity/properties/spire"));
    assert_eq!(found["identity"], keys(&sidecar, "/$defs/identity"));

    std::fs::write(
        &path,
        "zzz: 1\nversion: 1\nstore: {dir: a, zzz: 1}\nadmin: {zzz: 1}\nretention: {zzz: 1}\n",
    )
    .unwrap();
    let found = keys_of_the_readers(&config::load_collector(&path).unwrap_err().to_string());
    let collector = schema::collector();
    let want = [
        ("the configuration", ""),
        ("store", "/properties/store"),
        ("admin", "/properties/admin"),
        ("retention", "/properties/retention"),
    ];
    let want = want.iter().map(|(what, pointer)| ((*what).to_owned(), keys(&collector, pointer))).collect();
    assert_eq!(found, want);
}

/// If this fails, an editor marks a good configuration as wrong, or lets pass what the reader refuses.
#[test]
fn the_schemas_judge_files_as_the_readers_do() {
    let sidecar = schema::sidecar();
    let judge = |schema: &Value, text: &str| {
        accepts(schema, schema, &as_json(&yaml::parse(text.as_bytes()).unwrap()))
    };
    let example = std::fs::read_to_string(format!("{ROOT}/config/sidecar.yaml")).unwrap();
    assert!(judge(&sidecar, &example));
    let collector = std::fs::read_to_string(format!("{ROOT}/config/collector.yaml")).unwrap();
    assert!(judge(&schema::collector(), &collector));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sidecar.yaml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        config::load_sidecar(Path::new(&path)).map(|config| config.audit.sinks.len())
    };
    let commented = with_commented_sinks(&example);
    assert_eq!((judge(&sidecar, &commented), read(&commented).ok()), (true, Some(5)), "{commented}");
    for (part, other) in [
        ("version: 1", "version: 2"),
        ("type: phiward", "type: kafka"),
        ("required: true", "required: 1"),
        ("durability: write", "durability: never"),
        ("audit: refused", "audit: some"),
        ("app_protocol: http", "app_protocol: h3"),
        ("policy: {file: policy.yaml}", ""),
        ("name: collector\n", "index: x\n"),
        ("workers: 2", "workers: 0"),
    ] {
        let text = example.replace(part, other);
        assert!(text != example, "{part}");
        assert!(read(&text).is_err(), "{other}");
        assert!(!judge(&sidecar, &text), "{other}");
    }
}

/// The example with the sinks that stand in its comments.
fn with_commented_sinks(example: &str) -> String {
    let mut inside = false;
    let lines = example.lines().map(|line| {
        inside = line.starts_with("    # - ") || (inside && line.starts_with("    #   "));
        if inside { format!("    {}\n", line.trim_start_matches("    # ")) } else { format!("{line}\n") }
    });
    lines.collect()
}
