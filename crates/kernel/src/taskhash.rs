//! The task hash: what makes two tasks the same work.
//!
//! SHA-256 over the RFC 8785 form of `{capability, description, input, context}`, the description normalised by NFKC,
//! trimmed, white space collapsed, lower case. In hexadecimal.

use crate::json::Json;
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

/// A description with everything removed that does not change the work.
pub fn normalise(description: &str) -> String {
    let composed: String = description.nfkc().collect();
    composed.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// The hash, or why the values have no canonical form (numbers beyond IEEE double).
pub fn task_hash(capability: &str, description: &str, input: &Json, context: &Json) -> Result<String, String> {
    let canonical = crate::json::canonical(&serde_json::json!({
        "capability": capability,
        "description": normalise(description),
        "input": input.value(),
        "context": context.value(),
    }))?;
    Ok(crate::text::hex(&Sha256::digest(canonical)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hash(description: &str, input: &str) -> String {
        task_hash("review", description, &Json::parse(input.into()).unwrap(), &Json::empty_object()).unwrap()
    }

    #[test]
    fn the_hash_of_a_known_task_is_the_published_one() {
        // printf '{"capability":"review","context":{},"description":"review the code","input":{"a":1,"b":2}}' | sha256sum
        assert_eq!(
            hash("  Review\tthe   CODE ", r#"{"b":2.0,"a":1}"#),
            "54f4223fcb0e13e82c1c15e98ed862fe630cf1bebef941c815edaf66881278e4"
        );
    }

    #[test]
    fn compatibility_forms_are_the_same_work() {
        assert_eq!(hash("ﬁx it", "{}"), hash("fix it", "{}"));
        assert_ne!(hash("fix it", "{}"), hash("fix that", "{}"));
        assert_ne!(hash("fix it", "{}"), hash("fix it", r#"{"a":null}"#));
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "\\PC{0,60}") {
            let once = normalise(&text);
            // Lower-casing may open a new composition, so the fixed point is reached at the latest in the second round.
            let twice = normalise(&once);
            prop_assert_eq!(normalise(&twice), twice);
        }
    }
}
