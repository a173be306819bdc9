//! One accepted connection, until it is known who speaks what.
//!
//! Owns TLS acceptance, and what a connection is: of the mesh, plain, captured, HTTP or a stream. How HTTP is spoken over it is
//! `serving`'s.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::arrival::{self, Spoken};
use super::context::{Captured, ClientAddr, ConnContext, Direction, ListenerContext, PeerId, Worker};
use super::dial::retirement;
use super::hangup::Hangup;
use super::http1::Io;
use super::listener::Slot;
use super::rejected::{plain_facts, reject, reject_with};
use super::serving::{Http, serve_http};
use super::tcp;
use super::upstream::{Protocol, Upstream};
use super::vouched::Tenure;
use crate::audit::{self, ConnFacts, SubjectFacts, TlsFacts};
use crate::identity::Usage;
use crate::tls::{self, TlsSettings};

/// Serves an accepted connection until it ends. `slot` counts it until its last exchange is over.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerContext>,
    stream: TcpStream,
    addr: ClientAddr,
    slot: Slot,
) {
    if stream.set_nodelay(true).is_err() {
        return; // the peer is gone already
    }
    let arrived = Arrived { worker, listener, stream, addr, slot };
    if let Direction::Inbound { stranger: None, .. } = &arrived.listener.direction {
        return serve_mesh(arrived).await;
    }
    // Boxed: the task of a mesh connection need not keep room for what only others do.
    Box::pin(serve_other(arrived)).await;
}

async fn serve_other(arrived: Arrived) {
    match &arrived.listener.direction {
        Direction::Inbound { streams, .. } => match arrived.speaks_tls().await {
            Some(true) => Box::pin(serve_mesh(arrived)).await,
            Some(false) if *streams => serve_stream(arrived, None, None).await,
            Some(false) => serve_plain(arrived, None).await,
            None => {}
        },
        Direction::Probes { .. } => serve_plain(arrived, None).await,
        Direction::Stream { service, .. } => {
            let service = service.clone();
            serve_stream(arrived, None, Some(service)).await;
        }
        Direction::Outbound { .. } => match arrival::meant_for(&arrived.stream) {
            None => serve_plain(arrived, None).await,
            Some(meant) => Box::pin(serve_captured(arrived, meant)).await,
        },
    }
}

/// A connection of which nothing was read.
struct Arrived {
    worker: Rc<Worker>,
    listener: Rc<ListenerContext>,
    stream: TcpStream,
    addr: ClientAddr,
    slot: Slot,
}

/// A client that says nothing for so long waits for the server to speak first.
const SERVER_FIRST: Duration = Duration::from_millis(500);

impl Arrived {
    /// Whether the client begins TLS, on a listener that serves both kinds; none if it went, or a drain began.
    async fn speaks_tls(&self) -> Option<bool> {
        let Direction::Inbound { streams, .. } = &self.listener.direction else { return None };
        let patience = if *streams { SERVER_FIRST } else { self.worker.limits.head_timeout };
        match self.within(patience, arrival::speaks_tls(&self.stream)).await {
            Looked::At(tls) => Some(tls),
            Looked::Silent => streams.then_some(false),
            Looked::Over => None,
        }
    }

    /// What `look` finds, in time.
    async fn within<T>(
        &self,
        patience: Duration,
        look: impl Future<Output = std::io::Result<T>>,
    ) -> Looked<T> {
        let mut drain = self.worker.drain.clone();
        tokio::select! {
            biased;
            looked = tokio::time::timeout(patience, look) => match looked {
                Ok(Ok(found)) => Looked::At(found),
                Ok(Err(_)) => Looked::Over,
                Err(_) => Looked::Silent,
            },
            () = drain.begun() => Looked::Over,
        }
    }

    fn reject(&self, reason: &'static str, meant: Option<SocketAddr>) {
        let facts = ConnFacts { destination: meant, ..plain_facts(&self.listener, self.addr) };
        reject_with(&self.worker, &self.listener, reason, facts);
    }
}

