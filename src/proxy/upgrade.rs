//! Connections that stop being HTTP: WebSocket and other `Upgrade`s, as bytes both ways once both ends agreed.
//!
//! An upgrade travels on HTTP/1.1 connections of its own. Its exchange stays open until both directions have ended, so
//! its completion event tells the bytes and the time of the whole stream.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};

use super::body::{Inflow, ReplyBody};
use super::context::ConnContext;
use super::endpoint::Lease;
use super::exchange::Exchange;
use super::headers;
use super::http1;
use super::outcome::Failure;
use super::stream::{Asked, Standing, carry};
use super::vouched::Tenure;

/// A client's wish to switch protocols.
pub(crate) struct Switch {
    protocol: HeaderValue,
    standing: Standing,
}

/// An agreement to switch, which waits for the client's stream.
pub(crate) struct Switched {
    upstream: http1::Rewound,
    tenure: Option<Tenure>,
    /// It counts as a request on its way as long as the stream lives.
    _lease: Lease,
    exchange: Rc<Exchange>,
    standing: Standing,
}

/// The switch that `request` asks for, if it does so by the rules of RFC 9110, section 7.8. `h2c` is not among them
/// (RFC 9113 dropped it, and smuggling lives there): such a request is served as plain HTTP/1.1.
pub(crate) fn asked(conn: &Rc<ConnContext>, request: &Request<Inflow>) -> Option<Switch> {
    if request.version() != Version::HTTP_11 || !headers::names_upgrade(request.headers()) {
        return None;
    }
    let protocol = request.headers().get(header::UPGRADE)?.clone();
    if headers::has_token(&protocol, b"h2c") {
        return None;
    }
    let standing = Standing { conn: conn.clone(), asked: Asked::Request(Box::new(head_of(request))) };
    Some(Switch { protocol, standing })
}

/// The parts of a request's head that decide.
fn head_of(request: &Request<Inflow>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    if let Some(host) = request.headers().get(header::HOST) {
        head.headers_mut().insert(header::HOST, host.clone());
    }
    head
}

impl Switch {
    /// Puts the wish into the head for the next hop, from which hop-by-hop fields were stripped.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }

    /// The upstream agreed: what is told to the client, with what follows.
    ///
    /// # Errors
    /// The upstream switched to something the client did not ask for.
    pub(crate) fn complete(
        self,
        response: Response<Inflow>,
        exchange: Rc<Exchange>,
        mut lease: Lease,
    ) -> Result<Response<ReplyBody>, Failure> {
        let agreed = response.headers().get(header::UPGRADE).cloned();
        let asked_for = |p: &HeaderValue| headers::has_token(&self.protocol, p.as_bytes());
        let Some(agreed) = agreed.filter(asked_for) else { return Err(Failure::RESET) };

        let tenure = lease.tenure();
        let upstream = lease.take_stream().ok_or(Failure::RESET)?;

        exchange.status(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        let switched = Switched { upstream, tenure, _lease: lease, exchange, standing: self.standing };
        let (mut parts, _) = response.into_parts();
        headers::clean_response(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, agreed);
        Ok(Response::from_parts(parts, ReplyBody::Switched(Box::new(switched))))
    }
}

impl Switched {
    /// Copies until both directions have ended, in a task of its own: the connection is no longer HTTP's, and ends otherwise.
    pub(crate) fn begin(self: Box<Self>, client: http1::Rewound) {
        drop(tokio::task::spawn_local(async move {
            let Self { upstream, tenure, _lease, exchange, standing } = *self;
            carry(client, upstream, &exchange, &standing, tenure.as_ref()).await;
        }));
    }
}
