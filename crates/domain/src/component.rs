//! A component: something whose health is followed, and what it needs. It stands for an agent, an MCP server, something outside
//! that is looked at, or a group of others.

use crate::agent::Nothing;
use crate::health::{Cause, Status};
use kernel::id::{AgentId, ComponentId, McpServerId};
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// What is said of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentProfile {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it stands for.
    pub subject: Subject,
    /// What it needs.
    pub needs: Vec<Need>,
}

/// What a component stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Subject {
    /// An agent: as healthy as its heartbeats say.
    Agent {
        /// Which.
        agent_id: AgentId,
    },
    /// An MCP server: as healthy as its connection and its calls are.
    McpServer {
        /// Which.
        server_id: McpServerId,
    },
    /// Something outside, looked at again and again.
    Probe {
        /// How.
        probe: Probe,
        /// How often.
        every_ms: u64,
        /// How long an answer may take.
        timeout_ms: u64,
        /// Failures in a row before it counts as down.
        failures: u32,
        /// Answers in a row before it counts as up again.
        successes: u32,
    },
    /// Nothing of its own: as healthy as what it needs.
    Group,
}

impl Subject {
    /// Whether it is the same thing, however it is looked at.
    pub fn is_same_thing(&self, other: &Self) -> bool {
        match (self, other) {
            (Subject::Probe { probe, .. }, Subject::Probe { probe: other, .. }) => probe == other,
            _ => self == other,
        }
    }
}

/// How something outside is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Probe {
    /// A GET that answers 200 to 299.
    Http {
        /// Where.
        url: String,
    },
    /// A connection.
    Tcp {
        /// Host and port.
        address: String,
    },
    /// A Redis server that answers `PING`, also if only to say that it wants a password.
    Redis {
        /// Host and port.
        address: String,
    },
    /// A PostgreSQL server that answers the first question of its protocol.
    Postgres {
        /// Host and port.
        address: String,
    },
}

/// Something that a component needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// What.
    pub component_id: ComponentId,
    /// Whether nothing goes without it; else it only gets worse.
    pub is_required: bool,
}

/// What may be asked of a component.
#[derive(Clone, Debug)]
pub enum ComponentCommand {
    /// Make it known.
    Register(ComponentProfile),
    /// Replace what is said of it.
    Update(ComponentProfile),
    /// It is so now.
    Mark(HealthChanged),
    /// Remove it.
    Deregister,
}

/// `registry.component.registered`, `registry.component.updated`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// What is said of it.
    pub profile: ComponentProfile,
}

/// `registry.component.health_changed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChanged {
    /// How it is now.
    pub status: Status,
    /// What makes it so; nothing when it is up.
    pub cause: Option<Cause>,
    /// Whether its status has changed so often that it counts as degraded until it is steady.
    pub is_flapping: bool,
}

kernel::events! {
    /// What happened to a component.
    ComponentEvent {
        Registered(Described) = "registry.component.registered" @ 1,
        Updated(Described) = "registry.component.updated" @ 1,
        HealthChanged(HealthChanged) = "registry.component.health_changed" @ 1,
        Deregistered(Nothing) = "registry.component.deregistered" @ 1,
    }
}

/// A component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// What is said of it.
    pub profile: ComponentProfile,
    /// How it is.
    pub health: HealthChanged,
    /// Since when, in milliseconds since 1970.
    pub since_ms: i64,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl HealthChanged {
    /// Nothing is known yet.
    fn unknown() -> Self {
        HealthChanged { status: Status::Unknown, cause: None, is_flapping: false }
    }

    /// Whether it says the same: why something is down may be said in other words each time.
    pub fn is_same(&self, other: &Self) -> bool {
        let by = |health: &Self| health.cause.as_ref().map(|cause| cause.component_id);
        self.status == other.status && self.is_flapping == other.is_flapping && by(self) == by(other)
    }
}

impl Decider for Component {
    const KIND: &'static str = "comp";
    type State = Component;
    type Command = ComponentCommand;
    type Event = ComponentEvent;

    fn decide(state: Option<&Component>, command: &ComponentCommand, _: &Facts) -> Result<Vec<ComponentEvent>, Rejection> {
        let component = match (command, state) {
            (ComponentCommand::Register(profile), None) => {
                return Ok(vec![ComponentEvent::Registered(Described { profile: profile.clone() })]);
            }
            (ComponentCommand::Deregister, Some(component)) if component.is_deleted => return Ok(vec![]),
            (_, Some(component)) if !component.is_deleted => component,
            _ => return Err(not_found("")),
        };
        Ok(match command {
            ComponentCommand::Register(_) => {
                let hint = "Change it with PUT /api/v1/components/{id}.";
                return Err(Rejection::new(Kind::Conflict, "ALREADY_EXISTS", "This component exists already.", hint));
            }
            ComponentCommand::Update(profile) if *profile == component.profile => vec![],
            ComponentCommand::Update(profile) => vec![ComponentEvent::Updated(Described { profile: profile.clone() })],
            ComponentCommand::Mark(health) if health.is_same(&component.health) => vec![],
            ComponentCommand::Mark(health) => vec![ComponentEvent::HealthChanged(health.clone())],
            ComponentCommand::Deregister => vec![ComponentEvent::Deregistered(Nothing {})],
        })
    }

