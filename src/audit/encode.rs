//! Turns events into canonical JSON, in pieces around the members `id`, `instance` and what connections have in common.
//!
//! Owns the order of members (RFC 8785 section 3.2.3: chain, checkpoint, close, conn, decision, gap, http | id, instance | open, policy,
//! quarantine, request, response, schema, subject, summary, svid, time, type). A worker encodes the pieces; the writer, who alone
//! knows the sequence number, puts `chain` before, `id` and `instance` between. Knows nothing of files or hashes.

use super::binding::Binding;
use super::clock::InstantText;
use super::event::{
    AccessComplete, AccessDecision, ConnFragment, ConnRejected, ControlEvent, Decision, EVENT_TYPES,
    HttpFacts, InstanceFacts, PolicyFragment, PostureFacts,
};
use super::frame::{Batch, Begun};
use super::json::Members;
use super::pseudonym::Pseudonym;

/// The schema that every event names.
pub(crate) const SCHEMA: &str = "phiward.audit/1";
const SCHEMA_MEMBER: &[u8] = br#""schema":"phiward.audit/1","#;

/// The most path parameters that an event holds; see `json::MAX_STRING`.
const MAX_PARAMS: usize = 64;

impl Batch {
    pub(crate) fn decision(&mut self, ev: &AccessDecision<'_>, clock: &mut InstantText) {
        let mut event = self.begin(Some(ev.conn));
        let mut head = Members::new(event.out());
        decision(&mut head, &ev.decision, ev.policy);
        if !ev.http.version.is_empty() {
            head.object("http", |m| http(m, &ev.http));
        }
        event.head_ends();
        request(&mut Members::new(event.out()), ev.request_id, ev.trace_id);
        end(event, b"", clock, ev.time_unix_ns, "access.decision");
    }

    pub(crate) fn complete(&mut self, ev: &AccessComplete<'_>, clock: &mut InstantText) {
        let mut event = self.begin(Some(ev.conn));
        event.head_ends();
        let mut tail = Members::new(event.out());
        request(&mut tail, ev.request_id, ev.trace_id);
        tail.object("response", |m| {
            m.flag("aborted", ev.response.aborted);
            m.number("duration_us", ev.response.duration_us);
            m.text_opt("reason", ev.response.reason);
            m.number("request_bytes", ev.response.request_bytes);
            m.number("response_bytes", ev.response.response_bytes);
            if ev.response.status != 0 {
                m.number("status", u64::from(ev.response.status));
            }
        });
        end(event, b"", clock, ev.time_unix_ns, "access.complete");
    }

    pub(crate) fn conn_rejected(
        &mut self,
        ev: &ConnRejected<'_>,
        conn: &ConnFragment,
        clock: &mut InstantText,
    ) {
        let mut event = self.begin(Some(conn));
        decision(&mut Members::new(event.out()), &ev.decision(), None);
        event.head_ends();
        end(event, b"", clock, ev.time_unix_ns, "conn.rejected");
    }

