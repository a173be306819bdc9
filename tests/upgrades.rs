//! Connections that stop being HTTP: WebSocket and the like pass through both sidecars, and end when access ends.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::app::{App, accepting};
use common::wire::{Message, Wire, patiently};
use common::{Mesh, POLICY, Pki, Setup, Side, Trail, WEB, eventually, peer, reloads};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

const ASK: &str = "GET /open/ws HTTP/1.1\r\nHost: records.clinic\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An app that agrees to switch, sends `greeting` in the same packet, echoes until the caller is done, and says goodbye.
async fn echo(greeting: &'static str) -> (SocketAddr, mpsc::Receiver<Message>) {
    let (seen, at_app) = mpsc::channel(4);
    let addr = accepting(move |stream| {
        let seen = seen.clone();
        async move {
            let mut wire = Wire::new(stream);
            seen.send(wire.request().await.unwrap()).await.unwrap();
            wire.send([AGREE, greeting].concat()).await;
            let ahead = wire.buffered();
            wire.send(ahead).await;
            let mut stream = wire.stream;
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..n]).await.unwrap();
            }
            drop(stream.write_all(b"bye").await);
        }
    });
    (addr.await, at_app)
}

async fn switched(addr: SocketAddr) -> Wire<TcpStream> {
    let mut wire = Wire::connect(addr).await;
    wire.send(ASK).await;
    let reply = wire.response("GET").await;
    assert_eq!(reply.status(), 101);
    wire
}

/// A stream to the records app, of a caller with this certificate and no sidecar.
async fn switched_by(mesh: &Mesh, identity: (&str, &str)) -> Wire<TlsStream<TcpStream>> {
    let mut wire = Wire::new(peer::http1(mesh.records.inbound(), identity).await);
    wire.send(ASK).await;
    assert_eq!(wire.response("GET").await.status(), 101);
    wire
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, text: &str) {
    patiently(stream.write_all(text.as_bytes())).await.unwrap();
    patiently(stream.flush()).await.unwrap();
}

async fn hear<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, text: &str) {
    assert_eq!(String::from_utf8(wire.take(text.len()).await.unwrap()).unwrap(), text);
}

fn completion(trail: &Trail) -> serde_json::Value {
    let completions = trail.completions();
    assert_eq!(completions.len(), 1, "{}", trail.text);
    completions[0]["response"].clone()
}

