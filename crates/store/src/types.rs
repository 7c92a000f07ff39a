//! What goes into a store and what comes out.

use kernel::{Category, IndexField, NewEvent, Recorded, Timestamp, UniqueChange, ViewRow};
use kernel::{TenantId, limits};
use std::sync::Arc;

/// One atomic change of one log.
#[derive(Clone, Debug)]
pub struct Append {
    /// The log. It is made when it does not exist.
    pub log: TenantId,
    /// The streams it writes, each at most once. A write without events only checks its version.
    pub writes: Vec<StreamWrite>,
    /// The same key with the same request hash stands for the same change.
    pub idempotency: Option<IdempotencyKey>,
    /// Large values by hash; `None` removes one.
    pub values: Vec<([u8; 32], Option<Vec<u8>>)>,
    /// Sealed secrets by name; `None` removes one.
    pub secrets: Vec<(String, Option<Vec<u8>>)>,
    /// Leadership that the append rests on; it is refused when somebody else has it.
    pub authority: Option<Authority>,
    /// The position that the log must have, when the change rests on nothing having happened since; else it is refused with
    /// [`StoreError::ViewMoved`].
    pub if_head: Option<u64>,
    /// The engine's time.
    pub now: Timestamp,
}

/// Leadership of a bucket of logs, proved by its fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Which bucket.
    pub bucket: u16,
    /// Grows each time the bucket gets another leader.
    pub token: u64,
}

/// A change of one stream.
#[derive(Clone, Debug)]
pub struct StreamWrite {
    /// Which.
    pub stream: String,
    /// Version that it must have; 0 for a new stream.
    pub expected_version: u64,
    /// What happened.
    pub events: Vec<NewEvent>,
    /// Unique keys taken or given up.
    pub unique: Vec<UniqueChange>,
    /// The entity's row after these events. Absent only when there are no events.
    pub row: Option<NewRow>,
    /// Whether the content of all earlier events of the stream goes for ever, with the keys that stand for it. Headers,
    /// hashes and places stay.
    pub erases: bool,
}

/// What is kept of an entity beside its version.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// Prefix of its ids.
    pub kind: &'static str,
    /// The folded state; absent when it is large and not due.
    pub state: Option<Vec<u8>>,
    /// By what it is listed.
    pub index: Vec<IndexField>,
    /// Whether lists hide it.
    pub is_deleted: bool,
}

/// A client's key for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Scoped by whoever uses it.
    pub key: String,
    /// Hash of the request.
    pub request_hash: [u8; 32],
}

/// What an idempotency key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotent {
    /// Hash of the request it was used with.
    pub request_hash: [u8; 32],
    /// The first stream that was written.
    pub stream: String,
    /// The position after the change.
    pub position: u64,
}

/// An append that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The log's position after it. For an append without events, the position at the time.
    pub position: u64,
}

/// An entity as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityRow {
    /// Its stream.
    pub stream: String,
    /// Version of its stream.
    pub version: u64,
    /// The folded state, as of `state_version`.
    pub state: Vec<u8>,
    /// Up to which version events are folded into `state`; older than `version` for large states only.
    pub state_version: u64,
    /// Position of its latest event.
    pub position: u64,
    /// Whether lists hide it.
    pub is_deleted: bool,
    /// Time of its first event.
    pub created_at: Timestamp,
    /// Time of its latest event.
    pub updated_at: Timestamp,
}

/// Which entities, and in which order.
#[derive(Clone, Debug)]
pub struct EntityQuery {
    /// Prefix of their ids.
    pub kind: &'static str,
    /// All of these must hold.
    pub fields: Vec<IndexField>,
    /// Only streams beyond this one, in the order asked for.
    pub after: Option<String>,
    /// Newest first.
    pub is_descending: bool,
    /// Whether deleted ones are listed too.
    pub with_deleted: bool,
    /// How many at most.
    pub limit: usize,
}

impl EntityQuery {
    /// All entities of a kind that are not deleted, oldest first.
    pub fn all(kind: &'static str) -> Self {
        EntityQuery {
            kind,
            fields: vec![],
            after: None,
            is_descending: false,
            with_deleted: false,
            limit: limits::PAGE_ITEMS_MAX,
        }
    }
}

/// A page of entities.
#[derive(Clone, Debug, PartialEq)]
pub struct EntityPage {
    /// The rows.
    pub rows: Vec<EntityRow>,
    /// Where to go on, when there may be more. The page may be short all the same.
    pub next: Option<String>,
}

/// Which events of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanFilter {
    /// Exact type, or a prefix ending in `.*`.
    pub kind: Option<String>,
    /// Only this stream.
    pub stream: Option<String>,
    /// Only this category.
    pub category: Option<Category>,
}

