//! The conditions of rules besides methods and paths: headers, query parameters, TCP listeners, and the rule's own mode.

use std::collections::HashSet;

use crate::yaml::{Entry, Node, Value};

use super::super::headers::{HeaderRule, same_name};
use super::super::params::{MAX_NAMES, Param, QueryRule};
use super::super::{Finding, is_method_override_header};
use super::Located;
use super::part::Parts;

const MAX_BYTES: usize = 64;
const MAX_VALUE_BYTES: usize = 256;
/// The largest `max`: as many digits as a parameter's value may have.
const MAX_NUMBER: u64 = 999_999_999_999_999_999;

/// Headers that no rule can be about, and what to do instead.
const UNUSABLE: [(&[&str], &str); 4] = [
    (&["host"], "name the host under `hosts`"),
    (
        &[
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "content-length",
        ],
        "it belongs to one connection, not to the request",
    ),
    (
        &["x-forwarded-client-cert", "x-request-id", "traceparent"],
        "it is set here and a peer's copy is dropped; name the peer under `identities` of a binding or deny rule",
    ),
    (&["authorization", "proxy-authorization", "cookie"], "a secret does not belong in a policy"),
];

/// `headers`: the values that each header may have.
pub(super) fn headers(parts: &Parts<'_>, node: &Node) -> Option<Vec<HeaderRule>> {
    let entries = parts.reader.entries(node, "headers")?;
    if entries.is_empty() {
        parts.reader.problem_with_hint(node.at, "headers names no header", "leave it out");
    }
    Some(entries.iter().filter_map(|entry| header(parts, entry)).collect())
}

fn header(parts: &Parts<'_>, entry: &Entry) -> Option<HeaderRule> {
    let (name, at) = (&entry.key, entry.at);
    let legal = name.len() <= MAX_BYTES
        && name.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !legal {
        let message = format!("`{name}` is not the name of a header");
        let hint = "write it in lower case, with letters, digits and '-'";
        parts.report(Finding::error("bad_header", at, message).hint(hint));
        return None;
    }
    let known = UNUSABLE.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, hint)| *hint);
    let known =
        known.or(is_method_override_header(name).then_some("requests that have it are always rejected"));
    let known = known.or(name.starts_with("x-phiward-").then_some("a peer's copy is dropped"));
    if let Some(hint) = known {
        let message = format!("no rule can be about the header `{name}`");
        parts.report(Finding::error("bad_header", at, message).hint(hint));
        return None;
    }
    let what = format!("the header `{name}`");
    let values = parts.distinct(&entry.value, &what, |item| {
        let text = parts.reader.string(item, &what)?;
        let legal = !text.is_empty()
            && text.len() <= MAX_VALUE_BYTES
            && text.trim_ascii().len() == text.len()
            && text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b',');
        if !legal {
            let message = format!("`{text}` is not one value of a header");
            let hint = "a value is printable ASCII without commas and outer spaces, 256 bytes at most";
            parts.report(Finding::error("bad_header", item.at, message).hint(hint));
            return None;
        }
        Some((text, text.to_owned()))
    })?;
    parts.names_header(name);
    Some(HeaderRule { name: name.clone(), values: values.into_iter().map(|value| value.value).collect() })
}

