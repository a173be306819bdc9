//! Bundles of other trust domains from their SPIFFE bundle endpoints, again and again (SPIFFE Federation, section 5).
//!
//! Owns the fetching, the form of what comes, and when to ask again. An endpoint that does not answer, or answers something
//! else, changes nothing: the last good bundle stays. A bundle without keys is an answer: that trust domain vouches for nobody
//! any more. Who uses the bundles is `reload`'s matter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::config::{BundleEndpoint, Endpoint, EndpointTrust};
use crate::identity::{Bundle, TrustDomain};
use crate::resolve::Resolution;
use crate::tls::{self, Alpn, TlsSettings};

/// The bundles that endpoints gave.
pub(crate) type Fetched = Arc<BTreeMap<TrustDomain, Bundle>>;

/// When to ask again where the bundle does not say (SPIFFE Trust Domain and Bundle, section 4.1.2, asks for five minutes).
const REFRESH: Duration = Duration::from_secs(300);
/// Whatever a bundle says, no sooner and no later than this.
const REFRESH_LEAST: Duration = Duration::from_secs(1);
const REFRESH_MOST: Duration = Duration::from_secs(3600);
/// After a failure: drawn from zero to this, and from twice as much each time, up to what the bundle said.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_secs(10);
/// A bundle has a few certificates.
const MAX_BUNDLE: usize = 1024 * 1024;

/// Why an endpoint gave no bundle.
#[derive(Debug, thiserror::Error)]
#[error("the bundle endpoint of {trust_domain}: {reason}; the last bundle stays in use")]
pub(crate) struct FetchError {
    trust_domain: TrustDomain,
    reason: String,
}

/// Asks every endpoint until this is dropped, and gives what comes. `tls` is what our own handshakes are done by.
pub(crate) fn follow(
    endpoints: Vec<BundleEndpoint>,
    tls: &watch::Receiver<Arc<TlsSettings>>,
) -> (JoinSet<()>, watch::Receiver<Fetched>, watch::Receiver<Option<String>>) {
    let (fetched, newest) = watch::channel(Fetched::default());
    let (failed, failure) = watch::channel(None);
    let mut tasks = JoinSet::new();
    for endpoint in endpoints {
        let asking = Asking { endpoint, tls: tls.clone(), fetched: fetched.clone(), failed: failed.clone() };
        tasks.spawn(asking.run());
    }
    (tasks, newest, failure)
}

struct Asking {
    endpoint: BundleEndpoint,
    tls: watch::Receiver<Arc<TlsSettings>>,
    fetched: watch::Sender<Fetched>,
    /// What went wrong last, for `/ready`.
    failed: watch::Sender<Option<String>>,
}

