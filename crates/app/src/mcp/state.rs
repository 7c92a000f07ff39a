//! What a client sends back with its answers, sealed: good for the same caller, the same request, and some minutes.

use super::identity;
use crate::app::App;
use crate::{Answer, Caller};
use gateway::Resume;
use kernel::{Kind, Rejection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long an answer may take.
const GOOD_MS: i64 = 600_000;
const STATE_BYTES_MAX: usize = 64 * 1024;

#[derive(Default, Serialize, Deserialize)]
struct Sealed {
    until_ms: i64,
    /// Work that waits here, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<String>,
    /// What the server wants to be told again.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// A task that is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    /// What that asked before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asked: Vec<String>,
}

fn invalid() -> Rejection {
    let message = "The requestState is not of this request and this caller, was changed, or is too old.";
    Rejection::new(Kind::Invalid, "REQUEST_STATE_INVALID", message, "Make the request again without requestState.")
}

/// The place that a state is sealed for.
fn place(caller: &Caller, request: &str) -> String {
    let digest = kernel::text::hex(&Sha256::digest(request));
    format!("mcp-state/{}/{digest}", identity(caller))
}

impl App {
    /// Seals what a request goes on with; nothing where the server keeps nothing.
    pub(super) fn seal_resume(&self, caller: &Caller, request: &str, resume: Resume) -> Answer<Option<String>> {
        let mut sealed = Sealed { until_ms: self.env().now().0 + GOOD_MS, ..Sealed::default() };
        match resume {
            Resume::State(None) => return Ok(None),
            Resume::State(state) => sealed.state = state,
            Resume::Waiting(id) => sealed.waiting = Some(format!("{id:032x}")),
            Resume::Task { id, asked } => (sealed.task, sealed.asked) = (Some(id), asked),
        }
        self.seal_text(caller.actor.tenant, &place(caller, request), &sealed).map(Some)
    }

    /// Opens what a client sent back.
    pub(super) fn open_resume(&self, caller: &Caller, request: &str, text: &str) -> Answer<Resume> {
        if text.len() > STATE_BYTES_MAX {
            return Err(invalid());
        }
        let sealed: Sealed = self.open_text(caller.actor.tenant, &place(caller, request), text).ok_or_else(invalid)?;
        if self.env().now().0 > sealed.until_ms {
            return Err(invalid());
        }
        match (sealed.waiting, sealed.task) {
            (Some(id), _) => u128::from_str_radix(&id, 16).map(Resume::Waiting).map_err(|_| invalid()),
            (None, Some(id)) => Ok(Resume::Task { id, asked: sealed.asked }),
            (None, None) => Ok(Resume::State(sealed.state)),
        }
    }
}
