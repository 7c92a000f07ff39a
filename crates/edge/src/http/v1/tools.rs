//! `/api/v1/tools`: tools of MCP servers: find, approve, call.

use super::auth::Empty;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, Params, limit, open_cursor, whole};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::{ListedTool, NewCall, Priority, ToolCall};
use axum::extract::State;
use axum::http::StatusCode;
use kernel::id::TaskId;
use kernel::{Json, Problem, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get)).routes(routes!(call)).routes(routes!(approve))
}

/// Which tools.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ToolParams {
    /// Words that name or description must hold, best fit first; by name when nothing is said.
    #[param(max_length = 500)]
    q: Option<String>,
    /// How many at most, 1 to 500; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the answer before.
    cursor: Option<String>,
}

/// A tool.
#[derive(Serialize, ToSchema)]
struct ToolAttributes {
    /// The name to call it by: `server__tool`.
    name: String,
    /// Its name at its server.
    tool: String,
    /// Its server's name.
    server: String,
    /// Its server's id.
    mcp_server_id: String,
    /// What it says it does.
    description: String,
    /// JSON Schema of its arguments.
    #[schema(value_type = Object)]
    input_schema: Value,
    /// JSON Schema of its structured result.
    #[schema(value_type = Option<Object>)]
    output_schema: Option<Value>,
    /// `ready`, `needs_approval` (it is not what was approved), `unavailable` (its server is not ready) or `withdrawn`
    status: &'static str,
    /// What somebody should look at before approving it; nothing once it is approved as it is, and in lists.
    findings: Vec<FindingBody>,
    /// SHA-256 of everything that it says of itself.
    hash: String,
    /// When it was first listed.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

/// Something odd about what a tool says of itself.
#[derive(Serialize, ToSchema)]
struct FindingBody {
    /// `hidden_text`, `instruction`, `concealment`, `secrets`, `encoded_text` or `look_alike`
    concern: String,
    /// `name`, or a JSON pointer into the tool's listing.
    place: String,
    /// What is there; what cannot be seen is written as its code.
    excerpt: String,
}

fn attributes(listed: &ListedTool) -> ToolAttributes {
    let tool = &listed.tool.state;
    ToolAttributes {
        name: tool.name(),
        tool: tool.manifest.tool.clone(),
        server: tool.server.clone(),
        mcp_server_id: tool.server_id.to_string(),
        description: tool.manifest.description.clone(),
        input_schema: tool.manifest.input_schema.value(),
        output_schema: tool.manifest.output_schema.as_ref().map(Json::value),
        status: listed.status.as_str(),
        findings: listed
            .findings
            .iter()
            .map(|f| FindingBody { concern: f.concern.into(), place: f.place.clone(), excerpt: f.excerpt.clone() })
            .collect(),
        hash: tool.manifest.hash.clone(),
        created_at: listed.tool.created_at.to_string(),
        updated_at: listed.tool.updated_at.to_string(),
        version: listed.tool.version,
    }
}

/// List tools, or find them by words
#[utoipa::path(get, path = "/api/v1/tools", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(ToolParams), responses((status = 200, body = Many<ToolAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<ToolParams>) -> Outcome {
    let limit = limit(params.limit)?;
    let (tools, position) = state.app.tools(&caller, params.q.as_deref().unwrap_or_default()).await?;
    let from = match params.cursor.as_deref().map(open_cursor).transpose()? {
        None => 0,
        Some(last) => tools.iter().position(|t| t.tool.stream == last).map(|at| at + 1).ok_or_else(|| {
            let message = "is a cursor of another list".to_owned();
            Failure::from(Rejection::invalid(&[Problem { pointer: "/cursor".into(), message }]))
        })?,
    };
    let page: Vec<_> = tools.iter().skip(from).take(limit).collect();
    let next = page.last().filter(|_| from + page.len() < tools.len()).map(|t| t.tool.stream.clone());
    let items: Vec<_> =
        page.iter().map(|t| Resource { id: t.tool.stream.clone(), kind: "tool", attributes: attributes(t) }).collect();
    Reply::list(&items, next, position)
}

/// Read a tool
#[utoipa::path(get, path = "/api/v1/tools/{id}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("id" = String, Path, description = "Id or full name"), AtParams), responses((status = 200, body = One<ToolAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    entity(&state.app.tool(&caller, &id).await?)
}

