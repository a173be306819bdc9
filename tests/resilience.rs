//! Upstreams that come and go: connections that were closed while idle, dead endpoints, apps that start late.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use common::app::{After, App, accepting};
use common::frames::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame};
use common::h2;
use common::wire::{Wire, patiently};
use common::{HOST, Mesh, Pki, RECORDS, Setup, Side, WEB, client, eventually, nobody, peer};
use http::Response;
use phiward::tls::Alpn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// If this fails, apps that close idle connections cause 502s (the oldest complaint about sidecars).
#[tokio::test]
async fn a_connection_that_the_app_closed_while_idle_costs_no_request() {
    for leg in ["", ", mesh: h1"] {
        let app = App::start(|_| (OK.as_bytes().to_vec(), After::Close)).await;
        let mesh = Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for round in 0..100 {
            let body = format!("round {round}");
            let head =
                format!("POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: {}", body.len());
            wire.send(format!("{head}\r\n\r\n{body}")).await;
            assert_eq!(wire.response("POST").await.status(), 200, "{leg} {round}");
        }
        assert_eq!(app.seen().len(), 100, "{leg}: none was sent twice");
        assert_eq!(mesh.trail().await.completions().len(), 100);
    }
}

/// If this fails, a request that may have had its effect is sent twice.
#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let app = App::start(|_| (Vec::new(), After::Close)).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    for method in ["GET", "POST"] {
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(format!(
            "{method} /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: 2\r\n\r\nhi"
        ))
        .await;
        let reply = wire.response(method).await;
        assert_eq!(reply.status(), 502);
        assert!(reply.text().contains("upstream_reset"), "{}", reply.text());
    }
    assert_eq!(app.seen().len(), 2);
}

/// If this fails, what an app says that is no HTTP reaches a client, or crashes the sidecar.
#[tokio::test]
async fn an_app_that_speaks_no_http_is_a_bad_gateway() {
    let answers = [
        "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 20x OK\r\n\r\n",
    ];
    for answer in answers {
        let app = App::start(move |_| (answer.as_bytes().to_vec(), After::Close)).await;
        let mesh = Mesh::with(app.addr, Setup::default()).await;
        assert_eq!(client::get(mesh.outbound(), "/open/a").await.status, 502, "{answer:?}");
        let trail = mesh.trail().await;
        assert_eq!(trail.completions()[0]["response"]["reason"], "upstream_reset", "{answer:?}");
    }
}

/// If this fails, a sidecar must be restarted after its app.
#[tokio::test]
async fn an_app_that_starts_late_is_found() {
    for (listener_extra, h2c) in [("", false), (", app_protocol: h2c", true)] {
        let addr = nobody().await;
        let mesh = Mesh::with(addr, Setup { listener_extra, ..Setup::default() }).await;
        assert_eq!(client::get(mesh.outbound(), "/open/a").await.status, 503);
        let listener = TcpListener::bind(addr).await.unwrap();
        let served = if h2c {
            h2::serve(listener, |_| async { Response::new(h2::full("ok")) })
        } else {
            tokio::spawn(async move {
                loop {
                    let mut wire = Wire::new(listener.accept().await.unwrap().0);
                    while wire.request().await.is_some() {
                        wire.send(OK).await;
                    }
                }
            })
        };
        assert_eq!(client::get(mesh.outbound(), "/open/a").await.status, 200, "{listener_extra}");
        served.abort();
    }
}

