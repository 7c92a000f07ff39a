//! `/a2a/{door}`: Keiko's agents as A2A agents (version 1.0), whether they know A2A or not. A door is `fleet`, where whoever
//! fits does the work, or an agent by id or name. Both bindings come to the same [`visit`].
//!
//! JSON-RPC is one route ([`rpc`]); over HTTP with JSON ([`rest`]) each operation has its own.

mod errors;
mod request;
mod rest;
mod rpc;
mod visit;

use super::access::By;
use super::body::{open_json, read};
use super::envelope::Failure;
use super::mcp::event_stream;
use super::state::EdgeState;
use app::a2a::{AVAILABILITY, Door};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use errors::A2aError;
use futures_util::stream;
use kernel::{Kind, Rejection, text};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use visit::{Telling, Visit, check_version, wants};

/// The door of whoever fits.
const FLEET: &str = "fleet";

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(public_card)).routes(routes!(card)).merge(rpc::routes()).merge(rest::routes())
}

/// Read the card of this server
///
/// The agent card of A2A, signed; what the fleet can do stands in the extended card, for those who have signed in.
#[utoipa::path(get, path = "/.well-known/agent-card.json", tag = "a2a", extensions(("x-permission" = json!("open"))),
    responses((status = 200, description = "An agent card.", body = Object), (status = 304, description = "As it was.")))]
async fn public_card(State(state): State<Arc<EdgeState>>, headers: HeaderMap) -> Result<Response, Failure> {
    Ok(card_response(&state.app.a2a_public_card()?, &headers, "public, max-age=300"))
}

/// Read the card of an agent
///
/// The agent card of A2A for `fleet` or for an agent by id or name, signed, with whether the agent can take work now.
#[utoipa::path(get, path = "/a2a/{door}/.well-known/agent-card.json", tag = "a2a",
    extensions(("x-permission" = json!("discovery.read"))), params(("door" = String, Path, description = "`fleet`, or an agent by id or name")),
    responses((status = 200, description = "An agent card.", body = Object), (status = 304, description = "As it was.")))]
async fn card(
    State(state): State<Arc<EdgeState>>,
    By(caller): By,
    Path(door): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let door = door_of(&state, &caller, &door).await?;
    let card = state.app.a2a_card(&caller, &door).await?;
    Ok(card_response(&card, &headers, "private, max-age=5"))
}

/// A card, unless the client has it already. A signature is another one each time and does not count.
fn card_response(card: &Value, headers: &HeaderMap, kept: &'static str) -> Response {
    let mut content = card.clone();
    content.as_object_mut().map(|card| card.remove("signatures"));
    let tag = format!("\"{}\"", &text::hex(&Sha256::digest(content.to_string()))[..32]);
    let is_known =
        headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(|known| known.contains(&tag));
    let shared =
        [(header::CACHE_CONTROL, kept.to_owned()), (header::ETAG, tag), (header::VARY, "authorization, x-api-key".to_owned())];
    match is_known {
        true => (StatusCode::NOT_MODIFIED, shared).into_response(),
        false => (shared, [(header::CONTENT_TYPE, "application/json")], card.to_string()).into_response(),
    }
}

async fn door_of(state: &EdgeState, caller: &app::Caller, name: &str) -> Result<Door, Failure> {
    let named = (name != FLEET).then_some(name);
    Ok(state.app.a2a_door(caller, named).await?)
}

/// A visit with the body of its request. What is wrong with the version of the protocol is the visitor's to hear in its binding.
async fn received(state: &Arc<EdgeState>, door: &str, request: Request) -> Result<(Visit, Result<(), A2aError>, Bytes), Failure> {
    let (mut parts, body) = request.into_parts();
    let By(caller) = By::from_request_parts(&mut parts, state).await?;
    check_media_type(&parts.headers)?;
    let door = door_of(state, &caller, door).await?;
    let version = check_version(&parts.headers, &parts.uri);
    let wants_availability = wants(&parts.headers, AVAILABILITY);
    let bytes = read(Request::from_parts(parts, body), state).await?;
    // A body may take long, and the tenant may be deleted meanwhile.
    state.app.check_running(&caller)?;
    Ok((Visit { state: state.clone(), caller, door, wants_availability }, version, bytes))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind == "application/a2a+json" {
        return Ok(());
    }
    let hint = "Send 'Content-Type: application/a2a+json' or 'application/json'.";
    Err(Rejection::new(Kind::Invalid, "UNSUPPORTED_MEDIA_TYPE", "The body must be JSON.", hint).into())
}

/// JSON in UTF-8 that is not nested too deep.
fn json_of(bytes: &[u8], state: &EdgeState) -> Result<Value, A2aError> {
    open_json(bytes, state)
        .map_err(|_| A2aError::protocol(errors::PARSE_ERROR, "The body is not JSON in UTF-8, or nested too deep."))
}

/// What happens to a task as server-sent events, each put into words by its binding.
fn events(telling: Telling, word: impl Fn(Value) -> Value + Send + 'static) -> Response {
    let pieces = stream::unfold((telling, word), |(mut telling, word)| async move {
        let piece = match telling.next().await? {
            Some(update) => Bytes::from(format!("data: {}\n\n", word(update))),
            None => Bytes::from_static(b":\n\n"),
        };
        Some((Ok::<_, Infallible>(piece), (telling, word)))
    });
    event_stream(pieces)
}
