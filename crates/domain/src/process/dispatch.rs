//! The dispatcher: gives ready tasks to agents that ask, ends claims whose time is over, and gives up what nobody may do.
//!
//! It owns no truth. Everything here is rebuilt from the open tasks and the agents at start, and kept up to date by
//! events; a claim exists only once its event is in the log. Leases, requests that wait and reported load are soft.

use super::slots::{AgentSlot, Hold, QueueSlot, TaskSlot, Waiter};
use crate::agent::Agent;
use crate::queue::Configured;
use crate::task::{Collision, Decision, Task, TaskError, TaskEvent};
use crate::view::stats::AgentStats;
use kernel::id::{AgentId, TaskId};
use kernel::{Decider, EventSet, Process, Recorded, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// A request that waits, numbered by whoever made it.
pub type WaiterId = u64;

/// What can be set.
#[derive(Clone, Copy, Debug)]
pub struct DispatchSettings {
    /// How long a claim holds without a heartbeat.
    pub claim_ttl_ms: u64,
    /// How long a task with `lru` waits for an agent that has not done it before.
    pub lru_patience_ms: u64,
}

/// What the dispatcher hears.
#[derive(Debug)]
pub enum DispatchSignal {
    /// The entity that was asked for, and who handled its hash in other tasks.
    TaskLoaded(TaskId, Option<LoadedTask>),
    /// The entity that was asked for.
    AgentLoaded(AgentId, u64, Box<Agent>),
    /// An agent asks for work.
    Ask(Ask),
    /// Nobody waits for the answer to a request any more.
    Left(AgentId, WaiterId),
    /// How a claim went.
    ClaimDone(ClaimDone),
    /// Claims could not be handed over: the request was gone.
    Undelivered(AgentId, Vec<TaskId>),
    /// The holder gave a sign of life.
    Renew(TaskId, u64),
    /// An agent reported how full it is, 0 to 1.
    Reported(AgentId, f64),
    /// Give out nothing more.
    Drain,
}

/// An open task as it was read.
#[derive(Debug)]
pub struct LoadedTask {
    /// Stream version.
    pub version: u64,
    /// The entity.
    pub task: Box<Task>,
    /// Agents that handled its hash in any task.
    pub handled: Vec<AgentId>,
}

/// An agent asks for work.
#[derive(Debug)]
pub struct Ask {
    /// The request.
    pub waiter: WaiterId,
    /// Who.
    pub agent: AgentId,
    /// How many tasks at most.
    pub max: usize,
    /// How long it waits.
    pub until: Timestamp,
    /// What was in the log when it asked: everything up to here is considered before it goes away empty.
    pub min_position: u64,
}

/// How a claim went.
#[derive(Debug)]
pub struct ClaimDone {
    /// For whom.
    pub agent: AgentId,
    /// For which request.
    pub waiter: WaiterId,
    /// Each task and what became of it.
    pub results: Vec<(TaskId, ClaimResult)>,
    /// Whether the request got its answer.
    pub is_delivered: bool,
}

/// What became of one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimResult {
    /// It is in the log with this token.
    Claimed(u64),
    /// The agent's schema refuses the task's input.
    Unfit,
    /// The task was not to be had.
    Lost,
}

