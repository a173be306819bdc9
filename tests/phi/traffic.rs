//! What is sent: the marker in every part of requests and connections, right and malformed, at every port.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use phiward::tls::{Alpn, dummy_server_name};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::COLLECTOR;
use crate::common::h2::{self, with_trailers};
use crate::common::wire::{Wire, patiently};
use crate::common::{HOST, Pki, RECORDS, WEB, peer};
use crate::marker::{MARKER, base64, found_in, hex, percent};

/// Requests to the outbound port, each with the status that it gets.
fn requests() -> Vec<(String, u16)> {
    let c = MARKER;
    let (upper, percent, hex, base64) =
        (c.to_uppercase(), percent(c), hex(c), base64(c.as_bytes()).replace(['+', '/'], "_"));
    let get = |target: &str, more: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{more}\r\n")
    };
    let to = |host: &str| format!("GET /open/a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    vec![
        (get(&format!("/fhir/Patient/{c}"), ""), 200),
        (get(&format!("/fhir/Patient/{percent}"), ""), 200),
        (get(&format!("/open/{upper}/{hex}/{base64}?name={percent}&t={base64}&{c}"), ""), 200),
        (
            format!(
                "POST /open/{c}?{c}={c} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nX-{c}: {c}\r\nCookie: {c}={c}\r\n\
                 Authorization: Bearer {c}\r\nUser-Agent: {c}\r\nReferer: http://{c}/{c}\r\nForwarded: for={c}\r\n\
                 X-Forwarded-For: {c}\r\nX-Forwarded-Client-Cert: {c}\r\nX-Request-Id: {c}\r\nTraceparent: {c}\r\n\
                 Tracestate: {c}={c}\r\nContent-Type: {c}/{c}\r\nTransfer-Encoding: chunked\r\nTrailer: X-{c}\r\n\r\n\
                 24;{c}={c}\r\n{c}\r\n0\r\nX-{c}: {c}\r\n\r\n"
            ),
            200,
        ),
        (
            get(
                "/open/a",
                &format!("Authorization: Basic {base64}\r\nX-Encoded: {percent} {hex} {upper}\r\n"),
            ),
            200,
        ),
        (get("/open/a", &format!("Upgrade: {c}\r\n")), 200),
        (get("/open/redirect", ""), 302),
        (get(&format!("/open/admin/{c}"), ""), 403),
        (get(&format!("/elsewhere/{c}/{base64}"), ""), 403),
        (get(&format!("/open//{c}"), ""), 400),
        (get(&format!("/open/../{c}"), ""), 400),
        (get(&format!("/open/{c};{c}={c}"), ""), 400),
        (get(&format!("/open/%2{c}"), ""), 400),
        (get(&format!("/open/{}", percent.replace('%', "%25")), ""), 400),
        (get(&format!("/open/{c}?_method={c}"), ""), 400),
        (get("/open/a", &format!("X-HTTP-Method-Override: {c}\r\n")), 400),
        (get(&format!("/open/a?{c}=%zz"), ""), 400),
        (get(&format!("http://{c}.example/{c}"), ""), 400),
        (get("/open/a", &format!("Transfer-Encoding: {c}, chunked\r\n")), 400),
        (get("/open/a", &format!("Content-Length: {c}\r\n")), 400),
        (get("/open/a", &format!("Host: {c}\r\n")), 400),
        (to(&format!("{c}.example")), 404),
        (to(&format!("{c}@{HOST}")), 400),
        (to(&format!("{HOST}:{c}")), 400),
        (format!("{c} /open/a HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"), 400),
        (
            format!("CONNECT {c}.example:443 HTTP/1.1\r\nHost: {c}.example:443\r\nConnection: close\r\n\r\n"),
            400,
        ),
        (format!("GET /{c} HTTP/1.1\r\nHost: {HOST}\r\n{c}\r\n\r\n"), 400),
        (format!("GET /{c} {c}/1.1\r\nHost: {HOST}\r\n\r\n"), 400),
        (format!("GET /open/a HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", c.repeat(2000)), 431),
        (get("/open/broken", ""), 502),
    ]
}

