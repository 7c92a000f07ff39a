//! `keiko backup`: everything in one file, and back again.
//!
//! A backup is read and checked as soon as it is made; one that is not whole never gets its name.

use crate::backup::{self, Incoming, Order};
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::{hinted, is_busy};
use crate::cli::{Output, SettingFlags, print};
use anyhow::Context;
use app::backup::{Contents, Restored, Until};
use app::{Timestamp, Tree, VerifierKey};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Shown below the help of `keiko backup`.
pub const EXAMPLES: &str = "\
Examples:
  keiko backup create /var/backups/keiko/          # a new file in a folder, while the server works
  keiko backup create now.backup --offline --data-dir ./.keiko
  keiko backup show /var/backups/keiko/
  keiko backup restore /var/backups/keiko/ --data-dir ./new --keys ./.keiko/keys
  keiko backup restore now.backup --data-dir ./new --keys ./keys --until 2026-01-01T09:00:00Z

A backup holds no key files: copy the folder 'keys' of the data directory once, to another place than the backups.
KEIKO_DATABASE_URL decides whether a restore goes to a database instead of a data directory.";

/// How long a backup waits for an erasure, and between two looks.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What `keiko backup` can do.
#[derive(Subcommand)]
pub enum BackupCommand {
    /// Make a backup of everything, while the server works, and check it
    Create(Create),
    /// Check a backup and show what it holds
    Show(Show),
    /// Restore a backup into a new data directory or an empty database
    Restore(Box<Restore>),
}

/// Arguments of `keiko backup create`.
#[derive(Args)]
pub struct Create {
    /// A new file, or a folder that gets a new file
    #[arg(value_name = "FILE|FOLDER")]
    path: PathBuf,
    /// Read the data directory of a stopped server, or the database in KEIKO_DATABASE_URL, instead of asking a server
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    settings: SettingFlags,
}

/// Arguments of `keiko backup show`.
#[derive(Args)]
pub struct Show {
    /// A backup, or a folder with backups, of which the newest is meant
    #[arg(value_name = "FILE|FOLDER")]
    path: PathBuf,
    /// The folder with the key files that belong to it; the server's public key when nothing is said
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
}

/// Arguments of `keiko backup restore`.
#[derive(Args)]
pub struct Restore {
    /// A backup, or a folder with backups, of which the newest is meant
    #[arg(value_name = "FILE|FOLDER")]
    path: PathBuf,
    /// The folder with the key files that belong to it; they are copied. Not needed when they are where they will be
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// As it was at an instant, or at a position of the default tenant's log
    #[arg(long, value_name = "TIME|POSITION", value_parser = until)]
    until: Option<Until>,
    /// A newer backup, or an erasures.json, that knows who was erased since; the list beside the backup is always used
    #[arg(long, value_name = "FILE")]
    erasures: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingFlags,
}

fn until(text: &str) -> Result<Until, String> {
    match (text.parse::<u64>(), text.parse::<Timestamp>()) {
        (Ok(position), _) => Ok(Until::Position(position)),
        (_, Ok(time)) => Ok(Until::Time(time)),
        _ => Err("is no position, such as 4711, and no instant, such as 2026-01-01T00:00:00Z".into()),
    }
}

/// Runs `keiko backup`.
pub async fn run(command: BackupCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        BackupCommand::Create(args) => {
            let path = backup::place(&args.path, engine::Env::system().now());
            let made = async {
                match args.offline {
                    true => offline(&args, path).await,
                    false => online(client, path).await,
                }
            };
            // Interrupted, what came so far is removed.
            let (path, contents) = tokio::select! {
                biased;
                stopped = super::interrupted() => return Err(stopped),
                made = made => made?,
            };
            backup::remember_erasures(&path, &contents)
                .with_context(|| format!("'{}' is made, but erasures.json beside it could not be written", path.display()))?;
            output.one(&shown(&path, &contents)?)
        }
        BackupCommand::Show(args) => {
            let path = backup::newest(&args.path)?;
            let key = match &args.keys {
                Some(folder) => backup::own_key(folder)?,
                None => key_of(client).await.map_err(without_server)?,
            };
            let contents = backup::check(&path, &key)?;
            output.one(&shown(&path, &contents)?)?;
            whole(&contents)
        }
        BackupCommand::Restore(args) => restore(*args, output).await,
    }
}

fn without_server(error: anyhow::Error) -> anyhow::Error {
    error.context("a backup is checked against the key that signed it; without a server give the key files with --keys")
}

/// The public key of the server, which signs its backups.
pub async fn key_of(client: &mut Client) -> anyhow::Result<VerifierKey> {
    let text = client.open(&Call::get(path(&["audit", "log", "key"]))).await?.text().await?;
    VerifierKey::parse(text.trim()).ok_or_else(|| hinted("The server shows no usable key.", "report this"))
}

