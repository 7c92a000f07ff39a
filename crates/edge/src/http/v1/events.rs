//! `/api/v1/events`: the record, read in pages or followed live.

use super::tasks::EventList;
use crate::http::access::By;
use crate::http::body::{Params, limit};
use crate::http::envelope::{Failure, Outcome, Reply};
use crate::http::state::EdgeState;
use app::{App, EventFilter};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt};
use kernel::id::TenantId;
use kernel::{Actor, Category, Kind, Recorded, Rejection};
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
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(follow))
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
}

/// Read events in order; `meta.position` is where to go on with `after`
#[utoipa::path(get, path = "/api/v1/events", tag = "events", extensions(("x-permission" = json!("events.read"))),
    params(EventParams), responses((status = 200, body = EventList)))]
async fn list(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<EventParams>) -> Outcome {
    let filter = EventFilter { kind: params.kind, stream: params.stream };
    let scanned = state.app.events(&caller, params.after.unwrap_or(0), filter, limit(params.limit)?).await?;
    let items: Vec<_> = scanned.events.iter().map(|e| event_body(e)).collect();
    Ok(Reply::data(StatusCode::OK, &items)?.at(scanned.position))
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
    let after = resumed.or(params.after).unwrap_or_else(|| state.app.position(tenant));
    let follower = Follower {
        actor: caller.actor,
        tail: state.app.tail(tenant),
        app: state.app.clone(),
        tenant,
        after,
        filter: EventFilter { kind: params.kind, stream: params.stream },
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
    filter: EventFilter,
    tail: watch::Receiver<u64>,
}

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
            let scanned = self.app.scan(self.tenant, self.after, self.filter.clone(), PAGE).await.ok()?;
            let is_progress = scanned.position > self.after;
            self.after = scanned.position.max(self.after);
            if !scanned.events.is_empty() {
                return Some((scanned.events.iter().map(|e| Ok(line(e))).collect(), self));
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

fn line(event: &Recorded) -> Event {
    let data = serde_json::to_string(&event_body(event)).unwrap_or_else(|_| Value::Null.to_string());
    Event::default().id(event.header.position.to_string()).data(data)
}
