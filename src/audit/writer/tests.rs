//! The writer and the syncer on a disk that fails when the test says so.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Buf;

use crate::audit::sink::BatchLimit;
use crate::audit::{
    AccessDecision, Audit, ConnFacts, ConnFragment, ControlEvent, Decision, Direction, Durability, Endpoint,
    HttpFacts, InstanceFacts, MIN_SPOOL_BYTES, OnFailure, Recorded, Recorder, Report, SinkConfig, SinkKind,
    SpoolConfig, Unavailable, verify,
};

fn start(dir: &Path, durability: Durability, on_failure: OnFailure) -> Audit {
    let max_bytes = 64 * MIN_SPOOL_BYTES;
    let config =
        SpoolConfig { dir: dir.into(), max_bytes, durability, on_failure, segment_bytes: 4096, key: None };
    Audit::start(config, &InstanceFacts::default(), &[]).unwrap()
}

/// A trail with segments that hold a burst, and a sink that takes what the writer has packed.
fn start_for_bursts(dir: &Path) -> Audit {
    let (durability, on_failure) = (Durability::Write, OnFailure::Deny);
    let config = SpoolConfig {
        dir: dir.into(),
        max_bytes: 64 << 20,
        durability,
        on_failure,
        segment_bytes: 4 << 20,
        key: None,
    };
    let endpoint = Endpoint { https: false, host: "127.0.0.1".into(), port: 1 };
    let sink = SinkConfig {
        name: "collector".into(),
        kind: SinkKind::Phiward,
        endpoint,
        prefix: String::new(),
        credentials: None,
        headers: Vec::new(),
        required: true,
    };
    let audit = Audit::start(config, &InstanceFacts::default(), &[sink]).unwrap();
    audit.shared.sinks[0].takes_frames.store(true, Ordering::Release);
    audit
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build_local(Default::default())
        .unwrap()
        .block_on(future)
}

fn record(recorder: &Recorder) -> Result<Recorded, Unavailable> {
    let peer = [10, 0, 0, 1].into();
    let facts = ConnFacts {
        direction: Direction::Inbound,
        listener: "api",
        peer,
        destination: None,
        service: None,
        tls: None,
        subject: None,
    };
    Ok(recorder.reserve(1)?.decision(&AccessDecision {
        time_unix_ns: 5,
        request_id: "r",
        trace_id: None,
        conn: &ConnFragment::new(&facts),
        http: HttpFacts { version: "2", ..HttpFacts::default() },
        decision: Decision { outcome: "allow", reason: "rule", rule: None, role: None, shadow: None },
        policy: None,
    }))
}

fn intact(dir: &Path) -> Report {
    let report = verify(dir).unwrap();
    assert!(report.intact, "{:?}", report.findings);
    report
}

async fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

/// If this fails, requests are let in for whose record the disk has no place, or a full disk is not told at the end.
#[test]
fn nobody_is_let_in_without_a_place_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        record(&recorder).unwrap().written().await.unwrap();
        *shared.disk.allocate_error.lock().unwrap() = Some(ErrorKind::StorageFull);
        // What was let in before the look is written all the same.
        while let Ok(recorded) = record(&recorder) {
            recorded.written().await.unwrap();
        }
        assert_eq!(record(&recorder).err(), Some(Unavailable::WriterFailed));
        assert!(!audit.status().healthy && audit.status().last_error.is_some());
        *shared.disk.allocate_error.lock().unwrap() = None;
        until(|| audit.status().healthy).await;
        record(&recorder).unwrap().written().await.unwrap();
        *shared.disk.allocate_error.lock().unwrap() = Some(ErrorKind::StorageFull);
        while let Ok(recorded) = record(&recorder) {
            recorded.written().await.unwrap();
        }
        assert_eq!(record(&recorder).err(), Some(Unavailable::WriterFailed));
    });
    audit.close().unwrap();
    assert_eq!(intact(dir.path()).by_type["audit.gap"], 2, "one when there was space again, one at the end");
}

/// If this fails, a disk that was full for a moment leaves requests unanswered, a broken chain or a trail that stays down.
#[test]
fn a_full_disk_denies_and_the_trail_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        record(&recorder).unwrap().written().await.unwrap();
        *shared.disk.write_error.lock().unwrap() = Some(ErrorKind::StorageFull);
        assert_eq!(record(&recorder).unwrap().written().await, Err(Unavailable::WriterFailed));
        assert_eq!(record(&recorder).err(), Some(Unavailable::WriterFailed));
        assert!(!audit.status().healthy && audit.status().last_error.is_some());
        *shared.disk.write_error.lock().unwrap() = None;
        until(|| audit.status().healthy).await;
        record(&recorder).unwrap().written().await.unwrap();
    });
    audit.close().unwrap();
    let report = intact(dir.path());
    // The event whose request was refused was recorded before the disk said no, so it is kept too.
    assert_eq!((report.by_type["access.decision"], report.by_type["audit.gap"]), (3, 1));
}

