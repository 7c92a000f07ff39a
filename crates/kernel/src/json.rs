//! JSON that is carried, not understood: inputs, outputs, contexts of tasks. Kept as its text.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::fmt;
use std::sync::Arc;

/// A JSON text, cheap to clone, never re-serialised on the way.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Arc<RawValue>);

/// The one member of an object that stands for a large value stored by its hash, `{"$value": "<sha-256 in hex>"}`.
const REFERENCE: &str = "$value";

/// The canonical form of a value (RFC 8785), or why there is none (numbers beyond IEEE double).
pub fn canonical(value: &serde_json::Value) -> Result<Vec<u8>, String> {
    serde_json_canonicalizer::to_vec(value).map_err(|e| e.to_string())
}

/// The hashes of all values that a JSON text refers to. May name some that it only seems to refer to.
pub fn references(text: &[u8]) -> Vec<[u8; 32]> {
    const BEGIN: &[u8] = b"\"$value\":\"";
    let mut found = vec![];
    let mut rest = text;
    while let Some(at) = rest.windows(BEGIN.len()).position(|window| window == BEGIN) {
        rest = &rest[at + BEGIN.len()..];
        let hex = rest.get(..64).and_then(|hex| std::str::from_utf8(hex).ok());
        found.extend(hex.and_then(crate::text::unhex).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()));
    }
    found
}

impl Json {
    /// `{}`
    pub fn empty_object() -> Self {
        Json(Arc::from(RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())))
    }

    /// The text of any serialisable value.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(|raw| Json(Arc::from(raw)))
    }

    /// Checks that `text` is JSON and keeps it.
    pub fn parse(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(|raw| Json(Arc::from(raw)))
    }

    /// The text.
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// The parsed value.
    pub fn value(&self) -> serde_json::Value {
        // The text was checked when this was made.
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }

    /// Splits a text of more than `bytes_max` bytes into a small reference and the stored value; `None` when it is small.
    /// A text that looks like a reference is stored too, so that no foreign text is ever taken for one of ours.
    pub fn offload(&self, bytes_max: usize) -> Option<(Json, [u8; 32])> {
        if self.text().len() <= bytes_max && self.reference().is_none() {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(self.text().as_bytes()).into();
        let reference = Json::of(&serde_json::json!({ REFERENCE: crate::text::hex(&hash) })).ok()?;
        Some((reference, hash))
    }

    /// The hash that a reference made by [`Json::offload`] points to.
    pub fn reference(&self) -> Option<[u8; 32]> {
        if self.text().len() > 96 || !self.text().contains(REFERENCE) {
            return None;
        }
        let value = self.value();
        let object = value.as_object().filter(|o| o.len() == 1)?;
        crate::text::unhex(object.get(REFERENCE)?.as_str()?)?.try_into().ok()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text() || self.value() == other.value()
    }
}
impl Eq for Json {}
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
impl Default for Json {
    fn default() -> Self {
        Json::empty_object()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip_byte_for_byte() {
        let json: Json = serde_json::from_str(r#"{"b": 1.0,  "a":[]}"#).unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), r#"{"b": 1.0,  "a":[]}"#);
    }

    #[test]
    fn only_large_values_are_offloaded_and_the_reference_is_recognised() {
        let small = Json::parse(r#"{"a":1}"#.into()).unwrap();
        assert!(small.offload(16).is_none());
        let large = Json::parse(format!("\"{}\"", "x".repeat(100))).unwrap();
        let (reference, hash) = large.offload(16).unwrap();
        assert_eq!(reference.reference(), Some(hash));
        assert_eq!(small.reference(), None);
        assert!(reference.offload(1_000).is_some(), "a foreign text of this form is a value like any other");
        assert_eq!(Json::parse(r#"{"$value":"zz"}"#.into()).unwrap().reference(), None);
    }
}
