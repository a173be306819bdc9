//! Delivery: whatever the collector does, the store ends with each event exactly once.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit_support::*;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use phiward::audit::{
    Audit, FindingKind, ReceiptVerifier, ShipTiming, Shipper, SinkConfig, SinkKind, SpoolConfig,
    VerifyOptions, verify, verify_with,
};
use phiward::collector::{Collector, CollectorConfig, CollectorError, Retention};
use tokio::sync::{oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(60);

fn sink(name: &str, https: bool) -> SinkConfig {
    let mut sink = sink_of(name, SinkKind::Phiward);
    sink.endpoint.https = https;
    sink
}

fn shipper(audit: &Audit, sink: &SinkConfig, to: SocketAddr) -> Shipper {
    let milli = Duration::from_millis(1);
    let timing =
        ShipTiming { linger: Duration::ZERO, retry_min: milli, retry_max: 4 * milli, attempt: PATIENCE };
    audit.shipper(sink, watch::channel(vec![to].into()).1, None, timing).unwrap()
}

/// A collector on its own thread, until it is dropped.
struct Running {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(bind: SocketAddr, store: &Path) -> Self {
        Self::with_tls(bind, store, None)
    }

    fn with_tls(
        bind: SocketAddr,
        store: &Path,
        tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    ) -> Self {
        let (collector, addr) = Collector::bind(CollectorConfig {
            bind,
            store: store.into(),
            key: None,
            tls,
            relays: Vec::new(),
            retention: Retention::default(),
        })
        .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            collector.serve(shutdown).await.unwrap();
        };
        let thread = std::thread::spawn(move || worker(serve));
        Self { addr, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn local() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// Spool and store hold the same records, each once.
fn same(spool: &Path, store: &Path) {
    intact(store);
    assert_eq!(events(spool), events(store));
}

/// If this fails, whoever holds a sidecar's disk can take back what a collector has signed for, or an honest trail is called forged.
#[test]
fn a_trail_carries_what_its_collector_has_signed_for() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        // Each thousand events is a checkpoint.
        for round in ["a", "b", "c"] {
            requests_beside(&audit, round, 600);
            assert_eq!(shipper.finish(PATIENCE).await, 0);
        }
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    same(spool.path(), store.path());
    let receipts: Vec<String> = events(spool.path())
        .iter()
        .filter_map(|event| Some(event.pointer("/checkpoint/receipts/collector")?.as_str()?.to_owned()))
        .collect();
    assert!(receipts.len() >= 2, "{receipts:?}");

    let key = |dir: &Path| {
        ReceiptVerifier::parse(std::fs::read_to_string(dir.join("receipt.pub")).unwrap().trim()).unwrap()
    };
    let checked = |collectors: Vec<ReceiptVerifier>| {
        verify_with(spool.path(), &VerifyOptions { collectors, ..VerifyOptions::default() }).unwrap()
    };
    let unchecked = checked(vec![]);
    assert!(
        unchecked.intact && unchecked.notes.iter().any(|note| note.contains("were not checked")),
        "{:?}",
        unchecked.notes
    );
    let good = checked(vec![key(store.path())]);
    assert!(good.intact, "{:?}", good.findings);
    assert!(good.notes.iter().any(|note| note.contains("has signed for the first")), "{:?}", good.notes);
    let elsewhere = tempfile::tempdir().unwrap();
    drop(Running::start(local(), elsewhere.path()));
    let other = checked(vec![key(elsewhere.path())]);
    assert_eq!(other.findings[0].kind, FindingKind::BadSignature, "{:?}", other.findings);
}

/// If this fails, a collector signs for records that it has not compared, or takes a forged checkpoint without a word.
#[test]
fn a_collector_signs_for_nothing_that_it_has_not_compared() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    let receipts = |audit: &Audit, collector: &Running, round: &str| {
        worker(async {
            let mut shipper = shipper(audit, &sink, collector.addr);
            requests_beside(audit, round, 600);
            assert_eq!(shipper.finish(PATIENCE).await, 0);
        });
        events(spool.path()).iter().filter(|event| event.pointer("/checkpoint/receipts").is_some()).count()
    };
    let first = Running::start(local(), store.path());
    receipts(&audit, &first, "a");
    assert!(receipts(&audit, &first, "b") > 0, "of what it has seen from the beginning");
    drop(first);
    // A restart forgets the tree: the next checkpoint is believed, the one after it is compared and signed for.
    let second = Running::start(local(), store.path());
    let before = receipts(&audit, &second, "c");
    receipts(&audit, &second, "d");
    assert!(receipts(&audit, &second, "e") > before);
    audit.close().unwrap();
    assert!(!store.path().join("evidence").exists(), "nothing of an honest trail is evidence");
}

/// If this fails, events are lost, doubled or out of order on the ordinary way to the collector.
#[test]
fn what_is_in_the_spool_is_in_the_store_in_the_same_order() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 2000);
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        requests_beside(&audit, "more-", 10);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    same(spool.path(), store.path());
    let stored = intact(store.path()).by_type;
    assert_eq!((stored["access.decision"], stored["access.complete"]), (2010, 2010));
}

