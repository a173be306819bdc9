//! Ways that differ in one thing each, and what is spelled out of them.

use super::*;
use crate::audit::brief;
use crate::audit::encode::{Event, Speller};
use crate::audit::event::{
    ConnFacts, ConnFragment, Decision, Direction, HttpFacts, PolicyFragment, ShadowFacts,
};
use crate::audit::frame::Batch;
use crate::audit::pseudonym::PseudonymKey;

fn conn() -> ConnFragment {
    let peer = [10, 0, 0, 1].into();
    let (direction, listener) = (Direction::Inbound, "api");
    ConnFragment::new(&ConnFacts {
        direction,
        listener,
        peer,
        destination: None,
        service: None,
        tls: None,
        subject: None,
    })
}

fn pseudonym(of: &str) -> Pseudonym {
    PseudonymKey::from_bytes(&[7; 32]).unwrap().pseudonym(of.as_bytes())
}

fn said(ev: &AccessDecision<'_>, route: &Route) -> Event {
    let (mut batch, mut speller) = (Batch::default(), Speller::default());
    let own = |out: &mut Vec<u8>| brief::decision(out, ev, route.pseudonyms(ev));
    batch.add(Some(&ev.conn.common), Some(&route.common), own);
    let told = batch.told().next().flatten().unwrap();
    speller.told(&told).unwrap().to_event()
}

fn by<'a>(conn: &'a ConnFragment, http: HttpFacts<'a>, decision: Decision<'a>) -> AccessDecision<'a> {
    AccessDecision { time_unix_ns: 5, request_id: "r", trace_id: None, conn, http, decision, policy: None }
}

const READ: Decision<'_> =
    Decision { outcome: "allow", reason: "rule", rule: Some("read"), role: Some("chart"), shadow: None };

/// Events of which each differs from the first in one thing.
fn of_each_kind(judge: &mut impl FnMut(&AccessDecision<'_>)) {
    let (conn, policies) = (conn(), ["1", "2"].map(|revision| PolicyFragment::new(Some(revision), "ab")));
    let params = [("id", pseudonym("3"))];
    let http = HttpFacts {
        method: Some("GET"),
        host: Some("records"),
        template: Some("/fhir/Patient/{id}"),
        params: &params,
        version: "2",
        ..HttpFacts::default()
    };
    let two_params = [("version", pseudonym("4")), ("id", pseudonym("5"))];
    let two_turned = [("id", pseudonym("5")), ("version", pseudonym("4"))];
    let hidden = Some(pseudonym("6"));
    let https = [
        http,
        HttpFacts { method: Some("PUT"), ..http },
        HttpFacts { method: None, ..http },
        HttpFacts { host: None, ..http },
        HttpFacts { host: None, host_h: hidden, ..http },
        HttpFacts { template: Some("/\"{id}\"\0"), ..http },
        HttpFacts { template: None, target_h: hidden, ..http },
        HttpFacts { template: None, target_h: hidden, host_h: hidden, ..http },
        HttpFacts { params: &[], ..http },
        HttpFacts { params: &[("other", params[0].1)], ..http },
        HttpFacts { params: &two_params, ..http },
        HttpFacts { params: &two_turned, ..http },
        HttpFacts { query_names: &["_count", "\u{e9}"], ..http },
        HttpFacts { query_names: &["_count"], ..http },
        HttpFacts { service: Some("records"), ..http },
        HttpFacts { version: "1.1", ..http },
        HttpFacts { version: "", ..http },
        HttpFacts { version: "", host_h: hidden, target_h: hidden, ..http },
    ];
    let policy = Some(&policies[0]);
    https.into_iter().for_each(|http| judge(&AccessDecision { policy, ..by(&conn, http, READ) }));
    let shadows =
        [("deny", "deny_rule", None), ("deny", "deny_rule", Some("x")), ("reject", "deny_rule", None)];
    let shadows = shadows.map(|(outcome, reason, rule)| Some(ShadowFacts { outcome, reason, rule }));
    let decisions = [
        Decision { rule: Some("write"), ..READ },
        Decision { rule: None, ..READ },
        Decision { role: Some("other"), ..READ },
        Decision { outcome: "deny", ..READ },
        Decision { reason: "public", ..READ },
    ];
    let decisions = decisions.into_iter().chain(shadows.map(|shadow| Decision { shadow, ..READ }));
    decisions.for_each(|decision| judge(&AccessDecision { policy, ..by(&conn, http, decision) }));
    judge(&AccessDecision { policy: Some(&policies[1]), ..by(&conn, http, READ) });
    judge(&by(&conn, http, READ));
}

/// If this fails, an event says that another rule, policy or path let the request pass, or is of another patient.
#[test]
fn what_is_named_is_what_would_be_spelled_out() {
    let (mut routes, mut all) = (Routes::new(), std::collections::HashSet::new());
    for round in 0..5 {
        of_each_kind(&mut |ev| {
            let named = said(ev, routes.of(ev));
            assert_eq!(named, said(ev, &Route::by(ev)), "round {round}");
            all.insert(named);
        });
    }
    // Where there is no HTTP nothing of it is said, and the two with their parameters turned say the same.
    assert_eq!(all.len(), 28 - 2);
}

/// If this fails, a parameter is told with the pseudonym of another.
#[test]
fn each_pseudonym_is_where_it_belongs() {
    let conn = conn();
    let params = [("b", pseudonym("1")), ("a", pseudonym("2")), ("b", pseudonym("3"))];
    let (host_h, target_h) = (Some(pseudonym("4")), Some(pseudonym("5")));
    let http = HttpFacts { params: &params, host_h, target_h, version: "2", ..HttpFacts::default() };
    let ev = by(&conn, http, READ);
    let (head, tail) = said(&ev, Routes::new().of(&ev));
    let whole: serde_json::Value =
        serde_json::from_slice(&[b"{", head.as_slice(), tail.as_slice()].concat()).unwrap();
    for (path, of) in [("/params/a", "2"), ("/params/b", "1"), ("/host_h", "4"), ("/target_h", "5")] {
        assert_eq!(whole["http"].pointer(path).unwrap(), pseudonym(of).to_string().as_str(), "{path}");
    }
}

/// If this fails, a worker with many ways spells each of them out anew each time, or the one that is busy is forgotten for one that is not.
#[test]
fn a_busy_way_keeps_its_place() {
    let (conn, mut routes) = (conn(), Routes::new());
    let templates: Vec<String> = (0..1000).map(|number| format!("/way/{number}")).collect();
    let mut texts = std::collections::HashSet::new();
    for round in 0..200 {
        for template in [&templates[0], &templates[1 + round % 999]] {
            let http = HttpFacts { template: Some(template), version: "2", ..HttpFacts::default() };
            let text = routes.of(&by(&conn, http, READ)).common.clone();
            if text.first().contains("/way/0\"") {
                texts.insert(text.first().as_ptr());
            } else {
                assert!(text.first().contains(&format!("{template}\"")));
            }
        }
    }
    assert_eq!(texts.len(), 1);
}
