//! Random policies and requests, and a naive reading of them that shares no code with the engine.
//!
//! A policy is a [`Model`], which is written as YAML for the engine and read as it is by [`reference`].
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)] // shared by test programs that use parts of it

pub mod random;
pub mod reference;

use phiward::identity::SpiffeId;
use phiward::policy::{Decision, Policy, Request, UnixSeconds, admit};

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub shadow: bool,
    pub hosts: Option<Vec<String>>,
    pub health: Vec<String>,
    pub slashes: bool,
    pub matrix: bool,
    pub roles: Vec<Vec<Permission>>,
    pub bindings: Vec<Binding>,
    pub denies: Vec<Deny>,
}

#[derive(Debug, Clone, Default)]
pub struct Permission {
    pub name: String,
    pub methods: Vec<String>,
    pub paths: Vec<String>,
    pub hosts: Option<Vec<String>>,
    pub headers: Vec<Header>,
    pub query: Option<Query>,
    pub tcp: Option<Vec<String>>,
    pub shadow: bool,
}

pub type Header = (String, Vec<String>);

#[derive(Debug, Clone, Default)]
pub struct Query {
    pub allow: Option<Vec<String>>,
    pub any: Vec<String>,
    pub require: Vec<(String, Vec<String>)>,
    pub max: Vec<(String, u64)>,
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub role: usize,
    pub ids: Vec<String>,
    pub from: Option<Time>,
    pub until: Option<Time>,
}

#[derive(Debug, Clone, Default)]
pub struct Deny {
    pub name: String,
    pub paths: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
    pub hosts: Option<Vec<String>>,
    pub headers: Vec<Header>,
    pub ids: Option<Vec<String>>,
    pub until: Option<Time>,
    pub shadow: bool,
}

/// As it is written, and in Unix seconds.
pub type Time = (&'static str, i64);

pub const TIMES: [Time; 3] = [
    ("2026-01-01T00:00:00Z", 1_767_225_600),
    ("2026-07-01T12:00:00Z", 1_782_907_200),
    ("2027-01-01T00:00:00Z", 1_798_761_600),
];

/// A request as it arrives.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: String,
    pub method: String,
    /// The raw target, or the listener for the method `TCP`.
    pub target: String,
    pub host: String,
    pub headers: Vec<(String, String)>,
    pub now: i64,
}

/// What came of a request, in a form that both sides can give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `rejected` for every reason to reject.
    pub reason: String,
    pub rule: Option<String>,
    pub role: Option<String>,
    pub template: Option<String>,
    /// Reason and rule.
    pub shadow: Option<(String, Option<String>)>,
}

impl Model {
    pub fn parse(&self) -> Policy {
        let text = self.yaml();
        Policy::parse(text.as_bytes()).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"))
    }

    pub fn yaml(&self) -> String {
        let mut out =
            String::from("apiVersion: phiward/v1\nkind: Policy\nmetadata: {name: p, revision: r}\n");
        if self.shadow {
            out += "mode: shadow\n";
        }
        let (slash, matrix) =
            (if self.slashes { "preserve" } else { "reject" }, if self.matrix { "allow" } else { "reject" });
        out += &format!("path: {{encoded_slash: {slash}, matrix_params: {matrix}}}\n");
        let mut service = Vec::new();
        service.extend(self.hosts.as_ref().map(|hosts| format!("hosts: {}", list(hosts))));
        if !self.health.is_empty() {
            service.push(format!("health: {}", list(&self.health)));
        }
        if !service.is_empty() {
            out += &format!("service: {{{}}}\n", service.join(", "));
        }
        out += "roles:\n";
        for (at, permissions) in self.roles.iter().enumerate() {
            out += &format!("  r{at}:\n");
            permissions.iter().for_each(|permission| out += &format!("    - {{{}}}\n", permission.yaml()));
        }
        out += "bindings:\n";
        for Binding { role, ids, from, until } in &self.bindings {
            let dates = [("from", from), ("until", until)];
            let dates: Vec<_> = dates
                .iter()
                .filter_map(|(key, time)| time.as_ref().map(|time| format!("{key}: \"{}\"", time.0)))
                .collect();
            let valid =
                if dates.is_empty() { String::new() } else { format!(", valid: {{{}}}", dates.join(", ")) };
            out += &format!("  - {{role: r{role}, identities: {}{valid}}}\n", list(ids));
        }
        if !self.denies.is_empty() {
            out += "deny:\n";
        }
        self.denies.iter().for_each(|deny| out += &format!("  - {{{}}}\n", deny.yaml()));
        out
    }
}

