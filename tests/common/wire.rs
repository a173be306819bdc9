//! HTTP/1 by hand, both ends: what a test sends and sees is what is on the wire, with nothing tidied by a library.
//!
//! The reader is strict where it matters (one framing, exact lengths), so that a message which two servers could split
//! differently shows up as a failed test or as one message too many.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs};

/// No exchange of a test takes this long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// How the end of a body was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length,
    Chunked,
    UntilClose,
}

/// A request or a response as it was on the wire, its body decoded.
#[derive(Debug, Clone)]
pub struct Message {
    pub start: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub framing: Framing,
}

impl Message {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// One end of a connection that speaks HTTP/1.
pub struct Wire<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl Wire<TcpStream> {
    pub async fn connect(addr: impl ToSocketAddrs) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        patiently(self.stream.write_all(bytes.as_ref())).await.unwrap();
        patiently(self.stream.flush()).await.unwrap();
    }

    /// The next request; `None` when the peer closes instead.
    pub async fn request(&mut self) -> Option<Message> {
        let mut message = self.head().await?;
        message.framing = framing(&message).unwrap_or(Framing::None);
        self.body(message).await
    }

    /// The next response, to a request with `method`. Interim responses (1xx, but 101) are messages of their own.
    ///
    /// # Panics
    /// The connection closed before the response was complete.
    pub async fn response(&mut self, method: &str) -> Message {
        patiently(self.try_response(method))
            .await
            .expect("the connection closed before the response was complete")
    }

    /// As [`Wire::response`]; `None` when the connection breaks off.
    pub async fn try_response(&mut self, method: &str) -> Option<Message> {
        let mut message = self.head().await?;
        let bodyless = method == "HEAD" || matches!(message.status(), 100..=199 | 204 | 304);
        let framed = framing(&message).unwrap_or(Framing::UntilClose);
        message.framing = if bodyless { Framing::None } else { framed };
        self.body(message).await
    }

    /// Waits for the end of the connection and returns what came before it.
    pub async fn rest(&mut self) -> Vec<u8> {
        while patiently(self.fill()).await {}
        std::mem::take(&mut self.buffer)
    }

    async fn head(&mut self) -> Option<Message> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.fill().await {
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
        let (start, lines) = head.split_once("\r\n").unwrap();
        let body = Vec::new();
        let (start, headers, framing) = (start.to_owned(), fields(lines), Framing::None);
        Some(Message { start, headers, body, trailers: Vec::new(), framing })
    }

    async fn body(&mut self, mut message: Message) -> Option<Message> {
        match message.framing {
            Framing::None => {}
            Framing::Length => {
                let length = message.header("content-length").unwrap().parse().unwrap();
                message.body = self.take(length).await?;
            }
            Framing::Chunked => loop {
                let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
                if size == 0 {
                    let mut lines = String::new();
                    loop {
                        let line = self.line().await?;
                        if line.is_empty() {
                            break;
                        }
                        lines = lines + &line + "\r\n";
                    }
                    message.trailers = fields(&lines);
                    break;
                }
                message.body.extend(self.take(size).await?);
                assert_eq!(self.line().await?, "", "a chunk is longer than it says");
            },
            Framing::UntilClose => {
                while self.fill().await {}
                message.body = std::mem::take(&mut self.buffer);
            }
        }
        Some(message)
    }

    async fn line(&mut self) -> Option<String> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            if !self.fill().await {
                return None;
            }
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).take(end).collect();
        Some(String::from_utf8(line).unwrap())
    }

    /// What was read beyond the last message.
    pub fn buffered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// So many bytes; `None` when the connection ends before.
    pub async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            if !patiently(self.fill()).await {
                return None;
            }
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// Reads what there is; false at the end of the connection, however it ended.
    pub async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 * 1024);
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(n) if n > 0)
    }
}

/// The one framing that a head tells; `None` when it tells none.
fn framing(message: &Message) -> Option<Framing> {
    let lengths = message.all("content-length");
    match message.all("transfer-encoding")[..] {
        [] if lengths.is_empty() => None,
        [] => {
            assert!(lengths.len() == 1, "several lengths: {message:?}");
            Some(Framing::Length)
        }
        ["chunked"] => {
            assert!(lengths.is_empty(), "two framings: {message:?}");
            Some(Framing::Chunked)
        }
        _ => panic!("an unclear framing: {message:?}"),
    }
}

fn fields(lines: &str) -> Vec<(String, String)> {
    let pairs = lines.lines().filter(|line| !line.is_empty()).map(|line| line.split_once(':').unwrap());
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The outcome of `future`, which a test may wait for but not for ever.
pub async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it hangs")
}
