//! New versions of policy and SVIDs while the sidecar runs.
//!
//! Files are read through their paths and compared by content: Kubernetes updates them by a symlink swap that file
//! watchers miss, and spiffe-helper writes certificate, key and bundle one after another. So a new version counts once two
//! reads in a row found the same bytes: half a policy can be valid YAML with its deny rules missing. A version with errors
//! is refused, recorded and shown; the last good one stays in force.

mod identity;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::audit::{ControlEvent, ControlRecorder};
use crate::metrics::Metrics;
use crate::policy::{self, Finding, Policy, UnixSeconds};

pub(crate) use identity::{AgentIdentity, IdentityFiles};

/// How often the files are read.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often the trail is told that the policy in force is in shadow mode.
const REMINDER: Duration = Duration::from_secs(3600);

/// What could not be reloaded, for `/ready`.
#[derive(Debug, Clone, Default)]
pub struct ReloadStatus(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl ReloadStatus {
    /// Why what is refused was refused: `policy` or `identity`, and the first error.
    pub fn errors(&self) -> BTreeMap<&'static str, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, what: &'static str, error: Option<String>) {
        let mut errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => drop(errors.insert(what, error)),
            None => drop(errors.remove(what)),
        }
    }
}

/// Where the results of reloads go.
#[derive(Clone)]
pub(crate) struct Outcome {
    pub(crate) audit: ControlRecorder,
    pub(crate) metrics: Metrics,
    pub(crate) status: ReloadStatus,
}

/// The policy file and who waits for its versions.
pub(crate) struct PolicyFile {
    path: PathBuf,
    published: watch::Sender<Arc<Policy>>,
    seen: Seen<Vec<u8>>,
    /// When the trail was last told that the policy is in shadow mode.
    reminded: Option<Instant>,
}

/// Which content was judged last, and which one was only read once so far.
struct Seen<T> {
    judged: T,
    candidate: Option<T>,
}

impl<T: PartialEq> Seen<T> {
    fn new(judged: T) -> Self {
        Self { judged, candidate: None }
    }

    /// True when `content` is new and was read the same twice in a row; it then counts as judged.
    fn settled(&mut self, content: T) -> bool {
        if content == self.judged {
            self.candidate = None;
            return false;
        }
        if self.candidate.as_ref() != Some(&content) {
            self.candidate = Some(content);
            return false;
        }
        self.candidate = None;
        self.judged = content;
        true
    }

    /// Lets `content`, which was judged, be judged again at the next look; `judged` is what counted before.
    fn judge_again(&mut self, judged: T, content: T) {
        self.judged = judged;
        self.candidate = Some(content);
    }
}

impl PolicyFile {
    /// The file whose `content` is in force.
    pub(crate) fn new(path: PathBuf, content: Vec<u8>, published: watch::Sender<Arc<Policy>>) -> Self {
        Self { path, published, seen: Seen::new(content), reminded: None }
    }

    /// Reads the file again and again, until the task is dropped.
    pub(crate) async fn run(mut self, outcome: Outcome) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look(&outcome);
            self.remind(&outcome.audit);
        }
    }

    fn look(&mut self, outcome: &Outcome) {
        let content = match std::fs::read(&self.path) {
            Ok(content) => content,
            Err(error) => {
                // Absent for a moment during a swap, or for good: the last good one stays either way.
                return outcome.status.set("policy", Some(format!("{}: {error}", self.path.display())));
            }
        };
        if !self.seen.settled(content) {
            if self.seen.candidate.is_none() && self.seen.judged_is(&self.published) {
                outcome.status.set("policy", None);
            }
            return;
        }
        match judge(&self.seen.judged) {
            Ok(policy) => {
                tracing::info!(revision = policy.revision(), sha256 = policy.sha256_hex(), "policy loaded");
                outcome.audit.record(loaded(&policy));
                outcome.metrics.reloaded("policy", "loaded");
                outcome.status.set("policy", None);
                self.published.send_replace(Arc::new(policy));
            }
            Err(findings) => {
                let first = findings.first();
                let message = first.map_or_else(String::new, |f| f.message.clone());
                let place = first.map(|f| (u64::from(f.at.line), u64::from(f.at.column)));
                let (line, column) = place.unwrap_or_default();
                let file = self.path.display();
                tracing::error!(%file, line, column, errors = findings.len(), "policy refused: {message}");
                outcome.audit.record(ControlEvent::PolicyRefused {
                    time_unix_ns: now_ns(),
                    sha256: Some(sha256_hex(&self.seen.judged)),
                    errors: findings.len() as u64,
                    first_at: place,
                });
                outcome.metrics.reloaded("policy", "refused");
                outcome.status.set("policy", Some(format!("{file}:{line}:{column}: {message}")));
            }
        }
    }
}

