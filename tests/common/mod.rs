//! What integration tests share: a CA, an app, two sidecars with real sockets on port 0, clients, and the trail they left.
//!
//! Nothing here sleeps for a fixed time. The trail is read after the sidecars were shut down, when it is complete.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone
#![allow(dead_code)] // each test binary uses a part of this
#![allow(missing_docs)]
#![allow(unreachable_pub)]

pub mod app;
pub mod client;
pub mod frames;
pub mod h2;
pub mod peer;
#[path = "../schema_support/mod.rs"]
pub mod schema_support;
pub mod wire;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use phiward::config;
use phiward::identity::{Ca, SpiffeId, TrustDomain};
use phiward::runtime::{Loaded, Sidecar};
use rustls_pki_types::UnixTime;
use serde_json::Value;
use tokio::net::TcpListener;

pub const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";
pub const RECORDS: &str = "spiffe://hospital.local/ns/clinic/sa/records";
pub const HOST: &str = "records.clinic";

/// Lets `web` do everything but what a deny rule names.
pub const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: records, revision: "r1", owner: tests}
service: {hosts: [records.clinic], health: [/healthz]}
roles:
  chart-read:
    - {name: read-patient, methods: [GET, HEAD], paths: ["/fhir/Patient/{id}"]}
  everything:
    - {name: open, methods: [GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS], paths: ["/open/**"]}
bindings:
  - {role: chart-read, identities: ["spiffe://hospital.local/ns/clinic/sa/web"]}
  - {role: everything, identities: ["spiffe://hospital.local/ns/clinic/sa/*"]}
deny:
  - {name: no-admin, paths: ["/open/admin/**"]}
"#;

/// A trust domain with a CA, in a folder of its own that goes with it.
pub struct Pki {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
}

impl Pki {
    pub fn new() -> Self {
        let domain = TrustDomain::parse("hospital.local").unwrap();
        let ca = Ca::new(&domain, Duration::from_secs(3600), UnixTime::now()).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), ca }
    }

    /// A folder with `svid.pem`, `svid.key`, `bundle.pem` and an audit key for `id`.
    pub fn workload(&self, name: &str, id: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        self.write_svid(&dir, id);
        std::fs::write(dir.join("audit-hmac.key"), "00112233445566778899aabbccddeeff".repeat(2)).unwrap();
        dir
    }

    pub fn write_svid(&self, dir: &Path, id: &str) {
        let svid =
            self.ca.issue(&SpiffeId::parse(id).unwrap(), Duration::from_secs(3000), UnixTime::now()).unwrap();
        std::fs::write(dir.join("svid.pem"), svid.cert_pem).unwrap();
        std::fs::write(dir.join("svid.key"), svid.key_pem).unwrap();
        std::fs::write(dir.join("bundle.pem"), self.ca.cert_pem()).unwrap();
    }
}

/// The configuration of an inbound side in front of `app`, with the policy in `policy.yaml`.
pub fn in_front_of(app: SocketAddr) -> String {
    format!(
        "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{app}\"}}]}}
policy: {{file: policy.yaml}}
limits: {{drain_deadline: 2s}}"
    )
}

/// A running sidecar with its folder.
pub struct Side {
    pub dir: PathBuf,
    pub sidecar: Sidecar,
}

impl Side {
    /// Starts a sidecar from a configuration, of which `rest` is what is special to the test.
    pub async fn start(dir: PathBuf, service: &str, rest: &str) -> Self {
        let files = "files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}";
        Self::start_as(dir, service, files, rest).await
    }

