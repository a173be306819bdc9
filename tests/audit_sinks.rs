//! Delivery to receivers of every form: whatever they do, they end with every event, in order, or it is in quarantine.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;
#[path = "audit_support/receivers.rs"]
mod receivers;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use audit_support::*;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as OtelValue;
use phiward::audit::{
    Audit, Credentials, ExtraHeader, HecOptions, SecretFile, ShipTiming, Shipper, SinkConfig, SinkKind,
    SpoolConfig,
};
use prost::Message;
use receivers::{Fault, Form, Receiver, Seen, otlp_lines};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(60);
const MILLI: Duration = Duration::from_millis(1);

fn hec(indexer_ack: bool, ack_timeout: Duration) -> SinkKind {
    let sourcetype = "phiward:audit".to_owned();
    SinkKind::SplunkHec(HecOptions { index: Some("audit".into()), sourcetype, indexer_ack, ack_timeout })
}

fn kind(form: Form) -> SinkKind {
    match form {
        Form::Ndjson => SinkKind::Ndjson,
        Form::Otlp => SinkKind::Otlp,
        Form::Splunk => hec(true, PATIENCE),
        Form::Elasticsearch => SinkKind::Elasticsearch { index: "phiward-audit".into() },
    }
}

const FORMS: [Form; 4] = [Form::Ndjson, Form::Otlp, Form::Splunk, Form::Elasticsearch];

fn shipper(audit: &Audit, sink: &SinkConfig, to: SocketAddr, attempt: Duration) -> Shipper {
    let timing = ShipTiming { linger: Duration::ZERO, retry_min: MILLI, retry_max: 4 * MILLI, attempt };
    audit.shipper(sink, watch::channel(vec![to].into()).1, None, timing).unwrap()
}

/// Delivers until nothing is left, the events about quarantine too.
async fn finish(shipper: &mut Shipper) {
    while shipper.finish(PATIENCE).await > 0 {}
}

/// A trail of `n` requests that is delivered to a receiver with these faults, and closed.
async fn deliver(
    spool: &Path,
    n: usize,
    sink: &SinkConfig,
    receiver: &Receiver,
    attempt: Duration,
) -> phiward::audit::SinkStatus {
    let audit = start(spool, std::slice::from_ref(sink)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| requests(&audit, "", n));
    });
    let mut shipper = shipper(&audit, sink, receiver.addr, attempt);
    finish(&mut shipper).await;
    let reader = audit.status_reader();
    audit.close().unwrap();
    finish(&mut shipper).await;
    reader.status().sinks.remove(0)
}

/// The lines of the spool, in order.
fn lines(spool: &Path) -> Vec<String> {
    segments(spool).iter().map(|path| text_of(path)).collect::<String>().lines().map(str::to_owned).collect()
}

fn quarantined(spool: &Path) -> Vec<String> {
    let folder = spool.join("quarantine");
    if folder.exists() { lines(&folder) } else { Vec::new() }
}

/// The first time each line came: that order must be the spool's.
fn once(lines: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    lines.into_iter().filter(|line| seen.insert(line.clone())).collect()
}

/// If this fails, a form changes events, loses some, or brings them in another order.
#[test]
fn each_form_brings_every_event_byte_for_byte_and_in_order() {
    for form in FORMS {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let receiver = Receiver::start(form, Vec::new()).await;
            let sink = sink_of("sink", kind(form));
            let status = deliver(spool.path(), 1500, &sink, &receiver, PATIENCE).await;
            assert_eq!(receiver.stored(), lines(spool.path()), "{form:?}");
            assert_eq!((status.backlog_bytes, status.backlog_events, status.retries), (0, 0, 0), "{form:?}");
            let all = lines(spool.path()).len() as u64;
            assert_eq!((status.acked_events, status.quarantined_events), (all, 0), "{form:?}");
            assert!(status.last_success_unix_s.is_some() && status.lag_seconds == 0.0, "{status:?}");
            assert!(quarantined(spool.path()).is_empty());
        });
    }
}

