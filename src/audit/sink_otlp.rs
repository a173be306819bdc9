//! The `otlp` sink: OpenTelemetry logs as protobuf over HTTP (OTLP 1.x), without the SDK, whose queue drops what it cannot send.
//!
//! Owns the mapping of an event to a log record: the body is the event's line byte for byte, so that a trail can be verified
//! from an export of whatever stands behind the receiver; attributes repeat what people search by.

use std::borrow::Cow;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use serde::Deserialize;

use super::batch;
use super::chain::Record;
use super::sink::{Answer, Refusal, judge, later, passes, unanswered, without};
use super::sink_http::{Client, Reply};

const LOGS: &str = "/v1/logs";
const PROTOBUF: &str = "application/x-protobuf";

/// A receiver of OTLP.
pub(crate) struct Otlp {
    pub(super) client: Client,
}

impl Otlp {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) async fn send(&mut self, batch: &Bytes) -> Answer {
        let request = match encode(batch) {
            Ok(request) => request,
            Err(refused) => {
                return without(batch, &refused, Refusal::UNREADABLE);
            }
        };
        let reply = self.client.post(LOGS, PROTOBUF, None, request.encode_to_vec().into()).await;
        reply.map_or_else(unanswered, |reply| verdict(&reply))
    }
}

/// What the specification makes of an answer. It allows a client to send again after 429, 502, 503 and 504 alone; what
/// speaks of the sender or the address is asked again too, because the same events can go through once that is mended.
fn verdict(reply: &Reply) -> Answer {
    match reply.status.as_u16() {
        200..300 => match ExportLogsServiceResponse::decode(reply.body.clone()) {
            Ok(response)
                if response.partial_success.as_ref().is_some_and(|part| part.rejected_log_records > 0) =>
            {
                // It says how many and not which.
                Answer::Refused(Refusal::PARTIAL_SUCCESS)
            }
            Ok(_) => Answer::Acknowledged,
            Err(_) => unanswered("the receiver answered 200 without an OTLP response: is it one?".into()),
        },
        502..=504 => later(reply),
        500..600 if !passes(reply.status) => Answer::Refused(Refusal::refused(reply.status)),
        _ => judge(reply),
    }
}

/// What is taken from an event beside its text.
#[derive(Deserialize)]
struct Event<'e> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'e, str>,
    #[serde(borrow)]
    id: Cow<'e, str>,
    chain: Chain<'e>,
    instance: Instance<'e>,
    request: Option<Request<'e>>,
    conn: Option<Conn<'e>>,
    subject: Option<Subject<'e>>,
    http: Option<Http<'e>>,
    decision: Option<Decision<'e>>,
    response: Option<Response<'e>>,
}

#[derive(Deserialize)]
struct Chain<'e> {
    #[serde(borrow)]
    epoch: Cow<'e, str>,
    #[serde(borrow)]
    hash: Cow<'e, str>,
    #[serde(borrow)]
    prev: Cow<'e, str>,
    seq: i64,
}

#[derive(Deserialize)]
struct Instance<'e> {
    #[serde(borrow)]
    service: Cow<'e, str>,
    #[serde(borrow)]
    namespace: Cow<'e, str>,
    #[serde(borrow)]
    pod: Option<Cow<'e, str>>,
    #[serde(borrow)]
    node: Option<Cow<'e, str>>,
    #[serde(borrow)]
    spiffe_id: Option<Cow<'e, str>>,
    #[serde(borrow)]
    version: Cow<'e, str>,
}

#[derive(Deserialize)]
struct Request<'e> {
    #[serde(borrow)]
    id: Cow<'e, str>,
    #[serde(borrow)]
    trace_id: Option<Cow<'e, str>>,
}

