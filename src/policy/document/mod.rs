//! The policy file as it was written: a model of the document with the place of each part, and every error in it.
//!
//! Owns the words of the file and refuses every word it does not act on: a rule that is read and ignored is worse than no
//! rule. What the parts mean together is compiled elsewhere.

mod cases;
mod conditions;
mod part;
mod rules;

use crate::identity::IdPattern;
use crate::yaml::{self, Day, Mark, Node, Reader};

use super::headers::HeaderRule;
use super::method::MethodSet;
use super::params::QueryRule;
use super::pattern::PathPattern;
use super::{Finding, PathRules};
use part::Parts;

pub(super) use cases::{Case, Subject};

/// The most rules of each kind. Everything else is bounded by the size of the file.
const MAX_RULES: usize = 20_000;

/// A part of the file with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) at: Mark,
    pub(super) value: T,
}

/// The whole file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) name: String,
    pub(super) revision: String,
    /// The last moment before the review is overdue, in Unix seconds.
    pub(super) review_due: Option<Located<i64>>,
    pub(super) at: Mark,
    /// Where `mode: shadow` stands.
    pub(super) shadow: Option<Mark>,
    pub(super) hosts: Option<Vec<Located<String>>>,
    pub(super) health: Vec<Located<PathPattern>>,
    pub(super) path: PathRules,
    pub(super) roles: Vec<Role>,
    pub(super) bindings: Vec<Binding>,
    pub(super) deny: Vec<Deny>,
    pub(super) cases: Vec<Case>,
}

/// A named set of permissions.
#[derive(Debug)]
pub(super) struct Role {
    pub(super) name: Located<String>,
    pub(super) permissions: Vec<Permission>,
}

/// What a role may do.
#[derive(Debug)]
pub(super) struct Permission {
    pub(super) name: Located<String>,
    /// Empty when it is about TCP.
    pub(super) methods: MethodSet,
    /// Empty when it is about TCP.
    pub(super) paths: Vec<Located<PathPattern>>,
    pub(super) hosts: Option<Vec<Located<String>>>,
    pub(super) headers: Vec<HeaderRule>,
    pub(super) query: Option<QueryRule>,
    /// The TCP listeners that it opens, instead of methods and paths.
    pub(super) tcp: Option<Vec<String>>,
    pub(super) shadow: bool,
}

/// Who has a role, and when.
#[derive(Debug)]
pub(super) struct Binding {
    /// The role, as an index into [`Document::roles`].
    pub(super) role: usize,
    pub(super) identities: Vec<Located<IdPattern>>,
    pub(super) from: Option<i64>,
    pub(super) until: Option<Located<i64>>,
}

/// What nobody, or somebody, may never do.
#[derive(Debug)]
pub(super) struct Deny {
    pub(super) name: Located<String>,
    pub(super) paths: Option<Vec<Located<PathPattern>>>,
    pub(super) methods: Option<MethodSet>,
    pub(super) hosts: Option<Vec<Located<String>>>,
    pub(super) headers: Vec<HeaderRule>,
    pub(super) identities: Option<Vec<Located<IdPattern>>>,
    pub(super) until: Option<Located<i64>>,
    pub(super) reason: Option<String>,
    pub(super) shadow: bool,
}

/// Reads a policy file.
pub(super) fn read(source: &[u8]) -> Result<Document, Vec<Finding>> {
    let root = yaml::parse(source).map_err(|problem| vec![Finding { code: "yaml", ..problem.into() }])?;
    let reader = Reader::new();
    let mut parts = Parts::new(&reader);
    let document = read_root(&mut parts, &root);
    let mut findings = parts.into_findings();
    findings.extend(reader.into_problems().into_iter().map(Finding::from));
    findings.sort_by_key(|finding| finding.at);
    match document {
        Some(document) if findings.is_empty() => Ok(document),
        _ if findings.is_empty() => {
            Err(vec![Finding::error("document", Mark::START, "the policy is incomplete")])
        }
        _ => Err(findings),
    }
}

/// Reads a file that holds tests alone: `kind: PolicyTests`.
pub(super) fn read_tests(source: &[u8]) -> Result<Vec<Case>, Vec<Finding>> {
    let root = yaml::parse(source).map_err(|problem| vec![Finding { code: "yaml", ..problem.into() }])?;
    let reader = Reader::new();
    let mut parts = Parts::new(&reader);
    parts.any_header = true;
    let cases = read_tests_root(&mut parts, &root);
    let mut findings = parts.into_findings();
    findings.extend(reader.into_problems().into_iter().map(Finding::from));
    findings.sort_by_key(|finding| finding.at);
    if findings.is_empty() { Ok(cases.unwrap_or_default()) } else { Err(findings) }
}

fn read_tests_root(parts: &mut Parts<'_>, root: &Node) -> Option<Vec<Case>> {
    let reader = parts.reader;
    let mut fields = reader.fields(root, "the file of tests")?;
    let version = fields.required("apiVersion");
    version.and_then(|node| reader.one_of(node, "apiVersion", &[("phiward/v1", ())]));
    let kind = fields.required("kind");
    kind.and_then(|node| reader.one_of(node, "kind", &[("PolicyTests", ())]));
    let cases = fields.required("tests").and_then(|node| cases::cases(parts, node));
    fields.finish();
    cases
}

