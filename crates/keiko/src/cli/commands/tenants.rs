//! `keiko tenants`: owners of everything below them, each with its first administrator.
//!
//! Owns the command's arguments and columns. Never takes a password as an argument.

use super::{Paging, Past, Target, show_list, show_one, show_past};
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use crate::cli::{Output, input};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

/// Shown below the help of `keiko tenants`.
pub const EXAMPLES: &str = "\
Examples:
  keiko tenants create --slug research --name Research --admin maria
  keiko login maria --tenant research
  keiko tenants delete research --confirm research --reason 'the contract ended'
  keiko tenants set-limits research --requests 200/s --users-max 50";

const COLUMNS: [Column; 5] = [
    Column::id("ID", "/id"),
    Column::id("SLUG", "/attributes/slug"),
    Column::text("NAME", "/attributes/name"),
    Column::text("STATUS", "/attributes/status"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko tenants` can do.
#[derive(Subcommand)]
pub enum TenantsCommand {
    /// List tenants
    List(Paging),
    /// Create a tenant and its first administrator, whose password is asked for
    Create(Create),
    /// Stop a tenant at once: everything of everybody in it is refused
    Suspend {
        /// Which tenant, by id or slug
        #[command(flatten)]
        tenant: Target,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended tenant work again
    Reinstate(Target),
    /// Delete a tenant and everything in it, for ever; its name is free after that
    Delete {
        /// Which tenant, by id or slug
        #[command(flatten)]
        tenant: Target,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        /// The slug once more: nothing brings a tenant back
        #[arg(long, value_name = "SLUG")]
        confirm: String,
    },
    /// Show one tenant, with what it may use
    Get(Past),
    /// Say what a tenant may use; what is not said is not limited any more
    SetLimits {
        /// Which tenant, by id or slug
        #[command(flatten)]
        tenant: Target,
        /// Requests, such as 200/s [default: the setting limit.tenant]
        #[arg(long, value_name = "RATE")]
        requests: Option<String>,
        /// Users and services
        #[arg(long, value_name = "N")]
        users_max: Option<u32>,
        /// Agents
        #[arg(long, value_name = "N")]
        agents_max: Option<u32>,
    },
}

/// Arguments of `keiko tenants create`.
#[derive(Args)]
pub struct Create {
    /// Short name, for logins and addresses: a-z, 0-9 and -
    #[arg(long)]
    slug: String,
    /// Name for people [default: the slug]
    #[arg(long)]
    name: Option<String>,
    /// User name of the first administrator
    #[arg(long, value_name = "USERNAME")]
    admin: String,
    /// Read the administrator's password from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Runs `keiko tenants`.
pub async fn run(command: TenantsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        TenantsCommand::List(paging) => show_list(client, Call::get("tenants"), &paging, &COLUMNS, output).await,
        TenantsCommand::Suspend { tenant, reason } => {
            let call = Call::append(path(&["tenants", &tenant.id, "actions", "suspend"]), json!({ "reason": reason }));
            show_one(client, call, output).await
        }
        TenantsCommand::Reinstate(tenant) => {
            show_one(client, Call::action(&["tenants", &tenant.id, "actions", "reinstate"]), output).await
        }
        TenantsCommand::Delete { tenant, reason, confirm } => delete(&tenant.id, &reason, &confirm, client, output).await,
        TenantsCommand::Get(tenant) => show_past(client, "tenants", &tenant, output).await,
        TenantsCommand::SetLimits { tenant, requests, users_max, agents_max } => {
            let body = Fields::default().with("requests", requests).with("users_max", users_max).with("agents_max", agents_max);
            show_one(client, Call::append(path(&["tenants", &tenant.id, "actions", "set-limits"]), body), output).await
        }
        TenantsCommand::Create(args) => {
            let password = input::new_password(args.password_stdin)?;
            let admin = Fields::default().with("username", Some(args.admin)).with("password", Some(password));
            let body = Fields::default()
                .with("name", Some(args.name.unwrap_or_else(|| args.slug.clone())))
                .with("slug", Some(args.slug))
                .with("admin", Some(Value::from(admin)));
            show_one(client, Call::append("tenants", body), output).await
        }
    }
}

async fn delete(id: &str, reason: &str, confirm: &str, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let tenant = client.send(Call::get(path(&["tenants", id]))).await?;
    if tenant.attributes()["slug"] != confirm {
        return Err(hinted(
            format!("'{confirm}' is not the slug of this tenant; nothing was deleted."),
            "say the slug of the tenant that is to be deleted: --confirm SLUG",
        ));
    }
    show_one(client, Call::delete(path(&["tenants", id])).query("reason", Some(reason)), output).await
}
