//! `/api/v1/virtual-servers`: named selections of what MCP servers offer, each with an address of its own.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::mcp::{NewMember, NewVirtualServer};
use axum::extract::State;
use axum::http::StatusCode;
use domain::virtual_server::VirtualServer;
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete))
}

fn yes() -> bool {
    true
}

/// What is selected of one server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMemberBody {
    /// Id or name of an MCP server.
    #[schema(min_length = 1, max_length = 64)]
    server: String,
    /// Which of its tools, by their names there; all of them, also later ones, when nothing is said.
    #[serde(default)]
    #[schema(max_items = 1000)]
    tools: Option<Vec<String>>,
    /// What stands before names of tools and prompts, with `__` between: the server's name when nothing is said, nothing when empty.
    #[serde(default)]
    #[schema(max_length = 64)]
    prefix: Option<String>,
    /// Whether its prompts are offered.
    #[serde(default = "yes")]
    #[schema(default = true)]
    prompts: bool,
    /// Whether its resources are offered.
    #[serde(default = "yes")]
    #[schema(default = true)]
    resources: bool,
}

/// A virtual server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct VirtualServerBody {
    /// Unique name, the end of its address: `/mcp/{name}`.
    #[schema(max_length = 64, pattern = "^[A-Za-z0-9_-]+$")]
    name: String,
    /// For people.
    #[serde(default)]
    #[schema(max_length = 2000)]
    description: String,
    /// What it selects, in order: of two offers with one name the first keeps it.
    #[schema(max_items = 200)]
    members: Vec<NewMemberBody>,
    /// Whether Keiko's own tools (`task_submit` and the like) are among its tools.
    #[serde(default)]
    built_in: bool,
    /// Who may use it, as `role:NAME`, `user:ID` or `agent:ID`; everybody of the tenant when empty. Using it needs `tools.call` or
    /// `virtual-servers.use`.
    #[serde(default)]
    #[schema(max_items = 256)]
    allowed: Vec<String>,
}

/// What is selected of one server.
#[derive(Serialize, ToSchema)]
struct MemberBody {
    /// Id of the MCP server.
    mcp_server_id: String,
    /// Which of its tools; all when `null`.
    tools: Option<Vec<String>>,
    /// What stands before names; the server's name when `null`.
    prefix: Option<String>,
    /// Whether its prompts are offered.
    prompts: bool,
    /// Whether its resources are offered.
    resources: bool,
}

/// A virtual server.
#[derive(Serialize, ToSchema)]
struct VirtualServerAttributes {
    /// Unique name.
    name: String,
    /// Where MCP clients reach it, below this server's address.
    path: String,
    /// For people.
    description: String,
    /// What it selects, in order.
    members: Vec<MemberBody>,
    /// Whether Keiko's own tools are among its tools.
    built_in: bool,
    /// Who may use it; everybody of the tenant when empty.
    allowed: Vec<String>,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn attributes(server: &Handled<VirtualServer>) -> VirtualServerAttributes {
    let profile = &server.state.profile;
    let member = |member: &domain::virtual_server::Member| MemberBody {
        mcp_server_id: member.server_id.to_string(),
        tools: member.tools.clone(),
        prefix: member.prefix.clone(),
        prompts: member.prompts,
        resources: member.resources,
    };
    VirtualServerAttributes {
        name: profile.name.clone(),
        path: format!("/mcp/{}", profile.name),
        description: profile.description.clone(),
        members: profile.members.iter().map(member).collect(),
        built_in: profile.built_in,
        allowed: profile.allowed.clone(),
        created_at: server.created_at.to_string(),
        updated_at: server.updated_at.to_string(),
        deleted_at: server.state.is_deleted.then(|| server.updated_at.to_string()),
        version: server.version,
    }
}

fn described(body: VirtualServerBody) -> NewVirtualServer {
    let member = |member: NewMemberBody| {
        let NewMemberBody { server, tools, prefix, prompts, resources } = member;
        NewMember { server, tools, prefix, prompts, resources }
    };
    NewVirtualServer {
        name: body.name,
        description: body.description,
        members: body.members.into_iter().map(member).collect(),
        built_in: body.built_in,
        allowed: body.allowed,
    }
}

fn entity(status: StatusCode, server: &Handled<VirtualServer>) -> Outcome {
    Reply::entity(status, "virtual_server", server, attributes(server))
}

/// List virtual servers
#[utoipa::path(get, path = "/api/v1/virtual-servers", tag = "tools", extensions(("x-permission" = json!("virtual-servers.read"))),
    params(ListParams), responses((status = 200, body = Many<VirtualServerAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.virtual_servers(&caller, &params.order()?).await?;
    let resource =
        |s: &Handled<VirtualServer>| Resource { id: s.stream.clone(), kind: "virtual_server", attributes: attributes(s) };
    let items: Vec<_> = page.items.iter().map(resource).collect();
    Reply::list(&items, page.next, page.position)
}

/// Make a virtual server
///
/// MCP clients reach it at once at `/mcp/{name}`.
#[utoipa::path(post, path = "/api/v1/virtual-servers", tag = "tools", extensions(("x-permission" = json!("virtual-servers.create"))),
    request_body = VirtualServerBody, responses((status = 201, body = One<VirtualServerAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<VirtualServerBody>) -> Outcome {
    let server = state.app.create_virtual_server(&input.by, described(input.body)).await?;
    entity(StatusCode::CREATED, &server)
}

/// Read a virtual server
#[utoipa::path(get, path = "/api/v1/virtual-servers/{id}", tag = "tools", extensions(("x-permission" = json!("virtual-servers.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<VirtualServerAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    entity(StatusCode::OK, &state.app.virtual_server(&caller, &id).await?)
}

/// Change a virtual server
///
/// Its clients are told that its lists changed. It may get another name.
#[utoipa::path(put, path = "/api/v1/virtual-servers/{id}", tag = "tools",
    extensions(("x-permission" = json!("virtual-servers.update"))), params(("id" = String, Path, description = "Id or name")),
    request_body = VirtualServerBody, responses((status = 200, body = One<VirtualServerAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<VirtualServerBody>) -> Outcome {
    let server = state.app.update_virtual_server(&input.by, &id, described(input.body)).await?;
    entity(StatusCode::OK, &server)
}

/// Remove a virtual server
///
/// The MCP servers behind it stay.
#[utoipa::path(delete, path = "/api/v1/virtual-servers/{id}", tag = "tools",
    extensions(("x-permission" = json!("virtual-servers.delete"))), params(("id" = String, Path, description = "Id or name")),
    responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_virtual_server(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