/// What the dispatcher wants done.
#[derive(Debug, PartialEq)]
pub enum DispatchCommand {
    /// Read a task and who handled its hash.
    LoadTask(TaskId),
    /// Read an agent.
    LoadAgent(AgentId),
    /// Append claims and answer the request with them.
    Claim {
        /// For whom.
        agent: AgentId,
        /// Its type.
        agent_type: String,
        /// The request.
        waiter: WaiterId,
        /// What, and why this agent.
        tasks: Vec<(TaskId, Decision)>,
    },
    /// Answer the request with claims that exist already, or with nothing.
    Deliver {
        /// For whom.
        agent: AgentId,
        /// The request.
        waiter: WaiterId,
        /// What.
        tasks: Vec<TaskId>,
    },
    /// End a claim.
    Expire(TaskId, u64),
    /// Nobody is left who may do it.
    GiveUp(TaskId, TaskError),
    /// Its deadline passed.
    MissDeadline(TaskId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Ready(TaskId),
    Deadline(TaskId),
    Lease(TaskId),
    GiveUp(TaskId),
    Waiter(AgentId, WaiterId),
    Match,
}

/// The dispatcher of one log.
pub struct Dispatch {
    pub(super) settings: DispatchSettings,
    pub(super) position: u64,
    pub(super) agents: BTreeMap<AgentId, AgentSlot>,
    pub(super) by_lane: BTreeMap<String, BTreeSet<AgentId>>,
    pub(super) tasks: BTreeMap<TaskId, TaskSlot>,
    /// Ready tasks by lane, then queue, in the order in which they are given out.
    pub(super) ready: BTreeMap<String, BTreeMap<String, BTreeSet<(u8, TaskId)>>>,
    pub(super) by_hash: BTreeMap<String, BTreeSet<TaskId>>,
    pub(super) queues: BTreeMap<String, QueueSlot>,
    pub(super) waiters: BTreeMap<AgentId, BTreeMap<WaiterId, Waiter>>,
    pub(super) stats: BTreeMap<String, AgentStats>,
    /// Capabilities whose tasks or agents changed since the last matching.
    pub(super) dirty: BTreeSet<String>,
    pub(super) commands: Vec<DispatchCommand>,
    timers: BTreeSet<(Timestamp, Timer)>,
    undelivered: BTreeMap<AgentId, BTreeSet<TaskId>>,
    /// Who handled which hash while tasks were being read.
    handled_meanwhile: Vec<(String, AgentId)>,
    /// Tasks being read, with the latest version seen in events meanwhile.
    loading: BTreeMap<TaskId, u64>,
    is_draining: bool,
}

impl Dispatch {
    /// A dispatcher that has seen the log up to `position`, with the agents' records as the statistics view has them.
    pub fn new(settings: DispatchSettings, position: u64, stats: BTreeMap<String, AgentStats>) -> Self {
        Dispatch {
            settings,
            position,
            stats,
            agents: BTreeMap::new(),
            by_lane: BTreeMap::new(),
            tasks: BTreeMap::new(),
            ready: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            queues: BTreeMap::new(),
            waiters: BTreeMap::new(),
            dirty: BTreeSet::new(),
            commands: Vec::new(),
            timers: BTreeSet::new(),
            undelivered: BTreeMap::new(),
            handled_meanwhile: Vec::new(),
            loading: BTreeMap::new(),
            is_draining: false,
        }
    }

    /// Takes in a queue's settings.
    pub fn configure(&mut self, configured: Configured) {
        let slot = self.queues.entry(configured.name.clone()).or_insert_with(|| QueueSlot::new(&configured.name));
        slot.configured = configured;
        self.dirty.extend(self.ready.keys().cloned());
    }

    /// Takes in an agent; an older version than the known one changes nothing.
    pub fn put_agent(&mut self, id: AgentId, version: u64, agent: &Agent, now: Timestamp) {
        if self.agents.get(&id).is_some_and(|slot| slot.version >= version) {
            return;
        }
        let known: Vec<String> = self.agents.get(&id).map(|s| s.lanes(&id).collect()).unwrap_or_default();
        for lane in &known {
            if let Some(agents) = self.by_lane.get_mut(lane) {
                agents.remove(&id);
            }
        }
        self.dirty.extend(known);
        if agent.is_deleted {
            self.agents.remove(&id);
            self.orphan(id, now);
            self.check_left(now);
            return;
        }
        let slot = self.agents.entry(id).or_insert_with(|| AgentSlot::of(agent, version));
        slot.refresh(agent, version);
        for lane in slot.lanes(&id) {
            self.by_lane.entry(lane.clone()).or_default().insert(id);
            self.dirty.insert(lane);
        }
        if agent.suspended.is_some() {
            self.end_claims(id, now);
        }
        // Its schemas may be others now.
        self.tasks.values_mut().filter(|slot| !slot.unfit.is_empty()).for_each(|slot| slot.unfit.retain(|agent| *agent != id));
    }

    /// Tasks that wait for an agent which is removed wait for nobody.
    fn orphan(&mut self, agent: AgentId, now: Timestamp) {
        let of_it = |slot: &TaskSlot| slot.agent == Some(agent) && slot.state == Hold::Free;
        let orphans: Vec<TaskId> = self.tasks.iter().filter(|(_, slot)| of_it(slot)).map(|(id, _)| *id).collect();
        orphans.into_iter().for_each(|id| self.give_up_orphan(id, agent, now));
    }

