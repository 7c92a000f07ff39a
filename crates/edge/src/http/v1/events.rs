//! `/api/v1/events`: the record, read in pages or followed live.

use super::tasks::EventList;
use crate::follow::PERMISSION;
use crate::http::access::By;
use crate::http::body::{Params, limit};
use crate::http::envelope::{Failure, One, Reply};
use crate::http::sse::{self, Form};
use crate::http::state::EdgeState;
use crate::http::{category, cloudevents};
use app::{EventFilter, Filter, Selection};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kernel::{Kind, Problem, Recorded, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(follow)).routes(routes!(get))
}

/// Who caused an event.
#[derive(Serialize, ToSchema)]
struct ActorBody {
    /// `user`, `agent`, `service` or `system`
    kind: &'static str,
    /// Its id.
    id: String,
    /// Network address of the request.
    address: Option<String>,
    /// What the client called itself.
    client: Option<String>,
}

/// What belongs to an event.
#[derive(Serialize, ToSchema)]
struct MetadataBody {
    /// What belongs together.
    correlation_id: String,
    /// The event that caused it.
    causation_id: Option<String>,
    /// The person behind the actor.
    user_id: Option<String>,
    /// W3C `traceparent` of the request.
    trace_parent: Option<String>,
    /// Who caused it.
    actor: ActorBody,
    /// `standard`
    security_level: &'static str,
}

/// An event.
#[derive(Serialize, ToSchema)]
pub(crate) struct EventBody {
    /// Its id.
    id: String,
    /// `domain.entity.action`
    #[serde(rename = "type")]
    kind: String,
    /// When it happened.
    timestamp: String,
    /// Who caused it, in short.
    source: String,
    /// `domain`, `integration` or `system`
    category: &'static str,
    /// The entity.
    stream: String,
    /// Place in the stream, from 1, gapless.
    version: u64,
    /// Place in the log, from 1, gapless.
    position: u64,
    /// What happened; null when it was erased.
    #[schema(value_type = Option<Object>)]
    data: Option<Box<RawValue>>,
    /// What belongs to it.
    metadata: MetadataBody,
}

/// An event as it is shown.
pub(crate) fn event_body(event: &Recorded) -> EventBody {
    let h = &event.header;
    let parts = event.parts().and_then(Result::ok);
    let (address, client) = parts.as_ref().map(|p| (p.address.clone(), p.client.clone())).unwrap_or_default();
    EventBody {
        id: h.id.to_string(),
        kind: h.kind.clone(),
        timestamp: h.occurred_at.to_string(),
        source: h.source(),
        category: category::word(h.category),
        stream: h.stream.clone(),
        version: h.version,
        position: h.position,
        data: parts.map(|p| p.data.to_owned()),
        metadata: MetadataBody {
            correlation_id: h.correlation.clone(),
            causation_id: h.causation.map(|c| c.to_string()),
            user_id: h.user.map(|u| u.to_string()),
            trace_parent: h.trace_parent.clone(),
            actor: ActorBody { kind: h.actor.kind.as_str(), id: h.actor.id.clone(), address, client },
            security_level: "standard",
        },
    }
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventParams {
    /// Only after this position; from the beginning when nothing is said.
    #[param(minimum = 0)]
    after: Option<u64>,
    /// An exact type, or a prefix ending in `.*`.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<String>,
    /// Only of this entity, by id.
    stream: Option<String>,
    /// `domain`, `integration` or `system`
    category: Option<String>,
    /// Only those of which this expression in CEL is true, such as `data.priority > 5`.
    #[param(max_length = 2048)]
    filter: Option<String>,
    /// `native`, or `cloudevents` for a CloudEvents batch.
    format: Option<String>,
    /// How many; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// Which events to follow.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct FollowParams {
    /// Only after this position; from now on when neither this nor `Last-Event-ID` is given.
    #[param(minimum = 0)]
    after: Option<u64>,
    /// An exact type, or a prefix ending in `.*`.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<String>,
    /// Only of this entity, by id.
    stream: Option<String>,
    /// `domain`, `integration` or `system`
    category: Option<String>,
    /// Only those of which this expression in CEL is true, such as `data.priority > 5`.
    #[param(max_length = 2048)]
    filter: Option<String>,
    /// `native`, or `cloudevents` for structured CloudEvents.
    format: Option<String>,
    /// Whether to be told when the end of the log is reached (`caught_up`) and when it is far away (`fell_behind`).
    #[serde(default)]
    status: bool,
}

/// How one event is shown.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OneParams {
    /// `native`, `cloudevents` (structured) or `cloudevents-binary`.
    format: Option<String>,
}