impl Permission {
    fn yaml(&self) -> String {
        let mut parts = vec![format!("name: {}", self.name)];
        if let Some(tcp) = &self.tcp {
            parts.push(format!("tcp: {{listeners: {}}}", list(tcp)));
        } else {
            parts.push(format!("methods: {}, paths: {}", list(&self.methods), list(&self.paths)));
        }
        parts.extend(self.hosts.as_ref().map(|hosts| format!("hosts: {}", list(hosts))));
        parts.extend(headers(&self.headers));
        parts.extend(self.query.as_ref().map(Query::yaml));
        parts.extend(self.shadow.then(|| "mode: shadow".to_owned()));
        parts.join(", ")
    }
}

impl Deny {
    fn yaml(&self) -> String {
        let mut parts = vec![format!("name: {}", self.name)];
        let lists = [
            ("paths", &self.paths),
            ("methods", &self.methods),
            ("hosts", &self.hosts),
            ("identities", &self.ids),
        ];
        for (key, items) in lists {
            parts.extend(items.as_ref().map(|items| format!("{key}: {}", list(items))));
        }
        parts.extend(headers(&self.headers));
        parts.extend(self.until.map(|time| format!("until: \"{}\"", time.0)));
        parts.extend(self.shadow.then(|| "mode: shadow".to_owned()));
        parts.join(", ")
    }
}

impl Query {
    fn yaml(&self) -> String {
        let mut parts = Vec::new();
        parts.extend(self.allow.as_ref().map(|names| format!("allow: {}", list(names))));
        if !self.any.is_empty() {
            parts.push(format!("require_any: {}", list(&self.any)));
        }
        if !self.require.is_empty() {
            let all: Vec<_> =
                self.require.iter().map(|(name, values)| format!("\"{name}\": {}", list(values))).collect();
            parts.push(format!("require: {{{}}}", all.join(", ")));
        }
        if !self.max.is_empty() {
            let all: Vec<_> = self.max.iter().map(|(name, max)| format!("\"{name}\": {max}")).collect();
            parts.push(format!("max: {{{}}}", all.join(", ")));
        }
        format!("query: {{{}}}", parts.join(", "))
    }
}

fn headers(headers: &[Header]) -> Option<String> {
    let all: Vec<_> = headers.iter().map(|(name, values)| format!("{name}: {}", list(values))).collect();
    (!all.is_empty()).then(|| format!("headers: {{{}}}", all.join(", ")))
}

fn list(items: &[String]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("'{item}'")).collect();
    format!("[{}]", quoted.join(", "))
}

impl Asked {
    /// The engine's answer.
    pub fn decide(&self, policy: &Policy) -> Answer {
        let grants = policy.grants(&SpiffeId::parse(&self.id).unwrap(), UnixSeconds(self.now));
        let request = self.request();
        if let Some(listener) = request.tcp_listener() {
            return Answer::of(&policy.decide_tcp(&grants, listener));
        }
        let raw = request.raw(&self.host);
        match admit(&raw, policy.path_rules()) {
            Err(reason) => Answer::of(&policy.reject(&raw, reason)),
            Ok(admitted) => Answer::of(&policy.decide(&grants, &admitted)),
        }
    }

    pub fn request(&self) -> Request {
        let mut request = Request::parse(&format!("{} {}", self.method, self.target)).unwrap();
        assert!(self.headers.iter().all(|(name, value)| request.add_header(name, value)));
        request
    }
}

impl Answer {
    fn of(decision: &Decision<'_>) -> Self {
        // The reference knows what is rejected, not why.
        let code = |outcome, reason: phiward::policy::Reason| match outcome {
            phiward::policy::Outcome::Reject => "rejected".to_owned(),
            _ => reason.as_str().to_owned(),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            reason: code(decision.outcome, decision.reason),
            rule: owned(decision.rule),
            role: owned(decision.role),
            template: owned(decision.template.map(|template| template.as_str())),
            shadow: decision.shadow.map(|shadow| (code(shadow.outcome, shadow.reason), owned(shadow.rule))),
        }
    }

    pub fn is_allowed(&self) -> bool {
        ["rule", "health", "shadow_mode"].contains(&self.reason.as_str())
    }
}
