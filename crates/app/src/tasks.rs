//! Tasks as their submitters see them: submit, read, list, cancel, retry; and what agents did.

use crate::app::App;
use crate::errors::{Problems, of_store};
use crate::workers::handled_by;
use crate::{Answer, Caller, ListOrder, Page};
use domain::agent::{Agent, name_key};
use domain::queue::DEFAULT_QUEUE;
use domain::task::{Attempt, Collision, Decision, Message, Submitted, Task, TaskCommand, TaskEvent, not_found};
use engine::{Engine, Extras, Handled, Step};
use kernel::id::{AgentId, TaskId, TenantId};
use kernel::{ActorKind, EventSet, IndexField, Json, Kind, Problem, Recorded, Rejection, Timestamp, limits, taskhash, text};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of a message about a task that is there.
const SAID_BYTES_MAX: usize = 64 * 1024;
/// Words of a task by which specialised agents are found.
const KEYWORDS_MAX: usize = 64;
/// The priority of a task that says none; 9 is the most urgent.
pub const PRIORITY_DEFAULT: u8 = 5;
/// The attempts of a task that says none.
pub const ATTEMPTS_DEFAULT: u32 = 3;

/// A task to be submitted.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// What to do.
    pub description: String,
    /// Which capability it needs.
    pub capability: String,
    /// Checked against the capability's schema.
    pub input: Json,
    /// What else matters.
    pub context: Json,
    /// 0 to 9.
    pub priority: Option<u8>,
    /// Not before so long.
    pub delay_ms: Option<u64>,
    /// Not after.
    pub deadline: Option<Timestamp>,
    /// How often it is tried.
    pub max_attempts: Option<u32>,
    /// In which queue.
    pub queue: Option<String>,
    /// What happens when everybody has done it before.
    pub collision: Option<Collision>,
    /// The only agent that may do it, by id or name.
    pub agent: Option<String>,
    /// What it belongs to together with other tasks.
    pub conversation: Option<String>,
    /// The message that asks for it.
    pub message: Option<Message>,
}

/// A task as it is shown.
#[derive(Clone)]
pub struct TaskView {
    /// The entity. Large values may be references; [`App::task`] resolves them.
    pub entity: Handled<Task>,
}

impl TaskView {
    /// The same with large values read.
    pub(crate) async fn resolved(mut self, engine: &Engine, log: TenantId) -> Answer<TaskView> {
        let task = self.entity.state.as_ref();
        let outputs = task.outcome.iter().flat_map(|o| [&o.output, &o.metrics].into_iter().chain(&o.learned_patterns));
        let said = task.submitted.message.iter().chain(task.messages.iter().map(|said| &said.message));
        let said = said.flat_map(|message| [&message.parts, &message.metadata]);
        let has_references = [&task.submitted.input, &task.submitted.context]
            .into_iter()
            .chain(outputs)
            .chain(said)
            .any(|v| v.reference().is_some());
        if !has_references {
            return Ok(self);
        }
        let mut task = task.clone();
        task.submitted.input = resolve(engine, log, &task.submitted.input).await?;
        task.submitted.context = resolve(engine, log, &task.submitted.context).await?;
        if let Some(outcome) = &mut task.outcome {
            outcome.output = resolve(engine, log, &outcome.output).await?;
            outcome.metrics = resolve(engine, log, &outcome.metrics).await?;
            for pattern in &mut outcome.learned_patterns {
                *pattern = resolve(engine, log, pattern).await?;
            }
        }
        let said = task.messages.iter_mut().map(|said| &mut said.message);
        for message in task.submitted.message.iter_mut().chain(said) {
            message.parts = resolve(engine, log, &message.parts).await?;
            message.metadata = resolve(engine, log, &message.metadata).await?;
        }
        self.entity.state = Arc::new(task);
        Ok(self)
    }
}

