//! Sidecars and a collector in processes of their own, at their most talkative, and everything that they leave behind.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use serde_json::Value;

use crate::common::client;

const IDENTITY: &str = "identity: {trust_domain: hospital.local, files: {certificate: svid.pem, private_key: svid.key, bundle: bundle.pem}}";

pub struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
    log: String,
    ready: Value,
    dir: PathBuf,
}

impl Process {
    pub fn sidecar(dir: &Path, service: &str, sinks: &str, rest: &str) -> Self {
        let text = format!(
            "version: 1
workload: {{service: {service}, namespace: clinic}}
{IDENTITY}
audit: {{spool: {{dir: audit}}, key_file: audit-hmac.key, sinks: {sinks}}}
admin: {{bind: \"127.0.0.1:0\"}}
limits: {{drain_deadline: 2s}}
workers: 1
{rest}
"
        );
        Self::start(dir, &text, ["run", "ready"])
    }

    /// Its store is where a sidecar's spool is.
    pub fn collector(dir: &Path) -> Self {
        let text = format!(
            "version: 1\n{IDENTITY}\nbind: \"127.0.0.1:0\"\nstore: {{dir: audit}}\nadmin: {{bind: \"127.0.0.1:0\"}}\n"
        );
        Self::start(dir, &text, ["collect", "collecting"])
    }

    /// Starts a command, and waits until it says that it has.
    fn start(dir: &Path, text: &str, [command, started]: [&str; 2]) -> Self {
        std::fs::write(dir.join("phiward.yaml"), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_phiward"))
            .args([command, "--log-level", "trace", "--config"])
            .arg(dir.join("phiward.yaml"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        let ready = loop {
            let start = log.len();
            assert!(stderr.read_line(&mut log).unwrap() > 0, "it did not start: {log}");
            let line: Value = serde_json::from_str(&log[start..]).unwrap_or_default();
            if line["fields"]["message"] == started {
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

    /// What the admin endpoint shows. A collector has no policy to show.
    pub async fn shown(&self) -> Vec<u8> {
        let mut shown = Vec::new();
        for path in ["/ready", "/metrics", "/policy"] {
            shown.extend(client::get(self.addr("admin"), path).await.body);
        }
        shown
    }

    /// The files of the spool or store, while it runs: journals and the index too.
    pub fn files(&self) -> Vec<u8> {
        files_in(&self.folder())
    }

    pub fn folder(&self) -> PathBuf {
        self.dir.join("audit")
    }

    /// Ends the process; returns its log.
    pub fn end(mut self) -> String {
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        assert!(asked.unwrap().success());
        self.stderr.read_to_string(&mut self.log).unwrap();
        assert!(self.child.wait().unwrap().success());
        std::mem::take(&mut self.log)
    }
}

/// Every byte of every file in `dir` and below, but of those that are gone by the time they are read. What is packed is there unpacked too.
pub fn files_in(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stored = if path.is_dir() { files_in(&path) } else { std::fs::read(&path).unwrap_or_default() };
        all.extend_from_slice(&stored);
        all.push(b'\n');
        if path.extension().is_some_and(|end| end == "zst") {
            // The last frame may be in the middle of being written: as far as it goes.
            drop(zstd::stream::read::Decoder::new(&*stored).unwrap().read_to_end(&mut all));
            all.push(b'\n');
        }
    }
    all
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill()); // where a test failed before the end
    }
}
