//! The load: clients that send requests with an identifier each, and remember what became of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::common::HOST;
use crate::process::Target;

/// No request takes this long, whatever fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// More requests than this in one run are made slowly, to bound what has to be checked.
const PLENTY: u64 = 1200;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered {
        status: u16,
        /// The code of an answer of phiward's own.
        code: Option<String>,
    },
    /// There was no whole answer.
    Broken,
    /// There was none in time.
    Hung,
}

impl Outcome {
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Answered { status: 200, .. })
    }

    pub fn is_audit_refusal(&self) -> bool {
        matches!(self, Self::Answered { status: 503, code: Some(code) } if code == "audit_unavailable")
    }
}

/// A request that was made.
#[derive(Debug, Clone)]
pub struct Made {
    pub trace_id: String,
    pub outcome: Outcome,
}

/// All clients of a run.
#[derive(Clone)]
pub struct Load {
    sidecar: Target,
    next: Arc<AtomicU64>,
    made: Arc<Mutex<Vec<Made>>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    pub fn on(sidecar: Target) -> Self {
        Self { sidecar, next: Arc::default(), made: Arc::default(), stop: Arc::default() }
    }

    /// Sends requests one after another until told to stop.
    pub async fn client(self) {
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            if let Outcome::Answered { .. } = self.request(&mut connection).await {
                let many = self.next.load(Ordering::Relaxed) > PLENTY;
                tokio::time::sleep(Duration::from_millis(if many { 20 } else { 1 })).await;
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn made(&self) -> Vec<Made> {
        self.made.lock().unwrap().clone()
    }

    /// How many requests of those after the first `from` have this outcome.
    pub fn count_since(&self, from: usize, is: impl Fn(&Outcome) -> bool) -> usize {
        self.made.lock().unwrap()[from..].iter().filter(|made| is(&made.outcome)).count()
    }

    pub fn len(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    /// One request, on `connection` or on a new one.
    pub async fn request(&self, connection: &mut Option<Connection>) -> Outcome {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let trace_id = format!("{:016x}{number:016x}", 0xfa017_u64);
        let exchange = tokio::time::timeout(PATIENCE, exchange(&self.sidecar, connection, number, &trace_id));
        let outcome = match exchange.await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Broken,
            Err(_) => Outcome::Hung,
        };
        if !matches!(outcome, Outcome::Answered { .. }) {
            *connection = None;
        }
        self.made.lock().unwrap().push(Made { trace_id, outcome: outcome.clone() });
        outcome
    }
}

pub type Connection = SendRequest<Full<Bytes>>;

/// `None` when no whole answer comes.
async fn exchange(
    sidecar: &Target,
    connection: &mut Option<Connection>,
    number: u64,
    trace_id: &str,
) -> Option<Outcome> {
    if connection.as_mut().is_none_or(|open| open.is_closed()) {
        let stream = TcpStream::connect(sidecar.now()?).await.ok()?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(driver);
        *connection = Some(sender);
    }
    let sender = connection.as_mut()?;
    sender.ready().await.ok()?;
    let (method, path, body) = match number % 5 {
        0 => ("POST", "/open/".to_owned(), Bytes::from_static(&[b'x'; 3000])),
        _ => ("GET", segments(|n| format!("{number}-{n}")), Bytes::new()),
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("{path}{number}"))
        .header("host", HOST)
        .header("traceparent", format!("00-{trace_id}-00000000000000aa-01"))
        .body(Full::new(body))
        .ok()?;
    let (head, body) = sender.send_request(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let status = head.status.as_u16();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let code = answer["error"].as_str().map(str::to_owned).filter(|_| status != 200);
    Some(Outcome::Answered { status, code })
}

/// The pattern of the path that is asked for most. Each of its many parameters is a pseudonym of its own in the event, which no packing makes
/// shorter: a small spool is full after some hundred requests.
pub fn pattern() -> String {
    segments(|n| format!("{{p{n}}}")) + "{id}"
}

fn segments(segment: impl Fn(usize) -> String) -> String {
    let segments: Vec<_> = (1..=32).map(segment).collect();
    format!("/fhir/Patient/{}/", segments.join("/"))
}