/// One attempt of an agent, with its task.
pub struct HistoryEntry {
    /// The task.
    pub task: Handled<Task>,
    /// The attempt.
    pub attempt: Attempt,
}

impl App {
    /// Takes a task in.
    pub async fn submit(&self, caller: &Caller, new: NewTask) -> Answer<TaskView> {
        if let Some(task) = self.earlier::<Task>(caller).await? {
            return self.view(caller, task).await;
        }
        check(&new)?;
        let agent = self.only_agent(caller, new.agent.as_deref()).await?;
        let fits = self.check_input(caller, &new, agent.as_ref())?;
        let now = self.env().now();
        if new.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Rejection::new(
                Kind::Refused,
                "DEADLINE_PASSED",
                "The deadline has passed already.",
                "Give a deadline in the future, or none.",
            ));
        }
        let hash = taskhash::task_hash(&new.capability, &new.description, &new.input, &new.context);
        let task_hash = hash.map_err(|e| {
            Rejection::invalid(&[Problem { pointer: "/input".into(), message: format!("has no canonical form: {e}") }])
        })?;
        let collision = new.collision.unwrap_or(Collision::Lru);
        if collision == Collision::Strict {
            self.check_anybody_left(caller, &new.capability, &task_hash, &fits).await?;
        }
        let id: TaskId = self.env().id();
        let mut extras = Extras::default();
        let submitted = Submitted {
            keywords: keywords(&new),
            description: new.description,
            capability: new.capability,
            input: offload(new.input, &mut extras),
            context: offload(new.context, &mut extras),
            task_hash,
            priority: new.priority.unwrap_or(PRIORITY_DEFAULT),
            queue: new.queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
            not_before: new.delay_ms.filter(|ms| *ms > 0).map(|ms| now.plus_ms(ms)),
            deadline: new.deadline,
            max_attempts: new.max_attempts.unwrap_or(ATTEMPTS_DEFAULT),
            collision,
            agent,
            conversation: new.conversation,
            message: new.message.map(|message| lighter(message, &mut extras)),
        };
        let step = Step::new::<Task>(id, TaskCommand::Submit(Box::new(submitted)));
        let task = self.execute::<Task>(caller, step, extras).await?;
        self.view(caller, task).await
    }

    /// The agent that a task is for, by id or name.
    async fn only_agent(&self, caller: &Caller, named: Option<&str>) -> Answer<Option<AgentId>> {
        let Some(named) = named else { return Ok(None) };
        let stream = match named.parse::<AgentId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(named)).await?,
        };
        let found = match stream {
            Some(stream) => self.entity::<Agent>(caller.actor.tenant, &stream).await?,
            None => None,
        };
        let id = found.and_then(|agent| agent.stream.parse().ok());
        id.map(Some).ok_or_else(|| domain::agent::not_found(named))
    }

    /// The agents whose schema takes the input; refused when the capability is unknown, not that of the only agent, or no
    /// schema does.
    fn check_input(&self, caller: &Caller, new: &NewTask, only: Option<&AgentId>) -> Answer<BTreeSet<AgentId>> {
        let fleet = self.fleet(caller)?;
        let fleet = fleet.read();
        let agents = fleet.with_capability(&new.capability);
        if let Some(agent) = only.and_then(|only| fleet.get(only))
            && agent.state.capability(&new.capability).is_none()
        {
            let profile = &agent.state.profile;
            let message = format!("The agent '{}' has no capability '{}'.", profile.name, new.capability);
            let has: Vec<&str> = profile.capabilities.iter().map(|c| c.name.as_str()).collect();
            let hint = "Ask for one that it has, or let any agent do it that has this one.";
            return Err(Rejection::new(Kind::Refused, "CAPABILITY_UNKNOWN", message, hint).with("near", has));
        }
        let Some(agents) = agents else {
            let near = fleet.near_names(&new.capability);
            let hint = match near.first() {
                Some(name) => format!("Did you mean '{name}'? GET /api/v1/discovery lists what agents can do."),
                None => "Register an agent that has it, or list what agents can do with GET /api/v1/discovery.".to_owned(),
            };
            let message = format!("No agent has the capability '{}'.", new.capability);
            return Err(Rejection::new(Kind::Refused, "CAPABILITY_UNKNOWN", message, hint).with("near", near));
        };
        let input = new.input.value();
        let (mut fits, mut problems) = (BTreeSet::new(), vec![]);
        for id in agents.iter().filter(|id| only.is_none_or(|only| only == *id)) {
            let schema = fleet.get(id).and_then(|a| a.state.capability(&new.capability)?.input_schema.as_ref());
            let found = schema.map(|schema| self.0.schemas.problems(schema, &input, "/input")).unwrap_or_default();
            if found.is_empty() {
                fits.insert(*id);
            } else if problems.is_empty() {
                problems = found;
            }
        }
        if fits.is_empty() {
            let message = format!("The input does not meet the input schema of the capability '{}'.", new.capability);
            return Err(Rejection::new(Kind::Refused, "INPUT_INVALID", message, "Correct what details.errors names.")
                .with("errors", problems));
        }
        Ok(fits)
    }

    async fn check_anybody_left(
        &self,
        caller: &Caller,
        capability: &str,
        task_hash: &str,
        fits: &BTreeSet<AgentId>,
    ) -> Answer<()> {
        let handled = handled_by(&self.0.engine, caller.actor.tenant, task_hash).await.map_err(of_store)?;
        if fits.iter().any(|agent| !handled.contains(agent)) {
            return Ok(());
        }
        Err(Rejection::new(
            Kind::Refused,
            "NO_ELIGIBLE_AGENT",
            format!("Every agent with the capability '{capability}' has handled this task before."),
            "Register another agent, change the task's context, or submit it with \"collision\": \"lru\".",
        )
        .with("task_hash", task_hash)
        .with("handled_by", handled))
    }

    async fn view(&self, caller: &Caller, entity: Handled<Task>) -> Answer<TaskView> {
        TaskView { entity }.resolved(&self.0.engine, caller.actor.tenant).await
    }

    /// One task, if the caller may see it.
    pub async fn task(&self, caller: &Caller, id: TaskId) -> Answer<TaskView> {
        let task = self.visible(caller, id).await?;
        self.view(caller, task).await
    }

    async fn visible(&self, caller: &Caller, id: TaskId) -> Answer<Handled<Task>> {
        let task = self.read::<Task>(caller, &id.to_string()).await?;
        let task = task.ok_or_else(|| not_found(&id.to_string()))?;
        let who = &caller.actor.who;
        let is_own = is_own(&task.state, &who.id);
        if caller.sees_all() || is_own { Ok(task) } else { Err(not_found(&id.to_string())) }
    }

    /// Tasks by field. Whoever sees only its own gets those that it created, an agent those that it worked on.
    pub async fn tasks(&self, caller: &Caller, order: &ListOrder, mut fields: Vec<IndexField>) -> Answer<Page<Task>> {
        if !caller.sees_all() {
            let field = if caller.actor.who.kind == ActorKind::Agent { "agent" } else { "creator" };
            fields.insert(0, IndexField::new(field, &caller.actor.who.id));
        }
        self.list::<Task>(caller, order, fields).await
    }

    /// Why the agent that has the task, or had it last, was chosen.
    pub async fn decision(&self, caller: &Caller, id: TaskId) -> Answer<(AgentId, u64, Decision)> {
        let events = self.task_events(caller, id).await?;
        for event in events.iter().rev().filter(|e| e.header.kind == "tasks.task.claimed") {
            if let Ok(Some(TaskEvent::Claimed(claimed))) = TaskEvent::read(event) {
                return Ok((claimed.agent_id, event.header.version, claimed.decision));
            }
        }
        Err(Rejection::new(
            Kind::NotFound,
            "DECISION_NOT_FOUND",
            "No agent was chosen for this task yet.",
            "Read the task; a decision exists once it is claimed.",
        ))
    }

    /// Everything that happened to a task.
    pub async fn task_events(&self, caller: &Caller, id: TaskId) -> Answer<Vec<Arc<Recorded>>> {
        const EVENTS_MAX: usize = 10_000;
        let task = self.visible(caller, id).await?;
        self.0.engine.store().read(caller.actor.tenant, &task.stream, 1, EVENTS_MAX).await.map_err(of_store)
    }

    /// Calls a task off.
    pub async fn cancel(&self, caller: &Caller, id: TaskId, reason: Option<String>) -> Answer<TaskView> {
        self.change(caller, id, TaskCommand::Cancel { reason }).await
    }

    /// Tries a task again after it ended without success.
    pub async fn retry(&self, caller: &Caller, id: TaskId) -> Answer<TaskView> {
        self.change(caller, id, TaskCommand::Retry).await
    }

    /// Says more about a task: an answer to what its agent asked, or anything else that it should know.
    pub async fn say(&self, caller: &Caller, id: TaskId, message: Message) -> Answer<TaskView> {
        self.visible(caller, id).await?;
        check_said(&message)?;
        let mut extras = Extras::default();
        let command = TaskCommand::Say { message: Box::new(lighter(message, &mut extras)) };
        let task = self.execute::<Task>(caller, Step::on::<Task>(id, command), extras).await?;
        self.view(caller, task).await
    }

    async fn change(&self, caller: &Caller, id: TaskId, command: TaskCommand) -> Answer<TaskView> {
        self.visible(caller, id).await?;
        let task = self.execute::<Task>(caller, Step::on::<Task>(id, command), Extras::default()).await?;
        self.view(caller, task).await
    }

    /// Tasks that an agent claimed, whatever came of it.
    pub async fn tasks_of_agent(&self, caller: &Caller, agent: &Handled<Agent>, order: &ListOrder) -> Answer<Page<Task>> {
        self.list::<Task>(caller, order, vec![IndexField::new("agent", &agent.stream)]).await
    }

    /// The attempts of an agent, by task.
    pub async fn history(
        &self,
        caller: &Caller,
        agent: &Handled<Agent>,
        order: &ListOrder,
    ) -> Answer<(Vec<HistoryEntry>, Option<String>, u64)> {
        let page = self.tasks_of_agent(caller, agent, order).await?;
        let mut entries = vec![];
        for task in page.items {
            let own = task.state.attempts.iter().filter(|a| a.agent_id.to_string() == agent.stream).cloned().collect::<Vec<_>>();
            let latest_first = own.into_iter().rev();
            entries.extend(latest_first.map(|attempt| HistoryEntry { task: task.clone(), attempt }));
        }
        Ok((entries, page.next, page.position))
    }
}

