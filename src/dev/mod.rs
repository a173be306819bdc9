//! `phiward dev`: a whole mesh on this machine with nothing installed.
//!
//! Owns the development CA's files, a records app with synthetic patients, three sidecars and a collector, on fixed ports
//! of 127.0.0.1. The sidecars are started by the same loader and runtime as `run`; nothing is switched off or faked.

mod check;
mod files;
mod records;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::audit::AuditError;
use crate::config::{self, ConfigError};
use crate::identity::{CaError, SpiffeIdError};
use crate::runtime::{BoundCollector, Loaded, Sidecar, StartError};
pub use check::{Step, check};
use files::Files;

/// Where the caller `web` sends its requests.
pub const WEB_OUTBOUND: u16 = 15001;
/// Where the caller `billing` sends its requests.
pub const BILLING_OUTBOUND: u16 = 15002;
/// The records app itself.
pub const RECORDS_APP: u16 = 18080;

/// Why the mesh does not start.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file of the mesh cannot be written.
    #[error("{}: cannot be written: {error}", path.display())]
    Files {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a key")]
    Random,
    /// A port is taken.
    #[error("cannot listen on {addr} ({what}): {error}; is another `phiward dev` running?")]
    Bind {
        /// What for.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// An identity of the mesh; a defect of this command.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeIdError),
    /// A configuration of the mesh.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A sidecar.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A spool at the end.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// A running mesh.
pub struct Mesh {
    dir: PathBuf,
    /// web, billing, records: callers first, so that they end before whom they call.
    sidecars: Vec<Sidecar>,
    collector: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    app: JoinHandle<()>,
}

impl Mesh {
    /// Writes the mesh's files under `dir` and starts everything.
    ///
    /// # Errors
    /// The first part that does not start.
    pub async fn start(dir: &Path) -> Result<Self, DevError> {
        let files = Files::write(dir.to_owned())?;
        let app = bind("the records app", SocketAddr::from((Ipv4Addr::LOCALHOST, RECORDS_APP))).await?;
        let app = tokio::spawn(records::serve(app));
        let collector = start_collector(&files).await?;
        let mut sidecars = Vec::new();
        for name in ["records", "billing", "web"] {
            let config = config::load_sidecar(&files.path(&format!("{name}/sidecar.yaml")))?;
            sidecars.push(Sidecar::start(Loaded::load(config)?, None).await?);
        }
        sidecars.reverse();
        Ok(Self { dir: dir.to_owned(), sidecars, collector: Some(collector), app })
    }

    /// The spool of the records sidecar, the enforcement point.
    pub fn records_spool(&self) -> PathBuf {
        self.dir.join("records/audit")
    }

    /// The collector's store.
    pub fn store(&self) -> PathBuf {
        self.dir.join("collector/store")
    }

    /// Ends everything in order: callers, the records sidecar, the collector once it has what they sent, the app.
    ///
    /// # Errors
    /// A trail could not be closed.
    pub async fn shut_down(&mut self) -> Result<(), DevError> {
        for sidecar in self.sidecars.drain(..) {
            sidecar.shut_down().await?;
        }
        if let Some((stop, ended)) = self.collector.take() {
            drop(stop);
            drop(ended.await);
        }
        self.app.abort();
        Ok(())
    }
}

/// Writes the mesh's files under `dir` and starts nothing.
///
/// # Errors
/// A file that cannot be written.
pub fn write_files(dir: &Path) -> Result<(), DevError> {
    Files::write(dir.to_owned()).map(drop)
}

/// Serves the records app at `addr` until it is dropped.
///
/// # Errors
/// The address is taken.
pub async fn serve_app(addr: SocketAddr) -> Result<(), DevError> {
    records::serve(bind("the records app", addr).await?).await;
    Ok(())
}

async fn start_collector(files: &Files) -> Result<(oneshot::Sender<()>, JoinHandle<()>), DevError> {
    let config = config::load_collector(&files.path("collector/collector.yaml"))?;
    let collector = BoundCollector::bind(&config).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let served = collector.serve(async { drop(stopped.await) }).await;
        if let Err(error) = served {
            tracing::error!(%error, "the collector stopped");
        }
    });
    Ok((stop, serving))
}

async fn bind(what: &'static str, addr: SocketAddr) -> Result<TcpListener, DevError> {
    TcpListener::bind(addr).await.map_err(|error| DevError::Bind { what, addr, error })
}
