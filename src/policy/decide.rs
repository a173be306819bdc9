//! The decision on one request.
//!
//! Deny matches wide, allow matches narrow: deny rules see a path in every way some server might read it, permissions
//! see it byte for byte. Nothing is allocated, and the work grows with the path's length, not with the number of rules.

use super::compile::{Policy, Template, names};
use super::trie::{End, Reading};
use super::{Admitted, Grants, Method, Outcome, RawRequest, Reason};

/// What was decided, and by which rule.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'p> {
    /// Allow, deny or reject.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The permission or the deny rule that decided.
    pub rule: Option<&'p str>,
    /// The role whose permission decided.
    pub role: Option<&'p str>,
    /// What may be written down instead of the path: the pattern that matched, or for `no_allow_rule` the first pattern of
    /// any role that matches the path.
    pub template: Option<&'p Template>,
    /// What would have been decided if everything in shadow were enforced; none when that is the same.
    pub shadow: Option<Shadow<'p>>,
}

/// A decision that was not enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow<'p> {
    /// Allow, deny or reject.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The permission or the deny rule that would have decided.
    pub rule: Option<&'p str>,
}

/// A rule that matched: the rule and the pattern, as indices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hit {
    rule: u32,
    pattern: u32,
}

/// The first of the file's rules that match.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Hits {
    /// Among those that are enforced.
    enforced: Option<Hit>,
    /// Among all, those in shadow too.
    any: Option<Hit>,
}

impl Policy {
    /// Decides `request` for the identity that `grants` were made for.
    ///
    /// Health checks come first, whatever the host: they are made by address, without an identity, and exactly of the paths
    /// the policy lists. Then the host must be known, then no deny rule may match, then a permission must. Of several rules
    /// that match, the first of the file is named.
    pub fn decide<'p>(&'p self, grants: &Grants, request: &Admitted<'_>) -> Decision<'p> {
        if let Some(template) = self.health_of(request) {
            return Decision { template: Some(template), ..Decision::of(Reason::Health) };
        }
        if !grants.belong_to(self) {
            return Decision::of(Reason::NoPolicy);
        }
        if self.hosts.as_ref().is_some_and(|hosts| !names(hosts, &request.host)) {
            return self.in_mode(Decision::of(Reason::UnknownHost));
        }
        let denied = self.denied(grants, request);
        let allowed = if denied.enforced.is_none() { self.allowed(grants, request) } else { Hits::default() };
        let mut decision = self.with_shadow(denied, allowed);
        if decision.reason == Reason::NoAllowRule {
            decision.template = self.template_of(request);
        }
        self.in_mode(decision)
    }