/// If this fails, an unreliable receiver of some form costs events, doubles them in quarantine, or mixes their order.
#[test]
fn errors_resets_and_silence_are_waited_out_in_every_form() {
    for form in FORMS {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let mut faults = vec![
                Fault::Status(503),
                Fault::HalfAnswer,
                Fault::Close,
                Fault::Status(429),
                Fault::Well,
                Fault::Hang,
                Fault::HalfAnswer,
                Fault::Status(502),
                Fault::Status(401), // a token that is just being replaced
                Fault::Status(404),
                Fault::Status(504),
                Fault::Status(307),
                Fault::Says(200, "<html>a portal</html>".into()),
            ];
            if form == Form::Ndjson {
                faults.pop(); // any 200 is its acknowledgement
            }
            if form != Form::Otlp {
                faults.push(Fault::Status(500)); // the OTLP specification forbids to send again after it
            }
            let failures = faults.iter().filter(|fault| **fault != Fault::Well).count() as u64;
            let receiver = Receiver::start(form, faults).await;
            let sink = sink_of("sink", kind(form));
            let status = deliver(spool.path(), 1500, &sink, &receiver, Duration::from_secs(1)).await;
            assert_eq!(once(receiver.stored()), lines(spool.path()), "{form:?}");
            let all = lines(spool.path()).len() as u64;
            assert_eq!((status.acked_events, status.quarantined_events), (all, 0), "{form:?}");
            // At least: on a busy machine a good answer can be late too, and is asked for again.
            assert!(status.retries >= failures && status.last_error.is_none(), "{form:?}: {status:?}");
            assert!(quarantined(spool.path()).is_empty());
        });
    }
}

/// If this fails, delivery costs ten times the network that it has to, an event is not what it was, or a receiver gets a body
/// that it cannot read: coded before it has said so on this connection, or after it has refused one.
#[test]
fn who_takes_zstd_gets_it_from_the_second_batch_on() {
    for form in FORMS {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            // Plain, coded, and cut: the next connection can end anywhere. The fourth is coded again and refused.
            let refusal = if form == Form::Ndjson { 400 } else { 415 };
            let faults = vec![Fault::Well, Fault::HalfAnswer, Fault::Well, Fault::Status(refusal)];
            let receiver = Receiver::start(form, faults).await.announcing();
            let sink = sink_of("sink", kind(form));
            let status = deliver(spool.path(), 4000, &sink, &receiver, PATIENCE).await;
            assert_eq!(
                (status.backlog_bytes, status.quarantined_events, status.retries),
                (0, 0, 2),
                "{form:?}"
            );
            assert_eq!(once(receiver.stored()), lines(spool.path()), "{form:?}");
            let batches = receiver.seen().into_iter().filter(|seen| !seen.path.ends_with("/ack"));
            let coded: Vec<_> = batches.map(|seen| seen.headers.contains_key("content-encoding")).collect();
            assert_eq!(coded[..4], [false, true, false, true], "{form:?}");
            assert!(coded.len() > 5 && !coded[4..].contains(&true), "{form:?} {coded:?}");
        });
    }
}

/// If this fails, events that the writer has coded are lost, doubled or out of order where the collector does not take them, a
/// collector is read for from the spool although it keeps up, or another receiver gets more than the one frame that all of them read.
#[test]
fn a_collector_that_keeps_up_gets_what_the_writer_has_coded() {
    for (kind, most_frames) in [(SinkKind::Phiward, usize::MAX), (SinkKind::Ndjson, 1)] {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let receiver = Receiver::start(Form::Ndjson, Vec::new()).await.announcing();
            let sink = sink_of("sink", kind);
            let config = SpoolConfig { segment_bytes: 4 * MIB, ..config(spool.path()) };
            let audit = Audit::start(config, &instance(), std::slice::from_ref(&sink)).unwrap();
            let mut shipper = shipper(&audit, &sink, receiver.addr, PATIENCE);
            let mut round = async |fault| {
                // Long events, so that a write is large on a slow machine too.
                let name = format!("{}{}", receiver.seen().len(), "x".repeat(1400));
                std::thread::scope(|scope| {
                    scope.spawn(|| requests(&audit, &name, 200));
                });
                receiver.next(fault);
                let before = receiver.seen().len();
                finish(&mut shipper).await;
                receiver.seen()[before..].iter().map(frames_in).collect::<Vec<_>>()
            };
            assert_eq!(round(Fault::Well).await[0], 0, "nothing was said yet");
            // How many writes the events of a round take is the writer's affair: one is possible too.
            let mut most = 0;
            for _ in 0..if most_frames > 1 { 50 } else { 3 } {
                most = most.max(round(Fault::Well).await.into_iter().max().unwrap());
                if most > 1 {
                    break;
                }
            }
            assert!((most_frames.min(2)..=most_frames).contains(&most), "{most}");
            let cut = round(Fault::HalfAnswer).await;
            assert!(cut[0] >= 1 && cut[1] == 0, "{cut:?}");
            let refused = round(Fault::Status(415)).await;
            assert!(refused[0] >= 1 && refused[1..].iter().all(|frames| *frames == 0), "{refused:?}");
            audit.close().unwrap();
            finish(&mut shipper).await;
            assert_eq!(once(receiver.stored()), lines(spool.path()));
            assert!(quarantined(spool.path()).is_empty());
        });
    }
}

