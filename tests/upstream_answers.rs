//! Answers that come early, twice, in part or in a doubtful form: each request gets its own, or none.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::sync::Arc;

use common::app::{After, App, accepting};
use common::wire::{Framing, Message, Wire, patiently};
use common::{Mesh, Setup};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

const LEGS: [&str; 2] = ["", ", mesh: h1"];
const HEAD: &str = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";

async fn mesh(addr: std::net::SocketAddr, leg: &str) -> Mesh {
    Mesh::with(addr, Setup { service_extra: leg, ..Setup::default() }).await
}

fn answer(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// If this fails, one patient's record is given to who asked for another's: an app, or who sits in it, answers ahead.
#[tokio::test]
async fn what_comes_behind_an_answer_is_never_taken_for_the_next() {
    for leg in LEGS {
        let own = |request: &Message| {
            let target = request.start.split(' ').nth(1).unwrap();
            (format!("{}{}", answer(target), answer("poison")).into_bytes(), After::Keep)
        };
        let app = App::start(own).await;
        let mesh = mesh(app.addr, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for target in ["/open/1", "/open/2", "/open/3"] {
            wire.send(format!("GET {target} HTTP/1.1\r\nHost: records.clinic\r\n\r\n")).await;
            assert_eq!(wire.response("GET").await.text(), target, "{leg}");
        }
        assert_eq!(app.connections(), 3, "{leg}: none of them was trusted with another request");
    }
}

/// If this fails, the same happens when the second answer is late.
#[tokio::test]
async fn what_comes_while_nothing_is_asked_ends_the_connection() {
    let (go, goes) = mpsc::channel::<()>(1);
    let (sent, mut was_sent) = mpsc::channel(1);
    let goes = Arc::new(Mutex::new(goes));
    let addr = accepting(move |stream: TcpStream| {
        let (sent, goes) = (sent.clone(), goes.clone());
        async move {
            let mut wire = Wire::new(stream);
            while let Some(request) = wire.request().await {
                let target = request.start.split(' ').nth(1).unwrap().to_owned();
                wire.send(answer(&target)).await;
                if target == "/open/1" {
                    goes.lock().await.recv().await;
                    wire.send(answer("poison")).await;
                    sent.send(()).await.unwrap();
                }
            }
        }
    })
    .await;
    let mesh = mesh(addr, "").await;
    let mut wire = Wire::connect(mesh.outbound()).await;
    wire.send("GET /open/1 HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.text(), "/open/1");
    go.send(()).await.unwrap();
    patiently(was_sent.recv()).await.unwrap();
    wire.send("GET /open/2 HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.text(), "/open/2");
}

/// If this fails, an app that answers before it has read everything gets half of an upload, or its caller waits for ever.
#[tokio::test]
async fn an_upload_goes_on_after_an_early_answer() {
    for leg in LEGS {
        let (tell, mut told) = mpsc::channel(4);
        let addr = accepting(move |stream: TcpStream| {
            let tell = tell.clone();
            async move {
                let mut wire = Wire::new(stream);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.extend(wire.take(1).await.unwrap());
                }
                wire.send(answer("early")).await;
                tell.send(wire.take(10).await).await.unwrap();
            }
        })
        .await;
        let mesh = mesh(addr, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        wire.send("POST /open/a HTTP/1.1\r\nHost: records.clinic\r\nContent-Length: 10\r\n\r\nfirst").await;
        assert_eq!(wire.response("POST").await.text(), "early", "{leg}");
        wire.send("other").await;
        assert_eq!(patiently(told.recv()).await.unwrap().as_deref(), Some(b"firstother".as_slice()), "{leg}");
        assert_eq!(mesh.trail().await.completions().len(), 1, "{leg}");
    }
}

/// If this fails, hints that an app sends ahead are taken for its answer.
#[tokio::test]
async fn interim_answers_stay_on_their_hop() {
    for leg in LEGS {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        let app = App::start(move |_| (format!("{interim}{}", answer("ok")).into_bytes(), After::Keep)).await;
        let mesh = mesh(app.addr, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for _ in 0..2 {
            wire.send(HEAD).await;
            let reply = wire.response("GET").await;
            assert_eq!((reply.status(), reply.text()), (200, "ok"), "{leg}");
        }
        assert_eq!(app.connections(), 1, "{leg}");
    }
}

/// If this fails, two readers see two answers where an app has written one.
#[tokio::test]
async fn a_length_beside_chunks_does_not_travel_on() {
    for leg in LEGS {
        let chunks =
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let app = App::answering(chunks).await;
        let mesh = mesh(app.addr, leg).await;
        let mut wire = Wire::connect(mesh.outbound()).await;
        for _ in 0..2 {
            wire.send(HEAD).await;
            let reply = wire.response("GET").await;
            assert_eq!(
                (reply.framing, reply.text(), reply.header("content-length")),
                (Framing::Chunked, "ok", None)
            );
        }
        assert_eq!(app.connections(), 2, "{leg}: a connection that was doubtful is not used again");
    }
}

/// If this fails, a caller takes the half of an answer for all of it.
#[tokio::test]
async fn an_answer_that_breaks_off_is_not_whole() {
    for leg in LEGS {
        for half in [
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n",
        ] {
            let app = App::start(move |_| (half.as_bytes().to_vec(), After::Close)).await;
            let mesh = mesh(app.addr, leg).await;
            let mut wire = Wire::connect(mesh.outbound()).await;
            wire.send(HEAD).await;
            let whole = wire.try_response("GET").await;
            assert!(whole.is_none_or(|reply| reply.status() == 502), "{leg} {half:?}");
            let trail = mesh.trail().await;
            let ends = trail.completions();
            assert_eq!((ends.len(), &ends[0]["response"]["aborted"]), (1, &true.into()), "{leg} {half:?}");
        }
    }
}
