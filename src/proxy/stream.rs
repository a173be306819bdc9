//! Bytes both ways, until both directions have ended or what the stream stands on does: the second half of an upgrade, and all of
//! a TCP connection.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authorize::revoked;
use super::context::ConnContext;
use super::exchange::Exchange;
use super::outcome::{ACCESS_REVOKED, Failure};
use super::vouched::Tenure;

/// What a stream stands on: the connection that it came by, and what it was let in for.
pub(crate) struct Standing {
    pub(crate) conn: Rc<ConnContext>,
    pub(crate) asked: Asked,
}

/// What the policy was asked about.
pub(crate) enum Asked {
    /// A request, by the parts of its head that decide.
    Request(Box<Request<()>>),
    /// The listener as a whole.
    Stream,
}

const COPY_BUFFER: usize = 16 * 1024;

/// Copies until both directions have ended, or what the stream stands on does.
pub(crate) async fn carry<C, U>(
    client: C,
    upstream: U,
    exchange: &Exchange,
    standing: &Standing,
    upstream_tenure: Option<&Tenure>,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Counted { stream: client, count: |n| exchange.add_request_bytes(n) };
    let mut upstream = Counted { stream: upstream, count: |n| exchange.add_response_bytes(n) };
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BUFFER, COPY_BUFFER);
    let client_tenure = standing.conn.peer.as_ref().map(|peer| &peer.tenure);
    tokio::select! {
        biased;
        copied = copied => match copied {
            Ok(_) => exchange.response_ended(),
            Err(_) => exchange.fail(Failure::RESET.reason),
        },
        reason = over(client_tenure) => exchange.fail(reason),
        reason = over(upstream_tenure) => exchange.fail(reason),
        () = revoked(standing) => exchange.fail(ACCESS_REVOKED),
    }
}

async fn over(tenure: Option<&Tenure>) -> &'static str {
    match tenure {
        Some(tenure) => tenure.over().await,
        None => std::future::pending().await,
    }
}

/// A stream whose incoming bytes are counted as they come, so that they count however it ends.
struct Counted<S, F> {
    stream: S,
    count: F,
}

impl<S: AsyncRead + Unpin, F: Fn(usize) + Unpin> AsyncRead for Counted<S, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        (self.count)(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F: Unpin> AsyncWrite for Counted<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
