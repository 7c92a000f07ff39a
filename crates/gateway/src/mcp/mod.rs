//! MCP as a client, in every version: JSON-RPC 2.0 as raw text, so that fields unknown here pass through.
//!
//! Whoever asks speaks as the newest version has it, whatever the server speaks: an answer is complete, or names what is
//! to be asked of the client first ([`Outcome::InputRequired`]). A server of an older version asks in the middle of its work;
//! that work is kept waiting ([`conversation`]).

mod connection;
mod conversation;
pub mod events;
mod http;
mod legacy_sse;
mod listing;
pub mod mirror;
mod reach;
mod rpc;
mod stdio;
pub mod tasks;

pub(crate) use connection::{Connection, Failure};
pub(crate) use conversation::{Conversations, can_be_asked, complete, converse};
pub use listing::{ListKind, Offer, Offers, ToolListing};
pub(crate) use reach::refused;
pub(crate) use rpc::{ASIDE_MAX, Aside, Over, WireError};

use crate::access::Holder;
use kernel::Json;
use rpc::RpcError;
use serde_json::{Map, Value};

/// The version without sessions.
pub const MODERN: &str = "2026-07-28";
/// Versions that begin with `initialize`, newest first.
pub const LEGACY: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// What may be asked of a client in the middle of a request, and the capability that allows it.
pub const QUESTIONS: [(&str, &str); 3] =
    [("elicitation/create", "elicitation"), ("sampling/createMessage", "sampling"), ("roots/list", "roots")];

/// Requests that are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `tools/call`
    CallTool,
    /// `resources/read`
    ReadResource,
    /// `prompts/get`
    GetPrompt,
    /// `completion/complete`
    Complete,
    /// `tasks/get`
    GetTask,
    /// `tasks/update`
    UpdateTask,
    /// `tasks/cancel`
    CancelTask,
}

impl Method {
    /// The protocol's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::CallTool => "tools/call",
            Method::ReadResource => "resources/read",
            Method::GetPrompt => "prompts/get",
            Method::Complete => "completion/complete",
            Method::GetTask => "tasks/get",
            Method::UpdateTask => "tasks/update",
            Method::CancelTask => "tasks/cancel",
        }
    }

    /// The parameter that says what it is about.
    fn name_field(self) -> Option<&'static str> {
        match self {
            Method::CallTool | Method::GetPrompt => Some("name"),
            Method::ReadResource => Some("uri"),
            Method::GetTask | Method::UpdateTask | Method::CancelTask => Some("taskId"),
            Method::Complete => None,
        }
    }

    /// Whether it is about a task.
    pub(crate) fn is_of_task(self) -> bool {
        self.name_field() == Some("taskId")
    }
}

/// A request as a client made it, in the server's own names.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What.
    pub method: Method,
    /// Of which tool, prompt, resource or task; empty for a completion.
    pub name: String,
    /// The other parameters.
    pub params: Vec<(&'static str, Json)>,
    /// The client's `_meta`, without what belongs to the protocol.
    pub meta: Map<String, Value>,
    /// What the client says to what it was asked.
    pub answers: Option<Answers>,
    /// That a server of 2025-11-25 is to make a task of it, in the words of that version.
    pub task: Option<Json>,
}

/// Answers of a client, and what they belong to.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// By the names under which it was asked.
    pub responses: Map<String, Value>,
    /// The names of what it refused to answer.
    pub refused: Vec<String>,
    /// What to go on with.
    pub resume: Resume,
}

/// What a request that waits for answers goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Work that is kept waiting here.
    Waiting(u128),
    /// What the server wants to be told again.
    State(Option<String>),
    /// A task that is waited for in the client's place.
    Task {
        /// The server's own id of it.
        id: String,
        /// The names of what it asked before: it may be told of them for a while.
        asked: Vec<String>,
    },
}

impl Default for Resume {
    fn default() -> Self {
        Resume::State(None)
    }
}

/// The client behind a request.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Whose connection it is, where the server gets one of its own for it: 32 bytes that nobody else has.
    pub party: [u8; 32],
    /// Whose party it is: nobody takes everybody's places, however many sessions they begin.
    pub owner: [u8; 32],
    /// Whether all requests of this party share one connection: it has a session.
    pub is_session: bool,
    /// What it can be asked.
    pub capabilities: Map<String, Value>,
    /// From which level on it wants to see what the server logs.
    pub log_level: Option<String>,
    /// Whose account at the server is used.
    pub holder: Holder,
    /// What is to become of a task that the server makes of a call.
    pub tasks: Tasks,
}

/// What is to become of a task that a server makes of a call. Where no client follows it, it is waited for in the client's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tasks {
    /// The client could say that it follows tasks, and does not. A server that insists on one says so itself.
    #[default]
    None,
    /// The client follows it.
    Followed,
    /// The client could not say: a server that insists on one makes one.
    Awaited,
}

