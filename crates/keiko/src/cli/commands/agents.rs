//! `keiko agents`: register agents, look at them, steer them.
//!
//! Owns the command's arguments and columns. Never does an agent's work.

use super::mcp::pair;
use super::{Paging, Past, Target, show_list, show_one, show_past, show_secret};
use crate::cli::Output;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::input;
use crate::cli::table::Column;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Shown below the help of `keiko agents`.
pub const EXAMPLES: &str = "\
Examples:
  keiko agents register --name reviewer --capability review-code --purpose 'reviews every change'
  keiko agents register --file agent.json         with schemas, tags, limits
  keiko agents issue-key reviewer                 the key the agent works with
  keiko agents list --status up
  keiko agents drain reviewer                     finish what it has, take nothing new";

const COLUMNS: [Column; 6] = [
    Column::id("ID", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("TYPE", "/attributes/agent_type"),
    Column::text("STATUS", "/attributes/status"),
    Column::text("CAPABILITIES", "/attributes/capabilities"),
    Column::time("UPDATED", "/attributes/updated_at"),
];

const HISTORY_COLUMNS: [Column; 6] = [
    Column::id("TASK", "/attributes/task_id"),
    Column::text("STATUS", "/attributes/status"),
    Column::brief("DESCRIPTION", "/attributes/task_description"),
    Column::time("STARTED", "/attributes/started_at"),
    Column::time("COMPLETED", "/attributes/completed_at"),
    Column::brief("RESULT", "/attributes/result_summary"),
];

/// What `keiko agents` can do.
#[derive(Subcommand)]
pub enum AgentsCommand {
    /// List agents
    List {
        /// Only those in this status
        #[arg(long, value_parser = ["registered", "up", "degraded", "down", "paused", "draining", "suspended"])]
        status: Option<String>,
        /// Only those with this capability
        #[arg(long)]
        capability: Option<String>,
        /// Only those that this user answers for, by id
        #[arg(long)]
        owner: Option<String>,
        /// How much of the list
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one agent
    Get(Past),
    /// Register an agent
    Register(Register),
    /// Replace an agent's description and capabilities by those in a file
    Update {
        /// Which agent
        #[command(flatten)]
        agent: Target,
        /// JSON as for registration; - reads standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove an agent; its history stays
    Delete(Target),
    /// Give an agent no new work until it is resumed
    Pause(Target),
    /// Give a paused or draining agent work again
    Resume(Target),
    /// Let an agent finish what it has and give it nothing new
    Drain(Target),
    /// Ask an agent to restart; it learns so at its next heartbeat or claim
    Restart(Target),
    /// Stop an agent at once: its keys and tokens are refused and its claims end
    Suspend {
        /// Which agent
        #[command(flatten)]
        agent: Target,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended agent work again
    Reinstate(Target),
    /// Bring work to an agent that speaks A2A; without capabilities it gets the skills of its card
    Connect {
        /// Which agent
        #[command(flatten)]
        agent: Target,
        /// The address of its card, or the one below which the card lies
        #[arg(long)]
        url: String,
        /// A header that is sent with each request, such as its credentials; may be repeated
        #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
        headers: Vec<(String, String)>,
    },
    /// Let an agent fetch its work by itself again
    Disconnect(Target),
    /// Make the key that the agent authenticates with; it is shown once
    IssueKey(Target),
    /// List the tasks that an agent holds or held
    Tasks {
        /// Which agent
        #[command(flatten)]
        agent: Target,
        /// How much of the list
        #[command(flatten)]
        paging: Paging,
    },
    /// List what an agent has handled, with results
    History {
        /// Which agent
        #[command(flatten)]
        agent: Target,
        /// How much of the list
        #[command(flatten)]
        paging: Paging,
    },
}

/// Arguments of `keiko agents register`.
#[derive(Args)]
pub struct Register {
    /// Name, unique in the tenant
    #[arg(long, required_unless_present = "file")]
    name: Option<String>,
    /// What kind of agent it is
    #[arg(long = "type", value_name = "TYPE")]
    agent_type: Option<String>,
    /// What it is, for people and for the search
    #[arg(long)]
    description: Option<String>,
    /// Something it can do, by name; may be repeated
    #[arg(long = "capability", value_name = "NAME")]
    capabilities: Vec<String>,
    /// Who answers for it: a user or service by name or id [default: you]
    #[arg(long)]
    owner: Option<String>,
    /// What it is for, and what not
    #[arg(long)]
    purpose: Option<String>,
    /// The whole agent as JSON, with schemas; - reads standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "agent_type", "description", "capabilities", "owner", "purpose"])]
    file: Option<PathBuf>,
}

impl Register {
    fn body(self) -> anyhow::Result<Value> {
        if let Some(file) = self.file {
            return input::json_file(&file);
        }
        let capabilities: Vec<Value> = self.capabilities.iter().map(|name| json!({ "name": name })).collect();
        let fields = Fields::default()
            .with("name", self.name)
            .with("agent_type", self.agent_type)
            .with("description", self.description)
            .with("owner", self.owner)
            .with("purpose", self.purpose)
            .with("capabilities", Some(capabilities));
        Ok(fields.into())
    }
}

/// Runs `keiko agents`.
pub async fn run(command: AgentsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        AgentsCommand::List { status, capability, owner, paging } => {
            let call = Call::get("agents").query("filter[status]", status).query("filter[capability]", capability);
            let call = call.query("filter[owner]", owner);
            show_list(client, call, &paging, &COLUMNS, output).await
        }
        AgentsCommand::Get(agent) => show_past(client, "agents", &agent, output).await,
        AgentsCommand::Register(args) => show_one(client, Call::append("agents", args.body()?), output).await,
        AgentsCommand::Update { agent, file } => {
            let body = input::json_file(&file)?;
            show_one(client, Call::put(path(&["agents", &agent.id]), body), output).await
        }
        AgentsCommand::Delete(agent) => {
            client.send(Call::delete(path(&["agents", &agent.id]))).await?;
            output.done(&format!("Removed the agent {}.", agent.id))
        }
        AgentsCommand::Pause(agent) => act(client, &agent, "pause", output).await,
        AgentsCommand::Resume(agent) => act(client, &agent, "resume", output).await,
        AgentsCommand::Drain(agent) => act(client, &agent, "drain", output).await,
        AgentsCommand::Restart(agent) => act(client, &agent, "restart", output).await,
        AgentsCommand::Suspend { agent, reason } => {
            let call = Call::post(path(&["agents", &agent.id, "actions", "suspend"]), json!({ "reason": reason }));
            show_one(client, call, output).await
        }
        AgentsCommand::Reinstate(agent) => act(client, &agent, "reinstate", output).await,
        AgentsCommand::Connect { agent, url, headers } => {
            let headers: std::collections::BTreeMap<_, _> = headers.into_iter().collect();
            let body = json!({ "url": url, "headers": headers });
            show_one(client, Call::append(path(&["agents", &agent.id, "actions", "connect"]), body), output).await
        }
        AgentsCommand::Disconnect(agent) => act(client, &agent, "disconnect", output).await,
        AgentsCommand::IssueKey(agent) => {
            let call = Call::post(path(&["agents", &agent.id, "actions", "issue-key"]), json!({}));
            show_secret(client, call, output).await
        }
        AgentsCommand::Tasks { agent, paging } => {
            let call = Call::get(path(&["agents", &agent.id, "tasks"]));
            show_list(client, call, &paging, &super::tasks::COLUMNS, output).await
        }
        AgentsCommand::History { agent, paging } => {
            let call = Call::get(path(&["agents", &agent.id, "history"]));
            show_list(client, call, &paging, &HISTORY_COLUMNS, output).await
        }
    }
}

async fn act(client: &mut Client, agent: &Target, verb: &str, output: Output) -> anyhow::Result<()> {
    show_one(client, Call::action(&["agents", &agent.id, "actions", verb]), output).await
}
