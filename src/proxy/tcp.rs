//! A connection that is one stream of bytes: decided once, recorded, connected, carried to its end.
//!
//! The steps are those of a request in [`super::forward`], in the same order.

use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::authorize::{facts, of_stranger};
use super::clock::unix_seconds;
use super::context::{ConnContext, Direction, PASSTHROUGH};
use super::exchange::Exchange;
use super::ids::RequestIds;
use super::outcome::Failure;
use super::stream::{Asked, Standing, carry};
use super::upstream::Upstream;
use crate::audit::{self, AccessDecision, HttpFacts};

/// Serves `client`, which wants a stream to `upstream`. What may not have one is closed.
pub(crate) async fn serve<S>(conn: Rc<ConnContext>, client: S, upstream: Rc<Upstream>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (now_ns, ids) = (conn.worker.clock.now_ns(), conn.worker.ids.next(None));
    let Some((exchange, recorded)) = authorize(&conn, ids, now_ns) else { return };
    let counted = conn.clone();
    let _open = Open::count(&counted);
    if let Some(recorded) = recorded
        && recorded.before_forward().await.is_err()
    {
        return exchange.fail(Failure::AUDIT.reason);
    }
    match upstream.open().await {
        Ok((stream, tenure, _lease)) => {
            let standing = Standing { conn, asked: Asked::Stream };
            carry(client, stream, &exchange, &standing, tenure.as_ref()).await;
        }
        Err(failure) => exchange.record_refusal(&failure, &upstream.name, ("other", "")),
    }
}

/// The right to a stream, recorded; none where there is none.
fn authorize(
    conn: &Rc<ConnContext>,
    ids: RequestIds,
    now_ns: u64,
) -> Option<(Rc<Exchange>, Option<audit::Recorded>)> {
    let worker = &conn.worker;
    let mut place = worker.recorder.reserve(2).ok().or_else(|| {
        worker.metrics.refused(http::StatusCode::SERVICE_UNAVAILABLE);
        None
    })?;
    let event = |decision, policy| AccessDecision {
        time_unix_ns: now_ns,
        request_id: ids.request_id(),
        trace_id: None,
        conn: &conn.fragment,
        http: HttpFacts::default(),
        decision,
        policy,
    };
    let recorded = match &conn.listener.direction {
        Direction::Inbound { policy, stranger, .. } => {
            let current = policy.current();
            let id = conn.peer.as_ref().map(|peer| &peer.id).or(stranger.as_ref())?;
            let grants = conn.grants(&current, id, unix_seconds(now_ns));
            let decided = current.policy.decide_tcp(&grants, &conn.listener.name);
            let decision = if conn.peer.is_some() { facts(&decided) } else { of_stranger(&decided) };
            let recorded = place.decision(&event(decision, Some(&current.fragment)));
            if decision.outcome != "allow" {
                worker.metrics.refused(http::StatusCode::FORBIDDEN);
                return None;
            }
            if decision.shadow.is_some() {
                worker.metrics.shadow_denied.inc();
            }
            Some(recorded)
        }
        Direction::Outbound { routes, audit_all } => {
            let known =
                conn.captured.as_ref().is_some_and(|captured| routes.tcp_at(captured.meant).is_some());
            let reason = if known { "route" } else { PASSTHROUGH };
            (*audit_all || !known).then(|| place.decision(&event(allowed(reason), None)))
        }
        Direction::Stream { audit_all, .. } => {
            audit_all.then(|| place.decision(&event(allowed("route"), None)))
        }
        Direction::Probes { .. } => return None,
    };
    worker.metrics.allowed.inc();
    let completes = recorded.is_some();
    Some((Exchange::open(conn.clone(), ids, now_ns, Some(place), completes), recorded))
}

fn allowed(reason: &'static str) -> audit::Decision<'static> {
    audit::Decision { outcome: "allow", reason, rule: None, role: None, shadow: None }
}

/// The gauge of open connections, for as long as this lives.
struct Open<'c>(&'c ConnContext);

impl<'c> Open<'c> {
    fn count(conn: &'c ConnContext) -> Self {
        conn.worker.metrics.connections(conn.listener.direction.side()).inc();
        Self(conn)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.worker.metrics.connections(self.0.listener.direction.side()).dec();
    }
}
