//! Who may bring which records to a collector over mTLS, and what its admin endpoint says of it.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;
mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use audit_support::{config as spool, events, instance, intact, requests, sink_of};
use common::{Pki, RECORDS, WEB, client, eventually, peer};
use phiward::audit::{Audit, InstanceFacts, ShipTiming, SinkKind, verify};
use phiward::config;
use phiward::identity::SpiffeId;
use phiward::runtime::BoundCollector;
use phiward::tls::{Alpn, dummy_server_name};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

const COLLECTOR: &str = "spiffe://hospital.local/ns/audit/sa/collector";
const RELAY: &str = "spiffe://hospital.local/ns/audit/sa/relay";
const PATIENCE: Duration = Duration::from_secs(60);

/// A collector as `phiward collect` runs it.
struct Running {
    addr: SocketAddr,
    admin: SocketAddr,
    store: PathBuf,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Running {
    async fn start(dir: &Path, more: &str) -> Self {
        let text = format!(
            "version: 1
identity:
  trust_domain: hospital.local
  files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}
bind: \"127.0.0.1:0\"
store: {{dir: store}}
admin: {{bind: \"127.0.0.1:0\"}}
{more}"
        );
        std::fs::write(dir.join("collector.yaml"), text).unwrap();
        let config = config::load_collector(&dir.join("collector.yaml")).unwrap();
        let collector = BoundCollector::bind(&config).await.unwrap();
        let (addr, admin) = (collector.address(), collector.admin());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            collector.serve(stopped).await.unwrap();
        });
        Self { addr, admin, store: dir.join("store"), stop, served }
    }

    async fn end(self) {
        drop(self.stop);
        self.served.await.unwrap();
    }

    /// Sends `lines` as the workload whose files are in `from`.
    async fn post(&self, from: &Path, lines: &[String]) -> (u16, Value) {
        let body = lines.concat();
        let allowed = Arc::from([SpiffeId::parse(COLLECTOR).unwrap()]);
        let tls = TlsConnector::from(peer::settings(from).client(allowed, Alpn::Http1));
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let mut stream = tls.connect(dummy_server_name(), stream).await.unwrap();
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        let reply = client::parse(&reply);
        (reply.status, serde_json::from_slice(&reply.body).unwrap())
    }

    async fn ask(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let reply = client::exchange(self.admin, &request).await;
        (reply.status, reply.text().to_owned())
    }

    fn evidence(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.store.join("evidence/evidence.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The workload whose files are in `dir`.
fn written_by(dir: &Path) -> InstanceFacts {
    let settings = peer::settings(dir);
    let svid = &settings.material().svid;
    InstanceFacts {
        spiffe_id: Some(svid.id().as_str().into()),
        svid: Some(svid.certified_key().clone()),
        ..instance()
    }
}

/// The lines of a closed trail of the workload whose files are in `from`.
fn trail(from: &Path, n: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    // Its workers have runtimes of their own, which cannot be inside this test's.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let audit = Audit::start(spool(dir.path()), &written_by(from), &[]).unwrap();
            requests(&audit, "", n);
            audit.close().unwrap();
        });
    });
    let mut lines = Vec::new();
    phiward::audit::for_each(dir.path(), |line| {
        lines.push(format!("{}\n", std::str::from_utf8(line).unwrap()));
        Ok(())
    })
    .unwrap();
    lines
}

/// A changed line with its hash made anew, as an attacker would.
fn rehashed(line: &str) -> String {
    let at = line.find("\"hash\":\"").unwrap();
    let without = format!("{}{}", &line[..at], &line[at + 8 + 64 + 2..]);
    let mut bytes = vec![0];
    bytes.extend_from_slice(without.trim().as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\"hash\":\"{hex}\",{}", &line[..at], &without[at..])
}

fn counts(stored: u64, duplicates: u64, evidence: u64) -> (u16, Value) {
    (200, json!({"stored": stored, "duplicates": duplicates, "evidence": evidence}))
}

/// If this fails, one workload writes into another's trail, or the collector forgets whose an epoch is when it restarts.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_belongs_to_the_workload_that_wrote_and_sent_it() {
    let pki = Pki::new();
    let [collector, records, web] = [("collector", COLLECTOR), ("records", RECORDS), ("web", WEB)]
        .map(|(name, id)| pki.workload(name, id));
    let lines = trail(&records, 5);
    let running = Running::start(&collector, "").await;
    assert_eq!(running.post(&web, &lines).await, counts(0, 0, 12), "in the name of another");
    assert_eq!(running.post(&records, &lines[..6]).await, counts(6, 0, 0));
    assert_eq!(running.post(&web, &lines).await, counts(0, 0, 12), "not even what is there already");
    running.end().await;

    let running = Running::start(&collector, "").await;
    // The next record, true to the chain, but written by web under its own name.
    let own = rehashed(&lines[6].replace(RECORDS, WEB));
    assert_eq!(running.post(&web, &[own]).await, counts(0, 0, 1));
    assert_eq!(running.post(&records, &lines).await, counts(6, 6, 0));
    let shown: Vec<String> = events(&running.store).iter().map(|event| format!("{event}\n")).collect();
    assert_eq!(shown.len(), lines.len());
    let evidence = running.evidence();
    assert_eq!(evidence.len(), 25);
    for kept in &evidence {
        assert_eq!((kept["kind"].as_str(), kept["sender"].as_str()), (Some("foreign"), Some(WEB)));
        assert!(kept["received"].as_str().unwrap().ends_with('Z') && kept["epoch"].is_string(), "{kept}");
    }
    let metrics = running.ask("/metrics").await.1;
    for line in [
        "phiward_collector_evidence_total{kind=\"foreign\"} 1",
        "phiward_collector_evidence_total{kind=\"fork\"} 0",
        "phiward_collector_events_stored_total 6",
        "phiward_collector_events_duplicate_total 6",
        "phiward_collector_refusing{reason=\"disk_full\"} 0",
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "{line} in\n{metrics}");
    }
    assert!(!metrics.contains("spiffe://"), "{metrics}");
    assert_eq!(running.ask("/live").await, (200, "live\n".into()));
    assert_eq!(running.ask("/ready").await.0, 200);
    running.end().await;
    assert_eq!(verify(&collector.join("store")).unwrap().findings.len(), 1, "the evidence");
}

