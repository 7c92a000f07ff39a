//! `/api/v1/timeline`: what changed between two moments.

use crate::http::access::By;
use crate::http::body::Params;
use crate::http::envelope::{Outcome, Reply};
use crate::http::state::EdgeState;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(diff))
}

/// Between which moments.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DiffParams {
    /// A position of the log, or an instant such as `2026-01-01T00:00:00Z`.
    from: String,
    /// The same; now when nothing is said.
    to: Option<String>,
}

/// How one entity changed.
#[derive(Serialize, ToSchema)]
struct ChangeBody {
    /// Its id.
    id: String,
    /// `created` or `changed`
    change: &'static str,
    /// Its version at the beginning; 0 when it did not exist. Read it with `?at=<from>`.
    version_before: u64,
    /// Its version at the end. Read it with `?at=<to>`.
    version_after: u64,
    /// What happened, and how often.
    events: BTreeMap<String, u64>,
}

/// What changed.
#[derive(Serialize, ToSchema)]
struct DiffBody {
    /// Only events after this position count.
    from: u64,
    /// Up to here was looked at.
    to: u64,
    /// How many events lie between.
    events: u64,
    /// Whether all was looked at; otherwise ask again from `to`.
    complete: bool,
    /// What changed, in order of ids.
    entities: Vec<ChangeBody>,
}

/// The answer.
#[derive(Serialize, ToSchema)]
struct Diff {
    data: DiffBody,
}

/// Compare two moments of the record
///
/// Looks at 20,000 events at most; `complete` says whether that was all.
#[utoipa::path(get, path = "/api/v1/timeline/diff", tag = "events", extensions(("x-permission" = json!("events.read"))),
    params(DiffParams), responses((status = 200, body = Diff)))]
async fn diff(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<DiffParams>) -> Outcome {
    let found = state.app.changes(&caller, &params.from, params.to.as_deref()).await?;
    let entities = found.entities.into_iter().map(|(id, change)| ChangeBody {
        id,
        change: if change.version_before == 0 { "created" } else { "changed" },
        version_before: change.version_before,
        version_after: change.version_after,
        events: change.types,
    });
    let body = DiffBody {
        from: found.from,
        to: found.to,
        events: found.events,
        complete: found.is_complete,
        entities: entities.collect(),
    };
    Ok(Reply::data(StatusCode::OK, &body)?.at(found.to))
}
