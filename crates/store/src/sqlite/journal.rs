//! The journal on SQLite: a file of its own with a writer of its own, so that observations never hold up the log.

use super::directory::Directory;
use super::write::Failure;
use super::{Readers, SqliteSettings, connect, free_bytes, tree};
use crate::journal::*;
use crate::tree::{Growth, Sealed, TreeStore};
use crate::{OpenError, StoreError};
use async_trait::async_trait;
use kernel::journal::{Class, JournalHeader};
use kernel::merkle::Hash;
use kernel::{ActorRef, TenantId, Timestamp, event, id::JournalId};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The version of the tables that this program writes.
const VERSION: u32 = 2;
/// Entries of one transaction.
const BATCH_MAX: usize = 512;
/// `entries.id`: the log's number and the position, so that a tenant's entries lie together, in order.
const POSITION_BITS: u32 = 40;
/// After this long without work the write-ahead log is emptied.
const IDLE: Duration = Duration::from_secs(2);

const TABLES: &str = "
CREATE TABLE logs (
    number INTEGER PRIMARY KEY,
    tenant BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    entry BLOB NOT NULL,
    class INTEGER NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    correlation TEXT NOT NULL,
    salt BLOB,
    data BLOB,
    data_hash BLOB NOT NULL,
    leaf BLOB NOT NULL
) STRICT;
CREATE INDEX idx_entries_class ON entries (class, id);
CREATE INDEX idx_entries_actor ON entries (actor_id, id);
CREATE TABLE stored_values (
    log INTEGER NOT NULL,
    hash BLOB NOT NULL,
    used_at INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    UNIQUE (log, hash)
) STRICT;
";

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Entry(Box<NewEntry>, Option<Reply<u64>>),
    Forget(BTreeMap<Class, Timestamp>, Reply<u64>),
    Grow(TenantId, Growth, Reply<()>),
    Cosign(TenantId, String, Reply<()>),
    Erase(TenantId, Vec<u64>, Reply<()>),
    EraseValues(TenantId, Vec<[u8; 32]>, u64, Reply<()>),
    Scrub(Reply<()>),
    Close(oneshot::Sender<()>),
}

/// The journal of a data directory.
pub struct SqliteJournal {
    jobs: Mutex<Option<Sender<Job>>>,
    intake: Arc<Intake>,
    readers: Arc<Readers>,
}

fn fail(intake: &Intake, error: &rusqlite::Error) {
    let reason = connect::reason(error);
    tracing::error!(error = %reason, "a write to the journal failed: privileged actions are refused until the server is started again");
    if intake.broken().is_none() {
        intake.set_broken(Some(reason));
    }
}

impl SqliteJournal {
    /// Opens the journal of a locked data directory, making it when it is new.
    pub fn open(directory: &Directory, settings: &SqliteSettings) -> Result<Self, OpenError> {
        let database = directory.open_journal();
        let shown = || database.path().display().to_string();
        let unusable = |e: rusqlite::Error| super::unusable(database.path(), &e);
        let connection = database.writing().map_err(unusable)?;
        match connection.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0)).map_err(unusable)? {
            VERSION => {}
            found if found < VERSION => {
                let steps: String = [TABLES, tree::TABLES][found as usize..].concat();
                connection
                    .execute_batch(&format!("BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;"))
                    .map_err(unusable)?;
            }
            found => return Err(OpenError::Newer { path: shown(), found: found.to_string(), known: VERSION }),
        }
        let logs = numbers(&connection).map_err(unusable)?;
        let (jobs, inbox) = channel();
        let intake = Arc::new(Intake::default());
        let thread = Thread {
            connection,
            intake: intake.clone(),
            logs,
            directory: directory.path().to_owned(),
            disk_free_min_bytes: settings.disk_free_min_bytes,
            is_clean: true,
        };
        std::thread::Builder::new()
            .name("journal-writer".into())
            .spawn(move || thread.run(&inbox))
            .map_err(|e| OpenError::Unusable { path: shown(), reason: format!("no thread for the journal's writer: {e}") })?;
        Ok(SqliteJournal { jobs: Mutex::new(Some(jobs)), intake, readers: Readers::new(database) })
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().ok_or(StoreError::Closed)?.send(job).map_err(|_| StoreError::Closed)
    }

    fn take(&self, entry: NewEntry, reply: Option<Reply<u64>>) -> Result<(), StoreError> {
        let (tenant, bytes) = (entry.tenant, entry.bytes());
        let refusal = match self.intake.broken() {
            Some(reason) => Some(StoreError::ReadOnly(reason)),
            None => {
                let is_admitted = self.intake.admit(bytes);
                let sent = if is_admitted { self.send(Job::Entry(Box::new(entry), reply)) } else { Err(StoreError::Busy) };
                if is_admitted && sent.is_err() {
                    self.intake.release(1, bytes);
                }
                sent.err()
            }
        };
        match refusal {
            None => Ok(()),
            Some(refusal) => {
                self.intake.lose(tenant);
                Err(refusal)
            }
        }
    }
}