#[derive(Deserialize)]
struct Conn<'e> {
    #[serde(borrow)]
    direction: Cow<'e, str>,
    #[serde(borrow)]
    peer_addr: Cow<'e, str>,
    #[serde(borrow)]
    tls_version: Option<Cow<'e, str>>,
    #[serde(borrow)]
    cipher: Option<Cow<'e, str>>,
    #[serde(borrow)]
    alpn: Option<Cow<'e, str>>,
}

#[derive(Deserialize)]
struct Subject<'e> {
    #[serde(borrow)]
    spiffe_id: Cow<'e, str>,
    #[serde(borrow)]
    cert_sha256: Cow<'e, str>,
}

#[derive(Deserialize)]
struct Http<'e> {
    #[serde(borrow)]
    method: Option<Cow<'e, str>>,
    #[serde(borrow)]
    host: Option<Cow<'e, str>>,
    #[serde(borrow)]
    template: Option<Cow<'e, str>>,
    #[serde(borrow)]
    version: Option<Cow<'e, str>>,
}

#[derive(Deserialize)]
struct Decision<'e> {
    #[serde(borrow)]
    outcome: Cow<'e, str>,
    #[serde(borrow)]
    reason: Cow<'e, str>,
    #[serde(borrow)]
    rule: Option<Cow<'e, str>>,
    #[serde(borrow)]
    role: Option<Cow<'e, str>>,
    #[serde(borrow)]
    policy_revision: Option<Cow<'e, str>>,
    #[serde(borrow)]
    policy_sha256: Option<Cow<'e, str>>,
}

#[derive(Deserialize)]
struct Response<'e> {
    status: Option<i64>,
    request_bytes: Option<i64>,
    response_bytes: Option<i64>,
    duration_us: Option<i64>,
    aborted: Option<bool>,
    #[serde(borrow)]
    reason: Option<Cow<'e, str>>,
}

/// A request with all events of a batch, in order; or the numbers of the lines that are no events.
fn encode(batch: &[u8]) -> Result<ExportLogsServiceRequest, Vec<usize>> {
    let mut damaged = Vec::new();
    let mut records = Vec::with_capacity(batch::lines(batch).count());
    let mut writer = None;
    for (number, line) in batch::lines(batch).enumerate() {
        let line = &batch[line.start..line.end - 1];
        let event = Record::parse(line).ok().and_then(|_| serde_json::from_slice::<Event<'_>>(line).ok());
        match (event, std::str::from_utf8(line)) {
            (Some(event), Ok(text)) => {
                records.push(log_record(&event, text));
                writer.get_or_insert(event.instance); // a segment has one writer
            }
            _ => damaged.push(number),
        }
    }
    if !damaged.is_empty() {
        return Err(damaged);
    }
    let version = writer.as_ref().map_or("", |writer| &*writer.version);
    let scope = InstrumentationScope {
        name: "phiward.audit".to_owned(),
        version: version.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_logs = ScopeLogs { scope: Some(scope), log_records: records, ..ScopeLogs::default() };
    let resource =
        Resource { attributes: writer.map_or_else(Vec::new, |w| resource(&w)), ..Resource::default() };
    let resource_logs =
        ResourceLogs { resource: Some(resource), scope_logs: vec![scope_logs], ..ResourceLogs::default() };
    Ok(ExportLogsServiceRequest { resource_logs: vec![resource_logs] })
}

fn log_record(event: &Event<'_>, line: &str) -> LogRecord {
    let time = batch::time_ns(line.as_bytes()).unwrap_or(0); // 0 is the format's word for unknown
    let (severity, name) = severity(event);
    let trace_id = event.request.as_ref().and_then(|request| request.trace_id.as_deref());
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time, // the same process saw it happen
        severity_number: severity.into(),
        severity_text: name.to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(line.to_owned())) }),
        attributes: attributes(event),
        trace_id: trace_id.and_then(unhex).unwrap_or_default(),
        event_name: event.kind.clone().into_owned(),
        ..LogRecord::default()
    }
}

