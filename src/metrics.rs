//! What is counted, and the handles to count with.
//!
//! A registry for each sidecar, so that several can live in one process. Handles are resolved when a worker starts;
//! nothing is looked up by label while a request is served, and no label ever holds an identity, a path or a host.

mod sinks;

use http::StatusCode;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::audit::StatusReader;
use sinks::SinkMetrics;

/// The metrics of one sidecar.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    decisions: IntCounterVec,
    shadow_denials: IntCounterVec,
    responses: IntCounterVec,
    duration: HistogramVec,
    bytes: IntCounterVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    rejected: IntCounterVec,
    /// Reloads, by what was reloaded and how it went.
    reloads: IntCounterVec,
    /// When the SVID in use expires, Unix seconds.
    pub svid_expiry: IntGauge,
    /// Events written to the spool in this epoch.
    pub audit_events: IntGauge,
    /// Bytes in the spool.
    pub audit_spool_bytes: IntGauge,
    /// 1 while the trail takes events.
    pub audit_healthy: IntGauge,
    /// Bytes that the spool has room for.
    pub audit_free_bytes: IntGauge,
    /// Events that a failed disk has lost in this epoch.
    pub audit_lost_events: IntGauge,
    /// Denials that were counted in summaries.
    pub audit_coalesced_events: IntGauge,
}

/// One worker's handles.
pub(crate) struct WorkerMetrics {
    pub(crate) allowed: IntCounter,
    /// Of those, the ones that only shadow let pass.
    pub(crate) shadow_denied: IntCounter,
    refusals: [IntCounter; REFUSALS.len()],
    other_refusals: IntCounter,
    responses: [IntCounter; CLASSES.len()],
    duration: Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
    pub(crate) requests_in_flight: IntGauge,
    connections: [IntGauge; Side::NAMES.len()],
    pub(crate) rejected_connections: IntCounter,
}

/// The kinds of listener that connections are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Inbound,
    Outbound,
    Probes,
}

impl Side {
    const NAMES: [&'static str; 3] = ["inbound", "outbound", "probes"];
}

const REFUSALS: [(StatusCode, &str); 5] = [
    (StatusCode::BAD_REQUEST, "rejected"),
    (StatusCode::FORBIDDEN, "denied"),
    (StatusCode::NOT_FOUND, "unknown_host"),
    (StatusCode::SERVICE_UNAVAILABLE, "audit_unavailable"),
    (StatusCode::UNAUTHORIZED, "no_identity"),
];
/// Class 0 is a request that ended before it had a status.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

impl Metrics {
    /// An empty registry with every metric in it.
    ///
    /// # Errors
    /// None in practice: the names are fixed and distinct.
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new_custom(Some("phiward".into()), None)?,
            decisions: counters("decisions_total", "Decisions about requests.", &["worker", "outcome"])?,
            shadow_denials: counters(
                "shadow_denials_total",
                "Requests let through that would be denied with everything in shadow enforced.",
                &["worker"],
            )?,
            responses: counters(
                "responses_total",
                "Requests let through, by status class.",
                &["worker", "class"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "request_duration_seconds",
                    "From a request's head to the end of its response.",
                )
                .buckets(SECONDS.to_vec()),
                &["worker"],
            )?,
            bytes: counters("body_bytes_total", "Body bytes passed on.", &["worker", "direction"])?,
            in_flight: gauges("requests_in_flight", "Requests let through and not ended.", &["worker"])?,
            connections: gauges("connections", "Open accepted connections.", &["worker", "side"])?,
            rejected: counters(
                "connections_rejected_total",
                "Connections refused before a request.",
                &["worker"],
            )?,
            reloads: counters("reloads_total", "Reloads of policy and identity.", &["what", "result"])?,
            svid_expiry: gauge("svid_expiry_timestamp_seconds", "When the SVID in use expires.")?,
            audit_events: gauge("audit_events", "Events in the chain of this epoch.")?,
            audit_spool_bytes: gauge("audit_spool_bytes", "Bytes in the spool.")?,
            audit_healthy: gauge("audit_healthy", "1 while the audit trail takes events.")?,
            audit_free_bytes: gauge("audit_free_bytes", "Bytes that the spool has room for.")?,
            audit_coalesced_events: gauge(
                "audit_coalesced_events",
                "Denials that were counted in an audit.summary, or will be.",
            )?,
            audit_lost_events: gauge("audit_lost_events", "Events that a failed disk has lost.")?,
        };
        metrics.register()?;
        // There from the start at 0: a counter that first appears at 1 hides its first increase from `increase()`.
        for what in ["policy", "identity"] {
            for result in ["loaded", "refused"] {
                drop(metrics.reloads.with_label_values(&[what, result]));
            }
        }
        Ok(metrics)
    }

    /// Everything, in Prometheus' text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Shows the state of the audit sinks from now on.
    ///
    /// # Errors
    /// Called twice.
    pub(crate) fn watch_sinks(&self, audit: StatusReader) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(SinkMetrics::new(audit)?))
    }

    /// Counts a reload of `what`.
    pub fn reloaded(&self, what: &str, result: &str) {
        self.reloads.with_label_values(&[what, result]).inc();
    }

    /// The handles of worker number `index`.
    pub(crate) fn worker(&self, index: usize) -> WorkerMetrics {
        let worker = index.to_string();
        let w = worker.as_str();
        WorkerMetrics {
            allowed: self.decisions.with_label_values(&[w, "allowed"]),
            shadow_denied: self.shadow_denials.with_label_values(&[w]),
            refusals: REFUSALS.map(|(_, outcome)| self.decisions.with_label_values(&[w, outcome])),
            other_refusals: self.decisions.with_label_values(&[w, "other"]),
            responses: CLASSES.map(|class| self.responses.with_label_values(&[w, class])),
            duration: self.duration.with_label_values(&[w]),
            request_bytes: self.bytes.with_label_values(&[w, "request"]),
            response_bytes: self.bytes.with_label_values(&[w, "response"]),
            requests_in_flight: self.in_flight.with_label_values(&[w]),
            connections: Side::NAMES.map(|side| self.connections.with_label_values(&[w, side])),
            rejected_connections: self.rejected.with_label_values(&[w]),
        }
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let all: [Box<dyn prometheus::core::Collector>; 16] = [
            Box::new(self.decisions.clone()),
            Box::new(self.shadow_denials.clone()),
            Box::new(self.responses.clone()),
            Box::new(self.duration.clone()),
            Box::new(self.bytes.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.rejected.clone()),
            Box::new(self.reloads.clone()),
            Box::new(self.svid_expiry.clone()),
            Box::new(self.audit_events.clone()),
            Box::new(self.audit_spool_bytes.clone()),
            Box::new(self.audit_healthy.clone()),
            Box::new(self.audit_free_bytes.clone()),
            Box::new(self.audit_lost_events.clone()),
            Box::new(self.audit_coalesced_events.clone()),
        ];
        all.into_iter().try_for_each(|metric| self.registry.register(metric))
    }
}

