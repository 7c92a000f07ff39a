//! Virtual servers: make, change, remove.

use crate::app::App;
use crate::errors::Problems;
use crate::{Answer, Caller, ListOrder, Page};
use domain::virtual_server::{Member, VirtualServer, VirtualServerCommand, VirtualServerProfile, name_key, not_found};
use engine::{Extras, Handled, Step};
use kernel::id::{AgentId, McpServerId, UserId, VirtualServerId};
use kernel::limits;
use serde_json::json;

const NAME_CHARS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 2_000;
const MEMBERS_MAX: usize = 200;
const TOOLS_MAX: usize = 1_000;

/// A virtual server as somebody describes it.
pub struct NewVirtualServer {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it selects, in order.
    pub members: Vec<NewMember>,
    /// Whether Keiko's own tools are among its tools.
    pub built_in: bool,
    /// Who may use it.
    pub allowed: Vec<String>,
}

/// What is selected of one server.
pub struct NewMember {
    /// Id or name of the server.
    pub server: String,
    /// Which of its tools; all when nothing is said.
    pub tools: Option<Vec<String>>,
    /// What stands before names; the server's name when nothing is said.
    pub prefix: Option<String>,
    /// Whether its prompts are offered.
    pub prompts: bool,
    /// Whether its resources are offered.
    pub resources: bool,
}

impl App {
    /// Makes a virtual server.
    pub async fn create_virtual_server(&self, caller: &Caller, new: NewVirtualServer) -> Answer<Handled<VirtualServer>> {
        if let Some(known) = self.earlier::<VirtualServer>(caller).await? {
            return Ok(known);
        }
        let profile = self.virtual_profile(caller, new).await?;
        self.witness(caller, "virtual-servers.created", &json!({ "profile": profile })).await?;
        let id: VirtualServerId = self.env().id();
        let step = Step::new::<VirtualServer>(id, VirtualServerCommand::Create(profile));
        self.changed_virtual(caller, step).await
    }

    /// One virtual server, by id or name.
    pub async fn virtual_server(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<VirtualServer>> {
        let stream = match id_or_name.parse::<VirtualServerId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<VirtualServer>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// All virtual servers.
    pub async fn virtual_servers(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<VirtualServer>> {
        self.list::<VirtualServer>(caller, order, vec![]).await
    }

    /// Replaces what a virtual server is made of.
    pub async fn update_virtual_server(
        &self,
        caller: &Caller,
        id_or_name: &str,
        new: NewVirtualServer,
    ) -> Answer<Handled<VirtualServer>> {
        let known = self.virtual_server(caller, id_or_name).await?;
        let profile = self.virtual_profile(caller, new).await?;
        self.witness(caller, "virtual-servers.updated", &json!({ "id": known.stream, "profile": profile })).await?;
        self.changed_virtual(caller, Step::on::<VirtualServer>(known.stream, VirtualServerCommand::Update(profile))).await
    }

    /// Removes a virtual server. The servers behind it stay.
    pub async fn delete_virtual_server(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let known = self.virtual_server(caller, id_or_name).await?;
        self.witness(caller, "virtual-servers.deleted", &json!({ "id": known.stream })).await?;
        let step = Step::on::<VirtualServer>(known.stream, VirtualServerCommand::Delete);
        self.changed_virtual(caller, step).await.map(|_| ())
    }

    /// Whoever changes one finds it changed, whichever way they look.
    async fn changed_virtual(&self, caller: &Caller, step: Step) -> Answer<Handled<VirtualServer>> {
        let changed = self.execute::<VirtualServer>(caller, step, Extras::default()).await?;
        if let Ok(id) = changed.stream.parse() {
            self.runtime(caller)?.catalogue.put_virtual(id, changed.clone());
        }
        Ok(changed)
    }

    async fn virtual_profile(&self, caller: &Caller, new: NewVirtualServer) -> Answer<VirtualServerProfile> {
        let mut problems = Problems::default();
        if !is_name(&new.name) {
            problems.add("/name", format!("must be 1 to {NAME_CHARS_MAX} of a-z, A-Z, 0-9, '-' and '_'"));
        }
        if new.description.chars().count() > DESCRIPTION_CHARS_MAX {
            problems.add("/description", format!("must have at most {DESCRIPTION_CHARS_MAX} characters"));
        }
        if new.members.len() > MEMBERS_MAX {
            problems.add("/members", format!("must have at most {MEMBERS_MAX} entries"));
        }
        if new.allowed.len() > limits::ENTRIES_MAX {
            problems.add("/allowed", format!("must have at most {} entries", limits::ENTRIES_MAX));
        }
        for (i, one) in new.allowed.iter().enumerate().filter(|(_, one)| !is_somebody(one)) {
            problems.add(format!("/allowed/{i}"), format!("'{one}' is none of role:NAME, user:ID, agent:ID"));
        }
        problems.check()?;
        let mut problems = Problems::default();
        let mut members: Vec<Member> = vec![];
        for (i, member) in new.members.into_iter().enumerate() {
            if member.prefix.as_ref().is_some_and(|prefix| !prefix.is_empty() && (!is_name(prefix) || prefix.contains("__"))) {
                problems.add(format!("/members/{i}/prefix"), "must be empty, or of a-z, A-Z, 0-9, '-' and '_', without '__'");
            }
            if member.tools.as_ref().is_some_and(|tools| tools.len() > TOOLS_MAX) {
                problems.add(format!("/members/{i}/tools"), format!("must have at most {TOOLS_MAX} entries"));
            }
            match self.mcp_server(caller, &member.server).await {
                Ok(server) if !server.state.is_deleted => {
                    let server_id: McpServerId = server.stream.parse().map_err(|_| not_found(&member.server))?;
                    if members.iter().any(|known| known.server_id == server_id) {
                        problems.add(format!("/members/{i}/server"), "is named twice");
                    }
                    let NewMember { tools, prefix, prompts, resources, .. } = member;
                    members.push(Member { server_id, tools, prefix, prompts, resources });
                }
                _ => problems.add(format!("/members/{i}/server"), format!("there is no MCP server '{}'", member.server)),
            }
        }
        problems.refuse()?;
        let NewVirtualServer { name, description, built_in, allowed, .. } = new;
        Ok(VirtualServerProfile { name, description, members, built_in, allowed })
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && name.parse::<VirtualServerId>().is_err()
}

fn is_somebody(text: &str) -> bool {
    match text.split_once(':') {
        Some(("role", name)) => kernel::text::is_name(name, limits::NAME_CHARS_MAX),
        Some(("user", id)) => id.parse::<UserId>().is_ok(),
        Some(("agent", id)) => id.parse::<AgentId>().is_ok(),
        _ => false,
    }
}
