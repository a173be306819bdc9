//! Making a connection to an upstream: TCP, TLS on the mesh leg, the HTTP handshake, and the task that drives it.
//!
//! The client's TLS settings are built once a rotation and checked for by one atomic load. The peer's identity is
//! verified inside the TLS handshake, before our certificate is shown and before a byte of a request leaves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::{TlsConnector, TlsStream};

use super::http1::{self, Io};
use super::http2;
use super::outcome::Failure;
use super::upstream::{Protocol, UpstreamSettings};
use super::vouched::{Peers, Tenure};
use crate::identity::{SpiffeId, Usage};
use crate::tls::{self, Alpn, TlsSettings};

/// How an upstream is reached.
pub(crate) enum Dialer {
    /// In the clear, on loopback: the app of this pod.
    Plain,
    /// Over mTLS: another sidecar.
    Mesh(MeshDialer),
}

/// What a mesh connection is made with.
pub(crate) struct MeshDialer {
    allowed: Arc<[SpiffeId]>,
    alpn: Alpn,
    settings: RefCell<watch::Receiver<Arc<TlsSettings>>>,
    peers: Rc<Peers>,
    current: RefCell<Current>,
}

/// The settings in force.
#[derive(Clone)]
struct Current {
    generation: u64,
    client: Arc<rustls::ClientConfig>,
    settings: Arc<TlsSettings>,
}

/// The sending end of a new connection.
pub(crate) enum Sender {
    H1(http1::Connection),
    H2(http2::Connection),
}

/// How long a connection may take new requests.
pub(crate) struct Life {
    generation: u64,
    retire_at: Option<Instant>,
    tenure: Option<Tenure>,
}

/// How long before a certificate expires its connections take nothing new: a tenth of what is left, this at most.
const RETIRE_MOST: Duration = Duration::from_secs(30);

impl Life {
    /// What ends the connection with all that it carries.
    pub(crate) fn tenure(&self) -> Option<&Tenure> {
        self.tenure.as_ref()
    }

    /// Whether the connection may take another request.
    pub(crate) fn usable(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && self.retire_at.is_none_or(|at| now < at)
    }
}

/// When a connection whose certificate expires at `not_after` (Unix seconds) takes nothing new, and when it ends.
pub(crate) fn retirement(not_after: i64) -> (Instant, Instant) {
    let left = tls::time_left(not_after);
    let now = Instant::now();
    (now + left - (left / 10).min(RETIRE_MOST), now + left)
}

impl Dialer {
    /// The mesh dialer for peers that are one of `allowed`.
    pub(crate) fn mesh(
        mut settings: watch::Receiver<Arc<TlsSettings>>,
        peers: Rc<Peers>,
        allowed: Arc<[SpiffeId]>,
        alpn: Alpn,
    ) -> Self {
        let current = Current::of(&settings.borrow_and_update(), &allowed, alpn, 1);
        Self::Mesh(MeshDialer {
            allowed,
            alpn,
            settings: RefCell::new(settings),
            peers,
            current: RefCell::new(current),
        })
    }

