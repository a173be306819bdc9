//! Identity from a SPIRE agent, by the SPIFFE Workload API.
//!
//! The agent pushes a new answer whenever an SVID or a bundle changes; each holds everything, so what is missing from it was
//! withdrawn. Owns the connection, its back-off and the choice of one SVID. What an answer holds is judged by `identity`'s
//! strict rules like any file: the agent's word that a certificate is ours is not enough. What comes of it is decided by
//! `reload`.

mod api;

use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::identity::{DerSet, IdentityError, Material, SpiffeId, TrustDomain, material_from_der};
use api::{Answers, X509SvidResponse};

pub use api::ApiError;

/// What errors call the agent's answers by.
const NAME: &str = "the SPIRE agent";
/// How long the start waits for a first identity: a new registration takes some seconds to reach the agent.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// The wait before the agent is asked again: drawn from zero to this, and from twice as much each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(15);

/// Why the agent gave no identity that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SpireError {
    /// It gave none.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It gave one that no peer would accept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It gave none of the trust domain.
    #[error("the SPIRE agent gave no SVID of {trust_domain}, the trust domain of the configuration{}", told(.given))]
    NoSvid {
        /// The configured one.
        trust_domain: TrustDomain,
        /// The identities it gave.
        given: Vec<String>,
    },
}

impl SpireError {
    /// For the audit trail.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Api(ApiError::Denied) | Self::NoSvid { .. } => "withdrawn",
            Self::Api(_) => "agent_unreachable",
            Self::Identity(error) => error.code(),
        }
    }

    /// Whether the agent answered, and said that this workload has no identity.
    pub fn is_withdrawal(&self) -> bool {
        matches!(self, Self::Api(ApiError::Denied) | Self::NoSvid { .. })
    }
}

fn told(ids: &[String]) -> String {
    if ids.is_empty() { String::new() } else { format!("; it gave {}", ids.join(", ")) }
}

/// What came of asking.
pub(crate) type Update = Result<Box<Material>, SpireError>;

/// Where a workload's identity comes from.
#[derive(Debug, Clone)]
pub struct Source {
    socket: PathBuf,
    trust_domain: TrustDomain,
}

impl Source {
    /// The agent behind `socket`, as far as it gives identities of `trust_domain`.
    pub fn new(socket: PathBuf, trust_domain: TrustDomain) -> Self {
        Self { socket, trust_domain }
    }

