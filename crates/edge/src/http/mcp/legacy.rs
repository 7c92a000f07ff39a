//! The versions before the newest: a client begins with `initialize`, has a session, and is asked in the middle of its requests.

use super::capabilities_of;
use super::door::{Done, Visit, capabilities, instructions, server_info};
use super::listen::{Changes, Wanted};
use super::message::{
    Answer, INVALID_PARAMS, INVALID_REQUEST, Incoming, Message, PARSE_ERROR, Params, Request, RpcError, refused, whole, written,
};
use super::sessions::Session;
use super::stream::{ASIDE_MAX, answer, streamed};
use super::tasks;
use app::RouteClass;
use app::mcp::task::OLDER;
use app::mcp::{LEGACY, McpAsk, McpClient, Tasks};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// How long a person may take to answer.
const PATIENCE: Duration = Duration::from_secs(590);
/// Times that one request may ask its client.
const ROUNDS_MAX: usize = 32;
/// Messages of one batch, which version 2025-03-26 has.
const BATCH_MAX: usize = 100;

/// What became of the session that a message names.
enum Found {
    None,
    Open(Arc<Session>),
    Over,
}

fn session(visit: &Visit) -> Found {
    let Some(id) = visit.parts.headers.get(SESSION) else { return Found::None };
    let id = id.to_str().unwrap_or_default();
    match visit.state.mcp_sessions.find(&visit.state, &visit.caller, &visit.door_name, id) {
        Some(session) => Found::Open(session),
        None => Found::Over,
    }
}

/// The client must begin again.
fn over(id: &RawValue) -> Response {
    let error = RpcError::new(INVALID_REQUEST, "This session is over, or another's. Begin again with 'initialize'.");
    whole(StatusCode::NOT_FOUND, written(id, &Err(error)))
}

/// Answers a request.
pub(super) async fn take(visit: Visit, request: Request) -> Response {
    if request.method == "initialize" {
        return initialize(&visit, &request);
    }
    let session = match session(&visit) {
        Found::Over => return over(&request.id),
        Found::Open(session) => Some(session),
        Found::None => None,
    };
    let accept = visit.parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let may_stream = accept.contains("text/event-stream");
    let (out, aside) = mpsc::channel(ASIDE_MAX);
    let work = async move { worked(&visit, session, request, out).await.map(|text| (StatusCode::OK, text)) };
    answer(Box::pin(work), aside, may_stream).await
}

/// The text of an answer to a request; none when it was called off.
pub(super) async fn worked(
    visit: &Visit,
    session: Option<Arc<Session>>,
    request: Request,
    out: mpsc::Sender<String>,
) -> Option<String> {
    let Request { id, method, params } = request;
    let running = session.as_ref().map(|session| session.run(id.get()));
    let working = async {
        match method.as_str() {
            "ping" => Ok("{}".to_owned()),
            "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => visit.list(&method, &params).await,
            "tools/call" | "prompts/get" | "resources/read" | "completion/complete" => {
                let ask = visit.asked(&method, &params);
                match ask {
                    Ok(ask) => handed_on(visit, session.as_ref(), ask, &params, out).await,
                    Err(error) => Err(error),
                }
            }
            "tasks/get" | "tasks/result" | "tasks/cancel" => tasks::older(visit, session.as_ref(), &method, &params, &out).await,
            "logging/setLevel" => set_level(session.as_ref(), &params),
            "resources/subscribe" | "resources/unsubscribe" => subscribe(visit, session.as_ref(), &method, &params),
            _ => Err(RpcError::no_method(&method)),
        }
    };
    let answer = match &running {
        Some(running) => tokio::select! {
            () = running.token.cancelled() => return None,
            () = running.over() => return None,
            answer = working => answer,
        },
        None => working.await,
    };
    Some(written(&id, &answer))
}

