//! `/mcp`: Keiko as an MCP server over streamable HTTP. Its tools are those of every MCP server behind it, and the parts
//! of the API that an agent needs which speaks nothing else.
//!
//! There is no session: every message is a request of its own, with its own credentials. A tool is carried out as the
//! request to the API that it stands for, so that authentication, permissions, limits and the record are the same.

use super::access::{By, Recognised};
use super::body::{open_json, read};
use super::envelope::Failure;
use super::state::EdgeState;
use app::ToolStatus;
use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, FromRequestParts, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use kernel::{Kind, Rejection};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(message))
}

/// The API that tools stand for.
#[derive(Clone)]
pub(super) struct Api(pub Router);

/// Versions of the protocol that are spoken, newest first.
const VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
const PROTOCOL: &str = "mcp-protocol-version";
/// Tools of one page.
const PAGE: usize = 100;

const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const PARSE_ERROR: i64 = -32700;

/// A tool that stands for a route of the API. `{id}` in the path is the argument `task_id`.
struct Builtin {
    name: &'static str,
    method: Method,
    path: &'static str,
}

const fn builtin(name: &'static str, method: Method, path: &'static str) -> Builtin {
    Builtin { name, method, path }
}

const BUILTINS: [Builtin; 6] = [
    builtin("task_submit", Method::POST, "/api/v1/tasks"),
    builtin("task_claim", Method::POST, "/api/v1/tasks/actions/claim"),
    builtin("task_heartbeat", Method::POST, "/api/v1/tasks/{id}/actions/heartbeat"),
    builtin("task_complete", Method::POST, "/api/v1/tasks/{id}/actions/complete"),
    builtin("task_fail", Method::POST, "/api/v1/tasks/{id}/actions/fail"),
    builtin("agents_discover", Method::GET, "/api/v1/discovery"),
];

/// What JSON-RPC answers to a request.
type Answer = Result<Value, (i64, String)>;

/// Speak MCP
///
/// One JSON-RPC message of the Model Context Protocol over streamable HTTP: `initialize`, `ping`, `tools/list`,
/// `tools/call`. Answers are plain JSON; there are no sessions and no stream to listen to.
#[utoipa::path(post, path = "/mcp", tag = "tools", extensions(("x-permission" = json!("discovery.read"))), request_body = Object,
    responses((status = 200, description = "The JSON-RPC answer.", body = Object),
        (status = 202, description = "A notification was taken."),
        (status = 400, description = "Not a JSON-RPC message.", body = Object)))]
async fn message(State(state): State<Arc<EdgeState>>, Extension(api): Extension<Api>, request: Request) -> Response {
    match taken(&state, &api, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

async fn taken(state: &Arc<EdgeState>, api: &Api, request: Request) -> Result<Response, Failure> {
    let (mut parts, body) = request.into_parts();
    check_origin(&parts.headers)?;
    let By(caller) = By::from_request_parts(&mut parts, state).await?;
    let bytes = read(Request::from_parts(parts.clone(), body), state).await?;
    if let Some(version) = parts.headers.get(PROTOCOL).and_then(|v| v.to_str().ok())
        && !VERSIONS.contains(&version)
    {
        let text = format!("Version '{version}' of the protocol is not spoken; {} are.", VERSIONS.join(", "));
        return Ok(rpc(StatusCode::BAD_REQUEST, &Value::Null, Err((INVALID_REQUEST, text))));
    }
    let message = match open_json(&bytes, state) {
        Ok(Value::Object(message)) => message,
        Ok(_) => {
            let text = "Send one JSON-RPC message at a time.".to_owned();
            return Ok(rpc(StatusCode::BAD_REQUEST, &Value::Null, Err((INVALID_REQUEST, text))));
        }
        Err(_) => {
            let text = "The body is not JSON in UTF-8, or nested too deep.".to_owned();
            return Ok(rpc(StatusCode::BAD_REQUEST, &Value::Null, Err((PARSE_ERROR, text))));
        }
    };
    let method = message.get("method").and_then(Value::as_str);
    let (id, method) = match (message.get("id"), method) {
        (Some(id @ (Value::String(_) | Value::Number(_))), Some(method)) => (id, method),
        // A notification, or an answer to something that was not asked: taken, and nothing to do.
        (None, Some(_)) | (Some(_), None) => return Ok(StatusCode::ACCEPTED.into_response()),
        _ => {
            let text = "This is no JSON-RPC request.".to_owned();
            return Ok(rpc(StatusCode::BAD_REQUEST, &Value::Null, Err((INVALID_REQUEST, text))));
        }
    };
    let none = Map::new();
    let params = message.get("params").and_then(Value::as_object).unwrap_or(&none);
    let answer = match method {
        "initialize" => Ok(introduction(params)),
        "ping" => Ok(json!({})),
        "tools/list" => list(state, &caller, params).await?,
        "tools/call" => call(api, &parts, &caller, params).await?,
        _ => Err((METHOD_NOT_FOUND, format!("There is no method '{}'.", method.chars().take(100).collect::<String>()))),
    };
    Ok(rpc(StatusCode::OK, id, answer))
}

fn rpc(status: StatusCode, id: &Value, answer: Answer) -> Response {
    let body = match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err((code, message)) => json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } }),
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A page of another origin must not speak through a visitor's browser.
fn check_origin(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let of_origin = origin.split_once("://").map(|(_, host)| host);
    if of_origin.is_some() && of_origin == text(header::HOST) {
        return Ok(());
    }
    let message = format!("The origin '{}' may not speak to this server.", origin.chars().take(100).collect::<String>());
    let hint = "Speak MCP from a program, or from a page of this server.";
    Err(Rejection::new(Kind::Forbidden, "ORIGIN_REFUSED", message, hint).into())
}

