//! Appends: a queue for each log, and one transaction at a time for the log at the head of its queue.
//!
//! A transaction takes the log's advisory lock first and holds it until it has committed, so that the order of positions
//! is the order of commits, on all replicas. What the group needs to know is asked in one go, decided in memory, written
//! in one go. There is no timer: while one group commits, the next one gathers.
//!
//! A connection that is lost before the commit was sent has changed nothing: the group is tried again. After that it is
//! looked up whether the group's first event is there.

use super::beside;
use super::connect::{describe, failed, is_lost, unreachable};
use super::plan::{self, Batch, Changed, Entity, Known, Wanted};
use super::tails::Tails;
use super::views;
use crate::*;
use deadpool_postgres::{Object, Pool};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Items that may wait. More are refused with [`StoreError::Busy`].
const QUEUE_MAX: usize = 65_536;
/// Items that one transaction takes at most.
const GROUP_MAX: usize = 512;
/// Bytes that one transaction takes, beyond its first item.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a group is tried again when connections are lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// First key of the advisory locks of logs.
const LOG_LOCKS: i32 = 0x4b45_0001;
/// First key of the advisory locks of buckets.
pub(super) const BUCKET_LOCKS: i32 = 0x4b45_0002;

type Reply = oneshot::Sender<Result<Appended, StoreError>>;

/// Takes appends and writes them.
pub(super) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    /// Logs that are written at the same time.
    places: Semaphore,
    tails: Arc<Tails>,
    queues: Mutex<BTreeMap<TenantId, Queue>>,
    numbers: Mutex<BTreeMap<TenantId, i32>>,
    is_closed: AtomicBool,
    is_full: AtomicBool,
    queued: AtomicUsize,
    /// Groups that are being written.
    running: AtomicUsize,
    commits: AtomicU64,
    events: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Append, Reply)>,
    is_running: bool,
}

/// How a try went wrong.
enum Trouble {
    /// Nothing was written.
    Nothing(StoreError),
    /// The server refused a statement: one of the items cannot be written.
    Refused(StoreError),
    /// It is not known; what the group would have answered, and what it would have written.
    Unknown(StoreError, Vec<Result<Appended, StoreError>>, Vec<Arc<Recorded>>),
}

impl Writer {
    pub fn new(pool: Pool, tails: Arc<Tails>, places: usize) -> Self {
        let shared = Shared {
            pool,
            places: Semaphore::new(places),
            tails,
            queues: Mutex::default(),
            numbers: Mutex::default(),
            is_closed: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            commits: AtomicU64::new(0),
            events: AtomicU64::new(0),
        };
        Writer { shared: Arc::new(shared) }
    }

