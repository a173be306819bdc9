//! Questions to a trail, and its events in other forms.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit_support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::AtomicU64;

use audit_support::*;
use phiward::audit::{
    AccessComplete, AccessDecision, Audit, ConnFacts, ConnFragment, Decision, Direction, Field, HttpFacts,
    Indexed, PseudonymKey, Query, ResponseFacts, SubjectFacts, account, index, ocsf, query, table_head,
    table_row,
};
use phiward::identity::IdPattern;
use serde_json::Value;

const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";
const LAB: &str = "spiffe://hospital.local/ns/lab/sa/bridge";
const KEY: [u8; 32] = [7; 32];
/// 2026-11-20T14:00:00Z
const NOON: u64 = 1_795_183_200_000_000_000;

/// One request of the trail that is asked about.
struct Asked {
    id: String,
    who: &'static str,
    patient: String,
    outcome: &'static str,
    status: Option<u16>,
    time_unix_ns: u64,
}

/// 60 requests: two callers, three patients, one in five denied, one in seven without an end, one a minute.
fn asked() -> Vec<Asked> {
    (0..60)
        .map(|n: u64| {
            let denied = n.is_multiple_of(5);
            Asked {
                id: format!("r{n}"),
                who: if n.is_multiple_of(3) { LAB } else { WEB },
                patient: (n % 3 + n % 2).to_string(),
                outcome: if denied { "deny" } else { "allow" },
                status: (!denied && !n.is_multiple_of(7)).then_some(if n.is_multiple_of(4) {
                    404
                } else {
                    200
                }),
                time_unix_ns: NOON + n * 60_000_000_000,
            }
        })
        .collect()
}

fn record(audit: &Audit, requests: &[Asked]) {
    let key = PseudonymKey::from_bytes(&KEY).unwrap();
    worker(async {
        let recorder = audit.recorder().attach();
        for asked in requests {
            let subject = SubjectFacts { spiffe_id: asked.who, cert_sha256: "ab" };
            let facts = ConnFacts {
                direction: Direction::Inbound,
                listener: "api",
                peer: [10, 2, 0, 9].into(),
                destination: None,
                service: None,
                tls: None,
                subject: Some(subject),
            };
            let conn = ConnFragment::new(&facts);
            let params = [("id", key.pseudonym(asked.patient.as_bytes()))];
            let http = HttpFacts {
                method: Some("GET"),
                host: Some("records.clinic"),
                template: Some("/fhir/Patient/{id}"),
                params: &params,
                version: "2",
                ..HttpFacts::default()
            };
            let (reason, rule) = if asked.outcome == "allow" {
                ("rule", Some("read-patient"))
            } else {
                ("no_allow_rule", None)
            };
            let decision = Decision {
                outcome: asked.outcome,
                reason,
                rule,
                role: rule.map(|_| "chart-read"),
                shadow: None,
            };
            let mut place = recorder.reserve(2).unwrap();
            let recorded = place.decision(&AccessDecision {
                time_unix_ns: asked.time_unix_ns,
                request_id: &asked.id,
                trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736"),
                conn: &conn,
                http,
                decision,
                policy: None,
            });
            recorded.before_forward().await.unwrap();
            if let Some(status) = asked.status {
                let response = ResponseFacts {
                    status,
                    response_bytes: 150,
                    duration_us: 420,
                    ..ResponseFacts::default()
                };
                place.complete(&AccessComplete {
                    time_unix_ns: asked.time_unix_ns + 420_000,
                    request_id: &asked.id,
                    trace_id: None,
                    conn: &conn,
                    response,
                });
            }
        }
    });
}

/// Two epochs, as after a restart.
fn trail(dir: &Path) -> Vec<Asked> {
    let asked = asked();
    for half in asked.chunks(30) {
        let audit = start(dir, &[]).unwrap();
        record(&audit, half);
        audit.close().unwrap();
    }
    asked
}

