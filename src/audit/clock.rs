//! The text of an instant: RFC 3339 in UTC with nine digits.
//!
//! Owns the cache of the formatted second, because a worker writes thousands of events within one. Reads no clock: the
//! time is passed in, but for [`unix_ns`], which the writer and the failure paths use.

use std::time::SystemTime;

/// Formats instants; keeps the text of the last second.
pub(crate) struct InstantText {
    second: u64,
    text: [u8; 20],
}

impl Default for InstantText {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00." }
    }
}

impl InstantText {
    /// Writes the instant without quotes, such as `2026-11-20T14:03:22.118204771Z`.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, unix_ns: u64) {
        let second = unix_ns / 1_000_000_000;
        if second != self.second {
            self.text = second_text(second);
            self.second = second;
        }
        let mut text = [b'Z'; 30];
        let (seconds, fraction) = text.split_at_mut(self.text.len());
        seconds.copy_from_slice(&self.text);
        let nanos = (unix_ns % 1_000_000_000) as u32;
        let digit = |value: u32| b'0' + (value % 10) as u8;
        // Three digits at a time, none of which waits for another's division.
        for (three, value) in fraction.chunks_exact_mut(3).zip([nanos / 1_000_000, nanos / 1000, nanos]) {
            three.copy_from_slice(&[digit(value / 100), digit(value / 10), digit(value)]);
        }
        out.extend_from_slice(&text);
    }
}

/// The wall clock, in nanoseconds since 1970 (a clock before 1970 reads as 0).
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn second_text(second: u64) -> [u8; 20] {
    // u64 nanoseconds end in the year 2554, within jiff's range, so the fallback is never taken.
    let text = i64::try_from(second)
        .ok()
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .map(|at| at.to_string())
        .unwrap_or_default();
    let mut out = *b"1970-01-01T00:00:00.";
    if text.len() == 20 {
        out[..19].copy_from_slice(&text.as_bytes()[..19]); // without the Z
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, events carry a wrong time and cannot be put in order with other systems.
    #[test]
    fn instants_have_nine_digits_and_a_z() {
        let mut clock = InstantText::default();
        let table = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_795_183_402_118_204_771, "2026-11-20T14:03:22.118204771Z"),
            (1_795_183_402_999_999_999, "2026-11-20T14:03:22.999999999Z"),
            (1_795_183_403_000_000_001, "2026-11-20T14:03:23.000000001Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ];
        for (ns, want) in table {
            let mut out = Vec::new();
            clock.write(&mut out, ns);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
