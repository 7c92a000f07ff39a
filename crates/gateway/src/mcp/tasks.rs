//! Tasks: work that a server does in its own time, while its client looks how far it is. They are told as the extension of the
//! newest version has them; what a server of 2025-11-25 says of its own is put so.

use super::{Answers, Ask, CallError, Client, Connection, Method, Outcome, Resume, Tasks, WireError};
use super::{can_be_asked, complete};
use crate::Spec;
use kernel::Json;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::ops::Deref;
use std::time::Duration;

/// The name by which clients and servers of the newest version say that they know tasks.
pub const EXTENSION: &str = "io.modelcontextprotocol/tasks";
/// The one older version that has tasks.
pub const OLDER: &str = "2025-11-25";
/// The member of `_meta` by which that version says which task a message belongs to.
pub const RELATED: &str = "io.modelcontextprotocol/related-task";
const STATUSES: [&str; 5] = ["working", "input_required", "completed", "failed", "cancelled"];
/// Of a server's own id of a task.
const ID_BYTES_MAX: usize = 1_024;
const TIME_CHARS_MAX: usize = 64;
/// What that version calls otherwise, in milliseconds too: its word, and the newest one's.
pub const RENAMED: [(&str, &str); 2] = [("ttl", "ttlMs"), ("pollInterval", "pollIntervalMs")];
/// How long an older server that waits for its client gets to ask: it is refused, for nobody can be asked.
const ASKING: Duration = Duration::from_secs(1);

/// Between two looks at a task that says nothing of it, and at least and most.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Looks in a row that may go wrong.
const FAILURES_MAX: u32 = 3;
const CALL_OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// The error of a server that does a thing only as a task.
const CAPABILITY_MISSING: i64 = -32_021;
const INTERNAL_ERROR: i64 = -32_603;

