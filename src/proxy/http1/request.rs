//! The head of a request: as it goes out to an upstream, and as it comes in from a client.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, Request, Uri, Version};

use super::Error;
use super::head::{self, Length, MAX_FIELDS, decimal, write_field};
use super::response::Manner;
use crate::proxy::headers::has_token;

/// As many fields are added on the way to the app; a map that has no room for them is made anew.
const SET_FOR_THE_APP: usize = 3;

/// A request that came, up to its body.
pub(super) struct Asked {
    pub(super) request: Request<()>,
    pub(super) length: Length,
    /// How the response must be said.
    pub(super) manner: Manner,
    /// Whether the client waits to be told that it may send its body.
    pub(super) waits: bool,
}

/// Writes the head of `request` into `out`, and tells how its body will be framed.
pub(super) fn write(out: &mut BytesMut, request: &Parts) -> Length {
    let uri = &request.uri;
    out.extend_from_slice(request.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    // Absolute form, where the request came so and must go on so.
    if let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) {
        for part in [scheme, "://", authority.as_str()] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut length = Length::Exactly(0);
    for (name, value) in &request.headers {
        if *name == header::TRANSFER_ENCODING {
            length = Length::Chunked; // set by `forward`, which knows no other coding
        } else if *name == header::CONTENT_LENGTH && length != Length::Chunked {
            length = Length::Exactly(decimal(value.as_bytes()).unwrap_or(0));
        }
        write_field(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
    length
}

/// Takes the head of a request from `input`; nothing while it is not whole.
///
/// # Errors
/// It is larger than `most`, or no head of a request, or the length of its body could be read in two ways.
pub(super) fn read(input: &mut BytesMut, most: usize) -> Result<Option<Asked>, Error> {
    let parser = httparse::ParserConfig::default(); // strict
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let Some(text) = head::take(input, most)? else {
        // What cannot become a head is not waited for.
        let begun = parser.parse_request_with_uninit_headers(&mut parsed, input, &mut room);
        return begun.map_err(error).map(|_| None);
    };
    match parser.parse_request_with_uninit_headers(&mut parsed, &text, &mut room).map_err(error)? {
        httparse::Status::Complete(length) if length == text.len() => {}
        _ => return Err(Error::Framing),
    }
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let method =
        Method::from_bytes(parsed.method.unwrap_or_default().as_bytes()).map_err(|_| Error::Field)?;
    let target = text.slice_ref(parsed.path.unwrap_or_default().as_bytes());
    let uri = Uri::from_maybe_shared(target).map_err(|_| Error::Field)?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + SET_FOR_THE_APP);
    let mut said = Said::default();
    for found in parsed.headers.iter() {
        let (name, value) = head::field(&text, found)?;
        if name == header::CONTENT_LENGTH {
            let bytes = decimal(value.as_bytes()).ok_or(Error::Framing)?;
            match said.length.replace(bytes) {
                Some(before) if before != bytes => return Err(Error::Framing),
                Some(_) => continue, // said twice, and the same
                None => {}
            }
        } else if name == header::TRANSFER_ENCODING {
            let last = value.as_bytes().rsplit(|b| *b == b',').next().unwrap_or_default();
            said.chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        } else if name == header::CONNECTION {
            said.closes |= has_token(&value, b"close");
            said.stays |= has_token(&value, b"keep-alive");
        } else if name == header::TE {
            said.trailers |= has_token(&value, b"trailers");
        } else if name == header::EXPECT {
            said.waits = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        }
        headers.append(name, value);
    }
    let keeps = if version == Version::HTTP_11 { !said.closes } else { said.stays };
    let (length, doubtful) = said.framing(version)?;
    if doubtful {
        headers.remove(header::CONTENT_LENGTH);
    }
    let manner = Manner {
        http10: version == Version::HTTP_10,
        head: method == Method::HEAD,
        trailers: said.trailers,
        keeps: keeps && !doubtful,
    };
    let waits = said.waits && version == Version::HTTP_11 && length != Length::Exactly(0);
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, version);
    *request.headers_mut() = headers;
    Ok(Some(Asked { request, length, manner, waits }))
}

fn error(error: httparse::Error) -> Error {
    match error {
        httparse::Error::TooManyHeaders => Error::TooLarge,
        error => error.into(),
    }
}

/// What the fields of a request's head say of its form.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    /// Whether the last transfer coding is `chunked`. Which others there may be is a matter of policy.
    chunked: Option<bool>,
    closes: bool,
    stays: bool,
    trailers: bool,
    waits: bool,
}

