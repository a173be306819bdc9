//! Ending without cutting: what is in flight completes, what is idle closes, and the deadline holds whatever peers do.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::sync::Arc;

use common::app::{After, App, accepting};
use common::h2;
use common::wire::{Wire, patiently};
use common::{Mesh, Setup, Side, Trail, WEB, client, eventually, nobody, peer};
use phiward::tls::Alpn;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

const GET: &str = "GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
const SLOW: &str = "GET /open/slow HTTP/1.1\r\nHost: records.clinic\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An app that answers `/open/slow` half, and the rest when it is given leave; everything else at once.
async fn slow_app() -> (std::net::SocketAddr, Arc<Semaphore>) {
    let leave = Arc::new(Semaphore::new(0));
    let addr = accepting({
        let leave = leave.clone();
        move |stream| {
            let leave = leave.clone();
            async move {
                let mut wire = Wire::new(stream);
                while let Some(request) = wire.request().await {
                    if request.start.contains("/open/slow") {
                        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await;
                        leave.acquire().await.unwrap().forget();
                        drop(wire.stream.write_all(b"k").await);
                    } else {
                        wire.send(OK).await;
                    }
                }
            }
        }
    })
    .await;
    (addr, leave)
}

fn draining(side: Side) -> JoinHandle<Trail> {
    tokio::spawn(side.trail())
}

async fn refuses_connections(addr: std::net::SocketAddr) {
    eventually("new connections are refused", async || TcpStream::connect(addr).await.is_err()).await;
}

/// If this fails, a roll-out cuts requests, or waits for clients that have nothing to say.
#[tokio::test]
async fn a_caller_side_drain_completes_what_is_in_flight_and_closes_what_is_idle() {
    let (app, leave) = slow_app().await;
    let mesh =
        Mesh::with(app, Setup { web_extra: "limits: {drain_deadline: 60s}", ..Setup::default() }).await;
    let outbound = mesh.outbound();
    let mut idle = Wire::connect(outbound).await;
    idle.send(GET).await;
    assert_eq!(idle.response("GET").await.text(), "ok");
    let mut silent = Wire::connect(outbound).await;
    let mut half_said = Wire::connect(outbound).await;
    half_said.send("PRI * HTT").await;
    let idle_h2 = h2::connect(outbound).await;
    assert_eq!(h2::send(&idle_h2, h2::request("GET", "/open/a", h2::empty())).await.status(), 200);
    let mut busy = Wire::connect(outbound).await;
    busy.send(SLOW).await;
    busy.fill().await; // the answer has begun

    let drained = draining(mesh.web);
    refuses_connections(outbound).await;
    assert_eq!(idle.rest().await, b"");
    assert_eq!(silent.rest().await, b"");
    assert_eq!(half_said.rest().await, b"");
    eventually("the idle HTTP/2 connection closes", async || idle_h2.is_closed()).await;
    leave.add_permits(1);
    assert!(busy.rest().await.ends_with(b"\r\n\r\nok"));
    patiently(drained).await.unwrap();
    let trail = mesh.records.trail().await;
    assert!(trail.completions().iter().all(|event| event["response"]["aborted"] == false), "{}", trail.text);
}

/// If this fails, a roll-out of a service fails the requests of its callers.
#[tokio::test]
async fn a_server_side_drain_completes_what_is_in_flight() {
    for leg in ["", ", mesh: h1"] {
        let (app, leave) = slow_app().await;
        let setup =
            Setup { service_extra: leg, records_extra: "limits: {drain_deadline: 60s}", ..Setup::default() };
        let mesh = Mesh::with(app, setup).await;
        let (inbound, outbound) = (mesh.records.inbound(), mesh.outbound());
        let silent = TcpStream::connect(inbound).await.unwrap(); // never begins its handshake
        let mut busy = Wire::connect(outbound).await;
        busy.send(SLOW).await;
        busy.fill().await;
        let drained = draining(mesh.records);
        refuses_connections(inbound).await;
        leave.add_permits(1);
        assert_eq!(busy.response("GET").await.text(), "ok", "{leg}");
        let trail = patiently(drained).await.unwrap();
        assert_eq!(trail.completions()[0]["response"]["aborted"], false, "{leg} {}", trail.text);
        drop(silent);

        busy.send(GET).await;
        assert_eq!(busy.response("GET").await.status(), 503, "{leg}: nobody is there any more");
    }
}

/// If this fails, one hanging request keeps a pod from ending.
#[tokio::test]
async fn the_deadline_cuts_what_hangs_and_records_it() {
    let (app, _leave) = slow_app().await;
    let setup = Setup { records_extra: "limits: {drain_deadline: 50ms}", ..Setup::default() };
    let mesh = Mesh::with(app, setup).await;
    let mut busy = Wire::connect(mesh.outbound()).await;
    busy.send(SLOW).await;
    busy.fill().await;
    let trail = patiently(draining(mesh.records)).await.unwrap();
    assert_eq!(trail.completions().len(), 1, "{}", trail.text);
    let response = &trail.completions()[0]["response"];
    assert_eq!((&response["aborted"], &response["status"]), (&true.into(), &200.into()));
    assert_eq!(trail.events.last().unwrap()["type"], "audit.close");
    assert!(!busy.rest().await.ends_with(b"ok"));
}