/// How a task is.
pub fn status(task: &Map<String, Value>) -> &str {
    task.get("status").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a task will not change any more.
pub fn is_over(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}

/// How long to wait before the next look at a task.
pub fn pause(task: &Map<String, Value>) -> Duration {
    let wanted = task.get("pollIntervalMs").and_then(Value::as_u64);
    wanted.map_or(PAUSE, |ms| Duration::from_millis(ms).clamp(PAUSE_MIN, PAUSE_MAX))
}

/// Whether a server refused a call because it makes a task of it, or nothing.
pub(crate) fn is_wanted(error: &WireError) -> bool {
    let WireError::Rpc(error) = error else { return false };
    error.code == CAPABILITY_MISSING && error.data["requiredCapabilities"]["extensions"].get(EXTENSION).is_some()
}

/// The task in an answer of the newest version: the one that a call became, or the one that was asked for.
pub(crate) fn read(answer: &RawValue, asked: Option<&str>, client: &Client) -> Result<Map<String, Value>, CallError> {
    let task = serde_json::from_str(answer.get()).map_err(|e| CallError::Unusable(e.to_string()))?;
    checked(task, asked, client)
}

/// A task as it may be shown.
fn checked(mut task: Map<String, Value>, asked: Option<&str>, client: &Client) -> Result<Map<String, Value>, CallError> {
    let unusable = |problem: &str| CallError::Unusable(format!("its task cannot be used: {problem}"));
    let text = |name: &str| task.get(name).and_then(Value::as_str).unwrap_or_default();
    let id = text("taskId");
    if !(1..=ID_BYTES_MAX).contains(&id.len()) || id.contains(char::is_control) || asked.is_some_and(|asked| asked != id) {
        return Err(unusable("it has no id, or another one than was asked for"));
    }
    if !STATUSES.contains(&text("status")) {
        return Err(unusable("its status is not known"));
    }
    if ["createdAt", "lastUpdatedAt"].iter().any(|name| !(1..=TIME_CHARS_MAX).contains(&text(name).chars().count())) {
        return Err(unusable("it does not say since when it is so"));
    }
    let is_whole =
        |name: &str| task.get(name).is_none_or(|value| value.as_u64().is_some() || (name == "ttlMs" && value.is_null()));
    if !is_whole("ttlMs") || !is_whole("pollIntervalMs") {
        return Err(unusable("its times are no whole milliseconds"));
    }
    let is_object = |name: &str| task.get(name).is_some_and(Value::is_object);
    match text("status") {
        "completed" if asked.is_some() && !is_object("result") => return Err(unusable("it is completed without a result")),
        "completed" if !is_complete(task.get("result")) => return Err(unusable("its result is not complete")),
        "failed" if asked.is_some() && !is_object("error") => return Err(unusable("it failed without an error")),
        "input_required" if asked.is_some() && !is_object("inputRequests") => {
            return Err(unusable("it wants input, and does not say which"));
        }
        _ => {}
    }
    for request in task.get("inputRequests").and_then(Value::as_object).into_iter().flat_map(Map::values) {
        let method = request["method"].as_str().unwrap_or_default();
        if !can_be_asked(client, method) {
            let shown: String = method.chars().take(100).collect();
            return Err(unusable(&format!("it asks for '{shown}', which this client cannot be asked")));
        }
    }
    if asked.is_none() {
        // How it came out is asked for, and looked at then.
        task.retain(|name, _| !matches!(name.as_str(), "result" | "error" | "inputRequests"));
    }
    task.remove("resultType");
    task.entry("ttlMs").or_insert(Value::Null);
    Ok(task)
}

/// Whether a result is one, and asks for nothing.
fn is_complete(result: Option<&Value>) -> bool {
    let kind = result.and_then(|result| result.get("resultType"));
    kind.is_none_or(|kind| kind == "complete")
}

/// Without the secrets that a server may have repeated in what it says of a task.
pub(crate) fn redacted(mut task: Map<String, Value>, spec: &Spec) -> Map<String, Value> {
    for name in ["statusMessage", "error"] {
        if let Some(said) = task.get_mut(name) {
            *said = serde_json::from_str(&spec.redact(&said.to_string())).unwrap_or_default();
        }
    }
    task
}

/// What a server of 2025-11-25 says of a task, in the words of the newest version.
fn renamed(mut task: Map<String, Value>) -> Map<String, Value> {
    for (older, newer) in RENAMED {
        if let Some(value) = task.remove(older) {
            task.insert(newer.to_owned(), value);
        }
    }
    task.remove("_meta");
    task
}

/// What a call came to that a server of 2025-11-25 was to make a task of: it may have answered at once.
fn of_older(answer: &RawValue, client: &Client) -> Result<Outcome, CallError> {
    #[derive(Deserialize)]
    struct Made {
        task: Map<String, Value>,
    }
    match serde_json::from_str::<Made>(answer.get()) {
        Ok(Made { task }) => checked(renamed(task), None, client).map(Outcome::Task),
        Err(_) => complete(answer).map(Outcome::Complete),
    }
}

/// Has a server of 2025-11-25 make a task of a call, asks about one, or calls it off, as the newest version has it.
pub(crate) async fn ask_older(
    connection: &Connection,
    ask: &Ask,
    approved: Option<&str>,
    client: &Client,
) -> Result<Outcome, CallError> {
    match ask.method {
        Method::CallTool => of_older(&connection.hand_on(ask, approved, &[], client, None).await?, client),
        // It asks its client on a connection, and over this one nobody can be asked.
        Method::UpdateTask => Ok(Outcome::Complete(Json::empty_object())),
        Method::CancelTask => cancel_older(connection, ask, client).await,
        _ => get_older(connection, ask, client).await.map(Outcome::Task),
    }
}

async fn cancel_older(connection: &Connection, ask: &Ask, client: &Client) -> Result<Outcome, CallError> {
    match connection.hand_on(ask, None, &[], client, None).await {
        Ok(_) => {}
        // It refuses to call off what is over, which the newest version does not.
        Err(refused @ WireError::Rpc(_)) => drop(looked(connection, ask, client).await.map_err(|_| CallError::from(refused))?),
        Err(error) => return Err(error.into()),
    }
    Ok(Outcome::Complete(Json::empty_object()))
}

/// A task with its result, which an older version tells apart from how it is.
async fn get_older(connection: &Connection, ask: &Ask, client: &Client) -> Result<Map<String, Value>, CallError> {
    let mut task = looked(connection, ask, client).await?;
    match status(&task) {
        "completed" | "failed" => match connection.task_result(&ask.name).await {
            Ok(result) => {
                task.insert("status".to_owned(), json!("completed"));
                task.insert("result".to_owned(), without_relation(&result)?);
            }
            Err(WireError::Rpc(error)) => {
                let mut said = json!({ "code": error.code, "message": error.message });
                if !error.data.is_null() {
                    said["data"] = error.data;
                }
                task.insert("status".to_owned(), json!("failed"));
                task.insert("error".to_owned(), said);
            }
            Err(error) => return Err(error.into()),
        },
        "input_required" => {
            // It asks whoever waits for the result.
            let _ = tokio::time::timeout(ASKING, connection.task_result(&ask.name)).await;
            task.insert("status".to_owned(), json!("working"));
        }
        _ => {}
    }
    checked(task, Some(&ask.name), client)
}

async fn looked(connection: &Connection, ask: &Ask, client: &Client) -> Result<Map<String, Value>, CallError> {
    let look = Ask { method: Method::GetTask, ..ask.clone() };
    let answer = connection.hand_on(&look, None, &[], client, None).await?;
    let task = serde_json::from_str(answer.get()).map_err(|e| CallError::Unusable(e.to_string()))?;
    Ok(renamed(task))
}

fn without_relation(result: &RawValue) -> Result<Value, CallError> {
    let result: Value = serde_json::from_str(result.get()).map_err(|e| CallError::Unusable(e.to_string()))?;
    let Value::Object(mut result) = result else { return Err(CallError::Unusable("its result is no object".into())) };
    if let Some(Value::Object(meta)) = result.get_mut("_meta") {
        meta.remove(RELATED);
        if meta.is_empty() {
            result.remove("_meta");
        }
    }
    Ok(Value::Object(result))
}

/// Goes on with a task that waits for its client: it gets the answers, and is waited for again.
pub(crate) async fn resume<C>(connection: C, ask: &Ask, client: &Client) -> Result<Outcome, CallError>
where
    C: Deref<Target = Connection> + Send + Sync + 'static,
{
    let Some(Answers { responses, refused, resume: Resume::Task { id, asked } }) = ask.answers.clone() else {
        return Err(CallError::Gone);
    };
    let client = Client { tasks: Tasks::Followed, ..client.clone() };
    let unfinished = Unfinished { id, client, connection: Some(connection) };
    if !refused.is_empty() {
        return Err(CallError::Unusable("it asks what its client refused to answer".into()));
    }
    if !responses.is_empty() {
        let update = Ask::of_task(Method::UpdateTask, unfinished.id.clone(), Some(responses));
        let told = unfinished.connection()?.hand_on(&update, None, &[], &unfinished.client, None).await;
        told.map_err(|error| begun(error.into()))?;
    }
    unfinished.wait(asked).await
}

/// Waits for a task in the place of a client that cannot follow it.
pub(crate) async fn wait<C>(connection: C, task: Map<String, Value>, client: &Client) -> Result<Outcome, CallError>
where
    C: Deref<Target = Connection> + Send + Sync + 'static,
{
    let id = task.get("taskId").and_then(Value::as_str).unwrap_or_default().to_owned();
    let client = Client { tasks: Tasks::Followed, ..client.clone() };
    Unfinished { id, client, connection: Some(connection) }.wait(vec![]).await
}

/// What an error means when the work was begun: that a look at it was not sent does not say that nothing was done.
fn begun(error: CallError) -> CallError {
    match error {
        CallError::Locked(reason) | CallError::NotReady(reason) | CallError::Unreached(reason) => CallError::Interrupted(reason),
        CallError::Changed => CallError::Interrupted("it is another server now".into()),
        error => error,
    }
}

/// A task that is waited for. It is called off when nobody waits any more.
struct Unfinished<C: Deref<Target = Connection> + Send + Sync + 'static> {
    id: String,
    client: Client,
    connection: Option<C>,
}