/// If this fails, requests that pass during an outage leave no trace.
#[test]
fn a_gap_is_told_when_the_disk_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::AllowWithGap);
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        *shared.disk.write_error.lock().unwrap() = Some(ErrorKind::ReadOnlyFilesystem);
        assert_eq!(record(&recorder).unwrap().before_forward().await, Ok(()));
        until(|| !audit.status().healthy).await;
        for _ in 0..7 {
            assert_eq!(record(&recorder).unwrap().before_forward().await, Ok(()));
        }
        *shared.disk.write_error.lock().unwrap() = None;
        until(|| audit.status().healthy).await;
    });
    audit.close().unwrap();
    let report = intact(dir.path());
    assert_eq!((report.by_type["access.decision"], report.by_type["audit.gap"]), (1, 1));
    let mut gaps = Vec::new();
    crate::audit::for_each(dir.path(), |line| {
        let event: serde_json::Value = serde_json::from_slice(line)?;
        gaps.extend(event.get("gap").cloned());
        Ok(())
    })
    .unwrap();
    assert_eq!((gaps[0]["allowed"].as_u64(), gaps[0]["denied"].as_u64()), (Some(7), Some(0)));
}

/// If this fails, phiward trusts a disk that has already dropped events.
#[test]
fn a_failed_sync_is_never_tried_over() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Fsync, OnFailure::Deny);
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        record(&recorder).unwrap().before_response().await.unwrap();
        *shared.disk.sync_error.lock().unwrap() = Some(ErrorKind::Other);
        let event = record(&recorder).unwrap();
        assert_eq!(event.before_response().await, Err(Unavailable::WriterFailed));
        *shared.disk.sync_error.lock().unwrap() = None;
        assert_eq!(record(&recorder).err(), Some(Unavailable::WriterFailed));
        assert!(audit.status().last_error.unwrap().contains("fdatasync"));
    });
    assert!(audit.close().is_err());
}

/// If this fails, an I/O error is taken for a full disk and written over.
#[test]
fn a_failed_write_that_is_no_lack_of_room_ends_the_trail() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        *shared.disk.write_error.lock().unwrap() = Some(ErrorKind::Other);
        assert_eq!(record(&recorder).unwrap().written().await, Err(Unavailable::WriterFailed));
        *shared.disk.write_error.lock().unwrap() = None;
        assert_eq!(record(&recorder).err(), Some(Unavailable::WriterFailed));
        until(|| audit.status().lost_events == 1).await;
    });
    assert!(audit.close().is_err());
    assert_eq!(intact(dir.path()).events, 1, "what is on disk is whole");
}

/// If this fails, the last events before a stop are lost, or a stop waits for ever on a full disk.
#[test]
fn closing_writes_what_is_queued_and_says_when_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    let seed = audit.recorder();
    for _ in 0..1000 {
        let sha256 = "00".repeat(32);
        audit.control().record(ControlEvent::PolicyLoaded { time_unix_ns: 1, revision: None, sha256 });
    }
    audit.close().unwrap();
    block_on(async { assert_eq!(record(&seed.attach()).err(), Some(Unavailable::Closed)) });
    let report = intact(dir.path());
    assert_eq!((report.by_type["policy.loaded"], report.epochs[0].closed), (1000, true));
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    *audit.shared.disk.write_error.lock().unwrap() = Some(ErrorKind::StorageFull);
    assert!(audit.close().unwrap_err().to_string().contains("could not be written"));
    intact(dir.path());
}

/// If this fails, the budget drifts until a spool with room refuses events, or one without takes them.
#[test]
fn every_byte_that_is_written_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start(dir.path(), Durability::Write, OnFailure::Deny);
    let shared = audit.shared.clone();
    let before = shared.free.load(Ordering::Acquire) + audit.status().written_bytes as i64;
    block_on(async {
        let recorder = audit.recorder().attach();
        for _ in 0..500 {
            record(&recorder).unwrap().written().await.unwrap();
        }
    });
    audit.control().record(ControlEvent::IdentityLost { time_unix_ns: 1, reason: "expired".into() });
    audit.close().unwrap();
    let written = shared.written_bytes.load(Ordering::Acquire);
    assert_eq!(shared.free.load(Ordering::Acquire), before - written as i64);
    assert_eq!(shared.tail().segments.iter().map(|segment| segment.bytes).sum::<u64>(), written);
}

const BURST: usize = 400;

/// If this fails, a sink is sent other bytes than the spool has, or they are read from there and packed again.
#[test]
fn a_burst_is_sent_as_it_is_in_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let audit = start_for_bursts(dir.path());
    let shared = audit.shared.clone();
    block_on(async {
        let recorder = audit.recorder().attach();
        until(|| audit.status().written_events == 1).await;
        (0..BURST).for_each(|_| drop(record(&recorder).unwrap()));
        until(|| audit.status().written_events == 1 + BURST as u64).await;
    });
    let segment = shared.tail().segments.back().unwrap().clone();
    let written = std::fs::read(dir.path().join(&segment.name)).unwrap();
    let open = zstd::zstd_safe::find_frame_compressed_size(&written).unwrap() as u64;
    let run = shared.fresh.run(segment.ordinal, open, BatchLimit { events: 4096, bytes: 1 << 20 }).unwrap();
    assert_eq!((run.seqs, run.stored), (1..1 + BURST as u64, segment.bytes - open));
    let mut body = run.body;
    let body = body.copy_to_bytes(body.remaining());
    assert!(body == written[open as usize..]);
    assert!(body.len() * 4 < BURST * 700, "{} bytes", body.len());
    assert!(run.oldest_ns == 5, "the first one's time");
    audit.close().unwrap();
    intact(dir.path());
}
