//! `audit report`: who reached what in a time, what was refused, and what became of the trail meanwhile.
//!
//! Owns what is counted and by what. Nothing is sampled: what is counted once (a record, an identity) is
//! remembered for it. Records are counted by their pseudonyms, so the account needs no key and tells no patient.
//! Checks no hash: who shows an account verifies the trail beside it.

use std::borrow::Cow;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::read;

/// What a trail tells of a time.
#[derive(Debug, Default, Serialize)]
pub struct Account {
    /// The events of that time.
    pub events: u64,
    /// The first and the last of them.
    pub first: Option<String>,
    /// The last.
    pub last: Option<String>,
    /// Requests by outcome: allow, deny, reject, limit, error.
    pub outcomes: BTreeMap<String, u64>,
    /// Who asked, by identity.
    pub identities: BTreeMap<String, Caller>,
    /// What was asked, and what came of it.
    pub access: Vec<Access>,
    /// Connections that never became an authenticated exchange, by reason.
    pub connections_refused: BTreeMap<String, u64>,
    /// Policies that were put in force or refused, by time.
    pub policies: Vec<PolicyChange>,
    /// What happened to the trail itself.
    pub trail: TrailFacts,
}

/// One identity.
#[derive(Debug, Default, Serialize)]
pub struct Caller {
    /// Its requests that were allowed.
    pub allowed: u64,
    /// And those that were not.
    pub refused: u64,
    /// Different records (sets of path parameters) that it was allowed to reach.
    pub records: u64,
    /// Whether the trail has no event of it from before.
    pub is_new: bool,
    #[serde(skip)]
    seen: HashSet<u64>,
}

/// Requests of one kind.
#[derive(Debug, Serialize)]
pub struct Access {
    /// What they have in common.
    #[serde(flatten)]
    pub kind: AccessKind,
    /// How many there were.
    pub requests: u64,
    /// How many different records they named.
    pub records: u64,
    /// The time of the first.
    pub first: String,
    /// The time of the last.
    pub last: String,
}

/// What requests are counted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AccessKind {
    /// The service whose sidecar decided.
    pub service: String,
    /// Who asked; empty when nobody could be told.
    pub identity: String,
    /// allow, deny, reject, limit or error.
    pub outcome: String,
    /// Why.
    pub reason: String,
    /// The role and the rule that decided, where one did.
    pub role: String,
    /// The rule.
    pub rule: String,
    /// The method.
    pub method: String,
    /// The path as the policy writes it.
    pub template: String,
}

/// A policy that was put in force, or was not.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PolicyChange {
    /// When.
    pub time: String,
    /// At which service.
    pub service: String,
    /// policy.loaded, policy.refused or policy.shadow.
    pub event: String,
    /// As its metadata names it.
    pub revision: String,
    /// Of its bytes.
    pub sha256: String,
}

/// What happened to the trail itself in that time.
#[derive(Debug, Default, Serialize)]
pub struct TrailFacts {
    /// Epochs that began: starts of a sidecar.
    pub opened: u64,
    /// Epochs that ended in order.
    pub closed: u64,
    /// Signed checkpoints.
    pub checkpoints: u64,
    /// Times in which requests were not recorded.
    pub gaps: u64,
    /// Requests that passed unrecorded in them.
    pub gap_allowed: u64,
    /// Requests that were refused unrecorded in them.
    pub gap_denied: u64,
    /// Events that a receiver refused for good and that were set aside.
    pub quarantines: u64,
    /// Times when a workload lost its identity.
    pub identities_lost: u64,
    /// Allowed requests whose end is not in the trail.
    pub without_end: u64,
}

/// Takes account of the events from `from` on and before `until`, both as events write a time.
///
/// # Errors
/// A file cannot be read, or there is no trail.
pub fn account(dir: &Path, from: Option<&str>, until: Option<&str>) -> io::Result<Account> {
    let mut taking = Taking::default();
    read::for_each(dir, |line| {
        // A damaged line counts nowhere; `verify` tells of it.
        let Ok(event) = serde_json::from_slice::<Event<'_>>(line) else { return Ok(()) };
        if from.is_some_and(|from| &*event.time < from) {
            taking.before(event);
        } else if until.is_none_or(|until| &*event.time < until) {
            taking.take(event);
        }
        Ok(())
    })?;
    Ok(taking.finish())
}

#[derive(Default)]
struct Taking {
    account: Account,
    access: BTreeMap<AccessKind, (Span, HashSet<u64>)>,
    policies: BTreeSet<PolicyChange>,
    /// Identities of events before the time.
    known: HashSet<String>,
    /// Allowed requests whose end has not come.
    open: HashSet<String>,
}

/// How many, and from when to when.
struct Span {
    requests: u64,
    first: String,
    last: String,
}

impl Taking {
    fn before(&mut self, event: Event<'_>) {
        if !event.subject.spiffe_id.is_empty() {
            self.known.insert(event.subject.spiffe_id);
        }
    }