/// A backup of a running server.
pub async fn online(client: &mut Client, path: PathBuf) -> anyhow::Result<(PathBuf, Contents)> {
    let key = key_of(client).await?;
    let mut incoming = Incoming::begin(path)?;
    let mut response = begin(client).await?;
    let mut said = Instant::now();
    while let Some(part) = response.chunk().await.context("the backup broke off; the server's log says why")? {
        incoming.write(&part)?;
        say(&mut said, || format!("{} MiB", incoming.bytes >> 20));
    }
    checked(incoming, &key)
}

/// A person that is being erased is waited for.
async fn begin(client: &mut Client) -> anyhow::Result<reqwest::Response> {
    let late = Instant::now() + PATIENCE;
    loop {
        match client.open(&Call::post("backups", json!({})).stream_after(None)).await {
            Err(error) if is_busy(&error) && Instant::now() < late => {
                print::note(&error.to_string());
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            other => return other,
        }
    }
}

async fn offline(args: &Create, path: PathBuf) -> anyhow::Result<(PathBuf, Contents)> {
    let settings = args.settings.settings()?;
    let mut incoming = Incoming::begin(path)?;
    let (mut backup, parts) = backup::of_settings(&settings).await?;
    let mut said = Instant::now();
    let mut broken = None;
    while let Some(part) = backup.recv().await {
        match part {
            Ok(part) => incoming.write(&part)?,
            Err(error) => broken = Some(error),
        }
        say(&mut said, || format!("{} MiB", incoming.bytes >> 20));
    }
    parts.journal.close().await;
    parts.store.close().await;
    if let Some(error) = broken {
        return Err(error.into());
    }
    checked(incoming, &backup::own_key(&settings.keys_dir)?)
}

/// Reads the backup again as it lies on the disk; only a whole one is kept.
fn checked(incoming: Incoming, key: &VerifierKey) -> anyhow::Result<(PathBuf, Contents)> {
    let contents = backup::check(incoming.written()?, key)?;
    whole(&contents)?;
    Ok((incoming.keep()?, contents))
}

fn whole(contents: &Contents) -> anyhow::Result<()> {
    let bad = contents.trees.iter().find_map(|tree| Some((tree, tree.verified.wrong.as_ref()?)));
    match bad {
        None => Ok(()),
        Some((tree, wrong)) => {
            let place = wrong.position.map(|position| format!(" at position {position}")).unwrap_or_default();
            let message = format!("{} is not whole{place}: {}.", app::origin(tree.tenant, tree.tree), wrong.problem);
            Err(hinted(message, "run: keiko audit verify"))
        }
    }
}

fn shown(path: &Path, contents: &Contents) -> anyhow::Result<Value> {
    let count = |tree: Tree| contents.trees.iter().filter(|t| t.tree == tree).map(|t| t.verified.entries).sum::<u64>();
    let erased: u64 = contents.trees.iter().map(|tree| tree.verified.erased).sum();
    Ok(json!({
        "id": path.display().to_string(),
        "type": "backup",
        "attributes": {
            "created_at": contents.created_at.to_string(),
            "keiko": contents.keiko,
            "bytes": std::fs::metadata(path)?.len(),
            "tenants": contents.tenants.len(),
            "events": count(Tree::Log),
            "journal_entries": count(Tree::Journal),
            "latest_event_at": contents.last_at.to_string(),
            "without_content": erased,
            "people_erased": contents.erasures.len(),
        },
    }))
}

async fn restore(args: Restore, output: Output) -> anyhow::Result<()> {
    let settings = args.settings.settings()?;
    let path = backup::newest(&args.path)?;
    let key = backup::own_key(args.keys.as_deref().unwrap_or(&settings.keys_dir))?;
    let erased = backup::erasures(&path, args.erasures.as_deref(), &key)?;
    let knew = erased.len();
    let order = Order { path: &path, keys: args.keys.as_deref(), until: args.until.unwrap_or(Until::End), erased };
    let mut said = Instant::now();
    let mut progress = |done| say(&mut said, || format!("{done} events and entries"));
    let restored = backup::restore_to(&settings, &order, &mut progress).await?;
    output.one(&told(&path, &restored))?;
    if args.erasures.is_none() && knew == 0 {
        print::note("If a person was erased since this backup, name a newer backup with --erasures: this one does not know.");
    }
    Ok(())
}

/// What came of a restore.
fn told(path: &Path, restored: &Restored) -> Value {
    json!({
        "id": path.display().to_string(),
        "type": "restore",
        "attributes": {
            "tenants": restored.tenants,
            "events": restored.events,
            "journal_entries": restored.entries,
            "latest_event_at": restored.last_at.to_string(),
            "people_erased_again": restored.erased,
        },
    })
}

/// Says on a terminal how far long work has come, now and then.
fn say(said: &mut Instant, what: impl FnOnce() -> String) {
    if said.elapsed().as_secs() >= 1 && std::io::stderr().is_terminal() {
        print::note(&what());
        *said = Instant::now();
    }
}