/// Of how many frames a body is; 0 when it is plain.
fn frames_in(seen: &Seen) -> usize {
    let (mut rest, mut frames) = (&seen.body[..], 0);
    while seen.headers.contains_key("content-encoding") && !rest.is_empty() {
        rest = &rest[zstd::zstd_safe::find_frame_compressed_size(rest).unwrap()..];
        frames += 1;
    }
    frames
}

/// If this fails, a receiver with a limit blocks the trail for ever, or events that would fit are set aside.
#[test]
fn a_batch_that_is_too_large_is_halved_until_it_fits() {
    for form in FORMS {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let receiver = Receiver::start(form, Vec::new()).await.limit(20_000);
            let sink = sink_of("sink", kind(form));
            let status = deliver(spool.path(), 60, &sink, &receiver, PATIENCE).await;
            assert_eq!(receiver.stored(), lines(spool.path()), "{form:?}");
            assert_eq!(
                (status.acked_events, status.quarantined_events, status.retries),
                (122, 0, 0),
                "{form:?}"
            );
        });
    }
}

/// If this fails, one event that no receiver can take stops the whole trail, or takes others with it.
#[test]
fn one_event_that_is_too_large_alone_is_set_aside_alone() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(Form::Ndjson, Vec::new()).await.limit(1500);
        let sink = sink_of("sink", SinkKind::Ndjson);
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                requests(&audit, "", 5);
                requests(&audit, &"x".repeat(1400), 1);
                requests(&audit, "more", 5);
            });
        });
        let mut shipper = shipper(&audit, &sink, receiver.addr, PATIENCE);
        finish(&mut shipper).await;
        audit.close().unwrap();
        finish(&mut shipper).await;
        let aside = quarantined(spool.path());
        assert_eq!(aside.len(), 2, "the decision and the completion of one request");
        assert!(aside.iter().all(|line| line.contains("xxxx")));
        let rest: Vec<_> = lines(spool.path()).into_iter().filter(|line| !aside.contains(line)).collect();
        assert_eq!(receiver.stored(), rest);
        let told: Vec<_> =
            events(spool.path()).into_iter().filter(|e| e["type"] == "audit.quarantine").collect();
        assert_eq!(told.len(), 2);
        assert!(
            told.iter().all(|e| e["quarantine"]["reason"] == "too_large" && e["quarantine"]["events"] == 1)
        );
        intact(spool.path());
    });
}

