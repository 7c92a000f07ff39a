//! Keiko's tasks and agents as the Agent2Agent protocol (A2A 1.0) sees them: which agents are behind which door, what a
//! message asks for, and what is told of a task. How a request comes in is the edge's.
//!
//! A task of A2A is a task of Keiko: what is acknowledged is in the log, and every replica answers the same.

mod availability;
mod card;
mod send;
mod updates;
mod wire;

pub use availability::AVAILABILITY;
pub use send::{SKILL, SendOrder};
pub use updates::{Updates, is_last};
pub use wire::{push_json, task_json};

use crate::app::App;
use crate::{Answer, Caller, ListOrder};
use domain::agent::Agent;
use domain::task::{Status, Task, not_found};
use engine::Handled;
use kernel::id::TaskId;
use kernel::{IndexField, Rejection, Timestamp};

/// The version of the protocol.
pub const VERSION: &str = "1.0";
/// Tasks that one listing looks at: the newest.
const LISTED_MAX: usize = 1_000;

/// Who is spoken to.
#[derive(Clone)]
pub enum Door {
    /// Whoever of the fleet can do it.
    Fleet,
    /// One agent.
    Agent(Handled<Agent>),
}

impl Door {
    /// What an idempotency key is made of, so that one message to two doors is two.
    fn name(&self) -> &str {
        match self {
            Door::Fleet => "fleet",
            Door::Agent(agent) => &agent.stream,
        }
    }

    /// Whether a task was given in at this door.
    fn has(&self, task: &Task) -> bool {
        match self {
            Door::Fleet => true,
            Door::Agent(agent) => task.submitted.agent.is_some_and(|only| only.to_string() == agent.stream),
        }
    }
}

/// Which tasks are listed.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Only of this conversation.
    pub context: Option<String>,
    /// Only in this state, by its name in A2A.
    pub state: Option<String>,
    /// Only those whose state is of this time or later.
    pub since: Option<Timestamp>,
    /// How many at most.
    pub limit: usize,
    /// Only those behind this one: when it changed last, and its id.
    pub after: Option<(Timestamp, String)>,
}

/// Tasks that were found.
pub struct TaskList {
    /// This page.
    pub tasks: Vec<Handled<Task>>,
    /// How many there are in all.
    pub total: usize,
    /// Where the next page begins, if there is one.
    pub next: Option<(Timestamp, String)>,
}

impl App {
    /// Who is spoken to at a door: an agent by id or name, or the whole fleet.
    pub async fn a2a_door(&self, caller: &Caller, agent: Option<&str>) -> Answer<Door> {
        let everybody = Caller { reach: domain::policy::Reach::All, at: None, ..caller.clone() };
        match agent {
            Some(named) => Ok(Door::Agent(self.agent(&everybody, named).await?)),
            None => Ok(Door::Fleet),
        }
    }

    /// One task of a door, if the caller may see it.
    pub async fn a2a_task(&self, caller: &Caller, door: &Door, id: &str) -> Answer<Handled<Task>> {
        let parsed: TaskId = id.parse().map_err(|_| not_found(id))?;
        let task = self.task(caller, parsed).await?.entity;
        if door.has(&task.state) { Ok(task) } else { Err(not_found(id)) }
    }

    /// Calls a task off. One that is over in another way cannot be.
    pub async fn a2a_cancel(&self, caller: &Caller, door: &Door, id: &str) -> Answer<Handled<Task>> {
        let task = self.a2a_task(caller, door, id).await?;
        let id = task.stream.parse().map_err(|_| not_found(id))?;
        if task.state.status == Status::Cancelled {
            return Ok(task);
        }
        Ok(self.cancel(caller, id, None).await?.entity)
    }

    /// Tasks of a door, the one that changed last first.
    pub async fn a2a_tasks(&self, caller: &Caller, door: &Door, filter: &TaskFilter) -> Answer<TaskList> {
        let mut fields = vec![];
        fields.extend((!caller.sees_all()).then(|| IndexField::new("creator", &caller.actor.who.id)));
        if let Door::Agent(agent) = door {
            fields.push(IndexField::new("assigned", &agent.stream));
        }
        fields.extend(filter.context.as_ref().map(|context| IndexField::new("conversation", context)));
        let mut found = self.newest(caller, fields).await?;
        found.retain(|task| {
            filter.state.as_ref().is_none_or(|state| wire::state(&task.state) == state)
                && filter.since.is_none_or(|since| task.updated_at >= since)
        });
        found.sort_by(|a, b| place(b).cmp(&place(a)));
        let total = found.len();
        if let Some((at, id)) = &filter.after {
            found.retain(|task| place(task) < (*at, id.as_str()));
        }
        let next = (found.len() > filter.limit)
            .then(|| found.get(filter.limit.saturating_sub(1)).map(|t| (t.updated_at, t.stream.clone())));
        found.truncate(filter.limit);
        Ok(TaskList { tasks: found, total, next: next.flatten() })
    }

    /// A task of a list with its large values read.
    pub async fn a2a_whole(&self, caller: &Caller, entity: Handled<Task>) -> Answer<Handled<Task>> {
        Ok(crate::TaskView { entity }.resolved(self.engine(), caller.actor.tenant).await?.entity)
    }

    async fn newest(&self, caller: &Caller, fields: Vec<IndexField>) -> Answer<Vec<Handled<Task>>> {
        let mut order =
            ListOrder { limit: kernel::limits::PAGE_ITEMS_MAX, after: None, is_descending: true, with_deleted: false };
        let mut found = vec![];
        loop {
            let page = self.list::<Task>(caller, &order, fields.clone()).await?;
            found.extend(page.items);
            match page.next {
                Some(next) if found.len() < LISTED_MAX => order.after = Some(next),
                _ => return Ok(found),
            }
        }
    }
}

/// Where a task stands among others.
fn place(task: &Handled<Task>) -> (Timestamp, &str) {
    (task.updated_at, task.stream.as_str())
}

/// What a task belongs to together with others: itself, when nothing was said.
pub fn context_of(task: &Handled<Task>) -> &str {
    task.state.submitted.conversation.as_deref().unwrap_or(&task.stream)
}

/// Whether nothing more happens to a task before somebody says something.
pub fn is_at_rest(task: &Task) -> bool {
    use kernel::Decider;
    Task::is_terminal(task) || task.is_input_wanted()
}

/// The answer to something that cannot be asked of a task any more.
pub(crate) fn over(task: &Task) -> Rejection {
    Rejection::new(
        kernel::Kind::Conflict,
        "TASK_NOT_OPEN",
        format!("The task is {} and takes nothing more.", task.status.as_str()),
        "Send a message without taskId, which makes another task.",
    )
    .with("status", task.status)
}
