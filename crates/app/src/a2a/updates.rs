//! What happens to a task, event by event, in the words of A2A: for streams and for addresses that are told.

use super::wire::{artifact, full_message, progress_text, said_json, state_json};
use crate::Answer;
use crate::app::App;
use crate::errors::of_store;
use crate::tasks::resolve;
use domain::task::{Ended, Message, Side, Task, TaskEvent};
use engine::Handled;
use kernel::id::TenantId;
use kernel::{EventSet, Recorded};
use serde_json::{Value, json};

/// Follows one task.
pub struct Updates {
    tenant: TenantId,
    task: String,
    context: String,
    version: u64,
    is_claimed: bool,
    /// Why the last attempt failed, until it is said whether there is another one.
    trouble: Option<String>,
}

impl Updates {
    /// Behind a task as it was read.
    pub fn of_task(tenant: TenantId, task: &Handled<Task>) -> Updates {
        let (is_claimed, context) = (task.state.claim.is_some(), super::context_of(task).to_owned());
        Updates { tenant, task: task.stream.clone(), context, version: task.version, is_claimed, trouble: None }
    }

    /// Behind an earlier version of a task.
    pub(crate) async fn behind(app: &App, tenant: TenantId, task: &Handled<Task>, version: u64) -> Answer<Updates> {
        let mut updates = Updates { version, is_claimed: false, ..Updates::of_task(tenant, task) };
        let before = app.engine().store().read(tenant, &task.stream, 1, version as usize).await.map_err(of_store)?;
        for event in before.iter().filter(|event| event.header.version <= version) {
            if let Ok(Some(data)) = TaskEvent::read(event) {
                updates.note(&data);
            }
        }
        Ok(updates)
    }

    fn note(&mut self, event: &TaskEvent) {
        match event {
            TaskEvent::Claimed(_) => self.is_claimed = true,
            TaskEvent::Progressed(_)
            | TaskEvent::HandedOver(_)
            | TaskEvent::InputRequested(_)
            | TaskEvent::InputGiven(_)
            | TaskEvent::StaleWriteRefused(_)
            | TaskEvent::RetryScheduled(_) => {}
            _ => self.is_claimed = false,
        }
    }

    /// What is to be told of an event: at most an artifact and a state.
    pub async fn of(&mut self, app: &App, event: &Recorded) -> Answer<Vec<Value>> {
        if event.header.stream != self.task || event.header.version <= self.version {
            return Ok(vec![]);
        }
        self.version = event.header.version;
        let Ok(Some(data)) = TaskEvent::read(event) else { return Ok(vec![]) };
        self.note(&data);
        let goes_on = if self.is_claimed { "TASK_STATE_WORKING" } else { "TASK_STATE_SUBMITTED" };
        let told = match &data {
            TaskEvent::Claimed(_) => self.state(event, "TASK_STATE_WORKING", None),
            TaskEvent::Progressed(p) => {
                let text = progress_text(p.percent, p.message.as_deref());
                self.state(event, "TASK_STATE_WORKING", text.map(|text| self.words(&text)))
            }
            TaskEvent::InputRequested(asked) => {
                let message = self.message(app, &asked.message).await?;
                self.state(event, "TASK_STATE_INPUT_REQUIRED", Some(message))
            }
            TaskEvent::InputGiven(_) => self.state(event, goes_on, None),
            TaskEvent::ClaimExpired(_) | TaskEvent::Released(_) | TaskEvent::Retried(_) => {
                self.state(event, "TASK_STATE_SUBMITTED", None)
            }
            TaskEvent::AttemptFailed(failed) => {
                self.trouble = Some(failed.error.message.clone()).filter(|text| !text.is_empty());
                return Ok(vec![]);
            }
            TaskEvent::RetryScheduled(_) => {
                let why = self.trouble.take().map(|text| self.words(&text));
                self.state(event, "TASK_STATE_SUBMITTED", why)
            }
            TaskEvent::Completed(completed) => {
                let output = resolve(app.engine(), self.tenant, &completed.outcome.output).await?;
                let made = json!({ "taskId": self.task, "contextId": self.context, "artifact": artifact(&output.value()), "lastChunk": true });
                return Ok(vec![json!({ "artifactUpdate": made }), self.state(event, "TASK_STATE_COMPLETED", None)]);
            }
            TaskEvent::Failed(ended) if ended.error.code == "REJECTED" => self.ended(event, "TASK_STATE_REJECTED", ended),
            TaskEvent::Failed(ended) | TaskEvent::Died(ended) => self.ended(event, "TASK_STATE_FAILED", ended),
            TaskEvent::Cancelled(cancelled) => {
                let why = cancelled.reason.as_deref().map(|reason| self.words(reason));
                self.state(event, "TASK_STATE_CANCELED", why)
            }
            TaskEvent::Submitted(_) => self.state(event, "TASK_STATE_SUBMITTED", None),
            TaskEvent::StaleWriteRefused(_) | TaskEvent::HandedOver(_) => return Ok(vec![]),
        };
        Ok(vec![told])
    }

    fn ended(&self, event: &Recorded, name: &str, ended: &Ended) -> Value {
        let why = Some(ended.error.message.as_str()).filter(|text| !text.is_empty());
        self.state(event, name, why.map(|text| self.words(text)))
    }

    fn state(&self, event: &Recorded, name: &str, message: Option<Value>) -> Value {
        let status = state_json(name, event.header.recorded_at, message);
        json!({ "statusUpdate": { "taskId": self.task, "contextId": self.context, "status": status } })
    }

    fn words(&self, text: &str) -> Value {
        said_json(&self.task, &self.context, self.version, text)
    }

    async fn message(&self, app: &App, message: &Message) -> Answer<Value> {
        let parts = resolve(app.engine(), self.tenant, &message.parts).await?;
        let metadata = resolve(app.engine(), self.tenant, &message.metadata).await?;
        Ok(full_message(&self.task, &self.context, Side::Agent, &Message { id: message.id.clone(), parts, metadata }))
    }
}

/// Whether a stream of a task ends with this: it is over, or waits for somebody.
pub fn is_last(update: &Value) -> bool {
    const LAST: [&str; 5] =
        ["TASK_STATE_COMPLETED", "TASK_STATE_FAILED", "TASK_STATE_CANCELED", "TASK_STATE_REJECTED", "TASK_STATE_INPUT_REQUIRED"];
    update["statusUpdate"]["status"]["state"].as_str().is_some_and(|state| LAST.contains(&state))
}