    pub fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        let shared = &self.shared;
        let refusal = if shared.is_closed.load(Ordering::Relaxed) {
            Some(StoreError::Closed)
        } else if shared.is_full.load(Ordering::Relaxed) {
            Some(StoreError::DiskLow)
        } else if shared.queued.load(Ordering::Relaxed) >= QUEUE_MAX {
            Some(StoreError::Busy)
        } else {
            shared.tails.down().map(StoreError::Unavailable)
        };
        if let Some(refusal) = refusal {
            return Box::pin(std::future::ready(Err(refusal)));
        }
        let (reply, answer) = oneshot::channel();
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let log = append.log;
        let is_first = {
            let mut queues = lock(&shared.queues);
            let queue = queues.entry(log).or_default();
            queue.waiting.push_back((plan::cleaned(append), reply));
            !std::mem::replace(&mut queue.is_running, true)
        };
        if is_first {
            tokio::spawn(run(shared.clone(), log));
        }
        answer.map(|a| a.unwrap_or_else(|_| Err(StoreError::Unknown("the writer stopped".into())))).boxed()
    }

    /// Rows and checkpoint of a view.
    pub async fn apply(&self, log: TenantId, apply: &ViewApply) -> Result<(), StoreError> {
        if self.shared.is_full.load(Ordering::Relaxed) {
            return Err(StoreError::DiskLow);
        }
        let mut client = self.shared.pool.get().await.map_err(|e| unreachable(&e))?;
        let number = self.shared.number(&client, log).await?;
        match views::apply(&mut client, number, apply).await {
            Ok(outcome) => outcome,
            Err(error) if is_lost(&error) => Err(StoreError::Unknown(describe(&error))),
            Err(error) => Err(failed(&error)),
        }
    }

    /// What lay beside the events of a log.
    pub async fn put_beside(&self, log: TenantId, things: &[Beside]) -> Result<(), StoreError> {
        let mut client = self.shared.pool.get().await.map_err(|e| unreachable(&e))?;
        let number = self.shared.number(&client, log).await?;
        beside::put(&mut client, number, things).await.map_err(|e| failed(&e))
    }

    /// Frees the room of what was removed.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        beside::scrub(&self.shared.pool).await
    }

    /// Whether the database has grown over its limit: then everything is refused.
    pub fn set_full(&self, is_full: bool) {
        if is_full != self.shared.is_full.swap(is_full, Ordering::Relaxed) {
            tracing::warn!(is_full, "the database's size crossed database.size_max");
        }
    }

    pub fn health(&self) -> Health {
        Health {
            read_only: self.shared.tails.down().map(|reason| format!("the database cannot be reached: {reason}")),
            is_disk_low: self.shared.is_full.load(Ordering::Relaxed),
            queued: self.shared.queued.load(Ordering::Relaxed),
            commits: self.shared.commits.load(Ordering::Relaxed),
            events: self.shared.events.load(Ordering::Relaxed),
        }
    }

    /// Takes nothing more, and waits for what was taken, but not for ever.
    pub async fn close(&self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
        let late = Instant::now() + 2 * PATIENCE;
        let is_busy = || self.shared.queued.load(Ordering::Relaxed) + self.shared.running.load(Ordering::Relaxed) > 0;
        while is_busy() && Instant::now() < late {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below panics between two changes, so a poisoned state is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log whose queue is being emptied. Whatever ends that, the next append begins it anew.
struct Running(Arc<Shared>, TenantId);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Those who wait in it learn that nothing is known of their appends.
            let left = lock(&self.0.queues).remove(&self.1).map_or(0, |queue| queue.waiting.len());
            self.0.queued.fetch_sub(left, Ordering::Relaxed);
        }
    }
}

/// Writes groups of one log until its queue is empty.
async fn run(shared: Arc<Shared>, log: TenantId) {
    let _running = Running(shared.clone(), log);
    loop {
        // One group at a time, so that busy logs take turns with the others. The semaphore is never closed.
        let _place = shared.places.acquire().await;
        let (group, replies) = {
            let mut queues = lock(&shared.queues);
            let Some(queue) = queues.get_mut(&log) else { return };
            if queue.waiting.is_empty() {
                queues.remove(&log);
                return;
            }
            next_group(queue)
        };
        // Not counted as waiting any more, whatever becomes of it.
        shared.queued.fetch_sub(group.len(), Ordering::Relaxed);
        shared.running.fetch_add(1, Ordering::Relaxed);
        let outcomes = shared.write(log, &group).await;
        shared.running.fetch_sub(1, Ordering::Relaxed);
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // Whoever asked may have gone away; the change stands all the same.
            drop(reply.send(outcome));
        }
    }
}

fn next_group(queue: &mut Queue) -> (Vec<Append>, Vec<Reply>) {
    let (mut group, mut replies, mut bytes) = (vec![], vec![], 0);
    while group.len() < GROUP_MAX && (group.is_empty() || bytes < GROUP_BYTES_MAX) {
        let Some((append, reply)) = queue.waiting.pop_front() else { break };
        bytes += append.writes.iter().flat_map(|w| &w.events).map(|e| e.content.bytes().map_or(0, <[u8]>::len)).sum::<usize>();
        bytes += append.values.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len).sum::<usize>();
        group.push(append);
        replies.push(reply);
    }
    (group, replies)
}

