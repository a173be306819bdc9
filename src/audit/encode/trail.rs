//! What the trail tells of itself: its beginning and end, what it signs, and what it could not record or deliver.

use super::{Pieces, Speller};
use crate::audit::binding::Binding;
use crate::audit::clock::InstantText;
use crate::audit::event::PostureFacts;
use crate::audit::json::Members;

/// The events that the trail writes about itself.
pub(crate) enum TrailEvent {
    /// The first of an epoch: what was found in the spool, and the end of the epoch before.
    Open {
        recovery: &'static str,
        lost_bytes: u64,
        recovered: u64,
        previous: Option<Previous>,
        key: Option<OpenKey>,
        tls: Option<PostureFacts>,
    },
    /// What the trail says of itself, signed.
    Checkpoint(Sealed),
    /// The last of an epoch that ended by intent.
    Close { reason: &'static str, checkpoint: Option<Sealed> },
    /// What was let pass or refused while the spool took no events.
    Gap { from_unix_ns: u64, to_unix_ns: u64, allowed: u64, denied: u64 },
    /// What a sink refused for good and was set aside.
    Quarantine {
        sink: String,
        reason: &'static str,
        status: Option<u16>,
        first_id: String,
        last_id: String,
        events: u64,
    },
}

/// The key that signs an epoch's checkpoints.
pub(crate) struct OpenKey {
    /// As a verifier key.
    pub(crate) verifier: String,
    /// Who vouches for it; absent where the workload has no SVID.
    pub(crate) binding: Option<Binding>,
}

/// A checkpoint of the records before the event that holds it.
pub(crate) struct Sealed {
    /// How many they are.
    pub(crate) size: u64,
    /// The signed note.
    pub(crate) note: String,
    /// The roots of the perfect subtrees over them, in hexadecimal: from here on a reader needs no earlier record.
    pub(crate) subtrees: Vec<String>,
    /// What collectors have signed for since the last checkpoint, by the name of the sink, in order.
    pub(crate) receipts: Vec<(String, String)>,
}

impl Sealed {
    fn write(&self, m: &mut Members<'_>) {
        m.text("note", &self.note);
        if !self.receipts.is_empty() {
            m.object("receipts", |m| {
                for (sink, receipt) in &self.receipts {
                    m.text_dynamic(sink, receipt);
                }
            });
        }
        m.number("size", self.size);
        m.codes("subtrees", &self.subtrees);
    }
}

/// The last record of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Previous {
    pub(crate) epoch: String,
    pub(crate) seq: u64,
    pub(crate) hash: String,
}

impl Speller {
    /// What the trail tells of itself.
    pub(crate) fn trail(&mut self, ev: &TrailEvent, now_unix_ns: u64) -> Pieces<'_> {
        self.begin();
        let out = &mut self.bytes;
        match ev {
            TrailEvent::Checkpoint(sealed) => Members::new(out).object("checkpoint", |m| sealed.write(m)),
            TrailEvent::Close { reason, checkpoint } => Members::new(out).object("close", |m| {
                if let Some(sealed) = checkpoint {
                    m.object("checkpoint", |m| sealed.write(m));
                }
                m.text("reason", reason);
            }),
            _ => {}
        }
        if let TrailEvent::Gap { from_unix_ns, to_unix_ns, allowed, denied } = ev {
            Members::new(out).object("gap", |m| {
                m.number("allowed", *allowed);
                m.number("denied", *denied);
                m.plain("from", |out| InstantText::default().write(out, *from_unix_ns));
                m.plain("to", |out| InstantText::default().write(out, *to_unix_ns));
            });
        }
        self.head_ends();
        let out = &mut self.bytes;
        let kind = match ev {
            TrailEvent::Open { recovery, lost_bytes, recovered, previous, key, tls } => {
                Members::new(out).object("open", |m| {
                    m.text_opt("checkpoint_key", key.as_ref().map(|key| key.verifier.as_str()));
                    if *lost_bytes > 0 {
                        m.number("lost_bytes", *lost_bytes);
                    }
                    if let Some(previous) = previous {
                        m.object("previous", |m| {
                            m.text("epoch", &previous.epoch);
                            m.text("hash", &previous.hash);
                            m.number("seq", previous.seq);
                        });
                    }
                    if *recovered > 0 {
                        m.number("recovered", *recovered);
                    }
                    m.text("recovery", recovery);
                    if let Some(binding) = key.as_ref().and_then(|key| key.binding.as_ref()) {
                        m.object("svid", |m| {
                            m.codes("chain", &binding.chain);
                            m.number("scheme", u64::from(binding.scheme));
                            m.plain("signature", |out| out.extend_from_slice(binding.signature.as_bytes()));
                        });
                    }
                    if let Some(tls) = tls {
                        m.object("tls", |m| {
                            m.flag("fips", tls.fips);
                            m.code("min_version", tls.min_version);
                            m.code("post_quantum", tls.post_quantum);
                        });
                    }
                });
                "audit.open"
            }
            TrailEvent::Quarantine { sink, reason, status, first_id, last_id, events } => {
                Members::new(out).object("quarantine", |m| {
                    m.number("events", *events);
                    m.text("first_id", first_id);
                    m.text("last_id", last_id);
                    m.text("reason", reason);
                    m.text("sink", sink);
                    if let Some(status) = status {
                        m.number("status", u64::from(*status));
                    }
                });
                "audit.quarantine"
            }
            TrailEvent::Checkpoint(_) => "audit.checkpoint",
            TrailEvent::Close { .. } => "audit.close",
            TrailEvent::Gap { .. } => "audit.gap",
        };
        self.end(b"", now_unix_ns, kind);
        self.pieces([b""; 2])
    }
}
