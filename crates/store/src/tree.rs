//! What is kept of a Merkle tree: its tiles and its latest signed checkpoint. The leaves are those of the events, or of
//! the journal's entries.

use crate::StoreError;
use async_trait::async_trait;
use kernel::TenantId;
use kernel::merkle::Hash;
use std::collections::BTreeMap;

/// The latest checkpoint of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Leaves under it.
    pub size: u64,
    /// The signed note.
    pub note: String,
    /// The latest note that witnesses have signed too; older, and empty when there is none.
    pub cosigned: String,
}

/// What a tree is after more leaves.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// Its size before.
    pub expected: u64,
    /// Its size after.
    pub size: u64,
    /// Tiles that are new or longer, by level and index: 32 bytes for each hash.
    pub tiles: Vec<((u8, u64), Vec<u8>)>,
    /// The signed note.
    pub note: String,
}

/// The trees of every tenant.
///
/// What every backend promises (checked by [`contract`](crate::contract)): a tree grows by one growth after the other;
/// tiles and checkpoint of a growth are there together.
#[async_trait]
pub trait TreeStore: Send + Sync {
    /// How many leaves every tenant has, as far as it is known here without waiting.
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError>;

    /// Leaves from number `from` (0 for the first) on.
    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError>;

    /// A tile as it is now; `None` when it has no hash yet.
    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// The latest checkpoint.
    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError>;

    /// Adds leaves. A size that is not `expected` changes nothing and is a [`StoreError::ViewMoved`].
    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError>;

    /// Keeps a note that witnesses have signed.
    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError>;
}
