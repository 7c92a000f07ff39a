//! `/mcp`: Keiko as an MCP server, in every version over HTTP. Behind one door there are the tools, prompts and resources of
//! every MCP server of the tenant, or those that a virtual server selects, and the parts of the API that an agent needs which
//! speaks nothing else.
//!
//! A client of the newest version ([`modern`]) says everything with each request. A client of an older one ([`legacy`]) begins
//! with `initialize` and has a session. Both come to the same requests ([`door`]); what one version cannot say is told in
//! `docs/mcp-bridge.md`.

mod builtin;
mod door;
mod legacy;
mod listen;
mod message;
mod modern;
mod oldest;
mod search;
mod sessions;
mod stream;
mod tasks;

pub(super) use oldest::Streams;
pub(super) use sessions::Sessions;
pub(super) use stream::event_stream;

use super::access::By;
use super::body::read;
use super::envelope::Failure;
use super::json_depth;
use super::state::EdgeState;
use app::App;
use app::mcp::{LEGACY, MODERN, Note};
use axum::Router;
use axum::extract::{Extension, FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use door::Visit;
use kernel::{Kind, Rejection};
use message::{INVALID_REQUEST, Incoming, Message, PARSE_ERROR, RpcError, refused};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use url::{Host, Url};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new()
        .routes(routes!(all, follow_all, end_all))
        .routes(routes!(one, follow_one, end_one))
        .merge(oldest::routes())
}

/// Entries of Keiko's own tools, as they stand in lists.
pub(super) fn built_in_tools(document: &Value) -> Vec<String> {
    builtin::entries(document)
}

/// The API that built-in tools stand for.
#[derive(Clone)]
pub(super) struct Api(pub Router);

const PROTOCOL: &str = "mcp-protocol-version";

/// Versions of the protocol that are spoken, newest first.
fn versions() -> Vec<&'static str> {
    [MODERN].into_iter().chain(LEGACY).collect()
}

/// Speak MCP
///
/// One JSON-RPC message of the Model Context Protocol over streamable HTTP, in any of its versions. A client of version
/// 2026-07-28 says everything with each request; older ones begin with `initialize` and send the `Mcp-Session-Id` that they get.
/// Answers are JSON, or a stream of server-sent events when something is told before them.
#[utoipa::path(post, path = "/mcp", tag = "tools", extensions(("x-permission" = json!("discovery.read"))), params(search::SearchParams), request_body = Object,
    responses((status = 200, description = "The JSON-RPC answer.", body = Object),
        (status = 202, description = "A notification was taken."),
        (status = 400, description = "Not a JSON-RPC message.", body = Object)))]
async fn all(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: Request) -> Response {
    answered(taken(&state, &api, None, request).await)
}

/// Speak MCP with a virtual server
///
/// Like `/mcp`, with what the virtual server selects, for those whom it is for.
#[utoipa::path(post, path = "/mcp/{virtual_server}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("virtual_server" = String, Path, description = "Id or name"), search::SearchParams), request_body = Object,
    responses((status = 200, description = "The JSON-RPC answer.", body = Object),
        (status = 202, description = "A notification was taken."),
        (status = 400, description = "Not a JSON-RPC message.", body = Object)))]
async fn one(
    State(state): State<Arc<EdgeState>>,
    Extension(api): Extension<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    answered(taken(&state, &api, Some(name), request).await)
}

/// Follow an MCP session
///
/// What changes behind the door of a session, as server-sent events.
#[utoipa::path(get, path = "/mcp", tag = "tools", extensions(("x-permission" = json!("discovery.read"))), params(search::SearchParams),
    responses((status = 200, description = "A stream of server-sent events.")))]
async fn follow_all(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: Request) -> Response {
    answered(followed(&state, &api, None, request).await)
}

/// Follow an MCP session with a virtual server
///
/// What changes behind the door of a session, as server-sent events.
#[utoipa::path(get, path = "/mcp/{virtual_server}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("virtual_server" = String, Path, description = "Id or name"), search::SearchParams),
    responses((status = 200, description = "A stream of server-sent events.")))]
