//! A consumer group: several readers share the events of a log, and the group remembers what is done.
//!
//! What people decide about a group is here, as events. How far it has come is no event, or a group over everything would
//! feed on its own acknowledgements: see [`crate::progress`], which follows the events `sought` and `replayed`.

use crate::agent::Nothing;
use kernel::rules::Meta;
use kernel::{Category, Decider, Facts, IndexField, Kind, Rejection, Timestamp, UniqueChange};
use serde::{Deserialize, Serialize};

/// How events are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Of each stream one event at a time, in order.
    Ordered,
    /// Every event as soon as somebody asks.
    Shared,
}

impl Mode {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Ordered => "ordered",
            Mode::Shared => "shared",
        }
    }
}

/// Which events a group gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFilter {
    /// Exact type, or a prefix ending in `.*`.
    pub kind: Option<String>,
    /// Only this stream.
    pub stream: Option<String>,
    /// Only this category.
    pub category: Option<Category>,
    /// A condition on the whole event, as an expression.
    pub expression: Option<String>,
}

/// What may be changed of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSettings {
    /// Which events it gets.
    pub filter: GroupFilter,
    /// How long a delivery holds without an acknowledgement.
    pub ack_timeout_ms: u64,
    /// Deliveries of one event after which it is parked.
    pub max_attempts: u32,
    /// Events that may be open at a time.
    pub window: u32,
    /// How long nothing may be acknowledged while something waits, before an alert.
    pub stalled_after_ms: u64,
}

/// `events.group.created`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// Unique name.
    pub name: String,
    /// How events are handed out.
    pub mode: Mode,
    /// What may be changed later.
    pub settings: GroupSettings,
    /// It begins after this position.
    pub start: u64,
}

/// `events.group.changed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// From now on.
    pub settings: GroupSettings,
}

/// `events.group.sought`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sought {
    /// It goes on after this position.
    pub position: u64,
}

/// `events.group.replayed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Which parked events are delivered again; all of them when nothing is said.
    pub positions: Option<Vec<u64>>,
}

/// `events.group.delivery_parked`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryParked {
    /// Counts what the group has parked, from 1.
    pub number: u64,
    /// The event's position.
    pub position: u64,
    /// The event's stream.
    pub stream: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// Why.
    pub reason: String,
    /// Who had it last.
    pub consumer: Option<String>,
}

/// `events.group.stalled`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalled {
    /// Since when nothing has moved.
    pub since: Timestamp,
    /// Events that wait.
    pub lag_events: u64,
}

/// What may be asked of a group.
#[derive(Clone, Debug)]
pub enum GroupCommand {
    /// Make it.
    Create(Created),
    /// Replace its settings.
    Change(GroupSettings),
    /// Go on after another position.
    Seek {
        /// Which.
        position: u64,
    },
    /// Deliver parked events again; all of them when nothing is said.
    Replay {
        /// Their positions.
        positions: Option<Vec<u64>>,
    },
    /// Write down what was parked, in the order of its numbers.
    NoteParked(Vec<DeliveryParked>),
    /// Nothing moves.
    MarkStalled(Stalled),
    /// It moves again.
    MarkRecovered,
    /// Remove it.
    Delete,
}

kernel::events! {
    /// What happened to a group.
    GroupEvent {
        Created(Created) = "events.group.created" @ 1,
        Changed(Changed) = "events.group.changed" @ 1,
        Sought(Sought) = "events.group.sought" @ 1,
        Replayed(Replayed) = "events.group.replayed" @ 1,
        DeliveryParked(DeliveryParked) = "events.group.delivery_parked" @ 1,
        Stalled(Stalled) = "events.group.stalled" @ 1 System,
        Recovered(Nothing) = "events.group.recovered" @ 1 System,
        Deleted(Nothing) = "events.group.deleted" @ 1,
    }
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerGroup {
    /// Unique name.
    pub name: String,
    /// How events are handed out.
    pub mode: Mode,
    /// What may be changed.
    pub settings: GroupSettings,
    /// It began after this position.
    pub start: u64,
    /// When it was found not to move, if it still does not.
    pub stalled_at: Option<Timestamp>,
    /// The number of the latest parked delivery that is written down.
    pub parked_noted: u64,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Decider for ConsumerGroup {
    const KIND: &'static str = "group";
    type State = ConsumerGroup;
    type Command = GroupCommand;
    type Event = GroupEvent;

    fn decide(state: Option<&ConsumerGroup>, command: &GroupCommand, _: &Facts) -> Result<Vec<GroupEvent>, Rejection> {
        let group = match (command, state) {
            (GroupCommand::Create(created), None) => return Ok(vec![GroupEvent::Created(created.clone())]),
            (GroupCommand::Delete, Some(group)) if group.is_deleted => return Ok(vec![]),
            (_, Some(group)) if !group.is_deleted => group,
            _ => return Err(not_found("")),
        };
        Ok(match command {
            GroupCommand::Create(_) => {
                let hint = "Change it with PUT /api/v1/consumer-groups/{group}.";
                return Err(Rejection::new(Kind::Conflict, "ALREADY_EXISTS", "This consumer group exists already.", hint));
            }
            GroupCommand::Change(settings) if *settings == group.settings => vec![],
            GroupCommand::Change(settings) => vec![GroupEvent::Changed(Changed { settings: settings.clone() })],
            GroupCommand::Seek { position } => vec![GroupEvent::Sought(Sought { position: *position })],
            GroupCommand::Replay { positions } => vec![GroupEvent::Replayed(Replayed { positions: positions.clone() })],
            GroupCommand::NoteParked(parked) => {
                let fresh = parked.iter().filter(|parked| parked.number > group.parked_noted);
                fresh.cloned().map(GroupEvent::DeliveryParked).collect()
            }
            GroupCommand::MarkStalled(_) if group.stalled_at.is_some() => vec![],
            GroupCommand::MarkStalled(stalled) => vec![GroupEvent::Stalled(stalled.clone())],
            GroupCommand::MarkRecovered if group.stalled_at.is_none() => vec![],
            GroupCommand::MarkRecovered => vec![GroupEvent::Recovered(Nothing {})],
            GroupCommand::Delete => vec![GroupEvent::Deleted(Nothing {})],
        })
    }

    fn evolve(state: Option<ConsumerGroup>, event: &GroupEvent, meta: &Meta) -> Option<ConsumerGroup> {
        if let GroupEvent::Created(created) = event {
            return Some(ConsumerGroup {
                name: created.name.clone(),
                mode: created.mode,
                settings: created.settings.clone(),
                start: created.start,
                stalled_at: None,
                parked_noted: 0,
                is_deleted: false,
            });
        }
        let mut group = state?;
        match event {
            GroupEvent::Created(_) | GroupEvent::Sought(_) | GroupEvent::Replayed(_) => {}
            GroupEvent::Changed(changed) => group.settings = changed.settings.clone(),
            GroupEvent::DeliveryParked(parked) => group.parked_noted = parked.number,
            GroupEvent::Stalled(_) => group.stalled_at = Some(meta.at),
            GroupEvent::Recovered(_) => group.stalled_at = None,
            GroupEvent::Deleted(_) => group.is_deleted = true,
        }
        Some(group)
    }

    fn is_terminal(state: &ConsumerGroup) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &ConsumerGroup) -> bool {
        state.is_deleted
    }

    fn index(_: &ConsumerGroup) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&ConsumerGroup>, event: &GroupEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (GroupEvent::Created(created), _) => vec![UniqueChange::Take(name_key(&created.name))],
            (GroupEvent::Deleted(_), Some(group)) => vec![UniqueChange::Free(name_key(&group.name))],
            _ => vec![],
        }
    }
}