    /// Whoever is suspended holds nothing any more: its claims end now instead of at the end of their time.
    fn end_claims(&mut self, id: AgentId, now: Timestamp) {
        for (task, slot) in &mut self.tasks {
            if let Hold::Claimed { agent, lease, .. } = &mut slot.state
                && *agent == id
            {
                *lease = now;
                self.timers.insert((now, Timer::Lease(*task)));
            }
        }
    }

    /// Takes in an open task; every claim in force gets one full time to live.
    pub fn put_task(&mut self, id: TaskId, loaded: LoadedTask, now: Timestamp) {
        self.remove_task(id);
        let lease = now.plus_ms(self.settings.claim_ttl_ms);
        let Some(slot) = TaskSlot::of(&loaded.task, loaded.version, &loaded.handled, lease) else { return };
        self.by_hash.entry(slot.task_hash.clone()).or_default().insert(id);
        if let Some(deadline) = slot.deadline {
            self.timers.insert((deadline, Timer::Deadline(id)));
        }
        let (state, not_before) = (slot.state, slot.not_before);
        self.tasks.insert(id, slot);
        match state {
            Hold::Claimed { agent, lease, .. } => {
                self.occupy(id, agent);
                self.timers.insert((lease, Timer::Lease(id)));
                self.undelivered.entry(agent).or_default().insert(id);
            }
            _ => self.make_ready(id, not_before, now),
        }
    }

    /// How many tasks wait, and how many are in work.
    pub fn depth(&self) -> (usize, usize) {
        let in_work = self.tasks.values().filter(|t| matches!(t.state, Hold::Claimed { .. })).count();
        (self.tasks.len() - in_work, in_work)
    }

    fn make_ready(&mut self, id: TaskId, not_before: Option<Timestamp>, now: Timestamp) {
        if let Some(later) = not_before.filter(|t| *t > now) {
            self.timers.insert((later, Timer::Ready(id)));
            return;
        }
        let Some(slot) = self.tasks.get_mut(&id).filter(|slot| slot.state == Hold::Free) else { return };
        slot.ready_since.get_or_insert(now);
        let (lane, queue, rank) = (slot.lane(), slot.queue.clone(), slot.rank(id));
        self.dirty.insert(lane.clone());
        self.ready.entry(lane).or_default().entry(queue).or_default().insert(rank);
        // The only agent that may do it may have been removed meanwhile: then it is the end of the task.
        let only = self.tasks.get(&id).and_then(|slot| slot.agent);
        self.commands.extend(only.filter(|only| !self.agents.contains_key(only)).map(DispatchCommand::LoadAgent));
        self.wait_for_a_fresh_agent(id);
        self.give_up_if_nobody_left(id, now);
    }

    /// A ready task that some agent has handled is looked at again when its patience is over.
    fn wait_for_a_fresh_agent(&mut self, id: TaskId) {
        let Some(slot) = self.tasks.get(&id).filter(|slot| slot.collision == Collision::Lru && !slot.handled.is_empty()) else {
            return;
        };
        if let Some(since) = slot.ready_since {
            self.timers.insert((since.plus_ms(self.settings.lru_patience_ms), Timer::Match));
        }
    }

    pub(super) fn unready(&mut self, id: TaskId) {
        let Some(slot) = self.tasks.get(&id) else { return };
        let lane = slot.lane();
        let Some(queues) = self.ready.get_mut(&lane) else { return };
        if let Some(ranks) = queues.get_mut(&slot.queue) {
            ranks.remove(&slot.rank(id));
            if ranks.is_empty() {
                queues.remove(&slot.queue);
            }
        }
        if queues.is_empty() {
            self.ready.remove(&lane);
        }
    }

    /// A task has, or is about to have, this agent.
    pub(super) fn occupy(&mut self, id: TaskId, agent: AgentId) {
        let Some(slot) = self.tasks.get(&id) else { return };
        self.queues.entry(slot.queue.clone()).or_insert_with(|| QueueSlot::new(&slot.queue)).take();
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.holds.insert(id);
        }
    }

