//! Who may do what, as rows for an access review: identities, roles, permissions, and the deny rules beside them.
//!
//! Rows say what the file says, pattern by pattern; what it comes to for one request is what `explain` is for.

use crate::identity::{IdPattern, SpiffeId};
use crate::yaml::Mark;

use super::compile::{CompiledDeny, CompiledPermission};
use super::usage::{Usage, Use};
use super::{Policy, UnixSeconds, wording};

/// One permission of one bound identity pattern, or one deny rule.
#[derive(Debug, Clone)]
pub struct Row {
    /// The identity pattern; none for a deny rule that concerns everyone, and for a role that nobody has.
    pub identity: Option<IdPattern>,
    /// The role; none for a deny rule.
    pub role: Option<String>,
    /// The permission's or the deny rule's name.
    pub rule: String,
    /// Where the rule stands in the file.
    pub at: Mark,
    /// The methods, as they stand in a request; empty for TCP.
    pub methods: Vec<&'static str>,
    /// The path patterns; for a deny rule, none means every path.
    pub paths: Vec<String>,
    /// The hosts; none means all that the policy is for.
    pub hosts: Vec<String>,
    /// The TCP listeners.
    pub listeners: Vec<String>,
    /// What else a request must be, in words.
    pub conditions: Vec<String>,
    /// From when on it holds.
    pub from: Option<UnixSeconds>,
    /// Until when it holds.
    pub until: Option<UnixSeconds>,
    /// It says what it would do, and does nothing.
    pub shadow: bool,
    /// What the author of a deny rule wrote as its reason.
    pub note: Option<String>,
    /// Whether it holds at the time of the review.
    pub state: State,
    /// How often it was used; none when no trail was looked at, for deny rules, and for what is in shadow.
    pub used: Option<Use>,
}

/// Whether a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It holds.
    InForce,
    /// Its time has not come.
    NotYet,
    /// Its time has passed.
    Ended,
    /// The role has no binding.
    Unbound,
    /// The named deny rule denies the identity everything.
    DeniedBy(String),
}

impl State {
    /// In words, for a report.
    pub fn describe(&self) -> String {
        match self {
            Self::InForce => "in force".to_owned(),
            Self::NotYet => "not yet".to_owned(),
            Self::Ended => "ended".to_owned(),
            Self::Unbound => "nobody has it".to_owned(),
            Self::DeniedBy(rule) => format!("denied by {rule}"),
        }
    }
}

impl Row {
    /// True for a row that could have been used, and was not.
    pub fn is_unused(&self) -> bool {
        self.used.as_ref().is_some_and(|used| used.count == 0)
    }
}

/// The rows of `policy` as of `now`: permissions by identity, roles that nobody has, then deny rules. With `usage`, each
/// permission has how often it was used; a use counts for every row whose identity pattern, role and rule it matches.
pub fn matrix(policy: &Policy, now: UnixSeconds, usage: Option<&Usage>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (pattern, at) in bound(policy) {
        let binding = &policy.bindings.all[at];
        let state = match denier(policy, &pattern, now) {
            _ if binding.until.is_some_and(|until| until <= now) => State::Ended,
            _ if binding.from.is_some_and(|from| from > now) => State::NotYet,
            Some(deny) => State::DeniedBy(deny.to_owned()),
            None => State::InForce,
        };
        for permission in of_role(policy, binding.role) {
            let row = permission_row(policy, permission, state.clone());
            // What is in shadow grants nothing, so it cannot be used.
            let usage = usage.filter(|_| !permission.shadow);
            let used =
                usage.map(|usage| usage.of(&pattern, row.role.as_deref().unwrap_or_default(), &row.rule));
            let (from, until) = (binding.from, binding.until);
            rows.push(Row { identity: Some(pattern.clone()), from, until, used, ..row });
        }
    }
    let is_bound = |role: u32| policy.bindings.all.iter().any(|binding| binding.role == role);
    for role in (0..policy.roles.len() as u32).filter(|role| !is_bound(*role)) {
        rows.extend(
            of_role(policy, role).map(|permission| permission_row(policy, permission, State::Unbound)),
        );
    }
    for deny in &policy.denies {
        rows.extend(deny_rows(policy, deny, now));
    }
    rows
}

/// Every bound pattern with its binding, by pattern.
fn bound(policy: &Policy) -> Vec<(IdPattern, usize)> {
    let literal = policy.bindings.literal.iter().flat_map(|(text, bindings)| {
        let pattern = IdPattern::parse(text).ok(); // it was parsed when the file was read
        bindings.iter().filter_map(move |at| Some((pattern.clone()?, *at as usize)))
    });
    let wild = policy.bindings.wild.iter().map(|(pattern, at)| (pattern.clone(), *at as usize));
    let mut all: Vec<_> = literal.chain(wild).collect();
    all.sort();
    all
}

fn of_role(policy: &Policy, role: u32) -> impl Iterator<Item = &CompiledPermission> {
    policy.permissions.iter().filter(move |permission| permission.role == role)
}

