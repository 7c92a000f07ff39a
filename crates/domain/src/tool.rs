//! A tool of an MCP server, pinned by the hash of what it says of itself.

use crate::agent::Nothing;
use crate::scrutiny;
use kernel::id::{McpServerId, ToolId};
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Json, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// What a tool says of itself, as its server listed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name at its server.
    pub tool: String,
    /// For people and models.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: Json,
    /// JSON Schema of its structured result.
    pub output_schema: Option<Json>,
    /// What else it says of itself: title, annotations, icons, and whatever is not known here.
    #[serde(default)]
    pub more: Json,
    /// SHA-256 of its whole listing entry in RFC 8785 form.
    pub hash: String,
}

/// What may be asked of a tool.
#[derive(Clone, Debug)]
pub enum ToolCommand {
    /// Its server lists it.
    Observe {
        /// The server's id.
        server_id: McpServerId,
        /// The server's name.
        server: String,
        /// What it says of itself.
        manifest: Manifest,
        /// Whether this is its server's first listing, which counts as approved unless something is odd about it.
        is_first_listing: bool,
        /// Whether its name looks like that of another server's tool.
        is_look_alike: bool,
    },
    /// Its server lists it no more.
    Withdraw,
    /// Allow what it says of itself now.
    Approve,
    /// Its server was removed.
    Remove,
}

/// `registry.tool.discovered`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovered {
    /// The server's id.
    pub server_id: McpServerId,
    /// The server's name.
    pub server: String,
    /// What it says of itself.
    pub manifest: Manifest,
    /// Whether it may be called at once.
    pub is_approved: bool,
}

/// `registry.tool.changed`: it says something else of itself; it may not be called unless that was approved before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What it says of itself now.
    pub manifest: Manifest,
}

/// `registry.tool.approved`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approved {
    /// What was approved.
    pub hash: String,
}

kernel::events! {
    /// What happened to a tool.
    ToolEvent {
        // The first shape had no `more`.
        Discovered(Discovered) = "registry.tool.discovered" @ 2 [1: Discovered],
        Changed(Changed) = "registry.tool.changed" @ 2 [1: Changed],
        Withdrawn(Nothing) = "registry.tool.withdrawn" @ 1,
        Returned(Nothing) = "registry.tool.returned" @ 1,
        Approved(Approved) = "registry.tool.approved" @ 1,
        Removed(Nothing) = "registry.tool.removed" @ 1,
    }
}

/// A tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// The server's id.
    pub server_id: McpServerId,
    /// The server's name.
    pub server: String,
    /// What it says of itself now.
    pub manifest: Manifest,
    /// The hash that may be called.
    pub approved: Option<String>,
    /// Whether its server lists it.
    pub is_listed: bool,
    /// Whether its server was removed.
    pub is_deleted: bool,
}

impl Tool {
    /// The name that callers use: `server__tool`.
    pub fn name(&self) -> String {
        full_name(&self.server, &self.manifest.tool)
    }

    /// Whether what it says of itself now was approved.
    pub fn is_approved(&self) -> bool {
        self.approved.as_ref() == Some(&self.manifest.hash)
    }
}

impl Decider for Tool {
    const KIND: &'static str = "tool";
    type State = Tool;
    type Command = ToolCommand;
    type Event = ToolEvent;

    fn decide(state: Option<&Tool>, command: &ToolCommand, _: &Facts) -> Result<Vec<ToolEvent>, Rejection> {
        let tool = match (command, state) {
            (ToolCommand::Observe { server_id, server, manifest, is_first_listing, is_look_alike }, None) => {
                let is_plain = !is_look_alike && scrutiny::of_manifest(manifest).is_empty();
                return Ok(vec![ToolEvent::Discovered(Discovered {
                    server_id: *server_id,
                    server: server.clone(),
                    manifest: manifest.clone(),
                    is_approved: *is_first_listing && is_plain,
                })]);
            }
            (ToolCommand::Remove, Some(tool)) if tool.is_deleted => return Ok(vec![]),
            (_, Some(tool)) if !tool.is_deleted => tool,
            _ => return Err(not_found("")),
        };
        Ok(match command {
            ToolCommand::Observe { manifest, .. } => {
                let returned = (!tool.is_listed).then_some(ToolEvent::Returned(Nothing {}));
                let changed = (*manifest != tool.manifest).then(|| ToolEvent::Changed(Changed { manifest: manifest.clone() }));
                returned.into_iter().chain(changed).collect()
            }
            ToolCommand::Withdraw if !tool.is_listed => vec![],
            ToolCommand::Withdraw => vec![ToolEvent::Withdrawn(Nothing {})],
            ToolCommand::Approve if tool.is_approved() => vec![],
            ToolCommand::Approve => vec![ToolEvent::Approved(Approved { hash: tool.manifest.hash.clone() })],
            ToolCommand::Remove => vec![ToolEvent::Removed(Nothing {})],
        })
    }

