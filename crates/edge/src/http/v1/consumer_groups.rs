//! `/api/v1/consumer-groups`: several readers share the events of a log, and Keiko remembers what is done.

use super::events::{EventBody, event_body};
use crate::http::access::By;
use crate::http::body::{Input, ListParams, Params, limit, whole, wholes};
use crate::http::envelope::{Many, Meta, One, Outcome, Reply, Resource};
use crate::http::names::{Handle, Name};
use crate::http::state::EdgeState;
use app::{Delivered, FetchOrder, GroupState, GroupView, NewGroup, Word};
use axum::extract::State;
use axum::http::StatusCode;
use domain::consumer_group::{GroupFilter, GroupSettings, Mode};
use domain::progress::Verdict;
use kernel::{Category, limits};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const ACK_TIMEOUT_MS: u64 = 30_000;
const MAX_ATTEMPTS: u32 = 5;
const WINDOW: u32 = 1_000;
/// At least so long nothing may move before an alert, unless something else is said.
const STALLED_AFTER_MS: u64 = 60_000;

pub(crate) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(fetch))
        .routes(routes!(ack))
        .routes(routes!(nak))
        .routes(routes!(extend))
        .routes(routes!(park))
        .routes(routes!(seek))
        .routes(routes!(replay))
        .routes(routes!(parked))
}

/// How events are handed out.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ModeBody {
    /// Of each stream one event at a time, in order.
    #[default]
    Ordered,
    /// Every event as soon as somebody asks.
    Shared,
}

/// What events are about.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CategoryBody {
    /// A change inside Keiko.
    Domain,
    /// A fact from or for another system.
    Integration,
    /// A change of Keiko's own condition.
    System,
}

/// Which events a group gets; all when nothing is said.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GroupFilterBody {
    /// An exact type, or a prefix ending in `.*`.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 128)]
    kind: Option<String>,
    /// Only of this entity, by id.
    #[schema(min_length = 1, max_length = 128)]
    stream: Option<String>,
    /// Only of this category.
    category: Option<CategoryBody>,
    /// A condition in CEL on the whole event, such as `data.priority > 5`.
    #[schema(min_length = 1, max_length = 2048)]
    expression: Option<String>,
}

/// A group to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewGroupBody {
    /// Unique name.
    name: Name,
    /// `ordered` when nothing is said.
    mode: Option<ModeBody>,
    /// Which events it gets.
    filter: Option<GroupFilterBody>,
    /// Where it begins: `now`, as when nothing is said, `beginning`, behind a position such as `4711`, or behind an instant.
    #[schema(max_length = 64)]
    start: Option<String>,
    /// How long a delivery holds without an acknowledgement; 30000 when nothing is said.
    #[schema(minimum = 100, maximum = 43200000)]
    #[serde(default, deserialize_with = "whole")]
    ack_timeout_ms: Option<u64>,
    /// Deliveries of one event after which it is parked; 5 when nothing is said.
    #[schema(minimum = 1, maximum = 100)]
    #[serde(default, deserialize_with = "whole")]
    max_attempts: Option<u32>,
    /// Events that may be open at a time; 1000 when nothing is said.
    #[schema(minimum = 1, maximum = 10000)]
    #[serde(default, deserialize_with = "whole")]
    window: Option<u32>,
    /// How long nothing may be acknowledged while something waits, before an alert; twice `ack_timeout_ms`, at least 60000,
    /// when nothing is said.
    #[schema(minimum = 1000, maximum = 604800000)]
    #[serde(default, deserialize_with = "whole")]
    stalled_after_ms: Option<u64>,
}

/// All settings of a group; what is left out gets its default. A changed filter holds for what was not looked at yet.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GroupSettingsBody {
    /// Which events it gets.
    filter: Option<GroupFilterBody>,
    /// How long a delivery holds without an acknowledgement.
    #[schema(minimum = 100, maximum = 43200000)]
    #[serde(default, deserialize_with = "whole")]
    ack_timeout_ms: Option<u64>,
    /// Deliveries of one event after which it is parked.
    #[schema(minimum = 1, maximum = 100)]
    #[serde(default, deserialize_with = "whole")]
    max_attempts: Option<u32>,
    /// Events that may be open at a time.
    #[schema(minimum = 1, maximum = 10000)]
    #[serde(default, deserialize_with = "whole")]
    window: Option<u32>,
    /// How long nothing may be acknowledged while something waits, before an alert.
    #[schema(minimum = 1000, maximum = 604800000)]
    #[serde(default, deserialize_with = "whole")]
    stalled_after_ms: Option<u64>,
}

