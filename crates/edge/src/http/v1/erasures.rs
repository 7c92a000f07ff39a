//! `/api/v1/erasures`: removing what is kept of a person.

use crate::http::asof::{AsOf, AtParams};
use crate::http::body::{Input, ListParams, Params};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name};
use crate::http::state::EdgeState;
use axum::extract::State;
use axum::http::StatusCode;
use domain::erasure::Erasure;
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get))
}

/// Whose data is to be erased.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateErasure {
    /// A user, by id or name.
    subject: Name,
}

/// An erasure.
#[derive(Serialize, ToSchema)]
struct ErasureAttributes {
    /// The user's id.
    subject: String,
    /// `running` or `completed`
    status: &'static str,
    /// What came of it; null while it runs.
    result: Option<ErasureResult>,
    /// When it was asked for.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

/// What an erasure removed.
#[derive(Serialize, ToSchema)]
struct ErasureResult {
    /// Entities that lost everything they held: the account, its sessions and keys, the tasks it submitted.
    streams: u64,
    /// Events that lost their content.
    events: u64,
    /// Journal entries that lost their content.
    journal_entries: u64,
    /// Large values that were removed.
    values: u64,
    /// Events that the person caused in the records of others, which stay.
    kept_events: u64,
}

fn attributes(erasure: &Handled<Erasure>) -> ErasureAttributes {
    ErasureAttributes {
        subject: erasure.state.subject.to_string(),
        status: if erasure.state.completed.is_some() { "completed" } else { "running" },
        result: erasure.state.completed.as_ref().map(|done| ErasureResult {
            streams: done.streams,
            events: done.events,
            journal_entries: done.entries,
            values: done.values,
            kept_events: done.kept,
        }),
        created_at: erasure.created_at.to_string(),
        updated_at: erasure.updated_at.to_string(),
        version: erasure.version,
    }
}

/// List erasures
#[utoipa::path(get, path = "/api/v1/erasures", tag = "audit", extensions(("x-permission" = json!("erasures.read"))),
    params(ListParams), responses((status = 200, body = Many<ErasureAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Params(params): Params<ListParams>) -> Outcome {
    let page = state.app.erasures(&caller, &params.order()?).await?;
    let item = |e: &Handled<Erasure>| Resource { id: e.stream.clone(), kind: "erasure", attributes: attributes(e) };
    let items: Vec<_> = page.items.iter().map(item).collect();
    Reply::list(&items, page.next, page.position)
}

/// Erase a person: ends the account, then removes what is kept of the person from log, journal and tables
///
/// Headers and hashes stay, so the record can still be verified. It cannot be undone. It is carried out in the background;
/// read it until its status is `completed`.
#[utoipa::path(post, path = "/api/v1/erasures", tag = "audit", extensions(("x-permission" = json!("erasures.create"))),
    request_body = CreateErasure, responses((status = 202, body = One<ErasureAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<CreateErasure>) -> Outcome {
    let erasure = state.app.erase(&input.by, &input.body.subject.0).await?;
    Reply::entity(StatusCode::ACCEPTED, "erasure", &erasure, attributes(&erasure))
}

/// Read an erasure
#[utoipa::path(get, path = "/api/v1/erasures/{id}", tag = "audit", extensions(("x-permission" = json!("erasures.read"))),
    params(("id" = String, Path, description = "Id"), AtParams), responses((status = 200, body = One<ErasureAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let erasure = state.app.erasure(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "erasure", &erasure, attributes(&erasure))
}
