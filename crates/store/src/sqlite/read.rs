//! Every query. Each runs on a connection that only reads.

use super::connect::{is_damaged, reason};
use super::schema::POSITION_BITS;
use crate::*;
use kernel::event::actor_kind;
use kernel::{ActorRef, Category, EventHeader, EventId, IndexField, UserId};
use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};

/// Streams of an index that one query looks at when further fields must hold.
const SCAN_STREAMS_MAX: usize = 5_000;

const EVENT_COLUMNS: &str = "id, event, kind, shape, category, stream, version, occurred_at, recorded_at, actor_kind, actor_id, user, \
     correlation, causation, trace_parent, salt, payload, payload_hash, leaf";
const ENTITY_COLUMNS: &str =
    "e.stream, e.version, e.state, e.state_version, e.position, e.is_deleted, e.created_at, e.updated_at";

pub(super) fn failed(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        _ if is_damaged(&error) => StoreError::Corrupt(reason(&error)),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

/// The row id of a position.
pub(super) fn event_id(log: i64, position: u64) -> i64 {
    // Positions stay below 2^40 and logs below 2^23, so the sum is a positive 64-bit number.
    (log << POSITION_BITS) | i64::try_from(position).unwrap_or(i64::MAX).min((1 << POSITION_BITS) - 1)
}

fn number(c: &Connection, log: TenantId) -> Result<i64> {
    // A log that does not exist has the number 0, which no table contains.
    c.prepare_cached("SELECT number FROM logs WHERE tenant = ?1")?
        .query_row([&log.bytes()[..]], |row| row.get(0))
        .optional()
        .map(|n| n.unwrap_or(0))
}

pub(super) fn logs(c: &Connection) -> Result<Vec<TenantId>> {
    let mut statement = c.prepare_cached(
        "SELECT tenant FROM logs WHERE EXISTS (SELECT 1 FROM events WHERE id = (number << ?1) + 1) ORDER BY number",
    )?;
    let rows = statement.query_map([POSITION_BITS], |row| row.get::<_, [u8; 16]>(0))?;
    rows.map(|bytes| bytes.map(TenantId::from_bytes)).collect()
}

/// Every log with its number and its last position and time.
pub(super) fn log_ends(c: &Connection) -> Result<Vec<(TenantId, i64, u64, Timestamp)>> {
    let mut statement = c.prepare("SELECT number, tenant FROM logs ORDER BY number")?;
    let known: Vec<(i64, [u8; 16])> = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
    let last = "SELECT id, recorded_at FROM events WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1";
    known
        .into_iter()
        .map(|(number, tenant)| {
            let end: Option<(i64, i64)> = c
                .query_row(last, [event_id(number, 0), event_id(number, u64::MAX)], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let (id, at) = end.unwrap_or((event_id(number, 0), 0));
            Ok((TenantId::from_bytes(tenant), number, position_of(id), Timestamp(at)))
        })
        .collect()
}

pub(super) fn tails(c: &Connection) -> Result<Vec<(TenantId, u64)>> {
    Ok(log_ends(c)?.into_iter().map(|(log, _, position, _)| (log, position)).collect())
}

fn position_of(id: i64) -> u64 {
    (id & ((1 << POSITION_BITS) - 1)) as u64
}

fn entity_row(row: &Row<'_>) -> Result<EntityRow> {
    Ok(EntityRow {
        stream: row.get(0)?,
        version: row.get(1)?,
        state: row.get(2)?,
        state_version: row.get(3)?,
        position: row.get(4)?,
        is_deleted: row.get(5)?,
        created_at: Timestamp(row.get(6)?),
        updated_at: Timestamp(row.get(7)?),
    })
}

pub(super) fn entity(c: &Connection, log: TenantId, stream: &str) -> Result<Option<EntityRow>> {
    let sql = format!("SELECT {ENTITY_COLUMNS} FROM entities e WHERE e.log = ?1 AND e.stream = ?2");
    c.prepare_cached(&sql)?.query_row(params![number(c, log)?, stream], entity_row).optional()
}

pub(super) fn entities(c: &Connection, log: TenantId, query: &EntityQuery) -> Result<EntityPage> {
    match query.fields.split_first() {
        None => entities_of_kind(c, number(c, log)?, query),
        Some((first, rest)) => entities_by_field(c, number(c, log)?, query, first, rest),
    }
}

/// The open interval of streams that is left to list.
fn bounds(query: &EntityQuery) -> (String, String) {
    // '`' is the character after '_', so it bounds everything that starts with "kind_".
    let (mut low, mut high) = (format!("{}_", query.kind), format!("{}`", query.kind));
    match (&query.after, query.is_descending) {
        (Some(after), true) => high = after.clone(),
        (Some(after), false) => low = after.clone(),
        (None, _) => {}
    }
    (low, high)
}

fn direction(query: &EntityQuery) -> &'static str {
    if query.is_descending { "DESC" } else { "ASC" }
}

fn entities_of_kind(c: &Connection, log: i64, query: &EntityQuery) -> Result<EntityPage> {
    let (low, high) = bounds(query);
    let sql = format!(
        "SELECT {ENTITY_COLUMNS} FROM entities e WHERE e.log = :log AND e.stream > :low AND e.stream < :high \
         AND (:deleted OR NOT e.is_deleted) ORDER BY e.stream {} LIMIT :limit",
        direction(query)
    );
    let mut statement = c.prepare_cached(&sql)?;
    let given = named_params! { ":log": log, ":low": low, ":high": high, ":deleted": query.with_deleted, ":limit": query.limit as i64 + 1 };
    let rows: Vec<EntityRow> = statement.query_map(given, entity_row)?.collect::<Result<_>>()?;
    Ok(page(rows, query.limit))
}

fn page(mut rows: Vec<EntityRow>, limit: usize) -> EntityPage {
    let is_more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| is_more).map(|row| row.stream.clone());
    EntityPage { rows, next }
}

