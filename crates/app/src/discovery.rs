//! Finding agents: by capability, tag, health and free text, ranked, with the reasons.

use crate::app::App;
use crate::fleet::Fleet;
use crate::{Answer, Caller};
use domain::agent::{Agent, Liveness, Mode};
use domain::view::stats::AgentStats;
use engine::Handled;
use kernel::id::AgentId;
use kernel::text::words;
use std::collections::{BTreeMap, BTreeSet};

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryQuery {
    /// An agent that can do this.
    pub capability: Option<String>,
    /// Free text.
    pub q: Option<String>,
    /// A tag or domain.
    pub tag: Option<String>,
    /// Only those that are there and take work.
    pub healthy: bool,
    /// How many at most.
    pub limit: usize,
}

/// An agent that was found.
pub struct Discovered {
    /// The agent.
    pub agent: Handled<Agent>,
    /// 0 to 1.
    pub score: f64,
    /// Why it stands where it stands.
    pub reasons: Vec<String>,
    /// Its record with the capability asked for.
    pub record: Option<AgentStats>,
}

impl App {
    /// Agents that fit, best first, and how many there are.
    pub fn discover(&self, caller: &Caller, query: &DiscoveryQuery) -> Answer<(Vec<Discovered>, usize)> {
        let fleet = self.fleet(caller)?;
        let fleet = fleet.read();
        let wanted = query.q.as_deref().map(words).unwrap_or_default();
        let found = candidates(&fleet, query, &wanted);
        let mut scored: Vec<(f64, AgentId)> = found
            .into_iter()
            .filter_map(|(id, hits)| {
                let agent = fleet.get(&id)?;
                (!query.healthy || is_healthy(&agent.state)).then(|| (score(&fleet, &id, agent, query, hits, wanted.len()), id))
            })
            .collect();
        let total = scored.len();
        scored.sort_by(|(a, a_id), (b, b_id)| b.total_cmp(a).then(a_id.cmp(b_id)));
        let best = scored.into_iter().take(query.limit);
        let shown = best.filter_map(|(score, id)| {
            let agent = fleet.get(&id)?.clone();
            let record = query.capability.as_deref().map(|capability| fleet.record(&id, capability));
            let reasons = reasons(&agent.state, query, &wanted, record.as_ref());
            Some(Discovered { agent, score, reasons, record })
        });
        Ok((shown.collect(), total))
    }
}

/// Agents that meet every condition, with how many of the words they meet.
fn candidates(fleet: &Fleet, query: &DiscoveryQuery, wanted: &[String]) -> BTreeMap<AgentId, usize> {
    let nobody = BTreeSet::new();
    let mut narrow: Vec<&BTreeSet<AgentId>> = vec![];
    if let Some(capability) = &query.capability {
        narrow.push(fleet.with_capability(capability).unwrap_or(&nobody));
    }
    if let Some(tag) = &query.tag {
        narrow.push(fleet.with_tag(tag).unwrap_or(&nobody));
    }
    let fits = |id: &AgentId| narrow.iter().all(|set| set.contains(id));
    if query.q.is_none() {
        return match narrow.first() {
            Some(first) => first.iter().filter(|id| fits(id)).map(|id| (*id, 0)).collect(),
            None => fleet.all().map(|(id, _)| (*id, 0)).collect(),
        };
    }
    let mut hits = BTreeMap::new();
    for word in wanted {
        for id in fleet.with_word(word).into_iter().flatten().filter(|id| fits(id)) {
            *hits.entry(*id).or_default() += 1;
        }
    }
    hits
}

fn is_healthy(agent: &Agent) -> bool {
    agent.mode == Mode::Active && matches!(agent.liveness, Liveness::Up | Liveness::Degraded)
}

/// Half for fit, and the rest for health, success and speed.
fn score(fleet: &Fleet, id: &AgentId, agent: &Handled<Agent>, query: &DiscoveryQuery, hits: usize, wanted: usize) -> f64 {
    let fit = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
    let health = health(&agent.state);
    let record = query.capability.as_deref().map(|c| fleet.record(id, c)).unwrap_or_default();
    let speed = record.mean_ms().map_or(0.5, |ms| 1.0 / (1.0 + ms / 10_000.0));
    let score = 0.5 * fit + 0.2 * health + 0.2 * record.success() + 0.1 * speed;
    (score * 10_000.0).round() / 10_000.0
}

fn health(agent: &Agent) -> f64 {
    match (agent.mode, agent.liveness) {
        (Mode::Active, Liveness::Up) => 1.0,
        (Mode::Active, Liveness::Degraded) => 0.5,
        (Mode::Active, Liveness::Registered) => 0.25,
        _ => 0.0,
    }
}

fn reasons(agent: &Agent, query: &DiscoveryQuery, wanted: &[String], record: Option<&AgentStats>) -> Vec<String> {
    let mut reasons = vec![];
    if let Some(capability) = &query.capability {
        let version = agent.capability(capability).map(|c| c.version.as_str()).unwrap_or_default();
        reasons.push(format!("has the capability '{capability}' in version {version}"));
    }
    if let Some(tag) = &query.tag {
        reasons.push(format!("is tagged '{tag}'"));
    }
    if !wanted.is_empty() {
        let own = crate::fleet::words_of(agent);
        let met: Vec<&str> = wanted.iter().filter(|w| own.contains(w)).map(String::as_str).collect();
        reasons.push(format!("meets {} of {} words: {}", met.len(), wanted.len(), met.join(", ")));
    }
    reasons.push(format!("is {}", agent.status()));
    if let Some(record) = record {
        let tried = record.completed + record.failed + record.expired;
        match record.mean_ms() {
            Some(ms) => {
                reasons.push(format!("succeeded in {} of {tried} attempts, {ms:.0} ms each on average", record.completed))
            }
            None if tried > 0 => reasons.push(format!("succeeded in none of {tried} attempts")),
            None => reasons.push("has no record with it yet".to_owned()),
        }
    }
    reasons
}