    /// The task is without an agent again.
    fn vacate(&mut self, id: TaskId) {
        let Some(slot) = self.tasks.get(&id) else { return };
        let Some(holder) = slot.holder() else { return };
        if let Hold::Claimed { lease, .. } = slot.state {
            self.timers.remove(&(lease, Timer::Lease(id)));
        }
        if let Some(queue) = self.queues.get_mut(&slot.queue) {
            queue.in_work = queue.in_work.saturating_sub(1);
            if queue.configured.max_concurrency.is_some() {
                self.dirty.extend(self.ready.keys().cloned());
            }
        }
        if let Some(agent) = self.agents.get_mut(&holder) {
            agent.holds.remove(&id);
            self.dirty.extend(agent.lanes(&holder));
        }
        if let Some(tasks) = self.undelivered.get_mut(&holder) {
            tasks.remove(&id);
        }
        if let Some(slot) = self.tasks.get_mut(&id) {
            slot.state = Hold::Free;
        }
    }

    fn remove_task(&mut self, id: TaskId) {
        self.vacate(id);
        self.unready(id);
        let Some(slot) = self.tasks.remove(&id) else { return };
        if let Some(deadline) = slot.deadline {
            self.timers.remove(&(deadline, Timer::Deadline(id)));
        }
        if let Some(tasks) = self.by_hash.get_mut(&slot.task_hash) {
            tasks.remove(&id);
            if tasks.is_empty() {
                self.by_hash.remove(&slot.task_hash);
            }
        }
    }

    fn set_claimed(&mut self, id: TaskId, agent: AgentId, token: u64, now: Timestamp) {
        let lease = now.plus_ms(self.settings.claim_ttl_ms);
        let Some(slot) = self.tasks.get(&id) else { return };
        if matches!(slot.state, Hold::Claimed { token: known, .. } if known >= token) || slot.version > token {
            return;
        }
        if slot.holder() != Some(agent) {
            // The answer to the claim was lost, so nobody was told.
            self.vacate(id);
            self.unready(id);
            self.occupy(id, agent);
            self.undelivered.entry(agent).or_default().insert(id);
        }
        if let Some(slot) = self.tasks.get_mut(&id) {
            slot.version = token;
            slot.state = Hold::Claimed { agent, token, lease };
            self.timers.insert((lease, Timer::Lease(id)));
        }
        if let Some(agent) = self.agents.get_mut(&agent) {
            agent.last_claimed_at = now;
        }
    }

    fn renew(&mut self, id: TaskId, shown: u64, now: Timestamp) {
        let new_lease = now.plus_ms(self.settings.claim_ttl_ms);
        let Some(slot) = self.tasks.get_mut(&id) else { return };
        if let Hold::Claimed { agent, token, lease } = slot.state
            && token == shown
        {
            slot.state = Hold::Claimed { agent, token, lease: new_lease };
            self.timers.remove(&(lease, Timer::Lease(id)));
            self.timers.insert((new_lease, Timer::Lease(id)));
            if let Some(tasks) = self.undelivered.get_mut(&agent) {
                tasks.remove(&id);
            }
        }
    }

    /// Everybody who has this hash open learns that `agent` handled it.
    fn note_handled(&mut self, task_hash: &str, agent: AgentId, now: Timestamp) {
        let same: Vec<TaskId> = self.by_hash.get(task_hash).into_iter().flatten().copied().collect();
        if !self.loading.is_empty() {
            self.handled_meanwhile.push((task_hash.to_owned(), agent));
        }
        for id in same {
            if let Some(slot) = self.tasks.get_mut(&id) {
                slot.handled.insert(agent);
            }
            self.wait_for_a_fresh_agent(id);
            self.give_up_if_nobody_left(id, now);
        }
    }

    fn check_left(&mut self, now: Timestamp) {
        let open: Vec<TaskId> = self.tasks.keys().copied().collect();
        for id in open {
            self.give_up_if_nobody_left(id, now);
        }
    }