impl ScanFilter {
    /// Whether an event passes.
    pub fn admits(&self, event: &Recorded) -> bool {
        let kind_ok = self.kind.as_deref().is_none_or(|kind| match kind.strip_suffix(".*") {
            Some(prefix) => event.header.kind.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
            None => event.header.kind == kind,
        });
        let category_ok = self.category.is_none_or(|category| category == event.header.category);
        kind_ok && category_ok && self.stream.as_deref().is_none_or(|stream| event.header.stream == stream)
    }
}

/// Events found, and how far was looked.
#[derive(Clone, Debug, PartialEq)]
pub struct Scanned {
    /// Those that pass the filter.
    pub events: Vec<Arc<Recorded>>,
    /// Everything up to here was looked at. Not past the tail.
    pub position: u64,
}

/// Where a version of a view stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewState {
    /// The version.
    pub version: u32,
    /// Events up to here are folded in.
    pub position: u64,
    /// Whether readers use it.
    pub is_active: bool,
}

/// A change of a view version.
#[derive(Clone, Debug)]
pub struct ViewApply {
    /// The view.
    pub view: String,
    /// Its version.
    pub version: u32,
    /// The checkpoint before.
    pub expected: u64,
    /// The checkpoint after.
    pub position: u64,
    /// Rows to write; `Err` holds the key of a row to remove.
    pub rows: Vec<Result<ViewRow, String>>,
    /// Makes this the version that readers use and removes the others.
    pub activate: bool,
}

/// What lies beside a log's events and cannot be folded from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BesideKind {
    /// Idempotency keys.
    Idempotent,
    /// Large values.
    Value,
    /// Sealed secrets.
    Secret,
}

/// One thing that lies beside a log's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// An idempotency key and what it stands for.
    Idempotent(String, Idempotent),
    /// A large value by its hash.
    Value([u8; 32], Vec<u8>),
    /// A sealed secret by its name.
    Secret(String, Vec<u8>),
}

impl Beside {
    /// Its place among its kind, to go on from.
    pub fn place(&self) -> Vec<u8> {
        match self {
            Beside::Idempotent(key, _) => key.clone().into_bytes(),
            Beside::Value(hash, _) => hash.to_vec(),
            Beside::Secret(name, _) => name.clone().into_bytes(),
        }
    }
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Why nothing is written any more, when that is so.
    pub read_only: Option<String>,
    /// Whether the disk is so full that writes are refused for now.
    pub is_disk_low: bool,
    /// Appends that wait.
    pub queued: usize,
    /// Transactions made durable since the start.
    pub commits: u64,
    /// Events made durable since the start.
    pub events: u64,
}

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// A stream has another version: decide again on its present state.
    #[error("stream {stream} is at version {actual}, not {expected}")]
    Conflict {
        /// Which stream.
        stream: String,
        /// What was expected.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// Another stream holds a unique key.
    #[error("key '{key}' is held by {holder}")]
    Taken {
        /// The key.
        key: String,
        /// Who holds it.
        holder: String,
    },
    /// The idempotency key was used before.
    #[error("the idempotency key was used before")]
    Repeated(Idempotent),
    /// A view's checkpoint, a tree or a log is not where it was expected.
    #[error("it stands at {0}")]
    ViewMoved(u64),
    /// Too many appends wait: try again later.
    #[error("too many writes wait")]
    Busy,
    /// The disk is nearly full: nothing is written until there is room.
    #[error("the disk has less free space than store.disk_free_min")]
    DiskLow,
    /// A write failed; nothing is written until the server is started again.
    #[error("the store is read-only since a write failed: {0}")]
    ReadOnly(String),
    /// The database cannot be reached: nothing happened, try again later.
    #[error("the database cannot be reached: {0}")]
    Unavailable(String),
    /// Another replica leads now: nothing happened, and whoever asked must stop.
    #[error("another replica leads now")]
    Fenced,
    /// It is not known whether the append happened.
    #[error("the outcome of the write is not known: {0}")]
    Unknown(String),
    /// What is stored does not make sense.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// Reading failed.
    #[error("the store could not be read: {0}")]
    Io(String),
    /// It was shut down.
    #[error("the store is closed")]
    Closed,
}

/// Why a store could not be opened. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data directory '{0}' is in use by another keiko process; stop that one first or choose another with --data-dir")]
    InUse(String),
    /// It was written by a newer version.
    #[error(
        "the data directory '{path}' has format {found}, this keiko reads up to {known}; use the keiko version that wrote it, or a newer one"
    )]
    Newer {
        /// Where.
        path: String,
        /// Its format.
        found: String,
        /// What this version knows.
        known: u32,
    },
    /// The database server cannot be used; the text says why and what to do.
    #[error("{0}")]
    Database(String),
    /// It cannot be used.
    #[error("cannot use the data directory '{path}': {reason}; choose another with --data-dir")]
    Unusable {
        /// Where.
        path: String,
        /// Why.
        reason: String,
    },
}
