//! The loop of the example agent: heartbeat, claim, work, complete.
//!
//! Owns the agent's side of a claim: work on each claim once, show its token with every write, and let go of it when
//! the server says that it is another's. Never decides who gets a task.

use super::board::Board;
use super::files::{self, Refusal};
use crate::cli::answer::Answer;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::{error, print};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Tasks that the agent takes at one time.
pub const CLAIM_TASKS_MAX: u32 = 4;
/// How long a claim waits for work; well below an agent's lease.
const CLAIM_WAIT_MS: u64 = 2_000;
/// Without news for so long, the run is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Pause after a round that brought nothing new.
const PAUSE: Duration = Duration::from_millis(200);

/// The agent.
pub struct Worker<'a> {
    client: Client,
    agent_id: &'a str,
    dir: &'a Path,
    /// Claims that were worked on: a claim may be delivered twice.
    handled: BTreeSet<String>,
}

/// Works until every task on the board has ended, or nothing happens any more.
pub async fn until_done(worker: &mut Worker<'_>, client: &mut Client, board: &mut Board) -> anyhow::Result<()> {
    let mut last_news = Instant::now();
    while !board.open().is_empty() && last_news.elapsed() < STALL_MAX {
        let tasks = worker.claim().await?;
        worker.heartbeat(tasks.len()).await?;
        let mut is_news = false;
        for task in &tasks {
            if let Some(ended) = worker.perform(task).await? {
                is_news |= board.note(ended.id()?, ended.attributes(), ended.position());
            }
        }
        if !is_news {
            is_news = look(client, board).await?;
            sleep(PAUSE).await;
        }
        if is_news {
            last_news = Instant::now();
        }
    }
    Ok(())
}

/// Looks at the tasks without an end: another agent may have done them.
async fn look(client: &mut Client, board: &mut Board) -> anyhow::Result<bool> {
    let mut is_news = false;
    for id in board.open() {
        let task = client.send(Call::get(path(&["tasks", &id]))).await?;
        is_news |= board.note(&id, task.attributes(), task.position());
    }
    Ok(is_news)
}

impl<'a> Worker<'a> {
    /// An agent that works on the files of `dir`; `client` speaks with its key.
    pub fn new(client: Client, agent_id: &'a str, dir: &'a Path) -> Self {
        Worker { client, agent_id, dir, handled: BTreeSet::new() }
    }

    /// Says that the agent lives and how much it has to do.
    pub async fn heartbeat(&mut self, running: usize) -> anyhow::Result<()> {
        let call =
            Call::post(path(&["agents", self.agent_id, "actions", "heartbeat"]), json!({ "load": { "running": running } }));
        self.client.send(call).await?;
        Ok(())
    }

    /// Claims tasks, waiting a while for some; those of claims already worked on are left out.
    async fn claim(&mut self) -> anyhow::Result<Vec<Value>> {
        let body = json!({ "max": CLAIM_TASKS_MAX, "wait_ms": CLAIM_WAIT_MS });
        let claimed = self.client.send(Call::post("tasks/actions/claim", body)).await?;
        let mut fresh = Vec::new();
        for task in claimed.items() {
            let claim_id = task["attributes"]["claim"]["id"].as_str().unwrap_or_default();
            if self.handled.insert(claim_id.to_owned()) {
                fresh.push(task.clone());
            }
        }
        Ok(fresh)
    }

    /// Does one task. `None` when the claim turned out to be another's.
    async fn perform(&mut self, task: &Value) -> anyhow::Result<Option<Answer>> {
        let id = task["id"].as_str().unwrap_or_default();
        match self.finish(id, &task["attributes"]).await {
            Ok(ended) => Ok(Some(ended)),
            Err(stale) if error::status(&stale) == Some(409) => {
                print::note(&format!("Let go of {id}: {stale:#}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn finish(&mut self, id: &str, task: &Value) -> anyhow::Result<Answer> {
        let token = &task["claim"]["token"];
        // Earlier tasks of the same batch took time.
        self.client.send(Call::post(action(id, "heartbeat"), json!({ "claim_token": token }))).await?;
        let call = match files::count(self.dir, task["input"]["path"].as_str().unwrap_or_default()) {
            Ok(counts) => {
                let output = counts.to_output();
                Call::append(action(id, "complete"), json!({ "claim_token": token, "output": output }))
            }
            Err(refusal) => {
                let (error, retryable) = explain(&refusal);
                let body = json!({ "claim_token": token, "error": error, "retryable": retryable });
                Call::append(action(id, "fail"), body)
            }
        };
        self.client.send(call).await
    }
}

fn action(task_id: &str, verb: &str) -> String {
    path(&["tasks", task_id, "actions", verb])
}

/// The error of a failed task, and whether another agent may succeed.
fn explain(refusal: &Refusal) -> (Value, bool) {
    match refusal {
        Refusal::Elsewhere => {
            let message = "The file is not in the directory of this agent.";
            (json!({ "code": "FILE_ELSEWHERE", "message": message }), true)
        }
        Refusal::Unreadable(reason) => {
            let message = format!("The file cannot be read: {reason}.");
            (json!({ "code": "FILE_UNREADABLE", "message": message }), false)
        }
    }
}
