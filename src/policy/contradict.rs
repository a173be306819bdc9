//! Parts of a file that take back what other parts give, and identities that cannot reach the service at all.

use std::collections::BTreeMap;

use crate::identity::TrustDomain;

use super::document::{Deny, Document};
use super::{Finding, UnixSeconds};

/// Looks for both in `document`. `known` are the trust domains whose identities can reach the service, when that is known.
pub(super) fn run(document: &Document, now: UnixSeconds, known: Option<&[TrustDomain]>) -> Vec<Finding> {
    let mut findings = denied_bindings(document, now);
    if let Some(known) = known {
        findings.extend(unknown_domains(document, known));
    }
    findings
}

/// Bindings of identities to which a deny rule denies everything.
fn denied_bindings(document: &Document, now: UnixSeconds) -> Vec<Finding> {
    let in_force = |deny: &Deny| deny.until.as_ref().is_none_or(|until| until.value > now.0);
    let total = |deny: &&Deny| {
        deny.paths.is_none() && deny.methods.is_none() && deny.hosts.is_none() && in_force(deny)
    };
    let total: Vec<_> = document.deny.iter().filter(total).collect();
    let identities = document.bindings.iter().flat_map(|binding| {
        binding.identities.iter().map(|identity| (&document.roles[binding.role].name.value, identity))
    });
    let denied = identities.filter_map(|(role, identity)| {
        let covers = |deny: &&&Deny| {
            deny.identities.iter().flatten().any(|pattern| pattern.value.includes(&identity.value))
        };
        let deny = &total.iter().find(covers)?.name.value;
        let message = format!(
            "this gives the role `{role}`, but the deny rule `{deny}` denies the same identity everything"
        );
        let finding = Finding::warning("denied_binding", identity.at, message);
        Some(finding.hint("remove one of the two, or give the deny rule an end"))
    });
    denied.collect()
}

fn unknown_domains(document: &Document, known: &[TrustDomain]) -> Vec<Finding> {
    let bound = document.bindings.iter().flat_map(|binding| &binding.identities);
    let denied = document.deny.iter().flat_map(|deny| deny.identities.iter().flatten());
    // Each domain is told once, at its first place: the same slip is often made in every line.
    let mut first = BTreeMap::new();
    for identity in bound.chain(denied) {
        let domain = identity.value.trust_domain();
        if !known.contains(domain) {
            let at = first.entry(domain.as_str()).or_insert(identity.at);
            *at = identity.at.min(*at);
        }
    }
    let names = known.iter().map(TrustDomain::as_str).collect::<Vec<_>>().join(", ");
    let findings = first.into_iter().map(|(domain, at)| {
        let message = format!("no identity of the trust domain `{domain}` can reach the service");
        let hint = format!("correct the name, or federate with it; the sidecar knows: {names}");
        Finding::warning("unknown_trust_domain", at, message).hint(hint)
    });
    findings.collect()
}
