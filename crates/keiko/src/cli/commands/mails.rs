//! `keiko mails`: invitations, proofs of addresses and ways to a new password, and whether they went out.
//!
//! Owns the command's arguments and columns. Never sees a link: only the mail holds it.

use super::{Paging, Past, Target, show_list, show_past};
use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::Subcommand;

/// Shown below the help of `keiko mails`.
pub const EXAMPLES: &str = "\
Examples:
  keiko users invite maria@example.com --role developer
  keiko mails list
  keiko mails revoke mail_01h...

A mail that cannot be handed over waits and is tried again; its link is good for as long as 'keiko mails get' says.";

const COLUMNS: [Column; 6] = [
    Column::id("ID", "/id"),
    Column::text("PURPOSE", "/attributes/purpose"),
    Column::text("EMAIL", "/attributes/email"),
    Column::text("STATUS", "/attributes/status"),
    Column::time("EXPIRES", "/attributes/expires_at"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko mails` can do.
#[derive(Subcommand)]
pub enum MailsCommand {
    /// List mails
    List(Paging),
    /// Show one mail
    Get(Past),
    /// Let the link of a mail lead nowhere
    Revoke(Target),
}

/// Runs `keiko mails`.
pub async fn run(command: MailsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        MailsCommand::List(paging) => show_list(client, Call::get("mails"), &paging, &COLUMNS, output).await,
        MailsCommand::Get(mail) => show_past(client, "mails", &mail, output).await,
        MailsCommand::Revoke(mail) => {
            client.send(Call::delete(path(&["mails", &mail.id]))).await?;
            output.done(&format!("The link of {} leads nowhere any more.", mail.id))
        }
    }
}
