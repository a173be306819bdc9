//! A connection to an upstream: one request at a time, written and answered by the task that has it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;

use super::Error;
use super::body::Incoming;
use super::head::{self, Length};
use super::io::{Io, Rewound};
use super::request;
use super::response::{self, Answered};
use super::send::{Failed, Outgoing};
use super::wire::{Coming, Wire};
use crate::proxy::body::RequestBody;
use crate::proxy::upload::Upload;
use crate::proxy::vouched::Tenure;

/// A connection that carries one request at a time.
pub(crate) struct Connection {
    wire: Rc<Wire>,
    /// Whether the last request is out to its last byte.
    sent: Rc<Cell<bool>>,
    /// The largest head of a response.
    head_bytes: usize,
}

/// A request that was not sent: itself.
pub(crate) struct Unsent(pub(crate) Box<Request<RequestBody>>);

/// A request on its way. Dropping it before the response ends the connection.
pub(crate) struct Reply {
    wire: Rc<Wire>,
    head_bytes: usize,
    method: Method,
    upload: Option<Upload>,
}

impl Connection {
    /// Speaks over `io`, within `tenure`; a response may have a head of `head_bytes`.
    pub(crate) fn new(io: Io, head_bytes: usize, tenure: Option<Tenure>) -> Self {
        let over = tenure.map(|tenure| -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                let _why = tenure.over().await; // told by the side that serves
            })
        });
        Self { wire: Rc::new(Wire::new(io, over)), sent: Rc::new(Cell::new(true)), head_bytes }
    }

    /// Whether the last exchange is over, both ways, and left the connection in order.
    pub(crate) fn is_free(&self) -> bool {
        self.wire.is_in_order() && self.sent.get()
    }

    /// Whether something came while nothing was asked, or the other end closed.
    pub(crate) fn stirs(&self) -> bool {
        self.wire.stirs()
    }

    /// Sends `request`, as much of it as there is; a task of its own sends the rest.
    ///
    /// # Errors
    /// Not a byte of it could be written.
    pub(crate) fn send(&self, request: Request<RequestBody>) -> Result<Reply, Unsent> {
        let (parts, body) = request.into_parts();
        let mut out = BytesMut::with_capacity(1024);
        let length = request::write(&mut out, &parts);
        self.sent.set(false);
        self.wire.has_come(Coming::Open);
        let wire = self.wire.clone();
        let mut reply =
            Reply { wire, head_bytes: self.head_bytes, method: parts.method.clone(), upload: None };
        let mut trailers = Vec::new();
        if length == Length::Exactly(0) && body.is_end_stream() {
            let all = out.len();
            match self.wire.poll_write(&mut Context::from_waker(Waker::noop()), &mut out) {
                Poll::Ready(Err(_)) if out.len() == all => {
                    return Err(Unsent(Box::new(Request::from_parts(parts, body))));
                }
                // Where some of it went out, what becomes of it is seen where the answer is read.
                Poll::Ready(written) => {
                    self.sent.set(written.is_ok());
                    return Ok(reply);
                }
                Poll::Pending => {}
            }
        } else {
            trailers = head::announced_trailers(&parts.headers);
        }
        let outgoing = Outgoing::new(out, length, trailers);
        let sending = upload(self.wire.clone(), self.sent.clone(), outgoing, body);
        reply.upload = Upload::begin(Box::pin(sending));
        Ok(reply)
    }

    /// The stream under the connection, which has stopped being HTTP's; nothing while a request is still on its way out.
    pub(crate) fn into_stream(self) -> Option<Rewound> {
        Rc::into_inner(self.wire).map(Wire::into_stream)
    }
}

/// Sends the head that waits, and `body` to its end. A body that breaks off ends the connection with it: the upstream must not
/// take the half for the whole.
async fn upload(wire: Rc<Wire>, sent: Rc<Cell<bool>>, outgoing: Outgoing, body: RequestBody) {
    match outgoing.send(&wire, body).await {
        Ok(()) => sent.set(true),
        // It may have answered all the same; the reader of the answer tells what there is to tell.
        Err(Failed::Peer) => {}
        Err(Failed::Body) => wire.cut(),
    }
}

impl Reply {
    /// What still uploads, once the response is there.
    pub(crate) fn into_upload(self) -> Option<Upload> {
        self.upload
    }

    /// The response, unless more of it must come.
    fn parse(&self) -> Result<Option<Response<Incoming>>, Error> {
        let mut input = self.wire.input.borrow_mut();
        while !input.is_empty() {
            let Some(head) = response::read(&mut input, &self.method, self.head_bytes)? else {
                break;
            };
            let Answered { response, length, keeps } = head;
            // Interim responses are for this hop: the client's own side told it to go on (RFC 9110, section 15.2).
            if !response.status().is_informational() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                drop(input);
                return Ok(Some(response.map(|()| Incoming::new(self.wire.clone(), length, keeps))));
            }
        }
        Ok(None)
    }
}

impl Future for Reply {
    type Output = Result<Response<Incoming>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(response) = self.parse()? {
                return Poll::Ready(Ok(response));
            }
            if ready!(self.wire.poll_more(cx))? == 0 {
                return Poll::Ready(Err(Error::Cut));
            }
        }
    }
}