fn ids(dir: &Path, asked_for: &Query) -> Vec<String> {
    let read = |line: &Vec<u8>| serde_json::from_slice::<Value>(line).unwrap();
    let answer = query(dir, asked_for).unwrap();
    for row in &answer.rows {
        let (event, completion) = (read(&row.event), row.completion.as_ref().map(read));
        assert!(completion.is_none_or(|completion| completion["request"]["id"] == event["request"]["id"]));
    }
    answer
        .rows
        .iter()
        .map(|row| read(&row.event)["request"]["id"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn wanted(asked: &[Asked], fits: impl Fn(&Asked) -> bool) -> Vec<String> {
    asked.iter().filter(|asked| fits(asked)).map(|asked| asked.id.clone()).collect()
}

/// If this fails, an auditor gets requests that were not asked for, or misses some that were.
#[test]
fn each_condition_finds_exactly_the_requests_that_meet_it() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let text = |field, text: &str| Query { texts: vec![(field, text.to_owned())], ..Query::default() };
    let of = |pattern: &str| Query { identity: Some(IdPattern::parse(pattern).unwrap()), ..Query::default() };
    assert_eq!(
        ids(dir.path(), &text(Field::Outcome, "deny")),
        wanted(&asked, |asked| asked.outcome == "deny")
    );
    assert_eq!(
        ids(dir.path(), &text(Field::Role, "chart-read")),
        wanted(&asked, |asked| asked.outcome == "allow")
    );
    assert_eq!(ids(dir.path(), &text(Field::RequestId, "r31")), ["r31"]);
    assert!(
        ids(dir.path(), &text(Field::RequestId, "r3")).iter().all(|id| id == "r3"),
        "no prefix is a match"
    );
    assert_eq!(ids(dir.path(), &of(WEB)), wanted(&asked, |asked| asked.who == WEB));
    assert_eq!(
        ids(dir.path(), &of("spiffe://hospital.local/ns/lab/**")),
        wanted(&asked, |asked| asked.who == LAB)
    );
    let key = PseudonymKey::from_bytes(&KEY).unwrap();
    let patient =
        Query { params: vec![("id".to_owned(), key.pseudonym(b"2").to_string())], ..Query::default() };
    assert_eq!(ids(dir.path(), &patient), wanted(&asked, |asked| asked.patient == "2"));
    let (from, until) =
        ("2026-11-20T14:10:00.000000000Z".to_owned(), "2026-11-20T14:20:00.000000000Z".to_owned());
    let within = Query { from: Some(from), until: Some(until), ..Query::default() };
    assert_eq!(ids(dir.path(), &within), (10..20).map(|n| format!("r{n}")).collect::<Vec<_>>());
    for (range, fits) in [((404, 404), 404), ((200, 299), 200)] {
        let status = Query { status: Some(range), ..Query::default() };
        assert_eq!(ids(dir.path(), &status), wanted(&asked, |asked| asked.status == Some(fits)));
    }
    let both =
        Query { texts: vec![(Field::Outcome, "allow".to_owned())], status: Some((400, 499)), ..of(LAB) };
    assert_eq!(ids(dir.path(), &both), wanted(&asked, |asked| asked.who == LAB && asked.status == Some(404)));
    assert_eq!(
        ids(dir.path(), &text(Field::Type, "access.complete")),
        wanted(&asked, |asked| asked.status.is_some())
    );
}

/// If this fails, a long answer costs memory without bound, or drops the newest instead of the oldest.
#[test]
fn a_limit_keeps_the_newest_and_says_how_many_it_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let texts = vec![(Field::Type, "access.decision".to_owned())];
    let answer =
        query(dir.path(), &Query { texts: texts.clone(), limit: Some(7), ..Query::default() }).unwrap();
    assert_eq!((answer.rows.len(), answer.left_out), (7, 53));
    let newest = Query { texts, limit: Some(7), ..Query::default() };
    assert_eq!(
        ids(dir.path(), &newest),
        asked[53..].iter().map(|asked| asked.id.clone()).collect::<Vec<_>>()
    );
}

fn phiward(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_phiward")).args(["audit"]).args(args).output().unwrap()
}

/// If this fails, a patient's record cannot be found by who holds the key, or can be by who does not.
#[test]
fn a_patient_is_found_with_the_key_and_only_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, KEY).unwrap();
    let (trail, key_file) = (dir.path().to_str().unwrap(), key_file.to_str().unwrap());
    let found = phiward(&["query", trail, "--param", "id=3", "--key-file", key_file]);
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(found.status.success());
    assert_eq!(text.lines().count(), wanted(&asked, |asked| asked.patient == "3").len());
    assert!(text.lines().all(|line| line.contains("GET records.clinic/fhir/Patient/{id} by spiffe://")));
    assert!(text.contains("-> 200 0.4 ms, 150 bytes out"), "{text}");
    let without = phiward(&["query", trail, "--param", "id=3"]);
    assert_eq!(without.status.code(), Some(2));
    assert!(String::from_utf8(without.stderr).unwrap().contains("--key-file"));
    let nobody = phiward(&["query", trail, "--param", "id=99", "--key-file", key_file]);
    assert_eq!((nobody.status.code(), nobody.stdout.len()), (Some(1), 0));
    for wrong in
        [&["--status", "40x"][..], &["--since", "yesterday"], &["--identity", "web"], &["--param", "id"]]
    {
        assert_eq!(phiward(&[&["query", trail], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(phiward(&["query", "/nonexistent"]).status.code(), Some(2));
}

/// If this fails, what a query prints as JSON is not what stands in the trail, so that it cannot be verified.
#[test]
fn json_is_the_lines_of_the_trail_and_csv_a_row_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let trail = dir.path().to_str().unwrap();
    let mut lines = std::collections::BTreeSet::new();
    phiward::audit::for_each(dir.path(), |line| {
        lines.insert(line.to_vec());
        Ok(())
    })
    .unwrap();
    let json = phiward(&["query", trail, "--outcome", "allow", "--format", "json"]).stdout;
    let json: Vec<_> = json.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let allowed = wanted(&asked, |asked| asked.outcome == "allow").len();
    assert_eq!(json.len(), allowed + asked.iter().filter(|asked| asked.status.is_some()).count());
    assert!(json.iter().all(|line| lines.contains(*line)));
    let csv = String::from_utf8(
        phiward(&["query", trail, "--outcome", "allow", "--format", "csv", "--newest-first"]).stdout,
    )
    .unwrap();
    let rows: Vec<_> = csv.lines().collect();
    assert_eq!(rows.len(), allowed + 1);
    assert!(
        rows[0].starts_with("time,type,outcome,reason,rule") && rows[1].starts_with("2026-11-20T14:59:00")
    );
}

/// If this fails, an export in another form drops events, or a cell of it becomes a formula in a spreadsheet.
#[test]
fn every_event_is_a_row_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    trail(dir.path());
    let trail = dir.path().to_str().unwrap();
    let csv = String::from_utf8(phiward(&["export", trail, "--format", "csv"]).stdout).unwrap();
    assert_eq!(csv.lines().count(), 1 + events(dir.path()).len());
    let since =
        phiward(&["export", trail, "--since", "2026-11-20T14:58:00Z", "--until", "2026-11-20T14:59:00Z"]);
    let since = String::from_utf8(since.stdout).unwrap();
    assert_eq!(since.lines().count(), 2, "{since}");
    let event = serde_json::json!({"type": "conn.rejected", "decision": {"reason": "=cmd"}, "http": {"query_names": ["a", "b"], "params": {"id": "k1:0"}}});
    let row = table_row(&event);
    let at = |name: &str| row[table_head().iter().position(|column| column == name).unwrap()].clone();
    assert_eq!(
        (at("query_names"), at("params"), at("status")),
        ("a b".to_owned(), "id=k1:0".to_owned(), String::new())
    );
}

/// If this fails, a SIEM refuses the events, or files them under the wrong class.
#[test]
fn ocsf_events_have_what_their_class_requires() {
    let dir = tempfile::tempdir().unwrap();
    trail(dir.path());
    for event in events(dir.path()) {
        let mapped = ocsf(&event);
        for required in
            ["category_uid", "class_uid", "activity_id", "type_uid", "severity_id", "time", "metadata"]
        {
            assert!(mapped.get(required).is_some(), "{required}: {mapped}");
        }
        assert!(
            mapped["metadata"]["version"].is_string() && mapped["metadata"]["product"]["name"] == "phiward"
        );
        assert_eq!(
            mapped["type_uid"].as_u64().unwrap(),
            mapped["class_uid"].as_u64().unwrap() * 100 + mapped["activity_id"].as_u64().unwrap()
        );
        assert!(!mapped.to_string().contains("null"), "{mapped}");
        match event["type"].as_str().unwrap() {
            "access.decision" => {
                assert_eq!(
                    (mapped["class_uid"].as_u64(), mapped["activity_id"].as_u64()),
                    (Some(6003), Some(2))
                );
                assert_eq!(mapped["actor"]["user"]["uid"], event["subject"]["spiffe_id"]);
                assert_eq!(mapped["action_id"], if event["decision"]["outcome"] == "allow" { 1 } else { 2 });
                assert!(mapped["api"]["operation"].is_string() && mapped["src_endpoint"]["ip"].is_string());
                assert_eq!(mapped["unmapped"]["chain"], event["chain"]);
            }
            "access.complete" => {
                assert_eq!(mapped["http_response"]["code"], event["response"]["status"]);
                assert_eq!(
                    mapped["time"].as_u64(),
                    Some(
                        event["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
                            as u64
                    )
                );
            }
            _ => assert_eq!(mapped["class_uid"], 6002),
        }
    }
    let refused = ocsf(
        &serde_json::json!({"type": "conn.rejected", "time": "2026-11-20T14:00:00.000000000Z", "conn": {"peer_addr": "10.0.0.1"}, "decision": {"reason": "unknown_ca"}}),
    );
    assert_eq!((refused["class_uid"].as_u64(), refused["activity_id"].as_u64()), (Some(4001), Some(5)));
    assert_eq!(
        (refused["src_endpoint"]["ip"].as_str(), refused["status_detail"].as_str()),
        (Some("10.0.0.1"), Some("unknown_ca"))
    );
}

/// If this fails, a review of access is made on wrong numbers.
#[test]
fn an_account_counts_each_request_identity_and_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let all = account(dir.path(), None, None).unwrap();
    let count = |fits: &dyn Fn(&&Asked) -> bool| asked.iter().filter(fits).count() as u64;
    assert_eq!(all.outcomes["allow"], count(&|asked| asked.outcome == "allow"));
    assert_eq!(all.outcomes["deny"], count(&|asked| asked.outcome == "deny"));
    assert_eq!(all.access.iter().map(|access| access.requests).sum::<u64>(), 60);
    assert_eq!(all.trail.without_end, count(&|asked| asked.outcome == "allow" && asked.status.is_none()));
    assert_eq!((all.trail.opened, all.trail.closed, all.trail.gaps), (2, 2, 0));
    for who in [WEB, LAB] {
        let its: Vec<_> = asked.iter().filter(|asked| asked.who == who && asked.outcome == "allow").collect();
        let patients: std::collections::BTreeSet<_> = its.iter().map(|asked| &asked.patient).collect();
        let caller = &all.identities[who];
        assert_eq!((caller.allowed, caller.records), (its.len() as u64, patients.len() as u64), "{who}");
        assert_eq!(caller.refused, count(&|asked| asked.who == who && asked.outcome == "deny"));
    }
}

/// If this fails, a report of a quarter counts what came before or after it, or calls an old caller new.
#[test]
fn an_account_of_a_time_holds_that_time_alone() {
    let dir = tempfile::tempdir().unwrap();
    let asked = trail(dir.path());
    let (from, until) = ("2026-11-20T14:03:00.000000000Z", "2026-11-20T14:04:00.000000000Z");
    let minute = account(dir.path(), Some(from), Some(until)).unwrap();
    assert_eq!((minute.access.len(), minute.access[0].requests), (1, 1));
    assert_eq!(minute.access[0].kind.identity, asked[3].who);
    assert!(!minute.identities[asked[3].who].is_new, "it asked before");
    let start = account(dir.path(), Some("2026-11-20T14:00:00.000000000Z"), Some(until)).unwrap();
    assert!(start.identities.values().all(|caller| caller.is_new), "the trail has nothing from before");
}

/// If this fails, a report on a trail that was changed looks like any other, or a form of it cannot be read.
#[test]
fn a_report_says_in_each_form_whether_its_trail_is_intact() {
    let dir = tempfile::tempdir().unwrap();
    trail(dir.path());
    let path = dir.path().to_str().unwrap();
    let told = |format: &str| {
        let output = phiward(&["report", path, "--format", format]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = told("text");
    assert_eq!(code, Some(0));
    for part in ["every record is as it was written", "Access and refusals", "no_allow_rule", WEB] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("What does not verify"), "{text}");
    let (_, json) = told("json");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["intact"], &json["account"]["trail"]["opened"]), (&true.into(), &2.into()));
    let (_, csv) = told("csv");
    assert!(csv.starts_with("service,identity,outcome,") && csv.lines().count() > 2, "{csv}");
    let (_, markdown) = told("markdown");
    assert!(markdown.contains("## Identities\n\n| identity | allowed |"), "{markdown}");

    let segment = audit_support::segments(dir.path()).remove(0);
    put_text(&segment, text_of(&segment).replacen("read-patient", "read-nothing", 1));
    let (code, text) = told("text");
    assert_eq!(code, Some(1));
    assert!(text.contains("NOT INTACT") && text.contains("flip"), "{text}");
    let missing = phiward(&["report", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
}

/// Requests of nobody that is asked for, a second apart.
fn filler(from: u64, count: u64) -> Vec<Asked> {
    let filler = |n: u64| Asked {
        id: format!("f{n}"),
        who: LAB,
        patient: "9".into(),
        outcome: "allow",
        status: Some(200),
        time_unix_ns: NOON + n * 1_000_000_000,
    };
    (from..from + count).map(filler).collect()
}

fn indexed(dir: &Path) -> Indexed {
    index(dir, false, &AtomicU64::new(0)).unwrap()
}

/// If this fails, a search misses what is in the trail once there is an index, or reads all of it as before.
#[test]
fn an_index_makes_a_search_shorter_and_its_answer_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, asked) = (dir.path(), asked());
    let audit = start(dir, &[]).unwrap();
    record(&audit, &filler(0, 400));
    // Some of them have no end, which is looked for in all that follows.
    record(&audit, &asked[..30]);
    audit.close().unwrap();
    let audit = start(dir, &[]).unwrap();
    record(&audit, &filler(400, 50));

    let text = |field, text: &str| Query { texts: vec![(field, text.into())], ..Query::default() };
    let patient = PseudonymKey::from_bytes(&KEY).unwrap().pseudonym(b"1").to_string();
    let queries = [
        Query { params: vec![("id".into(), patient)], ..Query::default() },
        Query { identity: Some(IdPattern::parse(WEB).unwrap()), ..Query::default() },
        Query { status: Some((404, 404)), ..text(Field::Outcome, "allow") },
        Query { from: Some("2026-11-20T14:20:00.000000000Z".into()), ..text(Field::Reason, "no_allow_rule") },
        text(Field::RequestId, "r29"),
        text(Field::Type, "audit.close"),
        text(Field::Type, "access.complete"),
        text(Field::Id, "01a20149-c75f-78f4-a7a5-66c4206c49b1:3"),
        Query::default(),
    ];
    let answers = || queries.iter().map(|asked_for| query(dir, asked_for).unwrap()).collect::<Vec<_>>();
    let before = answers();
    assert!(before.iter().all(|answer| answer.segments > 5 && answer.segments_read == answer.segments));

    let first = indexed(dir);
    assert!(first.added > 4 && first.removed == 0, "{first:?}");
    assert_eq!(indexed(dir), Indexed { added: 0, ..first }, "nothing new is nothing to do");
    let after = answers();
    for ((before, after), asked_for) in before.iter().zip(&after).zip(&queries) {
        assert_eq!(before.rows, after.rows, "{asked_for:?}");
        assert_eq!(after.index_problem, None);
    }
    for (at, answer) in after[..2].iter().enumerate() {
        assert!(
            answer.segments_read <= answer.segments / 2,
            "{at}: {} of {}",
            answer.segments_read,
            answer.segments
        );
    }

    record(&audit, &asked[30..]);
    audit.close().unwrap();
    let found = query(dir, &text(Field::RequestId, "r31")).unwrap();
    assert_eq!(found.rows.len(), 1, "what came since is found");
}

