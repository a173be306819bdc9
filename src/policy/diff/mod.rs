//! What a new version of a policy gives and takes: exact answers, each with a request that shows it.
//!
//! The requests that an identity may make are a union of areas (the permissions of its roles) minus a union of areas (the
//! deny rules that concern it). What is gained is the new set minus the old one, which comes apart into pieces that are
//! each one area, or two that overlap, minus other areas. Whether a piece is empty is decidable: patterns, host lists,
//! methods, header and query rules cut every dimension into finitely many regions that no rule can tell apart inside. So
//! nothing is sampled and nothing is guessed; what would take too long to decide is told as such.
//!
//! Owns the comparison. Knows nothing of files or of how a difference is shown.

mod conditions;
mod gain;
mod identities;
mod modes;
mod piece;
mod view;
mod walk;

use std::collections::HashMap;

use crate::identity::SpiffeId;

use super::{Decision, Method, Policy, Request, UnixSeconds, admit};
use gain::World;
use identities::Regions;
pub use modes::{Moved, Moving};
use view::{Interner, Side, View};

/// What changed between two policies, from `now` on.
#[derive(Debug)]
pub struct Diff {
    /// What changed for whom; parts of the mesh for which nothing changed are left out.
    pub groups: Vec<Group>,
    /// What was moved into shadow or out of it.
    pub moved: Vec<Moved>,
    /// What could not be decided within bounds, in words. Empty but for files made to be hard.
    pub undecided: Vec<String>,
    regions: Regions,
}

/// Identities and times for which the same changed.
#[derive(Debug)]
pub struct Group {
    /// For whom.
    pub who: Vec<Who>,
    /// When.
    pub during: Vec<Period>,
    /// What the new policy allows and the old one does not.
    pub gained: Vec<Change>,
    /// What the old policy allowed and the new one does not.
    pub lost: Vec<Change>,
    /// True when it holds for every identity, known or not.
    pub everyone: bool,
    regions: Vec<usize>,
}

/// A part of all identities that no pattern of either file tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// The patterns that all of them match, the narrowest ones; none for those that no pattern matches.
    pub patterns: Vec<String>,
    /// Patterns and identities that are told apart from these, and are not meant here.
    pub except: Vec<String>,
    /// One of them.
    pub example: SpiffeId,
}

/// A time during which no date of either file comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// Its first second.
    pub from: UnixSeconds,
    /// The first second after it; none when it does not end.
    pub until: Option<UnixSeconds>,
}

/// A permission that is gained or lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// With which methods; empty for TCP.
    pub methods: Vec<Method>,
    /// Which paths: a pattern of the file that allows it; `TCP name` for a listener, and
    /// `TCP *` for those that no rule names.
    pub path: String,
    /// Which hosts; none means all that the policy is for.
    pub hosts: Option<Vec<String>>,
    /// What else a request must be, in words.
    pub conditions: Vec<String>,
    /// What is not meant although the pattern matches it: a pattern, and why.
    pub except: Vec<Exception>,
    /// The permission that allows it, as `role/permission`; none when a whole policy is in shadow mode or it is a health path.
    pub permission: Option<String>,
    /// Why the other version does not allow it.
    pub because: String,
    /// A request that one version allows and the other does not.
    pub example: Example,
}

/// Requests that are not part of a change, because both versions agree on them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// The paths, as a pattern.
    pub path: String,
    /// The rule that decides them.
    pub because: String,
}

/// A request that shows a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Who makes it.
    pub id: SpiffeId,
    /// When.
    pub now: UnixSeconds,
    /// Method and target.
    pub line: String,
    /// Its headers, `host` among them.
    pub headers: Vec<(String, String)>,
}

impl Example {
    /// What `policy` decides about it, by the code that decides in production; none when it is no request.
    pub fn decision<'p>(&self, policy: &'p Policy) -> Option<Decision<'p>> {
        let request = self.request()?;
        let grants = policy.grants(&self.id, self.now);
        if let Some(listener) = request.tcp_listener() {
            return Some(policy.decide_tcp(&grants, listener));
        }
        let raw = request.raw(policy.default_host());
        Some(match admit(&raw, policy.path_rules()) {
            Ok(admitted) => policy.decide(&grants, &admitted),
            Err(reason) => policy.reject(&raw, reason),
        })
    }

    /// The request, for [`super::explain()`].
    pub fn request(&self) -> Option<Request> {
        let mut request = Request::parse(&self.line)?;
        self.headers.iter().all(|(name, value)| request.add_header(name, value)).then_some(request)
    }
}

impl Diff {
    /// True when the new policy allows a request that the old one does not, when it enforces less, or when that could not be
    /// decided.
    pub fn is_widened(&self) -> bool {
        let moved = self.moved.iter().any(Moved::widens);
        moved || !self.undecided.is_empty() || self.groups.iter().any(|group| !group.gained.is_empty())
    }

    /// True when the old policy allows a request that the new one does not, or enforces less.
    pub fn is_narrowed(&self) -> bool {
        self.moved.iter().any(|moved| !moved.widens())
            || self.groups.iter().any(|group| !group.lost.is_empty())
    }

    /// The groups that are about `id` at `time`.
    pub fn about(&self, id: &SpiffeId, time: UnixSeconds) -> impl Iterator<Item = &Group> {
        let region = self.regions.of(id);
        let then =
            move |period: &Period| period.from <= time && period.until.is_none_or(|until| time < until);
        self.groups
            .iter()
            .filter(move |group| {
                group.everyone || region.is_some_and(|region| group.regions.contains(&region))
            })
            .filter(move |group| group.during.iter().any(then))
    }
}

