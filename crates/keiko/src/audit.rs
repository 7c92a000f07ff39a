//! `keiko audit verify` on what lies on this machine, or in a database: opens the record as a server would, and changes
//! nothing. What was seen and believed is remembered, so that a record that is rewritten later is found out.

use crate::Settings;
use anyhow::{Context, bail};
use app::{SealingKey, Tree, VerifierKey, check_ed25519, origin};
use engine::verify::{Trust, Verified, verify_journal, verify_log};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use store::journal::Journal;
use store::sqlite::{Directory, SqliteJournal, SqliteSettings, SqliteStore};
use store::{Store, tree::TreeStore};

/// What was found of one tree.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Its name.
    pub tree: String,
    /// Entries that were looked at.
    pub entries: u64,
    /// Of those, how many have lost their content by erasure or retention.
    pub erased: u64,
    /// How many are under the signed checkpoint.
    pub sealed: u64,
    /// The root of those, in hexadecimal.
    pub root: Option<String>,
    /// The key that signed, as `name+id+key`.
    pub key: String,
    /// Whether all is whole.
    pub is_whole: bool,
    /// The first thing that is wrong.
    pub problem: Option<String>,
    /// Where.
    pub position: Option<u64>,
    /// Which entry.
    pub id: Option<String>,
}

impl Found {
    /// What a verification came to.
    pub fn of(key: &VerifierKey, verified: Verified) -> Self {
        let wrong = verified.wrong;
        Found {
            tree: key.name.clone(),
            entries: verified.entries,
            erased: verified.erased,
            sealed: verified.sealed,
            root: verified.root.map(|root| root.iter().map(|byte| format!("{byte:02x}")).collect()),
            key: key.to_string(),
            is_whole: wrong.is_none(),
            position: wrong.as_ref().and_then(|wrong| wrong.position),
            id: wrong.as_ref().and_then(|wrong| wrong.id.clone()),
            problem: wrong.map(|wrong| wrong.problem),
        }
    }
}

/// Checkpoints that were seen and believed, one file for each tree.
pub struct Memory {
    folder: Option<PathBuf>,
    /// Whether what was seen before does not count any more.
    is_anew: bool,
}

impl Memory {
    /// In a folder; nowhere when there is none.
    pub fn at(folder: Option<PathBuf>) -> Self {
        Memory { folder, is_anew: false }
    }

    /// The same, where what was seen before does not count any more.
    pub fn anew(folder: Option<PathBuf>) -> Self {
        Memory { folder, is_anew: true }
    }

    fn file(&self, tree: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(tree.replace('/', "_")))
    }

    /// What is trusted of a tree: a key that was given, else the one that was seen before, else `shown`.
    pub fn trust(&self, tree: &str, given: Option<&VerifierKey>, shown: VerifierKey) -> anyhow::Result<Trust<'static>> {
        let remembered = self.file(tree).filter(|_| !self.is_anew).and_then(|file| std::fs::read_to_string(file).ok());
        let (mut key, mut known) = (shown, vec![]);
        if let Some((line, note)) = remembered.as_deref().and_then(|text| text.split_once('\n')) {
            key = VerifierKey::parse(line).with_context(|| format!("what was remembered of {tree} cannot be read; remove it"))?;
            known.extend(engine::verify::checkpoint_of(note, &key, &check_ed25519));
        }
        if let Some(given) = given {
            key = VerifierKey { name: tree.to_owned(), ..given.clone() };
        }
        Ok(Trust { key, known, check: &check_ed25519 })
    }

    /// Remembers what was found whole.
    pub fn keep(&self, tree: &str, key: &VerifierKey, note: &str) -> anyhow::Result<()> {
        let Some(file) = self.file(tree) else { return Ok(()) };
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make '{}'", folder.display()))?;
        }
        std::fs::write(&file, format!("{key}\n{note}")).with_context(|| format!("cannot write '{}'", file.display()))
    }
}

/// Verifies every tree of a data directory whose server is stopped.
pub async fn verify_directory(path: &Path, given: Option<&VerifierKey>, memory: &Memory) -> anyhow::Result<Vec<Found>> {
    if !path.join("FORMAT").exists() {
        bail!("'{}' is no data directory of Keiko", path.display());
    }
    let directory = Directory::open(path)?;
    let keys = directory.keys();
    let settings = SqliteSettings { disk_free_min_bytes: 0 };
    let journal = SqliteJournal::open(&directory, &settings)?;
    let store = SqliteStore::open(directory, &settings)?;
    let found = verify_all(&store, &journal, &keys, given, memory).await;
    journal.close().await;
    store.close().await;
    found
}

/// Verifies every tree of the database in the settings. Servers may be running.
pub async fn verify_database(settings: &Settings, given: Option<&VerifierKey>, memory: &Memory) -> anyhow::Result<Vec<Found>> {
    let Some(database) = &settings.database else { bail!("KEIKO_DATABASE_URL is not set") };
    let store = store::postgres::PostgresStore::open_as_is(database).await?;
    let journal = store::postgres::PostgresJournal::open(database, &store)?;
    verify_all(&store, &journal, &settings.keys_dir, given, memory).await
}

/// Says on a terminal how far a long verification has come.
fn progress(tree: &str) -> impl FnMut(u64) + Send + use<> {
    const EVERY: u64 = 100_000;
    let (tree, is_shown) = (tree.to_owned(), std::io::stderr().is_terminal());
    move |position| {
        if is_shown && position % EVERY == 0 {
            eprintln!("{tree}: {position} entries were looked at");
        }
    }
}

async fn verify_all(
    store: &dyn Store,
    journal: &dyn Journal,
    keys: &Path,
    given: Option<&VerifierKey>,
    memory: &Memory,
) -> anyhow::Result<Vec<Found>> {
    let own = std::fs::read(keys.join("checkpoint.pkcs8")).ok().and_then(|pkcs8| SealingKey::new(&pkcs8).ok());
    let mut found = vec![];
    for tenant in store.logs().await? {
        for tree in Tree::ALL {
            let name = origin(tenant, tree);
            let shown = own.as_ref().map(|own| own.verifier(&name)).or(given.cloned());
            let Some(shown) = shown else { bail!("there is no key file '{}'; give the public key with --key", keys.display()) };
            let trust = memory.trust(&name, given, shown)?;
            let trees: &dyn TreeStore = if tree == Tree::Log { store } else { journal };
            // Read before the entries: what is written meanwhile is not sealed by it.
            let sealed = trees.sealed(tenant).await?;
            let verified = match tree {
                Tree::Log => verify_log(store, tenant, &trust, progress(&name)).await?,
                Tree::Journal => verify_journal(journal, tenant, &trust, progress(&name)).await?,
            };
            if let (None, Some(sealed)) = (&verified.wrong, sealed) {
                memory.keep(&name, &trust.key, &sealed.note)?;
            }
            found.push(Found::of(&trust.key, verified));
        }
    }
    Ok(found)
}
