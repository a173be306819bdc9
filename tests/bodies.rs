//! Large bodies and broken-off ones: nothing is collected in memory, and both ends learn how it ended.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::app::{After, App, accepting};
use common::h2;
use common::wire::{Wire, patiently};
use common::{Mesh, Setup, Trail, eventually};
use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const LEGS: [&str; 2] = ["", ", mesh: h1"];
const MIB: usize = 1 << 20;
const LARGE: usize = 64 * MIB;
/// The kernel's buffers of three connections, 10 MiB each (tcp_rmem and tcp_wmem), and one HTTP/2 stream's windows; the
/// bodies that are not read would be a GiB.
const BUFFERS_AT_MOST: usize = 40 * MIB;

/// Bytes that repeat with a period that no buffer size divides.
struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: usize = 65_521;

    fn new() -> Self {
        Self((0..MIB + Self::PERIOD).map(|i| (i % Self::PERIOD % 251) as u8).collect())
    }

    /// The MiB of an endless body that begins at `at`.
    fn piece(&self, at: usize) -> &[u8] {
        let start = at % Self::PERIOD;
        &self.0[start..start + MIB]
    }
}

fn completion(trail: &Trail) -> &serde_json::Value {
    let completions = trail.completions();
    assert_eq!(completions.len(), 1, "{}", trail.text);
    &completions[0]["response"]
}

async fn read_large(stream: &mut TcpStream) {
    let (mut buffer, pattern) = (vec![0; MIB], Pattern::new());
    for at in (0..LARGE).step_by(MIB) {
        patiently(stream.read_exact(&mut buffer)).await.unwrap();
        assert!(buffer == pattern.piece(at), "the piece at {at} differs");
    }
}

