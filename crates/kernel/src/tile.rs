//! Tiles: the coordinates under which a tree is published, as in C2SP tlog-tiles. A tile holds up to 256 hashes of one
//! level; levels of tiles are eight levels of the tree apart.

use crate::merkle::{Frontier, Hash, node};
use std::collections::BTreeMap;

/// Hashes of a full tile.
pub const WIDTH: u64 = 256;
/// Levels of the tree between two levels of tiles.
pub const HEIGHT: u8 = 8;

/// One tile, or one bundle of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Level of the tile, or `None` for the entries themselves.
    pub level: Option<u8>,
    /// Number of the tile in its level.
    pub index: u64,
    /// How many hashes or entries it holds: 256, or fewer at the tree's edge.
    pub width: u16,
}

impl Tile {
    /// The path below `tile/`: `0/x001/x234/067`, `1/000.p/5`, `entries/000`.
    pub fn path(&self) -> String {
        let level = self.level.map_or_else(|| "entries".to_owned(), |level| level.to_string());
        let mut parts = vec![format!("{:03}", self.index % 1_000)];
        let mut rest = self.index / 1_000;
        while rest > 0 {
            parts.push(format!("x{:03}", rest % 1_000));
            rest /= 1_000;
        }
        parts.reverse();
        let partial = if u64::from(self.width) < WIDTH { format!(".p/{}", self.width) } else { String::new() };
        format!("{level}/{}{partial}", parts.join("/"))
    }

    /// The tile of a path in its one right form.
    pub fn parse(path: &str) -> Option<Tile> {
        let (level, rest) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            number => Some(number.parse::<u8>().ok().filter(|level| *level <= 63)?),
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse::<u16>().ok().filter(|w| (1..256).contains(w))?),
            None => (rest, WIDTH as u16),
        };
        let index = number.split('/').try_fold(0_u64, |index, part| {
            let digits = part.strip_prefix('x').unwrap_or(part);
            index.checked_mul(1_000)?.checked_add(digits.parse::<u64>().ok()?)
        })?;
        let tile = Tile { level, index, width };
        (tile.path() == path).then_some(tile)
    }

    /// Whether a tree of `size` leaves has it.
    pub fn is_in(&self, size: u64) -> bool {
        let shift = u32::from(self.level.unwrap_or(0)) * u32::from(HEIGHT);
        let hashes = size.checked_shr(shift).unwrap_or(0);
        let end = self.index.checked_mul(WIDTH).and_then(|first| first.checked_add(u64::from(self.width)));
        end.is_some_and(|end| end <= hashes)
    }
}

/// Number of a hash's tile, and its place there.
pub fn place(level: u8, index: u64) -> (u8, u64, usize) {
    // Tiles hold every eighth level; a node in between is the first of those that it covers.
    let first = index << (level % HEIGHT);
    (level / HEIGHT, first / WIDTH, (first % WIDTH) as usize)
}

/// The node at a level and index, from the tile that [`place`] names; `None` when the tile is too short.
pub fn node_in(tile: &[u8], level: u8, index: u64) -> Option<Hash> {
    let (_, _, first) = place(level, index);
    let count = 1_usize << (level % HEIGHT);
    let bytes = tile.get(first * 32..(first + count) * 32)?;
    let mut hashes: Vec<Hash> = bytes.as_chunks::<32>().0.to_vec();
    while hashes.len() > 1 {
        hashes = hashes.as_chunks::<2>().0.iter().map(|[left, right]| node(left, right)).collect();
    }
    hashes.pop()
}

/// A tree at its right edge: takes leaves, and says which tiles they changed.
#[derive(Clone, Debug, Default)]
pub struct Edge {
    frontier: Frontier,
    /// The last tile of each level, unless it is full.
    partial: Vec<Vec<u8>>,
    changed: BTreeMap<(u8, u64), Vec<u8>>,
}

impl Edge {
    /// The tiles whose hashes are needed to go on from a size, by level and index with how many hashes: those at the edge.
    pub fn needed(size: u64) -> Vec<(u8, u64, usize)> {
        let counts = (0..=63 / HEIGHT).map(|level| (level, size >> (level * HEIGHT)));
        counts
            .take_while(|(_, count)| *count > 0)
            .map(|(level, count)| (level, count / WIDTH, (count % WIDTH) as usize))
            .filter(|(_, _, width)| *width > 0)
            .collect()
    }

