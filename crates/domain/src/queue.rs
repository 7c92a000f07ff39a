//! A queue's settings: whether it runs, how much at a time, and what counts when an agent is chosen.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, QueueId, Rejection, TenantId};
use serde::{Deserialize, Serialize};

/// The queue of tasks that name none.
pub const DEFAULT_QUEUE: &str = "default";

/// How much each score counts when an agent is chosen. Each at least 0; only their ratio matters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// How well the agent's domains, tags and description fit the task.
    pub specialisation: f64,
    /// How often it succeeded with this capability.
    pub success: f64,
    /// How free it is.
    pub load: f64,
    /// How cheap it is.
    pub cost: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { specialisation: 0.4, success: 0.3, load: 0.2, cost: 0.1 }
    }
}

/// `tasks.queue.configured`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configured {
    /// Its name.
    pub name: String,
    /// Whether no task of it is given out.
    pub is_paused: bool,
    /// What counts when an agent is chosen.
    pub weights: Weights,
    /// Tasks of it in work at a time.
    pub max_concurrency: Option<u32>,
    /// Tasks of it given out per second.
    pub rate_per_s: Option<f64>,
}

impl Configured {
    /// A queue that nobody configured.
    pub fn unconfigured(name: &str) -> Self {
        Configured {
            name: name.to_owned(),
            is_paused: false,
            weights: Weights::default(),
            max_concurrency: None,
            rate_per_s: None,
        }
    }
}

kernel::events! {
    /// What happened to a queue.
    QueueEvent {
        Configured(Configured) = "tasks.queue.configured" @ 1,
    }
}

/// The rules of queues.
pub struct Queue;

impl Decider for Queue {
    const KIND: &'static str = "queue";
    type State = Configured;
    type Command = Configured;
    type Event = QueueEvent;

    fn decide(state: Option<&Configured>, command: &Configured, _: &Facts) -> Result<Vec<QueueEvent>, Rejection> {
        Ok(match state {
            Some(present) if present == command => vec![],
            _ => vec![QueueEvent::Configured(command.clone())],
        })
    }

    fn evolve(_: Option<Configured>, event: &QueueEvent, _: &Meta) -> Option<Configured> {
        let QueueEvent::Configured(configured) = event;
        Some(configured.clone())
    }

    fn is_terminal(_: &Configured) -> bool {
        false
    }

    fn index(_: &Configured) -> Vec<IndexField> {
        vec![]
    }
}

/// The id of the queue of that name.
pub fn queue_id(tenant: &TenantId, name: &str) -> QueueId {
    QueueId::derived(&[&tenant.bytes(), name.as_bytes()])
}
