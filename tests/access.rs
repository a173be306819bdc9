//! Who gets through, and what the trail says of it: two sidecars and an app on real sockets.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use common::{Mesh, RECORDS, Setup, WEB, client, nobody, serve};

fn app() -> Router {
    Router::new()
        .route("/fhir/Patient/{id}", get(|| async { "a chart" }))
        .route("/open/headers", get(|headers: HeaderMap| async move { format!("{headers:#?}") }))
}

/// If this fails, the product does nothing: an allowed request must arrive, and leave exactly two events.
#[tokio::test]
async fn an_allowed_request_arrives_and_leaves_two_events() {
    let mesh = Mesh::of(app()).await;
    let reply = client::get(mesh.outbound(), "/fhir/Patient/mrn-4711").await;
    assert_eq!((reply.status, reply.text()), (200, "a chart"));

    let (records, web) = mesh.trails().await;
    assert_eq!(records.reasons(), ["rule"]);
    let decision = records.decisions()[0];
    assert_eq!(decision["subject"]["spiffe_id"], WEB);
    assert_eq!(decision["http"]["template"], "/fhir/Patient/{id}");
    assert_eq!(decision["decision"]["rule"], "read-patient");
    assert_eq!(decision["decision"]["role"], "chart-read");
    assert_eq!(decision["decision"]["policy_revision"], "r1");
    assert_eq!(decision["conn"]["tls_version"], "1.3");
    assert_eq!(decision["conn"]["alpn"], "h2");
    let completion = records.completions()[0];
    assert_eq!(completion["request"]["id"], decision["request"]["id"]);
    assert_eq!(completion["response"]["status"], 200);
    assert_eq!(completion["response"]["response_bytes"], 7);
    assert_eq!(completion["response"]["aborted"], false);
    assert!(!records.text.contains("mrn-4711"), "the trail names a patient");
    assert!(web.decisions().is_empty() && web.completions().is_empty(), "outbound records refusals alone");
}

/// If this fails, somebody without the right gets through, or is turned away without a trace.
#[tokio::test]
async fn a_denied_identity_gets_403_and_one_event() {
    let setup = Setup { caller: "spiffe://hospital.local/ns/clinic/sa/billing", ..Setup::default() };
    let mesh = Mesh::with(serve(app()).await, setup).await;
    let reply = client::get(mesh.outbound(), "/fhir/Patient/mrn-4711").await;
    assert_eq!(reply.status, 403);
    assert!(!reply.text().contains("rule"), "a denial tells nothing of the policy");
    let trail = mesh.trail().await;
    assert_eq!(trail.reasons(), ["no_allow_rule"]);
    assert!(trail.completions().is_empty());
    assert!(!trail.text.contains("mrn-4711"));
}

/// If this fails, a rule that is being tried out blocks somebody, or nobody learns what it would do.
#[tokio::test]
async fn what_shadow_would_deny_passes_and_is_told_in_the_event() {
    let policy = common::POLICY.replace("no-admin, ", "no-admin, mode: shadow, ");
    let mesh = Mesh::with(serve(app()).await, Setup { policy: &policy, ..Setup::default() }).await;
    assert_eq!(client::get(mesh.outbound(), "/open/admin/x").await.status, 404, "answered by the app");
    assert_eq!(client::get(mesh.outbound(), "/open/headers").await.status, 200);
    let metrics = client::get(mesh.records.admin(), "/metrics").await;
    assert!(metrics.text().contains("phiward_shadow_denials_total{worker=\"0\"} 1"), "{}", metrics.text());
    let trail = mesh.trail().await;
    let decisions = trail.decisions();
    assert_eq!(decisions[0]["decision"]["outcome"], "allow");
    assert_eq!(decisions[0]["decision"]["rule"], "open");
    let shadow = serde_json::json!({"outcome": "deny", "reason": "deny_rule", "rule": "no-admin"});
    assert_eq!(decisions[0]["decision"]["shadow"], shadow);
    assert!(decisions[1]["decision"].get("shadow").is_none(), "only where it makes a difference");
}

