//! What is said to senders: `POST /v1/events` and `GET /healthz`, over HTTP/1.1 and HTTP/2.
//!
//! Owns connections, time-outs and answers: what finds no room is told to come again, because its sender has it on disk.
//! Refuses to know what a record is.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::body::{Coding, Room, Unread};
use super::evidence::Kind;
use super::metrics::{CollectorMetrics, Refusing};
use super::sender::Sender;
use super::store::{Store, StoreError};
use crate::identity::SpiffeId;
use crate::tls::{peer_cert, time_left};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's head, and then its body, may take to arrive; a sender's idle connection ends after this too.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// What one HTTP/2 connection may have on its way to us. The default of 1 MiB is for each of thousands.
const H2_WINDOW: u32 = 256 * 1024;
/// One sender must not take all of the room.
const H2_STREAMS: u32 = 2;
/// hyper's default is 400 KiB a connection.
const H1_BUFFER: usize = 64 * 1024;

/// What connections share.
#[derive(Clone)]
pub(super) struct Door {
    store: Arc<Mutex<Store>>,
    metrics: CollectorMetrics,
    relays: Arc<[SpiffeId]>,
    room: Room,
}

/// Counts a connection for as long as it is held.
struct Connected(CollectorMetrics);

impl Connected {
    fn new(metrics: &CollectorMetrics) -> Self {
        metrics.senders.inc();
        Self(metrics.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.senders.dec();
    }
}

impl Door {
    pub(super) fn new(store: Arc<Mutex<Store>>, metrics: CollectorMetrics, relays: Vec<SpiffeId>) -> Self {
        Self { store, metrics, relays: relays.into(), room: Room::new() }
    }

    pub(super) fn metrics(&self) -> &CollectorMetrics {
        &self.metrics
    }

    pub(super) async fn connection(
        &self,
        stream: TcpStream,
        tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let _ = stream.set_nodelay(true); // only speed is lost
        let Some(mut tls) = tls else {
            let _connected = Connected::new(&self.metrics);
            let asked = async move { drop(stopped.wait_for(|stop| *stop).await) };
            return self.http1(stream, &Sender::unknown(), asked).await;
        };
        let settings = tls.borrow_and_update().clone();
        let stream =
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(settings).accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::warn!(%error, "a sender was refused by the collector"),
                Err(_) => return tracing::warn!("a sender's handshake with the collector took too long"),
            };
        let peer = match peer_cert(stream.get_ref().1) {
            Ok(peer) => peer,
            Err(error) => return tracing::warn!(%error, "a sender was refused by the collector"),
        };
        let _connected = Connected::new(&self.metrics);
        let sender = Sender::verified(peer.id, &self.relays);
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        // A sender proves again who it is when its certificate has run out, or when we have a new one or new bundles: it
        // connects anew, and what was not acknowledged comes again.
        let asked = async move {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => {}
                Ok(()) = tls.changed() => {}
                () = tokio::time::sleep(time_left(peer.not_after)) => {}
            }
        };
        if h2 {
            self.http2(stream, &sender, asked).await;
        } else {
            self.http1(stream, &sender, asked).await;
        }
    }

    /// Serves until the sender is done, or until `asked`: then what is under way ends, and nothing new begins.
    async fn http1<S>(&self, stream: S, sender: &Sender, asked: impl Future<Output = ()>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT).max_buf_size(H1_BUFFER);
        let service = service_fn(|request| self.answer(request, sender));
        let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            outcome = &mut served => return log(outcome),
            () = asked => served.as_mut().graceful_shutdown(),
        }
        log(served.await);
    }

    /// Serves until the sender is done, or until `asked`: then what is under way ends, and nothing new begins.
    async fn http2<S>(&self, stream: S, sender: &Sender, asked: impl Future<Output = ()>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(READ_TIMEOUT).max_concurrent_streams(H2_STREAMS);
        builder.initial_stream_window_size(H2_WINDOW).initial_connection_window_size(H2_WINDOW);
        let service = service_fn(|request| {
            let (door, sender) = (self.clone(), sender.clone());
            async move { door.answer(request, &sender).await }
        });
        let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            outcome = &mut served => return log(outcome),
            () = asked => served.as_mut().graceful_shutdown(),
        }
        log(served.await);
    }

    async fn answer(&self, request: Request<Incoming>, sender: &Sender) -> Result<Answer, Infallible> {
        Ok(match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/events") => self.take(request, sender).await,
            (_, "/v1/events") => refuse(StatusCode::METHOD_NOT_ALLOWED, "POST newline-delimited JSON here"),
            (&Method::GET, "/healthz") => self.health(),
            _ => refuse(StatusCode::NOT_FOUND, "there are POST /v1/events and GET /healthz"),
        })
    }

    async fn take(&self, request: Request<Incoming>, sender: &Sender) -> Answer {
        let coding = match Coding::of(request.headers()) {
            Ok(coding) => coding,
            Err(why) => return self.unread(why),
        };
        let batch = match tokio::time::timeout(READ_TIMEOUT, self.room.read(request.into_body())).await {
            Ok(Ok(batch)) => batch,
            Ok(Err(why)) => return self.unread(why),
            Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
        };
        // The store reads, hashes and syncs; that must not keep other connections from being served. The batch goes along
        // with its room, which is free again when the store is done with it, whatever becomes of this connection.
        let (store, room, sender) = (self.store.clone(), self.room.clone(), sender.clone());
        let taken = tokio::task::spawn_blocking(move || {
            let batch = room.decode(batch, coding)?;
            Ok(locked(&store).take(batch.bytes(), &sender, jiff::Timestamp::now()))
        });
        match taken.await {
            Ok(Ok(Ok(taken))) => json(StatusCode::OK, serde_json::json!(taken)),
            Ok(Ok(Err(error @ StoreError::Line(_)))) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            Ok(Err(why)) => self.unread(why),
            Ok(Ok(Err(error))) => {
                tracing::error!(%error, "the collector cannot store events");
                later()
            }
            Err(error) => {
                tracing::error!(%error, "the collector failed at a batch");
                later()
            }
        }
    }

    fn unread(&self, why: Unread) -> Answer {
        match why.refusal() {
            Some((status, why)) => refuse(status, why),
            None => {
                self.metrics.refused(Refusing::Busy);
                later()
            }
        }
    }

    fn health(&self) -> Answer {
        let reason = self.metrics.reason();
        let status = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let records = Kind::ALL.into_iter().filter(|kind| kind.keeps_the_record());
        let evidence: u64 = records.map(|kind| self.metrics.evidence(kind).get()).sum();
        json(
            status,
            serde_json::json!({
                "status": reason.unwrap_or("ok"),
                "since_start": {
                    "stored": self.metrics.stored.get(),
                    "duplicates": self.metrics.duplicates.get(),
                    "evidence": evidence,
                },
            }),
        )
    }
}

fn log(outcome: Result<(), hyper::Error>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a sender's connection ended early");
    }
}

type Answer = Response<Full<Bytes>>;

/// Locks the store. A batch that panicked half-way left its epoch as it was: state changes only after the sync.
pub(super) fn locked(store: &Mutex<Store>) -> std::sync::MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn later() -> Answer {
    let mut answer = refuse(StatusCode::SERVICE_UNAVAILABLE, "events cannot be stored now: send them again");
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    json(status, serde_json::json!({"error": why}))
}

fn json(status: StatusCode, body: serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // What the next request's body may be coded by (RFC 9110 section 12.5.3).
    answer.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd"));
    answer
}
