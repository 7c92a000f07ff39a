//! One-time codes by time (RFC 6238): six digits, half a minute each. The tag is computed outside; which codes count is
//! decided here.

/// How long a code counts.
pub const STEP_S: u64 = 30;
/// Steps before and after now that count too, for clocks that differ.
pub const SKEW_STEPS: u64 = 1;

/// The step of an instant, in seconds since 1970.
pub fn step(now_s: u64) -> u64 {
    now_s / STEP_S
}

/// The steps whose codes count at an instant.
pub fn steps(now_s: u64) -> impl Iterator<Item = u64> {
    let now = step(now_s);
    now.saturating_sub(SKEW_STEPS)..=now + SKEW_STEPS
}

/// The code of an HMAC-SHA-1 tag of a step's number (RFC 4226, 5.3).
pub fn code(tag: &[u8; 20]) -> String {
    let at = usize::from(tag[19] & 0x0f);
    let word = u32::from_be_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]) & 0x7fff_ffff;
    format!("{:06}", word % 1_000_000)
}

/// Base32 without padding (RFC 4648), as apps take secrets.
pub fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut out, mut held, mut bits) = (String::new(), 0u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(LETTERS[((held >> bits) & 31) as usize]));
        }
    }
    if bits > 0 {
        out.push(char::from(LETTERS[((held << (5 - bits)) & 31) as usize]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_example_of_truncation_is_met() {
        // RFC 4226, 5.4.
        let tag = [
            0x1f, 0x86, 0x98, 0x69, 0x0e, 0x02, 0xca, 0x16, 0x61, 0x85, 0x50, 0xef, 0x7f, 0x19, 0xda, 0x8e, 0x94, 0x5b, 0x55,
            0x5a,
        ];
        assert_eq!(code(&tag), "872921");
    }

    #[test]
    fn the_published_examples_of_base32_are_met() {
        // RFC 4648, 10, without padding.
        for (text, wanted) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(text.as_bytes()), wanted);
        }
    }

    #[test]
    fn codes_count_a_step_before_and_after() {
        assert_eq!(steps(59).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(steps(0).collect::<Vec<_>>(), [0, 1]);
    }
}
