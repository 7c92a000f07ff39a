//! Makes a backup: reads everything in order and writes it as it goes, so that memory does not grow with the record.

use super::BackupError;
use super::form::{Bytes, Closing, EntryLine, EventLine, FORM, Head, Line, Opening};
use crate::crypto::{KeyMaterial, SealingKey};
use crate::errors::of_store;
use crate::group_progress::is_progress;
use crate::{Answer, App, Caller};
use domain::erasure::Erasure;
use domain::identity::tenant::Tenant;
use engine::Engine;
use flate2::Compression;
use flate2::write::GzEncoder;
use kernel::id::TenantId;
use kernel::json::references;
use kernel::{Decider, IndexField, Kind, Rejection, ViewRow};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use store::journal::{Journal, JournalQuery};
use store::tree::TreeStore;
use store::{BesideKind, EntityQuery, ScanFilter, StoreError, ViewState};
use tokio::sync::mpsc;

/// Events, entries or things that are read at a time.
const PAGE: usize = 1_000;
/// Large values that are read at a time.
const VALUES: usize = 16;
/// Rows of one consumer group's progress: more than its window and what it may have parked at a time.
const ROWS: usize = 1_000_000;
/// How often a group's progress is read again because it moved meanwhile.
const TRIES: usize = 200;
const PAUSE_MS: u64 = 5;
/// Bytes that are handed over at a time.
const PART_BYTES: usize = 128 * 1024;
/// Parts that wait to be taken.
const PARTS: usize = 8;

/// What a backup is made of.
#[derive(Clone)]
pub struct Source {
    /// Log and entities.
    pub engine: Engine,
    /// Observations.
    pub journal: Arc<dyn Journal>,
    /// Signs it.
    pub sealing: Arc<SealingKey>,
    /// Tells the key files that belong to it from others.
    pub keys: Vec<u8>,
}

impl Source {
    /// From key files.
    pub fn new(engine: Engine, journal: Arc<dyn Journal>, keys: &KeyMaterial) -> Result<Self, BackupError> {
        let sealing = SealingKey::new(&keys.checkpoint_pkcs8).map_err(BackupError::Refused)?;
        Ok(Source { engine, journal, sealing: Arc::new(sealing), keys: keys.fingerprint() })
    }
}

impl App {
    /// Makes a backup of every tenant, for an administrator of the default one.
    pub async fn backup(&self, caller: &Caller) -> Answer<mpsc::Receiver<Result<Vec<u8>, BackupError>>> {
        self.only_root(caller)?;
        let inner = &self.0;
        let source = Source {
            engine: inner.engine.clone(),
            journal: inner.journal.clone(),
            sealing: inner.crypto.checkpoints.clone(),
            keys: inner.crypto.fingerprint.clone(),
        };
        let tenants = source.engine.store().logs().await.map_err(of_store)?;
        if let Err(error) = erasures(&source, &tenants).await {
            let hint = "Try again after the time in Retry-After; GET /api/v1/erasures shows which one runs.";
            return Err(Rejection::new(Kind::Unavailable, "BUSY", error.to_string(), hint));
        }
        self.witness(caller, "audit.backup.made", &serde_json::json!({})).await?;
        Ok(create(source))
    }
}

/// Makes a backup in the background. Its bytes come in parts; an error is the last that comes.
pub fn create(source: Source) -> mpsc::Receiver<Result<Vec<u8>, BackupError>> {
    let (parts, taken) = mpsc::channel(PARTS);
    let env = source.engine.env().clone();
    env.spawn(async move {
        let writer = Writer { gzip: GzEncoder::new(vec![], Compression::fast()), hash: Sha256::new(), lines: 0, parts };
        let parts = writer.parts.clone();
        if let Err(error) = copy(&source, writer).await {
            tracing::warn!(%error, "a backup was not finished");
            // Whoever asked may have gone away.
            let _ = parts.send(Err(error)).await;
        }
    });
    taken
}

/// Compresses lines and hands them over.
struct Writer {
    gzip: GzEncoder<Vec<u8>>,
    hash: Sha256,
    lines: u64,
    parts: mpsc::Sender<Result<Vec<u8>, BackupError>>,
}

impl Writer {
    async fn put(&mut self, line: &Line) -> Result<(), BackupError> {
        let mut text = serde_json::to_vec(line).map_err(|e| BackupError::Refused(e.to_string()))?;
        text.push(b'\n');
        self.hash.update(&text);
        self.lines += 1;
        self.write(&text).await
    }

