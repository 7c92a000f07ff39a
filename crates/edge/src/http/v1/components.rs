//! `/api/v1/components`: things whose health is followed, and what they need.

use super::agents::word;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params, Sort, number};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::{ComponentView, Impact, NewComponent, NewNeed, NewSubject};
use axum::extract::State;
use axum::http::StatusCode;
use domain::component::{Component, Probe, Subject};
use engine::Handled;
use kernel::id::ComponentId;
use kernel::{IndexField, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete)).routes(routes!(impact))
}

/// How something outside is looked at.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ProbeBody {
    /// A GET that answers 200 to 299. Redirects are not followed.
    Http {
        /// Where.
        #[schema(min_length = 1, max_length = 2048)]
        url: String,
    },
    /// A connection.
    Tcp {
        /// `HOST:PORT`
        #[schema(min_length = 1, max_length = 255)]
        address: String,
    },
    /// A Redis server that answers `PING`, also if only to say that it wants a password.
    Redis {
        /// `HOST:PORT`
        #[schema(min_length = 1, max_length = 255)]
        address: String,
    },
    /// A PostgreSQL server that answers the first question of its protocol.
    Postgres {
        /// `HOST:PORT`
        #[schema(min_length = 1, max_length = 255)]
        address: String,
    },
}

/// What a component stands for.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum NewSubjectBody {
    /// An agent: as healthy as its heartbeats say.
    Agent {
        /// Its id.
        #[schema(max_length = 64)]
        agent: String,
    },
    /// An MCP server: as healthy as its connection and its calls are.
    McpServer {
        /// Its id or name.
        #[schema(max_length = 64)]
        mcp_server: String,
    },
    /// Something outside, looked at again and again.
    Probe {
        /// How.
        probe: ProbeBody,
        /// How often.
        #[serde(default = "ten_seconds", deserialize_with = "number")]
        #[schema(minimum = 1000, maximum = 3_600_000, default = 10000)]
        every_ms: u64,
        /// How long an answer may take.
        #[serde(default = "two_seconds", deserialize_with = "number")]
        #[schema(minimum = 100, maximum = 30000, default = 2000)]
        timeout_ms: u64,
        /// Failures in a row before it counts as down.
        #[serde(default = "two", deserialize_with = "number")]
        #[schema(minimum = 1, maximum = 100, default = 2)]
        failures: u32,
        /// Answers in a row before it counts as up again.
        #[serde(default = "two", deserialize_with = "number")]
        #[schema(minimum = 1, maximum = 100, default = 2)]
        successes: u32,
    },
    /// Nothing of its own: as healthy as what it needs.
    Group {},
}

fn ten_seconds() -> u64 {
    10_000
}

fn two_seconds() -> u64 {
    2_000
}

fn two() -> u32 {
    2
}

/// Something that a component needs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewNeedBody {
    /// Id or name of the component.
    #[schema(max_length = 128)]
    component: String,
    /// Whether nothing goes without it; else it only degrades whatever needs it.
    #[serde(default = "yes")]
    #[schema(default = true)]
    is_required: bool,
}

fn yes() -> bool {
    true
}

/// A component.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ComponentBody {
    /// Unique name.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 2000)]
    description: String,
    /// What it stands for.
    subject: NewSubjectBody,
    /// What it needs.
    #[serde(default)]
    #[schema(max_items = 64)]
    needs: Vec<NewNeedBody>,
}

/// What a component stands for.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum SubjectBody {
    /// An agent.
    Agent {
        /// Its id.
        agent_id: String,
    },
    /// An MCP server.
    McpServer {
        /// Its id.
        mcp_server_id: String,
    },
    /// Something outside.
    Probe {
        /// How it is looked at.
        probe: ProbeBody,
        /// How often.
        every_ms: u64,
        /// How long an answer may take.
        timeout_ms: u64,
        /// Failures in a row before it counts as down.
        failures: u32,
        /// Answers in a row before it counts as up again.
        successes: u32,
    },
    /// Nothing of its own.
    Group,
}

/// Something that a component needs.
#[derive(Serialize, ToSchema)]
struct NeedBody {
    /// Id of the component.
    component_id: String,
    /// Its name now; `null` when it is gone, and takes nobody with it.
    component: Option<String>,
    /// Whether nothing goes without it.
    is_required: bool,
}

