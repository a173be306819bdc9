//! Identity from a SPIRE agent: an agent of ours speaks the Workload API on a Unix socket, and real sidecars use what it gives.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use common::app::App;
use common::wire::Wire;
use common::{HOST, POLICY, Pki, RECORDS, Side, WEB, client, eventually};
use http::{HeaderMap, Response};
use phiward::identity::SpiffeId;
use phiward::spire::{Source, SpireError};
use prost::Message;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
}

/// An answer with one SVID.
fn svid(pki: &Pki, id: &str) -> Answer {
    let issued =
        pki.ca.issue(&SpiffeId::parse(id).unwrap(), Duration::from_secs(3000), UnixTime::now()).unwrap();
    let der = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .flat_map(|der| der.unwrap().to_vec())
            .collect::<Vec<u8>>()
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let svid = Svid {
        spiffe_id: id.to_owned(),
        x509_svid: der(&issued.cert_pem),
        x509_svid_key: key.secret_pkcs8_der().to_vec(),
        bundle: der(pki.ca.cert_pem()),
    };
    Answer { svids: vec![svid], federated_bundles: HashMap::new() }
}

/// What the agent says: an answer, or a gRPC status.
type Said = Result<Answer, u8>;

/// A SPIRE agent that says what the test tells it to, on a thread of its own: a sidecar's start waits for it. It ends with this.
struct Agent {
    socket: PathBuf,
    says: watch::Sender<Said>,
    _stop: oneshot::Sender<()>,
}

impl Agent {
    fn start(socket: &Path, first: Said) -> Self {
        drop(std::fs::remove_file(socket));
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let says = watch::Sender::new(first);
        let (stop, stopped) = oneshot::channel();
        let said = says.subscribe();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(UnixListener::from_std(listener).unwrap(), said) => {}
                }
            });
        });
        Self { socket: socket.to_owned(), says, _stop: stop }
    }

    fn say(&self, said: Said) {
        drop(self.says.send_replace(said));
    }

    fn config(&self) -> String {
        format!(
            "identity: {{trust_domain: hospital.local, source: spire, spire: {{socket: \"unix://{}\"}}}}",
            self.socket.display()
        )
    }
}

async fn serve(listener: UnixListener, said: watch::Receiver<Said>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let said = said.clone();
        connections.spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut calls = JoinSet::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
                assert_eq!(request.headers()["workload.spiffe.io"], "true");
                calls.spawn(answer(respond, said.clone()));
            }
        });
    }
}

async fn answer(mut respond: h2::server::SendResponse<Bytes>, mut said: watch::Receiver<Said>) {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut body = respond.send_response(head, false).unwrap();
    loop {
        let next = said.borrow_and_update().clone();
        match next {
            Ok(answer) => {
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(answer.encoded_len() as u32);
                answer.encode(&mut frame).unwrap();
                body.send_data(frame.freeze(), false).unwrap();
            }
            Err(status) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.to_string().parse().unwrap());
                return body.send_trailers(trailers).unwrap();
            }
        }
        if said.changed().await.is_err() {
            return;
        }
    }
}

/// Both sidecars, each with an agent.
struct SpireMesh {
    pki: Pki,
    web: Side,
    records: Side,
    web_agent: Agent,
    records_agent: Agent,
}

async fn mesh() -> SpireMesh {
    let pki = Pki::new();
    let app = App::answering(OK).await;
    let socket = |name: &str| pki.dir.path().join(format!("{name}.sock"));
    let records_agent = Agent::start(&socket("records"), Ok(svid(&pki, RECORDS)));
    let web_agent = Agent::start(&socket("web"), Ok(svid(&pki, WEB)));
    let start = async |name: &str, id: &str, agent: &Agent, rest: String| {
        let dir = pki.workload(name, id);
        for file in ["svid.pem", "svid.key", "bundle.pem"] {
            std::fs::remove_file(dir.join(file)).unwrap();
        }
        std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
        let text = format!(
            "version: 1\nworkload: {{service: {name}, namespace: clinic}}\n{}\naudit: {{spool: {{dir: audit}}, key_file: audit-hmac.key}}\n\
             admin: {{bind: \"127.0.0.1:0\"}}\nworkers: 1\n{rest}\n",
            agent.config()
        );
        Side::start_whole(dir, &text).await
    };
    let inbound = format!(
        "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{}\"}}]}}\npolicy: {{file: policy.yaml}}",
        app.addr
    );
    let records = start("records", RECORDS, &records_agent, inbound).await;
    let outbound = format!(
        "outbound: {{bind: \"127.0.0.1:0\", services: [{{name: records, hosts: [{HOST}], endpoints: [\"{}\"], identities: [\"{RECORDS}\"]}}]}}",
        records.inbound()
    );
    let web = start("web", WEB, &web_agent, outbound).await;
    SpireMesh { pki, web, records, web_agent, records_agent }
}

