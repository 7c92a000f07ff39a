//! What clients find out by themselves: the authorization server (RFC 8414, OpenID Connect Discovery), the protected
//! resources (RFC 9728), and the challenge that leads there.

use super::super::state::EdgeState;
use app::App;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use domain::identity::oauth::{DEFAULT_SCOPES, IDENTITY_SCOPES};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(server)).routes(routes!(openid)).routes(routes!(resource)).routes(routes!(mcp_resource))
}

/// Where the document of a resource lies.
const RESOURCE: &str = "/.well-known/oauth-protected-resource";
/// How a client may prove who it is.
const METHODS: [&str; 4] = ["none", "client_secret_basic", "client_secret_post", "private_key_jwt"];
/// What its assertions may be signed with.
const ASSERTIONS: [&str; 5] = ["ES256", "Ed25519", "EdDSA", "RS256", "PS256"];

/// A document that may be read by any page, and kept for a while.
pub(super) fn public(document: Value) -> Response {
    let headers = [(header::CACHE_CONTROL, "public, max-age=300"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    (headers, Json(document)).into_response()
}

fn described(app: &App) -> Value {
    let issuer = app.issuer();
    let at = |path: &str| format!("{issuer}/oauth/{path}");
    let scopes: Vec<&str> = IDENTITY_SCOPES.into_iter().chain(DEFAULT_SCOPES).collect();
    let confidential = &METHODS[1..];
    let mut document = json!({
        "issuer": issuer,
        "authorization_endpoint": at("authorize"),
        "token_endpoint": at("token"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "userinfo_endpoint": at("userinfo"),
        "revocation_endpoint": at("revoke"),
        "introspection_endpoint": at("introspect"),
        "device_authorization_endpoint": at("device_authorization"),
        "end_session_endpoint": at("logout"),
        "scopes_supported": scopes,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": [
            "authorization_code",
            "refresh_token",
            "client_credentials",
            "urn:ietf:params:oauth:grant-type:token-exchange",
            "urn:ietf:params:oauth:grant-type:device_code",
        ],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": app.signing_algorithms(),
        "token_endpoint_auth_methods_supported": METHODS,
        "token_endpoint_auth_signing_alg_values_supported": ASSERTIONS,
        "revocation_endpoint_auth_methods_supported": METHODS,
        "revocation_endpoint_auth_signing_alg_values_supported": ASSERTIONS,
        "introspection_endpoint_auth_methods_supported": confidential,
        "introspection_endpoint_auth_signing_alg_values_supported": ASSERTIONS,
        "code_challenge_methods_supported": ["S256"],
        "claims_supported": [
            "iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "acr", "amr", "at_hash", "sid", "preferred_username", "name", "email", "email_verified",
        ],
        "acr_values_supported": ["pwd", "mfa"],
        "claim_types_supported": ["normal"],
        "claims_parameter_supported": false,
        "request_parameter_supported": false,
        "request_uri_parameter_supported": false,
        "authorization_response_iss_parameter_supported": true,
        "client_id_metadata_document_supported": true,
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "service_documentation": format!("{issuer}/docs"),
    });
    if app.allows_registration() {
        document["registration_endpoint"] = json!(at("register"));
    }
    document
}

fn resource_document(app: &App, resource: String, name: &str) -> Value {
    json!({
        "resource": resource,
        "resource_name": name,
        "authorization_servers": [app.issuer()],
        "scopes_supported": DEFAULT_SCOPES,
        "bearer_methods_supported": ["header"],
        "resource_documentation": format!("{}/docs", app.issuer()),
    })
}

/// The `WWW-Authenticate` of a refusal: where to get a token, and what was wrong with the one shown.
pub(in crate::http) fn challenge(app: &App, is_mcp: bool, error: Option<(&str, &str)>, scope: Option<&str>) -> String {
    let path = if is_mcp { "/mcp" } else { "" };
    let mut text = format!("Bearer resource_metadata=\"{}{RESOURCE}{path}\"", app.issuer());
    if let Some((code, description)) = error {
        text += &format!(", error=\"{code}\", error_description=\"{description}\"");
    }
    let usual = is_mcp.then(|| DEFAULT_SCOPES.join(" "));
    if let Some(scope) = scope.map(str::to_owned).or(usual) {
        text += &format!(", scope=\"{scope}\"");
    }
    text
}

/// The authorization server, described (RFC 8414)
#[utoipa::path(get, path = "/.well-known/oauth-authorization-server", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn server(State(state): State<Arc<EdgeState>>) -> Response {
    public(described(&state.app))
}

/// The OpenID provider, described (OpenID Connect Discovery)
#[utoipa::path(get, path = "/.well-known/openid-configuration", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn openid(State(state): State<Arc<EdgeState>>) -> Response {
    public(described(&state.app))
}

/// The API as a protected resource (RFC 9728)
#[utoipa::path(get, path = "/.well-known/oauth-protected-resource", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn resource(State(state): State<Arc<EdgeState>>) -> Response {
    public(resource_document(&state.app, state.app.issuer().to_owned(), "Keiko"))
}

/// The MCP endpoint as a protected resource (RFC 9728)
#[utoipa::path(get, path = "/.well-known/oauth-protected-resource/mcp", tag = "oauth", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn mcp_resource(State(state): State<Arc<EdgeState>>) -> Response {
    public(resource_document(&state.app, state.app.mcp_resource(), "Keiko's tools"))
}
