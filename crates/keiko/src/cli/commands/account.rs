//! `keiko account`: what people change about themselves.
//!
//! Owns the command's arguments. Never takes a password as an argument.

use super::{login, show_one};
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::{Output, input};
use clap::Subcommand;
use serde_json::json;

/// Shown below the help of `keiko account`.
pub const EXAMPLES: &str = "\
Examples:
  keiko account show
  keiko account set-password
  keiko account set-email maria@example.com

The present password is asked for; scripts give it in KEIKO_PASSWORD.";

/// What `keiko account` can do.
#[derive(Subcommand)]
pub enum AccountCommand {
    /// Show who you are and what you may do
    Show,
    /// Change your password; your other sessions end
    SetPassword {
        /// Read the new password from standard input
        #[arg(long)]
        password_stdin: bool,
    },
    /// Say which address is yours; it is, once you followed the link of the mail that goes there
    SetEmail {
        /// The address
        email: String,
    },
    /// Forget your address
    RemoveEmail,
}

/// Runs `keiko account`.
pub async fn run(command: AccountCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        AccountCommand::Show => show_one(client, Call::get("auth/me"), output).await,
        AccountCommand::SetPassword { password_stdin } => {
            let current = login::password("Present password", "set KEIKO_PASSWORD")?;
            let body = json!({ "current": current, "new": input::new_password(password_stdin)? });
            client.send(Call::post("auth/password", body)).await?;
            output.done("Changed your password; your other sessions ended.")
        }
        AccountCommand::SetEmail { email } => {
            let body = json!({ "email": email, "password": login::password("Password", "set KEIKO_PASSWORD")? });
            client.send(Call::put("auth/email", body)).await?;
            output.done(&format!("A mail is on its way to {email}: follow its link."))
        }
        AccountCommand::RemoveEmail => {
            client.send(Call::delete("auth/email")).await?;
            output.done("Forgot your address.")
        }
    }
}
