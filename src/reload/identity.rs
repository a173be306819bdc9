//! New SVIDs and bundles while the sidecar runs, from files or from a SPIRE agent.
//!
//! Owns what is in force and what the trail is told about it. A version that cannot be used is refused and told once; the last
//! good one stays until its certificate expires. An identity that was withdrawn is used for handshakes no more, after a grace
//! in which an agent that restarts can come back.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{INTERVAL, Outcome, Seen, now_ns};
use crate::audit::ControlEvent;
use crate::config::BundleEndpoint;
use crate::federation::{self, Fetched};
use crate::identity::{FileContents, FilePaths, Material, TrustDomain};
use crate::spire::{self, SpireError};
use crate::tls::TlsSettings;

/// How long an identity that the agent no longer gives is used for new connections.
const GRACE: Duration = Duration::from_secs(30);

/// The SVID's files and who waits for their versions.
pub(crate) struct IdentityFiles {
    paths: FilePaths,
    trust_domain: TrustDomain,
    in_use: InUse,
    seen: Seen<[u8; 32]>,
    in_force: [u8; 32],
    /// A version whose time has not come: it is judged again, and told once.
    early: Option<[u8; 32]>,
    /// What the files in force hold, without the bundles of endpoints.
    material: Material,
    endpoints: Vec<BundleEndpoint>,
}

/// What a SPIRE agent gives and who waits for it.
pub(crate) struct AgentIdentity {
    source: spire::Source,
    in_use: InUse,
    withdrawn: Withdrawn,
    /// The last complaint, which is told once.
    told: Option<String>,
}

enum Withdrawn {
    No,
    /// Used until then.
    At(Instant),
    Done,
}

/// The settings in force.
struct InUse {
    published: watch::Sender<Arc<TlsSettings>>,
    expiry_told: bool,
}

