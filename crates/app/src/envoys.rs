//! Agents that are elsewhere and speak A2A: work is brought to them. Where a log is led, an envoy for each of them claims like the
//! agent itself, hands each task over, and reports what becomes of it.
//!
//! What a task is called there is an event, so that whoever leads next goes on with the same one. Between the message and that event
//! a crash sends the message again, with the same id: an agent that knows it makes one task of both.

mod errand;

use crate::app::{App, internal};
use crate::claims::{ClaimOrder, ClaimedTask};
use crate::errors::Problems;
use crate::workers::TenantRuntime;
use crate::{Answer, Caller};
use domain::agent::{Agent, AgentCommand, Capability, Endpoint, endpoint_secret};
use domain::policy::Reach;
use engine::{Engine, Extras, Handled, Step};
use gateway::{AgentEndpoint, AgentTrouble, RemoteAgent};
use kernel::id::{AgentId, ClaimId, TenantId};
use kernel::{Kind, Origin, Rejection, limits};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// How often it is looked whether somebody was connected.
const LOOK_EVERY_MS: u64 = 500;
/// How long an envoy waits for work at a time.
const WAIT_MS: u64 = 10_000;
/// Pauses after trouble, doubled from the first on.
const PAUSE_MS_MIN: u64 = 500;
const PAUSE_MS_MAX: u64 = 30_000;
/// Characters of an address.
const URL_CHARS_MAX: usize = 2_048;
/// Skills of a card that become capabilities.
const SKILLS_MAX: usize = limits::CAPABILITIES_MAX;

/// Where an agent is.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    /// The address of its card, or the one below which the card lies.
    pub url: String,
    /// Headers that go with every request to it.
    pub headers: BTreeMap<String, String>,
}

impl App {
    /// From now on work is brought to an agent. Its card is read, and gives its capabilities where it has none.
    pub async fn connect_agent(&self, caller: &Caller, id_or_name: &str, new: NewEndpoint) -> Answer<Handled<Agent>> {
        let agent = self.agent(caller, id_or_name).await?;
        self.check_endpoint(&new)?;
        let headers: Vec<(String, String)> = new.headers.clone().into_iter().collect();
        let there = AgentEndpoint { url: new.url.clone(), headers };
        let (_, card) = RemoteAgent::connect(&there, self.0.settings.fetch_private).await.map_err(unusable)?;
        let (tenant, place) = (caller.actor.tenant, endpoint_secret(&agent.stream));
        let plain = serde_json::to_vec(&there.headers).map_err(|e| internal(e.to_string()))?;
        let sealed = self.0.crypto.sealer.seal(tenant, &place, &plain, self.env().bytes()).map_err(internal)?;
        let endpoint = Endpoint { url: new.url, headers: new.headers.into_keys().collect() };
        let extras = Extras { secrets: vec![(place, Some(sealed))], ..Extras::default() };
        let step = Step::on::<Agent>(&agent.stream, AgentCommand::Connect(endpoint));
        let connected = self.execute::<Agent>(caller, step, extras).await?;
        if !connected.state.profile.capabilities.is_empty() {
            return self.shown(caller, connected);
        }
        let mut profile = connected.state.profile.clone();
        profile.capabilities = skills(&card);
        let plain_caller = Caller { idempotency: None, if_match: None, ..caller.clone() };
        self.update_agent(&plain_caller, &agent.stream, profile, Default::default()).await
    }

    /// From now on an agent fetches its work by itself.
    pub async fn disconnect_agent(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Agent>> {
        let agent = self.agent(caller, id_or_name).await?;
        let extras = Extras { secrets: vec![(endpoint_secret(&agent.stream), None)], ..Extras::default() };
        let step = Step::on::<Agent>(&agent.stream, AgentCommand::Disconnect);
        let changed = self.execute::<Agent>(caller, step, extras).await?;
        self.shown(caller, changed)
    }

    fn check_endpoint(&self, new: &NewEndpoint) -> Answer<()> {
        let mut problems = Problems::default();
        match gateway::check_target(&new.url, self.0.settings.fetch_private) {
            Err(problem) => problems.add("/url", problem),
            Ok(_) if new.url.len() > URL_CHARS_MAX => {
                problems.add("/url", format!("must have at most {URL_CHARS_MAX} characters"))
            }
            // An address is shown to everybody who sees the agent.
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                problems.add("/url", "must have no query; put secrets into headers");
            }
            Ok(_) => {}
        }
        if new.headers.len() > limits::ENTRIES_MAX {
            problems.add("/headers", format!("must have at most {} entries", limits::ENTRIES_MAX));
        }
        for (name, value) in &new.headers {
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            let is_value = value.len() <= limits::DESCRIPTION_CHARS_MAX && value.bytes().all(|b| (b' '..=b'~').contains(&b));
            if !is_name || !is_value {
                problems.add("/headers", "must be names of headers and values of printable ASCII");
            }
        }
        problems.check()
    }

