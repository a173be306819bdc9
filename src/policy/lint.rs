//! What is legal in a policy and still probably a mistake. Inclusion of patterns is decidable, so these are facts about
//! the file and not guesses.

use super::document::{Deny, Document, Located, Permission, Role};
use super::method::MethodSet;
use super::pattern::PathPattern;
use super::{Finding, UnixSeconds};

/// The most pairs of patterns that are compared; a file beyond that is told so.
const MAX_COMPARISONS: usize = 20_000_000;

/// Every lint of `document` but those that need its tests to run.
pub(super) fn run(document: &Document, now: UnixSeconds) -> Vec<Finding> {
    let mut findings = Vec::new();
    dates(document, now, &mut findings);
    breadth(document, &mut findings);
    unbound(document, &mut findings);
    if comparisons(document) > MAX_COMPARISONS {
        let message = "the file has too many rules to look for those that can never match";
        findings.push(Finding::warning("not_compared", document.at, message));
        return findings;
    }
    for role in &document.roles {
        for (at, permission) in role.permissions.iter().enumerate() {
            findings.extend(denied(permission, &document.deny));
            findings.extend(shadowed(permission, &role.permissions[..at], role));
        }
    }
    for (at, deny) in document.deny.iter().enumerate() {
        findings.extend(shadowed_deny(deny, &document.deny[..at]));
    }
    findings
}

fn comparisons(document: &Document) -> usize {
    let denies: usize = document.deny.iter().map(|deny| deny.paths.as_ref().map_or(1, Vec::len)).sum();
    let squares = |role: &Role| {
        let paths: usize = role.permissions.iter().map(|permission| permission.paths.len()).sum();
        paths.saturating_mul(paths.saturating_add(denies))
    };
    document.roles.iter().map(squares).sum::<usize>().saturating_add(denies.saturating_mul(denies))
}

fn dates(document: &Document, now: UnixSeconds, findings: &mut Vec<Finding>) {
    let past = |until: &Option<Located<i64>>| {
        until.as_ref().filter(|until| until.value <= now.0).map(|until| until.at)
    };
    if let Some(at) = past(&document.review_due) {
        findings.push(Finding::warning("review_overdue", at, "the review of this policy is overdue"));
    }
    for at in document.bindings.iter().filter_map(|binding| past(&binding.until)) {
        let finding =
            Finding::warning("expired_binding", at, "this binding has ended: it grants nothing any more");
        findings.push(finding.hint("remove it, or set a later date"));
    }
    for (deny, at) in document.deny.iter().filter_map(|deny| Some((deny, past(&deny.until)?))) {
        let message = format!("the deny rule `{}` has ended: it denies nothing any more", deny.name.value);
        findings.push(Finding::warning("expired_deny", at, message).hint("remove it, or set a later date"));
    }
}

fn breadth(document: &Document, findings: &mut Vec<Finding>) {
    if document.hosts.is_none() {
        let finding = Finding::warning(
            "no_hosts",
            document.at,
            "without service.hosts, requests for any host are decided",
        );
        findings.push(finding.hint("list the names under which the service is called"));
    }
    for permission in document.roles.iter().flat_map(|role| &role.permissions) {
        for path in permission.paths.iter().filter(|path| path.value.is_everything()) {
            let message = format!("`{}` grants every path", permission.name.value);
            findings
                .push(Finding::warning("wide_path", path.at, message).hint("name the paths that are meant"));
        }
    }
    for identity in document.bindings.iter().flat_map(|binding| &binding.identities) {
        if identity.value.is_whole_domain() {
            let message = format!("this binds every workload of {}", identity.value.trust_domain());
            findings.push(
                Finding::warning("wide_identity", identity.at, message)
                    .hint("name the workloads that are meant"),
            );
        }
    }
}

fn unbound(document: &Document, findings: &mut Vec<Finding>) {
    let mut bound = vec![false; document.roles.len()];
    for binding in &document.bindings {
        bound[binding.role] = true;
    }
    for (role, _) in document.roles.iter().zip(bound).filter(|(_, bound)| !bound) {
        let message = format!("nobody has the role `{}`", role.name.value);
        findings.push(Finding::warning("unbound_role", role.name.at, message).hint("bind it or remove it"));
    }
}

