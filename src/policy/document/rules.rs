//! Roles, bindings and deny rules.

use std::collections::HashSet;

use crate::yaml::{Day, Node, Value, closest};

use super::super::Finding;
use super::conditions;
use super::part::{Parts, is_name};
use super::{Binding, Deny, Located, MAX_RULES, Permission, Role};

const NOT_YET: &str =
    "leave the rule out until this version supports it: what cannot be checked must not be granted";

pub(super) fn roles(parts: &Parts<'_>, node: &Node) -> Option<Vec<Role>> {
    let mut roles = Vec::new();
    let mut count = 0;
    for entry in parts.reader.entries(node, "roles")? {
        if !is_name(&entry.key) {
            let hint =
                "a name has 1 to 64 letters, digits, '.', '-' or '_' and begins with a letter or digit";
            let message = format!("a role cannot be called `{}`", entry.key);
            parts.report(Finding::error("bad_name", entry.at, message).hint(hint));
        }
        let what = format!("role `{}`", entry.key);
        let items = parts.reader.nonempty_list(&entry.value, &what).unwrap_or_default();
        count += items.len();
        if !within_bounds(parts, node, "permissions", count) {
            return None;
        }
        let mut seen = HashSet::with_capacity(items.len());
        let each = format!("a permission of {what}");
        let permissions: Vec<_> =
            items.iter().filter_map(|item| permission(parts, item, (&what, &each), &mut seen)).collect();
        roles.push(Role { name: Located { at: entry.at, value: entry.key.clone() }, permissions });
    }
    Some(roles)
}

fn within_bounds(parts: &Parts<'_>, node: &Node, what: &str, count: usize) -> bool {
    if count > MAX_RULES {
        parts.reader.problem(node.at, format!("there are more than {MAX_RULES} {what}"));
    }
    count <= MAX_RULES
}

fn permission<'n>(
    parts: &Parts<'_>,
    node: &'n Node,
    (role, what): (&str, &str),
    seen: &mut HashSet<&'n str>,
) -> Option<Permission> {
    let mut fields = parts.reader.fields(node, what)?;
    let name = fields.required("name").and_then(|node| unique_name(parts, node, role, seen));
    let shadow = fields.optional("mode").is_some_and(|node| conditions::shadow(parts, node));
    let unsupported = ["fhir", "when", "max_response_bytes"];
    let refused = unsupported.into_iter().filter(|key| fields.unsupported(key, NOT_YET)).count();
    if let Some(node) = fields.optional("tcp") {
        let tcp = conditions::tcp(parts, node);
        for key in ["methods", "paths", "hosts", "headers", "query"] {
            if let Some(entry) = fields.entry(key) {
                let message = format!("a permission for TCP has no `{key}`");
                let hint = "a TCP stream has none of these; give HTTP a permission of its own";
                parts.reader.problem_with_hint(entry.at, message, hint);
            }
        }
        fields.finish();
        return Some(Permission { tcp: Some(tcp?), shadow, ..Permission::bare(name?) });
    }
    // Such a permission may well have neither methods nor paths; one error is enough.
    let mut field = |key| if refused > 0 { fields.optional(key) } else { fields.required(key) };
    let (methods, paths) = (field("methods"), field("paths"));
    let methods = methods.and_then(|node| parts.methods(node, "methods"));
    let paths = paths.and_then(|node| parts.paths(node, "paths"));
    let hosts = fields.optional("hosts").map(|node| parts.hosts(node, "hosts"));
    let headers = fields.optional("headers").and_then(|node| conditions::headers(parts, node));
    let query = fields.optional("query").and_then(|node| conditions::query(parts, node));
    fields.finish();
    // Conditions that could not be read must not become "any"; the file is refused in that case anyway.
    Some(Permission {
        methods: methods?,
        paths: paths?,
        hosts: hosts.map(Option::unwrap_or_default),
        headers: headers.unwrap_or_default(),
        query,
        shadow,
        ..Permission::bare(name?)
    })
}

impl Permission {
    /// One that is about nothing yet.
    fn bare(name: Located<String>) -> Self {
        let (methods, paths) = Default::default();
        Self { name, methods, paths, hosts: None, headers: Vec::new(), query: None, tcp: None, shadow: false }
    }
}

fn unique_name<'n>(
    parts: &Parts<'_>,
    node: &'n Node,
    within: &str,
    seen: &mut HashSet<&'n str>,
) -> Option<Located<String>> {
    let name = parts.name(node, "name")?;
    if let Value::Scalar { text, .. } = &node.value
        && !seen.insert(text)
    {
        parts.repeated(node, text, within);
    }
    Some(name)
}

pub(super) fn bindings(parts: &Parts<'_>, node: &Node, roles: &[Role]) -> Option<Vec<Binding>> {
    let items = parts.reader.nonempty_list(node, "bindings")?;
    if !within_bounds(parts, node, "bindings", items.len()) {
        return None;
    }
    let index = roles.iter().enumerate().map(|(at, role)| (role.name.value.as_str(), at)).collect();
    Some(items.iter().filter_map(|item| binding(parts, item, &index)).collect())
}

