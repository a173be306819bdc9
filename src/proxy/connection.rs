//! One accepted connection, from its handshake to its end.
//!
//! Owns TLS acceptance, the choice between HTTP/1.1 and HTTP/2, and the reasons for which a connection ends: its peer,
//! a drain, or the peer's certificate running out. What happens to a request is `forward`'s.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderValue;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::arrival::{self, Spoken};
use super::body::Inflow;
use super::context::{
    Captured, ClientAddr, ConnContext, Direction, ListenerContext, PeerId, PlainSide, Worker,
};
use super::dial::retirement;
use super::forward::forward;
use super::hangup;
use super::http2;
use super::linger::Linger;
use super::listener::Slot;
use super::outcome::PEER_EXPIRED;
use super::tcp;
use super::upstream::{Protocol, Upstream};
use super::vouched::Tenure;
use crate::audit::{self, ConnFacts, ConnRejected, SubjectFacts, TlsFacts};
use crate::config::Limits;
use crate::identity::Usage;
use crate::tls::{self, TlsSettings};

/// hyper's settings, made once a worker.
pub(crate) struct Builders {
    h1: http1::Builder,
    /// For plain connections, where [`super::hangup`] tells a client that has gone from one that finished sending. On the
    /// mesh leg a peer that closes its sending side has gone: no sidecar finishes sending before it has its answer.
    plain_h1: http1::Builder,
}

impl Builders {
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut h1 = http1::Builder::new();
        // `max_headers` stays unset: setting it makes hyper allocate for every head.
        // Nor has it a timer for heads, which it would set for each request: see `patience`.
        h1.max_header_size(limits.head_bytes as usize).auto_date_header(false);
        let mut plain_h1 = h1.clone();
        plain_h1.half_close(true);
        Self { h1, plain_h1 }
    }
}

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
    let plain = PlainSide { hangup: None, captured };
    let conn = ConnContext::new(worker, listener, None, fragment, plain, true, slot);
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
    let no_heads = h2 || stream_for.is_some();
    let conn = ConnContext::new(worker, listener, Some(peer), fragment, PlainSide::default(), no_heads, slot);
    if let Some(app) = stream_for {
        drop(tokio::task::spawn_local(tcp::serve(conn, stream, app)));
        return;
    }
    // A task of its own: this one's memory, most of it the handshake's, is not kept for as long as the connection lives.
    drop(tokio::task::spawn_local(serve_http(conn, stream, h2, addr)));
}

async fn serve_plain(arrived: Arrived, meant: Option<SocketAddr>) {
    // Closed, silent for too long, or silent when a drain begins: nothing was asked.
    let patience = arrived.worker.limits.head_timeout;
    let Looked::At(h2) = arrived.within(patience, arrival::speaks_h2(&arrived.stream)).await else { return };
    let Arrived { worker, listener, stream, addr, slot } = arrived;
    let fragment = plain_fragment(&worker, &listener, addr, (meant, None));
    let captured = meant.map(Captured::new);
    if h2 {
        let plain = PlainSide { hangup: None, captured };
        let conn = ConnContext::new(worker, listener, None, fragment, plain, h2, slot);
        return serve_http(conn, stream, h2, addr).await;
    }
    let (stream, hangup) = hangup::watched(stream, meant);
    let plain = PlainSide { hangup: Some(hangup), captured };
    let conn = ConnContext::new(worker, listener, None, fragment, plain, h2, slot);
    serve_http(conn, stream, h2, addr).await;
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

/// Speaks HTTP over `stream` until it ends. No `async fn`, here and below: an argument of one keeps its place for as long as the
/// future lives, and this one is a kilobyte that has long moved on.
fn serve_http<S>(
    conn: Rc<ConnContext>,
    stream: S,
    h2: bool,
    addr: ClientAddr,
) -> impl Future<Output = ()> + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let offence: Pin<Box<dyn Future<Output = Option<&'static str>>>> = match h2 {
        true => Box::pin(serve_h2(conn.clone(), stream)),
        false => Box::pin(serve_h1(conn.clone(), stream)),
    };
    async move {
        let worker = conn.worker.clone();
        let gauge = worker.metrics.connections(conn.listener.direction.side());
        gauge.inc();
        let offence = offence.await;
        gauge.dec();
        if let Some(reason) = offence {
            let subject = conn.peer.as_ref().map(PeerId::facts);
            reject(&worker, &conn.listener, addr, reason, subject);
        }
    }
}

/// Serves HTTP/1.1. Returns what the peer did to HTTP itself: hyper answers such a request on its own, before there is a
/// request to decide about, so the connection's event is the record of it.
fn serve_h1<S>(conn: Rc<ConnContext>, stream: S) -> impl Future<Output = Option<&'static str>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builders = &conn.worker.builders;
    let builder = if conn.hangup.is_some() { &builders.plain_h1 } else { &builders.h1 };
    let io = TokioIo::new(Linger::new(stream, conn.remainder.clone()));
    let service = {
        let conn = conn.clone();
        service_fn(move |request: http::Request<Incoming>| forward(conn.clone(), request.map(Inflow::Http1)))
    };
    let mut serving = Box::pin(builder.serve_connection(io, service).with_upgrades());
    async move {
        let patient = conn.patience.clone();
        let silent = poll_fn(|cx| patient.as_ref().map_or(Poll::Pending, |patience| patience.poll_over(cx)));
        let served = tokio::select! {
            biased;
            () = silent => return None,
            served = drive(serving.as_mut(), &conn, |c| c.graceful_shutdown()) => served,
        };
        match served {
            Err(PEER_EXPIRED) => None,
            Err(reason) => Some(reason),
            Ok(Err(error)) if error.is_parse_too_large() => Some("head_too_large"),
            Ok(Err(error)) if error.is_parse() => Some("malformed_http"),
            Ok(_) => None,
        }
    }
}

