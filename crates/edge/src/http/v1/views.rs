//! `/api/v1/views`: what is folded from the log for reading, and building it anew.

use super::auth::Empty;
use crate::http::access::By;
use crate::http::asof::{AsOf, AtParams};
use crate::http::body::Input;
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::names::Handle;
use crate::http::state::EdgeState;
use app::ViewStatus;
use axum::extract::State;
use axum::http::StatusCode;
use domain::rebuild::Rebuild;
use engine::Handled;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(rebuild)).routes(routes!(get))
}

/// A view.
#[derive(Serialize, ToSchema)]
struct ViewAttributes {
    /// The version of its rules; null before it is there.
    version: Option<u32>,
    /// How often it was rebuilt in that version.
    rebuilds: u32,
    /// Its checkpoint: after a restart it goes on from here. Events that change no row move it every 10,000 events only.
    position: u64,
    /// How far a rebuild has come; null when none goes on.
    rebuilding: Option<RebuildProgress>,
}

/// How far a rebuild has come.
#[derive(Serialize, ToSchema)]
struct RebuildProgress {
    /// Events that are folded in.
    position: u64,
    /// The end of the log.
    of: u64,
}

fn attributes(view: &ViewStatus) -> ViewAttributes {
    ViewAttributes {
        version: view.version,
        rebuilds: view.rebuilds,
        position: view.position,
        rebuilding: view.rebuilding.map(|position| RebuildProgress { position, of: view.head }),
    }
}

/// A rebuild.
#[derive(Serialize, ToSchema)]
struct RebuildAttributes {
    /// Which view.
    view: String,
    /// `running` or `completed`
    status: &'static str,
    /// The position at which the new rows took the place of the old ones.
    position: Option<u64>,
    /// When it was asked for.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// Counts its changes.
    version: u64,
}

fn rebuild_attributes(rebuild: &Handled<Rebuild>) -> RebuildAttributes {
    RebuildAttributes {
        view: rebuild.state.view.clone(),
        status: if rebuild.state.completed.is_some() { "completed" } else { "running" },
        position: rebuild.state.completed.as_ref().map(|done| done.position),
        created_at: rebuild.created_at.to_string(),
        updated_at: rebuild.updated_at.to_string(),
        version: rebuild.version,
    }
}

/// List views with where they stand
#[utoipa::path(get, path = "/api/v1/views", tag = "events", extensions(("x-permission" = json!("views.read"))),
    responses((status = 200, body = Many<ViewAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, By(caller): By) -> Outcome {
    let views = state.app.views(&caller).await?;
    let position = views.first().map_or(0, |view| view.head);
    let items: Vec<_> = views.iter().map(|v| Resource { id: v.name.clone(), kind: "view", attributes: attributes(v) }).collect();
    Reply::list(&items, None, position)
}

/// Build a view anew beside the one in use, which goes on until the new one takes its place
#[utoipa::path(post, path = "/api/v1/views/{view}/actions/rebuild", tag = "events",
    extensions(("x-permission" = json!("views.rebuild"))), params(("view" = String, Path, description = "Its name")),
    request_body = Empty, responses((status = 202, body = One<RebuildAttributes>)))]
async fn rebuild(State(state): State<Arc<EdgeState>>, Handle(view): Handle, input: Input<Empty>) -> Outcome {
    let rebuild = state.app.rebuild_view(&input.by, &view).await?;
    Reply::entity(StatusCode::ACCEPTED, "rebuild", &rebuild, rebuild_attributes(&rebuild))
}

/// Read a rebuild
#[utoipa::path(get, path = "/api/v1/rebuilds/{id}", tag = "events", extensions(("x-permission" = json!("views.read"))),
    params(("id" = String, Path, description = "Id"), AtParams), responses((status = 200, body = One<RebuildAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, AsOf(caller): AsOf, Handle(id): Handle) -> Outcome {
    let rebuild = state.app.rebuild(&caller, &id).await?;
    Reply::entity(StatusCode::OK, "rebuild", &rebuild, rebuild_attributes(&rebuild))
}