fn entities_by_field(
    c: &Connection,
    log: i64,
    query: &EntityQuery,
    first: &IndexField,
    rest: &[IndexField],
) -> Result<EntityPage> {
    let (low, high) = bounds(query);
    let sql = format!(
        "SELECT stream FROM entity_fields WHERE log = :log AND field = :field AND value = :value \
         AND stream > :low AND stream < :high ORDER BY stream {} LIMIT :limit",
        direction(query)
    );
    let mut statement = c.prepare_cached(&sql)?;
    let field = format!("{}.{}", query.kind, first.name);
    let given = named_params! { ":log": log, ":field": field, ":value": first.value, ":low": low, ":high": high, ":limit": SCAN_STREAMS_MAX as i64 };
    let mut streams = statement.query(given)?;
    let mut rows = vec![];
    let mut looked_at = 0;
    let mut last = None;
    while let Some(row) = streams.next()? {
        let stream: String = row.get(0)?;
        looked_at += 1;
        if holds(c, log, query.kind, &stream, rest)?
            && let Some(found) = entity_by_number(c, log, &stream)?
            && (query.with_deleted || !found.is_deleted)
        {
            rows.push(found);
            if rows.len() > query.limit {
                return Ok(page(rows, query.limit));
            }
        }
        last = Some(stream);
    }
    let next = last.filter(|_| looked_at == SCAN_STREAMS_MAX);
    Ok(EntityPage { rows, next })
}

fn entity_by_number(c: &Connection, log: i64, stream: &str) -> Result<Option<EntityRow>> {
    let sql = format!("SELECT {ENTITY_COLUMNS} FROM entities e WHERE e.log = ?1 AND e.stream = ?2");
    c.prepare_cached(&sql)?.query_row(params![log, stream], entity_row).optional()
}

