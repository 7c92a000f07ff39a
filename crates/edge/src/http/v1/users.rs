//! `/api/v1/users`: people and services.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, strings};
use crate::http::state::EdgeState;
use crate::http::v1::auth::Empty;
use app::NewUser;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::user::{User, UserKind};
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(suspend))
        .routes(routes!(reinstate))
        .routes(routes!(remove_mfa))
        .routes(routes!(revoke_sessions))
}

/// Person or program.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum IdentityKind {
    /// A person, who signs in with a password.
    User,
    /// A program, which has API keys only.
    Service,
}

/// A user to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateUser {
    /// Unique user name.
    username: Name,
    /// Needed for a user, refused for a service.
    #[schema(min_length = 8, max_length = 256)]
    password: Option<String>,
    /// Roles by name; none when nothing is said.
    #[serde(default)]
    #[schema(max_items = 64)]
    roles: Vec<Name>,
    /// `user` when nothing is said.
    kind: Option<IdentityKind>,
}

/// What is to change; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateUser {
    /// All roles from now on.
    #[schema(max_items = 64)]
    roles: Option<Vec<Name>>,
    /// A new password; it ends the user's sessions.
    #[schema(min_length = 8, max_length = 256)]
    password: Option<String>,
}

/// A user.
#[derive(Serialize, ToSchema)]
struct UserAttributes {
    /// Unique user name.
    username: String,
    /// `user` or `service`
    kind: IdentityKind,
    /// Roles by name.
    roles: Vec<String>,
    /// The address that the person showed to be theirs.
    email: Option<String>,
    /// Whether it has a second factor.
    has_mfa: bool,
    /// Why it may do nothing for now.
    suspended: Option<String>,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

fn attributes(user: &Handled<User>) -> UserAttributes {
    UserAttributes {
        username: user.state.name().to_owned(),
        kind: match user.state.kind {
            UserKind::User => IdentityKind::User,
            UserKind::Service => IdentityKind::Service,
        },
        roles: user.state.roles.clone(),
        email: user.state.address().map(str::to_owned),
        has_mfa: user.state.mfa.is_some(),
        suspended: user.state.suspended.clone(),
        created_at: user.created_at.to_string(),
        updated_at: user.updated_at.to_string(),
        deleted_at: user.state.is_deleted.then(|| user.updated_at.to_string()),
        version: user.version,
    }
}

/// List users
#[utoipa::path(get, path = "/api/v1/users", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(ListParams), responses((status = 200, body = Many<UserAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.users(&caller, &params.order()?).await?;
    let items: Vec<_> =
        page.items.iter().map(|u| Resource { id: u.stream.clone(), kind: "user", attributes: attributes(u) }).collect();
    Reply::list(&items, page.next, page.position)
}

/// Make a user or a service
#[utoipa::path(post, path = "/api/v1/users", tag = "identity", extensions(("x-permission" = json!("users.create"))),
    request_body = CreateUser, responses((status = 201, body = One<UserAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateUser>) -> Outcome {
    let body = input.body;
    let kind = match body.kind {
        Some(IdentityKind::Service) => UserKind::Service,
        _ => UserKind::User,
    };
    let user = state
        .app
        .create_user(&input.by, NewUser { username: body.username.0, password: body.password, roles: strings(body.roles), kind })
        .await?;
    Reply::entity(StatusCode::CREATED, "user", &user, attributes(&user))
}

/// Read a user by id or name
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "identity", extensions(("x-permission" = json!("users.read"))),
    params(("id" = String, Path, description = "Id or user name"), AtParams), responses((status = 200, body = One<UserAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let user = state.app.user(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}

/// Change roles or password
#[utoipa::path(put, path = "/api/v1/users/{id}", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or user name")), request_body = UpdateUser,
    responses((status = 200, body = One<UserAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<UpdateUser>) -> Outcome {
    let user = state.app.update_user(&input.by, &id, input.body.roles.map(strings), input.body.password).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}

/// Delete a user; its sessions and keys end at once
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "identity", extensions(("x-permission" = json!("users.delete"))),
    params(("id" = String, Path, description = "Id or user name")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_user(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Why somebody is suspended
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suspend {
    /// For the record.
    #[schema(min_length = 1, max_length = 1000)]
    pub reason: String,
}

/// Suspend a user: sessions end, keys and tokens stop working everywhere at once
#[utoipa::path(post, path = "/api/v1/users/{id}/actions/suspend", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or user name")), request_body = Suspend, responses((status = 200, body = One<UserAttributes>)))]
async fn suspend(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Suspend>) -> Outcome {
    let user = state.app.suspend_user(&input.by, &id, input.body.reason).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}

/// Let a suspended user work again
#[utoipa::path(post, path = "/api/v1/users/{id}/actions/reinstate", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or user name")), request_body = Empty, responses((status = 200, body = One<UserAttributes>)))]
async fn reinstate(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let user = state.app.reinstate_user(&input.by, &id).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}

/// Remove the second factor of a user who has lost it
#[utoipa::path(post, path = "/api/v1/users/{id}/actions/remove-mfa", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or user name")), request_body = Empty, responses((status = 200, body = One<UserAttributes>)))]
async fn remove_mfa(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let user = state.app.remove_mfa(&input.by, &id).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}

/// End every session of a user: its tokens are refused everywhere at once
#[utoipa::path(post, path = "/api/v1/users/{id}/actions/revoke-sessions", tag = "identity", extensions(("x-permission" = json!("users.update"))),
    params(("id" = String, Path, description = "Id or user name")), request_body = Empty, responses((status = 200, body = One<UserAttributes>)))]
async fn revoke_sessions(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let user = state.app.revoke_sessions(&input.by, &id).await?;
    Reply::entity(StatusCode::OK, "user", &user, attributes(&user))
}
