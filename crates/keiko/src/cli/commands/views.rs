//! `keiko views`: what is folded from the log for reading, and building it anew.

use super::show_one;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use crate::cli::{Output, input, print};
use clap::{Args, Subcommand};
use std::io::IsTerminal;
use std::time::Duration;

/// Shown below the help of `keiko views`.
pub const EXAMPLES: &str = "\
Examples:
  keiko views list
  keiko views rebuild agent_stats

A rebuild goes on beside the view in use, which stays current; the new one takes its place when it has caught up.";

const COLUMNS: [Column; 5] = [
    Column::id("NAME", "/id"),
    Column::text("VERSION", "/attributes/version"),
    Column::text("REBUILDS", "/attributes/rebuilds"),
    Column::text("CHECKPOINT", "/attributes/position"),
    Column::text("REBUILDING", "/attributes/rebuilding/position"),
];

/// How long between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What `keiko views` can do.
#[derive(Subcommand)]
pub enum ViewsCommand {
    /// List views with where they stand
    List,
    /// Build a view anew
    Rebuild(Rebuild),
}

/// Arguments of `keiko views rebuild`.
#[derive(Args)]
pub struct Rebuild {
    /// Its name
    #[arg(value_name = "VIEW", value_parser = input::handle)]
    view: String,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
}

/// Runs `keiko views`.
pub async fn run(command: ViewsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ViewsCommand::List => output.list(client.send(Call::get("views")).await?.items(), &COLUMNS),
        ViewsCommand::Rebuild(args) => rebuild(args, client, output).await,
    }
}

async fn rebuild(args: Rebuild, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let asked = client.send(Call::action(&["views", &args.view, "actions", "rebuild"])).await?;
    let id = asked.id()?.to_owned();
    if args.no_wait {
        return output.one(asked.data());
    }
    let mut said = String::new();
    loop {
        let rebuild = client.send(Call::get(path(&["rebuilds", &id]))).await?;
        if rebuild.text("status")? == "completed" {
            return show_one(client, Call::get(path(&["rebuilds", &id])), output).await;
        }
        let views = client.send(Call::get("views")).await?;
        let view = views.items().iter().find(|view| view["id"] == *args.view);
        let progress = view.map(|view| &view["attributes"]["rebuilding"]).filter(|progress| !progress.is_null());
        if let Some(progress) = progress.filter(|_| std::io::stderr().is_terminal()) {
            let now = format!("{} of {} events", progress["position"], progress["of"]);
            if now != said {
                print::note(&now);
                said = now;
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
