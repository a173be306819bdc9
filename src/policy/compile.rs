//! The compiled policy: immutable, shared by all workers, built once a load.

use std::collections::{BTreeSet, HashMap};

use aws_lc_rs::digest;

use crate::identity::IdPattern;
use crate::yaml::Mark;

use super::document::{Binding, Deny, Document, Located, Permission};
use super::headers::HeaderRule;
use super::method::MethodSet;
use super::params::{self, QueryRule};
use super::pattern::PathPattern;
use super::trie::{Builder, End, Trie};
use super::{Finding, PathRules, UnixSeconds, document};

/// A policy in force: decides requests without allocating.
pub struct Policy {
    pub(super) name: String,
    pub(super) revision: String,
    sha256_hex: String,
    /// The head of the file's digest: ties [`super::Grants`] to the policy that gave them.
    pub(super) stamp: u64,
    /// Decides and never blocks.
    pub(super) shadow: bool,
    /// Some rule is in shadow.
    pub(super) has_shadow_rules: bool,
    path_rules: PathRules,
    /// Sorted; none means any host.
    pub(super) hosts: Option<Box<[String]>>,
    pub(super) health: Vec<Template>,
    pub(super) roles: Vec<String>,
    /// In the order of the file.
    pub(super) permissions: Vec<CompiledPermission>,
    pub(super) denies: Vec<CompiledDeny>,
    /// The path patterns of permissions, then those of deny rules, in the order of the file.
    pub(super) templates: Vec<Template>,
    pub(super) allow_tree: Trie,
    pub(super) deny_tree: Trie,
    /// Deny rules that hold for every path, sorted by group.
    pub(super) pathless: Vec<End>,
    /// Permissions for TCP, sorted by group.
    pub(super) tcp: Vec<End>,
    /// The query parameters that rules are about, sorted.
    query_names: Box<[String]>,
    pub(super) bindings: Bindings,
}

/// A path pattern as it is written in audit events instead of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub(super) PathPattern);

pub(super) struct CompiledPermission {
    pub(super) name: String,
    pub(super) at: Mark,
    pub(super) role: u32,
    pub(super) methods: MethodSet,
    pub(super) hosts: Option<Box<[String]>>,
    pub(super) headers: Vec<HeaderRule>,
    pub(super) query: Option<QueryRule>,
    /// The TCP listeners that it opens; it then has no methods and no paths.
    pub(super) tcp: Option<Vec<String>>,
    pub(super) shadow: bool,
    /// Its paths, as a range of templates.
    pub(super) paths: std::ops::Range<usize>,
}

pub(super) struct CompiledDeny {
    pub(super) name: String,
    pub(super) at: Mark,
    pub(super) reason: Option<String>,
    pub(super) methods: MethodSet,
    pub(super) hosts: Option<Box<[String]>>,
    pub(super) headers: Vec<HeaderRule>,
    pub(super) identities: Option<Vec<IdPattern>>,
    pub(super) until: Option<UnixSeconds>,
    /// It is about nothing that a TCP stream does not have, so it denies those too.
    pub(super) tcp: bool,
    pub(super) shadow: bool,
    /// Its paths, as a range of templates; none means every path.
    pub(super) paths: Option<std::ops::Range<usize>>,
}

/// The bindings, and an index of those that name one identity.
pub(super) struct Bindings {
    pub(super) all: Vec<CompiledBinding>,
    /// Bindings by literal identity, as indices of `all`.
    pub(super) literal: HashMap<String, Vec<u32>>,
    /// Bindings that have a pattern with wildcards, with that pattern.
    pub(super) wild: Vec<(IdPattern, u32)>,
}

pub(super) struct CompiledBinding {
    pub(super) role: u32,
    pub(super) from: Option<UnixSeconds>,
    pub(super) until: Option<UnixSeconds>,
}

/// The group of deny rules that concern every identity at any time.
pub(super) const EVERYONE: u32 = 0;

impl Policy {
    /// Reads and compiles a policy file.
    ///
    /// # Errors
    /// Every error of the file, in its order; never an empty list. Warnings are not looked for: see [`super::validate()`].
    pub fn parse(source: &[u8]) -> Result<Self, Vec<Finding>> {
        document::read(source).map(|document| Self::compile(&document, source))
    }

