//! Connections that stop being HTTP: WebSocket and other `Upgrade`s, as bytes both ways once both ends agreed.
//!
//! An upgrade travels on HTTP/1.1 connections of its own. Its exchange stays open until both directions have ended, so
//! its completion event tells the bytes and the time of the whole stream.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::authorize::revoked;
use super::body::{Inflow, ReplyBody};
use super::context::ConnContext;
use super::endpoint::Lease;
use super::exchange::Exchange;
use super::headers;
use super::http1::Rewound;
use super::outcome::{ACCESS_REVOKED, Failure};
use super::vouched::Tenure;

/// A client's wish to switch protocols, with its half of the connection to come.
pub(crate) struct Switch {
    protocol: HeaderValue,
    client: OnUpgrade,
    standing: Standing,
}

/// What a stream stands on: the connection that it came by, and what it was let in for.
struct Standing {
    conn: Rc<ConnContext>,
    head: Request<()>,
}

const COPY_BUFFER: usize = 16 * 1024;

/// The switch that `request` asks for, if it does so by the rules of RFC 9110, section 7.8. `h2c` is not among them
/// (RFC 9113 dropped it, and smuggling lives there): such a request is served as plain HTTP/1.1.
pub(crate) fn asked(conn: &Rc<ConnContext>, request: &mut Request<Inflow>) -> Option<Switch> {
    if request.version() != Version::HTTP_11 || !headers::names_upgrade(request.headers()) {
        return None;
    }
    let protocol = request.headers().get(header::UPGRADE)?.clone();
    if headers::has_token(&protocol, b"h2c") {
        return None;
    }
    let standing = Standing { conn: conn.clone(), head: head_of(request) };
    Some(Switch { protocol, client: hyper::upgrade::on(request), standing })
}

/// The parts of a request's head that decide.
fn head_of(request: &Request<Inflow>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    if let Some(host) = request.headers().get(header::HOST) {
        head.headers_mut().insert(header::HOST, host.clone());
    }
    head
}

impl Switch {
    /// Puts the wish into the head for the next hop, from which hop-by-hop fields were stripped.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }

    /// The upstream agreed: tells the client, and copies until both directions have ended.
    ///
    /// # Errors
    /// The upstream switched to something the client did not ask for.
    pub(crate) fn complete(
        self,
        response: Response<Inflow>,
        exchange: Rc<Exchange>,
        mut lease: Lease,
    ) -> Result<Response<ReplyBody>, Failure> {
        let agreed = response.headers().get(header::UPGRADE).cloned();
        let asked_for = |p: &HeaderValue| headers::has_token(&self.protocol, p.as_bytes());
        let Some(agreed) = agreed.filter(asked_for) else { return Err(Failure::RESET) };

        let tenure = lease.tenure();
        let upstream = lease.take_stream().ok_or(Failure::RESET)?;

        exchange.status(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        exchange.switched();
        let Self { client, standing, .. } = self;
        drop(tokio::task::spawn_local(async move {
            if let Ok(client) = client.await {
                carry(client, upstream, &exchange, &standing, tenure.as_ref()).await;
            }
            drop(lease); // it counts as a request on its way until now
        }));

        let (mut parts, _) = response.into_parts();
        headers::clean_response(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, agreed);
        Ok(Response::from_parts(parts, ReplyBody::Own(None)))
    }
}

/// Copies until both directions have ended, or what the stream stands on does.
async fn carry(
    client: Upgraded,
    upstream: Rewound,
    exchange: &Exchange,
    standing: &Standing,
    upstream_tenure: Option<&Tenure>,
) {
    let mut client = Counted { stream: TokioIo::new(client), count: |n| exchange.add_request_bytes(n) };
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
        () = revoked(&standing.conn, &standing.head) => exchange.fail(ACCESS_REVOKED),
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
