//! What goes wrong, in the words of A2A: an error of JSON-RPC, or a `google.rpc.Status` over HTTP.

use axum::http::StatusCode;
use kernel::{Kind, Rejection};
use serde_json::{Map, Value, json};

pub(super) const PARSE_ERROR: i64 = -32_700;
pub(super) const INVALID_REQUEST: i64 = -32_600;
pub(super) const METHOD_NOT_FOUND: i64 = -32_601;
const INVALID_PARAMS: i64 = -32_602;
const INTERNAL_ERROR: i64 = -32_603;
/// The caller may not do it; A2A leaves the number to the server.
const FORBIDDEN: i64 = -32_097;
/// Not now; in the same way.
const UNAVAILABLE: i64 = -32_098;

/// An error that A2A knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    TaskNotFound,
    TaskNotCancelable,
    UnsupportedOperation,
    VersionNotSupported,
    /// Something that every protocol knows.
    Other,
}

/// Something that went wrong.
#[derive(Debug)]
pub(super) struct A2aError {
    named: Named,
    rejection: Rejection,
    /// The code of JSON-RPC where the message itself is wrong.
    rpc: Option<i64>,
}

/// What was asked, as far as it decides what an error is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Cancel,
    Anything,
}

impl A2aError {
    pub fn new(named: Named, rejection: Rejection) -> Self {
        A2aError { named, rejection, rpc: None }
    }

    /// A message that is none.
    pub fn protocol(rpc: i64, message: impl Into<String>) -> Self {
        let rejection = Rejection::new(Kind::Invalid, "VALIDATION_FAILED", message, "See the specification of A2A 1.0.");
        A2aError { named: Named::Other, rejection, rpc: Some(rpc) }
    }

    /// What a use case refused.
    pub fn of(asked: Asked, rejection: Rejection) -> Self {
        let named = match (rejection.code, asked) {
            ("TASK_NOT_FOUND" | "PUSH_NOT_FOUND", _) => Named::TaskNotFound,
            ("TASK_NOT_OPEN", Asked::Cancel) => Named::TaskNotCancelable,
            ("TASK_NOT_OPEN" | "MESSAGES_FULL", _) => Named::UnsupportedOperation,
            _ => Named::Other,
        };
        A2aError::new(named, rejection)
    }

    fn code(&self) -> i64 {
        match (self.rpc, self.named) {
            (Some(code), _) => code,
            (_, Named::TaskNotFound) => -32_001,
            (_, Named::TaskNotCancelable) => -32_002,
            (_, Named::UnsupportedOperation) => -32_004,
            (_, Named::VersionNotSupported) => -32_009,
            (_, Named::Other) => match self.rejection.kind {
                Kind::Internal => INTERNAL_ERROR,
                Kind::Forbidden | Kind::Unauthenticated => FORBIDDEN,
                Kind::Limited | Kind::Unavailable | Kind::Upstream => UNAVAILABLE,
                _ => INVALID_PARAMS,
            },
        }
    }

    pub fn status(&self) -> StatusCode {
        match (self.named, self.rejection.kind) {
            (Named::TaskNotFound, _) => StatusCode::NOT_FOUND,
            (Named::Other, Kind::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
            (Named::Other, Kind::Forbidden) => StatusCode::FORBIDDEN,
            (Named::Other, Kind::Unauthenticated) => StatusCode::UNAUTHORIZED,
            (Named::Other, Kind::Limited) => StatusCode::TOO_MANY_REQUESTS,
            (Named::Other, Kind::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            (Named::Other, Kind::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The name of the status in gRPC's words.
    fn status_name(&self) -> &'static str {
        match (self.named, self.rejection.kind) {
            (Named::TaskNotFound, _) => "NOT_FOUND",
            (Named::TaskNotCancelable | Named::UnsupportedOperation | Named::VersionNotSupported, _) => "FAILED_PRECONDITION",
            (_, Kind::Internal) => "INTERNAL",
            (_, Kind::Forbidden) => "PERMISSION_DENIED",
            (_, Kind::Unauthenticated) => "UNAUTHENTICATED",
            (_, Kind::Limited) => "RESOURCE_EXHAUSTED",
            (_, Kind::Unavailable) => "UNAVAILABLE",
            _ => "INVALID_ARGUMENT",
        }
    }

    /// `google.rpc.ErrorInfo`, and what is wrong with which field.
    fn details(&self) -> Value {
        let (domain, reason) = match self.named {
            Named::TaskNotFound => ("a2a-protocol.org", "TASK_NOT_FOUND"),
            Named::TaskNotCancelable => ("a2a-protocol.org", "TASK_NOT_CANCELABLE"),
            Named::UnsupportedOperation => ("a2a-protocol.org", "UNSUPPORTED_OPERATION"),
            Named::VersionNotSupported => ("a2a-protocol.org", "VERSION_NOT_SUPPORTED"),
            Named::Other => ("keiko", self.rejection.code),
        };
        let mut metadata = Map::new();
        metadata.insert("code".into(), json!(self.rejection.code));
        metadata.insert("hint".into(), json!(self.rejection.hint));
        let plain = self.rejection.details.iter().filter(|(name, _)| name.as_str() != "errors");
        metadata.extend(
            plain.map(|(name, value)| (name.clone(), json!(value.as_str().map_or_else(|| value.to_string(), str::to_owned)))),
        );
        let mut details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": domain, "metadata": metadata,
        })];
        let field = |problem: &Value| json!({ "field": dotted(&problem["pointer"]), "description": problem["message"] });
        if let Some(problems) = self.rejection.details.get("errors").and_then(Value::as_array) {
            let violations: Vec<Value> = problems.iter().map(field).collect();
            details.push(json!({ "@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations }));
        }
        json!(details)
    }

    /// As an error of JSON-RPC.
    pub fn rpc_json(&self) -> Value {
        json!({ "code": self.code(), "message": self.rejection.message, "data": self.details() })
    }

    /// As the body of an answer over HTTP.
    pub fn http_json(&self) -> Value {
        json!({ "error": {
            "code": self.status().as_u16(), "status": self.status_name(), "message": self.rejection.message,
            "details": self.details(),
        } })
    }
}

/// `/message/parts/0` as `message.parts.0`.
fn dotted(pointer: &Value) -> String {
    pointer.as_str().unwrap_or_default().trim_start_matches('/').replace('/', ".")
}
