//! The server's end: requests one after another, each served by the task of its connection.
//!
//! Owns when a connection ends and how. While nothing comes it has no buffer; while a request is being answered it watches for a
//! client that goes away, and drops what was under way for it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};

use super::body::Incoming;
use super::head::{self, Length};
use super::io::Io;
use super::request::{self, Asked};
use super::response::{self, Manner};
use super::send::{Failed, Outgoing};
use super::wire::{Coming, Wire};
use super::{Error, linger};
use crate::proxy::body::{Inflow, ReplyBody};
use crate::proxy::context::ConnContext;
use crate::proxy::forward::forward;
use crate::proxy::hangup::Hangup;
use crate::proxy::patience::Patience;
use crate::proxy::upgrade::Switched;

/// How much of a body that nobody wants is thrown away for a connection to stay.
const THROWN_AWAY: usize = 64 * 1024;

/// A connection that is served; it ends when the client or [`Serving::finish`] ends it. Its outcome is what the client did to
/// HTTP itself: nobody decided about such a request, so the connection's event is the record of it.
pub(crate) struct Serving {
    closing: Rc<Cell<Closing>>,
    served: Pin<Box<dyn Future<Output = Option<&'static str>>>>,
}

/// Serves requests that come over `io`. `hangup` tells a client that has gone from one that finished sending; without it
/// either is gone: no sidecar finishes sending before it has its answer.
pub(crate) fn serve(conn: Rc<ConnContext>, io: Io, hangup: Option<Hangup>) -> Serving {
    let closing = Rc::new(Cell::new(Closing::No));
    let patience = conn.worker.owing.join(conn.worker.clock.now());
    let wire = Rc::new(Wire::new(io, None));
    let server = Server { conn, wire, hangup, patience, closing: closing.clone() };
    Serving { closing, served: Box::pin(server.run()) }
}

impl Serving {
    /// Ends with the next answer, which says so: a client that is about to send its next request is not cut off.
    pub(crate) fn leave(&mut self) {
        self.closing.set(Closing::WithAnAnswer);
    }

    /// Takes no new request and ends with the one it has.
    pub(crate) fn finish(&mut self) {
        self.closing.set(Closing::Now);
    }
}

impl Future for Serving {
    type Output = Option<&'static str>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.served.as_mut().poll(cx)
    }
}

struct Server {
    conn: Rc<ConnContext>,
    wire: Rc<Wire>,
    hangup: Option<Hangup>,
    /// How long the next head may take.
    patience: Rc<Patience>,
    closing: Rc<Cell<Closing>>,
}

/// Whether a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    WithAnAnswer,
    Now,
}

/// What comes after a request.
enum Then {
    Next,
    /// An end in order.
    Close,
    /// The client has gone, or gets no more.
    Over,
    /// What is no longer HTTP.
    Switched(Box<Switched>),
}