    async fn write(&mut self, text: &[u8]) -> Result<(), BackupError> {
        self.gzip.write_all(text)?;
        if self.gzip.get_ref().len() >= PART_BYTES {
            let part = std::mem::take(self.gzip.get_mut());
            self.hand_over(part).await?;
        }
        Ok(())
    }

    async fn hand_over(&self, part: Vec<u8>) -> Result<(), BackupError> {
        self.parts.send(Ok(part)).await.map_err(|_| BackupError::Refused("nobody takes the backup any more".into()))
    }

    async fn end(mut self, source: &Source, root: TenantId) -> Result<(), BackupError> {
        let hash: [u8; 32] = self.hash.clone().finalize().into();
        let note = source.sealing.seal(&super::read::origin(root), self.lines, hash);
        let line = Line::End(Closing { lines: self.lines, note });
        let text = serde_json::to_vec(&line).map_err(|e| BackupError::Refused(e.to_string()))?;
        self.write(&text).await?;
        self.write(b"\n").await?;
        let rest = self.gzip.finish()?;
        self.parts.send(Ok(rest)).await.map_err(|_| BackupError::Refused("nobody takes the backup any more".into()))
    }
}

async fn copy(source: &Source, mut writer: Writer) -> Result<(), BackupError> {
    let store = source.engine.store();
    let tenants = store.logs().await?;
    let Some(root) = tenants.first().copied() else {
        return Err(BackupError::Refused("there is nothing to back up yet; start the server first".into()));
    };
    let heads = erasures(source, &tenants).await?;
    let owners = owners(source, root).await?;
    let opening = Opening {
        form: FORM,
        keiko: env!("CARGO_PKG_VERSION").into(),
        created_at: source.engine.env().now(),
        keys: Bytes(source.keys.clone()),
        tenants: tenants.clone(),
    };
    writer.put(&Line::Backup(opening)).await?;
    for tenant in &tenants {
        copy_log(source, *tenant, &mut writer).await?;
        copy_journal(source, *tenant, &mut writer).await?;
    }
    // What was erased while it was copied may be in it.
    if erasures(source, &tenants).await? != heads {
        return Err(BackupError::Refused("a person was erased while the backup was made; make it again".into()));
    }
    if !self::owners(source, root).await?.is_superset(&owners) {
        return Err(BackupError::Refused("a tenant was deleted while the backup was made; make it again".into()));
    }
    writer.end(source, root).await
}

/// The tenants. Refused while one is being deleted.
async fn owners(source: &Source, root: TenantId) -> Result<BTreeSet<String>, BackupError> {
    let tenants = crate::workers::each::<Tenant>(&source.engine, root, &[]).await?;
    if tenants.iter().any(|tenant| tenant.state.deleting.is_some()) {
        return Err(BackupError::Refused("a tenant is being deleted; make the backup when that is done".into()));
    }
    Ok(tenants.into_iter().map(|tenant| tenant.stream).collect())
}

/// The erasures of each tenant, by what they changed last. Refused while one goes on.
async fn erasures(source: &Source, tenants: &[TenantId]) -> Result<Vec<(String, u64)>, BackupError> {
    let mut found = vec![];
    for tenant in tenants {
        let running =
            EntityQuery { fields: vec![IndexField::new("status", "running")], limit: 1, ..EntityQuery::all(Erasure::KIND) };
        if !source.engine.store().entities(*tenant, running).await?.rows.is_empty() {
            return Err(BackupError::Refused("a person is being erased; make the backup when that is done".into()));
        }
        let all = crate::workers::each::<Erasure>(&source.engine, *tenant, &[]).await?;
        found.extend(all.into_iter().map(|erasure| (erasure.stream, erasure.version)));
    }
    Ok(found)
}

/// The latest checkpoint of a tree; asked for before its size, so that it does not go beyond that.
async fn checkpoint(trees: &dyn TreeStore, tenant: TenantId) -> Result<String, StoreError> {
    Ok(trees.sealed(tenant).await?.map(|sealed| sealed.note).unwrap_or_default())
}