fn initialize(visit: &Visit, request: &Request) -> Response {
    let params = &request.params;
    let asked = params.protocol_version.as_deref().unwrap_or_default();
    let version = LEGACY.into_iter().find(|version| *version == asked).unwrap_or(LEGACY[0]);
    let can_be_asked = capabilities_of(params.capabilities.as_ref());
    let begun = visit.state.app.begin_mcp_session(&visit.caller, &visit.door_name, version, can_be_asked);
    let id = match begun {
        Ok(id) => id,
        Err(rejection) => return refused(RpcError::of(&rejection, false, false)),
    };
    let answer = Ok(introduction(visit, version));
    let mut response = whole(StatusCode::OK, written(&request.id, &answer));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(SESSION, id);
    }
    response
}

/// What this server says of itself.
pub(super) fn introduction(visit: &Visit, version: &str) -> String {
    let mut result = json!({ "protocolVersion": version, "capabilities": capabilities(), "serverInfo": server_info() });
    if version == OLDER {
        result["capabilities"]["tasks"] = json!({ "cancel": {}, "requests": { "tools": { "call": {} } } });
    }
    if let Some(instructions) = instructions(visit.door) {
        result["instructions"] = json!(instructions);
    }
    result.to_string()
}

fn set_level(session: Option<&Arc<Session>>, params: &Params) -> Answer {
    let Some(level) = params.level.as_ref().filter(|level| super::LEVELS.contains(&level.as_str())) else {
        return Err(RpcError::new(INVALID_PARAMS, format!("'level' must be one of {}.", super::LEVELS.join(", "))));
    };
    if let Some(session) = session {
        *session.log_level.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(level.clone());
    }
    Ok("{}".to_owned())
}

fn subscribe(visit: &Visit, session: Option<&Arc<Session>>, method: &str, params: &Params) -> Answer {
    let Some(uri) = &params.uri else { return Err(RpcError::new(INVALID_PARAMS, "'uri' is missing.")) };
    let Some(session) = session else {
        return Err(RpcError::new(INVALID_REQUEST, "Without a session nothing can be followed. Begin with 'initialize'."));
    };
    if method == "resources/unsubscribe" {
        session.resources.remove(uri);
    } else if let Err(rejection) = session.resources.add(&visit.state, &visit.caller, visit.door, uri) {
        return Err(RpcError::of(&rejection, false, true));
    }
    Ok("{}".to_owned())
}

/// The client, as servers see it.
pub(super) fn client_of(session: Option<&Arc<Session>>) -> McpClient {
    McpClient {
        session: session.map(|session| session.id.clone()),
        capabilities: session.map(|session| session.facts.capabilities.clone()).unwrap_or_default(),
        log_level: session.and_then(|session| session.level()),
        tasks: Tasks::Awaited,
    }
}

/// Hands a request on, and asks the client what the server wants to know, as often as it does.
async fn handed_on(
    visit: &Visit,
    session: Option<&Arc<Session>>,
    mut ask: McpAsk,
    params: &Params,
    out: mpsc::Sender<String>,
) -> Answer {
    let mut client = client_of(session);
    let level = client.log_level.clone();
    if let Some(wish) = tasks::wished(visit, session, &ask, params)? {
        (ask.task, client.tasks) = (Some(wish), Tasks::Followed);
    }
    // These belong to the newest version alone.
    (ask.responses, ask.state) = (None, None);
    let mut open = Open { visit, client: &client, ask: None };
    for _ in 0..ROUNDS_MAX {
        // While it is handed on, the gateway calls off what nobody waits for.
        open.ask = None;
        let (notes, telling) = super::notes(&out, params.progress_token().cloned(), level.clone());
        let done = visit.hand_on(ask.clone(), &client, notes).await;
        telling.end().await;
        match done {
            Done::Answer(answer) => {
                return answer.map(|text| match session {
                    Some(session) => translated(text, &session.facts.version),
                    None => text,
                });
            }
            Done::Task(task) => return Ok(tasks::made_older(task)),
            Done::InputRequired { requests, state } => {
                ask.state = state;
                open.ask = Some(ask.clone());
                let Some(session) = session else { break };
                if !visit.state.app.mcp_may_still(&visit.caller, visit.door).await {
                    break;
                }
                (ask.responses, ask.refused) = asked(session, requests, &out).await;
            }
        }
    }
    Err(RpcError::new(super::message::INTERNAL_ERROR, "The server asks again and again, or you may not go on."))
}

