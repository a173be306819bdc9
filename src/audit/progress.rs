//! How far each sink is: what the shipper has done, for the writer, for `/ready` and for `/metrics`.
//!
//! Owns numbers alone. The shipper changes them, everybody reads them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::Notify;

use super::clock::unix_ns;
use super::sink::{SinkConfig, SinkKind};
use super::spool::{self, Shared};

/// What one sink has acknowledged.
pub(crate) struct SinkState {
    pub(crate) name: String,
    pub(crate) kind: SinkKind,
    pub(crate) required: bool,
    pub(crate) new_data: Notify,
    /// Whether its receiver takes what the writer has packed (see `fresh`).
    pub(crate) takes_frames: AtomicBool,
    /// Every segment before this ordinal was acknowledged, and this many bytes of it.
    pub(crate) ordinal: AtomicU64,
    pub(crate) offset: AtomicU64,
    /// Of this process' own epoch, how many events are behind the cursor.
    pub(crate) own_events: AtomicU64,
    /// Of the epochs before, how many are in front of it.
    pub(crate) older_events: AtomicI64,
    /// When the event at the cursor was written, in nanoseconds since 1970; 0 when there is none.
    pub(crate) oldest_ns: AtomicU64,
    pub(crate) acked: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) retries: AtomicU64,
    /// Segments that were removed before this sink, which is not required, had them.
    pub(crate) missed_segments: AtomicU64,
    /// In seconds since 1970; 0 before the first.
    pub(crate) last_success: AtomicU64,
    pub(crate) last_error: Mutex<Option<String>>,
    /// The newest receipt of the running epoch that the trail does not carry yet.
    pub(crate) receipt: Mutex<Option<String>>,
}

/// The state of one sink.
#[derive(Debug, Clone)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// What it speaks, as in the configuration.
    pub kind: &'static str,
    /// Whether segments wait for it.
    pub required: bool,
    /// Bytes it has not acknowledged.
    pub backlog_bytes: u64,
    /// Events it has not acknowledged.
    pub backlog_events: u64,
    /// Age of the oldest event that it has not acknowledged, in seconds; 0 when there is none.
    pub lag_seconds: f64,
    /// Events it has acknowledged to this process.
    pub acked_events: u64,
    /// Events it refused for good, which were set aside by this process.
    pub quarantined_events: u64,
    /// Attempts of this process that failed and were, or will be, made again.
    pub retries: u64,
    /// Segments that were removed before this sink, which is not required, had them.
    pub missed_segments: u64,
    /// When it last took events from this process, in seconds since 1970.
    pub last_success_unix_s: Option<u64>,
    /// Why the last attempt failed; absent after a success.
    pub last_error: Option<String>,
}

impl SinkState {
    pub(crate) fn new(config: &SinkConfig) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            name: config.name.clone(),
            kind: config.kind.clone(),
            required: config.required,
            new_data: Notify::new(),
            takes_frames: AtomicBool::new(false),
            ordinal: zero(),
            offset: zero(),
            own_events: zero(),
            older_events: AtomicI64::new(0),
            oldest_ns: zero(),
            acked: zero(),
            quarantined: zero(),
            retries: zero(),
            missed_segments: zero(),
            last_success: zero(),
            last_error: Mutex::new(None),
            receipt: Mutex::new(None),
        }
    }

    pub(crate) fn acknowledged(&self, ordinal: u64, offset: u64) {
        // The two are read together only for a figure in a report, where being off by one batch does no harm.
        self.offset.store(offset, Ordering::Release);
        self.ordinal.store(ordinal, Ordering::Release);
    }

    /// A batch of `events` is behind the cursor.
    pub(crate) fn passed(&self, events: u64, own_epoch: bool) {
        if own_epoch {
            self.own_events.fetch_add(events, Ordering::Release);
        } else {
            self.older_events.fetch_sub(events as i64, Ordering::Release); // 2048 or so
        }
    }

    pub(crate) fn status(&self, shared: &Shared) -> SinkStatus {
        let backlog_bytes = self.backlog_bytes(shared);
        let own = shared.written_events.load(Ordering::Acquire);
        let own = own.saturating_sub(self.own_events.load(Ordering::Acquire));
        // Below zero while the events of epochs before are still being counted.
        let older = self.older_events.load(Ordering::Acquire).max(0) as u64;
        let oldest = self.oldest_ns.load(Ordering::Acquire);
        let waiting = backlog_bytes > 0 && oldest > 0;
        let last_success = self.last_success.load(Ordering::Acquire);
        SinkStatus {
            name: self.name.clone(),
            kind: self.kind.as_str(),
            required: self.required,
            backlog_bytes,
            backlog_events: if backlog_bytes == 0 { 0 } else { own + older },
            lag_seconds: if waiting { unix_ns().saturating_sub(oldest) as f64 / 1e9 } else { 0.0 },
            acked_events: self.acked.load(Ordering::Acquire),
            quarantined_events: self.quarantined.load(Ordering::Acquire),
            retries: self.retries.load(Ordering::Acquire),
            missed_segments: self.missed_segments.load(Ordering::Acquire),
            last_success_unix_s: (last_success > 0).then_some(last_success),
            last_error: spool::lock(&self.last_error).clone(),
        }
    }

    /// Bytes that the sink has not acknowledged.
    pub(crate) fn backlog_bytes(&self, shared: &Shared) -> u64 {
        let (ordinal, offset) = (self.ordinal.load(Ordering::Acquire), self.offset.load(Ordering::Acquire));
        let tail = shared.tail();
        let bytes = tail.segments.iter().filter(|s| s.ordinal >= ordinal).map(|s| s.bytes).sum::<u64>();
        bytes.saturating_sub(offset)
    }
}
