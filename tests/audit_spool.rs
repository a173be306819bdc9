//! The spool across workers, crashes and restarts.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use audit_support::*;
use phiward::audit::{
    Audit, AuditError, Durability, FindingKind, OnFailure, RecorderSeed, ShipTiming, SinkKind, SpoolConfig,
    Unavailable, verify,
};

/// If this fails, requests are forwarded without their record, or recorded twice, when workers run side by side.
#[test]
fn two_workers_record_thousands_of_requests_once_each_in_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let seed = audit.recorder();
            scope.spawn(move || {
                worker(async {
                    let (recorder, conn) = (seed.attach(), fragment());
                    let tasks: Vec<_> = (0..32)
                        .map(|task| {
                            let (recorder, conn) = (recorder.clone(), conn.clone());
                            tokio::task::spawn_local(async move {
                                for number in 0..100 {
                                    request(&recorder, &conn, &format!("{name}-{task}-{number}")).await;
                                }
                            })
                        })
                        .collect();
                    for task in tasks {
                        task.await.unwrap();
                    }
                });
            });
        }
    });
    assert_eq!(audit.status().epoch.len(), 36);
    audit.close().unwrap();
    let report = intact(dir.path());
    assert_eq!((report.by_type["access.decision"], report.by_type["access.complete"]), (6400, 6400));
    assert!(report.epochs[0].closed && segments(dir.path()).len() > 10);
    let found = per_request(dir.path());
    assert_eq!(found.len(), 12_800);
    assert!(found.values().all(|count| *count == 1));
}

/// If this fails, durability modes other than the default hang or lose events.
#[test]
fn every_durability_records_every_request() {
    for durability in [Durability::Fsync, Durability::FsyncBeforeForward] {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::start(SpoolConfig { durability, ..config(dir.path()) }, &instance(), &[]).unwrap();
        requests(&audit, "", 20);
        audit.close().unwrap();
        assert_eq!(intact(dir.path()).by_type["access.decision"], 20);
    }
}

/// If this fails, a restart forgets where the trail ended, and a cut end cannot be seen.
#[test]
fn a_restart_begins_an_epoch_that_names_the_end_of_the_last() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 3);
    drop(start(dir.path(), &[]).unwrap());
    drop(start(dir.path(), &[]).unwrap());
    let report = intact(dir.path());
    assert_eq!(report.epochs.iter().map(|epoch| epoch.closed).collect::<Vec<_>>(), [true, false, false]);
    let events = events(dir.path());
    let opens: Vec<_> = events.iter().filter(|event| event["type"] == "audit.open").collect();
    let recoveries: Vec<_> = opens.iter().map(|event| event["open"]["recovery"].as_str().unwrap()).collect();
    assert_eq!(recoveries, ["new", "clean", "unclean"]);
    let closed = events.iter().find(|event| event["type"] == "audit.close").unwrap();
    for member in ["epoch", "hash", "seq"] {
        assert_eq!(opens[1]["open"]["previous"][member], closed["chain"][member]);
    }
}

/// If this fails, two processes write one chain and it forks.
#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    assert!(matches!(start(dir.path(), &[]).err(), Some(AuditError::InUse { .. })));
    audit.close().unwrap();
    assert!(start(dir.path(), &[]).is_ok());
}

/// If this fails, a spool that is not usable is found out at the first request instead of at the start.
#[test]
fn a_spool_that_cannot_work_refuses_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolConfig { max_bytes: 1000, ..config(dir.path()) };
    assert!(matches!(Audit::start(small, &instance(), &[]).err(), Some(AuditError::TooSmall { .. })));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = start(&file, &[]).err().unwrap().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

fn opening_event(dir: &Path) -> serde_json::Value {
    drop(start(dir, &[]).unwrap());
    events(dir).into_iter().rfind(|event| event["type"] == "audit.open").unwrap()["open"].clone()
}

