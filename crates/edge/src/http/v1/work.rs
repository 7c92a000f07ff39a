//! What agents do with tasks: claim them, and say how they go.

use super::tasks::{ClaimBody, MessageBody, TaskAttributes, TaskErrorBody, task_attributes, task_id};
use crate::http::body::{Input, whole};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::{Caller, ClaimOrder, TaskOutcome};
use axum::extract::State;
use axum::http::StatusCode;
use domain::task::{Outcome as TaskResult, TaskError};
use kernel::{Json, Problem, Rejection, limits};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(claim))
        .routes(routes!(heartbeat))
        .routes(routes!(progress))
        .routes(routes!(ask))
        .routes(routes!(release))
        .routes(routes!(complete))
        .routes(routes!(fail))
}

/// How much work is asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ClaimRequest {
    /// How many tasks at most; 1 when nothing is said.
    #[schema(minimum = 1, maximum = 100)]
    #[serde(default, deserialize_with = "whole")]
    max: Option<u32>,
    /// How long to wait for the first; not at all when nothing is said.
    #[schema(minimum = 0, maximum = 60000)]
    #[serde(default, deserialize_with = "whole")]
    wait_ms: Option<u64>,
}

/// The claim that goes on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ClaimHeartbeat {
    /// The claim's token.
    claim_token: String,
}

/// How far the work is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Progress {
    /// The claim's token.
    claim_token: String,
    /// 0 to 100.
    #[schema(minimum = 0, maximum = 100)]
    percent: Option<f64>,
    /// For people.
    #[schema(max_length = 8000)]
    message: Option<String>,
}

/// What the agent wants to know.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ask {
    /// The claim's token.
    claim_token: String,
    /// What.
    message: MessageBody,
}

/// The claim that is given back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Release {
    /// The claim's token.
    claim_token: String,
    /// Why.
    #[serde(default)]
    #[schema(max_length = 8000)]
    reason: String,
}

/// How the work was done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Complete {
    /// The claim's token.
    claim_token: String,
    /// Checked against the capability's output schema; `{}` when nothing is said.
    #[serde(default = "empty")]
    #[schema(value_type = Object)]
    output: Value,
    /// What the agent learned.
    #[serde(default)]
    #[schema(max_items = 64)]
    learned_patterns: Vec<Value>,
    /// Numbers that the agent reports.
    #[serde(default)]
    metrics: Map<String, Value>,
}

fn empty() -> Value {
    json!({})
}

/// What went wrong.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Fail {
    /// The claim's token.
    claim_token: String,
    /// `FAILED` without a message when nothing is said.
    error: Option<TaskErrorBody>,
    /// Whether another attempt may help; true when nothing is said.
    retryable: Option<bool>,
}

/// Claim work as an agent
///
/// Answers at once when there is work, otherwise when there is some or the wait is over; then with an empty list.
/// Claims that never reached the agent come first, so the same claim (by its `id`) may be handed over more than once.
#[utoipa::path(post, path = "/api/v1/tasks/actions/claim", tag = "work", extensions(("x-permission" = json!("tasks.claim"))),
    request_body = ClaimRequest, responses((status = 200, body = Many<TaskAttributes>)))]
async fn claim(State(state): State<Arc<EdgeState>>, input: Input<ClaimRequest>) -> Outcome {
    let order = ClaimOrder { max: input.body.max.unwrap_or(1), wait_ms: input.body.wait_ms.unwrap_or(0) };
    let mut problems = vec![];
    let mut check = |pointer: &str, is_ok: bool, message: String| {
        if !is_ok {
            problems.push(Problem { pointer: pointer.to_owned(), message });
        }
    };
    check("/max", (1..=limits::CLAIM_TASKS_MAX).contains(&order.max), format!("must be 1 to {}", limits::CLAIM_TASKS_MAX));
    check("/wait_ms", order.wait_ms <= limits::WAIT_MS_MAX, format!("must be at most {}", limits::WAIT_MS_MAX));
    if !problems.is_empty() {
        return Err(Rejection::invalid(&problems).into());
    }
    let (claimed, is_restart) = state.app.claim(&input.by, order).await?;
    let items: Vec<_> = claimed
        .iter()
        .map(|c| {
            let claim = ClaimBody {
                id: c.claim_id.to_string(),
                token: Some(c.token.to_string()),
                agent_id: input.by.actor.who.id.clone(),
                expires_at: Some(c.expires_at.to_string()),
            };
            Resource { id: c.task.entity.stream.clone(), kind: "task", attributes: task_attributes(&c.task.entity, Some(claim)) }
        })
        .collect();
    Ok(Reply::list(&items, None, state.app.position(input.by.actor.tenant))?.restart(is_restart))
}