/// If this does not compile, the control thread cannot spawn what it must run.
#[test]
fn shippers_and_collectors_can_be_spawned() {
    fn spawnable(_: impl Future + Send) {}
    let _ = |mut shipper: Shipper| spawnable(async move { shipper.run().await });
    let _ = |collector: Collector| spawnable(collector.serve(std::future::pending()));
}

/// Ten more requests, from a worker that is beside this one.
/// Requests while a runtime runs on this thread.
fn requests_beside(audit: &Audit, prefix: &str, n: usize) {
    std::thread::scope(|scope| {
        scope.spawn(|| requests(audit, prefix, n));
    });
}

/// If this fails, new events wait in the spool until something else happens.
#[test]
fn a_running_shipper_notices_new_events_by_itself() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        let delivered = async {
            for round in 1..=3 {
                requests_beside(&audit, "more-", 10);
                while audit.status().sinks[0].acked_events < 1 + 20 * round {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::select! {
            () = shipper.run() => unreachable!(),
            () = delivered => {}
        }
        let status = &audit.status().sinks[0];
        assert_eq!((status.backlog_bytes, status.last_error.clone()), (0, None));
        shipper.finish(PATIENCE).await;
    });
    drop(audit);
    same(spool.path(), store.path());
}

/// If this fails, the end of a collector's outage is never noticed, or the spool forgets what was sent during it.
#[test]
fn events_wait_for_a_collector_that_is_down_and_survive_its_restart() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 300);
    // Bound and not listening: connections are refused, and nobody else gets the port.
    let down = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    down.bind(&local().into()).unwrap();
    let (resolved, addresses) = watch::channel(Vec::new().into());
    worker(async {
        let timing =
            ShipTiming { linger: Duration::ZERO, retry_max: Duration::from_millis(4), ..Default::default() };
        let mut shipper = audit.shipper(&sink, addresses, None, timing).unwrap();
        for outage in [Vec::new(), vec![down.local_addr().unwrap().as_socket().unwrap()]] {
            resolved.send(outage.into()).unwrap();
            tokio::select! {
                () = shipper.run() => unreachable!(),
                () = until(|| audit.status().sinks[0].last_error.is_some()) => {}
            }
            assert!(audit.status().sinks[0].backlog_bytes > 0);
        }
        for round in 0..3 {
            let collector = Running::start(local(), store.path());
            resolved.send(vec![collector.addr].into()).unwrap();
            assert_eq!(shipper.finish(PATIENCE).await, 0);
            assert_eq!(audit.status().sinks[0].last_error, None);
            drop(collector);
            std::thread::scope(|scope| {
                scope.spawn(|| requests(&audit, &format!("{round}-"), 300));
            });
        }
        let collector = Running::start(local(), store.path());
        resolved.send(vec![collector.addr].into()).unwrap();
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    same(spool.path(), store.path());
}

async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

/// What a bad collector does with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Answers this without storing.
    Status(u16),
    /// Stores, then the answer is lost.
    LoseAnswer,
    /// The connection is cut before anything is stored.
    Cut,
    /// Stores, and answers well.
    None,
}