    /// Which TLS settings are in force: connections of an older generation take nothing new.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Plain => 0,
            Self::Mesh(mesh) => mesh.renewed(|current| current.generation),
        }
    }

    /// Connects to `addr`.
    ///
    /// # Errors
    /// At which step it failed; nothing of a request has been sent.
    pub(crate) async fn dial(
        &self,
        addr: SocketAddr,
        settings: &UpstreamSettings,
    ) -> Result<(Sender, Life), Failure> {
        let connected = self.connect(addr, settings);
        tokio::time::timeout(settings.connect_timeout, connected).await.unwrap_or(Err(Failure::CONNECT))
    }

    async fn connect(
        &self,
        addr: SocketAddr,
        settings: &UpstreamSettings,
    ) -> Result<(Sender, Life), Failure> {
        let (stream, life) = self.reach(addr).await?;
        let tenure = life.tenure.clone();
        let stream = match stream {
            Io::Plain(stream) => stream,
            Io::Tls(stream) => return Ok((over_tls(stream, settings, tenure).await?, life)),
        };
        let sender = match settings.protocol {
            Protocol::H1 => http1(Io::Plain(stream), settings, None),
            Protocol::H2 => http2(stream, settings, None).await?,
        };
        Ok((sender, life))
    }

    /// Connects to `addr` for whatever is to be spoken.
    ///
    /// # Errors
    /// At which step it failed.
    pub(crate) async fn open(
        &self,
        addr: SocketAddr,
        connect_timeout: Duration,
    ) -> Result<(Io, Option<Tenure>), Failure> {
        let reached = tokio::time::timeout(connect_timeout, self.reach(addr)).await;
        let (stream, life) = reached.unwrap_or(Err(Failure::CONNECT))?;
        Ok((stream, life.tenure))
    }

    async fn reach(&self, addr: SocketAddr) -> Result<(Io, Life), Failure> {
        let stream = TcpStream::connect(addr).await.map_err(|_| Failure::CONNECT)?;
        stream.set_nodelay(true).map_err(|_| Failure::CONNECT)?;
        let Self::Mesh(mesh) = self else {
            return Ok((Io::Plain(stream), Life { generation: 0, retire_at: None, tenure: None }));
        };
        let Current { generation, client, settings: by } = mesh.renewed(Current::clone);
        let stream = TlsConnector::from(client)
            .connect(tls::dummy_server_name(), stream)
            .await
            .map_err(|error| failure_of(&error))?;
        let peer = tls::peer_cert(stream.get_ref().1).map_err(|_| Failure::IDENTITY)?;
        let joined = mesh.peers.join(&by, stream.get_ref().1, &peer, Usage::Server);
        let vouched = joined.map_err(|_| Failure::IDENTITY)?;
        let (retire_at, end) = retirement(peer.not_after.min(by.material().svid.not_after()));
        let tenure = Some(Tenure { end, vouched });
        Ok((Io::Tls(Box::new(stream.into())), Life { generation, retire_at: Some(retire_at), tenure }))
    }
}

/// HTTP over a mesh connection, in the version that was agreed on.
async fn over_tls(
    stream: Box<TlsStream<TcpStream>>,
    settings: &UpstreamSettings,
    tenure: Option<Tenure>,
) -> Result<Sender, Failure> {
    let spoken = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    if spoken != (settings.protocol == Protocol::H2) {
        return Err(Failure::TLS);
    }
    match settings.protocol {
        Protocol::H1 => Ok(http1(Io::Tls(stream), settings, tenure)),
        Protocol::H2 => http2(*stream, settings, tenure).await,
    }
}

impl MeshDialer {
    /// What `of` takes from the settings in force.
    fn renewed<T>(&self, of: impl FnOnce(&Current) -> T) -> T {
        let mut settings = self.settings.borrow_mut();
        if settings.has_changed().unwrap_or(false) {
            let generation = self.current.borrow().generation + 1;
            let newest = Current::of(&settings.borrow_and_update(), &self.allowed, self.alpn, generation);
            *self.current.borrow_mut() = newest;
        }
        of(&self.current.borrow())
    }
}

impl Current {
    fn of(settings: &Arc<TlsSettings>, allowed: &Arc<[SpiffeId]>, alpn: Alpn, generation: u64) -> Self {
        let client = settings.client(allowed.clone(), alpn);
        Self { generation, client, settings: settings.clone() }
    }
}

fn failure_of(error: &std::io::Error) -> Failure {
    match tls::peer_error(error) {
        Some(_) => Failure::IDENTITY,
        None => Failure::TLS,
    }
}

fn http1(io: Io, settings: &UpstreamSettings, tenure: Option<Tenure>) -> Sender {
    Sender::H1(http1::Connection::new(io, settings.head_bytes as usize, tenure))
}

async fn http2<T>(io: T, settings: &UpstreamSettings, tenure: Option<Tenure>) -> Result<Sender, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (connection, driver) = http2::connect(io, settings).await.map_err(|_| Failure::CONNECT)?;
    drive(driver, tenure);
    Ok(Sender::H2(connection))
}

/// Drives a connection on this worker until it closes, or what it stands on is over.
fn drive(conn: impl Future<Output = ()> + 'static, tenure: Option<Tenure>) {
    let task = async move {
        match tenure {
            None => conn.await,
            Some(tenure) => tokio::select! {
                biased;
                () = conn => {}
                _ = tenure.over() => {}
            },
        }
    };
    // The handle is not kept: the connection ends with its last sender.
    drop(tokio::task::spawn_local(task));
}
