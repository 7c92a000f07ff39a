//! `/api/v1/agents`: register agents, steer them, see what they did.

use super::api_keys::{self, KeyAttributes};
use super::auth::Empty;
use super::tasks::{TaskAttributes, task_attributes};
use super::users::Suspend;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params, Sort, whole};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, strings};
use crate::http::state::EdgeState;
use app::{AgentLoad, HistoryEntry, NewMandate};
use axum::extract::State;
use axum::http::StatusCode;
use domain::agent::{Agent, AgentCommand, Capability, Profile};
use engine::Handled;
use kernel::{IndexField, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(heartbeat))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(drain))
        .routes(routes!(restart))
        .routes(routes!(suspend))
        .routes(routes!(reinstate))
        .routes(routes!(connect))
        .routes(routes!(disconnect))
        .routes(routes!(issue_key))
        .routes(routes!(tasks))
        .routes(routes!(history))
}

/// Something an agent can do. Only the name is needed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCapability {
    /// The name that tasks ask for.
    name: Name,
    /// `1.0.0` when nothing is said.
    version: Option<Name>,
    /// For people and for the search.
    #[serde(default)]
    #[schema(max_length = 8000)]
    description: String,
    /// JSON Schema of a task's input; anything goes when nothing is said.
    #[schema(value_type = Option<Object>)]
    input_schema: Option<Value>,
    /// JSON Schema of a task's output; anything goes when nothing is said.
    #[schema(value_type = Option<Object>)]
    output_schema: Option<Value>,
    /// What it is specialised in.
    #[serde(default)]
    #[schema(max_items = 64)]
    domains: Vec<Name>,
    /// Free labels for discovery.
    #[serde(default)]
    #[schema(max_items = 64)]
    tags: Vec<Name>,
}

/// Something an agent can do.
#[derive(Serialize, ToSchema)]
struct CapabilityBody {
    /// The name that tasks ask for.
    name: String,
    /// Version of the capability.
    version: String,
    /// For people and for the search.
    description: String,
    /// JSON Schema of a task's input.
    #[schema(value_type = Option<Object>)]
    input_schema: Option<Value>,
    /// JSON Schema of a task's output.
    #[schema(value_type = Option<Object>)]
    output_schema: Option<Value>,
    /// What it is specialised in.
    domains: Vec<String>,
    /// Free labels for discovery.
    tags: Vec<String>,
}

/// What an agent says of itself. Only the name is needed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AgentBody {
    /// Unique name.
    name: Name,
    /// Free word for its kind; `generic` when nothing is said.
    agent_type: Option<Name>,
    /// For people and for the search.
    #[serde(default)]
    #[schema(max_length = 8000)]
    description: String,
    /// What it can do.
    #[serde(default)]
    #[schema(max_items = 64)]
    capabilities: Vec<NewCapability>,
    /// Tasks that it works on at a time; 10 when nothing is said.
    #[schema(minimum = 1, maximum = 100000)]
    #[serde(default, deserialize_with = "whole")]
    max_concurrency: Option<u32>,
    /// Price of a task in any unit that is the same for all agents; 0 when nothing is said.
    #[schema(minimum = 0, maximum = 1e12)]
    cost_per_task: Option<f64>,
    /// Free labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The user or service that answers for it, by id or name; whoever registers it when nothing is said.
    owner: Option<Name>,
    /// What it is for.
    #[schema(max_length = 8000)]
    purpose: Option<String>,
}

const MAX_CONCURRENCY_DEFAULT: u32 = 10;

