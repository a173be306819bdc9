//! Connections that are not HTTP's, and callers that have no sidecar yet.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use common::{Mesh, Pki, RECORDS, Setup, Side, Trail, WEB, client, eventually, nobody, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MAY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: db, revision: "1", owner: tests}
roles:
  db: [{name: sql, tcp: {listeners: [postgres]}}]
bindings:
  - {role: db, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
"#;

/// A server that speaks first, as databases do, and then says again what it hears.
async fn database() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"hello ").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

struct Db {
    records: Side,
    web: Side,
    _pki: Pki,
}

impl Db {
    async fn start(app: SocketAddr, caller: &str, listener: &str, outbound: &str) -> Self {
        let pki = Pki::new();
        let dir = pki.workload("records", RECORDS);
        std::fs::write(dir.join("policy.yaml"), MAY).unwrap();
        let rest = format!(
            "inbound: {{listeners: [{{name: postgres, protocol: tcp, bind: \"127.0.0.1:0\", app: \"{app}\"{listener}}}]}}
policy: {{file: policy.yaml}}
limits: {{drain_deadline: 2s}}"
        );
        let records = Side::start(dir, "records", &rest).await;
        let rest = format!(
            "outbound:
  bind: \"127.0.0.1:0\"
  {outbound}
  services: [{{name: db, protocol: tcp, bind: \"127.0.0.1:0\", endpoints: [\"{}\"], identities: [\"{RECORDS}\"]}}]
limits: {{drain_deadline: 2s}}",
            records.inbound()
        );
        let web = Side::start(pki.workload("web", caller), "web", &rest).await;
        Self { records, web, _pki: pki }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.web.sidecar.addresses().services[0]).await.unwrap()
    }

    async fn trails(self) -> (Trail, Trail) {
        let web = self.web.trail().await;
        (self.records.trail().await, web)
    }
}

/// What comes until the other end closes.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await; // a reset is an end too
    String::from_utf8(all).unwrap()
}

/// If this fails, a database cannot be reached through the mesh, or who used it is not told.
#[tokio::test]
async fn a_stream_is_decided_once_carried_both_ways_and_told() {
    let db = Db::start(database().await, WEB, "", "audit: all").await;
    let mut stream = db.connect().await;
    stream.write_all(b"select 1").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest_of(stream).await, "hello select 1");
    let (records, web) = db.trails().await;
    let decision = records.decisions()[0];
    assert_eq!(decision["decision"]["rule"], "sql");
    assert_eq!(
        (&decision["subject"]["spiffe_id"], &decision["http"]),
        (&WEB.into(), &serde_json::Value::Null)
    );
    let response = &records.completions()[0]["response"];
    assert_eq!((&response["request_bytes"], &response["response_bytes"]), (&8.into(), &14.into()));
    assert_eq!(response["aborted"], false);
    assert_eq!(web.decisions()[0]["conn"]["service"], "db");
    assert_eq!((web.reasons(), web.completions().len()), (vec!["route"], 1));
}

/// If this fails, whoever has an identity has the database.
#[tokio::test]
async fn an_identity_without_the_right_gets_no_byte() {
    let db = Db::start(database().await, "spiffe://hospital.local/ns/clinic/sa/billing", "", "").await;
    assert_eq!(rest_of(db.connect().await).await, "");
    let (records, web) = db.trails().await;
    assert_eq!(records.reasons(), ["no_allow_rule"]);
    assert!(records.completions().is_empty() && web.decisions().is_empty());
}

/// If this fails, a right that was taken away lives on for as long as a connection does.
#[tokio::test]
async fn a_stream_ends_when_its_right_does() {
    let db = Db::start(database().await, WEB, "", "").await;
    let mut stream = db.connect().await;
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    std::fs::write(db.records.dir.join("policy.yaml"), MAY.replace("sa/web", "sa/nobody")).unwrap();
    assert_eq!(rest_of(stream).await, "");
    let (records, _) = db.trails().await;
    assert_eq!(records.completions()[0]["response"]["reason"], "access_revoked");
}

/// If this fails, a dead database leaves no trace, or holds its callers.
#[tokio::test]
async fn an_app_that_is_not_there_is_told() {
    let db = Db::start(nobody().await, WEB, "", "").await;
    assert_eq!(rest_of(db.connect().await).await, "");
    let (records, _) = db.trails().await;
    assert_eq!(records.completions()[0]["response"]["reason"], "upstream_connect");
}

