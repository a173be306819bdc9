//! A connection to an upstream: one request at a time, written and answered by the task that has it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::Error;
use super::body::Incoming;
use super::head::{self, Head, Length};
use super::io::{Io, Rewound};
use super::send::Outgoing;
use crate::proxy::body::RequestBody;
use crate::proxy::upload::Upload;
use crate::proxy::vouched::Tenure;

/// Room for a read: at first, and at most. It grows with reads that fill it, so that large answers take few system calls, and
/// shrinks again when most of it stays empty.
const ROOM_FIRST: usize = 8 * 1024;
const ROOM_MOST: usize = 256 * 1024;

/// A connection that carries one request at a time.
pub(crate) struct Connection(Rc<Wire>);

/// What the request, its upload and the body of its answer share.
pub(super) struct Wire {
    io: RefCell<Io>,
    /// What came and was not taken yet.
    pub(super) input: RefCell<BytesMut>,
    /// The largest head of a response.
    head_bytes: usize,
    room: Cell<usize>,
    /// Ready when the connection must end, whatever it carries.
    over: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    /// Whether the request is out to its last byte.
    sent: Cell<bool>,
    /// Whether the answer was read to its last byte, and another request may follow.
    free: Cell<bool>,
}

/// A request that was not sent: itself.
pub(crate) struct Unsent(pub(crate) Box<Request<RequestBody>>);

/// A request on its way. Dropping it before the response ends the connection.
pub(crate) struct Reply {
    wire: Rc<Wire>,
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
        Self(Rc::new(Wire {
            io: RefCell::new(io),
            input: RefCell::default(),
            head_bytes,
            room: Cell::new(ROOM_FIRST),
            over: RefCell::new(over),
            sent: Cell::new(true),
            free: Cell::new(true),
        }))
    }

    /// Whether the last exchange is over, both ways, and left the connection in order.
    pub(crate) fn is_free(&self) -> bool {
        self.0.free.get() && self.0.sent.get()
    }

    /// Whether something came while nothing was asked, or the other end closed.
    pub(crate) fn stirs(&self) -> bool {
        self.0.io.borrow().stirs()
    }

    /// Sends `request`, as much of it as there is; a task of its own sends the rest.
    ///
    /// # Errors
    /// Not a byte of it could be written.
    pub(crate) fn send(&self, request: Request<RequestBody>) -> Result<Reply, Unsent> {
        let wire = self.0.clone();
        let (parts, body) = request.into_parts();
        let mut out = BytesMut::with_capacity(1024);
        let length = head::write_request(&mut out, &parts);
        wire.sent.set(false);
        wire.free.set(false);
        let method = parts.method.clone();
        if length == Length::Exactly(0) && body.is_end_stream() {
            let all = out.len();
            let written = wire.poll_write(&mut Context::from_waker(Waker::noop()), &mut out);
            match written {
                Poll::Ready(Ok(())) => wire.sent.set(true),
                Poll::Ready(Err(_)) if out.len() == all => {
                    return Err(Unsent(Box::new(Request::from_parts(parts, body))));
                }
                // Some of it went out; what becomes of it is seen where the answer is read.
                Poll::Ready(Err(_)) => {}
                Poll::Pending => {
                    return Ok(Reply::begin(
                        wire,
                        method,
                        Outgoing { out, length, trailers: Vec::new() },
                        body,
                    ));
                }
            }
            return Ok(Reply { wire, method, upload: None });
        }
        let trailers = head::announced_trailers(&parts.headers);
        Ok(Reply::begin(wire, method, Outgoing { out, length, trailers }, body))
    }

    /// The stream under the connection, which has stopped being HTTP's; nothing while a request is still on its way out.
    pub(crate) fn into_stream(self) -> Option<Rewound> {
        let Wire { io, input, .. } = Rc::into_inner(self.0)?;
        Some(Rewound { io: io.into_inner(), ahead: input.into_inner().freeze() })
    }
}

impl Reply {
    fn begin(wire: Rc<Wire>, method: Method, outgoing: Outgoing, body: RequestBody) -> Self {
        let upload = Upload::begin(Box::pin(outgoing.send(wire.clone(), body)));
        Self { wire, method, upload }
    }

    /// What still uploads, once the response is there.
    pub(crate) fn into_upload(self) -> Option<Upload> {
        self.upload
    }

    /// The response, unless more of it must come.
    fn parse(&self) -> Result<Option<Response<Incoming>>, Error> {
        let mut input = self.wire.input.borrow_mut();
        while !input.is_empty() {
            let Some(head) = head::read_response(&mut input, &self.method, self.wire.head_bytes)? else {
                break;
            };
            let Head { response, length, keeps } = head;
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

impl Wire {
    /// Reads more; 0 at the end.
    pub(super) fn poll_more(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        if let Some(over) = &mut *self.over.borrow_mut()
            && over.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(Error::Expired));
        }
        let mut input = self.input.borrow_mut();
        let room = self.room.get();
        // What is left of an earlier room does, as long as it is worth a read.
        if input.capacity() - input.len() < room / 2 {
            input.reserve(room);
        }
        let had = input.capacity() - input.len();
        let n = {
            let mut io = self.io.borrow_mut();
            let read = pin!(io.read_buf(&mut *input));
            ready!(read.poll(cx))?
        };
        if n == had {
            self.room.set((room * 2).min(ROOM_MOST));
        } else if n < room / 8 {
            self.room.set((room / 2).max(ROOM_FIRST));
        }
        Poll::Ready(Ok(n))
    }

    /// Writes all of `out`.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, out: &mut impl Buf) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let mut io = Pin::new(&mut *io);
        while out.has_remaining() {
            let mut pieces = [IoSlice::new(&[]); 2];
            let count = out.chunks_vectored(&mut pieces);
            let n = ready!(io.as_mut().poll_write_vectored(cx, &pieces[..count]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(n);
        }
        io.poll_flush(cx)
    }

    /// The request is out to its last byte.
    pub(super) fn sent(&self) {
        self.sent.set(true);
    }

    /// The answer was read to its last byte; `keeps` says whether another may follow.
    pub(super) fn answered(&self, keeps: bool) {
        // What came behind it was not asked for.
        self.free.set(keeps && self.input.borrow().is_empty());
    }

    /// Ends the connection, whoever waits for it.
    pub(super) fn cut(&self) {
        self.io.borrow().cut();
    }
}
