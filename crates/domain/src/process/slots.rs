//! What the dispatcher remembers of open tasks, agents, queues and requests that wait. Built from entities and events.

use crate::agent::{Agent, Liveness, Mode};
use crate::queue::Configured;
use crate::task::{Collision, Status, Task};
use kernel::Timestamp;
use kernel::id::{AgentId, TaskId};
use kernel::text::words;
use std::collections::{BTreeMap, BTreeSet};

/// An open task.
#[derive(Debug)]
pub(super) struct TaskSlot {
    /// Stream version that this reflects.
    pub version: u64,
    pub capability: String,
    /// The only agent that may do it.
    pub agent: Option<AgentId>,
    pub queue: String,
    pub priority: u8,
    pub task_hash: String,
    pub collision: Collision,
    pub not_before: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub keywords: Vec<String>,
    /// Whether an agent tried it before.
    pub is_retry: bool,
    /// Agents that handled the hash, here or in another task.
    pub handled: BTreeSet<AgentId>,
    /// Agents whose schema refuses the input.
    pub unfit: BTreeSet<AgentId>,
    pub state: Hold,
    /// Since when it could be given out.
    pub ready_since: Option<Timestamp>,
}

/// Who has a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nobody.
    Free,
    /// A claim was asked for.
    Claiming(AgentId),
    /// A claim is in force until the lease ends.
    Claimed { agent: AgentId, token: u64, lease: Timestamp },
}

impl TaskSlot {
    /// The slot of an open task; `None` when it is not open.
    pub fn of(task: &Task, version: u64, handled: &[AgentId], lease: Timestamp) -> Option<TaskSlot> {
        let state = match (task.status, task.claim) {
            (Status::Pending, _) => Hold::Free,
            (Status::Claimed, Some(claim)) => Hold::Claimed { agent: claim.agent_id, token: claim.token, lease },
            _ => return None,
        };
        Some(TaskSlot {
            version,
            capability: task.submitted.capability.clone(),
            agent: task.submitted.agent,
            queue: task.submitted.queue.clone(),
            priority: task.submitted.priority,
            task_hash: task.submitted.task_hash.clone(),
            collision: task.submitted.collision,
            not_before: task.not_before,
            deadline: task.submitted.deadline,
            keywords: task.submitted.keywords.clone(),
            is_retry: !task.handled.is_empty(),
            handled: task.handled.iter().chain(handled).copied().collect(),
            unfit: BTreeSet::new(),
            state,
            ready_since: None,
        })
    }

    /// Among which tasks it waits: those that need the same capability, or those for the same agent only.
    pub fn lane(&self) -> String {
        self.agent.map_or_else(|| self.capability.clone(), |agent| lane_of(&agent))
    }

    /// The agent that has it or is about to.
    pub fn holder(&self) -> Option<AgentId> {
        match self.state {
            Hold::Claiming(agent) | Hold::Claimed { agent, .. } => Some(agent),
            Hold::Free => None,
        }
    }

    /// Its place among ready tasks: urgent first, then oldest first (ids sort by time).
    pub fn rank(&self, id: TaskId) -> (u8, TaskId) {
        (u8::MAX - self.priority, id)
    }
}

/// Where tasks wait that only this agent may do: nothing that a capability can be called.
fn lane_of(agent: &AgentId) -> String {
    format!("\0{agent}")
}

/// A known agent.
#[derive(Debug)]
pub(super) struct AgentSlot {
    pub version: u64,
    pub name: String,
    pub agent_type: String,
    pub mode: Mode,
    pub is_suspended: bool,
    pub liveness: Liveness,
    pub max_concurrency: usize,
    pub cost_per_task: f64,
    /// Words by which it is found, per capability.
    pub capabilities: BTreeMap<String, BTreeSet<String>>,
    /// Tasks that it has or is about to have.
    pub holds: BTreeSet<TaskId>,
    pub last_claimed_at: Timestamp,
    /// 0 to 1, as it reported.
    pub context_fill: f64,
}

impl AgentSlot {
    pub fn of(agent: &Agent, version: u64) -> AgentSlot {
        let mut slot = AgentSlot {
            version: 0,
            name: String::new(),
            agent_type: String::new(),
            mode: agent.mode,
            is_suspended: false,
            liveness: agent.liveness,
            max_concurrency: 0,
            cost_per_task: 0.0,
            capabilities: BTreeMap::new(),
            holds: BTreeSet::new(),
            last_claimed_at: Timestamp(0),
            context_fill: 0.0,
        };
        slot.refresh(agent, version);
        slot
    }

    /// Takes over what the entity says and keeps what only the dispatcher knows.
    pub fn refresh(&mut self, agent: &Agent, version: u64) {
        let profile = &agent.profile;
        self.version = version;
        self.name.clone_from(&profile.name);
        self.agent_type.clone_from(&profile.agent_type);
        self.mode = agent.mode;
        self.is_suspended = agent.suspended.is_some();
        self.liveness = agent.liveness;
        self.max_concurrency = profile.max_concurrency as usize;
        self.cost_per_task = profile.cost_per_task;
        self.capabilities = profile
            .capabilities
            .iter()
            .map(|c| {
                let text = [c.domains.join(" "), c.tags.join(" "), c.description.clone(), profile.description.clone()].join(" ");
                (c.name.clone(), words(&text).into_iter().collect())
            })
            .collect();
    }

    /// Where tasks wait that it may get.
    pub fn lanes(&self, id: &AgentId) -> impl Iterator<Item = String> {
        self.capabilities.keys().cloned().chain([lane_of(id)])
    }

    pub fn free_places(&self) -> usize {
        self.max_concurrency.saturating_sub(self.holds.len())
    }
}

/// A claim request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub max: usize,
    pub until: Timestamp,
    /// It may not be answered with nothing before this position was seen.
    pub min_position: u64,
    /// Whether a claim is being made for it.
    pub is_busy: bool,
}

/// A queue in use.
#[derive(Debug)]
pub(super) struct QueueSlot {
    pub configured: Configured,
    pub in_work: u32,
    /// Tasks that may be given out now, when there is a rate.
    pub tokens: f64,
    pub refilled_at: Timestamp,
}

impl QueueSlot {
    pub fn new(name: &str) -> Self {
        QueueSlot { configured: Configured::unconfigured(name), in_work: 0, tokens: 1.0, refilled_at: Timestamp(0) }
    }

    /// Whether a task of it may be given out, and when to ask again if only its rate forbids it.
    pub fn admits(&mut self, now: Timestamp) -> Result<(), Option<Timestamp>> {
        if self.configured.is_paused || self.configured.max_concurrency.is_some_and(|max| self.in_work >= max) {
            return Err(None);
        }
        let Some(rate) = self.configured.rate_per_s.filter(|r| *r > 0.0) else { return Ok(()) };
        let gained = now.since_ms(self.refilled_at) as f64 / 1000.0 * rate;
        self.tokens = (self.tokens + gained).min(rate.max(1.0));
        self.refilled_at = now;
        match self.tokens >= 1.0 {
            true => Ok(()),
            false => Err(Some(now.plus_ms(((1.0 - self.tokens) / rate * 1000.0).ceil() as u64 + 1))),
        }
    }

    pub fn take(&mut self) {
        self.in_work += 1;
        if self.configured.rate_per_s.is_some() {
            self.tokens -= 1.0;
        }
    }
}
