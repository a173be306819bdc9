//! Closing a connection in stages, so that the last words arrive (RFC 9112, section 9.6).
//!
//! A kernel that closes a socket with bytes unread sends a reset, and the reset makes the other side's kernel drop what
//! it has not read yet: the refusal of an upload would be lost with the upload. So the sending side is closed first, and
//! what still comes is thrown away until the peer closes, or for some seconds.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a peer has to stop sending and close.
const PATIENCE: Duration = Duration::from_secs(3);
const SCRATCH: usize = 8 * 1024;

/// What may still come in on a connection when it is closed. Shared with the exchanges on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Remainder(Arc<AtomicU8>);

const NOTHING: u8 = 0;
const UNREAD: u8 = 1;
const FOREIGN: u8 = 2;

impl Remainder {
    /// The body of a request was not read to its end.
    pub(crate) fn unread(&self) {
        // Once a connection is no longer HTTP's, it stays so.
        let _ = self.0.compare_exchange(NOTHING, UNREAD, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The connection switched protocols: closing one direction means nothing for the other.
    pub(crate) fn foreign(&self) {
        self.0.store(FOREIGN, Ordering::Relaxed);
    }
}

/// A stream whose shutdown lingers where something may still come in.
pub(crate) struct Linger<S> {
    stream: S,
    remainder: Remainder,
    stage: Stage,
}

enum Stage {
    Open,
    /// Our side is closed, and nothing was looked for yet.
    Closed,
    Lingering(Pin<Box<Sleep>>),
}

impl<S> Linger<S> {
    pub(crate) fn new(stream: S, remainder: Remainder) -> Self {
        Self { stream, remainder, stage: Stage::Open }
    }
}

impl<S: AsyncRead + Unpin> Linger<S> {
    /// Throws away what came; true once nothing more will come.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = [std::mem::MaybeUninit::uninit(); SCRATCH];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        Poll::Ready(read.is_err() || buffer.filled().is_empty())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.stage {
                Stage::Open => {
                    ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
                    self.stage = Stage::Closed;
                }
                Stage::Closed => {
                    let remainder = self.remainder.0.load(Ordering::Relaxed);
                    if remainder == FOREIGN {
                        return Poll::Ready(Ok(()));
                    }
                    // A head that was refused half-read leaves bytes in the socket without an exchange that knows of it.
                    match self.poll_discard(cx) {
                        Poll::Ready(true) => return Poll::Ready(Ok(())),
                        Poll::Pending if remainder == NOTHING => return Poll::Ready(Ok(())),
                        _ => self.stage = Stage::Lingering(Box::pin(tokio::time::sleep(PATIENCE))),
                    }
                }
                Stage::Lingering(patience) => {
                    if patience.as_mut().poll(cx).is_ready() || ready!(self.poll_discard(cx)) {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// If this fails, who is refused while sending reads a reset instead of the refusal.
    #[tokio::test]
    async fn what_still_comes_is_thrown_away_until_the_peer_closes() {
        let (mut client, server) = duplex(64);
        let remainder = Remainder::default();
        remainder.unread();
        let mut server = Linger::new(server, remainder);
        server.write_all(b"no").await.unwrap();
        let closing = tokio::spawn(async move { server.shutdown().await });
        client.write_all(&[0; 4096]).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"no");
        drop(client);
        closing.await.unwrap().unwrap();
    }

    /// If this fails, a peer that never closes keeps a connection for ever.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_close_is_given_up() {
        let (_client, server) = duplex(64);
        let remainder = Remainder::default();
        remainder.unread();
        Linger::new(server, remainder).shutdown().await.unwrap();
    }

    /// If this fails, ordinary closes wait for their peers, and half-closed WebSockets lose what comes back.
    #[tokio::test]
    async fn where_nothing_is_to_come_nothing_is_read() {
        let (_client, server) = duplex(64);
        Linger::new(server, Remainder::default()).shutdown().await.unwrap();

        let (mut client, server) = duplex(64);
        let remainder = Remainder::default();
        remainder.foreign();
        remainder.unread();
        let mut server = Linger::new(server, remainder);
        client.write_all(b"more").await.unwrap();
        server.shutdown().await.unwrap();
        let mut more = [0; 4];
        server.read_exact(&mut more).await.unwrap();
        assert_eq!(&more, b"more");
    }
}