    fn evolve(state: Option<Component>, event: &ComponentEvent, meta: &Meta) -> Option<Component> {
        let since_ms = meta.at.0;
        match event {
            ComponentEvent::Registered(described) => {
                let profile = described.profile.clone();
                Some(Component { profile, health: HealthChanged::unknown(), since_ms, is_deleted: false })
            }
            ComponentEvent::Updated(described) => {
                let before = state?;
                let is_same = before.profile.subject.is_same_thing(&described.profile.subject);
                let (health, since_ms) =
                    if is_same { (before.health, before.since_ms) } else { (HealthChanged::unknown(), since_ms) };
                Some(Component { profile: described.profile.clone(), health, since_ms, ..before })
            }
            ComponentEvent::HealthChanged(health) => {
                let before = state?;
                let since_ms = if before.health.status == health.status { before.since_ms } else { since_ms };
                Some(Component { health: health.clone(), since_ms, ..before })
            }
            ComponentEvent::Deregistered(_) => Some(Component { is_deleted: true, ..state? }),
        }
    }

    fn is_terminal(state: &Component) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Component) -> bool {
        state.is_deleted
    }

    fn index(state: &Component) -> Vec<IndexField> {
        vec![IndexField::new("status", state.health.status.as_str())]
    }

    fn unique(state: Option<&Component>, event: &ComponentEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (ComponentEvent::Registered(described), _) => vec![UniqueChange::Take(name_key(&described.profile.name))],
            (ComponentEvent::Updated(described), Some(before)) if described.profile.name != before.profile.name => {
                vec![UniqueChange::Free(name_key(&before.profile.name)), UniqueChange::Take(name_key(&described.profile.name))]
            }
            (ComponentEvent::Deregistered(_), Some(before)) => vec![UniqueChange::Free(name_key(&before.profile.name))],
            _ => vec![],
        }
    }
}

/// The unique key of a component's name.
pub fn name_key(name: &str) -> String {
    format!("component.name:{name}")
}

/// The answer for a component that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no component '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "COMPONENT_NOT_FOUND", message, "List them with GET /api/v1/components.")
        .with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::ComponentCommand::*;
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn profile(name: &str) -> ComponentProfile {
        ComponentProfile { name: name.into(), description: String::new(), subject: Subject::Group, needs: vec![] }
    }

    fn health(status: Status, by: u8, reason: &str) -> HealthChanged {
        let cause = Cause { component_id: ComponentId::from_bytes([by; 16]), reason: reason.into() };
        HealthChanged { status, cause: (status != Status::Up).then_some(cause), is_flapping: false }
    }

    fn decide(state: Option<&Component>, command: &ComponentCommand) -> Result<Vec<ComponentEvent>, Rejection> {
        Component::decide(state, command, &Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 })
    }

    fn given(commands: &[ComponentCommand]) -> Option<Component> {
        commands.iter().enumerate().fold(None, |state: Option<Component>, (at, command)| {
            let meta = Meta { version: 0, at: Timestamp(at as i64), actor: ActorRef::system("test") };
            decide(state.as_ref(), command).unwrap().iter().fold(state, |s, e| Component::evolve(s, e, &meta))
        })
    }

    #[test]
    fn given_the_same_health_in_other_words_then_the_log_does_not_grow() {
        let known = given(&[Register(profile("a")), Mark(health(Status::Down, 1, "no answer"))]);
        assert_eq!(decide(known.as_ref(), &Mark(health(Status::Down, 1, "still no answer"))), Ok(vec![]));
        assert_eq!(decide(known.as_ref(), &Mark(health(Status::Down, 2, "no answer"))).unwrap().len(), 1, "another cause");
        assert_eq!(known.unwrap().since_ms, 1);
    }

    #[test]
    fn given_another_cause_then_it_is_down_since_the_first() {
        let causes = [Register(profile("a")), Mark(health(Status::Down, 1, "x")), Mark(health(Status::Down, 2, "y"))];
        assert_eq!(given(&causes).unwrap().since_ms, 1);
    }

    #[test]
    fn given_another_subject_then_nothing_is_known_of_it() {
        let known = [Register(profile("a")), Mark(health(Status::Up, 1, ""))];
        let renamed = given(&[known.as_slice(), &[Update(profile("b"))]].concat()).unwrap();
        assert_eq!(renamed.health.status, Status::Up);
        let subject = Subject::Agent { agent_id: AgentId::from_bytes([1; 16]) };
        let other = given(&[known.as_slice(), &[Update(ComponentProfile { subject, ..profile("a") })]].concat()).unwrap();
        assert_eq!(other.health.status, Status::Unknown);
    }

    #[test]
    fn given_a_removed_component_then_nothing_changes_it() {
        let removed = given(&[Register(profile("a")), Deregister]);
        assert_eq!(decide(removed.as_ref(), &Mark(health(Status::Up, 1, ""))).unwrap_err().code, "COMPONENT_NOT_FOUND");
        assert_eq!(decide(removed.as_ref(), &Deregister), Ok(vec![]));
    }
}
