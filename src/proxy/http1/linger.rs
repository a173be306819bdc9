//! Closing a connection in stages, so that the last words arrive (RFC 9112, section 9.6).
//!
//! A kernel that closes a socket with bytes unread sends a reset, and the reset makes the other side's kernel drop what
//! it has not read yet: the refusal of an upload would be lost with the upload. So the sending side is closed first, and
//! what still comes is thrown away until the peer closes, or for some seconds.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::wire::{Coming, Scratch, Wire};

/// How long a peer has to stop sending and close.
const PATIENCE: Duration = Duration::from_secs(3);

/// Closes `wire`. Where nothing is to come, nothing is waited for.
pub(super) async fn close(wire: &Wire, scratch: &Scratch) {
    let unread = !matches!(wire.coming(), Coming::Whole { .. }) || !wire.input.borrow().is_empty();
    if poll_fn(|cx| wire.poll_shutdown(cx)).await.is_err() {
        return;
    }
    let wait = poll_fn(|cx| {
        Poll::Ready(match poll_discard(wire, scratch, cx) {
            Poll::Ready(over) => !over,
            Poll::Pending => unread,
        })
    });
    if wait.await {
        let all = poll_fn(|cx| {
            while !ready!(poll_discard(wire, scratch, cx)) {}
            Poll::Ready(())
        });
        drop(tokio::time::timeout(PATIENCE, all).await);
    }
}

/// Throws away what came; true once nothing more will come.
fn poll_discard(wire: &Wire, scratch: &Scratch, cx: &mut Context<'_>) -> Poll<bool> {
    let came = ready!(wire.poll_some(cx, scratch));
    wire.input.borrow_mut().clear();
    Poll::Ready(matches!(came, Ok(0) | Err(_)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::io::Io;
    use super::*;

    /// A client, and the other end of its connection.
    async fn pair() -> (TcpStream, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Wire::new(Io::Plain(listener.accept().await.unwrap().0), None))
    }

    /// If this fails, who is refused while sending reads a reset instead of the refusal.
    #[tokio::test]
    async fn what_still_comes_is_thrown_away_until_the_peer_closes() {
        let (mut client, server) = pair().await;
        server.has_come(Coming::Broken);
        poll_fn(|cx| server.poll_write(cx, &mut b"no".as_slice())).await.unwrap();
        let talk = async {
            for _ in 0..64 {
                client.write_all(&[0; 64 * 1024]).await.unwrap();
            }
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"no");
            drop(client);
        };
        let scratch = Scratch::default();
        tokio::join!(close(&server, &scratch), talk);
    }

    /// If this fails, a peer that never closes keeps a connection for ever.
    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_close_is_given_up() {
        let (_client, server) = pair().await;
        server.has_come(Coming::Broken);
        close(&server, &Scratch::default()).await;
    }

    /// If this fails, ordinary closes wait for their peers.
    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_to_come_nothing_is_waited_for() {
        let (_client, server) = pair().await;
        let before = tokio::time::Instant::now();
        close(&server, &Scratch::default()).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
