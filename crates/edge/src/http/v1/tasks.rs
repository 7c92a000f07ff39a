//! `/api/v1/tasks`: submit work, see what became of it and why.

use super::agents::word;
use super::auth::Empty;
use super::events::{EventBody, event_body};
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params, Sort, whole};
use crate::http::envelope::{Failure, Many, Meta, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, Text};
use crate::http::state::EdgeState;
use app::NewTask;
use axum::extract::State;
use axum::http::StatusCode;
use domain::task::{Collision, Message, Side, Task, not_found};
use engine::Handled;
use kernel::id::TaskId;
use kernel::{IndexField, Json, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get))
        .routes(routes!(decision))
        .routes(routes!(events))
        .routes(routes!(cancel))
        .routes(routes!(say))
        .routes(routes!(retry))
}

/// What happens when every agent that could do the task has done the same before.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CollisionBody {
    /// Nobody does it: `NO_ELIGIBLE_AGENT`.
    Strict,
    /// The least recently used agent does it, with a warning in the decision.
    Lru,
}

/// A task to be submitted. Only description and capability are needed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateTask {
    /// What to do.
    description: Text,
    /// Which capability it needs.
    capability: Name,
    /// Checked against the capability's input schema.
    #[serde(default)]
    input: Map<String, Value>,
    /// What else matters: file_paths, service_names, operation_type, technology_stack, any other key.
    #[serde(default)]
    context: Map<String, Value>,
    /// 9 is the most urgent; 5 when nothing is said.
    #[schema(minimum = 0, maximum = 9)]
    #[serde(default, deserialize_with = "whole")]
    priority: Option<u8>,
    /// Not before so long.
    #[schema(minimum = 0, maximum = 31622400000i64)]
    #[serde(default, deserialize_with = "whole")]
    delay_ms: Option<u64>,
    /// Not after.
    #[schema(format = DateTime)]
    deadline: Option<String>,
    /// How often it is tried; 3 when nothing is said.
    #[schema(minimum = 1, maximum = 100)]
    #[serde(default, deserialize_with = "whole")]
    max_attempts: Option<u32>,
    /// In which queue; `default` when nothing is said.
    queue: Option<Name>,
    /// `lru` when nothing is said.
    collision: Option<CollisionBody>,
    /// The only agent that may do it, by id or name; any that can when nothing is said.
    agent: Option<Name>,
    /// What it belongs to together with other tasks.
    conversation: Option<Name>,
}

/// A message of a task.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageBody {
    /// Whoever sends it chooses it: the same message twice is once. A fresh one when nothing is said.
    id: Option<Name>,
    /// What is said, as text; this or parts.
    text: Option<Text>,
    /// What is said, as parts of A2A: `{"text": …}`, `{"data": …}`, `{"url": …}` or `{"raw": …}`.
    #[serde(default)]
    #[schema(max_items = 64, value_type = Vec<Object>)]
    parts: Vec<Value>,
}

impl MessageBody {
    pub(crate) fn message(self, state: &EdgeState) -> Result<Message, Failure> {
        let mut parts = self.parts;
        parts.extend(self.text.map(|text| serde_json::json!({ "text": text.0 })));
        let fresh = || state.app.engine().env().id::<kernel::id::MessageTag>().to_string();
        let id = self.id.map_or_else(fresh, |id| id.0);
        Ok(Message { id, parts: Json::of(&parts).map_err(|_| Failure::internal())?, metadata: Json::empty_object() })
    }
}

/// A claim in force, as its holder sees it.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClaimBody {
    /// Names the claim; the same each time it is handed over.
    pub id: String,
    /// To be shown with every later write. Opaque. Shown to its holder only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whose it is.
    pub agent_id: String,
    /// Until when it holds without a heartbeat; only in answers to its holder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// What went wrong.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskErrorBody {
    /// For programs.
    #[schema(max_length = 8000)]
    pub code: String,
    /// For people.
    #[schema(max_length = 8000)]
    pub message: String,
}

/// How far a task is.
#[derive(Serialize, ToSchema)]
struct ProgressBody {
    /// 0 to 100.
    percent: Option<f64>,
    /// For people.
    message: Option<String>,
}

/// What was said about a task.
#[derive(Serialize, ToSchema)]
struct SaidBody {
    /// Names the message.
    id: String,
    /// `submitter` or `agent`
    by: String,
    /// When.
    at: String,
    /// What: parts of A2A.
    #[schema(value_type = Vec<Object>)]
    parts: Json,
}