fn introduction(params: &Map<String, Value>) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(VERSIONS[0]);
    json!({
        "protocolVersion": version,
        "capabilities": { "tools": {} },
        "serverInfo": { "name": "keiko", "title": "Keiko", "version": env!("CARGO_PKG_VERSION") },
        "instructions": "Tools named server__tool belong to servers behind Keiko. As an agent: take work with task_claim, keep it \
            with task_heartbeat well before claim.expires_at, end it with task_complete or task_fail, each with the claim's token.",
    })
}

/// The API's tools, then those that can be called of every server, in pages.
async fn list(state: &Arc<EdgeState>, caller: &app::Caller, params: &Map<String, Value>) -> Result<Answer, Failure> {
    let mut tools: Vec<Value> = BUILTINS.iter().map(|builtin| described(builtin, &state.document)).collect();
    let (found, _) = state.app.tools(caller, "").await?;
    tools.extend(found.iter().filter(|listed| listed.status == ToolStatus::Ready).map(|listed| {
        let manifest = &listed.tool.state.manifest;
        let mut tool = json!({ "name": listed.tool.state.name(), "description": manifest.description,
            "inputSchema": manifest.input_schema.value() });
        if let Some(schema) = &manifest.output_schema {
            tool["outputSchema"] = schema.value();
        }
        tool
    }));
    let from = match params.get("cursor").map(|cursor| cursor.as_str().and_then(|c| c.parse::<usize>().ok())) {
        None => 0,
        Some(Some(from)) if from <= tools.len() => from,
        Some(_) => return Ok(Err((INVALID_PARAMS, "This is no cursor of this list.".into()))),
    };
    let mut result = json!({ "tools": tools.iter().skip(from).take(PAGE).collect::<Vec<_>>() });
    if from + PAGE < tools.len() {
        result["nextCursor"] = json!((from + PAGE).to_string());
    }
    Ok(Ok(result))
}

/// A tool as the API document describes its route.
fn described(builtin: &Builtin, document: &Value) -> Value {
    let operation = &document["paths"][builtin.path][builtin.method.as_str().to_lowercase()];
    let text = |field: &str| operation[field].as_str().unwrap_or_default();
    let mut schema = inlined(&operation["requestBody"]["content"]["application/json"]["schema"], document);
    if !schema.is_object() {
        schema = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    }
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = if parameter["in"] == "path" { "task_id" } else { parameter["name"].as_str().unwrap_or_default() };
        let mut property = inlined(&parameter["schema"], document);
        property["description"] = parameter["description"].clone();
        schema["properties"][name] = property;
        if parameter["required"] == true {
            let required = schema["required"].as_array().into_iter().flatten().cloned();
            schema["required"] = required.chain([json!(name)]).collect();
        }
    }
    let description = format!("{}. {}", text("summary"), text("description"));
    json!({ "name": builtin.name, "description": description.trim(), "inputSchema": schema })
}