impl GroupSettingsBody {
    fn settings(self) -> GroupSettings {
        let ack_timeout_ms = self.ack_timeout_ms.unwrap_or(ACK_TIMEOUT_MS);
        let filter = self.filter.unwrap_or_default();
        let category = |category| match category {
            CategoryBody::Domain => Category::Domain,
            CategoryBody::Integration => Category::Integration,
            CategoryBody::System => Category::System,
        };
        GroupSettings {
            filter: GroupFilter {
                kind: filter.kind,
                stream: filter.stream,
                category: filter.category.map(category),
                expression: filter.expression,
            },
            ack_timeout_ms,
            max_attempts: self.max_attempts.unwrap_or(MAX_ATTEMPTS),
            window: self.window.unwrap_or(WINDOW),
            stalled_after_ms: self.stalled_after_ms.unwrap_or(STALLED_AFTER_MS.max(2 * ack_timeout_ms)),
        }
    }
}

/// How far a group is.
#[derive(Serialize, ToSchema)]
struct GroupStateBody {
    /// Everything up to here is acknowledged, parked or not the group's.
    position: u64,
    /// Events that are neither acknowledged nor parked.
    lag_events: u64,
    /// Whether they were counted one by one; otherwise there may be fewer.
    lag_exact: bool,
    /// Age of the oldest of them.
    lag_seconds: f64,
    /// Events in delivery, put off, or held back by an earlier one of their stream.
    open: usize,
    /// Events put aside.
    parked: usize,
    /// When something was delivered last.
    last_delivery_at: Option<String>,
}

/// A group.
#[derive(Serialize, ToSchema)]
struct GroupAttributes {
    /// Unique name.
    name: String,
    /// `ordered` or `shared`
    mode: &'static str,
    /// Which events it gets.
    filter: GroupFilterBody,
    /// It began after this position.
    start: u64,
    /// How long a delivery holds without an acknowledgement.
    ack_timeout_ms: u64,
    /// Deliveries of one event after which it is parked.
    max_attempts: u32,
    /// Events that may be open at a time.
    window: u32,
    /// How long nothing may be acknowledged while something waits, before an alert.
    stalled_after_ms: u64,
    /// Whether nothing is acknowledged although something waits.
    stalled: bool,
    /// Since when the alert is raised.
    stalled_at: Option<String>,
    /// How far it is; null when it is deleted.
    state: Option<GroupStateBody>,
    /// When it was made.
    created_at: String,
    /// When it changed last.
    updated_at: String,
    /// When it was deleted.
    deleted_at: Option<String>,
    /// Counts its changes.
    version: u64,
}

/// An event handed to a consumer.
#[derive(Serialize, ToSchema)]
struct DeliveryBody {
    /// Names the delivery: to be shown with every word on it.
    token: String,
    /// Which attempt, from 1.
    attempt: u32,
    /// Until when it holds.
    deadline: String,
    /// The event.
    event: EventBody,
}

/// Events handed to a consumer.
#[derive(Serialize, ToSchema)]
struct DeliveryList {
    /// In the order of the log.
    data: Vec<DeliveryBody>,
    /// About the answer; `position` is how far the group is.
    meta: Meta,
}

/// What became of one delivery.
#[derive(Serialize, ToSchema)]
struct VerdictBody {
    /// The delivery.
    token: String,
    /// `done`; `parked` when it was given back once too often; `stale` when it is not in force; `full` when too many events are
    /// parked.
    result: &'static str,
}

/// What became of deliveries.
#[derive(Serialize, ToSchema)]
struct VerdictList {
    /// In the order of the request.
    data: Vec<VerdictBody>,
    /// About the answer; `position` is how far the group is.
    meta: Meta,
}

/// An event put aside.
#[derive(Serialize, ToSchema)]
struct ParkedBody {
    /// Its position.
    position: u64,
    /// Its type.
    #[serde(rename = "type")]
    kind: String,
    /// Its entity.
    stream: String,
    /// When it was written.
    recorded_at: String,
    /// How often it was delivered.
    attempts: u32,
    /// Why it was parked.
    reason: String,
    /// Who had it last.
    consumer: Option<String>,
    /// When it was parked.
    parked_at: String,
}

/// Events put aside.
#[derive(Serialize, ToSchema)]
struct ParkedList {
    /// In the order of the log.
    data: Vec<ParkedBody>,
    /// About the answer; `position` is where to go on with `after`, and is there only when there are more.
    meta: Meta,
}

