//! An agent: an identity that can take work, what it can do, and whether it is there.

use kernel::id::UserId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Json, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something an agent can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capability {
    /// The name that tasks ask for.
    pub name: String,
    /// Version of the capability.
    pub version: String,
    /// For people and for the search.
    pub description: String,
    /// JSON Schema of a task's input.
    pub input_schema: Option<Json>,
    /// JSON Schema of a task's output.
    pub output_schema: Option<Json>,
    /// What it is specialised in.
    pub domains: Vec<String>,
    /// Free labels for discovery.
    pub tags: Vec<String>,
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Unique name in the tenant.
    pub name: String,
    /// Free word for its kind.
    pub agent_type: String,
    /// For people and for the search.
    pub description: String,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Tasks it works on at a time.
    pub max_concurrency: u32,
    /// Price of one task in any unit that is the same for all agents.
    pub cost_per_task: f64,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// Who answers for an agent, and what it is for. Others say so, not the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mandate {
    /// The user or service that answers for it.
    pub owner: Option<UserId>,
    /// What it is for.
    pub purpose: Option<String>,
}

/// Where an agent is that speaks A2A: work is brought to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address of its card, or the one below which the card lies.
    pub url: String,
    /// The names of the headers that are sealed beside the log.
    pub headers: Vec<String>,
}

/// Where the headers of an agent's endpoint are sealed.
pub fn endpoint_secret(id: &str) -> String {
    format!("endpoint:{id}")
}

/// Whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// It never called.
    Registered,
    /// Its lease is valid.
    Up,
    /// It is there, but reports trouble.
    Degraded,
    /// Its lease expired.
    Down,
}

/// Whether it takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It does.
    Active,
    /// Not until it is resumed.
    Paused,
    /// It finishes what it has.
    Draining,
}

/// What may be asked of an agent.
#[derive(Clone, Debug)]
pub enum AgentCommand {
    /// Make it known.
    Register(Profile, Mandate),
    /// Replace what it says of itself and, where something is said, its mandate.
    Update(Profile, Option<Mandate>),
    /// Bring work to it.
    Connect(Endpoint),
    /// Let it fetch its work.
    Disconnect,
    /// It was heard of.
    MarkUp,
    /// It reports trouble.
    MarkDegraded {
        /// Which.
        reason: String,
    },
    /// Its lease expired.
    MarkDown,
    /// Give it no new work.
    Pause,
    /// Give it work again.
    Resume,
    /// Let it finish and give it no new work.
    Drain,
    /// Let it do nothing, at once, until it is reinstated.
    Suspend {
        /// Why, for the record.
        reason: String,
    },
    /// Let it work again.
    Reinstate,
    /// Ask it to restart.
    RequestRestart,
    /// It was told to restart.
    DeliverRestart,
    /// Remove it.
    Deregister,
}

/// `registry.agent.registered`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// What it says of itself.
    pub profile: Profile,
    /// Who answers for it, and what it is for.
    pub mandate: Mandate,
}

/// `registry.agent.registered` before agents had a mandate
#[derive(Deserialize)]
struct RegisteredFirst {
    profile: Profile,
}

impl From<RegisteredFirst> for Registered {
    fn from(first: RegisteredFirst) -> Self {
        Registered { profile: first.profile, mandate: Mandate::default() }
    }
}

/// `registry.agent.updated`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Updated {
    /// What it says of itself from now on.
    pub profile: Profile,
}

/// `registry.agent.mandated`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mandated {
    /// Who answers for it and what it is for, from now on.
    pub mandate: Mandate,
}

/// `registry.agent.connected`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connected {
    /// Where it is.
    pub endpoint: Endpoint,
}

/// Payload of events that say everything by their type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nothing {}

/// `registry.agent.degraded`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Degraded {
    /// The trouble.
    pub reason: String,
}

/// `registry.agent.suspended`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspended {
    /// Why.
    pub reason: String,
}

