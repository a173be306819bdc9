//! Clients: HTTP/1 by hand, so that a test can send what a library would not, and HTTP/2 with prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No exchange of a test takes this long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A reply as it came over the wire.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// The head, lower-cased names are up to the caller.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Sends `request` as it is on a connection of its own, and reads the reply to the end of the connection. The request
/// should ask for `Connection: close`.
pub async fn raw(addr: SocketAddr, request: &[u8]) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        // A reset after the reply is how some refusals end.
        let _ = stream.read_to_end(&mut reply).await;
        reply
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("the exchange hangs")
}

/// As [`raw`], parsed. Chunked bodies are left as they came.
pub async fn exchange(addr: SocketAddr, request: &str) -> Reply {
    parse(&raw(addr, request.as_bytes()).await)
}

pub fn parse(reply: &[u8]) -> Reply {
    let at = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
        panic!("no head in {:?}", String::from_utf8_lossy(reply));
    });
    let head = String::from_utf8(reply[..at].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head, body: reply[at + 4..].to_vec() }
}

/// `GET target` for the usual host.
pub async fn get(addr: SocketAddr, target: &str) -> Reply {
    exchange(addr, &format!("GET {target} HTTP/1.1\r\nHost: records.clinic\r\nConnection: close\r\n\r\n"))
        .await
}

pub type H2 = http2::SendRequest<Full<Bytes>>;

/// An HTTP/2 connection with prior knowledge.
pub async fn h2(addr: SocketAddr) -> H2 {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// One exchange over HTTP/2: the reply with its whole body, and its trailers.
pub async fn h2_exchange(
    sender: &mut H2,
    request: Request<Full<Bytes>>,
) -> (Response<Bytes>, Option<http::HeaderMap>) {
    let exchange = async {
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (Response::from_parts(parts, collected.to_bytes()), trailers)
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("the exchange hangs")
}

pub fn h2_request(method: &str, target: &str, body: &'static [u8]) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("http://records.clinic{target}"))
        .body(Full::new(Bytes::from_static(body)))
        .unwrap()
}
