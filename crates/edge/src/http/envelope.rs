//! Every answer's form: `{"data", "meta"}` or `{"error", "meta"}`, written in one place.
//!
//! Handlers answer a [`Reply`] or a [`Failure`]; the outermost layer adds the request id, the time and the headers that
//! all answers share, and counts and logs the request.

use super::drain::Leftover;
use super::state::EdgeState;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::Handled;
use kernel::id::RequestId;
use kernel::{Kind, Rejection, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;
use std::sync::Arc;
use utoipa::ToSchema;

/// Version of the API, in every answer's `meta`.
pub const API_VERSION: &str = "1.0.0";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// One resource.
#[derive(Serialize, ToSchema)]
pub struct Resource<T> {
    /// TypeID of the resource.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its fields.
    pub attributes: T,
}

/// What every answer says beside its data.
#[derive(Serialize, ToSchema)]
pub struct Meta {
    /// When the answer was made.
    pub timestamp: String,
    /// Version of the API.
    pub version: String,
    /// Names the request, also in the server's log.
    pub request_id: String,
    /// The log position that the answer reflects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Where a list goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// How many there are, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The agent is asked to restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_requested: Option<bool>,
}

/// An answer with one resource.
#[derive(Serialize, ToSchema)]
pub struct One<T> {
    /// The resource.
    pub data: Resource<T>,
    /// About the answer.
    pub meta: Meta,
}

/// An answer with a list of resources.
#[derive(Serialize, ToSchema)]
pub struct Many<T> {
    /// The resources.
    pub data: Vec<Resource<T>>,
    /// About the answer.
    pub meta: Meta,
}

/// What is told about a failure.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// Stable code, upper snake case.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// Facts for programs.
    pub details: serde_json::Map<String, serde_json::Value>,
    /// What to do.
    pub hint: String,
}

/// An answer that says what went wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorEnvelope {
    /// The failure.
    pub error: ErrorBody,
    /// About the answer.
    pub meta: Meta,
}

/// A success, before its envelope is written.
#[derive(Clone)]
pub struct Reply {
    status: StatusCode,
    data: Arc<RawValue>,
    position: Option<u64>,
    next_cursor: Option<String>,
    total: Option<u64>,
    restart_requested: Option<bool>,
    version: Option<u64>,
}

/// What handlers answer.
pub type Outcome = Result<Reply, Failure>;

impl Reply {
    /// Any data.
    pub fn data(status: StatusCode, data: &impl Serialize) -> Outcome {
        let raw = serde_json::value::to_raw_value(data).map_err(|e| {
            tracing::error!(error = %e, "an answer could not be written");
            Failure::internal()
        })?;
        Ok(Reply {
            status,
            data: Arc::from(raw),
            position: None,
            next_cursor: None,
            total: None,
            restart_requested: None,
            version: None,
        })
    }

    /// One entity.
    pub fn entity<S, T: Serialize>(status: StatusCode, kind: &'static str, entity: &Handled<S>, attributes: T) -> Outcome {
        let resource = Resource { id: entity.stream.clone(), kind, attributes };
        let mut reply = Reply::data(status, &resource)?;
        reply.position = Some(entity.position);
        reply.version = Some(entity.version);
        Ok(reply)
    }

    /// A list.
    pub fn list<T: Serialize>(items: &[Resource<T>], next: Option<String>, position: u64) -> Outcome {
        let mut reply = Reply::data(StatusCode::OK, &items)?;
        reply.next_cursor = next.map(|next| super::body::cursor(&next));
        reply.position = Some(position);
        Ok(reply)
    }

    /// With a position.
    pub fn at(mut self, position: u64) -> Self {
        self.position = Some(position);
        self
    }

    /// With where a list goes on, in plain words.
    pub fn next_plain(mut self, next: String) -> Self {
        self.next_cursor = Some(next);
        self
    }

    /// With a total.
    pub fn of(mut self, total: usize) -> Self {
        self.total = Some(total as u64);
        self
    }

