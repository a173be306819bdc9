//! The configuration files as JSON Schemas (draft 2020-12), so that editors complete and check them.
//!
//! The readers in `sidecar` and `sinks` are what decides; this says the same as far as a schema can. A test asks the readers
//! which keys they know in each mapping and compares.

use serde_json::{Value, json};

/// The schema of the file of `phiward run`.
pub fn sidecar() -> Value {
    let mut schema = object(
        &["version", "workload", "identity", "audit"],
        json!({
            "version": {"const": 1},
            "workload": {"$ref": "#/$defs/workload"},
            "identity": {"$ref": "#/$defs/identity"},
            "tls": tls(),
            "inbound": {"$ref": "#/$defs/inbound"},
            "outbound": {"$ref": "#/$defs/outbound"},
            "policy": object(&["file"], json!({"file": path("The policy of this service.")})),
            "audit": {"$ref": "#/$defs/audit"},
            "admin": object(&[], json!({
                "bind": address("Loopback unless told: 127.0.0.1:15000."),
                "metrics": bind("Serves /metrics and nothing else, for a Prometheus elsewhere."),
            })),
            "limits": limits(),
            "workers": number("Threads that carry traffic; the CPUs that the process may use.", 1, 256),
        }),
    );
    schema["anyOf"] = json!([{"required": ["inbound", "policy"]}, {"required": ["outbound"], "not": {"required": ["inbound"]}}]);
    head(&mut schema, "sidecar", "phiward sidecar configuration");
    schema["$defs"] = json!({
        "workload": workload(),
        "identity": identity(),
        "inbound": inbound(),
        "outbound": outbound(),
        "audit": audit(),
        "sink": {"oneOf": [sink_phiward(), sink_ndjson(), sink_otlp(), sink_splunk(), sink_elasticsearch()]},
    });
    schema
}

/// The schema of the file of `phiward collect`.
pub fn collector() -> Value {
    let mut retention = object(
        &[],
        json!({
            "max_age": duration("A segment goes when its last record came longer ago than this; at least 1d."),
            "max_bytes": size("The oldest segments go when all together are larger; at least 256MiB."),
        }),
    );
    retention["minProperties"] = json!(1);
    let mut schema = object(
        &["version", "identity", "bind", "store"],
        json!({
            "version": {"const": 1},
            "identity": {"$ref": "#/$defs/identity"},
            "tls": tls(),
            "bind": address("mTLS: whoever has a valid SVID of a known trust domain may send."),
            "store": object(&["dir"], json!({
                "dir": path("What it receives. One process at a time."),
                "encryption_key_file": key_files(),
            })),
            "relays": identities("Who may bring records that others have written."),
            "retention": retention,
            "admin": object(&[], json!({"bind": address("Loopback unless told: 127.0.0.1:15201.")})),
        }),
    );
    head(&mut schema, "collector", "phiward collector configuration");
    schema["$defs"] = json!({"identity": identity()});
    schema
}

fn head(schema: &mut Value, name: &str, title: &str) {
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["$id"] = json!(format!("urn:phiward:schema:{name}:v1"));
    schema["title"] = json!(title);
}

fn workload() -> Value {
    object(
        &["service", "namespace"],
        json!({
            "service": name("Such as `records`."),
            "namespace": name("Such as `clinic`."),
            "pod": name("$PHIWARD_POD where it is left out."),
            "node": name("$PHIWARD_NODE where it is left out."),
        }),
    )
}

fn identity() -> Value {
    let trust_domain = json!({"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"});
    let files = object(
        &["certificate", "private_key", "bundle"],
        json!({
            "certificate": path("The SVID and its intermediates, PEM."),
            "private_key": path("Its key, PEM."),
            "bundle": path("CA certificates of the trust domain, PEM."),
            "crl": path("What these CAs have revoked, PEM."),
        }),
    );
    let endpoint = object(
        &["url", "profile"],
        json!({
            "url": {"type": "string", "pattern": "^https://", "description": "Where the trust domain publishes its bundle."},
            "profile": {"enum": ["https_web", "https_spiffe"], "description": "How the endpoint is known: by its host name, or by its SPIFFE ID."},
            "ca_file": path("CA certificates for https_web, PEM; the system's where it is left out."),
            "spiffe_id": {"type": "string", "pattern": "^spiffe://", "description": "Who answers, for https_spiffe."},
        }),
    );
    let mut federation = object(
        &["trust_domain"],
        json!({
            "trust_domain": trust_domain,
            "bundle": path("Its CA certificates, PEM; with an endpoint, until that has answered."),
            "crl": path("What these CAs have revoked, PEM."),
            "endpoint": endpoint,
        }),
    );
    federation["anyOf"] = json!([{"required": ["bundle"]}, {"required": ["endpoint"]}]);
    let spire = object(
        &["socket"],
        json!({"socket": {"type": "string", "pattern": "^unix:(//)?/", "description": "The agent's Workload API. Where `spire` is left out: $SPIFFE_ENDPOINT_SOCKET."}}),
    );
    let mut identity = object(
        &["trust_domain"],
        json!({
            "trust_domain": trust_domain,
            "source": {"enum": ["files", "spire"], "description": "`files` where it is left out."},
            "files": files,
            "spire": spire,
            "federation": {"description": "Other trust domains, each verified by its own bundle alone.", "type": "array", "items": federation},
        }),
    );
    identity["anyOf"] = json!([
        {"properties": {"source": {"const": "files"}}, "required": ["files"]},
        {"properties": {"source": {"const": "spire"}}, "required": ["source"]},
    ]);
    identity
}

