//! The embedded collector: receives audit events from sidecars, checks every chain as it arrives, and stores it.
//!
//! Owns the listener and how a collector begins and ends. What is said over HTTP is `door`'s; what is kept, and where, is
//! `store`'s. Who may send is decided by the TLS configuration that is handed in: its verifier admits SPIFFE identities alone.

mod admin;
mod body;
mod door;
mod evidence;
mod metrics;
mod plan;
mod retention;
mod room;
mod sender;
mod store;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

pub use admin::serve_admin;
pub use metrics::CollectorMetrics;
pub use retention::Retention;
pub use store::{Counts, StoreError};

use crate::audit::{self, SpoolKey};
use crate::background;
use crate::identity::SpiffeId;
use door::Door;
use store::Store;

/// A sidecar keeps one connection; more than this many wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 2048;
/// How long requests under way may take once the collector was told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const INDEX_PERIOD: Duration = Duration::from_secs(60);
const RETENTION_PERIOD: Duration = Duration::from_secs(60);

/// How a collector is set up.
#[derive(Debug, Clone)]
pub struct CollectorConfig {
    /// Where to listen; port 0 takes any free port.
    pub bind: SocketAddr,
    /// The folder of the store; it is made if it is missing, and only one process may use it.
    pub store: PathBuf,
    /// The store is encrypted with this key; without one it is plain text.
    pub key: Option<Arc<SpoolKey>>,
    /// The newest TLS configuration. Without one it speaks plain HTTP, which only a loopback address should.
    pub tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    /// Who may bring records that others have written.
    pub relays: Vec<SpiffeId>,
    /// How much is kept.
    pub retention: Retention,
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
    /// Its metrics cannot be made; a defect.
    #[error("the collector's metrics cannot be made: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A collector that holds its address and its store.
pub struct Collector {
    listener: TcpListener,
    bind: SocketAddr,
    tls: Option<watch::Receiver<Arc<rustls::ServerConfig>>>,
    door: Door,
    store: Arc<Mutex<Store>>,
    dir: PathBuf,
    retention: Retention,
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
        let metrics = CollectorMetrics::new()?;
        let store =
            Arc::new(Mutex::new(Store::open(config.store.clone(), config.key.as_deref(), metrics.clone())?));
        let door = Door::new(store.clone(), metrics, config.relays);
        let (dir, retention) = (config.store, config.retention);
        Ok((Self { listener, bind: local, tls: config.tls, door, store, dir, retention }, local))
    }

    /// What it counts.
    pub fn metrics(&self) -> &CollectorMetrics {
        self.door.metrics()
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
        let mut tasks = JoinSet::new();
        keep_indexed(Arc::downgrade(&self.store), self.dir.clone());
        tasks.spawn(keep_to_limits(self.store, self.dir, self.retention));
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &permits) => accepted,
            };
            let (stream, permit) = accepted;
            let tls = self.tls.clone();
            let (door, stopped) = (self.door.clone(), stopped.clone());
            connections.spawn(async move {
                door.connection(stream, tls, stopped).await;
                drop(permit);
            });
        }
        let _ = stop.send(true); // nobody listens when there is no connection
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await; // what is left is cut, and was not acknowledged
        Ok(())
    }
}

/// Brings the index for `audit query` up to date now and then, as long as the store is used. A thread that nobody waits for: the first
/// time takes as long as reading the store, and what is not done is done the next time.
fn keep_indexed(store: Weak<Mutex<Store>>, dir: PathBuf) {
    let work = move || {
        background::stand_back();
        let mut told = false;
        while store.strong_count() > 0 {
            let done = AtomicU64::new(0);
            // One that is broken is made anew: it is nothing but a help.
            match audit::index(&dir, false, &done).or_else(|_| audit::index(&dir, true, &done)) {
                Ok(_) => told = false,
                Err(error) if !told => {
                    tracing::warn!(%error, "the index of the store is not up to date, so queries are slower");
                    told = true;
                }
                Err(_) => {}
            }
            std::thread::sleep(INDEX_PERIOD);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("audit-index".into()).spawn(work) {
        tracing::warn!(%error, "the store is not indexed");
    }
}

/// Looks now and then for what retention may remove.
async fn keep_to_limits(store: Arc<Mutex<Store>>, dir: PathBuf, retention: Retention) {
    if retention.max_age.is_none() && retention.max_bytes.is_none() {
        return;
    }
    loop {
        let (store, dir) = (store.clone(), dir.clone());
        let run = move || retention::run(&store, &dir, retention, SystemTime::now());
        if let Err(error) = tokio::task::spawn_blocking(run).await {
            tracing::error!(%error, "retention failed");
        }
        tokio::time::sleep(RETENTION_PERIOD).await;
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
