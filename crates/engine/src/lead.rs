//! Leadership among replicas: which buckets of logs this one leads, by leases that it renews.
//!
//! Every replica works out by itself who should lead what; the leases decide. Whoever holds a bucket has a fencing token,
//! which the store checks with every append that rests on it, so a replica that was paused cannot do harm when it wakes.

use crate::Env;
use kernel::TenantId;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::cluster::Cluster;
use tokio::sync::watch;

/// Buckets that logs fall into.
pub const BUCKETS: u16 = 64;
/// The bucket of what is done once for all logs.
pub const BUCKET_OF_ALL: u16 = BUCKETS;

/// Buckets that this replica leads, with their tokens.
pub type Held = BTreeMap<u16, u64>;

/// The bucket of a log.
pub fn bucket_of(log: TenantId) -> u16 {
    // The last bytes of an id are random.
    let bytes = log.bytes();
    u16::from_be_bytes([bytes[14], bytes[15]]) % BUCKETS
}

/// Which buckets a replica should lead among those that are there: each bucket goes to the replica with the highest
/// number for it, so that one that comes or goes moves only its own share.
fn share(replica: &str, live: &[String]) -> Vec<u16> {
    let best = |bucket: u16| live.iter().max_by_key(|name| (weight(name, bucket), name.as_str()));
    (0..=BUCKET_OF_ALL).filter(|bucket| best(*bucket).is_some_and(|name| name == replica)).collect()
}

/// FNV-1a over name and bucket, mixed at the end.
fn weight(name: &str, bucket: u16) -> u64 {
    let bytes = name.bytes().chain(bucket.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

/// Keeps this replica's leases until the end. What it leads is told through the channel, and is empty as soon as a lease
/// could not be renewed in time.
///
/// The second channel tells which replicas are there, this one included.
pub fn lead(
    env: &Env,
    cluster: Arc<dyn Cluster>,
    replica: &str,
    lease_ms: u64,
) -> (watch::Receiver<Held>, watch::Receiver<Vec<String>>) {
    let ((told, held), (seen, live)) = (watch::channel(Held::new()), watch::channel(vec![]));
    let leader = Leader { env: env.clone(), cluster, replica: replica.to_owned(), lease_ms, told, seen };
    env.spawn(leader.run());
    (held, live)
}

struct Leader {
    env: Env,
    cluster: Arc<dyn Cluster>,
    replica: String,
    lease_ms: u64,
    told: watch::Sender<Held>,
    seen: watch::Sender<Vec<String>>,
}

impl Leader {
    async fn run(self) {
        let mut until = self.env.now();
        loop {
            let asked_at = self.env.now();
            match self.renew().await {
                Ok(held) => {
                    until = asked_at.plus_ms(self.lease_ms);
                    self.tell(held);
                }
                Err(error) => {
                    tracing::warn!(%error, "leases could not be renewed");
                    if self.env.now() >= until {
                        self.tell(Held::new());
                    }
                }
            }
            tokio::select! {
                biased;
                () = self.env.stop().cancelled() => break,
                () = self.env.sleep_ms(self.lease_ms / 4) => {}
            }
        }
        // Others need not wait for the leases to run out. If they cannot be told, they will.
        if let Err(error) = self.cluster.leave(&self.replica).await {
            tracing::debug!(%error, "leases could not be given up");
        }
    }

    async fn renew(&self) -> Result<Held, store::StoreError> {
        let live = self.cluster.join(&self.replica, self.env.now(), self.lease_ms).await?;
        let wanted = share(&self.replica, &live);
        self.seen.send_replace(live);
        let held = self.cluster.hold(&self.replica, &wanted, self.env.now(), self.lease_ms).await?;
        let (kept, given_up): (Held, Held) = held.into_iter().partition(|(bucket, _)| wanted.contains(bucket));
        if !given_up.is_empty() {
            // First nobody here acts on them any more, then others may.
            self.tell(kept.clone());
            self.cluster.release(&self.replica, &given_up.into_keys().collect::<Vec<_>>()).await?;
        }
        Ok(kept)
    }

    fn tell(&self, held: Held) {
        self.told.send_if_modified(|known| {
            let is_new = *known != held;
            *known = held;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_has_one_leader_and_a_newcomer_takes_only_its_share() {
        let names = |n: usize| (0..n).map(|i| format!("replica_{i}")).collect::<Vec<_>>();
        for count in 1..6 {
            let live = names(count);
            let mut all: Vec<u16> = live.iter().flat_map(|name| share(name, &live)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..=BUCKET_OF_ALL));
        }
        let (few, more) = (names(3), names(4));
        for name in &few {
            let (before, after) = (share(name, &few), share(name, &more));
            assert!(after.iter().all(|bucket| before.contains(bucket)), "nothing moves between those that stay");
            assert!(before.len() > 10, "{}", before.len());
        }
    }
}