    fn take(&mut self, event: Event<'_>) {
        let account = &mut self.account;
        account.events += 1;
        widen(&mut account.first, &mut account.last, &event.time);
        let trail = &mut account.trail;
        match &*event.kind {
            "access.decision" => self.decision(event),
            "access.complete" => drop(self.open.remove(&event.request.id)),
            "conn.rejected" => *account.connections_refused.entry(event.decision.reason).or_default() += 1,
            "audit.summary" => self.summary(event),
            "policy.loaded" | "policy.refused" | "policy.shadow" => self.policy(event),
            "identity.lost" => trail.identities_lost += 1,
            "audit.open" => trail.opened += 1,
            "audit.close" => trail.closed += 1,
            "audit.checkpoint" => trail.checkpoints += 1,
            "audit.quarantine" => trail.quarantines += 1,
            "audit.gap" => {
                trail.gaps += 1;
                trail.gap_allowed += event.gap.allowed;
                trail.gap_denied += event.gap.denied;
            }
            _ => {}
        }
    }

    fn decision(&mut self, event: Event<'_>) {
        let Event { time, subject, request, instance, http, decision, .. } = event;
        let allowed = decision.outcome == "allow";
        *self.account.outcomes.entry(decision.outcome.clone()).or_default() += 1;
        let record = (!http.params.is_empty()).then(|| hash_of(&http.params));
        if !subject.spiffe_id.is_empty() {
            let caller = self.account.identities.entry(subject.spiffe_id.clone()).or_default();
            *(if allowed { &mut caller.allowed } else { &mut caller.refused }) += 1;
            caller.seen.extend(record.filter(|_| allowed));
        }
        if allowed {
            self.open.insert(request.id);
        }
        let kind = kind_of(instance, subject, decision, http.method, http.template);
        let new = || (Span { requests: 0, first: time.to_string(), last: time.to_string() }, HashSet::new());
        let (span, records) = self.access.entry(kind).or_insert_with(new);
        span.requests += 1;
        if *time < *span.first {
            span.first = time.into_owned();
        } else if *time > *span.last {
            span.last = time.into_owned();
        }
        records.extend(record);
    }

    /// Denials that were counted: so many, of one kind.
    fn summary(&mut self, event: Event<'_>) {
        let Event { subject, instance, decision, summary, .. } = event;
        if summary.of == "conn.rejected" {
            *self.account.connections_refused.entry(decision.reason).or_default() += summary.count;
            return;
        }
        *self.account.outcomes.entry(decision.outcome.clone()).or_default() += summary.count;
        if !subject.spiffe_id.is_empty() {
            let caller = self.account.identities.entry(subject.spiffe_id.clone()).or_default();
            caller.refused += summary.count;
        }
        let template = match &summary.templates[..] {
            [one] if !summary.more_templates => one.clone(),
            _ => String::new(),
        };
        let kind = kind_of(instance, subject, decision, String::new(), template);
        let new = || {
            (Span { requests: 0, first: summary.first.clone(), last: summary.last.clone() }, HashSet::new())
        };
        let (span, _) = self.access.entry(kind).or_insert_with(new);
        span.requests += summary.count;
        span.first = span.first.clone().min(summary.first);
        span.last = span.last.clone().max(summary.last);
    }

    fn policy(&mut self, event: Event<'_>) {
        self.policies.insert(PolicyChange {
            time: event.time.into_owned(),
            service: event.instance.service,
            event: event.kind.into_owned(),
            revision: event.policy.revision,
            sha256: event.policy.sha256,
        });
    }

    fn finish(self) -> Account {
        let Self { mut account, access, policies, known, open } = self;
        for (id, caller) in &mut account.identities {
            caller.records = caller.seen.len() as u64;
            caller.is_new = !known.contains(id);
        }
        let rows = access.into_iter().map(|(kind, (Span { requests, first, last }, records))| Access {
            kind,
            requests,
            records: records.len() as u64,
            first,
            last,
        });
        account.access = rows.collect();
        account.policies = policies.into_iter().collect();
        account.trail.without_end = open.len() as u64;
        account
    }
}

fn kind_of(
    instance: Instance,
    subject: Subject,
    decision: Decision,
    method: String,
    template: String,
) -> AccessKind {
    let Decision { outcome, reason, role, rule } = decision;
    let (service, identity) = (instance.service, subject.spiffe_id);
    AccessKind { service, identity, outcome, reason, role, rule, method, template }
}

fn widen(first: &mut Option<String>, last: &mut Option<String>, time: &str) {
    if first.as_deref().is_none_or(|first| time < first) {
        *first = Some(time.to_owned());
    }
    if last.as_deref().is_none_or(|last| time > last) {
        *last = Some(time.to_owned());
    }
}

/// 64 bits of a set of parameters. Two of a million different ones share them once in 40 million times (n^2 / 2^65).
fn hash_of(params: &BTreeMap<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    params.hash(&mut hasher);
    hasher.finish()
}

/// The members of an event that are counted.
#[derive(Deserialize)]
struct Event<'l> {
    #[serde(borrow)]
    time: Cow<'l, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'l, str>,
    #[serde(default)]
    subject: Subject,
    #[serde(default)]
    request: Request,
    #[serde(default)]
    instance: Instance,
    #[serde(default)]
    http: Http,
    #[serde(default)]
    decision: Decision,
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    gap: Gap,
    #[serde(default)]
    summary: Summary,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subject {
    spiffe_id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Instance {
    service: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Http {
    method: String,
    template: String,
    params: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Decision {
    outcome: String,
    reason: String,
    role: String,
    rule: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Policy {
    revision: String,
    sha256: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Gap {
    allowed: u64,
    denied: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Summary {
    count: u64,
    first: String,
    last: String,
    more_templates: bool,
    of: String,
    templates: Vec<String>,
}