async fn status(wire: &mut Wire<TcpStream>) -> u16 {
    wire.send("GET /open/a HTTP/1.1\r\nHost: records.clinic\r\n\r\n").await;
    wire.response("GET").await.status()
}

async fn rotations(side: &Side) -> u64 {
    let metrics = client::get(side.admin(), "/metrics").await;
    let name = "phiward_reloads_total{result=\"loaded\",what=\"identity\"} ";
    metrics.text().lines().find_map(|line| line.strip_prefix(name)).map_or(0, |value| value.parse().unwrap())
}

/// If this fails, workloads under SPIRE have no identity, or each of its rotations (every few minutes) fails requests.
#[tokio::test]
async fn svids_of_an_agent_serve_and_rotate_without_a_failed_request() {
    let SpireMesh { pki, web, records, web_agent, records_agent } = mesh().await;
    let mut wire = Wire::connect(web.outbound()).await;
    assert_eq!(status(&mut wire).await, 200);
    for round in 1..=3 {
        records_agent.say(Ok(svid(&pki, RECORDS)));
        web_agent.say(Ok(svid(&pki, WEB)));
        eventually("both have rotated", async || {
            assert_eq!(status(&mut wire).await, 200);
            rotations(&web).await == round && rotations(&records).await == round
        })
        .await;
        assert_eq!(status(&mut wire).await, 200);
    }
    web.sidecar.shut_down().await.unwrap();
    let trail = records.trail().await;
    assert_eq!(trail.of_type("identity.rotated").len(), 3, "{}", trail.text);
    assert_eq!(trail.of_type("identity.lost").len(), 0);
}

/// If this fails, an agent that is updated takes the mesh with it, or is never asked again.
#[tokio::test]
async fn an_agent_may_restart_and_nobody_notices() {
    let SpireMesh { pki, web, records, web_agent, records_agent } = mesh().await;
    let mut wire = Wire::connect(web.outbound()).await;
    let socket = records_agent.socket.clone();
    drop(records_agent);
    for _ in 0..10 {
        assert_eq!(status(&mut wire).await, 200);
    }
    let records_agent = Agent::start(&socket, Ok(svid(&pki, RECORDS)));
    eventually("the new agent's SVID is in use", async || rotations(&records).await == 1).await;
    assert_eq!(status(&mut wire).await, 200);
    drop((web_agent, records_agent));
    web.sidecar.shut_down().await.unwrap();
    let trail = records.trail().await;
    assert_eq!(
        trail.of_type("identity.lost").len(),
        0,
        "an agent that is away takes nothing: {}",
        trail.text
    );
}

/// If this fails, a workload whose registration was removed is not seen in its trail.
#[tokio::test]
async fn an_identity_that_is_withdrawn_is_recorded_once_and_may_come_back() {
    let SpireMesh { pki, web, records, records_agent, .. } = mesh().await;
    let mut wire = Wire::connect(web.outbound()).await;
    records_agent.say(Err(7));
    let complaint = async || {
        let ready: serde_json::Value =
            serde_json::from_str(client::get(records.admin(), "/ready").await.text()).unwrap();
        ready["reload_errors"]["identity"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the withdrawal shows", async || complaint().await.contains("PermissionDenied")).await;
    assert_eq!(status(&mut wire).await, 200, "within the grace");
    records_agent.say(Ok(svid(&pki, RECORDS)));
    eventually("it is back", async || complaint().await.is_empty()).await;
    web.sidecar.shut_down().await.unwrap();
    let trail = records.trail().await;
    let lost = trail.of_type("identity.lost");
    assert_eq!(lost.iter().map(|event| &event["svid"]["reason"]).collect::<Vec<_>>(), ["withdrawn"]);
}

/// If this fails, a sidecar starts with an identity of another trust domain, or does not say what the agent gave instead.
#[tokio::test]
async fn an_agent_of_another_trust_domain_is_refused_with_what_it_gave() {
    let pki = Pki::new();
    let agent = Agent::start(&pki.dir.path().join("agent.sock"), Ok(svid(&pki, WEB)));
    let other = phiward::identity::TrustDomain::parse("partner.example").unwrap();
    let refused = Source::new(agent.socket.clone(), other).first().unwrap_err();
    assert!(matches!(refused, SpireError::NoSvid { .. }) && refused.to_string().contains(WEB), "{refused}");
}
