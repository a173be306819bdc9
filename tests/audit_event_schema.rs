//! The published schema of audit events and its page: they have every type and field that is written and no other, and what the
//! page says of other formats is where the sinks and the export put it.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;
mod common;
#[path = "audit_support/receivers.rs"]
mod receivers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use audit_support::*;
use common::schema_support::events::{SCHEMA, judge, takes, types};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use phiward::audit::{
    AccessComplete, AccessDecision, Audit, ConnFacts, ConnFragment, ConnRejected, ControlEvent, Decision,
    Direction, EVENT_TYPES, HttpFacts, InstanceFacts, OnFailure, PolicyFragment, PostureFacts, PseudonymKey,
    Recorder, ResponseFacts, ShadowFacts, ShipTiming, SinkKind, SpoolConfig, SubjectFacts, TlsFacts, ocsf,
};
use phiward::identity::{FileContents, FilePaths, TrustDomain};
use prost::Message;
use receivers::{Fault, Form, Receiver};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::watch;

const NOW: u64 = 1_795_183_402_118_204_771;
const HASH: &str = "b1c2d3e4f5061728394a5b6c7d8e9f00112233445566778899aabbccddeeff00";
const PAGE: &str = include_str!("../docs/audit-events.md");

/// Who writes, with all that can be known of it.
fn writer() -> InstanceFacts {
    let pki = common::Pki::new();
    let dir = pki.workload("records", common::RECORDS);
    let paths = FilePaths {
        certificate: dir.join("svid.pem"),
        private_key: dir.join("svid.key"),
        bundle: dir.join("bundle.pem").into(),
        federation: Vec::new(),
    };
    let domain = TrustDomain::parse("hospital.local").unwrap();
    let material = FileContents::read(&paths).unwrap().material(&domain, UnixTime::now()).unwrap();
    InstanceFacts {
        pod: Some("records-0".into()),
        node: Some("node-1".into()),
        spiffe_id: Some(common::RECORDS.into()),
        version: "0.1.0".into(),
        svid: Some(material.svid.certified_key().clone()),
        tls: Some(PostureFacts { min_version: "1.3", post_quantum: "prefer", fips: false }),
        ..instance()
    }
}

fn conn() -> ConnFacts<'static> {
    ConnFacts {
        direction: Direction::Inbound,
        listener: "api",
        peer: [10, 2, 0, 9].into(),
        destination: Some("10.96.0.7:5432".parse().unwrap()),
        service: Some("records"),
        tls: Some(TlsFacts { version: "1.3", cipher: "TLS13_AES_128_GCM_SHA256", alpn: Some("h2") }),
        subject: Some(SubjectFacts { spiffe_id: common::WEB, cert_sha256: HASH }),
    }
}

/// A request that has every field there is, also those that exclude each other in life, and a connection that was refused.
async fn record(recorder: &Recorder, number: usize) {
    let (policy, key) = (PolicyFragment::new(Some("r1"), HASH), PseudonymKey::from_bytes(&[7; 32]).unwrap());
    let (request_id, conn) = (format!("{number:032x}"), ConnFragment::new(&conn()));
    let http = HttpFacts {
        method: Some("GET"),
        host: Some("records.clinic"),
        host_h: Some(key.pseudonym(b"h")),
        template: Some("/fhir/Patient/{id}"),
        params: &[("id", key.pseudonym(b"3"))],
        target_h: Some(key.pseudonym(b"/")),
        query_names: &["_count"],
        service: Some("records"),
        version: "2",
    };
    let shadow = ShadowFacts { outcome: "deny", reason: "deny_rule", rule: Some("no-admin") };
    let decision = Decision {
        outcome: "allow",
        reason: "rule",
        rule: Some("read-patient"),
        role: Some("chart-read"),
        shadow: Some(shadow),
    };
    let trace_id = Some("0af7651916cd43dd8448eb211c80319c");
    let mut places = recorder.reserve(3).unwrap();
    let recorded = places.decision(&AccessDecision {
        time_unix_ns: NOW,
        request_id: &request_id,
        trace_id,
        conn: &conn,
        http,
        decision,
        policy: Some(&policy),
    });
    recorded.before_forward().await.unwrap();
    let response =
        ResponseFacts { status: 503, reason: Some("upstream_connect"), ..ResponseFacts::default() };
    places.complete(&AccessComplete {
        time_unix_ns: NOW,
        request_id: &request_id,
        trace_id,
        conn: &conn,
        response,
    });
    if number < 10 {
        places.conn_rejected(&ConnRejected { time_unix_ns: NOW, conn: self::conn(), reason: "expired" });
    }
}

/// More denials of one kind than are told one by one, of more paths than a summary tells.
fn flood(recorder: &Recorder) {
    let (policy, conn) = (PolicyFragment::new(Some("r1"), HASH), ConnFragment::new(&conn()));
    let decision =
        Decision { outcome: "deny", reason: "deny_rule", rule: Some("no-admin"), role: None, shadow: None };
    for number in 0..40 {
        let template = format!("/fhir/{}/{{id}}", number % 9);
        let recorded = recorder.reserve(2).unwrap().decision(&AccessDecision {
            time_unix_ns: NOW,
            request_id: &format!("{number:032x}"),
            trace_id: None,
            conn: &conn,
            http: HttpFacts {
                method: Some("GET"),
                template: Some(&template),
                version: "2",
                ..HttpFacts::default()
            },
            decision,
            policy: Some(&policy),
        });
        drop(recorded); // nothing is forwarded
    }
}

