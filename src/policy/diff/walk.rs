//! A path that some patterns match and others do not, if there is one.
//!
//! A path is built segment by segment, shortest first, and each pattern is followed to where it stands. Where the wanted
//! patterns leave a segment open, one that occurs in no pattern is taken: whatever else could stand there is matched by the
//! unwanted patterns at least as often. So few paths are looked at, and the answer is exact.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};

use super::super::path::without_params;
use super::super::pattern::{PathPattern, Segment, without_slash};
use super::super::scan::fold;

/// How many places in all patterns together are looked at.
const MAX_STATES: usize = 50_000;
const DEAD: u16 = u16::MAX;

/// A pattern that can be followed.
#[derive(Debug)]
pub(super) struct Track {
    segments: Vec<Step>,
    rest: bool,
    wide: bool,
}

#[derive(Debug)]
enum Step {
    One,
    /// As it is written, and as it is compared: folded on the deny side.
    Literal {
        text: String,
        key: Vec<u8>,
    },
}

/// Where a pattern stands, once for each way to read a path: as it is, cut at `;`, split at `%2F`, both.
type Places = [u16; 4];

impl Track {
    /// As permissions match.
    pub(super) fn narrow(pattern: &PathPattern) -> Self {
        Self::of(&pattern.segments, pattern.rest, false)
    }

    /// As deny rules match.
    pub(super) fn wide(pattern: &PathPattern) -> Self {
        Self::of(without_slash(&pattern.segments), pattern.rest, true)
    }

    pub(super) fn everything(wide: bool) -> Self {
        Self::of(&[], true, wide)
    }

    fn of(segments: &[Segment], rest: bool, wide: bool) -> Self {
        let step = |segment: &Segment| match segment {
            Segment::One(_) => Step::One,
            Segment::Literal(text) if wide => Step::Literal { text: text.clone(), key: fold(text) },
            Segment::Literal(text) => Step::Literal { text: text.clone(), key: text.as_bytes().to_vec() },
        };
        Self { segments: segments.iter().map(step).collect(), rest, wide }
    }

    /// True for the deny side's reading.
    pub(super) fn is_wide(&self) -> bool {
        self.wide
    }

    /// The same for two that match the same paths.
    pub(super) fn signature(&self) -> String {
        let key = |step: &Step| match step {
            Step::One => None,
            Step::Literal { key, .. } => Some(key.clone()),
        };
        let keys: Vec<_> = self.segments.iter().map(key).collect();
        format!("{} {} {keys:?}", self.wide, self.rest)
    }

    /// The literal segments.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|step| match step {
            Step::Literal { text, .. } => Some(text.as_str()),
            Step::One => None,
        })
    }

    /// False when no path, read as it is, matches both. It may be true for some that do not meet.
    pub(super) fn may_meet(&self, other: &Self) -> bool {
        let (ours, theirs) = match self.wide == other.wide {
            true => (self.segments.len(), other.segments.len()),
            false => (self.bare_len(), other.bare_len()),
        };
        let lengths = match (self.rest, other.rest) {
            (false, false) => ours == theirs,
            (true, false) => ours <= theirs,
            (false, true) => ours >= theirs,
            (true, true) => true,
        };
        lengths
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Step::Literal { key: a, .. }, Step::Literal { key: b, .. }) if self.wide == other.wide => {
                    a == b
                }
                (Step::Literal { text: a, .. }, Step::Literal { text: b, .. }) => fold(a) == fold(b),
                _ => true,
            })
    }

    /// How many segments it has, without the empty one of a trailing slash.
    fn bare_len(&self) -> usize {
        let slash = matches!(self.segments.last(), Some(Step::Literal { text, .. }) if text.is_empty());
        self.segments.len() - usize::from(slash)
    }

    fn step(&self, at: u16, segment: &str) -> u16 {
        match self.segments.get(usize::from(at)) {
            _ if at == DEAD => DEAD,
            None => {
                if self.rest {
                    at
                } else {
                    DEAD
                }
            }
            Some(Step::One) => {
                if segment.is_empty() {
                    DEAD
                } else {
                    at + 1
                }
            }
            Some(Step::Literal { key, .. }) => {
                let same = if self.wide { fold(segment) == *key } else { segment.as_bytes() == key };
                if same { at + 1 } else { DEAD }
            }
        }
    }

    /// `relaxed` when some policy lets `%2F` or `;` pass: else all readings are the first.
    fn advance(&self, places: Places, segment: &str, relaxed: bool) -> Places {
        let [plain, cut, split, both] = places;
        let plain = self.step(plain, segment);
        if !self.wide || !relaxed {
            return [plain, DEAD, DEAD, DEAD];
        }
        let cut = self.step(cut, bare(segment));
        let split = segment.split("%2F").fold(split, |at, piece| self.step(at, piece));
        let both = segment.split("%2F").fold(both, |at, piece| self.step(at, bare(piece)));
        [plain, cut, split, both]
    }

    fn start(&self) -> Places {
        if self.wide { [0; 4] } else { [0, DEAD, DEAD, DEAD] }
    }

    fn is_end(&self, at: u16) -> bool {
        usize::from(at) == self.segments.len()
    }

    /// True when the path may end here; `slash` when it ends in one.
    fn accepts(&self, places: Places, slash: bool) -> bool {
        let plain = if slash && !self.wide { self.step(places[0], "") } else { places[0] };
        self.is_end(plain) || places[1..].iter().any(|at| self.is_end(*at))
    }

    /// True when it matches whatever follows.
    fn is_settled(&self, places: Places) -> bool {
        self.rest && places.iter().any(|at| self.is_end(*at))
    }
}

