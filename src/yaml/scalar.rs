//! Typed scalars: what a plain word means (YAML 1.2 core schema), and the readers for text, numbers, times and sizes.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Node, Reader, Value, closest};

/// Which edge of the day a date without a time stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Day {
    /// The first second of the day (UTC): for "from".
    Start,
    /// The first second after the day (UTC): for "until", so that the named day is the last one that counts.
    End,
}

pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn core_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Words that YAML 1.1 readers take for booleans and YAML 1.2 readers for text; so they are neither here.
fn is_old_bool(text: &str) -> bool {
    text.len() <= 3 && ["y", "n", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return false; // as nearly every word of a file
    }
    let based = |prefix: &str, legal: fn(&u8) -> bool| {
        unsigned.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| legal(&b)))
    };
    let special = matches!(unsigned.to_ascii_lowercase().as_str(), ".inf" | ".nan");
    let decimal = unsigned.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'.')
        && unsigned.bytes().any(|b| b.is_ascii_digit())
        && unsigned.parse::<f64>().is_ok();
    special || decimal || based("0x", u8::is_ascii_hexdigit) || based("0o", |b| (b'0'..=b'7').contains(b))
}

/// True when a plain word is text, and not a number, a boolean or nothing.
pub(super) fn is_string(text: &str) -> bool {
    !is_null(text) && core_bool(text).is_none() && !is_old_bool(text) && !is_number(text)
}

pub(super) fn plain_kind(text: &str) -> &'static str {
    match text {
        _ if is_null(text) => "nothing",
        _ if core_bool(text).is_some() => "a boolean",
        _ if is_number(text) => "a number",
        _ => "a string",
    }
}

impl Reader {
    /// Text. A plain number, boolean or empty value is not text: the problem says to quote it.
    pub fn string<'n>(&self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, plain } if !plain || is_string(text) => Some(text),
            Value::Scalar { plain: true, text } if !is_null(text) => {
                let found = if is_old_bool(text) {
                    "a word that some readers take for a boolean"
                } else {
                    node.kind()
                };
                let message = format!("{what} must be a string, found {found}");
                self.problem_with_hint(node.at, message, format!("put it in quotes: \"{text}\""));
                None
            }
            _ => self.wrong_type(node, what, "a string"),
        }
    }

    /// `true` or `false`.
    pub fn bool(&self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if core_bool(text).is_some() => core_bool(text),
            Value::Scalar { text, .. } if is_old_bool(text) || core_bool(text).is_some() => {
                let message = format!("{what} must be true or false, found `{text}`");
                self.problem_with_hint(node.at, message, "write true or false, without quotes");
                None
            }
            _ => self.wrong_type(node, what, "true or false"),
        }
    }

    /// A whole number in `range`.
    pub fn u64(&self, node: &Node, what: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let Value::Scalar { text, plain: true } = &node.value else {
            return self.wrong_type(node, what, "a number");
        };
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return self.wrong_type(node, what, "a whole number");
        }
        let value = text.parse().unwrap_or(u64::MAX); // only digits: the one way to fail is to be too large
        self.in_range(node, what, text, value, &range, |edge| edge.to_string())
    }

    /// A duration such as `30s`, `100ms`, `5m`, `2h` or `1d`, in `range`.
    pub fn duration(&self, node: &Node, what: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        const UNITS: [(&str, u64); 5] =
            [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let Value::Scalar { text, .. } = &node.value else {
            return self.wrong_type(node, what, "a duration such as 30s");
        };
        let Some(millis) = with_unit(text, &UNITS) else {
            let message = format!("{what} must be a duration, found `{text}`");
            self.problem_with_hint(
                node.at,
                message,
                "write a whole number and a unit: 100ms, 30s, 5m, 2h or 1d",
            );
            return None;
        };
        self.in_range(node, what, text, Duration::from_millis(millis), &range, |edge| format!("{edge:?}"))
    }

    /// A size in bytes such as `16KiB`, `1GiB` or a plain number of bytes, in `range`.
    pub fn bytes(&self, node: &Node, what: &str, range: RangeInclusive<u64>) -> Option<u64> {
        const UNITS: [(&str, u64); 5] =
            [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        let Value::Scalar { text, .. } = &node.value else {
            return self.wrong_type(node, what, "a size such as 16KiB");
        };
        let Some(size) = with_unit(text, &UNITS) else {
            let message = format!("{what} must be a size, found `{text}`");
            self.problem_with_hint(
                node.at,
                message,
                "write a whole number and a unit: 512B, 16KiB, 4MiB or 1GiB",
            );
            return None;
        };
        self.in_range(node, what, text, size, &range, |edge| format!("{edge} bytes"))
    }

    /// One of a fixed set of words.
    pub fn one_of<T: Copy>(&self, node: &Node, what: &str, words: &[(&str, T)]) -> Option<T> {
        let Value::Scalar { text, .. } = &node.value else {
            return self.wrong_type(node, what, "a word");
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let hint = match closest(text, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? It is one of: {}", known.join(", ")),
            None => format!("write one of: {}", known.join(", ")),
        };
        self.problem_with_hint(node.at, format!("{what} cannot be `{text}`"), hint);
        None
    }

    /// A point in time as Unix seconds: RFC 3339 (`2026-11-20T14:00:00Z`), or a date, which stands for `day`'s edge.
    pub fn time(&self, node: &Node, what: &str, day: Day) -> Option<i64> {
        let Value::Scalar { text, .. } = &node.value else {
            return self.wrong_type(node, what, "a date such as 2026-12-31");
        };
        let seconds = unix_seconds(text, day);
        if seconds.is_none() {
            let message = format!("{what} must be a date or a time, found `{text}`");
            self.problem_with_hint(node.at, message, "write 2026-12-31 or 2026-12-31T18:00:00Z");
        }
        seconds
    }

    fn in_range<T: PartialOrd + Copy>(
        &self,
        node: &Node,
        what: &str,
        text: &str,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (low, high) = (show(range.start()), show(range.end()));
        self.problem(node.at, format!("{what} must be between {low} and {high}, found `{text}`"));
        None
    }
}

/// A whole number followed by one of `units`, times the unit; none on a wrong form or an overflow.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A point in time, in Unix seconds, as it is written in a file: `2026-12-31T18:00:00Z`.
pub fn time(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds)
        .map_or_else(|_| unix_seconds.to_string(), |time| time.to_string())
}

/// The day (UTC) of a point in time, in Unix seconds, as it is written in a file: `2026-12-31`.
pub fn day(unix_seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_seconds);
    time.map_or_else(|_| unix_seconds.to_string(), |time| time.strftime("%Y-%m-%d").to_string())
}

