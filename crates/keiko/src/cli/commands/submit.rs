//! `keiko tasks submit`, and waiting for a task to end.
//!
//! Owns what a task's end means for the exit code: only a completed task is a success. Never claims a task.

use crate::cli::Output;
use crate::cli::answer::Answer;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::error::{hinted, is_passing};
use crate::cli::{input, print, table};
use clap::Args;
use serde_json::Value;
use std::time::Duration;
use tokio::time::sleep;

/// First and longest pause between two looks at a task.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Looks in a row that may go unanswered.
const LOOKS_LOST_MAX: u32 = 10;

/// Arguments of `keiko tasks submit`.
#[derive(Args)]
pub struct Submit {
    /// What is to be done, in words
    #[arg(long)]
    description: String,
    /// What an agent must be able to do
    #[arg(long)]
    capability: String,
    /// Input for the agent, checked against the capability's schema
    #[arg(long, value_name = "JSON|@FILE|-")]
    input: Option<String>,
    /// What the task is about; a part of what makes two tasks the same
    #[arg(long, value_name = "JSON|@FILE|-")]
    context: Option<String>,
    /// 0 to 9, 9 first
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Give it to nobody before this has passed: 30s, 5m, 2h
    #[arg(long, value_name = "DURATION", value_parser = input::duration_ms)]
    delay: Option<u64>,
    /// Latest moment to finish: 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// How often it may be tried
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Queue to wait in
    #[arg(long)]
    queue: Option<String>,
    /// When every agent has handled this task before: refuse it, or take the least recently used agent
    #[arg(long, value_parser = ["strict", "lru"])]
    collision: Option<String>,
    /// Give it to this agent only
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// What it belongs to together with other tasks
    #[arg(long, value_name = "NAME")]
    conversation: Option<String>,
    /// Wait until it has ended; fail unless it is completed
    #[arg(long)]
    wait: bool,
}

impl Submit {
    fn body(self) -> anyhow::Result<Value> {
        let json = |text: Option<String>| text.as_deref().map(input::json).transpose();
        let fields = Fields::default()
            .with("description", Some(self.description))
            .with("capability", Some(self.capability))
            .with("input", json(self.input)?)
            .with("context", json(self.context)?)
            .with("priority", self.priority)
            .with("delay_ms", self.delay)
            .with("deadline", self.deadline)
            .with("max_attempts", self.max_attempts)
            .with("queue", self.queue)
            .with("collision", self.collision)
            .with("agent", self.agent)
            .with("conversation", self.conversation);
        Ok(fields.into())
    }
}

/// Submits a task, and waits for its end where asked to.
pub async fn run(args: Submit, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let wait = args.wait;
    let submitted = client.send(Call::append("tasks", args.body()?)).await?;
    if !wait {
        return output.one(submitted.data());
    }
    let id = table::clean(submitted.id()?);
    let ended = until_ended(client, &id).await?;
    output.one(ended.data())?;
    verdict(&id, ended.attributes())
}

/// Looks at a task until it has ended, and says what changes.
async fn until_ended(client: &mut Client, id: &str) -> anyhow::Result<Answer> {
    let mut said = String::new();
    let mut pause = LOOK_FIRST;
    let mut lost = 0;
    loop {
        match client.send(Call::get(path(&["tasks", id]))).await {
            Ok(task) => {
                lost = 0;
                let now = progress(id, task.attributes());
                if now != said {
                    print::note(&now);
                    said = now;
                    pause = LOOK_FIRST;
                }
                if has_ended(task.attributes()) {
                    return Ok(task);
                }
            }
            Err(error) if is_passing(&error) && lost < LOOKS_LOST_MAX => lost += 1,
            Err(error) => return Err(error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// Whether a task has reached a status that only a person changes.
pub fn has_ended(task: &Value) -> bool {
    matches!(task["status"].as_str(), Some("completed" | "failed" | "cancelled" | "dead"))
}

fn progress(id: &str, task: &Value) -> String {
    let mut words = vec![format!("{id}: {}", table::plain(task.get("status")))];
    if task["status"] == "claimed" {
        words.push(format!("by {}", table::plain(task.get("agent_id"))));
    }
    if task["attempt"].as_u64().is_some_and(|attempt| attempt > 1) {
        words.push(format!("(attempt {} of {})", task["attempt"], table::plain(task.get("max_attempts"))));
    }
    if let Some(percent) = task["progress"].get("percent") {
        words.push(format!("{}%", table::plain(Some(percent))));
    }
    if let Some(message) = task["progress"]["message"].as_str() {
        words.push(table::clean(message));
    }
    words.join(" ")
}

fn verdict(id: &str, task: &Value) -> anyhow::Result<()> {
    let status = table::plain(task.get("status"));
    if status == "completed" {
        return Ok(());
    }
    let reason = match task["error"]["message"].as_str() {
        Some(message) => format!(": {} ({})", table::clean(message), table::plain(task["error"].get("code"))),
        None => ".".to_owned(),
    };
    Err(hinted(
        format!("The task {id} ended as {status}{reason}"),
        format!("see what happened: keiko tasks events {id}; try again: keiko tasks retry {id}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_completed_task_is_a_success() {
        assert!(verdict("task_1", &json!({"status": "completed"})).is_ok());
        let failed = json!({"status": "failed", "error": {"code": "NO_FILE", "message": "gone\u{1b}[2J"}});
        let said = verdict("task_1", &failed).unwrap_err().to_string();
        assert!(said.starts_with("The task task_1 ended as failed: gone\u{fffd}[2J (NO_FILE)\nhint: "), "{said}");
        assert!(has_ended(&json!({"status": "dead"})) && !has_ended(&json!({"status": "pending"})));
    }

    #[test]
    fn progress_says_who_and_how_far() {
        let task = json!({"status": "claimed", "agent_id": "agent_1", "attempt": 2, "max_attempts": 3,
                          "progress": {"percent": 40, "message": "reading"}});
        assert_eq!(progress("task_1", &task), "task_1: claimed by agent_1 (attempt 2 of 3) 40% reading");
        assert_eq!(progress("task_1", &json!({"status": "pending", "attempt": 0})), "task_1: pending");
    }
}
