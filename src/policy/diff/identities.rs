//! All identities, cut into regions that no pattern of either file tells apart inside.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::identity::{IdPattern, SpiffeId};

use super::super::Policy;
use super::Who;

/// An identity that no file names. `.invalid` is never a real domain (RFC 2606 section 2).
const NOBODY: &str = "spiffe://nobody.invalid/nobody";

/// An identity that no file names.
#[allow(clippy::expect_used)] // a constant, which the tests parse
pub(super) fn nobody() -> SpiffeId {
    SpiffeId::parse(NOBODY).expect("an identity")
}

/// How many states of all patterns together are looked at: far more than any file that people write has.
const MAX_STATES: usize = 100_000;
/// A pattern that matches nothing any more.
const DEAD: u16 = u16::MAX;

/// The regions, and where an identity belongs.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) all: Vec<Who>,
    literals: HashMap<String, usize>,
    wild: Vec<IdPattern>,
    /// By the patterns that match, as indices of `wild`.
    by_matches: HashMap<Vec<usize>, usize>,
}

impl Regions {
    pub(super) fn of_policies(policies: [&Policy; 2], undecided: &mut Vec<String>) -> Self {
        let (mut literals, mut wild) = (BTreeSet::new(), BTreeSet::new());
        for policy in policies {
            literals.extend(policy.bindings.literal.keys().cloned());
            wild.extend(policy.bindings.wild.iter().map(|(pattern, _)| pattern.clone()));
            for pattern in policy.denies.iter().flat_map(|deny| deny.identities.iter().flatten()) {
                if pattern.is_literal() {
                    literals.insert(pattern.as_str().to_owned());
                } else {
                    wild.insert(pattern.clone());
                }
            }
        }
        let mut regions = Self {
            all: Vec::new(),
            literals: HashMap::new(),
            wild: wild.into_iter().collect(),
            by_matches: HashMap::new(),
        };
        for id in &literals {
            let Ok(example) = SpiffeId::parse(id) else { continue }; // literal patterns are SPIFFE IDs
            regions.literals.insert(id.clone(), regions.all.len());
            regions.all.push(Who { patterns: vec![id.clone()], except: Vec::new(), example });
        }
        regions.add_wild(&literals, undecided);
        regions.add(Vec::new(), NOBODY, &literals);
        regions
    }

    /// The region of `id`; none only when the regions could not all be found.
    pub(super) fn of(&self, id: &SpiffeId) -> Option<usize> {
        if let Some(at) = self.literals.get(id.as_str()) {
            return Some(*at);
        }
        let matches = self.wild.iter().enumerate().filter(|(_, pattern)| pattern.matches(id));
        self.by_matches.get(&matches.map(|(at, _)| at).collect::<Vec<_>>()).copied()
    }

    fn add(&mut self, matches: Vec<usize>, example: &str, literals: &BTreeSet<String>) {
        if self.by_matches.contains_key(&matches) {
            return;
        }
        let Ok(example) = SpiffeId::parse(example) else { return }; // longer than an identity can be: there is none
        let inside: Vec<_> = matches.iter().map(|at| &self.wild[*at]).collect();
        let narrowest = inside.iter().filter(|pattern| {
            !inside
                .iter()
                .any(|other| other != *pattern && pattern.includes(other) && !other.includes(pattern))
        });
        let narrowest: Vec<_> = narrowest.copied().collect();
        let others = self.wild.iter().enumerate().filter(|(at, _)| !matches.contains(at));
        let others = others
            .map(|(_, pattern)| pattern)
            .filter(|other| narrowest.iter().all(|own| overlap(own, other)));
        let named = literals.iter().filter(|id| {
            SpiffeId::parse(id).is_ok_and(|id| narrowest.iter().all(|pattern| pattern.matches(&id)))
        });
        let except = others.map(|pattern| pattern.as_str().to_owned()).chain(named.cloned());
        let who = Who {
            except: if narrowest.is_empty() { Vec::new() } else { except.collect() },
            patterns: narrowest.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            example,
        };
        self.by_matches.insert(matches, self.all.len());
        self.all.push(who);
    }

    fn add_wild(&mut self, literals: &BTreeSet<String>, undecided: &mut Vec<String>) {
        let domains: BTreeSet<_> = self.wild.iter().map(|pattern| pattern.trust_domain().clone()).collect();
        for domain in domains {
            let members: Vec<_> =
                (0..self.wild.len()).filter(|at| *self.wild[*at].trust_domain() == domain).collect();
            let tracks: Vec<_> = members.iter().map(|at| Track::of(&self.wild[*at])).collect();
            let found = search(&tracks, &format!("spiffe://{}", domain.as_str()), literals);
            if !found.complete {
                undecided
                    .push(format!("the identity patterns of {} overlap in too many ways", domain.as_str()));
            }
            for (matches, example) in found.regions {
                self.add(matches.into_iter().map(|at| members[at]).collect(), &example, literals);
            }
        }
    }
}

