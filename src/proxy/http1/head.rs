//! What heads of requests and of responses have in common.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Error;

/// As many fields as a head may have.
pub(super) const MAX_FIELDS: usize = 100;

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

/// Takes a head off the front of `input`, with the blank line that ends it; nothing while it is not whole. Blank lines ahead of it
/// mean nothing (RFC 9112, section 2.2).
///
/// # Errors
/// It is larger than `most`.
pub(super) fn take(input: &mut BytesMut, most: usize) -> Result<Option<Bytes>, Error> {
    let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if blank > 0 {
        input.advance(blank);
    }
    match end(input, 0) {
        Some(length) if length <= most => Ok(Some(input.split_to(length).freeze())),
        None if input.len() < most => Ok(None),
        _ => Err(Error::TooLarge),
    }
}

/// Where the first head in `input` ends, if that is behind byte `from`.
pub(super) fn end(input: &[u8], from: usize) -> Option<usize> {
    let start = from.saturating_sub(3);
    let new = &input[start..];
    memchr::memchr_iter(b'\n', new).find_map(|at| match new[at + 1..] {
        [b'\n', ..] => Some(start + at + 2),
        [b'\r', b'\n', ..] => Some(start + at + 3),
        _ => None,
    })
}

/// A field, whose value is a piece of the `text` that it was found in.
pub(super) fn field(text: &Bytes, found: &httparse::Header<'_>) -> Result<(HeaderName, HeaderValue), Error> {
    let name = HeaderName::from_bytes(found.name.as_bytes()).map_err(|_| Error::Field)?;
    let value = HeaderValue::from_maybe_shared(text.slice_ref(found.value)).map_err(|_| Error::Field)?;
    Ok((name, value))
}

/// Writes a line of a head.
pub(super) fn write_field(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// A number of nothing but digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| all)?.parse().ok()
}

/// The fields that may stand behind the body of a message: those that its head announces.
pub(super) fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(header::TRAILER).iter();
    let names = lines.flat_map(|line: &HeaderValue| line.as_bytes().split(|b| *b == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a message that comes in several packets is never answered, or what came behind a head is taken for it.
    #[test]
    fn the_end_of_a_head_is_seen_wherever_it_was_cut() {
        for head in ["GET / HTTP/1.1\r\na: b\r\n\r\n", "GET / HTTP/1.1\na: b\n\n"] {
            for cut in 1..head.len() {
                assert_eq!(end(head.as_bytes(), cut), Some(head.len()), "{head:?} {cut}");
                assert_eq!(end(&head.as_bytes()[..cut], 0), None, "{head:?} {cut}");
            }
            let mut input = BytesMut::from(format!("\r\n{head}rest").as_str());
            assert_eq!(take(&mut input, 100).unwrap().unwrap(), head);
            assert_eq!(input, "rest");
        }
    }
}
