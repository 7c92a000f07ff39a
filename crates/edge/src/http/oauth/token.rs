//! The endpoints that programs call: tokens, devices, revocation, introspection, who the person is.

use super::super::access::By;
use super::super::envelope::Failure;
use super::super::state::EdgeState;
use super::form::{Form, no_store, told};
use super::{anonymous, challenge};
use app::oauth::{Granted, KnownClient, TokenRequest};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kernel::{Kind, Rejection};
use serde::Serialize;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(token))
        .routes(routes!(device_authorization))
        .routes(routes!(revoke))
        .routes(routes!(introspect))
        .routes(routes!(userinfo, userinfo_by_post))
}

fn answered(outcome: Granted<impl Serialize>) -> Response {
    match outcome {
        Ok(body) => no_store(StatusCode::OK, &body),
        Err(error) => told(&error),
    }
}

async fn client(state: &EdgeState, form: &Form) -> Granted<KnownClient> {
    state.app.authenticate_client(form.fields.client_auth(&form.parts.headers)?).await
}

fn asked(form: &Form) -> TokenRequest {
    let get = |name| form.fields.get(name);
    let typed = |name, kind| get(name).map(|token| (token, get(kind).unwrap_or_default()));
    let mut resources = form.fields.all("resource");
    resources.extend(form.fields.all("audience"));
    TokenRequest {
        grant_type: get("grant_type").unwrap_or_default(),
        code: get("code"),
        redirect_uri: get("redirect_uri"),
        code_verifier: get("code_verifier"),
        refresh_token: get("refresh_token"),
        scope: get("scope"),
        resources,
        device_code: get("device_code"),
        subject_token: typed("subject_token", "subject_token_type"),
        actor_token: typed("actor_token", "actor_token_type"),
        requested_token_type: get("requested_token_type"),
    }
}

/// Get tokens (RFC 6749, 8628, 8693)
///
/// A form; the client proves itself as it is registered. Refusals are `{"error", "error_description"}`.
#[utoipa::path(post, path = "/oauth/token", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = Value), (status = 400, body = Value), (status = 401, body = Value)))]
async fn token(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    let outcome = async {
        let client = client(&state, &form).await?;
        state.app.grant(&client, asked(&form), anonymous(&form.parts)).await
    };
    answered(outcome.await)
}

/// Begin to sign in on a device without a browser (RFC 8628)
#[utoipa::path(post, path = "/oauth/device_authorization", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = Value), (status = 400, body = Value), (status = 401, body = Value)))]
async fn device_authorization(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    let outcome = async {
        let client = client(&state, &form).await?;
        let scope = form.fields.get("scope");
        state.app.start_device(&client, scope.as_deref(), &form.fields.all("resource"), anonymous(&form.parts)).await
    };
    answered(outcome.await)
}

/// Call a token back (RFC 7009)
#[utoipa::path(post, path = "/oauth/revoke", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200), (status = 400, body = Value), (status = 401, body = Value)))]
async fn revoke(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    let outcome = async {
        let client = client(&state, &form).await?;
        let token = form.fields.get("token").ok_or_else(missing)?;
        state.app.revoke(&client, &token, anonymous(&form.parts)).await
    };
    match outcome.await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => told(&error),
    }
}

/// Ask about a token (RFC 7662)
#[utoipa::path(post, path = "/oauth/introspect", tag = "oauth", extensions(("x-permission" = json!("open"))),
    request_body(content = Object, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = Value), (status = 400, body = Value), (status = 401, body = Value)))]
async fn introspect(State(state): State<Arc<EdgeState>>, form: Form) -> Response {
    let outcome = async {
        let client = client(&state, &form).await?;
        let token = form.fields.get("token").ok_or_else(missing)?;
        state.app.introspect(&client, &token).await
    };
    answered(outcome.await)
}

fn missing() -> app::oauth::OauthError {
    app::oauth::OauthError { code: "invalid_request", description: "token is missing.".into(), retry_after_s: None }
}

/// Who is the person (OpenID Connect)
#[utoipa::path(get, path = "/oauth/userinfo", tag = "oauth", extensions(("x-permission" = json!("profile.read"))),
    responses((status = 200, body = Value)))]
async fn userinfo(State(state): State<Arc<EdgeState>>, By(caller): By) -> Response {
    said(&state, &caller).await
}

/// Who is the person (OpenID Connect)
#[utoipa::path(post, path = "/oauth/userinfo", tag = "oauth", extensions(("x-permission" = json!("profile.read"))),
    responses((status = 200, body = Value)))]
async fn userinfo_by_post(State(state): State<Arc<EdgeState>>, By(caller): By) -> Response {
    said(&state, &caller).await
}

async fn said(state: &EdgeState, caller: &app::Caller) -> Response {
    match state.app.userinfo(&caller.actor).await {
        Ok(Some(info)) => return no_store(StatusCode::OK, &info),
        Ok(None) => {}
        Err(rejection) => return Failure::from(rejection).into_response(),
    }
    let (message, hint) = ("This token does not say who somebody is.", "Ask for the scope openid.");
    let rejection = Rejection::new(Kind::Forbidden, "PERMISSION_DENIED", message, hint).with("permission", "openid");
    let mut response = Failure::from(rejection).into_response();
    let challenge = challenge(&state.app, false, Some(("insufficient_scope", message)), Some("openid"));
    if let Ok(value) = HeaderValue::from_str(&challenge) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}