/// If this fails, what a relay brings is lost, or it can mix two workloads' records.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_brings_what_others_have_written() {
    let pki = Pki::new();
    let [collector, records, relay] = [("collector", COLLECTOR), ("records", RECORDS), ("relay", RELAY)]
        .map(|(name, id)| pki.workload(name, id));
    let lines = trail(&records, 5);
    let running = Running::start(&collector, &format!("relays: [\"{RELAY}\"]\n")).await;
    assert_eq!(running.post(&relay, &lines[..4]).await, counts(4, 0, 0));
    let mixed = rehashed(&lines[5].replace(RECORDS, WEB));
    let between = [lines[4].clone(), mixed.clone(), lines[5].clone()];
    assert_eq!(
        running.post(&relay, &between).await,
        counts(2, 0, 1),
        "each record is looked at, not the first alone"
    );
    assert_eq!(running.post(&records, &lines).await, counts(6, 6, 0));
    assert_eq!(running.post(&relay, &[mixed]).await, counts(0, 0, 1));
    assert!(running.evidence()[0]["why"].as_str().unwrap().contains("belongs to another"));
    running.end().await;
}

/// If this fails, anybody on the network can write to the store, or a rotated certificate is not used.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_sender_with_a_certificate_delivers() {
    let pki = Pki::new();
    let (collector, records) = (pki.workload("collector", COLLECTOR), pki.workload("records", RECORDS));
    let running = Running::start(&collector, "").await;
    let spool_dir = tempfile::tempdir().unwrap();
    let mut sink = sink_of("collector", SinkKind::Phiward);
    sink.endpoint.https = true;
    let audit =
        Audit::start(spool(spool_dir.path()), &written_by(&records), std::slice::from_ref(&sink)).unwrap();
    let known =
        peer::settings(&records).client(Arc::from([SpiffeId::parse(COLLECTOR).unwrap()]), Alpn::Http1);
    let (tls, newest) = watch::channel(Arc::new(peer::showing(None)));
    let timing =
        ShipTiming { linger: Duration::ZERO, retry_max: Duration::from_millis(4), ..Default::default() };
    let to = watch::channel(vec![running.addr].into()).1;
    let mut shipper = audit.shipper(&sink, to, Some(newest), timing).unwrap();
    tokio::select! {
        () = shipper.run() => unreachable!(),
        () = eventually("a refusal", async || audit.status().sinks[0].last_error.is_some()) => {}
    }
    assert_eq!(audit.status().sinks[0].acked_events, 0);
    tls.send(known).unwrap();
    assert_eq!(shipper.finish(PATIENCE).await, 0);
    drop(audit);
    running.end().await;
    let store = collector.join("store");
    intact(&store);
    assert_eq!(events(spool_dir.path()), events(&store));
}

/// If this fails, a sender whose CA was dropped, or whose certificate has run out, goes on writing to the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_proves_again_who_it_is_when_certificates_change() {
    let pki = Pki::new();
    let (collector, records) = (pki.workload("collector", COLLECTOR), pki.workload("records", RECORDS));
    let running = Running::start(&collector, "").await;
    let stays = async |identity: (&str, &str)| {
        let mut stream = peer::http1(running.addr, identity).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: c\r\n\r\n").await.unwrap();
        let mut reply = [0; 1024];
        assert!(stream.read(&mut reply).await.unwrap() > 0);
        stream
    };
    let read = |name: &str| std::fs::read_to_string(records.join(name)).unwrap();
    let (cert, key) = (read("svid.pem"), read("svid.key"));
    let (short_cert, short_key) = peer::forged(&pki, &[RECORDS], (-60, 2));
    let (mut long, mut short) = (stays((&cert, &key)).await, stays((&short_cert, &short_key)).await);
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, short.read_to_end(&mut rest)).await.unwrap().ok(); // ends with its certificate
    pki.write_svid(&collector, COLLECTOR);
    tokio::time::timeout(PATIENCE, long.read_to_end(&mut rest)).await.unwrap().ok(); // ends with the collector's old identity
    drop(stays((&cert, &key)).await);
    running.end().await;
}
