//! The query of a request: it is forwarded byte for byte and takes no part in matching paths, but it must be well formed
//! and must not replace the method. What rules say about its parameters is in `params`.

use super::path::hex_pair;
use super::{Reason, is_method_override_header};

/// Checks `query`, the part after the first `?`.
///
/// # Errors
/// Why the query is refused.
pub(super) fn check(query: &str) -> Result<(), Reason> {
    let bytes = query.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0 => return Err(Reason::Nul),
            0x01..=0x1F | 0x7F => return Err(Reason::ControlByte),
            b' ' => return Err(Reason::Space),
            0x80..=0xFF => return Err(Reason::NonAscii),
            b'#' => return Err(Reason::Fragment),
            b'%' => match hex_pair(&bytes[at + 1..]) {
                None => return Err(Reason::BadQuery),
                Some(0) => return Err(Reason::Nul),
                Some(_) => {}
            },
            _ => {}
        }
    }
    // `;` separates too, to some servers (W3C, HTML 4.01 section B.2.2); a method hidden behind it must not pass.
    let names = query.split(['&', ';']).map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    for name in names {
        if name.len() >= "_method".len() && is_method_override(name.as_bytes()) {
            return Err(Reason::MethodOverride);
        }
    }
    Ok(())
}

/// True when a server might take `name` for `_method` or one of the override headers' names.
///
/// Names are decoded once, and once more for servers that decode twice. PHP's changes are made as well: leading spaces
/// go, `.`, space and `[` become `_`, and what follows a later `[` is an index.
fn is_method_override(name: &[u8]) -> bool {
    const LONGEST: usize = "x_http_method_override".len();
    let mut buffer = [0u8; LONGEST];
    let mut length = 0;
    for byte in Unescaped(Unescaped(name.iter().copied())) {
        let byte = match byte.to_ascii_lowercase() {
            b' ' | b'+' | b'\t'..=b'\r' if length == 0 => continue,
            b'[' if length > 0 => break,
            b'.' | b' ' | b'+' | b'[' | b'-' => b'_',
            byte => byte,
        };
        if byte == 0 || length == LONGEST && byte == b'_' {
            break; // cut at a NUL; padded at the end
        }
        if length == LONGEST {
            return false;
        }
        buffer[length] = byte;
        length += 1;
    }
    let name = std::str::from_utf8(&buffer[..length]).unwrap_or_default().trim_end_matches('_');
    name == "_method" || is_method_override_header(name)
}

/// Bytes with `%xy` decoded; a `%` that begins no escape stands for itself.
pub(super) struct Unescaped<I>(pub(super) I);

impl<I: Iterator<Item = u8> + Clone> Iterator for Unescaped<I> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let byte = self.0.next()?;
        if byte != b'%' {
            return Some(byte);
        }
        let mut ahead = self.0.clone();
        let pair = [ahead.next().unwrap_or_default(), ahead.next().unwrap_or_default()];
        let Some(value) = hex_pair(&pair) else { return Some(byte) };
        self.0 = ahead;
        Some(value)
    }
}

impl<I: Clone> Clone for Unescaped<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a `GET` that was allowed is executed as a `DELETE`.
    #[test]
    fn every_spelling_of_a_method_parameter_is_found() {
        for query in [
            "_method=DELETE",
            "a=1&_method=DELETE",
            "_METHOD=x",
            "%5Fmethod=x",
            "_%6dethod=x",
            "_meth%6F%64=x",
            "_method",
            "a=1;_method=DELETE",
            "%255fmethod=x",
            "+_method=x",
            "%20_method=x",
            ".method=x",
            "[method=x",
            "%2Emethod=x",
            "_method[]=x",
            "_method[a]=x",
            "_method%5B%5D=x",
            "_method%20=x",
            "_method.=x",
            "_method+++=x",
            "X-HTTP-Method-Override=PUT",
            "x_http_method_override=PUT",
            "x-http-method=PUT",
            "X-Method-Override=PUT",
            "x-http-method-override++=PUT",
            "++++++++++++++++++++++++++++++++++_method=x",
        ] {
            assert_eq!(check(query), Err(Reason::MethodOverride), "{query}");
        }
        for query in [
            "",
            "method=x",
            "a=_method",
            "a_method=x",
            "_methods=x",
            "_methodical",
            "_count=10&_sort=-date",
            "a=1&&b=2",
            "&",
            "=",
            "identifier=sys|42",
            "q={x}",
            "date=ge2026-01-01",
            "a?b",
            "name=%C3%A9%20x",
            "x=%0A",
            "_=1",
            "an-ordinary-name-that-is-longer-than-any-of-these=1",
        ] {
            assert_eq!(check(query), Ok(()), "{query}");
        }
    }

    /// If this fails, a query that two servers split or decode differently is forwarded.
    #[test]
    fn malformed_queries_are_refused() {
        let table = [
            ("a=%", Reason::BadQuery),
            ("a=%4", Reason::BadQuery),
            ("a=%zz", Reason::BadQuery),
            ("%u0041=1", Reason::BadQuery),
            ("a b", Reason::Space),
            ("a=\u{e9}", Reason::NonAscii),
            ("a=\u{7f}", Reason::ControlByte),
            ("a=\n", Reason::ControlByte),
            ("a=\0", Reason::Nul),
            ("a=%00", Reason::Nul),
            ("a=1#b", Reason::Fragment),
        ];
        for (query, want) in table {
            assert_eq!(check(query), Err(want), "{query:?}");
        }
    }
}
