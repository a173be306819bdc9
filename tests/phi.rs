//! Protected health information stays out of the trail, the log at its most talkative, and error replies.
//!
//! Runs the real program, because what other libraries log is held back where the process sets its log up.
#![allow(clippy::unwrap_used)] // the lint setting for tests knows #[test] functions alone

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use common::app::{After, App};
use common::h2;
use common::wire::Wire;
use common::{HOST, POLICY, Pki, RECORDS, WEB, client};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

/// Looked for in any case: header names arrive in lower case.
const CANARY: &str = "canary4711";

/// A sidecar in a process of its own, whose log is kept.
struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
    log: String,
    ready: Value,
    dir: PathBuf,
}

impl Process {
    fn start(dir: &Path, service: &str, rest: &str) -> Self {
        let text = format!(
            "version: 1
workload: {{service: {service}, namespace: clinic}}
identity: {{trust_domain: hospital.local, files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}}}
audit: {{spool: {{dir: audit}}, key_file: audit-hmac.key}}
admin: {{bind: \"127.0.0.1:0\"}}
limits: {{drain_deadline: 2s}}
workers: 1
{rest}
"
        );
        std::fs::write(dir.join("sidecar.yaml"), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_phiward"))
            .args(["run", "--log-level", "trace", "--config"])
            .arg(dir.join("sidecar.yaml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        let ready = loop {
            let start = log.len();
            assert!(stderr.read_line(&mut log).unwrap() > 0, "it did not start: {log}");
            let line: Value = serde_json::from_str(&log[start..]).unwrap_or_default();
            if line["fields"]["message"] == "ready" {
                break line["fields"].clone();
            }
        };
        Self { child, stderr, log, ready, dir: dir.to_owned() }
    }

    /// The first address in a field of the line that says that it is ready.
    fn addr(&self, field: &str) -> SocketAddr {
        let text = self.ready[field].as_str().unwrap();
        let at = text.find("127.0.0.1").unwrap();
        let end = text[at..].find([']', ')']).map_or(text.len(), |end| at + end);
        text[at..end].parse().unwrap()
    }

    /// Ends the process; returns its log and everything in its spool.
    async fn end(mut self) -> (String, String) {
        let drain = "POST /drain HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
        assert_eq!(client::exchange(self.addr("admin"), drain).await.status, 202);
        self.stderr.read_to_string(&mut self.log).unwrap();
        assert!(self.child.wait().unwrap().success());
        let spool = std::fs::read_dir(self.dir.join("audit")).unwrap();
        let contents = spool.map(|file| std::fs::read(file.unwrap().path()).unwrap_or_default());
        (
            std::mem::take(&mut self.log),
            contents.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect(),
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill()); // where a test failed before the end
    }
}

fn requests() -> Vec<(String, u16)> {
    let c = CANARY;
    let get = |target: &str, more: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n{more}\r\n")
    };
    vec![
        (get(&format!("/fhir/Patient/{c}"), ""), 200),
        (
            format!(
                "POST /open/{c}?{c}={c} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nX-{c}: {c}\r\nCookie: {c}={c}\r\n\
                 Authorization: Bearer {c}\r\nUser-Agent: {c}\r\nX-Request-Id: {c}\r\nTraceparent: {c}\r\nTracestate: {c}\r\n\
                 Transfer-Encoding: chunked\r\nTrailer: X-{c}\r\n\r\na\r\n{c}\r\n0\r\nX-{c}: {c}\r\n\r\n"
            ),
            200,
        ),
        (get(&format!("/open/admin/{c}"), ""), 403),
        (get(&format!("/elsewhere/{c}"), ""), 403),
        (get(&format!("/open//{c}"), ""), 400),
        (get(&format!("/open/{c}?_method={c}"), ""), 400),
        (get(&format!("/open/a?{c}=%zz"), ""), 400),
        (get("/open/a", &format!("Upgrade: {c}\r\n")), 200),
        (format!("GET /open/a HTTP/1.1\r\nHost: {c}.example\r\nConnection: close\r\n\r\n"), 404),
        (format!("GET /open/a HTTP/1.1\r\nHost: {c}@{HOST}\r\nConnection: close\r\n\r\n"), 400),
        (format!("{c} /open/a HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"), 400),
        (format!("GET /{c} HTTP/1.1\r\nHost: {HOST}\r\n{c}\r\n\r\n"), 400),
        (format!("GET /open/a HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", c.repeat(7000)), 431),
        (get("/open/broken", ""), 502),
    ]
}

/// If this fails, patients' data lies in files that were never meant to hold it.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_in_every_part_of_a_request_is_nowhere_in_trail_log_and_refusals() {
    let app = App::start(|request| {
        if request.start.contains("/open/broken") {
            return (format!("{CANARY}\r\n\r\n").into_bytes(), After::Close);
        }
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked";
        let answer = format!(
            "{head}\r\nSet-Cookie: {CANARY}\r\nX-{CANARY}: {CANARY}\r\n\r\na\r\n{CANARY}\r\n0\r\n\r\n"
        );
        (answer.into_bytes(), After::Keep)
    })
    .await;
    let pki = Pki::new();
    let dir = pki.workload("records", RECORDS);
    std::fs::write(dir.join("policy.yaml"), POLICY).unwrap();
    let inbound = format!(
        "inbound: {{listeners: [{{name: api, bind: \"127.0.0.1:0\", app: \"{}\"}}]}}\npolicy: {{file: policy.yaml}}",
        app.addr
    );
    let records = Process::start(&dir, "records", &inbound);
    let outbound = format!(
        "outbound: {{audit: all, bind: \"127.0.0.1:0\", services: [{{name: records, hosts: [{HOST}], \
         endpoints: [\"{}\"], identities: [\"{RECORDS}\"]}}]}}",
        records.addr("inbound")
    );
    let web = Process::start(&pki.workload("web", WEB), "web", &outbound);
    let addr = web.addr("outbound");

    for (request, status) in requests() {
        let mut wire = Wire::connect(addr).await;
        wire.send(&request).await;
        let reply = wire.response("GET").await;
        assert_eq!(reply.status(), status, "{request}");
        assert!(status == 200 || !format!("{reply:?}").contains(CANARY), "{reply:?}");
    }
    let sender = h2::connect(addr).await;
    let trailers =
        HeaderMap::from_iter([("x-canary4711".parse().unwrap(), HeaderValue::from_static(CANARY))]);
    let body = h2::with_trailers(CANARY, Some(trailers));
    let reply = h2::send(&sender, h2::request("POST", "/open/canary4711", body)).await;
    h2::collect(reply.into_body()).await.unwrap();
    drop(sender);

    for process in [web, records] {
        let (log, spool) = process.end().await;
        assert!(log.lines().count() > 2 && spool.contains("access.decision"), "{log} {spool}");
        for text in [log.to_lowercase(), spool.to_lowercase()] {
            let found = text.lines().find(|line| line.contains(CANARY));
            assert_eq!(found, None);
        }
    }
}
