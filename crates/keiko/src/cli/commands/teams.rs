//! `keiko teams`: people and services that hold roles together. And `keiko explain`: why somebody may do something.
//!
//! Owns the commands' arguments and columns.

use super::{Paging, Past, Target, show_list, show_one, show_past};
use crate::cli::Output;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::{Args, Subcommand};
use serde_json::json;

/// Shown below the help of `keiko teams`.
pub const EXAMPLES: &str = "\
Examples:
  keiko teams create --name operations --role developer
  keiko teams add operations maria";

/// Shown below the help of `keiko explain`.
pub const EXPLAIN_EXAMPLES: &str = "\
Examples:
  keiko explain maria tasks.read
  keiko explain maria tasks.read --resource task_01h...";

const COLUMNS: [Column; 5] = [
    Column::id("ID", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("ROLES", "/attributes/roles"),
    Column::text("MEMBERS", "/attributes/members"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko teams` can do.
#[derive(Subcommand)]
pub enum TeamsCommand {
    /// List teams
    List(Paging),
    /// Show one team
    Get(Past),
    /// Create a team
    Create {
        /// Unique name
        #[arg(long)]
        name: String,
        /// A role; may be repeated
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
    },
    /// Give a team these roles in place of the present ones
    SetRoles {
        /// Which team
        #[command(flatten)]
        team: Target,
        /// A role; may be repeated
        #[arg(long = "role", value_name = "ROLE", required = true)]
        roles: Vec<String>,
    },
    /// Let somebody join a team
    Add(Membership),
    /// Let somebody leave a team
    Remove(Membership),
    /// Remove a team
    Delete(Target),
}

/// A team and somebody.
#[derive(Args)]
pub struct Membership {
    /// Which team
    #[command(flatten)]
    team: Target,
    /// A user or service, by id or name
    #[arg(value_name = "MEMBER")]
    member: String,
}

/// Arguments of `keiko explain`.
#[derive(Args)]
pub struct Explain {
    /// A user by id or name, or an agent or API key by id
    subject: String,
    /// A permission, such as tasks.read
    action: String,
    /// A task or another thing, by id
    #[arg(long, value_name = "ID")]
    resource: Option<String>,
}

/// Runs `keiko teams`.
pub async fn run(command: TeamsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        TeamsCommand::List(paging) => show_list(client, Call::get("teams"), &paging, &COLUMNS, output).await,
        TeamsCommand::Get(team) => show_past(client, "teams", &team, output).await,
        TeamsCommand::Create { name, roles } => {
            let body = Fields::default().with("name", Some(name)).with_list("roles", roles);
            show_one(client, Call::append("teams", body), output).await
        }
        TeamsCommand::SetRoles { team, roles } => {
            show_one(client, Call::put(path(&["teams", &team.id]), json!({ "roles": roles })), output).await
        }
        TeamsCommand::Add(membership) => change(client, &membership, "add-member", output).await,
        TeamsCommand::Remove(membership) => change(client, &membership, "remove-member", output).await,
        TeamsCommand::Delete(team) => {
            client.send(Call::delete(path(&["teams", &team.id]))).await?;
            output.done(&format!("Removed the team {}.", team.id))
        }
    }
}

async fn change(client: &mut Client, membership: &Membership, verb: &str, output: Output) -> anyhow::Result<()> {
    let call = Call::append(path(&["teams", &membership.team.id, "actions", verb]), json!({ "member": membership.member }));
    show_one(client, call, output).await
}

/// Runs `keiko explain`.
pub async fn explain(args: Explain, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let call = Call::get("authz/explain").query("subject", Some(args.subject)).query("action", Some(args.action));
    show_one(client, call.query("resource", args.resource), output).await
}
