//! Tasks that servers make of calls, as the extension of the newest version has them and as version 2025-11-25 does.

use super::door::Visit;
use super::legacy::{asked, client_of};
use super::message::{
    Answer, CAPABILITY_MISSING, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, Params, RpcError, carried, notification,
    translated,
};
use super::sessions::Session;
use app::RouteClass;
use app::mcp::task::{EXTENSION, OLDER, RELATED, RENAMED, is_over, pause, status};
use app::mcp::{AskKind, McpAsk, McpClient, TaskAsk, Tasks};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kernel::Json;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Tasks that one client follows on one stream, and how long each is left alone at least.
const FOLLOWED_MAX: usize = 32;
const LOOK_MIN: Duration = Duration::from_secs(1);
/// Looks in a row that may go wrong.
const FAILURES_MAX: u32 = 5;
/// Between two looks for somebody who waits, at least; and how often a task may ask them.
const WAIT_MIN: Duration = Duration::from_millis(100);
const ROUNDS_MAX: usize = 32;
/// How long a server gets to call a task off.
const CALLING_OFF: Duration = Duration::from_secs(2);

/// A client that did not say that it knows tasks asks about them.
pub(super) fn undeclared() -> RpcError {
    RpcError::new(CAPABILITY_MISSING, format!("Say in each request that you know the extension '{EXTENSION}'."))
        .with(json!({ "requiredCapabilities": { "extensions": { EXTENSION: {} } } }))
}

/// The result of a call that became a task.
pub(super) fn made(mut task: Map<String, Value>) -> String {
    task.insert("resultType".into(), json!("task"));
    Value::Object(task).to_string()
}

/// The same, as version 2025-11-25 has it.
pub(super) fn made_older(task: Map<String, Value>) -> String {
    json!({ "task": renamed(task) }).to_string()
}

/// A task in the words of version 2025-11-25, which tells apart how it is and how it came out.
fn renamed(mut task: Map<String, Value>) -> Map<String, Value> {
    for (older, newer) in RENAMED {
        if let Some(value) = task.remove(newer) {
            task.insert(older.to_owned(), value);
        }
    }
    let result = task.remove("result").unwrap_or_default();
    if result["isError"] == true {
        task.insert("status".into(), json!("failed"));
    }
    for newer in ["error", "inputRequests", "resultType"] {
        task.remove(newer);
    }
    task
}

/// That a client of version 2025-11-25 wants a task, for a tool that makes some.
pub(super) fn wished(
    visit: &Visit,
    session: Option<&Arc<Session>>,
    ask: &McpAsk,
    params: &Params,
) -> Result<Option<Json>, RpcError> {
    let has_tasks = ask.kind == AskKind::Tool && session.is_some_and(|session| session.facts.version == OLDER);
    let Some(wish) = params.task.as_deref().filter(|_| has_tasks) else { return Ok(None) };
    if !wish.get().starts_with('{') {
        return Err(RpcError::new(INVALID_PARAMS, "'task' must be an object."));
    }
    let view = visit.state.app.mcp_view(&visit.caller, visit.door);
    let makes_none = view.is_ok_and(|view| view.tool(&ask.name).is_none_or(|tool| !tool.makes_tasks));
    if makes_none {
        return Err(RpcError::new(METHOD_NOT_FOUND, "This tool makes no tasks: call it without 'task'."));
    }
    Ok(Some(carried(wish)))
}

impl Visit {
    async fn about_task(&self, params: &Params, ask: TaskAsk, client: &McpClient) -> Result<Map<String, Value>, RpcError> {
        let id = params.task_id.as_deref().ok_or_else(|| RpcError::new(INVALID_PARAMS, "'taskId' is missing."))?;
        let task = self.state.app.mcp_task(&self.caller, self.door, id, ask, client).await;
        task.map_err(|rejection| RpcError::of(&rejection, self.is_modern, false))
    }

