//! HTTP/2 requests that an HTTP/1.1 app could read differently, as raw frames: refused, or forwarded in one form.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::App;
use common::frames::{
    DATA, END_HEADERS, END_STREAM, Fields, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame,
};
use common::peer;
use common::wire::{Framing, patiently};
use common::{Mesh, Setup, Trail};
use phiward::tls::Alpn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

const USUAL: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "records.clinic"), (":path", "/open/a")];

/// One request with these fields and body.
fn request(fields: Fields<'_>, body: &[u8]) -> Vec<u8> {
    let head_ends = if body.is_empty() { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, END_HEADERS | head_ends, 1, &block(fields));
    if !body.is_empty() {
        bytes.extend(frame(DATA, END_STREAM, 1, body));
    }
    bytes
}

/// Sends frames and reads until the stream or the connection is over; returns the kinds of what came for it.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, frames: &[u8]) -> Vec<u8> {
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, b""), frames].concat();
    patiently(stream.write_all(&opening)).await.unwrap();
    patiently(stream.flush()).await.unwrap();
    let mut kinds = Vec::new();
    let mut head = [0; 9];
    while patiently(stream.read_exact(&mut head)).await.is_ok() {
        let [_, a, b, c, kind, flags, ..] = {
            let mut h = [0; 10];
            h[1..].copy_from_slice(&head);
            h
        };
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        patiently(stream.read_exact(&mut payload)).await.unwrap();
        if [DATA, HEADERS, RST_STREAM, GOAWAY].contains(&kind) {
            kinds.push(kind);
        }
        let over = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if over || matches!(kind, RST_STREAM | GOAWAY) {
            break;
        }
    }
    kinds
}

struct Outcome {
    app: App,
    kinds: Vec<u8>,
    rejects: Vec<String>,
    records: Trail,
}

async fn exchange(inbound: bool, frames: &[u8]) -> Outcome {
    let app = App::answering(OK).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let kinds = if inbound {
        talk(peer::connect(mesh.records.inbound(), &mesh.web.dir, Alpn::H2).await, frames).await
    } else {
        talk(TcpStream::connect(mesh.outbound()).await.unwrap(), frames).await
    };
    let (records, web) = mesh.trails().await;
    let events = records.events.iter().chain(&web.events);
    let rejected = events.filter(|event| event["decision"]["outcome"] == "reject");
    let rejects = rejected.map(|event| event["decision"]["reason"].as_str().unwrap().to_owned()).collect();
    Outcome { app, kinds, rejects, records }
}

fn usual_and<'a>(more: Fields<'a>) -> Vec<(&'a str, &'a str)> {
    [&USUAL[..], more].concat()
}

/// If this fails, the policy decides about one host, method or path, and the app serves another.
#[tokio::test]
async fn pseudo_fields_and_fields_must_agree() {
    let path = |path| [&USUAL[..3], &[(":path", path)]].concat();
    let table = [
        (usual_and(&[("host", "billing.clinic")]), "host_authority"),
        (usual_and(&[("host", "records.clinic"), ("host", "records.clinic")]), "duplicate_host"),
        (usual_and(&[("host", "records.clinic, billing.clinic")]), "bad_host"),
        (usual_and(&[("x-http-method-override", "DELETE")]), "method_override"),
        (path("*"), "not_absolute_path"),
        (path("/open/../a"), "dot_segment"),
        (path("/open/a?_method=DELETE"), "method_override"),
        ([&USUAL[..2], &USUAL[3..]].concat(), "missing_host"),
    ];
    for (fields, reason) in &table {
        for inbound in [false, true] {
            let outcome = exchange(inbound, &request(fields, b"")).await;
            assert_eq!(outcome.rejects, [*reason], "{inbound} {fields:?}");
            assert_eq!(outcome.kinds[0], HEADERS, "{inbound} {fields:?}: it is told so");
            assert!(outcome.app.seen().is_empty(), "{inbound} {fields:?}");
        }
    }
    for inbound in [false, true] {
        let outcome = exchange(inbound, &request(&usual_and(&[("host", "records.clinic")]), b"")).await;
        assert_eq!(outcome.app.only().all("host"), ["records.clinic"], "{inbound}");
        assert!(outcome.rejects.is_empty());
    }
}