/// A task. In lists, values over 16 KiB stand as `{"$value": "<sha-256>"}`; the task itself has them whole.
#[derive(Serialize, ToSchema)]
pub(crate) struct TaskAttributes {
    /// What to do.
    description: String,
    /// Which capability it needs.
    capability: String,
    /// What it works on.
    #[schema(value_type = Object)]
    input: Json,
    /// What else matters.
    #[schema(value_type = Object)]
    context: Json,
    /// SHA-256 of what makes it the same work as another task.
    task_hash: String,
    /// `pending`, `claimed`, `completed`, `failed`, `cancelled` or `dead`
    status: &'static str,
    /// 9 is the most urgent.
    priority: u8,
    /// In which queue.
    queue: String,
    /// `strict` or `lru`
    collision: String,
    /// The attempt in work, or how many were made.
    attempt: u32,
    /// How often it is tried.
    max_attempts: u32,
    /// The result.
    #[schema(value_type = Option<Value>)]
    output: Option<Json>,
    /// What the agent learned.
    #[schema(value_type = Vec<Value>)]
    learned_patterns: Vec<Json>,
    /// Numbers that the agent reported.
    #[schema(value_type = Option<Object>)]
    metrics: Option<Json>,
    /// What went wrong last.
    error: Option<TaskErrorBody>,
    /// The claim in force.
    claim: Option<ClaimBody>,
    /// How far it is.
    progress: Option<ProgressBody>,
    /// The agent that has it, or did it.
    agent_id: Option<String>,
    /// The only agent that may do it.
    assigned_to: Option<String>,
    /// What it belongs to together with other tasks.
    conversation: Option<String>,
    /// What was said, in order: the message that asked for it, questions of its agent, answers.
    messages: Vec<SaidBody>,
    /// Whether its agent waits for an answer.
    is_input_wanted: bool,
    /// Who submitted it.
    created_by: String,
    /// Not before, when it waits for that.
    not_before: Option<String>,
    /// Not after.
    deadline: Option<String>,
    /// When it was submitted.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

/// A task as it is shown; the claim's token only to its holder.
pub(crate) fn task_attributes(task: &Handled<Task>, claim: Option<ClaimBody>) -> TaskAttributes {
    let (state, submitted) = (&task.state, &task.state.submitted);
    let known_claim = || {
        let (claim, id) = (state.claim?, task.stream.parse().ok()?);
        Some(ClaimBody { id: app_claim_id(id, claim.token), token: None, agent_id: claim.agent_id.to_string(), expires_at: None })
    };
    TaskAttributes {
        description: submitted.description.clone(),
        capability: submitted.capability.clone(),
        input: submitted.input.clone(),
        context: submitted.context.clone(),
        task_hash: submitted.task_hash.clone(),
        status: state.status.as_str(),
        priority: submitted.priority,
        queue: submitted.queue.clone(),
        collision: word(&submitted.collision),
        attempt: state.attempt(),
        max_attempts: submitted.max_attempts,
        output: state.outcome.as_ref().map(|o| o.output.clone()),
        learned_patterns: state.outcome.as_ref().map(|o| o.learned_patterns.clone()).unwrap_or_default(),
        metrics: state.outcome.as_ref().map(|o| o.metrics.clone()),
        error: state.error.as_ref().map(|e| TaskErrorBody { code: e.code.clone(), message: e.message.clone() }),
        claim: claim.or_else(known_claim),
        progress: state.progress.as_ref().map(|p| ProgressBody { percent: p.percent, message: p.message.clone() }),
        agent_id: state.agent().map(|a| a.to_string()),
        assigned_to: submitted.agent.map(|agent| agent.to_string()),
        conversation: submitted.conversation.clone(),
        messages: messages(task),
        is_input_wanted: state.is_input_wanted(),
        created_by: state.submitted_by.to_string(),
        not_before: state.not_before.map(|t| t.to_string()),
        deadline: submitted.deadline.map(|t| t.to_string()),
        created_at: task.created_at.to_string(),
        updated_at: task.updated_at.to_string(),
        version: task.version,
    }
}

fn messages(task: &Handled<Task>) -> Vec<SaidBody> {
    let said = |by: Side, at: Timestamp, message: &Message| SaidBody {
        id: message.id.clone(),
        by: word(&by),
        at: at.to_string(),
        parts: message.parts.clone(),
    };
    let first = task.state.submitted.message.iter().map(|message| said(Side::Submitter, task.created_at, message));
    first.chain(task.state.messages.iter().map(|one| said(one.by, one.at, &one.message))).collect()
}

fn app_claim_id(task: TaskId, token: u64) -> String {
    app::claim_id(task, token).to_string()
}

/// The id in a path; whatever is no task's id is no task.
pub(crate) fn task_id(text: &str) -> Result<TaskId, Failure> {
    text.parse().map_err(|_| not_found(text).into())
}

/// Which tasks are listed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TaskParams {
    /// How many items; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `meta.next_cursor` of the page before.
    cursor: Option<String>,
    /// `-created_at` (newest first, as when nothing is said) or `created_at`.
    #[param(inline)]
    sort: Option<Sort>,
    /// Only with this status.
    #[serde(rename = "filter[status]")]
    #[param(rename = "filter[status]", inline)]
    status: Option<TaskStatus>,
    /// Only for this capability.
    #[serde(rename = "filter[capability]")]
    #[param(rename = "filter[capability]")]
    capability: Option<String>,
    /// Only the same work.
    #[serde(rename = "filter[task_hash]")]
    #[param(rename = "filter[task_hash]")]
    task_hash: Option<String>,
    /// A position of the log, or an instant such as `2026-01-01T00:00:00Z`; now when nothing is said.
    #[serde(rename = "at")]
    #[param(rename = "at")]
    _at: Option<String>,
}