/// A schema of the document with everything that it refers to in its place.
fn inlined(schema: &Value, document: &Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
            if let Some(target) = reference.and_then(|pointer| document.pointer(pointer)) {
                return inlined(target, document);
            }
            Value::Object(fields.iter().map(|(name, value)| (name.clone(), inlined(value, document))).collect())
        }
        Value::Array(items) => items.iter().map(|item| inlined(item, document)).collect(),
        other => other.clone(),
    }
}

async fn call(api: &Api, parts: &Parts, caller: &app::Caller, params: &Map<String, Value>) -> Result<Answer, Failure> {
    let Some(name) = params.get("name").and_then(Value::as_str) else {
        return Ok(Err((INVALID_PARAMS, "The name of the tool is missing.".into())));
    };
    let arguments = match params.get("arguments") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(_) => return Ok(Err((INVALID_PARAMS, "The arguments must be an object.".into()))),
    };
    if let Some(builtin) = BUILTINS.iter().find(|builtin| builtin.name == name) {
        let (status, body) = ask(api, parts, caller, &builtin.method, builtin.path, arguments).await?;
        return Ok(Ok(told(status, &body)));
    }
    let path = format!("/api/v1/tools/{}/actions/call", utf8_percent_encode(name, NON_ALPHANUMERIC));
    let wrapped = Map::from_iter([("arguments".to_owned(), Value::Object(arguments))]);
    let (status, body) = ask(api, parts, caller, &Method::POST, &path, wrapped).await?;
    if !status.is_success() {
        return Ok(match body["error"]["code"].as_str() {
            Some("TOOL_NOT_FOUND") => Err((INVALID_PARAMS, format!("There is no tool '{name}'."))),
            _ => Ok(told(status, &body)),
        });
    }
    let called = &body["data"]["attributes"];
    let mut result = json!({ "content": called["content"], "isError": called["is_error"] });
    if !called["structured_content"].is_null() {
        result["structuredContent"] = called["structured_content"].clone();
    }
    Ok(Ok(result))
}

/// An answer of the API as a tool's result: also a refusal is one, so that a model can read it.
fn told(status: StatusCode, body: &Value) -> Value {
    let (said, is_error) = if status.is_success() { (&body["data"], false) } else { (&body["error"], true) };
    let mut result = json!({ "content": [{ "type": "text", "text": said.to_string() }], "isError": is_error });
    if !is_error {
        result["structuredContent"] = json!({ "data": said });
    }
    result
}

/// Sends a request to the API as whoever sent the message.
async fn ask(
    api: &Api,
    parts: &Parts,
    caller: &app::Caller,
    method: &Method,
    path: &str,
    mut arguments: Map<String, Value>,
) -> Result<(StatusCode, Value), Failure> {
    let mut path = path.to_owned();
    if path.contains("{id}") {
        let id = arguments.remove("task_id");
        let id = id.as_ref().and_then(Value::as_str).filter(|id| !id.is_empty()).unwrap_or("-");
        path = path.replace("{id}", &utf8_percent_encode(id, NON_ALPHANUMERIC).to_string());
    }
    let mut body = Body::empty();
    if *method == Method::GET {
        let pairs = arguments.iter().map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        path = format!("{path}?{}", form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish());
    } else {
        body = Body::from(Value::Object(arguments).to_string());
    }
    let mut request = Request::builder().method(method).uri(&path).body(body).map_err(|_| Failure::internal())?;
    for name in ["x-request-id", "traceparent", "user-agent"] {
        if let Some(value) = parts.headers.get(name) {
            request.headers_mut().insert(name, value.clone());
        }
    }
    request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    // A token for this endpoint only is good for what the endpoint does by itself.
    request.extensions_mut().insert(Recognised(Arc::new(caller.actor.clone())));
    if let Some(peer) = parts.extensions.get::<axum::extract::ConnectInfo<std::net::SocketAddr>>() {
        request.extensions_mut().insert(*peer);
    }
    let Ok(response) = api.0.clone().oneshot(request).await;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|_| Failure::internal())?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}
