//! A virtual MCP server: a named selection of what servers offer, for some of the callers.

use crate::agent::Nothing;
use kernel::id::McpServerId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// What a virtual server is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServerProfile {
    /// Unique name, the end of its address.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it selects, in order: of two offers with one name the first keeps it.
    pub members: Vec<Member>,
    /// Whether Keiko's own tools are among its tools.
    pub built_in: bool,
    /// Who may use it, as `role:NAME`, `team:ID`, `user:ID` or `agent:ID`; everybody of the tenant when empty.
    pub allowed: Vec<String>,
}

/// What is selected of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which server.
    pub server_id: McpServerId,
    /// Which of its tools, by their names there; all when nothing is said.
    pub tools: Option<Vec<String>>,
    /// What stands before the names of its tools and prompts, with `__` between: the server's name when nothing is said, nothing
    /// when empty.
    pub prefix: Option<String>,
    /// Whether its prompts are offered.
    pub prompts: bool,
    /// Whether its resources are offered.
    pub resources: bool,
}

/// What may be asked of a virtual server.
#[derive(Clone, Debug)]
pub enum VirtualServerCommand {
    /// Make it.
    Create(VirtualServerProfile),
    /// Replace what it is made of.
    Update(VirtualServerProfile),
    /// Remove it.
    Delete,
}

/// `registry.virtual_server.created`, `registry.virtual_server.updated`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// What it is made of.
    pub profile: VirtualServerProfile,
}

kernel::events! {
    /// What happened to a virtual server.
    VirtualServerEvent {
        Created(Described) = "registry.virtual_server.created" @ 1,
        Updated(Described) = "registry.virtual_server.updated" @ 1,
        Deleted(Nothing) = "registry.virtual_server.deleted" @ 1,
    }
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// What it is made of.
    pub profile: VirtualServerProfile,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Decider for VirtualServer {
    const KIND: &'static str = "vsrv";
    type State = VirtualServer;
    type Command = VirtualServerCommand;
    type Event = VirtualServerEvent;

    fn decide(
        state: Option<&VirtualServer>,
        command: &VirtualServerCommand,
        _: &Facts,
    ) -> Result<Vec<VirtualServerEvent>, Rejection> {
        let server = match (command, state) {
            (VirtualServerCommand::Create(profile), None) => {
                return Ok(vec![VirtualServerEvent::Created(Described { profile: profile.clone() })]);
            }
            (VirtualServerCommand::Delete, Some(server)) if server.is_deleted => return Ok(vec![]),
            (_, Some(server)) if !server.is_deleted => server,
            _ => return Err(not_found("")),
        };
        Ok(match command {
            VirtualServerCommand::Create(_) => {
                let hint = "Change it with PUT /api/v1/virtual-servers/{id}.";
                return Err(Rejection::new(Kind::Conflict, "ALREADY_EXISTS", "This virtual server exists already.", hint));
            }
            VirtualServerCommand::Update(profile) if *profile == server.profile => vec![],
            VirtualServerCommand::Update(profile) => vec![VirtualServerEvent::Updated(Described { profile: profile.clone() })],
            VirtualServerCommand::Delete => vec![VirtualServerEvent::Deleted(Nothing {})],
        })
    }

    fn evolve(state: Option<VirtualServer>, event: &VirtualServerEvent, _: &Meta) -> Option<VirtualServer> {
        match event {
            VirtualServerEvent::Created(described) => {
                Some(VirtualServer { profile: described.profile.clone(), is_deleted: false })
            }
            VirtualServerEvent::Updated(described) => Some(VirtualServer { profile: described.profile.clone(), ..state? }),
            VirtualServerEvent::Deleted(_) => Some(VirtualServer { is_deleted: true, ..state? }),
        }
    }

    fn is_terminal(state: &VirtualServer) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &VirtualServer) -> bool {
        state.is_deleted
    }

    fn index(_: &VirtualServer) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&VirtualServer>, event: &VirtualServerEvent) -> Vec<UniqueChange> {
        let name = |server: &VirtualServer| name_key(&server.profile.name);
        match (event, state) {
            (VirtualServerEvent::Created(described), _) => vec![UniqueChange::Take(name_key(&described.profile.name))],
            (VirtualServerEvent::Updated(described), Some(server)) if described.profile.name != server.profile.name => {
                vec![UniqueChange::Free(name(server)), UniqueChange::Take(name_key(&described.profile.name))]
            }
            (VirtualServerEvent::Deleted(_), Some(server)) => vec![UniqueChange::Free(name(server))],
            _ => vec![],
        }
    }
}

/// The unique key of a virtual server's name.
pub fn name_key(name: &str) -> String {
    format!("virtual-server.name:{name}")
}

/// The answer for a virtual server that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no virtual server '{searched}' in this tenant.");
    let hint = "List them with GET /api/v1/virtual-servers.";
    Rejection::new(Kind::NotFound, "VIRTUAL_SERVER_NOT_FOUND", message, hint).with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::VirtualServerCommand::*;
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn profile(name: &str) -> VirtualServerProfile {
        let name = name.to_owned();
        VirtualServerProfile { name, description: String::new(), members: vec![], built_in: false, allowed: vec![] }
    }

    fn decide(state: Option<&VirtualServer>, command: &VirtualServerCommand) -> Result<Vec<VirtualServerEvent>, Rejection> {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 };
        VirtualServer::decide(state, command, &facts)
    }

    fn given(commands: &[VirtualServerCommand]) -> Option<VirtualServer> {
        let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
        commands.iter().fold(None, |state: Option<VirtualServer>, command| {
            decide(state.as_ref(), command).unwrap().iter().fold(state, |s, e| VirtualServer::evolve(s, e, &meta))
        })
    }

    #[test]
    fn given_a_virtual_server_when_it_is_renamed_then_its_old_name_is_free() {
        let server = given(&[Create(profile("a"))]);
        let events = decide(server.as_ref(), &Update(profile("b"))).unwrap();
        let changes = VirtualServer::unique(server.as_ref(), &events[0]);
        assert_eq!(changes, [UniqueChange::Free(name_key("a")), UniqueChange::Take(name_key("b"))]);
        assert_eq!(decide(server.as_ref(), &Update(profile("a"))), Ok(vec![]), "nothing new is no event");
    }

    #[test]
    fn given_a_removed_virtual_server_then_nothing_changes_it() {
        let server = given(&[Create(profile("a")), Delete]);
        assert_eq!(decide(server.as_ref(), &Update(profile("b"))).unwrap_err().code, "VIRTUAL_SERVER_NOT_FOUND");
        assert_eq!(decide(server.as_ref(), &Delete), Ok(vec![]));
    }
}
