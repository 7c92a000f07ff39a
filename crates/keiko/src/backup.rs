//! Backups on this machine: how they lie in a folder, what is known of erasures beside them, and restoring into a data
//! directory or a database.

use crate::audit::Found;
use crate::{Parts, Settings, keys};
use anyhow::{Context, bail};
use app::backup::{BackupError, Contents, Restored, Source, Target, Until, create, created_at, read, restore};
use app::{SealingKey, TenantId, Timestamp, UserId, VerifierKey, check_ed25519};
use engine::verify::Trust;
use engine::{Engine, Env};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use store::sqlite::{Directory, SqliteJournal, SqliteSettings, SqliteStore};
use tokio::sync::mpsc::Receiver;

/// How the names of backups end.
pub const ENDING: &str = "backup";
/// What is known of erasures, beside the backups of a folder.
const ERASURES: &str = "erasures.json";

/// A person who was erased.
#[derive(Serialize, Deserialize)]
struct Erased {
    tenant: TenantId,
    subject: UserId,
}

/// Where a new backup goes: the file itself, or a new file in a folder.
pub fn place(path: &Path, now: Timestamp) -> PathBuf {
    let is_folder = path.is_dir() || path.as_os_str().to_string_lossy().ends_with('/');
    let stamp: String = now.to_string().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    if is_folder { path.join(format!("keiko-{stamp}.{ENDING}")) } else { path.to_owned() }
}

/// The backup that a path means: the file itself, or the newest in a folder.
pub fn newest(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read the folder '{}'", path.display()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let backups = files.filter(|file| file.extension().is_some_and(|ending| ending == ENDING));
    // By what they say of themselves: names may be anything.
    let newest = backups.filter_map(|file| Some((created_at(&file).ok()?, file))).max().map(|(_, file)| file);
    newest.with_context(|| format!("there is no backup in '{}'", path.display()))
}

/// A file that takes its name only when it is whole and on the disk.
pub struct Incoming {
    file: File,
    part: PathBuf,
    path: PathBuf,
    /// Bytes that came so far.
    pub bytes: u64,
}

impl Incoming {
    /// Begins a file. One that is there is not replaced.
    pub fn begin(path: PathBuf) -> anyhow::Result<Self> {
        if path.exists() {
            bail!("'{}' exists already; choose another name", path.display());
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", &crate::cli::nonce()[..8]));
        let part = path.with_file_name(name);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("cannot make '{}'", folder.display()))?;
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let file = file.with_context(|| format!("cannot write '{}'", part.display()))?;
        Ok(Incoming { file, part, path, bytes: 0 })
    }

    /// The next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes).with_context(|| format!("cannot write '{}'", self.part.display()))
    }

    /// Syncs it, so that it can be read and checked before it gets its name.
    pub fn written(&self) -> anyhow::Result<&Path> {
        self.file.sync_all().with_context(|| format!("cannot sync '{}'", self.part.display()))?;
        Ok(&self.part)
    }

    /// Gives it its name.
    pub fn keep(self) -> anyhow::Result<PathBuf> {
        let taken =
            |error: rustix::io::Errno| anyhow::anyhow!("cannot give the backup its name '{}': {error}", self.path.display());
        renameat_with(CWD, &self.part, CWD, &self.path, RenameFlags::NOREPLACE).map_err(taken)?;
        if let Some(folder) = self.path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder)?.sync_all()?;
        }
        Ok(self.path.clone())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After `keep` there is nothing under this name any more.
        let _ = fs::remove_file(&self.part);
    }
}

/// Makes a backup of a stopped server's data, or of a database.
pub async fn of_settings(settings: &Settings) -> anyhow::Result<(Receiver<Result<Vec<u8>, BackupError>>, Parts)> {
    if settings.database.is_none() && !settings.data_dir.join("FORMAT").exists() {
        bail!("there is no data directory at '{}'; give the server's with --data-dir", settings.data_dir.display());
    }
    let parts = Parts::open(settings).await?;
    let engine = Engine::new(parts.store.clone(), parts.env.clone());
    let source = Source::new(engine, parts.journal.clone(), &parts.keys)?;
    Ok((create(source), parts))
}

