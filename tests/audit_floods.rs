//! Floods of denials cost the trail a few records, and every one of them is counted.
#![allow(clippy::unwrap_used)]

mod audit_support;

use std::path::Path;
use std::time::Duration;

use audit_support::{config, events, fragment, instance, intact, start, worker};
use phiward::audit::{
    AccessDecision, Audit, ConnFragment, Decision, Direction, Durability, HttpFacts, Recorder, SpoolConfig,
    account,
};
use serde_json::Value;

const NOW: u64 = 1_795_183_402_118_204_771;

fn deny(recorder: &Recorder, conn: &ConnFragment, rule: &str, id: usize) {
    let decision =
        Decision { outcome: "deny", reason: "deny_rule", rule: Some(rule), role: None, shadow: None };
    let recorded = recorder.reserve(2).unwrap().decision(&AccessDecision {
        time_unix_ns: NOW + id as u64,
        request_id: &format!("{id:032x}"),
        trace_id: None,
        conn,
        http: HttpFacts {
            method: Some("GET"),
            template: Some("/admin/**"),
            version: "2",
            ..HttpFacts::default()
        },
        decision,
        policy: None,
    });
    drop(recorded); // nothing is forwarded
}

/// How many denials the trail tells one by one, and how many in summaries.
fn told(dir: &Path) -> (usize, Vec<u64>) {
    let events = events(dir);
    let of =
        |kind: &str| events.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<Value>>();
    let counts =
        of("audit.summary").iter().map(|event| event["summary"]["count"].as_u64().unwrap()).collect();
    (of("access.decision").len(), counts)
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// If this fails, a caller that is refused without end fills the spool, or a denial is told by nothing.
#[test]
fn a_flood_is_twenty_events_and_an_exact_count() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        for id in 0..5000 {
            deny(&recorder, &conn, "no-admin", id);
            if id % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for id in 0..20 {
            deny(&recorder, &conn, "quarantine", id);
        }
    });
    assert_eq!(audit.status().coalesced_events, 4980);
    audit.close().unwrap();
    intact(dir.path());
    assert_eq!(told(dir.path()), (40, vec![4980]));
    let summary = events(dir.path()).into_iter().find(|event| event["type"] == "audit.summary").unwrap();
    assert_eq!(
        (&summary["summary"]["first"], &summary["summary"]["last"]),
        (&"2026-11-20T14:03:22.118204791Z".into(), &"2026-11-20T14:03:22.118209770Z".into())
    );
    assert_eq!(summary["summary"]["templates"], serde_json::json!(["/admin/**"]));
    assert_eq!(summary["conn"], serde_json::json!({"direction": "inbound", "listener": "api"}));
    let account = account(dir.path(), None, None).unwrap();
    assert_eq!(account.outcomes["deny"], 5020);
    assert_eq!(account.identities["spiffe://hospital.local/ns/clinic/sa/web"].refused, 5020);
}

/// If this fails, `kill -9` takes along how often a caller was refused, or it is counted twice.
#[test]
fn a_killed_process_leaves_its_counts_behind() {
    let (dir, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let audit = start(dir.path(), &[]).unwrap();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        for id in 0..700 {
            deny(&recorder, &conn, "no-admin", id);
            if id % 10 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for id in 0..30 {
            deny(&recorder, &conn, "quarantine", id);
        }
        // The end of the turn, and until the writer has what is no count.
        while audit.status().written_events < 41 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What a killed process leaves is what the kernel has.
        copy(dir.path(), left.path());
    });
    audit.close().unwrap();
    assert_eq!(told(dir.path()), (40, vec![680, 10]), "the end of the worker tells them");
    assert_eq!(told(left.path()), (40, vec![]), "they were in the journal alone");
    for _ in 0..2 {
        start(left.path(), &[]).unwrap().close().unwrap();
        assert_eq!(told(left.path()), (40, vec![680, 10]), "the next start does");
    }
    intact(left.path());
    assert_eq!(events(left.path()).iter().find_map(|event| event["open"]["recovered"].as_u64()), Some(2));
}

/// If this fails, denials are only counted where a count is lost with the process.
#[test]
fn without_a_journal_each_denial_is_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { durability: Durability::FsyncBeforeForward, ..config(dir.path()) };
    let audit = Audit::start(config, &instance(), &[]).unwrap();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        (0..50).for_each(|id| deny(&recorder, &conn, "no-admin", id));
    });
    audit.close().unwrap();
    assert_eq!(told(dir.path()), (50, vec![]));
}

/// If this fails, a peer that varies what it is refused for makes a worker grow, or takes the count of others along.
#[test]
fn more_kinds_than_there_are_slots_are_events() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        for id in 0..100 {
            (0..40).for_each(|kind| deny(&recorder, &conn, &format!("rule-{kind}"), id));
            tokio::task::yield_now().await;
        }
    });
    audit.close().unwrap();
    intact(dir.path());
    assert_eq!(told(dir.path()), (32 * 20 + 8 * 100, vec![80; 32]));
}

/// If this fails, refused handshakes, which need no certificate and so cost an attacker nothing, fill the spool.
#[test]
fn refused_connections_are_counted_too() {
    use phiward::audit::{ConnFacts, ConnRejected};
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    worker(async {
        let recorder = audit.recorder().attach();
        for id in 0..300u64 {
            // Each from another address: that is no other kind.
            let peer = std::net::IpAddr::from([10, 2, 0, id as u8]);
            let (direction, listener) = (Direction::Inbound, "api");
            let conn = ConnFacts {
                direction,
                listener,
                peer,
                destination: None,
                service: None,
                tls: None,
                subject: None,
            };
            let reason = if id % 2 == 0 { "no_certificate" } else { "expired" };
            recorder.reserve(1).unwrap().conn_rejected(&ConnRejected {
                time_unix_ns: NOW + id,
                conn,
                reason,
            });
        }
    });
    audit.close().unwrap();
    let rejected = events(dir.path()).iter().filter(|event| event["type"] == "conn.rejected").count();
    assert_eq!((rejected, told(dir.path()).1), (40, vec![130, 130]));
    assert_eq!(account(dir.path(), None, None).unwrap().connections_refused["expired"], 150);
}