/// Everything at the outbound port, as an app would send it.
pub async fn to_outbound(addr: SocketAddr) {
    for (request, status) in requests() {
        let mut wire = Wire::connect(addr).await;
        wire.send(&request).await;
        let reply = wire.response("GET").await;
        assert_eq!(reply.status(), status, "{request}");
        let refused = status >= 400;
        assert!(!refused || found_in(format!("{reply:?}").as_bytes()).is_none(), "{request}: {reply:?}");
    }
    over_http2(addr).await;
    upgraded(addr).await;
    broken_off(addr).await;
    client_hello(addr, None).await;
}

/// Path, header, body and trailers, up and down; a method and a host that nobody knows.
async fn over_http2(addr: SocketAddr) {
    let sender = h2::connect(addr).await;
    let trailers = || Some(HeaderMap::from_iter([(header_name(), HeaderValue::from_static(MARKER))]));
    let body = with_trailers(MARKER, trailers());
    let reply = h2::send(&sender, h2::request("POST", &format!("/open/{MARKER}"), body)).await;
    assert_eq!(reply.status(), 200);
    h2::collect(reply.into_body()).await.unwrap();
    let foreign = format!("http://{MARKER}.example/{MARKER}");
    for (method, uri, status) in [
        (MARKER, format!("http://{HOST}/open/a"), 400),
        ("GET", foreign, 404),
        ("GET", format!("http://{HOST}/{MARKER}"), 403),
    ] {
        let request = Request::builder().method(method).uri(&uri).header(header_name(), MARKER);
        let reply = h2::send(&sender, request.body(h2::empty()).unwrap()).await;
        assert_eq!(reply.status(), status, "{method} {uri}");
        let (body, _) = h2::collect(reply.into_body()).await.unwrap();
        assert_eq!(found_in(&body), None, "{method} {uri}");
    }
}

fn header_name() -> http::HeaderName {
    format!("x-{MARKER}").parse().unwrap()
}

/// Bytes that are HTTP no longer, both ways.
async fn upgraded(addr: SocketAddr) {
    let mut wire = Wire::connect(addr).await;
    wire.send(format!(
        "GET /open/ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: {MARKER}\r\n\r\n",
        base64(MARKER.as_bytes())
    ))
    .await;
    assert_eq!(wire.response("GET").await.status(), 101);
    wire.send(MARKER).await;
    assert_eq!(wire.take(MARKER.len()).await.as_deref(), Some(MARKER.as_bytes()));
}