    /// With the wish that the agent restarts.
    pub fn restart(mut self, is_requested: bool) -> Self {
        self.restart_requested = is_requested.then_some(true);
        self
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(version) = self.version {
            insert(response.headers_mut(), header::ETAG, &format!("\"{version}\""));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// A failure, before its envelope is written.
#[derive(Clone, Debug)]
pub struct Failure(Arc<Rejection>);

impl Failure {
    /// Our fault; the reason is in the log.
    pub fn internal() -> Self {
        let hint = "Try again; if it stays, report it with the request id.";
        Rejection::new(Kind::Internal, "INTERNAL", "Something went wrong inside the server.", hint).into()
    }

    /// A fact about it.
    pub fn detail(&self, name: &str) -> Option<&serde_json::Value> {
        self.0.details.get(name)
    }

    /// Its stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        match (self.0.kind, self.0.code) {
            (_, "METHOD_NOT_ALLOWED") => StatusCode::METHOD_NOT_ALLOWED,
            (_, "UNSUPPORTED_MEDIA_TYPE") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            (Kind::Invalid, _) => StatusCode::BAD_REQUEST,
            (Kind::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
            (Kind::Forbidden, _) => StatusCode::FORBIDDEN,
            (Kind::NotFound, _) => StatusCode::NOT_FOUND,
            (Kind::Conflict, _) => StatusCode::CONFLICT,
            (Kind::Precondition, _) => StatusCode::PRECONDITION_FAILED,
            (Kind::Refused, _) => StatusCode::UNPROCESSABLE_ENTITY,
            (Kind::TooLarge, _) => StatusCode::PAYLOAD_TOO_LARGE,
            (Kind::Limited, _) => StatusCode::TOO_MANY_REQUESTS,
            (Kind::Unavailable, _) => StatusCode::SERVICE_UNAVAILABLE,
            (Kind::Upstream, _) => StatusCode::BAD_GATEWAY,
            (Kind::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Failure(Arc::new(rejection))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = status.into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => insert(headers, header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let after = self.0.details.get("retry_after_s").and_then(serde_json::Value::as_u64).unwrap_or(1);
                insert(headers, header::RETRY_AFTER, &after.to_string());
            }
            _ => {}
        }
        let fact = |name| self.detail(name).and_then(serde_json::Value::as_u64);
        if let (Some(limit), Some(remaining), Some(reset_s)) = (fact("limit"), fact("remaining"), fact("reset_s")) {
            limit_headers(headers, limit, remaining, reset_s);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// How much is left: how many at most, how many more now, seconds until all are there again.
pub(super) fn limit_headers(headers: &mut HeaderMap, limit: u64, remaining: u64, reset_s: u64) {
    for (name, value) in [("ratelimit-limit", limit), ("ratelimit-remaining", remaining), ("ratelimit-reset", reset_s)] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
}

/// The answer to a panic; what happened goes to the log only.
pub(super) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response<Body> {
    let reason =
        panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(reason, "a handler panicked");
    Failure::internal().into_response()
}

/// What names a request.
#[derive(Clone)]
pub(super) struct RequestNames {
    pub request_id: String,
    pub trace_parent: Option<String>,
}

impl RequestNames {
    /// The trace that the request belongs to, or the request itself.
    pub fn correlation(&self) -> String {
        let trace = self.trace_parent.as_deref().and_then(|t| t.split('-').nth(1));
        trace.map_or_else(|| self.request_id.clone(), str::to_owned)
    }
}

/// Who made a request, for the log; put there by the access layer.
#[derive(Clone)]
pub(super) struct LoggedActor {
    pub tenant: String,
    pub actor: String,
}

fn names(state: &EdgeState, headers: &HeaderMap) -> RequestNames {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let is_plain = |id: &String| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    let fresh = || state.app.engine().env().id::<kernel::id::RequestTag>();
    let request_id = text(&REQUEST_ID).filter(is_plain).unwrap_or_else(|| RequestId::to_string(&fresh()));
    RequestNames { request_id, trace_parent: text(&TRACE_PARENT).filter(|t| is_trace_parent(t)) }
}

/// W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`.
fn is_trace_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &str, len: usize| part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    matches!(parts[..], [version, trace, span, flags] if is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2))
}

/// The outermost layer.
pub(super) async fn finish(State(state): State<Arc<EdgeState>>, mut request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let names = names(&state, request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(names.clone());
    let in_flight = state.metrics.enter();
    let leftover = Leftover::default();
    let mut response = next.run(request.map(|body| leftover.lend(body))).await;
    if !leftover.drain().await {
        insert(response.headers_mut(), header::CONNECTION, "close");
    }
    let route = response.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let now = state.app.engine().env().now();
    if let Some(reply) = response.extensions_mut().remove::<Reply>() {
        response = write(response, &reply_body(&reply, &names, now));
    } else if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        response = write(response, &failure_body(&failure, &names, now));
    }
    insert(response.headers_mut(), REQUEST_ID, &names.request_id);
    if let Some(trace_parent) = &names.trace_parent {
        insert(response.headers_mut(), TRACE_PARENT, trace_parent);
    }
    harden(response.headers_mut(), state.app.issuer().starts_with("https://"));
    let elapsed = started.elapsed();
    drop(in_flight);
    state.metrics.request(method.as_str(), &route, response.status().as_u16(), elapsed);
    log(&response, &names, method.as_str(), &path, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    response
}

/// What browsers are told with every answer, unless it says otherwise itself.
fn harden(headers: &mut HeaderMap, is_tls: bool) {
    let usual = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in usual {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if is_tls {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
}

fn log(response: &Response, names: &RequestNames, method: &str, path: &str, elapsed_ms: u64) {
    let who = response.extensions().get::<LoggedActor>();
    let (tenant, actor) = (who.map(|w| w.tenant.as_str()), who.map(|w| w.actor.as_str()));
    let (request_id, correlation_id, status) = (names.request_id.as_str(), names.correlation(), response.status().as_u16());
    match status {
        503 => tracing::warn!(request_id, correlation_id, tenant, actor, method, path, status, elapsed_ms, "request"),
        500.. => tracing::error!(request_id, correlation_id, tenant, actor, method, path, status, elapsed_ms, "request"),
        401 | 403 | 429 => tracing::info!(request_id, correlation_id, tenant, actor, method, path, status, elapsed_ms, "request"),
        _ => tracing::debug!(request_id, correlation_id, tenant, actor, method, path, status, elapsed_ms, "request"),
    }
}

fn meta(names: &RequestNames, now: Timestamp) -> Meta {
    Meta {
        timestamp: now.to_string(),
        version: API_VERSION.to_owned(),
        request_id: names.request_id.clone(),
        position: None,
        next_cursor: None,
        total: None,
        restart_requested: None,
    }
}

fn reply_body(reply: &Reply, names: &RequestNames, now: Timestamp) -> Vec<u8> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        data: &'a RawValue,
        meta: Meta,
    }
    if reply.status == StatusCode::NO_CONTENT {
        return vec![];
    }
    let meta = Meta {
        position: reply.position,
        next_cursor: reply.next_cursor.clone(),
        total: reply.total,
        restart_requested: reply.restart_requested,
        ..meta(names, now)
    };
    // Both parts are JSON already, so this cannot fail.
    serde_json::to_vec(&Envelope { data: &reply.data, meta }).unwrap_or_default()
}

fn failure_body(failure: &Failure, names: &RequestNames, now: Timestamp) -> Vec<u8> {
    let rejection = &failure.0;
    let error = ErrorBody {
        code: rejection.code.to_owned(),
        message: rejection.message.clone(),
        details: rejection.details.clone(),
        hint: rejection.hint.clone(),
    };
    serde_json::to_vec(&ErrorEnvelope { error, meta: meta(names, now) }).unwrap_or_default()
}

fn write(response: Response, body: &[u8]) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    if !body.is_empty() {
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    Response::from_parts(parts, Body::from(body.to_vec()))
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_parents_are_honoured() {
        assert!(is_trace_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for bad in ["", "00-4bf9-00f0-01", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"] {
            assert!(!is_trace_parent(bad), "{bad}");
        }
    }
}
