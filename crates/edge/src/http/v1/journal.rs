//! `/api/v1/journal`: observations: calls of tools, privileged actions.

use crate::http::access::By;
use crate::http::body::{Params, limit};
use crate::http::envelope::{Failure, Many, One, Outcome, Reply, Resource};
use crate::http::state::EdgeState;
use app::{JournalEntry, JournalQuery};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use kernel::journal::Class;
use kernel::{Problem, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct JournalParams {
    /// Only entries after this position; 0 when nothing is said.
    after: Option<u64>,
    /// `tool_call`, `security` or `gap`
    class: Option<String>,
    /// How many at most, 1 to 500; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// Who did what was seen.
#[derive(Serialize, ToSchema)]
struct JournalActor {
    /// `user`, `agent`, `service` or `system`
    kind: &'static str,
    /// Its id.
    id: String,
}

/// An entry.
#[derive(Serialize, ToSchema)]
pub(crate) struct JournalAttributes {
    /// Its place in the tenant's journal.
    position: u64,
    /// `tool_call`, `security` or `gap`
    class: &'static str,
    /// What was seen: `tools.call.finished`
    kind: String,
    /// When.
    recorded_at: String,
    /// Who.
    actor: JournalActor,
    /// What belongs together.
    correlation_id: String,
    /// What exactly; large values as `{"$value": "<sha-256>"}` in lists; `null` when its time is over.
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
}

pub(crate) fn attributes(entry: &JournalEntry, data: Option<Value>) -> JournalAttributes {
    let header = &entry.header;
    JournalAttributes {
        position: header.position,
        class: header.class.as_str(),
        kind: header.kind.clone(),
        recorded_at: header.at.to_string(),
        actor: JournalActor { kind: header.actor.kind.as_str(), id: header.actor.id.clone() },
        correlation_id: header.correlation.clone(),
        data,
    }
}

/// List journal entries, oldest first
///
/// Whoever holds the permission with `:own` sees what it did itself.
#[utoipa::path(get, path = "/api/v1/journal", tag = "journal",
    extensions(("x-permission" = json!("audit.read"))), params(JournalParams),
    responses((status = 200, body = Many<JournalAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<JournalParams>) -> Outcome {
    let class = params.class.map(|word| {
        let known = Class::ALL.map(Class::as_str).join(", ");
        let problem = Problem { pointer: "/class".into(), message: format!("is none of {known}") };
        Class::parse(&word).ok_or_else(|| Failure::from(Rejection::invalid(&[problem])))
    });
    let query =
        JournalQuery { after: params.after.unwrap_or(0), class: class.transpose()?, actor: None, limit: limit(params.limit)? };
    let entries = state.app.journal(&caller, query).await?;
    let items: Vec<_> = entries
        .iter()
        .map(|entry| {
            let data = entry.data.as_deref().and_then(|data| serde_json::from_slice(data).ok());
            Resource { id: entry.header.id.to_string(), kind: "journal_entry", attributes: attributes(entry, data) }
        })
        .collect();
    Reply::data(StatusCode::OK, &items)
}

/// Read a journal entry with its large values
#[utoipa::path(get, path = "/api/v1/journal/{position}", tag = "journal",
    extensions(("x-permission" = json!("audit.read"))),
    params(("position" = u64, Path, description = "Its position")), responses((status = 200, body = One<JournalAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, By(caller): By, Path(position): Path<String>) -> Outcome {
    let position = position.parse::<u64>().map_err(|_| {
        Failure::from(Rejection::invalid(&[Problem {
            pointer: "/position".into(),
            message: "is no position, such as 4711".into(),
        }]))
    })?;
    let (entry, data) = state.app.journal_entry(&caller, position).await?;
    let data = entry.data.is_some().then_some(data);
    Reply::data(
        StatusCode::OK,
        &Resource { id: entry.header.id.to_string(), kind: "journal_entry", attributes: attributes(&entry, data) },
    )
}
