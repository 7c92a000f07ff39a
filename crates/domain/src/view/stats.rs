//! How agents did, per capability: the record by which agents are ranked and chosen.

use crate::task::TaskEvent;
use kernel::id::AgentId;
use kernel::{EventSet, Recorded, View};
use serde::{Deserialize, Serialize};

/// One agent's record with one capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStats {
    /// Tasks done.
    pub completed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Claims that expired.
    pub expired: u64,
    /// Sum over the tasks done.
    pub duration_ms: u64,
}

impl AgentStats {
    /// The success to be expected of the next attempt, 0 to 1; one half without any record (Laplace's rule).
    pub fn success(&self) -> f64 {
        (self.completed + 1) as f64 / (self.completed + self.failed + self.expired + 2) as f64
    }

    /// Share of attempts that succeeded, 0 to 1, as it was; for people.
    pub fn success_rate(&self) -> Option<f64> {
        let tried = self.completed + self.failed + self.expired;
        (tried > 0).then(|| self.completed as f64 / tried as f64)
    }

    /// Mean time from claim to completion.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.completed > 0).then(|| self.duration_ms as f64 / self.completed as f64)
    }

    /// Adds what happened.
    pub fn add(&mut self, change: &AgentStats) {
        self.completed += change.completed;
        self.failed += change.failed;
        self.expired += change.expired;
        self.duration_ms += change.duration_ms;
    }
}

/// The row of an agent and a capability.
pub fn key(agent: &AgentId, capability: &str) -> String {
    format!("{agent}/{capability}")
}

/// What an event changes, and in which row.
pub fn change(event: &TaskEvent) -> Option<(String, AgentStats)> {
    match event {
        TaskEvent::Completed(c) => Some((
            key(&c.agent_id, &c.capability),
            AgentStats { completed: 1, duration_ms: c.duration_ms, ..AgentStats::default() },
        )),
        TaskEvent::AttemptFailed(f) => Some((key(&f.agent_id, &f.capability), AgentStats { failed: 1, ..AgentStats::default() })),
        TaskEvent::ClaimExpired(e) => Some((key(&e.agent_id, &e.capability), AgentStats { expired: 1, ..AgentStats::default() })),
        _ => None,
    }
}

/// The view of all records.
pub struct AgentStatsView;

impl View for AgentStatsView {
    const NAME: &'static str = "agent_stats";
    const VERSION: u32 = 1;
    type Row = AgentStats;

    fn key(event: &Recorded) -> Option<String> {
        read(event).map(|(key, _)| key)
    }

    fn fold(row: Option<AgentStats>, event: &Recorded) -> Option<AgentStats> {
        let mut row = row.unwrap_or_default();
        if let Some((_, change)) = read(event) {
            row.add(&change);
        }
        Some(row)
    }
}

fn read(event: &Recorded) -> Option<(String, AgentStats)> {
    // Most events say nothing here: their payloads are not parsed.
    let says =
        matches!(event.header.kind.as_str(), "tasks.task.completed" | "tasks.task.attempt_failed" | "tasks.task.claim_expired");
    if !says {
        return None;
    }
    change(&TaskEvent::read(event).ok()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_a_record_is_neither_good_nor_bad() {
        assert_eq!(AgentStats::default().success(), 0.5);
        assert!(AgentStats { completed: 9, ..Default::default() }.success() > 0.9);
        assert!(AgentStats { expired: 9, ..Default::default() }.success() < 0.1);
        assert_eq!(AgentStats { completed: 2, duration_ms: 10, ..Default::default() }.mean_ms(), Some(5.0));
    }
}
