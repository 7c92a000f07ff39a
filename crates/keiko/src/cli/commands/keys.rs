//! `keiko keys`: API keys.
//!
//! Owns the command's arguments and columns. Never stores a key: it is shown once.

use super::{Paging, Past, Target, show_list, show_past, show_secret};
use crate::cli::Output;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::{Args, Subcommand};

/// Shown below the help of `keiko keys`.
pub const EXAMPLES: &str = "\
Examples:
  keiko keys create --name ci --permission tasks.create --permission tasks.read
  keiko keys create --name backup --expires-at 2027-01-01T00:00:00Z --output json
  keiko keys revoke key_01h...";

const COLUMNS: [Column; 6] = [
    Column::id("ID", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("PREFIX", "/attributes/prefix"),
    Column::text("PERMISSIONS", "/attributes/permissions"),
    Column::time("EXPIRES", "/attributes/expires_at"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko keys` can do.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// List keys; never the keys themselves
    List(Paging),
    /// Show one key's name and permissions; never the key itself
    Get(Past),
    /// Create a key; it is shown once
    Create(Create),
    /// Revoke a key
    Revoke(Target),
}

/// Arguments of `keiko keys create`.
#[derive(Args)]
pub struct Create {
    /// What it is for
    #[arg(long)]
    name: String,
    /// Something it may do, at most what you may; may be repeated
    #[arg(long = "permission", value_name = "PERMISSION")]
    permissions: Vec<String>,
    /// When it ends: 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
}

/// Runs `keiko keys`.
pub async fn run(command: KeysCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        KeysCommand::List(paging) => show_list(client, Call::get("api-keys"), &paging, &COLUMNS, output).await,
        KeysCommand::Get(key) => show_past(client, "api-keys", &key, output).await,
        KeysCommand::Create(args) => {
            let body = Fields::default()
                .with("name", Some(args.name))
                .with_list("permissions", args.permissions)
                .with("expires_at", args.expires_at);
            show_secret(client, Call::post("api-keys", body), output).await
        }
        KeysCommand::Revoke(key) => {
            client.send(Call::delete(path(&["api-keys", &key.id]))).await?;
            output.done(&format!("Revoked the key {}.", key.id))
        }
    }
}