/// An agent.
#[derive(Serialize, ToSchema)]
pub(crate) struct AgentAttributes {
    /// Unique name.
    name: String,
    /// Free word for its kind.
    agent_type: String,
    /// For people and for the search.
    description: String,
    /// `registered`, `up`, `degraded`, `down`, `paused`, `draining` or `suspended`
    status: &'static str,
    /// Why it is degraded or suspended.
    status_reason: Option<String>,
    /// What it can do.
    capabilities: Vec<CapabilityBody>,
    /// Tasks that it works on at a time.
    max_concurrency: u32,
    /// Price of a task.
    cost_per_task: f64,
    /// Free labels.
    labels: BTreeMap<String, String>,
    /// Id of the user or service that answers for it.
    owner: Option<String>,
    /// What it is for.
    purpose: Option<String>,
    /// Where it is, when work is brought to it over A2A.
    endpoint: Option<EndpointBody>,
    /// Whether it is asked to restart and was not told yet.
    restart_requested: bool,
    /// Until when it counts as there; only in the answer to a heartbeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expires_at: Option<String>,
    /// When it was registered.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

/// Where an agent is that speaks A2A.
#[derive(Serialize, ToSchema)]
struct EndpointBody {
    /// The address of its card, or the one below which the card lies.
    url: String,
    /// The names of the headers that go with every request to it.
    headers: Vec<String>,
}

pub(crate) fn attributes(agent: &Handled<Agent>) -> AgentAttributes {
    let (state, profile) = (&agent.state, &agent.state.profile);
    let schema = |schema: &Option<Json>| schema.as_ref().map(Json::value);
    AgentAttributes {
        name: profile.name.clone(),
        agent_type: profile.agent_type.clone(),
        description: profile.description.clone(),
        status: state.status(),
        endpoint: state.endpoint.as_ref().map(|at| EndpointBody { url: at.url.clone(), headers: at.headers.clone() }),
        status_reason: state.suspended.clone().or(state.degraded_reason.clone()),
        capabilities: profile
            .capabilities
            .iter()
            .map(|c| CapabilityBody {
                name: c.name.clone(),
                version: c.version.clone(),
                description: c.description.clone(),
                input_schema: schema(&c.input_schema),
                output_schema: schema(&c.output_schema),
                domains: c.domains.clone(),
                tags: c.tags.clone(),
            })
            .collect(),
        max_concurrency: profile.max_concurrency,
        cost_per_task: profile.cost_per_task,
        labels: profile.labels.clone(),
        owner: state.mandate.owner.map(|owner| owner.to_string()),
        purpose: state.mandate.purpose.clone(),
        restart_requested: state.is_restart_requested,
        lease_expires_at: None,
        created_at: agent.created_at.to_string(),
        updated_at: agent.updated_at.to_string(),
        deleted_at: state.is_deleted.then(|| agent.updated_at.to_string()),
        version: agent.version,
    }
}

fn parts(body: AgentBody) -> Result<(Profile, NewMandate), Failure> {
    let mandate = NewMandate { owner: body.owner.map(|owner| owner.0), purpose: body.purpose };
    let schema = |value: Option<Value>| value.map(|v| Json::of(&v)).transpose().map_err(|_| Failure::internal());
    let capabilities = body.capabilities.into_iter().map(|c| {
        Ok(Capability {
            name: c.name.0,
            version: c.version.map_or_else(|| "1.0.0".into(), |version| version.0),
            description: c.description,
            input_schema: schema(c.input_schema)?,
            output_schema: schema(c.output_schema)?,
            domains: strings(c.domains),
            tags: strings(c.tags),
        })
    });
    let profile = Profile {
        capabilities: capabilities.collect::<Result<_, Failure>>()?,
        name: body.name.0,
        agent_type: body.agent_type.map_or_else(|| "generic".into(), |kind| kind.0),
        description: body.description,
        max_concurrency: body.max_concurrency.unwrap_or(MAX_CONCURRENCY_DEFAULT),
        cost_per_task: body.cost_per_task.unwrap_or(0.0),
        labels: body.labels,
    };
    Ok((profile, mandate))
}

fn shown(status: StatusCode, agent: &Handled<Agent>) -> Outcome {
    Reply::entity(status, "agent", agent, attributes(agent))
}

/// Which agents are listed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AgentParams {
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
    status: Option<AgentStatus>,
    /// Only with this capability.
    #[serde(rename = "filter[capability]")]
    #[param(rename = "filter[capability]")]
    capability: Option<String>,
    /// Only those that this user or service answers for, by id.
    #[serde(rename = "filter[owner]")]
    #[param(rename = "filter[owner]")]
    owner: Option<String>,
    /// Shows deleted ones too.
    deleted: Option<bool>,
    /// A position of the log, or an instant such as `2026-01-01T00:00:00Z`; now when nothing is said.
    #[serde(rename = "at")]
    #[param(rename = "at")]
    _at: Option<String>,
}

