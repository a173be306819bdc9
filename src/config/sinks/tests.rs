//! What a sink may be configured as, and what not.

use super::super::{SidecarConfig, load_sidecar};
use super::*;

fn load(sink: &str) -> Result<SidecarConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sidecar.yaml");
    let text = format!(
            "version: 1
workload: {{service: records, namespace: clinic}}
identity: {{trust_domain: hospital.local, files: {{certificate: c, private_key: k, bundle: b}}}}
outbound: {{bind: \"127.0.0.1:0\", services: [{{name: a, hosts: [a], endpoints: [\"a:1\"], identities: [\"spiffe://hospital.local/a\"]}}]}}
audit:
  spool: {{dir: audit}}
  key_file: key
  sinks:
    - {sink}
"
        );
    std::fs::write(&path, text).unwrap();
    load_sidecar(&path).map_err(|error| error.to_string())
}

fn sink(text: &str) -> SinkConfig {
    load(text).unwrap_or_else(|problems| panic!("{problems}")).audit.sinks.remove(0)
}

/// If this fails, a sink is something else than the documentation says where a key is left out.
#[test]
fn every_type_has_its_defaults() {
    let otlp = sink("{name: otel, type: otlp, endpoint: \"http://otel:4318\"}");
    assert!(otlp.sink.required && otlp.sink.credentials.is_none() && otlp.sink.prefix.is_empty());
    assert!(matches!((otlp.sink.kind, otlp.trust), (SinkKind::Otlp, SinkTrust::Plain)));
    let es = sink("{name: es, type: elasticsearch, endpoint: \"https://es:9200/prefix/\", api_key_file: k}");
    assert_eq!(es.sink.kind, SinkKind::Elasticsearch { index: "phiward-audit".into() });
    assert_eq!(es.sink.prefix, "/prefix");
    assert!(matches!(es.trust, SinkTrust::Roots(None)));
    let hec =
        sink("{name: s, type: splunk_hec, endpoint: \"https://s:8088\", token_file: t, ca_file: ca.pem}");
    let SinkKind::SplunkHec(options) = hec.sink.kind else { panic!() };
    assert!(options.indexer_ack && options.ack_timeout.as_secs() == 300 && options.index.is_none());
    assert!(matches!(hec.trust, SinkTrust::Roots(Some(path)) if path.is_absolute()));
    let mesh = sink(
        "{name: mesh, type: ndjson, endpoint: \"https://n:1\", identities: [\"spiffe://hospital.local/n\"]}",
    );
    assert!(matches!(mesh.trust, SinkTrust::Identities(ids) if ids.len() == 1));
}

/// If this fails, a secret crosses the network for everybody to read because nobody thought of it.
#[test]
fn secrets_go_over_plain_http_to_this_machine_alone_unless_told() {
    let with = |endpoint: &str, more: &str| {
        load(&format!("{{name: o, type: otlp, endpoint: \"{endpoint}\", bearer_token_file: t{more}}}"))
    };
    for endpoint in
        ["http://127.0.0.1:4318", "http://[::1]:4318", "http://localhost:4318", "https://otel:4318"]
    {
        assert!(with(endpoint, "").is_ok(), "{endpoint}");
    }
    let problems = with("http://otel:4318", "").unwrap_err();
    assert!(problems.contains("9:59: error: this secret would be sent over http://"), "{problems}");
    assert!(with("http://otel:4318", ", allow_plaintext_secrets: true").is_ok());
}

/// If this fails, a key that has no effect is taken without a word, or a mistake is not told at its place.
#[test]
fn mistakes_are_told_at_their_place() {
    for (text, problem) in [
        (
            "{name: a, type: kafka, endpoint: \"http://a:1\"}",
            "9:23: error: type must be one of phiward, ndjson, otlp,",
        ),
        (
            "{name: a, type: otlp, endpoint: \"http://a:1\", index: x}",
            "error: a sink of type `otlp` has no key `index`",
        ),
        ("{name: a, type: phiward, endpoint: \"https://a:1\"}", "a sink over https:// needs `identities`"),
        (
            "{name: a, type: phiward, endpoint: \"http://a:1\", bearer_token_file: t}",
            "a sink of type `phiward` has no key",
        ),
        (
            "{name: a, type: otlp, endpoint: \"http://a:1\", identities: [\"spiffe://d/a\"]}",
            "can only be checked over https://",
        ),
        (
            "{name: a, type: otlp, endpoint: \"http://a:1\", ca_file: c}",
            "`ca_file` can only be used over https://",
        ),
        (
            "{name: a, type: otlp, endpoint: \"https://a:1\", ca_file: c, identities: [\"spiffe://d/a\"]}",
            "`ca_file` has no meaning beside `identities`",
        ),
        (
            "{name: a, type: otlp, endpoint: \"https://a:1\", bearer_token_file: t, basic: {username: u, password_file: p}}",
            "a sink has one kind of credentials",
        ),
        ("{name: a, type: splunk_hec, endpoint: \"https://a:1\"}", "needs the key `token_file`"),
        (
            "{name: a, type: splunk_hec, endpoint: \"https://a:1\", token_file: t, ack_timeout: 0s}",
            "ack_timeout",
        ),
        (
            "{name: a, type: elasticsearch, endpoint: \"https://a:1\", index: \"A/../b\"}",
            "index must be 1 to 200",
        ),
        ("{name: a, type: otlp, endpoint: \"https://u:p@a:1\"}", "endpoint must be http:// or https://"),
        (
            "{name: a, type: otlp, endpoint: \"https://a:1/x?token=1\"}",
            "endpoint must be http:// or https://",
        ),
        (
            "{name: a, type: otlp, endpoint: \"https://a:1\", headers: {Authorization: x}}",
            "phiward sets this header itself",
        ),
        (
            "{name: a, type: otlp, endpoint: \"https://a:1\", basic: {username: \"a:b\", password_file: p}}",
            "without ':'",
        ),
    ] {
        let problems = load(text).unwrap_err();
        assert!(problems.contains(problem), "{problem} in\n{problems}");
    }
}
