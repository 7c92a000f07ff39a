//! `/api/v1/events`: the record, read in pages or followed live.

use super::tasks::EventList;
use crate::http::access::By;
use crate::http::body::{Params, limit};
use crate::http::cloudevents;
use crate::http::envelope::{Failure, One, Reply};
use crate::http::state::EdgeState;
use app::{App, EventFilter, Filter, Selection};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use kernel::id::TenantId;
use kernel::{Actor, Category, Kind, Problem, Recorded, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
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
        category: match h.category {
            Category::Domain => "domain",
            Category::Integration => "integration",
            Category::System => "system",
        },
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
    let plain = EventFilter { kind, stream, category: category(of_category)? };
    Ok(Selection { plain, filter: filter.map(Filter::compile).transpose()? })
}

fn category(word: Option<&str>) -> Result<Option<Category>, Failure> {
    match word {
        None => Ok(None),
        Some("domain") => Ok(Some(Category::Domain)),
        Some("integration") => Ok(Some(Category::Integration)),
        Some("system") => Ok(Some(Category::System)),
        Some(_) => Err(wrong("/category", "is none of domain, integration, system")),
    }
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
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    const KEEP_ALIVE: Duration = Duration::from_secs(15);
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
    let tenant = caller.actor.tenant;
    let is_structured = format(params.format.as_deref(), false)? == Format::Structured;
    let wanted = selection(params.kind, params.stream, params.category.as_deref(), params.filter.as_deref())?;
    let after = match resumed.or(params.after) {
        Some(after) => state.app.not_ahead(tenant, after).await?,
        None => state.app.position(tenant),
    };
    let follower = Follower {
        actor: caller.actor,
        tail: state.app.tail(tenant),
        app: state.app.clone(),
        tenant,
        after,
        wanted,
        is_structured,
        status: params.status.then_some(Standing::Unknown),
    };
    let pages = stream::unfold(follower, Follower::next);
    Ok(Sse::new(pages.flat_map(stream::iter)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// What following needs, checked again before each page.
const PERMISSION: &str = "events.read";

/// Where one subscriber stands.
struct Follower {
    app: App,
    actor: Actor,
    tenant: TenantId,
    after: u64,
    wanted: Selection,
    tail: watch::Receiver<u64>,
    is_structured: bool,
    /// What the subscriber was told of its place, if it wants to be told.
    status: Option<Standing>,
}

/// Where a subscriber stands, as it was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unknown,
    CaughtUp,
    FellBehind,
}

/// Events between a subscriber and the end of the log from which on it has fallen behind.
const BEHIND_EVENTS: u64 = 5_000;

impl Follower {
    /// The next events; ends when the server drains, the log cannot be read, or the reader may not read any more.
    async fn next(mut self) -> Option<(Vec<Result<Event, Infallible>>, Self)> {
        const PAGE: usize = 200;
        /// Lost wake-ups cost at most this long.
        const LOOK_AGAIN: Duration = Duration::from_secs(5);
        loop {
            self.tail.mark_unchanged();
            // Whoever signed out, or lost the key or the permission, sees nothing more.
            if !self.app.may_still(&self.actor, PERMISSION).await {
                return None;
            }
            let scanned = self.app.select(self.tenant, self.after, &self.wanted, PAGE).await.ok()?;
            let is_progress = scanned.position > self.after;
            self.after = scanned.position.max(self.after);
            let mut lines: Vec<_> = scanned.events.iter().map(|e| Ok(line(e, self.is_structured))).collect();
            lines.extend(self.standing(is_progress).map(Ok));
            if !lines.is_empty() {
                return Some((lines, self));
            }
            if is_progress {
                continue;
            }
            let draining = self.app.draining().clone();
            tokio::select! {
                biased;
                () = draining.cancelled() => return None,
                _ = self.tail.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

impl Follower {
    /// What is to be said of the place, if that has changed.
    fn standing(&mut self, is_progress: bool) -> Option<Event> {
        let known = self.status?;
        let behind = self.tail.borrow().saturating_sub(self.after);
        let now = match (behind, is_progress) {
            (0, _) | (_, false) => Standing::CaughtUp,
            (BEHIND_EVENTS.., true) => Standing::FellBehind,
            _ => known,
        };
        self.status = Some(now);
        let name = match now {
            _ if now == known => return None,
            Standing::CaughtUp => "caught_up",
            Standing::FellBehind => "fell_behind",
            Standing::Unknown => return None,
        };
        let data = serde_json::json!({ "position": self.after, "behind": behind });
        Some(Event::default().event(name).data(data.to_string()))
    }
}

fn line(event: &Recorded, is_structured: bool) -> Event {
    let data = match is_structured {
        true => cloudevents::structured(event).to_string(),
        false => serde_json::to_string(&event_body(event)).unwrap_or_else(|_| Value::Null.to_string()),
    };
    Event::default().id(event.header.position.to_string()).data(data)
}