/// Checks a backup. A key that is given must have signed all of it; without one it is only checked against itself.
pub fn check(path: &Path, key: &VerifierKey) -> anyhow::Result<Contents> {
    let mut trust = |name: &str| {
        Ok(Trust { key: VerifierKey { name: name.to_owned(), ..key.clone() }, known: vec![], check: &check_ed25519 })
    };
    Ok(read(path, &mut trust, &mut |_| {})?)
}

/// Verifies the record in a backup, against what was seen before.
pub fn verify(
    path: &Path,
    shown: &VerifierKey,
    given: Option<&VerifierKey>,
    memory: &crate::audit::Memory,
) -> anyhow::Result<Vec<Found>> {
    let mut keys = BTreeMap::new();
    let mut trust = |name: &str| {
        let shown = VerifierKey { name: name.to_owned(), ..shown.clone() };
        let mut trust = memory.trust(name, given, shown).map_err(|error| BackupError::Refused(error.to_string()))?;
        // A backup may be older than what was seen.
        trust.known.clear();
        keys.insert(name.to_owned(), trust.key.clone());
        Ok(trust)
    };
    let contents = read(path, &mut trust, &mut |_| {})?;
    let found = contents.trees.into_iter().filter_map(|tree| {
        let key = keys.get(&app::origin(tree.tenant, tree.tree))?;
        Some(Found::of(key, tree.verified))
    });
    Ok(found.collect())
}

/// The key that a backup says it was signed by is worth nothing; this one lies with the key files.
pub fn own_key(folder: &Path) -> anyhow::Result<VerifierKey> {
    let path = folder.join("checkpoint.pkcs8");
    let pkcs8 =
        fs::read(&path).with_context(|| format!("cannot read the key file '{}'; give the folder with --keys", path.display()))?;
    Ok(SealingKey::new(&pkcs8).map_err(anyhow::Error::msg)?.verifier("keiko"))
}

/// Remembers beside a backup whom it knows to be erased, for restores of older backups of the same folder.
pub fn remember_erasures(backup: &Path, contents: &Contents) -> anyhow::Result<usize> {
    let folder = backup.parent().unwrap_or(Path::new("."));
    let file = folder.join(ERASURES);
    let mut known = known_erasures(&file)?;
    known.extend(contents.erasures.iter().copied());
    if known.is_empty() {
        return Ok(0);
    }
    let list: Vec<Erased> = known.iter().map(|(tenant, subject)| Erased { tenant: *tenant, subject: *subject }).collect();
    let part = folder.join(format!("{ERASURES}.{}.part", &crate::cli::nonce()[..8]));
    let mut writing = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    writing.write_all(&serde_json::to_vec_pretty(&list)?)?;
    writing.sync_all()?;
    fs::rename(part, file)?;
    Ok(list.len())
}

fn known_erasures(file: &Path) -> anyhow::Result<BTreeSet<(TenantId, UserId)>> {
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read '{}'", file.display())),
    };
    let list: Vec<Erased> =
        serde_json::from_slice(&text).with_context(|| format!("'{}' is no list of erasures", file.display()))?;
    Ok(list.into_iter().map(|erased| (erased.tenant, erased.subject)).collect())
}

/// Everybody whose erasure is known beside a backup, and in a list or a newer backup that was given.
pub fn erasures(backup: &Path, given: Option<&Path>, key: &VerifierKey) -> anyhow::Result<BTreeSet<(TenantId, UserId)>> {
    let mut known = known_erasures(&backup.parent().unwrap_or(Path::new(".")).join(ERASURES))?;
    match given {
        None => {}
        Some(path) if !path.exists() => bail!("'{}' does not exist", path.display()),
        Some(path) if path.extension().is_some_and(|ending| ending == ENDING) => known.extend(check(path, key)?.erasures),
        Some(path) => known.extend(known_erasures(path)?),
    }
    Ok(known)
}

/// What is to be restored.
pub struct Order<'a> {
    /// The backup.
    pub path: &'a Path,
    /// The folder with the key files that belong to it; the target's own when nothing is said.
    pub keys: Option<&'a Path>,
    /// Up to where.
    pub until: Until,
    /// People who are known to be erased.
    pub erased: BTreeSet<(TenantId, UserId)>,
}

