//! The admission webhook as the API server meets it: over TLS, one AdmissionReview a request.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use common::eventually;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use phiward::config;
use phiward::kubernetes::webhook::Webhook;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

const NAME: &str = "phiward-webhook.phiward.svc";

/// The CA that stands in the webhook configuration.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join("tls.crt"), leaf.pem()).unwrap();
        std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    }

    /// Asks as an API server that believes this CA. None where the handshake fails.
    async fn ask(&self, addr: SocketAddr, method: &str, path: &str, body: Vec<u8>) -> Option<(u16, Bytes)> {
        let mut sender = self.connect(addr).await?;
        let request = Request::builder().method(method).uri(path).header("host", NAME);
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        Some((status, answer.into_body().collect().await.unwrap().to_bytes()))
    }

    async fn connect(&self, addr: SocketAddr) -> Option<SendRequest<Full<Bytes>>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.ok()?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Some(sender)
    }
}

async fn webhook(ca: &Ca, dir: &Path) -> SocketAddr {
    webhook_until(ca, dir, std::future::pending()).await
}

async fn webhook_until(ca: &Ca, dir: &Path, asked: impl Future<Output = ()> + Send + 'static) -> SocketAddr {
    ca.issue(dir);
    let text = r#"version: 1
server: {bind: "127.0.0.1:0", certificate: tls.crt, private_key: tls.key}
injection: {image: "phiward:1", trust_domain: hospital.local, identity: spire}
"#;
    std::fs::write(dir.join("webhook.yaml"), text).unwrap();
    let config = config::load_webhook(&dir.join("webhook.yaml")).unwrap();
    let webhook = Webhook::bind(config.server.unwrap(), config.injection).await.unwrap();
    let addr = webhook.addr().unwrap();
    tokio::spawn(webhook.serve(asked));
    addr
}

fn review(annotations: &Value) -> Vec<u8> {
    let pod = json!({
        "metadata": {"generateName": "records-", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "a", "ports": [{"containerPort": 8080}]}]},
    });
    let request = json!({"uid": "705ab4f5", "kind": {"kind": "Pod"}, "namespace": "clinic", "object": pod});
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
        .to_string()
        .into_bytes()
}

/// If this fails, pods are made without their sidecar, or the API server gets an answer that it does not understand.
#[tokio::test]
async fn each_review_is_answered_with_a_patch_or_with_the_reason_why_not() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let addr = webhook(&ca, dir.path()).await;
    let asked = async |annotations: Value| {
        let (status, body) = ca.ask(addr, "POST", "/inject?timeout=5s", review(&annotations)).await.unwrap();
        assert_eq!(status, 200);
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], "705ab4f5");
        answer["response"].clone()
    };
    let injected = asked(json!({})).await;
    assert_eq!((&injected["allowed"], &injected["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = base64::prelude::BASE64_STANDARD.decode(injected["patch"].as_str().unwrap()).unwrap();
    assert!(String::from_utf8(patch).unwrap().contains("phiward-capture"));
    let declined = asked(json!({"phiward.dev/inject": "false"})).await;
    assert_eq!((&declined["allowed"], declined.get("patch")), (&json!(true), None));
    let refused = asked(json!({"phiward.dev/mode": "lax"})).await;
    assert_eq!((&refused["allowed"], &refused["status"]["code"]), (&json!(false), &json!(422)));
    assert!(refused["status"]["message"].as_str().unwrap().contains("`permissive` or `strict`"));
}

/// If this fails, who reaches the port can make the webhook fail for everybody, or learns more than that it is there.
#[tokio::test]
async fn what_is_no_review_is_refused() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let addr = webhook(&ca, dir.path()).await;
    for (method, path, body, status) in [
        ("GET", "/ready", Vec::new(), 200),
        ("GET", "/live", Vec::new(), 200),
        ("GET", "/inject", Vec::new(), 404),
        ("POST", "/", review(&json!({})), 404),
        ("POST", "/inject", b"{".to_vec(), 400),
        ("POST", "/inject", b"{\"kind\":\"AdmissionReview\"}".to_vec(), 400),
        ("POST", "/inject", vec![b' '; (4 << 20) + 1], 413),
    ] {
        assert_eq!(ca.ask(addr, method, path, body).await.unwrap().0, status, "{method} {path}");
    }
    assert!(
        common::client::raw(addr, b"GET /ready HTTP/1.1\r\n\r\n").await.len() < 100,
        "plain text gets an alert at most"
    );
    assert_eq!(ca.ask(addr, "GET", "/ready", Vec::new()).await.unwrap().0, 200);
}

/// If this fails, the webhook stops to work on the day its certificate is renewed.
#[tokio::test]
async fn a_renewed_certificate_is_taken_and_a_broken_one_is_not() {
    let (old, new, dir) = (Ca::new(), Ca::new(), tempfile::tempdir().unwrap());
    let addr = webhook(&old, dir.path()).await;
    std::fs::write(dir.path().join("tls.crt"), "nothing").unwrap();
    assert!(old.ask(addr, "GET", "/ready", Vec::new()).await.is_some(), "the last one stays");
    new.issue(dir.path());
    eventually("the new certificate is shown", async || {
        new.ask(addr, "GET", "/ready", Vec::new()).await.is_some()
    })
    .await;
    assert!(old.ask(addr, "GET", "/ready", Vec::new()).await.is_none());
}

/// If this fails, pods are refused, or start without their sidecar, each time that a webhook is replaced.
#[tokio::test]
async fn who_asks_a_webhook_that_goes_is_answered_and_sent_to_another() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let addr = webhook_until(&ca, dir.path(), async { drop(stopped.await) }).await;
    let mut kept = ca.connect(addr).await.unwrap();
    let ask = || Request::get("/ready").header("host", NAME).body(Full::default()).unwrap();
    let answer = kept.send_request(ask()).await.unwrap();
    assert_eq!(answer.headers().get("connection"), None);
    drop(answer.into_body().collect().await.unwrap());
    stop.send(()).unwrap();
    eventually("it is said that another should be asked", async || {
        kept.ready().await.unwrap();
        let answer = kept.send_request(ask()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let last = answer.headers().get("connection").is_some_and(|value| value == "close");
        drop(answer.into_body().collect().await.unwrap());
        last
    })
    .await;
    assert_eq!(ca.ask(addr, "GET", "/ready", Vec::new()).await.unwrap().0, 200, "who has not heard yet");
    assert!(kept.ready().await.is_err(), "closed, once it was said");
}
