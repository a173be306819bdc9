//! What the audit tests share: a trail in a folder, workers, events with a number in them.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};

use phiward::audit::{
    AccessComplete, AccessDecision, Audit, AuditError, ConnFacts, ConnFragment, Decision, Direction,
    Durability, Endpoint, HttpFacts, InstanceFacts, OnFailure, Recorder, Report, ResponseFacts, SinkConfig,
    SinkKind, SpoolConfig, SubjectFacts, TlsFacts, Unavailable, verify,
};
use serde_json::Value;

pub const MIB: u64 = 1024 * 1024;

pub fn config(dir: &Path) -> SpoolConfig {
    SpoolConfig {
        dir: dir.into(),
        max_bytes: 64 * MIB,
        durability: Durability::Write,
        on_failure: OnFailure::Deny,
        segment_bytes: 64 * 1024,
        key: None,
    }
}

pub fn instance() -> InstanceFacts {
    InstanceFacts { service: "records".into(), namespace: "clinic".into(), ..InstanceFacts::default() }
}

pub fn start(dir: &Path, sinks: &[SinkConfig]) -> Result<Audit, AuditError> {
    Audit::start(config(dir), &instance(), sinks)
}

/// A sink that nothing needs to be known of.
pub fn sink_of(name: &str, kind: SinkKind) -> SinkConfig {
    SinkConfig {
        name: name.into(),
        kind,
        endpoint: Endpoint { https: false, host: "collector.audit".into(), port: 15200 },
        prefix: String::new(),
        credentials: None,
        headers: Vec::new(),
        required: true,
    }
}

pub fn worker<F: Future>(test: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build_local(Default::default()).unwrap().block_on(test)
}

pub fn fragment() -> ConnFragment {
    ConnFragment::new(&ConnFacts {
        direction: Direction::Inbound,
        listener: "api",
        peer: [10, 2, 0, 9].into(),
        destination: None,
        service: None,
        tls: Some(TlsFacts { version: "1.3", cipher: "TLS13_AES_128_GCM_SHA256", alpn: Some("h2") }),
        subject: Some(SubjectFacts {
            spiffe_id: "spiffe://hospital.local/ns/clinic/sa/web",
            cert_sha256: "b1c2d3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccddeeff00",
        }),
    })
}

/// A request: its decision, the wait, its completion.
pub async fn request(recorder: &Recorder, conn: &ConnFragment, id: &str) {
    try_request(recorder, conn, id).await.unwrap();
}

pub async fn try_request(recorder: &Recorder, conn: &ConnFragment, id: &str) -> Result<(), Unavailable> {
    let mut reservation = recorder.reserve(2)?;
    let recorded = reservation.decision(&AccessDecision {
        time_unix_ns: 1_795_183_402_118_204_771,
        request_id: id,
        trace_id: None,
        conn,
        http: HttpFacts {
            method: Some("GET"),
            host: Some("records.clinic"),
            template: Some("/fhir/Patient/{id}"),
            version: "2",
            ..HttpFacts::default()
        },
        decision: Decision {
            outcome: "allow",
            reason: "rule",
            rule: Some("read-patient"),
            role: Some("chart-read"),
            shadow: None,
        },
        policy: None,
    });
    recorded.before_forward().await?;
    let response =
        ResponseFacts { status: 200, response_bytes: 150, duration_us: 420, ..ResponseFacts::default() };
    reservation.complete(&AccessComplete {
        time_unix_ns: 1_795_183_402_118_624_771,
        request_id: id,
        trace_id: None,
        conn,
        response,
    });
    Ok(())
}

/// A closed trail of `n` requests, in one epoch.
pub fn trail_of(dir: &Path, n: usize) {
    let audit = start(dir, &[]).unwrap();
    requests(&audit, "", n);
    audit.close().unwrap();
}

/// Makes `n` requests and waits until the last completion is written too, for which no request waits.
pub fn requests(audit: &Audit, prefix: &str, n: usize) {
    let written = || {
        let status = audit.status();
        status.written_events - status.checkpoints.min(status.written_events)
    };
    let before = written();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        for number in 0..n {
            request(&recorder, &conn, &format!("{prefix}{number}")).await;
        }
    });
    while written() < before + 2 * n as u64 {
        std::thread::yield_now();
    }
}

pub fn intact(dir: &Path) -> Report {
    let report = verify(dir).unwrap();
    assert!(report.intact, "{:?}", report.findings);
    report
}

pub fn events(dir: &Path) -> Vec<Value> {
    let mut events = Vec::new();
    phiward::audit::for_each(dir, |line| {
        events.push(serde_json::from_slice(line)?);
        Ok(())
    })
    .unwrap();
    events
}

/// How many events there are of each request and type.
pub fn per_request(dir: &Path) -> BTreeMap<(String, String), usize> {
    let mut found = BTreeMap::new();
    for event in events(dir) {
        if let Some(id) = event["request"]["id"].as_str() {
            *found.entry((id.to_owned(), event["type"].as_str().unwrap().to_owned())).or_default() += 1;
        }
    }
    found
}

/// A text that no packing makes much shorter.
pub fn random_text(len: usize) -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(len).collect()
}

/// The segment files in chain order.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "ndjson" || ext == "zst"))
        .collect();
    found.sort();
    found
}

/// The lines of a segment, as zstd has them.
pub fn text_of(segment: &Path) -> String {
    let stored = std::fs::read(segment).unwrap();
    let no_frame = stored.is_empty(); // which zstd calls incomplete
    let text =
        if is_packed(segment) && !no_frame { zstd::stream::decode_all(&*stored).unwrap() } else { stored };
    String::from_utf8(text).unwrap()
}

/// Puts other lines into a segment, each packed on its own where the segment is: whoever tampers with one has zstd.
pub fn put_text(segment: &Path, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    if !is_packed(segment) {
        return std::fs::write(segment, text).unwrap();
    }
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let frames: Vec<_> = lines.map(|line| zstd::bulk::compress(line, 1).unwrap()).collect();
    std::fs::write(segment, frames.concat()).unwrap();
}

fn is_packed(segment: &Path) -> bool {
    segment.extension().is_some_and(|ext| ext == "zst")
}
