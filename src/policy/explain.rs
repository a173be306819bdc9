//! Why a request was decided as it was: the decision of the engine itself, and for every other rule the first condition
//! that did not hold.

use crate::identity::SpiffeId;
use crate::yaml::Mark;

use super::compile::{CompiledDeny, CompiledPermission, names};
use super::{Admitted, Decision, Grants, Policy, Reason, Request, UnixSeconds, admit};

/// A decision with its reasons.
#[derive(Debug)]
pub struct Explanation<'p> {
    /// What was decided, by the code that decides in production.
    pub decision: Decision<'p>,
    /// The path that was matched and would be forwarded; none when the request was rejected.
    pub path: Option<String>,
    /// The host that was matched.
    pub host: Option<String>,
    /// The roles that the identity has at that time.
    pub roles: Vec<&'p str>,
    /// Every deny rule and permission, in the order of the file; empty when no rule was looked at.
    pub candidates: Vec<Candidate<'p>>,
}

/// A rule that could have decided.
#[derive(Debug)]
pub struct Candidate<'p> {
    /// The role of a permission; none for a deny rule.
    pub role: Option<&'p str>,
    /// The rule's name.
    pub rule: &'p str,
    /// Where it stands in the file.
    pub at: Mark,
    /// What its author wrote as the reason of a deny rule.
    pub note: Option<&'p str>,
    /// None when it matches; else the first condition that does not hold.
    pub mismatch: Option<String>,
}

/// Decides `request` for `id` at `now`, and says why. `request` without a host is taken to be for [`Policy::default_host`].
pub fn explain<'p>(
    policy: &'p Policy,
    id: &SpiffeId,
    request: &Request,
    now: UnixSeconds,
) -> Explanation<'p> {
    let grants = policy.grants(id, now);
    let roles = (0..)
        .zip(&policy.roles)
        .filter(|(at, _)| grants.has_role(*at))
        .map(|(_, role)| role.as_str())
        .collect();
    let admitted = match admit(&request.raw(policy.default_host()), policy.path_rules()) {
        Ok(admitted) => admitted,
        Err(reason) => {
            let decision = Decision::rejected(reason);
            return Explanation { decision, path: None, host: None, roles, candidates: Vec::new() };
        }
    };
    let decision = policy.decide(&grants, &admitted);
    let looked = !matches!(decision.reason, Reason::Health | Reason::UnknownHost);
    let candidates = if looked { candidates(policy, id, &grants, &admitted, now) } else { Vec::new() };
    let (path, host) = (Some(admitted.path.into_owned()), Some(admitted.host.into_owned()));
    Explanation { decision, path, host, roles, candidates }
}

fn candidates<'p>(
    policy: &'p Policy,
    id: &SpiffeId,
    grants: &Grants,
    request: &Admitted<'_>,
    now: UnixSeconds,
) -> Vec<Candidate<'p>> {
    let denies = policy.denies.iter().map(|deny| Candidate {
        role: None,
        rule: &deny.name,
        at: deny.at,
        note: deny.reason.as_deref(),
        mismatch: deny_mismatch(policy, deny, id, request, now),
    });
    let permissions = policy.permissions.iter().map(|permission| Candidate {
        role: Some(&policy.roles[permission.role as usize]),
        rule: &permission.name,
        at: permission.at,
        note: None,
        mismatch: permission_mismatch(policy, permission, grants, request),
    });
    denies.chain(permissions).collect()
}

fn deny_mismatch(
    policy: &Policy,
    deny: &CompiledDeny,
    id: &SpiffeId,
    request: &Admitted<'_>,
    now: UnixSeconds,
) -> Option<String> {
    if deny.until.is_some_and(|until| until <= now) {
        return Some("it has ended".to_owned());
    }
    if deny.identities.as_ref().is_some_and(|list| !list.iter().any(|pattern| pattern.matches(id))) {
        return Some("it concerns other identities".to_owned());
    }
    if !deny.methods.contains(request.method) {
        return Some(format!("it denies {}, not {}", deny.methods.names(), request.method.as_str()));
    }
    if let Some(text) = host_mismatch(deny.hosts.as_deref(), request) {
        return Some(text);
    }
    let paths = &policy.templates[deny.paths.clone()?];
    if paths.iter().any(|template| template.0.matches_wide(&request.path)) {
        return None;
    }
    Some("no path of it matches".to_owned())
}

fn permission_mismatch(
    policy: &Policy,
    permission: &CompiledPermission,
    grants: &Grants,
    request: &Admitted<'_>,
) -> Option<String> {
    if !grants.has_role(permission.role) {
        let role = &policy.roles[permission.role as usize];
        return Some(format!("the identity does not have the role `{role}`"));
    }
    if !permission.methods.contains(request.method) {
        return Some(format!("it grants {}, not {}", permission.methods.names(), request.method.as_str()));
    }
    if let Some(text) = host_mismatch(permission.hosts.as_deref(), request) {
        return Some(text);
    }
    let paths = &policy.templates[permission.paths.clone()];
    if paths.iter().any(|template| template.0.matches(&request.path)) {
        return None;
    }
    let near = paths.iter().find(|template| template.0.matches_wide(&request.path));
    Some(match near {
        Some(near) => {
            format!("`{}` matches only exactly: case, escapes, trailing '/' and '.' count", near.as_str())
        }
        None => "no path of it matches".to_owned(),
    })
}

fn host_mismatch(hosts: Option<&[String]>, request: &Admitted<'_>) -> Option<String> {
    let hosts = hosts.filter(|hosts| !names(hosts, &request.host))?;
    Some(format!("it is for the host {}, not {}", hosts.join(" or "), request.host))
}
