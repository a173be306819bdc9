//! The ports beside the data path: what probes and operators may ask, and that nothing else is served there.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::App;
use common::wire::{Message, Wire, patiently};
use common::{Mesh, Setup, client};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn mesh(app: &App) -> Mesh {
    let inbound_extra = ", probes: {bind: \"127.0.0.1:0\", paths: [/healthz, /fhir/ping]}";
    Mesh::with(app.addr, Setup { inbound_extra, ..Setup::default() }).await
}

async fn ask(addr: std::net::SocketAddr, line: &str) -> Message {
    let mut wire = Wire::connect(addr).await;
    wire.send(format!("{line} HTTP/1.1\r\nHost: 10.2.0.9:15008\r\nConnection: close\r\n\r\n")).await;
    wire.response(line.split(' ').next().unwrap()).await
}

/// If this fails, the kubelet cannot probe an app behind mTLS, or anybody can read more than probes without an identity.
#[tokio::test]
async fn the_probe_port_serves_the_named_paths_and_nothing_else() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app).await;
    let probes = mesh.records.sidecar.addresses().probes.unwrap();
    for (line, status) in [
        ("GET /live", 200),
        ("GET /ready", 200),
        ("GET /healthz", 200),
        ("GET /healthz?verbose", 200),
        ("GET /fhir/ping", 200),
        ("POST /healthz", 404),
        ("HEAD /healthz", 404),
        ("GET /healthz/", 404),
        ("GET /Healthz", 404),
        ("GET /healthz/../fhir/Patient/1", 404),
        ("GET /%68ealthz", 404),
        ("GET /fhir/Patient/1", 404),
        ("GET /metrics", 404),
        ("GET /", 404),
        ("OPTIONS *", 404),
        ("CONNECT records.clinic:80", 404),
    ] {
        assert_eq!(ask(probes, line).await.status(), status, "{line}");
    }
    let arrived: Vec<String> = app.seen().into_iter().map(|seen| seen.start).collect();
    assert_eq!(arrived, ["GET /healthz HTTP/1.1", "GET /healthz HTTP/1.1", "GET /fhir/ping HTTP/1.1"]);
    for seen in app.seen() {
        assert_eq!(seen.header("x-forwarded-client-cert"), None, "nobody vouches for a probe");
    }
    let trail = mesh.trail().await;
    let access = trail.events.iter().filter(|event| event["type"].as_str().unwrap().starts_with("access."));
    assert_eq!(access.count(), 0, "{}", trail.text);
}

/// If this fails, Prometheus cannot read a pod's metrics, or whoever can may also drain the pod.
#[tokio::test]
async fn the_metrics_port_serves_metrics_and_nothing_else() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app).await;
    let metrics = mesh.records.sidecar.addresses().metrics.unwrap();
    assert!(ask(metrics, "GET /metrics").await.text().contains("phiward_connections"));
    for line in ["GET /ready", "GET /policy", "POST /drain", "PUT /log-level", "GET /fhir/Patient/1"] {
        assert_eq!(ask(metrics, line).await.status(), 404, "{line}");
    }
}

/// If this fails, an upgrade on the probe port is a way around mTLS and policy.
#[tokio::test]
async fn the_probe_port_opens_no_tunnel() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let app = App::answering(switch).await;
    let mesh = mesh(&app).await;
    let mut wire = Wire::connect(mesh.records.sidecar.addresses().probes.unwrap()).await;
    wire.send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.status(), 502);
    assert_eq!(app.only().header("upgrade"), None);
}

/// If this fails, an operator cannot see what is in force, or sees what nobody may.
#[tokio::test]
async fn the_admin_port_shows_states_and_no_secrets() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app).await;
    assert_eq!(client::get(mesh.outbound(), "/fhir/Patient/canary-4711").await.status, 200);
    let admin = mesh.records.admin();
    let mut shown = String::new();
    for (line, status) in [
        ("GET /live", 200),
        ("GET /ready", 200),
        ("GET /metrics", 200),
        ("GET /policy", 200),
        ("PUT /log-level", 404), // the log of this process is the test's own
        ("GET /drain", 405),
        ("GET /config_dump", 404),
        ("GET /certs", 404),
        ("GET /", 404),
    ] {
        let reply = ask(admin, line).await;
        assert_eq!(reply.status(), status, "{line}");
        shown += reply.text();
    }
    assert!(shown.contains("\"revision\":\"r1\"") && shown.contains("phiward_"), "{shown}");
    let key = std::fs::read_to_string(mesh.records.dir.join("svid.key")).unwrap();
    let hmac = std::fs::read_to_string(mesh.records.dir.join("audit-hmac.key")).unwrap();
    let secrets = key.lines().filter(|line| !line.starts_with("---")).chain([
        hmac.trim(),
        "canary-4711",
        "PRIVATE KEY",
    ]);
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    assert_eq!(ask(mesh.web.admin(), "GET /policy").await.status(), 404, "a pure caller has no policy");
}

/// If this fails, a preStop hook cannot end a sidecar.
#[tokio::test]
async fn a_drain_can_be_asked_for() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app).await;
    assert_eq!(ask(mesh.records.admin(), "POST /drain").await.status(), 202);
    patiently(mesh.records.sidecar.drain_asked()).await;
}
