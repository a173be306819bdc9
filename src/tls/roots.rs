//! TLS toward receivers of audit events that are no workloads: they are known by their host name (RFC 9525), and a CA of
//! the web's kind vouches for them.
//!
//! TLS 1.2 is offered here, with its AEAD suites alone: log collectors are older than meshes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::settings::{Alpn, TlsError};

/// Why there are no CA certificates to check a receiver with.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read.
    #[error("{}: the CA certificates of an audit sink cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds no certificates, or something that is none.
    #[error("{}: this is no file of CA certificates in PEM form", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The system has none, as in an image made from scratch.
    #[error("this system has no CA certificates: give the audit sink a `ca_file`, or `identities`")]
    NoSystemRoots,
}

/// Client settings that accept a receiver whose certificate is for the host that is asked for, from a CA of `roots`.
///
/// # Errors
/// [`TlsError::Provider`], which no roots can cause.
pub fn client_with_roots(roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsError> {
    let mut client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = Alpn::Http1.protocols();
    client.resumption = Resumption::disabled(); // a connection lasts for hours, and then the chain is checked again
    Ok(Arc::new(client))
}

/// The CA certificates of a PEM file.
///
/// # Errors
/// It cannot be read, or is not such a file.
pub fn file_roots(path: &Path) -> Result<RootCertStore, RootsError> {
    let pem = std::fs::read(path).map_err(|error| RootsError::Read { path: path.into(), error })?;
    let form = || RootsError::Form { path: path.into() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|_| form())?).map_err(|_| form())?;
    }
    if roots.is_empty() { Err(form()) } else { Ok(roots) }
}

/// The CA certificates that this system trusts.
///
/// # Errors
/// It has none.
pub fn system_roots() -> Result<RootCertStore, RootsError> {
    let mut roots = RootCertStore::empty();
    // Stores hold certificates that no library reads; the others are as good as without them.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(RootsError::NoSystemRoots) } else { Ok(roots) }
}
