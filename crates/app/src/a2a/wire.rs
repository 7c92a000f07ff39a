//! Tasks in the words of A2A, as JSON.

use super::context_of;
use crate::PushView;
use domain::task::{Message, Side, Status, Task};
use engine::Handled;
use kernel::Timestamp;
use serde_json::{Map, Value, json};

/// The error code by which an agent says that it does not want a task.
const REJECTED: &str = "REJECTED";

/// The name of a task's state.
pub(super) fn state(task: &Task) -> &'static str {
    match task.status {
        Status::Pending => "TASK_STATE_SUBMITTED",
        Status::Claimed if task.is_input_wanted() => "TASK_STATE_INPUT_REQUIRED",
        Status::Claimed => "TASK_STATE_WORKING",
        Status::Completed => "TASK_STATE_COMPLETED",
        Status::Failed if task.error.as_ref().is_some_and(|error| error.code == REJECTED) => "TASK_STATE_REJECTED",
        Status::Failed | Status::Dead => "TASK_STATE_FAILED",
        Status::Cancelled => "TASK_STATE_CANCELED",
    }
}

/// A task as A2A shows it, with so many of its latest messages; all of them when nothing is said.
pub fn task_json(task: &Handled<Task>, history_max: Option<usize>, with_artifacts: bool) -> Value {
    let mut shown = Map::new();
    shown.insert("id".into(), json!(task.stream));
    shown.insert("contextId".into(), json!(context_of(task)));
    shown.insert("status".into(), status(task));
    if with_artifacts && let Some(outcome) = &task.state.outcome {
        shown.insert("artifacts".into(), json!([artifact(&outcome.output.value())]));
    }
    let history = history(task, history_max);
    if !history.is_empty() {
        shown.insert("history".into(), json!(history));
    }
    let mut metadata = Map::from_iter([(super::SKILL.to_owned(), json!(task.state.submitted.capability))]);
    metadata.extend(task.state.agent().map(|agent| ("agentId".to_owned(), json!(agent.to_string()))));
    shown.insert("metadata".into(), Value::Object(metadata));
    Value::Object(shown)
}

/// Where a task stands.
fn status(task: &Handled<Task>) -> Value {
    let name = state(&task.state);
    let said = match task.state.status {
        Status::Claimed if task.state.is_input_wanted() => {
            task.state.messages.last().map(|asked| message_json(task, Side::Agent, &asked.message))
        }
        Status::Claimed => progress(task).map(|text| words(task, &text)),
        Status::Failed | Status::Dead | Status::Cancelled => {
            task.state.error.as_ref().filter(|error| !error.message.is_empty()).map(|error| words(task, &error.message))
        }
        Status::Pending | Status::Completed => None,
    };
    state_json(name, task.updated_at, said)
}

/// A state with what is said about it.
pub(super) fn state_json(name: &str, at: Timestamp, message: Option<Value>) -> Value {
    let mut shown = json!({ "state": name, "timestamp": at.to_string() });
    if let Some(message) = message {
        shown["message"] = message;
    }
    shown
}

fn progress(task: &Handled<Task>) -> Option<String> {
    let progress = task.state.progress.as_ref()?;
    progress_text(progress.percent, progress.message.as_deref())
}

/// How far an agent is, for people.
pub(super) fn progress_text(percent: Option<f64>, message: Option<&str>) -> Option<String> {
    match (percent, message.filter(|text| !text.is_empty())) {
        (Some(percent), Some(text)) => Some(format!("{text} ({percent} %)")),
        (Some(percent), None) => Some(format!("{percent} %")),
        (None, text) => text.map(str::to_owned),
    }
}

/// Words of the agent about a task as it is at this version.
fn words(task: &Handled<Task>, text: &str) -> Value {
    said_json(&task.stream, context_of(task), task.version, text)
}

/// Words of the agent; the version of the task names them.
pub(super) fn said_json(task: &str, context: &str, version: u64, text: &str) -> Value {
    json!({
        "messageId": format!("{task}:{version}"), "taskId": task, "contextId": context, "role": "ROLE_AGENT",
        "parts": [{ "text": text }],
    })
}