/// Where trouble began.
#[derive(Serialize, ToSchema)]
struct CauseBody {
    /// Id of the component.
    component_id: String,
    /// Its name now.
    component: Option<String>,
    /// What is wrong there.
    reason: String,
}

/// A component.
#[derive(Serialize, ToSchema)]
struct ComponentAttributes {
    /// Unique name.
    name: String,
    /// For people.
    description: String,
    /// What it stands for.
    subject: SubjectBody,
    /// What it needs.
    needs: Vec<NeedBody>,
    /// `up`, `degraded`, `down` or `unknown`, with what it needs taken into account
    status: &'static str,
    /// What makes it so: the component where it began, perhaps itself.
    cause: Option<CauseBody>,
    /// Whether its status has changed so often that it counts as degraded until it is steady for a minute.
    is_flapping: bool,
    /// Since when its status is this.
    since: String,
    /// When it was registered.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn attributes(component: &Handled<Component>, names: &BTreeMap<ComponentId, String>) -> ComponentAttributes {
    let state = &component.state;
    let subject = match &state.profile.subject {
        Subject::Agent { agent_id } => SubjectBody::Agent { agent_id: agent_id.to_string() },
        Subject::McpServer { server_id } => SubjectBody::McpServer { mcp_server_id: server_id.to_string() },
        Subject::Group => SubjectBody::Group,
        Subject::Probe { probe, every_ms, timeout_ms, failures, successes } => {
            let (every_ms, timeout_ms, failures, successes) = (*every_ms, *timeout_ms, *failures, *successes);
            SubjectBody::Probe { probe: shown(probe), every_ms, timeout_ms, failures, successes }
        }
    };
    let need = |need: &domain::component::Need| NeedBody {
        component_id: need.component_id.to_string(),
        component: names.get(&need.component_id).cloned(),
        is_required: need.is_required,
    };
    let cause = state.health.cause.as_ref().map(|cause| CauseBody {
        component_id: cause.component_id.to_string(),
        component: names.get(&cause.component_id).cloned(),
        reason: cause.reason.clone(),
    });
    ComponentAttributes {
        name: state.profile.name.clone(),
        description: state.profile.description.clone(),
        subject,
        needs: state.profile.needs.iter().map(need).collect(),
        status: state.health.status.as_str(),
        cause,
        is_flapping: state.health.is_flapping,
        since: Timestamp(state.since_ms).to_string(),
        created_at: component.created_at.to_string(),
        updated_at: component.updated_at.to_string(),
        deleted_at: state.is_deleted.then(|| component.updated_at.to_string()),
        version: component.version,
    }
}

fn shown(probe: &Probe) -> ProbeBody {
    match probe.clone() {
        Probe::Http { url } => ProbeBody::Http { url },
        Probe::Tcp { address } => ProbeBody::Tcp { address },
        Probe::Redis { address } => ProbeBody::Redis { address },
        Probe::Postgres { address } => ProbeBody::Postgres { address },
    }
}

fn described(body: ComponentBody) -> NewComponent {
    let subject = match body.subject {
        NewSubjectBody::Agent { agent } => NewSubject::Agent(agent),
        NewSubjectBody::McpServer { mcp_server } => NewSubject::McpServer(mcp_server),
        NewSubjectBody::Group {} => NewSubject::Group,
        NewSubjectBody::Probe { probe, every_ms, timeout_ms, failures, successes } => {
            let probe = match probe {
                ProbeBody::Http { url } => Probe::Http { url },
                ProbeBody::Tcp { address } => Probe::Tcp { address },
                ProbeBody::Redis { address } => Probe::Redis { address },
                ProbeBody::Postgres { address } => Probe::Postgres { address },
            };
            NewSubject::Probe { probe, every_ms, timeout_ms, failures, successes }
        }
    };
    let needs = body.needs.into_iter().map(|need| NewNeed { component: need.component, is_required: need.is_required });
    NewComponent { name: body.name, description: body.description, subject, needs: needs.collect() }
}

fn entity(status: StatusCode, view: &ComponentView) -> Outcome {
    Reply::entity(status, "component", &view.component, attributes(&view.component, &view.names))
}