/// If this fails, a field that frames an HTTP/1.1 message is smuggled into one (RFC 9113, sections 8.2 and 8.3). The
/// HTTP library resets such a stream before there is a request, so it leaves no event.
#[tokio::test]
async fn malformed_requests_reset_their_stream() {
    let without = |name| USUAL.iter().filter(|field| field.0 != name).copied().collect::<Vec<_>>();
    let table = [
        usual_and(&[("connection", "close")]),
        usual_and(&[("transfer-encoding", "chunked")]),
        usual_and(&[("keep-alive", "timeout=5")]),
        usual_and(&[("proxy-connection", "keep-alive")]),
        usual_and(&[("upgrade", "websocket")]),
        usual_and(&[("te", "gzip")]),
        usual_and(&[("X-Upper", "1")]),
        usual_and(&[("x-crlf", "1\r\nx-smuggled: 1")]),
        usual_and(&[("x-nul", "1\0")]),
        usual_and(&[("x name", "1")]),
        usual_and(&[("x-name:", "1")]),
        usual_and(&[("x", "1"), (":path", "/open/b")]),
        usual_and(&[(":path", "/open/b")]),
        usual_and(&[(":authority", "billing.clinic")]),
        usual_and(&[(":status", "200")]),
        usual_and(&[("content-length", "5"), ("content-length", "6")]),
        without(":method"),
        without(":path"),
        [&without(":method")[..], &[(":method", "GET /open/b HTTP/1.1\r\nx: ")]].concat(),
        [&without(":path")[..], &[(":path", "/open/b HTTP/1.1\r\nx: ")]].concat(),
        [&without(":path")[..], &[(":path", "")]].concat(),
        [&without(":authority")[..], &[(":authority", "records.clinic\r\nx: 1")]].concat(),
    ];
    for fields in &table {
        for inbound in [false, true] {
            let outcome = exchange(inbound, &request(fields, b"")).await;
            assert!(outcome.app.seen().is_empty(), "{inbound} {fields:?}: {:?}", outcome.app.seen());
            assert!(outcome.records.decisions().is_empty(), "{inbound} {fields:?}: {}", outcome.records.text);
            assert!(
                matches!(outcome.kinds[..], [] | [RST_STREAM] | [GOAWAY] | [HEADERS, ..]),
                "{inbound} {fields:?}: {:?}",
                outcome.kinds
            );
        }
    }
}

/// If this fails, the app takes the end of one body for the start of the next request.
#[tokio::test]
async fn a_length_that_is_not_that_of_the_data_never_looks_whole() {
    for inbound in [false, true] {
        for (length, body) in
            [("5", &b"abc"[..]), ("3", b"abcGET /open/hidden HTTP/1.1\r\nHost: records.clinic\r\n\r\n")]
        {
            let outcome = exchange(inbound, &request(&usual_and(&[("content-length", length)]), body)).await;
            assert!(outcome.app.seen().is_empty(), "{inbound} {length}: {:?}", outcome.app.seen());
            for completion in outcome.records.completions() {
                assert_eq!(completion["response"]["aborted"], true, "{inbound} {length}");
            }
        }
        let outcome = exchange(inbound, &request(&usual_and(&[("content-length", "3")]), b"abc")).await;
        let seen = outcome.app.only();
        assert_eq!((seen.framing, seen.text()), (Framing::Length, "abc"));
    }
}

/// If this fails, a peer that attacks the protocol itself leaves no trace.
#[tokio::test]
async fn a_connection_that_breaks_the_protocol_leaves_an_event() {
    let table = [
        frame(DATA, 0, 1, b"data on a stream that was never opened"),
        frame(SETTINGS, 0, 0, b"half a setting"),
        frame(HEADERS, END_HEADERS, 2, &block(&USUAL)),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        b"not a frame of any kind, and much longer than one".to_vec(),
    ];
    for frames in &table {
        for inbound in [false, true] {
            let outcome = exchange(inbound, frames).await;
            assert_eq!(outcome.rejects, ["malformed_http"], "{inbound} {frames:?} {:?}", outcome.kinds);
            assert!(outcome.app.seen().is_empty());
        }
    }
}
