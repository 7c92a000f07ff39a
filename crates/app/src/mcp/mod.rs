//! The door to tools, prompts and resources of every MCP server: who may use what, under which names, with a record of it.
//!
//! Requests come and go as the newest version of MCP has them: an answer is complete, or names what the client is to be asked
//! first, with a state that it sends back. The state is sealed: it is good for the same caller, the same request, and some minutes.

pub(crate) mod catalogue;
mod requests;
mod search;
mod session;
mod state;
mod tasks;
mod view;
mod virtual_servers;
mod way_in;

pub use gateway::mcp::mirror::Mirrored;
pub use gateway::mcp::tasks as task;
pub use gateway::mcp::{LEGACY, ListKind, MODERN, QUESTIONS};
pub use gateway::{Change, Key, Note, Tasks, Watched, What};
pub(crate) use requests::owner_of;
pub use requests::{Kind as AskKind, McpAsk, McpClient, McpOutcome};
pub use search::found_json;
pub use session::SessionFacts;
pub use tasks::TaskAsk;
pub(crate) use tasks::wish;
pub use view::{Door, Offered, OfferedTool, Part, View};
pub use virtual_servers::{NewMember, NewVirtualServer};

use crate::app::App;
use crate::{Answer, Caller};
use domain::virtual_server::not_found;
use kernel::id::VirtualServerId;
use kernel::{Kind, Rejection};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::{broadcast, watch};

/// Held by whoever may come to any door.
const ENTER: &str = "discovery.read";
/// Held by whoever may use what a virtual server selects, without every tool there is.
const USE: &str = "virtual-servers.use";
/// Held by whoever may use every tool.
const CALL: &str = "tools.call";
/// Of a name in a permission.
const PART_CHARS_MAX: usize = 40;

impl App {
    /// The door with this name; the one to everything without a name. Who may not use it learns nothing of it.
    pub fn mcp_door(&self, caller: &Caller, name: Option<&str>) -> Answer<Door> {
        let Some(name) = name else { return Ok(Door::All) };
        let catalogue = self.runtime(caller)?.catalogue.clone();
        let known = catalogue.known();
        let id = name.parse::<VirtualServerId>().ok();
        let found = known.virtuals.iter().find(|(known, server)| id == Some(**known) || server.state.profile.name == name);
        match found {
            Some((id, server)) if is_allowed(caller, &server.state.profile.allowed) => Ok(Door::Virtual(*id)),
            _ => Err(not_found(name)),
        }
    }

    /// What is offered behind a door, to somebody who may use it.
    pub fn mcp_view(&self, caller: &Caller, door: Door) -> Answer<Arc<View>> {
        Ok(self.runtime(caller)?.catalogue.view(door))
    }

    /// Whether the caller may use what a server offers under this name behind a door.
    pub fn may_use(&self, caller: &Caller, door: Door, kind: OfferKind, server: &str, offer: &str) -> bool {
        self.may_use_all(caller, door) || self.authorise(&caller.actor, &permission_of(kind, server, offer)).is_ok()
    }

    /// Whether the caller may use everything behind a door.
    pub fn may_use_all(&self, caller: &Caller, door: Door) -> bool {
        let held = |permission: &str| self.authorise(&caller.actor, permission).is_ok();
        held(CALL) || (matches!(door, Door::Virtual(_)) && held(USE))
    }

    /// Whether the caller may use it still, however long ago they came.
    pub(crate) async fn may_still_use(&self, caller: &Caller, door: Door, kind: OfferKind, server: &str, offer: &str) -> bool {
        let of_door = matches!(door, Door::Virtual(_)).then(|| USE.to_owned());
        for permission in [CALL.to_owned()].into_iter().chain(of_door).chain([permission_of(kind, server, offer)]) {
            if self.may_still(&caller.actor, &permission).await {
                return true;
            }
        }
        false
    }

    /// Whether the caller may still come to a door, however long ago they came.
    pub async fn mcp_may_still(&self, caller: &Caller, door: Door) -> bool {
        if !self.may_still(&caller.actor, ENTER).await {
            return false;
        }
        let Door::Virtual(id) = door else { return true };
        self.mcp_door(caller, Some(&id.to_string())).is_ok()
    }

