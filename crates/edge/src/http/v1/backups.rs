//! `/api/v1/backups`: everything, as one file that comes while it is made.

use crate::http::access::By;
use crate::http::envelope::Failure;
use crate::http::state::EdgeState;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(create))
}

/// Make a backup of every tenant
///
/// The answer is the backup: gzip over JSON lines, signed in its last line. An answer that breaks off is no backup. Only
/// administrators of the default tenant may ask for it.
#[utoipa::path(post, path = "/api/v1/backups", tag = "audit", extensions(("x-permission" = json!("backups.create"))),
    responses((status = 200, description = "The backup", content_type = "application/gzip", body = Vec<u8>)))]
async fn create(State(state): State<Arc<EdgeState>>, By(caller): By) -> Result<Response, Failure> {
    let parts = state.app.backup(&caller).await?;
    let body = stream::unfold(parts, |mut parts| async move {
        let part = parts.recv().await?;
        Some((part.map(Bytes::from), parts))
    });
    Ok(([(header::CONTENT_TYPE, "application/gzip")], Body::from_stream(body)).into_response())
}