#[async_trait]
impl TreeStore for SqliteJournal {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        let numbers = self.readers.run(numbers).await?;
        Ok(numbers.into_iter().map(|(tenant, log)| (tenant, log.position)).collect())
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        let read = move |c: &Connection| {
            let sql = "SELECT e.leaf FROM entries e, logs l WHERE l.tenant = ?1 AND e.id > (l.number << ?4) + ?2 \
                       AND e.id < ((l.number + 1) << ?4) ORDER BY e.id LIMIT ?3";
            let mut statement = c.prepare_cached(sql)?;
            let rows = statement.query_map(params![&tenant.bytes()[..], from, limit as i64, POSITION_BITS], |row| row.get(0))?;
            rows.collect()
        };
        self.readers.run(read).await
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.readers.run(move |c| tree::tile(c, tenant, level, index)).await
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        self.readers.run(move |c| tree::sealed(c, tenant)).await
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Grow(tenant, growth, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Cosign(tenant, note, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    fn offer(&self, entry: NewEntry) -> bool {
        self.take(entry, None).is_ok()
    }

    async fn record(&self, entry: NewEntry) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.take(entry, Some(reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn entries(&self, tenant: TenantId, query: JournalQuery) -> Result<Vec<Entry>, StoreError> {
        self.readers.run(move |c| entries(c, tenant, &query)).await
    }

    async fn value(&self, tenant: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let hash = *hash;
        let read = move |c: &Connection| {
            let sql = "SELECT bytes FROM stored_values v JOIN logs l ON l.number = v.log WHERE l.tenant = ?1 AND v.hash = ?2";
            c.prepare_cached(sql)?.query_row(params![&tenant.bytes()[..], &hash[..]], |row| row.get(0)).optional()
        };
        self.readers.run(read).await
    }

    async fn values(&self, tenant: TenantId, after: [u8; 32], limit: usize) -> Result<Vec<([u8; 32], Vec<u8>)>, StoreError> {
        let read = move |c: &Connection| {
            let sql = "SELECT v.hash, v.bytes FROM stored_values v JOIN logs l ON l.number = v.log \
                       WHERE l.tenant = ?1 AND v.hash > ?2 ORDER BY v.hash LIMIT ?3";
            let mut statement = c.prepare_cached(sql)?;
            let rows = statement
                .query_map(params![&tenant.bytes()[..], &after[..], limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        };
        self.readers.run(read).await
    }

    async fn erase_values(&self, tenant: TenantId, values: Vec<[u8; 32]>, seen: u64) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::EraseValues(tenant, values, seen, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn erase(&self, tenant: TenantId, positions: Vec<u64>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Erase(tenant, positions, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Scrub(reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn forget(&self, before: BTreeMap<Class, Timestamp>) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Forget(before, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    fn health(&self) -> JournalHealth {
        self.intake.health()
    }

    async fn close(&self) {
        self.readers.close();
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (reply, done) = oneshot::channel();
        if jobs.is_some_and(|jobs| jobs.send(Job::Close(reply)).is_ok()) {
            // An error means that the thread is gone, which is what was wanted.
            let _ = done.await;
        }
    }
}

/// Number and last position of a tenant's journal.
struct Log {
    number: i64,
    position: u64,
}

struct Thread {
    connection: Connection,
    intake: Arc<Intake>,
    logs: BTreeMap<TenantId, Log>,
    directory: PathBuf,
    disk_free_min_bytes: u64,
    /// Whether the write-ahead log is empty.
    is_clean: bool,
}

type Batch = Vec<(NewEntry, Option<Reply<u64>>)>;

impl Thread {
    fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            match inbox.recv_timeout(IDLE) {
                Ok(Job::Entry(entry, reply)) => {
                    if let Some(closing) = self.write_with_others(*entry, reply, inbox) {
                        return self.close(closing);
                    }
                }
                Ok(Job::Close(closing)) => return self.close(closing),
                Ok(job) => self.other(job),
                Err(RecvTimeoutError::Timeout) => self.checkpoint(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn close(mut self, closing: oneshot::Sender<()>) {
        self.checkpoint();
        match self.intake.broken() {
            None => connect::let_go(self.connection),
            Some(_) => drop(self.connection),
        }
        // Nobody waits any more: that is fine.
        let _ = closing.send(());
    }

    fn checkpoint(&mut self) {
        if self.intake.broken().is_some() {
            return;
        }
        if !std::mem::replace(&mut self.is_clean, true)
            && let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        {
            fail(&self.intake, &error);
        }
    }

    /// Collects a batch: until somebody waits, until it is full, or until its first entry waited long enough.
    fn write_with_others(
        &mut self,
        entry: NewEntry,
        reply: Option<Reply<u64>>,
        inbox: &Receiver<Job>,
    ) -> Option<oneshot::Sender<()>> {
        let until = Instant::now() + Duration::from_millis(BATCH_MS_MAX);
        let mut is_urgent = reply.is_some();
        let mut batch: Batch = vec![(entry, reply)];
        let (mut other, mut closing) = (None, None);
        while batch.len() < BATCH_MAX {
            let wait = if is_urgent { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            match inbox.recv_timeout(wait) {
                Ok(Job::Entry(entry, reply)) => {
                    is_urgent |= reply.is_some();
                    batch.push((*entry, reply));
                }
                Ok(Job::Close(reply)) => {
                    closing = Some(reply);
                    break;
                }
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        self.write(batch);
        if let Some(job) = other {
            self.other(job);
        }
        closing
    }

    /// Anything but entries and the end. Whoever asked may have gone away.
    fn other(&mut self, job: Job) {
        match job {
            Job::Forget(before, reply) => drop(reply.send(self.forget(&before))),
            Job::Grow(tenant, growth, reply) => drop(reply.send(self.change(tenant, |c, log| tree::grow(c, log, &growth)))),
            Job::Cosign(tenant, note, reply) => {
                drop(reply.send(self.change(tenant, |c, log| Ok(tree::cosign(c, log, &note)?))));
            }
            Job::Erase(tenant, positions, reply) => {
                drop(reply.send(self.change(tenant, |c, log| Ok(erase(c, log, &positions)?))));
            }
            Job::EraseValues(tenant, values, seen, reply) => {
                let head = self.logs.get(&tenant).map_or(0, |log| log.position);
                let outcome = match head == seen {
                    true => self.change(tenant, |c, log| Ok(erase_values(c, log, &values)?)),
                    false => Err(StoreError::ViewMoved(head)),
                };
                drop(reply.send(outcome));
            }
            Job::Scrub(reply) => drop(reply.send(self.scrub())),
            Job::Entry(..) | Job::Close(_) => {}
        }
    }

    fn scrub(&mut self) -> Result<(), StoreError> {
        if let Some(reason) = self.intake.broken() {
            return Err(StoreError::ReadOnly(reason));
        }
        connect::rewrite(&self.connection, &self.directory, self.disk_free_min_bytes).unwrap_or_else(|error| {
            fail(&self.intake, &error);
            Err(StoreError::Unknown(connect::reason(&error)))
        })
    }

    /// A transaction of its own.
    fn change(
        &mut self,
        tenant: TenantId,
        change: impl FnOnce(&Connection, i64) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        if let Some(reason) = self.intake.broken() {
            return Err(StoreError::ReadOnly(reason));
        }
        let Some(log) = self.logs.get(&tenant).map(|log| log.number) else { return Err(StoreError::ViewMoved(0)) };
        let changed = self
            .connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(Failure::Broken)
            .and_then(|()| change(&self.connection, log))
            .and_then(|()| self.connection.execute_batch("COMMIT").map_err(Failure::Broken));
        self.is_clean = false;
        let Err(failure) = changed else { return Ok(()) };
        // Before the commit nothing was written; at the commit it is not known.
        let _ = self.connection.execute_batch("ROLLBACK");
        match failure {
            Failure::Refused(error) => Err(error),
            Failure::Broken(error) => {
                fail(&self.intake, &error);
                Err(StoreError::Unknown(error.to_string()))
            }
        }
    }

    fn write(&mut self, batch: Batch) {
        let (entries, bytes) = (batch.len(), batch.iter().map(|(entry, _)| entry.bytes()).sum());
        self.write_now(batch);
        self.intake.release(entries, bytes);
    }

    fn write_now(&mut self, batch: Batch) {
        let is_low = free_bytes(&self.directory).is_some_and(|free| free < self.disk_free_min_bytes);
        let refusal = match self.intake.broken() {
            Some(reason) => Some(StoreError::ReadOnly(reason)),
            None => is_low.then_some(StoreError::DiskLow),
        };
        let written = match refusal {
            Some(refusal) => Err(refusal),
            None => self.transact(&batch).map_err(|error| {
                fail(&self.intake, &error);
                // Before the commit nothing was written; at the commit it is not known.
                let _ = self.connection.execute_batch("ROLLBACK");
                StoreError::Unknown(connect::reason(&error))
            }),
        };
        match written {
            Ok(positions) => {
                self.is_clean = false;
                for ((_, reply), position) in batch.into_iter().zip(positions) {
                    // Whoever asked may have gone away.
                    let _ = reply.map(|reply| reply.send(Ok(position)));
                }
            }
            Err(refusal) => {
                for (entry, reply) in batch {
                    self.intake.lose(entry.tenant);
                    let _ = reply.map(|reply| reply.send(Err(refusal.clone())));
                }
            }
        }
    }

    fn transact(&mut self, batch: &Batch) -> rusqlite::Result<Vec<u64>> {
        let before: Vec<(TenantId, u64)> = self.logs.iter().map(|(tenant, log)| (*tenant, log.position)).collect();
        let written = self.insert_all(batch);
        if written.is_err() {
            // Places that were taken by what is not written are free again.
            let known: BTreeMap<TenantId, u64> = before.into_iter().collect();
            self.logs.retain(|tenant, log| known.get(tenant).inspect(|position| log.position = **position).is_some());
        }
        written
    }

    fn insert_all(&mut self, batch: &Batch) -> rusqlite::Result<Vec<u64>> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let unsaid = self.intake.take_unsaid();
        let mut said = vec![];
        let mut positions = vec![];
        for (entry, _) in batch {
            let log = match self.logs.get_mut(&entry.tenant) {
                Some(log) => log,
                None => {
                    self.connection.execute("INSERT INTO logs (tenant) VALUES (?1)", [&entry.tenant.bytes()[..]])?;
                    let number = self.connection.last_insert_rowid();
                    self.logs.entry(entry.tenant).or_insert(Log { number, position: 0 })
                }
            };
            if let Some(lost) = unsaid.get(&entry.tenant).filter(|_| !said.contains(&entry.tenant)) {
                said.push(entry.tenant);
                insert(&self.connection, log, &NewEntry::gap(entry, *lost))?;
            }
            positions.push(insert(&self.connection, log, entry)?);
        }
        self.connection.execute_batch("COMMIT")?;
        self.intake.give_back_unsaid(unsaid.into_iter().filter(|(tenant, _)| !said.contains(tenant)));
        Ok(positions)
    }

    fn forget(&mut self, before: &BTreeMap<Class, Timestamp>) -> Result<u64, StoreError> {
        if let Some(reason) = self.intake.broken() {
            return Err(StoreError::ReadOnly(reason));
        }
        self.remove(before).map_err(|error| {
            fail(&self.intake, &error);
            StoreError::Unknown(connect::reason(&error))
        })
    }

    fn remove(&mut self, before: &BTreeMap<Class, Timestamp>) -> rusqlite::Result<u64> {
        let mut forgotten = 0;
        for (class, instant) in before {
            let sql = "UPDATE entries SET salt = NULL, data = NULL WHERE class = ?1 AND at < ?2 AND data IS NOT NULL";
            forgotten += self.connection.execute(sql, params![class.code(), instant.0])? as u64;
        }
        if let Some(oldest) = before.values().min() {
            self.connection.execute("DELETE FROM stored_values WHERE used_at < ?1", [oldest.0])?;
        }
        self.is_clean = false;
        Ok(forgotten)
    }
}

fn erase(c: &Connection, log: i64, positions: &[u64]) -> rusqlite::Result<()> {
    let mut content = c.prepare_cached("UPDATE entries SET salt = NULL, data = NULL WHERE id = ?1")?;
    for position in positions {
        content.execute([(log << POSITION_BITS) | position.cast_signed()])?;
    }
    Ok(())
}

fn erase_values(c: &Connection, log: i64, values: &[[u8; 32]]) -> rusqlite::Result<()> {
    let mut value = c.prepare_cached("DELETE FROM stored_values WHERE log = ?1 AND hash = ?2")?;
    for hash in values {
        value.execute(params![log, &hash[..]])?;
    }
    Ok(())
}

fn insert(c: &Connection, log: &mut Log, entry: &NewEntry) -> rusqlite::Result<u64> {
    log.position += 1;
    let data_hash = entry.content.hash();
    let leaf = entry.header(log.position).leaf(&data_hash);
    c.prepare_cached(
        "INSERT INTO entries (id, entry, class, kind, at, actor_kind, actor_id, correlation, salt, data, data_hash, leaf) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?
    .execute(params![
        (log.number << POSITION_BITS) | log.position.cast_signed(),
        &entry.id.bytes()[..],
        entry.class.code(),
        &*entry.kind,
        entry.at.0,
        entry.actor.kind.as_str(),
        entry.actor.id,
        entry.correlation,
        entry.content.salt(),
        entry.content.bytes(),
        &data_hash[..],
        &leaf[..],
    ])?;
    for (hash, bytes) in &entry.values {
        if bytes.is_empty() {
            let sql = "UPDATE stored_values SET used_at = max(used_at, ?3) WHERE log = ?1 AND hash = ?2";
            c.prepare_cached(sql)?.execute(params![log.number, &hash[..], entry.at.0])?;
            continue;
        }
        c.prepare_cached(
            "INSERT INTO stored_values (log, hash, used_at, bytes) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (log, hash) DO UPDATE SET used_at = max(used_at, excluded.used_at)",
        )?
        .execute(params![log.number, &hash[..], entry.at.0, bytes])?;
    }
    Ok(log.position)
}

fn numbers(c: &Connection) -> rusqlite::Result<BTreeMap<TenantId, Log>> {
    let mut statement = c.prepare(
        "SELECT tenant, number, coalesce((SELECT max(id) FROM entries WHERE id BETWEEN number << ?1 AND ((number + 1) << ?1) - 1), number << ?1) \
         FROM logs",
    )?;
    let rows = statement.query_map([POSITION_BITS], |row| {
        let (number, last): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, [u8; 16]>(0)?, Log { number, position: (last & ((1 << POSITION_BITS) - 1)).cast_unsigned() }))
    })?;
    rows.map(|row| row.map(|(tenant, log)| (TenantId::from_bytes(tenant), log))).collect()
}

fn entries(c: &Connection, tenant: TenantId, query: &JournalQuery) -> rusqlite::Result<Vec<Entry>> {
    let number: Option<i64> = c
        .prepare_cached("SELECT number FROM logs WHERE tenant = ?1")?
        .query_row([&tenant.bytes()[..]], |row| row.get(0))
        .optional()?;
    let Some(number) = number else { return Ok(vec![]) };
    let after = i64::try_from(query.after).unwrap_or(i64::MAX).min((1 << POSITION_BITS) - 1);
    // One filter is answered by its index; the other is checked row by row.
    let mut sql =
        "SELECT id, entry, class, kind, at, actor_kind, actor_id, correlation, data, salt, data_hash, leaf FROM entries \
                   WHERE id > ?1 AND id < ?2"
            .to_owned();
    sql.push_str(if query.class.is_some() { " AND class = ?3" } else { " AND ?3 IS NULL" });
    sql.push_str(if query.actor.is_some() { " AND actor_id = ?4" } else { " AND ?4 IS NULL" });
    sql.push_str(" ORDER BY id LIMIT ?5");
    let mut statement = c.prepare_cached(&sql)?;
    let bounds = ((number << POSITION_BITS) | after, (number + 1) << POSITION_BITS);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    let rows = statement
        .query_map(params![bounds.0, bounds.1, query.class.map(Class::code), query.actor, limit], |row| entry_of(row, tenant))?;
    rows.collect()
}

fn entry_of(row: &Row<'_>, tenant: TenantId) -> rusqlite::Result<Entry> {
    let id: i64 = row.get(0)?;
    let header = JournalHeader {
        id: JournalId::from_bytes(row.get(1)?),
        tenant,
        position: (id & ((1 << POSITION_BITS) - 1)).cast_unsigned(),
        class: Class::from_code(row.get(2)?).ok_or(rusqlite::Error::IntegralValueOutOfRange(2, 0))?,
        kind: row.get(3)?,
        at: Timestamp(row.get(4)?),
        actor: ActorRef { kind: event::actor_kind(&row.get::<_, String>(5)?), id: row.get(6)? },
        correlation: row.get(7)?,
    };
    Ok(Entry { header, data: row.get(8)?, salt: row.get(9)?, data_hash: row.get(10)?, leaf: row.get(11)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::{self, entry};
    use crate::sqlite::tests::other;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tempfile::TempDir;

    fn open(path: &std::path::Path, disk_free_min_bytes: u64) -> SqliteJournal {
        SqliteJournal::open(&Directory::open(path).unwrap(), &SqliteSettings { disk_free_min_bytes }).unwrap()
    }

    #[tokio::test]
    async fn the_contract_holds() {
        let home = TempDir::new().unwrap();
        let count = AtomicUsize::new(0);
        contract::check(|| async {
            let path = home.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
            Arc::new(open(&path, 0)) as Arc<dyn Journal>
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_offered_is_there_after_a_close_and_the_order_goes_on() {
        let home = TempDir::new().unwrap();
        let journal = open(home.path(), 0);
        assert!(journal.offer(entry(1, Class::ToolCall, "a", 1)));
        journal.close().await;
        assert!(!journal.offer(entry(1, Class::ToolCall, "a", 2)));
        let journal = open(home.path(), 0);
        assert_eq!(journal.record(entry(1, Class::Security, "a", 3)).await, Ok(2));
    }

    #[tokio::test]
    async fn nothing_is_acknowledged_on_a_full_disk_and_the_gap_is_said_later() {
        let home = TempDir::new().unwrap();
        let journal = open(home.path(), u64::MAX);
        assert_eq!(journal.record(entry(1, Class::Security, "a", 1)).await, Err(StoreError::DiskLow));
        assert_eq!(journal.health().lost, 1);
        journal.close().await;
        let tenant = TenantId::from_bytes([1; 16]);
        let journal = open(home.path(), 0);
        journal.intake.lose(tenant);
        journal.intake.lose(tenant);
        assert_eq!(journal.record(entry(1, Class::Security, "a", 2)).await, Ok(2));
        let found = journal.entries(tenant, JournalQuery { limit: 9, ..JournalQuery::default() }).await.unwrap();
        assert_eq!(found[0].header.class, Class::Gap);
        assert_eq!(found[0].data.as_deref(), Some(&br#"{"lost":2}"#[..]));
    }

    #[tokio::test]
    async fn after_a_failed_write_nothing_is_acknowledged() {
        let home = TempDir::new().unwrap();
        let journal = open(home.path(), 0);
        other(&home.path().join("journal.db")).execute_batch("DROP TABLE entries").unwrap();
        assert!(matches!(journal.record(entry(1, Class::Security, "a", 1)).await, Err(StoreError::Unknown(_))));
        assert!(matches!(journal.record(entry(1, Class::Security, "a", 1)).await, Err(StoreError::ReadOnly(_))));
        assert!(!journal.offer(entry(1, Class::ToolCall, "a", 1)));
        assert!(journal.health().broken.is_some());
    }

    #[tokio::test]
    async fn a_journal_of_a_newer_version_is_left_alone() {
        let home = TempDir::new().unwrap();
        open(home.path(), 0).close().await;
        other(&home.path().join("journal.db")).execute_batch("PRAGMA user_version = 9").unwrap();
        let directory = Directory::open(home.path()).unwrap();
        let refused = SqliteJournal::open(&directory, &SqliteSettings { disk_free_min_bytes: 0 });
        assert!(matches!(refused.err(), Some(OpenError::Newer { .. })));
    }
}
