//! HTTP over a connection whose peer is known, until it ends.
//!
//! Owns hyper's settings, the choice between HTTP/1.1 and HTTP/2, and the reasons for which a connection ends: its peer, a drain, or what
//! vouches for the peer. What happens to a request is `forward`'s.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::Inflow;
use super::context::{ClientAddr, ConnContext, PeerId};
use super::forward::forward;
use super::http2;
use super::linger::Linger;
use super::outcome::PEER_EXPIRED;
use super::rejected::reject;
use crate::config::Limits;

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

/// Speaks HTTP over `stream` until it ends. No `async fn`, here and below: an argument of one keeps its place for as long as the
/// future lives, and this one is a kilobyte that has long moved on.
pub(super) fn serve_http<S>(
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
    use tokio::net::TcpStream;
    use tokio_rustls::server::TlsStream;

    use super::*;
    use crate::proxy::connection::serve;

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
