//! The head of a response: as it comes in from an upstream, and as it goes out to a client.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::header::{self, HeaderMap};
use http::response::Parts;
use http::{Method, Response, StatusCode, Version};
use http_body::Body;

use super::Error;
use super::head::{self, Length, MAX_FIELDS, decimal, write_field};
use crate::proxy::headers::has_token;

/// A response that came, up to its body.
pub(super) struct Answered {
    pub(super) response: Response<()>,
    pub(super) length: Length,
    /// Whether the connection may carry another request after it.
    pub(super) keeps: bool,
}

/// How a response must be said to the client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// The client speaks HTTP/1.0: no chunks, and the connection stays only if that is said.
    pub(super) http10: bool,
    /// The client asked with HEAD: there is no body, whatever the head says.
    pub(super) head: bool,
    /// The client takes trailers.
    pub(super) trailers: bool,
    /// The connection stays open behind it.
    pub(super) keeps: bool,
}

/// Writes the head of a response into `out`, and tells how `body` will be framed, if one may follow. The connection ends with a body
/// that has no other end.
pub(super) fn write(out: &mut BytesMut, parts: &Parts, body: &impl Body, manner: Manner) -> Option<Length> {
    let status = parts.status;
    out.extend_from_slice(if manner.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    for part in [status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    // These have neither a body nor a length (RFC 9110, section 8.6).
    let wordless = status.is_informational() || status == StatusCode::NO_CONTENT;
    let mut told = None;
    for (name, value) in &parts.headers {
        if *name == header::CONTENT_LENGTH {
            if wordless {
                continue;
            }
            told = decimal(value.as_bytes());
        }
        write_field(out, name, value);
    }
    let length = match (told, body.size_hint().exact()) {
        (Some(bytes), _) => Length::Exactly(bytes),
        (None, _) if wordless || status == StatusCode::NOT_MODIFIED => Length::Exactly(0),
        (None, Some(0)) if manner.head => Length::Exactly(0), // of which the client learns nothing
        (None, Some(bytes)) => {
            write_field(out, &header::CONTENT_LENGTH, &bytes.into());
            Length::Exactly(bytes)
        }
        (None, None) if manner.http10 => Length::UntilClose,
        (None, None) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Length::Chunked
        }
    };
    let stays = manner.keeps && length != Length::UntilClose;
    if manner.http10 && stays {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    } else if !manner.http10 && !stays && status != StatusCode::SWITCHING_PROTOCOLS {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    let bodiless = manner.head || wordless || status == StatusCode::NOT_MODIFIED;
    (!bodiless).then_some(length)
}

/// Takes the head of a response to `method` from `input`; nothing while it is not whole.
pub(super) fn read(input: &mut BytesMut, method: &Method, most: usize) -> Result<Option<Answered>, Error> {
    let parser = httparse::ParserConfig::default(); // strict
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let Some(text) = head::take(input, most)? else {
        // What cannot become a head is not waited for.
        parser.parse_response_with_uninit_headers(&mut parsed, input, &mut room)?;
        return Ok(None);
    };
    match parser.parse_response_with_uninit_headers(&mut parsed, &text, &mut room)? {
        httparse::Status::Complete(length) if length == text.len() => {}
        _ => return Err(Error::Framing),
    }
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Error::Field)?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for found in parsed.headers.iter() {
        let (name, value) = head::field(&text, found)?;
        headers.append(name, value);
    }
    let mut response = Response::new(());
    (*response.status_mut(), *response.version_mut(), *response.headers_mut()) = (status, version, headers);
    finish(response, method).map(Some)
}

/// How the body of `response` is framed (RFC 9112, section 6.3), and what may come after it.
fn finish(mut response: Response<()>, method: &Method) -> Result<Answered, Error> {
    let (status, version) = (response.status(), response.version());
    let bodiless = status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || *method == Method::HEAD;
    let headers = response.headers_mut();
    let chunked = codings_end_in_chunked(headers, version)?;
    let told = content_length(headers)?;
    // Both together: the coding counts, the number must not travel on, and the connection is not trusted with more.
    let doubtful = chunked.is_some() && told.is_some();
    if doubtful && !bodiless {
        headers.remove(header::CONTENT_LENGTH);
    }
    let length = match (chunked, told) {
        _ if bodiless => Length::Exactly(0),
        (Some(true), _) => Length::Chunked,
        (Some(false), _) | (None, None) => Length::UntilClose,
        (None, Some(bytes)) => Length::Exactly(bytes),
    };
    let says = |token| headers.get_all(header::CONNECTION).iter().any(|value| has_token(value, token));
    let keeps = if version == Version::HTTP_11 { !says(b"close") } else { says(b"keep-alive") };
    let http = status != StatusCode::SWITCHING_PROTOCOLS && length != Length::UntilClose;
    Ok(Answered { response, length, keeps: keeps && !doubtful && http })
}

/// Whether the last transfer coding is `chunked`, if there is any.
fn codings_end_in_chunked(headers: &HeaderMap, version: Version) -> Result<Option<bool>, Error> {
    let mut last = None;
    for value in headers.get_all(header::TRANSFER_ENCODING) {
        if version == Version::HTTP_10 {
            return Err(Error::Framing); // an HTTP/1.0 reader between us would see another body
        }
        for coding in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if last == Some(true) {
                return Err(Error::Framing); // chunked twice, or something on top of it
            }
            last = Some(coding.eq_ignore_ascii_case(b"chunked"));
        }
    }
    Ok(last)
}

