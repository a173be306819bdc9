//! What a connection that just came is: where it was meant to go, and what its first bytes say, looked at without taking them.
//!
//! Decides nothing; what follows from it is [`super::connection`]'s.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Anything else.
    Other,
}

/// The preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The first byte of a TLS handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// Where the client had meant to connect to, when rules of the kernel led its connection here instead.
pub(crate) fn meant_for(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    // There is no answer where nothing tracks connections, and then nothing was led here either.
    let meant =
        if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let meant = meant.ok()?.as_socket()?;
    // An address that is scoped to an interface is asked for without its scope.
    (meant.ip().to_canonical() != local.ip().to_canonical() || meant.port() != local.port())
        .then(|| SocketAddr::new(meant.ip().to_canonical(), meant.port()))
}

/// Whether the client speaks HTTP/2, on a connection that is known to be HTTP's.
pub(crate) async fn speaks_h2(stream: &TcpStream) -> io::Result<bool> {
    look(stream, |start| match PREFACE.starts_with(start) {
        true if start.len() < PREFACE.len() => None,
        whole => Some(whole),
    })
    .await
}

/// Whether the client begins a TLS handshake.
pub(crate) async fn speaks_tls(stream: &TcpStream) -> io::Result<bool> {
    look(stream, |start| Some(start[0] == HANDSHAKE)).await
}

/// What the client speaks.
pub(crate) async fn spoken(stream: &TcpStream) -> io::Result<Spoken> {
    look(stream, spoken_in).await
}

fn spoken_in(start: &[u8]) -> Option<Spoken> {
    const LONGEST_METHOD: usize = 7;
    if PREFACE.starts_with(start) {
        return (start.len() == PREFACE.len()).then_some(Spoken::Http2);
    }
    match start.iter().position(|byte| *byte == b' ') {
        Some(end) => {
            let method = std::str::from_utf8(&start[..end]).ok().and_then(crate::policy::Method::parse);
            Some(if method.is_some() { Spoken::Http1 } else { Spoken::Other })
        }
        None if start.len() <= LONGEST_METHOD && start.iter().all(u8::is_ascii_uppercase) => None,
        None => Some(Spoken::Other),
    }
}

/// Looks at the first bytes, which are never none, until `judge` knows.
async fn look<T>(stream: &TcpStream, judge: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
    let mut start = [0; PREFACE.len()];
    let mut wait = Duration::from_millis(1);
    loop {
        let n = stream.peek(&mut start).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(known) = judge(&start[..n]) {
            return Ok(known);
        }
        // A beginning cut in two: peek would return the same bytes at once, so let the rest arrive; ever more patiently, so
        // that a thousand such connections cost nothing.
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a captured connection is given to the wrong reader.
    #[test]
    fn http_is_told_from_everything_else_by_its_first_bytes() {
        let told = |start: &[u8]| spoken_in(start);
        assert_eq!(told(b"GET /fhir/Pati"), Some(Spoken::Http1));
        assert_eq!(told(b"OPTIONS * HTTP"), Some(Spoken::Http1));
        assert_eq!(told(b"PRI * HTTP/2.0"), Some(Spoken::Http2));
        for unfinished in [&b"P"[..], b"PRI", b"GE", b"OPTIONS"] {
            assert_eq!(told(unfinished), None);
        }
        for other in [
            &b"\x16\x03\x01"[..],
            b"EHLO a",
            b"SET a b",
            b"SSH-2.0-x",
            b"\0\0\0\x08",
            b"OPTIONSX",
            b"get / HTTP/1.1",
        ] {
            assert_eq!(told(other), Some(Spoken::Other), "{other:?}");
        }
    }
}