/// `query`: which parameters may be there, and with what values.
pub(super) fn query(parts: &Parts<'_>, node: &Node) -> Option<QueryRule> {
    let reader = parts.reader;
    let mut fields = reader.fields(node, "query")?;
    let allow = fields.optional("allow").map(|node| match &node.value {
        Value::Seq(items) if items.is_empty() => Some(Vec::new()), // no parameter at all
        _ => params(parts, node, "query.allow"),
    });
    let any = fields.optional("require_any").map(|node| params(parts, node, "query.require_any"));
    let require = fields.optional("require").map(|node| valued(parts, node, "query.require", values));
    let max = fields.optional("max").map(|node| valued(parts, node, "query.max", number));
    fields.finish();
    if allow.is_none() && any.is_none() && require.is_none() && max.is_none() {
        let hint =
            "give it at least one of: allow, require_any, require, max; `allow: []` lets no parameter pass";
        if matches!(&node.value, Value::Map(entries) if entries.is_empty()) {
            reader.problem_with_hint(node.at, "query without a rule would mean nothing", hint);
        }
        return None; // with unknown keys alone, those were reported
    }
    let only = allow.is_some();
    // What could not be read was reported; it must not become "no rule".
    let unless_bad = |list: Option<Option<_>>| list.map_or(Some(Vec::new()), |list| list);
    let (allow, any) = (unless_bad(allow)?, unless_bad(any)?);
    let require = require.map_or(Some(Vec::new()), |list| list)?;
    let max = max.map_or(Some(Vec::new()), |list| list)?;
    if [allow.len(), any.len(), require.len(), max.len()].iter().any(|len| *len > MAX_NAMES) {
        too_many(parts, node);
        return None;
    }
    let mut all = Merge { parts, params: Vec::new(), only };
    allow.iter().for_each(|name| all.listed(name));
    for name in any {
        all.set(&name, |param| param.any = true);
    }
    for (name, values) in require {
        all.set(&name, |param| param.values = Some(values.into()));
    }
    for (name, number) in max {
        all.set(&name, |param| param.max = Some(number));
    }
    let params = all.finish(node)?;
    parts.query.set(true);
    Some(QueryRule::new(params, only))
}

/// The names of a query rule while its four lists are put together.
struct Merge<'p, 'r> {
    parts: &'p Parts<'r>,
    params: Vec<Param>,
    only: bool,
}

impl Merge<'_, '_> {
    fn listed(&mut self, name: &Located<String>) {
        self.params.push(Param { name: name.value.clone(), any: false, values: None, max: None });
    }

    /// Sets something of the parameter `name`. It is an error when `allow` does not list it.
    fn set(&mut self, name: &Located<String>, set: impl FnOnce(&mut Param)) {
        let found = self.params.iter().position(|param| param.name == name.value);
        if found.is_none() && self.only {
            let message = format!("`{}` is not in query.allow, so it could never be there", name.value);
            self.parts.report(Finding::error("bad_query", name.at, message).hint("add it there"));
            return;
        }
        if found.is_none() {
            self.listed(name);
        }
        let at = found.unwrap_or(self.params.len() - 1);
        set(&mut self.params[at]);
    }

    fn finish(self, node: &Node) -> Option<Vec<Param>> {
        let (reader, params) = (self.parts.reader, self.params);
        if params.len() > MAX_NAMES {
            too_many(self.parts, node);
            return None;
        }
        let over = params.iter().find(|param| param.max.is_some() && param.values.is_some());
        if let Some(param) = over {
            let message = format!("`{}` has both a `require` and a `max`", param.name);
            reader.problem_with_hint(node.at, message, "`require` already says which values it may have");
        }
        Some(params)
    }
}

fn too_many(parts: &Parts<'_>, node: &Node) {
    parts.reader.problem(node.at, format!("query names more than {MAX_NAMES} parameters"));
}

fn params(parts: &Parts<'_>, node: &Node, what: &str) -> Option<Vec<Located<String>>> {
    parts.distinct(node, what, |item| {
        let text = parts.reader.string(item, "a parameter")?;
        param_name(parts, text, item.at).then(|| (text, text.to_owned()))
    })
}

fn param_name(parts: &Parts<'_>, name: &str, at: crate::yaml::Mark) -> bool {
    let legal = name.len() <= MAX_BYTES
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'$'));
    if !legal {
        let message = format!("`{name}` is not the name of a query parameter");
        let hint = "a name has 1 to 64 letters, digits, '_', '-', '.', ':' or '$', as it is after decoding";
        parts.report(Finding::error("bad_query", at, message).hint(hint));
    }
    legal
}

type Valued<T> = Vec<(Located<String>, T)>;