/// What concerns one part of all identities at one time: roles and deny rules of the old and the new policy.
type Rights = [(Vec<u32>, Vec<u32>); 2];

/// Compares `old` with `new`, for requests from `now` on.
pub fn diff(old: &Policy, new: &Policy, now: UnixSeconds) -> Diff {
    let mut interner = Interner::default();
    let (before, after) = (Side::new(old, &mut interner), Side::new(new, &mut interner));
    let world = World::new([&before, &after]);
    let mut undecided = Vec::new();
    let regions = Regions::of_policies([old, new], &mut undecided);
    let mut results: Vec<(Vec<Change>, Vec<Change>)> = Vec::new();
    let mut known: HashMap<Rights, usize> = HashMap::new();
    // Which regions have which result when. Ordered, so that the same files always give the same report.
    let mut order: Vec<(usize, Vec<Period>)> = Vec::new();
    let mut members: HashMap<(usize, Vec<Period>), Vec<usize>> = HashMap::new();
    let periods = periods([old, new], now);
    for (index, who) in regions.all.iter().enumerate() {
        let mut timeline: Vec<(usize, Vec<Period>)> = Vec::new();
        for period in &periods {
            let rights = [old, new].map(|policy| rights(policy, &who.example, period.from));
            let result = *known.entry(rights).or_insert_with_key(|[old_rights, new_rights]| {
                let (from, to) = (View::new(&before, old_rights), View::new(&after, new_rights));
                let gained = world.gained(&from, &to, &mut undecided);
                let lost = world.gained(&to, &from, &mut undecided);
                results.push((gained, lost));
                results.len() - 1
            });
            extend(&mut timeline, result, *period);
        }
        for part in timeline.into_iter().filter(|(result, _)| results[*result] != Default::default()) {
            let regions = members.entry(part.clone()).or_default();
            if regions.is_empty() {
                order.push(part);
            }
            regions.push(index);
        }
    }
    let everyone = everyone(&world, [&before, &after], now);
    let groups = order.into_iter().map(|part| {
        let indices = members.remove(&part).unwrap_or_default();
        Group::new(&regions, indices, part.1, results[part.0].clone())
    });
    let groups = everyone.into_iter().chain(groups).collect();
    undecided.sort();
    undecided.dedup();
    Diff { groups, moved: modes::moved(old, new), undecided, regions }
}

/// Adds `period` to those with the same result, as one with the one before when nothing lies between.
fn extend(timeline: &mut Vec<(usize, Vec<Period>)>, result: usize, period: Period) {
    match timeline.iter_mut().find(|(known, _)| *known == result) {
        Some((_, periods)) => match periods.last_mut().filter(|last| last.until == Some(period.from)) {
            Some(last) => last.until = period.until,
            None => periods.push(period),
        },
        None => timeline.push((result, vec![period])),
    }
}

/// What changed for everyone alike: the paths that need no identity.
fn everyone(world: &World, sides: [&Side<'_>; 2], now: UnixSeconds) -> Option<Group> {
    let [gained, lost] =
        [[sides[0], sides[1]], [sides[1], sides[0]]].map(|[from, to]| world.health(from, to));
    let who = Who { patterns: Vec::new(), except: Vec::new(), example: identities::nobody() };
    let whole = Period { from: now, until: None };
    let group =
        Group { who: vec![who], during: vec![whole], gained, lost, everyone: true, regions: Vec::new() };
    (!group.gained.is_empty() || !group.lost.is_empty()).then(|| group.with_examples())
}

impl Group {
    fn new(
        all: &Regions,
        regions: Vec<usize>,
        during: Vec<Period>,
        (gained, lost): (Vec<Change>, Vec<Change>),
    ) -> Self {
        let who = regions.iter().map(|region| all.all[*region].clone()).collect();
        Self { who, during, gained, lost, everyone: false, regions }.with_examples()
    }

    /// Lets every example be made by one of those whom the group is about, at a time that it is about.
    fn with_examples(mut self) -> Self {
        for change in self.gained.iter_mut().chain(&mut self.lost) {
            change.example.id = self.who[0].example.clone(); // a group is about somebody
            change.example.now = self.during[0].from; // at some time
        }
        self
    }
}

/// The roles and the deny rules of `policy` that concern `id` at `now`.
fn rights(policy: &Policy, id: &SpiffeId, now: UnixSeconds) -> (Vec<u32>, Vec<u32>) {
    let grants = policy.grants(id, now);
    let roles = (0..policy.roles.len() as u32).filter(|role| grants.has_role(*role)).collect();
    let in_force = |deny: &super::compile::CompiledDeny| {
        deny.until.is_none_or(|until| now < until)
            && deny.identities.as_ref().is_none_or(|list| list.iter().any(|pattern| pattern.matches(id)))
    };
    let denies = (0..).zip(&policy.denies).filter(|(_, deny)| in_force(deny)).map(|(at, _)| at).collect();
    (roles, denies)
}

/// The times from `now` on, cut at every date of either policy.
fn periods(policies: [&Policy; 2], now: UnixSeconds) -> Vec<Period> {
    let mut dates = vec![now];
    for policy in policies {
        let bindings = policy.bindings.all.iter().flat_map(|binding| [binding.from, binding.until]);
        let denies = policy.denies.iter().map(|deny| deny.until);
        dates.extend(bindings.chain(denies).flatten().filter(|date| *date > now));
    }
    dates.sort_unstable();
    dates.dedup();
    let ends = dates[1..].iter().copied().map(Some).chain([None]);
    dates.iter().copied().zip(ends).map(|(from, until)| Period { from, until }).collect()
}