async fn write_large(stream: &mut TcpStream) {
    let pattern = Pattern::new();
    for at in (0..LARGE).step_by(MIB) {
        patiently(stream.write_all(pattern.piece(at))).await.unwrap();
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(patiently(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// If this fails, images and exports are corrupted on the way.
#[tokio::test]
async fn large_bodies_arrive_byte_for_byte() {
    for leg in LEGS {
        let app = accepting(|mut stream| async move {
            read_head(&mut stream).await;
            read_large(&mut stream).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            write_large(&mut stream).await;
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        let head =
            format!("POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: {LARGE}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        write_large(&mut client).await;
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
        read_large(&mut client).await;
        let trail = mesh.trail().await;
        let response = completion(&trail);
        assert_eq!(response["request_bytes"], LARGE);
        assert_eq!(response["response_bytes"], LARGE);
        assert_eq!(response["aborted"], false);
    }
}

/// Writes for as long as the other side takes it, and counts.
async fn fill(stream: &mut TcpStream, moved: &AtomicUsize) {
    let buffer = vec![0; 64 * 1024];
    while let Ok(n) = stream.write(&buffer).await {
        moved.fetch_add(n, Ordering::Relaxed);
    }
}

/// Returns what `moved` counts once it has stopped moving.
async fn settled(moved: &AtomicUsize) -> usize {
    let mut last = (0, 0);
    eventually("the producer is stopped", async || {
        let now = moved.load(Ordering::Relaxed);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        now > 0 && last.1 > 30
    })
    .await;
    last.0
}

/// If this fails, an app that reads slowly makes the sidecar hold the whole upload in memory.
#[tokio::test]
async fn an_upload_that_nobody_reads_stops_at_the_buffers() {
    for leg in LEGS {
        let (held, mut at_app) = mpsc::channel(1);
        let app = accepting(move |mut stream| {
            let held = held.clone();
            async move {
                read_head(&mut stream).await;
                held.send(stream).await.unwrap();
            }
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        client
            .write_all(b"POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: 999999999\r\n\r\n")
            .await
            .unwrap();
        let moved = Arc::new(AtomicUsize::new(0));
        let producer = tokio::spawn({
            let moved = moved.clone();
            async move { fill(&mut client, &moved).await }
        });
        let _unread = patiently(at_app.recv()).await.unwrap();
        let sent = settled(&moved).await;
        assert!(sent < BUFFERS_AT_MOST, "{leg} {sent} bytes went");
        producer.abort();
    }
}

/// If this fails, a client that reads slowly makes the sidecar hold the whole download in memory.
#[tokio::test]
async fn a_download_that_nobody_reads_stops_at_the_buffers() {
    for leg in LEGS {
        let moved = Arc::new(AtomicUsize::new(0));
        let app = accepting({
            let moved = moved.clone();
            move |mut stream| {
                let moved = moved.clone();
                async move {
                    read_head(&mut stream).await;
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n").await.unwrap();
                    fill(&mut stream, &moved).await;
                }
            }
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        client.write_all(b"GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await.unwrap();
        let sent = settled(&moved).await;
        assert!(sent < BUFFERS_AT_MOST, "{leg} {sent} bytes went");
    }
}

/// If this fails, an HTTP/2 caller that does not read fills the sidecar's memory: its windows are phiward's own.
#[tokio::test]
async fn an_http2_stream_that_nobody_reads_stops_at_its_windows() {
    let moved = Arc::new(AtomicUsize::new(0));
    let app = h2::app({
        let moved = moved.clone();
        move |_| {
            let moved = moved.clone();
            async move {
                let (feed, frames) = h2::frames();
                tokio::spawn(async move {
                    while feed.data(vec![0; 64 * 1024]).await {
                        moved.fetch_add(64 * 1024, Ordering::Relaxed);
                    }
                });
                Response::new(frames)
            }
        }
    });
    let setup = Setup { listener_extra: ", app_protocol: h2c", ..Setup::default() };
    let mesh = Mesh::with(app.await, setup).await;
    let sender = h2::connect(mesh.outbound()).await;
    let _unread = h2::send(&sender, h2::request("GET", "/open/a", h2::empty())).await;
    let sent = settled(&moved).await;
    assert!(sent < 8 * MIB, "{sent} bytes went");
}

/// If this fails, a client that closes its sending side after the request (`nc -N`, some old libraries) gets no answer.
#[tokio::test]
async fn a_client_that_half_closes_after_its_request_is_answered() {
    for leg in LEGS {
        let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let mesh = Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send("POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: 2\r\n\r\nhi").await;
        wire.stream.shutdown().await.unwrap();
        assert_eq!(wire.response("POST").await.text(), "ok", "{leg}");
        assert_eq!(wire.rest().await, b"");
        assert_eq!(completion(&mesh.trail().await)["aborted"], false);
    }
}

/// If this fails, an app stores half an upload as a whole one, or the trail says that it was one.
#[tokio::test]
async fn a_client_that_hangs_up_while_sending_is_seen_by_the_app() {
    for leg in LEGS {
        for framing in ["Content-Length: 1000", "Transfer-Encoding: chunked"] {
            let (seen, mut at_app) = mpsc::channel(2);
            let app = accepting(move |stream| {
                let seen = seen.clone();
                async move {
                    stream.readable().await.unwrap();
                    seen.send("begun").await.unwrap();
                    let whole = Wire::new(stream).request().await.is_some();
                    seen.send(if whole { "whole" } else { "broken off" }).await.unwrap();
                }
            });
            let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
            let mut wire = Wire::connect(mesh.outbound()).await;
            wire.send(format!(
                "POST /open/a HTTP/1.1\r\nHost: records.clinic\r\n{framing}\r\n\r\n5\r\nhello\r\n"
            ))
            .await;
            assert_eq!(patiently(at_app.recv()).await, Some("begun"));
            drop(wire);
            assert_eq!(patiently(at_app.recv()).await, Some("broken off"), "{leg} {framing}");
            assert_eq!(completion(&mesh.trail().await)["aborted"], true, "{leg} {framing}");
        }
    }
}

/// If this fails, an app goes on sending to nobody, or the trail says that a patient's file was delivered which was not.
#[tokio::test]
async fn a_client_that_hangs_up_while_reading_is_seen_by_the_app() {
    for leg in LEGS {
        let (seen, mut at_app) = mpsc::channel(1);
        let app = accepting(move |mut stream| {
            let seen = seen.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n").await.unwrap();
                fill(&mut stream, &AtomicUsize::new(0)).await;
                seen.send(()).await.unwrap();
            }
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        client.write_all(b"GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
        drop(client);
        patiently(at_app.recv()).await.unwrap();
        assert_eq!(completion(&mesh.trail().await)["aborted"], true, "{leg}");
    }
}

/// If this fails, an app works on for a caller that has given up before the answer began.
#[tokio::test]
async fn a_client_that_hangs_up_while_waiting_is_seen_by_the_app() {
    for leg in LEGS {
        let (seen, mut at_app) = mpsc::channel(2);
        let app = accepting(move |mut stream| {
            let seen = seen.clone();
            async move {
                read_head(&mut stream).await;
                seen.send("arrived").await.unwrap();
                let ended = stream.read(&mut [0]).await;
                assert!(!matches!(ended, Ok(1)));
                seen.send("hung up").await.unwrap();
            }
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
        assert_eq!(patiently(at_app.recv()).await, Some("arrived"));
        drop(wire);
        assert_eq!(patiently(at_app.recv()).await, Some("hung up"), "{leg}");
        let trail = mesh.trail().await;
        let end = completion(&trail);
        assert_eq!((&end["aborted"], &end["reason"]), (&true.into(), &"client_gone".into()), "{leg}");
    }
}

/// If this fails, an app goes on waiting for news for a caller that has left while it was waiting for them too: each such stream
/// is kept until the next piece of news, which may never come.
#[tokio::test]
async fn a_client_that_hangs_up_between_two_pieces_of_an_answer_is_seen_by_the_app() {
    for leg in LEGS {
        let (seen, mut at_app) = mpsc::channel(1);
        let app = accepting(move |mut stream| {
            let seen = seen.clone();
            async move {
                read_head(&mut stream).await;
                let first = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
                stream.write_all(first).await.unwrap();
                let ended = stream.read(&mut [0]).await;
                assert!(!matches!(ended, Ok(1)));
                seen.send("hung up").await.unwrap();
            }
        });
        let mesh = Mesh::with(app.await, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        client.write_all(b"GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
        drop(client);
        assert_eq!(patiently(at_app.recv()).await, Some("hung up"), "{leg}");
        let trail = mesh.trail().await;
        let end = completion(&trail);
        assert_eq!((&end["aborted"], &end["reason"]), (&true.into(), &"client_gone".into()), "{leg}");
    }
}

/// If this fails, a refused request costs its client the connection, or what was the body of one is read as the next.
#[tokio::test]
async fn the_body_of_a_refused_request_is_thrown_away_or_the_connection_closes() {
    let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let hidden = "GET /open/hidden HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
    let refused = |framing: &str, body: &str| {
        format!("POST /open/a HTTP/1.1\r\nHost: nobody.clinic\r\n{framing}\r\n\r\n{body}")
    };
    let length = format!("Content-Length: {}", hidden.len());
    let chunks = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for (framing, body) in [(&*length, hidden), ("Transfer-Encoding: chunked", &*chunks)] {
        let mut wire = Wire::connect(mesh.outbound()).await;
        let next = "GET /open/next HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
        wire.send(format!("{}{next}", refused(framing, body))).await;
        let reply = wire.response("POST").await;
        assert_eq!((reply.status(), reply.header("connection")), (404, None), "{framing}");
        assert_eq!(wire.response("GET").await.text(), "ok", "{framing}");

        // Where the rest of it is still to come, nobody waits for that.
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send(refused(framing, &body[..body.len() - 1])).await;
        let reply = wire.response("POST").await;
        assert_eq!((reply.status(), reply.header("connection")), (404, Some("close")), "{framing}");
        wire.send(format!("{}{hidden}", &body[body.len() - 1..])).await;
        assert_eq!(wire.rest().await, b"", "{framing}");
    }
    let seen: Vec<_> = app.seen().iter().map(|request| request.start.clone()).collect();
    assert_eq!(seen, ["GET /open/next HTTP/1.1"; 2]);
}

/// If this fails, a large upload that is refused looks like a broken network: the refusal is lost in a reset.
#[tokio::test]
async fn an_upload_that_is_denied_gets_its_403() {
    for leg in LEGS {
        let app = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let mesh = Mesh::with(app.addr, Setup { service_extra: leg, ..Setup::default() }).await;
        let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
        let head = format!(
            "POST /open/admin/x HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: {}\r\n\r\n",
            4 * MIB
        );
        client.write_all(head.as_bytes()).await.unwrap();
        // Sends all of it before it looks for the answer, as simple clients do.
        patiently(client.write_all(&vec![0; 4 * MIB])).await.unwrap();
        let mut wire = Wire::new(client);
        assert_eq!(wire.response("POST").await.status(), 403, "{leg}");
        assert!(app.seen().is_empty());
    }
}

/// If this fails, an upload longer than the time-out for an answer is cut off half-way.
#[tokio::test]
async fn a_slow_upload_is_not_taken_for_a_slow_answer() {
    for leg in LEGS {
        let app = App::start(|request| {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{:02}", request.body.len());
            (answer.into_bytes(), After::Keep)
        })
        .await;
        let limits = "limits: {response_timeout: 600ms, drain_deadline: 2s}";
        let setup =
            Setup { service_extra: leg, records_extra: limits, web_extra: limits, ..Setup::default() };
        let mesh = Mesh::with(app.addr, setup).await;
        let sender = h2::connect(mesh.outbound()).await;
        let (feed, frames) = h2::frames();
        let reply =
            tokio::spawn(async move { h2::send(&sender, h2::request("POST", "/open/a", frames)).await });
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        for _ in 0..5 {
            tick.tick().await; // together longer than the answer may take
            feed.data("x").await;
        }
        drop(feed);
        let reply = reply.await.unwrap();
        assert_eq!(reply.status(), 200, "{leg}");
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "05");
    }
}
