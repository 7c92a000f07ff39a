//! Small text tools: names, hex, lexical overlap.

use std::fmt::Write;

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// The bytes of a hexadecimal text, or `None` when it is none.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

/// Whether `text` is a name that people type: 1 to `chars_max` characters, none of them a control character, no blank at the ends.
pub fn is_name(text: &str, chars_max: usize) -> bool {
    let count = text.chars().count();
    (1..=chars_max).contains(&count) && text.trim() == text && !text.chars().any(char::is_control)
}

/// Whether `text` is a slug: 1 to `chars_max` of a-z, 0-9 and `-`, not starting or ending with `-`.
pub fn is_slug(text: &str, chars_max: usize) -> bool {
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && (1..=chars_max).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

/// Lower-case words of at least two characters, in order, without repetition.
pub fn words(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| w.chars().count() > 1) {
        let word = word.to_lowercase();
        if !found.contains(&word) {
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_and_refuses_garbage() {
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex("ää"), None);
    }

    #[test]
    fn slugs_and_names_are_told_from_the_rest() {
        assert!(is_slug("team-7", 40));
        for bad in ["", "-a", "a-", "A", "a_b", "ä"] {
            assert!(!is_slug(bad, 40), "{bad}");
        }
        assert!(is_name("Käthe's agent", 40));
        for bad in ["", " a", "a\n"] {
            assert!(!is_name(bad, 40), "{bad:?}");
        }
    }

    #[test]
    fn words_are_lower_case_and_unique() {
        assert_eq!(words("Review the Rust-code, review!"), ["review", "the", "rust", "code"]);
    }
}