fn holds(c: &Connection, log: i64, kind: &str, stream: &str, fields: &[IndexField]) -> Result<bool> {
    let mut statement =
        c.prepare_cached("SELECT 1 FROM entity_fields WHERE log = ?1 AND field = ?2 AND value = ?3 AND stream = ?4")?;
    for field in fields {
        if !statement.exists(params![log, format!("{kind}.{}", field.name), field.value, stream])? {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn index_values(c: &Connection, log: TenantId, field: &str, prefix: &str, limit: usize) -> Result<Vec<String>> {
    let log = number(c, log)?;
    let mut found: Vec<String> = vec![];
    // One seek per distinct value: the streams that share a value are jumped over.
    let mut first = c.prepare_cached("SELECT min(value) FROM entity_fields WHERE log = ?1 AND field = ?2 AND value >= ?3")?;
    let mut next = c.prepare_cached("SELECT min(value) FROM entity_fields WHERE log = ?1 AND field = ?2 AND value > ?3")?;
    let mut value: Option<String> = first.query_row(params![log, field, prefix], |row| row.get(0))?;
    while let Some(present) = value.filter(|v| v.starts_with(prefix) && found.len() < limit) {
        value = next.query_row(params![log, field, present], |row| row.get(0))?;
        found.push(present);
    }
    Ok(found)
}

pub(super) fn holder(c: &Connection, log: TenantId, key: &str) -> Result<Option<String>> {
    c.prepare_cached("SELECT stream FROM unique_keys WHERE log = ?1 AND key = ?2")?
        .query_row(params![number(c, log)?, key], |row| row.get(0))
        .optional()
}

pub(super) fn idempotent(c: &Connection, log: TenantId, key: &str) -> Result<Option<Idempotent>> {
    idempotent_in(c, number(c, log)?, key)
}

pub(super) fn idempotent_in(c: &Connection, log: i64, key: &str) -> Result<Option<Idempotent>> {
    c.prepare_cached("SELECT request_hash, stream, position FROM idempotency WHERE log = ?1 AND key = ?2")?
        .query_row(params![log, key], |row| {
            Ok(Idempotent { request_hash: row.get(0)?, stream: row.get(1)?, position: row.get(2)? })
        })
        .optional()
}

fn event(row: &Row<'_>, log: TenantId) -> Result<Arc<Recorded>> {
    let kind: String = row.get(9)?;
    let header = EventHeader {
        id: EventId::from_bytes(row.get(1)?),
        kind: row.get(2)?,
        shape: row.get(3)?,
        category: Category::from_code(row.get(4)?),
        tenant: log,
        stream: row.get(5)?,
        version: row.get(6)?,
        position: position_of(row.get(0)?),
        occurred_at: Timestamp(row.get(7)?),
        recorded_at: Timestamp(row.get(8)?),
        actor: ActorRef { kind: actor_kind(&kind), id: row.get(10)? },
        user: row.get::<_, Option<[u8; 16]>>(11)?.map(UserId::from_bytes),
        correlation: row.get(12)?,
        causation: row.get::<_, Option<[u8; 16]>>(13)?.map(EventId::from_bytes),
        trace_parent: row.get(14)?,
    };
    Ok(Arc::new(Recorded { header, salt: row.get(15)?, payload: row.get(16)?, payload_hash: row.get(17)?, leaf: row.get(18)? }))
}

pub(super) fn stream(c: &Connection, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>> {
    let log_number = number(c, log)?;
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE id IN (\
           SELECT s.event FROM stream_events s JOIN entities e ON e.id = s.entity \
           WHERE e.log = ?1 AND e.stream = ?2 AND s.version >= ?3 ORDER BY s.version LIMIT ?4) ORDER BY id"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let rows = statement.query_map(params![log_number, stream, from, limit as i64], |row| event(row, log))?;
    rows.collect()
}

pub(super) fn scan(c: &Connection, log: TenantId, after: u64, filter: &ScanFilter, limit: usize) -> Result<Scanned> {
    let log_number = number(c, log)?;
    if let Some(of_stream) = &filter.stream {
        return scan_stream(c, log, log_number, after, of_stream, filter, limit);
    }
    let sql = format!("SELECT {EVENT_COLUMNS} FROM events WHERE id > ?1 AND id <= ?2 ORDER BY id");
    let mut statement = c.prepare_cached(&sql)?;
    let mut rows = statement.query([event_id(log_number, after), event_id(log_number, u64::MAX)])?;
    let mut found = Scanned { events: vec![], position: after };
    let mut looked_at = 0;
    while found.events.len() < limit && looked_at < SCAN_EVENTS_MAX {
        let Some(row) = rows.next()? else { break };
        let event = event(row, log)?;
        looked_at += 1;
        found.position = event.header.position;
        if filter.admits(&event) {
            found.events.push(event);
        }
    }
    Ok(found)
}

/// Events that one scan with a filter looks at.
const SCAN_EVENTS_MAX: usize = 20_000;

fn scan_stream(
    c: &Connection,
    log: TenantId,
    log_number: i64,
    after: u64,
    of_stream: &str,
    filter: &ScanFilter,
    limit: usize,
) -> Result<Scanned> {
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE id IN (\
           SELECT s.event FROM stream_events s JOIN entities e ON e.id = s.entity \
           WHERE e.log = ?1 AND e.stream = ?2 AND s.event > ?3 ORDER BY s.version LIMIT ?4) ORDER BY id"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let rows = statement
        .query_map(params![log_number, of_stream, event_id(log_number, after), SCAN_EVENTS_MAX as i64], |row| event(row, log))?;
    let mut found = Scanned { events: vec![], position: after };
    for event in rows {
        let event = event?;
        if found.events.len() == limit {
            return Ok(found);
        }
        found.position = event.header.position;
        if filter.admits(&event) {
            found.events.push(event);
        }
    }
    Ok(found)
}

/// Leaves from number `from` on.
pub(super) fn leaves(c: &Connection, log: TenantId, from: u64, limit: usize) -> Result<Vec<[u8; 32]>> {
    let log = number(c, log)?;
    let mut statement = c.prepare_cached("SELECT leaf FROM events WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3")?;
    let rows = statement.query_map(params![event_id(log, from), event_id(log, u64::MAX), limit as i64], |row| row.get(0))?;
    rows.collect()
}

pub(super) fn position_at(c: &Connection, log: TenantId, instant: Timestamp) -> Result<u64> {
    let log = number(c, log)?;
    let mut statement = c.prepare_cached("SELECT recorded_at FROM events WHERE id = ?1")?;
    let last: Option<i64> =
        c.query_row("SELECT max(id) FROM events WHERE id <= ?1", [event_id(log, u64::MAX)], |row| row.get(0))?;
    // Times never run backwards within a log, so the position is found by halving.
    let (mut low, mut high) = (0, last.filter(|id| *id > event_id(log, 0)).map_or(0, position_of));
    while low < high {
        let middle = (low + high).div_ceil(2);
        let at: i64 = statement.query_row([event_id(log, middle)], |row| row.get(0))?;
        match at <= instant.0 {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    Ok(low)
}

pub(super) fn value(c: &Connection, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>> {
    c.prepare_cached("SELECT bytes FROM stored_values WHERE log = ?1 AND hash = ?2")?
        .query_row(params![number(c, log)?, &hash[..]], |row| row.get(0))
        .optional()
}

pub(super) fn secret(c: &Connection, log: TenantId, name: &str) -> Result<Option<Vec<u8>>> {
    c.prepare_cached("SELECT sealed FROM secrets WHERE log = ?1 AND name = ?2")?
        .query_row(params![number(c, log)?, name], |row| row.get(0))
        .optional()
}

pub(super) fn views(c: &Connection, log: TenantId) -> Result<Vec<(String, ViewState)>> {
    let mut statement =
        c.prepare_cached("SELECT view, version, position, is_active FROM views WHERE log = ?1 ORDER BY view, version")?;
    let rows = statement.query_map(params![number(c, log)?], |row| {
        Ok((row.get(0)?, ViewState { version: row.get(1)?, position: row.get(2)?, is_active: row.get(3)? }))
    })?;
    rows.collect()
}

pub(super) fn beside(c: &Connection, log: TenantId, kind: BesideKind, after: &[u8], limit: usize) -> Result<Vec<Beside>> {
    let log = number(c, log)?;
    let after_text = String::from_utf8_lossy(after);
    let limit = limit as i64;
    match kind {
        BesideKind::Idempotent => c
            .prepare_cached(
                "SELECT key, request_hash, stream, position FROM idempotency WHERE log = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
            )?
            .query_map(params![log, after_text, limit], |row| {
                let known = Idempotent { request_hash: row.get(1)?, stream: row.get(2)?, position: row.get(3)? };
                Ok(Beside::Idempotent(row.get(0)?, known))
            })?
            .collect(),
        BesideKind::Value => c
            .prepare_cached("SELECT hash, bytes FROM stored_values WHERE log = ?1 AND hash > ?2 ORDER BY hash LIMIT ?3")?
            .query_map(params![log, after, limit], |row| Ok(Beside::Value(row.get(0)?, row.get(1)?)))?
            .collect(),
        BesideKind::Secret => c
            .prepare_cached("SELECT name, sealed FROM secrets WHERE log = ?1 AND name > ?2 ORDER BY name LIMIT ?3")?
            .query_map(params![log, after_text, limit], |row| Ok(Beside::Secret(row.get(0)?, row.get(1)?)))?
            .collect(),
    }
}

pub(super) fn view_state(c: &Connection, log: TenantId, view: &str) -> Result<Vec<ViewState>> {
    let mut statement =
        c.prepare_cached("SELECT version, position, is_active FROM views WHERE log = ?1 AND view = ?2 ORDER BY version")?;
    let rows = statement.query_map(params![number(c, log)?, view], |row| {
        Ok(ViewState { version: row.get(0)?, position: row.get(1)?, is_active: row.get(2)? })
    })?;
    rows.collect()
}

pub(super) fn view_get(c: &Connection, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>> {
    c.prepare_cached("SELECT row FROM view_rows WHERE log = ?1 AND view = ?2 AND version = ?3 AND key = ?4")?
        .query_row(params![number(c, log)?, view, version, key], |row| Ok(ViewRow { key: key.to_owned(), row: row.get(0)? }))
        .optional()
}

pub(super) fn view_list(
    c: &Connection,
    log: TenantId,
    view: &str,
    version: u32,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Vec<ViewRow>> {
    let sql = "SELECT key, row FROM view_rows WHERE log = ?1 AND view = ?2 AND version = ?3 AND key >= ?4 AND key > ?5 ORDER BY key LIMIT ?6";
    let mut statement = c.prepare_cached(sql)?;
    let rows = statement.query_map(params![number(c, log)?, view, version, prefix, after, limit as i64], |row| {
        Ok(ViewRow { key: row.get(0)?, row: row.get(1)? })
    })?;
    let found: Vec<ViewRow> = rows.collect::<Result<_>>()?;
    Ok(found.into_iter().take_while(|row| row.key.starts_with(prefix)).collect())
}