/// Which components.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ComponentParams {
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
    status: Option<ComponentStatus>,
    /// Shows deleted ones too.
    deleted: Option<bool>,
    /// A position of the log, or an instant such as `2026-01-01T00:00:00Z`; now when nothing is said.
    #[serde(rename = "at")]
    #[param(rename = "at")]
    _at: Option<String>,
}

/// The words for how a component is.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ComponentStatus {
    Up,
    Unknown,
    Degraded,
    Down,
}

/// List components
#[utoipa::path(get, path = "/api/v1/components", tag = "registry", extensions(("x-permission" = json!("registry.components.read"))),
    params(ComponentParams), responses((status = 200, body = Many<ComponentAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ComponentParams>) -> Outcome {
    let fields = params.status.map(|status| IndexField::new("status", word(&status))).into_iter().collect();
    let order = ListParams::new(params.limit, params.cursor, params.sort, params.deleted).order()?;
    let (page, names) = state.app.components(&caller, &order, fields).await?;
    let resource =
        |c: &Handled<Component>| Resource { id: c.stream.clone(), kind: "component", attributes: attributes(c, &names) };
    let items: Vec<_> = page.items.iter().map(resource).collect();
    Reply::list(&items, page.next, page.position)
}

/// Make a component known
///
/// Its health is followed from then on, and told as `registry.component.health_changed`.
#[utoipa::path(post, path = "/api/v1/components", tag = "registry", extensions(("x-permission" = json!("registry.components.create"))),
    request_body = ComponentBody, responses((status = 201, body = One<ComponentAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<ComponentBody>) -> Outcome {
    let view = state.app.register_component(&input.by, described(input.body)).await?;
    entity(StatusCode::CREATED, &view)
}

/// Read a component
#[utoipa::path(get, path = "/api/v1/components/{id}", tag = "registry", extensions(("x-permission" = json!("registry.components.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<ComponentAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    entity(StatusCode::OK, &state.app.component(&caller, &id).await?)
}

/// Replace what is said of a component
#[utoipa::path(put, path = "/api/v1/components/{id}", tag = "registry", extensions(("x-permission" = json!("registry.components.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = ComponentBody,
    responses((status = 200, body = One<ComponentAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<ComponentBody>) -> Outcome {
    entity(StatusCode::OK, &state.app.update_component(&input.by, &id, described(input.body)).await?)
}

/// Remove a component
///
/// Whatever needed it needs it no more.
#[utoipa::path(delete, path = "/api/v1/components/{id}", tag = "registry",
    extensions(("x-permission" = json!("registry.components.delete"))), params(("id" = String, Path, description = "Id or name")),
    responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_component(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// A component that is hit.
#[derive(Serialize, ToSchema)]
struct HitBody {
    /// Its id.
    component_id: String,
    /// Its name.
    component: String,
    /// Whether it goes down too; else it only degrades.
    goes_down: bool,
}

/// Who is hit when a component is down.
#[derive(Serialize, ToSchema)]
struct ImpactAttributes {
    /// Components that need it, directly or through others.
    components: Vec<HitBody>,
    /// Ids of agents among them and the component itself.
    agents: Vec<String>,
    /// Names of MCP servers among them and the component itself.
    mcp_servers: Vec<String>,
    /// Full names of the tools of these servers.
    tools: Vec<String>,
}

/// Who is hit when a component is down
///
/// Also while it is up: what would follow.
#[utoipa::path(get, path = "/api/v1/components/{id}/impact", tag = "registry", extensions(("x-permission" = json!("registry.components.read"))),
    params(("id" = String, Path, description = "Id or name")), responses((status = 200, body = One<ImpactAttributes>)))]
async fn impact(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    let Impact { components, agents, mcp_servers, tools } = state.app.component_impact(&caller, &id).await?;
    let hit =
        |(id, component, goes_down): (ComponentId, String, bool)| HitBody { component_id: id.to_string(), component, goes_down };
    let components = components.into_iter().map(hit).collect();
    let attributes = ImpactAttributes { components, agents, mcp_servers, tools };
    Reply::data(StatusCode::OK, &Resource { id, kind: "component_impact", attributes })
}
