//! What is measured: the functions that each request passes through, each as a closure that is ready to run.
//!
//! Owns the inputs, so that `micro` (time) and `instructions` (counts) speak of the same work under the same names. Knows
//! nothing of how a measure is taken. Whoever renames a subject or changes its input records a new baseline.

use std::hint::black_box;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use phiward::identity::SpiffeId;
use phiward::policy::{NoHeaders, PathRules, Policy, RawRequest, UnixSeconds, admit};

use crate::headers;
use crate::ids::IdSource;
use crate::trail;

/// A named piece of work; `make` prepares it outside of what is measured.
pub(crate) struct Subject {
    /// As in `benches/instructions.baseline`.
    pub(crate) name: &'static str,
    /// Builds the work. Each call of what it returns is one unit.
    pub(crate) make: fn() -> Box<dyn FnMut()>,
}

const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";
const NOW: UnixSeconds = UnixSeconds(1_795_183_402);
/// 16 segments, and about as long as identifiers in paths become.
const DEEP: &str = "/fhir/deep/0192f3c1-7a2e/0192f3c1-7a2f/0192f3c1-7a30/0192f3c1-7a31/0192f3c1-7a32/0192f3c1-7a33/\
                    0192f3c1-7a34/0192f3c1-7a35/0192f3c1-7a36/0192f3c1-7a37/0192f3c1-7a38/0192f3c1-7a39/\
                    0192f3c1-7a3a/0192f3c1-7a3b";

/// All subjects, in the order in which a request meets them.
pub(crate) const SUBJECTS: &[Subject] = &[
    Subject { name: "spiffe_id_parse", make: spiffe_id },
    Subject { name: "grants_1_identity", make: || grants(1) },
    Subject { name: "grants_1000_identities", make: || grants(1000) },
    Subject { name: "request_ids", make: request_ids },
    Subject {
        name: "admit_usual",
        make: || admission("/fhir/Observation/8412?_count=100&code=718-7".into()),
    },
    Subject { name: "admit_escaped", make: || admission("/fhir/Patient/M%c3%bcller%2c%20Ada%7e1".into()) },
    Subject { name: "admit_2048_bytes", make: || admission(format!("/{}", "a1b2c3d/".repeat(255))) },
    Subject { name: "decide_10_rules", make: || decision(10, |n| format!("/fhir/Type{}/8412", 2 + n % 8)) },
    Subject {
        name: "decide_1000_rules",
        make: || decision(1000, |n| format!("/fhir/Type{}/8412", 2 + 15 * n)),
    },
    Subject {
        name: "decide_10000_rules",
        make: || decision(10_000, |n| format!("/fhir/Type{}/8412", 2 + 150 * n)),
    },
    Subject {
        name: "decide_10000_rules_deep_path",
        make: || decision(10_000, |n| DEEP.replace("7a3b", &n.to_string())),
    },
    Subject {
        name: "decide_10000_rules_denied",
        make: || decision(10_000, |n| format!("/fhir/Nothing{n}/8412")),
    },
    Subject { name: "pseudonym", make: trail::pseudonym },
    Subject { name: "headers_usual", make: headers_usual },
    Subject { name: "headers_hop_by_hop", make: headers_hop_by_hop },
    Subject { name: "audit_64_requests", make: trail::requests },
    Subject { name: "policy_load_10000_rules", make: policy_load },
];

fn spiffe_id() -> Box<dyn FnMut()> {
    Box::new(|| drop(black_box(SpiffeId::parse(black_box(WEB)))))
}

fn grants(identities: usize) -> Box<dyn FnMut()> {
    let policy = policy(10, identities);
    let id = SpiffeId::parse(WEB).unwrap();
    Box::new(move || drop(black_box(policy.grants(black_box(&id), NOW))))
}

fn request_ids() -> Box<dyn FnMut()> {
    let source = IdSource::new();
    let traceparent: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    Box::new(move || {
        let ids = source.next(black_box(Some(traceparent)));
        black_box((ids.request_id(), ids.trace_id(), ids.traceparent()));
    })
}

fn admission(target: String) -> Box<dyn FnMut()> {
    let rules = PathRules::default();
    assert!(admit(&raw(&target), &rules).is_ok(), "{target} is refused: it measures nothing");
    Box::new(move || drop(black_box(admit(black_box(&raw(&target)), &rules))))
}

