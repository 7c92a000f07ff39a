//! Whether an agent can take work now: an extension of A2A, in its card and, where a client asks for it, with each task.

use super::Door;
use crate::app::App;
use crate::{Answer, Caller, ListOrder};
use domain::agent::Agent;
use domain::task::Task;
use engine::Handled;
use kernel::IndexField;
use kernel::id::AgentId;
use serde_json::{Value, json};

/// The name of the extension.
pub const AVAILABILITY: &str = "urn:keiko:a2a:availability:1";

impl App {
    /// Whether the agent behind a door can take work now: its state, what it has, what waits for it, and how long one more
    /// task is likely to wait, where its record says so. Nothing for the fleet as a whole.
    pub async fn a2a_availability(&self, caller: &Caller, door: &Door) -> Answer<Option<Value>> {
        let Door::Agent(agent) = door else { return Ok(None) };
        let count = async |fields: [(&'static str, &str); 2]| {
            let order =
                ListOrder { limit: kernel::limits::PAGE_ITEMS_MAX, after: None, is_descending: true, with_deleted: false };
            let fields = fields.into_iter().map(|(name, value)| IndexField::new(name, value)).collect();
            let now = Caller { at: None, ..caller.clone() };
            Answer::Ok(self.list::<Task>(&now, &order, fields).await?.items.len())
        };
        let running = count([("status", "claimed"), ("agent", &agent.stream)]).await?;
        let waiting = count([("status", "pending"), ("assigned", &agent.stream)]).await?;
        let mean_ms = self.mean_ms(caller, agent)?;
        Ok(Some(described(agent, running, waiting, mean_ms)))
    }

    /// How long a task of the agent takes, over all of its capabilities.
    fn mean_ms(&self, caller: &Caller, agent: &Handled<Agent>) -> Answer<Option<f64>> {
        let Ok(id) = agent.stream.parse::<AgentId>() else { return Ok(None) };
        let fleet = self.fleet(caller)?;
        let fleet = fleet.read();
        let mut sum = domain::view::stats::AgentStats::default();
        agent.state.profile.capabilities.iter().for_each(|c| sum.add(&fleet.record(&id, &c.name)));
        Ok(sum.mean_ms())
    }
}

fn described(agent: &Handled<Agent>, running: usize, waiting: usize, mean_ms: Option<f64>) -> Value {
    let max = agent.state.profile.max_concurrency.max(1) as usize;
    let status = agent.state.status();
    let is_there = matches!(status, "up" | "degraded");
    let ahead = (running + waiting + 1).saturating_sub(max);
    let mut shown = json!({
        "status": status, "accepting": is_there && ahead == 0, "running": running, "waiting": waiting, "maxConcurrency": max,
    });
    let wait_ms = if ahead == 0 { Some(0.0) } else { mean_ms.map(|mean| mean * ahead as f64 / max as f64) };
    if let Some(wait_ms) = wait_ms.filter(|_| is_there) {
        shown["expectedWaitMs"] = json!(wait_ms.ceil() as u64);
    }
    shown
}