async fn copy_log(source: &Source, tenant: TenantId, writer: &mut Writer) -> Result<(), BackupError> {
    let store = source.engine.store();
    let damaged = |position: u64| move |e: String| BackupError::Refused(format!("position {position} cannot be copied: {e}"));
    let progress = progress(source, tenant).await?;
    let checkpoint = checkpoint(store.as_ref(), tenant).await?;
    let size = store.head(tenant).await?;
    writer.put(&Line::Log(Head { tenant, size, checkpoint })).await?;
    let mut after = 0;
    while after < size {
        let page = store.scan(tenant, after, ScanFilter::default(), PAGE).await?;
        for event in page.events.iter().filter(|event| event.header.position <= size) {
            let line = EventLine::of(event).map_err(damaged(event.header.position))?;
            writer.put(&Line::Event(Box::new(line))).await?;
        }
        if page.position <= after {
            return Err(BackupError::Refused(format!("the log of {tenant} ends at {after}, not at {size}; run 'keiko doctor'")));
        }
        after = page.position;
    }
    for (kind, count) in [(BesideKind::Idempotent, PAGE), (BesideKind::Value, VALUES), (BesideKind::Secret, PAGE)] {
        let mut after = vec![];
        loop {
            let page = store.beside(tenant, kind, after, count).await?;
            let Some(last) = page.last() else { break };
            after = last.place();
            for thing in page {
                writer.put(&Line::beside(thing)).await?;
            }
        }
    }
    for line in &progress {
        writer.put(line).await?;
    }
    Ok(())
}

/// What cannot be folded again: the progress of consumer groups, each as it was at one moment. Taken before the log's
/// size, so that it never goes beyond what is copied of the log.
async fn progress(source: &Source, tenant: TenantId) -> Result<Vec<Line>, BackupError> {
    let store = source.engine.store();
    let mut lines = vec![];
    for (view, _) in store.views(tenant).await?.into_iter().filter(|(view, state)| state.is_active && is_progress(view)) {
        lines.extend(at_one_moment(source, tenant, &view).await?);
    }
    Ok(lines)
}

async fn at_one_moment(source: &Source, tenant: TenantId, view: &str) -> Result<Vec<Line>, BackupError> {
    let store = source.engine.store();
    let state = async || -> Result<Option<ViewState>, StoreError> {
        Ok(store.view_state(tenant, view).await?.into_iter().find(|state| state.is_active))
    };
    for _ in 0..TRIES {
        let Some(before) = state().await? else { return Ok(vec![]) };
        let rows = store.view_list(tenant, view, before.version, "", "", ROWS).await?;
        if state().await? != Some(before) {
            // Somebody took or settled something meanwhile.
            source.engine.env().sleep_ms(PAUSE_MS).await;
            continue;
        }
        let (version, position, is_active) = (before.version, before.position, before.is_active);
        let head = Line::View { view: view.to_owned(), version, position, is_active };
        let row = |row: ViewRow| Line::Row { view: view.to_owned(), version, key: row.key, row: Bytes(row.row) };
        return Ok(std::iter::once(head).chain(rows.into_iter().map(row)).collect());
    }
    Err(BackupError::Refused(format!("{view} changes too fast to be copied; make the backup again")))
}

async fn copy_journal(source: &Source, tenant: TenantId, writer: &mut Writer) -> Result<(), BackupError> {
    let journal = &source.journal;
    let checkpoint = checkpoint(journal.as_ref(), tenant).await?;
    let size = journal.sizes().await?.get(&tenant).copied().unwrap_or(0);
    writer.put(&Line::Journal(Head { tenant, size, checkpoint })).await?;
    let mut values: BTreeSet<[u8; 32]> = BTreeSet::new();
    let mut after = 0;
    while after < size {
        let page = journal.entries(tenant, JournalQuery { after, limit: PAGE, ..JournalQuery::default() }).await?;
        let Some(last) = page.last() else { break };
        after = last.header.position;
        for entry in page.iter().filter(|entry| entry.header.position <= size) {
            for hash in references(entry.data.as_deref().unwrap_or_default()) {
                if values.insert(hash)
                    && let Some(bytes) = journal.value(tenant, &hash).await?
                {
                    writer.put(&Line::EntryValue(Bytes(bytes))).await?;
                }
            }
            let line = EntryLine::of(entry).map_err(BackupError::Refused)?;
            writer.put(&Line::Entry(Box::new(line))).await?;
        }
    }
    Ok(())
}