    pub(super) fn compile(document: &Document, source: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, source);
        let digest = digest.as_ref();
        let stamp = digest.iter().take(8).fold(0, |stamp, byte| stamp << 8 | u64::from(*byte));
        let hosts = document.hosts.as_deref().map(sorted);
        let roles = document.roles.iter().map(|role| role.name.value.clone()).collect();
        let mut rules = Rules::new();
        for (at, role) in (0..).zip(&document.roles) {
            role.permissions.iter().for_each(|permission| rules.permission(at, permission));
        }
        document.deny.iter().for_each(|deny| rules.deny(deny));
        rules.pathless.sort_by_key(|end| (end.group, end.rule));
        let query = rules.permissions.iter().filter_map(|permission| permission.query.as_ref());
        let query_names: BTreeSet<_> =
            query.flat_map(|query| query.params()).map(|param| param.name.clone()).collect();
        Self {
            name: document.name.clone(),
            revision: document.revision.clone(),
            sha256_hex: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            stamp,
            shadow: document.shadow.is_some(),
            has_shadow_rules: rules.permissions.iter().any(|rule| rule.shadow)
                || rules.denies.iter().any(|rule| rule.shadow),
            path_rules: document.path,
            hosts,
            health: document.health.iter().map(|path| Template(path.value.clone())).collect(),
            roles,
            permissions: rules.permissions,
            denies: rules.denies,
            templates: rules.templates,
            allow_tree: rules.allow_tree.build(),
            deny_tree: rules.deny_tree.build(),
            pathless: rules.pathless,
            tcp: rules.tcp,
            query_names: query_names.into_iter().collect(),
            bindings: Bindings::compile(&document.bindings),
        }
    }

    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision its author gave it.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The SHA-256 of the file's bytes, as 64 lower-case hex digits.
    pub fn sha256_hex(&self) -> &str {
        &self.sha256_hex
    }

    /// What the policy says about paths, for [`super::admit`].
    pub fn path_rules(&self) -> &PathRules {
        &self.path_rules
    }

    /// True when `host`, in the form of [`super::Admitted::host`], is listed in `service.hosts`, so that writing it down
    /// tells nothing that the policy does not.
    pub fn knows_host(&self, host: &str) -> bool {
        self.hosts.as_ref().is_some_and(|hosts| names(hosts, host))
    }

    /// True when it decides and never blocks (`mode: shadow`).
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }

    /// The TCP listeners that permissions name, each once, sorted.
    pub fn tcp_listeners(&self) -> BTreeSet<&str> {
        let named = self.permissions.iter().filter_map(|permission| permission.tcp.as_ref());
        named.flatten().map(String::as_str).collect()
    }

    /// The parameters of `query` that rules are about, each once, sorted: what may be written down of a query. Allocates
    /// only when there are some.
    pub fn named_params(&self, query: Option<&str>) -> Vec<&str> {
        let mut found = Vec::new();
        if let Some(query) = query
            && !self.query_names.is_empty()
        {
            params::known_names(query, &self.query_names, &mut |at| found.push(at));
            found.sort_unstable();
            found.dedup();
        }
        found.into_iter().map(|at| self.query_names[at].as_str()).collect()
    }
}

/// Rules while they are compiled.
struct Rules {
    permissions: Vec<CompiledPermission>,
    denies: Vec<CompiledDeny>,
    templates: Vec<Template>,
    allow_tree: Builder,
    deny_tree: Builder,
    pathless: Vec<End>,
    tcp: Vec<End>,
}

// Indices fit u32: a file has at most 4 MiB.
impl Rules {
    fn new() -> Self {
        Self {
            permissions: Vec::new(),
            denies: Vec::new(),
            templates: Vec::new(),
            allow_tree: Builder::new(false),
            deny_tree: Builder::new(true),
            pathless: Vec::new(),
            tcp: Vec::new(),
        }
    }

