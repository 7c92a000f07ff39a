//! A journal in memory: the model, and the ground of the simulator.

use super::*;
use crate::memory::tree::Trees;
use crate::tree::{Growth, Sealed, TreeStore};
use kernel::merkle::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Everything in memory.
#[derive(Default)]
pub struct MemoryJournal(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: BTreeMap<TenantId, Vec<Entry>>,
    /// With the time of the latest entry that refers to it.
    values: BTreeMap<(TenantId, [u8; 32]), (Timestamp, Vec<u8>)>,
    leaves: BTreeMap<TenantId, Vec<Hash>>,
    trees: Trees,
}

impl MemoryJournal {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, entry: NewEntry) -> u64 {
        let mut inner = self.inner();
        for (hash, bytes) in &entry.values {
            if !bytes.is_empty() {
                inner.values.entry((entry.tenant, *hash)).or_insert_with(|| (entry.at, bytes.clone()));
            }
            if let Some(known) = inner.values.get_mut(&(entry.tenant, *hash)) {
                known.0 = entry.at;
            }
        }
        let entries = inner.entries.entry(entry.tenant).or_default();
        let position = entries.len() as u64 + 1;
        let header = entry.header(position);
        let data_hash = entry.content.hash();
        let leaf = header.leaf(&data_hash);
        let (salt, data) = entry.content.parts();
        entries.push(Entry { header, data, salt, data_hash, leaf });
        inner.leaves.entry(entry.tenant).or_default().push(leaf);
        position
    }
}

#[async_trait]
impl TreeStore for MemoryJournal {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        Ok(self.inner().leaves.iter().map(|(tenant, leaves)| (*tenant, leaves.len() as u64)).collect())
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        Ok(self.inner().leaves.get(&tenant).into_iter().flatten().skip(from).take(limit).copied().collect())
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().trees.tile(tenant, level, index))
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        Ok(self.inner().trees.sealed(tenant))
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.inner().trees.grow(tenant, growth)
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.inner().trees.cosign(tenant, note);
        Ok(())
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    fn offer(&self, entry: NewEntry) -> bool {
        self.put(entry);
        true
    }

    async fn record(&self, entry: NewEntry) -> Result<u64, StoreError> {
        Ok(self.put(entry))
    }

    async fn entries(&self, tenant: TenantId, query: JournalQuery) -> Result<Vec<Entry>, StoreError> {
        let inner = self.inner();
        let all = inner.entries.get(&tenant).into_iter().flatten();
        Ok(all.filter(|entry| query.admits(&entry.header)).take(query.limit).cloned().collect())
    }

    async fn value(&self, tenant: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner().values.get(&(tenant, *hash)).map(|(_, bytes)| bytes.clone()))
    }

    async fn values(&self, tenant: TenantId, after: [u8; 32], limit: usize) -> Result<Vec<([u8; 32], Vec<u8>)>, StoreError> {
        let inner = self.inner();
        let found = inner.values.iter().filter(|((of, hash), _)| *of == tenant && *hash > after);
        Ok(found.take(limit).map(|((_, hash), (_, bytes))| (*hash, bytes.clone())).collect())
    }

    async fn erase_values(&self, tenant: TenantId, values: Vec<[u8; 32]>, seen: u64) -> Result<(), StoreError> {
        let mut inner = self.inner();
        let head = inner.entries.get(&tenant).map_or(0, |entries| entries.len() as u64);
        if head != seen {
            return Err(StoreError::ViewMoved(head));
        }
        inner.values.retain(|(of, hash), _| *of != tenant || !values.contains(hash));
        Ok(())
    }

    async fn erase(&self, tenant: TenantId, positions: Vec<u64>) -> Result<(), StoreError> {
        let mut inner = self.inner();
        let entries = inner.entries.entry(tenant).or_default();
        for entry in entries.iter_mut().filter(|entry| positions.contains(&entry.header.position)) {
            (entry.salt, entry.data) = (None, None);
        }
        Ok(())
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn forget(&self, before: BTreeMap<Class, Timestamp>) -> Result<u64, StoreError> {
        let mut inner = self.inner();
        let mut forgotten = 0;
        for entry in inner.entries.values_mut().flatten() {
            let is_due = before.get(&entry.header.class).is_some_and(|before| entry.header.at < *before);
            if is_due {
                entry.salt = None;
                forgotten += u64::from(entry.data.take().is_some());
            }
        }
        if let Some(oldest) = before.values().min() {
            inner.values.retain(|_, (at, _)| *at >= *oldest);
        }
        Ok(forgotten)
    }

    fn health(&self) -> JournalHealth {
        JournalHealth::default()
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_contract_holds() {
        contract::check(|| async { Arc::new(MemoryJournal::default()) as Arc<dyn Journal> }).await;
    }
}