/// The form of events in an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Native,
    Structured,
    Binary,
}

fn wrong(pointer: &str, message: &str) -> Failure {
    Rejection::invalid(&[Problem { pointer: pointer.into(), message: message.into() }]).into()
}

fn format(word: Option<&str>, takes_binary: bool) -> Result<Format, Failure> {
    match (word, takes_binary) {
        (None | Some("native"), _) => Ok(Format::Native),
        (Some("cloudevents"), _) => Ok(Format::Structured),
        (Some("cloudevents-binary"), true) => Ok(Format::Binary),
        (Some(_), true) => Err(wrong("/format", "is none of native, cloudevents, cloudevents-binary")),
        (Some(_), false) => Err(wrong("/format", "is none of native, cloudevents")),
    }
}

/// What a request wants to see.
fn selection(
    kind: Option<String>,
    stream: Option<String>,
    of_category: Option<&str>,
    filter: Option<&str>,
) -> Result<Selection, Failure> {
    let plain = EventFilter { kind, stream, category: of_category.map(category::parse).transpose()? };
    Ok(Selection { plain, filter: filter.map(Filter::compile).transpose()? })
}

/// Read events in order; `meta.position` is where to go on with `after`
#[utoipa::path(get, path = "/api/v1/events", tag = "events", extensions(("x-permission" = json!("events.read"))),
    params(EventParams), responses((status = 200, body = EventList)))]
async fn list(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Params(params): Params<EventParams>,
) -> Result<Response, Failure> {
    let format = format(params.format.as_deref(), false)?;
    let wanted = selection(params.kind, params.stream, params.category.as_deref(), params.filter.as_deref())?;
    let scanned = state.app.events(&caller, params.after.unwrap_or(0), &wanted, limit(params.limit)?).await?;
    if format == Format::Structured {
        let batch: Vec<Value> = scanned.events.iter().map(|event| cloudevents::structured(event)).collect();
        let headers = [("content-type", cloudevents::BATCH.to_owned()), ("keiko-position", scanned.position.to_string())];
        return Ok((headers, Value::from(batch).to_string()).into_response());
    }
    let items: Vec<_> = scanned.events.iter().map(|e| event_body(e)).collect();
    Ok(Reply::data(StatusCode::OK, &items)?.at(scanned.position).into_response())
}

/// Read one event, by id or position
///
/// Native, or as a CloudEvent: structured, or binary with its attributes in `ce-` headers.
#[utoipa::path(get, path = "/api/v1/events/{event}", tag = "events", extensions(("x-permission" = json!("events.read"))),
    params(("event" = String, Path, description = "`evt_…`, or its position"), OneParams),
    responses((status = 200, body = One<EventBody>)))]
async fn get(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path(handle): Path<String>,
    Params(params): Params<OneParams>,
) -> Result<Response, Failure> {
    let format = format(params.format.as_deref(), true)?;
    let event = state.app.event(&caller, &handle).await?;
    match format {
        Format::Native => Ok(Reply::data(StatusCode::OK, &event_body(&event))?.at(event.header.position).into_response()),
        Format::Structured => {
            Ok(([(CONTENT_TYPE, cloudevents::ONE)], cloudevents::structured(&event).to_string()).into_response())
        }
        Format::Binary => Ok(cloudevents::binary(&event).into_response()),
    }
}

/// Follow events live
///
/// Server-sent events: `id` is the position, `data` the event. Reconnect with `Last-Event-ID` to go on without a gap.
#[utoipa::path(get, path = "/api/v1/events/stream", tag = "events", extensions(("x-permission" = json!("events.read"))),
    params(FollowParams), responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn follow(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    headers: HeaderMap,
    Params(params): Params<FollowParams>,
) -> Result<Response, Failure> {
    let resumed = match headers.get("last-event-id") {
        None => None,
        Some(id) => Some(id.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Rejection::new(
                Kind::Invalid,
                "HEADER_INVALID",
                "Last-Event-ID must be a position, such as 4711.",
                "Send the id of the last event that you saw.",
            )
        })?),
    };
    let form = match format(params.format.as_deref(), false)? {
        Format::Structured => Form::Structured,
        _ => Form::Native,
    };
    let wanted = selection(params.kind, params.stream, params.category.as_deref(), params.filter.as_deref())?;
    let follower = state.rooms.follow(caller.actor, PERMISSION, wanted, resumed.or(params.after), params.status).await?;
    Ok(sse::response(follower, form, state.frames.clone()))
}
