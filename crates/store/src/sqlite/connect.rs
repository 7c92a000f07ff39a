//! Connections to a database file: one kind that writes and one that reads, both through the VFS that checks pages.
//!
//! A connection that is closed writes nothing, so that no write follows a failed one. The writer's may at its end, when
//! nothing failed ([`let_go`]).

use super::wal;
use crate::StoreError;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Result, ffi};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often, and how long, the write-ahead log is waited for until no reader uses it.
const TRUNCATE_TRIES: u32 = 200;
const TRUNCATE_PAUSE: Duration = Duration::from_millis(25);

/// A database file, and the VFS through which it is reached.
#[derive(Clone)]
pub(super) struct Database {
    path: PathBuf,
    vfs: &'static str,
}

impl Database {
    pub fn new(path: PathBuf, vfs: &'static str) -> Self {
        Database { path, vfs }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The one connection that writes. A new database gets checksums on its pages; an older one stays as it is.
    pub fn writing(&self) -> Result<Connection> {
        self.check_log()?;
        let connection = self.open(OpenFlags::default())?;
        pages::reserve(&connection)?;
        turn_on_log(&connection)?;
        connection.execute_batch(
            "PRAGMA synchronous = FULL;
             PRAGMA fullfsync = ON;
             PRAGMA wal_autocheckpoint = 0;
             PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -16000;",
        )?;
        Ok(connection)
    }

    /// Refuses a write-ahead log of which SQLite would forget what was acknowledged.
    fn check_log(&self) -> Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push("-wal");
        let path = self.path.with_file_name(name);
        let why = match wal::damaged(&path) {
            Ok(None) => return Ok(()),
            Ok(Some(frame)) => format!(
                "'{}' is damaged at frame {frame}, and transactions that were acknowledged lie behind it; restore a backup, and keep these files",
                path.display()
            ),
            Err(error) => format!("'{}' cannot be read: {error}", path.display()),
        };
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(why)))
    }

    /// A connection that only reads.
    pub fn reading(&self) -> Result<Connection> {
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.execute_batch("PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -2000;")?;
        Ok(connection)
    }

    fn open(&self, flags: OpenFlags) -> Result<Connection> {
        pages::register()?;
        let connection = Connection::open_with_flags_and_vfs(&self.path, flags, self.vfs)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(connection)
    }
}

/// Turns on the write-ahead log. SQLite answers with the mode and then changes it, so the answer alone says nothing:
/// whether it could is known at the statement's end. Without the log a commit would not be durable with one sync.
fn turn_on_log(connection: &Connection) -> Result<()> {
    let mut statement = connection.prepare("PRAGMA journal_mode = WAL")?;
    let modes = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>>>()?;
    match modes.as_slice() {
        [mode] if mode == "wal" => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_IOERR),
            Some("the write-ahead log could not be turned on".to_owned()),
        )),
    }
}

/// Rewrites a database, so that nothing of what was removed is left in its free space, and empties the write-ahead log.
/// Refused when the disk has no room for a second copy and what must stay free.
pub(super) fn rewrite(connection: &Connection, directory: &Path, free_min_bytes: u64) -> Result<Result<(), StoreError>> {
    let pages: u64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let page_bytes: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    // The write-ahead log holds the whole database once more, and so does the temporary copy, which may lie elsewhere.
    let needed = pages.saturating_mul(page_bytes).saturating_mul(2).saturating_add(free_min_bytes);
    let temporary = temporary_folder().unwrap_or(directory.to_owned());
    let has_room = |folder: &Path, bytes: u64| super::free_bytes(folder).is_none_or(|free| free >= bytes);
    if !has_room(directory, needed) || !has_room(&temporary, pages.saturating_mul(page_bytes)) {
        return Ok(Err(StoreError::DiskLow));
    }
    let vacuumed = connection.execute_batch("PRAGMA temp_store = FILE; VACUUM;");
    connection.execute_batch("PRAGMA temp_store = MEMORY;")?;
    match vacuumed {
        Ok(()) => {}
        // Nothing was written: the copy found no room, or somebody was in the way.
        Err(error) if is_refusal(&error) => return Ok(Err(StoreError::DiskLow)),
        Err(error) => return Err(error),
    }
    for _ in 0..TRUNCATE_TRIES {
        let is_busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if !is_busy {
            return Ok(Ok(()));
        }
        // A reader is on its way through the log.
        std::thread::sleep(TRUNCATE_PAUSE);
    }
    Ok(Err(StoreError::Busy))
}

/// Where SQLite puts temporary files: it looks at these in this order.
fn temporary_folder() -> Option<PathBuf> {
    let named = ["SQLITE_TMPDIR", "TMPDIR"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let usual = ["/var/tmp", "/usr/tmp", "/tmp"].into_iter().map(PathBuf::from);
    named.chain(usual).find(|folder| folder.is_dir())
}

fn is_refusal(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory};
    let refusals = [CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory];
    error.sqlite_error_code().is_some_and(|code| refusals.contains(&code))
}

/// Closes a connection that wrote and never failed; the last one empties the write-ahead log and removes it.
pub(super) fn let_go(connection: Connection) {
    // When it cannot be set, the log stays, and the next start reads it.
    let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
    drop(connection);
}

/// Whether a page did not match its checksum.
pub(super) fn is_damaged(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_DATA)
}

/// What went wrong, with file and page where a page is damaged. To be asked on the thread that met the error.
pub(super) fn reason(error: &rusqlite::Error) -> String {
    match pages::last_corruption() {
        Some(corruption) if is_damaged(error) => corruption.to_string(),
        _ => error.to_string(),
    }
}