fn read_root(parts: &mut Parts<'_>, root: &Node) -> Option<Document> {
    let reader = parts.reader;
    let mut fields = reader.fields(root, "the policy")?;
    let version = fields.required("apiVersion");
    version.and_then(|node| reader.one_of(node, "apiVersion", &[("phiward/v1", ())]));
    let kind = fields.required("kind");
    kind.and_then(|node| reader.one_of(node, "kind", &[("Policy", ())]));
    let metadata = fields.required("metadata").and_then(|node| metadata(parts, node));
    let words = [("enforce", false), ("shadow", true)];
    let mode = fields.optional("mode").filter(|node| reader.one_of(node, "mode", &words) == Some(true));
    parts.shadow = mode.is_some();
    // Before everything that has paths: it says which are legal.
    if let Some(node) = fields.optional("path") {
        parts.path = path_rules(reader, node);
    }
    let service = fields.optional("service").and_then(|node| service(parts, node)).unwrap_or_default();
    parts.hosts = service.hosts.as_ref().map(|hosts| hosts.iter().map(|host| host.value.clone()).collect());
    let roles = fields.optional("roles").and_then(|node| rules::roles(parts, node)).unwrap_or_default();
    let bindings = fields.optional("bindings").and_then(|node| rules::bindings(parts, node, &roles));
    let deny = fields.optional("deny").and_then(|node| rules::denies(parts, node));
    let cases = fields.optional("tests").and_then(|node| cases::cases(parts, node));
    for key in ["audit", "jwt", "break_glass", "rate_limits"] {
        fields.unsupported(key, "leave it out; a policy must not hold what is not enforced");
    }
    fields.finish();
    let (name, revision, review_due) = metadata?;
    Some(Document {
        name,
        revision,
        review_due,
        at: root.at,
        shadow: mode.map(|node| node.at),
        hosts: service.hosts,
        health: service.health,
        path: parts.path,
        roles,
        bindings: bindings.unwrap_or_default(),
        deny: deny.unwrap_or_default(),
        cases: cases.unwrap_or_default(),
    })
}

type Metadata = (String, String, Option<Located<i64>>);

fn metadata(parts: &mut Parts<'_>, node: &Node) -> Option<Metadata> {
    let reader = parts.reader;
    let mut fields = reader.fields(node, "metadata")?;
    let name = fields.required("name").and_then(|node| parts.name(node, "metadata.name"));
    let revision = fields.required("revision").and_then(|node| parts.label(node, "metadata.revision"));
    if let Some(node) = fields.optional("owner") {
        parts.label(node, "metadata.owner");
    }
    let due = fields.optional("review").and_then(|node| review(parts, node));
    fields.finish();
    Some((name?.value, revision?, due))
}

fn review(parts: &mut Parts<'_>, node: &Node) -> Option<Located<i64>> {
    let reader = parts.reader;
    let mut fields = reader.fields(node, "metadata.review")?;
    if let Some(by) = fields.required("by") {
        parts.label(by, "metadata.review.by");
    }
    let due = fields.required("due").and_then(|node| {
        let value = reader.time(node, "metadata.review.due", Day::End)?;
        Some(Located { at: node.at, value })
    });
    fields.finish();
    due
}

#[derive(Default)]
struct Service {
    hosts: Option<Vec<Located<String>>>,
    health: Vec<Located<PathPattern>>,
}

fn service(parts: &mut Parts<'_>, node: &Node) -> Option<Service> {
    let mut fields = parts.reader.fields(node, "service")?;
    let hosts = fields.optional("hosts").and_then(|node| parts.hosts(node, "service.hosts"));
    let health = fields.optional("health").and_then(|node| parts.paths(node, "service.health"));
    for path in health.iter().flatten().filter(|path| !path.value.is_literal()) {
        let message = format!("service.health takes exact paths only, found `{}`", path.value.as_str());
        parts.report(
            Finding::error("bad_path", path.at, message)
                .hint("write out each path; what matches needs no identity"),
        );
    }
    fields.unsupported("fhir", "name methods and paths in the permissions instead");
    fields.finish();
    Some(Service { hosts, health: health.unwrap_or_default() })
}

fn path_rules(reader: &Reader, node: &Node) -> PathRules {
    let mut rules = PathRules::default();
    let Some(mut fields) = reader.fields(node, "path") else { return rules };
    if let Some(node) = fields.optional("encoded_slash") {
        let words = [("reject", false), ("preserve", true)];
        rules.preserve_encoded_slash = reader.one_of(node, "path.encoded_slash", &words).unwrap_or(false);
    }
    if let Some(node) = fields.optional("matrix_params") {
        let words = [("reject", false), ("allow", true)];
        rules.allow_matrix_params = reader.one_of(node, "path.matrix_params", &words).unwrap_or(false);
    }
    if let Some(node) = fields.optional("max_bytes") {
        let bytes = reader.bytes(node, "path.max_bytes", 16..=PathRules::MOST_MAX_BYTES as u64);
        rules.max_bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(rules.max_bytes);
    }
    fields.unsupported(
        "trailing_dot",
        "leave it out; allow matches a trailing dot exactly and deny ignores it",
    );
    fields.finish();
    rules
}
