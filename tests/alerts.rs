//! The published alert rules: they ask for metrics that exist, and tell the person they wake what to do.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::{POLICY, Pki, RECORDS, Side, client};
use phiward::yaml::{self, Node, Value};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/phiward-alerts.yaml");

const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/phiward-dashboard.json");

const SIDECAR: &str = r#"version: 1
workload: {service: records, namespace: clinic}
identity: {trust_domain: hospital.local, files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
inbound: {listeners: [{name: api, bind: "127.0.0.1:0", app: "127.0.0.1:9"}]}
policy: {file: policy.yaml}
audit: {spool: {dir: audit}, key_file: audit-hmac.key, sinks: [{name: otel, type: otlp, endpoint: "http://127.0.0.1:9"}]}
admin: {bind: "127.0.0.1:0"}
limits: {drain_deadline: 1s}
workers: 1
"#;

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

fn text<'n>(node: &'n Node, key: &str) -> &'n str {
    match get(node, key).map(|node| &node.value) {
        Some(Value::Scalar { text, .. }) => text,
        _ => panic!("no {key} at {:?}", node.at),
    }
}

fn items<'n>(node: &'n Node, key: &str) -> &'n [Node] {
    match get(node, key).map(|node| &node.value) {
        Some(Value::Seq(items)) => items,
        _ => panic!("no {key} at {:?}", node.at),
    }
}

/// The names of metrics in an expression.
fn metrics(expr: &str) -> impl Iterator<Item = &str> {
    expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("phiward_"))
}

/// If this fails, a panel of the dashboard stays empty for ever.
#[test]
fn every_panel_asks_for_metrics_that_are_documented() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let documented = include_str!("../docs/operations.md");
    let panels = dashboard["panels"].as_array().unwrap();
    let targets: Vec<_> =
        panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()).collect();
    assert!(targets.len() > 15);
    for target in targets {
        let expr = target["expr"].as_str().unwrap();
        let asked: Vec<_> = metrics(expr).map(|metric| metric.trim_end_matches("_bucket")).collect();
        assert!(!asked.is_empty(), "{expr}");
        for metric in asked {
            assert!(documented.contains(&format!("`{metric}`")), "{metric} of {expr}");
        }
    }
}

/// If this fails, an alert can never fire, or wakes somebody without a word of what to do.
#[tokio::test]
async fn every_alert_asks_for_metrics_that_exist_and_says_what_to_do() {
    let pki = Pki::new();
    let dir = pki.workload("records", RECORDS);
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    let side = Side::start_whole(dir, SIDECAR).await;
    let reply =
        client::exchange(side.admin(), "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let shown = String::from_utf8(reply.body.to_vec()).unwrap();
    let rules = yaml::parse(&std::fs::read(RULES).unwrap()).unwrap();
    let mut alerts = std::collections::BTreeSet::new();
    for rule in items(&rules, "groups").iter().flat_map(|group| items(group, "rules")) {
        let name = text(rule, "alert");
        assert!(alerts.insert(name), "{name} is there twice");
        let asked: Vec<_> = metrics(text(rule, "expr")).collect();
        assert!(!asked.is_empty(), "{name}");
        for metric in asked {
            let there =
                |line: &str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' ']));
            assert!(shown.lines().any(there), "{name}: {metric} in\n{shown}");
        }
        let annotations = get(rule, "annotations").unwrap();
        assert!(text(annotations, "summary").len() > 20 && text(annotations, "do").len() > 20, "{name}");
        assert!(["page", "ticket"].contains(&text(get(rule, "labels").unwrap(), "severity")), "{name}");
    }
    assert!(alerts.len() > 10);
    assert!(shown.contains("phiward_audit_sink_backlog_events{sink=\"otel\"}"), "{shown}");
}
