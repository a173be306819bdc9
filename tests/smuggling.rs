//! Requests that two servers could read differently: refused, or forwarded in one form that nobody can misread.
//!
//! Every row is sent as raw bytes to the plain outbound port and, over mTLS, straight to the inbound port. At most one
//! request may reach the app, and it never sees two framings. `malformed_http` is what the HTTP library refuses by itself.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::App;
use common::peer;
use common::wire::{Framing, Wire};
use common::{Mesh, Setup, Trail};
use phiward::tls::Alpn;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Outbound,
    Inbound,
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It gets no answer but a refusal, and the trail says this.
    Refused(&'static str),
    /// It reaches the app with this framing and body.
    Arrives(Framing, &'static str),
    /// Its head reaches the app, and the app sees that the body broke off.
    BreaksOff,
}

use Fate::{Arrives, BreaksOff, Refused};

const MALFORMED: Fate = Refused("malformed_http");

/// Sends `bytes` and nothing more, and returns everything that comes back.
async fn send(mesh: &Mesh, port: Port, bytes: &[u8]) -> String {
    let reply = match port {
        Port::Outbound => {
            let mut wire = Wire::connect(mesh.outbound()).await;
            wire.send(bytes).await;
            wire.rest().await
        }
        Port::Inbound => {
            let mut wire = Wire::new(peer::connect(mesh.records.inbound(), &mesh.web.dir, Alpn::Http1).await);
            wire.send(bytes).await;
            wire.rest().await
        }
    };
    String::from_utf8(reply).unwrap()
}

fn rejects(trail: &Trail) -> Vec<String> {
    let rejected = trail.events.iter().filter(|event| event["decision"]["outcome"] == "reject");
    rejected.map(|event| event["decision"]["reason"].as_str().unwrap().to_owned()).collect()
}

async fn check(port: Port, request: &[u8], fate: Fate) {
    let what = format!("{port:?} {:?}", String::from_utf8_lossy(request));
    let app = App::answering(OK).await;
    let limits = "limits: {head_timeout: 300ms, drain_deadline: 2s}";
    let setup = Setup { web_extra: limits, records_extra: limits, ..Setup::default() };
    let mesh = Mesh::with(app.addr, setup).await;
    let reply = send(&mesh, port, request).await;
    let (records, web) = mesh.trails().await;
    let rejects = [rejects(&records), rejects(&web)].concat();
    let seen = app.seen();
    match fate {
        Refused(reason) => {
            assert!(seen.is_empty(), "{what}: {seen:?}");
            assert!(
                reply.is_empty() || reply.starts_with("HTTP/1.1 400 ") || reply.starts_with("HTTP/1.0 400 "),
                "{what}: {reply}"
            );
            assert_eq!(rejects, [reason], "{what}");
        }
        Arrives(framing, body) => {
            assert_eq!((seen.len(), reply.matches("HTTP/1.").count()), (1, 1), "{what}: {reply} {seen:?}");
            assert_eq!((seen[0].framing, seen[0].text()), (framing, body), "{what}");
            assert_eq!(seen[0].all("host"), ["records.clinic"], "{what}");
            assert!(rejects.is_empty(), "{what}: {rejects:?}");
        }
        BreaksOff => {
            assert!(seen.is_empty(), "{what}: {seen:?}");
            assert!(!reply.contains(" 200 "), "{what}: {reply}");
            assert!(records.completions().iter().all(|event| event["response"]["aborted"] == true), "{what}");
        }
    }
}

async fn check_all(table: &[(&str, Fate)]) {
    for (request, fate) in table {
        for port in [Port::Outbound, Port::Inbound] {
            check(port, request.as_bytes(), *fate).await;
        }
    }
}

/// A POST with these framing fields and body.
fn framed(fields: &str, body: &str) -> String {
    format!("POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n{fields}\r\n{body}")
}

/// If this fails, a second request hides in the body of the first (RFC 9112, section 6.3 and 11.2).
#[tokio::test]
async fn lengths_and_codings_that_contradict_each_other_do_not_reach_the_app() {
    let hidden = "0\r\n\r\nGET /open/hidden HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let table = [
        ("Content-Length: 60\r\nTransfer-Encoding: chunked\r\n", hidden, Arrives(Framing::Chunked, "")),
        ("Transfer-Encoding: chunked\r\nContent-Length: 60\r\n", hidden, Arrives(Framing::Chunked, "")),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!", MALFORMED),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello", Arrives(Framing::Length, "hello")),
        ("Content-Length: 5, 5\r\n", "hello", MALFORMED),
        ("Content-Length: +5\r\n", "hello", MALFORMED),
        ("Content-Length: -5\r\n", "hello", MALFORMED),
        ("Content-Length: 0x5\r\n", "hello", MALFORMED),
        ("Content-Length: 5 0\r\n", "hello", MALFORMED),
        ("Content-Length:\r\n", "hello", MALFORMED),
        ("Content-Length: 99999999999999999999999\r\n", "hello", MALFORMED),
        ("Transfer-Encoding: xchunked\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: chunked, identity\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: identity\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", chunks, Refused("transfer_coding")),
        ("Transfer-Encoding: gzip, chunked\r\n", chunks, Refused("transfer_coding")),
        ("Transfer-Encoding: chunked, chunked\r\n", chunks, Refused("transfer_coding")),
        ("Transfer-Encoding:\tchunked \r\n", chunks, Arrives(Framing::Chunked, "hello")),
        ("Transfer-Encoding: \x0bchunked\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: \"chunked\"\r\n", chunks, MALFORMED),
        ("Transfer-Encoding: chunked;q=1\r\n", chunks, MALFORMED),
    ];
    for (fields, body, fate) in table {
        check_all(&[(&framed(fields, body), fate)]).await;
    }
    check_all(&[(
        "POST /open/a HTTP/1.0\r\nHost: records.clinic\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        MALFORMED,
    )])
    .await;
}