/// A segment up to its first `;`.
fn bare(segment: &str) -> &str {
    let length = without_params(segment.as_bytes()).len();
    &segment[..length] // it ends before an ASCII character, or at the end
}

/// What a path must be.
pub(super) struct Goal<'t> {
    /// What it must match.
    pub(super) inside: &'t Track,
    /// What it must match besides, as a deny rule does.
    pub(super) also: Option<&'t Track>,
    /// What it should not match; true when it must not.
    pub(super) outside: Vec<(&'t Track, bool)>,
    /// It must have a `%2F`.
    pub(super) slash: bool,
    /// It must have a `;`.
    pub(super) params: bool,
    /// Longer than this, in bytes.
    pub(super) longer_than: usize,
    /// At most this long, in bytes.
    pub(super) at_most: usize,
}

/// The search took too long.
pub(super) struct TooMany;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    path: String,
    /// Where the wanted patterns stand, then the unwanted ones.
    places: Vec<Places>,
    slash: bool,
    params: bool,
    /// Where the path can be made longer without a difference.
    padding: Option<usize>,
}

impl Goal<'_> {
    /// The first path, by length, for which `accept` gives something. It is asked with the unwanted patterns that match and
    /// need not, as indices of `outside`. `fresh` is a segment that, repeated or not, occurs in no pattern.
    pub(super) fn find<T>(
        &self,
        fresh: &str,
        mut accept: impl FnMut(&[usize]) -> Result<Option<T>, TooMany>,
    ) -> Result<Option<(String, T)>, TooMany> {
        let tracks: Vec<_> = std::iter::once(self.inside)
            .chain(self.also)
            .chain(self.outside.iter().map(|(track, _)| *track))
            .collect();
        let first = State {
            path: String::new(),
            places: tracks.iter().map(|track| track.start()).collect(),
            slash: false,
            params: false,
            padding: None,
        };
        let mut seen = HashSet::new();
        let mut todo = BinaryHeap::from([Reverse((0, first))]);
        while let Some(Reverse((_, state))) = todo.pop() {
            for path in self.ends(&tracks, &state, fresh) {
                let matched = self.matched(&tracks, &state, path.ends_with('/'));
                if let Some(matched) = matched
                    && let Some(value) = accept(&matched)?
                {
                    return Ok(Some((path, value)));
                }
            }
            for segment in self.segments(&state, fresh) {
                let next = self.next(&tracks, &state, &segment, fresh);
                let key = (next.places.clone(), next.slash, next.params, next.padding.is_some());
                if self.is_hopeful(&tracks, &next) && seen.insert(key) {
                    todo.push(Reverse((next.path.len(), next)));
                }
            }
            if seen.len() > MAX_STATES {
                return Err(TooMany);
            }
        }
        Ok(None)
    }

    fn next(&self, tracks: &[&Track], state: &State, segment: &str, fresh: &str) -> State {
        let relaxed = self.slash || self.params;
        let places = tracks.iter().zip(&state.places).map(|(track, at)| track.advance(*at, segment, relaxed));
        let free = segment.starts_with(fresh).then_some(state.path.len() + 1);
        State {
            path: format!("{}/{segment}", state.path),
            places: places.collect(),
            slash: state.slash || segment.contains("%2F"),
            params: state.params || segment.contains([';']) || segment.contains("%3B"),
            padding: state.padding.or(free),
        }
    }

    fn is_hopeful(&self, tracks: &[&Track], state: &State) -> bool {
        let wanted = 1 + usize::from(self.also.is_some());
        state.path.len() <= self.at_most
            && (state.params <= self.params)
            && (state.slash <= self.slash)
            && state.places[..wanted].iter().all(|places| places.iter().any(|at| *at != DEAD))
            && !self
                .outside
                .iter()
                .zip(&state.places[wanted..])
                .zip(&tracks[wanted..])
                .any(|(((_, must), places), track)| *must && track.is_settled(*places))
    }

    /// The paths that end in `state` and have all that is wanted of their form.
    fn ends(&self, tracks: &[&Track], state: &State, fresh: &str) -> Vec<String> {
        let wanted = 1 + usize::from(self.also.is_some());
        if state.slash != self.slash || state.params != self.params {
            return Vec::new();
        }
        let mut paths = Vec::new();
        for slash in [false, true] {
            let bare = state.path.is_empty() && !slash; // the shortest path is "/"
            let inside =
                tracks[..wanted].iter().zip(&state.places).all(|(track, at)| track.accepts(*at, slash));
            if bare || !inside {
                continue;
            }
            let mut path = format!("{}{}", state.path, if slash { "/" } else { "" });
            if let Some(at) = state.padding {
                while path.len() <= self.longer_than {
                    path.insert_str(at, fresh);
                }
            }
            if path.len() > self.longer_than && path.len() <= self.at_most {
                paths.push(path);
            }
        }
        paths
    }

    /// The unwanted patterns that match a path that ends in `state`; none when there is one that must not.
    fn matched(&self, tracks: &[&Track], state: &State, slash: bool) -> Option<Vec<usize>> {
        let wanted = 1 + usize::from(self.also.is_some());
        let outside = self.outside.iter().zip(&tracks[wanted..]).zip(&state.places[wanted..]);
        let mut matched = Vec::new();
        for (at, (((_, must), track), places)) in outside.enumerate() {
            if track.accepts(*places, slash) {
                if *must {
                    return None;
                }
                matched.push(at);
            }
        }
        Some(matched)
    }

    /// The segments that may follow: one for each class that makes a difference.
    fn segments(&self, state: &State, fresh: &str) -> BTreeSet<String> {
        let at = usize::from(state.places[0][0]);
        match self.inside.segments.get(at) {
            Some(Step::Literal { text, .. }) if text.is_empty() => BTreeSet::new(), // only what follows a last slash
            Some(Step::Literal { text, .. }) => BTreeSet::from([text.clone()]),
            None if !self.inside.rest => BTreeSet::new(),
            Some(Step::One) | None => match self.also {
                None => self.compositions(&|_| Some(fresh.to_owned())),
                Some(also) => state.places[1]
                    .into_iter()
                    .filter(|at| *at != DEAD)
                    .flat_map(|at| {
                        self.compositions(&|piece| self.piece(also, usize::from(at) + piece, fresh))
                    })
                    .collect(),
            },
        }
    }

    /// Segments made of one piece, or of several where `%2F` is wanted, with and without parameters where these are wanted.
    fn compositions(&self, piece: &dyn Fn(usize) -> Option<String>) -> BTreeSet<String> {
        let deepest = self.outside.iter().map(|(track, _)| track.segments.len()).max().unwrap_or_default();
        let deepest = deepest.max(self.also.map_or(0, |also| also.segments.len()));
        let most = if self.slash { deepest + 2 } else { 1 };
        let mut all = BTreeSet::new();
        for suffix in if self.params { vec!["", ";v"] } else { vec![""] } {
            let mut segment = String::new();
            for at in 0..most {
                let Some(piece) = piece(at) else { break };
                segment += if at > 0 { "%2F" } else { "" };
                segment += &piece;
                segment += suffix;
                all.insert(segment.clone());
            }
        }
        all
    }

    /// What the deny pattern `also` wants at its place `at`, spelt as no unwanted permission has it.
    fn piece(&self, also: &Track, at: usize, fresh: &str) -> Option<String> {
        match also.segments.get(at) {
            Some(Step::One) => Some(fresh.to_owned()),
            None => also.rest.then(|| fresh.to_owned()),
            Some(Step::Literal { text, key }) => {
                let taken: HashSet<_> = self
                    .outside
                    .iter()
                    .filter(|(track, _)| !track.wide)
                    .flat_map(|(track, _)| track.literals())
                    .collect();
                let spellings = [text.clone(), text.to_ascii_uppercase()].into_iter();
                let dotted = (1..=taken.len() + 1).map(|dots| format!("{text}{}", ".".repeat(dots)));
                spellings.chain(dotted).find(|text| fold(text) == *key && !taken.contains(text.as_str()))
            }
        }
    }
}
