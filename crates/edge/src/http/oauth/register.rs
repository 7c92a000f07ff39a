//! Clients that register themselves (RFC 7591).

use super::super::body::{open_json, read};
use super::super::state::EdgeState;
use super::anonymous;
use super::form::{no_store, told};
use app::Timestamp;
use app::oauth::OauthError;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::identity::client::{AuthMethod, Client, GrantType, Profile};
use engine::Handled;
use kernel::Json;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(register))
}

/// What a client says of itself; members that are not known are left alone, as the specification says.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    redirect_uris: Vec<String>,
    #[serde(default)]
    post_logout_redirect_uris: Vec<String>,
    token_endpoint_auth_method: Option<AuthMethod>,
    grant_types: Option<Vec<String>>,
    response_types: Option<Vec<String>>,
    client_name: Option<String>,
    client_uri: Option<String>,
    scope: Option<String>,
    jwks: Option<Value>,
}

fn refused(code: &'static str, description: impl Into<String>) -> Response {
    told(&OauthError { code, description: description.into(), retry_after_s: None })
}

/// Register a client (RFC 7591)
///
/// Off unless `oauth.registration` is on.
#[utoipa::path(post, path = "/oauth/register", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 201, body = Value), (status = 400, body = Value), (status = 403, body = Value)))]
async fn register(State(state): State<Arc<EdgeState>>, request: Request) -> Response {
    if !state.app.allows_registration() {
        let body = json!({ "error": "access_denied", "error_description": "Clients are made by an administrator here." });
        return no_store(StatusCode::FORBIDDEN, &body);
    }
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return refused("invalid_client_metadata", "The body must be JSON: application/json.");
    }
    let bytes = match read(Request::from_parts(parts.clone(), body), &state).await {
        Ok(bytes) => bytes,
        Err(failure) => return failure.into_response(),
    };
    let metadata = open_json(&bytes, &state).ok().and_then(|value| Metadata::deserialize(value).ok());
    let Some(metadata) = metadata else {
        return refused("invalid_client_metadata", "The body is no JSON object with client metadata of the documented form.");
    };
    let profile = match understood(metadata) {
        Ok(profile) => profile,
        Err(response) => return *response,
    };
    match state.app.register_client(profile, &anonymous(&parts)).await {
        Ok((client, secret)) => {
            let name = state.app.registered_name(&client);
            no_store(StatusCode::CREATED, &answered(&client, name, secret, client.created_at))
        }
        Err(error) => told(&error),
    }
}

/// What is asked for that is served; the answer says what is left.
fn understood(metadata: Metadata) -> Result<Profile, Box<Response>> {
    if metadata.response_types.is_some_and(|types| types.iter().any(|kind| kind != "code")) {
        return Err(Box::new(refused("invalid_client_metadata", "The only response_type is 'code'.")));
    }
    // An identity of its own is given by an administrator, never taken.
    let is_own = |grant: &GrantType| matches!(grant, GrantType::ClientCredentials | GrantType::TokenExchange);
    let asked = metadata.grant_types.unwrap_or_else(|| vec!["authorization_code".into()]);
    let known = asked.iter().filter_map(|grant| serde_json::from_value(json!(grant)).ok());
    let grant_types: Vec<GrantType> = known.filter(|grant| !is_own(grant)).collect();
    if grant_types.is_empty() {
        return Err(Box::new(refused(
            "invalid_client_metadata",
            "None of these grant_types is for clients that register themselves.",
        )));
    }
    let scopes = metadata.scope.unwrap_or_default();
    let Some(scopes) = domain::identity::oauth::scopes(&scopes) else {
        return Err(Box::new(refused("invalid_client_metadata", "scope holds a word that is no scope; there are no wildcards.")));
    };
    Ok(Profile {
        name: metadata.client_name.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "A client without a name".into()),
        redirect_uris: metadata.redirect_uris,
        post_logout_redirect_uris: metadata.post_logout_redirect_uris,
        grant_types,
        auth_method: metadata.token_endpoint_auth_method.unwrap_or(AuthMethod::ClientSecretBasic),
        scopes,
        subject: None,
        jwks: metadata.jwks.and_then(|jwks| Json::of(&jwks).ok()),
        client_uri: metadata.client_uri.filter(|uri| uri.starts_with("https://")),
    })
}

fn answered(client: &Handled<Client>, name: String, secret: Option<String>, at: Timestamp) -> Value {
    let profile = &client.state.profile;
    let mut answer = json!({
        "client_id": name,
        "client_id_issued_at": at.0.div_euclid(1_000),
        "client_name": profile.name,
        "redirect_uris": profile.redirect_uris,
        "grant_types": profile.grant_types,
        "response_types": ["code"],
        "token_endpoint_auth_method": profile.auth_method,
    });
    if let Some(secret) = secret {
        answer["client_secret"] = json!(secret);
        answer["client_secret_expires_at"] = json!(0);
    }
    if !profile.post_logout_redirect_uris.is_empty() {
        answer["post_logout_redirect_uris"] = json!(profile.post_logout_redirect_uris);
    }
    if !profile.scopes.is_empty() {
        answer["scope"] = json!(profile.scopes.join(" "));
    }
    if let Some(jwks) = &profile.jwks {
        answer["jwks"] = jwks.value();
    }
    answer
}
