//! The decision on one request.
//!
//! Deny matches wide, allow matches narrow: deny rules see a path in every way some server might read it, permissions
//! see it byte for byte. Nothing is allocated, and the work grows with the path's length, not with the number of rules.

use super::compile::{Policy, Template, names};
use super::trie::Reading;
use super::{Admitted, Grants, Method, Outcome, Reason};

/// What was decided, and by which rule.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'p> {
    /// Allow or deny.
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
}

/// A rule that matched: the rule and the pattern, as indices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hit {
    rule: u32,
    pattern: u32,
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
            return Decision::of(Reason::UnknownHost);
        }
        if let Some(hit) = self.denied(grants, request) {
            let rule = &self.denies[hit.rule as usize];
            let template = self.templates.get(hit.pattern as usize);
            return Decision { rule: Some(&rule.name), template, ..Decision::of(Reason::DenyRule) };
        }
        if let Some(hit) = self.allowed(grants, request) {
            let rule = &self.permissions[hit.rule as usize];
            return Decision {
                rule: Some(&rule.name),
                role: Some(&self.roles[rule.role as usize]),
                template: self.templates.get(hit.pattern as usize),
                ..Decision::of(Reason::Rule)
            };
        }
        Decision { template: self.template_of(request), ..Decision::of(Reason::NoAllowRule) }
    }

    /// The health path that the request asks for.
    pub(super) fn health_of(&self, request: &Admitted<'_>) -> Option<&Template> {
        if request.method != Method::Get {
            return None;
        }
        self.health.iter().find(|template| template.as_str() == request.path)
    }

    fn denied(&self, grants: &Grants, request: &Admitted<'_>) -> Option<Hit> {
        let mut first: Option<Hit> = None;
        let mut visit = |ends: &[_]| {
            grants.each_denied(ends, |end| {
                let hit = Hit { rule: end.rule, pattern: end.pattern };
                let matches = end.methods.contains(request.method)
                    && first.is_none_or(|first| hit < first)
                    && host_matches(self.denies[end.rule as usize].hosts.as_deref(), request);
                if matches {
                    first = Some(hit);
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
        first
    }

    fn allowed(&self, grants: &Grants, request: &Admitted<'_>) -> Option<Hit> {
        let mut first: Option<Hit> = None;
        self.allow_tree.walk(&request.path, Reading::default(), &mut |ends| {
            grants.each_allowed(ends, |end| {
                let hit = Hit { rule: end.rule, pattern: end.pattern };
                let matches = end.methods.contains(request.method)
                    && first.is_none_or(|first| hit < first)
                    && host_matches(self.permissions[end.rule as usize].hosts.as_deref(), request);
                if matches {
                    first = Some(hit);
                }
            });
        });
        first
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

fn host_matches(hosts: Option<&[String]>, request: &Admitted<'_>) -> bool {
    hosts.is_none_or(|hosts| names(hosts, &request.host))
}

impl Decision<'_> {
    fn of(reason: Reason) -> Self {
        Self { outcome: reason.outcome(), reason, rule: None, role: None, template: None }
    }

    /// A rejected request, so that it can be told like any other decision.
    pub fn rejected(reason: Reason) -> Self {
        Self::of(reason)
    }

    /// True when the request may be forwarded.
    pub fn is_allowed(&self) -> bool {
        self.outcome == Outcome::Allow
    }
}
