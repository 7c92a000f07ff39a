//! `keiko erasures`: removing what is kept of a person.

use super::{Paging, Past, show_list, show_one, show_past};
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use crate::cli::{Output, input, print};
use clap::{Args, Subcommand};
use std::time::Duration;

/// Shown below the help of `keiko erasures`.
pub const EXAMPLES: &str = "\
Examples:
  keiko erasures create maria --yes
  keiko erasures list

What goes: the account, its sessions and keys, the tasks that the person submitted with everything that came of them, and
journal entries by or about the person. What stays: hashes and headers, so that the record can be verified, and what the
person set up for others. Backups made before still hold everything: see the guide on backups.";

const COLUMNS: [Column; 5] = [
    Column::id("ID", "/id"),
    Column::id("SUBJECT", "/attributes/subject"),
    Column::text("STATUS", "/attributes/status"),
    Column::text("EVENTS", "/attributes/result/events"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// How long between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What `keiko erasures` can do.
#[derive(Subcommand)]
pub enum ErasuresCommand {
    /// List erasures
    List(Paging),
    /// Show one erasure
    Get(Past),
    /// End a person's account and erase what is kept of the person; it cannot be undone
    Create(Create),
}

/// Arguments of `keiko erasures create`.
#[derive(Args)]
pub struct Create {
    /// The person: a user's id or name
    #[arg(value_name = "USER", value_parser = input::handle)]
    subject: String,
    /// Do it; without this nothing happens
    #[arg(long)]
    yes: bool,
    /// Do not wait until everything is removed
    #[arg(long)]
    no_wait: bool,
}

/// Runs `keiko erasures`.
pub async fn run(command: ErasuresCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ErasuresCommand::List(paging) => show_list(client, Call::get("erasures"), &paging, &COLUMNS, output).await,
        ErasuresCommand::Get(erasure) => show_past(client, "erasures", &erasure, output).await,
        ErasuresCommand::Create(args) => create(args, client, output).await,
    }
}

async fn create(args: Create, client: &mut Client, output: Output) -> anyhow::Result<()> {
    if !args.yes {
        return Err(hinted(
            format!("This would erase what is kept of '{}', for ever.", args.subject),
            "repeat the command with --yes if that is what you want",
        ));
    }
    let body = Fields::default().with("subject", Some(args.subject));
    let asked = client.send(Call::append("erasures", body)).await?;
    let id = asked.data().get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
    if args.no_wait || id.is_empty() {
        return output.one(asked.data());
    }
    loop {
        let erasure = client.send(Call::get(path(&["erasures", &id]))).await?;
        if erasure.attributes().get("status").is_some_and(|status| status == "completed") {
            print::note(
                "Backups made before still hold what was erased. Make a new one into the same folder now: only then does a restore of the older ones erase it again.",
            );
            return show_one(client, Call::get(path(&["erasures", &id])), output).await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
