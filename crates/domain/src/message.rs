//! What is said about a task, by whoever submitted it and by the agent that works on it.

use kernel::{Json, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};

/// Messages after the first that a task takes.
pub const MESSAGES_MAX: usize = 100;

/// Something that is said about a task. Large values are references to stored values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Whoever says it gives it: the same message twice is once.
    pub id: String,
    /// What is said, as parts of A2A: an array of `{"text": …}`, `{"data": …}`, `{"url": …}` or `{"raw": …}`.
    pub parts: Json,
    /// What else goes with it.
    pub metadata: Json,
}

/// Which side says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Whoever submitted the task.
    Submitter,
    /// The agent that works on it.
    Agent,
}

/// A message of a task, in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// By which side.
    pub by: Side,
    /// When.
    pub at: Timestamp,
    /// What.
    pub message: Message,
}

/// Whether what a side says was not said before; one more message may be too many.
pub(crate) fn is_new<'a>(
    first: impl Iterator<Item = &'a Message>,
    said: &'a [Said],
    by: Side,
    message: &Message,
) -> Result<bool, Rejection> {
    let own = said.iter().filter(|said| said.by == by).map(|said| &said.message);
    match first.chain(own).find(|known| known.id == message.id) {
        Some(known) if known.parts == message.parts => return Ok(false),
        Some(_) => {
            let before = format!("Something else was said before under the id '{}'.", message.id);
            return Err(Rejection::new(Kind::Conflict, "IDEMPOTENCY_CONFLICT", before, "Give each message an id of its own."));
        }
        None => {}
    }
    if said.len() < MESSAGES_MAX {
        return Ok(true);
    }
    let full = format!("The task has taken {MESSAGES_MAX} messages, which is the most.");
    Err(Rejection::new(Kind::Refused, "MESSAGES_FULL", full, "Submit another task in the same conversation."))
}
