//! The erasure of a person: what was asked for, and what came of it. The content goes from log, journal and tables; headers
//! and hashes stay, so that the record can still be verified.

use kernel::id::{ErasureId, UserId};
use kernel::rules::Meta;
use kernel::{Decider, EventSet, Facts, IndexField, Recorded, Rejection};
use serde::{Deserialize, Serialize};

/// What may be asked of an erasure.
#[derive(Clone, Debug)]
pub enum ErasureCommand {
    /// Begin it.
    Request(Requested),
    /// Everything is gone.
    Complete(Completed),
}

/// `audit.erasure.requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    /// Whose.
    pub subject: UserId,
}

/// `audit.erasure.completed`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Entities that lost everything they held.
    pub streams: u64,
    /// Events that lost their content.
    pub events: u64,
    /// Journal entries that lost their content.
    pub entries: u64,
    /// Large values that were removed.
    pub values: u64,
    /// Events that the person caused in the records of others. They stay: those records could not be read without them.
    pub kept: u64,
}

impl Completed {
    /// The two together. What is kept was counted by both.
    pub fn add(&mut self, more: &Completed) {
        self.streams += more.streams;
        self.events += more.events;
        self.entries += more.entries;
        self.values += more.values;
        self.kept = self.kept.max(more.kept);
    }
}

kernel::events! {
    /// What happened to an erasure.
    ErasureEvent {
        Requested(Requested) = "audit.erasure.requested" @ 1,
        Completed(Completed) = "audit.erasure.completed" @ 1,
    }
}

/// `audit.payload.erased`: the last event of a stream whose content was erased, whatever its entity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Erased {
    /// By which erasure; null when a restored backup was rid of somebody who was erased since, or a tenant was deleted.
    pub erasure: Option<ErasureId>,
}

kernel::events! {
    /// What ends a stream.
    ErasedEvent {
        Erased(Erased) = "audit.payload.erased" @ 1 System,
    }
}

/// An erasure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Erasure {
    /// Whose.
    pub subject: UserId,
    /// What came of it; absent while it goes on.
    pub completed: Option<Completed>,
}

impl Decider for Erasure {
    const KIND: &'static str = "erasure";
    type State = Erasure;
    type Command = ErasureCommand;
    type Event = ErasureEvent;

    fn decide(state: Option<&Erasure>, command: &ErasureCommand, _: &Facts) -> Result<Vec<ErasureEvent>, Rejection> {
        Ok(match (command, state) {
            (ErasureCommand::Request(requested), None) => vec![ErasureEvent::Requested(requested.clone())],
            (ErasureCommand::Request(_), Some(_)) => return Err(crate::identity::already("erasure")),
            (ErasureCommand::Complete(completed), Some(erasure)) if erasure.completed.is_none() => {
                vec![ErasureEvent::Completed(completed.clone())]
            }
            (ErasureCommand::Complete(_), _) => vec![],
        })
    }

    fn evolve(state: Option<Erasure>, event: &ErasureEvent, _: &Meta) -> Option<Erasure> {
        match event {
            ErasureEvent::Requested(requested) => Some(Erasure { subject: requested.subject, completed: None }),
            ErasureEvent::Completed(completed) => state.map(|e| Erasure { completed: Some(completed.clone()), ..e }),
        }
    }

    fn is_terminal(state: &Erasure) -> bool {
        state.completed.is_some()
    }

    fn index(state: &Erasure) -> Vec<IndexField> {
        let status = if state.completed.is_some() { "completed" } else { "running" };
        vec![IndexField::new("status", status), IndexField::new("subject", state.subject.to_string())]
    }
}

/// Whether the entity that this event begins is the person's: the account, its sessions and keys, and the work that the
/// person submitted. What the person set up for others, such as roles, queues and servers, is not.
pub fn begins_own(subject: UserId, event: &Recorded) -> bool {
    let header = &event.header;
    if header.version != 1 {
        return false;
    }
    match header.kind.as_str() {
        "identity.user.registered" => header.stream == subject.to_string(),
        "identity.session.opened" | "identity.consent.granted" | "tasks.task.submitted" => is_by(subject, event),
        "identity.mail.requested" => match crate::identity::mail::MailEvent::read(event) {
            Ok(Some(crate::identity::mail::MailEvent::Requested(requested))) => requested.purpose.user() == subject,
            _ => false,
        },
        "identity.key.issued" => match crate::identity::key::KeyEvent::read(event) {
            Ok(Some(crate::identity::key::KeyEvent::Issued(issued))) => issued.owner.id == subject.to_string(),
            _ => false,
        },
        _ => false,
    }
}

/// Whether the person caused an event, directly or through a program that acts for the person.
pub fn is_by(subject: UserId, event: &Recorded) -> bool {
    event.header.user == Some(subject) || event.header.actor.id == subject.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::recorded;
    use kernel::{ActorRef, Timestamp};
    use serde_json::json;

    fn subject() -> UserId {
        UserId::from_bytes([1; 16])
    }

    fn event(kind: &str, version: u64, user: Option<UserId>) -> Recorded {
        let mut event = recorded(kind, "x_1", version, 1, json!({}));
        event.header.user = user;
        event
    }

    #[test]
    fn given_a_request_when_it_is_completed_twice_then_it_is_completed_once() {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 1 };
        let erasure = Erasure { subject: subject(), completed: None };
        let complete = ErasureCommand::Complete(Completed::default());
        assert_eq!(Erasure::decide(Some(&erasure), &complete, &facts).unwrap().len(), 1);
        let done = Erasure { completed: Some(Completed::default()), ..erasure };
        assert_eq!(Erasure::decide(Some(&done), &complete, &facts).unwrap(), []);
    }

    #[test]
    fn a_persons_own_are_the_account_sessions_work_and_keys_of_the_person() {
        let (own, other) = (Some(subject()), Some(UserId::from_bytes([2; 16])));
        assert!(begins_own(subject(), &event("tasks.task.submitted", 1, own)));
        assert!(begins_own(subject(), &event("identity.session.opened", 1, own)));
        assert!(!begins_own(subject(), &event("tasks.task.submitted", 1, other)));
        assert!(!begins_own(subject(), &event("tasks.task.completed", 2, own)), "only the first event says whose it is");
        assert!(!begins_own(subject(), &event("tasks.queue.configured", 1, own)), "what was set up for others stays");
        let mut account = recorded("identity.user.registered", &subject().to_string(), 1, 1, json!({}));
        assert!(begins_own(subject(), &account));
        account.header.stream = UserId::from_bytes([2; 16]).to_string();
        assert!(!begins_own(subject(), &account), "an account that the person made for somebody else");
        let mail = |user: UserId| {
            let requested = json!({
                "purpose": { "kind": "reset", "user": user }, "address_index": "ab", "expires_at": "2026-01-02T00:00:00.000Z",
                "is_by_hand": false
            });
            recorded("identity.mail.requested", "mail_1", 1, 1, requested)
        };
        assert!(begins_own(subject(), &mail(subject())), "whoever asked for it");
        assert!(!begins_own(subject(), &mail(UserId::from_bytes([2; 16]))));
        let key = |owner: &str| {
            let owner = json!({ "kind": "user", "id": owner });
            let issued =
                json!({ "name": "n", "owner": owner, "permissions": null, "prefix": "p", "sha256": "s", "expires_at": null });
            let mut event = recorded("identity.key.issued", "key_1", 1, 1, issued);
            event.header.user = own;
            event
        };
        assert!(begins_own(subject(), &key(&subject().to_string())));
        assert!(!begins_own(subject(), &key("agent_1")), "a key that the person gave to an agent is the agent's");
    }
}