/// Serves HTTP/2, and returns what [`serve_h1`] does.
fn serve_h2<S>(conn: Rc<ConnContext>, stream: S) -> impl Future<Output = Option<&'static str>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let accepting = Box::pin(http2::accept(conn.clone(), stream));
    async move {
        let mut drain = conn.worker.drain.clone();
        let accepted = tokio::select! {
            biased;
            accepted = tokio::time::timeout(conn.worker.limits.head_timeout, accepting) => accepted.ok()?,
            () = drain.begun() => return None, // nothing was asked yet
        };
        let ended = match accepted {
            Ok(mut serving) => {
                match drive(serving.as_mut(), &conn, |serving| serving.get_mut().finish()).await {
                    Ok(ended) => ended,
                    Err(reason) => return (reason != PEER_EXPIRED).then_some(reason),
                }
            }
            Err(error) => Err(error),
        };
        let error = ended.err()?;
        // We ended the connection, and not because it was time.
        (error.is_library() && error.reason() != Some(h2::Reason::NO_ERROR)).then_some("malformed_http")
    }
}

fn reject(
    worker: &Worker,
    listener: &ListenerContext,
    addr: ClientAddr,
    reason: &'static str,
    peer: Option<SubjectFacts<'_>>,
) {
    let facts = ConnFacts { subject: peer, ..plain_facts(listener, addr) };
    reject_with(worker, listener, reason, facts);
}

fn reject_with(worker: &Worker, listener: &ListenerContext, reason: &'static str, conn: ConnFacts<'_>) {
    worker.metrics.rejected_connections.inc();
    tracing::debug!(listener = listener.name, peer = %conn.peer, reason, "connection rejected");
    let Ok(mut place) = worker.recorder.reserve(1) else { return }; // counted above; the trail is full
    place.conn_rejected(&ConnRejected { time_unix_ns: worker.clock.now_ns(), conn, reason });
}

fn plain_facts(listener: &ListenerContext, addr: ClientAddr) -> ConnFacts<'_> {
    let direction = match listener.direction {
        Direction::Inbound { .. } | Direction::Probes { .. } => audit::Direction::Inbound,
        Direction::Outbound { .. } | Direction::Stream { .. } => audit::Direction::Outbound,
    };
    ConnFacts {
        direction,
        listener: &listener.name,
        peer: addr.0,
        destination: None,
        service: None,
        tls: None,
        subject: None,
    }
}

/// Serves until the connection ends by itself, a drain asks it to finish, or what it stands on is over. `finish` tells it to
/// end what it has and take nothing new.
///
/// # Errors
/// Why access ended, whatever was under way.
async fn drive<C: Future>(
    mut conn: Pin<&mut C>,
    context: &ConnContext,
    finish: impl FnOnce(Pin<&mut C>),
) -> Result<C::Output, &'static str> {
    let peer = context.peer.as_ref();
    let mut lost = std::pin::pin!(async {
        match peer {
            None => std::future::pending().await,
            Some(peer) => peer.tenure.vouched.lost().await,
        }
    });
    let mut drain = context.worker.drain.clone();
    {
        let mut finishing = std::pin::pin!(async {
            match peer {
                None => drain.begun().await,
                // Whichever comes first.
                Some(peer) => drop(tokio::time::timeout_at(peer.retire_at, drain.begun()).await),
            }
        });
        let asked = poll_fn(|cx: &mut Context<'_>| {
            if let Poll::Ready(ended) = conn.as_mut().poll(cx) {
                return Poll::Ready(Some(Ok(ended)));
            }
            if let Poll::Ready(reason) = lost.as_mut().poll(cx) {
                return Poll::Ready(Some(Err(reason)));
            }
            finishing.as_mut().poll(cx).map(|()| None)
        });
        if let Some(ended) = asked.await {
            return ended;
        }
    }
    finish(conn.as_mut());
    let Some(peer) = peer else { return Ok(conn.await) };
    tokio::select! {
        biased;
        ended = conn => Ok(ended),
        reason = lost => Err(reason),
        () = tokio::time::sleep_until(peer.tenure.end) => Err(PEER_EXPIRED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_serve<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    fn of_serve_http<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn of_serve_protocol<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// If this fails, each idle connection costs kilobytes for what it did long ago: the task of one was 13 KiB.
    #[test]
    fn the_tasks_of_a_connection_stay_small() {
        let protocol = [
            of_serve_protocol(serve_h1::<TlsStream<TcpStream>>),
            of_serve_protocol(serve_h2::<TlsStream<TcpStream>>),
        ];
        let all =
            [of_serve(serve), of_serve_http(serve_http::<TlsStream<TcpStream>>), protocol[0], protocol[1]];
        assert!(all.iter().all(|size| *size <= 1280), "{all:?}");
    }
}