    fn task_event(&mut self, id: TaskId, event: &Recorded, now: Timestamp) {
        let version = event.header.version;
        if let Some(seen) = self.loading.get_mut(&id) {
            *seen = version.max(*seen);
            return;
        }
        let Ok(Some(data)) = TaskEvent::read(event) else { return };
        if matches!(data, TaskEvent::Submitted(_) | TaskEvent::Retried(_)) {
            self.load(id, version);
            return;
        }
        self.count(&data);
        if self.tasks.get(&id).is_none_or(|slot| slot.version >= version) {
            return;
        }
        match &data {
            TaskEvent::Claimed(c) => self.set_claimed(id, c.agent_id, version, now),
            TaskEvent::Released(_) => self.free_again(id, None, now),
            TaskEvent::ClaimExpired(e) => {
                self.tried(id);
                self.free_again(id, None, now);
                self.note_handled(&e.task_hash, e.agent_id, now);
            }
            TaskEvent::AttemptFailed(f) => {
                self.tried(id);
                self.vacate(id);
                self.note_handled(&f.task_hash, f.agent_id, now);
            }
            TaskEvent::RetryScheduled(r) => self.free_again(id, Some(r.not_before), now),
            TaskEvent::Completed(c) => {
                self.remove_task(id);
                self.note_handled(&c.task_hash, c.agent_id, now);
            }
            TaskEvent::Failed(_) | TaskEvent::Died(_) | TaskEvent::Cancelled(_) => self.remove_task(id),
            _ => {}
        }
        if let Some(slot) = self.tasks.get_mut(&id) {
            slot.version = version.max(slot.version);
        }
    }

    fn tried(&mut self, id: TaskId) {
        if let Some(slot) = self.tasks.get_mut(&id) {
            slot.is_retry = true;
        }
    }

    fn count(&mut self, data: &TaskEvent) {
        if let Some((key, change)) = crate::view::stats::change(data) {
            self.stats.entry(key).or_default().add(&change);
        }
    }

    fn free_again(&mut self, id: TaskId, not_before: Option<Timestamp>, now: Timestamp) {
        self.vacate(id);
        if let Some(slot) = self.tasks.get_mut(&id) {
            slot.state = Hold::Free;
            slot.ready_since = None;
            slot.not_before = not_before;
        }
        self.make_ready(id, not_before, now);
    }

    fn load(&mut self, id: TaskId, version: u64) {
        self.loading.insert(id, version);
        self.commands.push(DispatchCommand::LoadTask(id));
    }