/// The decision alone: grants are bound to the connection and targets were admitted before. 64 targets in turn, because what
/// one of them costs hangs on how it falls into the tree's hash tables, which differ from process to process.
fn decision(rules: usize, target: fn(usize) -> String) -> Box<dyn FnMut()> {
    let policy = policy(rules, 1);
    let grants = policy.grants(&SpiffeId::parse(WEB).unwrap(), NOW);
    let targets: Vec<&'static str> = (0..64).map(|n| &*target(n).leak()).collect();
    let admitted: Vec<_> =
        targets.iter().map(|target| admit(&raw(target), policy.path_rules()).ok().unwrap()).collect();
    for (request, target) in admitted.iter().zip(&targets) {
        let allowed = policy.decide(&grants, request).is_allowed();
        assert_eq!(
            allowed,
            !target.contains("Nothing"),
            "{target} is not decided as the subject's name says"
        );
    }
    let mut turn = 0;
    Box::new(move || {
        turn = (turn + 1) % admitted.len();
        black_box(policy.decide(black_box(&grants), black_box(&admitted[turn])));
    })
}

/// A head as a service mesh sees most of them: nothing is hop-by-hop or reserved.
fn headers_usual() -> Box<dyn FnMut()> {
    let ids = IdSource::new().next(None);
    let told = HeaderValue::from_static("Hash=b1c2d3e4;URI=spiffe://hospital.local/ns/clinic/sa/web");
    let mut map = usual_head();
    Box::new(move || {
        headers::clean_request(black_box(&mut map));
        headers::set_trusted(&mut map, &ids, headers::Told::App { client_cert: Some(&told) });
    })
}

/// A head of HTTP/1.1 with everything that must go: two `Connection` lines, a field they name, a forged identity.
fn headers_hop_by_hop() -> Box<dyn FnMut()> {
    let ids = IdSource::new().next(None);
    let told = HeaderValue::from_static("Hash=b1c2d3e4;URI=spiffe://hospital.local/ns/clinic/sa/web");
    let mut map = usual_head();
    Box::new(move || {
        map.append(header::CONNECTION, HeaderValue::from_static("keep-alive, x-internal"));
        map.append(header::CONNECTION, HeaderValue::from_static("te"));
        map.insert(header::TE, HeaderValue::from_static("trailers"));
        map.insert(HeaderName::from_static("keep-alive"), HeaderValue::from_static("timeout=5"));
        map.insert(HeaderName::from_static("x-internal"), HeaderValue::from_static("1"));
        map.insert(
            HeaderName::from_static("x_forwarded_client_cert"),
            HeaderValue::from_static("URI=forged"),
        );
        headers::clean_request(black_box(&mut map));
        headers::set_trusted(&mut map, &ids, headers::Told::App { client_cert: Some(&told) });
    })
}

fn usual_head() -> HeaderMap {
    let fields = [
        ("host", "records.clinic"),
        ("accept", "application/fhir+json"),
        ("accept-encoding", "gzip, deflate"),
        ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
        ("content-type", "application/fhir+json"),
        ("content-length", "150"),
        ("user-agent", "clinic-web/4.2"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn policy_load() -> Box<dyn FnMut()> {
    let source = policy_text(10_000, 1);
    Box::new(move || drop(black_box(Policy::parse(black_box(source.as_bytes())))))
}

fn raw(target: &str) -> RawRequest<'_> {
    RawRequest {
        method: "GET",
        target,
        authority: Some("records.clinic"),
        host: None,
        more_hosts: false,
        method_override: false,
        http2: true,
        headers: &NoHeaders,
    }
}

fn policy(rules: usize, identities: usize) -> Policy {
    Policy::parse(policy_text(rules, identities).as_bytes()).unwrap()
}

/// A policy of `rules` permissions in roles of ten, all bound to `web` and to `identities - 1` others, with two deny rules.
fn policy_text(rules: usize, identities: usize) -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: records, revision: \"1\"}\n\
         service: {hosts: [records.clinic], health: [/healthz]}\nroles:\n",
    );
    for rule in 0..rules {
        if rule % 10 == 0 {
            writeln!(text, "  role-{}:", rule / 10).unwrap();
        }
        let path = if rule == 1 {
            DEEP.replace("0192f3c1-7a3b", "{id}")
        } else {
            format!("/fhir/Type{rule}/{{id}}")
        };
        writeln!(text, "    - {{name: rule-{rule}, methods: [GET, HEAD], paths: [\"{path}\"]}}").unwrap();
    }
    text.push_str("bindings:\n");
    let others = (1..identities).map(|n| format!(", \"spiffe://hospital.local/ns/clinic/sa/other-{n}\""));
    let others: String = others.collect();
    for role in 0..rules.div_ceil(10) {
        writeln!(text, "  - {{role: role-{role}, identities: [\"{WEB}\"{others}]}}").unwrap();
    }
    text.push_str(
        "deny:\n  - {name: no-admin, paths: [\"/admin/**\"]}\n  - {name: quarantine, identities: \
         [\"spiffe://hospital.local/ns/clinic/sa/legacy\"]}\n",
    );
    text
}
