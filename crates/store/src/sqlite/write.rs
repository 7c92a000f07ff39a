//! What one append or one view change does inside the writer's transaction.

use super::read::{event_id, idempotent_in};
use super::writer::LogState;
use crate::memory::record;
use crate::*;
use kernel::{IndexField, NewEvent, UniqueChange};
use rusqlite::{Connection, OptionalExtension, params};

/// Why an item was not written.
pub(super) enum Failure {
    /// The item is refused; the transaction goes on.
    Refused(StoreError),
    /// The transaction is lost.
    Broken(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Broken(error)
    }
}

/// The entity as it is before a write.
struct Before {
    id: i64,
    version: u64,
    fields: Vec<String>,
}

/// Checks everything, then writes everything: a refused item leaves no trace.
pub(super) fn append(
    c: &Connection,
    log: &mut LogState,
    append: Append,
    written: &mut Vec<Arc<Recorded>>,
) -> Result<Appended, Failure> {
    let is_keyed = reserve(c, log, &append)?;
    match check_and_write(c, log, append, written) {
        Ok(appended) => Ok(appended),
        Err((failure, key)) => {
            if let (true, Some(key)) = (is_keyed, key) {
                c.prepare_cached("DELETE FROM idempotency WHERE log = ?1 AND key = ?2")?.execute(params![log.number, key])?;
            }
            Err(failure)
        }
    }
}