impl WorkerMetrics {
    /// A request that was not let through.
    pub(crate) fn refused(&self, status: StatusCode) {
        let known = REFUSALS.iter().position(|(known, _)| *known == status);
        known.map_or(&self.other_refusals, |at| &self.refusals[at]).inc();
    }

    /// A request that was let through has ended.
    pub(crate) fn exchange(&self, status: u16, duration_us: u64, request_bytes: u64, response_bytes: u64) {
        let class = usize::from(status / 100);
        self.responses[if class < CLASSES.len() { class } else { 0 }].inc();
        self.duration.observe(duration_us as f64 / 1e6);
        self.request_bytes.inc_by(request_bytes);
        self.response_bytes.inc_by(response_bytes);
    }

    /// The gauge of open connections on one side.
    pub(crate) fn connections(&self, side: Side) -> &IntGauge {
        &self.connections[side as usize]
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    IntGauge::new(name, help)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, dashboards and alerts read names that are not there.
    #[test]
    fn every_metric_is_rendered_under_its_name() {
        let metrics = Metrics::new().unwrap();
        let worker = metrics.worker(0);
        worker.allowed.inc();
        worker.shadow_denied.inc();
        worker.refused(StatusCode::FORBIDDEN);
        worker.refused(StatusCode::IM_A_TEAPOT);
        worker.exchange(200, 1500, 10, 20);
        worker.exchange(0, 1, 0, 0);
        worker.connections(Side::Outbound).inc();
        metrics.reloaded("policy", "loaded");
        let text = metrics.render().unwrap();
        for line in [
            "phiward_decisions_total{outcome=\"allowed\",worker=\"0\"} 1",
            "phiward_shadow_denials_total{worker=\"0\"} 1",
            "phiward_decisions_total{outcome=\"denied\",worker=\"0\"} 1",
            "phiward_decisions_total{outcome=\"other\",worker=\"0\"} 1",
            "phiward_responses_total{class=\"2xx\",worker=\"0\"} 1",
            "phiward_responses_total{class=\"none\",worker=\"0\"} 1",
            "phiward_body_bytes_total{direction=\"response\",worker=\"0\"} 20",
            "phiward_connections{side=\"outbound\",worker=\"0\"} 1",
            "phiward_reloads_total{result=\"loaded\",what=\"policy\"} 1",
            "phiward_audit_healthy 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
