//! Version 2024-11-05 over HTTP: a client opens a stream, learns where to send, and gets every answer on the stream.

use super::door::Visit;
use super::legacy::{heard, introduction, worked};
use super::listen::{Changes, Wanted};
use super::message::{INVALID_REQUEST, Message, Request, RpcError, refused, written};
use super::sessions::Session;
use super::stream::{ASIDE_MAX, event_stream, pieces};
use super::{Api, answered, capabilities_of, parsed, visit};
use crate::http::body::read;
use crate::http::envelope::Failure;
use crate::http::state::EdgeState;
use app::mcp::LEGACY;
use axum::extract::{Extension, Path, Request as HttpRequest, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kernel::{Kind, Rejection};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Streams that are open at a time.
const STREAMS_MAX: usize = 1_000;
/// How often it is looked whether a client may still follow.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(open_all, send_all)).routes(routes!(open_one, send_one))
}

/// Speak MCP of version 2024-11-05: open the stream
#[utoipa::path(get, path = "/sse", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    responses((status = 200, description = "A stream of server-sent events; the first one names where to send.")))]
async fn open_all(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: HttpRequest) -> Response {
    answered(opened(&state, &api, None, request).await)
}

/// Speak MCP of version 2024-11-05 with a virtual server: open the stream
#[utoipa::path(get, path = "/sse/{virtual_server}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("virtual_server" = String, Path, description = "Id or name")),
    responses((status = 200, description = "A stream of server-sent events; the first one names where to send.")))]
async fn open_one(
    State(state): State<Arc<EdgeState>>,
    Extension(api): Extension<Api>,
    Path(name): Path<String>,
    request: HttpRequest,
) -> Response {
    answered(opened(&state, &api, Some(name), request).await)
}

/// Speak MCP of version 2024-11-05: send a message
#[utoipa::path(post, path = "/sse", tag = "tools", extensions(("x-permission" = json!("discovery.read"))), request_body = Object,
    params(("session_id" = String, Query, description = "As the stream said it")),
    responses((status = 202, description = "It was taken; its answer comes on the stream.")))]
async fn send_all(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: HttpRequest) -> Response {
    answered(sent(&state, &api, None, request).await)
}

/// Speak MCP of version 2024-11-05 with a virtual server: send a message
#[utoipa::path(post, path = "/sse/{virtual_server}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("virtual_server" = String, Path, description = "Id or name"),
        ("session_id" = String, Query, description = "As the stream said it")),
    request_body = Object, responses((status = 202, description = "It was taken; its answer comes on the stream.")))]
async fn send_one(
    State(state): State<Arc<EdgeState>>,
    Extension(api): Extension<Api>,
    Path(name): Path<String>,
    request: HttpRequest,
) -> Response {
    answered(sent(&state, &api, Some(name), request).await)
}

/// Streams that are open here, by the ids that their clients send with.
#[derive(Default)]
pub(crate) struct Streams(Mutex<HashMap<String, Arc<Open>>>);

struct Open {
    /// Whose it is, and at which door.
    owner: String,
    out: mpsc::Sender<String>,
    session: Mutex<Option<Arc<Session>>>,
}

/// Ends a stream when its client leaves.
struct Ends {
    state: Arc<EdgeState>,
    id: String,
}

