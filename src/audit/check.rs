//! Checks that a line is canonical JSON (RFC 8785), in one pass and without a tree.
//!
//! Owns the question "is this the only way to write this event?": if two spellings passed, an event could be changed without
//! changing what a reader sees, and two verifiers could disagree. Numbers are integers up to 2^53 - 1, because the schema
//! has no others. Input is what a peer or an attacker wrote: depth is bounded, nothing is allocated on the ordinary path.

use std::cmp::Ordering;

use super::json::MAX_INTEGER;

const MAX_DEPTH: u32 = 8;

/// The top-level members that every event has, as they stand.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TopLevel<'l> {
    pub(crate) id: &'l str,
    pub(crate) schema: &'l str,
    pub(crate) time: &'l str,
    pub(crate) kind: &'l str,
    /// The whole member, if there is one.
    pub(crate) instance: &'l str,
}

/// Checks one line (without its line end).
///
/// # Errors
/// What is not canonical about it, or which member is missing.
pub(crate) fn canonical(line: &[u8]) -> Result<TopLevel<'_>, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
    // Canonical JSON has no white space between tokens and no bare control character in a string, so one pass that the
    // compiler turns into vector code spares the scan below a test a byte. (`fold`, because `any` is not vectorised.)
    if line.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
        return Err("it has a control character, or white space between tokens");
    }
    let plain = line.is_ascii() && memchr::memchr(b'\\', line).is_none();
    let mut scan = Scan { text, bytes: line, at: 0, plain, top: TopLevel::default() };
    if line.first() != Some(&b'{') {
        return Err("it is not a JSON object");
    }
    scan.value(0)?;
    if scan.at != line.len() {
        return Err("something follows the JSON object");
    }
    let top = scan.top;
    if [top.id, top.schema, top.time, top.kind].contains(&"") {
        return Err("one of id, schema, time, type is missing");
    }
    Ok(top)
}

struct Scan<'l> {
    text: &'l str,
    bytes: &'l [u8],
    at: usize,
    /// ASCII without escapes, as almost every event is: a string ends at the next quote, and keys compare as bytes.
    plain: bool,
    top: TopLevel<'l>,
}

impl<'l> Scan<'l> {
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0) // a NUL fits nowhere, so it stands for the end
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), &'static str> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err("it is not canonical JSON");
        }
        self.at += word.len();
        Ok(())
    }

    fn value(&mut self, depth: u32) -> Result<(), &'static str> {
        match self.peek() {
            b'"' => self.string().map(|_| ()),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'0'..=b'9' => self.integer(),
            b' ' => Err("it has white space between tokens"),
            b'n' => Err("it has a null: an absent member is left out"),
            0 => Err("the line is cut short"),
            _ => Err("it is not canonical JSON"),
        }
    }

    fn object(&mut self, depth: u32) -> Result<(), &'static str> {
        if depth == MAX_DEPTH {
            return Err("it is nested too deep");
        }
        self.at += 1;
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(());
        }
        let mut last: Option<&'l str> = None;
        loop {
            let key = self.string()?;
            if last.is_some_and(|last| self.compare_keys(last, key) != Some(Ordering::Less)) {
                return Err("its members are not in order, or one is there twice");
            }
            last = Some(key);
            self.literal(b":")?;
            let from = self.at;
            self.value(depth + 1)?;
            if depth == 0 {
                self.note(key, from);
            }
            match self.peek() {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                0 => return Err("the line is cut short"),
                _ => return Err("it is not canonical JSON"),
            }
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), &'static str> {
        if depth == MAX_DEPTH {
            return Err("it is nested too deep");
        }
        self.at += 1;
        if self.peek() == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err("it is not canonical JSON"),
            }
        }
    }

    /// A string with its quotes; gives what is between them.
    fn string(&mut self) -> Result<&'l str, &'static str> {
        if self.peek() != b'"' {
            return Err("it is not canonical JSON");
        }
        self.at += 1;
        let from = self.at;
        if self.plain {
            self.at = quote_from(self.bytes, from).ok_or("the line is cut short")? + 1;
            return Ok(&self.text[from..self.at - 1]);
        }
        loop {
            match self.bytes.get(self.at) {
                None => return Err("the line is cut short"),
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        Ok(&self.text[from..self.at - 1])
    }

    fn compare_keys(&self, a: &str, b: &str) -> Option<Ordering> {
        if self.plain { Some(a.cmp(b)) } else { compare_keys(a, b) }
    }

    /// Only the characters that must be escaped may be, and each in one way (RFC 8785 section 3.2.2.2).
    fn escape(&mut self) -> Result<(), &'static str> {
        const WRONG: &str = "it has an escape that is not canonical";
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'b' | b't' | b'n' | b'f' | b'r') => self.at += 2,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 2..self.at + 6).ok_or("the line is cut short")?;
                let control = digits.starts_with(b"00") && matches!(digits[2], b'0' | b'1');
                let low = matches!(digits[3], b'0'..=b'9' | b'a'..=b'f');
                let has_short_form =
                    digits[2] == b'0' && matches!(digits[3], b'8' | b'9' | b'a' | b'c' | b'd');
                if !control || !low || has_short_form {
                    return Err(WRONG);
                }
                self.at += 6;
            }
            _ => return Err(WRONG),
        }
        Ok(())
    }

    fn integer(&mut self) -> Result<(), &'static str> {
        let digits = self.bytes[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let text = &self.text[self.at..self.at + digits];
        if digits > 1 && text.starts_with('0') {
            return Err("a number has a leading zero");
        }
        if digits > 16 || text.parse().is_ok_and(|value: u64| value > MAX_INTEGER) {
            return Err("a number is above 2^53 - 1");
        }
        self.at += digits;
        Ok(())
    }

    fn note(&mut self, key: &str, from: usize) {
        let whole = &self.text[from..self.at];
        let value = whole.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or("");
        match key {
            "id" => self.top.id = value,
            "instance" => self.top.instance = whole,
            "schema" => self.top.schema = value,
            "time" => self.top.time = value,
            "type" => self.top.kind = value,
            _ => {}
        }
    }
}