/// The words for an agent's condition.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AgentStatus {
    Registered,
    Up,
    Degraded,
    Down,
    Paused,
    Draining,
    Suspended,
}

/// The word of a plain enumeration.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// List agents
#[utoipa::path(get, path = "/api/v1/agents", tag = "agents", extensions(("x-permission" = json!("agents.read"))),
    params(AgentParams), responses((status = 200, body = Many<AgentAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<AgentParams>) -> Outcome {
    let mut fields = vec![];
    fields.extend(params.capability.map(|c| IndexField::new("capability", c)));
    fields.extend(params.owner.map(|owner| IndexField::new("owner", owner)));
    fields.extend(params.status.map(|s| IndexField::new("status", word(&s))));
    let order = ListParams::new(params.limit, params.cursor, params.sort, params.deleted).order()?;
    let page = state.app.agents(&caller, &order, fields).await?;
    let items: Vec<_> =
        page.items.iter().map(|a| Resource { id: a.stream.clone(), kind: "agent", attributes: attributes(a) }).collect();
    Reply::list(&items, page.next, page.position)
}

/// Register an agent
#[utoipa::path(post, path = "/api/v1/agents", tag = "agents", extensions(("x-permission" = json!("agents.create"))),
    request_body = AgentBody, responses((status = 201, body = One<AgentAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<AgentBody>) -> Outcome {
    let (profile, mandate) = parts(input.body)?;
    shown(StatusCode::CREATED, &state.app.register_agent(&input.by, profile, mandate).await?)
}

/// Read an agent by id or name
#[utoipa::path(get, path = "/api/v1/agents/{id}", tag = "agents", extensions(("x-permission" = json!("agents.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<AgentAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    shown(StatusCode::OK, &state.app.agent(&caller, &id).await?)
}

/// Replace what an agent says of itself; owner and purpose stay where nothing is said, and are not the agent's to change
#[utoipa::path(put, path = "/api/v1/agents/{id}", tag = "agents", extensions(("x-permission" = json!("agents.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = AgentBody,
    responses((status = 200, body = One<AgentAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<AgentBody>) -> Outcome {
    let (profile, mandate) = parts(input.body)?;
    shown(StatusCode::OK, &state.app.update_agent(&input.by, &id, profile, mandate).await?)
}

/// Delete an agent; its keys end at once
#[utoipa::path(delete, path = "/api/v1/agents/{id}", tag = "agents", extensions(("x-permission" = json!("agents.delete"))),
    params(("id" = String, Path, description = "Id or name")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_agent(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// A sign of life.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AgentHeartbeat {
    /// How busy the agent is.
    #[serde(default)]
    load: Load,
}

/// How busy an agent says it is.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Load {
    /// Tasks in work, as the agent counts.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    running: Option<u32>,
    /// Tokens that wait in its queue.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    queued_tokens: Option<u64>,
    /// How full its context is; from 0.9 on it counts as degraded.
    #[schema(minimum = 0, maximum = 1)]
    context_fill: Option<f64>,
}

/// Say that an agent is there; the answer tells whether it is asked to restart
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/heartbeat", tag = "agents", extensions(("x-permission" = json!("agents.heartbeat"))),
    params(("id" = String, Path, description = "Id or name")), request_body = AgentHeartbeat,
    responses((status = 200, body = One<AgentAttributes>)))]