/// What a consumer asks for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FetchBody {
    /// Who asks; shown with parked events.
    consumer: Name,
    /// How many events at most; 100 when nothing is said.
    #[schema(minimum = 1, maximum = 500)]
    #[serde(default, deserialize_with = "whole")]
    limit: Option<u32>,
    /// How long to wait for the first; not at all when nothing is said.
    #[schema(minimum = 0, maximum = 30000)]
    #[serde(default, deserialize_with = "whole")]
    wait_ms: Option<u64>,
}

/// Deliveries that are done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AckBody {
    /// Which.
    #[schema(min_items = 1, max_items = 500)]
    tokens: Vec<Name>,
}

/// Deliveries that are given back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NakBody {
    /// Which.
    #[schema(min_items = 1, max_items = 500)]
    tokens: Vec<Name>,
    /// When they may come again; at once when nothing is said.
    #[schema(minimum = 0, maximum = 43200000)]
    #[serde(default, deserialize_with = "whole")]
    delay_ms: Option<u64>,
    /// Why; kept when the event is parked after its last attempt.
    #[schema(min_length = 1, max_length = 1000)]
    reason: Option<String>,
}

/// Deliveries that take longer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ExtendBody {
    /// Which.
    #[schema(min_items = 1, max_items = 500)]
    tokens: Vec<Name>,
    /// How long they hold from now on; the group's `ack_timeout_ms` when nothing is said.
    #[schema(minimum = 100, maximum = 43200000)]
    #[serde(default, deserialize_with = "whole")]
    by_ms: Option<u64>,
}

/// Deliveries that are put aside.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ParkBody {
    /// Which.
    #[schema(min_items = 1, max_items = 500)]
    tokens: Vec<Name>,
    /// Why.
    #[schema(min_length = 1, max_length = 1000)]
    reason: String,
}

/// Where to go on: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SeekBody {
    /// Behind this position; 0 is the beginning.
    #[schema(minimum = 0)]
    #[serde(default, deserialize_with = "whole")]
    position: Option<u64>,
    /// Behind everything that was written up to this instant.
    #[schema(format = DateTime)]
    time: Option<String>,
}

/// Which parked events are delivered again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReplayBody {
    /// Their positions.
    #[schema(min_items = 1, max_items = 500)]
    #[serde(default, deserialize_with = "wholes")]
    positions: Option<Vec<u64>>,
    /// All of them.
    #[serde(default)]
    all: bool,
}

/// Which parked events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ParkedParams {
    /// Only behind this position.
    #[param(minimum = 0)]
    after: Option<u64>,
    /// How many; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

fn filter_body(filter: &GroupFilter) -> GroupFilterBody {
    let category = |category| match category {
        Category::Domain => CategoryBody::Domain,
        Category::Integration => CategoryBody::Integration,
        Category::System => CategoryBody::System,
    };
    GroupFilterBody {
        kind: filter.kind.clone(),
        stream: filter.stream.clone(),
        category: filter.category.map(category),
        expression: filter.expression.clone(),
    }
}

fn state_body(state: &GroupState) -> GroupStateBody {
    GroupStateBody {
        position: state.position,
        lag_events: state.lag_events,
        lag_exact: state.is_lag_exact,
        lag_seconds: state.lag_ms as f64 / 1_000.0,
        open: state.open,
        parked: state.parked,
        last_delivery_at: state.last_delivery_at.map(|at| at.to_string()),
    }
}

fn attributes(view: &GroupView) -> GroupAttributes {
    let (group, settings) = (&view.group.state, &view.group.state.settings);
    GroupAttributes {
        name: group.name.clone(),
        mode: group.mode.as_str(),
        filter: filter_body(&settings.filter),
        start: group.start,
        ack_timeout_ms: settings.ack_timeout_ms,
        max_attempts: settings.max_attempts,
        window: settings.window,
        stalled_after_ms: settings.stalled_after_ms,
        stalled: group.stalled_at.is_some(),
        stalled_at: group.stalled_at.map(|at| at.to_string()),
        state: view.state.as_ref().map(state_body),
        created_at: view.group.created_at.to_string(),
        updated_at: view.group.updated_at.to_string(),
        deleted_at: group.is_deleted.then(|| view.group.updated_at.to_string()),
        version: view.group.version,
    }
}

fn entity(status: StatusCode, view: &GroupView) -> Outcome {
    Reply::entity(status, "consumer_group", &view.group, attributes(view))
}

/// List consumer groups
#[utoipa::path(get, path = "/api/v1/consumer-groups", tag = "events", extensions(("x-permission" = json!("consumer-groups.read"))),
    params(ListParams), responses((status = 200, body = Many<GroupAttributes>)))]