fn entity(listed: &ListedTool) -> Outcome {
    Reply::entity(StatusCode::OK, "tool", &listed.tool, attributes(listed))
}

/// Allow a tool as it is now
///
/// With `If-Match` only if it is still the version that was looked at.
#[utoipa::path(post, path = "/api/v1/tools/{id}/actions/approve", tag = "tools",
    extensions(("x-permission" = json!("tools.approve"))), params(("id" = String, Path, description = "Id or full name")),
    request_body = Empty, responses((status = 200, body = One<ToolAttributes>)))]
async fn approve(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    entity(&state.app.approve_tool(&input.by, &id).await?)
}

/// A call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CallBody {
    /// What the tool gets; checked against its input schema before.
    #[schema(value_type = Object)]
    #[serde(default)]
    arguments: Option<serde_json::Map<String, Value>>,
    /// The task that it is for; an agent names only a task that it holds.
    task_id: Option<String>,
    /// How long it may take; at most, and when nothing is said, `gateway.call_timeout`.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "whole")]
    timeout_ms: Option<u64>,
    /// How much it matters when its server has more to do than it may: `high` needs the permission `tools.prioritise`.
    #[serde(default)]
    priority: PriorityBody,
}

/// How much a call matters.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PriorityBody {
    /// Waits behind all others, and is turned away first.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Goes first.
    High,
}

impl From<PriorityBody> for Priority {
    fn from(body: PriorityBody) -> Self {
        match body {
            PriorityBody::Low => Priority::Low,
            PriorityBody::Normal => Priority::Normal,
            PriorityBody::High => Priority::High,
        }
    }
}

/// A call that was answered.
#[derive(Serialize, ToSchema)]
struct CallAttributes {
    /// The tool's full name.
    tool: String,
    /// The tool's id.
    tool_id: String,
    /// Its server's name.
    server: String,
    /// The task that it was for.
    task_id: Option<String>,
    /// Whether the tool says that it failed.
    is_error: bool,
    /// Content blocks, as the tool sent them.
    #[schema(value_type = Vec<Object>)]
    content: Box<RawValue>,
    /// Structured result, as the tool sent it.
    #[schema(value_type = Option<Object>)]
    structured_content: Option<Box<RawValue>>,
    /// The server that answered in the place of the tool's own, which did not.
    answered_by: Option<String>,
    /// How long it took.
    duration_ms: u64,
}

/// Call a tool
///
/// Recorded in the journal with arguments and result. A tool that says that it failed is an answer with `is_error`;
/// 502 says that no answer came and the tool may have done its work, 503 that it was not called.
#[utoipa::path(post, path = "/api/v1/tools/{id}/actions/call", tag = "tools", extensions(("x-permission" = json!("tools.call"))),
    params(("id" = String, Path, description = "Id or full name")), request_body = CallBody,
    responses((status = 200, body = One<CallAttributes>)))]
async fn call(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<CallBody>) -> Outcome {
    let body = input.body;
    let task_id = body.task_id.map(|id| id.parse::<TaskId>().map_err(|_| domain::task::not_found(&id))).transpose()?;
    let arguments = Json::of(&body.arguments.unwrap_or_default()).map_err(|_| Failure::internal())?;
    let new = NewCall { arguments, task_id, timeout_ms: body.timeout_ms, priority: body.priority.into() };
    let called = state.app.call_tool(&input.by, &id, new).await?;
    let raw = |json: &Json| RawValue::from_string(json.text().to_owned()).map_err(|_| Failure::internal());
    let ToolCall { id, tool, task_id, result, answered_by, duration_ms } = called;
    let attributes = CallAttributes {
        tool: tool.state.name(),
        tool_id: tool.stream.clone(),
        server: tool.state.server.clone(),
        task_id: task_id.map(|id| id.to_string()),
        is_error: result.is_error,
        content: raw(&result.content)?,
        structured_content: result.structured_content.as_ref().map(raw).transpose()?,
        answered_by,
        duration_ms,
    };
    Reply::data(StatusCode::OK, &Resource { id: id.to_string(), kind: "tool_call", attributes })
}