    /// `tasks/get`, `tasks/update` and `tasks/cancel` of the newest version.
    pub async fn modern_task(&self, method: &str, params: &Params, client: &McpClient) -> Answer {
        if client.tasks != Tasks::Followed {
            return Err(undeclared());
        }
        let ask = match method {
            "tasks/get" => TaskAsk::Get,
            "tasks/cancel" => TaskAsk::Cancel,
            _ => {
                let missing = || RpcError::new(INVALID_PARAMS, "'inputResponses' is missing.");
                TaskAsk::Update(params.input_responses.clone().ok_or_else(missing)?)
            }
        };
        let mut result = self.about_task(params, ask, client).await?;
        result.insert("resultType".into(), json!("complete"));
        Ok(Value::Object(result).to_string())
    }
}

/// Those of the tasks that a client wants to follow which it was given, up to as many as one may follow.
pub(super) fn followed(visit: &Visit, filter: &Map<String, Value>) -> BTreeSet<String> {
    let wanted = filter.get("taskIds").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let known = wanted.filter(|id| visit.state.app.is_task_name(&visit.caller, visit.door, id));
    known.take(FOLLOWED_MAX).map(str::to_owned).collect()
}

/// Tells how tasks are, now and whenever that changes. `tag` is the `_meta` of each message. Ends when one cannot be looked at any
/// more, which its client is to notice; and never when all are over, for they were told of.
pub(super) async fn tell(visit: &Visit, client: &McpClient, ids: BTreeSet<String>, tag: &Value, out: &mpsc::Sender<String>) {
    let follows = ids.into_iter().map(|id| Box::pin(follow(visit, client, id, tag, out)));
    let mut follows: FuturesUnordered<_> = follows.collect();
    while let Some(is_over) = follows.next().await {
        if !is_over {
            return;
        }
    }
    std::future::pending().await
}

/// Follows one task; whether it came to its end.
async fn follow(visit: &Visit, client: &McpClient, id: String, tag: &Value, out: &mpsc::Sender<String>) -> bool {
    let params = Params { task_id: Some(id), ..Params::default() };
    let (mut last, mut failures) = (None, 0);
    loop {
        visit.state.app.admit_in_time(&visit.caller.actor, RouteClass::Call).await;
        let task = match visit.about_task(&params, TaskAsk::Follow, client).await {
            Ok(task) => task,
            Err(_) if failures < FAILURES_MAX => {
                failures += 1;
                tokio::time::sleep(LOOK_MIN * failures).await;
                continue;
            }
            Err(_) => return false,
        };
        failures = 0;
        let (is_over, pause) = (is_over(status(&task)), pause(&task).max(LOOK_MIN));
        let asks = task.get("inputRequests").and_then(Value::as_object).map(|asks| asks.keys().cloned().collect::<Vec<_>>());
        let now = (task.get("status").cloned(), task.get("lastUpdatedAt").cloned(), task.get("statusMessage").cloned(), asks);
        if last.as_ref() != Some(&now) {
            last = Some(now);
            let mut told = Value::Object(task);
            told["_meta"] = tag.clone();
            if out.send(notification("notifications/tasks", &told)).await.is_err() {
                return false;
            }
        }
        if is_over {
            return true;
        }
        tokio::time::sleep(pause).await;
    }
}

/// `tasks/get`, `tasks/result` and `tasks/cancel` of version 2025-11-25.
pub(super) async fn older(
    visit: &Visit,
    session: Option<&Arc<Session>>,
    method: &str,
    params: &Params,
    out: &mpsc::Sender<String>,
) -> Answer {
    let client = McpClient { tasks: Tasks::Followed, ..client_of(session) };
    match method {
        "tasks/get" => Ok(Value::Object(renamed(visit.about_task(params, TaskAsk::Get, &client).await?)).to_string()),
        "tasks/cancel" => called_off(visit, params, &client).await,
        _ => result(visit, session, params, &client, out).await,
    }
}

/// Calls a task off, and tells how it is then: version 2025-11-25 wants it to be over.
async fn called_off(visit: &Visit, params: &Params, client: &McpClient) -> Answer {
    let before = visit.about_task(params, TaskAsk::Get, client).await?;
    if is_over(status(&before)) {
        let message = format!("The task cannot be called off: it is '{}' already.", status(&before));
        return Err(RpcError::new(INVALID_PARAMS, message));
    }
    visit.about_task(params, TaskAsk::Cancel, client).await?;
    let begun = Instant::now();
    let mut task = visit.about_task(params, TaskAsk::Get, client).await?;
    while !is_over(status(&task)) && begun.elapsed() < CALLING_OFF {
        tokio::time::sleep(pause(&task).min(CALLING_OFF)).await;
        task = visit.about_task(params, TaskAsk::Get, client).await?;
    }
    Ok(Value::Object(renamed(task)).to_string())
}