async fn list(State(state): State<Arc<EdgeState>>, By(caller): By, Params(params): Params<ListParams>) -> Outcome {
    let (groups, next, position) = state.app.groups(&caller, &params.now()?.order()?).await?;
    let resource =
        |view: &GroupView| Resource { id: view.group.stream.clone(), kind: "consumer_group", attributes: attributes(view) };
    let items: Vec<_> = groups.iter().map(resource).collect();
    Reply::list(&items, next, position)
}

/// Make a consumer group
///
/// An ordered group delivers of each stream one event at a time, in order: the next one comes when the one before is
/// acknowledged or parked. A shared group delivers every event as soon as somebody asks. Both deliver an event again until it is
/// acknowledged or parked.
#[utoipa::path(post, path = "/api/v1/consumer-groups", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.create"))), request_body = NewGroupBody,
    responses((status = 201, body = One<GroupAttributes>)))]
async fn create(State(state): State<Arc<EdgeState>>, input: Input<NewGroupBody>) -> Outcome {
    let body = input.body;
    let mode = match body.mode.unwrap_or_default() {
        ModeBody::Ordered => Mode::Ordered,
        ModeBody::Shared => Mode::Shared,
    };
    let settings = GroupSettingsBody {
        filter: body.filter,
        ack_timeout_ms: body.ack_timeout_ms,
        max_attempts: body.max_attempts,
        window: body.window,
        stalled_after_ms: body.stalled_after_ms,
    };
    let new = NewGroup { name: body.name.0, mode, settings: settings.settings(), start: body.start.unwrap_or("now".into()) };
    entity(StatusCode::CREATED, &state.app.create_group(&input.by, new).await?)
}

/// Read a consumer group and how far it is
#[utoipa::path(get, path = "/api/v1/consumer-groups/{group}", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.read"))), params(("group" = String, Path, description = "Id or name")),
    responses((status = 200, body = One<GroupAttributes>)))]
async fn get(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(group): Handle) -> Outcome {
    entity(StatusCode::OK, &state.app.group(&caller, &group).await?)
}

/// Change a consumer group
///
/// Name, mode and start cannot change.
#[utoipa::path(put, path = "/api/v1/consumer-groups/{group}", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.change"))), params(("group" = String, Path, description = "Id or name")),
    request_body = GroupSettingsBody, responses((status = 200, body = One<GroupAttributes>)))]
async fn update(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<GroupSettingsBody>) -> Outcome {
    entity(StatusCode::OK, &state.app.change_group(&input.by, &group, input.body.settings()).await?)
}

/// Remove a consumer group with its progress
#[utoipa::path(delete, path = "/api/v1/consumer-groups/{group}", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.delete"))), params(("group" = String, Path, description = "Id or name")),
    responses((status = 204)))]
async fn delete(State(state): State<Arc<EdgeState>>, By(caller): By, Handle(group): Handle) -> Outcome {
    state.app.delete_group(&caller, &group).await?;
    Reply::data(StatusCode::NO_CONTENT, &())
}

/// Take events
///
/// Answers at once when there are some, otherwise when there are or the wait is over; then with an empty list. An event that is
/// not acknowledged before its deadline comes again, with another token. Needs `events.read`, too.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/fetch", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.consume"))), params(("group" = String, Path, description = "Id or name")),
    request_body = FetchBody, responses((status = 200, body = DeliveryList)))]
async fn fetch(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<FetchBody>) -> Outcome {
    const LIMIT: u32 = 100;
    let order = FetchOrder {
        consumer: input.body.consumer.0,
        limit: (input.body.limit.unwrap_or(LIMIT) as usize).min(limits::DELIVERIES_MAX),
        wait_ms: input.body.wait_ms.unwrap_or(0).min(limits::DELIVERY_WAIT_MS_MAX),
    };
    let (deliveries, position) = state.app.fetch_deliveries(&input.by, &group, &order).await?;
    let items: Vec<_> = deliveries.into_iter().map(delivery_body).collect();
    Ok(Reply::data(StatusCode::OK, &items)?.at(position))
}

fn delivery_body(delivered: Delivered) -> DeliveryBody {
    let Delivered { delivery, event } = delivered;
    DeliveryBody {
        token: delivery.token,
        attempt: delivery.attempt,
        deadline: delivery.deadline.to_string(),
        event: event_body(&event),
    }
}

async fn settle(state: &EdgeState, by: &app::Caller, group: &str, tokens: Vec<Name>, word: Word) -> Outcome {
    let tokens = crate::http::names::strings(tokens);
    let (verdicts, position) = state.app.settle_deliveries(by, group, &tokens, &word).await?;
    let result = |verdict| match verdict {
        Verdict::Done => "done",
        Verdict::Parked => "parked",
        Verdict::Stale => "stale",
        Verdict::Full => "full",
    };
    let each = tokens.into_iter().zip(verdicts);
    let items: Vec<_> = each.map(|(token, verdict)| VerdictBody { token, result: result(verdict) }).collect();
    Ok(Reply::data(StatusCode::OK, &items)?.at(position))
}

