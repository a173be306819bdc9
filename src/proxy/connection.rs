//! One accepted connection, from its handshake to its end.
//!
//! Owns TLS acceptance, the choice between HTTP/1.1 and HTTP/2, and the reasons for which a connection ends: its peer,
//! a drain, or the peer's certificate running out. What happens to a request is `forward`'s.

use std::future::poll_fn;
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

use super::body::Inflow;
use super::context::{ClientAddr, ConnContext, Direction, ListenerContext, PeerId, Worker};
use super::dial::retirement;
use super::forward::forward;
use super::hangup;
use super::http2;
use super::linger::Linger;
use super::listener::Slot;
use super::outcome::PEER_EXPIRED;
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
    match &listener.direction {
        Direction::Inbound { .. } => serve_mesh(worker, listener, stream, addr, slot).await,
        Direction::Outbound { .. } | Direction::Probes { .. } => {
            serve_plain(worker, listener, stream, addr, slot).await;
        }
    }
}

async fn serve_mesh(
    worker: Rc<Worker>,
    listener: Rc<ListenerContext>,
    stream: TcpStream,
    addr: ClientAddr,
    slot: Slot,
) {
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
    let fragment = audit::ConnFragment::new(&ConnFacts {
        direction: audit::Direction::Inbound,
        listener: &listener.name,
        peer: addr.0,
        tls: Some(TlsFacts {
            version: tls.protocol_version().map_or("unknown", tls::version_name),
            cipher: tls.negotiated_cipher_suite().map_or("unknown", |s| tls::cipher_name(s.suite())),
            alpn: Some(if h2 { "h2" } else { "http/1.1" }),
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
    let conn = ConnContext::new(worker, listener, Some(peer), fragment, None, h2, slot);
    // A task of its own: this one's memory, most of it the handshake's, is not kept for as long as the connection lives.
    drop(tokio::task::spawn_local(serve_http(conn, stream, h2, addr)));
}

async fn serve_plain(
    worker: Rc<Worker>,
    listener: Rc<ListenerContext>,
    stream: TcpStream,
    addr: ClientAddr,
    slot: Slot,
) {
    // Closed, silent for too long, or silent when a drain begins: nothing was asked.
    let mut drain = worker.drain.clone();
    let knows = tokio::select! {
        biased;
        knows = tokio::time::timeout(worker.limits.head_timeout, speaks_h2(&stream)) => knows,
        () = drain.begun() => return,
    };
    let Ok(Ok(h2)) = knows else { return };
    let fragment = {
        let settings = worker.tls.borrow();
        let svid = &settings.material().svid;
        // Whoever calls from inside the pod acts as the pod's own workload.
        let subject = SubjectFacts { spiffe_id: svid.id().as_str(), cert_sha256: svid.leaf_sha256_hex() };
        audit::ConnFragment::new(&ConnFacts { subject: Some(subject), ..plain_facts(&listener, addr) })
    };
    if h2 {
        let conn = ConnContext::new(worker, listener, None, fragment, None, h2, slot);
        return serve_http(conn, stream, h2, addr).await;
    }
    let (stream, hangup) = hangup::watched(stream);
    let conn = ConnContext::new(worker, listener, None, fragment, Some(hangup), h2, slot);
    serve_http(conn, stream, h2, addr).await;
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

/// Whether an HTTP/2 preface comes (RFC 9113, section 3.4), looked at without taking it from the socket.
async fn speaks_h2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut start = [0; PREFACE.len()];
    let mut wait = Duration::from_millis(1);
    loop {
        let n = stream.peek(&mut start).await?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if start[..n] != PREFACE[..n] || n == PREFACE.len() {
            return Ok(n == PREFACE.len() && start == PREFACE);
        }
        // A preface cut in two: peek would return the same bytes at once, so let the rest arrive; ever more patiently, so
        // that a thousand such connections cost nothing.
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
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
    worker.metrics.rejected_connections.inc();
    tracing::debug!(listener = listener.name, peer = %addr.0, reason, "connection rejected");
    let Ok(mut place) = worker.recorder.reserve(1) else { return }; // counted above; the trail is full
    place.conn_rejected(&ConnRejected {
        time_unix_ns: worker.clock.now_ns(),
        conn: ConnFacts { subject: peer, ..plain_facts(listener, addr) },
        reason,
    });
}

fn plain_facts(listener: &ListenerContext, addr: ClientAddr) -> ConnFacts<'_> {
    let direction = match listener.direction {
        Direction::Inbound { .. } | Direction::Probes { .. } => audit::Direction::Inbound,
        Direction::Outbound { .. } => audit::Direction::Outbound,
    };
    ConnFacts { direction, listener: &listener.name, peer: addr.0, destination: None, service: None, tls: None, subject: None }
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
