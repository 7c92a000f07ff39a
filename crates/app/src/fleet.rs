//! The agents of one tenant in memory, for discovery and for checks at submission: folded from the log like any view,
//! and brought forward at once by the use cases of this process, so that a caller sees its own change.

use async_trait::async_trait;
use domain::agent::Agent;
use domain::task::TaskEvent;
use domain::view::stats::{self, AgentStats};
use engine::{Engine, Executor, Handled};
use kernel::id::{AgentId, TenantId};
use kernel::text::words;
use kernel::{Decider, EventSet, Process, Recorded, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The agents that are not deleted, with the ways to find them.
#[derive(Default)]
pub(crate) struct Fleet {
    agents: BTreeMap<AgentId, Entry>,
    by_capability: BTreeMap<String, BTreeSet<AgentId>>,
    by_word: BTreeMap<String, BTreeSet<AgentId>>,
    by_tag: BTreeMap<String, BTreeSet<AgentId>>,
    stats: BTreeMap<String, AgentStats>,
    removed: BTreeMap<AgentId, u64>,
}

/// One agent.
#[derive(Clone)]
pub(crate) struct Entry {
    pub agent: Handled<Agent>,
}

/// The fleet, shared.
#[derive(Clone, Default)]
pub(crate) struct SharedFleet(Arc<RwLock<Fleet>>);

impl SharedFleet {
    pub fn read(&self) -> RwLockReadGuard<'_, Fleet> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, Fleet> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The words by which an agent is found.
pub(crate) fn words_of(agent: &Agent) -> Vec<String> {
    let profile = &agent.profile;
    let mut text = vec![profile.name.as_str(), &profile.agent_type, &profile.description];
    for c in &profile.capabilities {
        text.extend([c.name.as_str(), &c.description]);
        text.extend(c.domains.iter().chain(&c.tags).map(String::as_str));
    }
    words(&text.join(" "))
}

fn tags_of(agent: &Agent) -> impl Iterator<Item = &String> {
    agent.profile.capabilities.iter().flat_map(|c| c.tags.iter().chain(&c.domains))
}

impl Fleet {
    /// A fleet with these records.
    pub fn with_stats(stats: BTreeMap<String, AgentStats>) -> Self {
        Fleet { stats, ..Fleet::default() }
    }

    /// Takes in an agent; an older version than the known one changes nothing.
    pub fn put(&mut self, id: AgentId, agent: Handled<Agent>) {
        let known = self.agents.get(&id).map(|e| e.agent.version).or(self.removed.get(&id).copied());
        if known.is_some_and(|version| version >= agent.version) {
            return;
        }
        if let Some(old) = self.agents.remove(&id) {
            self.unlink(id, &old.agent.state);
        }
        if agent.state.is_deleted {
            self.removed.insert(id, agent.version);
            return;
        }
        for capability in &agent.state.profile.capabilities {
            self.by_capability.entry(capability.name.clone()).or_default().insert(id);
        }
        for word in words_of(&agent.state) {
            self.by_word.entry(word).or_default().insert(id);
        }
        for tag in tags_of(&agent.state) {
            self.by_tag.entry(tag.to_lowercase()).or_default().insert(id);
        }
        self.agents.insert(id, Entry { agent });
    }

    fn unlink(&mut self, id: AgentId, agent: &Agent) {
        let remove = |index: &mut BTreeMap<String, BTreeSet<AgentId>>, key: &str| {
            if let Some(ids) = index.get_mut(key) {
                ids.remove(&id);
                if ids.is_empty() {
                    index.remove(key);
                }
            }
        };
        agent.profile.capabilities.iter().for_each(|c| remove(&mut self.by_capability, &c.name));
        words_of(agent).iter().for_each(|w| remove(&mut self.by_word, w));
        tags_of(agent).for_each(|t| remove(&mut self.by_tag, &t.to_lowercase()));
    }

    pub fn get(&self, id: &AgentId) -> Option<&Handled<Agent>> {
        self.agents.get(id).map(|e| &e.agent)
    }

    pub fn all(&self) -> impl Iterator<Item = (&AgentId, &Handled<Agent>)> {
        self.agents.iter().map(|(id, e)| (id, &e.agent))
    }

    pub fn with_capability(&self, name: &str) -> Option<&BTreeSet<AgentId>> {
        self.by_capability.get(name)
    }

    pub fn with_word(&self, word: &str) -> Option<&BTreeSet<AgentId>> {
        self.by_word.get(word)
    }

    pub fn with_tag(&self, tag: &str) -> Option<&BTreeSet<AgentId>> {
        self.by_tag.get(&tag.to_lowercase())
    }

    pub fn record(&self, id: &AgentId, capability: &str) -> AgentStats {
        self.stats.get(&stats::key(id, capability)).copied().unwrap_or_default()
    }

    /// The sum of all records.
    pub fn totals(&self) -> AgentStats {
        self.stats.values().fold(AgentStats::default(), |mut sum, one| {
            sum.add(one);
            sum
        })
    }

    /// Capabilities whose names are like this one, best first.
    pub fn near_names(&self, wanted: &str) -> Vec<String> {
        let mut near: Vec<(f64, &String)> =
            self.by_capability.keys().map(|name| (strsim::jaro_winkler(wanted, name), name)).collect();
        near.retain(|(likeness, _)| *likeness > 0.75);
        near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        near.into_iter().take(3).map(|(_, name)| name.clone()).collect()
    }
}

/// Follows the log and keeps the fleet up to date.
pub(crate) struct FleetFollower {
    pub fleet: SharedFleet,
    pub commands: Vec<AgentId>,
}

impl Process for FleetFollower {
    const NAME: &'static str = "fleet";
    type Signal = ();
    /// Read this agent.
    type Command = AgentId;

    fn react(&mut self, event: &Recorded, _: Timestamp) {
        if event.header.stream.starts_with(Agent::KIND) {
            self.commands.extend(event.header.stream.parse::<AgentId>());
            return;
        }
        let counts = matches!(
            event.header.kind.as_str(),
            "tasks.task.completed" | "tasks.task.attempt_failed" | "tasks.task.claim_expired"
        );
        if counts
            && let Ok(Some(data)) = TaskEvent::read(event)
            && let Some((key, change)) = stats::change(&data)
        {
            self.fleet.write().stats.entry(key).or_default().add(&change);
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, _: Timestamp, _: u64) -> Vec<AgentId> {
        std::mem::take(&mut self.commands)
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }
}

/// Reads agents for the fleet.
pub(crate) struct FleetReader {
    pub engine: Engine,
    pub log: TenantId,
    pub fleet: SharedFleet,
}

#[async_trait]
impl Executor<FleetFollower> for FleetReader {
    async fn execute(&self, id: AgentId) -> Option<()> {
        match self.engine.entity::<Agent>(self.log, &id.to_string()).await {
            Ok(Some(agent)) => self.fleet.write().put(id, agent),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, agent = %id, "the agent could not be read"),
        }
        None
    }
}
