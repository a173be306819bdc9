//! How a request can fail once it was let through, as data: where, why, whether it may be sent again, and the status.

use http::StatusCode;

/// Why a stream that was let in is ended: the policy or a dated binding no longer gives the right to it.
pub(crate) const ACCESS_REVOKED: &str = "access_revoked";
/// Why a stream that was let in is ended: a certificate that it was given on has run out.
pub(crate) const PEER_EXPIRED: &str = "peer_expired";

/// Why an exchange ended: the client hung up before it had its whole answer.
pub(crate) const CLIENT_GONE: &str = "client_gone";

/// Why somebody without a certificate is let in: the listener is permissive.
pub(crate) const UNAUTHENTICATED: &str = "unauthenticated";

/// A request that did not get its response head from the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The stable code in audit events, metrics and the reply's body.
    pub(crate) reason: &'static str,
    /// What the client is told.
    pub(crate) status: StatusCode,
}

impl Failure {
    /// The name of the upstream has no address.
    pub(crate) const UNRESOLVED: Self = Self::new("upstream_unresolved", StatusCode::SERVICE_UNAVAILABLE);
    /// No TCP connection could be made in time.
    pub(crate) const CONNECT: Self = Self::new("upstream_connect", StatusCode::SERVICE_UNAVAILABLE);
    /// TLS with the peer failed for another reason than its identity.
    pub(crate) const TLS: Self = Self::new("upstream_tls", StatusCode::BAD_GATEWAY);
    /// The peer is not who it must be.
    pub(crate) const IDENTITY: Self = Self::new("upstream_identity", StatusCode::BAD_GATEWAY);
    /// The connection broke, or what came over it was no HTTP, before the response head was there.
    pub(crate) const RESET: Self = Self::new("upstream_reset", StatusCode::BAD_GATEWAY);
    /// The response head did not arrive in time.
    pub(crate) const TIMEOUT: Self = Self::new("upstream_timeout", StatusCode::GATEWAY_TIMEOUT);
    /// The audit spool cannot take the request's event: no record, no access.
    pub(crate) const AUDIT: Self = Self::new("audit_unavailable", StatusCode::SERVICE_UNAVAILABLE);
    /// The client's body broke off, or was malformed, before it was whole.
    pub(crate) const CLIENT_BODY: Self = Self::new("client_body", StatusCode::BAD_REQUEST);

    /// Whether the client ended the exchange, so that it counts as aborted whatever it is still told.
    pub(crate) fn is_clients(&self) -> bool {
        *self == Self::CLIENT_BODY
    }

    const fn new(reason: &'static str, status: StatusCode) -> Self {
        Self { reason, status }
    }
}