    async fn endpoint_of(&self, tenant: TenantId, agent: &Handled<Agent>) -> Answer<Option<AgentEndpoint>> {
        let Some(endpoint) = &agent.state.endpoint else { return Ok(None) };
        let place = endpoint_secret(&agent.stream);
        let opened = self.open_secret(tenant, &place).await?;
        let headers = opened.and_then(|plain| serde_json::from_slice(&plain).ok());
        Ok(headers.map(|headers| AgentEndpoint { url: endpoint.url.clone(), headers }))
    }
}

fn unusable(trouble: AgentTrouble) -> Rejection {
    let hint = "Look at its card: 'curl URL/.well-known/agent-card.json'. It must offer JSONRPC or HTTP+JSON in version 1.0.";
    Rejection::new(Kind::Refused, "AGENT_UNUSABLE", format!("The agent cannot be spoken to: {trouble}."), hint)
}

/// The skills of a card as capabilities.
fn skills(card: &Value) -> Vec<Capability> {
    let text = |skill: &Value, name: &str| skill[name].as_str().unwrap_or_default().trim().to_owned();
    let is_good = |name: &str| kernel::text::is_name(name, limits::NAME_CHARS_MAX);
    let mut found: Vec<Capability> = vec![];
    for skill in card["skills"].as_array().into_iter().flatten().take(SKILLS_MAX) {
        let name = text(skill, "id");
        if !is_good(&name) || found.iter().any(|known| known.name == name) {
            continue;
        }
        let tags = skill["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(|tag| is_good(tag));
        found.push(Capability {
            name,
            version: "1.0.0".into(),
            description: text(skill, "description").chars().take(limits::DESCRIPTION_CHARS_MAX).collect(),
            input_schema: None,
            output_schema: None,
            domains: vec![],
            tags: tags.take(limits::ENTRIES_MAX).map(str::to_owned).collect(),
        });
    }
    found
}

/// Keeps an envoy for each connected agent of a led tenant.
pub(crate) async fn look_after(app: App, runtime: Arc<TenantRuntime>, engine: Engine) {
    let running: Arc<Mutex<BTreeSet<AgentId>>> = Arc::default();
    loop {
        let is_draining = app.draining().is_cancelled();
        for (id, agent) in connected(&runtime).into_iter().filter(|_| !is_draining) {
            if running.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
                let envoy =
                    Envoy { app: app.clone(), runtime: runtime.clone(), engine: engine.clone(), id, under_way: Arc::default() };
                let (running, stop) = (running.clone(), engine.env().stop().clone());
                engine.env().spawn(async move {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => {}
                        () = envoy.serve(agent) => {}
                    }
                    running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                });
            }
        }
        tokio::select! {
            biased;
            () = engine.env().stop().cancelled() => return,
            () = engine.env().sleep_ms(LOOK_EVERY_MS) => {}
        }
    }
}

fn connected(runtime: &TenantRuntime) -> Vec<(AgentId, Handled<Agent>)> {
    let fleet = runtime.fleet.read();
    let may_work = |agent: &Agent| agent.endpoint.is_some() && agent.suspended.is_none();
    fleet.all().filter(|(_, agent)| may_work(&agent.state)).map(|(id, agent)| (*id, agent.clone())).collect()
}

/// Whether an agent is there, may work, and is at this place.
fn is_at(runtime: &TenantRuntime, id: &AgentId, endpoint: Option<&Endpoint>) -> bool {
    let fleet = runtime.fleet.read();
    fleet.get(id).is_some_and(|now| now.state.endpoint.as_ref() == endpoint && now.state.suspended.is_none())
}

