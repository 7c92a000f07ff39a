//! The HTTP+JSON binding: an operation is a method and a path below the door's.

use super::errors::A2aError;
use super::request::{Operation, Params};
use super::visit::{Outcome, Visit, check_tenant};
use super::{events, json_of, received};
use crate::http::envelope::Failure;
use crate::http::state::EdgeState;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(send))
        .routes(routes!(stream))
        .routes(routes!(list))
        .routes(routes!(get, act))
        .routes(routes!(pushes, create_push))
        .routes(routes!(push, delete_push))
        .routes(routes!(extended_card))
}

/// Carries out what a request asks for, once its parameters are read.
async fn performed(
    state: Arc<EdgeState>,
    door: &str,
    request: Request,
    operation: impl FnOnce(Params) -> Result<Operation, A2aError>,
) -> Result<Response, Failure> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (visit, version, bytes) = received(&state, door, request).await?;
    let asked = version.and_then(|()| {
        let params = match bytes.is_empty() {
            true => Params::of_query(&query)?,
            false => Params::read(json_of(&bytes, &state)?)?,
        };
        check_tenant(&params, &visit.caller)?;
        operation(params)
    });
    Ok(match asked {
        Ok(asked) => answered(visit, asked).await,
        Err(error) => failed(&error),
    })
}

async fn answered(visit: Visit, asked: Operation) -> Response {
    match visit.perform(asked).await {
        Ok(Outcome::One(result)) => ([(header::CONTENT_TYPE, "application/a2a+json")], result.to_string()).into_response(),
        Ok(Outcome::Stream(telling)) => events(*telling, |update| update),
        Err(error) => failed(&error),
    }
}

fn failed(error: &A2aError) -> Response {
    (error.status(), [(header::CONTENT_TYPE, "application/a2a+json")], error.http_json().to_string()).into_response()
}

/// Send a message to an agent
///
/// A new task, or more about one (`message.taskId`). Answers when the task is over or waits for an answer, or at once with
/// `configuration.returnImmediately`.
#[utoipa::path(post, path = "/a2a/{door}/message:send", tag = "a2a", extensions(("x-permission" = json!("tasks.create"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name")), request_body = Object,
    responses((status = 200, description = "The task.", body = Object, content_type = "application/a2a+json")))]
async fn send(State(state): State<Arc<EdgeState>>, Path(door): Path<String>, request: Request) -> Result<Response, Failure> {
    performed(state, &door, request, |params| Ok(Operation::Send(Box::new(params.send()?)))).await
}

/// Send a message to an agent and follow its task
#[utoipa::path(post, path = "/a2a/{door}/message:stream", tag = "a2a", extensions(("x-permission" = json!("tasks.create"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name")), request_body = Object,
    responses((status = 200, description = "The task and what happens to it, as server-sent events.", body = String, content_type = "text/event-stream")))]
async fn stream(State(state): State<Arc<EdgeState>>, Path(door): Path<String>, request: Request) -> Result<Response, Failure> {
    performed(state, &door, request, |params| Ok(Operation::SendStreaming(Box::new(params.send()?)))).await
}

/// List tasks, the one that changed last first
///
/// Of the 1,000 newest; with messages only as many as historyLength says. Takes contextId, status, pageSize, pageToken, historyLength, statusTimestampAfter, includeArtifacts.
#[utoipa::path(get, path = "/a2a/{door}/tasks", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name")),
    responses((status = 200, description = "Tasks.", body = Object, content_type = "application/a2a+json")))]
async fn list(State(state): State<Arc<EdgeState>>, Path(door): Path<String>, request: Request) -> Result<Response, Failure> {
    performed(state, &door, request, Params::list).await
}

/// Read a task, or follow it with `:subscribe` behind its id
#[utoipa::path(get, path = "/a2a/{door}/tasks/{task}", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id")),
    responses((status = 200, description = "The task.", body = Object, content_type = "application/a2a+json")))]
async fn get(
    State(state): State<Arc<EdgeState>>,
    Path((door, task)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| match task.strip_suffix(":subscribe") {
        Some(task) => params.of_task(task.to_owned()).subscribe(),
        None => params.of_task(task).get(),
    })
    .await
}

/// Call a task off with `:cancel` behind its id, or follow it with `:subscribe`
///
/// Calling off needs `tasks.update` too.
#[utoipa::path(post, path = "/a2a/{door}/tasks/{task}", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id and verb, such as `task_…:cancel`")),
    request_body = Object, responses((status = 200, description = "The task.", body = Object, content_type = "application/a2a+json")))]
async fn act(
    State(state): State<Arc<EdgeState>>,
    Path((door, task)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| match task.rsplit_once(':') {
        Some((task, "cancel")) => params.of_task(task.to_owned()).cancel(),
        Some((task, "subscribe")) => params.of_task(task.to_owned()).subscribe(),
        _ => Err(A2aError::protocol(super::errors::METHOD_NOT_FOUND, "A task takes ':cancel' and ':subscribe' behind its id.")),
    })
    .await
}

/// List addresses that are told of a task
#[utoipa::path(get, path = "/a2a/{door}/tasks/{task}/pushNotificationConfigs", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id")),
    responses((status = 200, description = "Addresses.", body = Object, content_type = "application/a2a+json")))]
async fn pushes(
    State(state): State<Arc<EdgeState>>,
    Path((door, task)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| params.with_task(task).list_pushes()).await
}

/// Tell an address of a task
#[utoipa::path(post, path = "/a2a/{door}/tasks/{task}/pushNotificationConfigs", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id")),
    request_body = Object, responses((status = 200, description = "The address.", body = Object, content_type = "application/a2a+json")))]
async fn create_push(
    State(state): State<Arc<EdgeState>>,
    Path((door, task)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| params.with_task(task).create_push()).await
}

/// Read an address that is told of a task
#[utoipa::path(get, path = "/a2a/{door}/tasks/{task}/pushNotificationConfigs/{config}", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id"),
        ("config" = String, Path, description = "What it is called")),
    responses((status = 200, description = "The address.", body = Object, content_type = "application/a2a+json")))]
async fn push(
    State(state): State<Arc<EdgeState>>,
    Path((door, task, config)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| params.with_task(task).of_task(config).get_push()).await
}

/// Tell an address of a task nothing more
#[utoipa::path(delete, path = "/a2a/{door}/tasks/{task}/pushNotificationConfigs/{config}", tag = "a2a", extensions(("x-permission" = json!("tasks.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name"), ("task" = String, Path, description = "Id"),
        ("config" = String, Path, description = "What it is called")),
    responses((status = 200, description = "Nothing more is told.", body = Object, content_type = "application/a2a+json")))]
async fn delete_push(
    State(state): State<Arc<EdgeState>>,
    Path((door, task, config)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |params| params.with_task(task).of_task(config).delete_push()).await
}

/// Read the card of an agent with what it can do
#[utoipa::path(get, path = "/a2a/{door}/extendedAgentCard", tag = "a2a", extensions(("x-permission" = json!("discovery.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name")),
    responses((status = 200, description = "An agent card.", body = Object, content_type = "application/a2a+json")))]
async fn extended_card(
    State(state): State<Arc<EdgeState>>,
    Path(door): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    performed(state, &door, request, |_| Ok(Operation::Card)).await
}