type Refused = (&'static str, String);

impl InUse {
    fn new(published: watch::Sender<Arc<TlsSettings>>) -> Self {
        Self { published, expiry_told: false }
    }

    fn publish(&mut self, material: Material) -> Result<Arc<TlsSettings>, Refused> {
        let settings = self.published.borrow().renewed(Arc::new(material));
        let settings = Arc::new(settings.map_err(|error| ("tls_settings", error.to_string()))?);
        let svid = &settings.material().svid;
        tracing::info!(spiffe_id = %svid.id(), not_after = svid.not_after(), "identity rotated");
        self.published.send_replace(settings.clone());
        Ok(settings)
    }

    /// Records, once, that the SVID in force has run out and nothing came in its place.
    fn tell_expiry(&mut self, outcome: &Outcome) {
        let expired = self.published.borrow().material().svid.not_after() < (now_ns() / 1_000_000_000) as i64;
        if expired && !self.expiry_told {
            tracing::error!(
                "the SVID has expired: no connection is accepted or made until there is a new one"
            );
            outcome.audit.record(lost("expired"));
        }
        self.expiry_told = expired;
    }

    /// No handshake succeeds with what is in force from now on.
    fn withdraw(&mut self) {
        let current = self.published.borrow().clone();
        let material = current.material();
        let (svid, bundles) = (material.svid.withdrawn(), material.bundles.clone());
        if let Ok(settings) = current.renewed(Arc::new(Material { svid, bundles })) {
            self.published.send_replace(Arc::new(settings));
        }
        self.expiry_told = true; // its end was told as what it was
    }
}

impl IdentityFiles {
    /// The files whose content has `digest` and is in force.
    pub(crate) fn new(
        paths: FilePaths,
        trust_domain: TrustDomain,
        digest: [u8; 32],
        endpoints: Vec<BundleEndpoint>,
        published: watch::Sender<Arc<TlsSettings>>,
    ) -> Self {
        let material = Material::clone(published.borrow().material());
        let in_use = InUse::new(published);
        let seen = Seen::new(digest);
        Self { paths, trust_domain, in_use, seen, in_force: digest, early: None, material, endpoints }
    }

    /// Reads the files again and again. Without an `outcome` (a collector has no trail of its own) the log alone is told.
    pub(crate) async fn run(mut self, outcome: Option<Outcome>) {
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let endpoints = std::mem::take(&mut self.endpoints);
        let (_asking, mut fetched, mut failed) =
            federation::follow(endpoints, &self.in_use.published.subscribe());
        loop {
            tick.tick().await;
            if fetched.has_changed().unwrap_or(false) {
                let bundles = fetched.borrow_and_update().clone();
                self.adopt(&bundles, outcome.as_ref());
            }
            if let Some(outcome) = &outcome
                && failed.has_changed().unwrap_or(false)
            {
                outcome.status.set("federation", failed.borrow_and_update().clone());
            }
            self.look(&fetched.borrow().clone(), outcome.as_ref());
        }
    }

    /// Puts what endpoints gave in force.
    fn adopt(&mut self, fetched: &Fetched, outcome: Option<&Outcome>) {
        let result = match self.in_use.publish(with(&self.material, fetched)) {
            Ok(_) => "loaded",
            Err((_, error)) => {
                tracing::error!("bundles of endpoints cannot be used: {error}");
                "refused"
            }
        };
        if let Some(outcome) = outcome {
            outcome.metrics.reloaded("federation", result);
        }
    }

    fn look(&mut self, fetched: &Fetched, outcome: Option<&Outcome>) {
        if let Some(outcome) = outcome {
            self.in_use.tell_expiry(outcome);
        }
        let contents = match FileContents::read(&self.paths) {
            Ok(contents) => contents,
            // In the middle of being replaced, or gone: the SVID's expiry will tell.
            Err(error) => return show(outcome, Some(error.to_string())),
        };
        match self.renew(&contents, fetched) {
            None if contents.digest() == self.in_force => show(outcome, None),
            None => {}
            Some(renewed) => tell(outcome, renewed),
        }
    }

    /// Publishes what the files hold, if it is new and good; if it is not good, why, as a code and for people. `None`
    /// while there is nothing new to judge.
    fn renew(
        &mut self,
        contents: &FileContents,
        fetched: &Fetched,
    ) -> Option<Result<Arc<TlsSettings>, Refused>> {
        let digest = contents.digest();
        if !self.seen.settled(digest) {
            return None;
        }
        let judged = contents.material(&self.trust_domain, UnixTime::now());
        let judged = judged.map_err(|error| (error.code(), error.to_string()));
        let renewed = judged.and_then(|material| {
            let published = self.in_use.publish(with(&material, fetched))?;
            self.material = material;
            Ok(published)
        });
        match &renewed {
            Ok(_) => self.in_force = digest,
            Err((code, _)) if code.ends_with("not_yet_valid") => {
                // A clock that is behind catches up, and nobody writes the files again for that.
                self.seen.judge_again(self.in_force, digest);
                if self.early.replace(digest) == Some(digest) {
                    return None;
                }
            }
            Err(_) => {}
        }
        Some(renewed)
    }
}

impl AgentIdentity {
    /// What `source` gives; it gave what `published` holds.
    pub(crate) fn new(source: spire::Source, published: watch::Sender<Arc<TlsSettings>>) -> Self {
        Self { source, in_use: InUse::new(published), withdrawn: Withdrawn::No, told: None }
    }

    /// Follows the agent, until the task is dropped. As [`IdentityFiles::run`].
    pub(crate) async fn run(mut self, outcome: Option<Outcome>) {
        let id = self.in_use.published.borrow().material().svid.id().clone();
        let (sender, mut updates) = mpsc::channel(1);
        let asking = self.source.clone().follow(id, sender);
        let heeding = async {
            let mut tick = tokio::time::interval(INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    update = updates.recv() => match update {
                        Some(update) => self.heed(update, outcome.as_ref()),
                        None => return,
                    },
                    _ = tick.tick() => self.look(outcome.as_ref()),
                }
            }
        };
        tokio::join!(asking, heeding);
    }

    fn heed(&mut self, update: spire::Update, outcome: Option<&Outcome>) {
        match update {
            Ok(material) => {
                let same = material.svid.leaf_sha256_hex()
                    == self.in_use.published.borrow().material().svid.leaf_sha256_hex();
                let back = !matches!(std::mem::replace(&mut self.withdrawn, Withdrawn::No), Withdrawn::No);
                let renewed = self.in_use.publish(*material);
                self.told = None;
                match renewed {
                    // The agent repeats itself after a reconnect, and when only a bundle changed.
                    Ok(_) if same && !back => show(outcome, None),
                    renewed => tell(outcome, renewed),
                }
            }
            Err(error) => {
                if error.is_withdrawal() && matches!(self.withdrawn, Withdrawn::No) {
                    self.withdrawn = Withdrawn::At(Instant::now() + GRACE);
                }
                self.complain(&error, outcome);
            }
        }
    }

    /// Tells once what is wrong. That the agent is away is nothing for the trail: what it gave stays good.
    fn complain(&mut self, error: &SpireError, outcome: Option<&Outcome>) {
        let text = error.to_string();
        if self.told.as_ref() == Some(&text) {
            return;
        }
        match error {
            SpireError::Api(error) if !matches!(error, spire::ApiError::Denied) => {
                tracing::warn!("{error}; what it gave last stays in use");
                show(outcome, Some(text.clone()));
            }
            _ => tell(outcome, Err((error.code(), text.clone()))),
        }
        self.told = Some(text);
    }

    fn look(&mut self, outcome: Option<&Outcome>) {
        if let Withdrawn::At(end) = self.withdrawn
            && Instant::now() >= end
        {
            tracing::error!(
                "the identity was withdrawn: no connection is accepted or made until there is a new one"
            );
            self.in_use.withdraw();
            self.withdrawn = Withdrawn::Done;
        }
        if let Some(outcome) = outcome {
            self.in_use.tell_expiry(outcome);
        }
    }
}

