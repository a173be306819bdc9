//! Who sends, and whose records they may bring.
//!
//! Owns the rule that binds a record to the TLS peer: `instance.spiffe_id` must be the sender's. A relay, which the
//! configuration names, may bring those of others. Refuses to know how a peer was verified.

use std::borrow::Cow;

use serde::Deserialize;

use crate::identity::SpiffeId;

/// The sender of a connection's batches.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    /// `None` on plain HTTP, where nobody shows who they are and so nobody is bound.
    id: Option<SpiffeId>,
    is_relay: bool,
}

impl Sender {
    /// A peer that has shown its SVID.
    pub(crate) fn verified(id: SpiffeId, relays: &[SpiffeId]) -> Self {
        let is_relay = relays.contains(&id);
        Self { id: Some(id), is_relay }
    }

    /// A peer without TLS.
    pub(crate) fn unknown() -> Self {
        Self { id: None, is_relay: false }
    }

    /// Whether it may bring what `writer` has written.
    pub(crate) fn may_bring(&self, writer: &str) -> bool {
        self.is_relay || self.id.as_ref().is_none_or(|id| id.as_str() == writer)
    }

    /// For evidence and the log.
    pub(crate) fn name(&self) -> &str {
        self.id.as_ref().map_or("unknown", SpiffeId::as_str)
    }
}

/// The `spiffe_id` in a record's member `instance`; empty when there is none.
pub(crate) fn writer_of(instance: &str) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Instance<'l> {
        #[serde(borrow)]
        spiffe_id: Option<Cow<'l, str>>,
    }
    // What names nobody was written by nobody, and no sender is nobody.
    let instance: Option<Instance<'_>> = serde_json::from_str(instance).ok();
    instance.and_then(|instance| instance.spiffe_id).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, what names no writer belongs to whoever brings it.
    #[test]
    fn what_names_nobody_was_written_by_nobody() {
        assert_eq!(writer_of(r#"{"namespace":"clinic","spiffe_id":"b"}"#), "b");
        for nobody in ["{}", r#"{"spiffe_id":7}"#, r#"{"x":{"spiffe_id":"b"}}"#, "x", ""] {
            assert_eq!(writer_of(nobody), "", "{nobody}");
        }
    }

    /// If this fails, a workload brings records in another's name, or a relay is refused.
    #[test]
    fn a_sender_brings_its_own_and_a_relay_everybodys() {
        let id = |name: &str| SpiffeId::parse(&format!("spiffe://hospital.local/{name}")).unwrap();
        let web = Sender::verified(id("web"), &[id("relay")]);
        assert!(web.may_bring("spiffe://hospital.local/web"));
        assert!(!web.may_bring("spiffe://hospital.local/records") && !web.may_bring(""));
        assert!(Sender::verified(id("relay"), &[id("relay")]).may_bring("spiffe://hospital.local/records"));
    }
}