fn check(new: &NewTask) -> Answer<()> {
    let mut problems = Problems::default();
    if new.description.trim().is_empty() {
        problems.add("/description", "must say what to do");
    }
    problems.text("/description", &new.description);
    problems.name("/capability", &new.capability);
    if let Some(queue) = &new.queue {
        problems.name("/queue", queue);
    }
    if new.priority.is_some_and(|p| p > 9) {
        problems.add("/priority", "must be 0 to 9");
    }
    if new.max_attempts.is_some_and(|n| !(1..=limits::ATTEMPTS_MAX).contains(&n)) {
        problems.add("/max_attempts", format!("must be 1 to {}", limits::ATTEMPTS_MAX));
    }
    if let Some(conversation) = &new.conversation {
        problems.name("/conversation", conversation);
    }
    if new.delay_ms.is_some_and(|ms| ms > limits::DELAY_MS_MAX) {
        problems.add("/delay_ms", format!("must be at most {}", limits::DELAY_MS_MAX));
    }
    problems.check()?;
    new.message.as_ref().map_or(Ok(()), check_message)
}

/// Whether a message is one: its parts are objects that hold one thing each.
pub(crate) fn check_message(message: &Message) -> Answer<()> {
    const HOLD: [&str; 4] = ["text", "data", "url", "raw"];
    let mut problems = Problems::default();
    problems.name("/id", &message.id);
    match message.parts.value().as_array() {
        Some(parts) if (1..=limits::ENTRIES_MAX).contains(&parts.len()) => {
            for (i, part) in parts.iter().enumerate() {
                let held = HOLD.iter().filter(|name| part.get(name).is_some()).count();
                let is_text = part.get("data").is_some() || HOLD.iter().any(|name| part.get(name).is_some_and(|v| v.is_string()));
                if held != 1 || !is_text {
                    problems.add(format!("/parts/{i}"), "must hold one of text, url and raw (texts) and data (anything)");
                }
            }
        }
        _ => problems.add("/parts", format!("must be an array of 1 to {} parts", limits::ENTRIES_MAX)),
    }
    problems.check()
}