    fn permission(&mut self, role: u32, permission: &Permission) {
        let rule = self.permissions.len() as u32;
        let first = self.templates.len();
        let compiled = CompiledPermission {
            name: permission.name.value.clone(),
            at: permission.name.at,
            role,
            methods: permission.methods,
            hosts: permission.hosts.as_deref().map(sorted),
            headers: permission.headers.clone(),
            query: permission.query.clone(),
            tcp: permission.tcp.clone(),
            shadow: permission.shadow,
            paths: first..first + permission.paths.len(),
        };
        let end = End {
            group: role,
            rule,
            pattern: u32::MAX,
            methods: compiled.methods,
            conditional: compiled.is_conditional(),
            shadow: compiled.shadow,
        };
        for Located { value: pattern, .. } in &permission.paths {
            self.allow_tree.insert(pattern, End { pattern: self.templates.len() as u32, ..end });
            self.templates.push(Template(pattern.clone()));
        }
        if compiled.tcp.is_some() {
            self.tcp.push(end); // sorted, since roles come in their order
        }
        self.permissions.push(compiled);
    }

    fn deny(&mut self, deny: &Deny) {
        let rule = self.denies.len() as u32;
        let methods = deny.methods.unwrap_or(MethodSet::ALL);
        let group = if deny.identities.is_none() && deny.until.is_none() { EVERYONE } else { rule + 1 };
        let first = self.templates.len();
        let paths = deny.paths.as_ref().map(|paths| first..first + paths.len());
        let compiled = CompiledDeny {
            name: deny.name.value.clone(),
            at: deny.name.at,
            reason: deny.reason.clone(),
            methods,
            hosts: deny.hosts.as_deref().map(sorted),
            headers: deny.headers.clone(),
            identities: deny.identities.as_ref().map(|list| list.iter().map(|id| id.value.clone()).collect()),
            until: deny.until.as_ref().map(|until| UnixSeconds(until.value)),
            tcp: paths.is_none() && deny.methods.is_none() && deny.hosts.is_none() && deny.headers.is_empty(),
            shadow: deny.shadow,
            paths,
        };
        let (conditional, shadow) = (compiled.is_conditional(), compiled.shadow);
        let end = End { group, rule, pattern: u32::MAX, methods, conditional, shadow };
        for Located { value: pattern, .. } in deny.paths.iter().flatten() {
            self.deny_tree.insert(pattern, End { pattern: self.templates.len() as u32, ..end });
            self.templates.push(Template(pattern.clone()));
        }
        if deny.paths.is_none() {
            self.pathless.push(end);
        }
        self.denies.push(compiled);
    }
}

impl Bindings {
    fn compile(bindings: &[Binding]) -> Self {
        let mut compiled = Self { all: Vec::new(), literal: HashMap::new(), wild: Vec::new() };
        for binding in bindings {
            let at = compiled.all.len() as u32;
            for Located { value: pattern, .. } in &binding.identities {
                if pattern.is_literal() {
                    compiled.literal.entry(pattern.as_str().to_owned()).or_default().push(at);
                } else {
                    compiled.wild.push((pattern.clone(), at));
                }
            }
            compiled.all.push(CompiledBinding {
                role: binding.role as u32,
                from: binding.from.map(UnixSeconds),
                until: binding.until.as_ref().map(|until| UnixSeconds(until.value)),
            });
        }
        compiled
    }
}

fn sorted(hosts: &[Located<String>]) -> Box<[String]> {
    let mut hosts: Vec<_> = hosts.iter().map(|host| host.value.clone()).collect();
    hosts.sort();
    hosts.into()
}

/// True when `host` is in the sorted `hosts`.
pub(super) fn names(hosts: &[String], host: &str) -> bool {
    hosts.binary_search_by(|known| known.as_str().cmp(host)).is_ok()
}

impl Template {
    /// The pattern as the policy's author wrote it, such as `/fhir/Patient/{id}`.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The name and the value of each variable segment of `path`, a path that this template matched: `id` for `{id}`, and
    /// `*1`, `*2` and so on for each `*`. The values identify people: they are for pseudonyms only.
    pub fn params<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.params(path)
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, revision, sha256_hex, .. } = self;
        f.debug_struct("Policy")
            .field("name", name)
            .field("revision", revision)
            .field("sha256", sha256_hex)
            .finish()
    }
}
