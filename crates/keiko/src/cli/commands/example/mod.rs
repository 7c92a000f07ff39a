//! `keiko agent-example`: a small real agent, from registration to result.
//!
//! Owns the story: register, take a key, submit a task for each file, work on them over the public interface like any
//! other agent, show what came out. Never uses anything that an agent of somebody else could not use.

mod board;
mod files;
mod work;

use crate::cli::Output;
use crate::cli::call::{Call, Fields, nonce, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::{print, table};
use anyhow::Context;
use board::Board;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use work::Worker;

/// Shown below the help of `keiko agent-example`.
pub const EXAMPLES: &str = "\
Examples:
  keiko agent-example                             counts the text files of this directory
  keiko agent-example docs --tasks-max 5

It needs a login (keiko login) or KEIKO_API_KEY, and a server that runs (keiko serve). Only text files that lie
directly in the directory are read; hidden files, links and files of more than 8 MiB are left out.";

/// What the agent can do.
const CAPABILITY: &str = "count-lines";

/// Arguments of `keiko agent-example`.
#[derive(Args)]
pub struct AgentExample {
    /// Directory whose files are counted
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Files to count at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=50))]
    tasks_max: u8,
}

/// One run of the example.
struct Run {
    /// Tells the tasks of this run from those of any other.
    id: String,
    dir: PathBuf,
    files: Vec<PathBuf>,
    agent_name: String,
}

/// Runs `keiko agent-example`.
pub async fn run(args: AgentExample, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let run = prepare(&args)?;
    let agent_id = register(&run, client).await?;
    let outcome = perform(&run, &agent_id, client).await;
    retire(&agent_id, client).await;
    report(&run, &agent_id, &outcome?, output)
}

fn prepare(args: &AgentExample) -> anyhow::Result<Run> {
    let dir = args.dir.canonicalize().with_context(|| format!("cannot use the directory {}", args.dir.display()))?;
    if dir.to_str().is_none() {
        let what = format!("The name of the directory {} is not UTF-8, so no task can name it.", dir.display());
        return Err(hinted(what, "name another directory: keiko agent-example DIR"));
    }
    let files = files::choose(&dir, usize::from(args.tasks_max))?;
    if files.is_empty() {
        let what = format!("There is no text file in {}.", dir.display());
        return Err(hinted(what, "name another directory: keiko agent-example DIR"));
    }
    let id = nonce();
    let suffix: String = id.chars().take(6).collect();
    Ok(Run { id, dir, files, agent_name: format!("file-counter-{}-{suffix}", std::process::id()) })
}

async fn register(run: &Run, client: &mut Client) -> anyhow::Result<String> {
    let body = Fields::default()
        .with("name", Some(run.agent_name.as_str()))
        .with("agent_type", Some("example_agent"))
        .with("description", Some("Counts lines, words and bytes of text files"))
        .with("max_concurrency", Some(work::CLAIM_TASKS_MAX))
        .with("capabilities", Some(vec![capability()]));
    let agent_id = client.send(Call::append("agents", body)).await?.id()?.to_owned();
    print::note(&format!("Registered the agent {} ({agent_id}).", run.agent_name));
    Ok(agent_id)
}

fn capability() -> Value {
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({
        "name": CAPABILITY,
        "version": "1.0.0",
        "description": "Counts lines, words and bytes of a text file",
        "input_schema": {
            "type": "object",
            "required": ["path"],
            "properties": { "path": { "type": "string" } },
            "additionalProperties": false
        },
        "output_schema": {
            "type": "object",
            "required": ["lines", "words", "bytes"],
            "properties": { "lines": count, "words": count, "bytes": count },
            "additionalProperties": false
        },
        "tags": ["example"]
    })
}

/// Submits and works. The agent comes up first: a task may be refused where nobody could take it.
async fn perform(run: &Run, agent_id: &str, client: &mut Client) -> anyhow::Result<Board> {
    let issue = Call::post(path(&["agents", agent_id, "actions", "issue-key"]), json!({}));
    let issued = client.send(issue).await?;
    let mut worker = Worker::new(client.with_key(issued.text("key")?), agent_id, &run.dir);
    worker.heartbeat(0).await?;
    let mut board = submit(run, client).await?;
    print::note(&format!("Submitted {} tasks.", run.files.len()));
    work::until_done(&mut worker, client, &mut board).await?;
    Ok(board)
}

async fn submit(run: &Run, client: &mut Client) -> anyhow::Result<Board> {
    let mut board = Board::default();
    for file in &run.files {
        let name = file_name(file);
        let body = json!({
            "capability": CAPABILITY,
            "description": format!("Count the lines, words and bytes of {name}"),
            "input": { "path": file },
            "context": { "run": run.id }
        });
        let task = client.send(Call::append("tasks", body)).await?;
        board.add(task.id()?, &name);
    }
    Ok(board)
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}

/// The agent takes nothing more. It stays to be looked at.
async fn retire(agent_id: &str, client: &mut Client) {
    if let Err(error) = client.send(Call::action(&["agents", agent_id, "actions", "pause"])).await {
        print::note(&format!("The agent could not be paused, its lease ends by itself: {error:#}"));
    }
}

fn report(run: &Run, agent_id: &str, board: &Board, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => {
            let result = json!({ "agent_id": agent_id, "tasks": board.rows(), "totals": board.totals() });
            print::line(&table::pretty(&result))?;
        }
        Output::Table => show(agent_id, board)?,
    }
    match board.not_completed() {
        0 => Ok(()),
        open => Err(hinted(
            format!("{open} of {} tasks were not completed.", run.files.len()),
            "see why: keiko tasks events TASK, and keiko tasks decision TASK",
        )),
    }
}

fn show(agent_id: &str, board: &Board) -> anyhow::Result<()> {
    let mut rows = board.rows();
    let mut total = board.totals();
    total["file"] = json!("total");
    rows.push(total);
    print::line(&table::list(&rows, &board::COLUMNS))?;
    print::line(&format!("\nLook at it:\n  keiko tasks list\n  keiko events list\n  keiko agents history {agent_id}"))
}
