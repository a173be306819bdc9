//! The Merkle tree over the records of an epoch (RFC 6962 section 2.1), without the tree: the roots of its perfect subtrees
//! are enough to append, to join neighbouring parts and to say the root.
//!
//! Owns hashing of inner nodes and inclusion paths. Knows nothing of records: a leaf is a record's hash, which `chain` makes
//! as section 2.1 says.

use aws_lc_rs::digest::{SHA256, digest};

/// A hash of the tree.
pub(crate) type Hash = [u8; 32];

/// The leaves from `begin` to `end` (not included), as the roots of the largest perfect subtrees of the whole tree that lie in
/// them. One that begins at 0 has a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Range {
    begin: u64,
    end: u64,
    /// Each subtree's height and root, from left to right.
    nodes: Vec<(u32, Hash)>,
}

impl Range {
    /// An empty range before leaf number `begin`.
    pub(crate) fn at(begin: u64) -> Self {
        Self { begin, end: begin, nodes: Vec::new() }
    }

    /// The number of the next leaf.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The first `size` leaves, of which only the subtrees' roots are known, as [`Range::subtrees_hex`] gives them.
    pub(crate) fn of_subtrees(size: u64, roots: &[Hash]) -> Option<Self> {
        let heights = (0..u64::BITS).rev().filter(|height| size >> height & 1 == 1);
        let nodes: Vec<_> = heights.zip(roots.iter().copied()).collect();
        let whole = size.count_ones() as usize == roots.len();
        whole.then_some(Self { begin: 0, end: size, nodes })
    }

    /// The roots of the subtrees, in hexadecimal, the largest first.
    pub(crate) fn subtrees_hex(&self) -> Vec<String> {
        self.nodes.iter().map(|(_, root)| to_hex(root)).collect()
    }

    pub(crate) fn append(&mut self, leaf: Hash) {
        self.push(0, leaf);
    }

    /// Appends the leaves of a range that begins where this one ends. False when it does not.
    pub(crate) fn join(&mut self, right: &Self) -> bool {
        if right.begin != self.end {
            return false;
        }
        for (height, root) in &right.nodes {
            self.push(*height, *root);
        }
        true
    }

    fn push(&mut self, height: u32, root: Hash) {
        self.nodes.push((height, root));
        self.end += 1 << height;
        while let [.., (left_height, left), (right_height, right)] = self.nodes[..]
            && left_height == right_height
            && (self.end - (2 << left_height)).is_multiple_of(2 << left_height)
        {
            self.nodes.truncate(self.nodes.len() - 2);
            self.nodes.push((left_height + 1, node(&left, &right)));
        }
    }

    /// The root of the tree over all leaves before the end; `None` unless the range begins at 0.
    pub(crate) fn root(&self) -> Option<Hash> {
        if self.begin != 0 {
            return None;
        }
        let mut nodes = self.nodes.iter().rev().map(|(_, root)| *root);
        let Some(last) = nodes.next() else { return Some(hash_of(&[])) };
        Some(nodes.fold(last, |right, left| node(&left, &right)))
    }
}

/// The hashes that lead from leaf `index` to the root over `leaves`: PATH(m, `D[n]`) of RFC 6962 section 2.1.1.
pub(crate) fn path(leaves: &[Hash], index: usize) -> Vec<Hash> {
    if leaves.len() < 2 {
        return Vec::new();
    }
    let split = leaves.len().next_power_of_two() / 2; // the largest power of two below the length
    let (left, right) = leaves.split_at(split);
    let (mut path, other) = if index < split {
        (self::path(left, index), right)
    } else {
        (self::path(right, index - split), left)
    };
    path.push(root_of(other));
    path
}

/// The root that `leaf` at `index` of `size` leads to by `path` (RFC 9162 section 2.1.3.2); `None` when the path has another
/// length than it must.
pub(crate) fn root_from(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node_at, mut last, mut root) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if node_at % 2 == 1 || node_at == last {
            root = node(sibling, &root);
            while node_at % 2 == 0 && node_at != 0 {
                node_at /= 2;
                last /= 2;
            }
        } else {
            root = node(&root, sibling);
        }
        node_at /= 2;
        last /= 2;
    }
    (last == 0).then_some(root)
}

