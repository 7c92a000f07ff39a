//! Which agent gets which task: eligibility, scores, and the decision as it is kept.

use super::dispatch::{Dispatch, DispatchCommand, WaiterId};
use super::slots::{AgentSlot, Hold, TaskSlot};
use crate::agent::{Liveness, Mode};
use crate::queue::Weights;
use crate::task::{Candidate, Collision, Decision, TaskError};
use crate::view::stats;
use kernel::Timestamp;
use kernel::id::{AgentId, TaskId};
use std::collections::BTreeMap;

/// Ready tasks of one lane that one round looks at, so that blocked ones cannot stall everything.
const SCAN_TASKS_MAX: usize = 1_024;
/// Candidates that a decision keeps.
const CANDIDATES_MAX: usize = 20;

/// The claims decided for one request in one round.
type Granted = BTreeMap<(AgentId, WaiterId), Vec<(TaskId, Decision)>>;

impl Dispatch {
    /// Gives ready tasks of a lane to agents that ask.
    pub(super) fn match_lane(&mut self, lane: &str, now: Timestamp) {
        let mut granted = Granted::new();
        for id in self.next_tasks(lane, now) {
            if !self.is_anybody_asking(lane, &granted) {
                break;
            }
            if let Some((agent, waiter, decision)) = self.choose(id, lane, &granted, now) {
                self.unready(id);
                if let Some(slot) = self.tasks.get_mut(&id) {
                    slot.state = Hold::Claiming(agent);
                }
                self.occupy(id, agent);
                granted.entry((agent, waiter)).or_default().push((id, decision));
            }
        }
        for ((agent, waiter), tasks) in granted {
            if let Some(waiting) = self.waiters.get_mut(&agent).and_then(|w| w.get_mut(&waiter)) {
                waiting.is_busy = true;
            }
            let agent_type = self.agents.get(&agent).map(|a| a.agent_type.clone()).unwrap_or_default();
            self.commands.push(DispatchCommand::Claim { agent, agent_type, waiter, tasks });
        }
    }

    /// The first ready tasks over all queues of the lane that give out tasks now, most urgent first.
    fn next_tasks(&mut self, lane: &str, now: Timestamp) -> Vec<TaskId> {
        let names: Vec<String> = self.ready.get(lane).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        let open: Vec<String> = names.into_iter().filter(|name| self.is_open(name, now)).collect();
        let queues = self.ready.get(lane).into_iter().flat_map(|queues| open.iter().filter_map(|name| queues.get(name)));
        let mut ranks: Vec<(u8, TaskId)> = queues.flat_map(|ranks| ranks.iter().take(SCAN_TASKS_MAX).copied()).collect();
        ranks.sort_unstable();
        ranks.into_iter().take(SCAN_TASKS_MAX).map(|(_, id)| id).collect()
    }

    /// Whether a queue gives out a task now; if only its rate forbids it, matching is asked for again in time.
    fn is_open(&mut self, queue: &str, now: Timestamp) -> bool {
        match self.queues.entry(queue.to_owned()).or_insert_with(|| super::slots::QueueSlot::new(queue)).admits(now) {
            Ok(()) => true,
            Err(again) => {
                again.into_iter().for_each(|at| self.match_at(at));
                false
            }
        }
    }

    fn is_anybody_asking(&self, lane: &str, granted: &Granted) -> bool {
        let agents = self.by_lane.get(lane).into_iter().flatten();
        agents.into_iter().any(|agent| self.open_waiter(agent, granted).is_some())
    }

    /// A request of this agent that can take one more task.
    fn open_waiter(&self, agent: &AgentId, granted: &Granted) -> Option<WaiterId> {
        let slot =
            self.agents.get(agent).filter(|slot| slot.mode == Mode::Active && !slot.is_suspended && slot.free_places() > 0)?;
        let taken = |waiter: &WaiterId| granted.get(&(*agent, *waiter)).map_or(0, Vec::len);
        let waiters = self.waiters.get(agent).filter(|_| slot.free_places() > 0)?;
        waiters.iter().find(|(id, w)| !w.is_busy && taken(id) < w.max).map(|(id, _)| *id)
    }

