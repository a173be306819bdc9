//! The data path: accept, identify, decide, record, forward.
//!
//! Start with [`forward`], which shows a request from top to bottom. Everything here runs on a worker's own thread and
//! shares nothing with other workers but counters, the policy and the TLS settings. Nothing imports this module but
//! `runtime`.

mod arrival;
mod authorize;
mod body;
mod clock;
mod connection;
mod context;
mod dial;
mod endpoint;
mod exchange;
mod forward;
mod hangup;
mod headers;
mod http1;
mod http2;
mod ids;
mod listener;
mod outcome;
mod patience;
mod rejected;
mod reply;
mod routing;
mod serving;
mod stream;
mod tcp;
mod upgrade;
mod upload;
mod upstream;
mod vouched;
mod waiting;
mod worker;

pub(crate) use listener::{WorkerInbox, accept};
pub(crate) use upstream::Protocol;
pub(crate) use worker::{DirectionSpec, ListenerSpec, ServiceSpec, WorkerSpec, run};
