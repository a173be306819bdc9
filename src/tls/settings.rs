//! The rustls configurations of both sides, from one set of identity material.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{CipherSuite, ClientConfig, ProtocolVersion, ServerConfig};
use rustls_pki_types::ServerName;

use super::posture::Posture;
use super::verify::{ClientVerifier, ServerVerifier};
use crate::identity::{Material, SpiffeId};

const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Which HTTP versions a side offers (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `h2` alone.
    H2,
    /// `http/1.1` alone.
    Http1,
    /// `h2`, then `http/1.1`.
    Either,
    /// Nothing: what is spoken is not HTTP.
    Nothing,
}

/// Everything that handshakes need, for one set of identity material.
#[derive(Debug, Clone)]
pub struct TlsSettings {
    material: Arc<Material>,
    provider: Arc<CryptoProvider>,
    posture: Posture,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>, // a template that accepts no server until `client` says which
}

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls does not accept the combination of versions, suites and groups.
    #[error("this build's cryptography cannot do TLS as phiward needs it: {0}")]
    Provider(rustls::Error),
    /// The build is one for FIPS, and what it would do is outside of what its module is validated for.
    #[error("this build is for FIPS, and its cryptographic module is not in its approved mode")]
    NotFips,
}

impl TlsSettings {
    /// Builds the configurations for `material`. Call it once a rotation, never once a connection.
    ///
    /// # Errors
    /// What no material can cause.
    pub fn new(material: Arc<Material>, posture: Posture) -> Result<Self, TlsError> {
        let provider = Arc::new(posture.provider());
        let key = Arc::new(SingleCertAndKey::from(Arc::clone(material.svid.certified_key())));
        let verifier = ClientVerifier::new(Arc::clone(&material), provider.signature_verification_algorithms);
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(posture.versions())
            .map_err(TlsError::Provider)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&key) as _); // one SVID, whatever name the client asks for
        server.alpn_protocols = Alpn::Either.protocols();
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.max_early_data_size = 0; // early data can be replayed (RFC 8446 section 8)
        server.require_ems = true; // else a TLS 1.2 connection can be spliced onto another (RFC 7627)
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(posture.versions())
            .map_err(TlsError::Provider)?
            .dangerous() // rustls' word for "not the web's rules": SPIFFE's are checked instead
            .with_custom_certificate_verifier(server_verifier(&material, &provider, Arc::new([])))
            .with_client_cert_resolver(key as _);
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.enable_early_data = false;
        client.require_ems = true;
        if cfg!(feature = "fips") && !(server.fips() && client.fips()) {
            return Err(TlsError::NotFips);
        }
        Ok(Self { material, provider, posture, server: Arc::new(server), client: Arc::new(client) })
    }

    /// Settings for other material in the same posture.
    ///
    /// # Errors
    /// As [`TlsSettings::new`].
    pub fn renewed(&self, material: Arc<Material>) -> Result<Self, TlsError> {
        Self::new(material, self.posture)
    }

    /// The server's side: a client certificate required and verified, ALPN `h2` then `http/1.1`.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// [`TlsSettings::server`] with another ALPN, for a listener that speaks one version of HTTP.
    pub fn server_with_alpn(&self, alpn: Alpn) -> Arc<ServerConfig> {
        let mut server = ServerConfig::clone(&self.server);
        server.alpn_protocols = alpn.protocols();
        Arc::new(server)
    }

    /// The client's side toward a server that must be one of `allowed`.
    ///
    /// The identity is checked inside the handshake, before our own certificate is sent: a wrong server learns nothing of
    /// us. An empty `allowed` accepts nobody. Build it once a rotation for each service.
    pub fn client(&self, allowed: Arc<[SpiffeId]>, alpn: Alpn) -> Arc<ClientConfig> {
        let mut client = ClientConfig::clone(&self.client);
        client.alpn_protocols = alpn.protocols();
        client.dangerous().set_certificate_verifier(server_verifier(&self.material, &self.provider, allowed));
        Arc::new(client)
    }

    /// Whether the cryptography is that of a FIPS module, in its approved mode.
    pub fn fips(&self) -> bool {
        self.server.fips() && self.client.fips()
    }

    /// The identity material these settings were built from.
    pub fn material(&self) -> &Arc<Material> {
        &self.material
    }
}

pub(super) fn server_verifier(
    material: &Arc<Material>,
    provider: &CryptoProvider,
    allowed: Arc<[SpiffeId]>,
) -> Arc<ServerVerifier> {
    Arc::new(ServerVerifier::new(Arc::clone(material), allowed, provider.signature_verification_algorithms))
}

impl Alpn {
    pub(super) fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2 => vec![H2.to_vec()],
            Self::Http1 => vec![HTTP_1_1.to_vec()],
            Self::Either => vec![H2.to_vec(), HTTP_1_1.to_vec()],
            Self::Nothing => Vec::new(),
        }
    }
}

/// A name for `TlsConnector::connect`, which wants one. It is neither sent nor compared: a peer is who its SVID says.
pub fn dummy_server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// The IANA name of a cipher suite, as audit events write it; `unknown` for one we never negotiate.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS13_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS13_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS13_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        _ => "unknown",
    }
}

/// The protocol version as audit events write it, such as `1.3`; `unknown` for one we never negotiate.
pub fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "1.3",
        ProtocolVersion::TLSv1_2 => "1.2",
        _ => "unknown",
    }
}
