//! Replicas in one process, for the simulator: several applications on one memory store.

use super::MemoryStore;
use crate::StoreError;
use crate::cluster::{Cluster, Letter};
use async_trait::async_trait;
use kernel::Timestamp;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Leases and letters.
pub(super) struct Shared {
    replicas: BTreeMap<String, Timestamp>,
    pub leases: BTreeMap<u16, Lease>,
    letters: Vec<Letter>,
    mail: watch::Sender<u64>,
}

/// Who leads a bucket.
pub(super) struct Lease {
    holder: String,
    pub token: u64,
    until: Timestamp,
}

impl Default for Shared {
    fn default() -> Self {
        Shared { replicas: BTreeMap::new(), leases: BTreeMap::new(), letters: vec![], mail: watch::channel(0).0 }
    }
}

#[async_trait]
impl Cluster for MemoryStore {
    async fn join(&self, replica: &str, now: Timestamp, ttl_ms: u64) -> Result<Vec<String>, StoreError> {
        let replicas = &mut self.lock().shared.replicas;
        replicas.insert(replica.to_owned(), now.plus_ms(ttl_ms));
        replicas.retain(|_, until| *until > now);
        Ok(replicas.keys().cloned().collect())
    }

    async fn hold(&self, replica: &str, wanted: &[u16], now: Timestamp, ttl_ms: u64) -> Result<BTreeMap<u16, u64>, StoreError> {
        let leases = &mut self.lock().shared.leases;
        let until = now.plus_ms(ttl_ms);
        leases.values_mut().filter(|lease| lease.holder == replica).for_each(|lease| lease.until = until);
        for bucket in wanted {
            let lease = leases.entry(*bucket).or_insert(Lease { holder: String::new(), token: 0, until: Timestamp(i64::MIN) });
            if lease.holder != replica && lease.until <= now {
                *lease = Lease { holder: replica.to_owned(), token: lease.token + 1, until };
            }
        }
        let held = leases.iter().filter(|(_, lease)| lease.holder == replica);
        Ok(held.map(|(bucket, lease)| (*bucket, lease.token)).collect())
    }

    async fn release(&self, replica: &str, buckets: &[u16]) -> Result<(), StoreError> {
        let leases = &mut self.lock().shared.leases;
        for bucket in buckets {
            if let Some(lease) = leases.get_mut(bucket).filter(|lease| lease.holder == replica) {
                (lease.holder, lease.until) = (String::new(), Timestamp(i64::MIN));
            }
        }
        Ok(())
    }

    async fn leave(&self, replica: &str) -> Result<(), StoreError> {
        let held: Vec<u16> = {
            let shared = &mut self.lock().shared;
            shared.replicas.remove(replica);
            shared.leases.iter().filter(|(_, lease)| lease.holder == replica).map(|(bucket, _)| *bucket).collect()
        };
        self.release(replica, &held).await
    }

    async fn post(&self, letters: Vec<Letter>) -> Result<(), StoreError> {
        let shared = &mut self.lock().shared;
        shared.letters.extend(letters);
        shared.mail.send_modify(|n| *n += 1);
        Ok(())
    }

    async fn collect(&self, recipients: &[String]) -> Result<Vec<Letter>, StoreError> {
        let letters = &mut self.lock().shared.letters;
        let (read, left) = std::mem::take(letters).into_iter().partition(|letter| recipients.contains(&letter.recipient));
        *letters = left;
        Ok(read)
    }

    fn mail(&self) -> watch::Receiver<u64> {
        self.lock().shared.mail.subscribe()
    }
}
