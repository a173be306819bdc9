//! A sidecar in a process of its own, at its most talkative, and everything that it leaves behind.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;

use crate::common::client;

pub struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
    log: String,
    ready: Value,
    dir: PathBuf,
}

impl Process {
    pub fn start(dir: &Path, service: &str, sinks: &str, rest: &str) -> Self {
        let text = format!(
            "version: 1
workload: {{service: {service}, namespace: clinic}}
identity: {{trust_domain: hospital.local, files: {{certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}}}
audit: {{spool: {{dir: audit}}, key_file: audit-hmac.key, sinks: {sinks}}}
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
    pub fn addr(&self, field: &str) -> SocketAddr {
        let text = self.ready[field].as_str().unwrap();
        let at = text.find("127.0.0.1").unwrap();
        let end = text[at..].find([']', ')']).map_or(text.len(), |end| at + end);
        text[at..end].parse().unwrap()
    }

    /// What the admin endpoint shows.
    pub async fn shown(&self) -> Vec<u8> {
        let mut shown = Vec::new();
        for path in ["/ready", "/metrics", "/policy"] {
            shown.extend(client::get(self.addr("admin"), path).await.body);
        }
        shown
    }

    /// The files of the spool, while it runs: journals too.
    pub fn spool(&self) -> Vec<u8> {
        files_in(&self.folder())
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.join("audit")
    }

    /// Ends the process; returns its log.
    pub async fn end(mut self) -> String {
        let drain = "POST /drain HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
        assert_eq!(client::exchange(self.addr("admin"), drain).await.status, 202);
        self.stderr.read_to_string(&mut self.log).unwrap();
        assert!(self.child.wait().unwrap().success());
        std::mem::take(&mut self.log)
    }
}

/// Every byte of every file in `dir` and below.
pub fn files_in(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        all.extend(if path.is_dir() { files_in(&path) } else { std::fs::read(path).unwrap() });
        all.push(b'\n');
    }
    all
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill()); // where a test failed before the end
    }
}
