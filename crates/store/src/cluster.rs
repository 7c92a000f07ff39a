//! What replicas share beside the log: who is there, who leads which logs, and letters. All of it is soft: losing it costs
//! time, never a fact.

use crate::StoreError;
use async_trait::async_trait;
use kernel::Timestamp;
use std::collections::BTreeMap;
use tokio::sync::watch;

/// A message to a replica, or to whoever leads something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// A replica or a log, as the sender and the reader name it.
    pub recipient: String,
    /// What it says.
    pub body: Vec<u8>,
}

/// Replicas on one store.
///
/// What every backend promises (checked by [`contract`](crate::contract)): a bucket has one holder at a time; its token
/// grows each time it gets another one; an append with the token of an earlier holder is refused with
/// [`StoreError::Fenced`]; a letter is read once.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Says that a replica is there for some time. Answers all that are, in order. `now` is for backends without a clock
    /// of their own.
    async fn join(&self, replica: &str, now: Timestamp, ttl_ms: u64) -> Result<Vec<String>, StoreError>;

    /// Renews what the replica holds and takes what it wants and nobody holds. Answers everything that it holds now, with
    /// tokens.
    async fn hold(&self, replica: &str, wanted: &[u16], now: Timestamp, ttl_ms: u64) -> Result<BTreeMap<u16, u64>, StoreError>;

    /// Gives buckets up.
    async fn release(&self, replica: &str, buckets: &[u16]) -> Result<(), StoreError>;

    /// The replica goes: gives everything up.
    async fn leave(&self, replica: &str) -> Result<(), StoreError>;

    /// Sends letters. They are there when this is answered.
    async fn post(&self, letters: Vec<Letter>) -> Result<(), StoreError>;

    /// Takes the letters of these recipients, oldest first.
    async fn collect(&self, recipients: &[String]) -> Result<Vec<Letter>, StoreError>;

    /// A wake-up for letters. It says "look", also when there are none.
    fn mail(&self) -> watch::Receiver<u64>;
}
