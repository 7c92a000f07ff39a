//! Tiles and checkpoints in a SQLite file: the same tables beside the log and beside the journal.

use super::write::Failure;
use crate::StoreError;
use crate::tree::{Growth, Sealed};
use kernel::TenantId;
use rusqlite::{Connection, OptionalExtension, Result, params};

pub(super) const TABLES: &str = "
CREATE TABLE tiles (
    log INTEGER NOT NULL,
    level INTEGER NOT NULL,
    number INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    UNIQUE (log, level, number)
) STRICT;
CREATE TABLE checkpoints (
    log INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    note TEXT NOT NULL,
    cosigned TEXT NOT NULL
) STRICT;
";

const LOG: &str = "(SELECT number FROM logs WHERE tenant = ?1)";

pub(super) fn tile(c: &Connection, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>> {
    let sql = format!("SELECT hashes FROM tiles WHERE log = {LOG} AND level = ?2 AND number = ?3");
    c.prepare_cached(&sql)?.query_row(params![&tenant.bytes()[..], level, index], |row| row.get(0)).optional()
}

pub(super) fn sealed(c: &Connection, tenant: TenantId) -> Result<Option<Sealed>> {
    let sql = format!("SELECT size, note, cosigned FROM checkpoints WHERE log = {LOG}");
    let sealed = |row: &rusqlite::Row<'_>| Ok(Sealed { size: row.get(0)?, note: row.get(1)?, cosigned: row.get(2)? });
    c.prepare_cached(&sql)?.query_row([&tenant.bytes()[..]], sealed).optional()
}

/// Inside a transaction.
pub(super) fn grow(c: &Connection, log: i64, growth: &Growth) -> std::result::Result<(), Failure> {
    let size: Option<u64> =
        c.prepare_cached("SELECT size FROM checkpoints WHERE log = ?1")?.query_row([log], |row| row.get(0)).optional()?;
    if size.unwrap_or(0) != growth.expected {
        return Err(Failure::Refused(StoreError::ViewMoved(size.unwrap_or(0))));
    }
    let mut keep = c.prepare_cached(
        "INSERT INTO tiles (log, level, number, hashes) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (log, level, number) DO UPDATE SET hashes = excluded.hashes",
    )?;
    for ((level, number), hashes) in &growth.tiles {
        keep.execute(params![log, level, number, hashes])?;
    }
    c.prepare_cached(
        "INSERT INTO checkpoints (log, size, note, cosigned) VALUES (?1, ?2, ?3, '') \
         ON CONFLICT (log) DO UPDATE SET size = excluded.size, note = excluded.note",
    )?
    .execute(params![log, growth.size, growth.note])?;
    Ok(())
}

/// Inside a transaction.
pub(super) fn cosign(c: &Connection, log: i64, note: &str) -> Result<()> {
    c.prepare_cached("UPDATE checkpoints SET cosigned = ?2 WHERE log = ?1")?.execute(params![log, note])?;
    Ok(())
}
