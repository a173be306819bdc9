//! The two certificate verifiers that rustls calls inside a handshake.
//!
//! They decide who the peer is; what it may do is the policy's question. rustls passes the time.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::peer::PeerError;
use crate::identity::{Leaf, Material, SpiffeId, Usage};

/// Verifies those who connect to us: any valid SVID of a trust domain we have a bundle for.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    material: Arc<Material>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Verifies those we connect to: a valid SVID, and one of the identities expected there.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    material: Arc<Material>,
    allowed: Arc<[SpiffeId]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    pub(super) fn new(material: Arc<Material>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { material, algorithms }
    }
}

impl ServerVerifier {
    pub(super) fn new(
        material: Arc<Material>,
        allowed: Arc<[SpiffeId]>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self { material, allowed, algorithms }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // hints would tell an unknown client whose CAs we trust, and make the handshake longer
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_svid(&self.material, end_entity, intermediates, Usage::Client, now).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // a dummy: the peer is who its SVID says, whatever its address is called
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf =
            verify_svid(&self.material, end_entity, intermediates, Usage::Server, now).map_err(refused)?;
        if self.allowed.contains(&leaf.id) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refused(PeerError::NotAllowed { id: leaf.id }))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn verify_svid(
    material: &Material,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<Leaf, PeerError> {
    // Ours first: the peer may not look, and who has no valid identity gives and gets no access.
    let not_after = material.svid.not_after();
    if now.as_secs() > not_after.max(0).unsigned_abs() {
        return Err(PeerError::OwnSvidExpired { not_after });
    }
    let leaf = Leaf::parse(end_entity).map_err(|reason| PeerError::Svid { reason, claimed: None })?;
    match material.bundles.verify(&leaf, end_entity, intermediates, usage, now) {
        Ok(()) => Ok(leaf),
        Err(reason) => Err(PeerError::Svid { reason, claimed: Some(leaf.id) }),
    }
}

/// Our reason, in the only envelope rustls has for one; `peer_error` takes it out again.
fn refused(reason: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}
