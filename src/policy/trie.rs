//! Many path patterns as one tree over segments, so that a look-up costs what its path is long and not what there are rules.
//!
//! All literal edges live in one open-addressed table keyed by (node, segment): one probe a segment, no pointer chase
//! through a map a node. The keys come from the policy, so a client cannot choose them to collide.

use super::method::MethodSet;
use super::path::without_params;
use super::pattern::{MAX_LITERAL_BYTES, PathPattern, Segment, without_slash};
use super::scan::{find_slash, fold, fold_into, hash};

const NONE: u32 = u32::MAX;

/// A pattern's end in the tree: what it belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Who may use it: a role, or a set of identities. Ends of one node are sorted by it.
    pub(super) group: u32,
    /// The permission or deny rule.
    pub(super) rule: u32,
    /// The pattern, as an index into the policy's templates.
    pub(super) pattern: u32,
    /// The rule's methods, here to save a look at the rule.
    pub(super) methods: MethodSet,
    /// The rule asks for more than a method and a path, so it must be looked at. It is not for most.
    pub(super) conditional: bool,
    /// The rule only says what it would do.
    pub(super) shadow: bool,
}

/// The compiled tree.
pub(super) struct Trie {
    /// True on the deny side: literals are folded, trailing slashes are dropped.
    wide: bool,
    nodes: Vec<Node>,
    edges: Edges,
    ends: Vec<End>,
}

/// The literal edges of all nodes.
struct Edges {
    /// Its length is a power of two, more than twice the number of edges.
    table: Vec<Edge>,
    count: usize,
    /// The segments, one after the other.
    bytes: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Node {
    /// True when it has literal edges.
    literals: bool,
    /// The child for any one segment, or [`NONE`].
    one: u32,
    /// Patterns that end exactly here, as a range of `ends`.
    here: (u32, u32),
    /// Patterns that go on here with `**`, as a range of `ends`.
    rest: (u32, u32),
}

#[derive(Clone, Copy)]
struct Edge {
    node: u32,
    child: u32,
    hash: u32,
    start: u32,
    length: u32,
}

/// The tree while patterns are added.
pub(super) struct Builder {
    wide: bool,
    nodes: Vec<Growing>,
    edges: Edges,
}

#[derive(Default)]
struct Growing {
    literals: bool,
    one: Option<u32>,
    here: Vec<End>,
    rest: Vec<End>,
}

/// How a path is cut into segments when `%2F` or `;` were let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reading {
    /// `%2F` separates.
    pub(super) split: bool,
    /// Segments end at `;`.
    pub(super) cut: bool,
}

impl Builder {
    pub(super) fn new(wide: bool) -> Self {
        Self { wide, nodes: vec![Growing::default()], edges: Edges::new() }
    }

    pub(super) fn insert(&mut self, pattern: &PathPattern, end: End) {
        let segments = if self.wide { without_slash(&pattern.segments) } else { &pattern.segments };
        let mut node = 0;
        for segment in segments {
            node = match segment {
                Segment::One(_) => self.one(node),
                Segment::Literal(text) => {
                    let fresh = self.nodes.len() as u32; // fits: bounded by the bytes of the file
                    let child = if self.wide {
                        self.edges.get_or_insert(node, &fold(text), fresh)
                    } else {
                        self.edges.get_or_insert(node, text.as_bytes(), fresh)
                    };
                    self.nodes[node as usize].literals = true;
                    self.grow_to(child);
                    child
                }
            };
        }
        let node = &mut self.nodes[node as usize];
        if pattern.rest { &mut node.rest } else { &mut node.here }.push(end);
    }

    fn one(&mut self, node: u32) -> u32 {
        let fresh = self.nodes.len() as u32; // fits: bounded by the bytes of the file
        let child = *self.nodes[node as usize].one.get_or_insert(fresh);
        self.grow_to(child);
        child
    }

    fn grow_to(&mut self, child: u32) {
        if child as usize == self.nodes.len() {
            self.nodes.push(Growing::default());
        }
    }

    pub(super) fn build(self) -> Trie {
        let mut ends = Vec::new();
        let mut range = |mut list: Vec<End>| {
            list.sort_by_key(|end| (end.group, end.rule, end.pattern));
            let start = ends.len() as u32;
            ends.append(&mut list);
            (start, ends.len() as u32)
        };
        let nodes = self.nodes.into_iter().map(|node| Node {
            literals: node.literals,
            one: node.one.unwrap_or(NONE),
            here: range(node.here),
            rest: range(node.rest),
        });
        let nodes = nodes.collect();
        Trie { wide: self.wide, nodes, edges: self.edges, ends }
    }
}

