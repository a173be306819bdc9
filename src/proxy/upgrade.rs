//! Connections that stop being HTTP: WebSocket and other `Upgrade`s, as bytes both ways once both ends agreed.
//!
//! An upgrade travels on HTTP/1.1 connections of its own. Its exchange stays open until both directions have ended, so
//! its completion event tells the bytes and the time of the whole stream.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::body::ReplyBody;
use super::exchange::Exchange;
use super::headers;
use super::outcome::Failure;
use super::upstream::Lease;

/// A client's wish to switch protocols, with its half of the connection to come.
pub(crate) struct Switch {
    protocol: HeaderValue,
    client: OnUpgrade,
}

const COPY_BUFFER: usize = 16 * 1024;

/// The switch that `request` asks for, if it does so by the rules of RFC 9110, section 7.8. `h2c` is not among them
/// (RFC 9113 dropped it, and smuggling lives there): such a request is served as plain HTTP/1.1.
pub(crate) fn asked(request: &mut Request<Incoming>) -> Option<Switch> {
    if request.version() != Version::HTTP_11 || !headers::names_upgrade(request.headers()) {
        return None;
    }
    let protocol = request.headers().get(header::UPGRADE)?.clone();
    if headers::has_token(&protocol, b"h2c") {
        return None;
    }
    Some(Switch { protocol, client: hyper::upgrade::on(request) })
}

impl Switch {
    /// Puts the wish into the head for the next hop, from which hop-by-hop fields were stripped.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
    }

    /// The upstream agreed: tells the client, and copies until both directions have ended.
    ///
    /// # Errors
    /// The upstream switched to something the client did not ask for.
    pub(crate) fn complete(
        self,
        mut response: Response<Incoming>,
        exchange: Rc<Exchange>,
        lease: Lease,
    ) -> Result<Response<ReplyBody>, Failure> {
        let agreed = response.headers().get(header::UPGRADE).cloned();
        let asked_for = |p: &HeaderValue| headers::has_token(&self.protocol, p.as_bytes());
        let Some(agreed) = agreed.filter(asked_for) else { return Err(Failure::RESET) };

        exchange.status(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        exchange.switched();
        let upstream = hyper::upgrade::on(&mut response);
        let client = self.client;
        drop(tokio::task::spawn_local(async move {
            if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
                copy(client, upstream, &exchange).await;
            }
            drop(lease); // the connection is no longer HTTP's, so it is not released for reuse
        }));

        let (mut parts, _) = response.into_parts();
        headers::clean_response(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, agreed);
        Ok(Response::from_parts(parts, ReplyBody::Own(None)))
    }
}

async fn copy(client: Upgraded, upstream: Upgraded, exchange: &Exchange) {
    let mut client = TokioIo::new(client);
    let mut upstream = TokioIo::new(upstream);
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BUFFER, COPY_BUFFER).await;
    if let Ok((sent, received)) = copied {
        exchange.add_request_bytes(sent as usize);
        exchange.add_response_bytes(received as usize);
        exchange.response_ended();
    }
}
