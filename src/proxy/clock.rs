//! What time it is, at the cost of one look at the monotonic clock for a request.

use std::cell::Cell;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::policy::UnixSeconds;

/// Wall-clock time from the monotonic clock, re-anchored each second so that steps of the wall clock are followed.
pub(crate) struct Clock {
    anchor: Cell<(Instant, u64)>,
    latest: Cell<Instant>,
}

const REANCHOR_NS: u64 = 1_000_000_000;

impl Clock {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { anchor: Cell::new((now, wall_ns())), latest: Cell::new(now) }
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn now_ns(&self) -> u64 {
        let (at, wall) = self.anchor.get();
        let now = Instant::now();
        self.latest.set(now);
        let elapsed = now.duration_since(at).as_nanos() as u64;
        if elapsed < REANCHOR_NS {
            return wall + elapsed;
        }
        let wall = wall_ns();
        self.anchor.set((now, wall));
        wall
    }

    /// Now, as timers count it.
    pub(crate) fn now(&self) -> tokio::time::Instant {
        self.latest.set(Instant::now());
        self.latest()
    }

    /// The moment of the last look, by whoever took it: the start of the newest request, or the worker's last round, which
    /// is not long ago for what lasts seconds.
    pub(crate) fn latest(&self) -> tokio::time::Instant {
        self.latest.get().into()
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// `ns` since the Unix epoch in whole seconds, as the policy counts time.
pub(crate) fn unix_seconds(ns: u64) -> UnixSeconds {
    UnixSeconds((ns / 1_000_000_000) as i64)
}