/// If this fails, an OTLP receiver that drops events has dropped them for good.
#[test]
fn what_an_otlp_receiver_drops_is_in_quarantine_with_its_whole_batch() {
    for (fault, reason, status) in [
        (Fault::Partial(3), "partial_success", 200),
        (Fault::Status(500), "refused", 500),
        (Fault::Status(400), "refused", 400),
    ] {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let receiver = Receiver::start(Form::Otlp, vec![fault]).await;
            let sink = sink_of("sink", SinkKind::Otlp);
            let counts = deliver(spool.path(), 20, &sink, &receiver, PATIENCE).await;
            let all = lines(spool.path());
            assert_eq!(quarantined(spool.path()), all[..41]);
            assert_eq!(receiver.stored()[receiver.stored().len() - 2..], all[41..], "the rest goes on");
            assert_eq!((counts.quarantined_events, counts.acked_events), (41, 2));
            let told = events(spool.path()).into_iter().find(|e| e["type"] == "audit.quarantine").unwrap();
            let told = &told["quarantine"];
            assert_eq!((told["reason"].as_str(), told["status"].as_u64()), (Some(reason), Some(status)));
            assert_eq!((told["events"].as_u64(), told["sink"].as_str()), (Some(41), Some("sink")));
        });
    }
}

/// If this fails, people find no events behind a Collector, or the body is not the event any more.
#[test]
fn a_log_record_has_the_event_as_its_body_and_the_attributes_that_people_search_by() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(Form::Otlp, Vec::new()).await;
        deliver(spool.path(), 1, &sink_of("sink", SinkKind::Otlp), &receiver, PATIENCE).await;
        let seen = receiver.seen().remove(0);
        assert_eq!(
            (seen.path.as_str(), seen.headers["content-type"].as_str()),
            ("/v1/logs", "application/x-protobuf")
        );
        let request = ExportLogsServiceRequest::decode(seen.body).unwrap();
        let logs = &request.resource_logs[0];
        let text = |of: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str| {
            let found = of.iter().find(|attribute| attribute.key == key).unwrap_or_else(|| panic!("{key}"));
            match found.value.as_ref().unwrap().value.as_ref().unwrap() {
                OtelValue::StringValue(text) => text.clone(),
                other => format!("{other:?}"),
            }
        };
        let resource = &logs.resource.as_ref().unwrap().attributes;
        assert_eq!(
            (text(resource, "service.name"), text(resource, "service.namespace")),
            ("records".into(), "clinic".into())
        );
        let records = &logs.scope_logs[0].log_records;
        assert_eq!(
            records.iter().map(|record| record.event_name.as_str()).collect::<Vec<_>>(),
            ["audit.open", "access.decision", "access.complete"]
        );
        let decision = &records[1];
        assert_eq!(
            (decision.time_unix_nano, decision.severity_text.as_str()),
            (1_795_183_402_118_204_771, "INFO")
        );
        for (key, value) in [
            ("http.request.method", "GET"),
            ("url.template", "/fhir/Patient/{id}"),
            ("url.domain", "records.clinic"),
            ("tls.client.subject", "spiffe://hospital.local/ns/clinic/sa/web"),
            ("network.peer.address", "10.2.0.9"),
            ("phiward.decision.outcome", "allow"),
            ("security_rule.name", "read-patient"),
            ("phiward.chain.seq", "IntValue(1)"),
        ] {
            assert_eq!(text(&decision.attributes, key), value, "{key}");
        }
        assert_eq!(text(&records[2].attributes, "http.response.status_code"), "IntValue(200)");
    });
}

/// If this fails, one document that a cluster cannot take costs its neighbours, or a busy shard loses documents.
#[test]
fn of_a_mixed_bulk_answer_each_event_gets_its_own_way() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        // 409 is success; 400 is for good; 429 and 503 go again, alone, and one of them fails a second time.
        let faults = vec![
            Fault::Items(vec![(0, 409), (3, 400), (5, 429), (6, 503), (8, 400), (10, 429)]),
            Fault::Items(vec![(1, 503)]),
        ];
        let receiver = Receiver::start(Form::Elasticsearch, faults).await;
        let sink = sink_of("sink", kind(Form::Elasticsearch));
        let status = deliver(spool.path(), 20, &sink, &receiver, PATIENCE).await;
        let all = lines(spool.path());
        assert_eq!(quarantined(spool.path()), [all[3].clone(), all[8].clone()]);
        assert_eq!(status.quarantined_events, 2);
        let sent = |number: usize| -> Vec<String> {
            let body = String::from_utf8(receiver.seen()[number].body.to_vec()).unwrap();
            body.lines().skip(1).step_by(2).map(str::to_owned).collect()
        };
        assert_eq!(sent(0), all[..41]);
        assert_eq!(sent(1), [all[5].clone(), all[6].clone(), all[10].clone()], "in order, and nothing else");
        assert_eq!(sent(2), [all[6].clone()]);
        let mut stored = receiver.stored();
        stored.sort();
        let mut want: Vec<_> =
            all.iter().enumerate().filter(|(n, _)| ![0, 3, 8].contains(n)).map(|(_, l)| l.clone()).collect();
        want.sort();
        assert_eq!(stored, want);
        let first = &receiver.seen()[0];
        assert!(first.path.starts_with("/phiward-audit/_bulk"), "{}", first.path);
        let action: serde_json::Value =
            serde_json::from_slice(first.body.split(|b| *b == b'\n').next().unwrap()).unwrap();
        assert_eq!(action["create"]["_id"], events(spool.path())[0]["id"]);
    });
}

