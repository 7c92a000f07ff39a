//! Agents: register, change, remove, steer, and their heartbeats.

use crate::app::App;
use crate::errors::{Problems, of_handle};
use crate::replicas::Signal;
use crate::{Answer, Caller, ListOrder, Page};
use domain::agent::{Agent, AgentCommand, Mandate, Profile, endpoint_secret, name_key, not_found};
use domain::policy::Reach;
use engine::{Extras, Handled, Step};
use kernel::id::AgentId;
use kernel::{ActorKind, IndexField, Kind, Rejection, Timestamp, limits};

/// Who is to answer for an agent, and what it is for, as far as it is said.
#[derive(Clone, Debug, Default)]
pub struct NewMandate {
    /// A user or service, by id or name.
    pub owner: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
}

/// How busy an agent says it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AgentLoad {
    /// Tasks in work, as the agent counts.
    pub running: Option<u32>,
    /// Tokens that wait in its queue.
    pub queued_tokens: Option<u64>,
    /// How full its context is, 0 to 1.
    pub context_fill: Option<f64>,
}

impl App {
    /// Makes an agent known. Its owner is whoever registers it, unless somebody else is named.
    pub async fn register_agent(&self, caller: &Caller, profile: Profile, mandate: NewMandate) -> Answer<Handled<Agent>> {
        if let Some(known) = self.earlier::<Agent>(caller).await? {
            return Ok(known);
        }
        self.check_profile(&profile)?;
        let before = Mandate { owner: caller.actor.user, purpose: None };
        let mandate = self.mandate(caller, before, mandate).await?;
        let _room = self.room::<Agent>(caller.actor.tenant, "agents", |limits| limits.agents_max).await?;
        let id: AgentId = self.env().id();
        let step = Step::new::<Agent>(id, AgentCommand::Register(profile, mandate));
        let agent = self.execute::<Agent>(caller, step, Extras::default()).await?;
        self.shown(caller, agent)
    }