impl Drop for Ends {
    fn drop(&mut self) {
        lock(&self.state.mcp_streams.0).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn owner(visit: &Visit) -> String {
    format!("{}/{}", visit.owner(), visit.door_name)
}

async fn opened(state: &Arc<EdgeState>, api: &Api, name: Option<String>, request: HttpRequest) -> Result<Response, Failure> {
    let (mut parts, _) = request.into_parts();
    let visit = visit(state, api, name, &mut parts, false).await?;
    let place = state.mcp_sessions.follow(state, &visit.owner())?;
    let (out, messages) = mpsc::channel(ASIDE_MAX);
    let id = state.app.fresh_handle();
    let open = Arc::new(Open { owner: owner(&visit), out, session: Mutex::default() });
    {
        let mut streams = lock(&state.mcp_streams.0);
        if streams.len() >= STREAMS_MAX {
            let hint = "Use streamable HTTP at /mcp.";
            return Err(Rejection::new(Kind::Limited, "RATE_LIMITED", "Too many of these streams are open.", hint).into());
        }
        streams.insert(id.clone(), open);
    }
    let (app, caller, door) = (state.app.clone(), visit.caller.clone(), visit.door);
    let until_the_end = async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = app.draining().cancelled() => break,
                _ = look.tick() => if !app.mcp_may_still(&caller, door).await {
                    break;
                },
            }
        }
        drop(place);
        None
    };
    let ends = Ends { state: state.clone(), id: id.clone() };
    let first = format!("event: endpoint\ndata: {}?session_id={id}\n\n", parts.uri.path());
    let body = stream::once(async { Ok::<_, Infallible>(Bytes::from(first)) });
    let rest = pieces(messages, Box::pin(until_the_end)).map(move |piece| {
        let _ = &ends;
        Ok(piece)
    });
    Ok(event_stream(body.chain(rest)))
}

async fn sent(state: &Arc<EdgeState>, api: &Api, name: Option<String>, request: HttpRequest) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    let visit = visit(state, api, name, &mut parts, false).await?;
    let query = parts.uri.query().unwrap_or_default();
    let id = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "session_id").map(|(_, id)| id.into_owned());
    let found = id.and_then(|id| lock(&state.mcp_streams.0).get(&id).cloned());
    let Some(open) = found.filter(|open| open.owner == owner(&visit)) else {
        let hint = "Open a stream first, with GET on the same path; its first event names where to send.";
        return Err(Rejection::new(Kind::NotFound, "MCP_STREAM_NOT_FOUND", "There is no such stream here.", hint).into());
    };
    let bytes = read(HttpRequest::from_parts(parts, body), state).await?;
    let request = match parsed(&bytes, state) {
        Ok(Message::Request(request)) => request,
        Ok(other) => {
            let session = lock(&open.session).clone();
            session.iter().for_each(|session| heard(session, &other));
            return Ok(StatusCode::ACCEPTED.into_response());
        }
        Err(error) => return Ok(refused(error)),
    };
    tokio::spawn(async move {
        let answer = tokio::select! {
            () = open.out.closed() => return,
            answer = carried_out(&visit, &open, request) => answer,
        };
        if let Some(answer) = answer {
            // The client may have left.
            let _ = open.out.send(answer).await;
        }
    });
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn carried_out(visit: &Visit, open: &Open, request: Request) -> Option<String> {
    let session = lock(&open.session).clone();
    if request.method != "initialize" {
        return worked(visit, session, request, open.out.clone()).await;
    }
    if session.is_some() {
        return Some(written(&request.id, &Err(RpcError::new(INVALID_REQUEST, "This stream has a session already."))));
    }
    let version = LEGACY.into_iter().find(|version| Some(*version) == request.params.protocol_version.as_deref());
    let version = version.unwrap_or(LEGACY[0]);
    let can_be_asked = capabilities_of(request.params.capabilities.as_ref());
    let (app, sessions) = (&visit.state.app, &visit.state.mcp_sessions);
    let begun = app.begin_mcp_session(&visit.caller, &visit.door_name, version, can_be_asked).ok()?;
    let session = sessions.find(&visit.state, &visit.caller, &visit.door_name, &begun)?;
    session.set_stream(open.out.clone());
    *lock(&open.session) = Some(session.clone());
    if let Ok(changes) = Changes::new(&visit.state, &visit.caller, visit.door, Wanted::ALL) {
        let out = open.out.clone();
        // It ends when the client leaves.
        tokio::spawn(async move { changes.tell(&session.resources, None, &session.over, &out).await });
    }
    Some(written(&request.id, &Ok(introduction(visit, version))))
}