    fn choose(&mut self, id: TaskId, lane: &str, granted: &Granted, now: Timestamp) -> Option<(AgentId, WaiterId, Decision)> {
        let queue = self.tasks.get(&id)?.queue.clone();
        if !self.is_open(&queue, now) {
            return None;
        }
        let slot = self.tasks.get(&id)?;
        let weights = self.queues.get(&queue)?.configured.weights;
        let mut fresh = Vec::new();
        let mut repeated = Vec::new();
        let mut excluded: BTreeMap<String, u64> = BTreeMap::new();
        let mut is_fresh_one_expected = false;
        for agent in self.by_lane.get(lane).into_iter().flatten() {
            let Some(known) = self.agents.get(agent) else { continue };
            let is_repeat = slot.handled.contains(agent) || self.is_at_same_work(slot, id, agent);
            let reason = match self.open_waiter(agent, granted) {
                _ if slot.unfit.contains(agent) => "INPUT_REFUSED_BY_SCHEMA",
                Some(waiter) if is_repeat => {
                    repeated.push((*agent, waiter));
                    "TASK_COLLISION"
                }
                Some(waiter) => {
                    fresh.push((*agent, waiter));
                    continue;
                }
                None if is_repeat => "TASK_COLLISION",
                None => absent(known),
            };
            is_fresh_one_expected |= matches!(reason, "BUSY" | "NOT_ASKING");
            *excluded.entry(reason.to_owned()).or_default() += 1;
        }
        let mut warnings = vec![];
        let asking = match (fresh.is_empty(), slot.collision) {
            (false, _) => fresh,
            (true, Collision::Lru) if !is_fresh_one_expected || self.is_out_of_patience(slot, now) => {
                warnings.push("TASK_COLLISION: every agent that could be asked has handled this task before; the least recently used one does it again.".to_owned());
                self.least_recently_used(&repeated)
            }
            _ => return None,
        };
        if let Some(repeats) = excluded.get_mut("TASK_COLLISION").filter(|_| !warnings.is_empty()) {
            *repeats -= asking.len() as u64;
        }
        let candidates = self.scored(slot, &weights, &asking);
        let outscored = asking.len().saturating_sub(candidates.len()) as u64;
        if outscored > 0 {
            excluded.insert("LOWER_SCORE".to_owned(), outscored);
        }
        excluded.retain(|_, count| *count > 0);
        let best = candidates.first()?.agent_id;
        let waiter = asking.iter().find(|(agent, _)| *agent == best)?.1;
        Some((best, waiter, Decision { weights, candidates, excluded, warnings }))
    }

    fn least_recently_used(&self, repeated: &[(AgentId, WaiterId)]) -> Vec<(AgentId, WaiterId)> {
        let used = |agent: &AgentId| self.agents.get(agent).map(|a| a.last_claimed_at);
        repeated.iter().min_by_key(|(agent, _)| (used(agent), *agent)).copied().into_iter().collect()
    }

    fn is_out_of_patience(&self, slot: &TaskSlot, now: Timestamp) -> bool {
        slot.ready_since.is_some_and(|since| now.since_ms(since) >= self.settings.lru_patience_ms)
    }

    /// Whether the agent works on another task with the same hash now.
    fn is_at_same_work(&self, slot: &TaskSlot, id: TaskId, agent: &AgentId) -> bool {
        let same = self.by_hash.get(&slot.task_hash).into_iter().flatten();
        same.filter(|other| **other != id).any(|other| self.tasks.get(other).and_then(TaskSlot::holder) == Some(*agent))
    }

    fn scored(&self, slot: &TaskSlot, weights: &Weights, asking: &[(AgentId, WaiterId)]) -> Vec<Candidate> {
        let known = || asking.iter().filter_map(|(id, _)| Some((*id, self.agents.get(id)?)));
        let cheapest = known().map(|(_, a)| a.cost_per_task).fold(f64::INFINITY, f64::min);
        let mut found: Vec<(Candidate, Timestamp)> = known()
            .map(|(id, agent)| {
                let record = self.stats.get(&stats::key(&id, &slot.capability)).copied().unwrap_or_default();
                let parts = [specialisation(slot, agent), record.success(), freedom(agent), thrift(agent, cheapest)];
                let score = weighted(weights, &parts);
                (Candidate { agent_id: id, name: agent.name.clone(), score, parts }, agent.last_claimed_at)
            })
            .collect();
        found.sort_by(|(a, a_used), (b, b_used)| {
            b.score.total_cmp(&a.score).then(a_used.cmp(b_used)).then(a.agent_id.cmp(&b.agent_id))
        });
        found.into_iter().take(CANDIDATES_MAX).map(|(candidate, _)| candidate).collect()
    }