impl Client {
    /// Whether a server that knows its clients by their connections needs one of its own for it.
    pub(crate) fn is_particular(&self) -> bool {
        self.has_a_say() || self.holder != Holder::Everybody
    }

    /// The same client where it is neither asked nor told anything.
    pub(crate) fn silent(&self) -> Self {
        Client { capabilities: Map::new(), log_level: None, ..self.clone() }
    }

    /// Whether it can be asked something, or told what a server logs.
    pub(crate) fn has_a_say(&self) -> bool {
        !self.capabilities.is_empty() || self.log_level.is_some()
    }
}

/// Something that a server tells about a request while it works on it: `notifications/progress` or `notifications/message`.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// Which.
    pub method: String,
    /// As it came; the token of progress is Keiko's.
    pub params: Value,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The result, as it came.
    Complete(Json),
    /// The client must be asked first.
    InputRequired {
        /// What to ask, by names that the answers repeat.
        requests: Map<String, Value>,
        /// What the answers belong to.
        resume: Resume,
    },
    /// A task, under the server's own id: the one that a call became, or how one is.
    Task(Map<String, Value>),
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server is not ready.
    #[error("the server is not ready: {0}")]
    NotReady(String),
    /// The server is starting.
    #[error("the server is starting")]
    Starting,
    /// It failed so often that it is left alone for a while.
    #[error("its circuit is open: {what}")]
    Open {
        /// What failed.
        what: String,
        /// When it is tried again.
        after: std::time::Duration,
    },
    /// Too many calls wait, and others matter more.
    #[error("too many calls of this server are waiting")]
    Shed,
    /// The server does not list the tool, or lists it otherwise than it was approved.
    #[error("the tool is not what was approved")]
    Changed,
    /// Too many calls of this server run.
    #[error("too many calls of this server are running")]
    Busy,
    /// It took too long.
    #[error("no answer within {0} ms")]
    Timeout(u128),
    /// It took longer than its caller gave it, which says nothing about the server.
    #[error("no answer within {0} ms")]
    Impatient(u128),
    /// The call was broken off for a reason that is its own: it may have been carried out or not.
    #[error("the server was lost during the call: {0}")]
    Interrupted(String),
    /// The server could not be reached for the call: it was not carried out.
    #[error("the server was not reached: {0}")]
    Unreached(String),
    /// The server ended during the call: it may have been carried out or not.
    #[error("the server was lost during the call: {0}")]
    Lost(String),
    /// The server refused.
    #[error("the server answered error {0}: {1}")]
    Refused(i64, String, Box<Value>),
    /// The answer cannot be used.
    #[error("the answer cannot be used: {0}")]
    Unusable(String),
    /// What waited for the client's answers is gone.
    #[error("what waited for these answers is gone")]
    Gone,
    /// The server lets nobody in who has not more to show; nothing was done.
    #[error("{0}")]
    Locked(String),
}

impl CallError {
    /// Whether nothing of the call reached the server: it was not carried out.
    pub(crate) fn is_unsent(&self) -> bool {
        use CallError::{Busy, NotReady, Open, Shed, Starting, Unreached};
        matches!(self, NotReady(_) | Unreached(_) | Starting | Open { .. } | Shed | Busy)
    }

    /// Without the secrets that a server may have repeated.
    pub(crate) fn redacted(self, spec: &crate::Spec) -> Self {
        match self {
            CallError::NotReady(reason) => CallError::NotReady(spec.redact(&reason)),
            CallError::Unreached(reason) => CallError::Unreached(spec.redact(&reason)),
            CallError::Lost(reason) => CallError::Lost(spec.redact(&reason)),
            CallError::Interrupted(reason) => CallError::Interrupted(spec.redact(&reason)),
            CallError::Refused(code, message, data) => {
                let data = if data.is_null() {
                    *data
                } else {
                    serde_json::from_str(&spec.redact(&data.to_string())).unwrap_or_default()
                };
                CallError::Refused(code, spec.redact(&message), Box::new(data))
            }
            CallError::Unusable(reason) => CallError::Unusable(spec.redact(&reason)),
            CallError::Locked(reason) => CallError::Locked(spec.redact(&reason)),
            other => other,
        }
    }
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Over(reason) | WireError::Broken(reason) => CallError::Lost(reason),
            WireError::Unsent(reason) => CallError::Unreached(reason),
            WireError::Unusable(reason) => CallError::Unusable(reason),
            WireError::Rpc(RpcError { code, message, data }) => {
                CallError::Refused(code, message.chars().take(1_000).collect(), Box::new(data))
            }
            WireError::Changed => CallError::Changed,
            WireError::Locked(reason) => CallError::Locked(reason),
            WireError::SessionGone => CallError::Lost("it does not know its own session any more".into()),
            // What it thinks of one request is not how it is.
            WireError::Status(status) if (400..500).contains(&status) && !matches!(status, 408 | 429) => {
                CallError::Interrupted(format!("it answered HTTP {status}"))
            }
            WireError::Status(status) => CallError::Lost(format!("it answered HTTP {status}")),
        }
    }
}
