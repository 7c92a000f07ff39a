//! `/api/v1/teams`: people and services that hold roles together. And `/api/v1/authz/explain`: why somebody may.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, strings};
use crate::http::state::EdgeState;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::team::Team;
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(add_member))
        .routes(routes!(remove_member))
        .routes(routes!(explain))
}

/// A team to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateTeam {
    /// Unique name.
    name: Name,
    /// Roles by name; none when nothing is said.
    #[serde(default)]
    #[schema(max_items = 64)]
    roles: Vec<Name>,
}

/// What a team holds from now on.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateTeam {
    /// All roles from now on.
    #[schema(max_items = 64)]
    roles: Vec<Name>,
}

/// Somebody who joins or leaves.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TeamMember {
    /// A user or service, by id or name.
    member: Name,
}

/// A team.
#[derive(Serialize, ToSchema)]
struct TeamAttributes {
    /// Unique name.
    name: String,
    /// Roles by name.
    roles: Vec<String>,
    /// Ids of users and services.
    members: Vec<String>,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn attributes(team: &Handled<Team>) -> TeamAttributes {
    TeamAttributes {
        name: team.state.name.clone(),
        roles: team.state.roles.clone(),
        members: team.state.members.iter().cloned().collect(),
        created_at: team.created_at.to_string(),
        updated_at: team.updated_at.to_string(),
        deleted_at: team.state.is_deleted.then(|| team.updated_at.to_string()),
        version: team.version,
    }
}

fn shown(status: StatusCode, team: &Handled<Team>) -> Outcome {
    Reply::entity(status, "team", team, attributes(team))
}

/// List teams
#[utoipa::path(get, path = "/api/v1/teams", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(ListParams), responses((status = 200, body = Many<TeamAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.teams(&caller, &params.order()?).await?;
    let item = |team: &Handled<Team>| Resource { id: team.stream.clone(), kind: "team", attributes: attributes(team) };
    Reply::list(&page.items.iter().map(item).collect::<Vec<_>>(), page.next, page.position)
}

/// Make a team; nobody gives more than they hold
#[utoipa::path(post, path = "/api/v1/teams", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    request_body = CreateTeam, responses((status = 201, body = One<TeamAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateTeam>) -> Outcome {
    let team = state.app.create_team(&input.by, input.body.name.0, strings(input.body.roles)).await?;
    shown(StatusCode::CREATED, &team)
}

/// Read a team by id or name
#[utoipa::path(get, path = "/api/v1/teams/{id}", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(("id" = String, Path, description = "Id or name"), AtParams), responses((status = 200, body = One<TeamAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    shown(StatusCode::OK, &state.app.team(&caller, &id).await?)
}

/// Replace a team's roles
#[utoipa::path(put, path = "/api/v1/teams/{id}", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = UpdateTeam, responses((status = 200, body = One<TeamAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<UpdateTeam>) -> Outcome {
    shown(StatusCode::OK, &state.app.set_team_roles(&input.by, &id, strings(input.body.roles)).await?)
}

/// Let somebody join a team
#[utoipa::path(post, path = "/api/v1/teams/{id}/actions/add-member", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = TeamMember, responses((status = 200, body = One<TeamAttributes>)))]
async fn add_member(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<TeamMember>) -> Outcome {
    shown(StatusCode::OK, &state.app.change_member(&input.by, &id, &input.body.member.0, true).await?)
}

/// Let somebody leave a team: what it gave ends at once
#[utoipa::path(post, path = "/api/v1/teams/{id}/actions/remove-member", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or name")), request_body = TeamMember, responses((status = 200, body = One<TeamAttributes>)))]
async fn remove_member(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<TeamMember>) -> Outcome {
    shown(StatusCode::OK, &state.app.change_member(&input.by, &id, &input.body.member.0, false).await?)
}

/// Delete a team; its members lose what it gave them
#[utoipa::path(delete, path = "/api/v1/teams/{id}", tag = "identity", extensions(("x-permission" = json!("users.delete"))),
    params(("id" = String, Path, description = "Id or name")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_team(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// What is to be explained.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExplainParams {
    /// A user, service, agent or API key, by id; users by name too.
    subject: String,
    /// A permission: `tasks.read`.
    action: String,
    /// A task or another thing, by id.
    resource: Option<String>,
}

/// Where a permission comes from.
#[derive(Serialize, ToSchema)]
struct ExplainSource {
    /// `role`, `team`, `key` or `everybody`
    kind: &'static str,
    /// Its name.
    name: String,
    /// The permissions of it that match.
    permissions: Vec<String>,
}

/// A decision with its reasons.
#[derive(Serialize, ToSchema)]
struct Explanation {
    /// Whether it is allowed.
    allowed: bool,
    /// `none`, `own` or `all`
    reach: &'static str,
    /// Where it comes from.
    sources: Vec<ExplainSource>,
    /// In words.
    because: String,
}

/// Explain why somebody may do something, or may not
#[utoipa::path(get, path = "/api/v1/authz/explain", tag = "identity", extensions(("x-permission" = json!("roles.read"))),
    params(ExplainParams), responses((status = 200, body = One<Explanation>)))]
async fn explain(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<ExplainParams>) -> Outcome {
    let found = state.app.explain(&caller, &params.subject, &params.action, params.resource.as_deref()).await?;
    let sources = found.sources.into_iter().map(|source| ExplainSource {
        kind: source.kind,
        name: source.name,
        permissions: source.permissions,
    });
    let attributes =
        Explanation { allowed: found.is_allowed, reach: found.reach, sources: sources.collect(), because: found.because };
    Reply::data(StatusCode::OK, &Resource { id: found.subject, kind: "explanation", attributes })
}
