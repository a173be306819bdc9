//! phiward processes that are killed and started again.

use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::common::client;
use crate::disk::Disk;

/// How long a process may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// Where a process listens now; `None` while it is down.
#[derive(Clone, Default)]
pub struct Target(Arc<Mutex<Option<SocketAddr>>>);

impl Target {
    pub fn now(&self) -> Option<SocketAddr> {
        *self.0.lock().unwrap()
    }

    fn set(&self, addr: Option<SocketAddr>) {
        *self.0.lock().unwrap() = addr;
    }
}

/// One process, with the folder it works in.
pub struct Process {
    pub name: &'static str,
    pub disk: Disk,
    /// Where it takes its traffic: requests, or events.
    pub traffic: Target,
    admin: Target,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A sidecar or a collector whose configuration is `config`, and which keeps its events in `kept`.
    pub fn of(name: &'static str, command: &str, config: &Path, kept: &Path) -> Self {
        Self {
            name,
            disk: Disk::of(kept),
            traffic: Target::default(),
            admin: Target::default(),
            arguments: vec![command.into(), "--config".into(), config.display().to_string()],
            log: config.with_extension("log"),
            child: None,
        }
    }

    /// Starts it; false when it ended before it was ready, which a full disk is a reason for.
    pub async fn start(&mut self) -> Result<bool, String> {
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(&self.log).unwrap();
        let from = log.seek(SeekFrom::End(0)).unwrap();
        let mut command = Command::new(binary());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.disk.under(&mut command);
        self.child = Some(command.spawn().map_err(|error| format!("{}: {error}", binary().display()))?);
        let started = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(ready) = self.ready_line(from) {
                    let (traffic, admin) = addresses(&ready);
                    self.traffic.set(traffic);
                    self.admin.set(admin);
                    return true;
                }
                if self.has_ended() {
                    return false;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        let started = started.await.map_err(|_| format!("{} neither starts nor ends", self.name))?;
        if !self.disk.is_used() {
            return Err(format!(
                "{} is not dynamically linked: the disk's faults do not reach it",
                binary().display()
            ));
        }
        Ok(started)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.traffic.set(None);
        if let Some(mut child) = self.child.take() {
            drop(child.kill()); // it may have ended by itself
            drop(child.wait());
        }
    }

    /// Asks it to end, and waits for that; whether it ended with success.
    pub async fn end(&mut self) -> Result<bool, String> {
        let Some(child) = &self.child else { return Err(format!("{} is not running", self.name)) };
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status();
        assert!(asked.is_ok_and(|status| status.success()), "{} is gone", self.name);
        self.traffic.set(None);
        let ended = tokio::time::timeout(PATIENCE, async {
            while !self.has_ended() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        ended.await.map_err(|_| format!("{} does not end", self.name))?;
        let status = self.child.take().and_then(|mut child| child.wait().ok());
        Ok(status.is_some_and(|status| status.success()))
    }

    /// What `/ready` says of the audit trail.
    pub async fn audit_status(&self) -> Value {
        let Some(admin) = self.admin.now() else { return Value::Null };
        let reply = client::exchange(admin, "GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        serde_json::from_str::<Value>(reply.await.text()).unwrap_or_default()["audit"].take()
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// The line that says that it is ready, in what was logged after byte `from`.
    fn ready_line(&self, from: u64) -> Option<Value> {
        let mut log = std::fs::File::open(&self.log).ok()?;
        log.seek(SeekFrom::Start(from)).ok()?;
        let mut text = String::new();
        log.read_to_string(&mut text).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut ready = lines.filter(|line| {
            ["ready", "collecting"].iter().any(|message| line["fields"]["message"] == *message)
        });
        ready.next()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address of the traffic, and of the admin endpoint.
fn addresses(ready: &Value) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let first = |field: &str| {
        let text = ready["fields"][field].as_str()?;
        let from = text.find("127.0.0.1")?;
        let end = text[from..].find([']', ')', ',']).map_or(text.len(), |end| from + end);
        text[from..end].parse().ok()
    };
    (first("address").or_else(|| first("inbound")).or_else(|| first("outbound")), first("admin"))
}

/// The program under test: `PHIWARD_BIN`, or the one that was built with this test.
pub fn binary() -> &'static Path {
    static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BINARY.get_or_init(|| {
        std::env::var_os("PHIWARD_BIN").map_or_else(|| env!("CARGO_BIN_EXE_phiward").into(), PathBuf::from)
    })
}