/// A server in front of a collector that goes through a list of faults, one a request.
async fn faulty(collector: SocketAddr, faults: Vec<Fault>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(local()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let faults = Arc::new(Mutex::new(VecDeque::from(faults)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let faults = faults.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| pass(request, collector, faults.clone()));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    addr
}

type Answer = Response<Full<Bytes>>;

async fn pass(
    request: Request<Incoming>,
    collector: SocketAddr,
    faults: Arc<Mutex<VecDeque<Fault>>>,
) -> Result<Answer, std::io::Error> {
    let fault = faults.lock().unwrap().pop_front().unwrap_or(Fault::None);
    let cut = || std::io::Error::other("the connection is cut");
    let coding = request.headers().get("content-encoding").cloned();
    let body = request.into_body().collect().await.map_err(|_| cut())?.to_bytes();
    if let Fault::Status(status) = fault {
        return Ok(Response::builder()
            .status(status)
            .header("retry-after", "0")
            .body(Full::default())
            .unwrap());
    }
    if fault == Fault::Cut {
        return Err(cut());
    }
    let stream = tokio::net::TcpStream::connect(collector).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post("/v1/events").header("host", "collector").body(Full::new(body)).unwrap();
    request.headers_mut().extend(coding.map(|coding| (http::header::CONTENT_ENCODING, coding)));
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if fault == Fault::LoseAnswer { Err(cut()) } else { Ok(Response::from_parts(head, Full::new(body))) }
}

/// If this fails, an unreliable network or collector costs events, or stores them twice.
#[test]
fn errors_cuts_and_lost_answers_leave_each_event_exactly_once() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 2000);
    worker(async {
        use Fault::{Cut, LoseAnswer, None, Status};
        let faults = vec![
            Status(500),
            LoseAnswer,
            LoseAnswer,
            Cut,
            None,
            Status(503),
            Status(429),
            None,
            LoseAnswer,
            Status(408),
            Cut,
            LoseAnswer,
            None,
            Status(307),
            LoseAnswer,
            None,
            None,
            LoseAnswer,
        ];
        let addr = faulty(collector.addr, faults).await;
        let mut shipper = shipper(&audit, &sink, addr);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        assert_eq!(audit.status().sinks[0].quarantined_events, 0);
    });
    audit.close().unwrap();
    worker(async {
        // A process that comes back without its cursor sends everything again.
        std::fs::remove_file(spool.path().join("cursor-collector.json")).unwrap();
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        let mut shipper = shipper(&audit, &sink, collector.addr);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        drop(audit);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    same(spool.path(), store.path());
}

/// If this fails, a restart sends the whole spool again, every time.
#[test]
fn a_restart_goes_on_where_the_cursor_is() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    for round in 0..3 {
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        requests(&audit, &format!("{round}-"), 100);
        worker(async {
            let mut shipper = shipper(&audit, &sink, collector.addr);
            assert_eq!(shipper.finish(PATIENCE).await, 0);
            // audit.open and 200 events, and from the second round on the audit.close of the process before.
            assert_eq!(audit.status().sinks[0].acked_events, 201 + u64::from(round > 0));
        });
        audit.close().unwrap();
    }
    assert_eq!(intact(store.path()).epochs.len(), 3);
}

/// If this fails, events that a sink refuses for good are dropped, block all others, or breed for ever.
#[test]
fn what_is_refused_for_good_is_set_aside_and_told() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 30);
    worker(async {
        // The batch, then the event about it; the third is taken.
        let addr = faulty(collector.addr, vec![Fault::Status(422), Fault::Status(400)]).await;
        let mut shipper = shipper(&audit, &sink, addr);
        shipper.finish(PATIENCE).await;
        until(|| audit.status().written_events == 62).await;
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        assert_eq!(audit.status().sinks[0].quarantined_events, 62);
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    let told: Vec<_> =
        events(spool.path()).into_iter().filter(|event| event["type"] == "audit.quarantine").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0]["quarantine"]["events"].as_u64(), told[0]["quarantine"]["status"].as_u64()),
        (Some(61), Some(422))
    );
    let kept: Vec<_> = segments(&spool.path().join("quarantine"));
    let bytes = std::fs::read_to_string(&kept[0]).unwrap();
    assert_eq!(bytes.lines().count(), 61);
    assert!(text_of(&segments(spool.path())[0]).starts_with(&bytes));
    intact(spool.path());
}

