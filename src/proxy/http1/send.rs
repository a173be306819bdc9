//! A body on its way out, no faster than the other end reads.

use std::fmt::Write;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http::header::HeaderName;
use http_body::Body;

use super::chunks::may_trail;
use super::head::{Length, write_field};
use super::wire::Wire;
use crate::pieces::Pieces;

/// Pieces up to this size are put together; a larger one is written from where it is.
const SMALL: usize = 8 * 1024;
/// What is put together becomes a piece at this size.
const PIECE: usize = 16 * 1024;
/// So much goes out in one system call, where the body has it.
const ENOUGH: usize = 128 * 1024;

/// What goes out: the bytes that wait to be written, how the body is framed, and what may stand behind it.
pub(super) struct Outgoing {
    /// What is large, ahead of `out`.
    pieces: Pieces,
    out: BytesMut,
    length: Length,
    trailers: Vec<HeaderName>,
}

/// Why a message did not go out whole.
pub(super) enum Failed {
    /// The other end takes no more.
    Peer,
    /// The body is not whole.
    Body,
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Self::Peer
    }
}

impl Outgoing {
    /// `head` first, then a body of `length`, behind which these `trailers` may stand.
    pub(super) fn new(head: BytesMut, length: Length, trailers: Vec<HeaderName>) -> Self {
        Self { pieces: Pieces::default(), out: head, length, trailers }
    }

    /// Sends what waits, and `body` to its end.
    ///
    /// # Errors
    /// It did not go out whole, and the other end must not take it for that.
    pub(super) async fn send<B>(mut self, wire: &Wire, body: B) -> Result<(), Failed>
    where
        B: Body<Data = Bytes>,
    {
        self.all(wire, pin!(body)).await
    }

    async fn all<B>(&mut self, wire: &Wire, mut body: Pin<&mut B>) -> Result<(), Failed>
    where
        B: Body<Data = Bytes>,
    {
        while !body.is_end_stream() {
            let frame = match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    self.write(wire).await?;
                    poll_fn(|cx| body.as_mut().poll_frame(cx)).await
                }
            };
            let Some(frame) = frame else { break };
            match frame.map_err(|_| Failed::Body)?.into_data() {
                Ok(data) => self.data(wire, data).await?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return self.end(wire, &trailers).await;
                }
            }
        }
        self.end(wire, &HeaderMap::new()).await
    }

    async fn data(&mut self, wire: &Wire, data: Bytes) -> Result<(), Failed> {
        match &mut self.length {
            _ if data.is_empty() => return Ok(()), // in chunks it would be the end
            Length::Chunked => drop(write!(self.out, "{:x}\r\n", data.len())), // into memory: it cannot fail
            Length::Exactly(left) => *left = left.checked_sub(data.len() as u64).ok_or(Failed::Body)?,
            Length::UntilClose => {}
        }
        if data.len() > SMALL {
            self.end_piece();
            self.pieces.push(data);
        } else {
            self.out.extend_from_slice(&data);
        }
        if self.length == Length::Chunked {
            self.out.extend_from_slice(b"\r\n");
        }
        if self.out.len() >= PIECE {
            self.end_piece();
        }
        if self.pieces.remaining() >= ENOUGH {
            self.write(wire).await?;
        }
        Ok(())
    }

    /// What was put together waits as a piece.
    fn end_piece(&mut self) {
        if !self.out.is_empty() {
            self.pieces.push(self.out.split().freeze());
        }
    }

    async fn end(&mut self, wire: &Wire, trailers: &HeaderMap) -> Result<(), Failed> {
        match self.length {
            Length::Exactly(1..) => return Err(Failed::Body),
            Length::Exactly(0) | Length::UntilClose => {}
            Length::Chunked => {
                self.out.extend_from_slice(b"0\r\n");
                let sent = |name: &HeaderName| self.trailers.contains(name) && may_trail(name);
                for (name, value) in trailers.iter().filter(|(name, _)| sent(name)) {
                    write_field(&mut self.out, name, value);
                }
                self.out.extend_from_slice(b"\r\n");
            }
        }
        self.write(wire).await
    }

    /// Writes what waits.
    async fn write(&mut self, wire: &Wire) -> Result<(), Failed> {
        let mut all = (&mut self.pieces).chain(&mut self.out);
        poll_fn(|cx| wire.poll_write(cx, &mut all)).await.map_err(Failed::from)
    }
}