/// If this fails, a service that speaks HTTP is taken for a database, and its requests are not looked at.
#[tokio::test]
async fn http_on_a_listener_of_streams_is_refused() {
    let db = Db::start(database().await, WEB, "", "").await;
    let rest = format!(
        "outbound: {{bind: \"127.0.0.1:0\", services: [{{name: r, hosts: [records.clinic], endpoints: [\"{}\"], identities: [\"{RECORDS}\"]}}]}}",
        db.records.inbound()
    );
    let dir = db._pki.workload("other", WEB);
    let other = Side::start(dir, "other", &rest).await;
    assert!(client::get(other.outbound(), "/").await.status >= 500);
    other.trail().await;
    let (records, _) = db.trails().await;
    assert!(records.decisions().is_empty());
    assert_eq!(records.of_type("conn.rejected")[0]["decision"]["reason"], "not_a_stream");
}

/// If this fails, a plain caller of a database waits for ever, or passes unseen.
#[tokio::test]
async fn a_permissive_listener_lets_plain_streams_in_and_tells() {
    let db = Db::start(database().await, WEB, ", mode: permissive", "").await;
    let mut stream = TcpStream::connect(db.records.inbound()).await.unwrap();
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    drop(stream);
    assert_eq!(
        rest_of({
            let mut mesh = db.connect().await;
            mesh.shutdown().await.unwrap();
            mesh
        })
        .await,
        "hello "
    );
    let (records, _) = db.trails().await;
    assert_eq!(records.reasons(), ["unauthenticated", "rule"]);
    assert!(records.decisions()[0].get("subject").is_none());
}

fn app() -> Router {
    Router::new()
        .route("/fhir/Patient/{id}", get(|| async { "a chart" }))
        .route("/open/{x}", get(|| async { "open" }))
}

fn plain(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n\r\n")
}

/// If this fails, a roll-out breaks those who have no sidecar yet, or lets them do what nobody may.
#[tokio::test]
async fn a_permissive_listener_lets_plain_requests_in_as_nobody() {
    let setup = Setup { listener_extra: ", mode: permissive", ..Setup::default() };
    let mesh = Mesh::with(serve(app()).await, setup).await;
    let inbound = mesh.records.inbound();
    assert_eq!(client::exchange(inbound, &plain("/fhir/Patient/3")).await.status, 200);
    assert_eq!(
        client::exchange(inbound, &plain("/open/admin/x")).await.status,
        403,
        "a deny rule holds for all"
    );
    assert_eq!(client::exchange(inbound, &plain("/a/../b")).await.status, 400);
    assert_eq!(client::get(mesh.outbound(), "/fhir/Patient/3").await.status, 200, "mTLS goes on");
    let metrics = client::get(mesh.records.admin(), "/metrics").await;
    assert!(metrics.text().contains("phiward_shadow_denials_total{worker=\"0\"} 1"), "{}", metrics.text());
    let trail = mesh.trail().await;
    assert_eq!(trail.reasons(), ["unauthenticated", "deny_rule", "dot_segment", "rule"]);
    let first = trail.decisions()[0];
    assert!(first.get("subject").is_none());
    let shadow = serde_json::json!({"outcome": "reject", "reason": "unauthenticated"});
    assert_eq!((&first["decision"]["outcome"], &first["decision"]["shadow"]), (&"allow".into(), &shadow));
    assert_eq!(trail.completions().len(), 2);
}

/// If this fails, plain text is let in where nobody asked for it.
#[tokio::test]
async fn a_strict_listener_takes_no_plain_request() {
    let mesh = Mesh::of(app()).await;
    let reply = client::raw(mesh.records.inbound(), plain("/fhir/Patient/3").as_bytes()).await;
    assert!(!String::from_utf8_lossy(&reply).contains("HTTP/1.1"));
    let trail = mesh.trail().await;
    assert!(trail.decisions().is_empty());
    assert_eq!(trail.of_type("conn.rejected").len(), 1);
}

/// If this fails, a host without IPv6 cannot run what an injector wrote, or a taken port goes unnoticed.
#[tokio::test]
async fn a_list_of_addresses_is_listened_on() {
    let pki = Pki::new();
    let dir = pki.workload("records", RECORDS);
    std::fs::write(dir.join("policy.yaml"), common::POLICY).unwrap();
    // 192.0.2.1 (RFC 5737) is no address of this host.
    let rest = "inbound: {listeners: [{name: api, bind: [\"127.0.0.1:0\", \"192.0.2.1:0\", \"127.0.0.2:0\"], app: \"127.0.0.1:1\"}]}
policy: {file: policy.yaml}";
    let side = Side::start(dir, "records", rest).await;
    let inbound = side.sidecar.addresses().inbound.clone();
    assert_eq!(inbound.len(), 2);
    eventually("both answer", async || {
        TcpStream::connect(inbound[0]).await.is_ok() && TcpStream::connect(inbound[1]).await.is_ok()
    })
    .await;
    side.trail().await;
}