impl Said {
    /// How the body is framed (RFC 9112, section 6.3), and whether that was said in two ways: then the coding counts, the number
    /// must not travel on, and the connection is not trusted with more.
    fn framing(&self, version: Version) -> Result<(Length, bool), Error> {
        match (self.chunked, self.length) {
            // An HTTP/1.0 reader between us would see another body; a body without an end is none.
            (Some(_), _) if version == Version::HTTP_10 => Err(Error::Framing),
            (Some(false), _) => Err(Error::Framing),
            (Some(true), told) => Ok((Length::Chunked, told.is_some())),
            (None, told) => Ok((Length::Exactly(told.unwrap_or(0)), false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Option<Asked>, Error> {
        read(&mut BytesMut::from(text), 1024)
    }

    /// If this fails, the body of a request ends where its sender did not mean it to, or a connection is kept that is not to be
    /// trusted.
    #[test]
    fn each_way_to_tell_a_length_is_understood() {
        use Length::{Chunked, Exactly};
        for (line, fields, length, keeps) in [
            ("POST / HTTP/1.1", "content-length: 5", Exactly(5), true),
            ("POST / HTTP/1.1", "content-length: 5\r\nContent-Length: 5", Exactly(5), true),
            ("POST / HTTP/1.1", "a: b", Exactly(0), true),
            ("POST / HTTP/1.1", "transfer-encoding: Chunked", Chunked, true),
            ("POST / HTTP/1.1", "transfer-encoding: chunked\r\ncontent-length: 5", Chunked, false),
            ("POST / HTTP/1.1", "content-length: 5\r\ntransfer-encoding: chunked", Chunked, false),
            ("POST / HTTP/1.1", "content-length: 5\r\nconnection: x, Close", Exactly(5), false),
            ("POST / HTTP/1.0", "content-length: 5", Exactly(5), false),
            ("POST / HTTP/1.0", "content-length: 5\r\nconnection: Keep-Alive", Exactly(5), true),
        ] {
            let asked = asked(&format!("{line}\r\n{fields}\r\n\r\nrest")).unwrap().unwrap();
            assert_eq!((asked.length, asked.manner.keeps), (length, keeps), "{line} {fields}");
            let numbers = asked.request.headers().get_all("content-length").iter().count();
            assert_eq!(numbers, usize::from(length == Exactly(5)), "{fields}");
        }
    }

    /// If this fails, a request that can be read in two ways is served.
    #[test]
    fn doubtful_requests_are_refused() {
        for text in [
            "POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 5, 5\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: +5\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length:\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 18446744073709551616\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\na : b\r\n\r\n",
            "GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            assert!(asked(text).is_err(), "{text:?}");
        }
    }

    /// If this fails, a client can make phiward hold a head of any size, or one in two packets is lost.
    #[test]
    fn a_head_is_waited_for_as_long_as_it_may_be() {
        assert!(asked("GET / HTTP/1.1\r\na: b\r\n").unwrap().is_none());
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(1024));
        assert!(matches!(asked(&long), Err(Error::TooLarge)));
        let fields = "a: b\r\n".repeat(MAX_FIELDS + 1);
        let mut many = BytesMut::from(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_str());
        assert!(matches!(read(&mut many, 64 * 1024), Err(Error::TooLarge)));
    }
}