/// If this fails, a crash in the middle of a write makes the trail look tampered with, or keeps phiward from starting.
#[test]
fn a_torn_tail_is_cut_to_the_last_whole_record_and_told() {
    let frame = zstd::bulk::compress(b"{\"chain\":{\"epoch\":\"0192", 1).unwrap();
    let zeros = [&frame[..frame.len() / 2], &[0; 5000]].concat();
    for torn in [&frame[..2], &frame[..frame.len() - 1], &frame, &zeros, &[0; 5000], b"\xff\xfe{}\n\0\0\0"] {
        let dir = tempfile::tempdir().unwrap();
        trail_of(dir.path(), 3);
        let last = segments(dir.path()).pop().unwrap();
        let whole = std::fs::read(&last).unwrap();
        std::fs::OpenOptions::new().append(true).open(&last).unwrap().write_all(torn).unwrap();
        assert!(!verify(dir.path()).unwrap().intact);
        let open = opening_event(dir.path());
        assert_eq!(
            (open["recovery"].as_str(), open["lost_bytes"].as_u64()),
            (Some("torn_tail"), Some(torn.len() as u64))
        );
        assert_eq!(std::fs::read(&last).unwrap(), whole);
        intact(dir.path());
    }
}

/// If this fails, a crash right after a segment was begun keeps phiward from starting.
#[test]
fn a_segment_without_a_whole_record_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 3);
    let first = segments(dir.path()).pop().unwrap();
    for content in [&b""[..], b"{\"chain\""] {
        std::fs::write(
            dir.path().join("ffffffff-0000-7000-8000-000000000000-0000000000000000.ndjson.zst"),
            content,
        )
        .unwrap();
        assert_eq!(opening_event(dir.path())["previous"]["seq"], 7);
        let next = segments(dir.path()).pop().unwrap();
        assert!(next > first);
        std::fs::remove_file(next).unwrap();
    }
}

/// If this fails, the first start after an update loses or doubts what an earlier version has written, line by line.
#[test]
fn a_spool_that_was_not_packed_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 100);
    for segment in segments(dir.path()) {
        std::fs::write(segment.with_extension(""), text_of(&segment)).unwrap();
        std::fs::remove_file(segment).unwrap();
    }
    let last = segments(dir.path()).pop().unwrap();
    std::fs::OpenOptions::new().append(true).open(&last).unwrap().write_all(b"{\"chain\"").unwrap();
    let open = opening_event(dir.path());
    assert_eq!((&open["recovery"], &open["previous"]["seq"]), (&"torn_tail".into(), &201.into()));
    assert_eq!(intact(dir.path()).by_type["access.decision"], 100);
    let packed = segments(dir.path()).iter().filter(|path| path.extension().unwrap() == "zst").count();
    assert_eq!(packed, 1, "the new epoch is");
}

/// If this fails, tampering with the spool of a stopped sidecar is repaired away by the next start.
#[test]
fn a_damaged_record_is_kept_as_evidence_and_told() {
    let dir = tempfile::tempdir().unwrap();
    trail_of(dir.path(), 3);
    let last = segments(dir.path()).pop().unwrap();
    put_text(&last, text_of(&last).replacen("\"status\":200", "\"status\":500", 1));
    let damaged = std::fs::read(&last).unwrap();
    let open = opening_event(dir.path());
    assert_eq!((open["recovery"].as_str(), open["previous"]["seq"].as_u64()), (Some("corrupt"), Some(1)));
    let kept = last.with_extension("zst.corrupt");
    assert_eq!(std::fs::read(kept).unwrap(), damaged);
    let report = verify(dir.path()).unwrap();
    assert_eq!(
        report.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(),
        [FindingKind::Evidence]
    );
}

/// If this fails, a start throws away records that only one damaged byte stands before.
#[test]
fn a_start_keeps_what_any_changed_byte_has_hidden() {
    let honest = tempfile::tempdir().unwrap();
    let audit = start(honest.path(), &[]).unwrap();
    ["a", "b"].iter().for_each(|prefix| requests(&audit, prefix, 2));
    audit.close().unwrap();
    let segment = segments(honest.path()).remove(0);
    let (stored, lines) = (std::fs::read(&segment).unwrap(), text_of(&segment));
    let mut seen = std::collections::BTreeSet::new();
    for at in (0..stored.len()).step_by(5) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(segment.file_name().unwrap());
        let mut changed = stored.clone();
        changed[at] ^= 1 << (at % 8);
        std::fs::write(&path, &changed).unwrap();
        let open = opening_event(dir.path());
        let recovery = open["recovery"].as_str().unwrap().to_owned();
        match &*recovery {
            "clean" => assert_eq!(text_of(&path), lines, "byte {at}"),
            "corrupt" => assert_eq!(std::fs::read(path.with_extension("zst.corrupt")).unwrap(), changed),
            // It looks like an end that is missing: nothing that can be read follows, and what comes before it is there.
            "torn_tail" => assert!(lines.lines().count() - text_of(&path).lines().count() <= 5, "byte {at}"),
            other => panic!("byte {at}: {other}"),
        }
        seen.insert(recovery);
    }
    assert!(seen.contains("corrupt"), "{seen:?}");
}