/// If this fails, WebSockets do not work, or their end is not recorded with what went through.
#[tokio::test]
async fn a_websocket_passes_both_sidecars_and_is_recorded_at_its_end() {
    for leg in ["", ", mesh: h1"] {
        let (app, mut at_app) = echo("hello").await;
        let mesh = Mesh::with(app, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(ASK).await;
        let reply = wire.response("GET").await;
        assert_eq!((reply.status(), reply.header("upgrade")), (101, Some("websocket")));
        assert_eq!(reply.header("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
        assert_eq!(reply.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let asked = patiently(at_app.recv()).await.unwrap();
        assert_eq!(asked.header("upgrade"), Some("websocket"));
        assert_eq!(asked.header("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
        assert_eq!(asked.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));

        hear(&mut wire, "hello").await; // what the app sent with its agreement
        for text in ["one", "two"] {
            say(&mut wire.stream, text).await;
            hear(&mut wire, text).await;
        }
        wire.stream.shutdown().await.unwrap();
        assert_eq!(wire.rest().await, b"bye", "half-closed, the other direction goes on");

        let trail = mesh.trail().await;
        let response = completion(&trail);
        assert_eq!(
            (&response["status"], &response["aborted"]),
            (&101.into(), &false.into()),
            "{leg} {response}"
        );
        assert_eq!(
            (&response["request_bytes"], &response["response_bytes"]),
            (&6.into(), &14.into()),
            "{leg}"
        );
    }
}

/// If this fails, what an eager client sends behind its request is lost.
#[tokio::test]
async fn what_was_sent_ahead_of_the_agreement_arrives() {
    let (app, _at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send([ASK, "early"].concat()).await;
    assert_eq!(wire.response("GET").await.status(), 101);
    hear(&mut wire, "early").await;
}

/// If this fails, an app keeps a session for a caller that is gone, and the trail says that it ended well.
#[tokio::test]
async fn a_caller_that_vanishes_is_seen_by_the_app_and_recorded() {
    let (app, _at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let mut wire = switched(mesh.outbound()).await;
    say(&mut wire.stream, "unheard").await;
    hear(&mut wire, "unheard").await;
    socket2::SockRef::from(&wire.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(wire); // with a reset
    let response = completion(&mesh.trail().await);
    assert_eq!((&response["status"], &response["request_bytes"]), (&101.into(), &7.into()), "{response}");
    assert_eq!(response["aborted"], true);
}

/// If this fails, a client that may fall back to plain HTTP cannot, or its connection is lost with it.
#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_response() {
    for leg in ["", ", mesh: h1"] {
        let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let mesh = Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for _ in 0..2 {
            wire.send(ASK).await;
            assert_eq!(wire.response("GET").await.text(), "ok");
        }
        wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
        assert_eq!(wire.response("GET").await.text(), "ok");
        assert_eq!(mesh.trail().await.completions().len(), 3);
    }
}

/// If this fails, a WebSocket is opened without the right to, or outside of HTTP's rules for it.
#[tokio::test]
async fn an_upgrade_without_the_right_is_refused() {
    let (app, mut at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send(ASK.replace("/open/ws", "/open/admin/ws")).await;
    assert_eq!(wire.response("GET").await.status(), 403);
    drop(mesh);
    assert!(at_app.try_recv().is_err());
}

/// If this fails, a health check, which needs no right and leaves no event, opens a tunnel to the app.
#[tokio::test]
async fn a_health_check_opens_no_tunnel() {
    let (app, mut at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send(ASK.replace("/open/ws", "/healthz")).await;
    assert_eq!(wire.response("GET").await.status(), 502, "the app agreed to what it was not asked");
    assert_eq!(patiently(at_app.recv()).await.unwrap().header("upgrade"), None);
}

/// If this fails, requests are smuggled past the policy inside an HTTP/2 connection that nobody looks into.
#[tokio::test]
async fn an_upgrade_to_h2c_is_served_as_plain_http() {
    let h2c = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let unnamed = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nUpgrade: websocket\r\n\r\n";
    let list = h2c.replace("Upgrade: h2c", "Upgrade: websocket, H2C");
    for request in [h2c, unnamed, &list] {
        let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let mesh = Mesh::with(app.addr, Setup::default()).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(request).await;
        assert_eq!(wire.response("GET").await.status(), 200);
        let seen = app.only();
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(seen.header(name), None, "{seen:?}");
        }
    }
}

/// If this fails, an app that switches unasked, or to something else, opens a tunnel that nobody decided about.
#[tokio::test]
async fn an_agreement_to_what_was_not_asked_is_an_error() {
    let plain = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
    let other = AGREE.replace("Upgrade: websocket", "Upgrade: other");
    let silent = AGREE.replace("Upgrade: websocket\r\n", "");
    for (request, answer) in [(plain, AGREE.to_owned()), (ASK, other), (ASK, silent)] {
        let app = App::start(move |_| (answer.clone().into_bytes(), common::app::After::Keep)).await;
        let mesh = Mesh::with(app.addr, Setup::default()).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(request).await;
        assert_eq!(wire.response("GET").await.status(), 502);
        let response = completion(&mesh.trail().await);
        assert_eq!(response["reason"], "upstream_reset", "{response}");
    }
}

/// If this fails, who lost the right to a stream keeps the stream.
#[tokio::test]
async fn a_stream_ends_when_a_policy_takes_its_right_away() {
    let (app, _at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let mut kept = switched(mesh.outbound()).await;
    let mut taken = Wire::connect(mesh.outbound()).await;
    taken.send(ASK.replace("/open/ws", "/open/feed")).await;
    assert_eq!(taken.response("GET").await.status(), 101);

    let stricter = POLICY.replace("/open/admin/**", "/open/feed");
    std::fs::write(mesh.records.dir.join("policy.yaml"), stricter).unwrap();
    assert_eq!(taken.rest().await, b"");
    say(&mut kept.stream, "still here").await;
    hear(&mut kept, "still here").await;
    drop(kept);
    let trail = mesh.trail().await;
    let revoked =
        trail.completions().iter().filter(|event| event["response"]["reason"] == "access_revoked").count();
    assert_eq!(revoked, 1, "{}", trail.text);
}

/// If this fails, a stream outlives the certificate that it was given on.
#[tokio::test]
async fn a_stream_ends_with_its_peers_certificate() {
    let (app, _at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let (cert, key) = peer::forged(&mesh.pki, &[WEB], (-60, 2));
    let mut wire = switched_by(&mesh, (&cert, &key)).await;
    say(&mut wire.stream, "while it lasts").await;
    hear(&mut wire, "while it lasts").await;
    eventually("the stream is closed", async || !wire.fill().await).await;
    assert_eq!(completion(&mesh.trail().await)["reason"], "peer_expired");
}

/// If this fails, a stream outlives the certificate that this side has shown for it.
#[tokio::test]
async fn a_stream_ends_with_our_own_certificate() {
    let (app, _at_app) = echo("").await;
    let mesh = Mesh::with(app, Setup::default()).await;
    let id = phiward::identity::SpiffeId::parse(common::RECORDS).unwrap();
    let short = mesh.pki.ca.issue(&id, Duration::from_secs(5), rustls_pki_types::UnixTime::now()).unwrap();
    std::fs::write(mesh.records.dir.join("svid.pem"), short.cert_pem).unwrap();
    std::fs::write(mesh.records.dir.join("svid.key"), short.key_pem).unwrap();
    eventually("the short-lived SVID is in use", async || {
        reloads(&mesh.records, "identity", "loaded").await == 1
    })
    .await;
    // A caller without a sidecar, which would end it at the same moment: what it was shown has expired for it too.
    let (cert, key) = peer::forged(&mesh.pki, &[WEB], (-60, 3600));
    let mut wire = switched_by(&mesh, (&cert, &key)).await;
    say(&mut wire.stream, "while it lasts").await;
    hear(&mut wire, "while it lasts").await;
    eventually("the stream is closed", async || !wire.fill().await).await;
    assert_eq!(completion(&mesh.trail().await)["reason"], "peer_expired");
}

/// The CAs that a side believes in from now on; it has taken them for good when this returns.
async fn believes(side: &Side, cas: &[&Pki]) {
    let before = reloads(side, "identity", "loaded").await;
    let bundle: String = cas.iter().map(|pki| pki.ca.cert_pem()).collect();
    std::fs::write(side.dir.join("bundle.pem"), bundle).unwrap();
    eventually("the bundle is in use", async || reloads(side, "identity", "loaded").await > before).await;
}

/// If this fails, whoever stole a CA's key keeps the streams that it bought, after everybody has dropped that CA.
#[tokio::test]
async fn a_stream_ends_when_the_ca_of_the_caller_is_withdrawn() {
    let (app, _at_app) = echo("").await;
    let (mesh, other) = (Mesh::with(app, Setup::default()).await, Pki::new());
    believes(&mesh.records, &[&mesh.pki, &other]).await;
    let (cert, key) = peer::forged(&other, &[WEB], (-60, 3600));
    let mut wire = switched_by(&mesh, (&cert, &key)).await;
    say(&mut wire.stream, "while it lasts").await;
    hear(&mut wire, "while it lasts").await;
    believes(&mesh.records, &[&mesh.pki]).await;
    eventually("the stream is closed", async || !wire.fill().await).await;
    assert_eq!(completion(&mesh.trail().await)["reason"], "untrusted_chain");
}

/// If this fails, our app goes on talking to a server whose CA nobody believes any more.
#[tokio::test]
async fn a_stream_ends_when_the_ca_of_the_server_is_withdrawn() {
    let (app, _at_app) = echo("").await;
    let (mesh, other) =
        (Mesh::with(app, Setup { outbound_extra: "audit: all", ..Setup::default() }).await, Pki::new());
    believes(&mesh.web, &[&mesh.pki, &other]).await;
    believes(&mesh.records, &[&mesh.pki, &other]).await;
    let id = phiward::identity::SpiffeId::parse(common::RECORDS).unwrap();
    let moved = other.ca.issue(&id, Duration::from_secs(3000), rustls_pki_types::UnixTime::now()).unwrap();
    std::fs::write(mesh.records.dir.join("svid.pem"), moved.cert_pem).unwrap();
    std::fs::write(mesh.records.dir.join("svid.key"), moved.key_pem).unwrap();
    eventually("the other CA's SVID is in use", async || {
        reloads(&mesh.records, "identity", "loaded").await == 2
    })
    .await;
    let mut wire = switched(mesh.outbound()).await;
    say(&mut wire.stream, "while it lasts").await;
    hear(&mut wire, "while it lasts").await;
    believes(&mesh.web, &[&mesh.pki]).await;
    eventually("the stream is closed", async || !wire.fill().await).await;
    assert_eq!(completion(&mesh.trails().await.1)["reason"], "untrusted_chain");
}
