//! Receivers of every form that behave as badly as they are told to: they keep what they stored and all that they were sent.

#![allow(dead_code)] // each test binary uses a part of this
#![allow(unreachable_pub)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as OtelValue;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// What a receiver does with one request. Where the list ends it behaves well.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    Well,
    /// Answers this without storing, and `Retry-After: 0`.
    Status(u16),
    /// Answers this body with this status, without storing.
    Says(u16, String),
    /// Never answers. Only for shippers with a short attempt.
    Hang,
    /// Stores, and the connection is reset in the middle of the answer.
    HalfAnswer,
    /// The connection is closed before an answer.
    Close,
    /// OTLP: stores all but this many, and does not say which.
    Partial(i64),
    /// Elasticsearch: the items with these numbers get this status and are not stored.
    Items(Vec<(usize, u16)>),
    /// Splunk: takes the events into memory, acknowledges never, and forgets.
    Forget,
}

/// Which form it speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Ndjson,
    Otlp,
    Splunk,
    Elasticsearch,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
}

#[derive(Default)]
struct State {
    faults: VecDeque<Fault>,
    /// Bodies above this are answered 413.
    max_bytes: Option<usize>,
    /// Whether it says that it takes bodies coded by zstd.
    announces: bool,
    stored: Vec<String>,
    ids: std::collections::BTreeSet<String>,
    seen: Vec<Seen>,
    /// Splunk: what each ackId stands for, and how often it was asked for.
    acks: Vec<(Vec<String>, bool)>,
    asked: usize,
}

#[derive(Clone)]
pub struct Receiver {
    pub addr: SocketAddr,
    form: Form,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {}", self.form, self.addr)
    }
}

