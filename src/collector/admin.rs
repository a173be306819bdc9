//! The collector's own admin endpoint: is it alive, does it take batches and if not why, what it counts.
//!
//! Loopback unless told. Shows counts and states; no identity of a sender, no key, no record.

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde_json::json;
use tokio::net::TcpListener;

use super::metrics::CollectorMetrics;

/// Serves the admin endpoint until the task is dropped.
pub async fn serve_admin(listener: TcpListener, metrics: CollectorMetrics) {
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(show))
        .with_state(metrics);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the collector's admin endpoint stopped");
    }
}

async fn ready(State(metrics): State<CollectorMetrics>) -> Response {
    let expires_in = metrics.svid_expiry.get() - jiff::Timestamp::now().as_second();
    let expired = (expires_in <= 0).then_some("svid_expired");
    let reasons: Vec<_> = metrics.reason().into_iter().chain(expired).collect();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let detail = json!({
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "svid_expires_in_seconds": expires_in,
        "events_stored": metrics.stored.get(),
        "evidence_bytes": metrics.evidence_bytes.get(),
        "sender_connections": metrics.senders.get(),
        "last_arrival_unix_s": metrics.last_arrival.get(),
    });
    (status, Json(detail)).into_response()
}

async fn show(State(metrics): State<CollectorMetrics>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