/// `material` with the bundles of endpoints, in whose place its files have older ones or none.
fn with(material: &Material, fetched: &Fetched) -> Material {
    let mut material = material.clone();
    for (trust_domain, bundle) in fetched.iter() {
        material.bundles.replace(trust_domain, bundle.clone());
    }
    material
}

/// Records what came of a new version.
fn tell(outcome: Option<&Outcome>, renewed: Result<Arc<TlsSettings>, Refused>) {
    let (event, result, error) = match renewed {
        Ok(settings) => {
            let svid = &settings.material().svid;
            let rotated = ControlEvent::IdentityRotated {
                time_unix_ns: now_ns(),
                spiffe_id: svid.id().to_string(),
                cert_sha256: svid.leaf_sha256_hex().to_owned(),
                not_after_unix_s: svid.not_after().max(0) as u64,
            };
            (rotated, "loaded", None)
        }
        Err((code, error)) => {
            tracing::error!("identity refused, the last good one stays: {error}");
            (lost(code), "refused", Some(error))
        }
    };
    if let Some(outcome) = outcome {
        outcome.audit.record(event);
        outcome.metrics.reloaded("identity", result);
        outcome.status.set("identity", error);
    }
}

fn show(outcome: Option<&Outcome>, error: Option<String>) {
    if let Some(outcome) = outcome {
        outcome.status.set("identity", error);
    }
}

fn lost(reason: &str) -> ControlEvent {
    ControlEvent::IdentityLost { time_unix_ns: now_ns(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{Forge, NOW, domain};
    use crate::tls::Posture;

    /// If this fails, a workload that was taken off the register keeps its access until its SVID expires, or loses it at
    /// once when an agent restarts.
    #[tokio::test(start_paused = true)]
    async fn a_withdrawn_identity_is_used_no_more_after_the_grace() {
        let ca = Forge::new(NOW);
        let first = TlsSettings::new(Arc::new(ca.material()), Posture::default()).unwrap();
        let published = watch::Sender::new(Arc::new(first));
        let source = spire::Source::new("/nowhere".into(), domain("hospital.local"));
        let mut agent = AgentIdentity::new(source, published.clone());
        let usable = || published.borrow().material().svid.not_after() > NOW as i64;
        let denied = || Err(SpireError::Api(spire::ApiError::Denied));
        agent.heed(denied(), None);
        tokio::time::advance(GRACE - Duration::from_millis(1)).await;
        agent.heed(denied(), None);
        agent.look(None);
        assert!(usable(), "within the grace, which is not begun anew");
        tokio::time::advance(Duration::from_millis(1)).await;
        agent.look(None);
        assert!(!usable());
        agent.heed(Ok(Box::new(ca.material())), None);
        agent.look(None);
        assert!(usable(), "given again");
        agent.heed(Err(SpireError::Api(spire::ApiError::Ended)), None);
        tokio::time::advance(100 * GRACE).await;
        agent.look(None);
        assert!(usable(), "an agent that is away has withdrawn nothing");
    }
}