impl Trie {
    /// Calls `visit` with the ends of every pattern that matches the canonical `path`, node by node.
    pub(super) fn walk(&self, path: &str, reading: Reading, visit: &mut impl FnMut(&[End])) {
        let inner = path.strip_prefix('/').unwrap_or(path);
        let inner = match inner.strip_suffix('/') {
            _ if self.wide && inner.is_empty() => None,
            Some(trimmed) if self.wide => Some(trimmed),
            _ => Some(inner),
        };
        let mut buffer = [0u8; MAX_LITERAL_BYTES];
        // Bytes from here on: each cut of a `str` would look whether it falls between two characters.
        self.step(0, inner.map(str::as_bytes), reading, &mut buffer, visit);
    }

    /// Recursion is bounded by the longest pattern's segments.
    fn step(
        &self,
        node: u32,
        rest: Option<&[u8]>,
        reading: Reading,
        buffer: &mut [u8; MAX_LITERAL_BYTES],
        visit: &mut impl FnMut(&[End]),
    ) {
        let node_at = self.nodes[node as usize];
        self.visit(node_at.rest, visit);
        let Some(rest) = rest else {
            return self.visit(node_at.here, visit);
        };
        if !node_at.literals && node_at.one == NONE {
            return;
        }
        let (segment, rest) = reading.next(rest);
        let child = if !node_at.literals {
            None
        } else if self.wide {
            fold_into(segment, buffer).and_then(|length| self.edges.get(node, &buffer[..length]))
        } else {
            self.edges.get(node, segment)
        };
        if let Some(child) = child {
            self.step(child, rest, reading, buffer, visit);
        }
        if node_at.one != NONE && !segment.is_empty() {
            self.step(node_at.one, rest, reading, buffer, visit);
        }
    }

    /// Calls `visit` with the ends of every pattern that includes `pattern`: that matches, the tree's way, each path that
    /// `pattern` matches exactly.
    pub(super) fn walk_including(&self, pattern: &PathPattern, visit: &mut impl FnMut(&[End])) {
        let segments = if self.wide { without_slash(&pattern.segments) } else { &pattern.segments };
        self.step_including(0, segments, pattern.rest, visit);
    }

    fn step_including(&self, node: u32, segments: &[Segment], rest: bool, visit: &mut impl FnMut(&[End])) {
        let node_at = self.nodes[node as usize];
        self.visit(node_at.rest, visit);
        let Some((segment, after)) = segments.split_first() else {
            if !rest {
                self.visit(node_at.here, visit);
            }
            return;
        };
        let (child, one) = match segment {
            Segment::One(_) => (None, true),
            Segment::Literal(text) if self.wide => (self.edges.get(node, &fold(text)), !text.is_empty()),
            Segment::Literal(text) => (self.edges.get(node, text.as_bytes()), !text.is_empty()),
        };
        if let Some(child) = child {
            self.step_including(child, after, rest, visit);
        }
        if one && node_at.one != NONE {
            self.step_including(node_at.one, after, rest, visit);
        }
    }

    fn visit(&self, (start, end): (u32, u32), visit: &mut impl FnMut(&[End])) {
        if start != end {
            visit(&self.ends[start as usize..end as usize]);
        }
    }
}

impl Edges {
    fn new() -> Self {
        Self { table: vec![Edge::EMPTY; 2], count: 0, bytes: Vec::new() }
    }

    /// The child of `node` under the segment `key`.
    fn get(&self, node: u32, key: &[u8]) -> Option<u32> {
        let edge = &self.table[self.slot(node, key, hash(node, key))];
        (edge.node != NONE).then_some(edge.child)
    }

    /// As [`Self::get`]; where there is none, `fresh` becomes it.
    fn get_or_insert(&mut self, node: u32, key: &[u8], fresh: u32) -> u32 {
        let hash = hash(node, key);
        let mut slot = self.slot(node, key, hash);
        if self.table[slot].node != NONE {
            return self.table[slot].child;
        }
        if (self.count + 1) * 2 > self.table.len() {
            self.grow();
            slot = self.slot(node, key, hash);
        }
        let (start, length) = (self.bytes.len() as u32, key.len() as u32);
        self.bytes.extend_from_slice(key);
        self.table[slot] = Edge { node, child: fresh, hash, start, length };
        self.count += 1;
        fresh
    }

    /// Where the edge is, or would be: the table is never full.
    fn slot(&self, node: u32, key: &[u8], hash: u32) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let edge = &self.table[slot];
            let start = edge.start as usize;
            let same = edge.hash == hash
                && edge.node == node
                && &self.bytes[start..start + edge.length as usize] == key;
            if same || edge.node == NONE {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let mut table = vec![Edge::EMPTY; self.table.len() * 4];
        let mask = table.len() - 1;
        for edge in self.table.iter().filter(|edge| edge.node != NONE) {
            let mut slot = edge.hash as usize & mask;
            while table[slot].node != NONE {
                slot = (slot + 1) & mask;
            }
            table[slot] = *edge;
        }
        self.table = table;
    }
}

