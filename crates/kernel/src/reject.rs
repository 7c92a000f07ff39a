//! Why a command is refused: few kinds that tell the caller what to do, one code each, a hint.

use serde::Serialize;
use std::fmt;

/// What the caller can do about a refusal. Mapped to HTTP in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// The request is malformed: correct it.
    Invalid,
    /// Nobody known asks: authenticate.
    Unauthenticated,
    /// Known, but may not: ask for the permission.
    Forbidden,
    /// Not there, or not the caller's.
    NotFound,
    /// It contradicts the present state: read it again.
    Conflict,
    /// A conditional write met another version.
    Precondition,
    /// A rule or a schema says no: another input is needed.
    Refused,
    /// Too large.
    TooLarge,
    /// Too often: wait.
    Limited,
    /// Not now: try again.
    Unavailable,
    /// What lies behind Keiko failed, and it may have done what was asked: look before asking again.
    Upstream,
    /// Our fault.
    Internal,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// JSON pointer into the request.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
}

/// A refusal with everything that the caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What to do about it.
    pub kind: Kind,
    /// Stable code, upper snake case; one page per code in the documentation.
    pub code: &'static str,
    /// What is wrong; names the input.
    pub message: String,
    /// Facts for programs.
    pub details: serde_json::Map<String, serde_json::Value>,
    /// What to do.
    pub hint: String,
}

impl Rejection {
    /// A refusal without details.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Rejection { kind, code, message: message.into(), details: serde_json::Map::new(), hint: hint.into() }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        self.details.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
        self
    }

    /// Malformed fields, all at once.
    pub fn invalid(problems: &[Problem]) -> Self {
        let first = problems.first().map(|p| format!("{}: {}", p.pointer, p.message)).unwrap_or_default();
        let more = match problems.len() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        Rejection::new(
            Kind::Invalid,
            "VALIDATION_FAILED",
            format!("The request is not valid. {first}{more}"),
            "Correct every field listed in details.errors; /docs shows the schema.",
        )
        .with("errors", problems)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
impl std::error::Error for Rejection {}
