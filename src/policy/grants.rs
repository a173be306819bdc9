//! Which rules concern one identity: worked out once a connection, so that a request does not look at identities at all.

use crate::identity::SpiffeId;

use super::UnixSeconds;
use super::compile::{CompiledBinding, EVERYONE, Policy};
use super::trie::End;

/// What a policy says about one identity at one time. Small: two short lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grants {
    stamp: u64,
    /// The roles it has, sorted.
    roles: Box<[u32]>,
    /// The groups of deny rules that concern it, sorted; always with [`EVERYONE`].
    denies: Box<[u32]>,
    valid_until: Option<UnixSeconds>,
}

impl Policy {
    /// The rights of `id` at `now`. Ask again when the policy changes and when [`Grants::valid_until`] has come.
    pub fn grants(&self, id: &SpiffeId, now: UnixSeconds) -> Grants {
        let literal = self.bindings.literal.get(id.as_str()).into_iter().flatten().copied();
        let wild = self.bindings.wild.iter().filter(|(pattern, _)| pattern.matches(id)).map(|(_, at)| *at);
        let mut next = Next { now, at: None };
        let mut roles = Vec::new();
        for at in literal.chain(wild) {
            let binding = &self.bindings.all[at as usize];
            if next.in_force(binding.from, binding.until) {
                roles.push(binding.role);
            }
        }
        let mut denies = vec![EVERYONE];
        for (at, deny) in self.denies.iter().enumerate() {
            let concerns =
                deny.identities.as_ref().is_none_or(|list| list.iter().any(|pattern| pattern.matches(id)));
            let dated = deny.identities.is_some() || deny.until.is_some();
            if concerns && dated && next.in_force(None, deny.until) {
                denies.push(at as u32 + 1); // the rule's group; fits: a file has at most 4 MiB
            }
        }
        roles.sort_unstable();
        roles.dedup();
        Grants { stamp: self.stamp, roles: roles.into(), denies: denies.into(), valid_until: next.at }
    }

    /// The bindings that name `id` and are not in force at `now`, with their role.
    pub(super) fn dormant(&self, id: &SpiffeId, now: UnixSeconds) -> Vec<&CompiledBinding> {
        let literal = self.bindings.literal.get(id.as_str()).into_iter().flatten().copied();
        let wild = self.bindings.wild.iter().filter(|(pattern, _)| pattern.matches(id)).map(|(_, at)| *at);
        let mut next = Next { now, at: None };
        let all = literal.chain(wild).map(|at| &self.bindings.all[at as usize]);
        all.filter(|binding| !next.in_force(binding.from, binding.until)).collect()
    }

    /// The widest rights that anyone can have at `now`: every role that is bound, and only the deny rules that concern
    /// everyone.
    pub(super) fn widest_grants(&self, now: UnixSeconds) -> Grants {
        let mut next = Next { now, at: None };
        let bound = self.bindings.all.iter().filter(|binding| next.in_force(binding.from, binding.until));
        let mut roles: Vec<_> = bound.map(|binding| binding.role).collect();
        roles.sort_unstable();
        roles.dedup();
        let mut denies = vec![EVERYONE];
        for (at, deny) in self.denies.iter().enumerate() {
            if deny.identities.is_none() && deny.until.is_some() && next.in_force(None, deny.until) {
                denies.push(at as u32 + 1);
            }
        }
        Grants { stamp: self.stamp, roles: roles.into(), denies: denies.into(), valid_until: next.at }
    }

    /// The narrowest rights that anyone can have at `now`: no role, and every deny rule.
    pub(super) fn narrowest_grants(&self, now: UnixSeconds) -> Grants {
        let mut next = Next { now, at: None };
        let in_force = |deny: &super::compile::CompiledDeny| next.in_force(None, deny.until);
        let in_force: Vec<_> = self.denies.iter().map(in_force).collect();
        let dated = (1..).zip(in_force).filter(|(_, in_force)| *in_force).map(|(group, _)| group);
        let denies = std::iter::once(EVERYONE).chain(dated).collect();
        Grants { stamp: self.stamp, roles: [].into(), denies, valid_until: next.at }
    }
}

impl Grants {
    /// When a dated binding or deny rule changes these rights; none when nothing ever does.
    pub fn valid_until(&self) -> Option<UnixSeconds> {
        self.valid_until
    }

    /// True when the identity has no role at all.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty()
    }

    pub(super) fn belong_to(&self, policy: &Policy) -> bool {
        self.stamp == policy.stamp
    }

    pub(super) fn has_role(&self, role: u32) -> bool {
        self.roles.binary_search(&role).is_ok()
    }

    pub(super) fn each_allowed<'e>(&self, ends: &'e [End], visit: impl FnMut(&'e End)) {
        each_of(&self.roles, ends, visit);
    }

    pub(super) fn each_denied<'e>(&self, ends: &'e [End], visit: impl FnMut(&'e End)) {
        each_of(&self.denies, ends, visit);
    }
}

/// Calls `visit` with the `ends` whose group is in `groups`, both sorted by group. Costs what the shorter of the two is long,
/// so that neither a path with thousands of rules nor an identity with thousands of roles is slow.
fn each_of<'e>(groups: &[u32], ends: &'e [End], mut visit: impl FnMut(&'e End)) {
    if ends.len() <= 4 * groups.len() {
        ends.iter().filter(|end| groups.binary_search(&end.group).is_ok()).for_each(visit);
        return;
    }
    for group in groups {
        let first = ends.partition_point(|end| end.group < *group);
        ends[first..].iter().take_while(|end| end.group == *group).for_each(&mut visit);
    }
}

/// The earliest moment at which a date matters.
struct Next {
    now: UnixSeconds,
    at: Option<UnixSeconds>,
}

impl Next {
    /// True when `now` is at or after `from` and before `until`; notes when that changes.
    fn in_force(&mut self, from: Option<UnixSeconds>, until: Option<UnixSeconds>) -> bool {
        let ahead = [from, until].into_iter().flatten().filter(|time| *time > self.now);
        self.at = self.at.into_iter().chain(ahead).min();
        from.is_none_or(|from| from <= self.now) && until.is_none_or(|until| self.now < until)
    }
}