    /// A summary: the members before `id` and the subject as they were encoded before, and what was counted.
    pub(crate) fn summary(
        &mut self,
        (head, subject): (&[u8], &[u8]),
        clock: &mut InstantText,
        time: u64,
        counted: impl FnOnce(&mut Members<'_>),
    ) {
        let mut event = self.begin(None);
        event.out().extend_from_slice(head);
        event.head_ends();
        let mut middle = subject.to_vec();
        Members::new(&mut middle).object("summary", counted);
        end(event, &middle, clock, time, "audit.summary");
    }

    pub(crate) fn control(&mut self, ev: &ControlEvent, clock: &mut InstantText) {
        let mut event = self.begin(None);
        event.head_ends();
        match ev {
            ControlEvent::PolicyLoaded { time_unix_ns, revision, sha256 } => {
                Members::new(event.out()).object("policy", |m| {
                    m.text_opt("revision", revision.as_deref());
                    m.text("sha256", sha256);
                });
                end(event, b"", clock, *time_unix_ns, "policy.loaded");
            }
            ControlEvent::PolicyShadow { time_unix_ns, revision, sha256 } => {
                Members::new(event.out()).object("policy", |m| {
                    m.text("revision", revision);
                    m.text("sha256", sha256);
                });
                end(event, b"", clock, *time_unix_ns, "policy.shadow");
            }
            ControlEvent::PolicyRefused { time_unix_ns, sha256, errors, first_at } => {
                Members::new(event.out()).object("policy", |m| {
                    if let Some((_, column)) = first_at {
                        m.number("column", *column);
                    }
                    m.number("errors", *errors);
                    if let Some((line, _)) = first_at {
                        m.number("line", *line);
                    }
                    m.text_opt("sha256", sha256.as_deref());
                });
                end(event, b"", clock, *time_unix_ns, "policy.refused");
            }
            ControlEvent::IdentityRotated { time_unix_ns, spiffe_id, cert_sha256, not_after_unix_s } => {
                let mut svid = Vec::with_capacity(256);
                Members::new(&mut svid).object("svid", |m| {
                    m.text("cert_sha256", cert_sha256);
                    let not_after = not_after_unix_s.saturating_mul(1_000_000_000);
                    m.plain("not_after", |out| InstantText::new().write(out, not_after));
                    m.text("spiffe_id", spiffe_id);
                });
                end(event, &svid, clock, *time_unix_ns, "identity.rotated");
            }
            ControlEvent::IdentityLost { time_unix_ns, reason } => {
                let mut svid = Vec::with_capacity(64);
                Members::new(&mut svid).object("svid", |m| m.text("reason", reason));
                end(event, &svid, clock, *time_unix_ns, "identity.lost");
            }
        }
    }

    pub(crate) fn trail(&mut self, ev: &TrailEvent, clock: &mut InstantText, now_unix_ns: u64) {
        let mut event = self.begin(None);
        let out = event.out();
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
                m.plain("from", |out| InstantText::new().write(out, *from_unix_ns));
                m.plain("to", |out| InstantText::new().write(out, *to_unix_ns));
            });
        }
        event.head_ends();
        let kind = match ev {
            TrailEvent::Open { recovery, lost_bytes, recovered, previous, key, tls } => {
                Members::new(event.out()).object("open", |m| {
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
                Members::new(event.out()).object("quarantine", |m| {
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
        end(event, b"", clock, now_unix_ns, kind);
    }
}

/// Ends an event with the members that all end with; `summary_or_svid`, and a subject that is not of a connection, stand between `schema` and
/// `time` in canonical order.
fn end(mut event: Begun<'_>, summary_or_svid: &[u8], clock: &mut InstantText, time: u64, kind: &'static str) {
    debug_assert!(EVENT_TYPES.contains(&kind), "{kind} is not in the schema");
    event.out().extend_from_slice(SCHEMA_MEMBER);
    event.subject_belongs_here();
    let out = event.out();
    out.extend_from_slice(summary_or_svid);
    out.extend_from_slice(b"\"time\":\"");
    clock.write(out, time);
    out.extend_from_slice(b"\",\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\"}");
    event.end();
}

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

/// The member `instance` with its comma.
pub(crate) fn instance(facts: &InstanceFacts) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    Members::new(&mut out).object("instance", |m| {
        m.text("namespace", &facts.namespace);
        m.text_opt("node", facts.node.as_deref());
        m.text_opt("pod", facts.pod.as_deref());
        m.text("service", &facts.service);
        m.text_opt("spiffe_id", facts.spiffe_id.as_deref());
        m.text("version", &facts.version);
    });
    out
}

/// The member `decision`.
pub(crate) fn decision(m: &mut Members<'_>, decision: &Decision<'_>, policy: Option<&PolicyFragment>) {
    m.object("decision", |m| {
        m.code("outcome", decision.outcome);
        m.fragment(policy.map_or("", |policy| &policy.0));
        m.code("reason", decision.reason);
        m.text_opt("role", decision.role);
        m.text_opt("rule", decision.rule);
        if let Some(shadow) = &decision.shadow {
            m.object("shadow", |m| {
                m.text("outcome", shadow.outcome);
                m.text("reason", shadow.reason);
                m.text_opt("rule", shadow.rule);
            });
        }
    });
}

fn request(m: &mut Members<'_>, id: &str, trace_id: Option<&str>) {
    m.object("request", |m| {
        m.text("id", id);
        m.text_opt("trace_id", trace_id);
    });
}

fn http(m: &mut Members<'_>, facts: &HttpFacts<'_>) {
    m.text_opt("host", facts.host);
    if let Some(host) = facts.host_h {
        m.plain("host_h", |out| host.write(out));
    }
    m.text_opt("method", facts.method);
    if !facts.params.is_empty() {
        m.object("params", |m| params(m, facts.params));
    }
    if !facts.query_names.is_empty() {
        m.texts("query_names", &facts.query_names[..facts.query_names.len().min(MAX_PARAMS)]);
    }
    m.text_opt("service", facts.service);
    if let Some(target) = facts.target_h {
        m.plain("target_h", |out| target.write(out));
    }
    m.text_opt("template", facts.template);
    m.code("version", facts.version);
}

/// Writes the first [`MAX_PARAMS`] parameters by name, each name once: the next greater name is looked for each time, which for the handful of
/// parameters of a path is cheaper than a sorted copy and allocates nothing.
fn params(m: &mut Members<'_>, params: &[(&str, Pseudonym)]) {
    let params = &params[..params.len().min(MAX_PARAMS)];
    let mut last: Option<&str> = None;
    let by_utf16 = |a: &str, b: &str| a.encode_utf16().cmp(b.encode_utf16());
    loop {
        let next = params
            .iter()
            .filter(|(name, _)| last.is_none_or(|last| by_utf16(name, last).is_gt()))
            .min_by(|a, b| by_utf16(a.0, b.0));
        let Some((name, pseudonym)) = next else { break };
        m.plain_dynamic(name, |out| pseudonym.write(out));
        last = Some(name);
    }
}

#[cfg(test)]
mod tests;
