//! `/api/v1/tenants`: owners of everything else. For administrators of the default tenant.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, Slug};
use crate::http::state::EdgeState;
use crate::http::v1::auth::Empty;
use crate::http::v1::users::Suspend;
use app::NewTenant;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::tenant::{Tenant, TenantLimits};
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, delete))
        .routes(routes!(suspend))
        .routes(routes!(reinstate))
        .routes(routes!(set_limits))
}

/// A tenant to be founded.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateTenant {
    /// Unique short name: a-z, 0-9 and `-`.
    slug: Slug,
    /// Name for people; the slug when nothing is said.
    name: Option<Name>,
    /// Its first administrator.
    admin: CreateAdmin,
}

/// The first administrator of a tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateAdmin {
    /// User name.
    username: Name,
    /// Password.
    #[schema(min_length = 8, max_length = 256)]
    password: String,
}

/// What a tenant may use. What is left out is not limited, or by the settings only.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Limits {
    /// Requests, such as `200/s`, `600/m` or `5000/h`; else `limit.tenant` of the settings.
    #[schema(pattern = "^[1-9][0-9]{0,6}/[smh]$")]
    requests: Option<String>,
    /// Users and services.
    users_max: Option<u32>,
    /// Agents.
    agents_max: Option<u32>,
}

/// Why a tenant is deleted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Why {
    /// For the record.
    #[param(inline)]
    reason: Name,
}

/// A tenant.
#[derive(Serialize, ToSchema)]
struct TenantAttributes {
    /// Unique short name.
    slug: String,
    /// Name for people.
    name: String,
    /// `ready`, `provisioning`, `suspended` or `deleting`
    status: &'static str,
    /// Why it is suspended.
    suspended: Option<String>,
    /// What it may use.
    limits: Limits,
    /// When it was founded.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

fn attributes(tenant: &Handled<Tenant>) -> TenantAttributes {
    TenantAttributes {
        slug: tenant.state.created.slug.clone(),
        name: tenant.state.created.name.clone(),
        status: match (&tenant.state.deleting, &tenant.state.suspended, tenant.state.is_ready) {
            (Some(_), ..) => "deleting",
            (None, Some(_), _) => "suspended",
            (None, None, true) => "ready",
            (None, None, false) => "provisioning",
        },
        suspended: tenant.state.suspended.clone(),
        limits: Limits {
            requests: tenant.state.limits.requests.clone(),
            users_max: tenant.state.limits.users_max,
            agents_max: tenant.state.limits.agents_max,
        },
        created_at: tenant.created_at.to_string(),
        updated_at: tenant.updated_at.to_string(),
        version: tenant.version,
    }
}

/// List tenants
#[utoipa::path(get, path = "/api/v1/tenants", tag = "identity", extensions(("x-permission" = json!("tenants.read"))),
    params(ListParams), responses((status = 200, body = Many<TenantAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.tenants(&caller, &params.order()?).await?;
    let items: Vec<_> =
        page.items.iter().map(|t| Resource { id: t.stream.clone(), kind: "tenant", attributes: attributes(t) }).collect();
    Reply::list(&items, page.next, page.position)
}

/// Found a tenant with its first administrator
#[utoipa::path(post, path = "/api/v1/tenants", tag = "identity", extensions(("x-permission" = json!("tenants.create"))),
    request_body = CreateTenant, responses((status = 201, body = One<TenantAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateTenant>) -> Outcome {
    let body = input.body;
    let new = NewTenant {
        name: body.name.map_or_else(|| body.slug.0.clone(), |name| name.0),
        slug: body.slug.0,
        admin_username: body.admin.username.0,
        admin_password: body.admin.password,
    };
    let tenant = state.app.create_tenant(&input.by, new).await?;
    Reply::entity(StatusCode::CREATED, "tenant", &tenant, attributes(&tenant))
}

/// Read a tenant by id or slug
#[utoipa::path(get, path = "/api/v1/tenants/{id}", tag = "identity", extensions(("x-permission" = json!("tenants.read"))),
    params(("id" = String, Path, description = "Id or slug"), AtParams), responses((status = 200, body = One<TenantAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let tenant = state.app.tenant_record(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "tenant", &tenant, attributes(&tenant))
}

/// Suspend a tenant: everything of everybody in it is refused everywhere at once
#[utoipa::path(post, path = "/api/v1/tenants/{id}/actions/suspend", tag = "identity", extensions(("x-permission" = json!("tenants.update"))),
    params(("id" = String, Path, description = "Id or slug")), request_body = Suspend, responses((status = 200, body = One<TenantAttributes>)))]
async fn suspend(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Suspend>) -> Outcome {
    let tenant = state.app.suspend_tenant(&input.by, &id, Some(input.body.reason)).await?;
    Reply::entity(StatusCode::OK, "tenant", &tenant, attributes(&tenant))
}

/// Let a suspended tenant work again
#[utoipa::path(post, path = "/api/v1/tenants/{id}/actions/reinstate", tag = "identity", extensions(("x-permission" = json!("tenants.update"))),
    params(("id" = String, Path, description = "Id or slug")), request_body = Empty, responses((status = 200, body = One<TenantAttributes>)))]
async fn reinstate(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let tenant = state.app.suspend_tenant(&input.by, &id, None).await?;
    Reply::entity(StatusCode::OK, "tenant", &tenant, attributes(&tenant))
}

/// Replace what a tenant may use; what is over a limit already stays
#[utoipa::path(post, path = "/api/v1/tenants/{id}/actions/set-limits", tag = "identity", extensions(("x-permission" = json!("tenants.update"))),
    params(("id" = String, Path, description = "Id or slug")), request_body = Limits, responses((status = 200, body = One<TenantAttributes>)))]
async fn set_limits(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Limits>) -> Outcome {
    let Limits { requests, users_max, agents_max } = input.body;
    let limits = TenantLimits { requests, users_max, agents_max };
    let tenant = state.app.set_tenant_limits(&input.by, &id, limits).await?;
    Reply::entity(StatusCode::OK, "tenant", &tenant, attributes(&tenant))
}

/// Delete a tenant: nobody of it may do anything from now on, and what it holds is removed for ever
#[utoipa::path(delete, path = "/api/v1/tenants/{id}", tag = "identity", extensions(("x-permission" = json!("tenants.delete"))),
    params(("id" = String, Path, description = "Id or slug"), Why), responses((status = 202, body = One<TenantAttributes>)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle, Params(why): Params<Why>) -> Outcome {
    let tenant = state.app.delete_tenant(&caller, &id, why.reason.0).await?;
    Reply::entity(StatusCode::ACCEPTED, "tenant", &tenant, attributes(&tenant))
}
