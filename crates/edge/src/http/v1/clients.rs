//! `/api/v1/clients`: the OAuth clients of a tenant.

use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name};
use crate::http::state::EdgeState;
use crate::http::v1::auth::Empty;
use app::oauth::NewClient;
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::client::{AuthMethod, Client, GrantType, Profile, Source};
use engine::Handled;
use kernel::Json;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, update, delete)).routes(routes!(change_secret))
}

/// How a client proves who it is.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ClientAuthMethod {
    /// It cannot keep a secret.
    None,
    /// A secret in the `Authorization` header.
    ClientSecretBasic,
    /// A secret in the form.
    ClientSecretPost,
    /// A signed assertion (RFC 7523).
    PrivateKeyJwt,
}

/// How a client gets tokens.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
enum ClientGrantType {
    /// A person signs in with a browser.
    #[serde(rename = "authorization_code")]
    AuthorizationCode,
    /// The next tokens of a session.
    #[serde(rename = "refresh_token")]
    RefreshToken,
    /// The client's own identity.
    #[serde(rename = "client_credentials")]
    ClientCredentials,
    /// A token for another, narrower one.
    #[serde(rename = "urn:ietf:params:oauth:grant-type:token-exchange")]
    TokenExchange,
    /// A person signs in on another machine.
    #[serde(rename = "urn:ietf:params:oauth:grant-type:device_code")]
    DeviceCode,
}

/// A client to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateClient {
    /// Name for people, on the page that asks them.
    name: Name,
    /// Where answers may be sent: https, a loopback address, or a scheme of the app's own.
    #[serde(default)]
    #[schema(max_items = 20)]
    redirect_uris: Vec<String>,
    /// Where the browser may be sent after a logout.
    #[serde(default)]
    #[schema(max_items = 20)]
    post_logout_redirect_uris: Vec<String>,
    /// How it gets tokens; `authorization_code` and `refresh_token` when nothing is said.
    #[schema(max_items = 5)]
    grant_types: Option<Vec<ClientGrantType>>,
    /// `client_secret_basic` when nothing is said.
    token_endpoint_auth_method: Option<ClientAuthMethod>,
    /// What it may ask for; anything that its users hold when nothing is said.
    #[serde(default)]
    #[schema(max_items = 64)]
    scopes: Vec<String>,
    /// Who it is by itself: a service by id or name, or an agent by id. Needed for `client_credentials`.
    subject: Option<String>,
    /// Its public keys, for `private_key_jwt`.
    #[schema(value_type = Option<Object>)]
    jwks: Option<serde_json::Value>,
    /// A page about it.
    client_uri: Option<String>,
}

/// What is known of a client from now on; who it is by itself and how it proves it stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UpdateClient {
    /// Name for people.
    name: Option<Name>,
    /// Where answers may be sent.
    #[schema(max_items = 20)]
    redirect_uris: Option<Vec<String>>,
    /// Where the browser may be sent after a logout.
    #[schema(max_items = 20)]
    post_logout_redirect_uris: Option<Vec<String>>,
    /// How it gets tokens.
    #[schema(max_items = 5)]
    grant_types: Option<Vec<ClientGrantType>>,
    /// What it may ask for.
    #[schema(max_items = 64)]
    scopes: Option<Vec<String>>,
    /// Its public keys.
    #[schema(value_type = Option<Object>)]
    jwks: Option<serde_json::Value>,
    /// A page about it.
    client_uri: Option<String>,
}