kernel::events! {
    /// What happened to an agent.
    AgentEvent {
        Registered(Registered) = "registry.agent.registered" @ 2 [1: RegisteredFirst],
        Updated(Updated) = "registry.agent.updated" @ 1,
        Mandated(Mandated) = "registry.agent.mandated" @ 1,
        Connected(Connected) = "registry.agent.connected" @ 1,
        Disconnected(Nothing) = "registry.agent.disconnected" @ 1,
        WentUp(Nothing) = "registry.agent.went_up" @ 1,
        Degraded(Degraded) = "registry.agent.degraded" @ 1,
        WentDown(Nothing) = "registry.agent.went_down" @ 1,
        Paused(Nothing) = "registry.agent.paused" @ 1,
        Resumed(Nothing) = "registry.agent.resumed" @ 1,
        DrainStarted(Nothing) = "registry.agent.drain_started" @ 1,
        RestartRequested(Nothing) = "registry.agent.restart_requested" @ 1,
        RestartDelivered(Nothing) = "registry.agent.restart_delivered" @ 1,
        Suspended(Suspended) = "registry.agent.suspended" @ 1,
        Reinstated(Nothing) = "registry.agent.reinstated" @ 1,
        Deregistered(Nothing) = "registry.agent.deregistered" @ 1,
    }
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// What it says of itself.
    pub profile: Profile,
    /// Who answers for it, and what it is for.
    #[serde(default)]
    pub mandate: Mandate,
    /// Whether it is there.
    pub liveness: Liveness,
    /// The trouble, while degraded.
    pub degraded_reason: Option<String>,
    /// Whether it takes work.
    pub mode: Mode,
    /// Whether it is to be told to restart.
    pub is_restart_requested: bool,
    /// Why it may do nothing for now.
    #[serde(default)]
    pub suspended: Option<String>,
    /// Where it is, when work is brought to it.
    #[serde(default)]
    pub endpoint: Option<Endpoint>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Agent {
    /// The one word shown: a mode other than active hides the liveness.
    pub fn status(&self) -> &'static str {
        if self.suspended.is_some() {
            return "suspended";
        }
        match (self.mode, self.liveness) {
            (Mode::Paused, _) => "paused",
            (Mode::Draining, _) => "draining",
            (_, Liveness::Registered) => "registered",
            (_, Liveness::Up) => "up",
            (_, Liveness::Degraded) => "degraded",
            (_, Liveness::Down) => "down",
        }
    }

    /// The capability of that name.
    pub fn capability(&self, name: &str) -> Option<&Capability> {
        self.profile.capabilities.iter().find(|c| c.name == name)
    }
}

impl Decider for Agent {
    const KIND: &'static str = "agent";
    type State = Agent;
    type Command = AgentCommand;
    type Event = AgentEvent;

    fn decide(state: Option<&Agent>, command: &AgentCommand, _: &Facts) -> Result<Vec<AgentEvent>, Rejection> {
        let agent = match (command, state) {
            (AgentCommand::Register(profile, mandate), None) => {
                let registered = Registered { profile: profile.clone(), mandate: mandate.clone() };
                return Ok(vec![AgentEvent::Registered(registered)]);
            }
            (_, Some(agent)) if !agent.is_deleted => agent,
            (AgentCommand::Deregister, Some(_)) => return Ok(vec![]),
            _ => return Err(not_found("")),
        };
        Ok(match command {
            AgentCommand::Register(..) => {
                return Err(Rejection::new(
                    Kind::Conflict,
                    "ALREADY_EXISTS",
                    "This agent exists already.",
                    "Change it with PUT /api/v1/agents/{id}.",
                ));
            }
            AgentCommand::Update(profile, mandate) => {
                let is_other = *profile != agent.profile;
                let updated = is_other.then(|| AgentEvent::Updated(Updated { profile: profile.clone() }));
                let mandate = mandate.as_ref().filter(|mandate| **mandate != agent.mandate);
                let mandated = mandate.map(|mandate| AgentEvent::Mandated(Mandated { mandate: mandate.clone() }));
                updated.into_iter().chain(mandated).collect()
            }
            AgentCommand::Connect(endpoint) => vec![AgentEvent::Connected(Connected { endpoint: endpoint.clone() })],
            AgentCommand::Disconnect if agent.endpoint.is_none() => vec![],
            AgentCommand::Disconnect => vec![AgentEvent::Disconnected(Nothing {})],
            AgentCommand::MarkUp if agent.liveness == Liveness::Up => vec![],
            AgentCommand::MarkUp => vec![AgentEvent::WentUp(Nothing {})],
            AgentCommand::MarkDegraded { .. } if agent.liveness == Liveness::Degraded => vec![],
            AgentCommand::MarkDegraded { reason } => vec![AgentEvent::Degraded(Degraded { reason: reason.clone() })],
            AgentCommand::MarkDown if matches!(agent.liveness, Liveness::Down | Liveness::Registered) => vec![],
            AgentCommand::MarkDown => vec![AgentEvent::WentDown(Nothing {})],
            AgentCommand::Pause if agent.mode == Mode::Paused => vec![],
            AgentCommand::Pause => vec![AgentEvent::Paused(Nothing {})],
            AgentCommand::Resume if agent.mode == Mode::Active => vec![],
            AgentCommand::Resume => vec![AgentEvent::Resumed(Nothing {})],
            AgentCommand::Drain if agent.mode == Mode::Draining => vec![],
            AgentCommand::Drain => vec![AgentEvent::DrainStarted(Nothing {})],
            AgentCommand::Suspend { .. } if agent.suspended.is_some() => vec![],
            AgentCommand::Suspend { reason } => vec![AgentEvent::Suspended(Suspended { reason: reason.clone() })],
            AgentCommand::Reinstate if agent.suspended.is_none() => vec![],
            AgentCommand::Reinstate => vec![AgentEvent::Reinstated(Nothing {})],
            AgentCommand::RequestRestart if agent.is_restart_requested => vec![],
            AgentCommand::RequestRestart => vec![AgentEvent::RestartRequested(Nothing {})],
            AgentCommand::DeliverRestart if !agent.is_restart_requested => vec![],
            AgentCommand::DeliverRestart => vec![AgentEvent::RestartDelivered(Nothing {})],
            AgentCommand::Deregister => vec![AgentEvent::Deregistered(Nothing {})],
        })
    }

