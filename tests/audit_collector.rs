//! The collector's door: what it takes, what it refuses, and what it says.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use audit_support::*;
use phiward::audit::{FindingKind, verify};
use phiward::collector::{Collector, CollectorConfig, Retention};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// Runs `test` against a collector that keeps its records in `store`.
fn with_collector(store: &Path, test: impl FnOnce(SocketAddr)) {
    let config = CollectorConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        store: store.into(),
        key: None,
        tls: None,
        relays: Vec::new(),
        retention: Retention::default(),
    };
    let (collector, addr) = Collector::bind(config).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| worker(collector.serve(shutdown)).unwrap());
        test(addr);
        drop(stop);
    });
}

fn send(addr: SocketAddr, head: &str, body: &[u8]) -> (u16, Value) {
    let (status, answer) = exchange(addr, &format!("{head} HTTP/1.1"), body);
    (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap())
}

/// The status, and the whole answer.
fn exchange(addr: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!("{head}\r\nhost: c\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(body); // a refusal may come before the end of the body
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn post(addr: SocketAddr, body: &[u8]) -> (u16, Value) {
    send(addr, "POST /v1/events", body)
}

/// The lines of a closed trail of `n` requests.
fn trail(n: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), n);
    let mut lines = Vec::new();
    phiward::audit::for_each(dir.path(), |line| {
        lines.push(format!("{}\n", std::str::from_utf8(line).unwrap()));
        Ok(())
    })
    .unwrap();
    lines
}

fn counts(stored: u64, duplicates: u64, evidence: u64) -> (u16, Value) {
    (200, json!({"stored": stored, "duplicates": duplicates, "evidence": evidence}))
}

/// If this fails, a batch that comes twice, in part or interleaved with another sidecar's is stored wrongly.
#[test]
fn batches_may_overlap_and_mix_epochs() {
    let store = tempfile::tempdir().unwrap();
    let (a, b) = (trail(10), trail(10));
    with_collector(store.path(), |addr| {
        assert_eq!(post(addr, a[..10].concat().as_bytes()), counts(10, 0, 0));
        assert_eq!(post(addr, a[5..15].concat().as_bytes()), counts(5, 5, 0));
        let mixed: String = a[14..].iter().zip(&b).map(|(a, b)| format!("{a}{b}\n")).collect();
        assert_eq!(post(addr, mixed.as_bytes()), counts(15, 1, 0));
    });
    with_collector(store.path(), |addr| {
        // Another process, which knows of the store what is on disk.
        assert_eq!(post(addr, a.concat().as_bytes()), counts(0, 22, 0));
        assert_eq!(post(addr, b[8..].concat().as_bytes()), counts(14, 0, 0));
        let health = send(addr, "GET /healthz", b"");
        assert_eq!(health.1["since_start"]["stored"], 14);
    });
    let report = intact(store.path());
    assert_eq!((report.events, report.epochs.len()), (44, 2));
}

/// If this fails, a second history of an epoch replaces the first, or is lost as proof.
#[test]
fn a_fork_is_kept_and_the_stored_history_stays() {
    let store = tempfile::tempdir().unwrap();
    let lines = trail(10);
    let other = lines[10].replacen("\"status\":200", "\"status\":500", 1);
    with_collector(store.path(), |addr| {
        assert_eq!(post(addr, lines.concat().as_bytes()), counts(22, 0, 0));
        assert_eq!(post(addr, rehashed(&other).as_bytes()), counts(0, 0, 1));
        assert_eq!(post(addr, lines.concat().as_bytes()), counts(0, 22, 0));
    });
    let report = verify(store.path()).unwrap();
    assert_eq!(report.findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [FindingKind::Evidence]);
    assert_eq!(events(store.path()).len(), 22);
    let evidence = std::fs::read_to_string(store.path().join("evidence/evidence.jsonl")).unwrap();
    let evidence: Value = serde_json::from_str(evidence.trim()).unwrap();
    assert_eq!(
        (evidence["kind"].as_str(), evidence["line"].as_str().unwrap()),
        (Some("fork"), rehashed(&other).trim())
    );
}

/// A changed line with its hash made anew, as an attacker would.
fn rehashed(line: &str) -> String {
    let at = line.find("\"hash\":\"").unwrap();
    let without = format!("{}{}", &line[..at], &line[at + 8 + 64 + 2..]);
    let mut bytes = vec![0];
    bytes.extend_from_slice(without.trim().as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\"hash\":\"{hex}\",{}", &line[..at], &without[at..])
}

