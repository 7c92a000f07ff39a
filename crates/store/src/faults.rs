//! A store that fails on purpose: before an append, or after it was carried out. For the simulator and fault tests.

use crate::tree::{Growth, Sealed};
use crate::*;
use kernel::merkle::Hash;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Wraps a store; the same seed gives the same faults.
pub struct FaultyStore<S> {
    inner: S,
    state: AtomicU64,
    /// Of 1,000 appends, so many fail without effect.
    before_permille: AtomicU64,
    /// Of 1,000 appends, so many are carried out, and the answer is lost.
    after_permille: AtomicU64,
}

impl<S: Store> FaultyStore<S> {
    /// Of 1,000 appends, so many fail without effect, and so many fail after they were carried out.
    pub fn new(inner: S, seed: u64, before_permille: u64, after_permille: u64) -> Self {
        let (before_permille, after_permille) = (AtomicU64::new(before_permille), AtomicU64::new(after_permille));
        FaultyStore { inner, state: AtomicU64::new(seed), before_permille, after_permille }
    }

    /// Other rates from now on.
    pub fn set(&self, before_permille: u64, after_permille: u64) {
        self.before_permille.store(before_permille, Ordering::Relaxed);
        self.after_permille.store(after_permille, Ordering::Relaxed);
    }

    /// The next pseudo-random number (SplitMix64: its state is a counter, so it needs no lock).
    fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[async_trait]
impl<S: Store> crate::tree::TreeStore for FaultyStore<S> {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        self.inner.sizes().await
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        self.inner.leaves(tenant, from, limit).await
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.tile(tenant, level, index).await
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        self.inner.sealed(tenant).await
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.inner.grow(tenant, growth).await
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.inner.cosign(tenant, note).await
    }
}

#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        let dice = self.next() % 1_000;
        let before = self.before_permille.load(Ordering::Relaxed);
        if dice < before {
            return Box::pin(std::future::ready(Err(StoreError::Unknown("a fault was injected before the append".into()))));
        }
        let outcome = self.inner.append(append);
        if dice < before + self.after_permille.load(Ordering::Relaxed) {
            return Box::pin(async move {
                outcome.await?;
                Err(StoreError::Unknown("a fault was injected after the append".into()))
            });
        }
        outcome
    }

    async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError> {
        self.inner.entity(log, stream).await
    }

    async fn entities(&self, log: TenantId, query: EntityQuery) -> Result<EntityPage, StoreError> {
        self.inner.entities(log, query).await
    }

    async fn index_values(
        &self,
        log: TenantId,
        kind: &str,
        field: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        self.inner.index_values(log, kind, field, prefix, limit).await
    }

    async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError> {
        self.inner.holder(log, key).await
    }

    async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError> {
        self.inner.idempotent(log, key).await
    }

    async fn read(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError> {
        self.inner.read(log, stream, from, limit).await
    }

    async fn scan(&self, log: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Result<Scanned, StoreError> {
        self.inner.scan(log, after, filter, limit).await
    }

    fn tail(&self, log: TenantId) -> watch::Receiver<u64> {
        self.inner.tail(log)
    }

    async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError> {
        self.inner.position_at(log, instant).await
    }

    async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.value(log, hash).await
    }

    async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.secret(log, name).await
    }

    async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError> {
        self.inner.view_state(log, view).await
    }

    async fn apply(&self, log: TenantId, apply: ViewApply) -> Result<(), StoreError> {
        self.inner.apply(log, apply).await
    }

    async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError> {
        self.inner.view_get(log, view, version, key).await
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
        self.inner.view_list(log, view, version, prefix, after, limit).await
    }

    async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError> {
        self.inner.views(log).await
    }

    async fn beside(&self, log: TenantId, kind: BesideKind, after: Vec<u8>, limit: usize) -> Result<Vec<Beside>, StoreError> {
        self.inner.beside(log, kind, after, limit).await
    }

    async fn put_beside(&self, log: TenantId, things: Vec<Beside>) -> Result<(), StoreError> {
        self.inner.put_beside(log, things).await
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        self.inner.scrub().await
    }

    async fn logs(&self) -> Result<Vec<TenantId>, StoreError> {
        self.inner.logs().await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
