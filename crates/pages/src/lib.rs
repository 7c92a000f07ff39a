//! A SQLite VFS that keeps a checksum on every page.
//!
//! A page that is written to a database file gets a checksum in its last 8 bytes; a page that is read is compared with
//! its own, and one that differs is an error (`SQLITE_IOERR_DATA`) instead of an answer. The format is that of SQLite's
//! own `ext/misc/cksumvfs.c`, so its tools can check such a database. The write-ahead log has checksums of its own, which
//! SQLite checks when it recovers; its pages get theirs when they are copied into the database.
//!
//! Only databases with exactly 8 reserved bytes on each page take part ([`reserve`]); all others work as before,
//! unchecked. This crate knows files and pages, never tables. It is the only one with `unsafe` code, all of it in `vfs.rs`.

mod checksum;
mod layer;
#[expect(unsafe_code, reason = "SQLite calls a VFS through C function pointers")]
mod vfs;

#[cfg(any(test, feature = "test-util"))]
pub mod faults;

pub use layer::{Corruption, last_corruption};
pub use vfs::reserve;

/// The name of the VFS, for `Connection::open_with_flags_and_vfs`.
pub const NAME: &str = "keiko-pages";

/// Makes the VFS known to SQLite, over the one that is the default now. Once is enough; again changes nothing.
pub fn register() -> rusqlite::Result<()> {
    vfs::register(c"keiko-pages", None, layer::Checksums)
}