/// The words for where a task stands.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TaskStatus {
    Pending,
    Claimed,
    Completed,
    Failed,
    Cancelled,
    Dead,
}

/// List tasks; callers with an `:own` permission see their own
#[utoipa::path(get, path = "/api/v1/tasks", tag = "tasks", extensions(("x-permission" = json!("tasks.read"))),
    params(TaskParams), responses((status = 200, body = Many<TaskAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<TaskParams>) -> Outcome {
    let mut fields = vec![];
    fields.extend(params.task_hash.map(|h| IndexField::new("task_hash", h)));
    fields.extend(params.status.map(|s| IndexField::new("status", word(&s))));
    fields.extend(params.capability.map(|c| IndexField::new("capability", c)));
    let order = ListParams::new(params.limit, params.cursor, params.sort, None).order()?;
    let page = state.app.tasks(&caller, &order, fields).await?;
    let items: Vec<_> = page
        .items
        .iter()
        .map(|t| Resource { id: t.stream.clone(), kind: "task", attributes: task_attributes(t, None) })
        .collect();
    Reply::list(&items, page.next, page.position)
}

/// Submit a task
#[utoipa::path(post, path = "/api/v1/tasks", tag = "tasks", extensions(("x-permission" = json!("tasks.create"))),
    request_body = CreateTask, responses((status = 201, body = One<TaskAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateTask>) -> Outcome {
    let body = input.body;
    let json = |map: &Map<String, Value>| Json::of(map).map_err(|_| Failure::internal());
    let new = NewTask {
        input: json(&body.input)?,
        context: json(&body.context)?,
        description: body.description.0,
        capability: body.capability.0,
        priority: body.priority,
        delay_ms: body.delay_ms,
        deadline: super::api_keys::time("/deadline", body.deadline.as_deref())?,
        max_attempts: body.max_attempts,
        queue: body.queue.map(|queue| queue.0),
        collision: body.collision.map(|c| match c {
            CollisionBody::Strict => Collision::Strict,
            CollisionBody::Lru => Collision::Lru,
        }),
        agent: body.agent.map(|agent| agent.0),
        conversation: body.conversation.map(|conversation| conversation.0),
        message: None,
    };
    let task = state.app.submit(&input.by, new).await?.entity;
    Reply::entity(StatusCode::CREATED, "task", &task, task_attributes(&task, None))
}

/// Read a task
#[utoipa::path(get, path = "/api/v1/tasks/{id}", tag = "tasks", extensions(("x-permission" = json!("tasks.read"))),
    params(("id" = String, Path, description = "Id"), AtParams), responses((status = 200, body = One<TaskAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let task = state.app.task(&caller, task_id(&id)?).await?.entity;
    Reply::entity(StatusCode::OK, "task", &task, task_attributes(&task, None))
}

/// The parts of a score, each 0 to 1.
#[derive(Serialize, ToSchema)]
struct Parts {
    /// How well domains, tags and description fit.
    specialisation: f64,
    /// How often it succeeded with this capability.
    success: f64,
    /// How free it was.
    load: f64,
    /// How cheap it was.
    cost: f64,
}

/// An agent that could have got the task.
#[derive(Serialize, ToSchema)]
struct CandidateBody {
    /// Who.
    agent_id: String,
    /// What it is called.
    name: String,
    /// The weighted parts, 0 to 1.
    score: f64,
    /// The parts before weighting.
    parts: Parts,
}

/// Why an agent got a task.
#[derive(Serialize, ToSchema)]
struct DecisionAttributes {
    /// The task.
    task_id: String,
    /// The agent that got it.
    agent_id: String,
    /// What counted.
    weights: Parts,
    /// The best candidates, best first, at most 20.
    candidates: Vec<CandidateBody>,
    /// How many agents with the capability were left out, by reason.
    excluded: BTreeMap<String, u64>,
    /// What people should know.
    warnings: Vec<String>,
}

/// Read why the task's agent was chosen
#[utoipa::path(get, path = "/api/v1/tasks/{id}/decision", tag = "tasks", extensions(("x-permission" = json!("tasks.read"))),
    params(("id" = String, Path, description = "Id")), responses((status = 200, body = One<DecisionAttributes>)))]
async fn decision(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    let (agent, token, decision) = state.app.decision(&caller, task_id(&id)?).await?;
    let w = decision.weights;
    let attributes = DecisionAttributes {
        agent_id: agent.to_string(),
        weights: Parts { specialisation: w.specialisation, success: w.success, load: w.load, cost: w.cost },
        candidates: decision
            .candidates
            .into_iter()
            .map(|c| CandidateBody {
                agent_id: c.agent_id.to_string(),
                name: c.name,
                score: c.score,
                parts: Parts { specialisation: c.parts[0], success: c.parts[1], load: c.parts[2], cost: c.parts[3] },
            })
            .collect(),
        excluded: decision.excluded,
        warnings: decision.warnings,
        task_id: id.clone(),
    };
    let resource = Resource { id: app_claim_id(task_id(&id)?, token), kind: "decision", attributes };
    Ok(Reply::data(StatusCode::OK, &resource)?.at(state.app.position(caller.actor.tenant)))
}

/// Events of a task.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventList {
    /// In order.
    data: Vec<EventBody>,
    /// About the answer.
    meta: Meta,
}

