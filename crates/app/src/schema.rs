//! JSON Schemas of capabilities: compiled once, never fetching anything, with a regular-expression engine that cannot hang.

use jsonschema::{PatternOptions, Validator};
use kernel::{Json, Problem};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Compiled schemas that are kept.
const COMPILED_MAX: usize = 1_024;
/// Errors that are reported at a time.
const ERRORS_MAX: usize = 20;
/// Longest schema.
pub(crate) const SCHEMA_BYTES_MAX: usize = 128 * 1024;

/// Compiled schemas by their text.
#[derive(Default)]
pub(crate) struct Schemas(Mutex<BTreeMap<String, Arc<Validator>>>);

impl Schemas {
    /// What is wrong with a value, if anything. `at` is where the value lies in the request.
    pub fn problems(&self, schema: &Json, value: &serde_json::Value, at: &str) -> Vec<Problem> {
        let validator = match self.compiled(schema) {
            Ok(validator) => validator,
            Err(message) => return vec![Problem { pointer: at.to_owned(), message }],
        };
        let errors = validator.iter_errors(value).take(ERRORS_MAX);
        errors.map(|e| Problem { pointer: format!("{at}{}", e.instance_path()), message: cut(&e.masked().to_string()) }).collect()
    }

    /// Compiles a schema, or says what is wrong with it.
    pub fn compiled(&self, schema: &Json) -> Result<Arc<Validator>, String> {
        if schema.text().len() > SCHEMA_BYTES_MAX {
            return Err(format!("a schema may have at most {SCHEMA_BYTES_MAX} bytes"));
        }
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(schema.text()) {
            return Ok(known.clone());
        }
        let built = jsonschema::options().with_pattern_options(PatternOptions::regex()).offline().build(&schema.value());
        let validator = Arc::new(built.map_err(|e| format!("is not a usable JSON Schema: {}", cut(&e.to_string())))?);
        let mut compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if compiled.len() >= COMPILED_MAX {
            compiled.pop_first();
        }
        compiled.insert(schema.text().to_owned(), validator.clone());
        Ok(validator)
    }
}

/// Messages quote the value, which may be large.
fn cut(message: &str) -> String {
    const CHARS_MAX: usize = 300;
    match message.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(value: serde_json::Value) -> Json {
        Json::of(&value).unwrap()
    }

    #[test]
    fn a_value_is_checked_with_the_place_of_each_mistake() {
        let schemas = Schemas::default();
        let schema = schema(json!({"type": "object", "required": ["a"], "properties": {"b": {"type": "integer"}}}));
        assert_eq!(schemas.problems(&schema, &json!({"a": 1, "b": 2}), "/input"), []);
        let found = schemas.problems(&schema, &json!({"b": "x"}), "/input");
        assert_eq!(found.iter().map(|p| p.pointer.as_str()).collect::<Vec<_>>(), ["/input", "/input/b"]);
    }

    #[test]
    fn remote_references_and_nonsense_are_refused_without_fetching() {
        let schemas = Schemas::default();
        for bad in [
            json!({"$ref": "http://127.0.0.1:1/x"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"type": "no such type"}),
            json!(7),
        ] {
            assert!(schemas.compiled(&schema(bad.clone())).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_made_to_hang_does_not() {
        let schemas = Schemas::default();
        let schema = schema(json!({"pattern": "^(a+)+$"}));
        assert_eq!(schemas.problems(&schema, &json!(format!("{}!", "a".repeat(50_000))), "").len(), 1);
    }
}
