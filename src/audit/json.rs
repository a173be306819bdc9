//! Writes canonical JSON (RFC 8785) straight into a byte buffer.
//!
//! Owns escaping and number text. It does not sort: callers write keys in canonical order, a debug build checks that they
//! did, and the tests compare every event with a sorted `serde_json` tree. Nothing here allocates but the buffer itself.

/// The largest integer that JSON readers agree on (RFC 8785 section 3.2.2.3): 2^53 - 1.
pub(crate) const MAX_INTEGER: u64 = (1 << 53) - 1;

/// The longest string value that is written, in bytes as written; a longer one is cut at a character and ends with `…`.
///
/// An event has some 25 strings and at most 64 parameters, so this keeps every line below `chain::MAX_LINE` whatever a
/// peer sends. A SPIFFE ID (at most 2048 bytes, nothing to escape) is never cut.
pub(crate) const MAX_STRING: usize = 2048;

const CUT: &str = "…";

/// The members of one object, written as `"key":value,`; whoever opened the object closes it.
pub(crate) struct Members<'o> {
    out: &'o mut Vec<u8>,
    #[cfg(debug_assertions)]
    last: &'static str,
}

impl<'o> Members<'o> {
    pub(crate) fn new(out: &'o mut Vec<u8>) -> Self {
        Self {
            out,
            #[cfg(debug_assertions)]
            last: "",
        }
    }

    #[inline]
    pub(crate) fn text(&mut self, key: &'static str, value: &str) {
        self.text_bytes(key, value.as_bytes());
    }

    /// A text whose bytes are UTF-8; what is none becomes U+FFFD.
    #[inline]
    pub(crate) fn text_bytes(&mut self, key: &'static str, value: &[u8]) {
        self.key(key);
        string(self.out, value);
        self.out.push(b',');
    }

    /// One of our own words, or hex: what needs no escaping and is never long.
    #[inline]
    pub(crate) fn code(&mut self, key: &'static str, value: &str) {
        debug_assert!(value.len() <= MAX_STRING && !value.bytes().any(needs_escape), "{key}: {value}");
        self.plain(key, |out| out.extend_from_slice(value.as_bytes()));
    }

    #[inline]
    pub(crate) fn text_opt(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// A number; what is above [`MAX_INTEGER`] is written as that.
    #[inline]
    pub(crate) fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        integer(self.out, value.min(MAX_INTEGER));
        self.out.push(b',');
    }

    #[inline]
    pub(crate) fn flag(&mut self, key: &'static str, value: bool) {
        self.key(key);
        self.out.extend_from_slice(if value { b"true," } else { b"false," });
    }

    /// A string value that `fill` writes and that needs no escaping.
    #[inline]
    pub(crate) fn plain(&mut self, key: &'static str, fill: impl FnOnce(&mut Vec<u8>)) {
        self.key(key);
        self.out.push(b'"');
        fill(self.out);
        self.out.extend_from_slice(b"\",");
    }

