//! `keiko audit`: checks that nobody has changed the record, online or on what lies here, and proves single events.
//!
//! Online it trusts nothing that the server says without a proof: it computes every hash itself.

use crate::Settings;
use crate::audit::{Found, Memory, verify_database, verify_directory};
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::credentials::Store;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use crate::cli::{Connection, Output, print};
use crate::settings::Layers;
use app::{TILE_WIDTH, Tile, Tree, VerifierKey};
use clap::{Args, Subcommand};
use engine::verify::{Leaf, published, split_bundle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Shown below the help of `keiko audit`.
pub const EXAMPLES: &str = "\
Examples:
  keiko audit verify
  keiko audit verify --from ./.keiko
  keiko audit verify --from now.backup
  keiko audit key > keiko.key; keiko audit verify --key \"$(grep /log keiko.key)\"
  keiko audit prove evt_01h...";

const COLUMNS: [Column; 6] = [
    Column::id("TREE", "/tree"),
    Column::text("ENTRIES", "/entries"),
    Column::text("ERASED", "/erased"),
    Column::text("SEALED", "/sealed"),
    Column::text("WHOLE", "/is_whole"),
    Column::id("ROOT", "/root"),
];

/// What `keiko audit` can do.
#[derive(Subcommand)]
pub enum AuditCommand {
    /// Check every entry of the log and the journal against the signed checkpoint
    #[command(after_help = "Exit status: 0 when all is whole, 1 when something is wrong; then the first bad entry is named.\n\
        What was found whole is remembered: the next time the record must contain it.")]
    Verify(Verify),
    /// Show the latest signed checkpoint
    Checkpoint(TreeArg),
    /// Show the public keys that sign checkpoints; keep them where the server cannot change them
    Key,
    /// Prove that an event is in the record, and check the proof
    Prove(Prove),
}

/// Arguments of `keiko audit verify`.
#[derive(Args)]
pub struct Verify {
    /// A data directory whose server is stopped, the address of a server, a backup, or 'database' for the one in
    /// KEIKO_DATABASE_URL [default: the server you are logged in to]
    #[arg(long, value_name = "DIRECTORY|URL|BACKUP|database")]
    from: Option<String>,
    /// The public key that must have signed, as 'keiko audit key' showed it
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Neither use nor keep what was seen before
    #[arg(long)]
    forget: bool,
    /// Forget what was seen before and keep what is seen now, after a restore of an older backup
    #[arg(long, conflicts_with = "forget")]
    accept: bool,
}

/// Which tree.
#[derive(Args)]
pub struct TreeArg {
    /// log or journal
    #[arg(default_value = "log", value_parser = ["log", "journal"])]
    tree: String,
}

/// Arguments of `keiko audit prove`.
#[derive(Args)]
pub struct Prove {
    /// The event's id
    #[arg(value_name = "EVENT")]
    event: String,
}

/// Runs `keiko audit`.
pub async fn run(command: AuditCommand, client: &mut Client, connection: &Connection) -> anyhow::Result<()> {
    let output = connection.output;
    match command {
        AuditCommand::Verify(args) => verify(args, client, connection).await,
        AuditCommand::Checkpoint(args) => print::line(text(client, &args.tree, "checkpoint").await?.trim_end()),
        AuditCommand::Key => {
            for tree in Tree::ALL {
                print::line(text(client, tree.as_str(), "key").await?.trim_end())?;
            }
            Ok(())
        }
        AuditCommand::Prove(args) => prove(args, client, output).await,
    }
}

async fn verify(args: Verify, client: &mut Client, connection: &Connection) -> anyhow::Result<()> {
    let key = match &args.key {
        Some(text) => Some(VerifierKey::parse(text.trim()).ok_or_else(|| {
            hinted("The key is not of the form name+id+key.", "copy the whole line that 'keiko audit key' prints")
        })?),
        None => None,
    };
    let folder = if args.forget { None } else { Store::of_user().ok().map(|store| store.checkpoints()) };
    let memory = if args.accept { Memory::anew(folder) } else { Memory::at(folder) };
    let found = match args.from.as_deref() {
        None => online(client, key.as_ref(), &memory).await?,
        Some("database") => {
            let layers = Layers::read(&BTreeMap::new(), &std::env::vars().collect())?;
            verify_database(&Settings::from_layers(&layers)?, key.as_ref(), &memory).await?
        }
        Some(url) if url.contains("://") => {
            let mut other = Client::connect(&connection.at(url))?;
            online(&mut other, key.as_ref(), &memory).await?
        }
        Some(path) if is_backup(&PathBuf::from(path)) => {
            let backup = crate::backup::newest(&PathBuf::from(path))?;
            let shown = match &key {
                Some(key) => key.clone(),
                None => super::backup::key_of(client).await.map_err(|error| {
                    error.context("a backup is held against the key that must have signed it; give it with --key")
                })?,
            };
            crate::backup::verify(&backup, &shown, key.as_ref(), &memory)?
        }
        Some(missing) if !PathBuf::from(missing).exists() => {
            return Err(hinted(format!("'{missing}' does not exist."), "name a data directory, a backup or an address"));
        }
        Some(directory) => verify_directory(&PathBuf::from(directory), key.as_ref(), &memory).await?,
    };
    let rows: Vec<serde_json::Value> = found.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    connection.output.list(&rows, &COLUMNS)?;
    match found.iter().find(|tree| !tree.is_whole) {
        None => Ok(()),
        Some(bad) => {
            let place = match (bad.position, &bad.id) {
                (Some(position), Some(id)) => format!(" at position {position} ({id})"),
                (Some(position), None) => format!(" at position {position}"),
                _ => String::new(),
            };
            let problem = bad.problem.as_deref().unwrap_or_default();
            let hint = "compare with a backup and with checkpoints that others hold, before anything is written again; \
                        if this was restored from a backup older than what was seen, that is expected: --accept takes it as it is now";
            Err(hinted(format!("{} is not whole{place}: {problem}.", bad.tree), hint))
        }
    }
}

/// A file, or a folder that holds backups and is no data directory.
fn is_backup(path: &Path) -> bool {
    path.is_file() || (path.is_dir() && !path.join("FORMAT").exists() && crate::backup::newest(path).is_ok())
}

/// A text that the server gives about a tree.
async fn text(client: &mut Client, tree: &str, what: &str) -> anyhow::Result<String> {
    let response = client.open(&Call::get(path(&["audit", tree, what]))).await?;
    Ok(response.text().await?)
}

async fn bytes(client: &mut Client, tree: &str, tile: &str) -> anyhow::Result<Vec<u8>> {
    let call = Call::get(format!("audit/{tree}/tile/{tile}"));
    Ok(client.open(&call).await?.bytes().await?.to_vec())
}

async fn online(client: &mut Client, given: Option<&VerifierKey>, memory: &Memory) -> anyhow::Result<Vec<Found>> {
    let mut found = vec![];
    for tree in Tree::ALL {
        let word = tree.as_str();
        let shown = text(client, word, "key").await?;
        let shown = VerifierKey::parse(shown.trim()).ok_or_else(|| hinted("The server shows no usable key.", "report this"))?;
        let name = shown.name.clone();
        let trust = memory.trust(&name, given, shown)?;
        let note = match text(client, word, "checkpoint").await {
            Ok(note) => Some(note),
            Err(error) if format!("{error:#}").contains("CHECKPOINT_NOT_FOUND") => None,
            Err(error) => return Err(error),
        };
        let mut verifier = trust.verifier(note.as_deref());
        let size = verifier.sealed();
        for number in 0..size.div_ceil(TILE_WIDTH) {
            let width = (size - number * TILE_WIDTH).min(TILE_WIDTH);
            let place = |level| Tile { level, index: number, width: width as u16 }.path();
            let (bundle, tile) = (bytes(client, word, &place(None)).await?, bytes(client, word, &place(Some(0))).await?);
            let entries = split_bundle(&bundle).ok_or_else(|| hinted("A bundle of entries is cut short.", "report this"))?;
            for (n, entry) in entries.iter().enumerate() {
                let position = number * TILE_WIDTH + n as u64 + 1;
                let unreadable = || Leaf {
                    position,
                    id: String::new(),
                    hash: [0; 32],
                    problem: Some("it is no entry".into()),
                    is_erased: false,
                };
                let leaf = published(entry, tree == Tree::Log).unwrap_or_else(unreadable);
                verifier.push(leaf, tile.get(n * 32..n * 32 + 32));
            }
        }
        let verified = verifier.end();
        if let (None, Some(note)) = (&verified.wrong, &note) {
            memory.keep(&name, &trust.key, note)?;
        }
        found.push(Found::of(&trust.key, verified));
    }
    Ok(found)
}

async fn prove(args: Prove, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let answer = client.send(Call::get("audit/log/inclusion").query("event", Some(&args.event))).await?;
    let shown = text(client, "log", "key").await?;
    let shown = VerifierKey::parse(shown.trim()).ok_or_else(|| hinted("The server shows no usable key.", "report this"))?;
    let memory = Memory::at(Store::of_user().ok().map(|store| store.checkpoints()));
    let trust = memory.trust(&shown.name.clone(), None, shown)?;
    let proof = app::CheckedProof::of(answer.attributes(), &trust.key)
        .map_err(|problem| hinted(format!("The server's proof proves nothing: {problem}."), "run: keiko audit verify"))?;
    output.one(answer.data())?;
    print::note(&format!(
        "The proof is right: the event is number {} of the {} under the signed root.",
        proof.position, proof.size
    ));
    Ok(())
}
