//! Every kind of event, with hostile text, against an independent reading of RFC 8785.

use super::*;
use crate::audit::binding::Binding;
use crate::audit::brief;
use crate::audit::chain::{Chain, Epoch, MAX_LINE, Record};
use crate::audit::event::{
    AccessComplete, AccessDecision, ConnFacts, Decision, Direction, PolicyFragment, PostureFacts,
    ResponseFacts, ShadowFacts, SubjectFacts, TlsFacts,
};
use crate::audit::frame::Batch;
use crate::audit::json;
use crate::audit::pseudonym::PseudonymKey;
use crate::audit::route::Routes;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;

const NOW: u64 = 1_795_183_402_118_204_771;

/// A batch with one event of every kind, all of whose text is `text`, as workers and the writer add them.
fn every_kind(text: &str) -> Batch {
    let (mut batch, mut routes, mut speller) = (Batch::default(), Routes::new(), Speller::default());
    let mut decide = |batch: &mut Batch, ev: &AccessDecision<'_>| {
        let route = routes.of(ev);
        let own = |out: &mut Vec<u8>| brief::decision(out, ev, route.pseudonyms(ev));
        batch.add(Some(&ev.conn.common), Some(&route.common), own);
    };
    let complete = |batch: &mut Batch, ev: &AccessComplete<'_>| {
        batch.add(Some(&ev.conn.common), None, |out| brief::complete(out, ev));
    };
    let whole = |batch: &mut Batch, Pieces { head, tail }: Pieces<'_>| {
        batch.add(None, None, |out| brief::whole(out, &head, &tail));
    };
    let some = || Some(text.to_owned());
    let tls = Some(TlsFacts { version: text, cipher: text, alpn: Some(text) });
    let subject = Some(SubjectFacts { spiffe_id: text, cert_sha256: text });
    let peer = "2001:db8::1".parse().unwrap();
    let facts = ConnFacts {
        direction: Direction::Inbound,
        listener: text,
        peer,
        destination: Some("[2001:db8::2]:80".parse().unwrap()),
        service: Some(text),
        tls,
        subject,
    };
    let conn = ConnFragment::new(&facts);
    let policy = PolicyFragment::new(Some(text), text);
    let key = PseudonymKey::from_bytes(&[7; 32]).unwrap().pseudonym(b"123");
    let http = HttpFacts {
        method: Some("GET"),
        host: Some(text),
        host_h: Some(key),
        template: Some(text),
        params: &[("\u{ff61}", key), ("b", key), ("\u{10000}", key), ("a", key), ("b", key), ("a\"", key)],
        target_h: Some(key),
        query_names: &["a", text],
        service: Some(text),
        version: "2",
    };
    let shadow = ShadowFacts { outcome: "deny", reason: "deny_rule", rule: Some(text) };
    let decision = Decision {
        outcome: "allow",
        reason: "rule",
        rule: Some(text),
        role: Some(text),
        shadow: Some(shadow),
    };
    let (request_id, trace_id, conn) = (text, Some(text), &conn);
    let allowed = AccessDecision {
        time_unix_ns: NOW,
        request_id,
        trace_id,
        conn,
        http,
        decision,
        policy: Some(&policy),
    };
    decide(&mut batch, &allowed);
    let bare =
        ConnFragment::new(&ConnFacts { tls: None, subject: None, destination: None, service: None, ..facts });
    let http = HttpFacts { version: "1.1", ..HttpFacts::default() };
    let shadow = Some(ShadowFacts { rule: None, ..shadow });
    let decision = Decision { rule: None, role: None, shadow, ..decision };
    let unnamed = AccessDecision { trace_id: None, conn: &bare, http, decision, policy: None, ..allowed };
    decide(&mut batch, &unnamed);
    let response =
        ResponseFacts { status: 200, request_bytes: u64::MAX, aborted: true, ..Default::default() };
    let completed = AccessComplete { time_unix_ns: NOW, request_id, trace_id, conn, response };
    complete(&mut batch, &completed);
    let response = ResponseFacts { reason: Some("upstream_connect"), ..Default::default() };
    complete(&mut batch, &AccessComplete { conn: &bare, response, ..completed });
    let rejected = ConnRejected { time_unix_ns: NOW, conn: facts, reason: "expired" };
    whole(&mut batch, speller.rejected(&rejected, conn));
    let counted = |m: &mut Members<'_>| {
        m.number("count", 7);
        m.texts("templates", &[text, text]);
    };
    let of = (conn.origin.as_bytes(), conn.subject().as_bytes());
    whole(&mut batch, speller.summary(of, NOW, counted));
    for event in [
        ControlEvent::PolicyLoaded { time_unix_ns: NOW, revision: some(), sha256: text.into() },
        ControlEvent::PolicyShadow { time_unix_ns: NOW, revision: text.into(), sha256: text.into() },
        ControlEvent::PolicyRefused { time_unix_ns: NOW, sha256: some(), errors: 3, first_at: Some((7, 9)) },
        ControlEvent::PolicyRefused { time_unix_ns: NOW, sha256: None, errors: 3, first_at: None },
        ControlEvent::IdentityRotated {
            time_unix_ns: NOW,
            spiffe_id: text.into(),
            cert_sha256: text.into(),
            not_after_unix_s: 1_795_183_402,
        },
        ControlEvent::IdentityLost { time_unix_ns: NOW, reason: text.into() },
    ] {
        whole(&mut batch, speller.control(&event));
    }
    let previous = Some(Previous { epoch: text.into(), seq: 4, hash: text.into() });
    for event in [
        TrailEvent::Open {
            recovery: "torn_tail",
            lost_bytes: 7,
            recovered: 3,
            previous,
            key: Some(open_key()),
            tls: Some(PostureFacts { min_version: "1.3", post_quantum: "off", fips: false }),
        },
        TrailEvent::Open {
            recovery: "new",
            lost_bytes: 0,
            recovered: 0,
            previous: None,
            key: None,
            tls: None,
        },
        TrailEvent::Close { reason: "stopped", checkpoint: None },
        TrailEvent::Close { reason: "stopped", checkpoint: Some(sealed()) },
        TrailEvent::Checkpoint(sealed()),
        TrailEvent::Gap { from_unix_ns: 1, to_unix_ns: 2, allowed: 3, denied: 4 },
        TrailEvent::Quarantine {
            sink: text.into(),
            reason: "refused",
            status: Some(403),
            first_id: text.into(),
            last_id: text.into(),
            events: 5,
        },
    ] {
        whole(&mut batch, speller.trail(&event, NOW));
    }
    batch
}