/// If this fails, a 200 of Splunk is taken for stored, and what its memory loses is lost.
#[test]
fn what_no_indexer_acknowledges_is_sent_again() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(Form::Splunk, vec![Fault::Forget, Fault::Well, Fault::Forget]).await;
        let sink = sink_of("sink", hec(true, Duration::from_millis(300)));
        let status = deliver(spool.path(), 50, &sink, &receiver, PATIENCE).await;
        assert_eq!(receiver.stored(), lines(spool.path()));
        assert_eq!((status.acked_events, status.retries), (102, 2));
        assert!(receiver.questions() >= 4, "it was asked until the time was over");
        let seen = receiver.seen();
        let channels: std::collections::BTreeSet<_> =
            seen.iter().map(|s| s.headers["x-splunk-request-channel"].clone()).collect();
        assert_eq!(channels.len(), 1);
        assert_eq!(channels.first().unwrap().len(), 36);
        let event: serde_json::Value =
            serde_json::Deserializer::from_slice(&seen[0].body).into_iter().next().unwrap().unwrap();
        assert_eq!(
            (event["index"].as_str(), event["sourcetype"].as_str()),
            (Some("audit"), Some("phiward:audit"))
        );
        assert!(event["time"].is_number() && event["event"]["schema"] == "phiward.audit/1");
    });
}

