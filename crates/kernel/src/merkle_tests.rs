//! The vectors of RFC 6962's reference implementation (Certificate Transparency), and properties against the definition.

use super::*;
use crate::text::hex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// The leaves and roots that the tests of Certificate Transparency and of transparency-dev's merkle library use.
const LEAVES: [&[u8]; 8] = [
    b"",
    &[0x00],
    &[0x10],
    &[0x20, 0x21],
    &[0x30, 0x31],
    &[0x40, 0x41, 0x42, 0x43],
    &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
    &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
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

/// A tree with all its nodes.
struct Tree {
    frontier: Frontier,
    nodes: BTreeMap<(u8, u64), Hash>,
}

impl Tree {
    fn of(leaves: impl IntoIterator<Item = Hash>) -> Self {
        let mut tree = Tree { frontier: Frontier::default(), nodes: BTreeMap::new() };
        for leaf in leaves {
            tree.frontier.push(leaf, |level, index, hash| {
                tree.nodes.insert((level, index), hash);
            });
        }
        tree
    }

    fn read(&self) -> impl FnMut(u8, u64) -> Result<Hash, Infallible> + '_ {
        |level, index| Ok(self.nodes[&(level, index)])
    }
}

/// The definition in RFC 6962, word for word.
fn by_definition(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split(many.len() as u64) as usize);
            node(&by_definition(left), &by_definition(right))
        }
    }
}

fn numbered(count: u64) -> Vec<Hash> {
    (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
}

#[test]
fn the_known_roots_come_out() {
    assert_eq!(hex(&empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (n, root) in ROOTS.iter().enumerate() {
        assert_eq!(hex(&Tree::of(LEAVES[..=n].iter().map(|data| leaf(data))).frontier.root()), *root);
    }
}

#[test]
fn the_known_proofs_come_out() {
    let tree = Tree::of(LEAVES.iter().map(|data| leaf(data)));
    let shown = |proof: Option<Vec<Hash>>| proof.unwrap().iter().map(|h| hex(h)).collect::<Vec<_>>();
    let Ok(first) = inclusion_proof(0, 8, tree.read());
    assert_eq!(
        shown(first),
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ]
    );
    let Ok(sixth) = inclusion_proof(5, 8, tree.read());
    assert_eq!(
        shown(sixth),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    let Ok(grown) = consistency_proof(6, 8, tree.read());
    assert_eq!(
        shown(grown),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

#[test]
fn every_proof_of_small_trees_verifies_and_every_change_of_it_does_not() {
    let tree = Tree::of(numbered(40));
    for size in 1..=40 {
        let root = by_definition(&numbered(size));
        for index in 0..size {
            let Ok(proof) = inclusion_proof(index, size, tree.read());
            let proof = proof.unwrap();
            let leaf = tree.nodes[&(0, index)];
            assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Ok(()));
            assert!(verify_inclusion(&empty_root(), index, size, &proof, &root).is_err());
            assert!(verify_inclusion(&leaf, index, size, &proof, &leaf_of_nothing()).is_err());
            let longer = [&proof[..], &[root]].concat();
            assert!(verify_inclusion(&leaf, index, size, &longer, &root).is_err());
            if let Some((_, shorter)) = proof.split_last() {
                assert!(verify_inclusion(&leaf, index, size, shorter, &root).is_err());
                assert!(verify_inclusion(&leaf, (index + 1) % size, size, &proof, &root).is_err());
            }
        }
        for old in 0..=size {
            let old_root = by_definition(&numbered(old));
            let Ok(proof) = consistency_proof(old, size, tree.read());
            let proof = proof.unwrap();
            assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()), "{old} in {size}");
            assert!(verify_consistency(old, &old_root, size, &root, &[&proof[..], &[root]].concat()).is_err());
            for n in 0..proof.len() {
                let mut other = proof.clone();
                other[n][0] ^= 1;
                assert!(verify_consistency(old, &old_root, size, &root, &other).is_err());
                other.remove(n);
                assert!(verify_consistency(old, &old_root, size, &root, &other).is_err());
            }
            if old > 0 {
                assert!(verify_consistency(old, &leaf_of_nothing(), size, &root, &proof).is_err());
            }
        }
    }
}

fn leaf_of_nothing() -> Hash {
    leaf(b"nothing")
}

proptest! {
    #[test]
    fn roots_and_edges_follow_the_definition(count in 0u64..700) {
        let leaves = numbered(count);
        let tree = Tree::of(leaves.clone());
        prop_assert_eq!(tree.frontier.root(), by_definition(&leaves));
        let Ok(again) = Frontier::of(count, tree.read());
        prop_assert_eq!(again, tree.frontier);
    }

    #[test]
    fn foreign_proofs_never_panic(
        index in any::<u64>(), size in any::<u64>(), old in any::<u64>(), proof in prop::collection::vec(any::<[u8; 32]>(), 0..70), root in any::<[u8; 32]>(),
    ) {
        prop_assert!(verify_inclusion(&root, index, size, &proof, &[0; 32]).is_err());
        let _ = verify_consistency(old, &root, size, &[1; 32], &proof);
    }
}