    /// What becomes of a request that [`super::admit`] refused for `reason`. In shadow mode it passes, as it came, but for
    /// what no proxy may forward: CONNECT is a tunnel, and a path without a slash is malformed (RFC 9113 section 8.1.1).
    pub fn reject(&self, raw: &RawRequest<'_>, reason: Reason) -> Decision<'_> {
        let has_path = raw.target.starts_with('/') || raw.target == "*" && raw.method == "OPTIONS";
        let decision = Decision::of(reason);
        if has_path && raw.method != "CONNECT" { self.in_mode(decision) } else { decision }
    }

    /// Decides whether the identity that `grants` were made for may open a stream to the TCP listener called `listener`.
    /// Deny rules that are about identities alone hold here too; those about paths, methods, hosts or headers do not.
    pub fn decide_tcp<'p>(&'p self, grants: &Grants, listener: &str) -> Decision<'p> {
        if !grants.belong_to(self) {
            return Decision::of(Reason::NoPolicy);
        }
        let (mut denied, mut allowed) = (Hits::default(), Hits::default());
        grants.each_denied(&self.pathless, |end| {
            if self.denies[end.rule as usize].tcp {
                denied.note(end);
            }
        });
        grants.each_allowed(&self.tcp, |end| {
            let opened = self.permissions[end.rule as usize].tcp.iter().flatten();
            if opened.into_iter().any(|opened| opened == listener) {
                allowed.note(end);
            }
        });
        self.in_mode(self.with_shadow(denied, allowed))
    }

    /// The health path that the request asks for.
    pub(super) fn health_of(&self, request: &Admitted<'_>) -> Option<&Template> {
        if request.method != Method::Get {
            return None;
        }
        self.health.iter().find(|template| template.as_str() == request.path)
    }

    fn denied(&self, grants: &Grants, request: &Admitted<'_>) -> Hits {
        let mut hits = Hits::default();
        let mut visit = |ends: &[_]| {
            grants.each_denied(ends, |end| {
                let matches = end.methods.contains(request.method)
                    && hits.lacks(end)
                    && (!end.conditional || self.denies[end.rule as usize].check(request).is_ok());
                if matches {
                    hits.note(end);
                }
            });
        };
        visit(&self.pathless);
        for split in [false, true] {
            for cut in [false, true] {
                if (!split || request.slashes) && (!cut || request.params) {
                    self.deny_tree.walk(&request.path, Reading { split, cut }, &mut visit);
                }
            }
        }
        hits
    }

    fn allowed(&self, grants: &Grants, request: &Admitted<'_>) -> Hits {
        let mut hits = Hits::default();
        self.allow_tree.walk(&request.path, Reading::default(), &mut |ends| {
            grants.each_allowed(ends, |end| {
                let matches = end.methods.contains(request.method)
                    && hits.lacks(end)
                    && (!end.conditional || self.permissions[end.rule as usize].check(request).is_ok());
                if matches {
                    hits.note(end);
                }
            });
        });
        hits
    }

    /// What is enforced, and beside it what would be if rules in shadow were too, where that differs.
    fn with_shadow(&self, denied: Hits, allowed: Hits) -> Decision<'_> {
        let decision = self.decided(denied.enforced, allowed.enforced);
        if !self.has_shadow_rules || denied.any == denied.enforced && allowed.any == allowed.enforced {
            return decision;
        }
        let would = Shadow::of(&self.decided(denied.any, allowed.any));
        Decision { shadow: (would != Shadow::of(&decision)).then_some(would), ..decision }
    }

    fn decided(&self, denied: Option<Hit>, allowed: Option<Hit>) -> Decision<'_> {
        if let Some(hit) = denied {
            let rule = Some(self.denies[hit.rule as usize].name.as_str());
            let template = self.templates.get(hit.pattern as usize);
            return Decision { rule, template, ..Decision::of(Reason::DenyRule) };
        }
        let Some(hit) = allowed else { return Decision::of(Reason::NoAllowRule) };
        let rule = &self.permissions[hit.rule as usize];
        Decision {
            rule: Some(&rule.name),
            role: Some(&self.roles[rule.role as usize]),
            template: self.templates.get(hit.pattern as usize),
            ..Decision::of(Reason::Rule)
        }
    }

    /// `decision` as the policy's mode lets it stand: in shadow mode nothing is refused.
    fn in_mode<'p>(&self, decision: Decision<'p>) -> Decision<'p> {
        if !self.shadow || decision.is_allowed() {
            return decision;
        }
        let shadow = Some(Shadow::of(&decision));
        Decision { shadow, template: decision.template, ..Decision::of(Reason::ShadowMode) }
    }

    /// The first pattern of any permission that matches the path.
    fn template_of(&self, request: &Admitted<'_>) -> Option<&Template> {
        let mut first: Option<u32> = None;
        self.allow_tree.walk(&request.path, Reading::default(), &mut |ends| {
            let least = ends.iter().map(|end| end.pattern).min();
            first = first.into_iter().chain(least).min();
        });
        self.templates.get(first? as usize)
    }
}

impl Hits {
    /// True when `end` would come before what was found so far.
    fn lacks(&self, end: &End) -> bool {
        let found = if end.shadow { self.any } else { self.enforced };
        found.is_none_or(|found| Hit::of(end) < found)
    }

    fn note(&mut self, end: &End) {
        let hit = Hit::of(end);
        let first = |found: Option<Hit>| Some(found.map_or(hit, |found| found.min(hit)));
        self.any = first(self.any);
        if !end.shadow {
            self.enforced = first(self.enforced);
        }
    }
}

impl Hit {
    fn of(end: &End) -> Self {
        Self { rule: end.rule, pattern: end.pattern }
    }
}

impl<'p> Shadow<'p> {
    /// What was enforced, in the same form.
    pub(super) fn of(decision: &Decision<'p>) -> Self {
        Self { outcome: decision.outcome, reason: decision.reason, rule: decision.rule }
    }
}

impl<'p> Decision<'p> {
    fn of(reason: Reason) -> Self {
        Self { outcome: reason.outcome(), reason, rule: None, role: None, template: None, shadow: None }
    }

    /// True when the request may be forwarded.
    pub fn is_allowed(&self) -> bool {
        self.outcome == Outcome::Allow
    }

    /// What would have come of it if everything in shadow were enforced: for [`Self::shadow`] none, what did come of it.
    pub fn unshadowed(&self) -> Shadow<'p> {
        self.shadow.unwrap_or_else(|| Shadow::of(self))
    }

    /// True when only shadow lets it pass.
    pub fn is_shadow_denial(&self) -> bool {
        self.is_allowed() && self.shadow.is_some_and(|shadow| shadow.outcome != Outcome::Allow)
    }
}
