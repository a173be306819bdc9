//! A policy in shadow mode on real sockets: what it would reject passes as it came, over both protocols, with one event.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::App;
use common::h2;
use common::peer;
use common::wire::{Message, Wire};
use common::{Mesh, Setup, Trail, client};
use phiward::tls::Alpn;
use serde_json::json;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn mesh(app: &App, setup: Setup<'_>) -> Mesh {
    let policy = common::POLICY.replace("kind: Policy", "kind: Policy\nmode: shadow");
    Mesh::with(app.addr, Setup { policy: &policy, ..setup }).await
}

/// What the app gets of a head that is sent to the inbound port over HTTP/1.1, the answer, and the trail.
async fn ask(head: &str) -> (Vec<Message>, String, Trail) {
    let app = App::answering(OK).await;
    let mesh = mesh(&app, Setup::default()).await;
    let mut wire = Wire::new(peer::connect(mesh.records.inbound(), &mesh.web.dir, Alpn::Http1).await);
    wire.send(format!("{head}Connection: close\r\n\r\n")).await;
    let reply = String::from_utf8(wire.rest().await).unwrap();
    (app.seen(), reply, mesh.trail().await)
}

/// One decision, allowed, that says what it would have been.
fn assert_told(trail: &Trail, reason: &str, what: &str) {
    let decisions = trail.decisions();
    assert_eq!((decisions.len(), trail.completions().len()), (1, 1), "{what}");
    let decision = &decisions[0]["decision"];
    assert_eq!(
        (&decision["outcome"], &decision["reason"]),
        (&json!("allow"), &json!("shadow_mode")),
        "{what}"
    );
    assert_eq!(decision["shadow"], json!({"outcome": "reject", "reason": reason}), "{what}");
    let http = &decisions[0]["http"];
    assert!(http["target_h"].is_string() && http["host"].is_null() && http["template"].is_null(), "{what}");
    assert!(!trail.text.contains("mrn-4711") && !trail.text.contains("elsewhere"), "{what}: {}", trail.text);
}

/// If this fails, a trial blocks requests, changes them, or the trail does not say what would have become of them.
#[tokio::test]
async fn what_would_be_rejected_passes_byte_for_byte_over_http1() {
    let host = "Host: records.clinic\r\n";
    let table = [
        ("GET /open/mrn-4711/../x?a=b", host, "dot_segment"),
        ("GET /open/%2e%2e/mrn-4711%7e", host, "dot_segment"),
        ("GET /open//mrn-4711", host, "empty_segment"),
        ("GET /open%2fmrn-4711%41", host, "encoded_slash"),
        ("GET /open;v=mrn-4711/x", host, "semicolon"),
        ("GET /open/%252e/mrn-4711", host, "double_encoding"),
        ("GET /open/%zz", host, "bad_escape"),
        ("GET /open/x?_method=DELETE&id=mrn-4711", host, "method_override"),
        ("GET /open/x?a=%", host, "bad_query"),
        ("GET /open/x", "Host: records.clinic\r\nX-HTTP-Method: DELETE\r\n", "method_override"),
        ("PROPFIND /open/x", host, "unknown_method"),
        ("OPTIONS *", host, "options_asterisk"),
        ("GET /open/x", "Host: records.clinic\r\nHost: elsewhere\r\n", "duplicate_host"),
        ("GET /open/x", "Host: elsewhere/b\r\n", "bad_host"),
        ("GET http://elsewhere/open/x", host, "absolute_form_host"),
        // Neither a health check nor what a deny rule names: it has no one reading.
        ("GET /healthz/.", host, "dot_segment"),
        ("GET /open/admin/../mrn-4711", host, "dot_segment"),
    ];
    for (line, fields, reason) in table {
        let (seen, reply, trail) = ask(&format!("{line} HTTP/1.1\r\n{fields}")).await;
        assert!(reply.starts_with("HTTP/1.1 200 "), "{line}: {reply}");
        assert_eq!(seen.len(), 1, "{line}: {seen:?}");
        assert_eq!(seen[0].start, format!("{line} HTTP/1.1"));
        let hosts: Vec<_> = fields.lines().filter_map(|field| field.strip_prefix("Host: ")).collect();
        assert_eq!(seen[0].all("host"), hosts, "{line}");
        assert_told(&trail, reason, line);
    }
}

/// If this fails, what no proxy may forward goes on to the app because a policy is being tried out.
#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_in_shadow_mode_too() {
    let host = "Host: records.clinic\r\n";
    let coded = format!("{host}Transfer-Encoding: gzip, chunked\r\n");
    for (line, fields, reason) in
        [("CONNECT records.clinic:443", host, "connect"), ("POST /open/x", coded.as_str(), "transfer_coding")]
    {
        let (seen, reply, trail) = ask(&format!("{line} HTTP/1.1\r\n{fields}")).await;
        assert!(seen.is_empty() && reply.starts_with("HTTP/1.1 400 "), "{line}: {reply} {seen:?}");
        assert_eq!(trail.reasons(), [reason]);
        assert_eq!(trail.decisions()[0]["decision"]["outcome"], "reject");
    }
}

/// If this fails, a trial of a policy blocks or changes what comes over HTTP/2, which is how sidecars speak.
#[tokio::test]
async fn what_would_be_rejected_passes_byte_for_byte_over_http2() {
    for (target, host, reason) in [
        ("/open/mrn-4711/../x?a=b", None, "dot_segment"),
        ("/open%2fmrn-4711%41", None, "encoded_slash"),
        ("/open/x?_method=DELETE", None, "method_override"),
        ("/open/x", Some("elsewhere"), "host_authority"),
    ] {
        let app = App::answering(OK).await;
        let mesh = mesh(&app, Setup::default()).await;
        let stream = peer::connect(mesh.records.inbound(), &mesh.web.dir, Alpn::H2).await;
        let sender = h2::over(stream).await;
        let mut request = h2::request("GET", target, h2::empty());
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let reply = h2::send(&sender, request).await;
        assert_eq!(reply.status(), 200, "{target}");
        h2::collect(reply.into_body()).await.unwrap();
        drop(sender);
        // Both hosts reach the app: the one of the target takes precedence, as `:authority` did.
        let want = if host.is_some() { format!("http://records.clinic{target}") } else { target.to_owned() };
        assert_eq!(app.only().start, format!("GET {want} HTTP/1.1"));
        assert_eq!(app.only().all("host"), [host.unwrap_or("records.clinic")]);
        assert_told(&mesh.trail().await, reason, target);
    }
}

/// If this fails, a trial of a policy blocks requests between two sidecars, or the metric does not count what it let pass.
#[tokio::test]
async fn a_trial_lets_pass_and_counts_across_the_mesh() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app, Setup::default()).await;
    assert_eq!(client::get(mesh.outbound(), "/open/a/%2e%2e/mrn-4711").await.status, 200);
    let metrics = client::get(mesh.records.admin(), "/metrics").await;
    assert!(metrics.text().contains("phiward_shadow_denials_total{worker=\"0\"} 1"), "{}", metrics.text());
    assert!(app.only().start.contains("/open/a/%2e%2e/mrn-4711"));
    assert_told(&mesh.trail().await, "dot_segment", "mesh");
}