/// If this fails, `mode: shadow` blocks requests, or hides what it would have blocked.
#[tokio::test]
async fn a_policy_in_shadow_mode_blocks_nothing() {
    let policy = common::POLICY.replace("kind: Policy", "kind: Policy\nmode: shadow");
    let mesh = Mesh::with(serve(app()).await, Setup { policy: &policy, ..Setup::default() }).await;
    assert_eq!(client::get(mesh.outbound(), "/nowhere").await.status, 404, "answered by the app");
    let detail = client::get(mesh.records.admin(), "/policy").await;
    assert!(detail.text().contains("\"mode\":\"shadow\""), "{}", detail.text());
    let trail = mesh.trail().await;
    assert_eq!(trail.reasons(), ["shadow_mode"]);
    assert_eq!(trail.of_type("policy.shadow").len(), 1, "told at once, and then each hour");
    let shadow = serde_json::json!({"outcome": "deny", "reason": "no_allow_rule"});
    assert_eq!(trail.decisions()[0]["decision"]["shadow"], shadow);
}

/// If this fails, rules about queries and headers see something else than what arrived, or the trail holds what it must not.
#[tokio::test]
async fn queries_and_headers_are_decided_and_only_named_parameters_are_recorded() {
    let policy = common::POLICY.replace(
        "paths: [\"/open/**\"]}",
        "paths: [\"/open/**\"], query: {require_any: [patient], max: {_count: 10}}, headers: {x-purpose: [treat]}}",
    );
    let mesh = Mesh::with(serve(app()).await, Setup { policy: &policy, ..Setup::default() }).await;
    let mut wire = common::wire::Wire::connect(mesh.outbound()).await;
    let mut ask = async |target: &str, headers: &str| {
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: records.clinic\r\n{headers}\r\n")).await;
        wire.response("GET").await.status()
    };
    let purpose = "X-Purpose: treat\r\n";
    assert_eq!(ask("/open/headers?patient=mrn-4711&_count=10&canary=1", purpose).await, 200);
    assert_eq!(ask("/open/headers?patient=mrn-4711&_count=11", purpose).await, 403);
    assert_eq!(ask("/open/headers?canary=1", purpose).await, 403);
    assert_eq!(ask("/open/headers?patient=mrn-4711", "").await, 403);
    assert_eq!(ask("/open/headers?patient=mrn-4711", "X-Purpose: treat\r\nX-Purpose: treat\r\n").await, 403);
    let trail = mesh.trail().await;
    let names: Vec<_> =
        trail.decisions().iter().map(|event| event["http"]["query_names"].to_string()).collect();
    let patient = "[\"patient\"]";
    assert_eq!(names, ["[\"_count\",\"patient\"]", "[\"_count\",\"patient\"]", "null", patient, patient]);
    assert!(!trail.text.contains("mrn-4711") && !trail.text.contains("canary"), "{}", trail.text);
}

/// If this fails, a deny rule or the path rules can be walked around.
#[tokio::test]
async fn doubtful_targets_get_400_and_deny_rules_403() {
    let mesh = Mesh::of(app()).await;
    let table = [
        ("/fhir/Patient/1/../2", 400, "dot_segment"),
        ("/fhir/Patient/%2e%2e/2", 400, "dot_segment"),
        ("/fhir//Patient/1", 400, "empty_segment"),
        ("/fhir/Patient%2F1", 400, "encoded_slash"),
        ("/fhir/Patient/1;a=b", 400, "semicolon"),
        ("/fhir/Patient/%252e", 400, "double_encoding"),
        ("/open/Admin/x", 403, "deny_rule"),
        ("/open/admin", 403, "deny_rule"),
    ];
    for (target, status, _) in table {
        assert_eq!(client::get(mesh.outbound(), target).await.status, status, "{target}");
    }
    let trail = mesh.trail().await;
    assert_eq!(trail.reasons(), table.map(|row| row.2));
    assert!(trail.completions().is_empty());
}