async fn follow_one(
    State(state): State<Arc<EdgeState>>,
    Extension(api): Extension<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    answered(followed(&state, &api, Some(name), request).await)
}

/// End an MCP session
#[utoipa::path(delete, path = "/mcp", tag = "tools", extensions(("x-permission" = json!("discovery.read"))), params(search::SearchParams),
    responses((status = 204, description = "It is over.")))]
async fn end_all(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: Request) -> Response {
    answered(ended(&state, &api, None, request).await)
}

/// End an MCP session with a virtual server
#[utoipa::path(delete, path = "/mcp/{virtual_server}", tag = "tools", extensions(("x-permission" = json!("discovery.read"))),
    params(("virtual_server" = String, Path, description = "Id or name"), search::SearchParams), responses((status = 204, description = "It is over.")))]
async fn end_one(
    State(state): State<Arc<EdgeState>>,
    Extension(api): Extension<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Response {
    answered(ended(&state, &api, Some(name), request).await)
}

fn answered(answer: Result<Response, Failure>) -> Response {
    answer.unwrap_or_else(IntoResponse::into_response)
}

/// Who comes to which door.
async fn visit(
    state: &Arc<EdgeState>,
    api: &Api,
    name: Option<String>,
    parts: &mut Parts,
    is_modern: bool,
) -> Result<Visit, Failure> {
    check_origin(&state.app, &parts.headers)?;
    let By(caller) = By::from_request_parts(parts, state).await?;
    let door = state.app.mcp_door(&caller, name.as_deref())?;
    let door_name = name.unwrap_or_default();
    let is_search = search::is_wanted(&parts.uri);
    Ok(Visit { state: state.clone(), api: api.clone(), parts: parts.clone(), caller, door, door_name, is_modern, is_search })
}

async fn taken(state: &Arc<EdgeState>, api: &Api, name: Option<String>, request: Request) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    let mut visit = visit(state, api, name, &mut parts, false).await?;
    let bytes = read(Request::from_parts(parts, body), state).await?;
    let header = visit.parts.headers.get(PROTOCOL).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Ok(legacy::take_batch(visit, &bytes).await);
    }
    let request = match parsed(&bytes, state) {
        Ok(Message::Request(request)) => request,
        Ok(other) if header.as_deref() != Some(MODERN) => return Ok(legacy::hear(visit, other).await),
        // There is nothing that a client of the newest version could tell over HTTP.
        Ok(Message::Notification { .. }) => return Ok(StatusCode::ACCEPTED.into_response()),
        Ok(Message::Response { .. }) => {
            return Ok(refused(RpcError::new(INVALID_REQUEST, "Answers are sent with the request that they are for.")));
        }
        Err(error) => return Ok(refused(error)),
    };
    visit.is_modern = header.as_deref() == Some(MODERN) || modern::version_in(&request.params).is_some();
    match header.as_deref() {
        _ if visit.is_modern => Ok(modern::take(visit, request).await),
        Some(version) if !LEGACY.contains(&version) => {
            let error = Err(modern::unsupported(version));
            Ok(message::whole(StatusCode::BAD_REQUEST, message::written(&request.id, &error)))
        }
        _ => Ok(legacy::take(visit, request).await),
    }
}

fn parsed(bytes: &[u8], state: &EdgeState) -> Result<Message, RpcError> {
    let no_json = || RpcError::new(PARSE_ERROR, "The body is not JSON in UTF-8, or nested too deep.");
    let text = std::str::from_utf8(bytes).map_err(|_| no_json())?;
    if json_depth(text) > state.settings.json_depth_max || serde_json::from_str::<&serde_json::value::RawValue>(text).is_err() {
        return Err(no_json());
    }
    let incoming: Incoming =
        serde_json::from_str(text).map_err(|_| RpcError::new(INVALID_REQUEST, "This is no JSON-RPC message."))?;
    incoming.message()
}

