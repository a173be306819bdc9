//! The head of a request as it goes out, and of a response as it comes in; how long each one's body is.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request;
use http::{Method, Response, StatusCode, Version};

use super::Error;
use crate::proxy::headers::has_token;

/// As many fields as hyper takes.
const MAX_FIELDS: usize = 100;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// After so many bytes.
    Exactly(u64),
    /// It comes in chunks.
    Chunked,
    /// With the connection. Only a response does.
    UntilClose,
}

/// The head of a response.
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) length: Length,
    /// Whether the connection may carry another request after it.
    pub(super) keeps: bool,
}

/// Writes the head of `request` into `out`, and tells how its body will be framed.
pub(super) fn write_request(out: &mut BytesMut, request: &request::Parts) -> Length {
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
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        out.reserve(name.len() + value.len() + 4);
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    length
}

/// Takes the head of a response to `method` from `input`; nothing while it is not whole.
pub(super) fn read_response(
    input: &mut BytesMut,
    method: &Method,
    most: usize,
) -> Result<Option<Head>, Error> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut room) {
        Ok(httparse::Status::Complete(length)) if length <= most => length,
        Ok(httparse::Status::Partial) if input.len() < most => return Ok(None),
        Ok(_) => return Err(Error::TooLarge),
        Err(error) => return Err(error.into()),
    };
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Error::Field)?;
    // Where the fields stand, so that their values can be pieces of the buffer they came in.
    let base = input.as_ptr() as usize;
    let place = |text: &[u8]| (text.as_ptr() as usize - base, text.len());
    let mut places = [((0, 0), (0, 0)); MAX_FIELDS];
    let count = parsed.headers.len();
    for (field, at) in parsed.headers.iter().zip(&mut places) {
        *at = (place(field.name.as_bytes()), place(field.value));
    }
    let text = input.split_to(length).freeze();
    let headers = fields(&text, &places[..count])?;
    let mut response = Response::new(());
    (*response.status_mut(), *response.version_mut(), *response.headers_mut()) = (status, version, headers);
    finish(response, method).map(Some)
}

type Place = (usize, usize);

fn fields(text: &Bytes, places: &[(Place, Place)]) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::with_capacity(places.len());
    for ((name_at, name_len), (value_at, value_len)) in places {
        let name = &text[*name_at..name_at + name_len];
        let name = HeaderName::from_bytes(name).map_err(|_| Error::Field)?;
        let value = text.slice(*value_at..value_at + value_len);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Error::Field)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// How the body of `response` is framed (RFC 9112, section 6.3), and what may come after it.
fn finish(mut response: Response<()>, method: &Method) -> Result<Head, Error> {
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
    Ok(Head { response, length, keeps: keeps && !doubtful && http })
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

fn decimal(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| all)?.parse().ok()
}

/// The fields that may stand behind the body of a request: those that its head announces.
pub(super) fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(header::TRAILER).iter();
    let names = lines.flat_map(|line: &HeaderValue| line.as_bytes().split(|b| *b == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, method: &Method) -> Result<Option<Head>, Error> {
        read_response(&mut BytesMut::from(text), method, 1024)
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
        let many = read_response(
            &mut BytesMut::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_str()),
            &Method::GET,
            64 * 1024,
        );
        assert!(matches!(many, Err(Error::Head(httparse::Error::TooManyHeaders))));
    }
}
