//! Workloads of other trust domains: believed by what their bundle endpoints say, and no longer than that.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use common::app::App;
use common::wire::Wire;
use common::{Pki, RECORDS, Side, client, eventually, in_front_of, peer, reloads};
use phiward::identity::{Ca, SpiffeId, TrustDomain};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PARTNER: &str = "partner.example";
const GATEWAY: &str = "spiffe://partner.example/gateway";
const ENDPOINT: &str = "spiffe://partner.example/spire/server";
/// Lets partners in as it does our own.
const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "r1"}
roles:
  open: [{name: open, methods: [GET], paths: ["/open/**"]}]
bindings:
  - {role: open, identities: ["spiffe://partner.example/**", "spiffe://hospital.local/**"]}
"#;

/// A trust domain with a CA, and the TLS identity of its endpoint.
fn partner() -> Ca {
    Ca::new(&TrustDomain::parse(PARTNER).unwrap(), Duration::from_secs(3600), UnixTime::now()).unwrap()
}

fn issue(ca: &Ca, id: &str) -> (String, String) {
    let svid = ca.issue(&SpiffeId::parse(id).unwrap(), Duration::from_secs(3000), UnixTime::now()).unwrap();
    (svid.cert_pem.to_string(), svid.key_pem.to_string())
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A bundle as a SPIRE server publishes it.
fn document(authorities: &[&Ca]) -> String {
    let keys = authorities.iter().map(|ca| {
        let der = base64::engine::general_purpose::STANDARD.encode(certificate(ca.cert_pem()));
        serde_json::json!({"use": "x509-svid", "kty": "EC", "crv": "P-256", "x5c": [der]})
    });
    serde_json::json!({"keys": keys.collect::<Vec<_>>(), "spiffe_sequence": 1, "spiffe_refresh_hint": 1})
        .to_string()
}

/// A bundle endpoint: says over TLS what it is told to say.
struct BundleServer {
    addr: SocketAddr,
    says: Arc<Mutex<(u16, String)>>,
}

impl BundleServer {
    async fn start(identity: (String, String), body: String) -> Self {
        let chain = vec![certificate(&identity.0)];
        let key = PrivateKeyDer::from_pem_slice(identity.1.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let says = Arc::new(Mutex::new((200, body)));
        let (acceptor, told) = (TlsAcceptor::from(Arc::new(config)), says.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 1024];
                drop(stream.read(&mut request).await);
                let (status, body) = told.lock().unwrap().clone();
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
                drop(stream.write_all((head + &body).as_bytes()).await);
                drop(stream.shutdown().await);
            }
        });
        Self { addr, says }
    }

    fn say(&self, status: u16, body: String) {
        *self.says.lock().unwrap() = (status, body);
    }
}

/// The records sidecar, with this entry of `federation` besides its own bundle.
async fn records(dir: &Path, federation: &str) -> Side {
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    let app = App::answering(OK).await.addr;
    let identity = format!(
        "files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}\n  federation: [{federation}]"
    );
    Side::start_as(dir.into(), "records", &identity, &in_front_of(app)).await
}