impl<C: Deref<Target = Connection> + Send + Sync + 'static> Unfinished<C> {
    fn connection(&self) -> Result<&Connection, CallError> {
        self.connection.as_deref().ok_or(CallError::Gone)
    }

    /// How it is; a look that goes wrong is no reason to give the work up.
    async fn looked(&self) -> Result<Map<String, Value>, CallError> {
        let mut failures = 0;
        loop {
            match look(self.connection()?, &self.id, &self.client).await {
                Err(CallError::Lost(_) | CallError::Unreached(_) | CallError::Interrupted(_)) if failures < FAILURES_MAX => {
                    failures += 1
                }
                looked => return looked.map_err(begun),
            }
            tokio::time::sleep(PAUSE * failures).await;
        }
    }

    async fn wait(mut self, mut asked: Vec<String>) -> Result<Outcome, CallError> {
        loop {
            let mut task = self.looked().await?;
            let outcome = match status(&task) {
                "completed" => {
                    Ok(Outcome::Complete(Json::of(&task.remove("result")).map_err(|e| CallError::Unusable(e.to_string()))?))
                }
                "failed" => Err(failure(task.remove("error").unwrap_or_default())),
                "cancelled" => Err(CallError::Interrupted("it called its task off".into())),
                _ => {
                    let mut requests = match task.remove("inputRequests") {
                        Some(Value::Object(requests)) => requests,
                        _ => Map::new(),
                    };
                    requests.retain(|name, _| !asked.contains(name));
                    if requests.is_empty() {
                        tokio::time::sleep(pause(&task)).await;
                        continue;
                    }
                    asked.extend(requests.keys().cloned());
                    Ok(Outcome::InputRequired { requests, resume: Resume::Task { id: self.id.clone(), asked } })
                }
            };
            // It is over, or somebody comes back for it.
            self.connection = None;
            return outcome;
        }
    }
}