fn message_json(task: &Handled<Task>, by: Side, message: &Message) -> Value {
    full_message(&task.stream, context_of(task), by, message)
}

/// A message that was kept.
pub(super) fn full_message(task: &str, context: &str, by: Side, message: &Message) -> Value {
    let role = if by == Side::Agent { "ROLE_AGENT" } else { "ROLE_USER" };
    let mut shown = json!({
        "messageId": message.id, "taskId": task, "contextId": context, "role": role, "parts": message.parts,
    });
    if message.metadata.value().as_object().is_some_and(|metadata| !metadata.is_empty()) {
        shown["metadata"] = message.metadata.value();
    }
    shown
}

/// What was said, first things first.
fn history(task: &Handled<Task>, max: Option<usize>) -> Vec<Value> {
    let submitted = &task.state.submitted;
    let first = match &submitted.message {
        Some(message) => message_json(task, Side::Submitter, message),
        None => asked(task),
    };
    let later = task.state.messages.iter().map(|said| message_json(task, said.by, &said.message));
    let mut all: Vec<Value> = std::iter::once(first).chain(later).collect();
    if let Some(max) = max {
        all.drain(..all.len().saturating_sub(max));
    }
    all
}

/// The message that a task would have been asked for by that came in another way.
fn asked(task: &Handled<Task>) -> Value {
    let submitted = &task.state.submitted;
    let mut parts = vec![json!({ "text": submitted.description })];
    let input = submitted.input.value();
    parts.extend(input.as_object().is_some_and(|fields| !fields.is_empty()).then(|| json!({ "data": input })));
    json!({
        "messageId": format!("{}:1", task.stream), "taskId": task.stream, "contextId": context_of(task), "role": "ROLE_USER",
        "parts": parts,
    })
}

/// A task's result. An agent that knows A2A says `{"parts": […]}`, one that only writes `{"text": "…"}`; anything else is data.
pub(super) fn artifact(output: &Value) -> Value {
    let fields = output.as_object();
    let only = |name: &str| fields.filter(|fields| fields.len() == 1).and_then(|fields| fields.get(name));
    let parts = match (only("parts").and_then(Value::as_array), only("text").and_then(Value::as_str)) {
        (Some(parts), _) if !parts.is_empty() && parts.iter().all(is_part) => parts.clone(),
        (_, Some(text)) => vec![json!({ "text": text, "mediaType": "text/plain" })],
        _ => vec![json!({ "data": output, "mediaType": "application/json" })],
    };
    json!({ "artifactId": "output", "name": "output", "parts": parts })
}

fn is_part(part: &Value) -> bool {
    let text = |name: &str| part.get(name).is_some_and(Value::is_string);
    let held = ["text", "url", "raw"].into_iter().filter(|name| text(name)).count() + usize::from(part.get("data").is_some());
    held == 1
}

/// An address that is told of a task.
pub fn push_json(push: &PushView) -> Value {
    let mut shown = json!({ "id": push.name, "taskId": push.task.to_string(), "url": push.url });
    if let Some(scheme) = &push.scheme {
        shown["authentication"] = json!({ "scheme": scheme });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_output_then_its_parts_are_what_the_agent_means() {
        let parts = |output: Value| artifact(&output)["parts"].clone();
        assert_eq!(parts(json!({"text": "hi"})), json!([{"text": "hi", "mediaType": "text/plain"}]));
        assert_eq!(parts(json!({"parts": [{"url": "https://a.example/b"}]})), json!([{"url": "https://a.example/b"}]));
        assert_eq!(parts(json!({"parts": [{"text": "a", "data": 1}]}))[0]["mediaType"], "application/json");
        assert_eq!(parts(json!({"text": "hi", "n": 1}))[0]["data"], json!({"text": "hi", "n": 1}));
        assert_eq!(parts(json!({}))[0]["data"], json!({}));
    }

    #[test]
    fn given_progress_then_people_read_it() {
        assert_eq!(progress_text(Some(40.0), Some("reading")).unwrap(), "reading (40 %)");
        assert_eq!(progress_text(Some(40.5), None).unwrap(), "40.5 %");
        assert_eq!(progress_text(None, Some("")), None);
    }
}
