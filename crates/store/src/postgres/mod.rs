//! The store on PostgreSQL, for many replicas on one database.
//!
//! Positions are given out under an advisory lock for each log, never by a sequence: what is committed later has a later
//! position, on every replica, and no reader ever sees a gap. Nothing here rests on SERIALIZABLE.

mod beside;
mod cluster;
mod connect;
mod contents;
mod journal;
mod plan;
mod read;
mod schema;
mod tails;
mod tree;
mod views;
mod writer;

#[cfg(any(test, feature = "test-util"))]
pub mod server;

pub use connect::{PostgresSettings, Promise};
pub use journal::PostgresJournal;

use crate::tree::{Growth, Sealed};
use crate::*;
use connect::Target;
use deadpool_postgres::Pool;
use kernel::merkle::Hash;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often the size of the database is looked at.
const SIZE_EVERY: Duration = Duration::from_secs(10);

/// The store of many replicas.
pub struct PostgresStore {
    writer: Arc<writer::Writer>,
    reader: read::Reader,
    tails: Arc<tails::Tails>,
    trees: tree::Trees,
    promise: Promise,
    place: String,
}

impl PostgresStore {
    /// Connects, brings the tables up to date and starts to follow the logs.
    pub async fn open(settings: &PostgresSettings) -> Result<Self, OpenError> {
        Self::connect(settings, true).await
    }

    /// The same for looking only: tables that are not those of this version are refused, not made.
    pub async fn open_as_is(settings: &PostgresSettings) -> Result<Self, OpenError> {
        Self::connect(settings, false).await
    }

    async fn connect(settings: &PostgresSettings, makes_tables: bool) -> Result<Self, OpenError> {
        let target = Target::new(settings)?;
        let place = target.place();
        let failed = |e: tokio_postgres::Error| {
            OpenError::Database(format!("cannot use the database at {place}: {}", connect::describe(&e)))
        };
        let (heard, _hears) = tokio::sync::mpsc::unbounded_channel();
        let session = target.session(heard).await.map_err(failed)?;
        let promise = connect::examine(&session).await?;
        match makes_tables {
            true => schema::prepare(&session).await?,
            false => schema::check(&session).await?,
        }
        let heads = read::heads(&session).await.map_err(failed)?;
        drop(session);
        let writes = (settings.connections_max / 2).clamp(1, 8);
        let reads = target.pool(settings.connections_max.saturating_sub(writes + 1).max(1))?;
        let tails = tails::Tails::new(heads);
        let writer = Arc::new(writer::Writer::new(target.pool(writes)?, tails.clone(), writes));
        tokio::spawn(tails.clone().follow(target, reads.clone()));
        if let Some(size_max_bytes) = settings.size_max_bytes {
            tokio::spawn(watch_size(reads.clone(), Arc::downgrade(&writer), size_max_bytes));
        }
        Ok(PostgresStore { writer, trees: tree::of_logs(reads.clone()), reader: read::Reader(reads), tails, promise, place })
    }

    /// What an acknowledged write has survived.
    pub fn promise(&self) -> &Promise {
        &self.promise
    }

    /// Which database, without the password.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn is_there(&self) -> Result<(), StoreError> {
        self.tails.down().map_or(Ok(()), |reason| Err(StoreError::Unavailable(reason)))
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.tails.end();
    }
}

/// Refuses writes while the database is larger than it may be.
async fn watch_size(pool: Pool, writer: std::sync::Weak<writer::Writer>, size_max_bytes: u64) {
    while let Some(writer) = writer.upgrade() {
        if let Ok(client) = pool.get().await
            && let Ok(row) = client.query_one("SELECT pg_database_size(current_database())", &[]).await
        {
            writer.set_full(row.get::<_, i64>(0) as u64 >= size_max_bytes);
        }
        drop(writer);
        tokio::time::sleep(SIZE_EVERY).await;
    }
}

#[async_trait]
impl crate::tree::TreeStore for PostgresStore {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        Ok(self.tails.rings().heads())
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        self.trees.leaves(tenant, from, limit).await
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.trees.tile(tenant, level, index).await
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        self.trees.sealed(tenant).await
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.trees.grow(tenant, &growth).await
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.trees.cosign(tenant, &note).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        self.writer.append(append)
    }

    async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError> {
        self.is_there()?;
        self.reader.entity(log, stream).await
    }

    async fn entities(&self, log: TenantId, query: EntityQuery) -> Result<EntityPage, StoreError> {
        self.is_there()?;
        self.reader.entities(log, &query).await
    }

    async fn index_values(
        &self,
        log: TenantId,
        kind: &str,
        field: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        self.is_there()?;
        self.reader.index_values(log, &format!("{kind}.{field}"), prefix, limit).await
    }

    async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError> {
        self.is_there()?;
        self.reader.holder(log, key).await
    }

    async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError> {
        self.is_there()?;
        self.reader.idempotent(log, key).await
    }

    async fn read(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError> {
        self.is_there()?;
        self.reader.stream(log, stream, from, limit).await
    }

    async fn scan(&self, log: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Result<Scanned, StoreError> {
        if let Some(recent) = self.tails.rings().of(log).recent(after, &filter, limit) {
            return Ok(recent);
        }
        self.is_there()?;
        self.reader.scan(log, after, &filter, limit).await
    }

    fn tail(&self, log: TenantId) -> watch::Receiver<u64> {
        self.tails.rings().of(log).tail.subscribe()
    }

    async fn head(&self, log: TenantId) -> Result<u64, StoreError> {
        self.is_there()?;
        self.reader.head(log).await
    }

    async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError> {
        self.is_there()?;
        self.reader.position_at(log, instant).await
    }

    async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        self.is_there()?;
        self.reader.value(log, hash).await
    }

    async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.is_there()?;
        self.reader.secret(log, name).await
    }

    async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError> {
        self.is_there()?;
        self.reader.view_state(log, view).await
    }

    async fn apply(&self, log: TenantId, apply: ViewApply) -> Result<(), StoreError> {
        self.is_there()?;
        self.writer.apply(log, &apply).await
    }

    async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError> {
        self.is_there()?;
        self.reader.view_get(log, view, version, key).await
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
        self.is_there()?;
        self.reader.view_list(log, view, version, prefix, after, limit).await
    }

    async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError> {
        self.is_there()?;
        self.reader.views(log).await
    }

    async fn beside(&self, log: TenantId, kind: BesideKind, after: Vec<u8>, limit: usize) -> Result<Vec<Beside>, StoreError> {
        self.is_there()?;
        self.reader.beside(log, kind, &after, limit).await
    }

    async fn put_beside(&self, log: TenantId, things: Vec<Beside>) -> Result<(), StoreError> {
        self.is_there()?;
        self.writer.put_beside(log, &things).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.is_there()?;
        self.writer.scrub().await
    }

    async fn logs(&self) -> Result<Vec<TenantId>, StoreError> {
        self.reader.logs().await
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn health(&self) -> Health {
        self.writer.health()
    }

    async fn close(&self) {
        self.writer.close().await;
        self.tails.end();
    }
}

#[cfg(test)]
mod tests;
