//! Why a request was decided as it was: the decision of the engine itself, and for every other rule the first condition
//! that did not hold.

use crate::identity::SpiffeId;
use crate::yaml::{self, Mark};

use super::compile::{CompiledBinding, CompiledDeny, CompiledPermission, Template};
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
    /// It is in shadow: it says what it would do, and does nothing.
    pub shadow: bool,
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
    if let Some(listener) = request.tcp_listener() {
        let decision = policy.decide_tcp(&grants, listener);
        let candidates = candidates(policy, id, &grants, Asked::Tcp(listener), now);
        return Explanation { decision, path: None, host: None, roles, candidates };
    }
    let raw = request.raw(policy.default_host());
    let admitted = match admit(&raw, policy.path_rules()) {
        Ok(admitted) => admitted,
        Err(reason) => {
            let decision = policy.reject(&raw, reason);
            return Explanation { decision, path: None, host: None, roles, candidates: Vec::new() };
        }
    };
    let decision = policy.decide(&grants, &admitted);
    let looked = !matches!(decision.unshadowed().reason, Reason::Health | Reason::UnknownHost);
    let asked = Asked::Http(&admitted);
    let candidates = if looked { candidates(policy, id, &grants, asked, now) } else { Vec::new() };
    let (path, host) = (Some(admitted.path.into_owned()), Some(admitted.host.into_owned()));
    Explanation { decision, path, host, roles, candidates }
}

#[derive(Clone, Copy)]
enum Asked<'a> {
    Http(&'a Admitted<'a>),
    /// A listener.
    Tcp(&'a str),
}

fn candidates<'p>(
    policy: &'p Policy,
    id: &SpiffeId,
    grants: &Grants,
    asked: Asked<'_>,
    now: UnixSeconds,
) -> Vec<Candidate<'p>> {
    let denies = policy.denies.iter().map(|deny| Candidate {
        role: None,
        rule: &deny.name,
        at: deny.at,
        note: deny.reason.as_deref(),
        shadow: deny.shadow,
        mismatch: deny_mismatch(policy, deny, id, asked, now),
    });
    let dormant = policy.dormant(id, now);
    let permissions = policy.permissions.iter().map(|permission| Candidate {
        role: Some(&policy.roles[permission.role as usize]),
        rule: &permission.name,
        at: permission.at,
        note: None,
        shadow: permission.shadow,
        mismatch: if grants.has_role(permission.role) {
            permission_mismatch(policy, permission, asked)
        } else {
            Some(without_role(policy, permission.role, &dormant, now))
        },
    });
    denies.chain(permissions).collect()
}

fn deny_mismatch(
    policy: &Policy,
    deny: &CompiledDeny,
    id: &SpiffeId,
    asked: Asked<'_>,
    now: UnixSeconds,
) -> Option<String> {
    if deny.until.is_some_and(|until| until <= now) {
        return Some("it has ended".to_owned());
    }
    if deny.identities.as_ref().is_some_and(|list| !list.iter().any(|pattern| pattern.matches(id))) {
        return Some("it concerns other identities".to_owned());
    }
    let request = match asked {
        Asked::Tcp(_) if deny.tcp => return None,
        Asked::Tcp(_) => return Some("it is about HTTP".to_owned()),
        Asked::Http(request) => request,
    };
    if !deny.methods.contains(request.method) {
        return Some(format!("it denies {}, not {}", deny.methods.names(), request.method.as_str()));
    }
    let paths = deny.paths.clone().map(|paths| &policy.templates[paths]);
    let matches = |paths: &[Template]| paths.iter().any(|template| template.0.matches_wide(&request.path));
    if paths.is_some_and(|paths| !matches(paths)) {
        return Some("no path of it matches".to_owned());
    }
    deny.check(request).err().map(|miss| miss.describe(&request.host))
}

/// Why an identity does not have a role, given the bindings that name it and are not in force.
fn without_role(policy: &Policy, role: u32, dormant: &[&CompiledBinding], now: UnixSeconds) -> String {
    let name = &policy.roles[role as usize];
    let Some(binding) = dormant.iter().find(|binding| binding.role == role) else {
        return format!("the identity does not have the role `{name}`");
    };
    match (binding.from.filter(|from| *from > now), binding.until) {
        (Some(from), _) => format!("the identity has the role `{name}` only from {} on", yaml::time(from.0)),
        (None, Some(until)) => format!("the identity had the role `{name}` until {}", yaml::time(until.0)),
        (None, None) => format!("the identity does not have the role `{name}`"),
    }
}

fn permission_mismatch(policy: &Policy, permission: &CompiledPermission, asked: Asked<'_>) -> Option<String> {
    let request = match (asked, &permission.tcp) {
        (Asked::Http(request), None) => request,
        (Asked::Http(_), Some(_)) => return Some("it is about TCP".to_owned()),
        (Asked::Tcp(_), None) => return Some("it is about HTTP".to_owned()),
        (Asked::Tcp(listener), Some(opened)) if opened.iter().any(|opened| opened == listener) => {
            return None;
        }
        (Asked::Tcp(listener), Some(opened)) => {
            return Some(format!("it opens {}, not {listener}", opened.join(", ")));
        }
    };
    if !permission.methods.contains(request.method) {
        return Some(format!("it grants {}, not {}", permission.methods.names(), request.method.as_str()));
    }
    let paths = &policy.templates[permission.paths.clone()];
    if paths.iter().any(|template| template.0.matches(&request.path)) {
        return permission.check(request).err().map(|miss| miss.describe(&request.host));
    }
    let near = paths.iter().find(|template| template.0.matches_wide(&request.path));
    Some(match near {
        Some(near) => {
            format!("`{}` matches only exactly: case, escapes, trailing '/' and '.' count", near.as_str())
        }
        None => "no path of it matches".to_owned(),
    })
}
