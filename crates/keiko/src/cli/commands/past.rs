//! `keiko at`: the commands that show things, as they were at a moment.

use super::{agents, erasures, keys, queues, tasks, tenants, users};
use crate::cli::Output;
use crate::cli::client::Client;
use clap::{Args, Subcommand};

/// Shown below the help of `keiko at`.
pub const EXAMPLES: &str = "\
Examples:
  keiko at 2026-01-01T09:00:00Z agents list
  keiko at 4711 tasks list --status pending
  keiko at 4711 users get maria";

/// Arguments of `keiko at`.
#[derive(Args)]
pub struct At {
    /// A position of the log, or an instant such as 2026-01-01T00:00:00Z
    #[arg(value_name = "POSITION|TIME")]
    moment: String,
    #[command(subcommand)]
    command: PastCommand,
}

/// What can be shown as it was.
#[derive(Subcommand)]
enum PastCommand {
    /// Agents
    Agents {
        /// What to show
        #[command(subcommand)]
        command: agents::AgentsCommand,
    },
    /// Tasks
    Tasks {
        /// What to show
        #[command(subcommand)]
        command: tasks::TasksCommand,
    },
    /// Users
    Users {
        /// What to show
        #[command(subcommand)]
        command: users::UsersCommand,
    },
    /// API keys
    Keys {
        /// What to show
        #[command(subcommand)]
        command: keys::KeysCommand,
    },
    /// Queues
    Queues {
        /// What to show
        #[command(subcommand)]
        command: queues::QueuesCommand,
    },
    /// Tenants
    Tenants {
        /// What to show
        #[command(subcommand)]
        command: tenants::TenantsCommand,
    },
    /// Erasures
    Erasures {
        /// What to show
        #[command(subcommand)]
        command: erasures::ErasuresCommand,
    },
}

/// Runs `keiko at`.
pub async fn run(args: At, client: &mut Client, output: Output) -> anyhow::Result<()> {
    client.look_back(args.moment);
    match args.command {
        PastCommand::Agents { command } => agents::run(command, client, output).await,
        PastCommand::Tasks { command } => tasks::run(command, client, output).await,
        PastCommand::Users { command } => users::run(command, client, output).await,
        PastCommand::Keys { command } => keys::run(command, client, output).await,
        PastCommand::Queues { command } => queues::run(command, client, output).await,
        PastCommand::Tenants { command } => tenants::run(command, client, output).await,
        PastCommand::Erasures { command } => erasures::run(command, client, output).await,
    }
}