impl Shared {
    /// Every item's outcome.
    async fn write(&self, log: TenantId, group: &[Append]) -> Vec<Result<Appended, StoreError>> {
        let late = Instant::now() + PATIENCE;
        loop {
            let (outcomes, written) = match self.attempt(log, group).await {
                Ok(done) => done,
                Err(Trouble::Refused(error)) if group.len() > 1 => {
                    tracing::error!(%error, "a group was refused; its items are written one by one");
                    let mut outcomes = vec![];
                    for one in group {
                        outcomes.extend(Box::pin(self.write(log, std::slice::from_ref(one))).await);
                    }
                    return outcomes;
                }
                Err(Trouble::Refused(error)) => return vec![Err(error)],
                Err(Trouble::Nothing(_)) if Instant::now() < late && self.tails.down().is_none() => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(Trouble::Nothing(error)) => return group.iter().map(|_| Err(error.clone())).collect(),
                Err(Trouble::Unknown(error, outcomes, written)) => match self.look_up(log, &written, late).await {
                    Some(true) => (outcomes, written),
                    Some(false) => continue,
                    None => return outcomes.into_iter().map(|_| Err(StoreError::Unknown(error.to_string()))).collect(),
                },
            };
            self.commits.fetch_add(u64::from(!written.is_empty()), Ordering::Relaxed);
            self.events.fetch_add(written.len() as u64, Ordering::Relaxed);
            self.tails.wrote(log, written);
            return outcomes;
        }
    }

    /// Whether a commit of unknown outcome took place. The log's lock says that its transaction is over.
    async fn look_up(&self, log: TenantId, written: &[Arc<Recorded>], late: Instant) -> Option<bool> {
        let first = written.first()?;
        while Instant::now() < late {
            match self.is_there(log, first).await {
                Ok(is_there) => return Some(is_there),
                Err(error) => tracing::debug!(%error, "the outcome of a commit is not known yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn is_there(&self, log: TenantId, first: &Recorded) -> Result<bool, StoreError> {
        let client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let number = self.number(&client, log).await?;
        let position = first.header.position as i64;
        let found = async {
            client.batch_execute("BEGIN").await?;
            client.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&LOG_LOCKS, &number]).await?;
            let row = client.query_opt("SELECT leaf FROM events WHERE log = $1 AND position = $2", &[&number, &position]).await?;
            client.batch_execute("COMMIT").await?;
            Ok(row.is_some_and(|row| row.get::<_, &[u8]>(0) == &first.leaf[..]))
        };
        found.await.map_err(|e: tokio_postgres::Error| failed(&e))
    }

    async fn number(&self, client: &Object, log: TenantId) -> Result<i32, StoreError> {
        if let Some(number) = lock(&self.numbers).get(&log) {
            return Ok(*number);
        }
        let tenant = log.bytes().to_vec();
        let made = async {
            client.execute("INSERT INTO logs (tenant) VALUES ($1) ON CONFLICT DO NOTHING", &[&tenant]).await?;
            client.query_one("SELECT number FROM logs WHERE tenant = $1", &[&tenant]).await
        };
        let number: i32 = made.await.map_err(|e| failed(&e))?.get(0);
        lock(&self.numbers).insert(log, number);
        self.tails.learn(log, number);
        Ok(number)
    }

    async fn attempt(
        &self,
        log: TenantId,
        group: &[Append],
    ) -> Result<(Vec<Result<Appended, StoreError>>, Vec<Arc<Recorded>>), Trouble> {
        let client = self.pool.get().await.map_err(|e| Trouble::Nothing(unreachable(&e)))?;
        let number = self.number(&client, log).await.map_err(Trouble::Nothing)?;
        let nothing = |e: tokio_postgres::Error| match is_lost(&e) {
            true => Trouble::Nothing(StoreError::Unavailable(describe(&e))),
            false => Trouble::Refused(failed(&e)),
        };
        let known = match look(&client, number, &Wanted::of(group)).await {
            Ok(known) => known,
            Err(error) => {
                discard(client).await;
                return Err(nothing(error));
            }
        };
        let (outcomes, batch) = plan::settle(known, group);
        let written = batch.events.clone();
        let change = if batch.is_empty() { Ok(()) } else { write(&client, number, &batch).await };
        if let Err(error) = change {
            discard(client).await;
            return Err(match is_lost(&error) {
                // The commit was sent together with the statements, so it may have taken place.
                true => Trouble::Unknown(StoreError::Unavailable(describe(&error)), outcomes, written),
                false => Trouble::Refused(failed(&error)),
            });
        }
        if batch.is_empty()
            && let Err(error) = client.batch_execute("COMMIT").await
        {
            discard(client).await;
            return Err(Trouble::Nothing(StoreError::Unavailable(describe(&error))));
        }
        Ok((outcomes, written))
    }
}

/// Gives a connection back in a state that the next user can rely on, or not at all.
async fn discard(client: Object) {
    if client.batch_execute("ROLLBACK").await.is_err() {
        drop(Object::take(client));
    }
}

// One look-up in the index for each name: `= ANY` may be planned as a filter over the whole log while a table is small.
const LOOK_ENTITIES: &str = "SELECT e.stream, e.version, e.fields FROM unnest($2::text[]) AS w(stream) \
     CROSS JOIN LATERAL (SELECT * FROM entities x WHERE x.log = $1 AND x.stream = w.stream LIMIT 1) e";
const LOOK_HOLDERS: &str = "SELECT k.key, k.stream FROM unnest($2::text[]) AS w(key) \
     CROSS JOIN LATERAL (SELECT * FROM unique_keys x WHERE x.log = $1 AND x.key = w.key LIMIT 1) k";
const LOOK_REPEATS: &str = "SELECT i.key, i.request_hash, i.stream, i.position FROM unnest($2::text[]) AS w(key) \
     CROSS JOIN LATERAL (SELECT * FROM idempotency x WHERE x.log = $1 AND x.key = w.key LIMIT 1) i";

type Params<'a> = [&'a (dyn ToSql + Sync)];