/// A client that goes away in the middle: of a head, of a body.
async fn broken_off(addr: SocketAddr) {
    for part in [
        format!("GET /open/{MARKER} HTTP/1.1\r\nX-{MARKER}: {MARKER}"),
        format!("POST /open/{MARKER} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9999\r\n\r\n{MARKER}"),
        format!("POST /open/a HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{MARKER}\r\n"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{MARKER}{MARKER}"),
        format!("{MARKER}\r\n\r\n"),
    ] {
        let mut wire = Wire::connect(addr).await;
        wire.send(part).await;
        patiently(wire.stream.shutdown()).await.unwrap();
        assert_eq!(found_in(&wire.rest().await), None);
    }
}

/// A handshake that asks for a name with the marker in it: at a port without TLS, or with a certificate or none.
async fn client_hello(addr: SocketAddr, certificate: Option<(&str, &str)>) {
    let name = ServerName::try_from(format!("{MARKER}.clinic")).unwrap();
    let mut config = peer::showing(certificate);
    config.alpn_protocols = vec![MARKER.into(), b"h2".to_vec()];
    let stream = TcpStream::connect(addr).await.unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    if let Ok(mut stream) = patiently(connected).await {
        // TLS 1.3: the client is done before it is judged.
        drop(stream.write_all(MARKER.as_bytes()).await);
        drop(stream.shutdown().await);
        let mut rest = Vec::new();
        drop(patiently(stream.read_to_end(&mut rest)).await);
        assert_eq!(found_in(&rest), None);
    }
}

/// Everything at the port of the mesh: names in handshakes, certificates, and what a peer that is let in can send.
pub async fn to_inbound(addr: SocketAddr, pki: &Pki, web: &Path) {
    let file = |name: &str| std::fs::read_to_string(web.join(name)).unwrap();
    handshakes(addr, pki, (&file("svid.pem"), &file("svid.key"))).await;
    for (request, _) in requests() {
        let mut wire = Wire::new(let_in(addr, web, RECORDS).await);
        wire.send(&request).await;
        // What is malformed as HTTP gets no words; what the app says may hold what it likes.
        if let Some(reply) = patiently(wire.try_response("GET")).await {
            let refused = reply.status() >= 400;
            assert!(!refused || found_in(format!("{reply:?}").as_bytes()).is_none(), "{request}: {reply:?}");
        }
    }
    let stream = peer::connect(addr, web, Alpn::H2).await;
    let sender = h2::over(stream).await;
    let request =
        Request::builder().method(MARKER).uri(format!("https://{MARKER}.example/{MARKER}?{MARKER}"));
    let reply =
        h2::send(&sender, request.body(h2::full(Bytes::from_static(MARKER.as_bytes()))).unwrap()).await;
    assert!(reply.status().as_u16() >= 400);
    assert_eq!(found_in(format!("{:?}", reply.headers()).as_bytes()), None);
}

/// Names in handshakes and certificates, and no handshake at all.
async fn handshakes(addr: SocketAddr, pki: &Pki, svid: (&str, &str)) {
    client_hello(addr, None).await;
    client_hello(addr, Some(svid)).await;
    let odd = format!("spiffe://hospital.local/{MARKER}");
    for uris in [&[WEB, &*odd][..], &[&*format!("https://{MARKER}.example/")], &[&*format!("{odd}/%41")]] {
        let (certificate, key) = peer::forged(pki, uris, (-60, 600));
        client_hello(addr, Some((&certificate, &key))).await;
    }
    let mut plain = Wire::connect(addr).await;
    plain.send(format!("GET /{MARKER} HTTP/1.1\r\nHost: {MARKER}\r\n\r\n")).await;
    assert_eq!(found_in(&plain.rest().await), None);
}

/// A connection for HTTP/1.1 to `server` as the workload whose files are in `web`.
async fn let_in(addr: SocketAddr, web: &Path, server: &str) -> TlsStream<TcpStream> {
    let expected = Arc::from([phiward::identity::SpiffeId::parse(server).unwrap()]);
    let config = peer::settings(web).client(expected, Alpn::Http1);
    let stream = TcpStream::connect(addr).await.unwrap();
    patiently(TlsConnector::from(config).connect(dummy_server_name(), stream)).await.unwrap()
}

/// The port of the collector: what is no record, from a sender that it knows. (A record that says what it must not is kept: it is
/// evidence against its sender.)
pub async fn to_collector(addr: SocketAddr, pki: &Pki, web: &Path) {
    let c = MARKER;
    let file = |name: &str| std::fs::read_to_string(web.join(name)).unwrap();
    handshakes(addr, pki, (&file("svid.pem"), &file("svid.key"))).await;
    let post = |target: &str, body: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: {c}\r\nX-{c}: {c}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    for (request, status) in [
        (post(&format!("/{c}?{c}"), c), 404),
        (post(&format!("/v1/events?{c}"), c), 400),
        (format!("{c} /v1/events HTTP/1.1\r\nHost: {c}\r\nConnection: close\r\n\r\n"), 405),
        (format!("POST /v1/events HTTP/1.1\r\n{c}\r\n\r\n"), 400),
    ] {
        let mut wire = Wire::new(let_in(addr, web, COLLECTOR).await);
        wire.send(&request).await;
        let reply = wire.response("POST").await;
        assert_eq!(reply.status(), status, "{request}");
        assert_eq!(found_in(format!("{reply:?}").as_bytes()), None, "{request}: {reply:?}");
    }
}

/// Probe ports and admin endpoints, asked for what they do not have.
pub async fn to_side_ports(addrs: &[SocketAddr]) {
    for addr in addrs.iter().copied() {
        for target in
            [format!("/{MARKER}"), format!("/healthz?{MARKER}={MARKER}"), format!("/{}", percent(MARKER))]
        {
            let mut wire = Wire::connect(addr).await;
            wire.send(format!(
                "GET {target} HTTP/1.1\r\nHost: {MARKER}\r\nX-{MARKER}: {MARKER}\r\nConnection: close\r\n\r\n"
            ))
            .await;
            let reply = wire.response("GET").await;
            assert!(
                reply.status() == 200 || found_in(format!("{reply:?}").as_bytes()).is_none(),
                "{reply:?}"
            );
        }
    }
}
