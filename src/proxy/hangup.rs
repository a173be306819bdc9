//! Has a client on a plain connection gone, or has it only said that it will send no more?
//!
//! Both look the same on the wire: a FIN. An app must learn of the first at once, and the second is a client that waits
//! for its answer. Callers of the plain side are in the same network namespace, so the kernel can be asked about their
//! end of the connection: a socket that nobody holds any more has no inode (sock_diag(7)). Where the kernel does not say,
//! the client is taken to be waiting.
//!
//! Owns the plain stream, which the HTTP library reads and writes through [`PlainStream`]. Knows nothing of HTTP.

use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How long until a client that has only finished sending is looked at again: its close makes no packet.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A plain connection as the HTTP library uses it.
pub(crate) struct PlainStream(Arc<TcpStream>);

/// The same connection as a request uses it that waits for its response.
pub(crate) struct Hangup {
    stream: Arc<TcpStream>,
    ends: Option<(SocketAddr, SocketAddr)>,
}

/// Both views of one connection. `meant` is where the client believes it is connected to, when that is not us.
pub(crate) fn watched(stream: TcpStream, meant: Option<SocketAddr>) -> (PlainStream, Hangup) {
    let ends = stream.peer_addr().ok().zip(meant.or(stream.local_addr().ok()));
    let ends =
        ends.filter(|(peer, local)| meant.is_some() || peer.ip().is_loopback() || peer.ip() == local.ip());
    let stream = Arc::new(stream);
    (PlainStream(stream.clone()), Hangup { stream, ends })
}

/// Something came from a client that waits: the inquiry about what it means.
pub(crate) type Doubt = Pin<Box<dyn Future<Output = ()>>>;

impl Hangup {
    /// Ready once the client has gone. `doubt` belongs to one wait and starts as `None`; only a client that sends, or
    /// closes, while it waits for its answer costs more here than a look at a flag.
    ///
    /// The connection's own reader does not wait meanwhile, so the one place for a waker that readiness has is free.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>, doubt: &mut Option<Doubt>) -> Poll<()> {
        if doubt.is_none() {
            drop(ready!(self.stream.poll_read_ready(cx)));
            let (stream, ends) = (self.stream.clone(), self.ends);
            *doubt = Some(Box::pin(async move { Self { stream, ends }.gone().await }));
        }
        doubt.as_mut().map_or(Poll::Pending, |doubt| doubt.as_mut().poll(cx))
    }

    /// Returns once the client has gone.
    async fn gone(&self) {
        loop {
            match self.stream.ready(Interest::READABLE | Interest::ERROR).await {
                Err(_) => return,
                Ok(ready) if ready.is_error() => return, // a reset
                Ok(ready) if ready.is_read_closed() && self.client_holds_no_socket() => return,
                // It has finished sending, or has sent its next request ahead: neither changes by itself.
                Ok(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
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

impl AsyncRead for PlainStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let room = buf.remaining();
            // Into memory that nobody zeroed first: that would be 8 KiB of stores for each request.
            match self.0.try_read_buf(buf) {
                Ok(n) => {
                    if 0 < n && n < room {
                        self.nothing_left();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl PlainStream {
    /// A read that did not fill its buffer has emptied the socket. Saying so saves the next read a system call, and lets
    /// [`Hangup::gone`] wait for what comes instead of being told of what was.
    fn nothing_left(&self) {
        let emptied = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        drop(self.0.try_io(Interest::READABLE, emptied));
    }
}

impl AsyncWrite for PlainStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a TCP socket has no buffer of its own
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
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

    /// If this fails, an app works on for callers that have gone, or callers that half-close lose their answer.
    #[tokio::test]
    async fn a_client_that_closed_is_told_from_one_that_finished_sending() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let (mut client, server) = pair(bind).await;
            let (mut plain, hangup) = watched(server, None);
            client.write_all(b"request").await.unwrap();
            let mut buffer = [0; 64];
            assert_eq!(plain.read(&mut buffer).await.unwrap(), 7);
            assert!(!hangup.client_holds_no_socket(), "open");
            client.shutdown().await.unwrap();
            assert_eq!(plain.read(&mut buffer).await.unwrap(), 0);
            assert!(!hangup.client_holds_no_socket(), "finished sending");
            drop(client);
            assert!(hangup.client_holds_no_socket(), "closed");
            hangup.gone().await;
        }
    }

    /// If this fails, a client that is killed with an answer unread is not noticed.
    #[tokio::test]
    async fn a_reset_is_noticed() {
        let (client, server) = pair("127.0.0.1:0").await;
        let (mut plain, hangup) = watched(server, None);
        plain.write_all(b"unread").await.unwrap();
        client.readable().await.unwrap();
        drop(client);
        hangup.gone().await;
    }
}