    /// The first identity. Waits for the agent and for the registration as long as both usually take; works with or without
    /// a runtime around it.
    ///
    /// # Errors
    /// Why there is none after that time, or at once what asking again would not change.
    pub fn first(&self) -> Result<Box<Material>, SpireError> {
        let source = self.clone();
        let asking = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let io = |error| ApiError::Connect { socket: source.socket.clone(), error };
            runtime.map_err(io)?.block_on(source.ask_until(Instant::now() + FIRST_PATIENCE))
        };
        std::thread::spawn(asking).join().unwrap_or(Err(SpireError::Api(ApiError::Ended)))
    }

    async fn ask_until(&self, end: Instant) -> Result<Box<Material>, SpireError> {
        let mut retry = Retry::default();
        let mut told = false;
        loop {
            let asked = async {
                let mut answers = api::fetch(&self.socket).await?;
                self.judge(&answers.next().await?, None)
            };
            let error = match tokio::time::timeout_at(end, asked).await {
                Ok(Err(error)) => error,
                Ok(found) => return found,
                Err(_) => return Err(SpireError::Api(ApiError::Ended)),
            };
            let later = Instant::now() + retry.wait();
            if later >= end || matches!(error, SpireError::Identity(_) | SpireError::NoSvid { .. }) {
                return Err(error);
            }
            if !std::mem::replace(&mut told, true) {
                let patience = FIRST_PATIENCE.as_secs();
                tracing::warn!(%error, "no identity yet; the SPIRE agent is asked again for up to {patience} s");
            }
            tokio::time::sleep_until(later).await;
        }
    }

    /// Sends every update to `updates`, and asks again when the stream ends, until nobody listens. `id` is who the workload
    /// is: of several SVIDs, that one is taken.
    pub(crate) async fn follow(self, id: SpiffeId, updates: mpsc::Sender<Update>) {
        let mut retry = Retry::default();
        loop {
            let ended = match api::fetch(&self.socket).await {
                Ok(answers) => self.pass_on(answers, &id, &updates, &mut retry).await,
                Err(error) => error,
            };
            if updates.send(Err(ended.into())).await.is_err() {
                return;
            }
            tokio::time::sleep(retry.wait()).await;
        }
    }

    async fn pass_on(
        &self,
        mut answers: Answers,
        id: &SpiffeId,
        updates: &mpsc::Sender<Update>,
        retry: &mut Retry,
    ) -> ApiError {
        loop {
            let update = match answers.next().await {
                Ok(answer) => self.judge(&answer, Some(id)),
                Err(error) => return error,
            };
            *retry = Retry::default();
            if updates.send(update).await.is_err() {
                return ApiError::Ended;
            }
        }
    }

    /// The SVID that is ours among those of an answer: the one that is `id`, else the first of the trust domain (the first is
    /// the default one; SPIFFE Workload API, section 5.3).
    fn judge(&self, answer: &X509SvidResponse, id: Option<&SpiffeId>) -> Update {
        let ours = |svid: &&api::X509Svid| {
            SpiffeId::parse(&svid.spiffe_id)
                .is_ok_and(|given| given.trust_domain() == self.trust_domain.as_str())
        };
        let same = id.and_then(|id| answer.svids.iter().find(|svid| svid.spiffe_id == id.as_str()));
        let Some(svid) = same.or_else(|| answer.svids.iter().find(ours)) else {
            let given = answer.svids.iter().map(|svid| svid.spiffe_id.clone()).collect();
            return Err(SpireError::NoSvid { trust_domain: self.trust_domain.clone(), given });
        };
        let federation = answer.federated_bundles.iter().filter_map(|(name, der)| {
            // The Workload API says `spiffe://name`. What is no trust domain can vouch for nobody.
            let name = TrustDomain::parse(name.strip_prefix("spiffe://").unwrap_or(name)).ok()?;
            (name != self.trust_domain).then_some((name, der.as_slice()))
        });
        let set = DerSet {
            certificate: &svid.x509_svid,
            private_key: &svid.x509_svid_key,
            bundle: &svid.bundle,
            federation: federation.collect(),
        };
        let material = material_from_der(&set, NAME, &self.trust_domain, UnixTime::now())?;
        Ok(Box::new(material))
    }
}

/// How long to wait before the next attempt: full jitter, so that the workloads of a node do not ask in step.
struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(RETRY_FIRST)
    }
}