    fn loaded(&mut self, id: TaskId, loaded: Option<LoadedTask>, now: Timestamp) {
        let Some(seen) = self.loading.remove(&id) else { return };
        match loaded {
            // An event overtook the reading: read again.
            Some(task) if task.version < seen => self.load(id, seen),
            Some(mut task) => {
                // What happened while it was read is not in what was read.
                let hash = &task.task.submitted.task_hash;
                task.handled.extend(self.handled_meanwhile.iter().filter(|(h, _)| h == hash).map(|(_, agent)| *agent));
                self.put_task(id, task, now);
            }
            None => self.remove_task(id),
        }
        if self.loading.is_empty() {
            self.handled_meanwhile.clear();
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.timers.insert((ask.until, Timer::Waiter(ask.agent, ask.waiter)));
        if let Some(known) = self.waiters.get_mut(&ask.agent).and_then(|waiters| waiters.get_mut(&ask.waiter)) {
            // It says again that it waits.
            self.timers.remove(&(known.until, Timer::Waiter(ask.agent, ask.waiter)));
            known.until = ask.until;
            self.timers.insert((ask.until, Timer::Waiter(ask.agent, ask.waiter)));
            return;
        }
        let waiter = Waiter { max: ask.max, until: ask.until, min_position: ask.min_position, is_busy: false };
        self.waiters.entry(ask.agent).or_default().insert(ask.waiter, waiter);
        if let Some(agent) = self.agents.get(&ask.agent) {
            self.dirty.extend(agent.lanes(&ask.agent));
        }
        self.deliver_undelivered(ask.agent, ask.waiter);
    }

    fn deliver_undelivered(&mut self, agent: AgentId, waiter: WaiterId) {
        let max = self.waiters.get(&agent).and_then(|w| w.get(&waiter)).map_or(0, |w| w.max);
        let Some(waiting) = self.undelivered.get_mut(&agent).filter(|t| !t.is_empty() && max > 0) else { return };
        let tasks: Vec<TaskId> = waiting.iter().take(max).copied().collect();
        waiting.retain(|id| !tasks.contains(id));
        self.drop_waiter(agent, waiter);
        self.commands.push(DispatchCommand::Deliver { agent, waiter, tasks });
    }

    fn drop_waiter(&mut self, agent: AgentId, waiter: WaiterId) {
        if let Some(waiters) = self.waiters.get_mut(&agent) {
            if let Some(gone) = waiters.remove(&waiter) {
                self.timers.remove(&(gone.until, Timer::Waiter(agent, waiter)));
            }
            if waiters.is_empty() {
                self.waiters.remove(&agent);
            }
        }
    }

    fn claim_done(&mut self, done: ClaimDone, now: Timestamp) {
        let mut claimed = Vec::new();
        let mut unheard = Vec::new();
        for (id, result) in &done.results {
            match result {
                ClaimResult::Claimed(token) => {
                    self.set_claimed(*id, done.agent, *token, now);
                    claimed.push(*id);
                }
                ClaimResult::Lost
                    if self
                        .tasks
                        .get(id)
                        .is_some_and(|t| matches!(t.state, Hold::Claimed { agent, .. } if agent == done.agent)) =>
                {
                    // It is in the log all the same: only its answer was lost.
                    unheard.push(*id);
                }
                ClaimResult::Unfit | ClaimResult::Lost => {
                    let is_ours = self.tasks.get(id).is_some_and(|t| t.state == Hold::Claiming(done.agent));
                    if let Some(slot) = self.tasks.get_mut(id).filter(|_| *result == ClaimResult::Unfit) {
                        slot.unfit.insert(done.agent);
                    }
                    if is_ours {
                        self.vacate(*id);
                        // What could not be written now may be written in a while; an unfit agent is passed over at once.
                        let not_before = (*result == ClaimResult::Lost).then(|| now.plus_ms(RETRY_COMMAND_MS));
                        self.make_ready(*id, not_before, now);
                    }
                }
            }
        }
        if claimed.is_empty() {
            if let Some(waiter) = self.waiters.get_mut(&done.agent).and_then(|w| w.get_mut(&done.waiter)) {
                waiter.is_busy = false;
            }
        } else {
            self.drop_waiter(done.agent, done.waiter);
            if !done.is_delivered {
                self.not_delivered(done.agent, &claimed);
            }
        }
        self.not_delivered(done.agent, &unheard);
        if let Some(agent) = self.agents.get(&done.agent) {
            self.dirty.extend(agent.lanes(&done.agent));
        }
    }

    fn not_delivered(&mut self, agent: AgentId, tasks: &[TaskId]) {
        for id in tasks.iter().filter(|id| self.tasks.get(id).and_then(TaskSlot::holder) == Some(agent)) {
            self.undelivered.entry(agent).or_default().insert(*id);
        }
        let waiting = self.waiters.get(&agent).and_then(|w| w.iter().find(|(_, w)| !w.is_busy)).map(|(id, _)| *id);
        if let Some(waiter) = waiting {
            self.deliver_undelivered(agent, waiter);
        }
    }

    fn fire(&mut self, timer: Timer, now: Timestamp) {
        match timer {
            Timer::Ready(id) => self.make_ready(id, None, now),
            Timer::Deadline(id) => {
                if self.tasks.contains_key(&id) {
                    self.commands.push(DispatchCommand::MissDeadline(id));
                    self.timers.insert((now.plus_ms(RETRY_COMMAND_MS), Timer::Deadline(id)));
                }
            }
            Timer::GiveUp(id) => self.give_up_if_nobody_left(id, now),
            Timer::Lease(id) => {
                // A later claim of the same task has a lease of its own.
                if let Some(TaskSlot { state: Hold::Claimed { token, lease, .. }, .. }) = self.tasks.get(&id)
                    && *lease <= now
                {
                    self.commands.push(DispatchCommand::Expire(id, *token));
                    // Asked again if the command is lost.
                    self.timers.insert((now.plus_ms(RETRY_COMMAND_MS), Timer::Lease(id)));
                }
            }
            Timer::Waiter(agent, waiter) => self.end_wait(agent, waiter, now),
            Timer::Match => self.dirty.extend(self.ready.keys().cloned()),
        }
    }

    fn end_wait(&mut self, agent: AgentId, id: WaiterId, now: Timestamp) {
        let Some(waiter) = self.waiters.get(&agent).and_then(|w| w.get(&id)) else { return };
        let late_ms = now.since_ms(waiter.until);
        let is_behind = self.position < waiter.min_position && late_ms < CATCH_UP_MS_MAX;
        let is_reading = !self.loading.is_empty() && late_ms < READING_MS_MAX;
        if is_behind || is_reading || (waiter.is_busy && late_ms < CATCH_UP_MS_MAX) {
            self.timers.insert((now.plus_ms(1), Timer::Waiter(agent, id)));
            return;
        }
        self.drop_waiter(agent, id);
        self.commands.push(DispatchCommand::Deliver { agent, waiter: id, tasks: vec![] });
    }

    /// Looks again whether anybody is left, in case the command to give up is lost.
    pub(super) fn give_up_again(&mut self, id: TaskId, now: Timestamp) {
        self.timers.insert((now.plus_ms(RETRY_COMMAND_MS), Timer::GiveUp(id)));
    }

    /// Asks again for a matching at `at`.
    pub(super) fn match_at(&mut self, at: Timestamp) {
        self.timers.insert((at, Timer::Match));
    }
}

/// How long a request without patience waits for the dispatcher to catch up with the log.
const CATCH_UP_MS_MAX: u64 = 2_000;
/// How long it waits for tasks that are being read.
const READING_MS_MAX: u64 = 100;
/// When a command whose outcome was not seen is given again.
const RETRY_COMMAND_MS: u64 = 1_000;

impl Process for Dispatch {
    const NAME: &'static str = "dispatcher";
    type Signal = DispatchSignal;
    type Command = DispatchCommand;