/// A permission whose paths are all, or in part, denied to everyone for good.
fn denied(permission: &Permission, denies: &[Deny]) -> Vec<Finding> {
    let absolute = |deny: &&Deny| {
        deny.identities.is_none()
            && deny.until.is_none()
            && deny.methods.unwrap_or(MethodSet::ALL).includes(permission.methods)
            && includes_hosts(deny.hosts.as_deref(), permission.hosts.as_deref())
    };
    let denies: Vec<&Deny> = denies.iter().filter(absolute).collect();
    let denier = |path: &PathPattern| {
        denies.iter().find(|deny| match &deny.paths {
            None => true,
            Some(paths) => paths.iter().any(|wide| wide.value.includes_wide(path)),
        })
    };
    let found: Vec<_> =
        permission.paths.iter().filter_map(|path| Some((path, denier(&path.value)?))).collect();
    if found.len() == permission.paths.len() {
        let rules: Vec<_> = found.iter().map(|(_, deny)| deny.name.value.as_str()).collect();
        let message = format!(
            "`{}` can never allow anything: the deny rule `{}` covers all of it",
            permission.name.value, rules[0]
        );
        return vec![
            Finding::warning("unreachable", permission.name.at, message)
                .hint("remove it, or make the deny rule narrower"),
        ];
    }
    let partly = |(path, deny): &(&Located<PathPattern>, &&Deny)| {
        let message = format!(
            "`{}` is never allowed: the deny rule `{}` covers it",
            path.value.as_str(),
            deny.name.value
        );
        Finding::warning("unreachable_path", path.at, message)
            .hint("remove the path, or make the deny rule narrower")
    };
    found.iter().map(partly).collect()
}

/// A permission that another one of the same role, earlier in the file, makes superfluous.
fn shadowed(permission: &Permission, earlier: &[Permission], role: &Role) -> Option<Finding> {
    let wider = earlier.iter().find(|wider| {
        wider.methods.includes(permission.methods)
            && includes_hosts(wider.hosts.as_deref(), permission.hosts.as_deref())
            && covers_all(&wider.paths, &permission.paths, PathPattern::includes)
    })?;
    let message = format!(
        "`{}` adds nothing to the role `{}`: `{}` grants all of it",
        permission.name.value, role.name.value, wider.name.value
    );
    Some(
        Finding::warning("shadowed", permission.name.at, message)
            .hint("remove it, or make the earlier one narrower"),
    )
}

/// A deny rule that an earlier one makes superfluous.
fn shadowed_deny(deny: &Deny, earlier: &[Deny]) -> Option<Finding> {
    let wider = earlier.iter().find(|wider| {
        let lasts = match (&wider.until, &deny.until) {
            (None, _) => true,
            (Some(wider), Some(deny)) => wider.value >= deny.value,
            (Some(_), None) => false,
        };
        let paths = match (&wider.paths, &deny.paths) {
            (None, _) => true,
            (Some(wider), Some(paths)) => covers_all(wider, paths, PathPattern::includes_wide),
            (Some(_), None) => false,
        };
        let identities = match (&wider.identities, &deny.identities) {
            (None, _) => true,
            (Some(wider), Some(ids)) => {
                ids.iter().all(|id| wider.iter().any(|wider| wider.value.includes(&id.value)))
            }
            (Some(_), None) => false,
        };
        lasts
            && paths
            && identities
            && wider.methods.unwrap_or(MethodSet::ALL).includes(deny.methods.unwrap_or(MethodSet::ALL))
            && includes_hosts(wider.hosts.as_deref(), deny.hosts.as_deref())
    })?;
    let message =
        format!("the deny rule `{}` adds nothing: `{}` covers all of it", deny.name.value, wider.name.value);
    Some(Finding::warning("shadowed_deny", deny.name.at, message).hint("remove one of the two"))
}

fn covers_all(
    wider: &[Located<PathPattern>],
    paths: &[Located<PathPattern>],
    includes: fn(&PathPattern, &PathPattern) -> bool,
) -> bool {
    paths.iter().all(|path| wider.iter().any(|wider| includes(&wider.value, &path.value)))
}

/// True when a rule for the hosts `wider` holds wherever one for `hosts` does; none means any host.
fn includes_hosts(wider: Option<&[Located<String>]>, hosts: Option<&[Located<String>]>) -> bool {
    match (wider, hosts) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wider), Some(hosts)) => {
            hosts.iter().all(|host| wider.iter().any(|wider| wider.value == host.value))
        }
    }
}
