//! HTTP/2 and gRPC applications do not notice the proxy: streams both ways, trailers, resets, many at a time.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::app::{App, accepting};
use common::h2::{self, Feed};
use common::wire::{Wire, patiently};
use common::{Mesh, Setup, nobody};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

const H2C: &str = ", app_protocol: h2c";

async fn h2c_mesh<F, Fut>(answer: F) -> Mesh
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<h2::Frames>> + Send + 'static,
{
    Mesh::with(h2::app(answer).await, Setup { listener_extra: H2C, ..Setup::default() }).await
}

fn grpc(target: &str, body: h2::Frames) -> Request<h2::Frames> {
    let mut request = h2::request("POST", target, body);
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request
}

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
}

fn aborted(trail: &common::Trail) -> Vec<bool> {
    trail.completions().iter().map(|event| event["response"]["aborted"].as_bool().unwrap()).collect()
}

/// If this fails, an app that speaks HTTP/1.1 cannot be called over HTTP/2.
#[tokio::test]
async fn an_http2_caller_reaches_an_http1_app() {
    let app =
        App::answering("HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok")
            .await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let sender = h2::connect(mesh.outbound()).await;
    for (method, body) in [("GET", h2::empty()), ("POST", h2::full("hello"))] {
        let (head, body) = h2::send(&sender, h2::request(method, "/open/a?b", body)).await.into_parts();
        assert_eq!(head.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(h2::collect(body).await.unwrap().0, "ok");
    }
    let [get, post] = &app.seen()[..] else { panic!("{:?}", app.seen()) };
    assert_eq!((get.start.as_str(), get.header("host")), ("GET /open/a?b HTTP/1.1", Some("records.clinic")));
    assert_eq!(get.header("transfer-encoding"), None, "a request without a body gets no framing");
    assert_eq!(post.text(), "hello");
    let trail = mesh.trail().await;
    assert_eq!(trail.decisions()[0]["http"]["version"], "2");
    assert_eq!(aborted(&trail), [false, false]);
}

/// If this fails, an HTTP/1.1 caller cannot call an app that speaks HTTP/2 alone, as gRPC servers do.
#[tokio::test]
async fn an_http1_caller_reaches_an_http2_app() {
    let mesh = h2c_mesh(|request: Request<Incoming>| async move {
        let uri = request.uri().to_string();
        let (body, _) = h2::collect(request.into_body()).await.unwrap();
        Response::new(h2::full([uri.as_bytes(), b" ", &body[..]].concat()))
    })
    .await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send("POST /open/a?b HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: 2\r\n\r\nhi").await;
    let reply = wire.response("POST").await;
    assert!(reply.text().ends_with("://records.clinic/open/a?b hi"), "{}", reply.text());
}

/// If this fails, every gRPC call fails: the status comes after the body, and `te: trailers` must reach the server.
#[tokio::test]
async fn a_grpc_call_keeps_its_trailers_both_ways() {
    let mesh = h2c_mesh(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let (body, sent) = h2::collect(request.into_body()).await.unwrap();
        assert_eq!((&body[..], sent), (&b"question"[..], Some(trailers("x-sum", "7"))));
        Response::new(h2::with_trailers("answer", Some(trailers("grpc-status", "0"))))
    })
    .await;
    let sender = h2::connect(mesh.outbound()).await;
    let body = h2::with_trailers("question", Some(trailers("x-sum", "7")));
    let reply = h2::send(&sender, grpc("/open/Records/Get", body)).await;
    let (body, received) = h2::collect(reply.into_body()).await.unwrap();
    assert_eq!((&body[..], received), (&b"answer"[..], Some(trailers("grpc-status", "0"))));

    assert_eq!(aborted(&mesh.trail().await), [false]);
}

