//! What heads of requests and of responses have in common.

use bytes::{Bytes, BytesMut};
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

/// Where a text stands in the bytes that it came in: its start and its length.
pub(super) type Place = (usize, usize);

/// Where the fields of a head stand, so that their values can be pieces of the buffer they came in.
pub(super) struct Places {
    base: usize,
    fields: [(Place, Place); MAX_FIELDS],
    count: usize,
}

impl Places {
    /// Of `fields`, which were found in `input`.
    pub(super) fn of(input: &[u8], fields: &[httparse::Header<'_>]) -> Self {
        let mut places = Self {
            base: input.as_ptr() as usize,
            fields: [((0, 0), (0, 0)); MAX_FIELDS],
            count: fields.len(),
        };
        for (field, at) in fields.iter().zip(&mut places.fields) {
            *at = (place(places.base, field.name.as_bytes()), place(places.base, field.value));
        }
        places
    }

    /// Where `text`, a piece of the same input, stands.
    pub(super) fn place(&self, text: &str) -> Place {
        place(self.base, text.as_bytes())
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The fields, out of what was taken from the input.
    pub(super) fn read(
        &self,
        text: &Bytes,
    ) -> impl Iterator<Item = Result<(HeaderName, HeaderValue), Error>> {
        self.fields[..self.count].iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(&slice(text, *name)).map_err(|_| Error::Field)?;
            let value = HeaderValue::from_maybe_shared(slice(text, *value)).map_err(|_| Error::Field)?;
            Ok((name, value))
        })
    }
}

fn place(base: usize, text: &[u8]) -> Place {
    (text.as_ptr() as usize - base, text.len())
}

/// The text at a place.
pub(super) fn slice(text: &Bytes, (at, length): Place) -> Bytes {
    text.slice(at..at + length)
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