/// If this fails, one event that Splunk cannot take costs its neighbours, or a wrong index empties the trail into quarantine.
#[test]
fn splunks_codes_tell_a_bad_event_from_a_bad_setting() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let faults = vec![
            Fault::Says(400, r#"{"text":"Incorrect index","code":7,"invalid-event-number":0}"#.into()),
            Fault::Says(403, r#"{"text":"Invalid token","code":4}"#.into()),
            Fault::Says(503, r#"{"text":"Server is busy","code":9}"#.into()),
            Fault::Says(400, r#"{"text":"Invalid data format","code":6,"invalid-event-number":4}"#.into()),
            Fault::Says(200, r#"{"text":"Success","code":0}"#.into()), // a token without acknowledgements
        ];
        let receiver = Receiver::start(Form::Splunk, faults).await;
        let sink = sink_of("sink", hec(true, PATIENCE));
        let status = deliver(spool.path(), 20, &sink, &receiver, PATIENCE).await;
        let all = lines(spool.path());
        assert_eq!(quarantined(spool.path()), [all[4].clone()]);
        let rest: Vec<_> = all.iter().filter(|line| **line != all[4]).cloned().collect();
        assert_eq!(receiver.stored(), rest);
        assert_eq!((status.retries, status.quarantined_events), (4, 1));
        // Where nobody has acknowledgements, the 200 has to do.
        let spool = tempfile::tempdir().unwrap();
        let said = Fault::Says(200, r#"{"text":"Success","code":0}"#.into());
        let receiver = Receiver::start(Form::Splunk, vec![said]).await;
        let status =
            deliver(spool.path(), 1, &sink_of("sink", hec(false, PATIENCE)), &receiver, PATIENCE).await;
        assert_eq!((status.retries, receiver.questions()), (0, 0));
    });
}

/// If this fails, what was damaged on the disk stops the trail, or is dropped in silence.
#[test]
fn damage_is_set_aside_and_the_others_go_on() {
    for form in [Form::Otlp, Form::Splunk, Form::Elasticsearch] {
        worker(async {
            let spool = tempfile::tempdir().unwrap();
            let sink = sink_of("sink", kind(form));
            let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
            for _ in 0..2 {
                std::thread::scope(|scope| {
                    scope.spawn(|| requests(&audit, "", 5));
                });
            }
            let path = segments(spool.path()).remove(0);
            let mut stored = std::fs::read(&path).unwrap();
            let open = frame_len(&stored);
            let frame = open..open + frame_len(&stored[open..]); // the second one
            let hidden = zstd::stream::decode_all(&stored[frame.clone()]).unwrap();
            let hidden = hidden.iter().filter(|byte| **byte == b'\n').count();
            stored[frame.start + 4] ^= 0xff; // what it says of itself
            std::fs::write(&path, &stored).unwrap();
            let receiver = Receiver::start(form, Vec::new()).await;
            let mut shipper = shipper(&audit, &sink, receiver.addr, PATIENCE);
            finish(&mut shipper).await;
            let status = audit.status().sinks.remove(0);
            assert_eq!((status.quarantined_events, status.retries), (1, 0), "{form:?}");
            let kept = segments(&spool.path().join("quarantine"));
            assert!(text_of(&kept[0]).contains("damaged and cannot be unpacked"), "{}", text_of(&kept[0]));
            drop(audit);
            finish(&mut shipper).await;
            // All but those in the frame, and one that tells of it.
            assert_eq!(receiver.stored().len(), 21 - hidden + 1, "{form:?}");
            assert!(receiver.stored().last().unwrap().contains(r#""reason":"unreadable""#));
        });
    }
}

fn frame_len(stored: &[u8]) -> usize {
    zstd::zstd_safe::find_frame_compressed_size(stored).unwrap()
}

/// If this fails, a rotated token needs a restart, or a secret stands where people read.
#[test]
fn secrets_are_read_again_for_each_attempt_and_never_shown() {
    worker(async {
        let (spool, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = dir.path().join("token");
        std::fs::write(&file, "s3cr3t-one\n").unwrap();
        let receiver = Receiver::start(Form::Otlp, vec![Fault::Status(401)]).await;
        let mut sink = sink_of("sink", SinkKind::Otlp);
        sink.credentials = Some(Credentials::Bearer(SecretFile::new(&file)));
        sink.headers = vec![ExtraHeader::parse("X-Scope-OrgID", "clinic").unwrap()];
        sink.prefix = "/ingest".into();
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        let mut shipper = shipper(&audit, &sink, receiver.addr, PATIENCE);
        finish(&mut shipper).await;
        let shown = |audit: &Audit| format!("{:?} {sink:?}", audit.status());
        assert!(!shown(&audit).contains("s3cr3t"), "{}", shown(&audit));
        // While the file is away nothing is sent, and everything waits.
        std::fs::remove_file(&file).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| requests(&audit, "", 5));
        });
        let sent = receiver.seen().len();
        tokio::select! {
            () = shipper.run() => unreachable!(),
            () = async { while audit.status().sinks[0].last_error.is_none() { tokio::task::yield_now().await } } => {}
        }
        assert_eq!(receiver.seen().len(), sent);
        let status = audit.status().sinks.remove(0);
        assert!(status.last_error.unwrap().contains("token: the secret of an audit sink cannot be read"));
        assert!(status.backlog_events == 10 && status.lag_seconds > 0.0, "{}", status.backlog_events);
        std::fs::write(&file, "s3cr3t-two").unwrap();
        finish(&mut shipper).await;
        let seen = receiver.seen();
        let tokens: Vec<_> = seen.iter().map(|seen| seen.headers["authorization"].as_str()).collect();
        assert_eq!(tokens, ["Bearer s3cr3t-one", "Bearer s3cr3t-one", "Bearer s3cr3t-two"]);
        assert!(
            seen.iter()
                .all(|seen| seen.headers["x-scope-orgid"] == "clinic" && seen.path == "/ingest/v1/logs")
        );
        assert!(!shown(&audit).contains("s3cr3t"));
    });
}

/// If this fails, a receiver of newline-delimited JSON cannot know a batch again that it has stored already.
#[test]
fn a_batch_that_is_sent_again_has_the_same_name() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(Form::Ndjson, vec![Fault::HalfAnswer]).await;
        let sink = sink_of("sink", SinkKind::Ndjson);
        deliver(spool.path(), 5, &sink, &receiver, PATIENCE).await;
        let names: Vec<_> =
            receiver.seen().iter().map(|seen| seen.headers["x-phiward-batch"].clone()).collect();
        let epoch = events(spool.path())[0]["chain"]["epoch"].as_str().unwrap().to_owned();
        assert_eq!(names, [format!("{epoch}:0-10"), format!("{epoch}:0-10"), format!("{epoch}:11-11")]);
        assert!(
            receiver
                .seen()
                .iter()
                .all(|seen| seen.path == "/" && seen.headers["content-type"] == "application/x-ndjson")
        );
    });
}

