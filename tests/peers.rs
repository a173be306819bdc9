//! Peers that the inbound port must turn away: the connection ends, and one event says why.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::time::Duration;

use common::app::App;
use common::wire::{Wire, patiently};
use common::{Mesh, Pki, Setup, WEB, peer};
use phiward::identity::{Ca, SpiffeId, TrustDomain};
use rustls::ClientConfig;
use rustls_pki_types::UnixTime;
use tokio::net::TcpStream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NOW: (i64, i64) = (-60, 600);

async fn mesh() -> (App, Mesh) {
    let app = App::answering(OK).await;
    let setup =
        Setup { records_extra: "limits: {handshake_timeout: 100ms, drain_deadline: 2s}", ..Setup::default() };
    let mesh = Mesh::with(app.addr, setup).await;
    (app, mesh)
}

/// Checks that exactly one event says that a connection was rejected, and why, and that nothing reached the app.
async fn leaves_one_event(app: &App, mesh: Mesh, reason: &str) {
    let trail = mesh.trail().await;
    let rejected = trail.of_type("conn.rejected");
    assert_eq!(rejected.len(), 1, "{reason}: {}", trail.text);
    assert_eq!(rejected[0]["decision"]["reason"], reason);
    assert_eq!(rejected[0]["conn"]["peer_addr"], "127.0.0.1");
    assert_eq!(rejected[0]["conn"]["listener"], "api");
    assert!(trail.decisions().is_empty() && app.seen().is_empty(), "{reason}");
}

/// If this fails, somebody without a valid identity of this trust domain talks to an app, or tries to without a trace.
#[tokio::test]
async fn peers_without_a_valid_identity_are_turned_away() {
    type Shows = fn(&Pki) -> ClientConfig;
    fn forged(pki: &Pki, uris: &[&str], validity: (i64, i64)) -> ClientConfig {
        let (cert, key) = peer::forged(pki, uris, validity);
        peer::showing(Some((&cert, &key)))
    }
    let stranger: Shows = |_| {
        // Another CA that calls itself by the same name.
        let domain = TrustDomain::parse("hospital.local").unwrap();
        let ca = Ca::new(&domain, Duration::from_secs(3600), UnixTime::now()).unwrap();
        let svid =
            ca.issue(&SpiffeId::parse(WEB).unwrap(), Duration::from_secs(600), UnixTime::now()).unwrap();
        peer::showing(Some((&svid.cert_pem, &svid.key_pem)))
    };
    let foreigner: Shows = |_| {
        let domain = TrustDomain::parse("partner.example").unwrap();
        let ca = Ca::new(&domain, Duration::from_secs(3600), UnixTime::now()).unwrap();
        let id = SpiffeId::parse("spiffe://partner.example/ns/clinic/sa/web").unwrap();
        let svid = ca.issue(&id, Duration::from_secs(600), UnixTime::now()).unwrap();
        peer::showing(Some((&svid.cert_pem, &svid.key_pem)))
    };
    let table: [(Shows, &str); 9] = [
        (|_| peer::showing(None), "no_certificate"),
        (stranger, "untrusted_chain"),
        (foreigner, "unknown_trust_domain"),
        (|pki| forged(pki, &["spiffe://partner.example/ns/clinic/sa/web"], NOW), "unknown_trust_domain"),
        (|pki| forged(pki, &[WEB, "spiffe://hospital.local/admin"], NOW), "several_uri_sans"),
        (|pki| forged(pki, &[], NOW), "no_uri_san"),
        (|pki| forged(pki, &["https://hospital.local/web"], NOW), "spiffe_id_invalid"),
        (|pki| forged(pki, &[WEB], (-600, -60)), "expired"),
        (|pki| forged(pki, &[WEB], (300, 600)), "not_yet_valid"),
    ];
    for (shows, reason) in table {
        let (app, mesh) = mesh().await;
        peer::turned_away(mesh.records.inbound(), shows(&mesh.pki)).await;
        leaves_one_event(&app, mesh, reason).await;
    }
}

/// If this fails, what is no TLS at all gets an answer, or leaves no trace.
#[tokio::test]
async fn what_is_no_tls_is_turned_away() {
    for bytes in [
        &b"GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n"[..],
        &[0xFF; 512],
        b"\x16\x03\x01\xff\xff garbage",
    ] {
        let (app, mesh) = mesh().await;
        let mut wire = Wire::connect(mesh.records.inbound()).await;
        wire.send(bytes).await;
        assert!(!String::from_utf8_lossy(&wire.rest().await).contains("HTTP"), "{bytes:?}");
        let reason = if bytes[0] == 0x16 { "tls_error" } else { "not_tls" };
        leaves_one_event(&app, mesh, reason).await;
    }
}

/// If this fails, connections that never say who they are pile up.
#[tokio::test]
async fn a_handshake_that_never_finishes_is_given_up() {
    for begins in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let (app, mesh) = mesh().await;
        let mut wire = Wire::connect(mesh.records.inbound()).await;
        wire.send(begins).await;
        wire.rest().await;
        leaves_one_event(&app, mesh, "handshake_timeout").await;
    }
}

/// If this fails, a port scan or a load balancer's check looks like a slow attack, or leaves no trace.
#[tokio::test]
async fn a_connection_that_closes_at_once_is_recorded() {
    let (app, mesh) = mesh().await;
    drop(TcpStream::connect(mesh.records.inbound()).await.unwrap());
    // The next connection is accepted after the first one.
    let stream = peer::connect(mesh.records.inbound(), &mesh.web.dir, phiward::tls::Alpn::Http1).await;
    let mut wire = Wire::new(stream);
    wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.status(), 200);
    drop(wire);
    let trail = mesh.trail().await;
    let rejected = trail.of_type("conn.rejected");
    assert_eq!(rejected.len(), 1, "{}", trail.text);
    assert_eq!(rejected[0]["decision"]["reason"], "handshake_aborted");
    assert_eq!(app.seen().len(), 1);
}

/// If this fails, a workload whose SVID ran out keeps its access through the connections it has.
#[tokio::test]
async fn a_connection_ends_with_its_peers_certificate() {
    let app = App::answering(OK).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let (cert, key) = peer::forged(&mesh.pki, &[WEB], (-60, 2));
    let config = peer::showing(Some((&cert, &key)));
    let stream = TcpStream::connect(mesh.records.inbound()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = patiently(connector.connect(phiward::tls::dummy_server_name(), stream)).await.unwrap();
    let sender = common::h2::over(stream).await;
    let reply = common::h2::send(&sender, common::h2::request("GET", "/open/a", common::h2::empty())).await;
    assert_eq!(reply.status(), 200);
    common::eventually("the connection is closed", async || sender.is_closed()).await;
}