/// Each event of the control thread, with all its fields.
fn control_events() -> [ControlEvent; 5] {
    let (time_unix_ns, sha256) = (NOW, HASH.to_owned());
    [
        ControlEvent::PolicyLoaded { time_unix_ns, revision: Some("r1".into()), sha256: sha256.clone() },
        ControlEvent::PolicyShadow { time_unix_ns, revision: "r1".into(), sha256: sha256.clone() },
        ControlEvent::PolicyRefused {
            time_unix_ns,
            sha256: Some(sha256.clone()),
            errors: 2,
            first_at: Some((3, 4)),
        },
        ControlEvent::IdentityRotated {
            time_unix_ns,
            spiffe_id: common::RECORDS.into(),
            cert_sha256: sha256,
            not_after_unix_s: 1_795_183_402,
        },
        ControlEvent::IdentityLost { time_unix_ns, reason: "key_mismatch".into() },
    ]
}

/// The first epoch: every event of requests and of the control thread, checkpoints, and a batch that the sink refuses. Returns
/// what the sink was sent.
fn first_epoch(spool: &Path, writer: &InstanceFacts) -> Vec<ExportLogsServiceRequest> {
    worker(async {
        let receiver = Receiver::start(Form::Otlp, vec![Fault::Status(400)]).await;
        let sink = sink_of("otel", SinkKind::Otlp);
        let audit = Audit::start(config(spool), writer, std::slice::from_ref(&sink)).unwrap();
        control_events().into_iter().for_each(|event| audit.control().record(event));
        let recorder = audit.recorder().attach();
        for number in 0..510 {
            record(&recorder, number).await;
        }
        flood(&recorder);
        drop(recorder);
        let patience = Duration::from_secs(60);
        let timing = ShipTiming {
            linger: Duration::ZERO,
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(4),
            attempt: patience,
        };
        let to = watch::channel(vec![receiver.addr].into()).1;
        let mut shipper = audit.shipper(&sink, to, None, timing).unwrap();
        while shipper.finish(patience).await > 0 || audit.status().written_events < 1057 {}
        drop(audit); // as a crash would: without `audit.close`
        receiver.seen().into_iter().map(|seen| ExportLogsServiceRequest::decode(seen.body).unwrap()).collect()
    })
}

/// The second epoch, after a torn tail: a spool that is too small, so that there is a gap, and an end by intent.
fn second_epoch(spool: &Path, writer: &InstanceFacts) {
    let last = segments(spool).pop().unwrap();
    let mut file = std::fs::OpenOptions::new().append(true).open(last).unwrap();
    file.write_all(b"{\"chain\":").unwrap();
    let taken: u64 = segments(spool).iter().map(|path| path.metadata().unwrap().len()).sum();
    let small = SpoolConfig { max_bytes: taken + MIB, on_failure: OnFailure::Deny, ..config(spool) };
    let audit = Audit::start(small, writer, &[]).unwrap();
    worker(async {
        let (recorder, conn) = (audit.recorder().attach(), fragment());
        let mut number = 0;
        while try_request(&recorder, &conn, &format!("{number:032x}")).await.is_ok() {
            number += 1;
        }
    });
    audit.close().unwrap();
}

/// A trail with events of every type, and what an OTLP receiver was sent of it.
fn every_type() -> (Vec<Value>, Vec<ExportLogsServiceRequest>) {
    let (spool, writer) = (tempfile::tempdir().unwrap(), writer());
    let sent = first_epoch(spool.path(), &writer);
    second_epoch(spool.path(), &writer);
    intact(spool.path());
    (events(spool.path()), sent)
}

/// The fields of a schema: every member that is no object of named members, by its path.
fn fields(schema: &Value, at: &str, found: &mut BTreeSet<String>) {
    let schema =
        schema["$ref"].as_str().map_or(schema, |name| SCHEMA.pointer(name.trim_start_matches('#')).unwrap());
    match schema["properties"].as_object() {
        Some(members) => {
            members.iter().for_each(|(name, member)| fields(member, &format!("{at}.{name}"), found))
        }
        None => drop(found.insert(at.trim_start_matches('.').to_owned())),
    }
}

fn fields_of_the_schema() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    types().iter().for_each(|kind| fields(&SCHEMA["$defs"][*kind], "", &mut found));
    found
}

fn value_of<'v>(event: &'v Value, field: &str) -> Option<&'v Value> {
    event.pointer(&format!("/{}", field.replace('.', "/")))
}

/// The rows of the table below this heading of the page: the field, and its cells.
fn rows(heading: &str) -> BTreeMap<String, Vec<String>> {
    let section = PAGE.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `") || line.starts_with("| *`"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        (cells.next().unwrap().replace(['*', '`'], ""), cells.collect())
    })
    .collect()
}

