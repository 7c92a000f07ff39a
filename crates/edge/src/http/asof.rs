//! `?at=`: a request that asks how something was, at a position of the log or at an instant.

use super::access::By;
use super::envelope::Failure;
use super::state::EdgeState;
use app::Caller;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// The caller of a reading request, with the position that it asks for.
pub(crate) struct AsOf(pub Caller);

/// How it was, not how it is.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes the parameter that AsOf reads")]
pub(crate) struct AtParams {
    /// A position of the log, or an instant such as `2026-01-01T00:00:00Z`; now when nothing is said.
    at: Option<String>,
}

impl FromRequestParts<Arc<EdgeState>> for AsOf {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<EdgeState>) -> Result<Self, Failure> {
        let By(mut caller) = By::from_request_parts(parts, state).await?;
        let query = parts.uri.query().unwrap_or_default();
        let given = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "at");
        if let Some((_, text)) = given {
            caller.at = Some(state.app.as_of(&caller, &text).await?);
        }
        Ok(AsOf(caller))
    }
}
