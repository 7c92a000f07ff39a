//! MCP as a client: JSON-RPC 2.0 as raw text, so that fields unknown here pass through.

mod client;
mod http;
mod rpc;
mod stdio;

pub(crate) use client::Client;
pub(crate) use http::HttpWire;
pub(crate) use rpc::Over;
pub(crate) use stdio::StdioWire;

use kernel::Json;
use rpc::{RpcError, WireError};

/// A tool as its server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolListing {
    /// Its name at the server.
    pub name: String,
    /// For people and models.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: Json,
    /// JSON Schema of its structured result.
    pub output_schema: Option<Json>,
    /// SHA-256 of the whole entry in RFC 8785 form, hexadecimal.
    pub hash: String,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// Whether the tool says that it failed.
    pub is_error: bool,
    /// Content blocks, as they came.
    pub content: Json,
    /// Structured result, as it came.
    pub structured_content: Option<Json>,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server is not ready.
    #[error("the server is not ready: {0}")]
    NotReady(String),
    /// The server does not list the tool, or lists it otherwise than it was approved.
    #[error("the tool is not what was approved")]
    Changed,
    /// Too many calls of this server run.
    #[error("too many calls of this server are running")]
    Busy,
    /// It took too long.
    #[error("no answer within {0} ms")]
    Timeout(u128),
    /// The server ended during the call: it may have been carried out or not.
    #[error("the server was lost during the call: {0}")]
    Lost(String),
    /// The server refused.
    #[error("the server answered error {0}: {1}")]
    Refused(i64, String),
    /// The answer cannot be used.
    #[error("the answer cannot be used: {0}")]
    Unusable(String),
}

impl CallError {
    /// Without the secrets that a server may have repeated.
    pub(crate) fn redacted(self, spec: &crate::Spec) -> Self {
        match self {
            CallError::Lost(reason) => CallError::Lost(spec.redact(&reason)),
            CallError::Refused(code, message) => CallError::Refused(code, spec.redact(&message)),
            CallError::Unusable(reason) => CallError::Unusable(spec.redact(&reason)),
            other => other,
        }
    }
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Over(reason) => CallError::Lost(reason),
            WireError::Unusable(reason) => CallError::Unusable(reason),
            WireError::Rpc(RpcError { code, message }) => CallError::Refused(code, message.chars().take(1_000).collect()),
        }
    }
}