    fn evolve(state: Option<Tool>, event: &ToolEvent, _: &Meta) -> Option<Tool> {
        if let ToolEvent::Discovered(found) = event {
            return Some(Tool {
                server_id: found.server_id,
                server: found.server.clone(),
                approved: found.is_approved.then(|| found.manifest.hash.clone()),
                manifest: found.manifest.clone(),
                is_listed: true,
                is_deleted: false,
            });
        }
        let mut tool = state?;
        match event {
            ToolEvent::Discovered(_) => {}
            ToolEvent::Changed(changed) => tool.manifest = changed.manifest.clone(),
            ToolEvent::Withdrawn(_) => tool.is_listed = false,
            ToolEvent::Returned(_) => tool.is_listed = true,
            ToolEvent::Approved(approved) => tool.approved = Some(approved.hash.clone()),
            ToolEvent::Removed(_) => tool.is_deleted = true,
        }
        Some(tool)
    }

    fn is_terminal(state: &Tool) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Tool) -> bool {
        state.is_deleted
    }

    fn index(state: &Tool) -> Vec<IndexField> {
        vec![IndexField::new("server", state.server_id.to_string())]
    }

    fn unique(state: Option<&Tool>, event: &ToolEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (ToolEvent::Discovered(found), _) => {
                vec![UniqueChange::Take(name_key(&full_name(&found.server, &found.manifest.tool)))]
            }
            (ToolEvent::Removed(_), Some(tool)) => vec![UniqueChange::Free(name_key(&tool.name()))],
            _ => vec![],
        }
    }
}

/// The id of a server's tool: the same each time.
pub fn tool_id(server: McpServerId, tool: &str) -> ToolId {
    ToolId::derived(&[&server.bytes(), tool.as_bytes()])
}

/// `server__tool`. Names of servers have no `__`, so the first one parts them.
pub fn full_name(server: &str, tool: &str) -> String {
    format!("{server}__{tool}")
}

/// The unique key of a tool's name.
pub fn name_key(name: &str) -> String {
    format!("tool.name:{name}")
}

/// The answer for a tool that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no tool '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "TOOL_NOT_FOUND", message, "List tools with GET /api/v1/tools.").with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::ToolCommand::*;
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn observe(hash: &str, is_first_listing: bool) -> ToolCommand {
        let manifest = Manifest {
            tool: "read".into(),
            description: String::new(),
            input_schema: Json::empty_object(),
            output_schema: None,
            more: Json::empty_object(),
            hash: hash.into(),
        };
        Observe {
            server_id: McpServerId::from_bytes([1; 16]),
            server: "files".into(),
            manifest,
            is_first_listing,
            is_look_alike: false,
        }
    }

    fn decide(state: Option<&Tool>, command: &ToolCommand) -> Vec<ToolEvent> {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 };
        Tool::decide(state, command, &facts).unwrap()
    }

    fn given(commands: &[ToolCommand]) -> Tool {
        let folded = commands.iter().fold(None, |state: Option<Tool>, command| {
            let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
            decide(state.as_ref(), command).iter().fold(state, |s, e| Tool::evolve(s, e, &meta))
        });
        folded.unwrap()
    }

    #[test]
    fn given_the_first_listing_then_the_tool_is_approved_and_named_after_its_server() {
        let tool = given(&[observe("1", true)]);
        assert!(tool.is_approved());
        assert_eq!(tool.name(), "files__read");
    }

    #[test]
    fn given_a_tool_that_appears_later_then_it_waits_for_approval() {
        assert!(!given(&[observe("1", false)]).is_approved());
        assert!(given(&[observe("1", false), Approve]).is_approved());
    }

    #[test]
    fn given_a_changed_tool_then_it_is_disabled_until_approved_or_changed_back() {
        assert!(!given(&[observe("1", true), observe("2", true)]).is_approved());
        assert!(given(&[observe("1", true), observe("2", true), Approve]).is_approved());
        assert!(given(&[observe("1", true), observe("2", true), observe("1", true)]).is_approved());
        assert!(!given(&[observe("1", true), observe("2", true), Approve, observe("1", true)]).is_approved());
    }

    #[test]
    fn given_a_tool_that_goes_and_comes_back_changed_then_it_is_still_pinned() {
        let tool = given(&[observe("1", true), Withdraw, observe("2", true)]);
        assert!(tool.is_listed && !tool.is_approved());
    }

    #[test]
    fn given_the_same_listing_again_then_nothing_happens() {
        let tool = given(&[observe("1", true)]);
        assert_eq!(decide(Some(&tool), &observe("1", false)), []);
    }

    #[test]
    fn given_a_removed_server_then_the_names_of_its_tools_are_free() {
        let tool = given(&[observe("1", true)]);
        assert_eq!(
            Tool::unique(Some(&tool), &ToolEvent::Removed(Nothing {})),
            [UniqueChange::Free("tool.name:files__read".into())]
        );
    }
}
