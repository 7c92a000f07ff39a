//! `/api/v1/roles`: the built-in roles, and those that a tenant made for itself.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, Permission, permissions};
use crate::http::state::EdgeState;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::role::Role;
use domain::policy::{ROLES, builtin_role};
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete))
}

/// A role to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateRole {
    /// Unique name.
    name: Name,
    /// What it allows: `area.thing.verb`, a prefix ending in `.*`, or with `:own`; nothing when nothing is said.
    #[serde(default)]
    #[schema(max_items = 64)]
    permissions: Vec<Permission>,
}

/// What a role allows from now on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateRole {
    /// The role's name, which cannot change; may be left out.
    name: Option<Name>,
    /// All permissions from now on.
    #[schema(max_items = 64)]
    permissions: Vec<Permission>,
}

/// A role.
#[derive(Serialize, ToSchema)]
struct RoleAttributes {
    /// Unique name.
    name: String,
    /// What it allows.
    permissions: Vec<String>,
    /// Whether it comes with Keiko and cannot be changed.
    builtin: bool,
    /// When it was made.
    created_at: Option<String>,
    /// When it changed last.
    updated_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn attributes(role: &Handled<Role>) -> RoleAttributes {
    RoleAttributes {
        name: role.state.name.clone(),
        permissions: role.state.permissions.clone(),
        builtin: false,
        created_at: Some(role.created_at.to_string()),
        updated_at: Some(role.updated_at.to_string()),
        version: role.version,
    }
}

fn builtin() -> impl Iterator<Item = Resource<RoleAttributes>> {
    ROLES.iter().map(|(name, _)| Resource {
        id: (*name).to_owned(),
        kind: "role",
        attributes: RoleAttributes {
            name: (*name).to_owned(),
            permissions: builtin_role(name).unwrap_or_default(),
            builtin: true,
            created_at: None,
            updated_at: None,
            version: 0,
        },
    })
}

/// List roles: custom ones in order, then the built-in ones on the last page
#[utoipa::path(get, path = "/api/v1/roles", tag = "identity", extensions(("x-permission" = json!("roles.read"))),
    params(ListParams), responses((status = 200, body = Many<RoleAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.roles(&caller, &params.order()?).await?;
    let own = page.items.iter().map(|r| Resource { id: r.stream.clone(), kind: "role", attributes: attributes(r) });
    let shipped = builtin().filter(|_| page.next.is_none());
    let items: Vec<_> = own.chain(shipped).collect();
    Reply::list(&items, page.next, page.position)
}

/// Make a role; nobody gives more than they hold
#[utoipa::path(post, path = "/api/v1/roles", tag = "identity", extensions(("x-permission" = json!("roles.create"))),
    request_body = CreateRole, responses((status = 201, body = One<RoleAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateRole>) -> Outcome {
    let role = state.app.create_role(&input.by, input.body.name.0, permissions(input.body.permissions)).await?;
    Reply::entity(StatusCode::CREATED, "role", &role, attributes(&role))
}

/// Read a role by id or name
#[utoipa::path(get, path = "/api/v1/roles/{id}", tag = "identity", extensions(("x-permission" = json!("roles.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<RoleAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    if let Some(shipped) = builtin().find(|role| role.id == id) {
        return Reply::data(StatusCode::OK, &shipped);
    }
    let role = state.app.role(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "role", &role, attributes(&role))
}

/// Replace a custom role's permissions
#[utoipa::path(put, path = "/api/v1/roles/{id}", tag = "identity", extensions(("x-permission" = json!("roles.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = UpdateRole,
    responses((status = 200, body = One<RoleAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<UpdateRole>) -> Outcome {
    let role = state.app.update_role(&input.by, &id, input.body.name.map(|n| n.0), permissions(input.body.permissions)).await?;
    Reply::entity(StatusCode::OK, "role", &role, attributes(&role))
}

/// Delete a custom role; whoever has it loses what it allowed
#[utoipa::path(delete, path = "/api/v1/roles/{id}", tag = "identity", extensions(("x-permission" = json!("roles.delete"))),
    params(("id" = String, Path, description = "Id or name")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_role(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
