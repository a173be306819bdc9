//! The embedded collector: receives audit events from sidecars, checks every chain as it arrives, and stores it.
//!
//! Owns the listener and the HTTP of `POST /v1/events` and `GET /healthz`; what is kept, and where, is `store`'s. Who may
//! send is decided by the TLS configuration that is handed in: its verifier admits SPIFFE identities alone.

mod store;

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use store::{Counts, StoreError};

use store::Store;

/// The largest body of a request: 8 MiB.
const MAX_BODY: usize = 8 * 1024 * 1024;
const MAX_CONNECTIONS: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's head, and then its body, may take to arrive; a sender's idle connection ends after this too.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests under way may take once the collector was told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How a collector is set up.
#[derive(Debug, Clone)]
pub struct CollectorConfig {
    /// Where to listen; port 0 takes any free port.
    pub bind: SocketAddr,
    /// The folder of the store; it is made if it is missing, and only one process may use it.
    pub store: PathBuf,
    /// The newest TLS configuration. Without one it speaks plain HTTP, which only a loopback address should.
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
}

/// Why a collector cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The address cannot be listened on.
    #[error("the collector cannot listen on {bind}: {error}")]
    Bind {
        /// The address.
        bind: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A collector that holds its address and its store.
pub struct Collector {
    listener: TcpListener,
    bind: SocketAddr,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    store: Arc<Mutex<Store>>,
}

impl Collector {
    /// Opens the store, repairing what a crash cut short, and listens. Gives the address it listens on.
    ///
    /// # Errors
    /// The address or the store is in use or cannot be used.
    pub fn bind(config: CollectorConfig) -> Result<(Self, SocketAddr), CollectorError> {
        let bind_error = |error| CollectorError::Bind { bind: config.bind, error };
        let listener = TcpListener::bind(config.bind).map_err(bind_error)?;
        listener.set_nonblocking(true).map_err(bind_error)?;
        let local = listener.local_addr().map_err(bind_error)?;
        let store = Arc::new(Mutex::new(Store::open(config.store)?));
        Ok((Self { listener, bind: local, tls: config.tls, store }, local))
    }

    /// Serves until `shutdown` is done, then lets requests under way end.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), CollectorError> {
        let bind_error = |error| CollectorError::Bind { bind: self.bind, error };
        let listener = tokio::net::TcpListener::from_std(self.listener).map_err(bind_error)?;
        let (stop, stopped) = watch::channel(false);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &permits) => accepted,
            };
            let (stream, permit) = accepted;
            let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
            let (store, stopped) = (self.store.clone(), stopped.clone());
            connections.spawn(async move {
                connection(stream, tls, store, stopped).await;
                drop(permit);
            });
        }
        let _ = stop.send(true); // nobody listens when there is no connection
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await; // what is left is cut, and was not acknowledged
        Ok(())
    }
}

async fn accept(
    listener: &tokio::net::TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            std::future::pending().await // the semaphore is never closed
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                // Out of files, most likely: connections end and free some.
                tracing::warn!(%error, "the collector cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
    store: Arc<Mutex<Store>>,
    stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true); // only speed is lost
    let Some(tls) = tls else {
        return http1(stream, store, stopped).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            http2(stream, store, stopped).await
        }
        Ok(Ok(stream)) => http1(stream, store, stopped).await,
        Ok(Err(error)) => tracing::warn!(%error, "a sender was refused by the collector"),
        Err(_) => tracing::warn!("a sender's handshake with the collector took too long"),
    }
}

async fn http1<S>(stream: S, store: Arc<Mutex<Store>>, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
    let service = service_fn(|request| answer(request, store.clone()));
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        outcome = &mut served => return log(outcome),
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    log(served.await);
}

async fn http2<S>(stream: S, store: Arc<Mutex<Store>>, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(READ_TIMEOUT).max_concurrent_streams(8);
    let service = service_fn(move |request| answer(request, store.clone()));
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        outcome = &mut served => return log(outcome),
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    log(served.await);
}

fn log(outcome: Result<(), hyper::Error>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a sender's connection ended early");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: Request<Incoming>, store: Arc<Mutex<Store>>) -> Result<Answer, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::POST, "/v1/events") => take(request, store).await,
        (_, "/v1/events") => refuse(StatusCode::METHOD_NOT_ALLOWED, "POST newline-delimited JSON here"),
        (&Method::GET, "/healthz") => health(&store),
        _ => refuse(StatusCode::NOT_FOUND, "there are POST /v1/events and GET /healthz"),
    })
}

async fn take(request: Request<Incoming>, store: Arc<Mutex<Store>>) -> Answer {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(READ_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "a batch has at most 8 MiB");
        }
        Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, "the body ended early"),
        Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
    };
    // The store reads, hashes and syncs; that must not keep other connections from being served.
    let taken = tokio::task::spawn_blocking(move || locked(&store).take(&body)).await;
    match taken {
        Ok(Ok(counts)) => json(StatusCode::OK, serde_json::json!(counts)),
        Ok(Err(error @ StoreError::Line(_))) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        Ok(Err(error)) => {
            tracing::error!(%error, "the collector cannot store events");
            later()
        }
        Err(error) => {
            tracing::error!(%error, "the collector failed at a batch");
            later()
        }
    }
}

fn health(store: &Mutex<Store>) -> Answer {
    // While a batch is being synced the store is busy, which is not a fault.
    let Ok(store) = store.try_lock() else {
        return json(StatusCode::OK, serde_json::json!({"status": "ok"}));
    };
    let status = if store.failed() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    json(
        status,
        serde_json::json!({"status": if store.failed() { "failed" } else { "ok" }, "since_start": store.total()}),
    )
}

/// Locks the store. A batch that panicked half-way left its epoch as it was: state changes only after the sync.
fn locked(store: &Mutex<Store>) -> std::sync::MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn later() -> Answer {
    let mut answer = refuse(StatusCode::SERVICE_UNAVAILABLE, "events cannot be stored now: send them again");
    answer.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    answer
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    json(status, serde_json::json!({"error": why}))
}

fn json(status: StatusCode, body: serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    answer
}
