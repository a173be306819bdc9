//! Events in the forms of other tools: a table of text, and OCSF.
//!
//! Owns which member goes into which column or attribute. Both forms leave out what an event does not have, and neither can
//! hold more than the event does: what is a pseudonym there is one here. They are copies for reading; only the lines
//! themselves can be verified.

use serde_json::{Map, Value, json};

/// The version of the Open Cybersecurity Schema Framework whose classes and attributes are used (schema.ocsf.io).
pub const OCSF_VERSION: &str = "1.5.0";

/// The columns of a table, in order: name, and where the event has it.
const COLUMNS: [(&str, &str); 34] = [
    ("time", "/time"),
    ("type", "/type"),
    ("outcome", "/decision/outcome"),
    ("reason", "/decision/reason"),
    ("rule", "/decision/rule"),
    ("role", "/decision/role"),
    ("identity", "/subject/spiffe_id"),
    ("method", "/http/method"),
    ("host", "/http/host"),
    ("template", "/http/template"),
    ("params", "/http/params"),
    ("target_h", "/http/target_h"),
    ("query_names", "/http/query_names"),
    ("service_called", "/http/service"),
    ("status", "/response/status"),
    ("request_bytes", "/response/request_bytes"),
    ("response_bytes", "/response/response_bytes"),
    ("duration_us", "/response/duration_us"),
    ("aborted", "/response/aborted"),
    ("response_reason", "/response/reason"),
    ("request_id", "/request/id"),
    ("trace_id", "/request/trace_id"),
    ("direction", "/conn/direction"),
    ("peer_addr", "/conn/peer_addr"),
    ("service", "/instance/service"),
    ("namespace", "/instance/namespace"),
    ("pod", "/instance/pod"),
    ("node", "/instance/node"),
    ("policy_revision", "/decision/policy_revision"),
    ("policy_sha256", "/decision/policy_sha256"),
    ("cert_sha256", "/subject/cert_sha256"),
    ("count", "/summary/count"),
    ("id", "/id"),
    ("hash", "/chain/hash"),
];

/// What OCSF has no attribute for, or only a coarser one. It stands in `unmapped` under its last name.
const UNMAPPED: [&str; 21] = [
    "/http/template",
    "/http/params",
    "/http/target_h",
    "/http/host_h",
    "/http/query_names",
    "/decision/shadow",
    "/subject/cert_sha256",
    "/response/request_bytes",
    "/response/duration_us",
    "/response/aborted",
    "/chain",
    "/conn",
    "/instance",
    "/policy",
    "/svid",
    "/open",
    "/checkpoint",
    "/close",
    "/gap",
    "/summary",
    "/quarantine",
];

/// The names of the columns.
pub fn table_head() -> Vec<String> {
    COLUMNS.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// An event as a row of the table; what it does not have is empty.
pub fn table_row(event: &Value) -> Vec<String> {
    COLUMNS.iter().map(|(_, pointer)| cell(event.pointer(pointer))).collect()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(values)) => {
            values.iter().map(|value| cell(Some(value))).collect::<Vec<_>>().join(" ")
        }
        Some(Value::Object(members)) => {
            let members = members.iter().map(|(name, value)| format!("{name}={}", cell(Some(value))));
            members.collect::<Vec<_>>().join(" ")
        }
        Some(other) => other.to_string(),
    }
}

/// An event as an OCSF event. Requests are API Activity (6003), refused connections Network Activity (4001), everything that
/// the sidecar says of itself Application Lifecycle (6002). What has no attribute there is in `unmapped`.
pub fn ocsf(event: &Value) -> Value {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let kind = text("/type").unwrap_or_default();
    let mut out = match kind {
        "access.decision" | "access.complete" => api_activity(event),
        "conn.rejected" => network_activity(event),
        "audit.summary" => summary(event),
        _ => lifecycle(event, kind),
    };
    let product = json!({"name": "phiward", "vendor_name": "phiward", "version": text("/instance/version")});
    out.insert(
        "metadata".into(),
        json!({
            "version": OCSF_VERSION,
            "product": product,
            "uid": text("/id"),
            "correlation_uid": text("/request/trace_id"),
            "event_code": kind,
            "log_version": text("/schema"),
            "original_time": text("/time"),
            "sequence": event.pointer("/chain/seq"),
            "log_name": text("/chain/epoch"),
        }),
    );
    out.insert("time".into(), json!(text("/time").and_then(unix_ms)));
    let unmapped = UNMAPPED
        .iter()
        .filter_map(|at| Some((at.rsplit('/').next()?.to_owned(), event.pointer(at)?.clone())));
    let unmapped: Map<_, _> = unmapped.collect();
    out.insert("unmapped".into(), Value::Object(unmapped));
    without_nulls(Value::Object(out))
}

