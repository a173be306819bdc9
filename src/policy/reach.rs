//! Rules that can never decide anything, because others always come first. Inclusion of patterns is decidable, so these are
//! facts about the file and not guesses.

use crate::yaml::Mark;

use super::Finding;
use super::compile::{CompiledDeny, CompiledPermission, EVERYONE, Policy};
use super::document::Document;
use super::trie::End;

/// How many pairs of rules are compared at most: about a second.
const MAX_COMPARISONS: usize = 20_000_000;

/// Looks for unreachable and shadowed rules in `policy`, which was compiled from `document`.
pub(super) fn run(document: &Document, policy: &Policy) -> Vec<Finding> {
    let permissions = document.roles.iter().flat_map(|role| &role.permissions);
    let marks = permissions.flat_map(|permission| &permission.paths).map(|path| path.at).collect();
    let mut search = Search { policy, marks, comparisons: 0 };
    let mut findings = Vec::new();
    for (rule, permission) in (0..).zip(&policy.permissions) {
        findings.extend(search.denied(permission));
        findings.extend(search.shadowed(rule, permission));
    }
    for (rule, deny) in (0..).zip(&policy.denies) {
        findings.extend(search.shadowed_deny(rule, deny));
    }
    if search.comparisons >= MAX_COMPARISONS {
        let message = "the file has too many rules alike to look for all that can never match";
        findings.push(Finding::warning("not_compared", document.at, message));
    }
    findings
}

struct Search<'p> {
    policy: &'p Policy,
    /// Where each template of a permission stands.
    marks: Vec<Mark>,
    comparisons: usize,
}

impl<'p> Search<'p> {
    /// False once too many pairs of rules were compared.
    fn may_compare(&mut self) -> bool {
        self.comparisons += 1;
        self.comparisons < MAX_COMPARISONS
    }

    /// A permission whose paths are all, or in part, denied to everyone for good.
    fn denied(&mut self, permission: &CompiledPermission) -> Vec<Finding> {
        if permission.tcp.is_some() {
            return Vec::new(); // only denied to identities, never to everyone for good
        }
        let found: Vec<_> =
            permission.paths.clone().filter_map(|at| Some((at, self.denier(permission, at)?))).collect();
        if found.len() == permission.paths.len() {
            let deny = &self.policy.denies[found[0].1 as usize].name; // one for HTTP has at least one path
            let message = format!(
                "`{}` can never allow anything: deny rules such as `{deny}` cover all of it",
                permission.name
            );
            let finding = Finding::warning("unreachable", permission.at, message);
            return vec![finding.hint("remove it, or make the deny rule narrower")];
        }
        let partly = |(at, deny): (usize, u32)| {
            let (path, deny) = (self.policy.templates[at].as_str(), &self.policy.denies[deny as usize].name);
            let message = format!("`{path}` is never allowed: the deny rule `{deny}` covers it");
            let finding = Finding::warning("unreachable_path", self.marks[at], message);
            finding.hint("remove the path, or make the deny rule narrower")
        };
        found.into_iter().map(partly).collect()
    }

    /// The first deny rule for everyone that covers one path of a permission.
    fn denier(&mut self, permission: &CompiledPermission, path: usize) -> Option<u32> {
        let policy = self.policy;
        let mut first = None;
        let mut visit = |ends: &[End]| {
            for end in ends.iter().take_while(|end| end.group == EVERYONE) {
                let deny = &policy.denies[end.rule as usize];
                if self.may_compare()
                    && !deny.shadow
                    && first.is_none_or(|first| end.rule < first)
                    && deny.methods.includes(permission.methods)
                    && deny.conditions_include_permission(permission)
                {
                    first = Some(end.rule);
                }
            }
        };
        visit(&policy.pathless);
        policy.deny_tree.walk_including(&policy.templates[path].0, &mut visit);
        first
    }

    /// A permission that an earlier one of the same role makes superfluous.
    fn shadowed(&mut self, rule: u32, permission: &CompiledPermission) -> Option<Finding> {
        let policy = self.policy;
        let wider = if permission.tcp.is_some() {
            self.shadowing_tcp(rule, permission)?
        } else {
            self.shadowing(rule, permission)?
        };
        let (role, wider) =
            (&policy.roles[permission.role as usize], &policy.permissions[wider as usize].name);
        let message =
            format!("`{}` adds nothing to the role `{role}`: `{wider}` grants all of it", permission.name);
        let finding = Finding::warning("shadowed", permission.at, message);
        Some(finding.hint("remove it, or make the earlier one narrower"))
    }