/// Takes the log's lock and reads what the group needs to know: one round trip.
async fn look(client: &Object, log: i32, wanted: &Wanted) -> Result<Known, tokio_postgres::Error> {
    let streams: Vec<&str> = wanted.streams.iter().map(String::as_str).collect();
    let unique: Vec<&str> = wanted.unique.iter().map(String::as_str).collect();
    let keys: Vec<&str> = wanted.idempotent.iter().map(String::as_str).collect();
    let buckets: Vec<i32> = wanted.buckets.iter().map(|b| i32::from(*b)).collect();
    let lock = client.prepare_cached("SELECT pg_advisory_xact_lock($1, $2)").await?;
    // In shared mode: whoever takes the bucket over waits until this transaction has ended.
    let share = client.prepare_cached("SELECT pg_advisory_xact_lock_shared($1, b) FROM unnest($2::int[]) b").await?;
    let head =
        client.prepare_cached("SELECT position, recorded_at FROM events WHERE log = $1 ORDER BY position DESC LIMIT 1").await?;
    let entities = client.prepare_cached(LOOK_ENTITIES).await?;
    let holders = client.prepare_cached(LOOK_HOLDERS).await?;
    let repeats = client.prepare_cached(LOOK_REPEATS).await?;
    let leases = client.prepare_cached("SELECT bucket, token FROM leases WHERE bucket = ANY($1)").await?;
    let none = || futures_util::future::ready(Ok::<Vec<Row>, tokio_postgres::Error>(vec![]));
    let head_params: &Params<'_> = &[&log];
    let stream_params: &Params<'_> = &[&log, &streams];
    let lock_params: &Params<'_> = &[&LOG_LOCKS, &log];
    let share_params: &Params<'_> = &[&BUCKET_LOCKS, &buckets];
    let unique_params: &Params<'_> = &[&log, &unique];
    let key_params: &Params<'_> = &[&log, &keys];
    let bucket_params: &Params<'_> = &[&buckets];
    let optional = |is_wanted: bool, statement, params| match is_wanted {
        true => client.query(statement, params).left_future(),
        false => none().right_future(),
    };
    // Statements are sent in this order and carried out one after another; each sees what was committed before the lock.
    let (_, _, _, head, entities, holders, repeats, leases) = tokio::try_join!(
        biased;
        client.batch_execute("BEGIN"),
        client.query(&lock, lock_params),
        optional(!buckets.is_empty(), &share, share_params),
        client.query_opt(&head, head_params),
        client.query(&entities, stream_params),
        optional(!unique.is_empty(), &holders, unique_params),
        optional(!keys.is_empty(), &repeats, key_params),
        optional(!buckets.is_empty(), &leases, bucket_params),
    )?;
    Ok(known(head.as_ref(), &entities, &holders, &repeats, &leases))
}

