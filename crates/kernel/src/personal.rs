//! Personal data in events: marked from the start, so that sealing it later changes no stored shape.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A personal value and whose it is. Stored as `{"$personal": {"subject": …, "plain": …}}`; a sealed form replaces
/// `plain` once keys per subject exist, and a missing one means that it was erased.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Personal<T> {
    #[serde(rename = "$personal")]
    inner: Inner<T>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Inner<T> {
    subject: String,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    plain: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

impl<T> Personal<T> {
    /// Marks `value` as a personal value of `subject` (an entity's id).
    pub fn new(subject: impl ToString, value: T) -> Self {
        Personal { inner: Inner { subject: subject.to_string(), plain: Some(value) } }
    }

    /// The value, unless it was erased.
    pub fn get(&self) -> Option<&T> {
        self.inner.plain.as_ref()
    }
}

/// Debug output reaches logs, so it never shows the value.
impl<T> fmt::Debug for Personal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "personal({})", self.inner.subject)
    }
}

/// A keyed hash of a personal value, by which it is found without being shown. Made by `app`, which holds the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlindIndex(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_stored_and_hidden_from_debug_output() {
        let name = Personal::new("user_1", "ada".to_owned());
        let text = serde_json::to_string(&name).unwrap();
        assert_eq!(text, r#"{"$personal":{"subject":"user_1","plain":"ada"}}"#);
        assert_eq!(serde_json::from_str::<Personal<String>>(&text).unwrap().get().unwrap(), "ada");
        assert!(!format!("{name:?}").contains("ada"));
    }

    #[test]
    fn an_erased_value_is_read_as_absent() {
        let erased: Personal<String> = serde_json::from_str(r#"{"$personal":{"subject":"user_1"}}"#).unwrap();
        assert_eq!(erased.get(), None);
    }
}
