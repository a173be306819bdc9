//! What time it is, at the cost of one look at the monotonic clock.

use std::cell::Cell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::policy::UnixSeconds;

/// Wall-clock time from the monotonic clock, re-anchored each second so that steps of the wall clock are followed.
pub(crate) struct Clock {
    anchor: Cell<(Instant, u64)>,
}

const REANCHOR_NS: u64 = 1_000_000_000;

impl Clock {
    pub(crate) fn new() -> Self {
        Self { anchor: Cell::new((Instant::now(), wall_ns())) }
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn now_ns(&self) -> u64 {
        let (at, wall) = self.anchor.get();
        let now = Instant::now();
        let elapsed = now.duration_since(at).as_nanos() as u64;
        if elapsed < REANCHOR_NS {
            return wall + elapsed;
        }
        let wall = wall_ns();
        self.anchor.set((now, wall));
        wall
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// `ns` since the Unix epoch in whole seconds, as the policy counts time.
pub(crate) fn unix_seconds(ns: u64) -> UnixSeconds {
    UnixSeconds((ns / 1_000_000_000) as i64)
}
