//! A connection, as a message's head, its body and what is sent the other way share it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, ReadBuf};

use super::Error;
use super::body::Left;
use super::io::{Io, Rewound};
use crate::proxy::hangup::Hangup;

/// Room for a read: at first, and at most. It grows with reads that fill it, so that large bodies take few system calls, and
/// shrinks again when most of it stays empty.
const ROOM_FIRST: usize = 8 * 1024;
const ROOM_MOST: usize = 256 * 1024;
/// What comes first of a request is mostly all of it.
const SCRATCH: usize = 32 * 1024;
/// What a client that asked for it is told before it sends a body (RFC 9110, section 10.1.1).
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A connection.
pub(super) struct Wire {
    io: RefCell<Io>,
    /// What came and was not taken yet.
    pub(super) input: RefCell<BytesMut>,
    room: Cell<usize>,
    /// Ready when the connection must end, whatever it carries.
    over: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    coming: Cell<Coming>,
    /// Who waits until the message that comes has been read.
    until_read: RefCell<Option<Waker>>,
    /// How many bytes of [`GO_ON`] the client still waits for, and one more until they are flushed.
    go_on: Cell<usize>,
}

/// How far the message that comes in has been read.
#[derive(Clone, Copy)]
pub(super) enum Coming {
    /// It is being read.
    Open,
    /// To its last byte; another may follow, or not.
    Whole { keeps: bool },
    /// Its reader let go of it, with so much left.
    Left(Left),
    /// It broke off, or what came was none.
    Broken,
}

/// Where the connections of a worker read to while they wait, so that none needs room of its own for that.
pub(crate) struct Scratch(RefCell<Box<[u8]>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(RefCell::new(vec![0; SCRATCH].into()))
    }
}

impl Wire {
    /// Over `io`, until `over`.
    pub(super) fn new(io: Io, over: Option<Pin<Box<dyn Future<Output = ()>>>>) -> Self {
        Self {
            io: RefCell::new(io),
            input: RefCell::default(),
            room: Cell::new(ROOM_FIRST),
            over: RefCell::new(over),
            coming: Cell::new(Coming::Whole { keeps: true }),
            until_read: RefCell::default(),
            go_on: Cell::new(0),
        }
    }

    pub(super) fn coming(&self) -> Coming {
        self.coming.get()
    }

    /// The message that comes is as far as this now.
    pub(super) fn has_come(&self, coming: Coming) {
        self.coming.set(coming);
        if !matches!(coming, Coming::Open)
            && let Some(waker) = self.until_read.take()
        {
            waker.wake();
        }
    }

    /// Whether the last message was read to its end and left the connection in order: what came behind it was not asked for.
    pub(super) fn is_in_order(&self) -> bool {
        matches!(self.coming.get(), Coming::Whole { keeps: true }) && self.input.borrow().is_empty()
    }

    /// Ready when nobody reads the message that comes any more.
    pub(super) fn poll_read_out(&self, cx: &Context<'_>) -> Poll<()> {
        if !matches!(self.coming.get(), Coming::Open) {
            return Poll::Ready(());
        }
        *self.until_read.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when the other end has gone, asked while nothing is expected of it. What comes instead of its end is kept.
    pub(super) fn poll_gone(
        &self,
        cx: &mut Context<'_>,
        hangup: Option<&mut Hangup>,
        scratch: &Scratch,
    ) -> Poll<()> {
        // A socket wakes one reader: as long as somebody reads a body, that is who sees the end.
        ready!(self.poll_read_out(cx));
        if let Some(hangup) = hangup {
            return hangup.poll_gone(cx, self.io.borrow().tcp());
        }
        // What came ahead is looked at when its time has come, and until then nothing behind it.
        if self.input.borrow().is_empty() && matches!(ready!(self.poll_some(cx, scratch)), Ok(0) | Err(_)) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether something came, or the other end closed.
    pub(super) fn stirs(&self) -> bool {
        self.io.borrow().stirs()
    }

    /// Reads what there is, by way of `scratch`; 0 at the end.
    pub(super) fn poll_some(&self, cx: &mut Context<'_>, scratch: &Scratch) -> Poll<io::Result<usize>> {
        let mut room = scratch.0.borrow_mut();
        let mut buf = ReadBuf::new(&mut room);
        ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut *self.io.borrow_mut()), cx, &mut buf))?;
        self.input.borrow_mut().extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }

    /// Reads more of a message; 0 at the end.
    pub(super) fn poll_more(&self, cx: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        if let Some(over) = &mut *self.over.borrow_mut()
            && over.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(Error::Expired));
        }
        ready!(self.poll_go_on(cx))?;
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

    /// The client sends its body when it is told to, or after a while.
    pub(super) fn wants_go_on(&self) {
        self.go_on.set(GO_ON.len() + 1);
    }

    /// What must be written before a response: the rest of what the client was told in part. Nothing more is told after this.
    pub(super) fn rest_of_go_on(&self) -> &'static [u8] {
        match self.go_on.replace(0) {
            left if left <= GO_ON.len() => &GO_ON[GO_ON.len() - left.saturating_sub(1)..],
            _ => &[],
        }
    }

    fn poll_go_on(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.go_on.get() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut left = &GO_ON[GO_ON.len() + 1 - self.go_on.get()..];
        let written = self.poll_write(cx, &mut left);
        self.go_on.set(left.len() + 1);
        ready!(written)?;
        self.go_on.set(0);
        Poll::Ready(Ok(()))
    }

    /// Writes all of `out`.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, out: &mut impl Buf) -> Poll<io::Result<()>> {
        let mut io = self.io.borrow_mut();
        let mut io = Pin::new(&mut *io);
        while out.has_remaining() {
            let mut pieces = [IoSlice::new(&[]); 16];
            let count = out.chunks_vectored(&mut pieces);
            let n = ready!(io.as_mut().poll_write_vectored(cx, &pieces[..count]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(n);
        }
        io.poll_flush(cx)
    }

    /// Closes the sending side.
    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }

    /// Ends the connection, whoever waits for it.
    pub(super) fn cut(&self) {
        self.io.borrow().cut();
    }

    /// The stream, which has stopped being HTTP's.
    pub(super) fn into_stream(self) -> Rewound {
        Rewound { io: self.io.into_inner(), ahead: self.input.into_inner().freeze() }
    }
}
