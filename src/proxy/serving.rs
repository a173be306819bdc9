//! HTTP over a connection whose peer is known, until it ends.
//!
//! Owns the choice between HTTP/1.1 and HTTP/2, and the reasons for which a connection ends: its peer, a drain, or what vouches for
//! the peer. What happens to a request is `forward`'s.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::context::{ClientAddr, ConnContext, Direction, PeerId};
use super::hangup::Hangup;
use super::http1::{self, Io};
use super::http2;
use super::outcome::PEER_EXPIRED;
use super::rejected::reject;
use crate::drain::Stage;

/// A caller that comes while callers are sent elsewhere is told so after this time: it would only come again, with another handshake,
/// until the place that sends it here has heard too. As long is what lies between the two ways of telling it.
const WELCOME: Duration = Duration::from_secs(1);

/// The HTTP that a connection speaks.
pub(super) enum Http {
    /// HTTP/1, and what tells of a client that has gone, on a plain connection.
    H1(Option<Hangup>),
    /// HTTP/2.
    H2,
}

/// Speaks HTTP over `io` until it ends. No `async fn`, here and below: an argument of one keeps its place for as long as the
/// future lives, and this one is a kilobyte that has long moved on.
pub(super) fn serve_http(
    conn: Rc<ConnContext>,
    io: Io,
    http: Http,
    addr: ClientAddr,
) -> impl Future<Output = ()> {
    let offence: Pin<Box<dyn Future<Output = Option<&'static str>>>> = match http {
        Http::H2 => Box::pin(serve_h2(conn.clone(), io)),
        Http::H1(hangup) => Box::pin(serve_h1(conn.clone(), io, hangup)),
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

/// Serves HTTP/1.1. Returns what the peer did to HTTP itself, or why what vouched for it ended.
fn serve_h1(
    conn: Rc<ConnContext>,
    io: Io,
    hangup: Option<Hangup>,
) -> impl Future<Output = Option<&'static str>> {
    let mut serving = http1::serve(conn.clone(), io, hangup);
    async move {
        match drive(Pin::new(&mut serving), &conn, |mut serving, end| match end {
            End::WithAnAnswer => serving.leave(),
            End::Soon => {}
            End::Now => serving.finish(),
        })
        .await
        {
            Err(PEER_EXPIRED) => None,
            Err(reason) => Some(reason),
            Ok(offence) => offence,
        }
    }
}

/// Serves HTTP/2, and returns what [`serve_h1`] does.
fn serve_h2(conn: Rc<ConnContext>, io: Io) -> impl Future<Output = Option<&'static str>> {
    let accepting = Box::pin(http2::accept(conn.clone(), io));
    async move {
        let mut drain = conn.worker.drain.clone();
        let accepted = tokio::select! {
            biased;
            accepted = tokio::time::timeout(conn.worker.limits.head_timeout, accepting) => accepted.ok()?,
            () = drain.begun() => return None, // nothing was asked yet
        };
        let ended = match accepted {
            Ok(mut serving) => {
                let finish = |serving: Pin<&mut http2::Serving<Io>>, end| match end {
                    End::WithAnAnswer => conn.leaving.set(conn.peer.is_some()),
                    End::Soon | End::Now => serving.get_mut().finish(),
                };
                match drive(serving.as_mut(), &conn, finish).await {
                    Ok(ended) => {
                        // What is still under way, its peer has left behind.
                        conn.client_gone.set(true);
                        ended
                    }
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

/// How a connection is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer is told with an answer, and so before it sends its next request.
    WithAnAnswer,
    /// The peer is told by GOAWAY, which every peer understands. A request that a client sends at this moment can be lost: `h2`
    /// answers the PING that follows before it writes what it has queued, and is told that the rest was not processed.
    Soon,
    /// With what is under way.
    Now,
}

/// Serves until the connection ends by itself, a drain asks it to finish, or what it stands on is over. `finish` tells it to
/// end what it has and take nothing new.
///
/// # Errors
/// Why access ended, whatever was under way.
async fn drive<C: Future>(
    mut conn: Pin<&mut C>,
    context: &ConnContext,
    finish: impl Fn(Pin<&mut C>, End),
) -> Result<C::Output, &'static str> {
    let peer = context.peer.as_ref();
    let mut lost = std::pin::pin!(async {
        match peer {
            None => std::future::pending().await,
            Some(peer) => peer.tenure.vouched.lost().await,
        }
    });
    for end in [End::WithAnAnswer, End::Soon, End::Now] {
        let told = std::pin::pin!(told(context, end));
        if let Some(ended) = until(conn.as_mut(), lost.as_mut(), told).await {
            return ended;
        }
        finish(conn.as_mut(), end);
    }
    let Some(peer) = peer else { return Ok(conn.await) };
    tokio::select! {
        biased;
        ended = conn => Ok(ended),
        reason = lost => Err(reason),
        () = tokio::time::sleep_until(peer.tenure.end) => Err(PEER_EXPIRED),
    }
}

/// Serves until `told`, unless the connection ends first.
fn until<C: Future>(
    mut conn: Pin<&mut C>,
    mut lost: Pin<&mut impl Future<Output = &'static str>>,
    mut told: Pin<&mut impl Future<Output = ()>>,
) -> impl Future<Output = Option<Result<C::Output, &'static str>>> {
    poll_fn(move |cx: &mut Context<'_>| {
        if let Poll::Ready(ended) = conn.as_mut().poll(cx) {
            return Poll::Ready(Some(Ok(ended)));
        }
        if let Poll::Ready(reason) = lost.as_mut().poll(cx) {
            return Poll::Ready(Some(Err(reason)));
        }
        told.as_mut().poll(cx).map(|()| None)
    })
}

/// Returns when a connection is to end so: a caller when it is to go elsewhere, the pod's own calls only with the pod, and either
/// when it is time for the peer to show itself anew.
async fn told(context: &ConnContext, end: End) {
    let mut drain = context.worker.drain.clone();
    let elsewhere = matches!(context.listener.direction, Direction::Inbound { .. });
    let welcome = match end {
        End::WithAnAnswer => elsewhere && drain.has_left(),
        End::Soon => elsewhere,
        End::Now => false,
    };
    let first = elsewhere && end == End::WithAnAnswer && !welcome;
    let stage = if first { Stage::Leaving } else { Stage::Over };
    let welcome = welcome.then(|| Instant::now() + WELCOME);
    match context.peer.as_ref().map(|peer| peer.retire_at).into_iter().chain(welcome).min() {
        None => drain.reached(stage).await,
        Some(at) => drop(tokio::time::timeout_at(at, drain.reached(stage)).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::connection::serve;

    fn of_serve<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    fn of_serve_http<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    fn of_serve_h1<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn of_serve_h2<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// If this fails, each idle connection costs kilobytes for what it did long ago: the task of one was 13 KiB.
    #[test]
    fn the_tasks_of_a_connection_stay_small() {
        let all = [of_serve(serve), of_serve_http(serve_http), of_serve_h1(serve_h1), of_serve_h2(serve_h2)];
        assert!(all.iter().all(|size| *size <= 1280), "{all:?}");
    }
}
