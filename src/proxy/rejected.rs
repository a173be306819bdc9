//! The events of connections that are refused: `conn.rejected`.

use super::context::{ClientAddr, Direction, ListenerContext, Worker};
use crate::audit::{self, ConnFacts, ConnRejected, SubjectFacts};

/// Tells that a connection was refused, or what its peer did to HTTP.
pub(super) fn reject(
    worker: &Worker,
    listener: &ListenerContext,
    addr: ClientAddr,
    reason: &'static str,
    peer: Option<SubjectFacts<'_>>,
) {
    let facts = ConnFacts { subject: peer, ..plain_facts(listener, addr) };
    reject_with(worker, listener, reason, facts);
}

/// The same, where more is known.
pub(super) fn reject_with(
    worker: &Worker,
    listener: &ListenerContext,
    reason: &'static str,
    conn: ConnFacts<'_>,
) {
    worker.metrics.rejected_connections.inc();
    tracing::debug!(listener = listener.name, peer = %conn.peer, reason, "connection rejected");
    let Ok(mut place) = worker.recorder.reserve(1) else { return }; // counted above; the trail is full
    place.conn_rejected(&ConnRejected { time_unix_ns: worker.clock.now_ns(), conn, reason });
}

/// What is known of every connection.
pub(super) fn plain_facts(listener: &ListenerContext, addr: ClientAddr) -> ConnFacts<'_> {
    let direction = match listener.direction {
        Direction::Inbound { .. } | Direction::Probes { .. } => audit::Direction::Inbound,
        Direction::Outbound { .. } | Direction::Stream { .. } => audit::Direction::Outbound,
    };
    ConnFacts {
        direction,
        listener: &listener.name,
        peer: addr.0,
        destination: None,
        service: None,
        tls: None,
        subject: None,
    }
}
