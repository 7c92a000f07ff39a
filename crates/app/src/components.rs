//! Components: register, change, remove; how they are, because of what, and who is hit.

use crate::app::App;
use crate::errors::Problems;
use crate::health::look_of;
use crate::{Answer, Caller, ListOrder, Page};
use domain::component::{Component, ComponentCommand, ComponentProfile, Need, Probe, Subject, name_key, not_found};
use domain::health::{Node, impact};
use engine::{Extras, Handled, Step};
use kernel::IndexField;
use kernel::id::ComponentId;
use serde_json::json;
use std::collections::BTreeMap;

/// Components of a tenant: their health is worked out from memory, several times a second.
const COMPONENTS_MAX: usize = 2_000;

/// A component as somebody describes it.
pub struct NewComponent {
    /// Unique name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it stands for.
    pub subject: NewSubject,
    /// What it needs.
    pub needs: Vec<NewNeed>,
}

/// See [`NewComponent`].
pub enum NewSubject {
    /// An agent, by its id.
    Agent(String),
    /// An MCP server, by id or name.
    McpServer(String),
    /// Something outside.
    Probe {
        /// How it is looked at.
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
    /// As healthy as what it needs.
    Group,
}

/// Something that a component needs.
pub struct NewNeed {
    /// Id or name of the component.
    pub component: String,
    /// Whether nothing goes without it.
    pub is_required: bool,
}

/// A component, with the names of the components that it speaks of.
pub struct ComponentView {
    /// The component.
    pub component: Handled<Component>,
    /// Names by id.
    pub names: BTreeMap<ComponentId, String>,
}

/// Who is hit when a component is down.
#[derive(Default)]
pub struct Impact {
    /// Components that need it, directly or through others: id, name, and whether they go down with it.
    pub components: Vec<(ComponentId, String, bool)>,
    /// Ids of agents among them, and of the component itself.
    pub agents: Vec<String>,
    /// Names of MCP servers among them, and of the component itself.
    pub mcp_servers: Vec<String>,
    /// Full names of these servers' tools.
    pub tools: Vec<String>,
}

impl App {
    /// Makes a component known.
    pub async fn register_component(&self, caller: &Caller, new: NewComponent) -> Answer<ComponentView> {
        if let Some(known) = self.earlier::<Component>(caller).await? {
            return self.component_view(caller, known);
        }
        let count = self.runtime(caller)?.catalogue.known().components.len();
        if count >= COMPONENTS_MAX {
            let mut problems = Problems::default();
            problems.add("/name", format!("a tenant has at most {COMPONENTS_MAX} components; remove some first"));
            problems.refuse()?;
        }
        let profile = self.component_profile(caller, new, None).await?;
        let id: ComponentId = self.env().id();
        self.witness(caller, "components.registered", &json!({ "id": id, "profile": profile })).await?;
        self.changed_component(caller, Step::new::<Component>(id, ComponentCommand::Register(profile))).await
    }

    /// One component, by id or name.
    pub async fn component(&self, caller: &Caller, id_or_name: &str) -> Answer<ComponentView> {
        let component = self.component_record(caller, id_or_name).await?;
        self.component_view(caller, component)
    }

    /// All components with these fields, and the names of all.
    pub async fn components(
        &self,
        caller: &Caller,
        order: &ListOrder,
        fields: Vec<IndexField>,
    ) -> Answer<(Page<Component>, BTreeMap<ComponentId, String>)> {
        let page = self.list::<Component>(caller, order, fields).await?;
        let names = self.component_names(caller, page.items.iter().map(|component| &*component.state))?;
        Ok((page, names))
    }

    /// Replaces what is said of a component.
    pub async fn update_component(&self, caller: &Caller, id_or_name: &str, new: NewComponent) -> Answer<ComponentView> {
        let known = self.component_record(caller, id_or_name).await?;
        let id: ComponentId = known.stream.parse().map_err(|_| not_found(id_or_name))?;
        let profile = self.component_profile(caller, new, Some(id)).await?;
        self.witness(caller, "components.updated", &json!({ "id": id, "profile": profile })).await?;
        self.changed_component(caller, Step::on::<Component>(known.stream, ComponentCommand::Update(profile))).await
    }

    /// Removes a component. Whatever needed it needs it no more.
    pub async fn delete_component(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let known = self.component_record(caller, id_or_name).await?;
        self.witness(caller, "components.deleted", &json!({ "id": known.stream })).await?;
        self.changed_component(caller, Step::on::<Component>(known.stream, ComponentCommand::Deregister)).await.map(|_| ())
    }