async fn heartbeat(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<AgentHeartbeat>) -> Outcome {
    let load = input.body.load;
    let load = AgentLoad { running: load.running, queued_tokens: load.queued_tokens, context_fill: load.context_fill };
    let (agent, lease, is_restart) = state.app.agent_heartbeat(&input.by, &id, load).await?;
    let attributes =
        AgentAttributes { lease_expires_at: Some(lease.to_string()), restart_requested: is_restart, ..attributes(&agent) };
    Ok(Reply::entity(StatusCode::OK, "agent", &agent, attributes)?.restart(is_restart))
}

async fn act(state: &EdgeState, input: Input<Empty>, id: &str, command: AgentCommand) -> Outcome {
    shown(StatusCode::OK, &state.app.command_agent(&input.by, id, command).await?)
}

/// Where an agent is that speaks A2A.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Connect {
    /// The address of its card, or the one below which `/.well-known/agent-card.json` lies. Shown with the agent.
    #[schema(max_length = 2048)]
    url: String,
    /// Headers that go with every request to it, such as its credentials. Sealed; only their names are shown.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Bring work to an agent that speaks A2A
///
/// Its card is read; an agent without capabilities gets the card's skills. From now on tasks are sent to it.
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/connect", tag = "agents", extensions(("x-permission" = json!("agents.connect"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Connect, responses((status = 200, body = One<AgentAttributes>)))]
async fn connect(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Connect>) -> Outcome {
    let Connect { url, headers } = input.body;
    let agent = state.app.connect_agent(&input.by, &id, app::NewEndpoint { url, headers }).await?;
    shown(StatusCode::OK, &agent)
}

/// Let an agent fetch its work by itself again
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/disconnect", tag = "agents", extensions(("x-permission" = json!("agents.connect"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn disconnect(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let agent = state.app.disconnect_agent(&input.by, &id).await?;
    shown(StatusCode::OK, &agent)
}

/// Give an agent no new work
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/pause", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn pause(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    act(&state, input, &id, AgentCommand::Pause).await
}

/// Give an agent work again
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/resume", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn resume(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    act(&state, input, &id, AgentCommand::Resume).await
}

/// Let an agent finish what it has, and give it nothing new
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/drain", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn drain(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    act(&state, input, &id, AgentCommand::Drain).await
}

/// Ask an agent to restart; it is told at its next heartbeat or claim
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/restart", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn restart(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    act(&state, input, &id, AgentCommand::RequestRestart).await
}

/// Suspend an agent: its keys and tokens are refused everywhere at once, and its claims end
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/suspend", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Suspend, responses((status = 200, body = One<AgentAttributes>)))]
async fn suspend(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Suspend>) -> Outcome {
    let command = AgentCommand::Suspend { reason: input.body.reason };
    shown(StatusCode::OK, &state.app.command_agent(&input.by, &id, command).await?)
}

/// Let a suspended agent work again
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/reinstate", tag = "agents", extensions(("x-permission" = json!("agents.control"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<AgentAttributes>)))]
async fn reinstate(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    act(&state, input, &id, AgentCommand::Reinstate).await
}

/// Make a key with which the agent acts as itself; it is shown once
#[utoipa::path(post, path = "/api/v1/agents/{id}/actions/issue-key", tag = "agents", extensions(("x-permission" = json!("agents.keys"))),
    params(("id" = String, Path, description = "Id or name")), request_body = Empty, responses((status = 200, body = One<KeyAttributes>)))]
async fn issue_key(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let agent = state.app.agent(&input.by, &id).await?;
    let (key, shown) = state.app.issue_agent_key(&input.by, &agent).await?;
    Reply::entity(StatusCode::OK, "api_key", &key, api_keys::attributes(&key, Some(shown)))
}