/// If this fails, Kubernetes sends requests to a pod that is about to end, or connections fail that it still sends.
#[tokio::test]
async fn connections_are_accepted_until_the_drain_delay_is_over() {
    let app = App::start(|_| (OK.to_vec(), After::Keep)).await;
    let setup = Setup { web_extra: "limits: {drain_delay: 1s, drain_deadline: 5s}", ..Setup::default() };
    let mesh = Mesh::with(app.addr, setup).await;
    let (outbound, admin) = (mesh.outbound(), mesh.web.admin());
    let drained = draining(mesh.web);
    eventually("it is not ready", async || common::client::get(admin, "/ready").await.status == 503).await;
    assert_eq!(common::client::get(outbound, "/open/a").await.status, 200);
    refuses_connections(outbound).await;
    patiently(drained).await.unwrap();
}

async fn tell_to_leave(admin: std::net::SocketAddr) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_phiward"));
    command.args(["k8s", "leave", "--admin", &admin.to_string()]);
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

/// If this fails, callers hold on to a pod that ends, until its app is gone and their requests fail.
#[tokio::test]
async fn a_sidecar_that_leaves_sends_its_callers_elsewhere_and_serves_those_that_come() {
    // What sidecars say to each other is not the app's to say, nor to hear.
    let answer = b"HTTP/1.1 200 OK\r\nPhiward-Leaving: 1\r\nContent-Length: 2\r\n\r\nok";
    let app = App::start(|_| (answer.to_vec(), After::Keep)).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let caller = mesh.pki.workload("caller", WEB);
    let inbound = mesh.records.inbound();
    let mut http1 = Wire::new(peer::connect(inbound, &caller, Alpn::Http1).await);
    http1.send(GET).await;
    assert_eq!(http1.response("GET").await.header("connection"), None);
    let http2 = h2::over(peer::connect(inbound, &caller, Alpn::H2).await).await;
    let ask_http2 = async || {
        let answer = h2::send(&http2, h2::request("GET", "/open/a", h2::empty())).await;
        (answer.status().as_u16(), answer.headers().contains_key("phiward-leaving"))
    };
    assert_eq!(ask_http2().await, (200, false));
    assert_eq!(client::get(mesh.outbound(), "/open/a").await.status, 200);

    let told = tell_to_leave(mesh.records.admin()).await;
    assert!(told.status.success(), "{told:?}");
    assert_eq!(client::get(mesh.records.admin(), "/ready").await.status, 503);
    assert_eq!(ask_http2().await, (200, true), "it is told before GOAWAY, which can cross with a request");
    eventually("the HTTP/2 caller goes", async || http2.is_closed()).await;
    // To close it now would lose what its caller is sending at this moment.
    http1.send(GET).await;
    let last = http1.response("GET").await;
    assert_eq!((last.status(), last.header("connection")), (200, Some("close")));
    assert_eq!(http1.rest().await, b"");

    let mut late = Wire::new(peer::connect(inbound, &caller, Alpn::Http1).await);
    late.send(GET).await;
    assert_eq!(late.response("GET").await.status(), 200);
    let through = client::get(mesh.outbound(), "/open/a").await;
    assert_eq!((through.status, through.header("phiward-leaving")), (200, None));
    let trail = mesh.records.trail().await;
    assert!(trail.completions().iter().all(|event| event["response"]["status"] == 200), "{}", trail.text);
}

/// If this fails, an app that makes its last calls while its pod ends has its connections cut under it.
#[tokio::test]
async fn a_sidecar_that_leaves_keeps_what_its_own_app_has_opened() {
    let app = App::start(|_| (OK.to_vec(), After::Keep)).await;
    let mesh = Mesh::with(app.addr, Setup::default()).await;
    let mut own = Wire::connect(mesh.outbound()).await;
    assert!(tell_to_leave(mesh.web.admin()).await.status.success());
    for _ in 0..2 {
        own.send(GET).await;
        assert_eq!(own.response("GET").await.header("connection"), None);
    }
}

/// If this fails, a hook that reaches nobody looks as if it had.
#[tokio::test]
async fn who_tells_nobody_to_leave_is_told() {
    let told = tell_to_leave(nobody().await).await;
    assert_eq!(told.status.code(), Some(1));
    let text = String::from_utf8(told.stderr).unwrap();
    assert!(text.contains("the sidecar's admin endpoint cannot be asked"), "{text}");
    let app =
        App::start(|_| (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), After::Close)).await;
    let told = tell_to_leave(app.addr).await;
    assert!(String::from_utf8(told.stderr).unwrap().contains("404"));
}

/// If this fails, an app is told in its answers what only sidecars say to each other.
#[tokio::test]
async fn an_app_whose_sidecar_drains_gets_its_answer_as_it_came() {
    let (asked, leave) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let app = accepting({
        let (asked, leave) = (asked.clone(), leave.clone());
        move |stream| {
            let (asked, leave) = (asked.clone(), leave.clone());
            async move {
                let mut wire = Wire::new(stream);
                wire.request().await.unwrap();
                asked.add_permits(1);
                leave.acquire().await.unwrap().forget();
                wire.send(OK).await;
            }
        }
    });
    let setup = Setup { web_extra: "limits: {drain_deadline: 60s}", ..Setup::default() };
    let mesh = Mesh::with(app.await, setup).await;
    let outbound = mesh.outbound();
    let own = h2::connect(outbound).await;
    let waiting =
        tokio::spawn(async move { h2::send(&own, h2::request("GET", "/open/a", h2::empty())).await });
    patiently(asked.acquire()).await.unwrap().forget();
    let drained = draining(mesh.web);
    refuses_connections(outbound).await;
    leave.add_permits(1);
    let answer = patiently(waiting).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().get("phiward-leaving")), (200, None));
    drop(answer);
    patiently(drained).await.unwrap();
}
