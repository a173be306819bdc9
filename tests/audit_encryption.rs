//! Encryption at rest: nothing readable on the disk, and everything as before for who has the key.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use audit_support::*;
use phiward::audit::{Audit, Field, Query, ShipTiming, SinkKind, SpoolConfig, SpoolKey, query, verify};
use phiward::collector::{Collector, CollectorConfig, Retention};
use tokio::sync::{oneshot, watch};

/// Stands in every event of these tests.
const CANARY: &str = "records.clinic";
const PATIENCE: Duration = Duration::from_secs(60);

/// A key of this test alone: what one test has opened with, no other one shall.
fn key(dir: &Path, fill: u8) -> (PathBuf, Arc<SpoolKey>) {
    let path = dir.join("spool.key");
    std::fs::write(&path, [fill; 32]).unwrap();
    let key = SpoolKey::from_file(&path).unwrap();
    (path, key)
}

fn encrypted(dir: &Path, key: &Arc<SpoolKey>) -> SpoolConfig {
    SpoolConfig { key: Some(key.clone()), ..config(dir) }
}

/// Every file below `dir` that holds the canary.
fn readable(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(readable(&path));
        } else if std::fs::read(&path).unwrap().windows(CANARY.len()).any(|part| part == CANARY.as_bytes()) {
            found.push(path);
        }
    }
    found
}

fn phiward(args: &[&str], dir: &Path) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_phiward")).arg("audit").args(args).arg(dir).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// If this fails, whoever takes the disk reads the trail, or its owner cannot.
#[test]
fn an_encrypted_spool_is_read_with_its_key_and_by_nobody_else() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("spool");
    let (file, key) = key(home.path(), 131);
    for n in [300, 20] {
        let audit = Audit::start(encrypted(&dir, &key), &instance(), &[]).unwrap();
        requests(&audit, "", n);
        assert!(readable(&dir).is_empty(), "journals too: {:?}", readable(&dir));
        audit.close().unwrap();
    }
    assert!(segments(&dir).len() > 3);
    let report = intact(&dir);
    assert_eq!((report.by_type["access.decision"], report.epochs.len()), (320, 2));
    let found =
        query(&dir, &Query { texts: vec![(Field::RequestId, "7".into())], ..Query::default() }).unwrap();
    assert_eq!(found.rows.len(), 2);
    assert!(found.rows.iter().all(|row| row.completion.is_some()));

    let file = file.to_str().unwrap();
    assert_eq!(phiward(&["verify", "--spool-key", file], &dir).0, Some(0));
    assert!(phiward(&["--spool-key", file, "export"], &dir).1.contains(CANARY));
    assert_eq!(phiward(&["index", "--spool-key", file], &dir).0, Some(0));
    for command in ["verify", "export", "query", "tail"] {
        let (code, text) = phiward(&[command], &dir);
        assert!(
            code == Some(2) && text.contains("--spool-key") && !text.contains(CANARY),
            "{command}: {text}"
        );
    }
    let damaged = segments(&dir)[1].clone();
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[200] = if bytes[200] == b'A' { b'B' } else { b'A' };
    std::fs::write(&damaged, bytes).unwrap();
    assert!(!verify(&dir).unwrap().intact, "what was changed is told");
}

/// If this fails, a spool that was plain text cannot be encrypted from now on, or a lost key locks what was not.
#[test]
fn a_spool_may_change_to_encryption_to_another_key_and_back() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("spool");
    let (_, first) = key(home.path(), 132);
    let (_, second) = key(home.path(), 133);
    for config in [config(&dir), encrypted(&dir, &first), encrypted(&dir, &second), config(&dir)] {
        let audit = Audit::start(config, &instance(), &[]).unwrap();
        requests(&audit, "", 5);
        audit.close().unwrap();
    }
    let report = intact(&dir);
    assert_eq!((report.by_type["access.decision"], report.epochs.len()), (20, 4));
    assert_eq!(readable(&dir).len(), 2, "what was written as plain text stays as it is");
}

/// If this fails, receivers get encrypted lines, a refused batch is readable on the disk, or a collector's store is.
#[test]
fn receivers_get_plain_events_and_what_is_kept_is_encrypted() {
    let home = tempfile::tempdir().unwrap();
    let (spool, store) = (home.path().join("spool"), home.path().join("store"));
    let (file, key) = key(home.path(), 134);
    let sink = sink_of("collector", SinkKind::Phiward);
    let (collector, addr) = Collector::bind(CollectorConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        store: store.clone(),
        key: Some(key.clone()),
        tls: None,
        relays: Vec::new(),
        retention: Retention::default(),
    })
    .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        worker(collector.serve(async { drop(stopped.await) })).unwrap();
    });
    let audit = Audit::start(encrypted(&spool, &key), &instance(), std::slice::from_ref(&sink)).unwrap();
    requests(&audit, "", 700);
    let timing = ShipTiming { linger: Duration::ZERO, ..ShipTiming::default() };
    let mut shipper = audit.shipper(&sink, watch::channel(vec![addr].into()).1, None, timing).unwrap();
    worker(async {
        assert_eq!(shipper.finish(PATIENCE).await, 0);
        audit.close().unwrap();
        assert_eq!(shipper.finish(PATIENCE).await, 0);
    });
    drop(stop);
    serving.join().unwrap();
    assert_eq!(events(&spool), events(&store));
    intact(&store);
    assert!(readable(&store).is_empty(), "{:?}", readable(&store));
    assert_eq!(phiward(&["verify", "--spool-key", file.to_str().unwrap()], &store).0, Some(0));
}