/// What a look at the first bytes has shown.
enum Looked<T> {
    At(T),
    /// Nothing came for as long as the patience lasted.
    Silent,
    /// The client has gone, or a drain began: nothing was asked.
    Over,
}

/// A connection that was meant for somebody else and led here.
async fn serve_captured(arrived: Arrived, meant: SocketAddr) {
    let Direction::Outbound { routes, .. } = &arrived.listener.direction else { return };
    let routes = routes.clone();
    if let Some(service) = routes.tcp_at(meant) {
        return serve_stream(arrived, Some(meant), Some(service.clone())).await;
    }
    let known = routes.http_at(meant).is_some();
    // Who is known speaks HTTP, and so first.
    let patience = if known { arrived.worker.limits.head_timeout } else { SERVER_FIRST };
    match arrived.within(patience, arrival::spoken(&arrived.stream)).await {
        Looked::At(Spoken::Http1 | Spoken::Http2) => serve_plain(arrived, Some(meant)).await,
        Looked::At(Spoken::Other) if known => arrived.reject("not_http", Some(meant)),
        Looked::Silent if known => {}
        Looked::At(Spoken::Other) | Looked::Silent if routes.passthrough => {
            serve_stream(arrived, Some(meant), None).await
        }
        Looked::At(Spoken::Other) | Looked::Silent => arrived.reject("unknown_destination", Some(meant)),
        Looked::Over => {}
    }
}

/// A plain connection that is one stream: to `service`, or to the listener's app, or to where it was meant to go.
async fn serve_stream(arrived: Arrived, meant: Option<SocketAddr>, service: Option<Rc<Upstream>>) {
    let Arrived { worker, listener, stream, addr, slot } = arrived;
    let fragment = plain_fragment(&worker, &listener, addr, (meant, service.as_deref()));
    let captured = meant.map(Captured::new);
    let upstream = match (&listener.direction, &captured, service) {
        (_, _, Some(service)) => service,
        (Direction::Inbound { app, .. }, _, None) => app.clone(),
        (_, Some(captured), None) => captured.beyond(&worker, Protocol::H1),
        (_, None, None) => return,
    };
    let conn = ConnContext::new(worker, listener, None, fragment, captured, slot);
    tcp::serve(conn, stream, upstream).await;
}

async fn serve_mesh(Arrived { worker, listener, stream, addr, slot }: Arrived) {
    let mut drain = worker.drain.clone();
    let shaken = tokio::select! {
        biased;
        shaken = Box::pin(handshake(&worker, stream)) => shaken,
        // Who has not said who it is by now is as one who comes after the listener closed.
        () = drain.begun() => return,
    };
    let (settings, stream) = match shaken {
        Ok(shaken) => shaken,
        Err(reason) => return reject(&worker, &listener, addr, reason, None),
    };
    let tls = stream.get_ref().1;
    let Ok(peer) = tls::peer_cert(tls) else {
        return reject(&worker, &listener, addr, "svid_unreadable", None);
    };
    let vouched = match worker.peers.join(&settings, tls, &peer, Usage::Client) {
        Ok(vouched) => vouched,
        Err(reason) => return reject(&worker, &listener, addr, reason, None),
    };
    let h2 = tls.alpn_protocol() == Some(b"h2");
    let stream_for = match &listener.direction {
        Direction::Inbound { app, streams: true, .. } => Some(app.clone()),
        _ => None,
    };
    if stream_for.is_some() && tls.alpn_protocol().is_some() {
        return reject(&worker, &listener, addr, "not_a_stream", None);
    }
    let alpn = if h2 { "h2" } else { "http/1.1" };
    let fragment = audit::ConnFragment::new(&ConnFacts {
        direction: audit::Direction::Inbound,
        listener: &listener.name,
        peer: addr.0,
        destination: None,
        service: None,
        tls: Some(TlsFacts {
            version: tls.protocol_version().map_or("unknown", tls::version_name),
            cipher: tls.negotiated_cipher_suite().map_or("unknown", |s| tls::cipher_name(s.suite())),
            alpn: stream_for.is_none().then_some(alpn),
        }),
        subject: Some(SubjectFacts { spiffe_id: peer.id.as_str(), cert_sha256: &peer.sha256_hex }),
    });
    let own = &settings.material().svid;
    let by = own.id();
    let told = format!("By={by};Hash={};URI={}", peer.sha256_hex, peer.id);
    let told_to_app = HeaderValue::try_from(told).ok(); // SPIFFE IDs hold only visible ASCII
    // What was shown in this handshake, on either side, vouches for the connection until then and no longer.
    let (retire_at, end) = retirement(peer.not_after.min(own.not_after()));
    let tenure = Tenure { end, vouched };
    let peer = PeerId { id: peer.id, cert_sha256: peer.sha256_hex, retire_at, tenure, told_to_app };
    let conn = ConnContext::new(worker, listener, Some(peer), fragment, None, slot);
    if let Some(app) = stream_for {
        drop(tokio::task::spawn_local(tcp::serve(conn, stream, app)));
        return;
    }
    // A task of its own: this one's memory, most of it the handshake's, is not kept for as long as the connection lives.
    drop(tokio::task::spawn_local(serve_http(
        conn,
        Io::Tls(Box::new(stream.into())),
        if h2 { Http::H2 } else { Http::H1(None) },
        addr,
    )));
}

