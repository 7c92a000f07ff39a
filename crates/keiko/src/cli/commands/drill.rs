//! `keiko drill`: tries what would be done after a disaster, and measures it.

use super::backup::online;
use crate::backup::place;
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::{Output, SettingFlags, print};
use crate::drill::{self, Drilled};
use app::Timestamp;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// Shown below the help of `keiko drill`.
pub const EXAMPLES: &str = "\
Examples:
  keiko drill restore --from /var/backups/keiko/ --keys /etc/keiko/keys
  keiko drill restore --keys ./.keiko/keys            # makes a backup first

RPO: how much would be lost, were the newest backup needed now. RTO: how long from reading it to a server that is ready.
Exit status: 1 when one of them is larger than it may be. The drill works in a folder of its own, which it removes; with
KEIKO_DRILL_DATABASE_URL it restores into that empty database instead.";

/// What `keiko drill` can do.
#[derive(Subcommand)]
pub enum DrillCommand {
    /// Restore the newest backup, start a server on it, and print RPO and RTO
    Restore(Restore),
}

/// Arguments of `keiko drill restore`.
#[derive(Args)]
pub struct Restore {
    /// A backup, or a folder with backups, of which the newest is meant; a new one is made when nothing is said
    #[arg(long, value_name = "FILE|FOLDER")]
    from: Option<PathBuf>,
    /// The folder with the key files [default: those of the settings]
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// Seconds of work that may be lost
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    rpo_max: u64,
    /// Seconds until there may be a server again
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    rto_max: u64,
    #[command(flatten)]
    settings: SettingFlags,
}

/// Runs `keiko drill`.
pub async fn run(command: DrillCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let DrillCommand::Restore(args) = command;
    let keys = match &args.keys {
        Some(keys) => keys.clone(),
        None => args.settings.settings()?.keys_dir,
    };
    let made = match &args.from {
        Some(_) => None,
        None => {
            let path = place(&std::env::temp_dir().join(format!("keiko-drill-{}.backup", crate::cli::nonce())), now());
            Some(online(client, path).await?.0)
        }
    };
    let from = args.from.clone().or(made.clone()).unwrap_or_default();
    let drilled = tokio::select! {
        biased;
        stopped = super::interrupted() => Err(stopped),
        drilled = drill::restore(&from, &keys) => drilled,
    };
    if let Some(made) = made {
        std::fs::remove_file(made)?;
    }
    let drilled = drilled?;
    let lost = lost(client, &drilled).await;
    tell(&drilled, &lost, &args, output)
}

fn now() -> Timestamp {
    engine::Env::system().now()
}

/// What is newer than the backup.
struct Lost {
    events: Option<u64>,
    rpo: Duration,
    /// Why the server's log could not be looked at.
    why: Option<String>,
}

/// How old the first event is that the backup lacks. When nobody answers, the time since the backup is all that is known.
async fn lost(client: &mut Client, drilled: &Drilled) -> Lost {
    let since = |at: Timestamp| Duration::from_millis(now().0.saturating_sub(at.0).max(0).cast_unsigned());
    let call = Call::get("events").query("after", Some(drilled.position)).query("limit", Some(1));
    let first = client.send(call).await;
    let head = client.send(Call::get("tenants").query("limit", Some(1))).await.ok().and_then(|answer| answer.position());
    match (first, head) {
        (Ok(first), Some(head)) => {
            let at = first.items().first().and_then(|event| event["timestamp"].as_str()?.parse().ok());
            Lost { events: Some(head.saturating_sub(drilled.position)), rpo: at.map_or(Duration::ZERO, since), why: None }
        }
        (first, _) => {
            let why = first.err().map_or("tenants.read is missing".to_owned(), |error| error.to_string());
            Lost { events: None, rpo: since(drilled.created_at), why: Some(why) }
        }
    }
}

fn tell(drilled: &Drilled, lost: &Lost, args: &Restore, output: Output) -> anyhow::Result<()> {
    let seconds = |duration: Duration| (duration.as_secs_f64() * 100.0).round() / 100.0;
    output.one(&json!({
        "id": drilled.path.display().to_string(),
        "type": "drill",
        "attributes": {
            "rpo_s": seconds(lost.rpo),
            "rto_s": seconds(drilled.ready),
            "restore_s": seconds(drilled.restore),
            "backup_at": drilled.created_at.to_string(),
            "newer_events": lost.events,
            "events": drilled.events,
            "journal_entries": drilled.entries,
        },
    }))?;
    if let Some(why) = &lost.why {
        print::note(&format!("The server's log was not read, so RPO is the time since the backup was made: {why}"));
    }
    match lost.rpo.as_secs() > args.rpo_max || drilled.ready.as_secs() > args.rto_max {
        false => Ok(()),
        true => Err(hinted(
            format!("RPO or RTO is larger than it may be ({} s, {} s).", args.rpo_max, args.rto_max),
            "make backups more often, or look at what makes the restore slow",
        )),
    }
}
