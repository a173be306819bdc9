//! The admin endpoint: is it alive, is it ready and if not why, what it counts, which policy is in force, and its end.
//!
//! Loopback unless told. Shows states and counts; no key, no header, no path and no identity of a caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use crate::audit::{SinkStatus, StatusReader};
use crate::drain::Drain;
use crate::identity::Svid;
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::reload::ReloadStatus;
use crate::tls::TlsSettings;

/// What `/live` and `/ready` are answered from.
pub struct Health {
    draining: AtomicBool,
    audit: StatusReader,
    tls: watch::Receiver<Arc<TlsSettings>>,
    policy: Option<watch::Receiver<Arc<Policy>>>,
    reloads: ReloadStatus,
}

impl Health {
    /// Ready from the start: a sidecar is only built when identity, policy and audit are usable.
    pub fn new(
        audit: StatusReader,
        tls: watch::Receiver<Arc<TlsSettings>>,
        policy: Option<watch::Receiver<Arc<Policy>>>,
        reloads: ReloadStatus,
    ) -> Self {
        Self { draining: AtomicBool::new(false), audit, tls, policy, reloads }
    }

    /// Turns readiness off for good.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Answers the probe listener's own paths.
    pub(crate) fn answer(&self, method: &Method, path: &str) -> Option<(StatusCode, &'static str)> {
        match (method, path) {
            (&Method::GET, "/live") => Some((StatusCode::OK, "live\n")),
            (&Method::GET, "/ready") if self.reasons().is_empty() => Some((StatusCode::OK, "ready\n")),
            (&Method::GET, "/ready") => Some((StatusCode::SERVICE_UNAVAILABLE, "not ready\n")),
            _ => None,
        }
    }

    /// Why the sidecar is not ready; empty when it is.
    fn reasons(&self) -> Vec<&'static str> {
        let left = Left::of(&self.tls.borrow().material().svid, unix_now());
        let conditions = [
            (self.draining.load(Ordering::Relaxed), "draining"),
            (left == Left::Withdrawn, "the identity was withdrawn"),
            (left == Left::Nothing, "the SVID has expired"),
            (left == Left::Little, "the SVID is about to expire and no new one has come"),
            (!self.audit.status().healthy, "the audit trail takes no events"),
        ];
        conditions.into_iter().filter_map(|(bad, why)| bad.then_some(why)).collect()
    }

    fn detail(&self) -> Value {
        let reasons = self.reasons();
        let audit = self.audit.status();
        let sinks: Vec<Value> = audit.sinks.iter().map(sink_detail).collect();
        let settings = self.tls.borrow().clone();
        let svid = &settings.material().svid;
        let mut detail = json!({
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "identity": {
                "spiffe_id": svid.id().as_str(),
                "expires_in_seconds": svid.not_after() - unix_now(),
            },
            "audit": {
                "healthy": audit.healthy,
                "epoch": audit.epoch,
                "events": audit.written_events,
                "checkpoints": audit.checkpoints,
                "spool_bytes": audit.spool_bytes,
                "free_bytes": audit.free_bytes,
                "lost_events": audit.lost_events,
                "coalesced_events": audit.coalesced_events,
                "sinks": sinks,
                "last_error": audit.last_error,
            },
            "reload_errors": self.reloads.errors(),
        });
        if let Some(policy) = &self.policy {
            detail["policy"] = policy_detail(&policy.borrow());
        }
        detail
    }
}

/// What is left of an SVID's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Enough,
    /// Rotation is overdue (issuers renew at half of it). Callers are sent elsewhere before handshakes begin to fail.
    Little,
    Nothing,
    /// Who issued it has taken it back.
    Withdrawn,
}

impl Left {
    /// A tenth of a life is little, a minute at most.
    fn of(svid: &Svid, now: i64) -> Self {
        let left = svid.not_after() - now;
        let life = svid.not_after() - svid.not_before();
        match left {
            _ if svid.not_after() == 0 => Self::Withdrawn,
            ..0 => Self::Nothing,
            _ if left < (life / 10).min(60) => Self::Little,
            _ => Self::Enough,
        }
    }
}