/// True when some identity matches both.
fn overlap(a: &IdPattern, b: &IdPattern) -> bool {
    let (a_track, b_track) = (Track::of(a), Track::of(b));
    let lengths = match (a_track.rest, b_track.rest) {
        (false, false) => a_track.segments.len() == b_track.segments.len(),
        (true, false) => a_track.segments.len() < b_track.segments.len(),
        (false, true) => a_track.segments.len() > b_track.segments.len(),
        (true, true) => true,
    };
    let same = |(a, b): (&Option<String>, &Option<String>)| a.is_none() || b.is_none() || a == b;
    a.trust_domain() == b.trust_domain()
        && lengths
        && a_track.segments.iter().zip(&b_track.segments).all(same)
}

/// A pattern's segments; none is any one.
struct Track {
    segments: Vec<Option<String>>,
    rest: bool,
}

impl Track {
    fn of(pattern: &IdPattern) -> Self {
        let (segments, rest) = pattern.parts();
        Self { segments: segments.map(|segment| segment.map(str::to_owned)).collect(), rest }
    }

    /// The state after `segment`. A last `**` stands for one segment at least, so it has a state of its own.
    fn step(&self, at: u16, segment: &str) -> u16 {
        let here = usize::from(at);
        match self.segments.get(here) {
            _ if at == DEAD => DEAD,
            Some(Some(want)) if want != segment => DEAD,
            Some(_) => at + 1, // fits: an identity has at most 2048 bytes
            None if self.rest => (self.segments.len() + 1) as u16,
            None => DEAD,
        }
    }

    fn accepts(&self, at: u16) -> bool {
        at != DEAD && usize::from(at) == self.segments.len() + usize::from(self.rest)
    }
}

struct Found {
    /// The patterns that match, and an identity for which it is these.
    regions: Vec<(Vec<usize>, String)>,
    complete: bool,
}

/// Every set of patterns that some identity besides `literals` matches.
fn search(tracks: &[Track], start: &str, literals: &BTreeSet<String>) -> Found {
    let fresh = fresh_segment(tracks, literals);
    let mut found = Found { regions: Vec::new(), complete: true };
    let mut seen_matches = HashSet::new();
    let mut seen = HashSet::new();
    let mut todo = vec![(vec![0u16; tracks.len()], start.to_owned(), false)];
    while let Some((state, id, is_fresh)) = todo.pop() {
        if seen.len() > MAX_STATES {
            found.complete = false;
            break;
        }
        let accepting = tracks.iter().zip(&state).enumerate().filter(|(_, (track, at))| track.accepts(**at));
        let matches: Vec<_> = accepting.map(|(at, _)| at).collect();
        if !matches.is_empty() && !literals.contains(&id) && seen_matches.insert(matches.clone()) {
            found.regions.push((matches, id.clone()));
        }
        let wanted = tracks.iter().zip(&state).filter(|(_, at)| **at != DEAD);
        let wanted = wanted.filter_map(|(track, at)| track.segments.get(usize::from(*at))?.as_deref());
        let tokens: BTreeSet<_> = wanted.chain([fresh.as_str()]).collect();
        for token in tokens {
            let next: Vec<_> = tracks.iter().zip(&state).map(|(track, at)| track.step(*at, token)).collect();
            // An identity that is named is a region of its own, so one with a segment of nobody's is told apart from it.
            let is_fresh = is_fresh || token == fresh;
            if next.iter().any(|at| *at != DEAD) && seen.insert((next.clone(), is_fresh)) {
                todo.push((next, format!("{id}/{token}"), is_fresh));
            }
        }
    }
    found.regions.sort();
    found
}

/// A segment that occurs in no pattern and no identity.
fn fresh_segment(tracks: &[Track], literals: &BTreeSet<String>) -> String {
    let taken: HashSet<&str> = tracks
        .iter()
        .flat_map(|track| track.segments.iter().flatten().map(String::as_str))
        .chain(literals.iter().flat_map(|id| id.split('/')))
        .collect();
    let candidates = std::iter::once("x".to_owned()).chain((1..).map(|number| format!("x{number}")));
    candidates.into_iter().find(|text| !taken.contains(text.as_str())).unwrap_or_default() // there is always one more
}
