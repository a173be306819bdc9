//! The path of a request: what is refused in it, and the one form of what is left.
//!
//! This file is the security of the product. The form it returns is both what rules are matched against and what is
//! forwarded, and it must leave the application nothing to resolve: no dots, no empty segments, no second decoding that
//! would give a separator. What is doubtful is refused, never repaired, because every repair is a guess about what the
//! application would have done (RFC 3986 section 7.3 and the CVEs named in [`Reason`]).

use std::borrow::Cow;

use super::Reason;

/// What a policy's `path:` block says. The default refuses everything that is doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRules {
    /// Keep `%2F` as part of a segment instead of refusing it.
    pub preserve_encoded_slash: bool,
    /// Keep `;` and `%3B` as part of a segment instead of refusing them.
    pub allow_matrix_params: bool,
    /// The longest path, in bytes as it arrived.
    pub max_bytes: usize,
}

impl PathRules {
    /// The longest path unless the policy says otherwise, in bytes.
    pub const DEFAULT_MAX_BYTES: usize = 2048;
    /// The most that a policy can say, in bytes.
    pub const MOST_MAX_BYTES: usize = 65_536;
}

impl Default for PathRules {
    fn default() -> Self {
        Self { preserve_encoded_slash: false, allow_matrix_params: false, max_bytes: Self::DEFAULT_MAX_BYTES }
    }
}

/// The canonical form of `path`, borrowed when it came so: escapes of unreserved characters are decoded, the hex digits
/// of the others are in upper case, and the rest is byte for byte what arrived.
///
/// # Errors
/// Why the path is refused.
pub(super) fn canonical<'a>(path: &'a str, rules: &PathRules) -> Result<Cow<'a, str>, Reason> {
    if !path.starts_with('/') {
        return Err(Reason::NotAbsolutePath);
    }
    if path.len() > rules.max_bytes {
        return Err(Reason::PathTooLong);
    }
    if is_ordinary(path) {
        return Ok(Cow::Borrowed(path));
    }
    let mut escaped = false;
    for byte in path.bytes() {
        match CLASS[usize::from(byte)] {
            Class::Plain => {}
            Class::Percent => escaped = true,
            Class::Refused(Reason::Semicolon) if rules.allow_matrix_params => {}
            Class::Refused(reason) => return Err(reason),
        }
    }
    let canonical = if escaped { unescape(path, rules)? } else { Cow::Borrowed(path) };
    check_segments(&canonical, rules)?;
    Ok(canonical)
}

/// True for nearly all paths: only bytes that stand for themselves, no empty segment and none that begins with a dot.
fn is_ordinary(path: &str) -> bool {
    let mut before = 0;
    let mut doubtful = false;
    for byte in path.bytes() {
        doubtful |= !PLAIN[usize::from(byte)] | (before == b'/' && matches!(byte, b'/' | b'.'));
        before = byte;
    }
    !doubtful
}

#[derive(Clone, Copy)]
enum Class {
    /// Stands for itself: `pchar` of RFC 3986 without `%` and `;`, and the slash.
    Plain,
    Percent,
    Refused(Reason),
}

/// What each byte is when it stands in a path as such.
const CLASS: [Class; 256] = {
    let mut table = [Class::Refused(Reason::IllegalByte); 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            0 => Class::Refused(Reason::Nul),
            0x01..=0x1F | 0x7F => Class::Refused(Reason::ControlByte),
            b' ' => Class::Refused(Reason::Space),
            0x80..=0xFF => Class::Refused(Reason::NonAscii),
            b'\\' => Class::Refused(Reason::Backslash),
            b';' => Class::Refused(Reason::Semicolon),
            b'#' => Class::Refused(Reason::Fragment),
            b'%' => Class::Percent,
            b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => {
                Class::Plain
            }
            b if is_unreserved(b) => Class::Plain,
            _ => Class::Refused(Reason::IllegalByte),
        };
        byte += 1;
    }
    table
};

/// Where [`CLASS`] is [`Class::Plain`].
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(CLASS[byte], Class::Plain);
        byte += 1;
    }
    table
};

/// RFC 3986 section 2.3: escaping these makes no difference to what a URI means.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn unescape<'a>(path: &'a str, rules: &PathRules) -> Result<Cow<'a, str>, Reason> {
    let mut out = String::with_capacity(path.len());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            out.push(char::from(byte));
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let value = hex_pair(tail).ok_or(Reason::BadEscape)?;
        rest = &tail[2..];
        check_escaped(value, rules)?;
        decoded.push(value);
        if is_unreserved(value) {
            out.push(char::from(value));
        } else {
            push_escape(&mut out, value);
        }
    }
    check_decoded(&out, &decoded)?;
    Ok(if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) })
}

/// Refuses escapes of what must not be in a path in any spelling.
fn check_escaped(value: u8, rules: &PathRules) -> Result<(), Reason> {
    match value {
        0 => Err(Reason::Nul),
        0x01..=0x1F | 0x7F => Err(Reason::ControlByte),
        b'\\' => Err(Reason::Backslash),
        b'/' if !rules.preserve_encoded_slash => Err(Reason::EncodedSlash),
        b';' if !rules.allow_matrix_params => Err(Reason::Semicolon),
        _ => Ok(()),
    }
}

/// Refuses what only shows once all escapes were decoded.
fn check_decoded(out: &str, decoded: &[u8]) -> Result<(), Reason> {
    // Overlong forms such as %C0%AE, which lenient decoders read as a dot (CVE-2000-0884), are not UTF-8.
    let text = std::str::from_utf8(decoded).map_err(|_| Reason::BadEscape)?;
    if text.chars().any(char::is_control) {
        return Err(Reason::ControlByte); // the C1 controls: ASCII ones are refused before
    }
    // On the output, not the input: `%25%32%65` becomes `%252e` only here.
    let doubled = out.match_indices("%25").any(|(at, _)| hex_pair(&out.as_bytes()[at + 3..]).is_some());
    if doubled { Err(Reason::DoubleEncoding) } else { Ok(()) }
}

/// Refuses dot segments and empty segments, also those that only appear to whoever decodes `%2F` or cuts at `;`.
fn check_segments(path: &str, rules: &PathRules) -> Result<(), Reason> {
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if segment.is_empty() {
            if last {
                return Ok(()); // a trailing slash, or the path "/"
            }
            return Err(Reason::EmptySegment);
        }
        if !rules.preserve_encoded_slash && !rules.allow_matrix_params {
            check_piece(segment)?;
            continue;
        }
        for piece in segment.split("%2F") {
            check_piece(piece)?;
            check_piece(&piece[..without_params(piece.as_bytes()).len()])?;
        }
    }
    Ok(())
}

fn check_piece(piece: &str) -> Result<(), Reason> {
    // Windows drops trailing spaces from names, so `..%20` is a dot segment there.
    match piece.trim_end_matches("%20") {
        "" if piece.is_empty() => Err(Reason::EmptySegment),
        "." | ".." => Err(Reason::DotSegment),
        _ => Ok(()),
    }
}

/// `piece` up to its first `;`, escaped or not: what a server that knows matrix parameters takes for the name.
pub(super) fn without_params(piece: &[u8]) -> &[u8] {
    let begins = |at: &usize| piece[*at] == b';' || piece[*at..].starts_with(b"%3B");
    &piece[..(0..piece.len()).find(begins).unwrap_or(piece.len())]
}

fn push_escape(out: &mut String, value: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(value >> 4)]));
    out.push(char::from(HEX[usize::from(value & 15)]));
}

/// The value of two hex digits at the start of `bytes`.
pub(super) fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}
