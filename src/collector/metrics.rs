//! What a collector counts, and why it takes nothing when it does not.
//!
//! A registry for each collector. No label holds an identity: who sends is in the evidence and in the log.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::evidence::Kind;

/// The metrics of one collector; clones share them.
#[derive(Debug, Clone)]
pub struct CollectorMetrics {
    registry: Registry,
    pub(super) stored: IntCounter,
    pub(super) duplicates: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) senders: IntGauge,
    pub(super) last_arrival: IntGauge,
    pub(super) evidence_bytes: IntGauge,
    pub(super) removed: IntCounter,
    pub(super) kept: IntCounter,
    evidence: IntCounterVec,
    refusing: IntGaugeVec,
    refused: IntCounterVec,
    /// When the SVID in use expires, Unix seconds.
    pub svid_expiry: IntGauge,
}

/// Why batches are refused with 503.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusing {
    /// A write failed; the next may work.
    DiskError,
    /// A sync failed: only a restart helps.
    DiskFailed,
    /// The volume has too little room left.
    DiskFull,
    /// There is more evidence than anybody has looked at.
    EvidenceFull,
    /// Too many bytes of batches are in memory.
    Busy,
}

impl Refusing {
    const ALL: [Self; 5] =
        [Self::DiskError, Self::DiskFailed, Self::DiskFull, Self::EvidenceFull, Self::Busy];

    fn as_str(self) -> &'static str {
        match self {
            Self::DiskError => "disk_error",
            Self::DiskFailed => "disk_failed",
            Self::DiskFull => "disk_full",
            Self::EvidenceFull => "evidence_full",
            Self::Busy => "busy",
        }
    }
}

impl CollectorMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("phiward_collector".into()), None)?;
        let metrics = Self {
            stored: IntCounter::new("events_stored_total", "Events appended to their chains.")?,
            duplicates: IntCounter::new("events_duplicate_total", "Events that were there already.")?,
            bytes: IntCounter::new("received_bytes_total", "Bytes of batches that were taken.")?,
            senders: IntGauge::new("sender_connections", "Open connections of senders.")?,
            last_arrival: IntGauge::new(
                "last_arrival_timestamp_seconds",
                "When a batch with new events was last taken; 0 before the first.",
            )?,
            evidence_bytes: IntGauge::new("evidence_bytes", "Bytes of evidence in the store.")?,
            removed: IntCounter::new("retention_removed_total", "Segments that retention has removed.")?,
            kept: IntCounter::new(
                "retention_kept_total",
                "Times that retention left a segment because it is not as it was verified.",
            )?,
            evidence: IntCounterVec::new(
                Opts::new("evidence_total", "What did not fit its chain, by kind."),
                &["kind"],
            )?,
            refusing: IntGaugeVec::new(
                Opts::new("refusing", "1 while the last batch was refused for this reason."),
                &["reason"],
            )?,
            refused: IntCounterVec::new(
                Opts::new("batches_refused_total", "Batches that were answered 503, by reason."),
                &["reason"],
            )?,
            svid_expiry: IntGauge::new(
                "svid_expiry_timestamp_seconds",
                "When the SVID in use expires; 0 without one.",
            )?,
            registry,
        };
        metrics.register()?;
        // There from the start at 0: a counter that first appears at 1 hides its first increase from `increase()`.
        for kind in Kind::ALL {
            drop(metrics.evidence(kind));
        }
        for reason in Refusing::ALL {
            drop(metrics.refused.with_label_values(&[reason.as_str()]));
        }
        metrics.refusing(None);
        Ok(metrics)
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    pub(super) fn evidence(&self, kind: Kind) -> IntCounter {
        self.evidence.with_label_values(&[kind.as_str()])
    }

    /// Counts a refused batch.
    pub(super) fn refused(&self, reason: Refusing) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
        if reason != Refusing::Busy {
            self.refusing(Some(reason));
        }
    }

    /// Says whether the store takes batches now, and if not why.
    pub(super) fn refusing(&self, reason: Option<Refusing>) {
        for one in Refusing::ALL.into_iter().filter(|one| *one != Refusing::Busy) {
            self.refusing.with_label_values(&[one.as_str()]).set(i64::from(reason == Some(one)));
        }
    }

    /// Why the store takes nothing; `None` when it does. `Busy` is not a state: the next batch may be taken.
    pub(super) fn reason(&self) -> Option<&'static str> {
        let all = Refusing::ALL.into_iter().filter(|one| *one != Refusing::Busy);
        all.map(Refusing::as_str).find(|one| self.refusing.with_label_values(&[one]).get() == 1)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let all: [Box<dyn prometheus::core::Collector>; 12] = [
            Box::new(self.stored.clone()),
            Box::new(self.duplicates.clone()),
            Box::new(self.bytes.clone()),
            Box::new(self.senders.clone()),
            Box::new(self.last_arrival.clone()),
            Box::new(self.evidence_bytes.clone()),
            Box::new(self.removed.clone()),
            Box::new(self.kept.clone()),
            Box::new(self.evidence.clone()),
            Box::new(self.refusing.clone()),
            Box::new(self.refused.clone()),
            Box::new(self.svid_expiry.clone()),
        ];
        all.into_iter().try_for_each(|metric| self.registry.register(metric))
    }
}