/// If this fails, two servers see the end of a chunk in different places.
#[tokio::test]
async fn malformed_chunks_break_the_request_off() {
    let table = [
        ("0x5\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("+5\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("-5\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("5\nhello\r\n0\r\n\r\n", BreaksOff),
        ("5\r\nhelloXX0\r\n\r\n", BreaksOff),
        ("fffffffffffffffff1\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("\r\nhello\r\n0\r\n\r\n", BreaksOff),
        ("5;name=value\r\nhello\r\n0\r\n\r\n", Arrives(Framing::Chunked, "hello")),
        ("005\r\nhello\r\n00\r\n\r\n", Arrives(Framing::Chunked, "hello")),
    ];
    for (body, fate) in table {
        check_all(&[(&framed("Transfer-Encoding: chunked\r\n", body), fate)]).await;
    }
}

/// If this fails, one server sees a header field where the next sees none, or two.
#[tokio::test]
async fn malformed_lines_are_refused() {
    let none = Arrives(Framing::None, "");
    let table = [
        ("GET /open/a HTTP/1.1\nHost: records.clinic\nConnection: close\n\n", none),
        ("\r\nGET /open/a HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n\r\n", none),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX: a\rb\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX: a\r\n b\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX: a\r\n\tb\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\n Host: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX : a\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost : records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX: a\0b\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX\0: a\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n: a\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX\r\n\r\n", MALFORMED),
        ("GET  /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a b HTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a\tHTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a\0 HTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/1.2\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a HTTP/2.0\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("GET /open/a\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("G@T /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n", MALFORMED),
        ("\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n", MALFORMED),
    ];
    check_all(&table).await;
}

/// If this fails, the policy decides about one host and the app serves another.
#[tokio::test]
async fn a_request_names_one_host() {
    let line = "GET /open/a HTTP/1.1\r\nConnection: close\r\n";
    let table = [
        ("Host: records.clinic\r\nHost: records.clinic\r\n", "duplicate_host"),
        ("Host: records.clinic\r\nHost: billing.clinic\r\n", "duplicate_host"),
        ("Host: records.clinic, billing.clinic\r\n", "bad_host"),
        ("Host: user@records.clinic\r\n", "bad_host"),
        ("Host: records.clinic/open\r\n", "bad_host"),
        ("Host: records.clinic:80:80\r\n", "bad_host"),
        ("Host: records%2eclinic\r\n", "bad_host"),
        ("Host:\r\n", "bad_host"),
        ("", "missing_host"),
    ];
    for (hosts, reason) in table {
        check_all(&[(&format!("{line}{hosts}\r\n"), Refused(reason))]).await;
    }
    let absolute =
        "GET http://billing.clinic/open/a HTTP/1.1\r\nConnection: close\r\nHost: records.clinic\r\n\r\n";
    check_all(&[(absolute, Refused("absolute_form_host"))]).await;
}

/// If this fails, a path that the app resolves differently reaches it, or the trail does not say why it was refused.
#[tokio::test]
async fn every_doubtful_target_is_refused_with_its_reason() {
    let long = format!("GET /open/{}", "a".repeat(2100));
    let table = [
        ("GET /open/../a", "dot_segment"),
        ("GET /open/%2E%2e/a", "dot_segment"),
        ("GET /open/./a", "dot_segment"),
        ("GET /open//a", "empty_segment"),
        ("GET /open%2Fa", "encoded_slash"),
        ("GET /open/a\\b", "backslash"),
        ("GET /open/a%5cb", "backslash"),
        ("GET /open/a;b", "semicolon"),
        ("GET /open/a%3Bb", "semicolon"),
        ("GET /open/%252e", "double_encoding"),
        ("GET /open/a%01", "control_byte"),
        ("GET /open/a%00", "nul"),
        ("GET /open/caf\u{e9}", "non_ascii"),
        ("GET /open/a\"b", "illegal_byte"),
        ("GET /open/a{b}", "illegal_byte"),
        ("GET /open/a|b", "illegal_byte"),
        ("GET /open/a%zz", "bad_escape"),
        ("GET /open/a%c0%af", "bad_escape"),
        ("GET /open/a?b=%zz", "bad_query"),
        ("GET *", "not_absolute_path"),
        ("OPTIONS *", "options_asterisk"),
        ("get /open/a", "unknown_method"),
        ("PROPFIND /open/a", "unknown_method"),
        ("POST /open/a?_method=DELETE", "method_override"),
        ("POST /open/a?x=1&%5Fmethod=DELETE", "method_override"),
        ("CONNECT records.clinic:80", "connect"),
        (&long, "path_too_long"),
    ];
    for (line, reason) in table {
        let request = format!("{line} HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n\r\n");
        check_all(&[(&request, Refused(reason))]).await;
    }
    for name in ["X-HTTP-Method-Override", "x_http_method_override", "X-HTTP-Method", "X-Method-Override"] {
        let fields = format!("{name}: DELETE\r\nContent-Length: 0\r\n");
        check_all(&[(&framed(&fields, ""), Refused("method_override"))]).await;
    }
}

/// If this fails, a client says of itself what only phiward may say, in a spelling that the app reads the same.
#[tokio::test]
async fn aliases_of_trusted_fields_do_not_arrive() {
    for port in [Port::Outbound, Port::Inbound] {
        let app = App::answering(OK).await;
        let mesh = Mesh::with(app.addr, Setup::default()).await;
        let fields = "X_Forwarded_Client_Cert: forged\r\nx-forwarded_client-cert: forged\r\nX_Request_Id: forged\r\n\
            X-Phiward-Admin: forged\r\nTraceparent: forged\r\nConnection: x-forwarded-client-cert\r\nContent-Length: 0\r\n";
        send(&mesh, port, framed(fields, "").as_bytes()).await;
        let seen = app.only();
        assert!(seen.headers.iter().all(|(_, value)| value != "forged"), "{seen:?}");
        assert_eq!(seen.all("x-forwarded-client-cert").len(), 1, "{seen:?}");
        assert_eq!(seen.all("x-request-id").len(), 1, "{seen:?}");
    }
}
