//! Spells events out as canonical JSON, in pieces around the members `id`, `instance` and what connections have in common.
//!
//! Owns the order of members (RFC 8785 section 3.2.3: chain, checkpoint, close, conn, decision, gap, http | id, instance | open, policy,
//! quarantine, request, response, schema, subject, summary, svid, time, type). The writer, who alone knows the sequence number, puts `chain`
//! before, `id` and `instance` between. Knows nothing of files or hashes.

mod trail;

use super::brief::{Brief, Request};
use super::clock::InstantText;
use super::event::{
    ConnFragment, ConnRejected, ControlEvent, Decision, EVENT_TYPES, HttpFacts, InstanceFacts,
    PolicyFragment, ResponseFacts,
};
use super::frame::Told;
use super::json::Members;
use super::pseudonym::Pseudonym;
use super::route::HOLE;

pub(crate) use trail::{OpenKey, Previous, Sealed, TrailEvent};

/// The schema that every event names.
pub(crate) const SCHEMA: &str = "phiward.audit/1";
const SCHEMA_MEMBER: &[u8] = br#""schema":"phiward.audit/1","#;

/// The most path parameters that an event holds; see `json::MAX_STRING`.
const MAX_PARAMS: usize = 64;

/// An event that is spelled out, around the members `id` and `instance`, wherever it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pieces<'a> {
    /// Before `id`.
    pub(crate) head: [&'a [u8]; 2],
    /// After `instance`.
    pub(crate) tail: [&'a [u8]; 3],
}

/// The same, on its own and in two pieces.
pub(crate) type Event = (Vec<u8>, Vec<u8>);

/// Spells out one event after the other, each where the one before was.
#[derive(Default)]
pub(crate) struct Speller {
    bytes: Vec<u8>,
    /// What stands after `instance` begins here.
    tail: usize,
    /// What stands after `subject` begins here.
    after_subject: usize,
    clock: InstantText,
}

impl<'a> Pieces<'a> {
    pub(crate) fn of((head, tail): &'a Event) -> Self {
        Self { head: [head, b""], tail: [tail, b"", b""] }
    }

    pub(crate) fn to_event(self) -> Event {
        (self.head.concat(), self.tail.concat())
    }
}

impl Speller {
    /// An event as it was recorded; `None` where no worker has written it.
    pub(crate) fn told<'s>(&'s mut self, told: &Told<'s>) -> Option<Pieces<'s>> {
        self.begin();
        match Brief::of(told)? {
            Brief::Whole { head, tail } => return Some(Pieces { head: [b"", head], tail: [tail, b"", b""] }),
            Brief::Decision { request, pseudonyms } => {
                self.fill(told.route[0], pseudonyms)?;
                self.head_ends();
                self.request(&request);
                self.end(b"", request.time_unix_ns, "access.decision");
            }
            Brief::Complete { request, response } => {
                self.head_ends();
                self.request(&request);
                self.response(&response);
                self.end(b"", request.time_unix_ns, "access.complete");
            }
        }
        Some(self.pieces(told.conn))
    }

    /// A connection that was rejected.
    pub(crate) fn rejected<'s>(&'s mut self, ev: &ConnRejected<'_>, conn: &'s ConnFragment) -> Pieces<'s> {
        self.begin();
        decision(&mut Members::new(&mut self.bytes), &ev.decision(), None);
        self.head_ends();
        self.end(b"", ev.time_unix_ns, "conn.rejected");
        self.pieces([conn.common.first().as_bytes(), conn.common.second().as_bytes()])
    }

    /// A summary: the members before `id` and the subject as they were encoded before, and what was counted.
    pub(crate) fn summary(
        &mut self,
        (head, subject): (&[u8], &[u8]),
        time: u64,
        counted: impl FnOnce(&mut Members<'_>),
    ) -> Pieces<'_> {
        self.begin();
        self.bytes.extend_from_slice(head);
        self.head_ends();
        let mut middle = subject.to_vec();
        Members::new(&mut middle).object("summary", counted);
        self.end(&middle, time, "audit.summary");
        self.pieces([b""; 2])
    }

    /// What the control thread tells.
    pub(crate) fn control(&mut self, ev: &ControlEvent) -> Pieces<'_> {
        self.begin();
        self.head_ends();
        let out = &mut self.bytes;
        match ev {
            ControlEvent::PolicyLoaded { time_unix_ns, revision, sha256 } => {
                Members::new(out).object("policy", |m| {
                    m.text_opt("revision", revision.as_deref());
                    m.text("sha256", sha256);
                });
                self.end(b"", *time_unix_ns, "policy.loaded");
            }
            ControlEvent::PolicyShadow { time_unix_ns, revision, sha256 } => {
                Members::new(out).object("policy", |m| {
                    m.text("revision", revision);
                    m.text("sha256", sha256);
                });
                self.end(b"", *time_unix_ns, "policy.shadow");
            }
            ControlEvent::PolicyRefused { time_unix_ns, sha256, errors, first_at } => {
                Members::new(out).object("policy", |m| {
                    if let Some((_, column)) = first_at {
                        m.number("column", *column);
                    }
                    m.number("errors", *errors);
                    if let Some((line, _)) = first_at {
                        m.number("line", *line);
                    }
                    m.text_opt("sha256", sha256.as_deref());
                });
                self.end(b"", *time_unix_ns, "policy.refused");
            }
            ControlEvent::IdentityRotated { time_unix_ns, spiffe_id, cert_sha256, not_after_unix_s } => {
                let mut svid = Vec::with_capacity(256);
                Members::new(&mut svid).object("svid", |m| {
                    m.text("cert_sha256", cert_sha256);
                    let not_after = not_after_unix_s.saturating_mul(1_000_000_000);
                    m.plain("not_after", |out| InstantText::default().write(out, not_after));
                    m.text("spiffe_id", spiffe_id);
                });
                self.end(&svid, *time_unix_ns, "identity.rotated");
            }
            ControlEvent::IdentityLost { time_unix_ns, reason } => {
                let mut svid = Vec::with_capacity(64);
                Members::new(&mut svid).object("svid", |m| m.text("reason", reason));
                self.end(&svid, *time_unix_ns, "identity.lost");
            }
        }
        self.pieces([b""; 2])
    }

    fn begin(&mut self) {
        self.bytes.clear();
    }

    /// What follows stands after `instance`.
    fn head_ends(&mut self) {
        self.tail = self.bytes.len();
    }

    /// Writes what a way says, with the pseudonyms in its holes. `None` where there are more of the ones or of the others.
    fn fill(&mut self, route: &[u8], pseudonyms: &[[u8; Pseudonym::BYTES]]) -> Option<()> {
        let (mut rest, mut pseudonyms) = (route, pseudonyms.iter());
        while let Some(hole) = memchr::memchr(HOLE, rest) {
            self.bytes.extend_from_slice(&rest[..hole]);
            Pseudonym::from_bytes(*pseudonyms.next()?).write(&mut self.bytes);
            rest = &rest[hole + 1..];
        }
        self.bytes.extend_from_slice(rest);
        pseudonyms.next().is_none().then_some(())
    }

    fn request(&mut self, request: &Request<'_>) {
        Members::new(&mut self.bytes).object("request", |m| {
            m.text_bytes("id", request.id);
            if let Some(trace_id) = request.trace_id {
                m.text_bytes("trace_id", trace_id);
            }
        });
    }

    fn response(&mut self, response: &ResponseFacts<'_>) {
        Members::new(&mut self.bytes).object("response", |m| {
            m.flag("aborted", response.aborted);
            m.number("duration_us", response.duration_us);
            m.text_opt("reason", response.reason);
            m.number("request_bytes", response.request_bytes);
            m.number("response_bytes", response.response_bytes);
            if response.status != 0 {
                m.number("status", u64::from(response.status));
            }
        });
    }

    /// Ends an event with the members that all end with; `summary_or_svid`, and a subject that is not of a connection, stand between `schema`
    /// and `time` in canonical order.
    fn end(&mut self, summary_or_svid: &[u8], time: u64, kind: &'static str) {
        debug_assert!(EVENT_TYPES.contains(&kind), "{kind} is not in the schema");
        let out = &mut self.bytes;
        out.extend_from_slice(SCHEMA_MEMBER);
        self.after_subject = out.len();
        out.extend_from_slice(summary_or_svid);
        out.extend_from_slice(b"\"time\":\"");
        self.clock.write(out, time);
        out.extend_from_slice(b"\",\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\"}");
    }

    fn pieces<'s>(&'s self, [conn, subject]: [&'s [u8]; 2]) -> Pieces<'s> {
        let (head, rest) = self.bytes.split_at(self.tail);
        let (tail, after_subject) = rest.split_at(self.after_subject - self.tail);
        Pieces { head: [conn, head], tail: [tail, subject, after_subject] }
    }
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

/// The member `http`, if it is one, with what `hole` writes for each pseudonym; gives the order of the parameters'.
pub(crate) fn http(m: &mut Members<'_>, facts: &HttpFacts<'_>, hole: fn(&mut Vec<u8>)) -> Box<[u8]> {
    if !facts.is_said() {
        return Box::default();
    }
    let order = in_order(facts.params);
    m.object("http", |m| {
        m.text_opt("host", facts.host);
        if facts.host_h.is_some() {
            m.plain("host_h", hole);
        }
        m.text_opt("method", facts.method);
        if !order.is_empty() {
            let names = order.iter().filter_map(|at| facts.params.get(usize::from(*at)));
            m.object("params", |m| names.for_each(|(name, _)| m.plain_dynamic(name, hole)));
        }
        if !facts.query_names.is_empty() {
            m.texts("query_names", &facts.query_names[..facts.query_names.len().min(MAX_PARAMS)]);
        }
        m.text_opt("service", facts.service);
        if facts.target_h.is_some() {
            m.plain("target_h", hole);
        }
        m.text_opt("template", facts.template);
        m.code("version", facts.version);
    });
    order
}

/// The places of the first [`MAX_PARAMS`] parameters by name, each name once.
fn in_order(params: &[(&str, Pseudonym)]) -> Box<[u8]> {
    let name = |at: &u8| params[usize::from(*at)].0;
    let mut order: Vec<u8> = (0..params.len().min(MAX_PARAMS) as u8).collect();
    order.sort_by(|a, b| name(a).encode_utf16().cmp(name(b).encode_utf16())); // stable: the first of a name comes first
    order.dedup_by(|a, b| name(a) == name(b));
    order.into()
}

#[cfg(test)]
mod tests;
