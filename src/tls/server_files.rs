//! TLS for an endpoint that is known by its host name and asks nobody for a certificate: the admission webhook's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why there is no such endpoint.
#[derive(Debug, thiserror::Error)]
pub enum ServerFilesError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{}: this is no readable PEM file with {what}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        error: rustls_pki_types::pem::Error,
    },
    /// The two do not go together.
    #[error("{}: the certificate and the key do not go together: {error}", path.display())]
    Pair {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
}

/// Settings for the certificate (with its intermediates) and the key of two PEM files.
///
/// # Errors
/// [`ServerFilesError`].
pub fn server_of_files(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, ServerFilesError> {
    let file = |path: &Path, what| {
        let path = path.to_owned();
        move |error| ServerFilesError::File { path, what, error }
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(file(certificate, "a certificate"))?;
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(file(key, "a private key"))?;
    let pair = |error| ServerFilesError::Pair { path: certificate.to_owned(), error };
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private_key))
        .map_err(pair)?;
    Ok(Arc::new(config))
}
