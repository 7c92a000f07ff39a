//! `/api/v1/mcp-servers/{id}/credentials`: what is shown to a server to be let in. Secrets go in and never come out.

use super::api_keys::time;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Handles};
use crate::http::state::EdgeState;
use app::{CredentialView, Owner};
use axum::extract::State;
use axum::http::StatusCode;
use domain::credential::Source;
use domain::mcp_server::Grant;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get_own, put_own, delete_own)).routes(routes!(get, put, delete))
}

/// A token that was got elsewhere.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCredentialBody {
    /// Sent as `Authorization: Bearer TOKEN`, and never shown again.
    #[schema(min_length = 1, max_length = 8192)]
    token: String,
    /// When it ends, RFC 3339 in UTC; never as far as is known when left out.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// What is shown to a server to be let in.
#[derive(Serialize, ToSchema)]
struct CredentialAttributes {
    /// The server.
    server_id: String,
    /// Whose it is: `everybody`, or the id of an identity.
    owner: String,
    /// `token`: somebody put it in; `oauth`: an authorization server gave it
    source: &'static str,
    /// `active`; `expired` and `refused`: somebody must connect again
    status: &'static str,
    /// Why it was refused.
    reason: Option<String>,
    /// The authorization server.
    issuer: Option<String>,
    /// Keiko's id there.
    client_id: Option<String>,
    /// How it was got: `authorization_code` or `client_credentials`.
    grant: Option<&'static str>,
    /// What it allows, as far as that was said.
    scopes: Vec<String>,
    /// What the server wanted since, and is asked for when somebody connects again.
    scopes_wanted: Vec<String>,
    /// Whether Keiko gets the next token by itself.
    is_renewable: bool,
    /// When its token ends.
    expires_at: Option<String>,
    /// When there was one for the first time.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

fn attributes(view: &CredentialView) -> CredentialAttributes {
    let (credential, state) = (&view.credential, &view.credential.state);
    let granted = &state.granted;
    let (source, issuer, client_id, grant) = match &granted.source {
        Source::Token => ("token", None, None, None),
        Source::Oauth { issuer, client_id, grant, .. } => {
            let grant = match grant {
                Grant::AuthorizationCode => "authorization_code",
                Grant::ClientCredentials => "client_credentials",
            };
            ("oauth", Some(issuer.clone()), Some(client_id.clone()), Some(grant))
        }
    };
    CredentialAttributes {
        server_id: granted.server_id.to_string(),
        owner: granted.owner.clone().unwrap_or_else(|| "everybody".into()),
        source,
        status: view.status,
        reason: state.reason.clone(),
        issuer,
        client_id,
        grant,
        scopes: granted.scopes.clone(),
        scopes_wanted: state.wanted.clone(),
        is_renewable: state.is_renewable(),
        expires_at: granted.expires_at.map(|end| end.to_string()),
        created_at: credential.created_at.to_string(),
        updated_at: credential.updated_at.to_string(),
        version: credential.version,
    }
}

fn entity(view: &CredentialView) -> Outcome {
    Reply::entity(StatusCode::OK, "credential", &view.credential, attributes(view))
}

/// List the credentials for an MCP server
#[utoipa::path(get, path = "/api/v1/mcp-servers/{id}/credentials", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.read"))), params(("id" = String, Path, description = "Id or name"), ListParams),
    responses((status = 200, body = Many<CredentialAttributes>)))]
async fn list(
    State(state): State<Arc<EdgeState>>,
    AsOf(caller): AsOf,
    Handle(id): Handle,
    Params(params): Params<ListParams>,
) -> Outcome {
    let page = state.app.credentials(&caller, &id, &params.order()?).await?;
    let views = page.items.into_iter().map(|credential| state.app.credential_view(credential));
    let items: Vec<_> = views
        .map(|view| Resource { id: view.credential.stream.clone(), kind: "credential", attributes: attributes(&view) })
        .collect();
    Reply::list(&items, page.next, page.position)
}

/// Read one's own credential
#[utoipa::path(get, path = "/api/v1/mcp-servers/{id}/credentials/me", tag = "tools",
    extensions(("x-permission" = json!("profile.credentials"))), params(("id" = String, Path, description = "Id or name of the server"), AtParams),
    responses((status = 200, body = One<CredentialAttributes>)))]
async fn get_own(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    entity(&state.app.credential_of(&caller, &id, Owner::Me).await?)
}

/// Put in a token of one's own that was got elsewhere
///
/// It takes the place of what was there.
#[utoipa::path(put, path = "/api/v1/mcp-servers/{id}/credentials/me", tag = "tools",
    extensions(("x-permission" = json!("profile.credentials"))), params(("id" = String, Path, description = "Id or name of the server")),
    request_body = NewCredentialBody, responses((status = 200, body = One<CredentialAttributes>)))]
async fn put_own(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<NewCredentialBody>) -> Outcome {
    kept(&state, &id, Owner::Me, input).await
}

/// Forget one's own credential, and give its tokens back
#[utoipa::path(delete, path = "/api/v1/mcp-servers/{id}/credentials/me", tag = "tools",
    extensions(("x-permission" = json!("profile.credentials"))), params(("id" = String, Path, description = "Id or name of the server")),
    responses((status = 204)))]
async fn delete_own(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.remove_credential(&caller, &id, Owner::Me).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Read a credential
#[utoipa::path(get, path = "/api/v1/mcp-servers/{id}/credentials/{owner}", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.read"))),
    params(("id" = String, Path, description = "Id or name of the server"),
        ("owner" = String, Path, description = "`everybody`, or the id of an identity"), AtParams),
    responses((status = 200, body = One<CredentialAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handles(id, owner): Handles) -> Outcome {
    entity(&state.app.credential_of(&caller, &id, Owner::of(&owner)).await?)
}

/// Put in a token that was got elsewhere
///
/// It takes the place of what was there.
#[utoipa::path(put, path = "/api/v1/mcp-servers/{id}/credentials/{owner}", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.update"))),
    params(("id" = String, Path, description = "Id or name of the server"),
        ("owner" = String, Path, description = "`everybody`, or the id of an identity")),
    request_body = NewCredentialBody, responses((status = 200, body = One<CredentialAttributes>)))]
async fn put(State(state): State<Arc<EdgeState>>, Handles(id, owner): Handles, input: Input<NewCredentialBody>) -> Outcome {
    kept(&state, &id, Owner::of(&owner), input).await
}

/// Forget a credential, and give its tokens back
#[utoipa::path(delete, path = "/api/v1/mcp-servers/{id}/credentials/{owner}", tag = "tools",
    extensions(("x-permission" = json!("mcp-servers.update"))),
    params(("id" = String, Path, description = "Id or name of the server"),
        ("owner" = String, Path, description = "`everybody`, or the id of an identity")),
    responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handles(id, owner): Handles) -> Outcome {
    state.app.remove_credential(&caller, &id, Owner::of(&owner)).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

async fn kept(state: &EdgeState, server: &str, owner: Owner<'_>, input: Input<NewCredentialBody>) -> Outcome {
    let NewCredentialBody { token, expires_at } = input.body;
    let expires_at = time("/expires_at", expires_at.as_deref())?;
    entity(&state.app.put_credential(&input.by, server, owner, token, expires_at).await?)
}
