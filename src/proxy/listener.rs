//! Accepting connections and handing each to the worker with the fewest.
//!
//! Runs on the control thread. Accepting stops by itself at the connection limit, so more wait in the kernel's queue
//! instead of taking memory here; it also pauses when the process is out of file descriptors, which otherwise spins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// An accepted connection on its way to a worker.
pub(crate) struct Accepted {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) addr: SocketAddr,
    /// Which of the sidecar's listeners it came by.
    pub(crate) listener: usize,
    pub(crate) slot: Slot,
}

/// A connection's place under the limit and in its worker's count; gives both back when dropped.
pub(crate) struct Slot {
    live: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A worker as the acceptor sees it.
#[derive(Clone)]
pub(crate) struct WorkerInbox {
    pub(crate) sender: mpsc::UnboundedSender<Accepted>,
    pub(crate) live: Arc<AtomicUsize>,
}

const PAUSE_WHEN_EXHAUSTED: Duration = Duration::from_millis(100);

/// Accepts from `socket` for ever; ends when it is aborted or the workers are gone.
pub(crate) async fn accept(
    socket: TcpListener,
    listener: usize,
    workers: Vec<WorkerInbox>,
    places: Arc<Semaphore>,
) {
    loop {
        let Ok(permit) = places.clone().acquire_owned().await else { return };
        let (stream, addr) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_if_exhausted(&error).await;
                continue;
            }
        };
        let Some(stream) = detach(stream) else { continue };
        let Some(worker) = workers.iter().min_by_key(|w| w.live.load(Ordering::Relaxed)) else { return };
        worker.live.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { live: worker.live.clone(), _permit: permit };
        if worker.sender.send(Accepted { stream, addr, listener, slot }).is_err() {
            return;
        }
    }
}

/// Takes the socket off this thread's event loop, so that the worker can put it on its own.
fn detach(stream: TcpStream) -> Option<std::net::TcpStream> {
    stream.into_std().ok()
}

async fn pause_if_exhausted(error: &std::io::Error) {
    // Everything else concerns the one connection that could not be accepted (accept(2)).
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    const ENOMEM: i32 = 12;
    if matches!(error.raw_os_error(), Some(ENFILE | EMFILE | ENOBUFS | ENOMEM)) {
        tracing::warn!(%error, "cannot accept connections: raise the limit on open files or lower limits.connections");
        tokio::time::sleep(PAUSE_WHEN_EXHAUSTED).await;
    }
}
