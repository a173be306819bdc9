//! How a request flows, top to bottom. Read this file first.
//!
//! Identifiers, then the decision and its record, then nothing is forwarded until the record is where it must be, then
//! the head is made ready for the next hop, sent, and the bodies stream; their end completes the record. Inbound,
//! outbound and probes all come through here; what differs between them is data in [`super::context::Direction`].

use std::pin::pin;
use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body;

use super::authorize::{Granted, authorize};
use super::body::{Inflow, ReplyBody, RequestBody};
use super::context::{ConnContext, Direction};
use super::endpoint::Lease;
use super::exchange::Exchange;
use super::headers::{self, TRACEPARENT, Told};
use super::outcome::Failure;
use super::reply::{self, Reader};
use super::upgrade::{self, Switch};
use super::upstream::{Protocol, Upstream};
use crate::audit::Recorded;

/// Serves one request that came over `conn`. Never fails: what goes wrong becomes a reply.
///
/// What needs no waiting is done before there is a future, and the future holds no more than what is left to do: it is moved
/// about for every request.
pub(crate) fn forward(
    conn: Rc<ConnContext>,
    request: Request<Inflow>,
) -> impl Future<Output = Response<ReplyBody>> {
    let mut step = decide(&conn, request);
    async move {
        let onward = match &mut step {
            Step::Onward(onward) => onward,
            Step::Answered(reply) => return std::mem::replace(reply, reply::empty()),
        };
        let outcome = pin!(exchange_with_upstream(onward)).await;
        outcome.unwrap_or_else(|failure| onward.failed(failure))
    }
}

#[allow(clippy::large_enum_variant)] // boxing the larger one would cost an allocation for each request
enum Step {
    /// Refused, or a probe of phiward itself.
    Answered(Response<ReplyBody>),
    Onward(Onward),
}

/// A request that may pass, ready for the next hop.
struct Onward {
    upstream: Rc<Upstream>,
    /// Until it is sent.
    request: Option<Request<RequestBody>>,
    exchange: Rc<Exchange>,
    recorded: Option<Recorded>,
    asked: (&'static str, &'static str),
    switch: Option<Switch>,
    reader: Reader,
}

fn decide(conn: &Rc<ConnContext>, request: Request<Inflow>) -> Step {
    if let Direction::Probes { health, .. } = &conn.listener.direction
        && let Some(reply) = health.answer(request.method(), request.uri().path())
    {
        return Step::Answered(reply::text(reply.0, reply.1));
    }
    let now_ns = conn.worker.clock.now_ns();
    let ids = conn.worker.ids.next(request.headers().get(TRACEPARENT).map(HeaderValue::as_bytes));
    let reader = Reader::of(request.headers().get(header::CONTENT_TYPE));
    let Granted { upstream, authority, target, as_it_came, exchange, recorded, asked, may_switch } =
        match authorize(conn, &request, ids, now_ns) {
            Ok(granted) => granted,
            Err(refused) => {
                let reply = reply::refuse(reader, refused.status, ids.request_id(), refused.told);
                return Step::Answered(reply);
            }
        };
    let switch = may_switch.then(|| upgrade::asked(conn, &request)).flatten();
    let upstream = if switch.is_some() { upstream.for_upgrades() } else { upstream };
    let protocol = upstream.protocol();
    let target = Target { authority, path: target, as_it_came };
    let request = Some(next_request(conn, &exchange, request, target, switch.as_ref(), protocol));
    Step::Onward(Onward { upstream, request, exchange, recorded, asked, switch, reader })
}

async fn exchange_with_upstream(onward: &mut Onward) -> Result<Response<ReplyBody>, Failure> {
    let Onward { upstream, request, exchange, recorded, asked, switch, .. } = onward;
    if let Some(recorded) = recorded {
        recorded.before_forward().await.map_err(|_| Failure::AUDIT)?;
    }
    let refused = |failure: &Failure| exchange.record_refusal(failure, &upstream.name, *asked);
    let lease = upstream.lease().await.inspect_err(refused)?;
    let Some(request) = request.take() else { return Err(Failure::RESET) }; // sent once, so it is there
    let (response, lease) = upstream.answer(lease.send(request), exchange).await.inspect_err(refused)?;
    if let Some(recorded) = recorded {
        recorded.before_response().await.map_err(|_| Failure::AUDIT)?;
    }
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    match switch.take() {
        Some(switch) if switches => switch.complete(response, exchange.clone(), lease),
        _ if switches => Err(Failure::RESET),
        _ => Ok(passed_on(response, exchange.clone(), lease)),
    }
}