/// If this fails, an index that is stale or broken hides events, or stands in the way of a search.
#[test]
fn a_broken_index_is_told_and_passed_over_and_one_command_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    trail(dir.path());
    let at = dir.path().display().to_string();
    let run = |args: &[&str]| {
        let output = phiward(&[args, &[at.as_str()]].concat());
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(run(&["index"]).0, Some(0));
    let whole = run(&["query", "--outcome", "deny"]);
    assert_eq!((whole.0, whole.2.as_str()), (Some(0), ""));
    std::fs::write(path("index.sqlite"), "no index").unwrap();
    let (code, stdout, stderr) = run(&["query", "--outcome", "deny"]);
    assert_eq!((code, &stdout), (Some(0), &whole.1));
    assert!(
        stderr.starts_with("warning: the index was not used") && stderr.contains("--rebuild"),
        "{stderr}"
    );
    let (code, _, stderr) = run(&["index"]);
    assert!(code == Some(2) && stderr.contains("--rebuild"), "{stderr}");
    assert_eq!(run(&["index", "--rebuild"]).0, Some(0));
    assert_eq!(run(&["query", "--outcome", "deny"]), whole);
    assert_eq!(run(&["verify"]).0, Some(0), "an index is no part of the trail");
    // Words that no event has would find nothing, which looks like an answer.
    assert!(run(&["query", "--type", "conn.reject"]).2.contains("did you mean conn.rejected?"));
    assert!(run(&["query", "--outcome", "denied"]).2.contains("deny"));
}