/// A point in time as Unix seconds: RFC 3339 (`2026-11-20T14:00:00Z`), or a date, which stands for `day`'s edge.
pub fn unix_seconds(text: &str, day: Day) -> Option<i64> {
    if text.len() == 10 && shape(text, "0000-00-00") {
        let date: jiff::civil::Date = text.parse().ok()?;
        let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
        return Some(if day == Day::End { start + 86_400 } else { start });
    }
    // jiff reads more forms than RFC 3339; a policy is not the place to be generous about what a time may look like.
    let (date_time, rest) = text.split_at_checked(19)?;
    let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let legal = shape(date_time, "0000-00-00T00:00:00") && (zone == "Z" || shape(zone.get(1..)?, "00:00"));
    if !legal {
        return None;
    }
    text.parse::<jiff::Timestamp>().ok().map(|time| time.as_second())
}

/// True when `text` has the form of `sample`, in which `0` stands for any digit.
fn shape(text: &str, sample: &str) -> bool {
    text.len() == sample.len()
        && text.bytes().zip(sample.bytes()).all(|(b, s)| if s == b'0' { b.is_ascii_digit() } else { b == s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    fn node(text: &str) -> Node {
        parse(text.as_bytes()).unwrap()
    }

    fn problem_of<T: std::fmt::Debug>(read: impl Fn(&Reader) -> Option<T>) -> String {
        let reader = Reader::new();
        assert!(read(&reader).is_none());
        let problems = reader.into_problems();
        assert_eq!(problems.len(), 1);
        format!("{} | {}", problems[0].message, problems[0].hint.as_deref().unwrap_or_default())
    }

    /// If this fails, a number or boolean slips in where text was meant, or the other way round.
    #[test]
    fn types_are_not_converted_into_one_another() {
        let reader = Reader::new();
        assert_eq!(reader.string(&node("'12'"), "x"), Some("12"));
        assert_eq!(reader.string(&node("2026-12-31"), "x"), Some("2026-12-31"));
        assert_eq!(reader.string(&node("10.0.0.1"), "x"), Some("10.0.0.1"));
        assert_eq!(reader.bool(&node("true"), "x"), Some(true));
        assert_eq!(reader.u64(&node("12"), "x", 0..=100), Some(12));
        assert!(reader.into_problems().is_empty());
        for text in ["12", "1.5", "0x1f", "true", "yes", "on", "Off", ".inf", "-3", "1e3"] {
            assert!(problem_of(|r| r.string(&node(text), "x").map(str::len)).contains("quotes"), "{text}");
        }
        for text in ["yes", "'true'", "on"] {
            assert!(problem_of(|r| r.bool(&node(text), "x")).contains("true or false"), "{text}");
        }
        for text in ["'12'", "1.5", "-1", "0x10", "1_000", "~", "[1]"] {
            assert!(problem_of(|r| r.u64(&node(text), "x", 0..=100)).contains("number"), "{text}");
        }
        assert!(problem_of(|r| r.u64(&node("101"), "x", 0..=100)).contains("between 0 and 100"));
        assert!(problem_of(|r| r.u64(&node("99999999999999999999999"), "x", 0..=100)).contains("between"));
    }

    /// If this fails, a limit in the configuration is not the limit in force.
    #[test]
    fn durations_and_sizes_carry_units() {
        let reader = Reader::new();
        let any = Duration::ZERO..=Duration::from_secs(86_400);
        let table = [("100ms", 100), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)];
        for (text, want) in table {
            assert_eq!(reader.duration(&node(text), "x", any.clone()), Some(Duration::from_millis(want)));
        }
        for (text, want) in
            [("512", 512), ("512B", 512), ("16KiB", 16 << 10), ("4MiB", 4 << 20), ("1GiB", 1 << 30)]
        {
            assert_eq!(reader.bytes(&node(text), "x", 0..=u64::MAX), Some(want));
        }
        for text in ["30", "s", "-1s", "1.5s", "30 s", "30S", "99999999999999999999d", "213503982335d"] {
            assert!(problem_of(|r| r.duration(&node(text), "x", any.clone())).contains("duration"), "{text}");
        }
        for text in ["1KB", "1kib", "1.5GiB", "'18446744073709551615GiB'"] {
            assert!(problem_of(|r| r.bytes(&node(text), "x", 0..=u64::MAX)).contains("size"), "{text}");
        }
    }

    /// If this fails, a binding begins or ends on the wrong day.
    #[test]
    fn dates_cover_their_whole_day_in_utc() {
        let reader = Reader::new();
        assert_eq!(reader.time(&node("1970-01-02"), "x", Day::Start), Some(86_400));
        assert_eq!(reader.time(&node("1970-01-02"), "x", Day::End), Some(2 * 86_400));
        assert_eq!(reader.time(&node("1970-01-02T00:00:01Z"), "x", Day::End), Some(86_401));
        assert_eq!(reader.time(&node("'1970-01-02T01:00:00.5+01:00'"), "x", Day::End), Some(86_400));
        for text in
            ["2026-13-01", "2026-02-30", "31.12.2026", "2026-12-31 18:00:00Z", "2026-12-31T18:00:00", "soon"]
        {
            assert!(problem_of(|r| r.time(&node(text), "x", Day::Start)).contains("date"), "{text}");
        }
        assert!(problem_of(|r| r.time(&node("2026-12-31T18:00:00Z[UTC]"), "x", Day::Start)).contains("date"));
        assert!(problem_of(|r| r.time(&node("aaaaaaaaaaaaaaaaaaé"), "x", Day::Start)).contains("date"));
    }

    /// If this fails, a misspelt word gets no help.
    #[test]
    fn an_unknown_word_lists_the_known_ones() {
        let words = [("reject", 1), ("preserve", 2)];
        let text = problem_of(|r| r.one_of(&node("preserv"), "path.encoded_slash", &words));
        assert!(text.contains("path.encoded_slash cannot be `preserv`"), "{text}");
        assert!(text.contains("did you mean `preserve`?"), "{text}");
        assert!(problem_of(|r| r.one_of(&node("x"), "y", &words)).contains("reject, preserve"));
    }
}