/// What `Content-Length` says, once or several times over.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut told = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for number in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            let number = decimal(number).ok_or(Error::Framing)?;
            if told.is_some_and(|before| before != number) {
                return Err(Error::Framing);
            }
            told = Some(number);
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty, Full};

    use super::*;

    const USUAL: Manner = Manner { http10: false, head: false, trailers: false, keeps: true };

    fn said(status: u16, length: &str, body: &impl Body, manner: Manner) -> (String, Option<Length>) {
        let mut response = Response::builder().status(status);
        if !length.is_empty() {
            response = response.header("content-length", length);
        }
        let mut out = BytesMut::new();
        let length = write(&mut out, &response.body(()).unwrap().into_parts().0, body, manner);
        let text = String::from_utf8(out.to_vec()).unwrap();
        (text.strip_suffix("\r\n\r\n").unwrap().replace("\r\n", "|"), length)
    }

    /// If this fails, a client waits for a body that does not come, or takes the next answer for one.
    #[test]
    fn the_end_of_an_answer_is_told_in_the_way_that_its_client_understands() {
        use Length::{Chunked, Exactly, UntilClose};
        let (old, head, last) = (
            Manner { http10: true, ..USUAL },
            Manner { head: true, ..USUAL },
            Manner { keeps: false, ..USUAL },
        );
        let ok = Full::new(bytes::Bytes::from_static(b"ok"));
        let endless = ok.clone().map_frame(|frame| frame);
        let none = Empty::<bytes::Bytes>::new();
        for (got, text, length) in [
            (said(200, "", &ok, USUAL), "HTTP/1.1 200 OK|content-length: 2", Some(Exactly(2))),
            (said(200, "2", &ok, USUAL), "HTTP/1.1 200 OK|content-length: 2", Some(Exactly(2))),
            (said(599, "", &none, USUAL), "HTTP/1.1 599 |content-length: 0", Some(Exactly(0))),
            (said(200, "", &endless, USUAL), "HTTP/1.1 200 OK|transfer-encoding: chunked", Some(Chunked)),
            (said(200, "", &endless, old), "HTTP/1.0 200 OK", Some(UntilClose)),
            (
                said(200, "", &ok, old),
                "HTTP/1.0 200 OK|content-length: 2|connection: keep-alive",
                Some(Exactly(2)),
            ),
            (
                said(200, "", &ok, last),
                "HTTP/1.1 200 OK|content-length: 2|connection: close",
                Some(Exactly(2)),
            ),
            (said(200, "", &ok, head), "HTTP/1.1 200 OK|content-length: 2", None),
            (said(200, "4711", &none, head), "HTTP/1.1 200 OK|content-length: 4711", None),
            (said(200, "", &none, head), "HTTP/1.1 200 OK", None),
            (said(204, "5", &none, USUAL), "HTTP/1.1 204 No Content", None),
            (said(304, "5", &none, USUAL), "HTTP/1.1 304 Not Modified|content-length: 5", None),
            (said(101, "", &none, last), "HTTP/1.1 101 Switching Protocols", None),
        ] {
            assert_eq!(got, (text.to_owned(), length));
        }
    }

    fn read(text: &str, method: &Method) -> Result<Option<Answered>, Error> {
        super::read(&mut BytesMut::from(text), method, 1024)
    }

    /// If this fails, the end of an answer is seen where it is not, and what follows is taken for another answer.
    #[test]
    fn each_way_to_tell_a_length_is_understood() {
        use Length::{Chunked, Exactly, UntilClose};
        for (line, fields, length, keeps) in [
            ("HTTP/1.1 200 OK", "content-length: 5", Exactly(5), true),
            ("HTTP/1.1 200", "content-length: 5\r\nContent-Length: 5", Exactly(5), true),
            ("HTTP/1.1 200 OK", "content-length: 5, 5", Exactly(5), true),
            ("HTTP/1.1 200 OK", "transfer-encoding: chunked", Chunked, true),
            ("HTTP/1.1 200 OK", "transfer-encoding: gzip, Chunked", Chunked, true),
            ("HTTP/1.1 200 OK", "transfer-encoding: chunked\r\ncontent-length: 5", Chunked, false),
            ("HTTP/1.1 200 OK", "transfer-encoding: gzip", UntilClose, false),
            ("HTTP/1.1 200 OK", "a: b", UntilClose, false),
            ("HTTP/1.1 200 OK", "content-length: 5\r\nconnection: x, Close", Exactly(5), false),
            ("HTTP/1.0 200 OK", "content-length: 5", Exactly(5), false),
            ("HTTP/1.0 200 OK", "content-length: 5\r\nconnection: keep-alive", Exactly(5), true),
            ("HTTP/1.1 204 No Content", "content-length: 5", Exactly(0), true),
            ("HTTP/1.1 304 Not Modified", "content-length: 5", Exactly(0), true),
        ] {
            let head = read(&format!("{line}\r\n{fields}\r\n\r\nrest"), &Method::GET).unwrap().unwrap();
            assert_eq!((head.length, head.keeps), (length, keeps), "{line} {fields}");
            let both = length == Chunked && !keeps;
            assert!(!both || !head.response.headers().contains_key("content-length"), "{fields}");
        }
        let head = read("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", &Method::HEAD).unwrap().unwrap();
        assert_eq!(head.length, Exactly(0));
        assert_eq!(head.response.headers()["content-length"], "5", "a HEAD tells what a GET would get");
    }

    /// If this fails, an answer that can be read in two ways is passed on.
    #[test]
    fn doubtful_answers_are_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
        ] {
            assert!(read(text, &Method::GET).is_err(), "{text:?}");
        }
    }

    /// If this fails, an app can make phiward hold a head of any size, or one in two packets is lost.
    #[test]
    fn a_head_is_waited_for_as_long_as_it_may_be() {
        assert!(read("HTTP/1.1 200 OK\r\na: b\r\n", &Method::GET).unwrap().is_none());
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(1024));
        assert!(matches!(read(&long, &Method::GET), Err(Error::TooLarge)));
        let fields = "a: b\r\n".repeat(MAX_FIELDS + 1);
        let many = super::read(
            &mut BytesMut::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_str()),
            &Method::GET,
            64 * 1024,
        );
        assert!(matches!(many, Err(Error::Head(httparse::Error::TooManyHeaders))));
    }
}
