//! Bodies that pass through, counted: frames are handed on untouched, with the back-pressure of the side that reads.
//!
//! Owns the account of one exchange ([`Exchange`]): bytes both ways, status, and the audit place that its end fills. A
//! body never looks into a frame and never collects one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};

use super::endpoint::Lease;
use super::exchange::Exchange;
use super::http1;
use super::upgrade::Switched;

/// A body as it comes in, by either protocol.
pub(crate) enum Inflow {
    /// Over HTTP/1.
    Http1(http1::Incoming),
    /// HTTP/2: a stream, and whether its data has ended.
    Http2(RecvStream, bool),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Over HTTP/1.
    #[error(transparent)]
    Http1(#[from] http1::Error),
    /// HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

impl Inflow {
    pub(crate) fn streamed(stream: RecvStream) -> Self {
        Self::Http2(stream, false)
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let (stream, data_ended) = match &mut *self {
            Self::Http1(body) => return body.poll_frame(cx).map_err(Broken::from),
            Self::Http2(stream, data_ended) => (stream, data_ended),
        };
        if !*data_ended {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Whoever asks for a frame passes it on before it asks again, so the sender may send as much more.
                    drop(stream.flow_control().release_capacity(data.len()));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // The other side has sent all it will and wants no more of ours (RFC 9113, section 8.1).
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => *data_ended = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream, _) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            // The head of an HTTP/2 message says it, where anybody does.
            Self::Http2(stream, _) if stream.is_end_stream() => SizeHint::with_exact(0),
            Self::Http2(..) => SizeHint::default(),
        }
    }
}

/// The body of a request on its way to an upstream.
pub(crate) struct RequestBody {
    inner: Inflow,
    exchange: Rc<Exchange>,
}

impl RequestBody {
    pub(crate) fn new(inner: Inflow, exchange: Rc<Exchange>) -> Self {
        Self { inner, exchange }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            self.exchange.client_owes();
            return Poll::Pending;
        };
        self.exchange.upstream_owes();
        match &frame {
            Some(Ok(frame)) => self.exchange.add_request_bytes(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.exchange.request_broke(),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of a reply: the upstream's, or a few bytes of our own.
pub(crate) enum ReplyBody {
    /// Our own words, or nothing.
    Own(Option<Bytes>),
    /// The upstream's.
    Upstream(UpstreamBody),
    /// What follows an agreement to switch protocols: no longer a body.
    Switched(Box<Switched>),
}

/// An upstream's body. Its last frame ends the exchange and gives the connection back.
pub(crate) struct UpstreamBody {
    inner: Inflow,
    exchange: Rc<Exchange>,
    lease: Option<Lease>,
}

impl ReplyBody {
    pub(crate) fn upstream(inner: Inflow, exchange: Rc<Exchange>, lease: Lease) -> Self {
        let mut body = UpstreamBody { inner, exchange, lease: Some(lease) };
        if body.inner.is_end_stream() {
            body.ended();
        }
        Self::Upstream(body)
    }

    /// Its client wants no more of it.
    pub(crate) fn given_up(&self) {
        if let Self::Upstream(body) = self {
            body.exchange.given_up();
        }
    }
}

impl UpstreamBody {
    fn ended(&mut self) {
        self.exchange.response_ended();
        if let Some(lease) = self.lease.take() {
            lease.release();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let body = match &mut *self {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Switched(_) => return Poll::Ready(None),
            Self::Upstream(body) => body,
        };
        let frame = ready!(Pin::new(&mut body.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    body.exchange.add_response_bytes(data.len());
                }
                // A server need not poll once more after the last byte or the trailers, so the end is noticed here.
                if frame.is_trailers() || body.inner.is_end_stream() {
                    body.ended();
                }
            }
            Some(Err(_)) => body.exchange.fail("upstream_reset"),
            None => body.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Switched(_) => true,
            Self::Upstream(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Switched(_) => SizeHint::with_exact(0),
            Self::Upstream(body) => body.inner.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    /// If this fails, an app takes the half of an upload that its caller gave up for the whole of it.
    #[tokio::test]
    async fn a_body_that_its_sender_cancels_does_not_end_well() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (client, server) = tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
        let ((mut client, connection), mut server) = (client.unwrap(), server.unwrap());
        tokio::spawn(connection);
        let post = http::Request::post("https://records.clinic/upload").body(()).unwrap();
        let (_response, mut upload) = client.send_request(post, false).unwrap();
        upload.send_data(Bytes::from_static(b"half"), false).unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });

        let mut body = Inflow::streamed(request.into_body());
        let half = body.frame().await.unwrap().unwrap();
        assert_eq!(half.into_data().unwrap(), "half");
        upload.send_reset(Reason::CANCEL);
        assert!(body.frame().await.unwrap().is_err());
    }
}
