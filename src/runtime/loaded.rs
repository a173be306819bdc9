//! What a configuration names, read and checked: the whole of `phiward check`, and the first half of `run`.

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use super::{StartError, shipping};
use crate::audit::{PseudonymKey, SpoolKey};
use crate::config::{BundleEndpoint, IdentityConfig, IdentitySource, SidecarConfig};
use crate::identity::{FileContents, FilePaths, TrustDomain};
use crate::policy::{Finding, Policy};
use crate::reload::{self, AgentIdentity, IdentityFiles, Outcome};
use crate::spire;
use crate::tls::{Posture, TlsSettings};
use crate::yaml;

/// Everything that a configuration names, read and checked, with nothing started.
pub struct Loaded {
    pub(super) config: SidecarConfig,
    pub(super) tls: TlsSettings,
    pub(super) origin: Origin,
    pub(super) policy: Option<(PathBuf, Vec<u8>, Policy)>,
    pub(super) pseudonyms: PseudonymKey,
    pub(super) spool_key: Option<Arc<SpoolKey>>,
}

impl Loaded {
    /// Reads what `config` names. `phiward check` ends here, `run` goes on from here.
    ///
    /// # Errors
    /// The first file that cannot be used, with everything that is wrong with it.
    pub fn load(config: SidecarConfig) -> Result<Self, StartError> {
        let (tls, origin) = load_identity(&config.identity, config.tls)?;
        let policy = config.policy.as_ref().map(load_policy).transpose()?;
        let pseudonyms = PseudonymKey::from_file(&config.audit.key_file)?;
        let spool_key = SpoolKey::from_files(&config.audit.spool_key_files)?;
        shipping::check(&config.audit.sinks)?;
        Ok(Self { config, tls, origin, policy, pseudonyms, spool_key })
    }

    /// One line each about what was loaded, for `phiward check`.
    pub fn summary(&self) -> Vec<String> {
        let svid = &self.tls.material().svid;
        let mut lines = vec![format!("identity {}", svid.id())];
        if let Some((_, _, policy)) = &self.policy {
            let mode = if policy.is_shadow() { ", in shadow mode: no request is refused" } else { "" };
            lines.push(format!("policy {} revision {}{mode}", policy.name(), policy.revision()));
        }
        if let Some(inbound) = &self.config.inbound {
            lines.push(format!("inbound {} listener(s)", inbound.listeners.len()));
        }
        if let Some(outbound) = &self.config.outbound {
            lines.push(format!("outbound {} service(s)", outbound.services.len()));
        }
        lines.push(format!("audit {} sink(s)", self.config.audit.sinks.len()));
        lines
    }
}

fn load_policy(path: &PathBuf) -> Result<(PathBuf, Vec<u8>, Policy), StartError> {
    let content =
        std::fs::read(path).map_err(|source| StartError::PolicyUnreadable { path: path.clone(), source })?;
    let policy = reload::judge(&content).map_err(|findings| {
        let problems: Vec<yaml::Problem> = findings.iter().map(Finding::to_problem).collect();
        let text = String::from_utf8_lossy(&content);
        StartError::PolicyInvalid(yaml::render(&path.display().to_string(), &text, &problems))
    })?;
    Ok((path.clone(), content, policy))
}

/// Where the identity in force came from, and its successors will.
pub(super) enum Origin {
    /// Files, the digest of what they held, and endpoints of other trust domains.
    Files(TrustDomain, FilePaths, [u8; 32], Vec<BundleEndpoint>),
    /// A SPIRE agent.
    Agent(spire::Source),
}

/// The first identity.
pub(super) fn load_identity(
    config: &IdentityConfig,
    posture: Posture,
) -> Result<(TlsSettings, Origin), StartError> {
    let trust_domain = config.trust_domain.clone();
    let (material, origin) = match &config.source {
        IdentitySource::Files(paths, endpoints) => {
            let contents = FileContents::read(paths)?;
            let material = contents.material(&trust_domain, UnixTime::now())?;
            (material, Origin::Files(trust_domain, paths.clone(), contents.digest(), endpoints.clone()))
        }
        IdentitySource::Spire(socket) => {
            let source = spire::Source::new(socket.clone(), trust_domain);
            (*source.first()?, Origin::Agent(source))
        }
    };
    Ok((TlsSettings::new(Arc::new(material), posture)?, origin))
}

impl Origin {
    /// Publishes each new identity, and tells `outcome` what came of it.
    pub(super) async fn renew(self, published: watch::Sender<Arc<TlsSettings>>, outcome: Option<Outcome>) {
        match self {
            Self::Files(trust_domain, paths, digest, endpoints) => {
                IdentityFiles::new(paths, trust_domain, digest, endpoints, published).run(outcome).await;
            }
            Self::Agent(source) => AgentIdentity::new(source, published).run(outcome).await,
        }
    }
}