fn known(head: Option<&Row>, entities: &[Row], holders: &[Row], repeats: &[Row], leases: &[Row]) -> Known {
    let entity = |row: &Row| {
        let fields = row.get::<_, &str>(2).lines().map(str::to_owned).collect();
        (row.get(0), Entity { version: row.get::<_, i64>(1) as u64, fields })
    };
    let repeat = |row: &Row| {
        let mut request_hash = [0; 32];
        let stored: &[u8] = row.get(1);
        if stored.len() == 32 {
            request_hash.copy_from_slice(stored);
        }
        (row.get(0), Idempotent { request_hash, stream: row.get(2), position: row.get::<_, i64>(3) as u64 })
    };
    Known {
        position: head.map_or(0, |row| row.get::<_, i64>(0) as u64),
        recorded_at: Timestamp(head.map_or(0, |row| row.get(1))),
        entities: entities.iter().map(entity).collect(),
        unique: holders.iter().map(|row| (row.get(0), row.get(1))).collect(),
        idempotent: repeats.iter().map(repeat).collect(),
        leases: leases.iter().map(|row| (row.get::<_, i32>(0) as u16, row.get::<_, i64>(1) as u64)).collect(),
    }
}

const INSERT_EVENTS: &str = "INSERT INTO events (log, position, event_id, kind, shape, category, stream, version, occurred_at, \
     recorded_at, actor_kind, actor_id, user_id, correlation, causation, trace_parent, salt, payload, payload_hash, leaf) \
     SELECT $1, * FROM unnest($2::bigint[], $3::bytea[], $4::text[], $5::int[], $6::int[], $7::text[], $8::bigint[], \
     $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::bytea[], $16::text[], \
     $17::bytea[], $18::bytea[], $19::bytea[], $20::bytea[])";
const UPSERT_ENTITIES: &str = "INSERT INTO entities AS e (log, stream, version, state, state_version, position, is_deleted, \
     created_at, updated_at, fields) \
     SELECT $1, n.stream, n.version, coalesce(n.state, ''), coalesce(n.state_version, 0), n.position, n.is_deleted, \
     n.created_at, n.updated_at, n.fields \
     FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bool[], $8::bigint[], $9::bigint[], $10::text[]) \
     AS n(stream, version, state, state_version, position, is_deleted, created_at, updated_at, fields) \
     ON CONFLICT (log, stream) DO UPDATE SET version = excluded.version, position = excluded.position, \
     is_deleted = excluded.is_deleted, updated_at = excluded.updated_at, fields = excluded.fields, \
     state = CASE WHEN excluded.state_version = 0 THEN e.state ELSE excluded.state END, \
     state_version = CASE WHEN excluded.state_version = 0 THEN e.state_version ELSE excluded.state_version END";
const DELETE_FIELDS: &str = "DELETE FROM entity_fields f USING unnest($2::text[], $3::text[], $4::text[]) AS g(field, value, stream) \
     WHERE f.log = $1 AND f.field = g.field AND f.value = g.value AND f.stream = g.stream";
const INSERT_FIELDS: &str = "INSERT INTO entity_fields (log, field, value, stream) \
     SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[]) ON CONFLICT DO NOTHING";
const DELETE_UNIQUE: &str = "DELETE FROM unique_keys k USING unnest($2::text[]) AS g(key) WHERE k.log = $1 AND k.key = g.key";
const UPSERT_UNIQUE: &str = "INSERT INTO unique_keys (log, key, stream) SELECT $1, * FROM unnest($2::text[], $3::text[]) \
     ON CONFLICT (log, key) DO UPDATE SET stream = excluded.stream";
const INSERT_IDEMPOTENCY: &str = "INSERT INTO idempotency (log, key, request_hash, stream, position) \
     SELECT $1, * FROM unnest($2::text[], $3::bytea[], $4::text[], $5::bigint[])";
const INSERT_VALUES: &str = "INSERT INTO stored_values (log, hash, bytes) SELECT $1, * FROM unnest($2::bytea[], $3::bytea[]) \
     ON CONFLICT DO NOTHING";