    fn evolve(state: Option<Agent>, event: &AgentEvent, _: &Meta) -> Option<Agent> {
        if let AgentEvent::Registered(registered) = event {
            return Some(Agent {
                profile: registered.profile.clone(),
                mandate: registered.mandate.clone(),
                liveness: Liveness::Registered,
                degraded_reason: None,
                mode: Mode::Active,
                is_restart_requested: false,
                suspended: None,
                endpoint: None,
                is_deleted: false,
            });
        }
        let mut agent = state?;
        match event {
            AgentEvent::Registered(_) => {}
            AgentEvent::Updated(updated) => agent.profile = updated.profile.clone(),
            AgentEvent::Mandated(mandated) => agent.mandate = mandated.mandate.clone(),
            AgentEvent::Connected(connected) => agent.endpoint = Some(connected.endpoint.clone()),
            AgentEvent::Disconnected(_) => agent.endpoint = None,
            AgentEvent::WentUp(_) => {
                agent.liveness = Liveness::Up;
                agent.degraded_reason = None;
            }
            AgentEvent::Degraded(degraded) => {
                agent.liveness = Liveness::Degraded;
                agent.degraded_reason = Some(degraded.reason.clone());
            }
            AgentEvent::WentDown(_) => agent.liveness = Liveness::Down,
            AgentEvent::Paused(_) => agent.mode = Mode::Paused,
            AgentEvent::Resumed(_) => agent.mode = Mode::Active,
            AgentEvent::DrainStarted(_) => agent.mode = Mode::Draining,
            AgentEvent::RestartRequested(_) => agent.is_restart_requested = true,
            AgentEvent::RestartDelivered(_) => agent.is_restart_requested = false,
            AgentEvent::Suspended(suspended) => agent.suspended = Some(suspended.reason.clone()),
            AgentEvent::Reinstated(_) => agent.suspended = None,
            AgentEvent::Deregistered(_) => agent.is_deleted = true,
        }
        Some(agent)
    }

    fn is_terminal(state: &Agent) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Agent) -> bool {
        state.is_deleted
    }

    fn index(state: &Agent) -> Vec<IndexField> {
        let mut fields = vec![IndexField::new("status", state.status())];
        fields.extend(state.mandate.owner.map(|owner| IndexField::new("owner", owner.to_string())));
        fields.extend(state.profile.capabilities.iter().map(|c| IndexField::new("capability", &c.name)));
        fields
    }

    fn unique(state: Option<&Agent>, event: &AgentEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (AgentEvent::Registered(r), _) => vec![UniqueChange::Take(name_key(&r.profile.name))],
            (AgentEvent::Updated(u), Some(agent)) if u.profile.name != agent.profile.name => {
                vec![UniqueChange::Free(name_key(&agent.profile.name)), UniqueChange::Take(name_key(&u.profile.name))]
            }
            (AgentEvent::Deregistered(_), Some(agent)) => vec![UniqueChange::Free(name_key(&agent.profile.name))],
            _ => vec![],
        }
    }
}