/// If this fails, a spool that sinks have read and somebody emptied passes for a new one.
#[test]
fn a_spool_that_was_emptied_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cursor-collector.json"), "").unwrap();
    assert_eq!(opening_event(dir.path())["recovery"], "spool_lost");
}

/// If this fails, a full spool loses events, or one that nobody empties grows without bound.
#[test]
fn a_full_spool_refuses_or_counts_and_tells_the_gap() {
    for on_failure in [OnFailure::Deny, OnFailure::AllowWithGap] {
        let dir = tempfile::tempdir().unwrap();
        let small = SpoolConfig { max_bytes: MIB, on_failure, ..config(dir.path()) };
        let audit = Audit::start(small, &instance(), &[]).unwrap();
        let (mut passed, mut refused) = (0, 0);
        worker(async {
            let (recorder, conn) = (audit.recorder().attach(), fragment());
            for _ in 0..2000 {
                match try_request(&recorder, &conn, &random_text(400)).await {
                    Ok(()) => passed += 1,
                    Err(unavailable) => {
                        assert_eq!(unavailable, Unavailable::SpoolFull);
                        refused += 1;
                    }
                }
            }
        });
        audit.close().unwrap();
        let report = intact(dir.path());
        let gap = |member: &str| -> u64 {
            events(dir.path()).iter().filter_map(|event| event.get("gap")?[member].as_u64()).sum()
        };
        let recorded = report.by_type["access.decision"];
        assert!(recorded > 300 && recorded < 1000, "{recorded}");
        assert_eq!((recorded + gap("allowed"), gap("denied")), (passed, refused));
        assert_eq!(refused == 0, on_failure == OnFailure::AllowWithGap);
        let bytes: u64 = segments(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(bytes <= MIB, "{bytes}");
    }
}

/// If this fails, a sink that is down for long loses the oldest events, or nobody sees that the spool is full.
#[test]
fn what_a_sink_has_not_acknowledged_stays_when_space_is_short() {
    let dir = tempfile::tempdir().unwrap();
    let sink = sink_of("collector", SinkKind::Phiward);
    let small = SpoolConfig { max_bytes: MIB, ..config(dir.path()) };
    let audit = Audit::start(small, &instance(), std::slice::from_ref(&sink)).unwrap();
    let timing = ShipTiming::default();
    // Its cursor stands at the beginning, and it never gets anywhere.
    let _down = audit.shipper(&sink, tokio::sync::watch::channel([].into()).1, None, timing);
    let mut passed = 0;
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        loop {
            // What is under way takes more room than it needs in the end: it is full when nothing is.
            let status = audit.status();
            let settled = status.written_events - status.checkpoints > 2 * passed;
            match try_request(&recorder, &conn, "r").await {
                Ok(()) => passed += 1,
                Err(_) if settled => break,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        assert!(!audit.status().healthy, "a full spool takes nothing");
        assert!(audit.status().sinks[0].backlog_bytes > MIB / 2, "{:?}", audit.status());
    });
    audit.close().unwrap();
    assert_eq!(intact(dir.path()).by_type["access.decision"], passed);
}

const CHILD: &str = "PHIWARD_TEST_SPOOL";

/// Not a test of its own: the process that `kill_9_loses_no_event_of_a_forwarded_request` kills.
#[test]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let audit = start(Path::new(&dir), &[]).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let seed = audit.recorder();
            scope.spawn(move || serve_until_killed(seed, worker));
        }
    });
}

