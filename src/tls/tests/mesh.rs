//! A small mesh for the handshake tests, and peers that do not keep to its rules.

use std::io;
use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::identity::testing::{Forge, Forged, RECORDS, WEB, domain, id, pem, uri};
use crate::identity::{PemSet, SpiffeId, material_from_pem};
use crate::tls::{Alpn, Posture, TlsSettings, dummy_server_name, handshake_code};

pub(super) type Outcome<T> = Result<T, io::Error>;

/// A mesh of two trust domains, as hospital.local sees it. rustls reads the machine's clock, so it is made as of now.
pub(super) struct Mesh {
    pub(super) now: u64,
    pub(super) ca: Forge,
    pub(super) partner: Forge,
}

impl Mesh {
    pub(super) fn new() -> Self {
        let now = UnixTime::now().as_secs();
        Self { now, ca: Forge::new(now), partner: Forge::new(now) }
    }

    pub(super) fn settings(&self, spiffe_id: &str) -> TlsSettings {
        self.settings_of(spiffe_id, Posture::default())
    }

    pub(super) fn settings_of(&self, spiffe_id: &str, posture: Posture) -> TlsSettings {
        let leaf = self.ca.svid(spiffe_id);
        let (certificate, bundle, partner) = (leaf.cert.pem(), self.ca.cert.pem(), self.partner.cert.pem());
        let partner_domain = domain("partner.example");
        let set = PemSet {
            certificate: pem("svid.pem", &certificate),
            private_key: pem("svid.key", &leaf.key_pem),
            bundle: pem("bundle.pem", &bundle).into(),
            federation: vec![(&partner_domain, pem("partner.pem", &partner).into())],
        };
        let material = material_from_pem(&set, &domain("hospital.local"), UnixTime::now()).unwrap();
        TlsSettings::new(Arc::new(material), posture).unwrap()
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.settings(RECORDS).server()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.settings(WEB).client(only(RECORDS), Alpn::Either)
    }

    /// Our own client, but with a forged certificate.
    pub(super) fn bad_client(&self, leaf: &Forged, chain: &[&Forge]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client());
        config.client_auth_cert_resolver = resolver(leaf, chain);
        Arc::new(config)
    }

    /// Our own server, but with a forged certificate.
    pub(super) fn bad_server(&self, leaf: &Forged) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server());
        config.cert_resolver = resolver(leaf, &[]);
        Arc::new(config)
    }

    /// A right client certificate, without any check of the server.
    pub(super) fn client_that_believes_anybody(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client());
        config.dangerous().set_certificate_verifier(Arc::new(Gullible));
        Arc::new(config)
    }

    /// What our server says of a client whose leaf was changed.
    pub(super) async fn refused_client(&self, change: impl FnOnce(&mut CertificateParams)) -> &'static str {
        let (_, server) = handshake(self.bad_client(&self.ca.leaf(change), &[]), self.server()).await;
        handshake_code(&server.err().unwrap())
    }

    /// What our client says of the [`RECORDS`] server whose leaf was changed, and what that server hears.
    pub(super) async fn refused_server(&self, change: impl FnOnce(&mut CertificateParams)) -> &'static str {
        let leaf = self.ca.leaf(|params| {
            params.subject_alt_names = vec![uri(RECORDS)];
            change(params);
        });
        let (client, server) = handshake(self.client(), self.bad_server(&leaf)).await;
        assert_eq!(handshake_code(&server.err().unwrap()), "peer_alert");
        handshake_code(&client.err().unwrap())
    }
}

pub(super) fn only(spiffe_id: &str) -> Arc<[SpiffeId]> {
    Arc::new([id(spiffe_id)])
}

fn resolver(leaf: &Forged, chain: &[&Forge]) -> Arc<SingleCertAndKey> {
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let rest = chain.iter().map(|ca| ca.cert.der().clone());
    let chain: Vec<CertificateDer<'static>> = std::iter::once(leaf.cert.der().clone()).chain(rest).collect();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// One handshake through tokio-rustls, so that errors come wrapped as they do in the proxy. Each side flushes its alert.
pub(super) async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Outcome<client::TlsStream<DuplexStream>>, Outcome<server::TlsStream<DuplexStream>>) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(
        TlsConnector::from(client).connect(dummy_server_name(), near),
        TlsAcceptor::from(server).accept(far)
    )
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[derive(Debug)]
pub(super) struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
