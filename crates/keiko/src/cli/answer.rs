//! The answer to a request: `data` and `meta` of the interface's envelope.
//!
//! Owns where things are in the envelope. Never sends, never prints.

use super::error::hinted;
use serde_json::Value;

/// An answer that was not refused.
pub struct Answer(Value);

impl Answer {
    /// Reads a body; an empty one (status 204) is an answer without data.
    pub fn read(body: &[u8]) -> anyhow::Result<Self> {
        if body.is_empty() {
            return Ok(Answer(Value::Null));
        }
        let body: Value = serde_json::from_slice(body).map_err(|_| strange("is not JSON"))?;
        if body.get("data").is_none() {
            return Err(strange("has no 'data'"));
        }
        Ok(Answer(body))
    }

    /// The resource, or the list of them.
    pub fn data(&self) -> &Value {
        &self.0["data"]
    }

    /// The entries of a list.
    pub fn items(&self) -> &[Value] {
        self.data().as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// The attributes of the one resource.
    pub fn attributes(&self) -> &Value {
        &self.data()["attributes"]
    }

    /// The id of the one resource.
    pub fn id(&self) -> anyhow::Result<&str> {
        self.data()["id"].as_str().ok_or_else(|| strange("has no 'data.id'"))
    }

    /// A text among the attributes.
    pub fn text(&self, name: &str) -> anyhow::Result<&str> {
        self.attributes()[name].as_str().ok_or_else(|| strange(&format!("has no 'data.attributes.{name}'")))
    }

    /// The log position that the answer reflects.
    pub fn position(&self) -> Option<u64> {
        self.0["meta"]["position"].as_u64()
    }

    /// Where the list goes on.
    pub fn next_cursor(&self) -> Option<&str> {
        self.0["meta"]["next_cursor"].as_str()
    }
}

fn strange(how: &str) -> anyhow::Error {
    hinted(
        format!("The answer {how}: it is not one of Keiko's."),
        "check --server, and that this command and the server are of the same version (keiko version)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_in_its_envelope() {
        let body = br#"{"data":{"id":"agent_1","attributes":{"name":"a"}},"meta":{"position":7}}"#;
        let answer = Answer::read(body).unwrap();
        assert_eq!(answer.id().unwrap(), "agent_1");
        assert_eq!(answer.text("name").unwrap(), "a");
        assert_eq!(answer.position(), Some(7));
        assert_eq!(answer.next_cursor(), None);
        assert!(answer.text("key").is_err());
    }

    #[test]
    fn nothing_is_an_answer_and_a_page_is_none() {
        assert!(Answer::read(b"").unwrap().data().is_null());
        assert!(Answer::read(b"<html>").is_err());
        assert!(Answer::read(b"{}").is_err());
    }
}
