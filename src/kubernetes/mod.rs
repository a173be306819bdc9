//! Kubernetes: a sidecar put into a pod, the pod's traffic led through it, and the webhook that does so.
//!
//! Knows pods as the JSON that the API server sends, and rewrites nothing else of it. Knows nothing of requests or events: an
//! injected sidecar is the same `phiward run` as everywhere.

pub mod capture;
pub mod inject;
pub mod manifest;
pub mod webhook;
