//! When the writer says how far an epoch has come, and what it says.
//!
//! Owns the tree over the records of the epoch that is being written, its key, and the pace: every ten seconds, also when
//! nothing happens, so that a trail that stops to say so was stopped. Time is passed in.

use std::time::{Duration, Instant};

use super::binding::Binding;
use super::encode::{OpenKey, Sealed};
use super::event::InstanceFacts;
use super::merkle::{Hash, Range};
use super::note::EpochKey;
use crate::identity::SpiffeId;

/// The longest time between two checkpoints.
const EVERY: Duration = Duration::from_secs(10);
/// The most records between two, but for those of one batch.
const EVERY_RECORDS: u64 = 1000;

/// Seals the records of one epoch.
pub(crate) struct Sealer {
    tree: Range,
    /// Absent where the system gave no randomness for a key: the chain goes on without signatures then.
    key: Option<EpochKey>,
    sealed: u64,
    at: Instant,
}

impl Sealer {
    /// Begins an epoch.
    pub(crate) fn new(epoch: &str, instance: &InstanceFacts, now: Instant) -> Self {
        let key = EpochKey::generate(&origin(epoch, instance));
        if key.is_err() {
            tracing::error!(
                "the audit trail has no checkpoints: the system gave no randomness for their key"
            );
        }
        Self { tree: Range::default(), key: key.ok(), sealed: 0, at: now }
    }

    /// What `audit.open` says of the key.
    pub(crate) fn open_key(&self, instance: &InstanceFacts) -> Option<OpenKey> {
        let verifier = self.key.as_ref()?.verifier();
        let binding = instance.svid.as_ref().and_then(|svid| Binding::sign(svid, verifier));
        Some(OpenKey { verifier: verifier.to_text(), binding })
    }

    /// Takes the next record of the epoch.
    pub(crate) fn append(&mut self, record: Hash) {
        self.tree.append(record);
    }

    /// Whether a checkpoint is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.key.is_some() && (self.left(now).is_zero() || self.tree.end() - self.sealed >= EVERY_RECORDS)
    }

    /// How long until one is due when nothing happens.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        EVERY.saturating_sub(now.saturating_duration_since(self.at))
    }

    /// A checkpoint of all records so far.
    pub(crate) fn seal(&mut self, now: Instant) -> Option<Sealed> {
        let (key, size, root) = (self.key.as_ref()?, self.tree.end(), self.tree.root()?);
        (self.sealed, self.at) = (size, now);
        Some(Sealed {
            size,
            note: key.sign(size, &root),
            subtrees: self.tree.subtrees_hex(),
            receipts: Vec::new(),
        })
    }
}

/// `<trust domain>/phiward/<pod>/<epoch>`, which is also the name of the key. Where there is no pod the service stands for it.
fn origin(epoch: &str, instance: &InstanceFacts) -> String {
    let id = instance.spiffe_id.as_deref().and_then(|id| SpiffeId::parse(id).ok());
    let trust_domain = id.as_ref().map_or("unknown", SpiffeId::trust_domain);
    let pod = instance.pod.as_ref().unwrap_or(&instance.service);
    // The format has no place for spaces, plus signs and line ends in a name.
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    format!("{trust_domain}/phiward/{}/{epoch}", pod.chars().map(safe).take(253).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, the trail can be rewritten for longer than the documents say, or an idle one says nothing.
    #[test]
    fn checkpoints_come_in_time_and_in_number() {
        let begin = Instant::now();
        let mut sealer = Sealer::new("e", &InstanceFacts::default(), begin);
        assert!(!sealer.is_due(begin + EVERY / 2));
        assert_eq!(sealer.left(begin + EVERY / 2), EVERY / 2);
        assert!(sealer.is_due(begin + EVERY), "also when nothing happened");
        (0..EVERY_RECORDS - 1).for_each(|_| sealer.append([1; 32]));
        assert!(!sealer.is_due(begin));
        sealer.append([1; 32]);
        assert!(sealer.is_due(begin));
        assert_eq!(sealer.seal(begin).unwrap().size, EVERY_RECORDS);
        assert!(!sealer.is_due(begin) && sealer.is_due(begin + EVERY));
    }

    /// If this fails, a key's name cannot be read by tools for signed notes.
    #[test]
    fn the_origin_is_a_name() {
        let mut instance = InstanceFacts {
            service: "records".into(),
            spiffe_id: Some("spiffe://hospital.local/ns/clinic/sa/records".into()),
            ..InstanceFacts::default()
        };
        assert_eq!(origin("e", &instance), "hospital.local/phiward/records/e");
        instance.pod = Some("a b+c\n".into());
        assert_eq!(origin("e", &instance), "hospital.local/phiward/a-b-c-/e");
    }
}