async fn report(state: &EdgeState, by: &Caller, id: &str, token: &str, outcome: TaskOutcome) -> Outcome {
    let (task, lease) = state.app.report(by, task_id(id)?, token, outcome).await?;
    let task = task.entity;
    let claim = task.state.claim.zip(lease).and_then(|(claim, lease)| {
        Some(ClaimBody {
            id: app::claim_id(task.stream.parse().ok()?, claim.token).to_string(),
            token: Some(claim.token.to_string()),
            agent_id: claim.agent_id.to_string(),
            expires_at: Some(lease.to_string()),
        })
    });
    Reply::entity(StatusCode::OK, "task", &task, task_attributes(&task, claim))
}

/// Keep a claim
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/heartbeat", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = ClaimHeartbeat, responses((status = 200, body = One<TaskAttributes>)))]
async fn heartbeat(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<ClaimHeartbeat>) -> Outcome {
    report(&state, &input.by, &id, &input.body.claim_token, TaskOutcome::Heartbeat).await
}

/// Say how far the work is; keeps the claim too
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/progress", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = Progress, responses((status = 200, body = One<TaskAttributes>)))]
async fn progress(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Progress>) -> Outcome {
    let Progress { claim_token, percent, message } = input.body;
    if percent.is_some_and(|p| !(0.0..=100.0).contains(&p)) {
        return Err(Rejection::invalid(&[Problem { pointer: "/percent".into(), message: "must be 0 to 100".into() }]).into());
    }
    short("/message", message.as_deref().unwrap_or_default())?;
    report(&state, &input.by, &id, &claim_token, TaskOutcome::Progress { percent, message }).await
}

/// Ask whoever submitted the task; keeps the claim too
///
/// The answer comes with later heartbeats, in `messages`; until then the claim wants to be kept as ever.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/ask", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = Ask, responses((status = 200, body = One<TaskAttributes>)))]
async fn ask(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Ask>) -> Outcome {
    let message = input.body.message.message(&state)?;
    report(&state, &input.by, &id, &input.body.claim_token, TaskOutcome::Ask { message }).await
}

/// Give a task back; the agent has not handled it
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/release", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = Release, responses((status = 200, body = One<TaskAttributes>)))]
async fn release(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Release>) -> Outcome {
    short("/reason", &input.body.reason)?;
    report(&state, &input.by, &id, &input.body.claim_token, TaskOutcome::Release { reason: input.body.reason }).await
}

/// Say that a task is done
///
/// The same completion may be repeated; a different one, or one whose claim is no longer in force, is refused with 409.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/complete", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = Complete, responses((status = 200, body = One<TaskAttributes>)))]
async fn complete(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Complete>) -> Outcome {
    let body = input.body;
    if !body.output.is_object() {
        return Err(Rejection::invalid(&[Problem { pointer: "/output".into(), message: "must be an object".into() }]).into());
    }
    if body.learned_patterns.len() > limits::ENTRIES_MAX {
        let message = format!("must have at most {} entries", limits::ENTRIES_MAX);
        return Err(Rejection::invalid(&[Problem { pointer: "/learned_patterns".into(), message }]).into());
    }
    let json = |value: &Value| Json::of(value).map_err(|_| Failure::internal());
    let outcome = TaskResult {
        output: json(&body.output)?,
        learned_patterns: body.learned_patterns.iter().map(json).collect::<Result<_, _>>()?,
        metrics: json(&Value::Object(body.metrics))?,
    };
    report(&state, &input.by, &id, &body.claim_token, TaskOutcome::Complete(outcome)).await
}

/// Say that a task could not be done
#[utoipa::path(post, path = "/api/v1/tasks/{id}/actions/fail", tag = "work", extensions(("x-permission" = json!("tasks.work"))),
    params(("id" = String, Path, description = "Id")), request_body = Fail, responses((status = 200, body = One<TaskAttributes>)))]
async fn fail(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Fail>) -> Outcome {
    let Fail { claim_token, error, retryable } = input.body;
    let error = error
        .map_or(TaskError { code: "FAILED".into(), message: String::new() }, |e| TaskError { code: e.code, message: e.message });
    short("/error/code", &error.code)?;
    short("/error/message", &error.message)?;
    report(&state, &input.by, &id, &claim_token, TaskOutcome::Fail { error, is_retryable: retryable.unwrap_or(true) }).await
}

fn short(pointer: &str, text: &str) -> Result<(), Failure> {
    if text.chars().count() <= limits::DESCRIPTION_CHARS_MAX {
        return Ok(());
    }
    let message = format!("must have at most {} characters", limits::DESCRIPTION_CHARS_MAX);
    Err(Rejection::invalid(&[Problem { pointer: pointer.to_owned(), message }]).into())
}