fn open_key() -> OpenKey {
    let chain = vec!["MIIB+/==".repeat(400); 2];
    let binding = Some(Binding { chain, scheme: 0x0403, signature: "MEUC".into() });
    OpenKey { verifier: "hospital.local/phiward/records-0/e+c74f20a3+ARpc".into(), binding }
}

fn sealed() -> Sealed {
    let note = "hospital.local/phiward/records-0/e\n7\nAAAA\n\n\u{2014} n AAAA\n".into();
    Sealed {
        size: 7,
        note,
        subtrees: vec!["ab".repeat(32); 3],
        receipts: vec![("collector".into(), "a\n7\nAAAA\n\n\u{2014} c AAAA\n".into())],
    }
}

fn chained(batch: &Batch, text: &str) -> Vec<Vec<u8>> {
    let some = || Some(text.to_owned());
    let (service, namespace, version) = (text.to_owned(), text.to_owned(), text.to_owned());
    let facts = InstanceFacts {
        service,
        namespace,
        pod: some(),
        node: some(),
        spiffe_id: some(),
        version,
        ..InstanceFacts::default()
    };
    let instance = instance(&facts);
    let mut chain = Chain::new(Epoch::generate(NOW / 1_000_000, None));
    let mut out = Vec::new();
    let mut speller = Speller::default();
    for told in batch.told() {
        chain.append(&mut out, speller.told(&told.unwrap()).unwrap(), &instance);
    }
    assert_eq!(chain.next_seq(), batch.events());
    out.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn sorted(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            let text = |(k, v): &(&String, &Value)| format!("{}:{}", Value::from(k.as_str()), sorted(v));
            format!("{{{}}}", members.iter().map(text).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// If this fails, the tests here pass over a type of event, or the published list of types is not that of the code.
#[test]
fn every_kind_is_every_type_of_the_schema() {
    let lines = chained(&every_kind("x"), "x");
    let mut kinds: Vec<_> = lines.iter().map(|line| Record::parse(line).unwrap().kind.to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    let mut types = EVENT_TYPES.to_vec();
    types.sort_unstable();
    assert_eq!(kinds, types);
}

const HOSTILE: [&str; 6] = [
    "records.clinic",
    "",
    "\"},\"chain\":{\"hash\":\"0\"}\n{",
    "\u{0}\u{1}\u{8}\t\n\u{c}\r\u{1f}\u{7f}\\/",
    "é \u{2028}\u{ff61}\u{10000}\u{10ffff}",
    "\\u0041\\",
];

/// If this fails, an event is not canonical JSON, so another program computes another hash for it.
#[test]
fn every_kind_of_event_is_canonical_json_whatever_its_text() {
    for text in HOSTILE {
        for line in chained(&every_kind(text), text) {
            let value: Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(sorted(&value), String::from_utf8(line.clone()).unwrap());
        }
    }
}

/// If this fails, the chain cannot be verified by what the design promises, or the verifier refuses good records.
#[test]
fn the_hash_is_of_the_canonical_event_without_it() {
    for text in HOSTILE {
        let mut prev = "0".repeat(64);
        for (seq, line) in chained(&every_kind(text), text).into_iter().enumerate() {
            let mut value: Value = serde_json::from_slice(&line).unwrap();
            let hash = value["chain"].as_object_mut().unwrap().remove("hash").unwrap();
            let mut bytes = vec![0];
            bytes.extend_from_slice(sorted(&value).as_bytes());
            let mut want = Vec::new();
            json::hex(&mut want, digest(&SHA256, &bytes).as_ref());
            assert_eq!(hash.as_str().unwrap().as_bytes(), want);
            assert_eq!(value["chain"]["prev"], prev.as_str());
            assert_eq!(value["chain"]["seq"], seq);
            let record = Record::parse(&line).unwrap();
            assert!(record.hash_is_right(&mut Vec::new()) && record.seq == seq as u64);
            assert_eq!(Some(record.kind), value["type"].as_str());
            prev = hash.as_str().unwrap().to_owned();
        }
    }
}

/// If this fails, a consumer of the trail does not find the members that the schema promises.
#[test]
fn a_decision_has_the_members_of_the_schema() {
    let lines = chained(&every_kind("x"), "x");
    let full: Value = serde_json::from_slice(&lines[0]).unwrap();
    let key = PseudonymKey::from_bytes(&[7; 32]).unwrap().pseudonym(b"123").to_string();
    for (path, want) in [
        ("/schema", "phiward.audit/1"),
        ("/type", "access.decision"),
        ("/time", "2026-11-20T14:03:22.118204771Z"),
        ("/instance/service", "x"),
        ("/request/trace_id", "x"),
        ("/conn/direction", "inbound"),
        ("/conn/peer_addr", "2001:db8::1"),
        ("/subject/spiffe_id", "x"),
        ("/http/method", "GET"),
        ("/http/params/a", &key),
        ("/decision/outcome", "allow"),
        ("/decision/policy_sha256", "x"),
    ] {
        assert_eq!(full.pointer(path).and_then(Value::as_str), Some(want), "{path}");
    }
    assert_eq!(full["http"]["params"].as_object().unwrap().len(), 5);
    let bare: Value = serde_json::from_slice(&lines[1]).unwrap();
    for absent in
        ["/subject", "/conn/cipher", "/http/host", "/http/params", "/decision/rule", "/request/trace_id"]
    {
        assert_eq!(bare.pointer(absent), None, "{absent}");
    }
    let complete: Value = serde_json::from_slice(&lines[2]).unwrap();
    assert_eq!(complete["response"]["request_bytes"], json::MAX_INTEGER);
    assert_eq!(complete["response"]["status"], 200);
    let unanswered: Value = serde_json::from_slice(&lines[3]).unwrap();
    assert_eq!(unanswered["response"].get("status"), None);
}

/// If this fails, one request with endless text makes a line that no collector takes.
#[test]
fn no_event_is_longer_than_a_line_may_be() {
    let endless = "\u{1}".repeat(100_000);
    for line in chained(&every_kind(&endless), &endless) {
        assert!(line.len() < MAX_LINE, "{}", line.len());
        assert!(Record::parse(&line).is_ok());
    }
}