fn valued<T>(
    parts: &Parts<'_>,
    node: &Node,
    what: &str,
    read: impl Fn(&Parts<'_>, &Entry) -> Option<T>,
) -> Option<Valued<T>> {
    let entries = parts.reader.entries(node, what)?;
    if entries.is_empty() {
        parts.reader.problem_with_hint(node.at, format!("{what} names no parameter"), "leave it out");
    }
    let mut all = Vec::new();
    for entry in entries {
        let value = read(parts, entry);
        if param_name(parts, &entry.key, entry.at)
            && let Some(value) = value
        {
            all.push((Located { at: entry.at, value: entry.key.clone() }, value));
        }
    }
    Some(all)
}

fn number(parts: &Parts<'_>, entry: &Entry) -> Option<u64> {
    parts.reader.u64(&entry.value, "a parameter's max", 0..=MAX_NUMBER)
}

/// One value, or a list of those that are accepted.
fn values(parts: &Parts<'_>, entry: &Entry) -> Option<Vec<String>> {
    match &entry.value.value {
        Value::Seq(_) => {
            let values =
                parts.distinct(&entry.value, "a required value", |item| required_value(parts, item))?;
            Some(values.into_iter().map(|value| value.value).collect())
        }
        _ => required_value(parts, &entry.value).map(|(_, text)| vec![text]),
    }
}

fn required_value<'n>(parts: &Parts<'_>, node: &'n Node) -> Option<(&'n str, String)> {
    let text = parts.reader.string(node, "a required value")?;
    if text.trim().is_empty() || text.len() > MAX_VALUE_BYTES || text.chars().any(char::is_control) {
        let message = "a required value must be one line of 1 to 256 bytes, as it is after decoding";
        parts.report(Finding::error("bad_query", node.at, message));
        return None;
    }
    Some((text, text.to_owned()))
}

/// `tcp: {listeners: [postgres]}`.
pub(super) fn tcp(parts: &Parts<'_>, node: &Node) -> Option<Vec<String>> {
    let mut fields = parts.reader.fields(node, "tcp")?;
    let listeners = fields.required("listeners").and_then(|node| {
        parts.distinct(node, "tcp.listeners", |item| {
            parts.name(item, "a listener").map(|name| (name.value.clone(), name.value))
        })
    });
    fields.finish();
    Some(listeners?.into_iter().map(|listener| listener.value).collect())
}

/// A rule's own `mode`: true when it only says what it would do.
pub(super) fn shadow(parts: &Parts<'_>, node: &Node) -> bool {
    let shadow = parts.reader.one_of(node, "mode", &[("enforce", false), ("shadow", true)]) == Some(true);
    if shadow && parts.shadow {
        let hint = "leave it out here: with `mode: shadow` for the policy no rule is enforced";
        parts.reader.problem_with_hint(node.at, "the whole policy is in shadow mode already", hint);
    }
    shadow
}

/// The headers of a test: a value, or a list with the value of each line. Calls `add` for each line.
pub(super) fn test_headers(parts: &Parts<'_>, node: &Node, mut add: impl FnMut(&str, &str) -> bool) {
    let mut seen = HashSet::new();
    for entry in parts.reader.entries(node, "headers").unwrap_or_default() {
        if !seen.insert(entry.key.to_ascii_lowercase()) {
            parts.repeated(&entry.value, &entry.key, "headers");
        }
        let lines = match &entry.value.value {
            Value::Seq(items) => items.as_slice(),
            _ => std::slice::from_ref(&entry.value),
        };
        for line in lines {
            let Some(value) = parts.reader.string(line, "a header") else { continue };
            if !parts.knows_header(&entry.key) {
                let message = format!("no rule is about the header `{}`", entry.key);
                parts.reader.problem_with_hint(entry.at, message, "leave it out, or mend its name");
                break;
            }
            if !add(&entry.key, value) {
                parts.reader.problem(line.at, format!("no request can have this line of `{}`", entry.key));
            }
        }
    }
}

impl Parts<'_> {
    /// Notes that a rule is about the header `name`.
    fn names_header(&self, name: &str) {
        self.headers.borrow_mut().insert(name.to_owned());
    }

    /// True when a header has a part in some decision: a rule names it, or every request is looked at for it.
    fn knows_header(&self, name: &str) -> bool {
        let always = name.eq_ignore_ascii_case("host") || is_method_override_header(name);
        let named = self.headers.borrow().iter().any(|known| same_name(name, known));
        let with_headers = !self.headers.borrow().is_empty() && name.eq_ignore_ascii_case("connection");
        let with_query = self.query.get() && same_name(name, "content-type");
        self.any_header || always || named || with_headers || with_query
    }
}