/// If this fails, chat-like calls deadlock: one side waits for the other to end first.
#[tokio::test]
async fn both_directions_stream_at_once() {
    let mesh = h2c_mesh(|request: Request<Incoming>| async move {
        let (feed, frames) = h2::frames();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(data) = h2::next_data(&mut body).await {
                if !data.is_empty() {
                    feed.data([b"re: ", &data[..]].concat()).await;
                }
            }
            feed.trailers(trailers("grpc-status", "0")).await;
        });
        Response::new(frames)
    })
    .await;
    let sender = h2::connect(mesh.outbound()).await;
    let (feed, frames) = h2::frames();
    let mut reply = h2::send(&sender, grpc("/open/Records/Chat", frames)).await.into_body();
    for round in 0..5 {
        feed.data(format!("{round}")).await;
        assert_eq!(h2::next_data(&mut reply).await.unwrap(), format!("re: {round}"));
    }
    drop(feed);
    let (rest, ended) = h2::collect(reply).await.unwrap();
    assert_eq!((rest, ended), (Bytes::new(), Some(trailers("grpc-status", "0"))));
    let trail = mesh.trail().await;
    assert_eq!(aborted(&trail), [false]);
    assert_eq!(trail.completions()[0]["response"]["request_bytes"], 5);
    assert_eq!(trail.completions()[0]["response"]["response_bytes"], 25);
}

/// If this fails, a gRPC library reports a denial as a broken transport, and retries it.
#[tokio::test]
async fn refusals_reach_grpc_callers_as_grpc_statuses() {
    let mesh = Mesh::with(nobody().await, Setup { listener_extra: H2C, ..Setup::default() }).await;
    let sender = h2::connect(mesh.outbound()).await;
    for (target, status) in [("/open/admin/Get", "7"), ("/open//Get", "3"), ("/open/Records/Get", "14")] {
        let reply = h2::send(&sender, grpc(target, h2::full("question"))).await;
        assert_eq!(
            (reply.status().as_u16(), &reply.headers()["grpc-status"]),
            (200, &HeaderValue::from_static(status))
        );
        assert_eq!(reply.headers()["content-type"], "application/grpc");
        assert!(reply.body().is_end_stream(), "{target}: the status stands in the head, and nothing follows");
    }
}

/// If this fails, an app goes on working for a caller that has hung up.
#[tokio::test]
async fn a_reset_by_the_caller_reaches_the_app() {
    let (seen, mut at_app) = mpsc::channel::<(Incoming, Feed)>(1);
    let mesh = h2c_mesh(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (feed, frames) = h2::frames();
            seen.send((request.into_body(), feed)).await.unwrap();
            Response::new(frames)
        }
    })
    .await;
    let sender = h2::connect(mesh.outbound()).await;
    let (feed, frames) = h2::frames();
    let mut reply = h2::send(&sender, grpc("/open/a", frames)).await.into_body();
    let (mut body, at_app) = patiently(at_app.recv()).await.unwrap();
    feed.data("up").await;
    assert_eq!(h2::next_data(&mut body).await.unwrap(), "up");
    at_app.data("down").await;
    assert_eq!(h2::next_data(&mut reply).await.unwrap(), "down");

    drop(reply);
    feed.fail().await;
    assert!(patiently(body.frame()).await.unwrap().is_err(), "the request breaks off at the app");
    at_app.abandoned().await;
    let trail = mesh.trail().await;
    assert_eq!(aborted(&trail), [true]);
    assert_eq!(trail.completions()[0]["response"]["reason"], "client_gone");
}