/// If this fails, an app is told a wrong caller, or believes what a caller says of itself.
#[tokio::test]
async fn the_app_is_told_who_calls_and_by_nobody_else() {
    let mesh = Mesh::of(app()).await;
    let request = "GET /open/headers HTTP/1.1\r\nHost: records.clinic\r\nConnection: close, x-secret\r\n\
        X-Forwarded-Client-Cert: URI=spiffe://hospital.local/admin\r\nX_Forwarded_Client_Cert: forged\r\n\
        X-Request-Id: forged\r\nX-Secret: forged\r\n\
        Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";
    let reply = client::exchange(mesh.outbound(), request).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains(&format!("By={RECORDS};Hash=")), "{}", reply.text());
    assert!(reply.text().contains(&format!("URI={WEB}")), "{}", reply.text());
    assert!(!reply.text().contains("forged") && !reply.text().contains("/admin"), "{}", reply.text());
    assert!(reply.text().contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{}", reply.text());
    let trail = mesh.trail().await;
    assert_eq!(trail.decisions()[0]["request"]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    let id = trail.decisions()[0]["request"]["id"].as_str().unwrap();
    assert!(reply.text().contains(id), "the app's request ID is the trail's");
}

/// If this fails, a typing error in a host name is forwarded somewhere, or vanishes.
#[tokio::test]
async fn an_unknown_outbound_host_gets_404_and_an_event() {
    let mesh = Mesh::of(app()).await;
    let request = "GET / HTTP/1.1\r\nHost: jane-doe.example\r\nConnection: close\r\n\r\n";
    let reply = client::exchange(mesh.outbound(), request).await;
    assert_eq!(reply.status, 404);
    let (records, web) = mesh.trails().await;
    assert_eq!(web.reasons(), ["unknown_host"]);
    assert!(!web.text.contains("jane-doe"), "a host that nobody configured is not written down");
    assert!(records.decisions().is_empty());
}

/// If this fails, a caller waits for ever for an app that is down.
#[tokio::test]
async fn an_app_that_is_down_gets_503_with_a_reason() {
    let mesh = Mesh::with(nobody().await, Setup::default()).await;
    let reply = client::get(mesh.outbound(), "/open/x").await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("upstream_connect"), "{}", reply.text());
    let trail = mesh.trail().await;
    assert_eq!(trail.reasons(), ["rule"]);
    assert_eq!(trail.completions()[0]["response"]["reason"], "upstream_connect");
    assert_eq!(trail.completions()[0]["response"]["status"], 503);
}

/// If this fails, requests reach a peer that is not who it must be.
#[tokio::test]
async fn a_peer_with_another_identity_gets_nothing() {
    let setup = Setup { expected: "spiffe://hospital.local/ns/clinic/sa/other", ..Setup::default() };
    let mesh = Mesh::with(serve(app()).await, setup).await;
    let reply = client::get(mesh.outbound(), "/open/headers").await;
    assert_eq!(reply.status, 502);
    let (records, web) = mesh.trails().await;
    assert_eq!(web.reasons(), ["upstream_identity"]);
    assert_eq!(web.decisions()[0]["decision"]["outcome"], "error");
    assert!(records.decisions().is_empty(), "nothing of the request left");
}

/// If this fails, `outbound.audit: all` misses calls or doubles them.
#[tokio::test]
async fn outbound_records_every_call_where_it_is_asked_to() {
    let setup = Setup { outbound_extra: "audit: all", ..Setup::default() };
    let mesh = Mesh::with(serve(app()).await, setup).await;
    assert_eq!(client::get(mesh.outbound(), "/open/headers").await.status, 200);
    let (_, web) = mesh.trails().await;
    assert_eq!(web.reasons(), ["route"]);
    assert_eq!(web.decisions()[0]["http"]["service"], "records");
    assert_eq!(web.completions().len(), 1);
}

/// If this fails, health checks need an identity's rights, or fill the trail.
#[tokio::test]
async fn health_paths_pass_without_a_rule_and_without_events() {
    let router = app().route("/healthz", get(|| async { "ok" }));
    let setup = Setup { caller: "spiffe://hospital.local/ns/other/sa/nobody", ..Setup::default() };
    let mesh = Mesh::with(serve(router).await, setup).await;
    assert_eq!(client::get(mesh.outbound(), "/healthz").await.status, 200);
    let trail = mesh.trail().await;
    assert!(trail.decisions().is_empty() && trail.completions().is_empty());
}
