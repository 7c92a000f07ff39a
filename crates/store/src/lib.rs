//! The log and the tables: one trait, and the backends behind it.
//!
//! This crate is the only one that knows SQL. It knows no context: streams, rows and index fields are opaque to it.

mod checks;
mod ring;
mod types;

pub mod cluster;
pub mod faults;
pub mod journal;
pub mod memory;
pub mod postgres;
pub mod sqlite;
pub mod tree;

#[cfg(any(test, feature = "test-util"))]
pub mod contract;

pub use types::*;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use kernel::{Recorded, TenantId, Timestamp, ViewRow};
use std::sync::Arc;
use tokio::sync::watch;

/// The log of every tenant, its entities, and the rows of its views.
///
/// What every backend promises (checked by [`contract`]):
/// - One total order per log. Positions start at 1 and have no gap; position order is commit order; no gap ever becomes
///   visible to a reader.
/// - An append is answered only once it is durable, and a reader that starts after the answer sees it.
/// - An append is atomic: all its streams, claims, rows, values and secrets, or nothing.
/// - A unique key is held by one stream at a time.
#[async_trait]
pub trait Store: tree::TreeStore + Send + Sync + 'static {
    /// Appends to one log. The append takes its place in the log's order when this function returns; the future says how
    /// it went once that is durable. Dropping the future does not undo the append.
    ///
    /// After [`StoreError::Unknown`] the append may or may not have happened: read before deciding again.
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>>;

    /// One entity, as of the latest append that was answered.
    async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError>;

    /// Entities by kind and index field, ordered by stream.
    async fn entities(&self, log: TenantId, query: EntityQuery) -> Result<EntityPage, StoreError>;

    /// The distinct values of an index field that start with `prefix`, in order.
    async fn index_values(
        &self,
        log: TenantId,
        kind: &str,
        field: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError>;

    /// The stream that holds a unique key.
    async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError>;

    /// What an idempotency key stands for.
    async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError>;

    /// Events of one stream, from version `from` on.
    async fn read(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError>;

    /// Events of a log after a position, in order.
    async fn scan(&self, log: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Result<Scanned, StoreError>;

    /// A wake-up that carries the latest position. It says "look", never "this is all there is".
    fn tail(&self, log: TenantId) -> watch::Receiver<u64>;

    /// The log's last position, as of the latest append that was answered to anybody.
    async fn head(&self, log: TenantId) -> Result<u64, StoreError> {
        Ok(*self.tail(log).borrow())
    }

    /// The last position written at or before an instant; 0 when there is none.
    async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError>;

    /// A value stored by its hash.
    async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError>;

    /// A sealed secret by its name.
    async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Where a view stands.
    async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError>;

    /// Rows of a view version and its checkpoint, in one transaction. A checkpoint that is not `expected` changes
    /// nothing and is an error: somebody else has moved it.
    async fn apply(&self, log: TenantId, apply: ViewApply) -> Result<(), StoreError>;

    /// One row of a view version.
    async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError>;

    /// Rows of a view version whose key starts with `prefix`, after key `after`, in order.
    async fn view_list(
        &self,
        log: TenantId,
        view: &str,
        version: u32,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ViewRow>, StoreError>;

    /// Every view of a log, with where it stands.
    async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError>;

    /// What lies beside the events of a log, after a place, in order of places.
    async fn beside(&self, log: TenantId, kind: BesideKind, after: Vec<u8>, limit: usize) -> Result<Vec<Beside>, StoreError>;

    /// Puts back what lay beside the events of a log.
    async fn put_beside(&self, log: TenantId, things: Vec<Beside>) -> Result<(), StoreError>;

    /// Rewrites what the store keeps, so that nothing of what was removed is left in its free space.
    async fn scrub(&self) -> Result<(), StoreError>;

    /// Every log that holds an event, in the order of creation.
    async fn logs(&self) -> Result<Vec<TenantId>, StoreError>;

    /// Whether other processes write to it too, so that nothing may be held to be current without asking.
    fn is_shared(&self) -> bool {
        false
    }

    /// How the store is.
    fn health(&self) -> Health;

    /// Finishes what was taken in, then releases everything.
    async fn close(&self);
}