/// The next quote, eight bytes at a time: the strings of an event are too short for a vector search to pay (measured).
fn quote_from(bytes: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    while let Some((word, _)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<8>()) {
        // A byte that is a quote becomes zero, and the lowest zero byte is found exactly.
        let word = u64::from_le_bytes(*word) ^ (ONES * u64::from(b'"'));
        let zeros = word.wrapping_sub(ONES) & !word & HIGH;
        if zeros != 0 {
            return Some(at + zeros.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    bytes.get(at..)?.iter().position(|byte| *byte == b'"').map(|found| at + found)
}

/// The order of RFC 8785 section 3.2.3: by UTF-16 code units of the unescaped keys. `None` when a key is not readable.
fn compare_keys(a: &str, b: &str) -> Option<Ordering> {
    let simple = |key: &str| key.bytes().all(|b| b.is_ascii() && b != b'\\');
    if simple(a) && simple(b) {
        return Some(a.cmp(b));
    }
    let unescaped = |key: &str| serde_json::from_str::<String>(&format!("\"{key}\"")).ok();
    Some(unescaped(a)?.encode_utf16().cmp(unescaped(b)?.encode_utf16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a workload can write another one's trail by hiding a second `instance` in its records.
    #[test]
    fn only_the_events_own_instance_says_who_wrote_it() {
        let line = r#"{"conn":{"instance":{"spiffe_id":"a"}},"id":"i","instance":{"spiffe_id":"b"},"schema":"s","time":"t","type":"k"}"#;
        assert_eq!(canonical(line.as_bytes()).unwrap().instance, r#"{"spiffe_id":"b"}"#);
        let twice = line.replace(r#""schema""#, r#""instance":{"spiffe_id":"c"},"schema""#);
        assert!(canonical(twice.as_bytes()).is_err());
    }

    /// If this fails, a record can be rewritten in another spelling, or two verifiers disagree on it.
    #[test]
    fn only_the_canonical_spelling_passes() {
        let wrap = |inner: &str| format!(r#"{{"a":{inner},"id":"i","schema":"s","time":"t","type":"k"}}"#);
        let good = [
            r#""x""#,
            r#"{"a":1,"b":[true,false,"é\u0001\n"]}"#,
            "{}",
            "[]",
            "0",
            "9007199254740991",
            "\"\u{7f}\"",
        ];
        for inner in good {
            assert!(canonical(wrap(inner).as_bytes()).is_ok(), "{inner}");
        }
        let bad = [
            r#""\u0041""#,
            r#""\/""#,
            r#""\u000a""#,
            r#""\u001F""#,
            r#""\u007f""#,
            "\"\t\"",
            "1.0",
            "1e3",
            "01",
            "-0",
            "-1",
            "9007199254740992",
            "99999999999999999999999999",
            "null",
            " 1",
            "[1 ]",
            r#"{"b":1,"a":1}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,}"#,
            "[1,]",
            r#"{"é":1,"\u0001":1}"#,
            "[[[[[[[[[[1]]]]]]]]]]",
            "tru",
            r#""\"#,
        ];
        for inner in bad {
            assert!(canonical(wrap(inner).as_bytes()).is_err(), "{inner}");
        }
    }

    /// If this fails, U+10000 and above sort as UTF-8 does and not as RFC 8785 says.
    #[test]
    fn keys_are_compared_by_utf_16() {
        assert_eq!(compare_keys("\u{10000}", "\u{ff61}"), Some(Ordering::Less));
        assert_eq!(compare_keys("a", "b"), Some(Ordering::Less));
        assert_eq!(compare_keys("\\n", "a"), Some(Ordering::Less));
    }

    proptest::proptest! {
        /// If this fails, a hostile line stops the collector.
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = canonical(&bytes);
        }

        /// If this fails, a line cut or changed anywhere makes the verifier panic.
        #[test]
        fn no_mutation_makes_it_panic(at in 0usize..60, byte in proptest::num::u8::ANY, cut in 0usize..60) {
            let mut line = br#"{"a":{"b":[1,"\u0001"]},"id":"i","schema":"s","time":"t","type":"k"}"#.to_vec();
            line[at] = byte;
            let _ = canonical(&line);
            let _ = canonical(&line[..cut]);
        }
    }
}