/// If this fails, a process that is killed in the middle of delivery loses events, or one that starts with a backlog does not
/// say how much is waiting.
#[test]
fn a_flush_that_is_given_up_is_gone_on_with_by_the_next_process() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver =
            Receiver::start(Form::Elasticsearch, vec![Fault::Items(vec![(0, 429)]), Fault::Hang]).await;
        let sink = sink_of("sink", kind(Form::Elasticsearch));
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| requests(&audit, "", 20));
        });
        let mut first = shipper(&audit, &sink, receiver.addr, PATIENCE);
        tokio::select! {
            () = first.run() => unreachable!(),
            () = async { while receiver.seen().len() < 2 { tokio::task::yield_now().await } } => {}
        }
        drop(first);
        drop(audit);
        let audit = start(spool.path(), std::slice::from_ref(&sink)).unwrap();
        let mut next = shipper(&audit, &sink, SocketAddr::from(([127, 0, 0, 1], 1)), PATIENCE);
        tokio::select! {
            () = next.run() => unreachable!(),
            () = async { while audit.status().sinks[0].backlog_events != 42 { tokio::task::yield_now().await } } => {}
        }
        let mut next = shipper(&audit, &sink, receiver.addr, PATIENCE);
        finish(&mut next).await;
        audit.close().unwrap();
        finish(&mut next).await;
        let (mut stored, mut all) = (receiver.stored(), lines(spool.path()));
        stored.sort();
        all.sort();
        assert_eq!(stored, all, "each event once, because a second one is answered 409");
    });
}

/// If this fails, a sink that is not required has missed events and nobody can see it.
#[test]
fn a_sink_that_is_not_required_tells_what_it_has_missed() {
    worker(async {
        let spool = tempfile::tempdir().unwrap();
        let receiver = Receiver::start(Form::Ndjson, Vec::new()).await;
        let mut optional = sink_of("optional", SinkKind::Ndjson);
        optional.required = false;
        let sinks = [sink_of("required", SinkKind::Ndjson), optional];
        let small = phiward::audit::SpoolConfig { max_bytes: MIB, ..config(spool.path()) };
        let audit = Audit::start(small, &instance(), &sinks).unwrap();
        let mut behind = shipper(&audit, &sinks[1], receiver.addr, PATIENCE);
        let mut required = shipper(&audit, &sinks[0], receiver.addr, PATIENCE);
        for round in 0..16 {
            std::thread::scope(|scope| {
                // In bursts: nobody waits for the writer, who makes room, and so small a spool would be full before.
                scope.spawn(|| (0..12).for_each(|burst| requests(&audit, &format!("{round}-{burst}-"), 25)));
            });
            finish(&mut required).await;
        }
        finish(&mut behind).await;
        let status = audit.status().sinks;
        assert!(status[1].missed_segments > 0 && status[0].missed_segments == 0);
        let all = audit.status().written_events;
        assert_eq!((status[1].backlog_events, status[0].acked_events), (0, all));
        assert!(status[1].acked_events < all);
    });
}

/// If this fails, OTLP bodies are read wrong by this file itself.
#[test]
fn the_test_reads_what_the_wire_holds() {
    assert!(otlp_lines(&[]).is_empty());
}