    /// The first permission for TCP before `rule` that opens all its listeners.
    fn shadowing_tcp(&mut self, rule: u32, permission: &CompiledPermission) -> Option<u32> {
        let policy = self.policy;
        let first = policy.tcp.partition_point(|end| end.group < permission.role);
        let earlier = policy.tcp[first..].iter().take_while(|end| end.rule < rule).map(|end| end.rule);
        earlier.into_iter().find(|rule| {
            let wider = &policy.permissions[*rule as usize];
            let opens = |listener| wider.tcp.iter().flatten().any(|ours| ours == listener);
            self.may_compare() && !wider.shadow && permission.tcp.iter().flatten().all(opens)
        })
    }

    /// The first permission for HTTP before `rule` that grants all of it.
    fn shadowing(&mut self, rule: u32, permission: &CompiledPermission) -> Option<u32> {
        let policy = self.policy;
        self.covering_all(permission.paths.clone(), |search, path, rules| {
            policy.allow_tree.walk_including(&policy.templates[path].0, &mut |ends| {
                let first = ends.partition_point(|end| end.group < permission.role);
                for end in
                    ends[first..].iter().take_while(|end| end.group == permission.role && end.rule < rule)
                {
                    let wider = &policy.permissions[end.rule as usize];
                    if search.may_compare()
                        && !wider.shadow
                        && wider.methods.includes(permission.methods)
                        && wider.conditions_include(permission)
                    {
                        rules.push(end.rule);
                    }
                }
            });
        })
    }

    /// A deny rule that an earlier one makes superfluous.
    fn shadowed_deny(&mut self, rule: u32, deny: &CompiledDeny) -> Option<Finding> {
        let policy = self.policy;
        let consider = |search: &mut Self, ends: &[End], rules: &mut Vec<u32>| {
            for end in ends.iter().filter(|end| end.rule < rule) {
                if search.may_compare() && includes_but_paths(&policy.denies[end.rule as usize], deny) {
                    rules.push(end.rule);
                }
            }
        };
        let mut pathless = Vec::new();
        consider(self, &policy.pathless, &mut pathless);
        let wider = pathless.into_iter().min().or_else(|| {
            self.covering_all(deny.paths.clone()?, |search, path, rules| {
                let pattern = &policy.templates[path].0;
                policy.deny_tree.walk_including(pattern, &mut |ends| consider(search, ends, rules));
            })
        })?;
        let (name, wider) = (&deny.name, &policy.denies[wider as usize].name);
        let message = format!("the deny rule `{name}` adds nothing: `{wider}` covers all of it");
        Some(Finding::warning("shadowed_deny", deny.at, message).hint("remove one of the two"))
    }

    /// The first of the rules that `collect` finds for every one of `paths`.
    fn covering_all(
        &mut self,
        paths: std::ops::Range<usize>,
        collect: impl Fn(&mut Self, usize, &mut Vec<u32>),
    ) -> Option<u32> {
        let mut common: Option<Vec<u32>> = None;
        for path in paths {
            let mut rules = Vec::new();
            collect(self, path, &mut rules);
            rules.sort_unstable();
            if let Some(common) = &common {
                rules.retain(|rule| common.binary_search(rule).is_ok());
            }
            if rules.is_empty() {
                return None;
            }
            common = Some(rules);
        }
        common?.first().copied()
    }
}

/// True when `wider` holds whenever `deny` does, as far as anything but the paths goes.
fn includes_but_paths(wider: &CompiledDeny, deny: &CompiledDeny) -> bool {
    let lasts = match (wider.until, deny.until) {
        (None, _) => true,
        (Some(wider), Some(deny)) => wider >= deny,
        (Some(_), None) => false,
    };
    let identities = match (&wider.identities, &deny.identities) {
        (None, _) => true,
        (Some(wider), Some(ids)) => ids.iter().all(|id| wider.iter().any(|wider| wider.includes(id))),
        (Some(_), None) => false,
    };
    lasts
        && identities
        && !wider.shadow
        && wider.methods.includes(deny.methods)
        && wider.conditions_include(deny)
        && (wider.tcp || !deny.tcp)
}
