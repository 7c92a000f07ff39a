//! Backups: one file with everything that cannot be folded again, for every tenant and any kind of store.
//!
//! A backup is gzip over JSON, one line for each event, journal entry and thing beside them; `zcat` shows it. It is made
//! while the server works: each log is copied up to the position that it had, which never changes any more. The last line
//! holds the SHA-256 of all others, signed by the key that seals the record; the signed checkpoints in it hold for the
//! events themselves. Restoring folds entities, indexes and unique keys anew, up to any position or instant.
//!
//! Key files are not in it: whoever has a backup alone can read the record but open no secret.

mod create;
mod form;
mod read;
mod restore;

pub use create::{Source, create};
pub use read::{Contents, TreeContents, created_at, origin, read};
pub use restore::{Restored, Target, Until, restore};

/// Why a backup was not made, not believed or not restored. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be opened.
    #[error("the backup '{0}' cannot be read: {1}")]
    Unreadable(String, std::io::Error),
    /// The file cannot be read or written.
    #[error("the backup cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is not what was made.
    #[error("the backup is damaged: {0}; use another one")]
    Damaged(String),
    /// It cannot be done.
    #[error("{0}")]
    Refused(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}