    #[inline]
    pub(crate) fn object(&mut self, key: &'static str, fill: impl FnOnce(&mut Members<'_>)) {
        self.key(key);
        self.out.push(b'{');
        fill(&mut Members::new(self.out));
        close(self.out);
        self.out.push(b',');
    }

    /// Members that were encoded before, in their place: `"key":value,` each.
    pub(crate) fn fragment(&mut self, members: &str) {
        self.out.extend_from_slice(members.as_bytes());
    }

    /// A list of strings.
    pub(crate) fn texts(&mut self, key: &'static str, values: &[&str]) {
        self.key(key);
        self.out.push(b'[');
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                self.out.push(b',');
            }
            string(self.out, value.as_bytes());
        }
        self.out.extend_from_slice(b"],");
    }

    /// A list of our own words, base64 or hex: what needs no escaping. They are not cut.
    pub(crate) fn codes(&mut self, key: &'static str, values: &[String]) {
        self.key(key);
        self.out.push(b'[');
        for (at, value) in values.iter().enumerate() {
            self.out.extend_from_slice(if at > 0 { b",\"" } else { b"\"" });
            self.out.extend_from_slice(value.as_bytes());
            self.out.push(b'"');
        }
        self.out.extend_from_slice(b"],");
    }

    /// A member with any text, whose key is not known when the program is written; the caller sees to the order.
    pub(crate) fn text_dynamic(&mut self, key: &str, value: &str) {
        string(self.out, key.as_bytes());
        self.out.push(b':');
        string(self.out, value.as_bytes());
        self.out.push(b',');
    }

    /// A member whose key is not known when the program is written; the caller sees to the order.
    pub(crate) fn plain_dynamic(&mut self, key: &str, fill: impl FnOnce(&mut Vec<u8>)) {
        string(self.out, key.as_bytes());
        self.out.extend_from_slice(b":\"");
        fill(self.out);
        self.out.extend_from_slice(b"\",");
    }

    /// Inlined, as all that call it with a literal are: its length is then known where it is copied.
    #[inline]
    fn key(&mut self, key: &'static str) {
        #[cfg(debug_assertions)]
        {
            debug_assert!(self.last < key, "{key} is written after {}", self.last);
            self.last = key;
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// Ends an object: the last comma becomes the brace.
pub(crate) fn close(out: &mut Vec<u8>) {
    match out.last_mut() {
        Some(last) if *last == b',' => *last = b'}',
        _ => out.push(b'}'),
    }
}

/// Writes `text` with its quotes, by the escaping rules of RFC 8785 section 3.2.2.2.
#[inline]
pub(crate) fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    // Nearly every string is as it should be.
    if text.len() <= MAX_STRING && is_plain(text) {
        out.extend_from_slice(text);
    } else {
        unusual(out, &String::from_utf8_lossy(text));
    }
    out.push(b'"');
}

/// A string that is long, has something to escape, or is not all ASCII.
#[cold]
fn unusual(out: &mut Vec<u8>, text: &str) {
    let from = out.len();
    escaped(out, &text.as_bytes()[..text.len().min(MAX_STRING + 1)]);
    if out.len() - from > MAX_STRING {
        out.truncate(from);
        cut(out, from, text);
    }
}

/// As many whole characters as fit, escaped, and the mark of the cut.
fn cut(out: &mut Vec<u8>, from: usize, text: &str) {
    let mut character = [0; 4];
    for c in text.chars() {
        let end = out.len();
        escaped(out, c.encode_utf8(&mut character).as_bytes());
        if out.len() - from > MAX_STRING - CUT.len() {
            out.truncate(end);
            break;
        }
    }
    out.extend_from_slice(CUT.as_bytes());
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Whether it is ASCII of which nothing is to be escaped, eight bytes at a time: most strings are too short for vector code to pay.
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let below = |word: u64, least: u64| word.wrapping_sub(ONES * least) & !word; // exact as to whether any byte is, up to 0x80
    let (words, rest) = bytes.as_chunks();
    let mut found = 0;
    for word in words {
        let word = u64::from_ne_bytes(*word);
        let special = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
        found |= word | below(word, 0x20) | special(b'"') | special(b'\\');
    }
    found & HIGH == 0 && !rest.iter().any(|byte| needs_escape(*byte) || !byte.is_ascii())
}

fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut plain_from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if !needs_escape(byte) {
            continue;
        }
        out.extend_from_slice(&bytes[plain_from..at]);
        plain_from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[byte]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain_from..]);
}

/// Writes `value` in decimal.
pub(crate) fn integer(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes `bytes` in lower-case hexadecimal.
pub(crate) fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().flat_map(|byte| hex_pairs(&[*byte])[0]));
}

/// The two digits of each byte in lower case; flattened, they are the text. Reckoned instead of looked up, so that it becomes vector
/// code: the trail has hashes and pseudonyms in every event.
pub(crate) fn hex_pairs<const N: usize>(bytes: &[u8; N]) -> [[u8; 2]; N] {
    let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    let mut pairs = [[0; 2]; N];
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        string(&mut out, text.as_bytes());
        String::from_utf8(out).unwrap()
    }

    proptest! {
        /// If this fails, a string of a peer can break an event open or be read differently by a SIEM.
        #[test]
        fn any_string_reads_back_as_it_was(text in "\\PC{0,40}[\\x00-\\x1f\"\\\\\u{7f}\u{2028}]{0,8}[a-z]{0,20}") {
            let json = written(&text);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text.clone());
            prop_assert_eq!(json, serde_json::to_string(&text).unwrap());
        }

        /// If this fails, sequence numbers and byte counts are wrong.
        #[test]
        fn any_integer_is_its_decimal_text(value in any::<u64>()) {
            let mut out = Vec::new();
            integer(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    /// If this fails, one request with a huge host name can fill the spool or stop the collector.
    #[test]
    fn long_strings_are_cut_at_a_character() {
        let json = written(&"ü".repeat(5000));
        let read: String = serde_json::from_str(&json).unwrap();
        assert!(read.len() <= MAX_STRING && read.ends_with("ü…"), "{}", read.len());
        assert!(written(&"\u{1}".repeat(2000)).len() <= MAX_STRING + 2);
        assert_eq!(written(&"a".repeat(MAX_STRING)).len(), MAX_STRING + 2);
    }

    /// If this fails, an identifier in the trail is not the one that was hashed.
    #[test]
    fn hexadecimal_is_in_lower_case() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        hex(&mut out, &all);
        let want: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    /// If this fails, counters above 2^53 are read as other numbers by JavaScript and many SIEMs.
    #[test]
    fn numbers_stop_at_the_largest_exact_integer() {
        let mut out = Vec::new();
        Members::new(&mut out).number("n", u64::MAX);
        assert_eq!(out, br#""n":9007199254740991,"#);
    }
}
