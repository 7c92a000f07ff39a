//! The checksum of a page: two sums over its 32-bit words, each fed with the other, kept in the last 8 bytes.

/// Bytes at the end of a page that hold its checksum.
pub(crate) const BYTES: usize = 8;

/// Whether this may be a whole page: a power of two from 512 to 65,536.
pub(crate) fn is_page(bytes: usize) -> bool {
    (512..=65_536).contains(&bytes) && bytes.is_power_of_two()
}

/// Whether a page has the checksum of its content.
pub(crate) fn holds(page: &[u8]) -> bool {
    page.split_last_chunk().is_some_and(|(content, kept)| of(content) == *kept)
}

/// Puts the checksum of its content into a page.
pub(crate) fn stamp(page: &mut [u8]) {
    if let Some((content, kept)) = page.split_last_chunk_mut() {
        *kept = of(content);
    }
}

fn of(content: &[u8]) -> [u8; BYTES] {
    let (mut first, mut second) = (0_u32, 0_u32);
    for [a, b, c, d, e, f, g, h] in content.as_chunks().0 {
        first = first.wrapping_add(u32::from_le_bytes([*a, *b, *c, *d])).wrapping_add(second);
        second = second.wrapping_add(u32::from_le_bytes([*e, *f, *g, *h])).wrapping_add(first);
    }
    (u64::from(second) << 32 | u64::from(first)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_cksumvfs() {
        // By hand: first = 1 then 1 + 3 + 3 = 7, second = 2 + 1 = 3 then 3 + 4 + 7 = 14.
        let content: Vec<u8> = [1_u32, 2, 3, 4].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(of(&content), [7, 0, 0, 0, 14, 0, 0, 0]);
        assert_eq!(of(&[0; 504]), [0; 8], "an empty page has an empty checksum");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let mut page: Vec<u8> = (0..512_u32).map(|n| (n * 7 % 251) as u8).collect();
        stamp(&mut page);
        assert!(holds(&page));
        for at in 0..page.len() {
            page[at] ^= 0x40;
            assert!(!holds(&page), "byte {at}");
            page[at] ^= 0x40;
        }
    }
}