/// If this fails, a caller takes half a response for a whole one.
#[tokio::test]
async fn a_response_that_breaks_off_breaks_off_at_the_caller() {
    // An app may go on, to break off, once its caller has what there is so far: a reset overtakes what is on its way.
    let leave = Arc::new(Semaphore::new(0));
    let h2c = h2::app({
        let leave = leave.clone();
        move |_| {
            let (leave, (feed, frames)) = (leave.clone(), h2::frames());
            tokio::spawn(async move {
                feed.data("half").await;
                leave.acquire().await.unwrap().forget();
                feed.fail().await;
            });
            async { Response::new(frames) }
        }
    });
    let h1 = accepting({
        let leave = leave.clone();
        move |stream| {
            let leave = leave.clone();
            async move {
                let mut wire = Wire::new(stream);
                wire.request().await.unwrap();
                wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
                leave.acquire().await.unwrap().forget();
            }
        }
    });
    for (app, listener_extra) in [(h2c.await, H2C), (h1.await, "")] {
        let mesh = Mesh::with(app, Setup { listener_extra, ..Setup::default() }).await;
        let sender = h2::connect(mesh.outbound()).await;
        let mut body = h2::send(&sender, grpc("/open/a", h2::empty())).await.into_body();
        assert_eq!(h2::next_data(&mut body).await.unwrap(), "half");
        leave.add_permits(1);
        assert!(h2::collect(body).await.is_err(), "{listener_extra}");

        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
        let mut reply = Vec::new();
        while !reply.ends_with(b"4\r\nhalf\r\n") {
            assert!(patiently(wire.fill()).await, "{reply:?}");
            reply.extend(wire.buffered());
        }
        leave.add_permits(1);
        assert_eq!(wire.rest().await, b"", "{listener_extra}: there is no last chunk");
        let trail = mesh.trail().await;
        assert_eq!(aborted(&trail), [true, true]);
        assert!(trail.completions().iter().all(|event| event["response"]["reason"] == "upstream_reset"));
    }
}

/// If this fails, a busy caller's requests fail or wait for ever beyond the number of streams that a connection takes.
#[tokio::test]
async fn three_hundred_streams_on_one_connection_all_succeed() {
    let h2c = h2::app(|_| async { Response::new(h2::full("ok")) }).await;
    let h1 = App::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.addr;
    for (app, listener_extra) in [(h2c, H2C), (h1, "")] {
        let mesh = Mesh::with(app, Setup { listener_extra, ..Setup::default() }).await;
        let sender = h2::connect(mesh.outbound()).await;
        let mut calls = JoinSet::new();
        for _ in 0..300 {
            let sender = sender.clone();
            calls.spawn(async move {
                let reply = h2::send(&sender, h2::request("POST", "/open/a", h2::full("hello"))).await;
                h2::collect(reply.into_body()).await.unwrap().0
            });
        }
        assert!(calls.join_all().await.iter().all(|body| body == "ok"));
        let trail = mesh.trail().await;
        assert_eq!((trail.decisions().len(), aborted(&trail)), (300, vec![false; 300]));
    }
}

/// If this fails, one caller that does not read holds up the others on its connection to the app.
#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stall_its_neighbours() {
    let mesh = h2c_mesh(|request: Request<Incoming>| async move {
        if request.uri().path() == "/open/small" {
            return Response::new(h2::full("ok"));
        }
        let (feed, frames) = h2::frames();
        tokio::spawn(async move { while feed.data(vec![0; 16 * 1024]).await {} });
        Response::new(frames)
    })
    .await;
    let sender = h2::connect(mesh.outbound()).await;
    let unread = h2::send(&sender, h2::request("GET", "/open/endless", h2::empty())).await;
    for _ in 0..20 {
        let reply = h2::send(&sender, h2::request("GET", "/open/small", h2::empty())).await;
        assert_eq!(h2::collect(reply.into_body()).await.unwrap().0, "ok");
    }
    drop(unread);
}

/// If this fails, an app that takes a connection and says nothing keeps its callers waiting for ever.
#[tokio::test]
async fn an_app_that_does_not_answer_is_given_up_with_504() {
    let app = accepting(|stream| async move {
        Wire::new(stream).rest().await;
    });
    let setup =
        Setup { records_extra: "limits: {response_timeout: 50ms, drain_deadline: 2s}", ..Setup::default() };
    let mesh = Mesh::with(app.await, setup).await;
    let sender = h2::connect(mesh.outbound()).await;
    let reply = h2::send(&sender, h2::request("GET", "/open/a", h2::empty())).await;
    assert_eq!(reply.status(), 504);
    let trail = mesh.trail().await;
    assert_eq!(trail.completions()[0]["response"]["reason"], "upstream_timeout");
}
