//! `keiko users`: the people of a tenant.
//!
//! Owns the command's arguments and columns. Never takes a password as an argument.

use super::{Paging, Past, Target, show_list, show_one, show_past};
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use crate::cli::{Output, input, print};
use clap::{Args, Subcommand};
use serde_json::json;

/// Shown below the help of `keiko users`.
pub const EXAMPLES: &str = "\
Examples:
  keiko users create --username maria --role developer
  keiko users invite maria@example.com --role developer
  keiko users create --username ci --role developer --password-stdin < password.txt
  keiko users set-password maria
  keiko users set-roles maria --role analyst --role user

Roles: admin, ml-engineer, developer, analyst, user, security-officer, and the tenant's own.";

const COLUMNS: [Column; 5] = [
    Column::id("ID", "/id"),
    Column::id("USERNAME", "/attributes/username"),
    Column::text("EMAIL", "/attributes/email"),
    Column::text("ROLES", "/attributes/roles"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko users` can do.
#[derive(Subcommand)]
pub enum UsersCommand {
    /// List users
    List(Paging),
    /// Show one user
    Get(Past),
    /// Create a user; the password is asked for
    Create(Create),
    /// Invite somebody by mail to make an account of their own
    Invite {
        /// Where the invitation goes
        email: String,
        /// A role; may be repeated
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
    },
    /// Give a user a new password; it is asked for
    SetPassword {
        /// Which user
        #[command(flatten)]
        user: Target,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give a user these roles in place of the present ones
    SetRoles {
        /// Which user
        #[command(flatten)]
        user: Target,
        /// A role; may be repeated
        #[arg(long = "role", value_name = "ROLE", required = true)]
        roles: Vec<String>,
    },
    /// Stop a user at once: sessions end, keys and tokens are refused
    Suspend {
        /// Which user
        #[command(flatten)]
        user: Target,
        /// Why, for the record
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended user work again
    Reinstate(Target),
    /// End every session of a user
    RevokeSessions(Target),
    /// Remove the second factor of a user who has lost it
    RemoveMfa(Target),
    /// Remove a user
    Delete(Target),
}

/// Arguments of `keiko users create`.
#[derive(Args)]
pub struct Create {
    /// Name to log in with
    #[arg(long)]
    username: String,
    /// A role; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Runs `keiko users`.
pub async fn run(command: UsersCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        UsersCommand::List(paging) => show_list(client, Call::get("users"), &paging, &COLUMNS, output).await,
        UsersCommand::Get(user) => show_past(client, "users", &user, output).await,
        UsersCommand::Create(args) => create(args, client, output).await,
        UsersCommand::Invite { email, roles } => invite(email, roles, client, output).await,
        UsersCommand::SetPassword { user, password_stdin } => set_password(&user.id, password_stdin, client, output).await,
        UsersCommand::SetRoles { user, roles } => {
            let body = Fields::default().with("roles", Some(roles));
            show_one(client, Call::put(path(&["users", &user.id]), body), output).await
        }
        UsersCommand::Suspend { user, reason } => {
            let call = Call::append(path(&["users", &user.id, "actions", "suspend"]), json!({ "reason": reason }));
            show_one(client, call, output).await
        }
        UsersCommand::Reinstate(user) => act(client, &user, "reinstate", output).await,
        UsersCommand::RevokeSessions(user) => act(client, &user, "revoke-sessions", output).await,
        UsersCommand::RemoveMfa(user) => act(client, &user, "remove-mfa", output).await,
        UsersCommand::Delete(user) => {
            client.send(Call::delete(path(&["users", &user.id]))).await?;
            output.done(&format!("Removed the user {}.", user.id))
        }
    }
}

async fn act(client: &mut Client, user: &Target, verb: &str, output: Output) -> anyhow::Result<()> {
    show_one(client, Call::action(&["users", &user.id, "actions", verb]), output).await
}

async fn create(args: Create, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let password = input::new_password(args.password_stdin)?;
    let body =
        Fields::default().with("username", Some(args.username)).with("password", Some(password)).with_list("roles", args.roles);
    show_one(client, Call::append("users", body), output).await
}

async fn invite(email: String, roles: Vec<String>, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let body = Fields::default().with("email", Some(email)).with_list("roles", roles);
    let invited = client.send(Call::append("users/actions/invite", body)).await?;
    output.one(invited.data())?;
    if invited.attributes()["link"].is_string() {
        print::note("This server sends no mail. Hand the link over yourself: whoever has it makes the account.");
    }
    Ok(())
}

/// The write replaces the user, so the roles go with it as they are.
async fn set_password(id: &str, from_stdin: bool, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let user = client.send(Call::get(path(&["users", id]))).await?;
    let roles = user.attributes().get("roles").cloned();
    let body = Fields::default().with("password", Some(input::new_password(from_stdin)?)).with("roles", roles);
    client.send(Call::put(path(&["users", id]), body)).await?;
    output.done(&format!("Changed the password of {id}."))
}
