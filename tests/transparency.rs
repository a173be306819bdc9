//! HTTP/1 applications on both sides do not notice the proxy: what one sends, the other gets.
//!
//! Everything runs twice: over HTTP/2 between the sidecars (the default), and over HTTP/1.1.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::{After, App};
use common::wire::{Framing, Message, Wire};
use common::{Mesh, Setup};

const LEGS: [&str; 2] = ["", ", mesh: h1"];
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn mesh(app: &App, leg: &str) -> Mesh {
    Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await
}

/// One exchange on a mesh of its own: what reached the app, and what came back.
async fn exchange(leg: &str, request: &str, answer: &'static str) -> (Message, Message) {
    let (app, reply) = exchange_with(leg, request, App::answering(answer).await).await;
    (app.only(), reply)
}

async fn exchange_with(leg: &str, request: &str, app: App) -> (App, Message) {
    let mesh = mesh(&app, leg).await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send(request).await;
    let reply = wire.response(request.split(' ').next().unwrap()).await;
    drop(wire);
    let trail = mesh.trail().await;
    let aborted = trail.completions().iter().filter(|event| event["response"]["aborted"] == true).count();
    assert_eq!(aborted, 0, "{}", trail.text);
    (app, reply)
}

/// If this fails, a client of the nineties (or a health check that looks like one) gets no answer, or one without an end.
#[tokio::test]
async fn http_1_0_with_a_host_works_and_closes() {
    for leg in LEGS {
        let request = "GET /open/a HTTP/1.0\r\nHost: records.clinic\r\n\r\n";
        let (seen, reply) = exchange(leg, request, OK).await;
        assert_eq!(seen.start, "GET /open/a HTTP/1.1");
        assert_eq!((reply.start.as_str(), reply.text()), ("HTTP/1.0 200 OK", "ok"));

        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let (_, reply) = exchange(leg, request, chunked).await;
        assert_eq!((reply.framing, reply.text()), (Framing::UntilClose, "abc"), "{reply:?}");
    }
}

