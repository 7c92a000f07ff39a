//! What people read when something goes wrong: what is wrong, what to do about it, what to quote when asking for help.
//!
//! Owns the text of errors. Never decides what to do about one, beyond saying whether trying again can help.

use super::table::clean;
use serde_json::Value;
use std::fmt;

/// A refusal by the server: its error envelope.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    code: String,
    message: String,
    hint: Option<String>,
    problems: Vec<String>,
    request_id: Option<String>,
}

impl ApiError {
    /// Reads an error envelope; anything else still becomes an error that says so.
    pub fn read(status: u16, body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(clean);
        let Some(message) = text("/error/message") else {
            return ApiError::foreign(status);
        };
        let problems = problems(&body, &message);
        ApiError {
            status,
            code: text("/error/code").unwrap_or_else(|| format!("HTTP_{status}")),
            message,
            hint: text("/error/hint").filter(|hint| !hint.is_empty()),
            problems,
            request_id: text("/meta/request_id"),
        }
    }

    fn foreign(status: u16) -> Self {
        ApiError {
            status,
            code: format!("HTTP_{status}"),
            message: format!("The answer has status {status} and is not one of Keiko's."),
            hint: Some("check that --server is the address of a Keiko and not of something before or beside it".into()),
            problems: Vec::new(),
            request_id: None,
        }
    }
}

/// Each malformed field on a line of its own; one that the message speaks of already is left out.
fn problems(body: &Value, message: &str) -> Vec<String> {
    let listed = body.pointer("/error/details/errors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let field = |problem: &Value, name: &str| problem[name].as_str().map(clean).unwrap_or_default();
    let is_said = |problem: &Value| listed.len() == 1 && message.contains(&field(problem, "message"));
    let told = listed.iter().filter(|problem| !is_said(problem));
    told.map(|problem| format!("{}: {}", field(problem, "pointer"), field(problem, "message"))).collect()
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for problem in &self.problems {
            write!(f, "\n  - {problem}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        write!(f, "\ncode: {} (status {}", self.code, self.status)?;
        match &self.request_id {
            Some(id) => write!(f, ", request {id})"),
            None => f.write_str(")"),
        }
    }
}

impl std::error::Error for ApiError {}

/// An error found on this side, with what to do about it.
#[derive(Debug)]
struct Hinted {
    message: String,
    hint: String,
    passing: bool,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nhint: {}", self.message, self.hint)
    }
}

impl std::error::Error for Hinted {}

/// An error with what to do about it.
pub fn hinted(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { message: message.into(), hint: hint.into(), passing: false }.into()
}

/// An error of the connection: the same request may succeed later.
pub fn unreachable(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Hinted { message: message.into(), hint: hint.into(), passing: true }.into()
}

/// Whether the server asks to come again.
pub fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.code == "BUSY")
}

/// Whether a list of the past is still being put together.
pub fn is_building(error: &anyhow::Error) -> bool {
    is_code(error, "AS_OF_BUILDING")
}

/// Whether the server refused with this code.
pub fn is_code(error: &anyhow::Error, code: &str) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|e| e.code == code)
}

/// Whether the same request may succeed later without anybody changing anything.
pub fn is_passing(error: &anyhow::Error) -> bool {
    let refused_for_now = |e: &ApiError| e.status >= 500 || e.status == 429;
    error.downcast_ref::<ApiError>().is_some_and(refused_for_now) || error.downcast_ref::<Hinted>().is_some_and(|e| e.passing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_message_hint_code_and_request() {
        let body = br#"{"error":{"code":"AGENT_NOT_FOUND","message":"No agent 'x'.","hint":"List agents."},
                        "meta":{"request_id":"req_1"}}"#;
        let shown = ApiError::read(404, body).to_string();
        assert_eq!(shown, "No agent 'x'.\nhint: List agents.\ncode: AGENT_NOT_FOUND (status 404, request req_1)");
    }

    #[test]
    fn every_malformed_field_is_listed() {
        let body = br#"{"error":{"code":"VALIDATION_FAILED","message":"Not valid.","details":{"errors":[
                        {"pointer":"/name","message":"is missing"},{"pointer":"/x","message":"is unknown"}]}}}"#;
        let shown = ApiError::read(400, body).to_string();
        assert!(shown.contains("\n  - /name: is missing\n  - /x: is unknown\n"), "{shown}");
    }

    #[test]
    fn a_single_malformed_field_is_listed_where_the_message_does_not_speak_of_it() {
        let body = |message: &str| {
            let errors = r#"[{"pointer":"/arguments/n","message":"is no number"}]"#;
            format!(r#"{{"error":{{"code":"C","message":"{message}","details":{{"errors":{errors}}}}}}}"#)
        };
        let shown = |message| ApiError::read(422, body(message).as_bytes()).to_string();
        assert!(shown("The arguments do not fit.").contains("\n  - /arguments/n: is no number\n"));
        assert!(!shown("'/arguments/n' is no number.").contains("  - "));
    }

    #[test]
    fn a_page_of_something_else_is_not_shown() {
        let shown = ApiError::read(502, b"<html>Bad gateway</html>").to_string();
        assert!(shown.contains("status 502") && !shown.contains("html"), "{shown}");
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        assert!(is_passing(&ApiError::read(503, b"").into()));
        assert!(is_passing(&unreachable("a", "b")));
        assert!(!is_passing(&ApiError::read(403, b"").into()));
        assert!(!is_passing(&hinted("a", "b")));
    }
}
