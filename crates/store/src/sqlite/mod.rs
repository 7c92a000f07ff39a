//! The embedded store: one SQLite database, one writer thread, group commit.
//!
//! The writer takes what is queued, round-robin over the logs, writes it in one transaction and answers after its one
//! fsync. There is no timer: the latency of an append is one fsync, and a busy time makes larger groups. After a failed
//! write the store is read-only until it is opened again; an fsync is never retried.

mod connect;
mod directory;
mod journal;
mod read;
mod schema;
mod tree;
mod verify;
mod wal;
mod write;
mod writer;

pub use directory::Directory;
pub use journal::SqliteJournal;
pub use verify::{Finding, Verified};

use crate::tree::{Growth, Sealed};
use crate::*;
use connect::Database;
use kernel::merkle::Hash;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Connections for reading.
const READERS: usize = 4;

/// What can be set.
#[derive(Clone, Debug)]
pub struct SqliteSettings {
    /// Free bytes on the disk below which writes are refused.
    pub disk_free_min_bytes: u64,
}

/// The embedded store.
pub struct SqliteStore {
    writer: writer::Writer,
    logs: crate::ring::Rings,
    readers: Arc<Readers>,
    /// Holds the lock on the directory as long as the store lives.
    _directory: Directory,
}

struct Readers {
    database: Database,
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
}

impl SqliteStore {
    /// Opens the database of a locked data directory, making it when it is new.
    pub fn open(directory: Directory, settings: &SqliteSettings) -> Result<Self, OpenError> {
        Self::open_at(directory, settings, writer::Pace::default())
    }

    fn open_at(directory: Directory, settings: &SqliteSettings, pace: writer::Pace) -> Result<Self, OpenError> {
        let database = directory.open_database();
        let connection = database.writing().map_err(|e| unusable(database.path(), &e))?;
        schema::prepare(&connection, database.path())?;
        let tails = read::tails(&connection).map_err(|e| unusable(database.path(), &e))?;
        let logs = crate::ring::Rings::new(tails);
        let disk = writer::Disk { directory: directory.path().to_owned(), free_min_bytes: settings.disk_free_min_bytes };
        let writer = writer::Writer::start(connection, logs.clone(), disk, pace);
        Ok(SqliteStore { writer, logs, readers: Readers::new(database), _directory: directory })
    }

    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.readers.run(read).await
    }
}

impl Readers {
    fn new(database: Database) -> Arc<Self> {
        Arc::new(Readers { database, idle: Mutex::new(vec![]), places: Arc::new(Semaphore::new(READERS)) })
    }

    /// Runs `read` on a connection of its own thread, inside one read transaction.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _place = place;
            readers.with(read)
        });
        task.await.map_err(|e| StoreError::Io(e.to_string()))?
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.database.reading().map_err(read::failed)?,
        };
        let outcome = connection.unchecked_transaction().and_then(|transaction| read(&transaction)).map_err(read::failed);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        outcome
    }

    /// Closes the connections that nobody uses.
    fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn unusable(path: &Path, error: &rusqlite::Error) -> OpenError {
    OpenError::Unusable { path: path.display().to_string(), reason: connect::reason(error) }
}

#[async_trait]
impl crate::tree::TreeStore for SqliteStore {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        Ok(self.logs.heads())
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        self.reading(move |c| read::leaves(c, tenant, from, limit)).await
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.reading(move |c| tree::tile(c, tenant, level, index)).await
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        self.reading(move |c| tree::sealed(c, tenant)).await
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.writer.change(tenant, writer::Change::Grow(growth)).await
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.writer.change(tenant, writer::Change::Cosign(note)).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        self.writer.append(append)
    }

    async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError> {
        let stream = stream.to_owned();
        self.reading(move |c| read::entity(c, log, &stream)).await
    }

    async fn entities(&self, log: TenantId, query: EntityQuery) -> Result<EntityPage, StoreError> {
        self.reading(move |c| read::entities(c, log, &query)).await
    }

    async fn index_values(
        &self,
        log: TenantId,
        kind: &str,
        field: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let (field, prefix) = (format!("{kind}.{field}"), prefix.to_owned());
        self.reading(move |c| read::index_values(c, log, &field, &prefix, limit)).await
    }

    async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError> {
        let key = key.to_owned();
        self.reading(move |c| read::holder(c, log, &key)).await
    }

    async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError> {
        let key = key.to_owned();
        self.reading(move |c| read::idempotent(c, log, &key)).await
    }

    async fn read(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError> {
        let stream = stream.to_owned();
        self.reading(move |c| read::stream(c, log, &stream, from, limit)).await
    }

    async fn scan(&self, log: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Result<Scanned, StoreError> {
        if let Some(recent) = self.logs.of(log).recent(after, &filter, limit) {
            return Ok(recent);
        }
        self.reading(move |c| read::scan(c, log, after, &filter, limit)).await
    }

    fn tail(&self, log: TenantId) -> watch::Receiver<u64> {
        self.logs.of(log).tail.subscribe()
    }

    async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError> {
        self.reading(move |c| read::position_at(c, log, instant)).await
    }

    async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let hash = *hash;
        self.reading(move |c| read::value(c, log, &hash)).await
    }

    async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let name = name.to_owned();
        self.reading(move |c| read::secret(c, log, &name)).await
    }

    async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError> {
        let view = view.to_owned();
        self.reading(move |c| read::view_state(c, log, &view)).await
    }

    async fn apply(&self, log: TenantId, apply: ViewApply) -> Result<(), StoreError> {
        self.writer.change(log, writer::Change::Apply(apply)).await
    }

    async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError> {
        let (view, key) = (view.to_owned(), key.to_owned());
        self.reading(move |c| read::view_get(c, log, &view, version, &key)).await
    }

    async fn view_list(
        &self,
        log: TenantId,
        view: &str,
        version: u32,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ViewRow>, StoreError> {
        let (view, prefix, after) = (view.to_owned(), prefix.to_owned(), after.to_owned());
        self.reading(move |c| read::view_list(c, log, &view, version, &prefix, &after, limit)).await
    }

    async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError> {
        self.reading(move |c| read::views(c, log)).await
    }

    async fn beside(&self, log: TenantId, kind: BesideKind, after: Vec<u8>, limit: usize) -> Result<Vec<Beside>, StoreError> {
        self.reading(move |c| read::beside(c, log, kind, &after, limit)).await
    }

    async fn put_beside(&self, log: TenantId, things: Vec<Beside>) -> Result<(), StoreError> {
        self.writer.change(log, writer::Change::Beside(things)).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.writer.scrub().await
    }

    async fn logs(&self) -> Result<Vec<TenantId>, StoreError> {
        self.reading(read::logs).await
    }

    fn health(&self) -> Health {
        self.writer.health()
    }

    async fn close(&self) {
        self.readers.close();
        self.writer.close().await;
    }
}

/// The data directory's free bytes, when the system tells.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Numbers of logs by tenant, for the writer.
pub(crate) type LogNumbers = BTreeMap<TenantId, writer::LogState>;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
