//! What waits to be written to a journal, within limits, and what could not be kept.

use super::{JournalHealth, WAITING_BYTES_MAX, WAITING_MAX};
use kernel::TenantId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts of one journal.
#[derive(Default)]
pub(crate) struct Intake {
    broken: Mutex<Option<String>>,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
    /// Lost since the last entry that says so, by tenant.
    unsaid: Mutex<BTreeMap<TenantId, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below panics between two changes, so a poisoned state is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Intake {
    /// Takes an entry's place among what waits; `false` when too much waits.
    pub fn admit(&self, bytes: usize) -> bool {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_admitted = waiting < WAITING_MAX && waiting_bytes + bytes <= WAITING_BYTES_MAX;
        if !is_admitted {
            self.release(1, bytes);
        }
        is_admitted
    }

    /// Entries wait no more: they are durable, or lost.
    pub fn release(&self, entries: usize, bytes: usize) {
        self.waiting.fetch_sub(entries, Ordering::Relaxed);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// An entry could not be kept.
    pub fn lose(&self, tenant: TenantId) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        *lock(&self.unsaid).entry(tenant).or_default() += 1;
    }

    /// What is lost and not said yet. Whoever takes it says it, or gives it back.
    pub fn take_unsaid(&self) -> BTreeMap<TenantId, u64> {
        std::mem::take(&mut *lock(&self.unsaid))
    }

    /// What was not said after all.
    pub fn give_back_unsaid(&self, left: impl IntoIterator<Item = (TenantId, u64)>) {
        let mut unsaid = lock(&self.unsaid);
        left.into_iter().for_each(|(tenant, lost)| *unsaid.entry(tenant).or_default() += lost);
    }

    /// Why nothing is written, when that is so.
    pub fn broken(&self) -> Option<String> {
        lock(&self.broken).clone()
    }

    /// Nothing is written any more, or again.
    pub fn set_broken(&self, reason: Option<String>) {
        *lock(&self.broken) = reason;
    }

    /// How it is.
    pub fn health(&self) -> JournalHealth {
        JournalHealth {
            broken: self.broken(),
            waiting: self.waiting.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }
}
