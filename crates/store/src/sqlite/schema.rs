//! The tables. A change here raises `VERSION` and adds a step to `STEPS`; old steps never change.

use super::unusable;
use crate::OpenError;
use rusqlite::Connection;
use std::path::Path;

/// The version of the tables that this program writes.
const VERSION: u32 = 2;

/// How to get from each version to the next.
const STEPS: [&str; VERSION as usize] = [V1, super::tree::TABLES];

/// `events.id` and the log's number: `log << 40 | position`, so that a log's events lie together, in order.
pub(super) const POSITION_BITS: u32 = 40;

const V1: &str = "
CREATE TABLE logs (
    number INTEGER PRIMARY KEY,
    tenant BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    event BLOB NOT NULL,
    kind TEXT NOT NULL,
    shape INTEGER NOT NULL,
    category INTEGER NOT NULL,
    stream TEXT NOT NULL,
    version INTEGER NOT NULL,
    occurred_at INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    user BLOB,
    correlation TEXT NOT NULL,
    causation BLOB,
    trace_parent TEXT,
    salt BLOB,
    payload BLOB,
    payload_hash BLOB NOT NULL,
    leaf BLOB NOT NULL
) STRICT;
CREATE TABLE entities (
    id INTEGER PRIMARY KEY,
    log INTEGER NOT NULL,
    stream TEXT NOT NULL,
    version INTEGER NOT NULL,
    state BLOB NOT NULL,
    state_version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    is_deleted INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    fields TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX idx_entities_stream ON entities (log, stream);
CREATE TABLE stream_events (
    entity INTEGER NOT NULL,
    version INTEGER NOT NULL,
    event INTEGER NOT NULL,
    PRIMARY KEY (entity, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE entity_fields (
    log INTEGER NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    stream TEXT NOT NULL,
    PRIMARY KEY (log, field, value, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE unique_keys (
    log INTEGER NOT NULL,
    key TEXT NOT NULL,
    stream TEXT NOT NULL,
    PRIMARY KEY (log, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE idempotency (
    log INTEGER NOT NULL,
    key TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    stream TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (log, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE stored_values (
    log INTEGER NOT NULL,
    hash BLOB NOT NULL,
    bytes BLOB NOT NULL,
    UNIQUE (log, hash)
) STRICT;
CREATE TABLE secrets (
    log INTEGER NOT NULL,
    name TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (log, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE views (
    log INTEGER NOT NULL,
    view TEXT NOT NULL,
    version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    is_active INTEGER NOT NULL,
    PRIMARY KEY (log, view, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE view_rows (
    log INTEGER NOT NULL,
    view TEXT NOT NULL,
    version INTEGER NOT NULL,
    key TEXT NOT NULL,
    row BLOB NOT NULL,
    PRIMARY KEY (log, view, version, key)
) STRICT, WITHOUT ROWID;
";

/// Brings the tables to the present version, or says why this program may not touch them.
pub(super) fn prepare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let unusable = |e: rusqlite::Error| unusable(path, &e);
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(unusable)?;
    if found > VERSION {
        return Err(OpenError::Newer { path: path.display().to_string(), found: found.to_string(), known: VERSION });
    }
    for (number, step) in STEPS.iter().enumerate().skip(found as usize) {
        let sql = format!("BEGIN IMMEDIATE; {step} PRAGMA user_version = {}; COMMIT;", number + 1);
        connection.execute_batch(&sql).map_err(unusable)?;
    }
    Ok(())
}