/// Waits for a task to come out; asks the client what it wants to know meanwhile.
async fn result(
    visit: &Visit,
    session: Option<&Arc<Session>>,
    params: &Params,
    client: &McpClient,
    out: &mpsc::Sender<String>,
) -> Answer {
    let (mut known, mut rounds): (Vec<String>, usize) = (vec![], 0);
    while rounds < ROUNDS_MAX && visit.state.app.mcp_may_still(&visit.caller, visit.door).await {
        let mut task = visit.about_task(params, TaskAsk::Get, client).await?;
        match status(&task) {
            "completed" => {
                let mut result = task.remove("result").unwrap_or_default();
                relate(&mut result, params);
                return Ok(result.to_string());
            }
            "failed" => {
                let error = task.remove("error").unwrap_or_default();
                let message = error["message"].as_str().unwrap_or("The task failed.").to_owned();
                let code = error["code"].as_i64().unwrap_or(INTERNAL_ERROR);
                return Err(RpcError { code: translated(code, false), message, data: error.get("data").cloned() });
            }
            "cancelled" => return Err(RpcError::new(INTERNAL_ERROR, "The task was called off.")),
            _ => {}
        }
        let mut requests = match task.get("inputRequests") {
            Some(Value::Object(requests)) => requests.clone(),
            _ => Map::new(),
        };
        requests.retain(|name, _| !known.contains(name));
        match session {
            Some(session) if !requests.is_empty() => {
                rounds += 1;
                known.extend(requests.keys().cloned());
                for request in requests.values_mut().filter_map(Value::as_object_mut) {
                    relate(request.entry("params").or_insert_with(|| json!({})), params);
                }
                let (responses, refused) = asked(session, requests, out).await;
                if !refused.is_empty() {
                    visit.about_task(params, TaskAsk::Cancel, client).await?;
                    return Err(RpcError::new(INTERNAL_ERROR, "The task asked what you refused to answer; it was called off."));
                }
                visit.about_task(params, TaskAsk::Update(responses.unwrap_or_default()), client).await?;
            }
            _ => tokio::time::sleep(pause(&task).max(WAIT_MIN)).await,
        }
        visit.state.app.admit_in_time(&visit.caller.actor, RouteClass::Call).await;
    }
    Err(RpcError::new(INTERNAL_ERROR, "The task asks again and again, or you may not go on."))
}

/// Says of a result, or of the parameters of a question, which task it belongs to.
fn relate(value: &mut Value, params: &Params) {
    let Some(members) = value.as_object_mut() else { return };
    let meta = members.entry("_meta").or_insert_with(|| json!({}));
    if let Some(meta) = meta.as_object_mut() {
        meta.insert(RELATED.to_owned(), json!({ "taskId": params.task_id }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_sends_in_odd_forms_is_related_to_nothing() {
        let params = Params { task_id: Some("t".into()), ..Params::default() };
        for odd in [json!([]), json!("x"), json!({ "_meta": [] }), Value::Null] {
            let mut value = odd.clone();
            relate(&mut value, &params);
            assert_eq!(value, odd);
        }
        let mut value = json!({ "_meta": { "a": 1 } });
        relate(&mut value, &params);
        assert_eq!(value["_meta"], json!({ "a": 1, RELATED: { "taskId": "t" } }));
    }

    #[test]
    fn a_task_is_told_in_older_words() {
        let task =
            json!({ "taskId": "t", "status": "completed", "ttlMs": 5, "pollIntervalMs": 7, "result": { "isError": true } });
        let Value::Object(task) = task else { unreachable!() };
        let told = Value::Object(renamed(task));
        assert_eq!(told, json!({ "taskId": "t", "status": "failed", "ttl": 5, "pollInterval": 7 }));
    }
}
