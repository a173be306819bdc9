//! Why a handshake failed, as a stable code.

use std::io;

use rustls::{CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::peer::PeerError;

/// The reason for which our own verifier refused the peer, if that is why the handshake failed with `error`.
pub fn peer_error(error: &io::Error) -> Option<&PeerError> {
    match tls_error(error)? {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        _ => None,
    }
}

/// The stable snake_case code of a failed handshake, for audit events and metrics.
///
/// That of [`peer_error`] where there is one; else `no_certificate`, `key_not_proved` (the peer showed a certificate and
/// could not sign with its key), `tls_version`, `not_tls` (the first bytes were not a
/// TLS record, often plain HTTP), `no_common_protocol` (ALPN, cipher or group), `peer_alert` (the peer refused us),
/// `handshake_aborted` (closed or timed out half-way), or `tls_error`.
pub fn handshake_code(error: &io::Error) -> &'static str {
    if let Some(peer) = peer_error(error) {
        return peer.code();
    }
    match tls_error(error) {
        Some(tls) => tls_code(tls),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::TimedOut
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => "handshake_aborted",
            _ => "tls_error",
        },
    }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn tls_code(error: &Error) -> &'static str {
    use PeerIncompatible as P;
    match error {
        Error::NoCertificatesPresented => PeerError::NoCertificate.code(),
        Error::InvalidCertificate(CertificateError::BadSignature) => "key_not_proved",
        Error::AlertReceived(_) => "peer_alert",
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => "not_tls",
        Error::PeerIncompatible(
            P::ServerDoesNotSupportTls12Or13
            | P::ServerTlsVersionIsDisabledByOurConfig
            | P::SupportedVersionsExtensionRequired
            | P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::Tls13RequiredForQuic,
        )
        | Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => "tls_version",
        Error::NoApplicationProtocol
        | Error::PeerIncompatible(
            P::NoCipherSuitesInCommon | P::NoKxGroupsInCommon | P::NoSignatureSchemesInCommon,
        ) => "no_common_protocol",
        _ => "tls_error",
    }
}