/// Words of the description and of those context keys that speak of skills.
fn keywords(new: &NewTask) -> Vec<String> {
    const KEYS: [&str; 7] = ["technology_stack", "service_names", "operation_type", "domain", "domains", "tags", "languages"];
    let context = new.context.value();
    let mut all = new.description.clone();
    for value in KEYS.iter().filter_map(|key| context.get(key)) {
        let texts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for text in texts.iter().filter_map(serde_json::Value::as_str) {
            all.push(' ');
            all.push_str(text);
        }
    }
    let mut words = text::words(&all);
    words.truncate(KEYWORDS_MAX);
    words
}

/// Large values go beside the events, under their hash.
pub(crate) fn offload(value: Json, extras: &mut Extras) -> Json {
    match value.offload(limits::VALUE_INLINE_BYTES_MAX) {
        None => value,
        Some((reference, hash)) => {
            extras.values.push((hash, Some(value.text().as_bytes().to_vec())));
            reference
        }
    }
}

/// A message whose values go beside the events unless they are short: a task has many.
pub(crate) fn lighter(message: Message, extras: &mut Extras) -> Message {
    const INLINE_BYTES_MAX: usize = 1_024;
    let mut light = |value: Json| match value.offload(INLINE_BYTES_MAX) {
        None => value,
        Some((reference, hash)) => {
            extras.values.push((hash, Some(value.text().as_bytes().to_vec())));
            reference
        }
    };
    Message { id: message.id, parts: light(message.parts), metadata: light(message.metadata) }
}

