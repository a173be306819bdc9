//! Has a client on a plain connection gone, or has it only said that it will send no more?
//!
//! Both look the same on the wire: a FIN. An app must learn of the first at once, and the second is a client that waits
//! for its answer. Callers of the plain side are in the same network namespace, so the kernel can be asked about their
//! end of the connection: a socket that nobody holds any more has no inode (sock_diag(7)). Where the kernel does not say,
//! the client is taken to be waiting.
//!
//! Owns that question. Knows nothing of HTTP.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How long until a client that has only finished sending is looked at again: its close makes no packet.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What is known of a plain connection's client.
pub(crate) struct Hangup {
    ends: Option<(SocketAddr, SocketAddr)>,
    /// After a look that found the client there.
    again: Option<Pin<Box<Sleep>>>,
}

impl Hangup {
    /// Of the client at the other end of `stream`. `meant` is where it believes that it is connected to, when that is not us.
    pub(crate) fn of(stream: &TcpStream, meant: Option<SocketAddr>) -> Self {
        let ends = stream.peer_addr().ok().zip(meant.or(stream.local_addr().ok()));
        let near =
            |(peer, local): &(SocketAddr, SocketAddr)| peer.ip().is_loopback() || peer.ip() == local.ip();
        Self { ends: ends.filter(|ends| meant.is_some() || near(ends)), again: None }
    }

    /// Ready once the client has gone. Only a client that sends, or closes, while it waits for its answer costs more here than a
    /// look at a flag. Nobody else may wait for what comes: there is one place for a waker.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>, stream: &TcpStream) -> Poll<()> {
        loop {
            if let Some(again) = &mut self.again {
                ready!(again.as_mut().poll(cx));
                self.again = None;
            }
            if ready!(stream.poll_read_ready(cx)).is_err() || self.has_gone(stream) {
                return Poll::Ready(());
            }
            // It has finished sending, or has sent its next request ahead: neither changes by itself.
            self.again = Some(Box::pin(tokio::time::sleep(LOOK_AGAIN)));
        }
    }

    /// What it means that something came, or an end.
    fn has_gone(&self, stream: &TcpStream) -> bool {
        let ready = pin!(stream.ready(Interest::READABLE | Interest::ERROR));
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(_)) => true,
            Poll::Ready(Ok(ready)) => {
                ready.is_error() || (ready.is_read_closed() && self.client_holds_no_socket())
            }
            Poll::Pending => false,
        }
    }

    fn client_holds_no_socket(&self) -> bool {
        let Some((peer, local)) = self.ends else { return false };
        // One datagram each way to the kernel, which answers before `send` returns: nothing here waits.
        matches!(inode_of(peer, local), Ok(0))
    }
}

/// The inode of the socket in this network namespace that is bound to `local` and connected to `remote`; 0 for one that
/// was closed and whose connection lives on in the kernel.
fn inode_of(local: SocketAddr, remote: SocketAddr) -> io::Result<u32> {
    const AF_NETLINK: i32 = 16;
    const NETLINK_SOCK_DIAG: i32 = 4;
    const NLMSG_ERROR: u16 = 2;
    /// Where `idiag_inode` stands: behind nlmsghdr (16 bytes) and the rest of inet_diag_msg.
    const INODE_AT: usize = 16 + 68;

    let kernel = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    kernel.set_nonblocking(true)?;
    kernel.send(&question(local, remote))?;
    let mut answer = [0; 512];
    let length = (&kernel).read(&mut answer)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) == NLMSG_ERROR || length < INODE_AT + 4 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(u32::from_ne_bytes([0, 1, 2, 3].map(|i| answer[INODE_AT + i])))
}

/// nlmsghdr and inet_diag_req_v2 (linux/inet_diag.h) that ask for exactly one TCP socket.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 72;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const IPPROTO_TCP: u8 = 6;
    let (family, local_ip) = address(local.ip().to_canonical());
    let (_, remote_ip) = address(remote.ip().to_canonical());
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence and port, which one question does not need
    message.extend([family, IPPROTO_TCP, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes()); // in any state
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    message.extend(local_ip);
    message.extend(remote_ip);
    message.extend([0; 4]); // on any interface
    message.extend([0xFF; 8]); // INET_DIAG_NOCOOKIE
    message
}

fn address(ip: IpAddr) -> (u8, [u8; 16]) {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            (AF_INET, bytes)
        }
        IpAddr::V6(ip) => (AF_INET6, ip.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair(bind: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    async fn gone(hangup: &mut Hangup, stream: &TcpStream) {
        std::future::poll_fn(|cx| hangup.poll_gone(cx, stream)).await;
    }

    /// If this fails, an app works on for callers that have gone, or callers that half-close lose their answer.
    #[tokio::test]
    async fn a_client_that_closed_is_told_from_one_that_finished_sending() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, mut server) = pair(bind).await;
            let mut hangup = Hangup::of(&server, None);
            client.write_all(b"request").await.unwrap();
            let mut buffer = [0; 64];
            assert_eq!(server.read(&mut buffer).await.unwrap(), 7);
            assert!(!hangup.client_holds_no_socket(), "open");
            client.shutdown().await.unwrap();
            assert_eq!(server.read(&mut buffer).await.unwrap(), 0);
            assert!(!hangup.client_holds_no_socket(), "finished sending");
            drop(client);
            assert!(hangup.client_holds_no_socket(), "closed");
            gone(&mut hangup, &server).await;
        }
    }

    /// If this fails, a client that is killed with an answer unread is not noticed.
    #[tokio::test]
    async fn a_reset_is_noticed() {
        let (client, mut server) = pair("127.0.0.1:0").await;
        let mut hangup = Hangup::of(&server, None);
        server.write_all(b"unread").await.unwrap();
        client.readable().await.unwrap();
        drop(client);
        gone(&mut hangup, &server).await;
    }
}