/// If this fails, a spool fills up although its events were delivered, or loses events that were not.
#[test]
fn delivered_segments_make_room_and_others_stay() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let small = SpoolConfig { max_bytes: MIB, ..config(spool.path()) };
    let audit = Audit::start(small, &instance(), std::slice::from_ref(&sink)).unwrap();
    let first = segments(spool.path()).remove(0);
    let mut rounds = 0;
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        // How many requests fill it depends on how many of them are packed as one.
        for round in 0..60 {
            std::thread::scope(|scope| {
                // In bursts: nobody waits for the writer, who makes room, and so small a spool would be full before.
                scope.spawn(|| (0..12).for_each(|burst| requests(&audit, &format!("{round}-{burst}-"), 25)));
            });
            assert!(round > 0 || first.exists(), "what is not delivered stays");
            assert_eq!(shipper.finish(PATIENCE).await, 0);
            rounds = round + 1;
            if !first.exists() {
                break;
            }
        }
        assert!(!first.exists());
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    intact(spool.path());
    assert_eq!(intact(store.path()).by_type["access.decision"], rounds * 300);
}

/// If this fails, one tampered record costs the honest ones around it, blocks the sender, or goes unseen in the store.
#[test]
fn records_that_do_not_fit_are_kept_as_evidence_and_the_sender_goes_on() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let collector = Running::start(local(), store.path());
    let sink = sink("collector", false);
    let audit = start(spool.path(), &[]).unwrap();
    (0..4).for_each(|burst| requests(&audit, &format!("{burst}-"), 40));
    audit.close().unwrap();
    let all = events(spool.path()).len() as u64;
    // Not in the last segment, which a start looks through.
    let has_status = |path: &std::path::PathBuf| text_of(path).contains("\"status\":200");
    let mut all_but_last = segments(spool.path());
    all_but_last.pop();
    let path = all_but_last.into_iter().find(has_status).unwrap();
    put_text(&path, text_of(&path).replacen("\"status\":200", "\"status\":403", 1));
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        assert_eq!(audit.status().sinks[0].quarantined_events, 0);
    });
    let report = verify(store.path()).unwrap();
    let kinds: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::Gap, FindingKind::Evidence]);
    assert_eq!(
        (report.findings[0].seq, report.events),
        (Some(3), all),
        "without it, and with the next epoch's first"
    );
    let evidence = std::fs::read_to_string(store.path().join("evidence/evidence.jsonl")).unwrap();
    assert!(evidence.contains("\"kind\":\"flip\"") && evidence.contains("\\\"status\\\":403"), "{evidence}");
}

/// If this fails, two collectors write into one store, or a cut write after a crash is called tampering.
#[test]
fn a_store_has_one_collector_and_is_repaired_after_a_crash() {
    let (spool, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = sink("collector", false);
    let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 20);
    let collector = Running::start(local(), store.path());
    let second = Collector::bind(CollectorConfig {
        bind: local(),
        store: store.path().into(),
        key: None,
        tls: None,
        relays: Vec::new(),
        retention: Retention::default(),
    });
    assert!(matches!(second.err(), Some(CollectorError::Store(_))));
    worker(async {
        let mut shipper = shipper(&audit, &sink, collector.addr);
        shipper.finish(PATIENCE).await;
        drop(collector);
        let stored = segments(&store.path().join(audit.status().epoch)).remove(0);
        let mut torn = std::fs::read(&stored).unwrap();
        torn.extend_from_slice(b"{\"chain\":{\"epo");
        std::fs::write(&stored, torn).unwrap();
        let collector = Running::start(local(), store.path());
        intact(store.path());
        audit.close().unwrap();
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        let mut shipper = self::shipper(&audit, &sink, collector.addr);
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    same(spool.path(), store.path());
}
