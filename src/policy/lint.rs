//! What is legal in a policy and still probably a mistake: dates that have passed, grants of everything, roles of nobody.

use super::document::{Document, Located};
use super::method::MethodSet;
use super::{Finding, UnixSeconds};

/// The lints that look at one part of `document` at a time.
pub(super) fn run(document: &Document, now: UnixSeconds) -> Vec<Finding> {
    let mut findings = Vec::new();
    dates(document, now, &mut findings);
    shadow(document, &mut findings);
    breadth(document, &mut findings);
    unbound(document, &mut findings);
    findings
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

fn shadow(document: &Document, findings: &mut Vec<Finding>) {
    if let Some(at) = document.shadow {
        let finding =
            Finding::warning("shadow_mode", at, "this policy decides and records, and blocks nothing");
        findings.push(
            finding.hint("write `mode: enforce` once the trail shows no `decision.shadow` that surprises"),
        );
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
    for permission in document.roles.iter().flat_map(|role| &role.permissions) {
        let deep = permission.paths.iter().find(|path| path.value.rest);
        if let Some(path) = deep.filter(|_| permission.methods.includes(MethodSet::ALL)) {
            let message =
                format!("`{}` grants every method under `{}`", permission.name.value, path.value.as_str());
            let finding = Finding::warning("wide_methods", permission.name.at, message);
            findings.push(finding.hint("name the methods that are meant"));
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