impl Retry {
    fn wait(&mut self) -> Duration {
        let most = self.0;
        self.0 = (most * 2).min(RETRY_MOST);
        most.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    use super::*;
    use crate::identity::Ca;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn ca(name: &str) -> Ca {
        Ca::new(&domain(name), Duration::from_secs(3600), UnixTime::now()).unwrap()
    }

    fn der(pem: &str) -> Vec<u8> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).flat_map(|der| der.unwrap().to_vec()).collect()
    }

    fn svid(ca: &Ca, id: &str) -> api::X509Svid {
        let id = SpiffeId::parse(id).unwrap();
        let issued = ca.issue(&id, Duration::from_secs(60), UnixTime::now()).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        api::X509Svid {
            spiffe_id: id.to_string(),
            x509_svid: der(&issued.cert_pem),
            x509_svid_key: key.secret_pkcs8_der().to_vec(),
            bundle: der(ca.cert_pem()),
        }
    }

    fn answer(svids: Vec<api::X509Svid>) -> X509SvidResponse {
        X509SvidResponse { svids, federated_bundles: HashMap::new() }
    }

    const WEB: &str = "spiffe://hospital.local/web";
    const OTHER: &str = "spiffe://hospital.local/other";

    /// If this fails, a workload with several identities changes into another one at a rotation.
    #[test]
    fn the_same_identity_is_taken_again_and_the_first_at_the_start() {
        let (own, partner) = (ca("hospital.local"), ca("partner.example"));
        let source = Source::new("/nowhere".into(), domain("hospital.local"));
        let several =
            answer(vec![svid(&partner, "spiffe://partner.example/web"), svid(&own, WEB), svid(&own, OTHER)]);
        let taken = |id: Option<&str>| {
            let id = id.map(|id| SpiffeId::parse(id).unwrap());
            source.judge(&several, id.as_ref()).unwrap().svid.id().to_string()
        };
        assert_eq!(taken(None), WEB);
        assert_eq!(taken(Some(OTHER)), OTHER);
        assert_eq!(taken(Some("spiffe://hospital.local/gone")), WEB);
        let none = source.judge(&answer(vec![]), None).unwrap_err();
        assert!(none.is_withdrawal() && none.code() == "withdrawn");
    }

    /// If this fails, a partner's CA vouches for our own workloads, or one that was taken back still vouches for its own.
    #[test]
    fn each_trust_domain_has_its_own_bundle_and_an_empty_one_vouches_for_nobody() {
        let (own, partner) = (ca("hospital.local"), ca("partner.example"));
        let source = Source::new("/nowhere".into(), domain("hospital.local"));
        let mut given = answer(vec![svid(&own, WEB)]);
        given.federated_bundles = [
            ("spiffe://partner.example", der(partner.cert_pem())),
            ("spiffe://former.example", Vec::new()),
            ("spiffe://hospital.local", der(partner.cert_pem())),
            ("spiffe://Not A Domain", der(partner.cert_pem())),
        ]
        .map(|(name, der)| (name.to_owned(), der))
        .into();
        let bundles = source.judge(&given, None).unwrap().bundles;
        let mut names: Vec<_> = bundles.trust_domains().map(|name| name.as_str().to_owned()).collect();
        names.sort();
        assert_eq!(names, ["former.example", "hospital.local", "partner.example"]);
        assert!(bundles.get("former.example").unwrap().is_empty());
        let foreign = svid(&partner, "spiffe://partner.example/x").x509_svid;
        let leaf = crate::identity::Leaf::parse(&foreign.clone().into()).unwrap();
        let usage = crate::identity::Usage::Both;
        assert!(bundles.verify(&leaf, &foreign.into(), &[], usage, UnixTime::now()).is_ok());
    }

    /// If this fails, what an agent gives is believed without a look.
    #[test]
    fn what_an_agent_gives_is_judged_like_any_file() {
        let (own, partner) = (ca("hospital.local"), ca("partner.example"));
        let source = Source::new("/nowhere".into(), domain("hospital.local"));
        let good = svid(&own, WEB);
        let refused = |svid: api::X509Svid| source.judge(&answer(vec![svid]), None).unwrap_err().code();
        let other_key = svid(&own, WEB).x509_svid_key;
        assert_eq!(refused(api::X509Svid { x509_svid_key: other_key, ..good.clone() }), "key_mismatch");
        assert_eq!(
            refused(api::X509Svid { x509_svid_key: vec![1, 2], ..good.clone() }),
            "private_key_unsupported"
        );
        assert_eq!(
            refused(api::X509Svid { bundle: der(partner.cert_pem()), ..good.clone() }),
            "untrusted_chain"
        );
        assert_eq!(refused(api::X509Svid { bundle: vec![], ..good.clone() }), "bundle_missing");
        assert_eq!(refused(api::X509Svid { x509_svid: vec![], ..good.clone() }), "certificate_missing");
        assert_eq!(
            refused(api::X509Svid { x509_svid: vec![0x30, 9, 9], ..good.clone() }),
            "certificate_malformed"
        );
        let lies = svid(&partner, "spiffe://partner.example/x");
        assert_eq!(refused(api::X509Svid { spiffe_id: WEB.into(), ..lies }), "wrong_trust_domain");
    }
}