/// The unique key of a group's name.
pub fn name_key(name: &str) -> String {
    format!("consumer-group.name:{name}")
}

/// The answer for a group that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no consumer group '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "GROUP_NOT_FOUND", message, "List groups with GET /api/v1/consumer-groups.")
        .with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::GroupCommand::*;
    use super::*;
    use kernel::{ActorRef, EventSet};

    fn settings() -> GroupSettings {
        let filter = GroupFilter::default();
        GroupSettings { filter, ack_timeout_ms: 30_000, max_attempts: 5, window: 1_000, stalled_after_ms: 60_000 }
    }

    fn create() -> GroupCommand {
        Create(super::Created { name: "billing".into(), mode: Mode::Ordered, settings: settings(), start: 7 })
    }

    fn parked(number: u64) -> DeliveryParked {
        let (stream, reason) = ("task_1".to_owned(), "broken".to_owned());
        DeliveryParked { number, position: number, stream, attempts: 5, reason, consumer: None }
    }

    fn stalled() -> GroupCommand {
        MarkStalled(super::Stalled { since: Timestamp(0), lag_events: 3 })
    }

    fn decide(state: Option<&ConsumerGroup>, command: &GroupCommand) -> Result<Vec<GroupEvent>, Rejection> {
        ConsumerGroup::decide(
            state,
            command,
            &Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 },
        )
    }

    fn given(commands: &[GroupCommand]) -> Option<ConsumerGroup> {
        commands.iter().fold(None, |state, command| {
            let meta = Meta { version: 0, at: Timestamp(9), actor: ActorRef::system("test") };
            decide(state.as_ref(), command).unwrap().iter().fold(state, |s, e| ConsumerGroup::evolve(s, e, &meta))
        })
    }

    #[test]
    fn given_a_stalled_group_then_the_alert_is_raised_once_until_it_has_recovered() {
        let group = given(&[create(), stalled()]);
        assert_eq!(group.as_ref().unwrap().stalled_at, Some(Timestamp(9)));
        assert_eq!(decide(group.as_ref(), &stalled()), Ok(vec![]));
        let group = given(&[create(), stalled(), MarkRecovered]);
        assert_eq!(decide(group.as_ref(), &MarkRecovered), Ok(vec![]));
        assert_eq!(decide(group.as_ref(), &stalled()).unwrap()[0].category(), Category::System);
    }

    #[test]
    fn given_parked_deliveries_that_are_noted_then_only_later_ones_are_written_down() {
        let group = given(&[create(), NoteParked(vec![parked(1), parked(2)])]);
        let events = decide(group.as_ref(), &NoteParked(vec![parked(2), parked(3)])).unwrap();
        assert_eq!(events, vec![GroupEvent::DeliveryParked(parked(3))]);
        assert_eq!(events[0].category(), Category::Domain);
    }

    #[test]
    fn given_the_same_settings_then_nothing_changes() {
        let group = given(&[create()]);
        assert_eq!(decide(group.as_ref(), &Change(settings())), Ok(vec![]));
        let other = GroupSettings { window: 1, ..settings() };
        assert_eq!(decide(group.as_ref(), &Change(other)).unwrap().len(), 1);
        assert_eq!(decide(group.as_ref(), &create()).unwrap_err().code, "ALREADY_EXISTS");
    }

    #[test]
    fn given_a_removed_group_then_nothing_changes_it() {
        let group = given(&[create(), Delete]);
        assert_eq!(decide(group.as_ref(), &Seek { position: 1 }).unwrap_err().code, "GROUP_NOT_FOUND");
        assert_eq!(decide(group.as_ref(), &Delete), Ok(vec![]));
    }
}