type RoleIndex<'a> = std::collections::HashMap<&'a str, usize>;

fn binding(parts: &Parts<'_>, node: &Node, roles: &RoleIndex<'_>) -> Option<Binding> {
    let mut fields = parts.reader.fields(node, "a binding")?;
    let role = fields.required("role").and_then(|node| known_role(parts, node, roles));
    let identities = fields.required("identities").and_then(|node| parts.identities(node, "identities"));
    let valid = fields.optional("valid").map(|node| valid(parts, node));
    fields.unsupported("jwt", NOT_YET);
    fields.finish();
    let (from, until) = match valid {
        None => (None, None),
        Some(valid) => valid?,
    };
    Some(Binding { role: role?, identities: identities?, from, until })
}

fn known_role(parts: &Parts<'_>, node: &Node, roles: &RoleIndex<'_>) -> Option<usize> {
    let name = parts.reader.string(node, "role")?;
    let found = roles.get(name).copied();
    if found.is_none() {
        let finding = Finding::error("unknown_role", node.at, format!("there is no role `{name}`"));
        parts.report(match closest(name, roles.keys().copied()) {
            Some(near) => finding.hint(format!("did you mean `{near}`?")),
            None => finding.hint("define it under `roles`"),
        });
    }
    found
}

fn valid(parts: &Parts<'_>, node: &Node) -> Option<(Option<i64>, Option<Located<i64>>)> {
    let reader = parts.reader;
    let mut fields = reader.fields(node, "valid")?;
    let from = fields.optional("from").map(|node| reader.time(node, "valid.from", Day::Start));
    let until = fields.optional("until").map(|node| until(parts, node, "valid.until"));
    fields.finish();
    if from.is_none() && until.is_none() {
        reader.problem_with_hint(
            node.at,
            "valid needs `from` or `until`",
            "leave it out for a binding without dates",
        );
        return None;
    }
    // An unreadable date was reported; it must not become "no limit".
    let (from, until) =
        (from.map_or(Some(None), |v| v.map(Some))?, until.map_or(Some(None), |v| v.map(Some))?);
    if let (Some(from), Some(until)) = (from, &until)
        && from >= until.value
    {
        parts.report(Finding::error("never_valid", node.at, "the binding ends before it begins"));
    }
    Some((from, until))
}

fn until(parts: &Parts<'_>, node: &Node, what: &str) -> Option<Located<i64>> {
    let value = parts.reader.time(node, what, Day::End)?;
    Some(Located { at: node.at, value })
}

pub(super) fn denies(parts: &Parts<'_>, node: &Node) -> Option<Vec<Deny>> {
    let items = parts.reader.nonempty_list(node, "deny")?;
    if !within_bounds(parts, node, "deny rules", items.len()) {
        return None;
    }
    let mut seen = HashSet::new();
    Some(items.iter().filter_map(|item| deny(parts, item, &mut seen)).collect())
}

fn deny<'n>(parts: &Parts<'_>, node: &'n Node, seen: &mut HashSet<&'n str>) -> Option<Deny> {
    let mut fields = parts.reader.fields(node, "a deny rule")?;
    let name = fields.required("name").and_then(|node| unique_name(parts, node, "deny", seen));
    let paths = fields.optional("paths").map(|node| parts.paths(node, "paths"));
    let methods = fields.optional("methods").map(|node| parts.methods(node, "methods"));
    let hosts = fields.optional("hosts").map(|node| parts.hosts(node, "hosts"));
    let identities = fields.optional("identities").map(|node| parts.identities(node, "identities"));
    let until = fields.optional("until").and_then(|node| until(parts, node, "until"));
    let headers = fields.optional("headers").map(|node| conditions::headers(parts, node));
    let reason = fields.optional("reason").and_then(|node| parts.label(node, "reason"));
    let shadow = fields.optional("mode").is_some_and(|node| conditions::shadow(parts, node));
    for key in ["fhir", "query", "overridable"] {
        fields.unsupported(key, "leave it out; a deny rule must not hold a condition that is not checked");
    }
    let unconditional = paths.is_none() && methods.is_none() && hosts.is_none() && headers.is_none();
    if unconditional && identities.is_none() {
        let hint = "give it at least one of: paths, methods, hosts, headers, identities";
        parts.reader.problem_with_hint(
            fields.at(),
            "a deny rule without a condition would deny everything",
            hint,
        );
    }
    fields.finish();
    // Lists that could not be read were reported, so this rule is never compiled.
    Some(Deny {
        name: name?,
        paths: paths.map(Option::unwrap_or_default),
        methods: methods.map(Option::unwrap_or_default),
        hosts: hosts.map(Option::unwrap_or_default),
        headers: headers.flatten().unwrap_or_default(),
        identities: identities.map(Option::unwrap_or_default),
        until,
        reason,
        shadow,
    })
}