/// The tree that a checkpoint holds of the `size` records before it.
pub(crate) fn subtrees(sealed: &serde_json::Value, size: u64) -> Option<Range> {
    let roots = sealed.get("subtrees")?.as_array()?.iter();
    let roots: Option<Vec<_>> = roots.map(|root| root.as_str().and_then(from_hex)).collect();
    Range::of_subtrees(size, &roots?)
}

/// A hash in hexadecimal.
pub(crate) fn to_hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a hash in hexadecimal.
pub(crate) fn from_hex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(hash)
}

fn root_of(leaves: &[Hash]) -> Hash {
    let mut range = Range::default();
    leaves.iter().for_each(|leaf| range.append(*leaf));
    range.root().unwrap_or_default() // it begins at 0
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut children = [1; 65];
    children[1..33].copy_from_slice(left);
    children[33..].copy_from_slice(right);
    hash_of(&children)
}

fn hash_of(bytes: &[u8]) -> Hash {
    to_hash(digest(&SHA256, bytes).as_ref())
}

fn to_hash(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(bytes); // SHA-256 has 32 bytes
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(data: &[u8]) -> Hash {
        hash_of(&[&[0], data].concat())
    }

    /// The seven-leaf example tree of Certificate Transparency's reference implementation
    /// (google/certificate-transparency, merkletree tests).
    const INPUTS: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// If this fails, no other tool for RFC 6962 accepts our checkpoints and proofs.
    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let mut range = Range::default();
        assert_eq!(
            to_hex(&range.root().unwrap()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (input, root) in INPUTS.iter().zip(ROOTS) {
            range.append(leaf(input));
            assert_eq!(to_hex(&range.root().unwrap()), root);
        }
    }

    /// If this fails, `verify` finds fault with a good trail that is read in parts, or misses a bad one.
    #[test]
    fn parts_join_to_the_whole_wherever_they_are_cut() {
        let leaves: Vec<_> = (0..70u32).map(|n| leaf(&n.to_be_bytes())).collect();
        let mut whole = Range::default();
        leaves.iter().for_each(|leaf| whole.append(*leaf));
        for first in 0..leaves.len() {
            for second in first..leaves.len() {
                let mut joined = Range::default();
                for (begin, end) in [(0, first), (first, second), (second, leaves.len())] {
                    let mut part = Range::at(begin as u64);
                    leaves[begin..end].iter().for_each(|leaf| part.append(*leaf));
                    assert!(joined.join(&part));
                    assert!(begin == 0 || part.root().is_none());
                }
                assert_eq!(joined, whole);
                let roots: Vec<_> = joined.nodes.iter().map(|(_, root)| *root).collect();
                assert_eq!(Range::of_subtrees(joined.end, &roots).as_ref(), Some(&whole));
                assert!(!joined.join(&Range::at(3)));
            }
        }
    }

    /// If this fails, a proof convinces of a record that is not in the trail, or does not of one that is.
    #[test]
    fn a_path_leads_to_the_root_from_its_own_leaf_alone() {
        for size in 1..40usize {
            let leaves: Vec<_> = (0..size as u32).map(|n| leaf(&n.to_be_bytes())).collect();
            let root = root_of(&leaves);
            for index in 0..size {
                let path = path(&leaves, index);
                let from =
                    |leaf, index: usize, path: &[Hash]| root_from(leaf, index as u64, size as u64, path);
                assert_eq!(from(leaves[index], index, &path), Some(root));
                assert_ne!(from(leaf(b"other"), index, &path), Some(root));
                for other in (0..size).filter(|other| *other != index) {
                    assert_ne!(from(leaves[index], other, &path), Some(root), "{index} as {other} of {size}");
                }
                assert_ne!(from(leaves[index], index, &[&path[..], &[root]].concat()), Some(root));
                if let Some((_, shorter)) = path.split_last() {
                    assert_ne!(from(leaves[index], index, shorter), Some(root));
                }
            }
            assert_eq!(root_from(root, size as u64, size as u64, &[]), None);
        }
    }
}