fn severity(event: &Event<'_>) -> (SeverityNumber, &'static str) {
    let outcome = event.decision.as_ref().map(|decision| &*decision.outcome);
    match (&*event.kind, outcome) {
        (_, Some("error")) | ("audit.gap" | "identity.lost", _) => (SeverityNumber::Error, "ERROR"),
        (_, Some("deny" | "reject" | "limit")) | ("audit.quarantine" | "policy.refused", _) => {
            (SeverityNumber::Warn, "WARN")
        }
        _ => (SeverityNumber::Info, "INFO"),
    }
}

fn resource(writer: &Instance<'_>) -> Vec<KeyValue> {
    let mut out = Attributes(Vec::new());
    out.text("service.name", Some(&writer.service));
    out.text("service.namespace", Some(&writer.namespace));
    out.text("k8s.pod.name", writer.pod.as_deref());
    out.text("k8s.node.name", writer.node.as_deref());
    out.text("phiward.instance.spiffe_id", writer.spiffe_id.as_deref());
    out.0
}

/// By OpenTelemetry's semantic conventions where they have a name, else below `phiward.`; docs/audit-events.md has the table.
fn attributes(event: &Event<'_>) -> Vec<KeyValue> {
    let mut out = Attributes(Vec::with_capacity(28));
    out.text("phiward.event.id", Some(&event.id));
    out.text("phiward.chain.epoch", Some(&event.chain.epoch));
    out.number("phiward.chain.seq", Some(event.chain.seq));
    out.text("phiward.chain.prev", Some(&event.chain.prev));
    out.text("phiward.chain.hash", Some(&event.chain.hash));
    out.text("phiward.request.id", event.request.as_ref().map(|request| &*request.id));
    if let Some(conn) = &event.conn {
        out.text("phiward.conn.direction", Some(&conn.direction));
        out.text("network.peer.address", Some(&conn.peer_addr));
        out.text("tls.protocol.version", conn.tls_version.as_deref());
        out.text("tls.cipher", conn.cipher.as_deref());
        out.text("tls.next_protocol", conn.alpn.as_deref());
    }
    if let Some(subject) = &event.subject {
        out.text("tls.client.subject", Some(&subject.spiffe_id));
        out.text("tls.client.hash.sha256", Some(&subject.cert_sha256));
    }
    if let Some(http) = &event.http {
        out.text("http.request.method", http.method.as_deref());
        out.text("url.domain", http.host.as_deref());
        out.text("url.template", http.template.as_deref());
        out.text("network.protocol.version", http.version.as_deref());
    }
    if let Some(decision) = &event.decision {
        out.text("phiward.decision.outcome", Some(&decision.outcome));
        out.text("phiward.decision.reason", Some(&decision.reason));
        out.text("security_rule.name", decision.rule.as_deref());
        out.text("phiward.decision.role", decision.role.as_deref());
        out.text("security_rule.version", decision.policy_revision.as_deref());
        out.text("security_rule.uuid", decision.policy_sha256.as_deref());
    }
    if let Some(response) = &event.response {
        out.number("http.response.status_code", response.status);
        out.number("http.request.body.size", response.request_bytes);
        out.number("http.response.body.size", response.response_bytes);
        out.number("phiward.response.duration_us", response.duration_us);
        out.flag("phiward.response.aborted", response.aborted);
        out.text("phiward.response.reason", response.reason.as_deref());
    }
    out.0
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn text(&mut self, key: &str, value: Option<&str>) {
        self.push(key, value.map(|text| Value::StringValue(text.to_owned())));
    }

    fn number(&mut self, key: &str, value: Option<i64>) {
        self.push(key, value.map(Value::IntValue));
    }

    fn flag(&mut self, key: &str, value: Option<bool>) {
        self.push(key, value.map(Value::BoolValue));
    }

    fn push(&mut self, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            let value = Some(AnyValue { value: Some(value) });
            self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
        }
    }
}

/// A trace id: 16 bytes in hexadecimal.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
