//! Merkle trees as in RFC 6962, and their proofs as in RFC 9162. Pure arithmetic over hashes.
//!
//! A node is named by its level (0 for leaves) and its index among the complete subtrees of that level.

use sha2::{Digest, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// The hash of a leaf's bytes.
pub fn leaf(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

/// The hash of an inner node.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Why a proof proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The sizes or the index make no sense.
    #[error("the index or the sizes of the proof make no sense")]
    Range,
    /// It has another number of hashes than it must have.
    #[error("the proof has a wrong number of hashes")]
    Length,
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// The right edge of a tree: the roots of its complete subtrees, largest first. All that is needed to add leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The edge of a tree of `size` leaves, from its nodes.
    pub fn of<E>(size: u64, mut read: impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Self, E> {
        let peaks = peaks(0, size).into_iter().map(|(level, index)| read(level, index)).collect::<Result<_, _>>()?;
        Ok(Frontier { size, peaks })
    }

    /// How many leaves the tree has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf; every subtree that it completes is told, the leaf first.
    pub fn push(&mut self, leaf: Hash, mut complete: impl FnMut(u8, u64, Hash)) {
        let (mut hash, mut level, mut index) = (leaf, 0, self.size);
        complete(level, index, hash);
        while index % 2 == 1 {
            // An odd index has its left neighbour among the peaks.
            let Some(left) = self.peaks.pop() else { break };
            hash = node(&left, &hash);
            (level, index) = (level + 1, index / 2);
            complete(level, index, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root.
    pub fn root(&self) -> Hash {
        fold(&self.peaks)
    }
}

/// The root over complete subtrees, largest first.
fn fold(peaks: &[Hash]) -> Hash {
    let mut right_to_left = peaks.iter().rev();
    match right_to_left.next() {
        None => empty_root(),
        Some(last) => right_to_left.fold(*last, |right, left| node(left, &right)),
    }
}

/// The complete subtrees that cover the leaves `from..to`, left to right, when `from` is 0 or a multiple of each of them.
fn peaks(from: u64, to: u64) -> Vec<(u8, u64)> {
    let (mut at, mut found) = (from, vec![]);
    while at < to {
        let by_size = 63 - (to - at).leading_zeros();
        let level = if at == 0 { by_size } else { by_size.min(at.trailing_zeros()) };
        found.push((level as u8, at >> level));
        at += 1 << level;
    }
    found
}

/// The root of the leaves `from..to`, which are what is left of a tree below one of its inner nodes.
fn root_of<E>(from: u64, to: u64, read: &mut impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Hash, E> {
    let hashes: Vec<Hash> = peaks(from, to).into_iter().map(|(level, index)| read(level, index)).collect::<Result<_, _>>()?;
    Ok(fold(&hashes))
}

/// The largest power of two below `n`, for `n` of 2 or more.
fn split(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// The hashes that lead from leaf `index` to the root of the first `size` leaves; `None` when there is no such leaf.
pub fn inclusion_proof<E>(
    index: u64,
    size: u64,
    mut read: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    if index >= size {
        return Ok(None);
    }
    let (mut from, mut to) = (0, size);
    let mut ranges = vec![];
    while to - from > 1 {
        let middle = from + split(to - from);
        match index < middle {
            true => {
                ranges.push((middle, to));
                to = middle;
            }
            false => {
                ranges.push((from, middle));
                from = middle;
            }
        }
    }
    ranges.into_iter().rev().map(|(from, to)| root_of(from, to, &mut read)).collect::<Result<_, _>>().map(Some)
}

/// The hashes that show that the first `old` leaves of a tree of `new` are a tree that was published before; `None` when
/// `old` is larger.
pub fn consistency_proof<E>(
    old: u64,
    new: u64,
    mut read: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Option<Vec<Hash>>, E> {
    if old > new {
        return Ok(None);
    }
    if old == 0 || old == new {
        return Ok(Some(vec![]));
    }
    let (mut from, mut to, mut is_whole) = (0, new, true);
    let mut ranges = vec![];
    while old != to {
        let middle = from + split(to - from);
        match old <= middle {
            true => {
                ranges.push((middle, to));
                to = middle;
            }
            false => {
                ranges.push((from, middle));
                from = middle;
                is_whole = false;
            }
        }
    }
    if !is_whole {
        ranges.push((from, to));
    }
    ranges.into_iter().rev().map(|(from, to)| root_of(from, to, &mut read)).collect::<Result<_, _>>().map(Some)
}

/// Whether a proof shows that `leaf` is number `index` of the `size` leaves under `root`.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range);
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            hash = node(sibling, &hash);
            while at.is_multiple_of(2) && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

/// Whether a proof shows that the tree of `new` leaves begins with the tree of `old` leaves.
pub fn verify_consistency(old: u64, old_root: &Hash, new: u64, new_root: &Hash, proof: &[Hash]) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Range);
    }
    if old == 0 || old == new {
        return match (proof.is_empty(), old == 0 || old_root == new_root) {
            (false, _) => Err(ProofError::Length),
            (true, false) => Err(ProofError::Root),
            (true, true) => Ok(()),
        };
    }
    let (first, rest) = match old.is_power_of_two() {
        true => (*old_root, proof),
        false => proof.split_first().map(|(first, rest)| (*first, rest)).ok_or(ProofError::Length)?,
    };
    let (mut at, mut last) = (old - 1, new - 1);
    while at % 2 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            old_hash = node(sibling, &old_hash);
            new_hash = node(sibling, &new_hash);
            while at.is_multiple_of(2) && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new_hash = node(&new_hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    match (last, old_hash == *old_root && new_hash == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length),
    }
}

#[cfg(test)]
#[path = "merkle_tests.rs"]
mod tests;
