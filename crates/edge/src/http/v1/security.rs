//! `/api/v1/security`: what was seen of identities, and what is done in an emergency.

use crate::http::access::By;
use crate::http::body::{Input, Params, limit};
use crate::http::envelope::{Many, One, Outcome, Reply, Resource};
use crate::http::state::EdgeState;
use crate::http::v1::journal::{JournalAttributes, attributes};
use axum::extract::State;
use axum::http::StatusCode;
use domain::identity::guard::Guard;
use engine::Handled;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(events))
        .routes(routes!(guard))
        .routes(routes!(revoke_all))
        .routes(routes!(declare))
        .routes(routes!(lift))
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SecurityParams {
    /// Only events after this position of the journal; 0 when nothing is said.
    after: Option<u64>,
    /// Only events whose kind begins so: `identity.login`, `identity.permission.denied`.
    kind: Option<String>,
    /// How many at most, 1 to 500; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// List security events, oldest first: logins, refusals, the use of keys, privileged actions
///
/// `meta.next_cursor` is the next `after`, as text. Whoever holds the permission with `:own` sees what it did itself.
#[utoipa::path(get, path = "/api/v1/security/events", tag = "security",
    extensions(("x-permission" = json!("audit.read"))), params(SecurityParams),
    responses((status = 200, body = Many<JournalAttributes>)))]
async fn events(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<SecurityParams>) -> Outcome {
    let kind = params.kind.unwrap_or_default();
    let (entries, after) = state.app.security_events(&caller, params.after.unwrap_or(0), &kind, limit(params.limit)?).await?;
    let item = |entry: &app::JournalEntry| {
        let data = entry.data.as_deref().and_then(|data| serde_json::from_slice(data).ok());
        Resource { id: entry.header.id.to_string(), kind: "security_event", attributes: attributes(entry, data) }
    };
    Ok(Reply::data(StatusCode::OK, &entries.iter().map(item).collect::<Vec<_>>())?.next_plain(after.to_string()))
}

/// What guards the tenant as a whole.
#[derive(Serialize, ToSchema)]
struct GuardAttributes {
    /// Sessions and tokens that were made up to here have ended.
    revoked_until: Option<String>,
    /// API keys that were made up to here have ended.
    keys_revoked_until: Option<String>,
    /// Why less is allowed for now.
    emergency: Option<String>,
}

fn shown(guard: &Guard) -> GuardAttributes {
    GuardAttributes {
        revoked_until: guard.revoked_until.map(|at| at.to_string()),
        keys_revoked_until: guard.keys_revoked_until.map(|at| at.to_string()),
        emergency: guard.emergency.clone(),
    }
}

fn answered(guard: &Handled<Guard>) -> Outcome {
    Reply::entity(StatusCode::OK, "guard", guard, shown(&guard.state))
}

/// Call back everything
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RevokeAll {
    /// Whether API keys end too.
    #[serde(default)]
    keys: bool,
}

/// Declare an emergency
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeclareEmergency {
    /// Why, for the record.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

/// Nothing to say
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LiftEmergency {}

/// What guards the tenant: what was called back, and whether there is an emergency
#[utoipa::path(get, path = "/api/v1/security/guard", tag = "security", extensions(("x-permission" = json!("incidents.read"))),
    responses((status = 200, body = One<GuardAttributes>)))]
async fn guard(State(state): State<Arc<EdgeState>>, By(caller): By) -> Outcome {
    let guard = state.app.guard(&caller).await?;
    let id = domain::identity::guard::guard_id(caller.actor.tenant).to_string();
    Reply::data(StatusCode::OK, &Resource { id, kind: "guard", attributes: shown(&guard) })
}

/// Call back every session and token of the tenant, and API keys too if asked: refused everywhere at once
#[utoipa::path(post, path = "/api/v1/security/actions/revoke-all", tag = "security", extensions(("x-permission" = json!("incidents.respond"))),
    request_body = RevokeAll, responses((status = 200, body = One<GuardAttributes>)))]
async fn revoke_all(State(state): State<Arc<EdgeState>>, input: Input<RevokeAll>) -> Outcome {
    answered(&state.app.revoke_all(&input.by, input.body.keys).await?)
}

/// Declare an emergency: rate limits become strict until it is lifted
#[utoipa::path(post, path = "/api/v1/security/actions/declare-emergency", tag = "security", extensions(("x-permission" = json!("incidents.respond"))),
    request_body = DeclareEmergency, responses((status = 200, body = One<GuardAttributes>)))]
async fn declare(State(state): State<Arc<EdgeState>>, input: Input<DeclareEmergency>) -> Outcome {
    answered(&state.app.declare_emergency(&input.by, input.body.reason).await?)
}

/// Lift an emergency
#[utoipa::path(post, path = "/api/v1/security/actions/lift-emergency", tag = "security", extensions(("x-permission" = json!("incidents.respond"))),
    request_body = LiftEmergency, responses((status = 200, body = One<GuardAttributes>)))]
async fn lift(State(state): State<Arc<EdgeState>>, input: Input<LiftEmergency>) -> Outcome {
    answered(&state.app.lift_emergency(&input.by).await?)
}