/// A caller's sidecar whose service has these endpoints.
async fn caller(pki: &Pki, endpoints: &[std::net::SocketAddr], mesh: &str) -> Side {
    let endpoints: Vec<String> = endpoints.iter().map(|addr| format!("\"{addr}\"")).collect();
    let rest = format!(
        "outbound:
  bind: \"127.0.0.1:0\"
  services:
    - {{name: records, hosts: [{HOST}], endpoints: [{}], identities: [\"{RECORDS}\"], mesh: {mesh}}}
limits: {{connect_timeout: 300ms, drain_deadline: 2s}}",
        endpoints.join(", ")
    );
    Side::start(pki.workload("caller", WEB), "caller", &rest).await
}

/// If this fails, one dead pod of several fails a part of all requests.
#[tokio::test]
async fn a_dead_endpoint_among_others_fails_no_request() {
    for leg in ["h2", "h1"] {
        let app = App::answering(OK).await;
        let mesh = Mesh::with(app.addr, Setup::default()).await;
        // Refuses connections; takes them and says nothing.
        let silent = accepting(|stream| async move {
            Wire::new(stream).rest().await;
        });
        let endpoints = [nobody().await, silent.await, mesh.records.inbound()];
        let caller = caller(&mesh.pki, &endpoints, leg).await;
        for round in 0..20 {
            assert_eq!(client::get(caller.outbound(), "/open/a").await.status, 200, "{leg} {round}");
        }
        assert_eq!(app.seen().len(), 20);
    }
}

/// One more sidecar of the records service, at `bind`.
async fn another(pki: &Pki, bind: &str, app: std::net::SocketAddr) -> Side {
    let dir = pki.workload("another", RECORDS);
    std::fs::write(dir.join("policy.yaml"), common::POLICY).unwrap();
    let rest = format!(
        "inbound: {{listeners: [{{name: api, bind: \"{bind}\", app: \"{app}\"}}]}}
policy: {{file: policy.yaml}}"
    );
    Side::start(dir, "records", &rest).await
}

/// If this fails, several pods of a service do not share its load.
#[tokio::test]
async fn several_endpoints_share_the_requests() {
    let app = App::answering(OK).await;
    let first = Mesh::with(app.addr, Setup::default()).await;
    let second = another(&first.pki, "127.0.0.1:0", app.addr).await;
    let caller = caller(&first.pki, &[first.records.inbound(), second.inbound()], "h2").await;
    for _ in 0..20 {
        assert_eq!(client::get(caller.outbound(), "/open/a").await.status, 200);
    }
    drop(caller);
    let counts = [second.trail().await.decisions().len(), first.trail().await.decisions().len()];
    assert_eq!(counts, [10, 10]);
}

/// If this fails, callers go on asking a pod that ends until its name is looked up again, when its app is long gone.
#[tokio::test]
async fn an_endpoint_that_leaves_is_left_alone() {
    let app = App::answering(OK).await;
    let leaving = Mesh::with(app.addr, Setup::default()).await;
    let staying = another(&leaving.pki, "127.0.0.1:0", app.addr).await;
    let caller = caller(&leaving.pki, &[leaving.records.inbound(), staying.inbound()], "h2").await;
    let ask = async |times: usize| {
        for _ in 0..times {
            assert_eq!(client::get(caller.outbound(), "/open/a").await.status, 200);
        }
    };
    ask(10).await;
    let told = client::exchange(
        leaving.records.admin(),
        "POST /leave HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(told.status, 202);
    // The first one may find out.
    eventually("the caller has heard", async || {
        ask(2).await;
        let before = let_pass(&staying).await;
        ask(4).await;
        let_pass(&staying).await == before + 4
    })
    .await;
    ask(20).await;
    let (left, stayed) = (leaving.records.trail().await, staying.trail().await);
    assert!(
        left.decisions().len() <= 16 && stayed.decisions().len() >= 25,
        "{} {}",
        left.decisions().len(),
        stayed.decisions().len()
    );
}

/// How many requests it let pass.
async fn let_pass(side: &Side) -> u64 {
    let metrics = client::get(side.admin(), "/metrics").await;
    let allowed =
        metrics.text().lines().filter(|line| line.starts_with("phiward_decisions_total{outcome=\"allowed\""));
    allowed.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// If this fails, a restarted pod is not found again, or requests fail on the connection to its predecessor.
#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let app = App::answering(OK).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let inbound = mesh.records.inbound();
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.status(), 200);
    mesh.records.trail().await;

    let _successor = another(&mesh.pki, &inbound.to_string(), app.addr).await;
    eventually("the successor is found", async || {
        wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
        wire.response("GET").await.status() == 200
    })
    .await;
}

/// If this fails, an app that gives up many requests at once, as at a timeout, fails those of everybody who shares its connection.
#[tokio::test]
async fn many_requests_that_are_taken_back_at_once_leave_the_others_alone() {
    let app = App::answering(OK).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let mut caller = peer::connect(mesh.records.inbound(), &mesh.web.dir, Alpn::H2).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/open/a")];
    let headers = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields));
    let mut sent = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    for stream in (1..200).step_by(2) {
        sent.extend(headers(stream));
        sent.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())); // CANCEL
    }
    sent.extend(headers(201));
    patiently(caller.write_all(&sent)).await.unwrap();
    let answered = loop {
        let mut head = [0; 9];
        patiently(caller.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        patiently(caller.read_exact(&mut payload)).await.unwrap();
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match head[3] {
            GOAWAY => break false,
            HEADERS if stream == 201 => break true,
            _ => {}
        }
    };
    assert!(answered, "the connection was ended");
}