    /// The edge of a tree of some size, from the tiles that [`Edge::needed`] names; `None` when one is too short.
    pub fn of(size: u64, tiles: &BTreeMap<(u8, u64), Vec<u8>>) -> Option<Self> {
        let mut partial = vec![];
        for (level, index, width) in Self::needed(size) {
            partial.resize(usize::from(level), vec![]);
            partial.push(tiles.get(&(level, index))?.get(..width * 32)?.to_vec());
        }
        // Every peak lies in the last tile of its level: a peak in a full one would be part of a larger peak.
        let read = |level: u8, index: u64| {
            let tile = partial.get(usize::from(level / HEIGHT)).ok_or(())?;
            node_in(tile, level, index).ok_or(())
        };
        let frontier = Frontier::of(size, read).ok()?;
        Some(Edge { frontier, partial, changed: BTreeMap::new() })
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root.
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let Edge { frontier, partial, changed } = self;
        frontier.push(leaf, |level, index, hash| {
            if level % HEIGHT > 0 {
                return;
            }
            let tile_level = usize::from(level / HEIGHT);
            if partial.len() <= tile_level {
                partial.resize(tile_level + 1, vec![]);
            }
            let tile = &mut partial[tile_level];
            tile.extend(hash);
            changed.insert((level / HEIGHT, index / WIDTH), tile.clone());
            if tile.len() == WIDTH as usize * 32 {
                tile.clear();
            }
        });
    }

    /// The tiles that changed since the last call.
    pub fn take_changed(&mut self) -> Vec<((u8, u64), Vec<u8>)> {
        std::mem::take(&mut self.changed).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        let tile = |level, index, width| Tile { level, index, width };
        for (tile, path) in [
            (tile(Some(0), 1_234_067, 256), "0/x001/x234/067"),
            (tile(Some(1), 0, 5), "1/000.p/5"),
            (tile(None, 999, 256), "entries/999"),
            (tile(None, 1_000, 255), "entries/x001/000.p/255"),
        ] {
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::parse(path), Some(tile));
        }
        for bad in [
            "",
            "0",
            "0/",
            "0/1",
            "0/0001",
            "64/000",
            "0/x000/001",
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/+1",
            "+0/000",
            "0/x001",
            "00/000",
            "0/99999999999999999999999",
        ] {
            assert_eq!(Tile::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tree_has_the_tiles_that_are_full_enough() {
        let tile = |level, index, width| Tile { level, index, width };
        assert!(tile(Some(0), 0, 5).is_in(5) && !tile(Some(0), 0, 6).is_in(5));
        assert!(tile(Some(1), 0, 1).is_in(256) && !tile(Some(1), 0, 1).is_in(255));
        assert!(!tile(Some(0), u64::MAX, 256).is_in(u64::MAX) && !tile(Some(63), 0, 1).is_in(u64::MAX));
    }

    #[test]
    fn an_edge_goes_on_from_its_tiles() {
        let leaves: Vec<Hash> = (0..70_000_u64).map(|n| crate::merkle::leaf(&n.to_be_bytes())).collect();
        let mut whole = Edge::default();
        let mut tiles = BTreeMap::new();
        let stops = [0, 1, 5, 255, 256, 257, 511, 512, 1_000, 65_535, 65_536, 65_537, 66_000, 70_000];
        for pair in stops.windows(2) {
            // A new edge from what was kept gives the same as the one that went on.
            let mut again = Edge::of(whole.size(), &tiles).unwrap();
            for leaf in &leaves[pair[0]..pair[1]] {
                whole.push(*leaf);
                again.push(*leaf);
            }
            assert_eq!(again.root(), whole.root(), "at {}", pair[1]);
            let changed = whole.take_changed();
            assert_eq!(again.take_changed(), changed);
            tiles.extend(changed);
        }
        assert_eq!(tiles[&(0, 0)].len(), 8_192);
        assert_eq!(tiles[&(2, 0)].len(), 32);
        let Ok(proof) = crate::merkle::inclusion_proof(300, 70_000, |level, index| {
            let (tile_level, tile, _) = place(level, index);
            node_in(&tiles[&(tile_level, tile)], level, index).ok_or("too short")
        }) else {
            panic!("a node is missing")
        };
        assert_eq!(crate::merkle::verify_inclusion(&leaves[300], 300, 70_000, &proof.unwrap(), &whole.root()), Ok(()));
        assert!(Edge::of(5, &BTreeMap::from([((0, 0), vec![0; 4 * 32])])).is_none(), "a tile that is too short");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_goes_both_ways(text in "\\PC{0,40}", level in 0u8..64, index in any::<u64>(), width in 1u16..=256) {
            let _ = Tile::parse(&text);
            let tile = Tile { level: Some(level), index, width };
            prop_assert_eq!(Tile::parse(&tile.path()), Some(tile));
        }
    }
}
