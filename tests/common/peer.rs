//! Peers at the mTLS port: right ones that speak raw bytes, and every kind of wrong one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phiward::identity::{FileContents, FilePaths, SpiffeId, TrustDomain};
use phiward::tls::{Alpn, Posture, TlsSettings, dummy_server_name};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::wire::patiently;
use super::{Pki, RECORDS};

/// The TLS settings of the workload whose files are in `dir`.
pub fn settings(dir: &Path) -> TlsSettings {
    let paths = FilePaths {
        certificate: dir.join("svid.pem"),
        private_key: dir.join("svid.key"),
        bundle: dir.join("bundle.pem").into(),
        federation: Vec::new(),
    };
    let domain = TrustDomain::parse("hospital.local").unwrap();
    let material = FileContents::read(&paths).unwrap().material(&domain, UnixTime::now()).unwrap();
    TlsSettings::new(Arc::new(material), Posture::default()).unwrap()
}

/// Connects to a sidecar's inbound port as the workload whose files are in `dir`.
pub async fn connect(addr: SocketAddr, dir: &Path, alpn: Alpn) -> TlsStream<TcpStream> {
    let allowed = Arc::from([SpiffeId::parse(RECORDS).unwrap()]);
    let config = settings(dir).client(allowed, alpn);
    let stream = TcpStream::connect(addr).await.unwrap();
    patiently(TlsConnector::from(config).connect(dummy_server_name(), stream)).await.unwrap()
}

/// Connects for HTTP/1.1, showing `identity` and taking any server.
pub async fn http1(addr: SocketAddr, identity: (&str, &str)) -> TlsStream<TcpStream> {
    let mut config = showing(Some(identity));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(addr).await.unwrap();
    patiently(TlsConnector::from(Arc::new(config)).connect(dummy_server_name(), stream)).await.unwrap()
}

/// Tries a handshake with `config`, and returns once the server has closed the connection. TLS 1.3 lets a client
/// believe that it is done before its certificate was judged, so only the end tells.
pub async fn turned_away(addr: SocketAddr, config: ClientConfig) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(dummy_server_name(), stream);
    if let Ok(mut stream) = patiently(connected).await {
        let mut byte = [0];
        let read = patiently(stream.read(&mut byte)).await;
        assert!(!matches!(read, Ok(1)), "the server talks to a peer that it must refuse");
    }
}

/// A client that shows `chain`, whatever it is worth, and takes any server.
pub fn showing(chain: Option<(&str, &str)>) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match chain {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<_, _>>().unwrap();
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A certificate of `pki`'s CA with these URI SANs, valid for the seconds from `from` to `until` from now. No issuer
/// that follows the rules would make most of them.
pub fn forged(pki: &Pki, uris: &[&str], (from, until): (i64, i64)) -> (String, String) {
    let ca_key = KeyPair::from_pem(&pki.ca.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(pki.ca.cert_pem(), ca_key).unwrap();
    let at = |offset: i64| {
        let seconds = UnixTime::now().as_secs().checked_add_signed(offset).unwrap();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (at(from), at(until));
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

/// What `pki`'s CA has revoked, in PEM: these certificates.
pub fn crl(pki: &Pki, revoked: &[&str]) -> String {
    let ca_key = KeyPair::from_pem(&pki.ca.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(pki.ca.cert_pem(), ca_key).unwrap();
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(UnixTime::now().as_secs());
    let serial = |pem: &&str| {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let hex = phiward::identity::Leaf::parse(&der).unwrap().serial_hex;
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        SerialNumber::from((0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>())
    };
    let revoked = revoked.iter().map(|pem| RevokedCertParams {
        serial_number: serial(pem),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::from_secs(3600),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&issuer).unwrap().pem().unwrap()
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
