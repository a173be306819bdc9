//! The small parts that rules are made of: names, labels, methods, paths, hosts, identities.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::Hash;

use crate::identity::IdPattern;
use crate::yaml::{Node, Reader, closest};

use super::super::host::canonical_host;
use super::super::method::{Method, MethodSet};
use super::super::pattern::PathPattern;
use super::super::{Finding, PathRules};
use super::Located;

const MAX_NAME_BYTES: usize = 64;
const MAX_LABEL_BYTES: usize = 256;
/// How many findings of one file are kept; a file with more is wrong in a way that the first hundred show.
const MAX_FINDINGS: usize = 100;

/// Reads parts and collects the findings that have a code of their own; the others go to the reader.
pub(super) struct Parts<'r> {
    pub(super) reader: &'r Reader,
    pub(super) path: PathRules,
    /// The names of `service.hosts`, once they are known.
    pub(super) hosts: Option<HashSet<String>>,
    /// The whole policy is in shadow mode.
    pub(super) shadow: bool,
    /// The headers that rules are about.
    pub(super) headers: RefCell<HashSet<String>>,
    /// Some rule is about the query.
    pub(super) query: Cell<bool>,
    /// The rules are in other files, so any header may have a part in a test.
    pub(super) any_header: bool,
    findings: RefCell<Vec<Finding>>,
}

impl<'r> Parts<'r> {
    pub(super) fn new(reader: &'r Reader) -> Self {
        Self {
            reader,
            path: PathRules::default(),
            hosts: None,
            shadow: false,
            headers: RefCell::default(),
            query: Cell::default(),
            any_header: false,
            findings: RefCell::default(),
        }
    }

    pub(super) fn report(&self, finding: Finding) {
        let mut findings = self.findings.borrow_mut();
        if findings.len() < MAX_FINDINGS {
            findings.push(finding);
        }
    }

    pub(super) fn into_findings(self) -> Vec<Finding> {
        self.findings.into_inner()
    }

    /// A name that stands in audit events and metrics.
    pub(super) fn name(&self, node: &Node, what: &str) -> Option<Located<String>> {
        let text = self.reader.string(node, what)?;
        if !is_name(text) {
            let message = format!("{what} cannot be `{text}`");
            let hint =
                "a name has 1 to 64 letters, digits, '.', '-' or '_' and begins with a letter or digit";
            self.report(Finding::error("bad_name", node.at, message).hint(hint));
            return None;
        }
        Some(Located { at: node.at, value: text.to_owned() })
    }

    /// Free text for people: a revision, an owner, a reason.
    pub(super) fn label(&self, node: &Node, what: &str) -> Option<String> {
        let text = self.reader.string(node, what)?;
        let legal =
            !text.trim().is_empty() && text.len() <= MAX_LABEL_BYTES && !text.chars().any(char::is_control);
        if !legal {
            self.reader.problem(node.at, format!("{what} must be one line of 1 to {MAX_LABEL_BYTES} bytes"));
            return None;
        }
        Some(text.to_owned())
    }

    pub(super) fn methods(&self, node: &Node, what: &str) -> Option<MethodSet> {
        let mut set = MethodSet::default();
        for item in self.reader.nonempty_list(node, what)? {
            let Some(name) = self.reader.string(item, "a method") else { continue };
            match Method::parse(name) {
                Some(method) if set.insert(method) => {}
                Some(_) => self.repeated(item, name, what),
                None => self.bad_method(item, name),
            }
        }
        Some(set)
    }

    fn bad_method(&self, node: &Node, name: &str) {
        let known = MethodSet::ALL.names();
        let near = closest(name, Method::ALL.map(Method::as_str));
        let hint = match (name, near) {
            ("*" | "ANY" | "ALL", _) => format!("write out the methods that are meant: {known}"),
            ("CONNECT", _) => "CONNECT is never accepted".to_owned(),
            (_, Some(near)) => format!("did you mean `{near}`? Methods are in upper case: {known}"),
            _ => format!("the methods are: {known}"),
        };
        self.report(Finding::error("bad_method", node.at, format!("`{name}` is not a method")).hint(hint));
    }

    pub(super) fn paths(&self, node: &Node, what: &str) -> Option<Vec<Located<PathPattern>>> {
        self.distinct(node, what, |item| {
            let text = self.reader.string(item, "a path")?;
            match PathPattern::parse(text, &self.path) {
                Ok(pattern) => Some((text, pattern)),
                Err(error) => {
                    self.report(Finding::error(
                        "bad_path",
                        item.at,
                        format!("`{text}` is not a path pattern: {error}"),
                    ));
                    None
                }
            }
        })
    }

    pub(super) fn identities(&self, node: &Node, what: &str) -> Option<Vec<Located<IdPattern>>> {
        self.distinct(node, what, |item| {
            let text = self.reader.string(item, "an identity")?;
            match IdPattern::parse(text) {
                Ok(pattern) => Some((text, pattern)),
                Err(error) => {
                    let message = format!("`{text}` is not an identity pattern: {error}");
                    self.report(Finding::error("bad_identity", item.at, message));
                    None
                }
            }
        })
    }

    /// Host names in the form they are compared in. Once `service.hosts` is known, only those can be named.
    pub(super) fn hosts(&self, node: &Node, what: &str) -> Option<Vec<Located<String>>> {
        self.distinct(node, what, |item| {
            let text = self.reader.string(item, "a host")?;
            let report = |message: String, hint: &str| {
                self.report(Finding::error("bad_host", item.at, message).hint(hint));
                None
            };
            match canonical_host(text) {
                None => report(
                    format!("`{text}` is not a host"),
                    "write a name or an address, without port or wildcard",
                ),
                Some(host) if host != text => {
                    report(format!("`{text}` is compared as `{host}`"), "write it that way")
                }
                Some(_) if self.hosts.as_ref().is_some_and(|hosts| !hosts.contains(text)) => report(
                    format!("`{text}` is not one of service.hosts, so nothing would match"),
                    "add it there",
                ),
                Some(_) => Some((text, text.to_owned())),
            }
        })
    }

    /// The items of a list that is not empty and has nothing twice, with their places.
    pub(super) fn distinct<'n, K: Eq + Hash + std::fmt::Display, T>(
        &self,
        node: &'n Node,
        what: &str,
        read: impl Fn(&'n Node) -> Option<(K, T)>,
    ) -> Option<Vec<Located<T>>> {
        let nodes = self.reader.nonempty_list(node, what)?;
        let mut items = Vec::with_capacity(nodes.len());
        if let [only] = nodes {
            items.extend(read(only).map(|(_, value)| Located { at: only.at, value })); // as in most lists
            return Some(items);
        }
        let mut seen = HashSet::with_capacity(nodes.len());
        for item in nodes {
            let Some((key, value)) = read(item) else { continue };
            if seen.contains(&key) {
                self.repeated(item, &key, what);
            } else {
                seen.insert(key);
                items.push(Located { at: item.at, value });
            }
        }
        Some(items)
    }

    pub(super) fn repeated(&self, node: &Node, name: impl std::fmt::Display, what: &str) {
        self.report(
            Finding::error("duplicate", node.at, format!("`{name}` is in {what} twice"))
                .hint("keep one of the two"),
        );
    }
}

pub(super) fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}
