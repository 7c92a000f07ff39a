//! The journal: observations beside the log, in batches, with a limit on what waits.

mod intake;
mod memory;

#[cfg(any(test, feature = "test-util"))]
pub mod contract;

pub(crate) use intake::Intake;
pub use memory::MemoryJournal;

use crate::StoreError;
use async_trait::async_trait;
use kernel::event::{Content, payload_hash};
use kernel::journal::{Class, JournalHeader};
use kernel::{ActorRef, TenantId, Timestamp, id::JournalId};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Entries that may wait to be written.
pub const WAITING_MAX: usize = 8_192;
/// Bytes that may wait to be written.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long an entry waits for others at most.
pub const BATCH_MS_MAX: u64 = 200;

/// An entry before it has its place.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its id.
    pub id: JournalId,
    /// Whose.
    pub tenant: TenantId,
    /// What it is about.
    pub class: Class,
    /// `area.thing.happened`.
    pub kind: Cow<'static, str>,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: ActorRef,
    /// What belongs together.
    pub correlation: String,
    /// JSON.
    pub content: Content,
    /// Large values by hash; kept once. An empty one only says that the value is still referred to.
    pub values: Vec<([u8; 32], Vec<u8>)>,
}

impl NewEntry {
    /// What it takes while it waits.
    pub(crate) fn bytes(&self) -> usize {
        256 + self.content.bytes().map_or(0, <[u8]>::len) + self.values.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    pub(crate) fn header(&self, position: u64) -> JournalHeader {
        JournalHeader {
            id: self.id,
            tenant: self.tenant,
            position,
            class: self.class,
            kind: self.kind.clone().into_owned(),
            at: self.at,
            actor: self.actor.clone(),
            correlation: self.correlation.clone(),
        }
    }

    /// The entry that says how many others are missing after `last`.
    pub(crate) fn gap(last: &NewEntry, lost: u64) -> NewEntry {
        let id = JournalId::derived(&[&last.id.bytes(), b"gap"]);
        NewEntry {
            id,
            class: Class::Gap,
            kind: "journal.entries.lost".into(),
            actor: ActorRef::system("journal"),
            correlation: String::new(),
            content: Content::Whole { salt: id.bytes(), bytes: format!("{{\"lost\":{lost}}}").into_bytes() },
            values: vec![],
            tenant: last.tenant,
            at: last.at,
        }
    }
}

/// An entry as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Everything but its content.
    pub header: JournalHeader,
    /// JSON; `None` when its time was over.
    pub data: Option<Vec<u8>>,
    /// The salt; `None` like the content.
    pub salt: Option<[u8; 16]>,
    /// `H(salt ‖ data)`, kept when the content is gone.
    pub data_hash: [u8; 32],
    /// The Merkle leaf.
    pub leaf: [u8; 32],
}

impl Entry {
    /// Whether hashes and content agree. Content that is gone is covered by its kept hash.
    pub fn is_intact(&self) -> bool {
        let data_ok = match (&self.salt, &self.data) {
            (Some(salt), Some(data)) => payload_hash(salt, data) == self.data_hash,
            (None, None) => true,
            _ => false,
        };
        data_ok && self.header.leaf(&self.data_hash) == self.leaf
    }
}

/// Which entries.
#[derive(Clone, Debug, Default)]
pub struct JournalQuery {
    /// Only those after this position.
    pub after: u64,
    /// Only this class.
    pub class: Option<Class>,
    /// Only those of this actor.
    pub actor: Option<String>,
    /// How many at most.
    pub limit: usize,
}

impl JournalQuery {
    pub(crate) fn admits(&self, header: &JournalHeader) -> bool {
        header.position > self.after
            && self.class.is_none_or(|class| class == header.class)
            && self.actor.as_ref().is_none_or(|actor| *actor == header.actor.id)
    }
}

/// How a journal is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalHealth {
    /// Why nothing is written any more, when that is so.
    pub broken: Option<String>,
    /// Entries that are not durable yet.
    pub waiting: usize,
    /// Entries that could not be kept since the start.
    pub lost: u64,
}

/// The journal of every tenant.
///
/// What every backend promises (checked by [`contract`]): positions start at 1 per tenant and have no gap; an entry's
/// place is its place in the order of `offer` and `record`; what is lost is said by an entry of class
/// [`Class::Gap`] before the next one that is kept.
#[async_trait]
pub trait Journal: crate::tree::TreeStore + Send + Sync + 'static {
    /// Takes an entry without waiting; it is written within [`BATCH_MS_MAX`]. `false` when too much waits or nothing can
    /// be written: then it is counted as lost.
    fn offer(&self, entry: NewEntry) -> bool;

    /// Takes an entry and answers its position once it is durable.
    async fn record(&self, entry: NewEntry) -> Result<u64, StoreError>;

    /// Entries in order.
    async fn entries(&self, tenant: TenantId, query: JournalQuery) -> Result<Vec<Entry>, StoreError>;

    /// A large value by its hash, while an entry refers to it.
    async fn value(&self, tenant: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Large values after a hash, in order of hashes.
    async fn values(&self, tenant: TenantId, after: [u8; 32], limit: usize) -> Result<Vec<([u8; 32], Vec<u8>)>, StoreError>;

    /// Removes the content of the entries at these positions, for ever.
    async fn erase(&self, tenant: TenantId, positions: Vec<u64>) -> Result<(), StoreError>;

    /// Removes values for ever, if no entry was written behind position `seen`; else [`StoreError::ViewMoved`].
    async fn erase_values(&self, tenant: TenantId, values: Vec<[u8; 32]>, seen: u64) -> Result<(), StoreError>;

    /// Rewrites what the journal keeps, so that nothing of what was removed is left in its free space.
    async fn scrub(&self) -> Result<(), StoreError>;

    /// Removes the content of entries of each class from before an instant; headers and hashes stay.
    async fn forget(&self, before: BTreeMap<Class, Timestamp>) -> Result<u64, StoreError>;

    /// How the journal is.
    fn health(&self) -> JournalHealth;

    /// Writes what waits, then releases everything.
    async fn close(&self);
}
