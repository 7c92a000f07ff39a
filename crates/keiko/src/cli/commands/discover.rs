//! `keiko discover`: which agents can do something, best first, and why in this order.
//!
//! Owns the command's arguments and columns. Never ranks: the server does, and says why.

use super::{Paging, show_list};
use crate::cli::Output;
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::Args;

/// Shown below the help of `keiko discover`.
pub const EXAMPLES: &str = "\
Examples:
  keiko discover --capability review-code --healthy
  keiko discover --q 'rust security' --tag production";

const COLUMNS: [Column; 6] = [
    Column::id("AGENT", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("STATUS", "/attributes/status"),
    Column::number("SCORE", "/attributes/score"),
    Column::text("REASONS", "/attributes/reasons"),
    Column::text("CAPABILITIES", "/attributes/capabilities"),
];

/// Arguments of `keiko discover`.
#[derive(Args)]
pub struct Discover {
    /// Only agents with this capability
    #[arg(long)]
    capability: Option<String>,
    /// Words to look for in names, descriptions and capabilities
    #[arg(long = "q", value_name = "TEXT")]
    text: Option<String>,
    /// Only agents with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only agents that can take work now
    #[arg(long)]
    healthy: bool,
    /// How much of the list
    #[command(flatten)]
    paging: Paging,
}

/// Runs `keiko discover`.
pub async fn run(args: Discover, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let call = Call::get("discovery")
        .query("capability", args.capability)
        .query("q", args.text)
        .query("tag", args.tag)
        .query("healthy", args.healthy.then_some(true));
    show_list(client, call, &args.paging, &COLUMNS, output).await
}