impl PolicyFile {
    /// Records, once and then each hour, that the policy in force is in shadow mode: a trial that nobody ends is a policy
    /// that nobody enforces.
    fn remind(&mut self, audit: &ControlRecorder) {
        let policy = self.published.borrow().clone();
        if !policy.is_shadow() {
            self.reminded = None;
            return;
        }
        let now = Instant::now();
        if self.reminded.is_some_and(|at| now < at + REMINDER) {
            return;
        }
        self.reminded = Some(now);
        tracing::warn!(revision = policy.revision(), "the policy is in shadow mode: no request is refused");
        audit.record(ControlEvent::PolicyShadow {
            time_unix_ns: now_ns(),
            revision: policy.revision().to_owned(),
            sha256: policy.sha256_hex().to_owned(),
        });
    }
}

impl Seen<Vec<u8>> {
    /// Whether the judged content is the policy in force: then an earlier complaint about the file is over.
    fn judged_is(&self, published: &watch::Sender<Arc<Policy>>) -> bool {
        published.borrow().sha256_hex() == sha256_hex(&self.judged)
    }
}

/// Reads a policy that is to be put in force: it must be without errors and pass its own tests as of now.
///
/// # Errors
/// Why it is refused; never an empty list.
pub(crate) fn judge(source: &[u8]) -> Result<Policy, Vec<Finding>> {
    let now = UnixSeconds((now_ns() / 1_000_000_000) as i64);
    policy::load(source, now)
}

/// The event of a policy that is in force from now on.
pub(crate) fn loaded(policy: &Policy) -> ControlEvent {
    ControlEvent::PolicyLoaded {
        time_unix_ns: now_ns(),
        revision: Some(policy.revision().to_owned()),
        sha256: policy.sha256_hex().to_owned(),
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Audit, Durability, InstanceFacts, OnFailure, SpoolConfig};

    fn policy(head: &str) -> Arc<Policy> {
        let text =
            format!("apiVersion: phiward/v1\nkind: Policy\nmetadata: {{name: p, revision: r1}}\n{head}");
        Arc::new(Policy::parse(text.as_bytes()).unwrap())
    }

    /// If this fails, a trial that was forgotten is not told, or the trail is filled with reminders.
    #[tokio::test(start_paused = true)]
    async fn shadow_mode_is_told_at_once_and_then_each_hour() {
        let dir = tempfile::tempdir().unwrap();
        let config = SpoolConfig {
            dir: dir.path().into(),
            max_bytes: 64 << 20,
            durability: Durability::Write,
            on_failure: OnFailure::Deny,
            segment_bytes: 1 << 20,
            key: None,
        };
        let audit = Audit::start(config, &InstanceFacts::default(), &[]).unwrap();
        let published = watch::Sender::new(policy("mode: shadow\n"));
        let mut file = PolicyFile::new(PathBuf::new(), Vec::new(), published.clone());
        let told = |file: &mut PolicyFile| {
            file.remind(&audit.control());
            file.reminded
        };
        let start = Instant::now();
        assert_eq!(told(&mut file), Some(start));
        tokio::time::advance(REMINDER - Duration::from_millis(1)).await;
        assert_eq!(told(&mut file), Some(start));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(told(&mut file), Some(Instant::now()));
        published.send_replace(policy(""));
        assert_eq!(told(&mut file), None, "enforced now");
        published.send_replace(policy("mode: shadow\n"));
        assert_eq!(told(&mut file), Some(Instant::now()), "a new trial");
        audit.close().unwrap();
        let report = crate::audit::verify(dir.path()).unwrap();
        assert_eq!(report.by_type["policy.shadow"], 3);
    }

    /// If this fails, half a file is taken for a new version, and deny rules that were not written yet are missing.
    #[test]
    fn content_counts_once_it_was_read_the_same_twice() {
        let mut seen = Seen::new(1);
        assert!(!seen.settled(1));
        assert!(!seen.settled(2), "read once");
        assert!(!seen.settled(3), "changed between two reads");
        assert!(seen.settled(3), "read the same twice");
        assert!(!seen.settled(3), "judged once");
        assert!(!seen.settled(2));
        assert!(!seen.settled(3), "gone back to what is in force");
        assert!(!seen.settled(2), "a candidate does not outlive that");
    }
}
