//! `/api/v1/api-keys`: credentials for programs.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name, Permission, permissions};
use crate::http::state::EdgeState;
use app::NewKey;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::key::Key;
use engine::Handled;
use kernel::{Problem, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, delete))
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateKey {
    /// Name for people; `api-key` when nothing is said.
    name: Option<Name>,
    /// What it allows at most. Left out: whatever its owner may do at the time of use. An empty list: its own profile only.
    #[schema(max_items = 64)]
    permissions: Option<Vec<Permission>>,
    /// When it stops working; never when nothing is said.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// The service that acts with it, by id or name; the caller when nothing is said.
    owner: Option<Name>,
}

/// An API key.
#[derive(Serialize, ToSchema)]
pub(crate) struct KeyAttributes {
    /// Name for people.
    name: String,
    /// The first characters, by which keys are told apart.
    prefix: String,
    /// Who acts with it.
    owner: String,
    /// What it allows at most; null is whatever its owner may do.
    permissions: Option<Vec<String>>,
    /// When it stops working.
    expires_at: Option<String>,
    /// The key itself: only in the answer that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was revoked.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

pub(crate) fn attributes(key: &Handled<Key>, shown: Option<String>) -> KeyAttributes {
    let issued = &key.state.issued;
    KeyAttributes {
        name: issued.name.clone(),
        prefix: issued.prefix.clone(),
        owner: issued.owner.to_string(),
        permissions: issued.permissions.clone(),
        expires_at: issued.expires_at.map(|t| t.to_string()),
        key: shown,
        created_at: key.created_at.to_string(),
        updated_at: key.updated_at.to_string(),
        deleted_at: key.state.is_revoked.then(|| key.updated_at.to_string()),
        version: key.version,
    }
}

/// A time in a request, or where it is wrong.
pub(crate) fn time(pointer: &str, text: Option<&str>) -> Result<Option<Timestamp>, Rejection> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|message: String| Rejection::invalid(&[Problem { pointer: pointer.to_owned(), message }]))
}

/// List the keys that work
#[utoipa::path(get, path = "/api/v1/api-keys", tag = "identity", extensions(("x-permission" = json!("keys.read"))),
    params(ListParams), responses((status = 200, body = Many<KeyAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.keys(&caller, &params.order()?).await?;
    let items: Vec<_> =
        page.items.iter().map(|k| Resource { id: k.stream.clone(), kind: "api_key", attributes: attributes(k, None) }).collect();
    Reply::list(&items, page.next, page.position)
}

/// Make a key; it is shown in this answer and never again
#[utoipa::path(post, path = "/api/v1/api-keys", tag = "identity", extensions(("x-permission" = json!("keys.create"))),
    request_body = CreateKey, responses((status = 201, body = One<KeyAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateKey>) -> Outcome {
    let body = input.body;
    let new = NewKey {
        name: body.name.map_or_else(|| "api-key".into(), |name| name.0),
        permissions: body.permissions.map(permissions),
        expires_at: time("/expires_at", body.expires_at.as_deref())?,
        owner: body.owner.map(|owner| owner.0),
    };
    let (key, shown) = state.app.create_key(&input.by, new).await?;
    Reply::entity(StatusCode::CREATED, "api_key", &key, attributes(&key, Some(shown)))
}

/// Read a key's record
#[utoipa::path(get, path = "/api/v1/api-keys/{id}", tag = "identity", extensions(("x-permission" = json!("keys.read"))),
    params(("id" = String, Path, description = "Id"), AtParams), responses((status = 200, body = One<KeyAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let key = state.app.key(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "api_key", &key, attributes(&key, None))
}

/// Revoke a key; it stops working at once
#[utoipa::path(delete, path = "/api/v1/api-keys/{id}", tag = "identity", extensions(("x-permission" = json!("keys.delete"))),
    params(("id" = String, Path, description = "Id")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.revoke_key(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