/// What stands in backticks in a cell.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// If this fails, a type is written that the schema or the page of events does not know, or the other way round.
#[test]
fn the_schema_and_the_page_have_every_type() {
    assert_eq!(types(), EVENT_TYPES);
    let page = include_str!("../docs/audit.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Events\n")).unwrap();
    let told: BTreeSet<_> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(told, BTreeSet::from(EVENT_TYPES));
}

/// If this fails, somebody who reads an event finds a field that nobody explains, or looks for one that is not there.
#[test]
fn the_page_has_a_row_for_every_field_and_no_other() {
    let fields = fields_of_the_schema();
    for heading in ["Fields\n", "Elsewhere\n"] {
        assert_eq!(rows(heading).into_keys().collect::<BTreeSet<_>>(), fields, "{heading}");
    }
}

/// If this fails, the schema refuses good events, or has a field that nothing writes.
#[test]
fn the_schema_takes_every_type_with_every_field() {
    let (events, _) = every_type();
    events.iter().for_each(judge);
    let kinds: BTreeSet<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(EVENT_TYPES));
    let unseen = fields_of_the_schema()
        .into_iter()
        .filter(|field| !events.iter().any(|event| value_of(event, field).is_some()));
    // These take a collector that signs (tests/audit_ship.rs), and a process that was killed (tests/faults).
    let elsewhere = ["checkpoint.receipts", "close.checkpoint.receipts", "open.recovered"];
    assert_eq!(unseen.collect::<Vec<_>>(), elsewhere);
    let mut carried = events.iter().find(|event| event["type"] == "audit.checkpoint").unwrap().clone();
    carried["checkpoint"]["receipts"] = serde_json::json!({"collector": "a\n7\nAAAA\n\n\u{2014} c AAAA\n"});
    judge(&carried);
}

/// If this fails, PHI could stand in a member that the schema lets pass, or an event without its chain is a good one.
#[test]
fn the_schema_refuses_an_event_with_more_or_less() {
    let (events, _) = every_type();
    for kind in EVENT_TYPES {
        let event = events.iter().find(|event| event["type"] == kind).unwrap();
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut changed = event.clone();
            change(&mut changed);
            assert!(!takes(&changed), "{changed:#}");
        };
        refused(&|event| event["body"] = json!("x"));
        for required in SCHEMA["$defs"][kind]["required"].as_array().unwrap() {
            refused(&|event| drop(event.as_object_mut().unwrap().remove(required.as_str().unwrap())));
        }
        for (member, value) in event.as_object().unwrap() {
            match value {
                Value::Object(_) => refused(&|event| event[member]["raw"] = json!("x")),
                _ => refused(&|event| event[member] = json!("/fhir/Patient/3")),
            }
        }
    }
    let decision = events.iter().find(|event| event["type"] == "access.decision").unwrap();
    for (pointer, value) in [
        ("/http/params/id", json!("3")),
        ("/http/target_h", json!("/fhir/Patient/3")),
        ("/http/method", json!("BREW")),
        ("/decision/outcome", json!("maybe")),
        ("/decision/reason", json!("because of Jane Doe")),
        ("/request/id", json!("3\n")),
        ("/chain/seq", json!(-1)),
        ("/chain/seq", json!(1.5)),
        ("/time", json!("2026-11-20T14:03:22Z")),
    ] {
        let mut changed = decision.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        assert!(!takes(&changed), "{pointer}");
    }
}

/// If this fails, a SIEM's rule is written for an attribute that is not there, or an export loses a field.
#[test]
fn ocsf_has_each_field_where_the_page_says() {
    let (places, (events, _)) = (rows("Elsewhere\n"), every_type());
    for event in &events {
        let mapped = ocsf(event);
        for (field, cells) in &places {
            let Some(value) = value_of(event, field) else { continue };
            assert_ne!(names(&cells[2]).count(), 0, "{field} is nowhere in OCSF");
            for place in names(&cells[2]) {
                let found = value_of(&mapped, place);
                assert!(found.is_some(), "{field} is not at {place}: {mapped:#}");
                assert!(!place.starts_with("unmapped.") || found == Some(value), "{field}: {mapped:#}");
            }
        }
    }
}

/// If this fails, somebody searches behind a Collector for an attribute that no log record has.
#[test]
fn otlp_has_each_attribute_that_the_page_names_and_no_other() {
    let (_, sent) = every_type();
    let mut keys = BTreeSet::new();
    for logs in sent.iter().flat_map(|request| &request.resource_logs) {
        let records = logs.scope_logs.iter().flat_map(|scope| &scope.log_records);
        let attributes =
            records.flat_map(|record| &record.attributes).chain(&logs.resource.as_ref().unwrap().attributes);
        keys.extend(attributes.map(|attribute| attribute.key.clone()));
    }
    let rows = rows("Elsewhere\n");
    let told: BTreeSet<_> = rows.values().flat_map(|cells| names(&cells[0])).map(str::to_owned).collect();
    assert_eq!(keys, told);
}