/// A deny rule that takes everything from all identities of `pattern`.
fn denier<'p>(policy: &'p Policy, pattern: &IdPattern, now: UnixSeconds) -> Option<&'p str> {
    // A rule that denies TCP too is about identities alone.
    let total = |deny: &&CompiledDeny| deny.tcp && !deny.shadow && deny.until.is_none_or(|until| until > now);
    let covers = |deny: &&CompiledDeny| deny.identities.iter().flatten().any(|other| other.includes(pattern));
    policy.denies.iter().filter(total).find(covers).map(|deny| deny.name.as_str())
}

fn permission_row(policy: &Policy, permission: &CompiledPermission, state: State) -> Row {
    let paths = &policy.templates[permission.paths.clone()];
    Row {
        identity: None,
        role: Some(policy.roles[permission.role as usize].clone()),
        rule: permission.name.clone(),
        at: permission.at,
        methods: permission.methods.list(),
        paths: paths.iter().map(|template| template.as_str().to_owned()).collect(),
        hosts: permission.hosts.iter().flatten().cloned().collect(),
        listeners: permission.tcp.iter().flatten().cloned().collect(),
        conditions: wording::conditions(&permission.headers, permission.query.as_ref()),
        from: None,
        until: None,
        shadow: permission.shadow,
        note: None,
        state,
        used: None,
    }
}

fn deny_rows<'p>(
    policy: &'p Policy,
    deny: &'p CompiledDeny,
    now: UnixSeconds,
) -> impl Iterator<Item = Row> + 'p {
    let identities = match &deny.identities {
        Some(identities) => identities.iter().cloned().map(Some).collect(),
        None => vec![None],
    };
    let state = if deny.until.is_some_and(|until| until <= now) { State::Ended } else { State::InForce };
    let paths = deny.paths.iter().flat_map(|paths| &policy.templates[paths.clone()]);
    let paths: Vec<_> = paths.map(|template| template.as_str().to_owned()).collect();
    identities.into_iter().map(move |identity| Row {
        identity,
        role: None,
        rule: deny.name.clone(),
        at: deny.at,
        methods: deny.methods.list(),
        paths: paths.clone(),
        hosts: deny.hosts.iter().flatten().cloned().collect(),
        listeners: Vec::new(),
        conditions: wording::conditions(&deny.headers, None),
        from: None,
        until: deny.until,
        shadow: deny.shadow,
        note: deny.reason.clone(),
        state: state.clone(),
        used: None,
    })
}

impl Usage {
    /// How often `rule` of `role` allowed a request of an identity that `pattern` matches.
    fn of(&self, pattern: &IdPattern, role: &str, rule: &str) -> Use {
        let mut sum = Use::default();
        for ((id, used_role, used_rule), used) in self.all() {
            let is_it = used_role == role && used_rule == rule;
            if is_it && SpiffeId::parse(id).is_ok_and(|id| pattern.matches(&id)) {
                sum.count += used.count;
                sum.last = sum.last.take().max(used.last.clone());
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"apiVersion: phiward/v1
kind: Policy
metadata: {name: p, revision: r}
roles:
  reader: [{name: read, methods: [GET], paths: [/a]}, {name: list, methods: [GET], paths: [/b]}]
  nobody: [{name: write, methods: [POST], paths: [/a]}]
bindings:
  - {role: reader, identities: ["spiffe://d/ns/*", "spiffe://d/out"]}
  - {role: reader, identities: ["spiffe://d/old"], valid: {until: 1970-01-01}}
deny: [{name: quarantine, identities: ["spiffe://d/out"]}, {name: admin, paths: [/admin]}]
"#;

    /// If this fails, an access review calls a right unused that is used, or one in force that is not.
    #[test]
    fn each_bound_permission_is_a_row_with_its_state_and_use() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let mut usage = Usage::since(None);
        let line = r#"{"type":"access.decision","time":"1970-01-02T00:00:00Z","conn":{"direction":"inbound"},
            "instance":{"service":"s"},"subject":{"spiffe_id":"spiffe://d/ns/web"},
            "decision":{"outcome":"allow","reason":"rule","role":"reader","rule":"read"}}"#;
        usage.add(line.as_bytes());
        let rows = matrix(&policy, UnixSeconds(200_000), Some(&usage));
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                let identity = row.identity.as_ref().map_or("-", IdPattern::as_str).to_owned();
                (identity, row.rule.clone(), row.state.describe(), row.used.as_ref().map(|used| used.count))
            })
            .collect();
        let want = [
            ("spiffe://d/ns/*", "read", "in force", Some(1)),
            ("spiffe://d/ns/*", "list", "in force", Some(0)),
            ("spiffe://d/old", "read", "ended", Some(0)),
            ("spiffe://d/old", "list", "ended", Some(0)),
            ("spiffe://d/out", "read", "denied by quarantine", Some(0)),
            ("spiffe://d/out", "list", "denied by quarantine", Some(0)),
            ("-", "write", "nobody has it", None),
            ("spiffe://d/out", "quarantine", "in force", None),
            ("-", "admin", "in force", None),
        ];
        let want =
            want.map(|(id, rule, state, used)| (id.to_owned(), rule.to_owned(), state.to_owned(), used));
        assert_eq!(found, want);
        assert!(rows[1].is_unused() && !rows[0].is_unused() && !rows[6].is_unused());
    }
}