/// If this fails, an HTTP/1.0 client that asks for a persistent connection pays a connection a request, or hangs.
#[tokio::test]
async fn http_1_0_with_keep_alive_keeps_the_connection() {
    for leg in LEGS {
        let app = App::answering(OK).await;
        let mesh = mesh(&app, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for _ in 0..2 {
            wire.send("GET /open/a HTTP/1.0\r\nHost: records.clinic\r\nConnection: keep-alive\r\n\r\n").await;
            let reply = wire.response("GET").await;
            assert_eq!((reply.text(), reply.header("connection")), ("ok", Some("keep-alive")));
        }
    }
}

/// If this fails, a request that names no host is routed by guess.
#[tokio::test]
async fn http_1_0_without_a_host_is_told_so() {
    let app = App::answering(OK).await;
    let mesh = mesh(&app, "").await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send("GET /open/a HTTP/1.0\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.status(), 400);
    let (_, web) = mesh.trails().await;
    assert_eq!(web.reasons(), ["missing_host"]);
    assert!(app.seen().is_empty());
}

/// If this fails, `HTTP_PROXY` does not work, or reaches another host than the one that was checked.
#[tokio::test]
async fn absolute_form_is_reduced_and_must_agree_with_host() {
    for leg in LEGS {
        let request = "GET http://records.clinic/open/a?b=c HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
        let (seen, reply) = exchange(leg, request, OK).await;
        assert_eq!(
            (seen.start.as_str(), seen.header("host")),
            ("GET /open/a?b=c HTTP/1.1", Some("records.clinic"))
        );
        assert_eq!(reply.status(), 200);
    }
    let app = App::answering(OK).await;
    let mesh = mesh(&app, "").await;
    for host in ["billing.clinic", "records.clinic:81"] {
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(format!("GET http://records.clinic:80/open/a HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(wire.response("GET").await.status(), 400, "{host}");
    }
    let (_, web) = mesh.trails().await;
    assert_eq!(web.reasons(), ["absolute_form_host", "absolute_form_host"]);
    assert!(app.seen().is_empty());
}

/// If this fails, HEAD hangs for a body that never comes, or loses the length that it was sent for.
#[tokio::test]
async fn head_keeps_the_length_and_has_no_body() {
    for leg in LEGS {
        let request = "HEAD /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
        let (_, reply) = exchange(leg, request, "HTTP/1.1 200 OK\r\nContent-Length: 4711\r\n\r\n").await;
        assert_eq!(reply.header("content-length"), Some("4711"));
        assert_eq!(reply.all("transfer-encoding"), [""; 0]);

        let (_, reply) = exchange(leg, request, "HTTP/1.1 200 OK\r\nETag: x\r\n\r\n").await;
        assert_eq!(reply.header("content-length"), None, "no length is made up: {reply:?}");
    }
}

/// If this fails, clients wait for a body that these statuses never have, or are sent one.
#[tokio::test]
async fn statuses_without_a_body_have_none() {
    for leg in LEGS {
        let request = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
        for answer in ["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"] {
            let (_, reply) = exchange(leg, request, answer).await;
            assert_eq!(reply.start, answer.lines().next().unwrap());
            assert_eq!(
                (reply.header("content-length"), reply.header("transfer-encoding")),
                (None, None),
                "{answer}"
            );
        }
        let answer = "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n";
        let (_, reply) = exchange(leg, request, answer).await;
        assert_eq!(reply.status(), 304);
        let answer =
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let (_, reply) = exchange(leg, request, answer).await;
        assert_eq!((reply.status(), reply.text()), (200, "ok"), "an interim response is not the response");
    }
}

/// If this fails, requests change their framing on the way: an app that expects a length gets chunks, or waits for ever.
#[tokio::test]
async fn request_framing_arrives_as_it_was_sent() {
    let table = [
        ("GET", "", "", Framing::None, ""),
        ("DELETE", "", "", Framing::None, ""),
        ("POST", "Content-Length: 0\r\n", "", Framing::Length, ""),
        ("POST", "Content-Length: 5\r\n", "hello", Framing::Length, "hello"),
        ("GET", "Content-Length: 5\r\n", "hello", Framing::Length, "hello"),
        (
            "POST",
            "Transfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
            Framing::Chunked,
            "hello!",
        ),
        ("GET", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", Framing::Chunked, "hello"),
        ("POST", "Transfer-Encoding: Chunked\r\n", "5\r\nhello\r\n0\r\n\r\n", Framing::Chunked, "hello"),
    ];
    for leg in LEGS {
        for (method, header, body, framing, arrives) in table {
            let request = format!("{method} /open/a HTTP/1.1\r\nHost: records.clinic\r\n{header}\r\n{body}");
            let (seen, reply) = exchange(leg, &request, OK).await;
            assert_eq!((seen.framing, seen.text()), (framing, arrives), "{leg} {request}");
            assert_eq!(reply.status(), 200, "{leg} {request}");
        }
    }
}

/// If this fails, a response's end is told in another way than the client can read, or its bytes change.
#[tokio::test]
async fn response_framing_arrives_in_a_form_that_the_client_can_read() {
    let table = [
        ("Content-Length: 2\r\n\r\nok", After::Keep, Framing::Length, "ok"),
        ("Content-Length: 0\r\n\r\n", After::Keep, Framing::Length, ""),
        (
            "Transfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            After::Keep,
            Framing::Chunked,
            "ok",
        ),
        ("\r\nok", After::Close, Framing::Chunked, "ok"),
        ("Connection: close\r\nContent-Length: 2\r\n\r\nok", After::Close, Framing::Length, "ok"),
    ];
    for leg in LEGS {
        for (rest, after, framing, text) in table {
            let app = App::start(move |_| (format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes(), after)).await;
            let request = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
            let (_, reply) = exchange_with(leg, request, app).await;
            assert_eq!((reply.framing, reply.text()), (framing, text), "{leg} {rest:?}");
        }
    }
}

/// If this fails, what one hop says to the next leaks to the other end, or a client takes fields away from the app.
#[tokio::test]
async fn fields_that_connection_names_stay_on_their_hop() {
    let request = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nConnection: x-one\r\nConnection: keep-alive, X-Two\r\n\
        Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nConnection: x-four\r\nConnection: X-Five\r\nKeep-Alive: timeout=5\r\nX-Four: 4\r\n\
        X-Five: 5\r\nX-Six: 6\r\nContent-Length: 2\r\n\r\nok";
    for leg in LEGS {
        let (seen, reply) = exchange(leg, request, answer).await;
        for gone in ["connection", "keep-alive", "proxy-connection", "te", "x-one", "x-two"] {
            assert_eq!(seen.header(gone), None, "{gone}");
        }
        assert_eq!(seen.header("x-three"), Some("3"));
        for gone in ["keep-alive", "x-four", "x-five"] {
            assert_eq!(reply.header(gone), None, "{gone}");
        }
        assert_eq!(reply.header("x-six"), Some("6"));
    }
}

/// If this fails, cookies are merged or lost, or lists change their order.
#[tokio::test]
async fn repeated_fields_stay_apart_and_in_order() {
    let request = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nAccept: b\r\nX-Other: 1\r\nAccept: a\r\nAccept: c\r\n\
        X-Empty:\r\nX-Latin: caf\u{e9}\r\n\r\n";
    let answer =
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nContent-Length: 2\r\nSet-Cookie: b=2\r\n\r\nok";
    for leg in LEGS {
        let (seen, reply) = exchange(leg, request, answer).await;
        assert_eq!(seen.all("accept"), ["b", "a", "c"]);
        assert_eq!((seen.header("x-empty"), seen.header("x-latin")), (Some(""), Some("caf\u{e9}")));
        assert_eq!(reply.all("set-cookie"), ["a=1; Path=/", "b=2"]);
    }
}

/// If this fails, checksums and signatures that come after a body are lost on the way.
#[tokio::test]
async fn declared_trailers_pass_both_ways() {
    let request = "POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\
        Trailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Total\r\n\r\n2\r\nok\r\n0\r\nX-Total: 8\r\n\r\n";
    for leg in LEGS {
        let (seen, reply) = exchange(leg, request, answer).await;
        assert_eq!(
            (seen.text(), &*seen.trailers),
            ("hi", &[("x-sum".to_owned(), "7".to_owned())][..]),
            "{leg}"
        );
        assert_eq!(
            (reply.text(), &*reply.trailers),
            ("ok", &[("x-total".to_owned(), "8".to_owned())][..]),
            "{leg}"
        );
        assert_eq!(seen.header("te"), Some("trailers"));
    }
}

/// If this fails, each request costs a connection, or requests that were sent ahead are lost or answered out of order.
#[tokio::test]
async fn connections_are_reused_and_requests_may_be_sent_ahead() {
    for leg in LEGS {
        let echo = |request: &Message| {
            let target = request.start.split(' ').nth(1).unwrap();
            (
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len()).into_bytes(),
                After::Keep,
            )
        };
        let app = App::start(echo).await;
        let mesh = mesh(&app, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for target in ["/open/1", "/open/2"] {
            wire.send(format!("GET {target} HTTP/1.1\r\nHost: records.clinic\r\n\r\n")).await;
            assert_eq!(wire.response("GET").await.text(), target);
        }
        let ahead = ["/open/3", "/open/4", "/open/5"];
        wire.send(ahead.map(|t| format!("GET {t} HTTP/1.1\r\nHost: records.clinic\r\n\r\n")).concat()).await;
        for target in ahead {
            assert_eq!(wire.response("GET").await.text(), target);
        }
        assert_eq!(app.connections(), 1, "{leg}");
    }
}

/// If this fails, uploads of careful clients (curl above 1 MiB) stall for a second each, or for ever.
#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    for leg in LEGS {
        let app = App::answering(OK).await;
        let mesh = mesh(&app, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send("PUT /open/a HTTP/1.1\r\nHost: records.clinic\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
        assert_eq!(wire.response("PUT").await.status(), 100);
        wire.send("hello").await;
        assert_eq!(wire.response("PUT").await.status(), 200);
        assert_eq!(app.only().text(), "hello");
    }
}

/// If this fails, CORS pre-flights break, or targets that name no path reach an app.
#[tokio::test]
async fn options_needs_a_path_and_connect_is_refused() {
    let request = "OPTIONS /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
    for leg in LEGS {
        let (seen, reply) = exchange(leg, request, OK).await;
        assert_eq!((seen.start.as_str(), reply.status()), ("OPTIONS /open/a HTTP/1.1", 200));
        let app = App::answering(OK).await;
        let mesh = mesh(&app, leg).await;
        for line in ["OPTIONS *", "CONNECT records.clinic:80"] {
            let mut wire = Wire::connect(mesh.outbound()).await;
            wire.send(format!("{line} HTTP/1.1\r\nHost: records.clinic\r\n\r\n")).await;
            assert_eq!(wire.response("GET").await.status(), 400, "{line}");
        }
        let (records, web) = mesh.trails().await;
        let reasons = [records.reasons(), web.reasons()].concat();
        assert_eq!(reasons, ["options_asterisk", "connect"], "{leg}");
        assert!(app.seen().is_empty());
    }
}

/// If this fails, requests with large cookies or tokens fail; or heads may grow without bound; or nobody learns of it.
#[tokio::test]
async fn heads_up_to_the_limit_pass_and_beyond_it_get_431() {
    for leg in LEGS {
        let app = App::answering(OK).await;
        let mesh = mesh(&app, leg).await;
        for (size, status) in [(60 * 1024, 200), (65 * 1024, 431), (1024 * 1024, 431)] {
            let mut wire = Wire::connect(mesh.outbound()).await;
            let value = "x".repeat(size);
            wire.send(format!("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\nX-Large: {value}\r\n\r\n"))
                .await;
            assert_eq!(wire.response("GET").await.status(), status, "{leg} {size}");
        }
        assert_eq!(app.only().header("x-large").map(str::len), Some(60 * 1024));
        let (_, web) = mesh.trails().await;
        let rejected = web.of_type("conn.rejected");
        assert_eq!(rejected.len(), 2, "{leg} {}", web.text);
        assert!(rejected.iter().all(|event| event["decision"]["reason"] == "head_too_large"), "{}", web.text);
    }
}

/// If this fails, an app's large response heads (many cookies) become errors.
#[tokio::test]
async fn large_response_heads_pass() {
    for leg in LEGS {
        let app = App::start(|_| {
            let value = "x".repeat(60 * 1024);
            (
                format!("HTTP/1.1 200 OK\r\nX-Large: {value}\r\nContent-Length: 2\r\n\r\nok").into_bytes(),
                After::Keep,
            )
        })
        .await;
        let request = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
        let (_, reply) = exchange_with(leg, request, app).await;
        assert_eq!(reply.header("x-large").map(str::len), Some(60 * 1024), "{leg}");
    }
}
