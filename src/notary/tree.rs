//! The Merkle tree of RFC 6962, section 2.1: of its past only the roots of its whole subtrees need be kept.

use std::ops::Range;

use crate::domain::sha256;

/// A node's hash.
pub type Hash = [u8; 32];

/// The hash of a leaf with these bytes.
#[must_use]
pub fn leaf(entry: &[u8]) -> Hash {
    sha256(&[&[0], entry].concat())
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[[1].as_slice(), left, right].concat())
}

/// A tree as it is needed to let it grow: its size and the roots of its whole subtrees, the largest first. There are as many as
/// its size has binary ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Hash>,
}

impl Frontier {
    /// A tree of `size` leaves with these subtrees; nothing where their count is another.
    #[must_use]
    pub fn new(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (usize::try_from(size.count_ones()).ok()? == subtrees.len()).then_some(Self { size, subtrees })
    }

    /// How many leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of its whole subtrees, the largest first.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut whole = leaf;
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.subtrees.pop() else { break };
            whole = node(&left, &whole);
        }
        self.subtrees.push(whole);
        self.size = self.size.saturating_add(1);
    }

    /// Adds leaves, in their order.
    pub fn extend(&mut self, leaves: impl IntoIterator<Item = Hash>) {
        for leaf in leaves {
            self.push(leaf);
        }
    }

    /// The tree's root.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut subtrees = self.subtrees.iter().rev();
        let Some(last) = subtrees.next() else { return sha256(b"") };
        subtrees.fold(*last, |right, left| node(left, &right))
    }
}

/// The audit path of the leaf at `index` in the tree that has grown from `before` by `leaves`; nothing where it is not one of these.
#[must_use]
pub fn path(before: &Frontier, leaves: &[Hash], index: u64) -> Option<Vec<Hash>> {
    let size = before.size.checked_add(u64::try_from(leaves.len()).ok()?)?;
    let grown = Grown { before, leaves };
    let mut path = Vec::new();
    let mut at = 0..size;
    (before.size..size).contains(&index).then_some(())?;
    while at.end - at.start > 1 {
        let split = split(&at);
        if index < split {
            path.push(grown.hash(split..at.end)?);
            at.end = split;
        } else {
            path.push(grown.hash(at.start..split)?);
            at.start = split;
        }
    }
    path.reverse();
    Some(path)
}

/// Where a range of more than one leaf is split: after the largest power of two that is smaller than it.
fn split(at: &Range<u64>) -> u64 {
    let largest = (at.end - at.start - 1).checked_ilog2().unwrap_or(0);
    at.start + (1_u64 << largest)
}

struct Grown<'a> {
    before: &'a Frontier,
    leaves: &'a [Hash],
}

impl Grown<'_> {
    /// The root of the leaves in `at`. One that lies before the growth, and beside a way to what has grown, is a whole subtree
    /// that was kept.
    fn hash(&self, at: Range<u64>) -> Option<Hash> {
        if at.end <= self.before.size {
            return self.kept(&at);
        }
        if at.end - at.start == 1 {
            let place = usize::try_from(at.start - self.before.size).ok()?;
            return self.leaves.get(place).copied();
        }
        let split = split(&at);
        Some(node(&self.hash(at.start..split)?, &self.hash(split..at.end)?))
    }

    fn kept(&self, at: &Range<u64>) -> Option<Hash> {
        let mut start = 0;
        let bits = (0..u64::BITS).rev().filter(|bit| self.before.size & (1 << bit) != 0);
        for (bit, root) in bits.zip(&self.before.subtrees) {
            let end = start + (1_u64 << bit);
            if *at == (start..end) {
                return Some(*root);
            }
            start = end;
        }
        None
    }
}

/// The root that a leaf at `index` and its audit path lead to in a tree of `size`, by the algorithm of RFC 9162, section
/// 2.1.3.2; nothing where the path has another length than one there.
#[must_use]
pub fn climb(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    let (mut at, mut last, mut root) = (index, size.checked_sub(1)?, leaf);
    if index > last {
        return None;
    }
    for sibling in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            root = node(sibling, &root);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            root = node(&root, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|number| leaf(&number.to_be_bytes())).collect()
    }

    /// The definition of RFC 6962, word for word.
    fn defined(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => sha256(b""),
            [one] => *one,
            many => {
                let (left, right) = many.split_at(many.len().next_power_of_two() / 2);
                node(&defined(left), &defined(right))
            }
        }
    }

    fn grown(count: u64) -> Frontier {
        let mut tree = Frontier::default();
        tree.extend(leaves(count));
        tree
    }

    /// Roots of the tree over these entries as Certificate Transparency's reference implementation tests them.
    #[test]
    fn known_trees_have_their_known_roots() {
        let entries =
            ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Frontier::default();
        for (entry, root) in entries.iter().zip(roots) {
            tree.push(leaf(&hex::decode(entry).unwrap()));
            assert_eq!(hex::encode(tree.root()), root);
        }
        assert_eq!(Frontier::default().root(), sha256(b""));
    }

    #[test]
    fn every_leaf_of_every_small_tree_is_proven_from_every_place_that_it_grew_from() {
        for size in 1..40 {
            let (all, root) = (leaves(size), defined(&leaves(size)));
            assert_eq!(grown(size).root(), root);
            for before in 0..size {
                let (kept, new) = (grown(before), &all[usize::try_from(before).unwrap()..]);
                assert!(before == 0 || path(&kept, new, before - 1).is_none());
                for index in before..size {
                    let path = path(&kept, new, index).unwrap();
                    let leaf = all[usize::try_from(index).unwrap()];
                    assert_eq!(climb(leaf, index, size, &path), Some(root), "{index} of {size} from {before}");
                }
            }
        }
    }

    proptest! {
        /// No other leaf, place, size or path leads to the root.
        #[test]
        fn a_path_proves_one_leaf_at_one_place(size in 2_u64..200, index in any::<u64>(), other in any::<u64>(), bit in any::<u8>()) {
            let (index, all) = (index % size, leaves(size));
            let root = grown(size).root();
            let path = path(&Frontier::default(), &all, index).unwrap();
            let leaf = all[usize::try_from(index).unwrap()];
            prop_assert_eq!(climb(leaf, index, size, &path), Some(root));
            let other = other % size;
            if other != index {
                prop_assert_ne!(climb(all[usize::try_from(other).unwrap()], index, size, &path), Some(root));
                prop_assert_ne!(climb(leaf, other, size, &path), Some(root));
            }
            prop_assert_eq!(climb(leaf, index + size, size, &path), None);
            prop_assert_ne!(climb(leaf, index, size, &path[1..]), Some(root));
            let mut bent = path.clone();
            let place = usize::from(bit) % bent.len();
            bent[place][usize::from(bit) % 32] ^= 1;
            prop_assert_ne!(climb(leaf, index, size, &bent), Some(root));
            prop_assert_eq!(climb(leaf, index, size, &[path.as_slice(), &[root]].concat()), None);
        }

        #[test]
        fn a_frontier_that_was_kept_grows_like_one_that_was_not(size in 0_u64..300, more in 0_u64..50) {
            let kept = grown(size);
            let mut again = Frontier::new(kept.size(), kept.subtrees().to_vec()).unwrap();
            again.extend(leaves(size + more).into_iter().skip(usize::try_from(size).unwrap()));
            prop_assert_eq!(&again, &grown(size + more));
            prop_assert_eq!(again.root(), defined(&leaves(size + more)));
            prop_assert!(Frontier::new(size + 1, vec![[0; 32]; 64]).is_none());
        }
    }
}
