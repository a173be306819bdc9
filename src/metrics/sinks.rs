//! The metrics of audit sinks, made from the trail's own numbers when somebody asks.
//!
//! The label is the sink's name in the configuration, and nothing a receiver or a caller has said.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use crate::audit::{SinkStatus, StatusReader};

/// Reads the state of every sink at each scrape.
pub(super) struct SinkMetrics {
    audit: StatusReader,
    descriptions: Vec<Desc>,
}

/// One metric: its name, what it says, and where its value is.
type Metric<V> = (&'static str, &'static str, fn(&SinkStatus) -> V);

const GAUGES: [Metric<f64>; 4] = [
    (
        "audit_sink_lag_seconds",
        "Age of the oldest event that the sink has not acknowledged; 0 when there is none.",
        |sink| sink.lag_seconds,
    ),
    ("audit_sink_backlog_bytes", "Bytes that the sink has not acknowledged.", |sink| {
        sink.backlog_bytes as f64
    }),
    ("audit_sink_backlog_events", "Events that the sink has not acknowledged.", |sink| {
        sink.backlog_events as f64
    }),
    (
        "audit_sink_last_success_timestamp_seconds",
        "When the sink last took events from this process; 0 before the first.",
        |sink| sink.last_success_unix_s.unwrap_or(0) as f64,
    ),
];

const COUNTERS: [Metric<u64>; 4] = [
    ("audit_sink_acked_events_total", "Events that the sink has acknowledged.", |sink| sink.acked_events),
    ("audit_sink_retries_total", "Attempts that failed and are made again.", |sink| sink.retries),
    (
        "audit_sink_quarantined_events_total",
        "Events that the sink refused for good and that were set aside.",
        |sink| sink.quarantined_events,
    ),
    (
        "audit_sink_missed_segments_total",
        "Segments that were removed before this sink, which is not required, had them.",
        |sink| sink.missed_segments,
    ),
];

impl SinkMetrics {
    pub(super) fn new(audit: StatusReader) -> Result<Self, prometheus::Error> {
        let descriptions = families(&[])?.iter().flat_map(|family| family.desc()).cloned().collect();
        Ok(Self { audit, descriptions })
    }
}

impl Collector for SinkMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // The names are fixed and were good when this was made, so there is no error to tell.
        let families = families(&self.audit.status().sinks).unwrap_or_default();
        families.iter().flat_map(|family| family.collect()).collect()
    }
}

/// Each metric with its value for each sink. Made anew each time, so that two scrapes at once cannot count twice.
fn families(sinks: &[SinkStatus]) -> Result<Vec<Box<dyn Collector>>, prometheus::Error> {
    let mut families: Vec<Box<dyn Collector>> = Vec::new();
    for (name, help, value) in GAUGES {
        let gauge = GaugeVec::new(Opts::new(name, help), &["sink"])?;
        for sink in sinks {
            gauge.with_label_values(&[&sink.name]).set(value(sink));
        }
        families.push(Box::new(gauge));
    }
    for (name, help, value) in COUNTERS {
        let counter = IntCounterVec::new(Opts::new(name, help), &["sink"])?;
        for sink in sinks {
            counter.with_label_values(&[&sink.name]).inc_by(value(sink));
        }
        families.push(Box::new(counter));
    }
    Ok(families)
}
