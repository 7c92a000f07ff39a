//! Whether agents are there: leases that heartbeats renew. Renewals are no events; every change of condition is.

use crate::agent::{Agent, Liveness as Condition};
use kernel::id::AgentId;
use kernel::{Decider, Process, Recorded, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// An agent that reports a context this full is degraded.
pub const CONTEXT_FILL_DEGRADED: f64 = 0.9;

/// What liveness hears.
#[derive(Debug)]
pub enum LivenessSignal {
    /// The agent called; with how full its context is, if it said so.
    Seen(AgentId, Option<f64>),
}

/// What liveness wants done.
#[derive(Debug, PartialEq)]
pub enum LivenessCommand {
    /// It is there.
    MarkUp(AgentId),
    /// It is there, but in trouble.
    MarkDegraded(AgentId, String),
    /// It is gone.
    MarkDown(AgentId),
}

struct Slot {
    condition: Condition,
    lease: Option<Timestamp>,
    context_fill: Option<f64>,
    /// When the last command was given; it is given again if nothing follows.
    asked_at: Option<Timestamp>,
}

const ASK_AGAIN_MS: u64 = 1_000;

/// The leases of one log's agents.
pub struct Liveness {
    lease_ms: u64,
    agents: BTreeMap<AgentId, Slot>,
    timers: BTreeSet<(Timestamp, AgentId)>,
}

impl Liveness {
    /// No agents yet.
    pub fn new(lease_ms: u64) -> Self {
        Liveness { lease_ms, agents: BTreeMap::new(), timers: BTreeSet::new() }
    }

    /// Takes in an agent at start; whoever was there gets one full lease.
    pub fn put(&mut self, id: AgentId, agent: &Agent, now: Timestamp) {
        let lease = match agent.liveness {
            Condition::Up | Condition::Degraded => Some(now.plus_ms(self.lease_ms)),
            Condition::Registered | Condition::Down => None,
        };
        if let Some(at) = lease {
            self.timers.insert((at, id));
        }
        self.agents.insert(id, Slot { condition: agent.liveness, lease, context_fill: None, asked_at: None });
    }

    fn seen(&mut self, id: AgentId, context_fill: Option<f64>, now: Timestamp) {
        let lease = now.plus_ms(self.lease_ms);
        let slot = self.agents.entry(id).or_insert(Slot {
            condition: Condition::Registered,
            lease: None,
            context_fill: None,
            asked_at: None,
        });
        slot.context_fill = context_fill.or(slot.context_fill);
        if slot.lease.is_none() {
            self.timers.insert((now, id));
        }
        slot.lease = Some(lease);
        if wanted(slot, now) != slot.condition {
            self.timers.insert((now, id));
        }
    }

    fn check(&mut self, id: AgentId, now: Timestamp) -> Option<LivenessCommand> {
        let slot = self.agents.get_mut(&id)?;
        if let Some(lease) = slot.lease.filter(|lease| *lease > now) {
            self.timers.insert((lease, id));
        }
        let wanted = wanted(slot, now);
        if wanted == slot.condition {
            slot.asked_at = None;
            return None;
        }
        if slot.asked_at.is_some_and(|at| now.since_ms(at) < ASK_AGAIN_MS) {
            return None;
        }
        slot.asked_at = Some(now);
        self.timers.insert((now.plus_ms(ASK_AGAIN_MS), id));
        match wanted {
            Condition::Up => Some(LivenessCommand::MarkUp(id)),
            Condition::Degraded => {
                let percent = (slot.context_fill.unwrap_or_default() * 100.0).round();
                Some(LivenessCommand::MarkDegraded(id, format!("its context is {percent} % full")))
            }
            Condition::Down => Some(LivenessCommand::MarkDown(id)),
            Condition::Registered => None,
        }
    }
}

/// The condition that the lease and the last report speak for.
fn wanted(slot: &Slot, now: Timestamp) -> Condition {
    let is_full = slot.context_fill.is_some_and(|fill| fill >= CONTEXT_FILL_DEGRADED);
    match slot.lease {
        None => slot.condition,
        Some(lease) if lease <= now => Condition::Down,
        Some(_) if is_full => Condition::Degraded,
        Some(_) => Condition::Up,
    }
}

impl Process for Liveness {
    const NAME: &'static str = "liveness";
    type Signal = LivenessSignal;
    type Command = LivenessCommand;

    fn react(&mut self, event: &Recorded, now: Timestamp) {
        if !event.header.stream.starts_with(Agent::KIND) {
            return;
        }
        let Ok(id) = event.header.stream.parse() else { return };
        let condition = match event.header.kind.as_str() {
            "registry.agent.went_up" => Condition::Up,
            "registry.agent.degraded" => Condition::Degraded,
            "registry.agent.went_down" => Condition::Down,
            "registry.agent.deregistered" => {
                self.agents.remove(&id);
                return;
            }
            _ => return,
        };
        if let Some(slot) = self.agents.get_mut(&id) {
            slot.condition = condition;
            slot.asked_at = None;
            if condition == Condition::Down && slot.lease.is_some_and(|lease| lease <= now) {
                slot.lease = None;
            }
            if wanted(slot, now) != condition {
                self.timers.insert((now, id));
            }
        }
    }

    fn signal(&mut self, signal: LivenessSignal, now: Timestamp) {
        let LivenessSignal::Seen(id, context_fill) = signal;
        self.seen(id, context_fill, now);
    }

    fn decide(&mut self, now: Timestamp, _random: u64) -> Vec<LivenessCommand> {
        let mut commands = vec![];
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            commands.extend(self.check(id, now));
        }
        commands
    }

    fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> AgentId {
        AgentId::from_bytes([1; 16])
    }

    fn event(kind: &str) -> Recorded {
        crate::golden::recorded(kind, &id().to_string(), 1, 1, serde_json::json!({}))
    }

    #[test]
    fn given_a_new_agent_when_it_calls_then_it_goes_up_and_down_after_its_lease() {
        let mut liveness = Liveness::new(100);
        liveness.signal(LivenessSignal::Seen(id(), None), Timestamp(0));
        assert_eq!(liveness.decide(Timestamp(0), 0), [LivenessCommand::MarkUp(id())]);
        liveness.react(&event("registry.agent.went_up"), Timestamp(1));
        assert_eq!(liveness.decide(Timestamp(99), 0), []);
        assert_eq!(liveness.decide(Timestamp(100), 0), [LivenessCommand::MarkDown(id())]);
        liveness.react(&event("registry.agent.went_down"), Timestamp(101));
        assert_eq!(liveness.decide(Timestamp(5_000), 0), []);
        assert_eq!(liveness.due(), None);
    }

    #[test]
    fn given_heartbeats_then_it_stays_up_without_events() {
        let mut liveness = Liveness::new(100);
        liveness.signal(LivenessSignal::Seen(id(), None), Timestamp(0));
        liveness.decide(Timestamp(0), 0);
        liveness.react(&event("registry.agent.went_up"), Timestamp(1));
        for now in (50..1_000).step_by(50) {
            liveness.signal(LivenessSignal::Seen(id(), None), Timestamp(now));
            assert_eq!(liveness.decide(Timestamp(now), 0), [], "at {now}");
        }
    }

    #[test]
    fn given_a_full_context_then_it_is_degraded_until_it_reports_better() {
        let mut liveness = Liveness::new(1_000);
        liveness.signal(LivenessSignal::Seen(id(), None), Timestamp(0));
        liveness.decide(Timestamp(0), 0);
        liveness.react(&event("registry.agent.went_up"), Timestamp(1));
        liveness.signal(LivenessSignal::Seen(id(), Some(0.95)), Timestamp(2));
        assert_eq!(liveness.decide(Timestamp(2), 0), [LivenessCommand::MarkDegraded(id(), "its context is 95 % full".into())]);
        liveness.react(&event("registry.agent.degraded"), Timestamp(3));
        liveness.signal(LivenessSignal::Seen(id(), Some(0.2)), Timestamp(4));
        assert_eq!(liveness.decide(Timestamp(4), 0), [LivenessCommand::MarkUp(id())]);
    }

    #[test]
    fn given_a_command_that_was_lost_then_it_is_given_again() {
        let mut liveness = Liveness::new(10_000);
        liveness.signal(LivenessSignal::Seen(id(), None), Timestamp(0));
        assert_eq!(liveness.decide(Timestamp(0), 0).len(), 1);
        assert_eq!(liveness.decide(Timestamp(500), 0).len(), 0);
        assert_eq!(liveness.decide(Timestamp(1_000), 0), [LivenessCommand::MarkUp(id())]);
    }
}
