//! What a collector lets go of: whole segments, the oldest first, never what was tampered with, and never unsaid.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use audit_support::*;
use phiward::audit::{FindingKind, verify};
use phiward::collector::{Collector, CollectorConfig, CollectorMetrics, Retention};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const DAY: Duration = Duration::from_secs(86_400);
const MAX_AGE: Retention = Retention { max_age: Some(Duration::from_secs(90 * 86_400)), max_bytes: None };

/// A store with one epoch of several segments, as a collector would have written it.
struct Stored {
    dir: tempfile::TempDir,
    segments: Vec<PathBuf>,
    lines: Vec<String>,
}

impl Stored {
    fn new() -> Self {
        let (spool, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        trail_of(spool.path(), 200);
        let mut stored = Self { dir, segments: Vec::new(), lines: Vec::new() };
        let mut name = String::new();
        for segment in segments(spool.path()) {
            let text = text_of(&segment);
            stored.lines.extend(text.lines().map(|line| format!("{line}\n")));
            name = segment.file_name().unwrap().to_str().unwrap().to_owned();
        }
        // Where the spool began a new segment depends on how its writer was scheduled, so the store has its own places.
        let epoch = &name[..36];
        let folder = stored.dir.path().join(epoch);
        std::fs::create_dir_all(&folder).unwrap();
        for (at, lines) in stored.lines.chunks(stored.lines.len().div_ceil(5)).enumerate() {
            let first_seq = at * stored.lines.len().div_ceil(5);
            let path = folder.join(format!("{epoch}-{first_seq:016}.ndjson"));
            std::fs::write(&path, lines.concat()).unwrap();
            stored.segments.push(path);
        }
        stored
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn age(&self, days: u32, segments: std::ops::Range<usize>) {
        for segment in &self.segments[segments] {
            let file = File::options().append(true).open(segment).unwrap();
            file.set_modified(SystemTime::now() - DAY * days).unwrap();
        }
    }

    fn here(&self) -> Vec<bool> {
        self.segments.iter().map(|segment| segment.exists()).collect()
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().filter_map(|segment| Some(segment.metadata().ok()?.len())).sum()
    }

    /// Runs a collector, waits until it has looked (`done`), and then `test`.
    fn collect(&self, retention: Retention, done: &str, test: impl FnOnce(SocketAddr)) {
        let config = CollectorConfig {
            bind: ([127, 0, 0, 1], 0).into(),
            store: self.path().into(),
            key: None,
            tls: None,
            relays: Vec::new(),
            retention,
        };
        let (collector, addr) = Collector::bind(config).unwrap();
        let metrics = collector.metrics().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        std::thread::scope(|scope| {
            scope.spawn(|| worker(collector.serve(shutdown)).unwrap());
            until(&metrics, done);
            test(addr);
            drop(stop);
        });
    }
}

fn until(metrics: &CollectorMetrics, line: &str) {
    let give_up = std::time::Instant::now() + Duration::from_secs(60);
    while !metrics.render().unwrap().contains(line) {
        assert!(std::time::Instant::now() < give_up, "{line} in {}", metrics.render().unwrap());
        std::thread::yield_now();
    }
}

fn post(addr: SocketAddr, lines: &[String]) -> Value {
    let body = lines.concat();
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = "POST /v1/events HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-length:";
    stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// If this fails, a store keeps what must go, or `verify` takes retention for tampering.
#[test]
fn what_is_too_old_goes_and_verify_notes_it() {
    let stored = Stored::new();
    stored.age(91, 0..2);
    let kept: Vec<_> =
        stored.segments[2..].iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let kept: usize = kept.iter().map(|text| text.lines().count()).sum();
    stored.collect(MAX_AGE, "retention_removed_total 2\n", |addr| {
        let again = &stored.lines[stored.lines.len() - kept - 1..];
        let duplicates = json!({"stored": 0, "duplicates": kept + 1, "evidence": 0});
        assert_eq!(post(addr, again), duplicates, "also the last record that went");
    });
    assert_eq!(stored.here()[..3], [false, false, true]);
    let report = intact(stored.path());
    assert_eq!(report.events, kept as u64);
    assert!(report.notes.iter().any(|note| note.contains("removed by retention (max_age")), "{report:?}");
    // Without its tombstones it is a gap like any other.
    std::fs::remove_file(stored.path().join("retention.jsonl")).unwrap();
    assert_eq!(verify(stored.path()).unwrap().findings[0].kind, FindingKind::Gap);
}

/// If this fails, a disk fills up although a size was set, or more goes than must.
#[test]
fn what_is_too_much_goes_oldest_first() {
    let stored = Stored::new();
    stored.age(2, 0..1);
    let all = stored.bytes();
    let max_bytes = Some(all - 1);
    stored.collect(Retention { max_age: None, max_bytes }, "retention_removed_total 1\n", |_| {});
    assert_eq!(stored.here().iter().filter(|here| !**here).count(), 1);
    assert!(!stored.segments[0].exists() && stored.bytes() < all);
    intact(stored.path());
}

/// If this fails, an epoch that went whole comes back as a new one, or is missed.
#[test]
fn an_epoch_that_went_whole_is_remembered() {
    let stored = Stored::new();
    stored.age(91, 0..stored.segments.len());
    let removed = format!("retention_removed_total {}\n", stored.segments.len());
    stored.collect(MAX_AGE, &removed, |_| {});
    assert!(!stored.segments[0].parent().unwrap().exists());
    let report = intact(stored.path());
    assert!(report.notes.iter().any(|note| note.contains("1 epochs were removed whole")), "{report:?}");
    stored.collect(MAX_AGE, "retention_removed_total 0\n", |addr| {
        let last = stored.lines.len() - 1;
        assert_eq!(post(addr, &stored.lines[last..]), json!({"stored": 0, "duplicates": 1, "evidence": 0}));
        assert_eq!(post(addr, &stored.lines[..1]), json!({"stored": 0, "duplicates": 0, "evidence": 1}));
    });
}

/// If this fails, whoever changes a record only has to wait until retention takes the proof away.
#[test]
fn a_segment_that_was_changed_stays_and_so_does_what_follows_it() {
    let stored = Stored::new();
    stored.age(91, 0..3);
    let text = std::fs::read_to_string(&stored.segments[1]).unwrap();
    std::fs::write(&stored.segments[1], text.replacen("\"status\":200", "\"status\":404", 1)).unwrap();
    stored.age(91, 1..2);
    stored.collect(MAX_AGE, "retention_kept_total 1\n", |_| {});
    assert_eq!(stored.here()[..4], [false, true, true, true]);
    assert_eq!(verify(stored.path()).unwrap().findings[0].kind, FindingKind::Flip);
}

/// If this fails, a crash in the middle of a removal makes a store that does not verify, or that does not start.
#[test]
fn a_removal_that_a_crash_cut_short_is_ended_at_the_next_start() {
    let stored = Stored::new();
    stored.age(91, 0..2);
    let second = std::fs::read(&stored.segments[1]).unwrap();
    stored.collect(MAX_AGE, "retention_removed_total 2\n", |_| {});
    std::fs::write(&stored.segments[1], second).unwrap();
    let mut tombs = File::options().append(true).open(stored.path().join("retention.jsonl")).unwrap();
    tombs.write_all(b"{\"epoch\":\"01a2").unwrap();
    intact(stored.path());
    stored.collect(MAX_AGE, "retention_removed_total 0\n", |_| {});
    assert!(!stored.segments[1].exists());
    stored.age(91, 2..3);
    stored.collect(MAX_AGE, "retention_removed_total 1\n", |_| {});
    intact(stored.path());
}

/// If this fails, a tombstone can be changed so that it covers what somebody took away.
#[test]
fn a_tombstone_that_was_changed_is_named_and_the_collector_does_not_go_on() {
    let stored = Stored::new();
    stored.age(91, 0..2);
    stored.collect(MAX_AGE, "retention_removed_total 2\n", |_| {});
    let path = stored.path().join("retention.jsonl");
    let text = std::fs::read_to_string(&path).unwrap().replacen("max_age", "max_bytes", 1);
    std::fs::write(&path, text).unwrap();
    let report = verify(stored.path()).unwrap();
    let broken = report.findings.iter().find(|finding| finding.kind == FindingKind::BadJson).unwrap();
    assert_eq!((broken.line, broken.file.as_path()), (2, path.as_path()));
    let config = CollectorConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        store: stored.path().into(),
        key: None,
        tls: None,
        relays: Vec::new(),
        retention: MAX_AGE,
    };
    let error = Collector::bind(config).err().unwrap().to_string();
    assert!(error.contains("retention.jsonl: line 2"), "{error}");
}