impl Receiver {
    pub async fn start(form: Form, faults: Vec<Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(Mutex::new(State { faults: faults.into(), ..State::default() }));
        let receiver = Self { addr: listener.local_addr().unwrap(), form, state };
        let serving = receiver.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(stream).await });
            }
        });
        receiver
    }

    pub fn limit(self, bytes: usize) -> Self {
        self.state.lock().unwrap().max_bytes = Some(bytes);
        self
    }

    /// What becomes of the next batch.
    pub fn next(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    /// Answers from now on that it takes bodies coded by zstd.
    pub fn announcing(self) -> Self {
        self.state.lock().unwrap().announces = true;
        self
    }

    /// The lines it has stored, in the order in which they came.
    pub fn stored(&self) -> Vec<String> {
        self.state.lock().unwrap().stored.clone()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn questions(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    async fn serve(self, stream: TcpStream) {
        // Kept beside hyper, which has no word for an answer that ends in the middle.
        let raw = Arc::new(stream.into_std().unwrap());
        let io = TcpStream::from_std(raw.try_clone().unwrap()).unwrap();
        let service = service_fn(move |request| {
            let (receiver, raw) = (self.clone(), raw.clone());
            async move {
                let mut answer = receiver.answer(request, raw).await?;
                if receiver.state.lock().unwrap().announces {
                    let codings = http::HeaderValue::from_static("gzip;q=0.5, zstd");
                    answer.headers_mut().insert("accept-encoding", codings);
                }
                io::Result::Ok(answer)
            }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        raw: Arc<std::net::TcpStream>,
    ) -> Result<Response<Full<Bytes>>, io::Error> {
        let path = request.uri().to_string();
        let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers: BTreeMap<_, _> =
            request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let coding = headers.get("content-encoding").cloned();
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        self.state.lock().unwrap().seen.push(Seen { path: path.clone(), headers, body: body.clone() });
        if path.starts_with("/services/collector/ack") {
            return Ok(self.acknowledge(&body));
        }
        let body = match coding.as_deref() {
            None => body,
            Some("zstd") => zstd::stream::decode_all(&*body)?.into(),
            Some(other) => panic!("{other}"),
        };
        let fault = {
            let mut state = self.state.lock().unwrap();
            match state.max_bytes {
                Some(most) if body.len() > most => Fault::Status(413),
                _ => state.faults.pop_front().unwrap_or(Fault::Well),
            }
        };
        match fault {
            Fault::Status(status) => Ok(reply(status, String::new())),
            Fault::Says(status, text) => Ok(reply(status, text)),
            Fault::Hang => std::future::pending().await,
            Fault::Close => Err(io::Error::other("closed")),
            Fault::HalfAnswer => {
                self.store(&body, &Fault::Well);
                let mut raw = TcpStream::from_std(raw.try_clone()?)?;
                raw.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"items\":[").await?;
                raw.set_zero_linger()?;
                Err(io::Error::other("reset"))
            }
            fault => Ok(self.store(&body, &fault)),
        }
    }

    fn store(&self, body: &[u8], fault: &Fault) -> Response<Full<Bytes>> {
        match self.form {
            Form::Ndjson => {
                self.keep(std::str::from_utf8(body).unwrap().lines().map(str::to_owned).collect());
                reply(200, String::new())
            }
            Form::Otlp => {
                let mut lines = otlp_lines(body);
                let mut response = ExportLogsServiceResponse::default();
                if let Fault::Partial(rejected) = fault {
                    lines.truncate(lines.len() - *rejected as usize);
                    response.partial_success = Some(ExportLogsPartialSuccess {
                        rejected_log_records: *rejected,
                        error_message: "some".into(),
                    });
                }
                self.keep(lines);
                Response::new(Full::new(response.encode_to_vec().into()))
            }
            Form::Splunk => {
                let events = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
                let lines = events.map(|event| event.unwrap()["event"].to_string()).collect();
                let mut state = self.state.lock().unwrap();
                state.acks.push((lines, *fault != Fault::Forget));
                reply(200, json!({"text": "Success", "code": 0, "ackId": state.acks.len() - 1}).to_string())
            }
            Form::Elasticsearch => reply(200, self.bulk(body, fault)),
        }
    }

    fn bulk(&self, body: &[u8], fault: &Fault) -> String {
        let text = std::str::from_utf8(body).unwrap();
        assert!(text.ends_with('\n'), "a bulk request ends with a line end");
        let lines: Vec<_> = text.lines().collect();
        let mut items = Vec::new();
        for (number, pair) in lines.chunks_exact(2).enumerate() {
            let action: Value = serde_json::from_str(pair[0]).unwrap();
            let id = action["create"]["_id"].as_str().unwrap().to_owned();
            let told = match fault {
                Fault::Items(items) => items.iter().find(|item| item.0 == number).map(|item| item.1),
                _ => None,
            };
            let status = told.unwrap_or_else(|| {
                let mut state = self.state.lock().unwrap();
                if !state.ids.insert(id) {
                    return 409;
                }
                state.stored.push(pair[1].to_owned());
                201
            });
            items.push(json!({"create": {"status": status}}));
        }
        json!({"errors": items.iter().any(|item| item["create"]["status"] != 201), "items": items})
            .to_string()
    }

    /// An indexer says once that it has the events.
    fn acknowledge(&self, body: &[u8]) -> Response<Full<Bytes>> {
        let asked: Value = serde_json::from_slice(body).unwrap();
        let ack = asked["acks"][0].as_u64().unwrap() as usize;
        let lines = {
            let mut state = self.state.lock().unwrap();
            state.asked += 1;
            match &mut state.acks[ack] {
                (lines, told @ true) => {
                    *told = false;
                    Some(std::mem::take(lines))
                }
                _ => None,
            }
        };
        let done = lines.is_some();
        self.keep(lines.unwrap_or_default());
        reply(200, json!({"acks": {ack.to_string(): done}}).to_string())
    }

    fn keep(&self, lines: Vec<String>) {
        self.state.lock().unwrap().stored.extend(lines);
    }
}

fn reply(status: u16, body: String) -> Response<Full<Bytes>> {
    Response::builder().status(status).header("retry-after", "0").body(Full::new(body.into())).unwrap()
}

/// The bodies of the log records of a request.
pub fn otlp_lines(body: &[u8]) -> Vec<String> {
    let request = ExportLogsServiceRequest::decode(body).unwrap();
    let records = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
    let bodies = records.flat_map(|logs| logs.log_records).map(|record| record.body.unwrap().value.unwrap());
    bodies
        .map(|body| match body {
            OtelValue::StringValue(line) => line,
            other => panic!("{other:?}"),
        })
        .collect()
}