/// Acknowledge deliveries
///
/// Says for each token what became of it; refused with `DELIVERY_STALE` when none is in force.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/ack", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.consume"))), params(("group" = String, Path, description = "Id or name")),
    request_body = AckBody, responses((status = 200, body = VerdictList)))]
async fn ack(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<AckBody>) -> Outcome {
    settle(&state, &input.by, &group, input.body.tokens, Word::Ack).await
}

/// Give deliveries back
///
/// They come again after the delay, or are parked if that was their last attempt.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/nak", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.consume"))), params(("group" = String, Path, description = "Id or name")),
    request_body = NakBody, responses((status = 200, body = VerdictList)))]
async fn nak(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<NakBody>) -> Outcome {
    let word = Word::Nak { delay_ms: input.body.delay_ms.unwrap_or(0), reason: input.body.reason };
    settle(&state, &input.by, &group, input.body.tokens, word).await
}

/// Hold deliveries longer
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/extend", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.consume"))), params(("group" = String, Path, description = "Id or name")),
    request_body = ExtendBody, responses((status = 200, body = VerdictList)))]
async fn extend(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<ExtendBody>) -> Outcome {
    settle(&state, &input.by, &group, input.body.tokens, Word::Extend { by_ms: input.body.by_ms }).await
}

/// Put deliveries aside
///
/// Their events are delivered no more, unless somebody replays them.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/park", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.consume"))), params(("group" = String, Path, description = "Id or name")),
    request_body = ParkBody, responses((status = 200, body = VerdictList)))]
async fn park(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<ParkBody>) -> Outcome {
    settle(&state, &input.by, &group, input.body.tokens, Word::Park { reason: input.body.reason }).await
}

/// Go on at another place
///
/// What is behind it is delivered, again where it was before; deliveries under way are worth nothing any more. Parked events behind
/// it come by themselves, those before it stay parked.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/seek", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.change"))), params(("group" = String, Path, description = "Id or name")),
    request_body = SeekBody, responses((status = 200, body = One<GroupAttributes>)))]
async fn seek(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<SeekBody>) -> Outcome {
    let SeekBody { position, time } = input.body;
    let time = super::api_keys::time("/time", time.as_deref())?;
    entity(StatusCode::OK, &state.app.seek_group(&input.by, &group, position, time).await?)
}

/// Deliver parked events again
///
/// As if for the first time. Positions that are not parked are passed over.
#[utoipa::path(post, path = "/api/v1/consumer-groups/{group}/actions/replay", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.change"))), params(("group" = String, Path, description = "Id or name")),
    request_body = ReplayBody, responses((status = 200, body = One<GroupAttributes>)))]
async fn replay(State(state): State<Arc<EdgeState>>, Handle(group): Handle, input: Input<ReplayBody>) -> Outcome {
    let ReplayBody { positions, all } = input.body;
    entity(StatusCode::OK, &state.app.replay_parked(&input.by, &group, positions, all).await?)
}

/// List events put aside, with the reasons
///
/// Go on with `after` = `meta.position`, as long as there is one.
#[utoipa::path(get, path = "/api/v1/consumer-groups/{group}/parked", tag = "events",
    extensions(("x-permission" = json!("consumer-groups.read"))),
    params(("group" = String, Path, description = "Id or name"), ParkedParams), responses((status = 200, body = ParkedList)))]
async fn parked(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Handle(group): Handle,
    Params(params): Params<ParkedParams>,
) -> Outcome {
    let (page, is_more) = state.app.parked(&caller, &group, params.after.unwrap_or(0), limit(params.limit)?).await?;
    let items: Vec<_> = page.into_iter().map(|(position, parked)| parked_body(position, parked)).collect();
    let last = items.last().map(|item| item.position).filter(|_| is_more);
    let reply = Reply::data(StatusCode::OK, &items)?;
    Ok(match last {
        Some(position) => reply.at(position),
        None => reply,
    })
}

fn parked_body(position: u64, parked: domain::progress::Parked) -> ParkedBody {
    ParkedBody {
        position,
        kind: parked.kind,
        stream: parked.stream,
        recorded_at: parked.recorded_at.to_string(),
        attempts: parked.attempts,
        reason: parked.reason,
        consumer: parked.consumer,
        parked_at: parked.at.to_string(),
    }
}
