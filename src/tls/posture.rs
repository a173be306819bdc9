//! What handshakes of the mesh may agree on: versions, suites, key exchanges.
//!
//! Owns the choice and its words, for the configuration, `--version` and the audit trail. Knows no certificate.

use rustls::SupportedProtocolVersion;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::version::{TLS12, TLS13};

/// What an operator chose; the default is TLS 1.3 with classical key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Posture {
    /// The oldest version that is spoken.
    pub min_version: MinVersion,
    /// Whether a hybrid post-quantum key exchange is offered first.
    pub post_quantum: PostQuantum,
}

/// The oldest TLS version that is spoken with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MinVersion {
    /// TLS 1.3 alone.
    #[default]
    Tls13,
    /// TLS 1.2 too, with ephemeral keys and AEAD suites alone, and the extended master secret (RFC 7627). It shows both
    /// certificates to whoever listens, which TLS 1.3 does not.
    Tls12,
}

/// Hybrid key exchange: X25519 with ML-KEM-768 (draft-ietf-tls-ecdhe-mlkem), so that what is recorded today cannot be read
/// by a quantum computer one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PostQuantum {
    /// Not offered: it makes each hello about 1 KiB longer and each handshake dearer.
    #[default]
    Off,
    /// Taken wherever the peer has it.
    Prefer,
}

impl Posture {
    /// `1.2` or `1.3`, as configuration and trail write it.
    pub fn min_version(self) -> &'static str {
        match self.min_version {
            MinVersion::Tls12 => "1.2",
            MinVersion::Tls13 => "1.3",
        }
    }

    /// `off` or `prefer`.
    pub fn post_quantum(self) -> &'static str {
        match self.post_quantum {
            PostQuantum::Off => "off",
            PostQuantum::Prefer => "prefer",
        }
    }

    /// The versions, newest first.
    pub(super) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self.min_version {
            MinVersion::Tls12 => &BOTH,
            MinVersion::Tls13 => &BOTH[..1],
        }
    }

    /// AES-128-GCM first: the cheapest with AES instructions, and as strong as the P-256 keys beside it. In a build for FIPS
    /// only what its module is validated for is left.
    pub(super) fn provider(self) -> CryptoProvider {
        use aws_lc_rs::{cipher_suite as suite, kx_group as kx};
        let classical: [&'static dyn SupportedKxGroup; 3] = [kx::X25519, kx::SECP256R1, kx::SECP384R1];
        let hybrid = (self.post_quantum == PostQuantum::Prefer).then_some(kx::X25519MLKEM768);
        let mut provider = CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: hybrid.into_iter().chain(classical).collect(),
            ..aws_lc_rs::default_provider()
        };
        if cfg!(feature = "fips") {
            provider.cipher_suites.retain(|suite| suite.fips());
            provider.kx_groups.retain(|group| group.fips());
        }
        provider
    }
}