/// A request whose client is asked. What waits for the answers is called off when the client leaves meanwhile.
struct Open<'a> {
    visit: &'a Visit,
    client: &'a McpClient,
    ask: Option<McpAsk>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            let (app, caller, door) = (self.visit.state.app.clone(), self.visit.caller.clone(), self.visit.door);
            let client = self.client.clone();
            tokio::spawn(async move { app.mcp_give_up(&caller, door, &ask, &client).await });
        }
    }
}

/// Asks the client everything at once, on the stream of the request that it is for.
pub(super) async fn asked(
    session: &Session,
    requests: Map<String, Value>,
    out: &mpsc::Sender<String>,
) -> (Option<Map<String, Value>>, Vec<String>) {
    let (mut responses, mut refused) = (Map::new(), vec![]);
    let mut waiting = vec![];
    for (key, request) in requests {
        let method = request["method"].as_str().unwrap_or_default();
        let (text, asked) = session.question(method, request.get("params"));
        let is_sent = out.send(text.clone()).await.is_ok()
            || match session.stream() {
                // A client that takes no stream with its request may follow its session.
                Some(stream) => stream.send(text).await.is_ok(),
                None => false,
            };
        if is_sent { waiting.push((key, asked)) } else { refused.push(key) }
    }
    let answers = waiting.into_iter().map(async |(key, asked)| (key, asked.answer(PATIENCE).await));
    for (key, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Some(answer) => drop(responses.insert(key, answer)),
            None => refused.push(key),
        }
    }
    (Some(responses), refused)
}

/// Contents that an older version does not know, as text: a client that checks strictly would refuse the whole answer.
fn translated(text: String, version: &str) -> String {
    let knows_links = version >= "2025-06-18";
    let knows_audio = version >= "2025-03-26";
    let has_unknown = (!knows_links && text.contains("\"resource_link\"")) || (!knows_audio && text.contains("\"audio\""));
    if !has_unknown {
        return text;
    }
    let Ok(mut result) = serde_json::from_str::<Value>(&text) else { return text };
    let blocks = result.get_mut("content").and_then(Value::as_array_mut).into_iter().flatten();
    for block in blocks {
        let said = match block["type"].as_str() {
            Some("resource_link") if !knows_links => {
                format!("[{}]({})", block["name"].as_str().unwrap_or_default(), block["uri"].as_str().unwrap_or_default())
            }
            Some("audio") if !knows_audio => {
                format!("(audio, {}, left out: this version of MCP has none)", block["mimeType"].as_str().unwrap_or_default())
            }
            _ => continue,
        };
        *block = json!({ "type": "text", "text": said });
    }
    result.to_string()
}

/// Takes what wants no answer.
pub(super) async fn hear(visit: Visit, message: Message) -> Response {
    let session = match session(&visit) {
        Found::Over => return over(RawValue::NULL),
        Found::Open(session) => session,
        Found::None => return StatusCode::ACCEPTED.into_response(),
    };
    heard(&session, &message);
    StatusCode::ACCEPTED.into_response()
}

/// What a session does with what wants no answer.
pub(super) fn heard(session: &Session, message: &Message) {
    match message {
        Message::Response { id, answer } => session.answered(id, answer.clone()),
        Message::Notification { method, params } if method == "notifications/cancelled" => {
            if let Some(id) = &params.request_id {
                session.cancel(id.get());
            }
        }
        Message::Notification { .. } | Message::Request(_) => {}
    }
}