impl Onward {
    fn failed(&self, failure: Failure) -> Response<ReplyBody> {
        self.exchange.fail(failure.reason);
        if !failure.is_clients() {
            self.exchange.status(failure.status.as_u16());
            self.exchange.response_ended();
        }
        reply::refuse(self.reader, failure.status, self.exchange.ids().request_id(), Some(failure.reason))
    }
}

/// The response as the client gets it: hop-by-hop fields gone, the body streaming.
fn passed_on(response: Response<Inflow>, exchange: Rc<Exchange>, lease: Lease) -> Response<ReplyBody> {
    let (mut parts, body) = response.into_parts();
    headers::clean_response(&mut parts.headers);
    parts.version = Version::HTTP_11; // the client's connection knows what it speaks
    exchange.status(parts.status.as_u16());
    Response::from_parts(parts, ReplyBody::upstream(body, exchange, lease))
}

/// Where the next hop is asked to lead a request, as far as it differs from what arrived.
struct Target {
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    /// Nothing may be chosen of two hosts: see [`Granted::as_it_came`].
    as_it_came: bool,
}

/// The request as the next hop gets it.
fn next_request(
    conn: &ConnContext,
    exchange: &Rc<Exchange>,
    request: Request<Inflow>,
    target: Target,
    switch: Option<&Switch>,
    protocol: Protocol,
) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    headers::clean_request(&mut parts.headers);
    let told = match &conn.listener.direction {
        Direction::Outbound { .. } | Direction::Stream { .. } => Told::Sidecar,
        Direction::Inbound { .. } | Direction::Probes { .. } => {
            Told::App { client_cert: conn.peer.as_ref().and_then(|peer| peer.told_to_app.as_ref()) }
        }
    };
    headers::set_trusted(&mut parts.headers, exchange.ids(), told);

    let both_hosts = target.as_it_came && parts.headers.contains_key(header::HOST);
    let uri = std::mem::take(&mut parts.uri).into_parts();
    let path = target.path.or(uri.path_and_query).unwrap_or_else(|| PathAndQuery::from_static("/"));
    match protocol {
        Protocol::H1 => {
            if let (false, Some(authority)) = (parts.headers.contains_key(header::HOST), &uri.authority)
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                parts.headers.insert(header::HOST, host);
            }
            // A request without a length is one without a body; one that streams must say so.
            if !body.is_end_stream() && !parts.headers.contains_key(header::CONTENT_LENGTH) {
                parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            if parts.headers.contains_key(header::TE) {
                parts.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
            if let Some(switch) = switch {
                switch.ask(&mut parts.headers);
            }
            parts.version = Version::HTTP_11;
            parts.uri = absolute(uri.scheme, uri.authority.filter(|_| both_hosts), path);
        }
        Protocol::H2 => {
            let host = if both_hosts { None } else { parts.headers.remove(header::HOST) };
            let authority = target
                .authority
                .or(uri.authority)
                .or_else(|| host.and_then(|h| Authority::try_from(h.as_bytes()).ok()));
            parts.version = Version::HTTP_2;
            parts.uri = absolute(Some(Scheme::HTTPS), authority, path);
        }
    }
    Request::from_parts(parts, RequestBody::new(body, exchange.clone()))
}

/// HTTP/2 carries scheme and authority in pseudo-header fields (RFC 9113, section 8.3.1), HTTP/1.1 in an absolute-form
/// target.
fn absolute(scheme: Option<Scheme>, authority: Option<Authority>, target: PathAndQuery) -> Uri {
    let Some(authority) = authority else { return Uri::from(target) };
    let mut parts = http::uri::Parts::default();
    parts.scheme = scheme;
    parts.authority = Some(authority);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).unwrap_or_default() // all three parts are there, so it cannot fail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// If this fails, every request moves a large future several times: at 11 KiB that was a tenth of all CPU time.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size_of_future(forward);
        assert!(size <= 2560, "{size} bytes");
    }
}