    /// One agent, by id or name. Whoever sees only its own sees itself.
    pub async fn agent(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Agent>> {
        let stream = match id_or_name.parse::<AgentId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream.filter(|stream| caller.reach == Reach::All || *stream == caller.actor.who.id) {
            Some(stream) => self.read::<Agent>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// Agents by field.
    pub async fn agents(&self, caller: &Caller, order: &ListOrder, fields: Vec<IndexField>) -> Answer<Page<Agent>> {
        if caller.sees_all() {
            return self.list::<Agent>(caller, order, fields).await;
        }
        let own = self.agent(caller, &caller.actor.who.id).await.ok();
        Ok(Page { items: own.into_iter().collect(), next: None, position: self.position(caller.actor.tenant) })
    }

    /// Replaces what an agent says of itself; its mandate stays where nothing is said, and is not the agent's to change.
    pub async fn update_agent(
        &self,
        caller: &Caller,
        id_or_name: &str,
        profile: Profile,
        mandate: NewMandate,
    ) -> Answer<Handled<Agent>> {
        self.check_profile(&profile)?;
        if mandate.owner.is_none() && mandate.purpose.is_none() {
            return self.command_agent(caller, id_or_name, AgentCommand::Update(profile, None)).await;
        }
        let before = self.agent(caller, id_or_name).await?.state.mandate.clone();
        let mandate = self.mandate(caller, before.clone(), mandate).await?;
        if mandate != before && caller.actor.who.kind == ActorKind::Agent {
            let hint = "Ask whoever answers for the agent, or an administrator.";
            let message = "An agent does not choose its owner or its purpose.";
            return Err(Rejection::new(Kind::Forbidden, "PERMISSION_DENIED", message, hint));
        }
        self.command_agent(caller, id_or_name, AgentCommand::Update(profile, Some(mandate))).await
    }

    async fn mandate(&self, caller: &Caller, before: Mandate, said: NewMandate) -> Answer<Mandate> {
        if let Some(purpose) = &said.purpose {
            let mut problems = Problems::default();
            problems.text("/purpose", purpose);
            problems.check()?;
        }
        let owner = match said.owner {
            Some(owner) => self.user(caller, &owner).await?.stream.parse().ok(),
            None => before.owner,
        };
        Ok(Mandate { owner, purpose: said.purpose.or(before.purpose) })
    }

    /// Removes an agent; its keys end in the same transaction.
    pub async fn delete_agent(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let agent = self.agent(caller, id_or_name).await?;
        let mut steps = vec![Step::on::<Agent>(&agent.stream, AgentCommand::Deregister)];
        self.end_keys(caller, &agent.stream, &mut steps).await?;
        let tenant = caller.actor.tenant;
        let mut secrets = agent.state.endpoint.iter().map(|_| (endpoint_secret(&agent.stream), None)).collect();
        self.end_credentials(tenant, IndexField::new("owner", &agent.stream), &mut steps, &mut secrets).await?;
        let extras = Extras { secrets, ..Extras::default() };
        self.0.engine.transact(tenant, &steps, &caller.context(), extras).await.map_err(of_handle)?;
        let removed = self.0.engine.entity::<Agent>(tenant, &agent.stream).await.map_err(crate::errors::of_store)?;
        if let Some(removed) = removed {
            self.shown(caller, removed)?;
        }
        Ok(())
    }

    /// Pauses, resumes, drains, or asks to restart.
    pub async fn command_agent(&self, caller: &Caller, id_or_name: &str, command: AgentCommand) -> Answer<Handled<Agent>> {
        let agent = self.agent(caller, id_or_name).await?;
        let changed = self.execute::<Agent>(caller, Step::on::<Agent>(agent.stream, command), Extras::default()).await?;
        self.shown(caller, changed)
    }

    /// An agent is there. Answers it, the end of its lease, and whether it is asked to restart.
    pub async fn agent_heartbeat(
        &self,
        caller: &Caller,
        id_or_name: &str,
        load: AgentLoad,
    ) -> Answer<(Handled<Agent>, Timestamp, bool)> {
        let agent = self.agent(caller, id_or_name).await?;
        let mut problems = Problems::default();
        if load.context_fill.is_some_and(|fill| !(0.0..=1.0).contains(&fill)) {
            problems.add("/load/context_fill", "must be 0 to 1");
        }
        problems.check()?;
        let id: AgentId = agent.stream.parse().map_err(|_| not_found(&agent.stream))?;
        let runtime = self.runtime(caller)?;
        self.tell(&runtime, Signal::Seen { agent: id, fill: load.context_fill });
        let running = load.running.map(|n| f64::from(n) / f64::from(agent.state.profile.max_concurrency.max(1)));
        if let Some(fill) = load.context_fill.into_iter().chain(running).reduce(f64::max) {
            self.tell(&runtime, Signal::Reported { agent: id, fill: fill.clamp(0.0, 1.0) });
        }
        let is_restart_requested = self.take_restart(caller, id).await?;
        let agent = self.wait_until_heard(caller, agent).await?;
        Ok((agent, self.env().now().plus_ms(self.0.settings.agent_lease_ms), is_restart_requested))
    }

    /// A first heartbeat makes an agent go up; its answer shows that.
    async fn wait_until_heard(&self, caller: &Caller, agent: Handled<Agent>) -> Answer<Handled<Agent>> {
        const WAIT_MS_MAX: u64 = 1_000;
        let late = self.env().now().plus_ms(WAIT_MS_MAX);
        let mut tail = self.0.engine.store().tail(caller.actor.tenant);
        loop {
            tail.mark_unchanged();
            let now = self.entity::<Agent>(caller.actor.tenant, &agent.stream).await?.ok_or_else(|| not_found(&agent.stream))?;
            if matches!(now.state.liveness, domain::agent::Liveness::Up | domain::agent::Liveness::Degraded) {
                return Ok(now);
            }
            tokio::select! {
                biased;
                _ = tail.changed() => {}
                () = self.env().sleep_until(late) => return Ok(now),
            }
        }
    }

    /// The fleet knows of a change before its answer goes out.
    pub(crate) fn shown(&self, caller: &Caller, agent: Handled<Agent>) -> Answer<Handled<Agent>> {
        if let Ok(id) = agent.stream.parse() {
            self.fleet(caller)?.write().put(id, agent.clone());
        }
        Ok(agent)
    }

    fn check_profile(&self, profile: &Profile) -> Answer<()> {
        let mut problems = Problems::default();
        problems.name("/name", &profile.name);
        problems.name("/agent_type", &profile.agent_type);
        problems.text("/description", &profile.description);
        if !(1..=100_000).contains(&profile.max_concurrency) {
            problems.add("/max_concurrency", "must be 1 to 100000");
        }
        if !(0.0..=1e12).contains(&profile.cost_per_task) {
            problems.add("/cost_per_task", "must be 0 or more");
        }
        if profile.capabilities.len() > limits::CAPABILITIES_MAX {
            problems.add("/capabilities", format!("must have at most {} entries", limits::CAPABILITIES_MAX));
        }
        for (i, capability) in profile.capabilities.iter().enumerate() {
            let at = |field: &str| format!("/capabilities/{i}/{field}");
            problems.name(&at("name"), &capability.name);
            problems.name(&at("version"), &capability.version);
            problems.text(&at("description"), &capability.description);
            problems.names(&at("domains"), &capability.domains);
            problems.names(&at("tags"), &capability.tags);
        }
        problems.check()?;
        let mut problems = Problems::default();
        if profile.name.parse::<AgentId>().is_ok() {
            problems.add("/name", "must not look like an id");
        }
        for (i, capability) in profile.capabilities.iter().enumerate() {
            if profile.capabilities[..i].iter().any(|other| other.name == capability.name) {
                problems.add(format!("/capabilities/{i}/name"), "is there twice");
            }
        }
        if profile.labels.len() > limits::ENTRIES_MAX {
            problems.add("/labels", format!("must have at most {} entries", limits::ENTRIES_MAX));
        }
        for (key, value) in &profile.labels {
            problems.name(&format!("/labels/{key}"), key);
            problems.text(&format!("/labels/{key}"), value);
        }
        problems.refuse()?;
        self.check_schemas(profile)
    }

    fn check_schemas(&self, profile: &Profile) -> Answer<()> {
        let mut wrong = vec![];
        for (i, capability) in profile.capabilities.iter().enumerate() {
            for (field, schema) in [("input_schema", &capability.input_schema), ("output_schema", &capability.output_schema)] {
                if let Some(message) = schema.as_ref().and_then(|s| self.0.schemas.compiled(s).err()) {
                    wrong.push(kernel::Problem { pointer: format!("/capabilities/{i}/{field}"), message });
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let hint = "Use JSON Schema 2020-12; references may only point inside the schema.";
        Err(kernel::Rejection::new(kernel::Kind::Refused, "SCHEMA_INVALID", "A capability's schema cannot be used.", hint)
            .with("errors", wrong))
    }
}