    /// Who is hit when a component is down.
    pub async fn component_impact(&self, caller: &Caller, id_or_name: &str) -> Answer<Impact> {
        let of: ComponentId =
            self.component_record(caller, id_or_name).await?.stream.parse().map_err(|_| not_found(id_or_name))?;
        let runtime = self.runtime(caller)?;
        let node = |component: &Component| {
            let needs = component.profile.needs.iter().map(|need| (need.component_id, need.is_required)).collect();
            Node { own: component.health.status, reason: String::new(), needs }
        };
        let nodes: BTreeMap<_, _> =
            runtime.catalogue.known().components.iter().map(|(id, component)| (*id, node(&component.state))).collect();
        let hit = impact(&nodes, of);
        let known = runtime.catalogue.known();
        let mut found = Impact::default();
        for id in hit.keys().chain([&of]) {
            let Some(component) = known.components.get(id) else { continue };
            match &component.state.profile.subject {
                Subject::Agent { agent_id } => found.agents.push(agent_id.to_string()),
                Subject::McpServer { server_id } => {
                    found.mcp_servers.extend(known.servers.get(server_id).map(|server| server.state.profile.name.clone()));
                    let own = known.tools.values().filter(|tool| tool.state.server_id == *server_id && tool.state.is_listed);
                    found.tools.extend(own.map(|tool| tool.state.name()));
                }
                Subject::Probe { .. } | Subject::Group => {}
            }
        }
        let name = |id| known.components.get(id).map(|component| component.state.profile.name.clone()).unwrap_or_default();
        found.components = hit.iter().map(|(id, goes_down)| (*id, name(id), *goes_down)).collect();
        found.tools.sort();
        Ok(found)
    }

    async fn component_record(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Component>> {
        let stream = match id_or_name.parse::<ComponentId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<Component>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// The names, as they are now, of the components that these speak of.
    fn component_names<'a>(
        &self,
        caller: &Caller,
        components: impl Iterator<Item = &'a Component>,
    ) -> Answer<BTreeMap<ComponentId, String>> {
        let runtime = self.runtime(caller)?;
        let known = runtime.catalogue.known();
        let spoken_of = components.flat_map(|component| {
            let needs = component.profile.needs.iter().map(|need| need.component_id);
            needs.chain(component.health.cause.as_ref().map(|cause| cause.component_id))
        });
        Ok(spoken_of.filter_map(|id| Some((id, known.components.get(&id)?.state.profile.name.clone()))).collect())
    }

    fn component_view(&self, caller: &Caller, component: Handled<Component>) -> Answer<ComponentView> {
        let names = self.component_names(caller, std::iter::once(&*component.state))?;
        Ok(ComponentView { component, names })
    }

    /// Whoever changes one finds it changed, whichever way they look.
    async fn changed_component(&self, caller: &Caller, step: Step) -> Answer<ComponentView> {
        let changed = self.execute::<Component>(caller, step, Extras::default()).await?;
        if let Ok(id) = changed.stream.parse() {
            self.runtime(caller)?.catalogue.put_component(id, changed.clone());
        }
        self.component_view(caller, changed)
    }

    async fn component_profile(&self, caller: &Caller, new: NewComponent, own: Option<ComponentId>) -> Answer<ComponentProfile> {
        let mut problems = Problems::default();
        problems.name("/name", &new.name);
        if new.name.parse::<ComponentId>().is_ok() {
            problems.add("/name", "must not be an id");
        }
        let subject = self.component_subject(caller, new.subject, &mut problems).await;
        let mut needs: Vec<Need> = vec![];
        for (i, need) in new.needs.iter().enumerate() {
            let found = self.component_record(caller, &need.component).await.ok().and_then(|found| found.stream.parse().ok());
            match found {
                None => problems
                    .add(format!("/needs/{i}/component"), format!("there is no component '{}' in this tenant", need.component)),
                Some(id) if Some(id) == own => problems.add(format!("/needs/{i}/component"), "is the component itself"),
                Some(id) if needs.iter().any(|known| known.component_id == id) => {
                    problems.add(format!("/needs/{i}/component"), "is named twice");
                }
                Some(component_id) => needs.push(Need { component_id, is_required: need.is_required }),
            }
        }
        problems.refuse()?;
        let subject = subject.ok_or_else(|| not_found(&new.name))?;
        Ok(ComponentProfile { name: new.name, description: new.description, subject, needs })
    }

    async fn component_subject(&self, caller: &Caller, new: NewSubject, problems: &mut Problems) -> Option<Subject> {
        match new {
            NewSubject::Group => Some(Subject::Group),
            NewSubject::Agent(id) => {
                let agent = self.agent(caller, &id).await.ok().and_then(|agent| agent.stream.parse().ok());
                if agent.is_none() {
                    problems.add("/subject/agent", format!("there is no agent '{id}' in this tenant"));
                }
                Some(Subject::Agent { agent_id: agent? })
            }
            NewSubject::McpServer(id_or_name) => {
                let server = self.mcp_server(caller, &id_or_name).await.ok().and_then(|server| server.stream.parse().ok());
                if server.is_none() {
                    problems.add("/subject/mcp_server", format!("there is no MCP server '{id_or_name}' in this tenant"));
                }
                Some(Subject::McpServer { server_id: server? })
            }
            NewSubject::Probe { probe, every_ms, timeout_ms, failures, successes } => {
                if let Some(problem) = gateway::look_problem(&look_of(&probe), self.0.gateway.settings().allow_private) {
                    problems.add("/subject/probe", problem);
                }
                Some(Subject::Probe { probe, every_ms, timeout_ms, failures, successes })
            }
        }
    }
}
