//! Key files: made at the first start, readable by their owner only, never remade when they are lost.

use anyhow::{Context, bail};
use app::KeyMaterial;
use engine::Env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const SIGNING: &str = "signing.pkcs8";
const SEALING: &str = "sealing.key";
const INDEX: &str = "index.key";
/// Every key file.
pub const FILES: [&str; 4] = [SIGNING, SEALING, INDEX, CHECKPOINT];
/// Seals the record. May be made later: nothing that is stored needs it to be read.
const CHECKPOINT: &str = "checkpoint.pkcs8";

/// The keys of a data directory. Fresh ones are made only when there is no log yet: a log needs the keys it was
/// written with.
pub fn load(folder: &Path, has_log: bool, env: &Env) -> anyhow::Result<KeyMaterial> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the folder for key files '{}'", folder.display()))?;
    // Replicas that share the folder may start at the same time.
    let lock = fs::File::open(folder).with_context(|| format!("cannot read the folder '{}'", folder.display()))?;
    lock.lock().with_context(|| format!("cannot lock the folder '{}'", folder.display()))?;
    let is_missing = |name: &&str| !folder.join(name).exists();
    let missing: Vec<&str> = FILES[..3].iter().filter(|name| is_missing(name)).copied().collect();
    if !missing.is_empty() {
        if has_log {
            bail!(
                "the key files {missing:?} are missing in '{}'; copy them from another replica, or restore them from a backup: without them nobody can sign in",
                folder.display()
            );
        }
        make(folder, env)?;
    }
    if !folder.join(CHECKPOINT).exists() {
        if has_log {
            tracing::warn!(
                "there was no key to seal the record with, so one is made; whoever knew another one will not trust it"
            );
        }
        write(folder, CHECKPOINT, &app::fresh_pair().map_err(anyhow::Error::msg)?)?;
    }
    for name in FILES {
        check_mode(&folder.join(name))?;
    }
    let read = |name: &str| fs::read(folder.join(name)).with_context(|| format!("cannot read the key file {name}"));
    let fixed = |name: &str| -> anyhow::Result<[u8; 32]> {
        read(name)?.try_into().map_err(|_| anyhow::anyhow!("the key file {name} must have 32 bytes"))
    };
    Ok(KeyMaterial {
        signing_pkcs8: read(SIGNING)?,
        sealing: fixed(SEALING)?,
        index: fixed(INDEX)?,
        checkpoint_pkcs8: read(CHECKPOINT)?,
    })
}

/// Whether every key file is there. They are never made where something is restored: nobody could sign in with others.
pub fn check(folder: &Path) -> anyhow::Result<()> {
    match FILES.iter().find(|name| !folder.join(name).exists()) {
        None => Ok(()),
        Some(missing) => bail!(
            "there is no key file '{missing}' in '{}'; give the folder with the server's key files with --keys",
            folder.display()
        ),
    }
}

fn make(folder: &Path, env: &Env) -> anyhow::Result<()> {
    let fresh = KeyMaterial::generate(env).map_err(anyhow::Error::msg)?;
    // A first start that was cut off may have left some: without a log they protect nothing yet.
    for (name, bytes) in [
        (SIGNING, &fresh.signing_pkcs8[..]),
        (SEALING, &fresh.sealing),
        (INDEX, &fresh.index),
        (CHECKPOINT, &fresh.checkpoint_pkcs8),
    ] {
        write(folder, name, bytes)?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot write the key file {}", path.display()))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(fs::File::open(folder)?.sync_all()?)
}

fn check_mode(path: &Path) -> anyhow::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("the key file '{}' can be read by others (mode {mode:o}); run: chmod 600 '{}'", path.display(), path.display());
    }
    Ok(())
}
