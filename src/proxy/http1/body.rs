//! A body, as it comes in.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::Error;
use super::chunks::{Chunks, Piece};
use super::head::Length;
use super::wire::{Coming, Wire};

/// A body. It holds the connection until its last byte was read, and says then whether that may carry more.
pub(crate) struct Incoming {
    wire: Option<Rc<Wire>>,
    left: Left,
    keeps: bool,
}

/// What is to come of a body.
#[derive(Clone, Copy)]
pub(super) enum Left {
    Bytes(u64),
    Chunks(Chunks),
    UntilClose,
}

impl Incoming {
    pub(super) fn new(wire: Rc<Wire>, length: Length, keeps: bool) -> Self {
        let left = match length {
            Length::Exactly(bytes) => Left::Bytes(bytes),
            Length::Chunked => Left::Chunks(Chunks::Size),
            Length::UntilClose => Left::UntilClose,
        };
        Self::go_on(wire, left, keeps)
    }

    /// Reads on where another reader stopped.
    pub(super) fn go_on(wire: Rc<Wire>, left: Left, keeps: bool) -> Self {
        wire.has_come(Coming::Open);
        let mut body = Self { wire: Some(wire), left, keeps };
        if body.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The next frame; nothing after the last.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let outcome = ready!(self.poll_next(cx));
        if matches!(outcome, None | Some(Err(_)))
            && let Some(wire) = self.wire.take()
        {
            wire.has_come(if outcome.is_none() { Coming::Whole { keeps: false } } else { Coming::Broken });
        }
        Poll::Ready(outcome)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            let Some(wire) = self.wire.clone() else { return Poll::Ready(None) };
            match self.take_piece(&wire) {
                Ok(None) => {}
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(Piece::End(trailers))) => {
                    self.finish();
                    return Poll::Ready(trailers.map(|trailers: HeaderMap| Ok(Frame::trailers(trailers))));
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(wire.poll_more(cx)) {
                Ok(0) if matches!(self.left, Left::UntilClose) => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(Error::Cut))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// What of the body has come already.
    fn take_piece(&mut self, wire: &Rc<Wire>) -> Result<Option<Piece>, Error> {
        let mut input = wire.input.borrow_mut();
        match &mut self.left {
            Left::Chunks(chunks) => chunks.next(&mut input),
            _ if input.is_empty() => Ok(None),
            Left::UntilClose => Ok(Some(Piece::Data(input.split().freeze()))),
            Left::Bytes(left) => {
                let n = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= n as u64;
                let (data, done) = (input.split_to(n).freeze(), *left == 0);
                drop(input);
                if done {
                    self.finish();
                }
                Ok(Some(Piece::Data(data)))
            }
        }
    }

    /// The last byte was read.
    fn finish(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.has_come(Coming::Whole { keeps: self.keeps });
        }
        self.left = Left::Bytes(0);
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        matches!(self.left, Left::Bytes(0))
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Bytes(left) => SizeHint::with_exact(left),
            Left::Chunks(_) | Left::UntilClose => SizeHint::default(),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.has_come(Coming::Left(self.left));
        }
    }
}