    /// As [`Side::start`], of a workload of hospital.local whose identity comes from there.
    pub async fn start_as(dir: PathBuf, service: &str, identity: &str, rest: &str) -> Self {
        let text = format!(
            "version: 1
workload: {{service: {service}, namespace: clinic}}
identity:
  trust_domain: hospital.local
  {identity}
audit: {{spool: {{dir: audit}}, key_file: audit-hmac.key}}
admin: {{bind: \"127.0.0.1:0\", metrics: \"127.0.0.1:0\"}}
workers: 1
{rest}
"
        );
        Self::start_whole(dir, &text).await
    }

    pub async fn start_whole(dir: PathBuf, text: &str) -> Self {
        std::fs::write(dir.join("sidecar.yaml"), text).unwrap();
        let config = config::load_sidecar(&dir.join("sidecar.yaml")).unwrap_or_else(|e| panic!("{e}"));
        let loaded = Loaded::load(config).unwrap_or_else(|e| panic!("{e}"));
        let sidecar = Sidecar::start(loaded, None).await.unwrap_or_else(|e| panic!("{e}"));
        Self { dir, sidecar }
    }

    pub fn inbound(&self) -> SocketAddr {
        self.sidecar.addresses().inbound[0]
    }

    pub fn outbound(&self) -> SocketAddr {
        self.sidecar.addresses().outbound.unwrap()
    }

    pub fn admin(&self) -> SocketAddr {
        self.sidecar.addresses().admin
    }

    /// Shuts the sidecar down and returns its trail.
    pub async fn trail(self) -> Trail {
        self.sidecar.shut_down().await.unwrap();
        Trail::read(&self.dir.join("audit"))
    }
}

/// How often a side has loaded or refused a new version, as its metrics count it.
pub async fn reloads(side: &Side, what: &str, result: &str) -> u64 {
    let metrics = client::get(side.admin(), "/metrics").await;
    let name = format!("phiward_reloads_total{{result=\"{result}\",what=\"{what}\"}} ");
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}

/// The usual arrangement: a client's sidecar, a server's sidecar and an app.
pub struct Mesh {
    pub pki: Pki,
    pub app: SocketAddr,
    pub records: Side,
    pub web: Side,
}

/// What differs from the usual arrangement.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    pub policy: &'a str,
    /// Added to the records side's configuration.
    pub records_extra: &'a str,
    /// Added to the web side's configuration.
    pub web_extra: &'a str,
    /// What the inbound listener is given besides its addresses, such as `, app_protocol: h2c`.
    pub listener_extra: &'a str,
    /// What the inbound side is given besides its listener, such as `, probes: {...}`.
    pub inbound_extra: &'a str,
    /// What the outbound service is given, such as `, mesh: h1`.
    pub service_extra: &'a str,
    /// What the outbound side is given, such as `audit: all`.
    pub outbound_extra: &'a str,
    /// Whom the outbound side expects to answer.
    pub expected: &'a str,
    /// Who the caller is.
    pub caller: &'a str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            policy: POLICY,
            records_extra: "limits: {drain_deadline: 2s}",
            web_extra: "limits: {drain_deadline: 2s}",
            listener_extra: "",
            inbound_extra: "",
            service_extra: "",
            outbound_extra: "",
            expected: RECORDS,
            caller: WEB,
        }
    }
}

impl Mesh {
    /// The usual mesh in front of `router`.
    pub async fn of(router: Router) -> Self {
        Self::with(serve(router).await, Setup::default()).await
    }

    pub async fn with(app: SocketAddr, setup: Setup<'_>) -> Self {
        let pki = Pki::new();
        let dir = pki.workload("records", RECORDS);
        std::fs::write(dir.join("policy.yaml"), setup.policy).unwrap();
        let Setup { listener_extra, inbound_extra, records_extra, .. } = setup;
        let rest = format!(
            "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{app}\"{listener_extra}}}]{inbound_extra}}}
policy: {{file: policy.yaml}}
{records_extra}"
        );
        let records = Side::start(dir, "records", &rest).await;
        let Setup { service_extra, web_extra, outbound_extra, expected, .. } = setup;
        let rest = format!(
            "outbound:
  bind: \"127.0.0.1:0\"
  {outbound_extra}
  services:
    - {{name: records, hosts: [{HOST}], endpoints: [\"{}\"], identities: [\"{expected}\"]{service_extra}}}
{web_extra}",
            records.inbound()
        );
        let web = Side::start(pki.workload("web", setup.caller), "web", &rest).await;
        Self { pki, app, records, web }
    }

    /// Where a caller's app sends its requests.
    pub fn outbound(&self) -> SocketAddr {
        self.web.outbound()
    }

    /// Shuts both sidecars down and returns the trail of the enforcement point.
    pub async fn trail(self) -> Trail {
        self.trails().await.0
    }

    /// Shuts both sidecars down and returns both trails: records', then web's.
    pub async fn trails(self) -> (Trail, Trail) {
        let web = self.web.trail().await;
        (self.records.trail().await, web)
    }
}

/// Serves `router` on a port of the system's choice, for as long as the test's runtime lives.
pub async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    addr
}

/// An address where nothing listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The events of one spool, in order.
pub struct Trail {
    pub events: Vec<Value>,
    pub text: String,
}

impl Trail {
    pub fn read(dir: &Path) -> Self {
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "zst"))
            .collect();
        files.sort();
        let unpacked = |file| {
            let stored = std::fs::read(file).unwrap();
            String::from_utf8(zstd::stream::decode_all(&*stored).unwrap()).unwrap()
        };
        let text: String = files.iter().map(unpacked).collect();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // Whatever a test is about: what real sidecars write is what is published.
        events.iter().for_each(schema_support::events::judge);
        Self { events, text }
    }

    pub fn of_type(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["type"] == kind).collect()
    }

    pub fn decisions(&self) -> Vec<&Value> {
        self.of_type("access.decision")
    }

    pub fn completions(&self) -> Vec<&Value> {
        self.of_type("access.complete")
    }

    /// The reason of each decision, in order.
    pub fn reasons(&self) -> Vec<&str> {
        self.decisions().iter().map(|event| event["decision"]["reason"].as_str().unwrap()).collect()
    }
}

/// Waits until `condition` holds, looking again and again; fails the test when it does not come to hold.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let held = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(held.await.is_ok(), "never came to hold: {what}");
}
