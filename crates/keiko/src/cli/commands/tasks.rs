//! `keiko tasks`: submit work, follow it, see why an agent was chosen for it.
//!
//! Owns the command's arguments and columns. Never does the work: agents do.

use super::submit::{self, Submit};
use super::{Paging, Past, Target, decision, events, show_list, show_one, show_past};
use crate::cli::Output;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::Subcommand;

/// Shown below the help of `keiko tasks`.
pub const EXAMPLES: &str = "\
Examples:
  keiko tasks submit --capability count-lines --description 'Count README.md' \\
      --input '{\"path\": \"README.md\"}' --wait
  keiko tasks submit --capability review-code --description 'Review the patch' --input @patch.json --priority 8
  keiko tasks list --status dead
  keiko tasks decision task_01h...                why this agent
  keiko tasks say task_01h... 'The main branch'   an answer to what its agent asks
  keiko tasks retry task_01h...                   one more chance for a dead task";

/// The columns of a list of tasks.
pub const COLUMNS: [Column; 8] = [
    Column::id("ID", "/id"),
    Column::text("STATUS", "/attributes/status"),
    Column::number("PRIORITY", "/attributes/priority"),
    Column::text("CAPABILITY", "/attributes/capability"),
    Column::brief("DESCRIPTION", "/attributes/description"),
    Column::id("AGENT", "/attributes/agent_id"),
    Column::number("ATTEMPT", "/attributes/attempt"),
    Column::time("UPDATED", "/attributes/updated_at"),
];

/// What `keiko tasks` can do.
#[derive(Subcommand)]
pub enum TasksCommand {
    /// List tasks
    List {
        /// Only those in this status
        #[arg(long, value_parser = ["pending", "claimed", "completed", "failed", "cancelled", "dead"])]
        status: Option<String>,
        /// Only those that need this capability
        #[arg(long)]
        capability: Option<String>,
        /// How much of the list
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one task
    Get(Past),
    /// Submit a task
    Submit(Submit),
    /// Show how the agent for a task was chosen: every candidate with its scores
    Decision(Target),
    /// List what happened to a task
    Events {
        /// Which task
        #[command(flatten)]
        task: Target,
        /// How much of the list
        #[command(flatten)]
        paging: Paging,
    },
    /// Cancel a task that has not ended
    Cancel {
        /// Which task
        #[command(flatten)]
        task: Target,
        /// Why, for people
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Answer what the agent of a task asks, or tell it more
    Say {
        /// Which task
        #[command(flatten)]
        task: Target,
        /// What
        text: String,
    },
    /// Try a failed or dead task again
    Retry(Target),
}

/// Runs `keiko tasks`.
pub async fn run(command: TasksCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        TasksCommand::List { status, capability, paging } => {
            let call = Call::get("tasks").query("filter[status]", status).query("filter[capability]", capability);
            show_list(client, call, &paging, &COLUMNS, output).await
        }
        TasksCommand::Get(task) => show_past(client, "tasks", &task, output).await,
        TasksCommand::Submit(args) => submit::run(args, client, output).await,
        TasksCommand::Decision(task) => decision::show(&task.id, client, output).await,
        TasksCommand::Events { task, paging } => {
            let call = Call::get(path(&["tasks", &task.id, "events"]));
            show_list(client, call, &paging, &events::COLUMNS, output).await
        }
        TasksCommand::Cancel { task, reason } => {
            let body = Fields::default().with("reason", reason);
            show_one(client, Call::append(path(&["tasks", &task.id, "actions", "cancel"]), body), output).await
        }
        TasksCommand::Say { task, text } => {
            let body = Fields::default().with("text", Some(text));
            show_one(client, Call::append(path(&["tasks", &task.id, "actions", "say"]), body), output).await
        }
        TasksCommand::Retry(task) => show_one(client, Call::action(&["tasks", &task.id, "actions", "retry"]), output).await,
    }
}
