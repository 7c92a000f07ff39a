//! What is open to everybody, and what operators read: health, metrics, keys, the API document.

use super::access::By;
use super::envelope::Failure;
use super::state::EdgeState;
use super::{docs, metrics};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics_text))
        .routes(routes!(openapi))
        .routes(routes!(human))
        .routes(routes!(jwks))
}

/// Whether the process lives.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `ok`
    status: String,
    /// Version of the program.
    version: String,
}

/// Whether the server can serve.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ready` or `not_ready`
    status: String,
    /// Each dependency.
    dependencies: Vec<Dependency>,
    /// What somebody should look at although the server can serve.
    warnings: Vec<Warning>,
}

/// Something that somebody should look at.
#[derive(Serialize, ToSchema)]
struct Warning {
    /// What it is about.
    name: String,
    /// What is wrong.
    reason: String,
    /// Ids of what it is about.
    ids: Vec<String>,
}

/// Consumer groups that do not move. Anybody may ask, so ids stand for names.
fn stalled_groups(state: &EdgeState) -> Option<Warning> {
    let stalled = state.app.groups_status().into_iter().filter(|group| group.is_stalled);
    let ids: Vec<String> = stalled.map(|group| group.id).collect();
    let reason = format!("{} consumer groups acknowledge nothing although events wait", ids.len());
    (!ids.is_empty()).then(|| Warning { name: "consumer-groups".into(), reason, ids })
}

/// Something that the server needs.
#[derive(Serialize, ToSchema)]
struct Dependency {
    /// What.
    name: String,
    /// `up` or `down`
    status: String,
    /// Why it is down.
    reason: Option<String>,
}

/// Whether the process lives
#[utoipa::path(get, path = "/health", tag = "operations", extensions(("x-permission" = json!("open"))), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { status: "ok".into(), version: env!("CARGO_PKG_VERSION").into() })
}

/// Whether the server can serve, with the state of each dependency
#[utoipa::path(get, path = "/ready", tag = "operations", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Ready), (status = 503, body = Ready)))]
async fn ready(State(state): State<Arc<EdgeState>>) -> Response {
    let dependencies: Vec<Dependency> = state
        .readiness
        .dependencies()
        .into_iter()
        .map(|(name, reason)| Dependency {
            name: name.into(),
            status: if reason.is_none() { "up" } else { "down" }.into(),
            reason,
        })
        .collect();
    let warnings = stalled_groups(&state).into_iter().collect();
    let is_ready = dependencies.iter().all(|d| d.reason.is_none());
    let (status, word) = if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not_ready") };
    (status, Json(Ready { status: word.into(), dependencies, warnings })).into_response()
}

/// Figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations", extensions(("x-permission" = json!("metrics.read"))),
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
async fn metrics_text(State(state): State<Arc<EdgeState>>, By(_caller): By) -> Result<Response, Failure> {
    let text = metrics::text(&state).map_err(|_| Failure::internal())?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "operations", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn openapi(State(state): State<Arc<EdgeState>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], state.document_text.clone()).into_response()
}

/// This document for people
#[utoipa::path(get, path = "/docs", tag = "operations", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = String, content_type = "text/html")))]
async fn human(State(state): State<Arc<EdgeState>>) -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(docs::page(&state.document))).into_response()
}

/// The public keys that verify access tokens
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "identity", extensions(("x-permission" = json!("open"))),
    responses((status = 200, body = Value, content_type = "application/json")))]
async fn jwks(State(state): State<Arc<EdgeState>>) -> Json<Value> {
    Json(state.app.jwks())
}