/// Whether somebody who shows this gets an answer.
async fn is_served(side: &Side, (cert, key): &(String, String)) -> bool {
    let mut wire = Wire::new(peer::http1(side.inbound(), (cert, key)).await);
    let asked = wire.stream.write_all(b"GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    asked.is_ok() && wire.fill().await
}

async fn complaint(side: &Side) -> String {
    let detail: serde_json::Value =
        serde_json::from_str(client::get(side.admin(), "/ready").await.text()).unwrap();
    detail["reload_errors"]["federation"].as_str().unwrap_or_default().to_owned()
}

/// If this fails, partners that publish their bundle cannot be federated with, or stay in after they revoked their keys.
#[tokio::test]
async fn a_bundle_endpoint_is_followed_through_a_rotation_to_its_end() {
    let (pki, first, second) = (Pki::new(), partner(), partner());
    let dir = pki.workload("records", RECORDS);
    std::fs::write(dir.join("partner.pem"), first.cert_pem()).unwrap();
    let server = BundleServer::start(issue(&first, ENDPOINT), document(&[])).await;
    let entry = format!(
        "{{trust_domain: {PARTNER}, bundle: partner.pem, endpoint: {{url: \"https://{}/bundle\", profile: https_spiffe, \
         spiffe_id: \"{ENDPOINT}\"}}}}",
        server.addr
    );
    server.say(503, String::new());
    let side = records(&dir, &entry).await;
    let (old, new) = (issue(&first, GATEWAY), issue(&second, GATEWAY));
    assert!(is_served(&side, &old).await, "until the endpoint answers, the file counts");
    eventually("the failure is told", async || complaint(&side).await.contains("503")).await;
    server.say(200, document(&[&first, &second]));
    eventually("the new CA is believed", async || is_served(&side, &new).await).await;
    assert!(is_served(&side, &old).await, "both are, while they overlap");
    eventually("the complaint is over", async || complaint(&side).await.is_empty()).await;
    server.say(200, "{}".into());
    eventually("what is no bundle is told", async || complaint(&side).await.contains("no SPIFFE bundle"))
        .await;
    assert!(is_served(&side, &new).await, "and the last good one stays");
    assert!(is_served(&side, &issue(&pki.ca, "spiffe://hospital.local/ns/clinic/sa/web")).await);
    // A workload of the partner cannot be one of ours.
    let domain = TrustDomain::parse("hospital.local").unwrap();
    let impostor = Ca::new(&domain, Duration::from_secs(60), UnixTime::now()).unwrap();
    assert!(!is_served(&side, &issue(&impostor, "spiffe://hospital.local/ns/clinic/sa/web")).await);

    let mut wire = Wire::new(peer::http1(side.inbound(), (&new.0, &new.1)).await);
    wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    assert_eq!(wire.response("GET").await.status(), 200);
    server.say(200, document(&[]));
    eventually("the open connection is closed", async || !wire.fill().await).await;
    assert!(!is_served(&side, &new).await && !is_served(&side, &old).await, "an empty bundle revokes all");
    assert!(reloads(&side, "federation", "loaded").await >= 2);
    side.trail().await;
}

/// If this fails, whoever answers in the endpoint's place can name the partner's CAs.
#[tokio::test]
async fn an_endpoint_that_is_not_who_it_must_be_is_not_listened_to() {
    let (pki, right, wrong) = (Pki::new(), partner(), partner());
    let dir = pki.workload("records", RECORDS);
    std::fs::write(dir.join("partner.pem"), right.cert_pem()).unwrap();
    let thief = issue(&wrong, GATEWAY);
    for (shown, words) in [
        (issue(&wrong, ENDPOINT), "no CA in the bundle"),
        (issue(&right, GATEWAY), "not one of the identities"),
    ] {
        let server = BundleServer::start(shown, document(&[&wrong])).await;
        let entry = format!(
            "{{trust_domain: {PARTNER}, bundle: partner.pem, endpoint: {{url: \"https://{}/\", profile: https_spiffe, \
             spiffe_id: \"{ENDPOINT}\"}}}}",
            server.addr
        );
        let side = records(&dir, &entry).await;
        eventually("it is told", async || complaint(&side).await.contains(words)).await;
        assert!(!is_served(&side, &thief).await);
        assert_eq!(reloads(&side, "federation", "loaded").await, 0);
        side.trail().await;
    }
}

/// If this fails, an endpoint behind a certificate of the web's kind cannot be used, or any certificate will do.
#[tokio::test]
async fn an_endpoint_of_the_web_is_known_by_its_name() {
    let (pki, partner) = (Pki::new(), partner());
    let dir = pki.workload("records", RECORDS);
    let web = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let identity = (web.cert.pem(), web.signing_key.serialize_pem());
    std::fs::write(dir.join("web.pem"), &identity.0).unwrap();
    let server = BundleServer::start(identity, document(&[&partner])).await;
    let entry = |ca: &str| {
        format!(
            "{{trust_domain: {PARTNER}, endpoint: {{url: \"https://{}/\", profile: https_web, ca_file: {ca}}}}}",
            server.addr
        )
    };
    let side = records(&dir, &entry("web.pem")).await;
    let gateway = issue(&partner, GATEWAY);
    eventually("the partner is believed", async || is_served(&side, &gateway).await).await;
    side.trail().await;
    let side = records(&dir, &entry("bundle.pem")).await;
    eventually("the certificate is refused", async || {
        complaint(&side).await.contains("invalid peer certificate")
    })
    .await;
    assert!(!is_served(&side, &gateway).await);
    side.trail().await;
}
