//! One request to the interface as a value: method, path, query, body, and what keeps a repetition harmless.
//!
//! Owns how requests are spelled. Never sends one.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::{Map, Value};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How long a request may take when it does not wait for anything.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What a path segment may hold as it is (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request to the interface.
#[derive(Clone)]
pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Value>,
    pub(super) idempotency_key: Option<String>,
    pub(super) last_event_id: Option<String>,
    pub(super) is_anonymous: bool,
    pub(super) timeout: Option<Duration>,
}

impl Call {
    fn new(method: Method, path: impl Into<String>, body: Option<Value>) -> Self {
        Call {
            method,
            path: path.into(),
            query: Vec::new(),
            body,
            idempotency_key: None,
            last_event_id: None,
            is_anonymous: false,
            timeout: Some(TIMEOUT),
        }
    }

    /// Reads.
    pub fn get(path: impl Into<String>) -> Self {
        Call::new(Method::GET, path, None)
    }

    /// Appends, at most once: it carries an idempotency key.
    pub fn append(path: impl Into<String>, body: impl Into<Value>) -> Self {
        let key = Some(nonce());
        Call { idempotency_key: key, ..Call::new(Method::POST, path, Some(body.into())) }
    }

    /// Appends an action without arguments, at most once.
    pub fn action(segments: &[&str]) -> Self {
        Call::append(path(segments), Map::new())
    }

    /// Posts what must not be remembered, such as secrets, or what is new each time, such as claims.
    pub fn post(path: impl Into<String>, body: impl Into<Value>) -> Self {
        Call::new(Method::POST, path, Some(body.into()))
    }

    /// Replaces.
    pub fn put(path: impl Into<String>, body: impl Into<Value>) -> Self {
        Call::new(Method::PUT, path, Some(body.into()))
    }

    /// Deletes.
    pub fn delete(path: impl Into<String>) -> Self {
        Call::new(Method::DELETE, path, None)
    }

    /// Waits for so long.
    #[must_use]
    pub fn waiting(self, limit: Duration) -> Self {
        Call { timeout: Some(limit), ..self }
    }

    /// Adds a query parameter when there is a value.
    #[must_use]
    pub fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// Sends no credential: the body is one.
    #[must_use]
    pub fn anonymous(self) -> Self {
        Call { is_anonymous: true, ..self }
    }

    /// Waits for a stream without end, after the event at `position`.
    #[must_use]
    pub fn stream_after(self, position: Option<u64>) -> Self {
        Call { timeout: None, last_event_id: position.map(|p| p.to_string()), ..self }
    }
}

/// A path of segments, each encoded.
pub fn path(segments: &[&str]) -> String {
    let encoded: Vec<String> = segments.iter().map(|s| utf8_percent_encode(s, SEGMENT).to_string()).collect();
    encoded.join("/")
}

/// 128 bits that no other call has, in hexadecimal. Not for secrets: std seeds each state once from the system.
pub fn nonce() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

/// A JSON object that holds only what was given.
#[derive(Clone, Default)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Adds a field when there is a value.
    #[must_use]
    pub fn with(mut self, name: &str, value: Option<impl Into<Value>>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
        self
    }

    /// Adds a list when it has entries.
    #[must_use]
    pub fn with_list(self, name: &str, entries: Vec<String>) -> Self {
        let value = (!entries.is_empty()).then_some(entries);
        self.with(name, value)
    }
}

impl From<Fields> for Value {
    fn from(fields: Fields) -> Value {
        Value::Object(fields.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_keeps_its_segments_apart() {
        assert_eq!(path(&["agents", "a/b ä", "tasks"]), "agents/a%2Fb%20%C3%A4/tasks");
        assert_eq!(path(&["agents", "agent_01h-2.x~"]), "agents/agent_01h-2.x~");
    }

    #[test]
    fn two_appends_are_two_appends_and_a_copy_is_the_same_one() {
        let one = Call::append("tasks", json!({}));
        let other = Call::append("tasks", json!({}));
        assert_eq!(one.idempotency_key.as_ref().map(String::len), Some(32));
        assert_ne!(one.idempotency_key, other.idempotency_key);
        assert_eq!(one.clone().idempotency_key, one.idempotency_key);
    }

    #[test]
    fn fields_hold_only_what_was_given() {
        let fields = Fields::default().with("a", Some(1)).with("b", None::<String>).with_list("c", Vec::new());
        assert_eq!(Value::from(fields), json!({"a": 1}));
    }
}
