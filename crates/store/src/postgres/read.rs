//! Every query. Each is one statement on a connection of the pool, and sees everything that was committed before it.

use super::connect::{failed, unreachable};
use super::plan::clean;
use crate::*;
use deadpool_postgres::{GenericClient, Pool};
use kernel::event::actor_kind;
use kernel::{ActorRef, Category, EventHeader, EventId, IndexField, UserId};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

/// Events that are read at a time.
const PAGE_EVENTS: usize = 1_000;
/// Events that one scan with a filter looks at.
const SCAN_EVENTS_MAX: u64 = 20_000;

const EVENT_COLUMNS: &str = "position, event_id, kind, shape, category, stream, version, occurred_at, recorded_at, actor_kind, actor_id, \
     user_id, correlation, causation, trace_parent, salt, payload, payload_hash, leaf";
const ENTITY_COLUMNS: &str =
    "e.stream, e.version, e.state, e.state_version, e.position, e.is_deleted, e.created_at, e.updated_at";
/// The number of a log inside a statement. A log that does not exist has none, so nothing is found.
const LOG: &str = "(SELECT number FROM logs WHERE tenant = $1)";

/// Asks on a connection of the pool.
pub(super) struct Reader(pub Pool);

impl Reader {
    async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let client = self.0.get().await.map_err(|e| unreachable(&e))?;
        let statement = client.prepare_cached(sql).await.map_err(|e| failed(&e))?;
        client.query(&statement, params).await.map_err(|e| failed(&e))
    }

    async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    pub async fn logs(&self) -> Result<Vec<TenantId>, StoreError> {
        let sql = "SELECT tenant FROM logs l WHERE EXISTS (SELECT 1 FROM events e WHERE e.log = l.number AND e.position = 1) ORDER BY number";
        self.rows(sql, &[]).await?.iter().map(|row| Ok(TenantId::from_bytes(fixed(row, 0)?))).collect()
    }

    pub async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError> {
        let sql = format!("SELECT view, version, position, is_active FROM views WHERE log = {LOG} ORDER BY view, version");
        let state = |row: &Row| ViewState {
            version: row.get::<_, i32>(1) as u32,
            position: row.get::<_, i64>(2) as u64,
            is_active: row.get(3),
        };
        Ok(self.rows(&sql, &[&&log.bytes()[..]]).await?.iter().map(|row| (row.get(0), state(row))).collect())
    }

    pub async fn beside(&self, log: TenantId, kind: BesideKind, after: &[u8], limit: usize) -> Result<Vec<Beside>, StoreError> {
        let (columns, table, key) = match kind {
            BesideKind::Idempotent => ("key, request_hash, stream, position", "idempotency", "key"),
            BesideKind::Value => ("hash, bytes", "stored_values", "hash"),
            BesideKind::Secret => ("name, sealed", "secrets", "name"),
        };
        let sql = format!("SELECT {columns} FROM {table} WHERE log = {LOG} AND {key} > $2 ORDER BY {key} LIMIT $3");
        let text = String::from_utf8_lossy(after);
        let after: &(dyn ToSql + Sync) = if kind == BesideKind::Value { &after } else { &text };
        let rows = self.rows(&sql, &[&&log.bytes()[..], after, &count(limit)]).await?;
        let thing = |row: &Row| {
            Ok(match kind {
                BesideKind::Idempotent => {
                    let position = row.get::<_, i64>(3) as u64;
                    Beside::Idempotent(row.get(0), Idempotent { request_hash: fixed(row, 1)?, stream: row.get(2), position })
                }
                BesideKind::Value => Beside::Value(fixed(row, 0)?, row.get(1)),
                BesideKind::Secret => Beside::Secret(row.get(0), row.get(1)),
            })
        };
        rows.iter().map(thing).collect()
    }

    pub async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError> {
        let sql = format!("SELECT {ENTITY_COLUMNS} FROM entities e WHERE e.log = {LOG} AND e.stream = $2");
        Ok(self.row(&sql, &[&&log.bytes()[..], &clean(stream)]).await?.as_ref().map(entity_row))
    }

    pub async fn entities(&self, log: TenantId, query: &EntityQuery) -> Result<EntityPage, StoreError> {
        let (mut low, mut high) = (format!("{}_", query.kind), format!("{}`", query.kind));
        match (&query.after, query.is_descending) {
            (Some(after), true) => high = clean(after).into_owned(),
            (Some(after), false) => low = clean(after).into_owned(),
            (None, _) => {}
        }
        let direction = if query.is_descending { "DESC" } else { "ASC" };
        let limit = query.limit as i64 + 1;
        let field = |f: &IndexField| format!("{}.{}", query.kind, f.name);
        let rows = match query.fields.split_first() {
            None => {
                let sql = format!(
                    "SELECT {ENTITY_COLUMNS} FROM entities e WHERE e.log = {LOG} AND e.stream > $2 AND e.stream < $3 \
                     AND ($4 OR NOT e.is_deleted) ORDER BY e.stream {direction} LIMIT $5"
                );
                self.rows(&sql, &[&&log.bytes()[..], &low, &high, &query.with_deleted, &limit]).await?
            }
            Some((first, rest)) => {
                let sql = format!(
                    "SELECT {ENTITY_COLUMNS} FROM entity_fields f JOIN entities e ON e.log = f.log AND e.stream = f.stream \
                     WHERE f.log = {LOG} AND f.field = $6 AND f.value = $7 AND f.stream > $2 AND f.stream < $3 \
                     AND ($4 OR NOT e.is_deleted) AND NOT EXISTS ( \
                       SELECT 1 FROM unnest($8::text[], $9::text[]) AS r(field, value) WHERE NOT EXISTS ( \
                         SELECT 1 FROM entity_fields x WHERE x.log = f.log AND x.field = r.field AND x.value = r.value AND x.stream = f.stream)) \
                     ORDER BY f.stream {direction} LIMIT $5"
                );
                let (fields, values): (Vec<String>, Vec<String>) =
                    rest.iter().map(|f| (field(f), clean(&f.value).into_owned())).unzip();
                let tenant = &log.bytes()[..];
                let params: [&(dyn ToSql + Sync); 9] =
                    [&tenant, &low, &high, &query.with_deleted, &limit, &field(first), &clean(&first.value), &fields, &values];
                self.rows(&sql, &params).await?
            }
        };
        let mut rows: Vec<EntityRow> = rows.iter().map(entity_row).collect();
        let is_more = rows.len() > query.limit;
        rows.truncate(query.limit);
        let next = rows.last().filter(|_| is_more).map(|row| row.stream.clone());
        Ok(EntityPage { rows, next })
    }

    pub async fn index_values(&self, log: TenantId, field: &str, prefix: &str, limit: usize) -> Result<Vec<String>, StoreError> {
        // One seek per distinct value: the streams that share a value are jumped over.
        let sql = format!(
            "WITH RECURSIVE log AS (SELECT {LOG} AS number), found AS ( \
               (SELECT value FROM entity_fields WHERE log = (SELECT number FROM log) AND field = $2 AND value >= $3 ORDER BY value LIMIT 1) \
               UNION ALL \
               SELECT (SELECT value FROM entity_fields x WHERE x.log = (SELECT number FROM log) AND x.field = $2 AND x.value > found.value \
                       ORDER BY x.value LIMIT 1) \
               FROM found WHERE found.value IS NOT NULL AND starts_with(found.value, $3)) \
             SELECT value FROM found WHERE starts_with(value, $3) LIMIT $4"
        );
        let rows = self.rows(&sql, &[&&log.bytes()[..], &field, &clean(prefix), &(limit as i64)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    pub async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError> {
        let sql = format!("SELECT stream FROM unique_keys WHERE log = {LOG} AND key = $2");
        Ok(self.row(&sql, &[&&log.bytes()[..], &clean(key)]).await?.map(|row| row.get(0)))
    }

    pub async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError> {
        let sql = format!("SELECT request_hash, stream, position FROM idempotency WHERE log = {LOG} AND key = $2");
        let Some(row) = self.row(&sql, &[&&log.bytes()[..], &clean(key)]).await? else { return Ok(None) };
        Ok(Some(Idempotent { request_hash: fixed(&row, 0)?, stream: row.get(1), position: row.get::<_, i64>(2) as u64 }))
    }

    pub async fn stream(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError> {
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM events WHERE log = {LOG} AND stream = $2 AND version >= $3 ORDER BY version LIMIT $4"
        );
        let rows = self.rows(&sql, &[&&log.bytes()[..], &clean(stream), &number(from), &count(limit)]).await?;
        rows.iter().map(|row| event(row, log)).collect()
    }

    pub async fn scan(&self, log: TenantId, after: u64, filter: &ScanFilter, limit: usize) -> Result<Scanned, StoreError> {
        if *filter == ScanFilter::default() {
            return self.scan_all(log, after, limit).await;
        }
        let head = self.head(log).await?.min(after.saturating_add(SCAN_EVENTS_MAX));
        if head <= after {
            return Ok(Scanned { events: vec![], position: after });
        }
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM events WHERE log = {LOG} AND position > $2 AND position <= $3 \
             AND ($4::text IS NULL OR kind = $4) AND ($5::text IS NULL OR starts_with(kind, $5)) \
             AND ($6::text IS NULL OR stream = $6) AND ($8::int IS NULL OR category = $8) ORDER BY position LIMIT $7"
        );
        let prefix = filter.kind.as_deref().and_then(|kind| kind.strip_suffix('*')).map(clean);
        let exact = filter.kind.as_deref().filter(|_| prefix.is_none()).map(clean);
        let stream = filter.stream.as_deref().map(clean);
        let category = filter.category.map(|category| i32::from(category.code()));
        let tenant = &log.bytes()[..];
        let rows = self
            .rows(&sql, &[&tenant, &number(after), &number(head), &exact, &prefix, &stream, &count(limit), &category])
            .await?;
        let events: Vec<Arc<Recorded>> = rows.iter().map(|row| event(row, log)).collect::<Result<_, _>>()?;
        let position = match events.last().filter(|_| events.len() == limit) {
            Some(last) => last.header.position,
            None => head,
        };
        Ok(Scanned { events, position })
    }

    async fn scan_all(&self, log: TenantId, after: u64, limit: usize) -> Result<Scanned, StoreError> {
        let sql = format!("SELECT {EVENT_COLUMNS} FROM events WHERE log = {LOG} AND position > $2 ORDER BY position LIMIT $3");
        let mut found = Scanned { events: vec![], position: after };
        while found.events.len() < limit {
            let page = PAGE_EVENTS.min(limit - found.events.len());
            let rows = self.rows(&sql, &[&&log.bytes()[..], &number(found.position), &count(page)]).await?;
            for row in &rows {
                found.events.push(event(row, log)?);
            }
            found.position = found.events.last().map_or(after, |event| event.header.position);
            if rows.len() < page {
                break;
            }
        }
        Ok(found)
    }

    pub async fn head(&self, log: TenantId) -> Result<u64, StoreError> {
        let sql = format!("SELECT position FROM events WHERE log = {LOG} ORDER BY position DESC LIMIT 1");
        Ok(self.row(&sql, &[&&log.bytes()[..]]).await?.map_or(0, |row| row.get::<_, i64>(0) as u64))
    }

    pub async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError> {
        let sql = format!("SELECT recorded_at FROM events WHERE log = {LOG} AND position = $2");
        // Times never run backwards within a log, so the position is found by halving.
        let (mut low, mut high) = (0, self.head(log).await?);
        while low < high {
            let middle = (low + high).div_ceil(2);
            let at = self.row(&sql, &[&&log.bytes()[..], &number(middle)]).await?.map_or(i64::MAX, |row| row.get(0));
            match at <= instant.0 {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(low)
    }

    pub async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = format!("SELECT bytes FROM stored_values WHERE log = {LOG} AND hash = $2");
        Ok(self.row(&sql, &[&&log.bytes()[..], &&hash[..]]).await?.map(|row| row.get(0)))
    }

    pub async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = format!("SELECT sealed FROM secrets WHERE log = {LOG} AND name = $2");
        Ok(self.row(&sql, &[&&log.bytes()[..], &clean(name)]).await?.map(|row| row.get(0)))
    }

    pub async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError> {
        let sql = format!("SELECT version, position, is_active FROM views WHERE log = {LOG} AND view = $2 ORDER BY version");
        let rows = self.rows(&sql, &[&&log.bytes()[..], &view]).await?;
        let state = |row: &Row| ViewState {
            version: row.get::<_, i32>(0) as u32,
            position: row.get::<_, i64>(1) as u64,
            is_active: row.get(2),
        };
        Ok(rows.iter().map(state).collect())
    }

    pub async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError> {
        let sql = format!("SELECT row FROM view_rows WHERE log = {LOG} AND view = $2 AND version = $3 AND key = $4");
        let row = self.row(&sql, &[&&log.bytes()[..], &view, &(version as i32), &clean(key)]).await?;
        Ok(row.map(|row| ViewRow { key: key.to_owned(), row: row.get(0) }))
    }

    pub async fn view_list(
        &self,
        log: TenantId,
        view: &str,
        version: u32,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ViewRow>, StoreError> {
        let sql = format!(
            "SELECT key, row FROM view_rows WHERE log = {LOG} AND view = $2 AND version = $3 AND key >= $4 AND key > $5 \
             AND starts_with(key, $4) ORDER BY key LIMIT $6"
        );
        let tenant = &log.bytes()[..];
        let rows = self.rows(&sql, &[&tenant, &view, &(version as i32), &clean(prefix), &clean(after), &count(limit)]).await?;
        Ok(rows.iter().map(|row| ViewRow { key: row.get(0), row: row.get(1) }).collect())
    }
}

/// Every log with its number and its last position.
pub(super) async fn heads(session: &Client) -> Result<Vec<(TenantId, i32, u64)>, Error> {
    let sql = "SELECT l.tenant, l.number, coalesce((SELECT e.position FROM events e WHERE e.log = l.number ORDER BY e.position DESC LIMIT 1), 0) FROM logs l";
    let rows = session.query(sql, &[]).await?;
    let head = |row: &Row| Some((TenantId::from_bytes(fixed(row, 0).ok()?), row.get(1), row.get::<_, i64>(2) as u64));
    Ok(rows.iter().filter_map(head).collect())
}

/// The events of a log after a position.
pub(super) async fn after(pool: &Pool, log: TenantId, log_number: i32, after: u64) -> Result<Vec<Arc<Recorded>>, StoreError> {
    let client = pool.get().await.map_err(|e| unreachable(&e))?;
    let sql = format!("SELECT {EVENT_COLUMNS} FROM events WHERE log = $1 AND position > $2 ORDER BY position LIMIT 4096");
    let statement = client.prepare_cached(&sql).await.map_err(|e| failed(&e))?;
    let rows = client.query(&statement, &[&log_number, &number(after)]).await.map_err(|e| failed(&e))?;
    rows.iter().map(|row| event(row, log)).collect()
}

fn number(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} has a wrong length"))
}

pub(super) fn fixed<const N: usize>(row: &Row, column: usize) -> Result<[u8; N], StoreError> {
    row.get::<_, &[u8]>(column).try_into().map_err(|_| corrupt("a column"))
}

pub(super) fn optional<const N: usize>(row: &Row, column: usize) -> Result<Option<[u8; N]>, StoreError> {
    let bytes: Option<&[u8]> = row.get(column);
    bytes.map(|bytes| bytes.try_into().map_err(|_| corrupt("a column"))).transpose()
}

fn entity_row(row: &Row) -> EntityRow {
    EntityRow {
        stream: row.get(0),
        version: row.get::<_, i64>(1) as u64,
        state: row.get(2),
        state_version: row.get::<_, i64>(3) as u64,
        position: row.get::<_, i64>(4) as u64,
        is_deleted: row.get(5),
        created_at: Timestamp(row.get(6)),
        updated_at: Timestamp(row.get(7)),
    }
}

fn event(row: &Row, log: TenantId) -> Result<Arc<Recorded>, StoreError> {
    let header = EventHeader {
        id: EventId::from_bytes(fixed(row, 1)?),
        kind: row.get(2),
        shape: row.get::<_, i32>(3) as u16,
        category: Category::from_code(row.get::<_, i32>(4) as u8),
        tenant: log,
        stream: row.get(5),
        version: row.get::<_, i64>(6) as u64,
        position: row.get::<_, i64>(0) as u64,
        occurred_at: Timestamp(row.get(7)),
        recorded_at: Timestamp(row.get(8)),
        actor: ActorRef { kind: actor_kind(row.get(9)), id: row.get(10) },
        user: optional(row, 11)?.map(UserId::from_bytes),
        correlation: row.get(12),
        causation: optional(row, 13)?.map(EventId::from_bytes),
        trace_parent: row.get(14),
    };
    Ok(Arc::new(Recorded {
        header,
        salt: optional(row, 15)?,
        payload: row.get(16),
        payload_hash: fixed(row, 17)?,
        leaf: fixed(row, 18)?,
    }))
}