/// Answers a batch, one after another, as version 2025-03-26 has it.
pub(super) async fn take_batch(visit: Visit, bytes: &[u8]) -> Response {
    let session = match session(&visit) {
        Found::Over => return over(RawValue::NULL),
        Found::Open(session) if session.facts.version == "2025-03-26" => Some(session),
        Found::Open(_) | Found::None => {
            return refused(RpcError::new(INVALID_REQUEST, "Send one JSON-RPC message at a time."));
        }
    };
    let is_deep = std::str::from_utf8(bytes).map_or(true, |text| super::json_depth(text) > visit.state.settings.json_depth_max);
    let batch: Vec<Incoming> = match serde_json::from_slice(bytes) {
        Ok(batch) if !is_deep => batch,
        _ => return refused(RpcError::new(PARSE_ERROR, "The body is not JSON in UTF-8, or nested too deep.")),
    };
    if batch.is_empty() || batch.len() > BATCH_MAX {
        return refused(RpcError::new(INVALID_REQUEST, format!("A batch has 1 to {BATCH_MAX} messages.")));
    }
    let mut answers = vec![];
    for (number, incoming) in batch.into_iter().enumerate() {
        // The first one was counted with its request.
        if number > 0
            && let Err(rejection) = visit.state.app.admit(&visit.caller.actor, RouteClass::Call)
        {
            return super::answered(Err(rejection.into()));
        }
        match incoming.message() {
            Ok(Message::Request(request)) => {
                let (out, _) = mpsc::channel(1);
                answers.extend(worked(&visit, session.clone(), request, out).await);
            }
            Ok(other) => session.iter().for_each(|session| heard(session, &other)),
            Err(error) => answers.push(written(RawValue::NULL, &Err(error))),
        }
    }
    if answers.is_empty() {
        return StatusCode::ACCEPTED.into_response();
    }
    whole(StatusCode::OK, format!("[{}]", answers.join(",")))
}

/// A stream of what belongs to no request, until the client leaves.
pub(super) fn follow(visit: Visit) -> Response {
    let session = match session(&visit) {
        Found::Over => return over(RawValue::NULL),
        Found::Open(session) => session,
        Found::None => {
            let error = RpcError::new(INVALID_REQUEST, "Without a session there is nothing to follow. Begin with 'initialize'.");
            let text = written(RawValue::NULL, &Err(error));
            return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "POST")], text).into_response();
        }
    };
    let place = match visit.state.mcp_sessions.follow(&visit.state, &visit.owner()) {
        Ok(place) => place,
        Err(rejection) => return super::answered(Err(rejection.into())),
    };
    let (out, aside) = mpsc::channel(ASIDE_MAX);
    session.set_stream(out.clone());
    match Changes::new(&visit.state, &visit.caller, visit.door, Wanted::ALL) {
        Ok(changes) => {
            let work = async move {
                changes.tell(&session.resources, None, &session.over, &out).await;
                drop(place);
                None
            };
            streamed(None, aside, Some(Box::pin(work)))
        }
        Err(rejection) => refused(RpcError::of(&rejection, false, false)),
    }
}

/// Ends a session, with everything that servers know it by.
pub(super) async fn end(visit: Visit) -> Response {
    match session(&visit) {
        Found::Over => over(RawValue::NULL),
        Found::None => refused(RpcError::new(INVALID_REQUEST, "Name the session in Mcp-Session-Id.")),
        Found::Open(session) => {
            visit.state.mcp_sessions.end(&session.id);
            visit.state.app.end_mcp_session(&visit.caller, visit.door, &session.id);
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_that_a_version_does_not_know_are_told_as_text() {
        let result = r#"{"content":[{"type":"resource_link","name":"n","uri":"a:b"},{"type":"text","text":"x"}]}"#;
        assert_eq!(translated(result.into(), "2025-06-18"), result);
        let told: Value = serde_json::from_str(&translated(result.into(), "2025-03-26")).unwrap();
        assert_eq!(told["content"][0], json!({ "type": "text", "text": "[n](a:b)" }));
        let audio = r#"{"content":[{"type":"audio","mimeType":"audio/wav","data":""}]}"#;
        assert_eq!(translated(audio.into(), "2025-03-26"), audio);
        assert!(translated(audio.into(), "2024-11-05").contains("left out"));
    }
}