fn tls() -> Value {
    object(
        &[],
        json!({
            "min_version": {"enum": ["1.3", "1.2"], "description": "`1.3` where it is left out. 1.2: with AEAD and ephemeral keys alone."},
            "post_quantum": {"enum": ["off", "prefer"], "description": "`off` where it is left out. prefer: X25519MLKEM768 where the peer has it."},
        }),
    )
}

fn inbound() -> Value {
    let listener = object(
        &["name", "bind", "app"],
        json!({
            "name": name("Stands in events as `conn.listener`."),
            "bind": bind("Where mTLS connections arrive."),
            "app": address("The app, in plain text: keep it on loopback."),
            "protocol": {"enum": ["http", "tcp"], "description": "`http` where it is left out. tcp: the policy decides about whole streams."},
            "app_protocol": {"enum": ["http", "h2c"], "description": "`http`: HTTP/1.1. `h2c`: HTTP/2 without TLS."},
            "mode": {"enum": ["strict", "permissive"], "description": "`strict` where it is left out. permissive: plain text is let in too, as `unauthenticated`."},
        }),
    );
    let probes = object(
        &["bind"],
        json!({
            "bind": bind("Plain HTTP for the kubelet."),
            "app": address("Which app is probed; that of the first HTTP listener where it is left out."),
            "paths": {"type": "array", "items": {"type": "string", "pattern": "^/[^?#% ]*$"}},
        }),
    );
    let mut inbound = object(
        &[],
        json!({"listeners": {"type": "array", "minItems": 1, "items": listener}, "probes": probes}),
    );
    inbound["minProperties"] = json!(1);
    inbound
}

fn outbound() -> Value {
    let mut service = object(
        &["name", "endpoints", "identities"],
        json!({
            "name": name("Stands in events as `http.service`."),
            "hosts": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[a-z0-9._-]+$"}},
            "endpoints": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": ":[0-9]+$"}},
            "identities": identities("Who may answer, literally."),
            "protocol": {"enum": ["http", "tcp"], "description": "`http` where it is left out."},
            "mesh": {"enum": ["h2", "h1"], "description": "Spoken between the sidecars."},
            "bind": bind("tcp: where the app connects to, where its connections are not captured."),
        }),
    );
    service["anyOf"] = json!([
        {"required": ["hosts"], "properties": {"protocol": {"const": "http"}, "bind": false}},
        {"required": ["protocol"], "properties": {"protocol": {"const": "tcp"}, "hosts": false, "mesh": false}},
    ]);
    object(
        &["bind", "services"],
        json!({
            "audit": {"enum": ["refused", "all"], "description": "`all` records every call on this side too."},
            "bind": bind("Where the app connects to: keep it on loopback."),
            "unknown": {"enum": ["deny", "passthrough"], "description": "A captured connection for none of the services: `deny` where it is left out."},
            "services": {"type": "array", "items": service},
        }),
    )
}

fn audit() -> Value {
    let spool = object(
        &["dir"],
        json!({
            "dir": path("The durable local log; one process at a time."),
            "max_bytes": size("The most disk that it takes: 1 MiB or more, 1GiB by default."),
            "durability": {"enum": ["write", "fsync", "fsync_before_forward"], "description": "When an event counts as recorded."},
            "encryption_key_file": key_files(),
        }),
    );
    object(
        &["spool", "key_file"],
        json!({
            "spool": spool,
            "on_failure": {"enum": ["deny", "allow_with_gap"], "description": "What happens to a request that cannot be recorded."},
            "key_file": path("Keys the pseudonyms; `openssl rand -hex 32` makes one."),
            "sinks": {"type": "array", "items": {"$ref": "#/$defs/sink"}, "description": "Who gets the events."},
        }),
    )
}