    fn react(&mut self, event: &Recorded, now: Timestamp) {
        self.position = event.header.position;
        let stream = event.header.stream.as_str();
        if stream.starts_with(Task::KIND) {
            if let Ok(id) = stream.parse() {
                self.task_event(id, event, now);
            }
        } else if stream.starts_with(Agent::KIND) {
            if let Ok(id) = stream.parse() {
                self.commands.push(DispatchCommand::LoadAgent(id));
            }
        } else if let Ok(Some(crate::queue::QueueEvent::Configured(configured))) = crate::queue::QueueEvent::read(event) {
            self.configure(configured);
        }
    }

    fn signal(&mut self, signal: DispatchSignal, now: Timestamp) {
        match signal {
            DispatchSignal::TaskLoaded(id, loaded) => self.loaded(id, loaded, now),
            DispatchSignal::AgentLoaded(id, version, agent) => self.put_agent(id, version, &agent, now),
            DispatchSignal::Ask(ask) => self.ask(ask),
            // What is being claimed for it is handed over with the agent's next request.
            DispatchSignal::Left(agent, waiter) => {
                let known = self.waiters.get(&agent).and_then(|waiters| waiters.get(&waiter));
                if known.is_some_and(|waiter| !waiter.is_busy) {
                    self.drop_waiter(agent, waiter);
                }
            }
            DispatchSignal::ClaimDone(done) => self.claim_done(done, now),
            DispatchSignal::Undelivered(agent, tasks) => self.not_delivered(agent, &tasks),
            DispatchSignal::Renew(id, token) => self.renew(id, token, now),
            DispatchSignal::Reported(agent, context_fill) => {
                if let Some(slot) = self.agents.get_mut(&agent) {
                    slot.context_fill = context_fill;
                }
            }
            DispatchSignal::Drain => self.is_draining = true,
        }
    }

    fn decide(&mut self, now: Timestamp, _random: u64) -> Vec<DispatchCommand> {
        // Matching comes before the timers, so that a request that waits for nothing gets what is there.
        self.round(now);
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            self.fire(timer, now);
        }
        self.round(now);
        std::mem::take(&mut self.commands)
    }

    fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }
}

impl Dispatch {
    fn round(&mut self, now: Timestamp) {
        for lane in std::mem::take(&mut self.dirty) {
            if !self.is_draining {
                self.match_lane(&lane, now);
            }
        }
    }
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