/// Whether a message may be said about a task that is there: it is one, and no larger than such messages may be.
pub(crate) fn check_said(message: &Message) -> Answer<()> {
    check_message(message)?;
    let mut problems = Problems::default();
    if message.parts.text().len() + message.metadata.text().len() > SAID_BYTES_MAX {
        problems.add("/parts", format!("must have at most {SAID_BYTES_MAX} bytes; submit another task for more"));
    }
    problems.check()
}

/// The value that a reference points to; any other value is itself.
pub(crate) async fn resolve(engine: &Engine, log: TenantId, value: &Json) -> Answer<Json> {
    let Some(hash) = value.reference() else { return Ok(value.clone()) };
    match engine.store().value(log, &hash).await.map_err(of_store)? {
        None => Err(crate::app::internal("a stored value is missing".into())),
        Some(bytes) => {
            let text = String::from_utf8(bytes).map_err(|e| crate::app::internal(e.to_string()))?;
            Json::parse(text).map_err(|e| crate::app::internal(e.to_string()))
        }
    }
}

/// Whether a task is somebody's own: submitted or worked on by them.
pub(crate) fn is_own(task: &Task, id: &str) -> bool {
    task.submitted_by.id == id || task.attempts.iter().any(|attempt| attempt.agent_id.to_string() == id)
}