fn api_activity(event: &Value) -> Map<String, Value> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let method = text("/http/method");
    let activity = match method {
        Some("POST") => 1,
        Some("GET" | "HEAD") => 2,
        Some("PUT" | "PATCH") => 3,
        Some("DELETE") => 4,
        Some(_) => 99,
        None => 0, // a completion does not repeat the method
    };
    let status = event.pointer("/response/status").and_then(Value::as_u64);
    let outcome = text("/decision/outcome");
    let failed =
        outcome.is_some_and(|outcome| outcome != "allow") || status.is_some_and(|status| status >= 400);
    let operation = [method, text("/http/template")].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let operation = if operation.is_empty() { "request".to_owned() } else { operation };
    let mut out = head(6, 3, activity, if outcome.is_some_and(|outcome| outcome != "allow") { 3 } else { 1 });
    out.extend(object(json!({
        "status_id": if failed { 2 } else { 1 },
        "status_code": status.map(|status| status.to_string()),
        "status_detail": text("/decision/reason").or(text("/response/reason")),
        "action_id": outcome.map(|outcome| if outcome == "allow" { 1 } else { 2 }),
        "policy": {
            "uid": text("/decision/policy_sha256"),
            "version": text("/decision/policy_revision"),
            "name": text("/decision/rule"),
            "group": {"name": text("/decision/role")},
        },
        "actor": {"user": {"uid": text("/subject/spiffe_id"), "type_id": 3, "type": "System"}},
        "api": {
            "operation": operation,
            "request": {"uid": text("/request/id")},
            "response": status.map(|code| json!({"code": code})),
            "service": {"name": text("/http/service").or(text("/instance/service"))},
        },
        "src_endpoint": {"ip": text("/conn/peer_addr"), "name": text("/subject/spiffe_id")},
        "http_request": method.map(|method| json!({
            "http_method": method, "version": text("/http/version"), "url": {"hostname": text("/http/host"), "path": text("/http/template")},
        })),
        "http_response": status.map(|code| json!({"code": code, "body_length": event.pointer("/response/response_bytes")})),
        "duration": event.pointer("/response/duration_us").and_then(Value::as_u64).map(|us| us / 1000),
    })));
    out
}

fn network_activity(event: &Value) -> Map<String, Value> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let mut out = head(4, 1, 5, 3);
    out.extend(object(json!({
        "status_id": 2,
        "status_detail": text("/decision/reason"),
        "action_id": 2,
        "src_endpoint": {"ip": text("/conn/peer_addr"), "name": text("/subject/spiffe_id")},
        "dst_endpoint": {"svc_name": text("/instance/service"), "interface_name": text("/conn/listener")},
    })));
    out
}

/// What the counted denials are one by one, with how many there were and when (the base event's `count`, `start_time`, `end_time`).
fn summary(event: &Value) -> Map<String, Value> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    let of_requests = text("/summary/of") == Some("access.decision");
    let mut out = if of_requests { api_activity(event) } else { network_activity(event) };
    out.extend(object(json!({
        "count": event.pointer("/summary/count"),
        "start_time": text("/summary/first").and_then(unix_ms),
        "end_time": text("/summary/last").and_then(unix_ms),
    })));
    out
}

fn lifecycle(event: &Value, kind: &str) -> Map<String, Value> {
    let activity = match kind {
        "audit.open" => 3,
        "audit.close" => 4,
        _ => 99,
    };
    let severity = match kind {
        "audit.gap" | "audit.quarantine" | "identity.lost" | "policy.refused" => 4,
        _ => 1,
    };
    let mut out = head(6, 2, activity, severity);
    out.insert("activity_name".into(), json!(kind));
    out.insert("app".into(), json!({
        "name": "phiward", "vendor_name": "phiward", "version": event.pointer("/instance/version"), "uid": event.pointer("/instance/spiffe_id"),
    }));
    out
}

/// The attributes that say what kind of event it is.
fn head(category: u32, class: u32, activity: u32, severity: u32) -> Map<String, Value> {
    let class_uid = category * 1000 + class;
    object(json!({
        "category_uid": category,
        "class_uid": class_uid,
        "activity_id": activity,
        "type_uid": class_uid * 100 + activity,
        "severity_id": severity,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

fn unix_ms(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(|at| at.as_millisecond())
}

/// OCSF has no nulls, and an object without members says nothing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (name, without_nulls(value)));
            let says_something = |value: &Value| {
                !value.is_null() && value.as_object().is_none_or(|members| !members.is_empty())
            };
            Value::Object(members.filter(|(_, value)| says_something(value)).collect())
        }
        other => other,
    }
}
