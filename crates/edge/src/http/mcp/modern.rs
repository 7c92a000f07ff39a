//! The newest version: every request says everything about itself, in its body and in headers; there are no sessions.

use super::door::{Done, Visit};
use super::listen::{Changes, Resources, Wanted};
use super::message::{
    Answer, CAPABILITY_MISSING, HEADER_MISMATCH, INVALID_PARAMS, METHOD_NOT_FOUND, Params, Request, RpcError,
    VERSION_UNSUPPORTED, shown, whole, written,
};
use super::stream::{ASIDE_MAX, answer, streamed};
use super::tasks;
use app::mcp::{MODERN, McpClient, QUESTIONS, Tasks, task};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL_KEY: &str = "io.modelcontextprotocol/logLevel";
const SUBSCRIPTION_KEY: &str = "io.modelcontextprotocol/subscriptionId";

/// The version that a body names, where it names one as the newest version does.
pub(super) fn version_in(params: &Params) -> Option<&str> {
    params.meta.as_ref()?.get(VERSION_KEY)?.as_str()
}

/// A version that is not spoken.
pub(super) fn unsupported(requested: &str) -> RpcError {
    let supported = super::versions();
    RpcError::new(VERSION_UNSUPPORTED, format!("Version '{}' of the protocol is not spoken.", shown(requested)))
        .with(json!({ "supported": supported, "requested": shown(requested) }))
}

