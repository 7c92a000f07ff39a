//! Keiko's own tools: the parts of the API that an agent needs which speaks nothing but MCP. A tool is carried out as the
//! request to the API that it stands for, so that permissions, limits and the record are the same.

use super::Api;
use crate::http::access::Recognised;
use crate::http::envelope::Failure;
use axum::body::Body;
use axum::http::{Method, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tower::ServiceExt;

/// A tool that stands for a route of the API. `{id}` in the path is the argument `task_id`.
pub(super) struct Builtin {
    pub name: &'static str,
    method: Method,
    path: &'static str,
}

const fn builtin(name: &'static str, method: Method, path: &'static str) -> Builtin {
    Builtin { name, method, path }
}

static BUILTINS: [Builtin; 6] = [
    builtin("task_submit", Method::POST, "/api/v1/tasks"),
    builtin("task_claim", Method::POST, "/api/v1/tasks/actions/claim"),
    builtin("task_heartbeat", Method::POST, "/api/v1/tasks/{id}/actions/heartbeat"),
    builtin("task_complete", Method::POST, "/api/v1/tasks/{id}/actions/complete"),
    builtin("task_fail", Method::POST, "/api/v1/tasks/{id}/actions/fail"),
    builtin("agents_discover", Method::GET, "/api/v1/discovery"),
];

/// The built-in tool with this name.
pub(super) fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().find(|builtin| builtin.name == name)
}

/// Their entries in a list, as JSON.
pub(super) fn entries(document: &Value) -> Vec<String> {
    BUILTINS.iter().map(|builtin| described(builtin, document).to_string()).collect()
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

/// Carries a built-in tool out.
pub(super) async fn call(
    api: &Api,
    parts: &Parts,
    caller: &app::Caller,
    builtin: &Builtin,
    arguments: Map<String, Value>,
) -> Result<Value, Failure> {
    let (status, body) = ask(api, parts, caller, builtin, arguments).await?;
    Ok(told(status, &body))
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
    builtin: &Builtin,
    mut arguments: Map<String, Value>,
) -> Result<(StatusCode, Value), Failure> {
    let mut path = builtin.path.to_owned();
    if path.contains("{id}") {
        let id = arguments.remove("task_id");
        let id = id.as_ref().and_then(Value::as_str).filter(|id| !id.is_empty()).unwrap_or("-");
        path = path.replace("{id}", &utf8_percent_encode(id, NON_ALPHANUMERIC).to_string());
    }
    let mut body = Body::empty();
    if builtin.method == Method::GET {
        let pairs = arguments.iter().map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        path = format!("{path}?{}", form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish());
    } else {
        body = Body::from(Value::Object(arguments).to_string());
    }
    let mut request =
        axum::http::Request::builder().method(builtin.method.clone()).uri(&path).body(body).map_err(|_| Failure::internal())?;
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