async fn serve_plain(arrived: Arrived, meant: Option<SocketAddr>) {
    // Closed, silent for too long, or silent when a drain begins: nothing was asked.
    let patience = arrived.worker.limits.head_timeout;
    let Looked::At(h2) = arrived.within(patience, arrival::speaks_h2(&arrived.stream)).await else { return };
    let Arrived { worker, listener, stream, addr, slot } = arrived;
    let fragment = plain_fragment(&worker, &listener, addr, (meant, None));
    let captured = meant.map(Captured::new);
    let spoken = if h2 { Http::H2 } else { Http::H1(Some(Hangup::of(&stream, meant))) };
    let conn = ConnContext::new(worker, listener, None, fragment, captured, slot);
    serve_http(conn, Io::Plain(stream), spoken, addr).await;
}

/// What the trail tells of a plain connection. Whoever calls from inside the pod acts as the pod's own workload; of others nobody
/// knows who they are.
fn plain_fragment(
    worker: &Worker,
    listener: &ListenerContext,
    addr: ClientAddr,
    (destination, service): (Option<SocketAddr>, Option<&Upstream>),
) -> audit::ConnFragment {
    let settings = worker.tls.borrow();
    let svid = &settings.material().svid;
    let own = SubjectFacts { spiffe_id: svid.id().as_str(), cert_sha256: svid.leaf_sha256_hex() };
    let subject = match listener.direction {
        Direction::Outbound { .. } | Direction::Stream { .. } => Some(own),
        Direction::Inbound { .. } | Direction::Probes { .. } => None,
    };
    let service = service.map(|service| service.name.as_str());
    audit::ConnFragment::new(&ConnFacts { subject, destination, service, ..plain_facts(listener, addr) })
}

/// TLS, within the time and the number of handshakes at a time that the limits allow.
/// Gives the settings that it was done by, too.
async fn handshake(
    worker: &Worker,
    stream: TcpStream,
) -> Result<(Arc<TlsSettings>, TlsStream<TcpStream>), &'static str> {
    let timed = tokio::time::timeout(worker.limits.handshake_timeout, async {
        let _turn = worker.handshakes.acquire().await.map_err(|_| "shutting_down")?;
        let settings = worker.tls.borrow().clone();
        let accepted = TlsAcceptor::from(settings.server()).accept(stream).await;
        Ok((settings, accepted.map_err(|error| tls::handshake_code(&error))?))
    });
    timed.await.unwrap_or(Err("handshake_timeout"))
}