/// List the tasks that an agent claimed
#[utoipa::path(get, path = "/api/v1/agents/{id}/tasks", tag = "agents", extensions(("x-permission" = json!("agents.read"))),
    params(("id" = String, Path, description = "Id or name"), ListParams), responses((status = 200, body = Many<TaskAttributes>)))]
async fn tasks(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Handle(id): Handle,
    Params(params): Params<ListParams>,
) -> Outcome {
    let agent = state.app.agent(&caller, &id).await?;
    let page = state.app.tasks_of_agent(&caller, &agent, &params.order()?).await?;
    let items: Vec<_> = page
        .items
        .iter()
        .map(|t| Resource { id: t.stream.clone(), kind: "task", attributes: task_attributes(t, None) })
        .collect();
    Reply::list(&items, page.next, page.position)
}

/// One attempt of an agent at a task.
#[derive(Serialize, ToSchema)]
struct HistoryAttributes {
    /// The task.
    task_id: String,
    /// What makes it the same work as another task.
    task_hash: String,
    /// The agent.
    agent_id: String,
    /// Its type at that time.
    agent_type: String,
    /// What was to do.
    task_description: String,
    /// What else mattered.
    #[schema(value_type = Object)]
    task_context: Json,
    /// From when.
    started_at: String,
    /// Until when.
    completed_at: Option<String>,
    /// `in_progress`, `completed`, `failed` or `abandoned`
    status: String,
    /// How it ended, for people.
    result_summary: Option<String>,
    /// What the agent learned.
    #[schema(value_type = Vec<Value>)]
    learned_patterns: Vec<Json>,
    /// Numbers that the agent reported.
    #[schema(value_type = Option<Object>)]
    performance_metrics: Option<Json>,
    /// The person behind the task.
    user_id: Option<String>,
    /// When the attempt began.
    created_at: String,
}

fn history_attributes(entry: &HistoryEntry) -> Resource<HistoryAttributes> {
    let (task, attempt) = (&entry.task.state, &entry.attempt);
    let outcome = task.outcome.as_ref().filter(|_| word(&attempt.status) == "completed");
    Resource {
        id: format!("{}:{}", entry.task.stream, attempt.token),
        kind: "agent_task_history",
        attributes: HistoryAttributes {
            task_id: entry.task.stream.clone(),
            task_hash: task.submitted.task_hash.clone(),
            agent_id: attempt.agent_id.to_string(),
            agent_type: attempt.agent_type.clone(),
            task_description: task.submitted.description.clone(),
            task_context: task.submitted.context.clone(),
            started_at: attempt.started_at.to_string(),
            completed_at: attempt.ended_at.map(|t| t.to_string()),
            status: word(&attempt.status),
            result_summary: attempt.summary.clone().or_else(|| outcome.map(|o| summary(&o.output))),
            learned_patterns: outcome.map(|o| o.learned_patterns.clone()).unwrap_or_default(),
            performance_metrics: outcome.map(|o| o.metrics.clone()),
            user_id: domain::task::user_of(task).map(|u| u.to_string()),
            created_at: attempt.started_at.to_string(),
        },
    }
}

/// The first characters of an output.
fn summary(output: &Json) -> String {
    output.text().chars().take(200).collect()
}

/// What an agent did: one entry per attempt, tasks newest first
#[utoipa::path(get, path = "/api/v1/agents/{id}/history", tag = "agents", extensions(("x-permission" = json!("agents.read"))),
    params(("id" = String, Path, description = "Id or name"), ListParams), responses((status = 200, body = Many<HistoryAttributes>)))]
async fn history(
    State(state): State<Arc<EdgeState>>,
    AsOf(caller): AsOf,
    Handle(id): Handle,
    Params(params): Params<ListParams>,
) -> Outcome {
    let agent = state.app.agent(&caller, &id).await?;
    let (entries, next, position) = state.app.history(&caller, &agent, &params.order()?).await?;
    let items: Vec<_> = entries.iter().map(history_attributes).collect();
    Reply::list(&items, next, position)
}
