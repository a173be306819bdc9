//! What was moved into shadow or out of it: the whole policy, or single rules.
//!
//! A policy in shadow mode refuses nothing, not even what can be read in two ways, and a deny rule in shadow denies nothing.
//! So a move into shadow widens, and is told as such even where no request of today shows it. A permission is the other way
//! round: in shadow it grants nothing.

use std::collections::HashMap;

use super::super::Policy;

/// Something that was moved into shadow or out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// What it is.
    pub what: Moving,
    /// True when the old version enforces it and the new one does not.
    pub into_shadow: bool,
}

/// What can be in shadow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moving {
    /// The whole policy.
    Policy,
    /// A deny rule, by name.
    Deny(String),
    /// A permission, as `role/permission`.
    Permission(String),
}

impl Moved {
    /// True when the move lets more pass, false when less.
    pub fn widens(&self) -> bool {
        self.into_shadow != matches!(self.what, Moving::Permission(_))
    }
}

/// The moves from `old` to `new`. When the policy as a whole moves, that is all there is to tell: its rules move with it.
pub(super) fn moved(old: &Policy, new: &Policy) -> Vec<Moved> {
    if old.shadow != new.shadow {
        return vec![Moved { what: Moving::Policy, into_shadow: new.shadow }];
    }
    let before: HashMap<Moving, bool> = modes(old).collect();
    let pairs = modes(new).filter_map(|(what, into_shadow)| {
        let was = before.get(&what)?;
        (*was != into_shadow).then_some(Moved { what, into_shadow })
    });
    let mut moved: Vec<_> = pairs.collect();
    moved.sort_by(|a, b| a.what.cmp(&b.what));
    moved
}

/// Each rule, and whether it is in shadow.
fn modes(policy: &Policy) -> impl Iterator<Item = (Moving, bool)> {
    let denies = policy.denies.iter().map(|deny| (Moving::Deny(deny.name.clone()), deny.shadow));
    let permissions = policy.permissions.iter().map(|permission| {
        let role = &policy.roles[permission.role as usize];
        (Moving::Permission(format!("{role}/{}", permission.name)), permission.shadow)
    });
    denies.chain(permissions)
}