/// What the admin endpoint acts on.
#[derive(Clone)]
pub struct AdminState {
    /// Liveness and readiness.
    pub health: Arc<Health>,
    /// `/metrics`.
    pub metrics: Metrics,
    /// Told by `POST /leave`.
    pub leave: Drain,
    /// Told by `POST /drain`.
    pub drain: Arc<Notify>,
    /// `PUT /log-level`, where the process owns its log.
    pub log: Option<LogLevel>,
}

/// Serves the admin endpoint until the task is dropped.
pub async fn serve(listener: TcpListener, state: AdminState) {
    let router = metrics_alone()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/policy", get(policy))
        .route("/log-level", put(log_level))
        .route("/leave", post(leave))
        .route("/drain", post(drain))
        .with_state(state);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin endpoint stopped");
    }
}

/// Serves `/metrics` and nothing else, for those who may read but not steer.
pub async fn serve_metrics(listener: TcpListener, state: AdminState) {
    if let Err(error) = axum::serve(listener, metrics_alone().with_state(state)).await {
        tracing::error!(%error, "the metrics endpoint stopped");
    }
}

fn metrics_alone() -> Router<AdminState> {
    Router::new().route("/metrics", get(metrics))
}

async fn ready(State(state): State<AdminState>) -> Response {
    let detail = state.health.detail();
    let ready = detail["ready"] == Value::Bool(true);
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(detail)).into_response()
}

async fn metrics(State(state): State<AdminState>) -> Response {
    let audit = state.health.audit.status();
    let m = &state.metrics;
    m.svid_expiry.set(state.health.tls.borrow().material().svid.not_after());
    m.audit_events.set(clamp(audit.written_events));
    m.audit_spool_bytes.set(clamp(audit.spool_bytes));
    m.audit_healthy.set(i64::from(audit.healthy));
    m.audit_free_bytes.set(clamp(audit.free_bytes));
    m.audit_lost_events.set(clamp(audit.lost_events));
    m.audit_coalesced_events.set(clamp(audit.coalesced_events));
    match m.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn policy(State(state): State<AdminState>) -> Response {
    match &state.health.policy {
        Some(policy) => Json(policy_detail(&policy.borrow())).into_response(),
        None => (StatusCode::NOT_FOUND, "this sidecar has no inbound side, so no policy\n").into_response(),
    }
}

async fn log_level(State(state): State<AdminState>, level: String) -> Response {
    let Some(log) = &state.log else {
        return (StatusCode::NOT_FOUND, "the log is not this sidecar's own\n").into_response();
    };
    match log.set(level.trim()) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn leave(State(state): State<AdminState>) -> StatusCode {
    state.health.drain();
    state.leave.leave();
    tracing::info!("leaving: callers are sent elsewhere");
    StatusCode::ACCEPTED
}

async fn drain(State(state): State<AdminState>) -> StatusCode {
    state.drain.notify_one();
    StatusCode::ACCEPTED
}

fn policy_detail(policy: &Policy) -> Value {
    let mode = if policy.is_shadow() { "shadow" } else { "enforce" };
    json!({"name": policy.name(), "revision": policy.revision(), "sha256": policy.sha256_hex(), "mode": mode})
}

fn sink_detail(sink: &SinkStatus) -> Value {
    json!({
        "name": sink.name,
        "type": sink.kind,
        "required": sink.required,
        "lag_seconds": sink.lag_seconds,
        "backlog_bytes": sink.backlog_bytes,
        "backlog_events": sink.backlog_events,
        "acked_events": sink.acked_events,
        "quarantined_events": sink.quarantined_events,
        "retries": sink.retries,
        "missed_segments": sink.missed_segments,
        "last_success_unix_s": sink.last_success_unix_s,
        "last_error": sink.last_error,
    })
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{Forge, NOW};

    /// If this fails, traffic is sent to a sidecar until its handshakes fail.
    #[test]
    fn an_svid_that_runs_out_is_told_before_it_has() {
        let ca = Forge::new(NOW);
        let svid = ca.material().svid; // valid for an hour from NOW
        let end = svid.not_after();
        assert_eq!(Left::of(&svid, end - 60), Left::Enough);
        assert_eq!(Left::of(&svid, end - 59), Left::Little);
        assert_eq!(Left::of(&svid, end), Left::Little, "the last second counts (RFC 5280, section 4.1.2.5)");
        assert_eq!(Left::of(&svid, end + 1), Left::Nothing);
        assert_eq!(Left::of(&svid.withdrawn(), end - 60), Left::Withdrawn);
    }
}
