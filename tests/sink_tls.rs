//! Receivers that are known by their host name: who is believed, and what an operator is told of one that is not.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Pki, Side, Trail, WEB, client, eventually};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

/// A CA of the web's kind, and a certificate for one name by it.
struct Web {
    ca_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

fn web(name: &str) -> Web {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("CA of {name}"));
    let ca_key = KeyPair::generate().unwrap();
    let ca_pem = params.self_signed(&ca_key).unwrap().pem();
    let ca = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    Web { ca_pem, chain: vec![leaf.der().clone()], key }
}

/// A receiver of newline-delimited JSON over TLS, and the lines it has.
async fn receiver(
    web: &Web,
    version: &'static rustls::SupportedProtocolVersion,
) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let key = PrivateKeyDer::try_from(web.key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(web.chain.clone(), key)
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, kept) = (tls.clone(), kept.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(|request| keep(request, kept.clone()));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (addr, lines)
}

async fn keep(
    request: Request<Incoming>,
    kept: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    kept.lock().unwrap().extend(String::from_utf8_lossy(&body).lines().map(str::to_owned));
    Ok(Response::new(Full::default()))
}

async fn sidecar(pki: &Pki, dir: &Path, host: &str, to: SocketAddr) -> Side {
    let text = format!(
        "version: 1
workload: {{service: web, namespace: clinic}}
identity: {{trust_domain: hospital.local, files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}}}
outbound: {{bind: \"127.0.0.1:0\", services: [{{name: a, hosts: [a], endpoints: [\"127.0.0.1:9\"], identities: [\"{WEB}\"]}}]}}
audit:
  spool: {{dir: audit}}
  key_file: audit-hmac.key
  sinks: [{{name: sink, type: ndjson, endpoint: \"https://{host}:{}/in\", ca_file: ca.pem}}]
admin: {{bind: \"127.0.0.1:0\"}}
limits: {{drain_deadline: 1s}}
workers: 1
",
        to.port()
    );
    pki.write_svid(dir, WEB);
    Side::start_whole(dir.to_owned(), &text).await
}

async fn sink_state(side: &Side) -> Value {
    let reply = client::get(side.admin(), "/ready").await;
    let ready: Value = serde_json::from_slice(&reply.body).unwrap();
    ready["audit"]["sinks"][0].clone()
}

/// Every event arrived. What was on its way when the flush began is sent twice.
fn complete(lines: &Mutex<Vec<String>>, trail: &Trail) {
    let lines = lines.lock().unwrap();
    assert!(trail.text.lines().all(|line| lines.iter().any(|known| known == line)), "{lines:?}");
}

/// If this fails, collectors that every other log shipper can use are refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_a_certificate_for_its_name_gets_the_events() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let (pki, web) = (Pki::new(), web("localhost"));
        let (addr, lines) = receiver(&web, version).await;
        let dir = pki.workload("web", WEB);
        std::fs::write(dir.join("ca.pem"), &web.ca_pem).unwrap();
        let side = sidecar(&pki, &dir, "localhost", addr).await;
        let trail = side.trail().await;
        complete(&lines, &trail);
    }
}

/// If this fails, each batch that is delivered takes a core from a worker in the middle of its turn.
#[tokio::test(flavor = "multi_thread")]
async fn delivery_stands_back_for_the_threads_that_serve() {
    let (pki, web) = (Pki::new(), web("localhost"));
    let (addr, _) = receiver(&web, &rustls::version::TLS13).await;
    let dir = pki.workload("web", WEB);
    std::fs::write(dir.join("ca.pem"), &web.ca_pem).unwrap();
    let side = sidecar(&pki, &dir, "localhost", addr).await;
    let (delivery, worker) = (niceness("audit-delivery"), niceness("worker-0"));
    assert!(!delivery.is_empty() && !worker.is_empty());
    assert!(delivery.iter().min() > worker.iter().max(), "{delivery:?} {worker:?}");
    side.trail().await;
}

/// How nice the threads of this name are: field 19 of proc_pid_stat(5).
fn niceness(name: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let of_name = stats.filter_map(|stat| {
        let (before, after) = stat.rsplit_once(") ")?;
        before.ends_with(&format!("({name}")).then(|| after.split(' ').nth(16)?.parse().ok())?
    });
    of_name.collect()
}

/// If this fails, whoever can answer at the address gets the audit trail.
#[tokio::test(flavor = "multi_thread")]
async fn another_name_or_another_ca_gets_nothing_until_the_file_is_mended() {
    let (pki, right, wrong_name) = (Pki::new(), web("127.0.0.1"), web("elsewhere.example"));
    let (addr, lines) = receiver(&wrong_name, &rustls::version::TLS13).await;
    let dir = pki.workload("named", WEB);
    std::fs::write(dir.join("ca.pem"), &wrong_name.ca_pem).unwrap();
    let side = sidecar(&pki, &dir, "127.0.0.1", addr).await;
    eventually("it is told", async || sink_state(&side).await["last_error"].is_string()).await;
    let told = sink_state(&side).await["last_error"].to_string();
    assert!(told.contains("not valid for name"), "{told}");
    assert!(lines.lock().unwrap().is_empty());
    drop(side);

    let (addr, lines) = receiver(&right, &rustls::version::TLS13).await;
    let dir = pki.workload("signed", WEB);
    std::fs::write(dir.join("ca.pem"), &wrong_name.ca_pem).unwrap();
    let side = sidecar(&pki, &dir, "127.0.0.1", addr).await;
    eventually("it is told", async || sink_state(&side).await["last_error"].is_string()).await;
    let told = sink_state(&side).await["last_error"].to_string();
    assert!(told.contains("UnknownIssuer"), "{told}");
    assert!(lines.lock().unwrap().is_empty());
    std::fs::write(dir.join("ca.pem"), &right.ca_pem).unwrap();
    eventually("the file is read again", async || !lines.lock().unwrap().is_empty()).await;
    let trail = side.trail().await;
    complete(&lines, &trail);
}