/// Read everything that happened to a task
#[utoipa::path(get, path = "/api/v1/tasks/{id}/events", tag = "tasks", extensions(("x-permission" = json!("tasks.read"))),
    params(("id" = String, Path, description = "Id")), responses((status = 200, body = EventList)))]
async fn events(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    let events = state.app.task_events(&caller, task_id(&id)?).await?;
    let items: Vec<_> = events.iter().map(|e| event_body(e)).collect();
    Ok(Reply::data(StatusCode::OK, &items)?.at(state.app.position(caller.actor.tenant)))
}

/// Why a task is called off.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CancelTask {
    /// For people; shown as the task's error.
    reason: Option<Text>,
}

/// Call a task off
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/cancel", tag = "tasks", extensions(("x-permission" = json!("tasks.update"))),
    params(("id" = String, Path, description = "Id")), request_body = CancelTask, responses((status = 200, body = One<TaskAttributes>)))]
async fn cancel(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<CancelTask>) -> Outcome {
    let reason = input.body.reason.map(|reason| reason.0);
    let task = state.app.cancel(&input.by, task_id(&id)?, reason).await?.entity;
    Reply::entity(StatusCode::OK, "task", &task, task_attributes(&task, None))
}

/// Say more about a task
///
/// An answer to what its agent asked, or anything else that it should know; the agent sees it with its next heartbeat.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/say", tag = "tasks", extensions(("x-permission" = json!("tasks.update"))),
    params(("id" = String, Path, description = "Id")), request_body = MessageBody, responses((status = 200, body = One<TaskAttributes>)))]
async fn say(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<MessageBody>) -> Outcome {
    let message = input.body.message(&state)?;
    let task = state.app.say(&input.by, task_id(&id)?, message).await?.entity;
    Reply::entity(StatusCode::OK, "task", &task, task_attributes(&task, None))
}

/// Try a dead, failed or cancelled task again
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/retry", tag = "tasks", extensions(("x-permission" = json!("tasks.update"))),
    params(("id" = String, Path, description = "Id")), request_body = Empty, responses((status = 200, body = One<TaskAttributes>)))]
async fn retry(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let task = state.app.retry(&input.by, task_id(&id)?).await?.entity;
    Reply::entity(StatusCode::OK, "task", &task, task_attributes(&task, None))
}