/// If this fails, what follows a hole is lost, or the hole is not seen.
#[test]
fn records_after_a_hole_are_stored_and_the_hole_is_named() {
    let store = tempfile::tempdir().unwrap();
    let lines = trail(10);
    let holed = [lines[..5].concat(), lines[8..].concat()].concat();
    with_collector(store.path(), |addr| {
        assert_eq!(post(addr, holed.as_bytes()), counts(19, 0, 0));
        assert_eq!(post(addr, lines.concat().as_bytes()), counts(0, 19, 3), "late records are kept too");
    });
    let report = verify(store.path()).unwrap();
    let first = &report.findings[0];
    assert_eq!((first.kind, first.seq, report.events), (FindingKind::Gap, Some(8), 19));
}

/// If this fails, garbage stops the collector or is acknowledged without being kept.
#[test]
fn lines_that_are_no_records_are_kept_and_limits_hold() {
    let store = tempfile::tempdir().unwrap();
    let lines = trail(1);
    with_collector(store.path(), |addr| {
        let mixed =
            [lines[0].as_bytes(), b"{\"x\":1}\n\n\xff\xfe\n../../etc\n", lines[1].as_bytes()].concat();
        assert_eq!(post(addr, &mixed), counts(2, 0, 3));
        assert_eq!(post(addr, b""), counts(0, 0, 0));
        assert_eq!(post(addr, b"{\"no\":\"end of line\"}").0, 400);
        assert_eq!(post(addr, &[&[b'x'; 70_000][..], b"\n"].concat()).0, 400);
        assert_eq!(send(addr, "GET /v1/events", b"").0, 405);
        assert_eq!(send(addr, "GET /", b"").0, 404);
        assert_eq!(send(addr, "GET /healthz", b"").0, 200);
        assert_eq!(post(addr, &vec![b'\n'; 8 * 1024 * 1024 + 1]).0, 413);
        assert_eq!(post(addr, lines.concat().as_bytes()), counts(2, 2, 0));
    });
}

/// If this fails, a coded batch is stored otherwise than a plain one, or what cannot be decoded is taken for records.
#[test]
fn a_batch_may_be_coded_and_is_stored_as_it_was() {
    let store = tempfile::tempdir().unwrap();
    let lines = trail(10);
    let (whole, begin) = (lines.concat(), lines[..4].concat());
    let zstd = |text: &str| zstd::bulk::compress(text.as_bytes(), 1).unwrap();
    with_collector(store.path(), |addr| {
        let coded = |coding: &str, body: &[u8]| {
            exchange(addr, &format!("POST /v1/events HTTP/1.1\r\ncontent-encoding: {coding}"), body)
        };
        let (status, answer) = coded("zstd", &zstd(&begin));
        assert!(status == 200 && answer.contains(r#""stored":4"#), "{answer}");
        assert!(answer.contains("\r\naccept-encoding: zstd\r\n"), "{answer}");
        // Two frames, as somebody makes them who appends; and a name in capitals.
        let frames = [zstd(&whole[..begin.len()]), zstd(&whole[begin.len()..])].concat();
        let (status, answer) = coded("ZSTD", &frames);
        assert!(status == 200 && answer.contains(r#""duplicates":4,"evidence":0"#), "{answer}");
        assert_eq!(coded("identity", whole.as_bytes()).0, 200);
        for (coding, body, refused) in [
            ("gzip", zstd(&whole), 415),
            ("zstd, zstd", zstd(&whole), 415),
            ("zstd", whole.clone().into_bytes(), 400),
            ("zstd", zstd(&whole)[..whole.len() / 50].to_vec(), 400),
            ("zstd", zstd(&"x\n".repeat(5 << 20)), 413),
            ("zstd", Vec::new(), 200),
        ] {
            assert_eq!(coded(coding, &body).0, refused, "{coding}, {} bytes", body.len());
        }
    });
    let report = verify(store.path()).unwrap();
    assert_eq!((report.findings.len(), report.events), (0, lines.len() as u64));
}

/// If this fails, a collector that was killed while it kept evidence spoils the next record that it keeps.
#[test]
fn the_beginning_of_a_line_of_evidence_costs_no_other() {
    let store = tempfile::tempdir().unwrap();
    let file = store.path().join("evidence/evidence.jsonl");
    with_collector(store.path(), |addr| assert_eq!(post(addr, b"first\n"), counts(0, 0, 1)));
    let mut kept = std::fs::read(&file).unwrap();
    kept.extend_from_within(..kept.len() / 2);
    std::fs::write(&file, kept).unwrap();
    with_collector(store.path(), |addr| assert_eq!(post(addr, b"second\n"), counts(0, 0, 1)));
    let content = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<Value> = content.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.iter().map(|kept| &kept["line"]).collect::<Vec<_>>(), ["first", "second"]);
}