/// Who claims for one agent.
struct Envoy {
    app: App,
    runtime: Arc<TenantRuntime>,
    engine: Engine,
    id: AgentId,
    /// Claims in work: one that is handed over twice is worked on once.
    under_way: Arc<Mutex<BTreeSet<ClaimId>>>,
}

impl Envoy {
    /// Serves until the agent is at another place, or there no more.
    async fn serve(&self, agent: Handled<Agent>) {
        let mut pause_ms = PAUSE_MS_MIN;
        while self.is_at(&agent) && !self.app.draining().is_cancelled() {
            match self.work(&agent).await {
                Ok(()) => pause_ms = PAUSE_MS_MIN,
                Err(why) => {
                    tracing::warn!(agent = %self.id, %why, pause_ms, "work cannot be brought to an agent; trying again");
                    self.engine.env().sleep_ms(pause_ms).await;
                    pause_ms = (pause_ms * 2).min(PAUSE_MS_MAX);
                }
            }
        }
    }

    fn is_at(&self, agent: &Handled<Agent>) -> bool {
        is_at(&self.runtime, &self.id, agent.state.endpoint.as_ref())
    }

    async fn until_moved(&self, agent: &Handled<Agent>) {
        while self.is_at(agent) {
            self.engine.env().sleep_ms(LOOK_EVERY_MS).await;
        }
    }

    /// Looks whether the agent is there, and takes work for it. While it is not there nothing is asked for, and its lease ends.
    async fn work(&self, agent: &Handled<Agent>) -> Answer<()> {
        if self.app.is_suspended(self.runtime.id).await? {
            return Err(Rejection::new(Kind::Unavailable, "BUSY", "The tenant is suspended.", "Reinstate it."));
        }
        let endpoint = self.app.endpoint_of(self.runtime.id, agent).await?;
        let endpoint = endpoint.ok_or_else(|| internal("the headers of an agent's endpoint cannot be opened".into()))?;
        let (remote, _) = RemoteAgent::connect(&endpoint, self.app.0.settings.fetch_private).await.map_err(unusable)?;
        let (remote, caller) = (Arc::new(remote), self.caller(agent)?);
        let order = ClaimOrder { max: limits::CLAIM_TASKS_MAX, wait_ms: WAIT_MS };
        let (claimed, _) = tokio::select! {
            biased;
            claimed = self.app.claim(&caller, order) => claimed?,
            () = self.until_moved(agent) => return Ok(()),
        };
        for task in claimed {
            self.begin(agent, &caller, &remote, task);
        }
        Ok(())
    }

    fn caller(&self, agent: &Handled<Agent>) -> Answer<Caller> {
        let slug = self.app.slug_of(self.runtime.id).ok_or_else(|| internal("the tenant is not running".into()))?;
        Ok(Caller {
            actor: self.app.agent_actor(self.runtime.id, &slug, agent),
            reach: Reach::All,
            origin: Origin::default(),
            correlation: String::new(),
            trace_parent: None,
            idempotency: None,
            if_match: None,
            at: None,
        })
    }

    fn begin(&self, agent: &Handled<Agent>, caller: &Caller, remote: &Arc<RemoteAgent>, task: ClaimedTask) {
        let claim = task.claim_id;
        if !self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(claim) {
            return;
        }
        let under_way = self.under_way.clone();
        let (runtime, id, endpoint) = (self.runtime.clone(), self.id, agent.state.endpoint.clone());
        let is_still: errand::IsStill = Box::new(move || is_at(&runtime, &id, endpoint.as_ref()));
        let errand =
            errand::Errand::new(self.app.clone(), caller.clone(), remote.clone(), task, self.engine.env().clone(), is_still);
        let stop = self.engine.env().stop().clone();
        self.engine.env().spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = errand.run() => {}
            }
            under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&claim);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn given_a_card_then_its_good_skills_become_capabilities() {
        let card = json!({ "skills": [
            { "id": "paint", "description": "Paints", "tags": ["art", " bad ", 7] },
            { "id": "paint", "description": "again" }, { "id": " " }, { "name": "no id" }, 7,
        ] });
        let found = skills(&card);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].tags.as_slice()), ("paint", ["art".to_owned()].as_slice()));
        assert_eq!(skills(&json!({ "skills": "x" })).len(), 0);
    }
}