/// Restores a backup to where the settings say. A data directory comes to be whole or not at all.
pub async fn restore_to(
    settings: &Settings,
    order: &Order<'_>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> anyhow::Result<Restored> {
    let env = Env::system();
    match &settings.database {
        Some(database) => {
            let keys = bring_keys(order.keys, &settings.keys_dir, &env)?;
            let store = std::sync::Arc::new(store::postgres::PostgresStore::open(database).await?);
            let journal = std::sync::Arc::new(store::postgres::PostgresJournal::open(database, &store)?);
            let target = Target { store, journal, env, keys };
            let restored = run(order, &target, progress).await;
            restored.context("the database may hold a part of the backup: make it anew before you try again")
        }
        None => restore_directory(settings, order, env, progress).await,
    }
}

async fn run(order: &Order<'_>, target: &Target, progress: &mut (dyn FnMut(u64) + Send)) -> anyhow::Result<Restored> {
    let restored = restore(order.path, target, order.until, &order.erased, progress).await;
    target.journal.close().await;
    target.store.close().await;
    Ok(restored?)
}

async fn restore_directory(
    settings: &Settings,
    order: &Order<'_>,
    env: Env,
    progress: &mut (dyn FnMut(u64) + Send),
) -> anyhow::Result<Restored> {
    // Where a link leads, so that the link stays one.
    let data_dir = &fs::canonicalize(&settings.data_dir).unwrap_or(settings.data_dir.clone());
    if data_dir.exists()
        && fs::read_dir(data_dir).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| e.file_name() != "keys")))
    {
        bail!("'{}' is not empty; restore into a new place with --data-dir", data_dir.display());
    }
    let mut name = data_dir.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    let new = data_dir.with_file_name(name);
    if order.keys.is_some_and(|keys| keys.starts_with(&new)) {
        bail!("'{}' is what an earlier restore left and would be removed; move the key files elsewhere first", new.display());
    }
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot remove what an earlier restore left in '{}'", new.display()))?;
    }
    let outcome = fill(settings, order, env, &new, progress).await;
    let restored = outcome.inspect_err(|_| drop(fs::remove_dir_all(&new)))?;
    swap(&new, data_dir)?;
    let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()?;
    Ok(restored)
}

/// Gives a new directory the name of an old one that is empty but for key files, which the new one holds too. Until the
/// new one has the name, nothing of the old one is removed.
fn swap(new: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let mut name = data_dir.file_name().unwrap_or_default().to_owned();
    name.push(".before-restore");
    let old = data_dir.with_file_name(name);
    let is_there = data_dir.exists();
    if is_there {
        fs::rename(data_dir, &old)
            .with_context(|| format!("cannot take '{}' out of the way; restore to a place beside it", data_dir.display()))?;
    }
    if let Err(error) = fs::rename(new, data_dir) {
        if is_there {
            fs::rename(&old, data_dir)?;
        }
        return Err(error).with_context(|| format!("cannot rename '{}'", new.display()));
    }
    match is_there {
        true => fs::remove_dir_all(&old).with_context(|| format!("restored, but cannot remove '{}'", old.display())),
        false => Ok(()),
    }
}

async fn fill(
    settings: &Settings,
    order: &Order<'_>,
    env: Env,
    new: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> anyhow::Result<Restored> {
    let directory = Directory::open(new)?;
    // Key files inside the data directory move with it.
    let keys = match settings.keys_dir.starts_with(&settings.data_dir) {
        true => bring_keys(order.keys.or(Some(&settings.keys_dir)), &directory.keys(), &env)?,
        false => bring_keys(order.keys, &settings.keys_dir, &env)?,
    };
    let sqlite = SqliteSettings { disk_free_min_bytes: settings.disk_free_min_bytes };
    let journal = std::sync::Arc::new(SqliteJournal::open(&directory, &sqlite)?);
    let store = std::sync::Arc::new(SqliteStore::open(directory, &sqlite)?);
    run(order, &Target { store, journal, env, keys }, progress).await
}

/// The keys in a folder, brought there from another one if they are not.
fn bring_keys(from: Option<&Path>, to: &Path, env: &Env) -> anyhow::Result<app::KeyMaterial> {
    let is_there = to.join(keys::FILES[0]).exists();
    match from.filter(|from| *from != to && !is_there) {
        Some(from) => {
            keys::check(from)?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
            for name in keys::FILES {
                let bytes = fs::read(from.join(name))
                    .with_context(|| format!("cannot read the key file '{}'", from.join(name).display()))?;
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to.join(name))?;
                file.write_all(&bytes)?;
                file.sync_all()?;
            }
        }
        None => keys::check(to)?,
    }
    keys::load(to, true, env)
}