const DELETE_VALUES: &str = "DELETE FROM stored_values WHERE log = $1 AND hash = ANY($2)";
const ERASE_EVENTS: &str =
    "UPDATE events SET salt = NULL, payload = NULL WHERE log = $1 AND stream = ANY($2) AND payload IS NOT NULL";
const ERASE_UNIQUE: &str = "DELETE FROM unique_keys WHERE log = $1 AND stream = ANY($2)";
const ERASE_IDEMPOTENCY: &str = "DELETE FROM idempotency WHERE log = $1 AND stream = ANY($2)";
const DELETE_SECRETS: &str = "DELETE FROM secrets WHERE log = $1 AND name = ANY($2)";
const UPSERT_SECRETS: &str = "INSERT INTO secrets (log, name, sealed) SELECT $1, * FROM unnest($2::text[], $3::bytea[]) \
     ON CONFLICT (log, name) DO UPDATE SET sealed = excluded.sealed";

/// Owned columns of a statement with one array each.
type Columns = Vec<Box<dyn ToSql + Sync + Send>>;

/// Writes a batch and commits: one round trip.
async fn write(client: &Object, log: i32, batch: &Batch) -> Result<(), tokio_postgres::Error> {
    let mut statements: Vec<(&str, Columns)> = vec![];
    if !batch.erased.is_empty() {
        for sql in [ERASE_EVENTS, ERASE_UNIQUE, ERASE_IDEMPOTENCY] {
            statements.push((sql, vec![texts(batch.erased.iter().map(String::as_str))]));
        }
    }
    if !batch.events.is_empty() {
        statements.push((INSERT_EVENTS, event_columns(&batch.events)));
        statements.push((UPSERT_ENTITIES, entity_columns(&batch.entities)));
    }
    for (sql, lines) in [(DELETE_FIELDS, &batch.fields_removed), (INSERT_FIELDS, &batch.fields_added)] {
        if !lines.is_empty() {
            statements.push((sql, field_columns(lines)));
        }
    }
    let (taken, freed): (Vec<_>, Vec<_>) = batch.unique.iter().partition(|(_, holder)| holder.is_some());
    if !freed.is_empty() {
        statements.push((DELETE_UNIQUE, vec![texts(freed.iter().map(|(key, _)| key.as_str()))]));
    }
    if !taken.is_empty() {
        let holders = taken.iter().filter_map(|(_, holder)| holder.as_deref());
        statements.push((UPSERT_UNIQUE, vec![texts(taken.iter().map(|(key, _)| key.as_str())), texts(holders)]));
    }
    if !batch.idempotent.is_empty() {
        statements.push((INSERT_IDEMPOTENCY, idempotency_columns(&batch.idempotent)));
    }
    statements.extend(value_statements(&batch.values));
    let (kept, gone): (Vec<_>, Vec<_>) = batch.secrets.iter().partition(|(_, sealed)| sealed.is_some());
    if !gone.is_empty() {
        statements.push((DELETE_SECRETS, vec![texts(gone.iter().map(|(name, _)| name.as_str()))]));
    }
    if !kept.is_empty() {
        let sealed: Vec<Vec<u8>> = kept.iter().filter_map(|(_, sealed)| (*sealed).clone()).collect();
        statements.push((UPSERT_SECRETS, vec![texts(kept.iter().map(|(name, _)| name.as_str())), Box::new(sealed)]));
    }
    let mut prepared = vec![];
    for (sql, columns) in statements {
        prepared.push((client.prepare_cached(sql).await?, columns));
    }
    let changes = prepared.iter().map(|(statement, columns)| {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&log];
        params.extend(columns.iter().map(|column| &**column as &(dyn ToSql + Sync)));
        async move { client.execute(statement, &params).await.map(|_| ()) }.left_future()
    });
    let commit = std::iter::once(client.batch_execute("COMMIT").right_future());
    // All are sent before the first answer is waited for. COMMIT after a refused statement rolls back.
    try_join_all(changes.chain(commit)).await.map(|_| ())
}