/// What sinks of each type have in common, and what is special to this one.
fn sink(kind: &str, required: &[&str], special: Value) -> Value {
    let mut keys = json!({
        "name": name("Names the cursor and the metrics' label."),
        "type": {"const": kind},
        "endpoint": {"type": "string", "pattern": "^https?://[^/?#@]+:[0-9]+(/[A-Za-z0-9/._~-]*)?$"},
        "identities": identities("Who may receive: mTLS with our SVID, over https."),
        "headers": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Sent with every request; no place for secrets."},
        "required": {"type": "boolean", "description": "Whether segments wait for it; `true` by default."},
    });
    merge(&mut keys, special);
    object(&[&["name", "type", "endpoint"], required].concat(), keys)
}

fn sink_phiward() -> Value {
    sink("phiward", &[], json!({}))
}

fn sink_ndjson() -> Value {
    sink("ndjson", &[], outside(bearer_or_basic()))
}

fn sink_otlp() -> Value {
    sink("otlp", &[], outside(bearer_or_basic()))
}

fn sink_splunk() -> Value {
    let special = json!({
        "token_file": path("The collector's token."),
        "index": {"type": "string", "description": "The token's own by default."},
        "sourcetype": {"type": "string", "description": "`phiward:audit` by default."},
        "indexer_ack": {"type": "boolean", "description": "Delivered is what an indexer has; `true` by default."},
        "ack_timeout": duration("Then events are sent again; 5m by default."),
    });
    sink("splunk_hec", &["token_file"], outside(special))
}

fn sink_elasticsearch() -> Value {
    let mut special = bearer_or_basic();
    merge(
        &mut special,
        json!({
            "api_key_file": path("An API key in its encoded form."),
            "index": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,199}$", "description": "`phiward-audit` by default."},
        }),
    );
    sink("elasticsearch", &[], outside(special))
}

fn bearer_or_basic() -> Value {
    let basic =
        json!({"username": {"type": "string", "minLength": 1}, "password_file": path("The password.")});
    json!({"bearer_token_file": path("A token."), "basic": object(&["username", "password_file"], basic)})
}

/// With the keys of receivers that are no workloads.
fn outside(mut special: Value) -> Value {
    merge(
        &mut special,
        json!({
            "ca_file": path("CA certificates, PEM, that vouch for the host's name; the system's by default."),
            "allow_plaintext_secrets": {"type": "boolean", "description": "Credentials may go over http to another machine."},
        }),
    );
    special
}

fn limits() -> Value {
    object(
        &[],
        json!({
            "head_bytes": size("Of a head, trailers included; 64KiB by default."),
            "connections": number("Accepted connections; 20000 by default.", 64, 1_000_000),
            "streams": number("Requests at a time on one HTTP/2 connection; 256 by default.", 1, 10_000),
            "handshakes": number("TLS handshakes at a time on one worker; 64 by default.", 1, 10_000),
            "handshake_timeout": duration("5s by default."),
            "head_timeout": duration("For a request's head, and between two requests; 60s by default."),
            "connect_timeout": duration("To an app or a peer, TLS included; 2s by default."),
            "response_timeout": duration("For the head of a response; 60s by default."),
            "upstream_idle": duration("An unused connection is closed after this; 30s by default."),
            "drain_delay": duration("How long connections are still accepted after a drain began; 0s by default."),
            "drain_deadline": duration("When a drain ends, whatever peers do; 30s by default."),
        }),
    )
}

fn object(required: &[&str], properties: Value) -> Value {
    let mut object = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

fn name(description: &str) -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}$", "description": description})
}

fn path(description: &str) -> Value {
    json!({"type": "string", "minLength": 1, "description": description})
}

fn address(description: &str) -> Value {
    json!({"type": "string", "pattern": ":[0-9]+$", "description": description})
}

fn key_files() -> Value {
    let one = path("Encrypts it. `openssl rand -hex 32` makes one.");
    json!({"oneOf": [one, {"type": "array", "minItems": 1, "items": path("The first encrypts, the others open what is older.")}]})
}

fn bind(description: &str) -> Value {
    let one = json!({"type": "string", "pattern": ":[0-9]+$"});
    json!({"description": description, "anyOf": [one, {"type": "array", "minItems": 1, "items": one}]})
}

fn identities(description: &str) -> Value {
    json!({
        "description": description, "type": "array", "minItems": 1,
        "items": {"type": "string", "pattern": "^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$"},
    })
}

fn size(description: &str) -> Value {
    json!({"description": description, "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)?$"}]})
}

fn duration(description: &str) -> Value {
    json!({"description": description, "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"})
}

fn number(description: &str, least: u64, most: u64) -> Value {
    json!({"description": description, "type": "integer", "minimum": least, "maximum": most})
}