/// The unique key of an agent's name.
pub fn name_key(name: &str) -> String {
    format!("agent.name:{name}")
}

/// The answer for an agent that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no agent '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "AGENT_NOT_FOUND", message, "List agents with GET /api/v1/agents.")
        .with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn profile(name: &str) -> Profile {
        Profile {
            name: name.into(),
            agent_type: "generic".into(),
            description: String::new(),
            capabilities: vec![],
            max_concurrency: 1,
            cost_per_task: 0.0,
            labels: BTreeMap::new(),
        }
    }

    fn facts() -> Facts {
        Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 }
    }

    fn given(commands: &[AgentCommand]) -> Option<Agent> {
        commands.iter().fold(None, |state: Option<Agent>, command| {
            let events = Agent::decide(state.as_ref(), command, &facts()).unwrap();
            let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
            events.iter().fold(state, |s, e| Agent::evolve(s, e, &meta))
        })
    }

    #[test]
    fn given_a_new_agent_then_it_is_registered_until_it_is_heard_of() {
        use AgentCommand::*;
        assert_eq!(given(&[Register(profile("a"), Mandate::default())]).unwrap().status(), "registered");
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), MarkDown]).unwrap().status(), "registered");
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), MarkUp]).unwrap().status(), "up");
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), MarkUp, MarkDown]).unwrap().status(), "down");
    }

    #[test]
    fn given_a_paused_agent_when_it_goes_up_then_it_stays_paused() {
        use AgentCommand::*;
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), Pause, MarkUp]).unwrap().status(), "paused");
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), Pause, MarkUp, Resume]).unwrap().status(), "up");
    }

    #[test]
    fn given_a_suspended_agent_then_nothing_hides_it_until_it_is_reinstated() {
        use AgentCommand::*;
        let suspend = Suspend { reason: "acts unlike itself".into() };
        assert_eq!(
            given(&[Register(profile("a"), Mandate::default()), suspend.clone(), MarkUp, Resume]).unwrap().status(),
            "suspended"
        );
        assert_eq!(given(&[Register(profile("a"), Mandate::default()), MarkUp, suspend, Reinstate]).unwrap().status(), "up");
    }

    #[test]
    fn given_an_owner_then_it_stays_until_somebody_names_another_one() {
        let owned = |n| Mandate { owner: Some(UserId::from_bytes([n; 16])), purpose: Some("reviews".into()) };
        let registered = given(&[AgentCommand::Register(profile("a"), owned(1))]);
        let update = |mandate| AgentCommand::Update(profile("b"), mandate);
        let renamed = given(&[AgentCommand::Register(profile("a"), owned(1)), update(None)]).unwrap();
        assert_eq!((renamed.profile.name.as_str(), &renamed.mandate), ("b", &owned(1)));
        let decided = Agent::decide(registered.as_ref(), &AgentCommand::Update(profile("a"), Some(owned(2))), &facts());
        assert_eq!(decided, Ok(vec![AgentEvent::Mandated(Mandated { mandate: owned(2) })]));
        let same = Agent::decide(registered.as_ref(), &AgentCommand::Update(profile("a"), Some(owned(1))), &facts());
        assert_eq!(same, Ok(vec![]));
    }

    #[test]
    fn given_the_same_command_twice_then_nothing_more_happens() {
        use AgentCommand::*;
        for command in [MarkUp, Pause, Drain, RequestRestart, Deregister] {
            let once = given(&[Register(profile("a"), Mandate::default()), command.clone()]);
            assert_eq!(Agent::decide(once.as_ref(), &command, &facts()), Ok(vec![]), "{command:?}");
        }
    }

    #[test]
    fn given_a_removed_agent_then_it_is_not_found_and_its_name_is_free() {
        use AgentCommand::*;
        let removed = given(&[Register(profile("a"), Mandate::default()), Deregister]);
        assert_eq!(Agent::decide(removed.as_ref(), &Pause, &facts()).unwrap_err().code, "AGENT_NOT_FOUND");
        let freed = Agent::unique(removed.as_ref(), &AgentEvent::Deregistered(Nothing {}));
        assert_eq!(freed, [UniqueChange::Free("agent.name:a".into())]);
    }
}