impl Edge {
    const EMPTY: Self = Self { node: NONE, child: NONE, hash: 0, start: 0, length: 0 };
}

impl Reading {
    /// The first segment of `rest` and what follows its separator.
    fn next(self, rest: &[u8]) -> (&[u8], Option<&[u8]>) {
        let slash = find_slash(rest);
        if !self.split && !self.cut {
            return slash.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));
        }
        let escaped = if self.split { rest.windows(3).position(|bytes| bytes == b"%2F") } else { None };
        let (segment, after) = match (slash, escaped) {
            (slash, Some(at)) if slash.is_none_or(|slash| at < slash) => (&rest[..at], Some(&rest[at + 3..])),
            (Some(at), _) => (&rest[..at], Some(&rest[at + 1..])),
            (None, _) => (rest, None),
        };
        (if self.cut { without_params(segment) } else { segment }, after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::PathRules;
    use super::*;

    fn any_pattern() -> impl Strategy<Value = PathPattern> {
        "(/(a|b|A|\\*)){0,3}(/a|/B\\.|/\\*|/\\*\\*|/)"
            .prop_map(|text| PathPattern::parse(&text, &PathRules::default()).unwrap())
    }

    /// Every path over these segments, with and without a trailing slash, longer by one than any pattern above.
    fn all_paths() -> Vec<String> {
        let mut words = vec![String::new()];
        let mut all = vec!["/".to_owned()];
        for _ in 0..5 {
            words =
                words.iter().flat_map(|word| ["a", "b", "A", "B."].map(|s| format!("{word}/{s}"))).collect();
            all.extend(words.iter().flat_map(|word| [word.clone(), format!("{word}/")]));
        }
        all
    }

    fn tree(wide: bool, patterns: &[PathPattern]) -> Trie {
        let mut builder = Builder::new(wide);
        for (at, pattern) in (0..).zip(patterns) {
            builder.insert(
                pattern,
                End {
                    group: 0,
                    rule: at,
                    pattern: at,
                    methods: MethodSet::ALL,
                    conditional: false,
                    shadow: false,
                },
            );
        }
        builder.build()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// If this fails, a rule that can never match is not found, or a good one is called unreachable.
        #[test]
        fn the_tree_finds_exactly_the_patterns_that_include_another(
            patterns in proptest::collection::vec(any_pattern(), 0..8), other in any_pattern(), wide in any::<bool>(),
        ) {
            let mut found = Vec::new();
            tree(wide, &patterns).walk_including(&other, &mut |ends| found.extend(ends.iter().map(|end| end.pattern)));
            found.sort_unstable();
            let paths = all_paths();
            let of_other: Vec<_> = paths.iter().filter(|path| other.matches(path)).collect();
            let matches = if wide { PathPattern::matches_wide } else { PathPattern::matches };
            let includes = |pattern: &PathPattern| of_other.iter().all(|path| matches(pattern, path));
            let want: Vec<u32> = (0..).zip(&patterns).filter(|(_, p)| includes(p)).map(|(at, _)| at).collect();
            prop_assert_eq!(found, want);
        }

        /// If this fails, a rule is missed or matched that the pattern's own reading says otherwise.
        #[test]
        fn the_tree_finds_exactly_the_patterns_that_match_a_path(
            patterns in proptest::collection::vec(any_pattern(), 0..8), path in "(/(a|b|A|a\\.\\.|%20)){0,4}(/a|/b|/)", wide in any::<bool>(),
        ) {
            let mut found = Vec::new();
            tree(wide, &patterns).walk(&path, Reading::default(), &mut |ends| found.extend(ends.iter().map(|end| end.pattern)));
            found.sort_unstable();
            let matches = if wide { PathPattern::matches_wide } else { PathPattern::matches };
            let want: Vec<u32> =
                (0..).zip(&patterns).filter(|(_, pattern)| matches(pattern, &path)).map(|(at, _)| at).collect();
            prop_assert_eq!(found, want);
        }
    }

    /// If this fails, a long row of dots, which some servers drop, gets a path past a deny rule.
    #[test]
    fn no_number_of_trailing_dots_gets_past_a_literal() {
        let patterns = [PathPattern::parse("/admin", &PathRules::default()).unwrap()];
        let tree = tree(true, &patterns);
        for dots in [0, 1, 249, 250, 251, 1000] {
            let mut hits = 0;
            tree.walk(&format!("/Admin{}", ".".repeat(dots)), Reading::default(), &mut |ends| {
                hits += ends.len()
            });
            assert_eq!(hits, 1, "{dots}");
        }
    }
}