/// Takes the idempotency key before anything else: one statement where asking first would be two. Whoever is refused
/// later gives it back.
fn reserve(c: &Connection, log: &LogState, append: &Append) -> Result<bool, Failure> {
    let (Some(key), Some(first)) = (&append.idempotency, append.writes.first()) else { return Ok(false) };
    let position = log.position + append.writes.iter().map(|w| w.events.len() as u64).sum::<u64>();
    let taken = c
        .prepare_cached(
            "INSERT INTO idempotency (log, key, request_hash, stream, position) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        )?
        .execute(params![log.number, key.key, &key.request_hash[..], first.stream, position])?;
    match taken {
        0 => match idempotent_in(c, log.number, &key.key)? {
            Some(known) => Err(Failure::Refused(StoreError::Repeated(known))),
            None => Err(Failure::Broken(rusqlite::Error::QueryReturnedNoRows)),
        },
        _ => Ok(true),
    }
}

/// What refused an append, with its idempotency key.
type Refused = (Failure, Option<String>);

fn check_and_write(
    c: &Connection,
    log: &mut LogState,
    append: Append,
    written: &mut Vec<Arc<Recorded>>,
) -> Result<Appended, Refused> {
    match check(c, log, &append) {
        Ok(before) => write(c, log, append, before, written).map_err(|error| (error.into(), None)),
        Err(failure) => Err((failure, append.idempotency.map(|key| key.key))),
    }
}

fn check(c: &Connection, log: &LogState, append: &Append) -> Result<Vec<Option<Before>>, Failure> {
    if append.if_head.is_some_and(|wanted| wanted != log.position) {
        return Err(Failure::Refused(StoreError::ViewMoved(log.position)));
    }
    let mut before = Vec::with_capacity(append.writes.len());
    for write in &append.writes {
        before.push(check_version(c, log.number, write)?);
    }
    if append.writes.iter().all(|write| write.unique.is_empty()) {
        return Ok(before);
    }
    let mut broken = None;
    let stored = |key: &str| {
        holder(c, log.number, key).map_err(|e| {
            let text = e.to_string();
            broken = Some(e);
            StoreError::Io(text)
        })
    };
    let checked = checks::unique_keys(&append.writes, stored);
    if let Some(error) = broken {
        return Err(Failure::Broken(error));
    }
    checked.map_err(Failure::Refused)?;
    Ok(before)
}

fn write(
    c: &Connection,
    log: &mut LogState,
    append: Append,
    before: Vec<Option<Before>>,
    written: &mut Vec<Arc<Recorded>>,
) -> rusqlite::Result<Appended> {
    log.recorded_at = log.recorded_at.max(append.now);
    erase(c, log.number, &append.writes)?;
    for (write, before) in append.writes.into_iter().zip(before) {
        if let Some(row) = write.row {
            change_unique(c, log.number, &write.stream, &write.unique)?;
            write_stream(c, log, append.log, &write.stream, before, write.events, row, written)?;
        }
    }
    for (hash, bytes) in &append.values {
        match bytes {
            Some(bytes) => c
                .prepare_cached("INSERT OR IGNORE INTO stored_values (log, hash, bytes) VALUES (?1, ?2, ?3)")?
                .execute(params![log.number, &hash[..], bytes])?,
            None => c
                .prepare_cached("DELETE FROM stored_values WHERE log = ?1 AND hash = ?2")?
                .execute(params![log.number, &hash[..]])?,
        };
    }
    for (name, secret) in &append.secrets {
        match secret {
            Some(sealed) => c
                .prepare_cached("INSERT OR REPLACE INTO secrets (log, name, sealed) VALUES (?1, ?2, ?3)")?
                .execute(params![log.number, name, sealed])?,
            None => c.prepare_cached("DELETE FROM secrets WHERE log = ?1 AND name = ?2")?.execute(params![log.number, name])?,
        };
    }
    Ok(Appended { position: log.position })
}

/// Removes the content of streams, and the keys that stand for them.
fn erase(c: &Connection, log: i64, writes: &[StreamWrite]) -> rusqlite::Result<()> {
    let streams: Vec<&str> = writes.iter().filter(|write| write.erases).map(|write| write.stream.as_str()).collect();
    if streams.is_empty() {
        return Ok(());
    }
    let mut events = c.prepare_cached(
        "UPDATE events SET salt = NULL, payload = NULL WHERE id IN (\
           SELECT s.event FROM stream_events s JOIN entities e ON e.id = s.entity WHERE e.log = ?1 AND e.stream = ?2)",
    )?;
    for stream in &streams {
        events.execute(params![log, stream])?;
    }
    let places = vec!["?"; streams.len()].join(", ");
    for table in ["unique_keys", "idempotency"] {
        let sql = format!("DELETE FROM {table} WHERE log = {log} AND stream IN ({places})");
        c.prepare(&sql)?.execute(rusqlite::params_from_iter(&streams))?;
    }
    Ok(())
}

/// Puts back what lay beside the events of a log.
pub(super) fn put_beside(c: &Connection, log: i64, things: &[Beside]) -> rusqlite::Result<()> {
    for thing in things {
        match thing {
            Beside::Idempotent(key, known) => c
                .prepare_cached(
                    "INSERT OR REPLACE INTO idempotency (log, key, request_hash, stream, position) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![log, key, &known.request_hash[..], known.stream, known.position])?,
            Beside::Value(hash, bytes) => c
                .prepare_cached("INSERT OR IGNORE INTO stored_values (log, hash, bytes) VALUES (?1, ?2, ?3)")?
                .execute(params![log, &hash[..], bytes])?,
            Beside::Secret(name, sealed) => c
                .prepare_cached("INSERT OR REPLACE INTO secrets (log, name, sealed) VALUES (?1, ?2, ?3)")?
                .execute(params![log, name, sealed])?,
        };
    }
    Ok(())
}

fn check_version(c: &Connection, log: i64, write: &StreamWrite) -> Result<Option<Before>, Failure> {
    let before = c
        .prepare_cached("SELECT id, version, fields FROM entities WHERE log = ?1 AND stream = ?2")?
        .query_row(params![log, write.stream], |row| {
            let fields: String = row.get(2)?;
            Ok(Before { id: row.get(0)?, version: row.get(1)?, fields: fields.lines().map(str::to_owned).collect() })
        })
        .optional()?;
    let actual = before.as_ref().map_or(0, |b| b.version);
    match actual == write.expected_version {
        true => Ok(before),
        false => {
            Err(Failure::Refused(StoreError::Conflict { stream: write.stream.clone(), expected: write.expected_version, actual }))
        }
    }
}

fn holder(c: &Connection, log: i64, key: &str) -> rusqlite::Result<Option<String>> {
    c.prepare_cached("SELECT stream FROM unique_keys WHERE log = ?1 AND key = ?2")?
        .query_row(params![log, key], |row| row.get(0))
        .optional()
}

fn change_unique(c: &Connection, log: i64, stream: &str, changes: &[UniqueChange]) -> rusqlite::Result<()> {
    for change in changes {
        match change {
            UniqueChange::Take(key) => c
                .prepare_cached("INSERT OR REPLACE INTO unique_keys (log, key, stream) VALUES (?1, ?2, ?3)")?
                .execute(params![log, key, stream])?,
            UniqueChange::Free(key) => {
                c.prepare_cached("DELETE FROM unique_keys WHERE log = ?1 AND key = ?2")?.execute(params![log, key])?
            }
        };
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one write in full; a struct would only name the same things again")]
fn write_stream(
    c: &Connection,
    log: &mut LogState,
    tenant: TenantId,
    stream: &str,
    before: Option<Before>,
    events: Vec<NewEvent>,
    row: NewRow,
    written: &mut Vec<Arc<Recorded>>,
) -> rusqlite::Result<()> {
    let mut version = before.as_ref().map_or(0, |b| b.version);
    let first_version = version + 1;
    let first_position = log.position + 1;
    let created_at = events.first().map_or(log.recorded_at, |event| event.occurred_at);
    let mut updated_at = log.recorded_at;
    for event in events {
        version += 1;
        log.position += 1;
        updated_at = event.occurred_at;
        let event = record(event, tenant, stream, version, log.position, log.recorded_at);
        insert_event(c, log.number, &event)?;
        written.push(Arc::new(event));
    }
    let known_fields = before.as_ref().map_or(&[][..], |b| &b.fields[..]);
    let fields = change_fields(c, log.number, stream, row.kind, known_fields, &row.index)?;
    let entity = match before {
        Some(before) => {
            update_entity(c, before.id, version, log.position, updated_at, &row, &fields)?;
            before.id
        }
        None => insert_entity(c, log.number, stream, version, log.position, [created_at, updated_at], &row, &fields)?,
    };
    let mut link = c.prepare_cached("INSERT INTO stream_events (entity, version, event) VALUES (?1, ?2, ?3)")?;
    for (version, position) in (first_version..=version).zip(first_position..) {
        link.execute(params![entity, version, event_id(log.number, position)])?;
    }
    Ok(())
}

fn insert_event(c: &Connection, log: i64, event: &Recorded) -> rusqlite::Result<()> {
    let h = &event.header;
    c.prepare_cached(
        "INSERT INTO events (id, event, kind, shape, category, stream, version, occurred_at, recorded_at, actor_kind, actor_id, user, \
         correlation, causation, trace_parent, salt, payload, payload_hash, leaf) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
    )?
    .execute(params![
        event_id(log, h.position),
        &h.id.bytes()[..],
        h.kind,
        h.shape,
        h.category.code(),
        h.stream,
        h.version,
        h.occurred_at.0,
        h.recorded_at.0,
        h.actor.kind.as_str(),
        h.actor.id,
        h.user.map(|u| u.bytes().to_vec()),
        h.correlation,
        h.causation.map(|e| e.bytes().to_vec()),
        h.trace_parent,
        event.salt.as_ref().map(|s| &s[..]),
        event.payload,
        &event.payload_hash[..],
        &event.leaf[..],
    ])?;
    Ok(())
}

/// Writes the difference between the known and the new fields; answers the new ones as they are kept beside the entity.
fn change_fields(
    c: &Connection,
    log: i64,
    stream: &str,
    kind: &str,
    known: &[String],
    index: &[IndexField],
) -> rusqlite::Result<String> {
    let wanted = checks::field_lines(kind, index);
    let mut remove =
        c.prepare_cached("DELETE FROM entity_fields WHERE log = ?1 AND field = ?2 AND value = ?3 AND stream = ?4")?;
    for line in known.iter().filter(|line| !wanted.contains(line)) {
        if let Some((field, value)) = line.split_once('\t') {
            remove.execute(params![log, field, value, stream])?;
        }
    }
    let mut insert =
        c.prepare_cached("INSERT OR IGNORE INTO entity_fields (log, field, value, stream) VALUES (?1, ?2, ?3, ?4)")?;
    for line in wanted.iter().filter(|line| !known.contains(line)) {
        if let Some((field, value)) = line.split_once('\t') {
            insert.execute(params![log, field, value, stream])?;
        }
    }
    Ok(wanted.join("\n"))
}

fn update_entity(
    c: &Connection,
    id: i64,
    version: u64,
    position: u64,
    updated_at: Timestamp,
    row: &NewRow,
    fields: &str,
) -> rusqlite::Result<()> {
    match &row.state {
        Some(state) => c
            .prepare_cached(
                "UPDATE entities SET version = ?2, state = ?3, state_version = ?2, position = ?4, is_deleted = ?5, updated_at = ?6, fields = ?7 WHERE id = ?1",
            )?
            .execute(params![id, version, state, position, row.is_deleted, updated_at.0, fields])?,
        None => c
            .prepare_cached("UPDATE entities SET version = ?2, position = ?3, is_deleted = ?4, updated_at = ?5, fields = ?6 WHERE id = ?1")?
            .execute(params![id, version, position, row.is_deleted, updated_at.0, fields])?,
    };
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the columns of one row")]
fn insert_entity(
    c: &Connection,
    log: i64,
    stream: &str,
    version: u64,
    position: u64,
    [created_at, updated_at]: [Timestamp; 2],
    row: &NewRow,
    fields: &str,
) -> rusqlite::Result<i64> {
    let state_version = if row.state.is_some() { version } else { 0 };
    c.prepare_cached(
        "INSERT INTO entities (log, stream, version, state, state_version, position, is_deleted, created_at, updated_at, fields) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        log,
        stream,
        version,
        row.state.as_deref().unwrap_or_default(),
        state_version,
        position,
        row.is_deleted,
        created_at.0,
        updated_at.0,
        fields
    ])?;
    Ok(c.last_insert_rowid())
}

/// Rows and checkpoint of a view.
pub(super) fn apply(c: &Connection, log: &LogState, apply: &ViewApply) -> Result<(), Failure> {
    let stands_at: Option<u64> = c
        .prepare_cached("SELECT position FROM views WHERE log = ?1 AND view = ?2 AND version = ?3")?
        .query_row(params![log.number, apply.view, apply.version], |row| row.get(0))
        .optional()?;
    if stands_at.unwrap_or(0) != apply.expected {
        return Err(Failure::Refused(StoreError::ViewMoved(stands_at.unwrap_or(0))));
    }
    c.prepare_cached(
        "INSERT INTO views (log, view, version, position, is_active) VALUES (?1, ?2, ?3, ?4, 0) \
         ON CONFLICT (log, view, version) DO UPDATE SET position = excluded.position",
    )?
    .execute(params![log.number, apply.view, apply.version, apply.position])?;
    for row in &apply.rows {
        match row {
            Ok(row) => c
                .prepare_cached("INSERT OR REPLACE INTO view_rows (log, view, version, key, row) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![log.number, apply.view, apply.version, row.key, row.row])?,
            Err(key) => c
                .prepare_cached("DELETE FROM view_rows WHERE log = ?1 AND view = ?2 AND version = ?3 AND key = ?4")?
                .execute(params![log.number, apply.view, apply.version, key])?,
        };
    }
    if apply.activate {
        let given = params![log.number, apply.view, apply.version];
        c.prepare_cached("DELETE FROM view_rows WHERE log = ?1 AND view = ?2 AND version <> ?3")?.execute(given)?;
        c.prepare_cached("DELETE FROM views WHERE log = ?1 AND view = ?2 AND version <> ?3")?.execute(given)?;
        c.prepare_cached("UPDATE views SET is_active = 1 WHERE log = ?1 AND view = ?2 AND version = ?3")?.execute(given)?;
    }
    Ok(())
}
