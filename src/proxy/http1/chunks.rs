//! Bodies in chunks (RFC 9112, section 7.1), as they come in.
//!
//! Strict where leniency has let two readers see two bodies: lines end in CR LF, sizes are hexadecimal digits and nothing else,
//! and what stands after a size is bounded.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Error;

/// The longest line of a chunk's size, with its extensions.
const MAX_LINE: usize = 4096;
/// The trailers, all together.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 100;

/// Where in the chunks a reader is.
#[derive(Clone, Copy)]
pub(super) enum Chunks {
    /// Before a size.
    Size,
    /// In a chunk that has so many bytes to come.
    Data(u64),
    /// Behind a chunk's data.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
}

/// What a reader found.
pub(super) enum Piece {
    Data(Bytes),
    /// The end, with the fields that stood there.
    End(Option<HeaderMap>),
}

impl Chunks {
    /// The next piece of `input`, or nothing before more of it came.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, Error> {
        loop {
            match self {
                Self::Size => {
                    let Some(end) = line_end(input, MAX_LINE)? else { return Ok(None) };
                    let size = size(&input[..end])?;
                    input.advance(end + 2);
                    *self = if size == 0 { Self::Trailers } else { Self::Data(size) };
                }
                Self::Data(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let n = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                    *left -= n as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Some(Piece::Data(input.split_to(n).freeze())));
                }
                Self::DataEnd => {
                    if input.len() < 2 {
                        return Ok(None);
                    }
                    if !input.starts_with(b"\r\n") {
                        return Err(Error::Chunk);
                    }
                    input.advance(2);
                    *self = Self::Size;
                }
                Self::Trailers => return trailers(input),
            }
        }
    }
}

/// Where the line ends that `input` begins with; nothing while it has not ended.
fn line_end(input: &[u8], most: usize) -> Result<Option<usize>, Error> {
    match memchr::memchr(b'\n', input) {
        Some(at) if at > 0 && input[at - 1] == b'\r' && at <= most => Ok(Some(at - 1)),
        Some(_) => Err(Error::Chunk),
        None if input.len() > most => Err(Error::Chunk),
        None => Ok(None),
    }
}

/// A chunk's size. Extensions are allowed and mean nothing; so do the blanks that old servers write behind it.
fn size(line: &[u8]) -> Result<u64, Error> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    let text = str::from_utf8(&line[..digits]).map_err(|_| Error::Chunk)?;
    let control = |b: &u8| b.is_ascii_control() && *b != b'\t';
    if !(rest.is_empty() || rest.starts_with(b";")) || digits > 16 || line.iter().any(control) {
        return Err(Error::Chunk);
    }
    u64::from_str_radix(text, 16).map_err(|_| Error::Chunk)
}

fn trailers(input: &mut BytesMut) -> Result<Option<Piece>, Error> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(Piece::End(None)));
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(input, &mut fields)? {
        httparse::Status::Partial if input.len() > MAX_TRAILERS => Err(Error::TooLarge),
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete((length, fields)) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Error::Field)?;
                let value = HeaderValue::from_bytes(field.value).map_err(|_| Error::Field)?;
                if may_trail(&name) {
                    map.append(name, value);
                }
            }
            input.advance(length);
            Ok(Some(Piece::End(Some(map))))
        }
    }
}

/// Whether a field may stand behind a body: not one that frames, routes or decides (RFC 9110, section 6.5.1).
pub(super) fn may_trail(name: &HeaderName) -> bool {
    const NEVER: [HeaderName; 13] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    !NEVER.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of `bytes`, given in pieces of `step` bytes.
    fn read(bytes: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), Error> {
        let (mut chunks, mut input, mut body) = (Chunks::Size, BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            input.extend_from_slice(piece);
            while let Some(piece) = chunks.next(&mut input)? {
                match piece {
                    Piece::Data(data) => body.extend_from_slice(&data),
                    Piece::End(trailers) => return Ok((body, trailers, input.len())),
                }
            }
        }
        Err(Error::Cut)
    }

    /// If this fails, a body that comes in small packets is read differently from one that comes at once.
    #[test]
    fn chunks_are_read_the_same_however_they_come() {
        let sent = b"5\r\nhello\r\n1;name=\"x\"\r\n \r\n00A  \r\n0123456789\r\n0\r\nx-sum: 1\r\ncontent-length: 9\r\n\r\n";
        for step in 1..=sent.len() {
            let (body, trailers, left) = read(sent, step).unwrap();
            assert_eq!((body.as_slice(), left), (b"hello 0123456789".as_slice(), 0), "{step}");
            let trailers = trailers.unwrap();
            assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &HeaderValue::from_static("1")));
        }
    }

    /// If this fails, an app and phiward may see two different ends of a body, and two answers where there is one.
    #[test]
    fn doubtful_chunks_are_refused() {
        for sent in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "\r\n",
            ";a\r\n",
            "5;a\rb\r\nhello\r\n0\r\n\r\n",
            "10000000000000000\r\n",
            "g\r\n",
            "0\r\nno colon\r\n\r\n",
        ] {
            let refused = read(sent.as_bytes(), sent.len()).map(|(body, ..)| body);
            assert!(matches!(refused, Err(Error::Chunk | Error::Head(_))), "{sent:?}: {refused:?}");
        }
    }

    /// If this fails, an app can make phiward hold any amount of memory.
    #[test]
    fn what_has_no_end_is_refused() {
        let line = [b"5;".as_slice(), &[b'a'; MAX_LINE]].concat();
        assert!(matches!(read(&line, line.len()), Err(Error::Chunk)));
        let trailers = [b"0\r\na: ".as_slice(), &[b'a'; MAX_TRAILERS]].concat();
        assert!(matches!(read(&trailers, trailers.len()), Err(Error::TooLarge)));
    }
}
