//! Where somebody wants to be told of a task: an address that gets what happens to it, until it has ended.
//!
//! The address is often a secret itself, so it is sealed beside the log with what authenticates the sender there.

use kernel::id::{PushId, TaskId};
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// What may be asked of it.
#[derive(Clone, Debug)]
pub enum PushCommand {
    /// Begin to tell.
    Configure(Configured),
    /// Tell nothing more.
    End(Ended),
}

/// `tasks.push.configured`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configured {
    /// Of which task.
    pub task_id: TaskId,
    /// Who asked, by id.
    pub by: String,
    /// What they call it; unique among theirs of the task that go on.
    pub name: String,
    /// The host of the address.
    pub host: String,
    /// What happened to the task up to this version is not told.
    pub after: u64,
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The task ended, and that was told.
    Told,
    /// Somebody took it back.
    Deleted,
    /// Whoever asked may not see the task any more.
    Revoked,
    /// The address does not take it.
    Undeliverable,
}

/// `tasks.push.ended`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Why.
    pub reason: Reason,
    /// What the address answered, for people.
    pub detail: Option<String>,
}

kernel::events! {
    /// What happened to it.
    PushEvent {
        Configured(Configured) = "tasks.push.configured" @ 1,
        Ended(Ended) = "tasks.push.ended" @ 1,
    }
}

/// An address that is told of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// As it was asked for.
    pub configured: Configured,
    /// Why it is over; absent while it goes on.
    pub ended: Option<Ended>,
}

impl Decider for Push {
    const KIND: &'static str = "push";
    type State = Push;
    type Command = PushCommand;
    type Event = PushEvent;

    fn decide(state: Option<&Push>, command: &PushCommand, _: &Facts) -> Result<Vec<PushEvent>, Rejection> {
        Ok(match (command, state) {
            (PushCommand::Configure(configured), None) => vec![PushEvent::Configured(configured.clone())],
            (PushCommand::Configure(_), Some(_)) => return Err(crate::identity::already("push")),
            (PushCommand::End(ended), Some(push)) if push.ended.is_none() => vec![PushEvent::Ended(ended.clone())],
            (PushCommand::End(_), _) => vec![],
        })
    }

    fn evolve(state: Option<Push>, event: &PushEvent, _: &Meta) -> Option<Push> {
        match event {
            PushEvent::Configured(configured) => Some(Push { configured: configured.clone(), ended: None }),
            PushEvent::Ended(ended) => state.map(|push| Push { ended: Some(ended.clone()), ..push }),
        }
    }

    fn is_terminal(state: &Push) -> bool {
        state.ended.is_some()
    }

    fn index(state: &Push) -> Vec<IndexField> {
        let status = if state.ended.is_some() { "ended" } else { "open" };
        vec![IndexField::new("status", status), IndexField::new("task", state.configured.task_id.to_string())]
    }

    fn unique(state: Option<&Push>, event: &PushEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (PushEvent::Configured(configured), _) => vec![UniqueChange::Take(name_key(configured))],
            (PushEvent::Ended(_), Some(push)) => {
                vec![UniqueChange::Free(name_key(&push.configured))]
            }
            (PushEvent::Ended(_), None) => vec![],
        }
    }
}

fn name_key(configured: &Configured) -> String {
    name_key_of(&configured.task_id, &configured.by, &configured.name)
}

/// The unique key of somebody's name for an address.
pub fn name_key_of(task: &TaskId, by: &str, name: &str) -> String {
    format!("push.name:{task}:{by}:{name}")
}

/// Where address and credentials are sealed.
pub fn address_secret(id: &PushId) -> String {
    format!("push:{id}")
}

/// The answer for one that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no push notification configuration '{searched}' for this task.");
    Rejection::new(Kind::NotFound, "PUSH_NOT_FOUND", message, "List those of the task.").with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn configured() -> Configured {
        let task_id = TaskId::from_bytes([1; 16]);
        Configured { task_id, by: "user_1".into(), name: "a".into(), host: "client.example".into(), after: 1 }
    }

    #[test]
    fn given_an_address_then_it_ends_once_and_its_name_is_free() {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 };
        let meta = Meta { version: 1, at: Timestamp(0), actor: ActorRef::system("test") };
        let open = Push::evolve(None, &PushEvent::Configured(configured()), &meta);
        let again = Push::decide(open.as_ref(), &PushCommand::Configure(configured()), &facts);
        assert_eq!(again.unwrap_err().code, "ALREADY_EXISTS");
        let end = Ended { reason: Reason::Told, detail: None };
        assert_eq!(Push::decide(open.as_ref(), &PushCommand::End(end.clone()), &facts), Ok(vec![PushEvent::Ended(end.clone())]));
        let freed = Push::unique(open.as_ref(), &PushEvent::Ended(end.clone()));
        assert_eq!(freed, [UniqueChange::Free(name_key_of(&TaskId::from_bytes([1; 16]), "user_1", "a"))]);
        let ended = Push::evolve(open, &PushEvent::Ended(end.clone()), &meta);
        assert_eq!(Push::decide(ended.as_ref(), &PushCommand::End(end), &facts), Ok(vec![]));
    }
}
