//! The peer of an established connection, and why a peer was refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::CommonState;

use crate::identity::{Leaf, SpiffeId, SvidError, certificate_sha256_hex, utc};

/// The verified peer of a connection. Make it once, when the handshake is done, and keep it with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCert {
    /// Who the peer is.
    pub id: SpiffeId,
    /// End of its certificate's validity, Unix seconds, inclusive. The connection must not live longer.
    pub not_after: i64,
    /// SHA-256 of its leaf certificate, lower-case hexadecimal.
    pub sha256_hex: String,
    /// Its serial number, lower-case hexadecimal.
    pub serial_hex: String,
}

/// Why a peer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Its certificate is not a valid SVID, or nothing we trust vouches for it.
    #[error("the peer's certificate is refused: {reason}")]
    Svid {
        /// Why.
        reason: SvidError,
        /// The identity it claims, if one could be read. Not proved.
        claimed: Option<SpiffeId>,
    },
    /// The server is who it says, and not whom the service's `identities` name.
    #[error("the server is {id}, which is not one of the identities configured for this service")]
    NotAllowed {
        /// The server's identity, proved up to the possession of its key.
        id: SpiffeId,
    },
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate: both sides of a mesh connection need an SVID")]
    NoCertificate,
    /// Our own SVID has expired: no handshake is completed until a new one is loaded.
    #[error("this workload's own SVID {}: no new one came from its source", ended(*.not_after))]
    OwnSvidExpired {
        /// End of our SVID's validity, Unix seconds; 0 for one that was withdrawn.
        not_after: i64,
    },
}

/// How long a certificate whose last second is `not_after` (Unix seconds) is good yet. That second belongs to the validity (RFC
/// 5280, section 4.1.2.5), for a handshake as for what it opened. At most a year: a timer takes no more than some, and a
/// connection that old has long been replaced.
pub fn time_left(not_after: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = Duration::from_secs(not_after.saturating_add(1).max(0).unsigned_abs());
    end.saturating_sub(now).min(Duration::from_secs(365 * 24 * 3600))
}

/// The peer of `connection`, whose handshake is done.
///
/// # Errors
/// [`PeerError::NoCertificate`] before the end of the handshake. A certificate that our verifiers accepted never fails.
pub fn peer_cert(connection: &CommonState) -> Result<PeerCert, PeerError> {
    let der =
        connection.peer_certificates().and_then(|chain| chain.first()).ok_or(PeerError::NoCertificate)?;
    let leaf = Leaf::parse(der).map_err(|reason| PeerError::Svid { reason, claimed: None })?;
    Ok(PeerCert {
        id: leaf.id,
        not_after: leaf.not_after,
        sha256_hex: certificate_sha256_hex(der),
        serial_hex: leaf.serial_hex,
    })
}

fn ended(not_after: i64) -> String {
    if not_after == 0 { "was withdrawn".to_owned() } else { format!("expired at {}", utc(not_after)) }
}

impl PeerError {
    /// The stable snake_case code of this reason, for audit events and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Svid { reason, .. } => reason.code(),
            Self::NotAllowed { .. } => "peer_not_allowed",
            Self::NoCertificate => "no_certificate",
            Self::OwnSvidExpired { .. } => "own_svid_expired",
        }
    }

    /// The identity that the peer claims. It is not proved: the handshake failed.
    pub fn claimed_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Svid { claimed, .. } => claimed.as_ref(),
            Self::NotAllowed { id } => Some(id),
            Self::NoCertificate | Self::OwnSvidExpired { .. } => None,
        }
    }
}
