//! Parts of a file that take back what other parts give, and identities that cannot reach the service at all.

use std::collections::BTreeMap;

use crate::identity::TrustDomain;

use super::compile::CompiledPermission;
use super::document::{Deny, Document};
use super::{Finding, Policy, UnixSeconds};

/// How many pairs of permissions are compared at most: a fraction of a second.
const MAX_COMPARISONS: usize = 5_000_000;

/// Looks for both in `document`, from which `policy` was compiled. `known` are the trust domains whose identities can reach
/// the service, when that is known.
pub(super) fn run(
    document: &Document,
    policy: &Policy,
    now: UnixSeconds,
    known: Option<&[TrustDomain]>,
) -> Vec<Finding> {
    let mut findings = denied_bindings(document, now);
    findings.extend(void_limits(policy));
    if let Some(known) = known {
        findings.extend(unknown_domains(document, known));
    }
    findings
}

/// Permissions whose limits another one of the same role, later in the file, lifts. (One that comes earlier makes the
/// whole permission superfluous, which is another finding.)
fn void_limits(policy: &Policy) -> Vec<Finding> {
    let mut budget = MAX_COMPARISONS;
    let is_limited =
        |permission: &CompiledPermission| !permission.headers.is_empty() || permission.query.is_some();
    let limited = (0..).zip(&policy.permissions).filter(|(_, rule)| is_limited(rule) && !rule.shadow);
    let found = limited.filter_map(|(rule, permission)| {
        let wider = wider_after(policy, rule, permission, &mut budget)?;
        let (name, wider) = (&permission.name, &policy.permissions[wider as usize].name);
        let message = format!(
            "the limits of `{name}` never matter: `{wider}` grants all of it, within wider limits or none"
        );
        let finding = Finding::warning("void_limits", permission.at, message);
        Some(finding.hint("remove one of the two, or give both the limits"))
    });
    found.collect()
}

/// The first permission after `rule` that grants all of it, for every path of it.
fn wider_after(
    policy: &Policy,
    rule: u32,
    permission: &CompiledPermission,
    budget: &mut usize,
) -> Option<u32> {
    let mut common: Option<Vec<u32>> = None;
    for template in &policy.templates[permission.paths.clone()] {
        let mut wider = Vec::new();
        policy.allow_tree.walk_including(&template.0, &mut |ends| {
            let first = ends.partition_point(|end| (end.group, end.rule) <= (permission.role, rule));
            for end in ends[first..].iter().take_while(|end| end.group == permission.role) {
                let Some(left) = budget.checked_sub(1) else { return };
                *budget = left;
                let other = &policy.permissions[end.rule as usize];
                let is_wider = !other.shadow
                    && other.methods.includes(permission.methods)
                    && other.conditions_include(permission);
                wider.extend(is_wider.then_some(end.rule));
            }
        });
        wider.retain(|rule| common.as_ref().is_none_or(|common| common.contains(rule)));
        common = Some(wider);
    }
    common?.into_iter().min()
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