impl<C: Deref<Target = Connection> + Send + Sync + 'static> Drop for Unfinished<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let off = Ask::of_task(Method::CancelTask, std::mem::take(&mut self.id), None);
            let client = std::mem::take(&mut self.client);
            tokio::spawn(async move {
                // It ends by itself otherwise, when its time is over.
                let called_off = connection.hand_on(&off, None, &[], &client, None);
                let _ = tokio::time::timeout(CALL_OFF_TIMEOUT, called_off).await;
            });
        }
    }
}

/// How a task is, at a server of either version.
async fn look(connection: &Connection, id: &str, client: &Client) -> Result<Map<String, Value>, CallError> {
    let ask = Ask::of_task(Method::GetTask, id.to_owned(), None);
    if !connection.is_modern() {
        return get_older(connection, &ask, client).await;
    }
    let answer = connection.hand_on(&ask, None, &[], client, None).await?;
    read(&answer, Some(id), client)
}

/// The error that a task ended with.
fn failure(error: Value) -> CallError {
    let code = error["code"].as_i64().unwrap_or(INTERNAL_ERROR);
    let message = error["message"].as_str().unwrap_or("its task failed").chars().take(1_000).collect();
    CallError::Refused(code, message, Box::new(error["data"].clone()))
}

impl Ask {
    /// About a task, by the server's own id.
    pub fn of_task(method: Method, id: String, responses: Option<Map<String, Value>>) -> Self {
        let answers = responses.map(|responses| Answers { responses, ..Answers::default() });
        Ask { method, name: id, params: vec![], meta: Map::new(), answers, task: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(value: &Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(value).unwrap()
    }

    fn task(status: &str) -> Value {
        json!({ "taskId": "t", "status": status, "createdAt": "2026-07-28T10:00:00Z",
            "lastUpdatedAt": "2026-07-28T10:00:00.5Z", "ttlMs": 60_000, "resultType": "task" })
    }

    #[test]
    fn a_task_is_shown_when_it_says_what_it_must() {
        let client = Client::default();
        let read = read(&answer(&task("working")), Some("t"), &client).unwrap();
        assert_eq!(read.get("taskId"), Some(&json!("t")));
        assert!(!read.contains_key("resultType"));
    }

    #[test]
    fn what_comes_of_a_task_asks_for_nothing_and_tells_no_secret() {
        let client = Client::default();
        let mut over = task("completed");
        over["result"] = json!({ "resultType": "input_required", "inputRequests": {} });
        assert!(read(&answer(&over), Some("t"), &client).is_err());
        // What a task is made with is not how it came out.
        over["result"] = json!({ "content": [] });
        assert!(!read(&answer(&over), None, &client).unwrap().contains_key("result"));
        assert!(read(&answer(&over), Some("t"), &client).unwrap().contains_key("result"));
        let mut failed = task("failed");
        failed["error"] = json!({ "code": 1, "message": "401 for s3cr3t-value" });
        let env = vec![("TOKEN".to_owned(), "s3cr3t-value".to_owned())];
        let told = redacted(
            read(&answer(&failed), Some("t"), &client).unwrap(),
            &Spec::Stdio { command: String::new(), args: vec![], env },
        );
        assert_eq!(told["error"]["message"], "401 for ********");
    }

    #[test]
    fn a_task_that_lies_is_refused() {
        let client = Client::default();
        let mut bad = vec![(json!({}), None), (task("dozing"), None), (task("working"), Some("other"))];
        bad.extend(["completed", "failed", "input_required"].map(|status| (task(status), Some("t"))));
        let changed = [("taskId", json!("")), ("taskId", json!("a\nb")), ("createdAt", json!(7)), ("ttlMs", json!(1.5))];
        bad.extend(changed.map(|(name, value)| {
            let mut task = task("working");
            task[name] = value;
            (task, None)
        }));
        let mut asks = task("input_required");
        asks["inputRequests"] = json!({ "q": { "method": "sampling/createMessage" } });
        bad.push((asks, Some("t")));
        for (task, asked) in bad {
            assert!(matches!(read(&answer(&task), asked, &client), Err(CallError::Unusable(_))), "{task}");
        }
    }

    #[test]
    fn an_older_task_is_told_in_new_words() {
        let mut older = task("working");
        older["ttl"] = json!(5);
        older["pollInterval"] = json!(7);
        older.as_object_mut().unwrap().remove("ttlMs");
        let told = of_older(&answer(&json!({ "task": older })), &Client::default());
        let Ok(Outcome::Task(told)) = told else { panic!("it is a task") };
        assert_eq!((&told["ttlMs"], &told["pollIntervalMs"]), (&json!(5), &json!(7)));
        assert!(!told.contains_key("ttl"));
        let at_once = of_older(&answer(&json!({ "content": [] })), &Client::default());
        assert!(matches!(at_once, Ok(Outcome::Complete(_))));
    }
}