    /// Ends the retry of a strict task when every agent that has the capability has handled its hash. A task that nobody
    /// tried yet waits: another agent may come.
    pub(super) fn give_up_if_nobody_left(&mut self, id: TaskId, now: Timestamp) {
        let Some(slot) = self.tasks.get(&id) else { return };
        if let Some(gone) = slot.agent.filter(|only| slot.is_retry && !self.agents.contains_key(only)) {
            return self.give_up_orphan(id, gone, now);
        }
        let Some(agents) = self.by_lane.get(&slot.lane()).filter(|a| !a.is_empty()) else { return };
        let is_stuck = slot.is_retry && slot.collision == Collision::Strict && slot.state == Hold::Free;
        if is_stuck && agents.iter().all(|a| slot.handled.contains(a)) {
            let message = format!("Every agent with the capability '{}' has handled this task before.", slot.capability);
            self.commands.push(DispatchCommand::GiveUp(id, TaskError { code: "NO_ELIGIBLE_AGENT".into(), message }));
            self.give_up_again(id, now);
        }
    }

    /// Ends a task that only an agent may do which is not there any more.
    pub(super) fn give_up_orphan(&mut self, id: TaskId, agent: AgentId, now: Timestamp) {
        if self.tasks.get(&id).is_some_and(|slot| slot.state == Hold::Free) {
            let message = format!("The task is for agent {agent} only, which was removed.");
            self.commands.push(DispatchCommand::GiveUp(id, TaskError { code: "AGENT_GONE".into(), message }));
            self.give_up_again(id, now);
        }
    }
}

/// Why an agent that may do the task is not asked.
fn absent(agent: &AgentSlot) -> &'static str {
    match (agent.mode, agent.liveness) {
        _ if agent.is_suspended => "SUSPENDED",
        (Mode::Paused, _) => "PAUSED",
        (Mode::Draining, _) => "DRAINING",
        (_, Liveness::Down | Liveness::Registered) => "DOWN",
        _ if agent.free_places() == 0 => "BUSY",
        _ => "NOT_ASKING",
    }
}

/// How well the agent's words meet the task's; agents with few capabilities count as a little more specialised.
fn specialisation(slot: &TaskSlot, agent: &AgentSlot) -> f64 {
    let focus = 1.0 / (agent.capabilities.len().max(1) as f64).sqrt();
    let Some(words) = agent.capabilities.get(&slot.capability).filter(|w| !w.is_empty() && !slot.keywords.is_empty()) else {
        return 0.3 * focus;
    };
    let met = slot.keywords.iter().filter(|w| words.contains(*w)).count() as f64;
    // Meeting a few words well is enough: a long description must not punish a fitting agent.
    let wanted = slot.keywords.len().min(words.len()) as f64;
    0.7 * (met / wanted).min(1.0) + 0.3 * focus
}

fn freedom(agent: &AgentSlot) -> f64 {
    let running = agent.holds.len() as f64 / agent.max_concurrency.max(1) as f64;
    let trouble = if agent.liveness == Liveness::Degraded { 0.5 } else { 0.0 };
    1.0 - running.max(agent.context_fill).max(trouble).clamp(0.0, 1.0)
}

fn thrift(agent: &AgentSlot, cheapest: f64) -> f64 {
    match agent.cost_per_task > 0.0 {
        true => (cheapest / agent.cost_per_task).clamp(0.0, 1.0),
        false => 1.0,
    }
}

fn weighted(weights: &Weights, parts: &[f64; 4]) -> f64 {
    let by = [weights.specialisation, weights.success, weights.load, weights.cost];
    let total: f64 = by.iter().sum();
    let sum: f64 = by.iter().zip(parts).map(|(w, p)| w * p).sum();
    let score = if total > 0.0 { sum / total } else { 0.0 };
    (score * 10_000.0).round() / 10_000.0
}
