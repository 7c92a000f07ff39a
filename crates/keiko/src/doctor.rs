//! `keiko doctor`: looks at a data directory and says what is wrong and what to do. Changes nothing.

use crate::{Settings, audit, keys};
use rustix::fs::statvfs;
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;
use store::postgres::{PostgresSettings, PostgresStore, Promise};
use store::sqlite::{Directory, SqliteSettings, SqliteStore};
use store::{OpenError, Store};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is well.
    pub is_ok: bool,
    /// What was seen, and what to do about it.
    pub finding: String,
}

fn check(name: &'static str, is_ok: bool, finding: impl Into<String>) -> Check {
    Check { name, is_ok, finding: finding.into() }
}

/// Looks at everything; deep also at the seals of the record, and at every entity against its history.
pub async fn examine(settings: &Settings, is_deep: bool) -> Vec<Check> {
    let mut checks = match &settings.database {
        Some(database) => examine_database(settings, database).await,
        None => examine_directory(settings),
    };
    if is_deep {
        checks.extend(look_deeper(settings).await.unwrap_or_else(|error| vec![check("seals", false, format!("{error:#}"))]));
    }
    checks
}

/// What takes time: the record against its signed checkpoints, and what is stored of entities against their events.
async fn look_deeper(settings: &Settings) -> anyhow::Result<Vec<Check>> {
    let memory = audit::Memory::at(None);
    let found = match &settings.database {
        Some(_) => audit::verify_database(settings, None, &memory).await?,
        None => audit::verify_directory(&settings.data_dir, None, &memory).await?,
    };
    let sealed: u64 = found.iter().map(|tree| tree.sealed).sum();
    let mut checks = vec![match found.iter().find(|tree| !tree.is_whole) {
        None => check("seals", true, format!("{sealed} events and entries are what was sealed")),
        Some(bad) => {
            let place = bad.position.map(|position| format!(" at position {position}")).unwrap_or_default();
            check("seals", false, format!("{}{place}: {}", bad.tree, bad.problem.as_deref().unwrap_or_default()))
        }
    }];
    let store: Box<dyn Store> = match &settings.database {
        Some(database) => Box::new(PostgresStore::open_as_is(database).await?),
        None => {
            let sqlite = SqliteSettings { disk_free_min_bytes: 0 };
            Box::new(SqliteStore::open(Directory::open(&settings.data_dir)?, &sqlite)?)
        }
    };
    let mut entities = 0;
    for tenant in store.logs().await? {
        let compared = app::compare_entities(store.as_ref(), tenant).await?;
        entities += compared.entities;
        if let Some((stream, problem)) = compared.wrong {
            let finding = format!("{stream} of {tenant}: {problem}; restore a backup, which folds everything anew");
            checks.push(check("entities", false, finding));
            store.close().await;
            return Ok(checks);
        }
    }
    store.close().await;
    checks.push(check("entities", true, format!("{entities} entities are what their events say")));
    Ok(checks)
}

/// The database, what it promises, and the keys.
async fn examine_database(settings: &Settings, database: &PostgresSettings) -> Vec<Check> {
    let store = match PostgresStore::open_as_is(database).await {
        Ok(store) => store,
        Err(error) => return vec![check("database", false, error.to_string())],
    };
    let mut checks = vec![check("database", true, store.place())];
    let is_kept = !matches!(store.promise(), Promise::Asynchronous(_));
    checks.push(check("durability", is_kept, store.promise().to_string()));
    checks.push(key_files(&settings.keys_dir));
    let logs = store.logs().await;
    checks.push(match logs {
        Ok(logs) => {
            check("record", true, format!("{} tenants; 'keiko audit verify --from database' looks at every event", logs.len()))
        }
        Err(error) => check("record", false, error.to_string()),
    });
    store.close().await;
    checks
}

fn examine_directory(settings: &Settings) -> Vec<Check> {
    let path = settings.data_dir.as_path();
    if !path.join("FORMAT").exists() {
        let finding = format!("there is none at '{}'; 'keiko serve' makes it, or give another with --data-dir", path.display());
        return vec![check("data directory", false, finding)];
    }
    let mut checks = vec![check("data directory", true, path.display().to_string())];
    checks.push(disk(path, settings.disk_free_min_bytes));
    checks.push(sync(path));
    checks.push(key_files(&settings.keys_dir));
    match Directory::open(path) {
        Ok(directory) => checks.push(record(&directory)),
        Err(OpenError::InUse(_)) => {
            checks.push(check(
                "record",
                true,
                "a server is using it, so it was not read; stop the server to verify it, or ask its /ready",
            ));
        }
        Err(error) => checks.push(check("record", false, error.to_string())),
    }
    checks
}

fn disk(path: &Path, disk_free_min_bytes: u64) -> Check {
    match statvfs(path) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let finding =
                format!("{} MiB free, writes stop below {} MiB (store.disk_free_min)", free >> 20, disk_free_min_bytes >> 20);
            check("disk", free >= disk_free_min_bytes, finding)
        }
        Err(error) => check("disk", false, format!("free space is not known: {error}")),
    }
}

/// Writes and syncs a small file of its own a few times: the promise of every acknowledged write costs this long.
fn sync(path: &Path) -> Check {
    const ROUNDS: u32 = 5;
    let measure = || -> std::io::Result<f64> {
        let probe = path.join("doctor.probe");
        let file = std::fs::File::create(&probe)?;
        let started = Instant::now();
        for round in 0..ROUNDS {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], u64::from(round) * 4096)?;
            file.sync_data()?;
        }
        let ms = started.elapsed().as_secs_f64() * 1000.0 / f64::from(ROUNDS);
        std::fs::remove_file(probe)?;
        Ok(ms)
    };
    match measure() {
        Ok(ms) => {
            check("durability", true, format!("every acknowledged write is synced to this disk; one sync takes {ms:.2} ms"))
        }
        Err(error) => check("durability", false, format!("a file could not be written and synced: {error}")),
    }
}

fn key_files(folder: &Path) -> Check {
    let wrong: Vec<String> = keys::FILES
        .iter()
        .filter_map(|name| match std::fs::metadata(folder.join(name)) {
            Err(error) => Some(format!("{name}: {error}")),
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => Some(format!("{name} can be read by others: chmod 600 it")),
            Ok(_) => None,
        })
        .collect();
    let finding = if wrong.is_empty() { "all there, readable by their owner only".to_owned() } else { wrong.join("; ") };
    check("keys", wrong.is_empty(), finding)
}

fn record(directory: &Directory) -> Check {
    match SqliteStore::verify(directory) {
        Ok(verified) if verified.findings.is_empty() => {
            check("record", true, format!("{} events of {} tenants are whole", verified.events, verified.logs))
        }
        Ok(verified) => {
            let first = verified.findings.iter().take(5).map(|f| {
                let place = f.position.map(|p| format!("position {p}: ")).unwrap_or_default();
                format!("{place}{}", f.problem)
            });
            let finding =
                format!("{} findings; {}; restore a backup", verified.findings.len(), first.collect::<Vec<_>>().join("; "));
            check("record", false, finding)
        }
        Err(error) => check("record", false, error.to_string()),
    }
}
