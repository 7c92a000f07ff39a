//! Tiles: the coordinates under which a tree is published, as in C2SP tlog-tiles. A tile holds up to 256 hashes of one
//! level; levels of tiles are eight levels of the tree apart.

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

    proptest! {
        #[test]
        fn parsing_never_panics_and_goes_both_ways(text in "\\PC{0,40}", level in 0u8..64, index in any::<u64>(), width in 1u16..=256) {
            let _ = Tile::parse(&text);
            let tile = Tile { level: Some(level), index, width };
            prop_assert_eq!(Tile::parse(&tile.path()), Some(tile));
        }
    }
}