async fn followed(state: &Arc<EdgeState>, api: &Api, name: Option<String>, request: Request) -> Result<Response, Failure> {
    let (mut parts, _) = request.into_parts();
    let visit = visit(state, api, name, &mut parts, false).await?;
    Ok(legacy::follow(visit))
}

async fn ended(state: &Arc<EdgeState>, api: &Api, name: Option<String>, request: Request) -> Result<Response, Failure> {
    let (mut parts, _) = request.into_parts();
    let visit = visit(state, api, name, &mut parts, false).await?;
    Ok(legacy::end(visit).await)
}

/// A page of another origin must not speak through a visitor's browser, whatever name leads it here: a name that is neither this
/// server's own nor of the machine itself may have been pointed here by whoever holds it (DNS rebinding).
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_same = origin.split_once("://").is_some_and(|(_, of_origin)| of_origin == host);
    if is_same && is_own_name(app, host) {
        return Ok(());
    }
    let message = format!("The origin '{}' may not speak to this server.", origin.chars().take(100).collect::<String>());
    let hint = "Speak MCP from a program, or from a page of this server under its public address (server.public_url).";
    Err(Rejection::new(Kind::Forbidden, "ORIGIN_REFUSED", message, hint).into())
}

fn is_own_name(app: &App, host: &str) -> bool {
    let name =
        |authority: &str| Url::parse(&format!("http://{authority}/")).ok().and_then(|url| url.host().map(|h| h.to_owned()));
    let public = Url::parse(app.issuer()).ok().and_then(|url| url.host().map(|h| h.to_owned()));
    match name(host) {
        Some(Host::Domain(domain)) => domain == "localhost" || public == Some(Host::Domain(domain)),
        // An address is nobody's to point elsewhere.
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        None => false,
    }
}

/// Severities of log messages, least first.
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// A server's notes on the way to a client. Whoever has the answer waits for [`Notes::end`], so that nothing comes behind it.
struct Notes(Option<tokio::task::JoinHandle<()>>);

impl Notes {
    /// Waits until everything is told. What takes notes must be gone before.
    async fn end(self) {
        if let Some(telling) = self.0 {
            // It ends when nothing can come any more, and does not panic.
            let _ = telling.await;
        }
    }
}

/// Where a server's notes go: written down as the client wants them, with its own token of progress; nowhere when it wants none.
fn notes(out: &mpsc::Sender<String>, token: Option<Value>, level: Option<String>) -> (Option<mpsc::Sender<Note>>, Notes) {
    if token.is_none() && level.is_none() {
        return (None, Notes(None));
    }
    let out = out.clone();
    let (notes, mut told) = mpsc::channel::<Note>(stream::ASIDE_MAX);
    let rank = |level: &str| LEVELS.iter().position(|known| *known == level);
    let least = level.as_deref().and_then(rank);
    let telling = tokio::spawn(async move {
        while let Some(Note { method, mut params }) = told.recv().await {
            let is_wanted = match (method.as_str(), &token) {
                ("notifications/progress", Some(token)) => {
                    params["progressToken"] = token.clone();
                    true
                }
                ("notifications/message", _) => {
                    let said = params["level"].as_str().and_then(rank);
                    least.is_some_and(|least| said.is_some_and(|said| said >= least))
                }
                _ => false,
            };
            if is_wanted && out.send(message::notification(&method, &params)).await.is_err() {
                return;
            }
        }
    });
    (Some(notes), Notes(Some(telling)))
}

/// What a client of an older version said about itself when it began, as far as it matters.
fn capabilities_of(said: Option<&serde_json::Map<String, Value>>) -> serde_json::Map<String, Value> {
    let known: BTreeMap<_, _> = app::mcp::QUESTIONS.iter().map(|(_, capability)| (*capability, ())).collect();
    let kept = said.into_iter().flatten().filter(|(name, _)| known.contains_key(name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}
