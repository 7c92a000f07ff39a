//! `keiko security`: what was seen of identities, and what is done in an emergency.
//!
//! Owns the command's arguments and columns.

use super::show_one;
use crate::cli::Output;
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use clap::Subcommand;
use serde_json::json;

/// Shown below the help of `keiko security`.
pub const EXAMPLES: &str = "\
Examples:
  keiko security events --kind identity.login
  keiko security revoke-all --yes                 every session and token ends, yours too
  keiko security declare-emergency --reason 'stolen laptop'";

const COLUMNS: [Column; 5] = [
    Column::text("POSITION", "/attributes/position"),
    Column::time("TIME", "/attributes/recorded_at"),
    Column::text("KIND", "/attributes/kind"),
    Column::id("ACTOR", "/attributes/actor/id"),
    Column::text("DATA", "/attributes/data"),
];

/// What `keiko security` can do.
#[derive(Subcommand)]
pub enum SecurityCommand {
    /// List logins, refusals, the use of keys, privileged actions; oldest first
    Events {
        /// Only events whose kind begins so
        #[arg(long)]
        kind: Option<String>,
        /// Only events after this position
        #[arg(long, value_name = "POSITION")]
        after: Option<u64>,
        /// Entries to show
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Show what was called back, and whether there is an emergency
    Status,
    /// End every session and token of the tenant, yours too
    RevokeAll {
        /// API keys end too
        #[arg(long)]
        keys: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Make rate limits strict until the emergency is lifted
    DeclareEmergency {
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Make rate limits as they were
    LiftEmergency,
}

/// Runs `keiko security`.
pub async fn run(command: SecurityCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        SecurityCommand::Events { kind, after, limit } => {
            let call = Call::get("security/events").query("kind", kind).query("after", after).query("limit", Some(limit));
            let answer = client.send(call).await?;
            output.list(answer.items(), &COLUMNS)
        }
        SecurityCommand::Status => show_one(client, Call::get("security/guard"), output).await,
        SecurityCommand::RevokeAll { yes: false, .. } => {
            Err(hinted("This ends every session of the tenant, yours too.", "run it again with --yes"))
        }
        SecurityCommand::RevokeAll { keys, yes: true } => {
            show_one(client, Call::post("security/actions/revoke-all", json!({ "keys": keys })), output).await
        }
        SecurityCommand::DeclareEmergency { reason } => {
            show_one(client, Call::append("security/actions/declare-emergency", json!({ "reason": reason })), output).await
        }
        SecurityCommand::LiftEmergency => {
            show_one(client, Call::append("security/actions/lift-emergency", json!({})), output).await
        }
    }
}