impl Server {
    async fn run(mut self) -> Option<&'static str> {
        loop {
            let mut looked_at = 0;
            let asked = match poll_fn(|cx| self.poll_head(cx, &mut looked_at)).await {
                Ok(Some(asked)) => asked,
                Ok(None) => break,
                Err(error) => return Box::pin(self.refuse(&error)).await,
            };
            self.patience.head_came();
            match self.exchange(asked).await {
                Then::Next => self.patience.head_owed(self.conn.worker.clock.latest()),
                Then::Close => break,
                Then::Over => return None,
                Then::Switched(switched) => {
                    // It has other owners while a body is read, and what switches has none.
                    if let Some(wire) = Rc::into_inner(self.wire) {
                        switched.begin(wire.into_stream());
                    }
                    return None;
                }
            }
        }
        Box::pin(self.close()).await;
        None
    }

    /// The next request; nothing when there will be none.
    fn poll_head(&self, cx: &mut Context<'_>, looked_at: &mut usize) -> Poll<Result<Option<Asked>, Error>> {
        let (worker, wire) = (&self.conn.worker, &self.wire);
        let most = worker.limits.head_bytes as usize;
        loop {
            {
                let mut input = wire.input.borrow_mut();
                if input.is_empty() {
                    *input = BytesMut::new(); // what it was a part of is let go of
                    if self.closing.get() == Closing::Now {
                        return Poll::Ready(Ok(None));
                    }
                } else if *looked_at == 0 || head::end(&input, *looked_at).is_some() || input.len() >= most {
                    // To parse for each of the packets that it comes in would cost the square of a head's length.
                    match request::read(&mut input, most) {
                        Ok(None) => {}
                        asked => return Poll::Ready(asked),
                    }
                }
                *looked_at = input.len();
            }
            if self.patience.poll_over(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            if matches!(ready!(wire.poll_some(cx, &worker.scratch)), Ok(0) | Err(_)) {
                return Poll::Ready(Ok(None));
            }
        }
    }

    async fn exchange(&mut self, asked: Asked) -> Then {
        let Asked { request, length, mut manner, waits } = asked;
        let body = Incoming::new(self.wire.clone(), length, manner.keeps);
        if waits {
            self.wire.wants_go_on();
        }
        let Some(response) = self.answer(request.map(|()| Inflow::Http1(body))).await else {
            return Then::Over;
        };
        let mut out = BytesMut::with_capacity(1024);
        out.extend_from_slice(self.wire.rest_of_go_on());
        manner.keeps &= self.closing.get() == Closing::No
            && matches!(self.read_out().await, Coming::Whole { .. } | Coming::Open);
        let (parts, body) = response.into_parts();
        let length = response::write(&mut out, &parts, &body, manner);
        manner.keeps &= length != Some(Length::UntilClose);
        let sent = match (body, length) {
            (ReplyBody::Switched(switched), _) => match self.write(out).await {
                Ok(()) => return Then::Switched(switched),
                Err(failed) => Err(failed),
            },
            (_, None) => self.write(out).await,
            (body, Some(length)) => {
                let trailers =
                    if manner.trailers { head::announced_trailers(&parts.headers) } else { Vec::new() };
                self.send(Outgoing::new(out, length, trailers), body).await
            }
        };
        match sent {
            Ok(()) => self.after(manner).await,
            Err(Failed::Peer) => Then::Over,
            Err(Failed::Body) => {
                self.wire.cut();
                Then::Over
            }
        }
    }

    /// The response, unless the client goes first: what is under way for it is dropped then, and ends at the upstream.
    async fn answer(&mut self, request: Request<Inflow>) -> Option<Response<ReplyBody>> {
        let Self { conn, wire, hangup, .. } = self;
        let mut answer = pin!(forward(conn.clone(), request));
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending => poll_gone(conn, wire, hangup, cx).map(|()| None),
            response => response.map(Some),
        })
        .await
    }

    /// Sends a response to its end, unless the client goes first.
    async fn send(&mut self, outgoing: Outgoing, body: ReplyBody) -> Result<(), Failed> {
        let Self { conn, wire, hangup, .. } = self;
        let mut sending = pin!(outgoing.send(wire, body));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Pending => poll_gone(conn, wire, hangup, cx).map(|()| Err(Failed::Peer)),
            sent => sent,
        })
        .await
    }

    async fn write(&self, mut out: BytesMut) -> Result<(), Failed> {
        poll_fn(|cx| self.wire.poll_write(cx, &mut out)).await.map_err(Failed::from)
    }

    /// What comes after a response that is out.
    async fn after(&self, manner: Manner) -> Then {
        // An upstream that answers early may still be reading.
        poll_fn(|cx| self.wire.poll_read_out(cx)).await;
        let whole = matches!(self.read_out().await, Coming::Whole { .. });
        if whole && manner.keeps && self.closing.get() != Closing::Now { Then::Next } else { Then::Close }
    }

    /// How far the request was read. A little of it that nobody wanted is thrown away, as far as it has come.
    async fn read_out(&self) -> Coming {
        if let Coming::Left(left) = self.wire.coming() {
            let mut rest = Incoming::go_on(self.wire.clone(), left, false);
            let mut thrown = 0;
            poll_fn(|cx| {
                while thrown < THROWN_AWAY
                    && let Poll::Ready(Some(Ok(frame))) = rest.poll_frame(cx)
                {
                    thrown += frame.data_ref().map_or(0, Bytes::len);
                }
                Poll::Ready(())
            })
            .await;
        }
        self.wire.coming()
    }

    /// Answers what is no request. Returns what it was.
    async fn refuse(&self, error: &Error) -> Option<&'static str> {
        let (status, reason) = match error {
            Error::TooLarge => ("431 Request Header Fields Too Large", "head_too_large"),
            _ => ("400 Bad Request", "malformed_http"),
        };
        let said = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        self.wire.has_come(Coming::Broken);
        if self.write(BytesMut::from(said.as_str())).await.is_ok() {
            self.close().await;
        }
        Some(reason)
    }

    async fn close(&self) {
        linger::close(&self.wire, &self.conn.worker.scratch).await;
    }
}

/// Ready when the client has gone; what is under way for it tells so in its account.
fn poll_gone(conn: &ConnContext, wire: &Wire, hangup: &mut Option<Hangup>, cx: &mut Context<'_>) -> Poll<()> {
    ready!(wire.poll_gone(cx, hangup.as_mut(), &conn.worker.scratch));
    conn.client_gone.set(true);
    Poll::Ready(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, F>(_: fn(A) -> F) -> usize {
        size_of::<F>()
    }

    /// If this fails, each idle connection costs kilobytes that it will use when it has a request.
    #[test]
    fn the_task_of_a_connection_stays_small() {
        let size = size_of_future(Server::run);
        assert!(size <= 2816, "{size} bytes");
    }
}