fn serve_until_killed(seed: RecorderSeed, number: usize) {
    worker(async {
        let (recorder, conn) = (seed.attach(), fragment());
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (recorder, conn) = (recorder.clone(), conn.clone());
                tokio::task::spawn_local(async move {
                    for request_number in 0.. {
                        let id = format!("{number}-{task}-{request_number}");
                        request(&recorder, &conn, &id).await;
                        println!("forwarded {id}"); // as the app would see it
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Kills a process that serves once `enough` requests were forwarded, and gives the requests that were.
fn kill_after(dir: &Path, enough: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut forwarded = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        forwarded.extend(line.split_once("forwarded ").map(|(_, number)| number.to_owned()));
        if forwarded.len() == enough {
            child.kill().unwrap(); // SIGKILL
        }
    }
    child.wait().unwrap();
    assert!(forwarded.len() >= enough);
    forwarded
}

/// Every forwarded request has its decision once, and a completion only after it.
fn each_is_recorded_once(dir: &Path, epoch: &serde_json::Value, forwarded: &[String]) {
    let mut recorded: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in events(dir).into_iter().filter(|event| event["chain"]["epoch"] == *epoch) {
        if let Some(id) = event["request"]["id"].as_str() {
            let kinds = recorded.entry(id.to_owned()).or_default();
            kinds.push(event["type"].as_str().unwrap().to_owned());
        }
    }
    for kinds in recorded.values() {
        let whole = ["access.decision", "access.complete"];
        assert!(kinds[..] == whole[..1] || kinds[..] == whole[..], "{kinds:?}");
    }
    let lost: Vec<_> = forwarded.iter().filter(|id| !recorded.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// If this fails, phiward forwards requests whose record dies with it, or records one twice after it was killed.
#[test]
fn kill_9_loses_no_event_of_a_forwarded_request() {
    let mut recovered = 0;
    for enough in [1, 2, 3, 7, 10, 33, 50, 77, 100, 250, 333, 500, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let forwarded = kill_after(dir.path(), enough);
        let open = opening_event(dir.path());
        assert!(["unclean", "torn_tail"].contains(&open["recovery"].as_str().unwrap()), "{open}");
        intact(dir.path());
        each_is_recorded_once(dir.path(), &open["previous"]["epoch"], &forwarded);
        recovered += open["recovered"].as_u64().unwrap_or(0);
    }
    assert!(recovered > 0, "no kill came between the journal and the segment");
}

/// If this fails, a kill while a killed process' events are brought over brings them over twice.
#[test]
fn a_recovery_that_is_killed_can_be_done_again() {
    for enough in [20, 500] {
        let (dir, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let forwarded = kill_after(dir.path(), enough);
        for journal in ["journal-0", "journal-1"] {
            // The second worker may not have begun when the kill came.
            if dir.path().join(journal).exists() {
                std::fs::copy(dir.path().join(journal), again.path().join(journal)).unwrap();
            }
        }
        let open = opening_event(dir.path());
        let epoch = &open["previous"]["epoch"];
        // As it is when the events were appended and the journals are still there.
        for segment in segments(dir.path()) {
            let name = segment.file_name().unwrap().to_str().unwrap();
            if name.starts_with(epoch.as_str().unwrap()) {
                std::fs::copy(&segment, again.path().join(name)).unwrap();
            }
        }
        let second = opening_event(again.path());
        assert_eq!(second["recovered"], serde_json::Value::Null, "{second}");
        assert_eq!(second["previous"], open["previous"]);
        each_is_recorded_once(again.path(), epoch, &forwarded);
    }
}

/// If this fails, a clean end leaves files behind that look like lost events, or the journals' room is never given back.
#[test]
fn a_clean_end_leaves_no_journal() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), &[]).unwrap();
    let free = audit.status().free_bytes;
    worker(async {
        let recorder = audit.recorder().attach();
        assert!(dir.path().join("journal-0").exists());
        assert!(audit.status().free_bytes < free);
        request(&recorder, &fragment(), "r").await;
    });
    audit.close().unwrap();
    assert!(!dir.path().join("journal-0").exists());
    assert_eq!(opening_event(dir.path())["recovered"], serde_json::Value::Null);
}