fn value_statements(values: &BTreeMap<[u8; 32], Option<Vec<u8>>>) -> Vec<(&'static str, Columns)> {
    let mut statements: Vec<(&str, Columns)> = vec![];
    let gone: Vec<Vec<u8>> = values.iter().filter(|(_, value)| value.is_none()).map(|(hash, _)| hash.to_vec()).collect();
    if !gone.is_empty() {
        statements.push((DELETE_VALUES, vec![Box::new(gone)]));
    }
    let kept = values.iter().filter_map(|(hash, value)| Some((hash.to_vec(), value.clone()?)));
    let (hashes, values): (Vec<_>, Vec<_>) = kept.unzip();
    if !hashes.is_empty() {
        statements.push((INSERT_VALUES, vec![Box::new(hashes), Box::new(values)]));
    }
    statements
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> Box<dyn ToSql + Sync + Send> {
    Box::new(values.map(str::to_owned).collect::<Vec<String>>())
}

fn column<T: ToSql + Sync + Send + 'static>(events: &[Arc<Recorded>], of: impl Fn(&Recorded) -> T) -> Box<dyn ToSql + Sync + Send>
where
    Vec<T>: ToSql,
{
    Box::new(events.iter().map(|event| of(event)).collect::<Vec<T>>())
}

fn event_columns(events: &[Arc<Recorded>]) -> Columns {
    vec![
        column(events, |e| e.header.position as i64),
        column(events, |e| e.header.id.bytes().to_vec()),
        column(events, |e| e.header.kind.clone()),
        column(events, |e| i32::from(e.header.shape)),
        column(events, |e| i32::from(e.header.category.code())),
        column(events, |e| e.header.stream.clone()),
        column(events, |e| e.header.version as i64),
        column(events, |e| e.header.occurred_at.0),
        column(events, |e| e.header.recorded_at.0),
        column(events, |e| e.header.actor.kind.as_str()),
        column(events, |e| e.header.actor.id.clone()),
        column(events, |e| e.header.user.map(|u| u.bytes().to_vec())),
        column(events, |e| e.header.correlation.clone()),
        column(events, |e| e.header.causation.map(|c| c.bytes().to_vec())),
        column(events, |e| e.header.trace_parent.clone()),
        column(events, |e| e.salt.map(|s| s.to_vec())),
        column(events, |e| e.payload.clone()),
        column(events, |e| e.payload_hash.to_vec()),
        column(events, |e| e.leaf.to_vec()),
    ]
}

fn entity_columns(entities: &BTreeMap<String, Changed>) -> Columns {
    let changed: Vec<(&String, &Changed)> = entities.iter().collect();
    fn of<T: ToSql + Sync + Send + 'static>(
        changed: &[(&String, &Changed)],
        value: impl Fn(&Changed) -> T,
    ) -> Box<dyn ToSql + Sync + Send> {
        Box::new(changed.iter().map(|(_, entity)| value(entity)).collect::<Vec<T>>())
    }
    vec![
        texts(changed.iter().map(|(stream, _)| stream.as_str())),
        of(&changed, |e| e.version as i64),
        of(&changed, |e| e.state.as_ref().map(|(state, _)| state.clone())),
        of(&changed, |e| e.state.as_ref().map(|(_, version)| *version as i64)),
        of(&changed, |e| e.position as i64),
        of(&changed, |e| e.is_deleted),
        of(&changed, |e| e.created_at.0),
        of(&changed, |e| e.updated_at.0),
        of(&changed, |e| e.fields.join("\n")),
    ]
}

fn field_columns(lines: &[(String, String)]) -> Columns {
    let parts: Vec<(&str, &str, &str)> = lines
        .iter()
        .filter_map(|(line, stream)| line.split_once('\t').map(|(field, value)| (field, value, stream.as_str())))
        .collect();
    vec![
        texts(parts.iter().map(|(field, ..)| *field)),
        texts(parts.iter().map(|(_, value, _)| *value)),
        texts(parts.iter().map(|(.., stream)| *stream)),
    ]
}

fn idempotency_columns(known: &[(String, Idempotent)]) -> Columns {
    vec![
        texts(known.iter().map(|(key, _)| key.as_str())),
        Box::new(known.iter().map(|(_, k)| k.request_hash.to_vec()).collect::<Vec<_>>()),
        texts(known.iter().map(|(_, k)| k.stream.as_str())),
        Box::new(known.iter().map(|(_, k)| k.position as i64).collect::<Vec<_>>()),
    ]
}