/// A client.
#[derive(Serialize, ToSchema)]
struct ClientAttributes {
    /// Its name in requests and tokens.
    client_id: String,
    /// Its secret, shown only when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<String>,
    /// Name for people.
    name: String,
    /// Where answers may be sent.
    redirect_uris: Vec<String>,
    /// Where the browser may be sent after a logout.
    post_logout_redirect_uris: Vec<String>,
    /// How it gets tokens.
    grant_types: Vec<ClientGrantType>,
    /// How it proves who it is.
    token_endpoint_auth_method: ClientAuthMethod,
    /// What it may ask for.
    scopes: Vec<String>,
    /// Id of who it is by itself.
    subject: Option<String>,
    /// Its public keys.
    #[schema(value_type = Option<Object>)]
    jwks: Option<serde_json::Value>,
    /// A page about it.
    client_uri: Option<String>,
    /// `admin`, or `dynamic` when it registered itself.
    source: &'static str,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

impl From<ClientAuthMethod> for AuthMethod {
    fn from(method: ClientAuthMethod) -> Self {
        match method {
            ClientAuthMethod::None => AuthMethod::None,
            ClientAuthMethod::ClientSecretBasic => AuthMethod::ClientSecretBasic,
            ClientAuthMethod::ClientSecretPost => AuthMethod::ClientSecretPost,
            ClientAuthMethod::PrivateKeyJwt => AuthMethod::PrivateKeyJwt,
        }
    }
}

impl From<AuthMethod> for ClientAuthMethod {
    fn from(method: AuthMethod) -> Self {
        match method {
            AuthMethod::None => ClientAuthMethod::None,
            AuthMethod::ClientSecretBasic => ClientAuthMethod::ClientSecretBasic,
            AuthMethod::ClientSecretPost => ClientAuthMethod::ClientSecretPost,
            AuthMethod::PrivateKeyJwt => ClientAuthMethod::PrivateKeyJwt,
        }
    }
}

const GRANTS: [(ClientGrantType, GrantType); 5] = [
    (ClientGrantType::AuthorizationCode, GrantType::AuthorizationCode),
    (ClientGrantType::RefreshToken, GrantType::RefreshToken),
    (ClientGrantType::ClientCredentials, GrantType::ClientCredentials),
    (ClientGrantType::TokenExchange, GrantType::TokenExchange),
    (ClientGrantType::DeviceCode, GrantType::DeviceCode),
];

fn grants(asked: Vec<ClientGrantType>) -> Vec<GrantType> {
    let same = |asked: ClientGrantType| GRANTS.iter().find(|(wire, _)| *wire as u8 == asked as u8).map(|(_, grant)| *grant);
    let found: std::collections::BTreeSet<GrantType> = asked.into_iter().filter_map(same).collect();
    found.into_iter().collect()
}

fn shown(grants: &[GrantType]) -> Vec<ClientGrantType> {
    grants.iter().filter_map(|grant| GRANTS.iter().find(|(_, known)| known == grant).map(|(wire, _)| *wire)).collect()
}

fn keys(jwks: Option<serde_json::Value>) -> Result<Option<Json>, Failure> {
    jwks.map(|jwks| Json::of(&jwks)).transpose().map_err(|_| Failure::internal())
}

fn attributes(state: &EdgeState, slug: &str, client: &Handled<Client>, client_secret: Option<String>) -> ClientAttributes {
    let profile = &client.state.profile;
    ClientAttributes {
        client_id: state.app.client_name(slug, client),
        client_secret,
        name: profile.name.clone(),
        redirect_uris: profile.redirect_uris.clone(),
        post_logout_redirect_uris: profile.post_logout_redirect_uris.clone(),
        grant_types: shown(&profile.grant_types),
        token_endpoint_auth_method: profile.auth_method.into(),
        scopes: profile.scopes.clone(),
        subject: profile.subject.as_ref().map(|subject| subject.id.clone()),
        jwks: profile.jwks.as_ref().map(Json::value),
        client_uri: profile.client_uri.clone(),
        source: if client.state.source == Source::Dynamic { "dynamic" } else { "admin" },
        created_at: client.created_at.to_string(),
        updated_at: client.updated_at.to_string(),
        deleted_at: client.state.is_deleted.then(|| client.updated_at.to_string()),
        version: client.version,
    }
}

/// List OAuth clients
#[utoipa::path(get, path = "/api/v1/clients", tag = "identity", extensions(("x-permission" = json!("clients.read"))),
    params(ListParams), responses((status = 200, body = Many<ClientAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.clients(&caller, &params.order()?).await?;
    let slug = &caller.actor.tenant_slug;
    let item = |client: &Handled<Client>| Resource {
        id: client.stream.clone(),
        kind: "client",
        attributes: attributes(&state, slug, client, None),
    };
    Reply::list(&page.items.iter().map(item).collect::<Vec<_>>(), page.next, page.position)
}

/// Make an OAuth client; its secret is shown once
#[utoipa::path(post, path = "/api/v1/clients", tag = "identity", extensions(("x-permission" = json!("clients.create"))),
    request_body = CreateClient, responses((status = 201, body = One<ClientAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateClient>) -> Outcome {
    let body = input.body;
    let usual = || vec![ClientGrantType::AuthorizationCode, ClientGrantType::RefreshToken];
    let profile = Profile {
        name: body.name.0,
        redirect_uris: body.redirect_uris,
        post_logout_redirect_uris: body.post_logout_redirect_uris,
        grant_types: grants(body.grant_types.unwrap_or_else(usual)),
        auth_method: body.token_endpoint_auth_method.unwrap_or(ClientAuthMethod::ClientSecretBasic).into(),
        scopes: body.scopes,
        subject: None,
        jwks: keys(body.jwks)?,
        client_uri: body.client_uri,
    };
    let (client, secret) = state.app.create_client(&input.by, NewClient { profile, subject: body.subject }).await?;
    let attributes = attributes(&state, &input.by.actor.tenant_slug, &client, secret);
    Reply::entity(StatusCode::CREATED, "client", &client, attributes)
}

/// Read an OAuth client by id or `client_id`
#[utoipa::path(get, path = "/api/v1/clients/{id}", tag = "identity", extensions(("x-permission" = json!("clients.read"))),
    params(("id" = String, Path, description = "Id or `client_id`"), AtParams), responses((status = 200, body = One<ClientAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let client = state.app.client(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "client", &client, attributes(&state, &caller.actor.tenant_slug, &client, None))
}

/// Change an OAuth client
#[utoipa::path(put, path = "/api/v1/clients/{id}", tag = "identity", extensions(("x-permission" = json!("clients.update"))),
    params(("id" = String, Path, description = "Id or `client_id`")), request_body = UpdateClient,
    responses((status = 200, body = One<ClientAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<UpdateClient>) -> Outcome {
    let body = input.body;
    let known = state.app.client(&input.by, &id).await?.state.profile.clone();
    let profile = Profile {
        name: body.name.map_or(known.name, |name| name.0),
        redirect_uris: body.redirect_uris.unwrap_or(known.redirect_uris),
        post_logout_redirect_uris: body.post_logout_redirect_uris.unwrap_or(known.post_logout_redirect_uris),
        grant_types: body.grant_types.map_or(known.grant_types, grants),
        scopes: body.scopes.unwrap_or(known.scopes),
        jwks: keys(body.jwks)?.or(known.jwks),
        client_uri: body.client_uri.or(known.client_uri),
        ..known
    };
    let client = state.app.update_client(&input.by, &id, profile).await?;
    Reply::entity(StatusCode::OK, "client", &client, attributes(&state, &input.by.actor.tenant_slug, &client, None))
}

/// Give an OAuth client another secret; the old one stops working at once
#[utoipa::path(post, path = "/api/v1/clients/{id}/actions/change-secret", tag = "identity", extensions(("x-permission" = json!("clients.update"))),
    params(("id" = String, Path, description = "Id or `client_id`")), request_body = Empty,
    responses((status = 200, body = One<ClientAttributes>)))]
async fn change_secret(State(state): State<Arc<EdgeState>>, Handle(id): Handle, input: Input<Empty>) -> Outcome {
    let (client, secret) = state.app.change_client_secret(&input.by, &id).await?;
    Reply::entity(StatusCode::OK, "client", &client, attributes(&state, &input.by.actor.tenant_slug, &client, Some(secret)))
}

/// Delete an OAuth client; its tokens stop working at once
#[utoipa::path(delete, path = "/api/v1/clients/{id}", tag = "identity", extensions(("x-permission" = json!("clients.delete"))),
    params(("id" = String, Path, description = "Id or `client_id`")), responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(id): Handle) -> Outcome {
    state.app.delete_client(&caller, &id).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}
