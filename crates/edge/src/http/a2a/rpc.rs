//! The JSON-RPC binding: one route, one request per message, streams as server-sent events.

use super::errors::{A2aError, INVALID_REQUEST, METHOD_NOT_FOUND};
use super::request::{Operation, Params};
use super::visit::{Outcome, Visit, check_tenant};
use super::{events, json_of, received};
use crate::http::envelope::Failure;
use crate::http::state::EdgeState;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Arc<EdgeState>> {
    OpenApiRouter::new().routes(routes!(speak))
}

/// Speak A2A by JSON-RPC
///
/// One request of A2A 1.0: SendMessage, SendStreamingMessage, GetTask, ListTasks, CancelTask, SubscribeToTask,
/// CreateTaskPushNotificationConfig, GetTaskPushNotificationConfig, ListTaskPushNotificationConfigs,
/// DeleteTaskPushNotificationConfig, GetExtendedAgentCard. Each needs its own permission beside this one.
#[utoipa::path(post, path = "/a2a/{door}", tag = "a2a", extensions(("x-permission" = json!("discovery.read"))),
    params(("door" = String, Path, description = "`fleet`, or an agent by id or name")), request_body = Object,
    responses((status = 200, description = "The JSON-RPC answer, or a stream of them.", body = Object)))]
async fn speak(State(state): State<Arc<EdgeState>>, Path(door): Path<String>, request: Request) -> Result<Response, Failure> {
    let (visit, version, bytes) = received(&state, &door, request).await?;
    let message = match json_of(&bytes, &state) {
        Ok(message) => message,
        Err(error) => return Ok(answer(&Value::Null, Err(error))),
    };
    let id = message.get("id").cloned().unwrap_or(Value::Null);
    let asked = version.and_then(|()| operation(message, &visit));
    match asked {
        Ok(asked) => match visit.perform(asked).await {
            Ok(Outcome::One(result)) => Ok(answer(&id, Ok(result))),
            Ok(Outcome::Stream(telling)) => Ok(events(*telling, move |update| worded(&id, Ok(update)))),
            Err(error) => Ok(answer(&id, Err(error))),
        },
        Err(error) => Ok(answer(&id, Err(error))),
    }
}

/// What a message asks for.
fn operation(mut message: Value, visit: &Visit) -> Result<Operation, A2aError> {
    let is_request = message["jsonrpc"] == "2.0" && matches!(message["id"], Value::String(_) | Value::Number(_));
    let method = message["method"].as_str().filter(|_| is_request).map(str::to_owned);
    let method = method.ok_or_else(|| A2aError::protocol(INVALID_REQUEST, "This is no request of JSON-RPC 2.0 with an id."))?;
    let params = match message["params"].take() {
        Value::Null => Params::default(),
        params => Params::read(params)?,
    };
    check_tenant(&params, &visit.caller)?;
    match method.as_str() {
        "SendMessage" => Ok(Operation::Send(Box::new(params.send()?))),
        "SendStreamingMessage" => Ok(Operation::SendStreaming(Box::new(params.send()?))),
        "GetTask" => params.get(),
        "ListTasks" => params.list(),
        "CancelTask" => params.cancel(),
        "SubscribeToTask" => params.subscribe(),
        "CreateTaskPushNotificationConfig" => params.create_push(),
        "GetTaskPushNotificationConfig" => params.get_push(),
        "ListTaskPushNotificationConfigs" => params.list_pushes(),
        "DeleteTaskPushNotificationConfig" => params.delete_push(),
        "GetExtendedAgentCard" => Ok(Operation::Card),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(A2aError::protocol(METHOD_NOT_FOUND, format!("There is no method '{other}' in A2A 1.0.")))
        }
    }
}

fn worded(id: &Value, result: Result<Value, A2aError>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error.rpc_json() }),
    }
}

fn answer(id: &Value, result: Result<Value, A2aError>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], worded(id, result).to_string()).into_response()
}
