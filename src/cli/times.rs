//! Times on the command line: a date, an instant, or how long ago.

use std::time::SystemTime;

use crate::policy::UnixSeconds;
use crate::yaml::{self, Day};

/// From when on, or until when.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// So many seconds before now.
    Ago(i64),
    /// An instant.
    At(UnixSeconds),
}

impl When {
    pub(super) fn seconds(self, now: UnixSeconds) -> UnixSeconds {
        match self {
            Self::Ago(seconds) => UnixSeconds(now.0 - seconds),
            Self::At(time) => time,
        }
    }
}

/// Reads `90d`, `12h`, `2026-12-31` or `2026-12-31T18:00:00Z`.
pub(super) fn parse_when(text: &str) -> Result<When, String> {
    const UNITS: [(char, i64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 7 * 86_400)];
    let span = UNITS.iter().find_map(|(unit, seconds)| {
        let digits = text.strip_suffix(*unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<i64>().ok()?.checked_mul(*seconds)
    });
    match span {
        // A thousand years: a date before that is no date in a trail, and could not be told.
        Some(seconds) if seconds <= 1000 * 366 * 86_400 => Ok(When::Ago(seconds)),
        _ => parse_now(text).map(When::At).map_err(|_| "write 90d, 12h, 4w or 2026-12-31".to_owned()),
    }
}

/// Reads a date or an instant.
pub(super) fn parse_now(text: &str) -> Result<UnixSeconds, String> {
    yaml::unix_seconds(text, Day::Start)
        .map(UnixSeconds)
        .ok_or_else(|| "write 2026-12-31 or 2026-12-31T18:00:00Z".to_owned())
}

/// The time by the system's clock: the one place where commands look at it.
pub(super) fn clock() -> UnixSeconds {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixSeconds(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// As events have it, to be compared with theirs as text: nine digits after the second, because `:22Z` would come after `:22.5Z`.
pub(super) fn event_time(instant: UnixSeconds) -> String {
    time(instant).replace('Z', ".000000000Z")
}

/// RFC 3339, in UTC.
pub(super) fn time(time: UnixSeconds) -> String {
    jiff::Timestamp::from_second(time.0).map_or_else(|_| format!("@{}", time.0), |time| time.to_string())
}