    fn check_use(&self, caller: &Caller, door: Door, kind: OfferKind, server: &str, offer: &str) -> Answer<()> {
        if self.may_use(caller, door, kind, server, offer) {
            return Ok(());
        }
        let permission = permission_of(kind, server, offer);
        let message = format!("{} may not use '{offer}' of '{server}'.", caller.actor.who);
        let hint = "Ask an administrator for a role, or a key, that holds tools.call or the permission in details.";
        Err(Rejection::new(Kind::Forbidden, "PERMISSION_DENIED", message, hint).with("permission", permission))
    }

    /// Waits until the catalogue shows everything that the log says now.
    pub async fn mcp_is_current(&self, caller: &Caller) -> Answer<()> {
        let runtime = self.runtime(caller)?;
        runtime.catalogued.reaches(self.position(caller.actor.tenant)).await;
        Ok(())
    }

    /// Told when tools or virtual servers of the caller's tenant change.
    pub fn mcp_changes(&self, caller: &Caller) -> Answer<watch::Receiver<u64>> {
        Ok(self.runtime(caller)?.catalogue.changes())
    }

    /// Told what servers say of their lists and resources, of every tenant.
    pub fn gateway_changes(&self) -> broadcast::Receiver<gateway::Change> {
        self.0.gateway.changes()
    }

    /// Wants to be told of changes of a resource behind a door: the change it shows as, and the wish, which ends when dropped.
    pub fn watch_resource(&self, caller: &Caller, door: Door, uri: &str) -> Answer<(gateway::Key, String, gateway::Watched)> {
        let (server, own) = self.resource_of(caller, door, uri)?;
        let key = gateway::Key { tenant: caller.actor.tenant, server };
        let watched = self.0.gateway.watch_resource(key, &own);
        Ok((key, own, watched))
    }
}

/// What one offer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferKind {
    /// A tool.
    Tool,
    /// A prompt.
    Prompt,
    /// A resource, or a template of resources.
    Resource,
}

/// The permission to use one offer of one server, in the form that permissions have. Names that do not have that form, or are too
/// long, get a hash at their end: no two of them have one permission.
pub(crate) fn permission_of(kind: OfferKind, server: &str, offer: &str) -> String {
    let part = |text: &str| -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
        let written: String = text.chars().take(PART_CHARS_MAX).map(plain).collect();
        if written == text {
            return written;
        }
        format!("{written}-{}", &kernel::text::hex(&Sha256::digest(text))[..8])
    };
    let verb = match kind {
        OfferKind::Tool => CALL,
        OfferKind::Prompt => "tools.prompt",
        OfferKind::Resource => "tools.read",
    };
    format!("{verb}.{}.{}", part(server), part(offer))
}

/// Who a caller is to servers: an agent that acts for one person is another one when it acts for the next.
pub(crate) fn identity(caller: &Caller) -> String {
    let actor = &caller.actor;
    let subject = actor.token.as_ref().map(|token| token.sub.as_str()).unwrap_or_default();
    let user = actor.user.map(|user| user.to_string()).unwrap_or_default();
    format!("{}/{user}/{subject}", actor.who)
}

/// Whether a caller is among those for whom a virtual server is.
fn is_allowed(caller: &Caller, allowed: &[String]) -> bool {
    let actor = &caller.actor;
    let is_meant = |one: &String| match one.split_once(':') {
        Some(("role", name)) => actor.roles.iter().any(|role| role == name),
        Some(("agent", id)) => actor.who.id == id,
        Some(("user", id)) => actor.who.id == id || actor.user.is_some_and(|user| user.to_string() == id),
        _ => false,
    };
    allowed.is_empty() || allowed.iter().any(is_meant) || actor.permissions.iter().any(|held| held == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_of_tools_have_the_form_of_permissions() {
        for (server, offer) in [("files", "read_file"), ("A-b", "getItem.v2/x"), ("ü", "Ä")] {
            let permission = permission_of(OfferKind::Tool, server, offer);
            assert!(domain::policy::is_permission(&permission), "{permission}");
        }
        let of = |offer| permission_of(OfferKind::Tool, "files", offer);
        assert_eq!(of("read_file"), "tools.call.files.read_file");
        assert!(of("readFile") != of("readfile") && of("read.file") != of("read/file"));
        assert_ne!(of(&format!("{}a", "x".repeat(60))), of(&format!("{}b", "x".repeat(60))));
        assert_eq!(permission_of(OfferKind::Resource, "files", "x"), "tools.read.files.x");
        let long = permission_of(OfferKind::Resource, &"s".repeat(64), &"u".repeat(4_000));
        assert!(domain::policy::is_permission(&long), "{long}");
    }
}