impl Asking {
    async fn run(self) {
        let mut names = Resolution::new();
        let at = Endpoint { host: self.endpoint.host.clone(), port: self.endpoint.port };
        let addresses = match names.watch(&[at]) {
            Ok(addresses) => addresses,
            Err(error) => return self.complain(&self.error(error.to_string())),
        };
        let (mut refresh, mut retry) = (REFRESH, RETRY_FIRST);
        loop {
            let wait = match self.fetch(&addresses).await {
                Ok((bundle, hint)) => {
                    refresh = hint;
                    retry = RETRY_FIRST;
                    self.take(bundle);
                    refresh
                }
                Err(error) => {
                    self.complain(&error);
                    let most = retry;
                    retry = (retry * 2).min(refresh);
                    most.mul_f64(fastrand::f64())
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    fn take(&self, bundle: Bundle) {
        let domain = &self.endpoint.trust_domain;
        self.fetched.send_if_modified(|fetched| {
            let new = fetched.get(domain) != Some(&bundle);
            if new {
                tracing::info!(trust_domain = %domain, certificates = bundle.len(), "a new bundle from its endpoint");
                Arc::make_mut(fetched).insert(domain.clone(), bundle);
            }
            new
        });
        self.failed.send_if_modified(|failed| failed.take().is_some());
    }

    fn complain(&self, error: &FetchError) {
        self.failed.send_if_modified(|failed| {
            let text = error.to_string();
            let new = failed.as_ref() != Some(&text);
            if new {
                tracing::warn!("{text}");
                *failed = Some(text);
            }
            new
        });
    }

    fn error(&self, reason: String) -> FetchError {
        FetchError { trust_domain: self.endpoint.trust_domain.clone(), reason }
    }

    /// The bundle, and when to ask again.
    async fn fetch(
        &self,
        addresses: &watch::Receiver<Arc<[SocketAddr]>>,
    ) -> Result<(Bundle, Duration), FetchError> {
        let asked = tokio::time::timeout(ATTEMPT, self.ask(addresses)).await;
        let body = asked.unwrap_or_else(|_| Err("no answer in time".into()));
        body.and_then(|body| read(&body)).map_err(|reason| self.error(reason))
    }

    async fn ask(&self, addresses: &watch::Receiver<Arc<[SocketAddr]>>) -> Result<Bytes, String> {
        let BundleEndpoint { host, port, path, trust, .. } = &self.endpoint;
        let mut resolved = addresses.clone();
        let found = resolved.wait_for(|addresses| !addresses.is_empty()).await;
        let addresses = found.map_err(|_| "no addresses")?.clone();
        let address = addresses[fastrand::usize(..addresses.len())];
        let said = |error: &dyn std::fmt::Display| format!("{host} ({address}): {error}");
        let tcp = TcpStream::connect(address).await.map_err(|error| said(&error))?;
        let config = match trust {
            EndpointTrust::Spiffe(id) => self.tls.borrow().client(Arc::from([id.clone()]), Alpn::Http1),
            EndpointTrust::Web(ca_file) => {
                let roots = match ca_file {
                    Some(path) => tls::file_roots(path),
                    None => tls::system_roots(),
                };
                tls::client_with_roots(roots.map_err(|error| error.to_string())?)
                    .map_err(|error| said(&error))?
            }
        };
        let name = ServerName::try_from(host.clone()).map_err(|error| said(&error))?;
        let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
            // rustls shows a verifier's own error as debug text.
            tls::peer_error(&error).map_or_else(|| said(&error), |peer| said(peer))
        })?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|error| said(&error))?;
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path.parse().map_err(|error| said(&error))?;
        let host_value = HeaderValue::try_from(authority).map_err(|error| said(&error))?;
        request.headers_mut().insert(header::HOST, host_value);
        // Its end is told where the request is: an error ends that too.
        let driving = tokio::spawn(connection);
        let answered = async {
            let (head, body) = sender.send_request(request).await.map_err(|error| said(&error))?.into_parts();
            if head.status != StatusCode::OK {
                // A redirect is not followed either: nobody vouches for where it leads.
                return Err(said(&format!("answered {}", head.status)));
            }
            let body = Limited::new(body, MAX_BUNDLE).collect().await.map_err(|error| said(&error))?;
            Ok(body.to_bytes())
        };
        let answered = answered.await;
        driving.abort();
        answered
    }
}

/// A SPIFFE bundle: a JWK set.
#[derive(Deserialize)]
struct Document {
    keys: Vec<Key>,
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use")]
    usage: Option<String>,
    x5c: Option<Vec<String>>,
}

/// The X.509 authorities of a bundle, and when it wants to be asked for again.
fn read(body: &[u8]) -> Result<(Bundle, Duration), String> {
    let document: Document =
        serde_json::from_slice(body).map_err(|error| format!("this is no SPIFFE bundle: {error}"))?;
    let mut bundle = Bundle::default();
    for key in document.keys.iter().filter(|key| key.usage.as_deref() == Some("x509-svid")) {
        let Some([certificate]) = key.x5c.as_deref() else {
            return Err("a key for x509-svid must have exactly one certificate in x5c".into());
        };
        let der = BASE64.decode(certificate).map_err(|_| "a certificate in x5c is not base64")?;
        bundle.add(&CertificateDer::from(der)).map_err(|reason| format!("a key cannot be a CA: {reason}"))?;
    }
    let hint = document.spiffe_refresh_hint.map_or(REFRESH, Duration::from_secs);
    Ok((bundle, hint.clamp(REFRESH_LEAST, REFRESH_MOST)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{Forge, NOW};

    fn key(usage: &str, certificates: &[&str]) -> serde_json::Value {
        serde_json::json!({"use": usage, "kty": "EC", "crv": "P-256", "x5c": certificates})
    }

    fn document(keys: &[serde_json::Value]) -> Vec<u8> {
        serde_json::json!({"keys": keys, "spiffe_sequence": 3, "spiffe_refresh_hint": 60}).to_string().into()
    }

    /// If this fails, partners cannot be federated with by what SPIRE publishes.
    #[test]
    fn the_authorities_of_a_bundle_are_those_for_x509() {
        let ca = BASE64.encode(Forge::new(NOW).cert.der());
        let keys = [key("x509-svid", &[&ca]), key("jwt-svid", &[]), serde_json::json!({"kty": "EC"})];
        let (bundle, refresh) = read(&document(&keys)).unwrap();
        assert_eq!((bundle.len(), refresh), (1, Duration::from_secs(60)));
        assert_eq!(read(br#"{"keys":[]}"#).unwrap().1, REFRESH, "where it gives no hint");
    }

    /// If this fails, a trust domain that has revoked all its keys is believed on.
    #[test]
    fn a_bundle_without_keys_vouches_for_nobody() {
        assert!(read(&document(&[])).unwrap().0.is_empty());
    }

    /// If this fails, half an answer takes the place of a good bundle.
    #[test]
    fn what_is_no_bundle_is_refused() {
        let ca = BASE64.encode(Forge::new(NOW).cert.der());
        let leaf = BASE64.encode(Forge::new(NOW).leaf(|_| {}).cert.der());
        for (body, words) in [
            (b"{\"keys\":[".to_vec(), "no SPIFFE bundle"),
            (b"{}".to_vec(), "no SPIFFE bundle"),
            (b"<html>".to_vec(), "no SPIFFE bundle"),
            (document(&[key("x509-svid", &[])]), "exactly one"),
            (document(&[key("x509-svid", &[&ca, &ca])]), "exactly one"),
            (document(&[key("x509-svid", &["%"])]), "not base64"),
            (document(&[key("x509-svid", &["MAA="])]), "cannot be a CA"),
            (document(&[key("x509-svid", &[&leaf])]), "cannot be a CA"),
        ] {
            let refused = read(&body).err().unwrap();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
