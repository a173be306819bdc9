//! Bodies that pass through, counted: frames are handed on untouched, with the back-pressure of the side that reads.
//!
//! Owns the account of one exchange ([`Exchange`]): bytes both ways, status, and the audit place that its end fills. A
//! body never looks into a frame and never collects one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::upstream::Lease;

/// The body of a request on its way to an upstream.
pub(crate) struct RequestBody {
    inner: Incoming,
    exchange: Rc<Exchange>,
    ended: bool,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, exchange: Rc<Exchange>) -> Self {
        Self { inner, exchange, ended: false }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended && !self.inner.is_end_stream() {
            self.exchange.request_unread();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            self.exchange.client_owes();
            return Poll::Pending;
        };
        self.exchange.upstream_owes();
        match &frame {
            Some(Ok(frame)) => {
                self.exchange.add_request_bytes(frame.data_ref().map_or(0, Bytes::len));
                self.ended = frame.is_trailers();
            }
            Some(Err(_)) => {}
            None => self.ended = true,
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
}

/// An upstream's body. Its last frame ends the exchange and gives the connection back.
pub(crate) struct UpstreamBody {
    inner: Incoming,
    exchange: Rc<Exchange>,
    lease: Option<Lease>,
}

impl ReplyBody {
    pub(crate) fn upstream(inner: Incoming, exchange: Rc<Exchange>, lease: Lease) -> Self {
        let mut body = UpstreamBody { inner, exchange, lease: Some(lease) };
        if body.inner.is_end_stream() {
            body.ended();
        }
        Self::Upstream(body)
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = match &mut *self {
            Self::Own(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
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
            Self::Upstream(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(body) => body.inner.size_hint(),
        }
    }
}