/// Answers a request.
pub(super) async fn take(visit: Visit, request: Request) -> Response {
    let Request { id, method, params } = request;
    let refuse = |status: StatusCode, error: RpcError| whole(status, written(&id, &Err(error)));
    let client = match checked(&visit, &method, &params) {
        Ok(client) => client,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let simple = match method.as_str() {
        "server/discover" => visit.discover(),
        "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => visit.list(&method, &params).await,
        "tools/call" | "prompts/get" | "resources/read" | "completion/complete" => {
            return handed_on(visit, id, &method, &params, client).await;
        }
        "tasks/get" | "tasks/update" | "tasks/cancel" => visit.modern_task(&method, &params, &client).await,
        "subscriptions/listen" => return listened(visit, id, &params, &client),
        _ => Err(RpcError::no_method(&method)),
    };
    whole(status(&simple), written(&id, &simple))
}

/// What HTTP says of an answer.
fn status(answer: &Answer) -> StatusCode {
    match answer {
        Err(RpcError { code: METHOD_NOT_FOUND, .. }) => StatusCode::NOT_FOUND,
        Err(RpcError { code: HEADER_MISMATCH | CAPABILITY_MISSING | VERSION_UNSUPPORTED, .. }) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

/// Whether body and headers say the same, and everything that they must.
fn checked(visit: &Visit, method: &str, params: &Params) -> Result<McpClient, RpcError> {
    let headers = &visit.parts.headers;
    let none = Map::new();
    let meta = params.meta.as_ref().unwrap_or(&none);
    let version = meta.get(VERSION_KEY).and_then(Value::as_str);
    let header = text(headers, super::PROTOCOL);
    match (version, header) {
        (None, _) => return Err(RpcError::new(INVALID_PARAMS, format!("'_meta' does not name the '{VERSION_KEY}'."))),
        (Some(version), Some(header)) if version != header => {
            return Err(mismatch(format!("MCP-Protocol-Version says '{}', the body '{}'", shown(header), shown(version))));
        }
        (Some(_), None) => return Err(mismatch("the header MCP-Protocol-Version is missing".into())),
        (Some(version), _) if version != MODERN => return Err(unsupported(version)),
        _ => {}
    }
    let Some(Value::Object(capabilities)) = meta.get(CAPABILITIES_KEY) else {
        return Err(RpcError::new(INVALID_PARAMS, format!("'_meta' does not say the '{CAPABILITIES_KEY}'.")));
    };
    check_header(headers, "mcp-method", Some(method))?;
    let name = match method {
        "tools/call" | "prompts/get" => params.name.as_deref(),
        "resources/read" => params.uri.as_deref(),
        "tasks/get" | "tasks/update" | "tasks/cancel" => params.task_id.as_deref(),
        _ => None,
    };
    // Of tasks, clients in use leave it out.
    let may_be_missing = method.starts_with("tasks/") && !headers.contains_key("mcp-name");
    if name.is_some() && !may_be_missing {
        check_header(headers, "mcp-name", name)?;
    }
    if let ("tools/call", Some(name)) = (method, name) {
        check_mirrored(visit, name, params)?;
    }
    let takes_tasks = capabilities.get("extensions").is_some_and(|extensions| extensions.get(task::EXTENSION).is_some());
    let is_question = |name: &str| QUESTIONS.iter().any(|(_, capability)| *capability == name);
    let capabilities = capabilities.iter().filter(|(name, _)| is_question(name));
    Ok(McpClient {
        session: None,
        capabilities: capabilities.map(|(name, value)| (name.clone(), value.clone())).collect(),
        log_level: meta.get(LOG_LEVEL_KEY).and_then(Value::as_str).map(str::to_owned),
        tasks: if takes_tasks { Tasks::Followed } else { Tasks::None },
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn mismatch(problem: String) -> RpcError {
    RpcError::new(HEADER_MISMATCH, format!("Headers and body differ: {problem}."))
}

fn check_header(headers: &HeaderMap, name: &str, wanted: Option<&str>) -> Result<(), RpcError> {
    match decoded(headers, name)? {
        None => Err(mismatch(format!("the header '{name}' is missing"))),
        Some(said) if Some(said.as_str()) == wanted => Ok(()),
        Some(said) => Err(mismatch(format!("'{name}' says '{}'", shown(&said)))),
    }
}

/// The value of a header, whichever way it is written.
fn decoded(headers: &HeaderMap, name: &str) -> Result<Option<String>, RpcError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let odd = || mismatch(format!("the header '{name}' holds what no header may"));
    let text = value.to_str().map_err(|_| odd())?;
    let Some(encoded) = text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(Some(text.to_owned()));
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|_| odd())?;
    String::from_utf8(bytes).map(Some).map_err(|_| odd())
}

/// Arguments that are said in headers too must be the same there.
fn check_mirrored(visit: &Visit, name: &str, params: &Params) -> Result<(), RpcError> {
    let Ok(view) = visit.state.app.mcp_view(&visit.caller, visit.door) else { return Ok(()) };
    let mirrored = view.tool(name).map(|tool| tool.mirrored.as_slice()).unwrap_or_default();
    if mirrored.is_empty() {
        return Ok(());
    }
    let arguments: Value = params.arguments.as_deref().and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    for one in mirrored {
        let header = format!("mcp-param-{}", one.header.to_ascii_lowercase());
        let said = decoded(&visit.parts.headers, &header)?;
        if !one.agrees(&arguments, said.as_deref()) {
            return Err(mismatch(format!("the header '{header}' is not what the arguments say")));
        }
    }
    Ok(())
}

async fn handed_on(visit: Visit, id: Box<RawValue>, method: &str, params: &Params, client: McpClient) -> Response {
    let ask = match visit.asked(method, params) {
        Ok(ask) => ask,
        Err(error) => return whole(StatusCode::BAD_REQUEST, written(&id, &Err(error))),
    };
    let (out, aside) = mpsc::channel(ASIDE_MAX);
    let (notes, telling) = super::notes(&out, params.progress_token().cloned(), client.log_level.clone());
    drop(out);
    let work = async move {
        let done = visit.hand_on(ask, &client, notes).await;
        telling.end().await;
        let answer = match done {
            Done::Answer(answer) => answer,
            Done::InputRequired { requests, state } => {
                let mut result = json!({ "resultType": "input_required" });
                if !requests.is_empty() {
                    result["inputRequests"] = Value::Object(requests);
                }
                if let Some(state) = state {
                    result["requestState"] = json!(state);
                }
                Ok(result.to_string())
            }
            Done::Task(task) => Ok(tasks::made(task)),
        };
        Some((status(&answer), written(&id, &answer)))
    };
    answer(Box::pin(work), aside, true).await
}

/// A stream of what changes, until the client leaves.
fn listened(visit: Visit, id: Box<RawValue>, params: &Params, client: &McpClient) -> Response {
    let none = Map::new();
    let filter = params.notifications.as_ref().unwrap_or(&none);
    if filter.contains_key("taskIds") && client.tasks != Tasks::Followed {
        return whole(StatusCode::BAD_REQUEST, written(&id, &Err(tasks::undeclared())));
    }
    let is = |name: &str| filter.get(name) == Some(&Value::Bool(true));
    let wanted =
        Wanted { tools: is("toolsListChanged"), prompts: is("promptsListChanged"), resources: is("resourcesListChanged") };
    let mut honoured = Map::new();
    for name in ["toolsListChanged", "promptsListChanged", "resourcesListChanged"] {
        honoured.extend(is(name).then(|| (name.to_owned(), json!(true))));
    }
    let resources = Arc::new(Resources::default());
    let asked = filter.get("resourceSubscriptions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let watched: Vec<&str> = asked.filter(|uri| resources.add(&visit.state, &visit.caller, visit.door, uri).is_ok()).collect();
    if !watched.is_empty() {
        honoured.insert("resourceSubscriptions".into(), json!(watched));
    }
    let tasks = tasks::followed(&visit, filter);
    if !tasks.is_empty() {
        honoured.insert("taskIds".into(), json!(tasks));
    }
    let changes = match Changes::new(&visit.state, &visit.caller, visit.door, wanted) {
        Ok(changes) => changes,
        Err(rejection) => return whole(StatusCode::OK, written(&id, &Err(RpcError::of(&rejection, true, false)))),
    };
    let place = match visit.state.mcp_sessions.follow(&visit.state, &visit.owner()) {
        Ok(place) => place,
        Err(rejection) => return whole(StatusCode::OK, written(&id, &Err(RpcError::of(&rejection, true, false)))),
    };
    let subscription: Value = serde_json::from_str(id.get()).unwrap_or_default();
    let tag = json!({ SUBSCRIPTION_KEY: subscription });
    let acknowledged = super::message::notification(
        "notifications/subscriptions/acknowledged",
        &json!({ "_meta": tag, "notifications": honoured }),
    );
    let (out, aside) = mpsc::channel(ASIDE_MAX);
    let last = written(&id, &Ok(json!({ "resultType": "complete", "_meta": tag }).to_string()));
    let client = client.clone();
    let work = async move {
        let (over, of_tasks) = (CancellationToken::new(), tasks::tell(&visit, &client, tasks, &tag, &out));
        let of_changes = changes.tell(&resources, Some(tag.clone()), &over, &out);
        tokio::select! {
            () = of_changes => {}
            () = of_tasks => {}
        }
        drop(place);
        Some((StatusCode::OK, last))
    };
    streamed(Some(acknowledged), aside, Some(Box::pin(work)))
}
