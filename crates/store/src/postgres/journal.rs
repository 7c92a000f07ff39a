//! The journal on PostgreSQL: batches of all tenants in one transaction, places given out under a lock for each tenant's
//! journal. While the database is away entries wait, within the limits; privileged ones are refused after a while.

use super::connect::{Target, describe, failed, is_lost, unreachable};
use super::contents::{self, Part};
use super::plan::clean;
use super::read::{fixed, optional};
use super::{PostgresSettings, PostgresStore, tree};
use crate::journal::*;
use crate::tree::{Growth, Sealed};
use crate::{OpenError, StoreError};
use async_trait::async_trait;
use deadpool_postgres::{Object, Pool};
use futures_util::future::try_join_all;
use kernel::event::actor_kind;
use kernel::journal::{Class, JournalHeader};
use kernel::merkle::Hash;
use kernel::{ActorRef, TenantId, Timestamp, id::JournalId};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// Entries of one transaction.
const BATCH_MAX: usize = 512;
/// How long somebody who waits for an entry waits while the database is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// First key of the advisory locks of journals.
const JOURNAL_LOCKS: i32 = 0x4b45_0003;
/// Connections: one writes, the others read.
const CONNECTIONS: usize = 3;

type Reply = oneshot::Sender<Result<u64, StoreError>>;
/// An entry, and who waits for it.
type Item = (NewEntry, Option<Reply>);
type Batch = Vec<Item>;

/// The journal beside the log of a [`PostgresStore`].
pub struct PostgresJournal {
    sender: std::sync::Mutex<Option<mpsc::UnboundedSender<Item>>>,
    intake: Arc<Intake>,
    pool: Pool,
    is_done: tokio::sync::watch::Receiver<bool>,
    size: std::sync::Weak<super::writer::Writer>,
    trees: tree::Trees,
}

impl PostgresJournal {
    /// The journal in the database of a store, which has made the tables.
    pub fn open(settings: &PostgresSettings, store: &PostgresStore) -> Result<Self, OpenError> {
        let pool = Target::new(settings)?.pool(CONNECTIONS)?;
        let intake = Arc::new(Intake::default());
        let (sender, inbox) = mpsc::unbounded_channel();
        let (done, is_done) = tokio::sync::watch::channel(false);
        let size = Arc::downgrade(&store.writer);
        let worker = Worker { pool: pool.clone(), intake: intake.clone(), numbers: BTreeMap::new(), parts: BTreeSet::new() };
        tokio::spawn(async move {
            worker.run(inbox).await;
            done.send_replace(true);
        });
        Ok(PostgresJournal {
            sender: std::sync::Mutex::new(Some(sender)),
            intake,
            trees: tree::of_journals(pool.clone()),
            pool,
            is_done,
            size,
        })
    }

    fn take(&self, entry: NewEntry, reply: Option<Reply>) -> Result<(), StoreError> {
        let (tenant, bytes) = (entry.tenant, entry.bytes());
        let is_full = self.size.upgrade().is_some_and(|writer| writer.health().is_disk_low);
        let sent = if is_full {
            Err(StoreError::DiskLow)
        } else if !self.intake.admit(bytes) {
            Err(StoreError::Busy)
        } else {
            let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let sent =
                sender.as_ref().ok_or(StoreError::Closed).and_then(|s| s.send((entry, reply)).map_err(|_| StoreError::Closed));
            sent.inspect_err(|_| self.intake.release(1, bytes))
        };
        sent.inspect_err(|_| self.intake.lose(tenant))
    }

    async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        let client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let statement = client.prepare_cached(sql).await.map_err(|e| failed(&e))?;
        client.query(&statement, params).await.map_err(|e| failed(&e))
    }
}

#[async_trait]
impl crate::tree::TreeStore for PostgresJournal {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        self.trees.sizes().await
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        self.trees.leaves(tenant, from, limit).await
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.trees.tile(tenant, level, index).await
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        self.trees.sealed(tenant).await
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.trees.grow(tenant, &growth).await
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.trees.cosign(tenant, &note).await
    }
}

#[async_trait]
impl Journal for PostgresJournal {
    fn offer(&self, entry: NewEntry) -> bool {
        self.take(entry, None).is_ok()
    }

    async fn record(&self, entry: NewEntry) -> Result<u64, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.take(entry, Some(reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the journal's writer stopped".into())))
    }

    async fn entries(&self, tenant: TenantId, query: JournalQuery) -> Result<Vec<Entry>, StoreError> {
        let sql = "SELECT e.position, e.entry_id, e.class, e.kind, e.at, e.actor_kind, e.actor_id, e.correlation, c.data, c.salt, e.data_hash, e.leaf \
                   FROM journal_entries e LEFT JOIN journal_contents c \
                   ON c.journal = e.journal AND c.position = e.position AND c.class = e.class AND c.at = e.at \
                   WHERE e.journal = (SELECT number FROM journals WHERE tenant = $1) AND e.position > $2 \
                   AND ($3::int IS NULL OR e.class = $3) AND ($4::text IS NULL OR e.actor_id = $4) ORDER BY e.position LIMIT $5";
        let (after, limit) = (i64::try_from(query.after).unwrap_or(i64::MAX), i64::try_from(query.limit).unwrap_or(i64::MAX));
        let class = query.class.map(|class| i32::from(class.code()));
        let actor = query.actor.as_deref().map(clean);
        let rows = self.rows(sql, &[&&tenant.bytes()[..], &after, &class, &actor, &limit]).await?;
        rows.iter().map(|row| entry(row, tenant)).collect()
    }

    async fn value(&self, tenant: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let sql =
            "SELECT v.bytes FROM journal_values v JOIN journals j ON j.number = v.journal WHERE j.tenant = $1 AND v.hash = $2";
        Ok(self.rows(sql, &[&&tenant.bytes()[..], &&hash[..]]).await?.first().map(|row| row.get(0)))
    }

    async fn values(&self, tenant: TenantId, after: [u8; 32], limit: usize) -> Result<Vec<([u8; 32], Vec<u8>)>, StoreError> {
        let sql = "SELECT v.hash, v.bytes FROM journal_values v JOIN journals j ON j.number = v.journal \
                   WHERE j.tenant = $1 AND v.hash > $2 ORDER BY v.hash LIMIT $3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.rows(sql, &[&&tenant.bytes()[..], &&after[..], &limit]).await?;
        rows.iter().map(|row| Ok((fixed(row, 0)?, row.get(1)))).collect()
    }

    async fn erase(&self, tenant: TenantId, positions: Vec<u64>) -> Result<(), StoreError> {
        let positions: Vec<i64> = positions.into_iter().map(|position| position as i64).collect();
        let sql = "DELETE FROM journal_contents c USING journals j WHERE j.tenant = $1 AND c.journal = j.number AND c.position = ANY($2)";
        self.rows(sql, &[&&tenant.bytes()[..], &positions]).await.map(|_| ())
    }

    async fn erase_values(&self, tenant: TenantId, values: Vec<[u8; 32]>, seen: u64) -> Result<(), StoreError> {
        let hashes: Vec<Vec<u8>> = values.iter().map(|hash| hash.to_vec()).collect();
        let mut client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let journal = number(&client, tenant).await.map_err(|e| failed(&e))?;
        let erased = async {
            let transaction = client.transaction().await?;
            transaction.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&JOURNAL_LOCKS, &journal]).await?;
            let head = "SELECT coalesce(max(position), 0) FROM journal_entries WHERE journal = $1";
            let head = transaction.query_one(head, &[&journal]).await?.get::<_, i64>(0) as u64;
            if head == seen {
                let sql = "DELETE FROM journal_values WHERE journal = $1 AND hash = ANY($2)";
                transaction.execute(sql, &[&journal, &hashes]).await?;
            }
            transaction.commit().await?;
            Ok(head)
        };
        match erased.await.map_err(|e: tokio_postgres::Error| failed(&e))? {
            head if head == seen => Ok(()),
            head => Err(StoreError::ViewMoved(head)),
        }
    }

    /// The tables of the journal are scrubbed together with those of the log.
    async fn scrub(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn forget(&self, before: BTreeMap<Class, Timestamp>) -> Result<u64, StoreError> {
        let mut client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        contents::forget(&mut client, &before).await.map(|(forgotten, _)| forgotten).map_err(|e| failed(&e))
    }

    fn health(&self) -> JournalHealth {
        self.intake.health()
    }

    async fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        let mut is_done = self.is_done.clone();
        // An error means that the writer is gone, which is what was wanted. What cannot be written now is lost.
        let _ = tokio::time::timeout(PATIENCE, is_done.wait_for(|done| *done)).await;
    }
}

fn entry(row: &Row, tenant: TenantId) -> Result<Entry, StoreError> {
    let code: i32 = row.get(2);
    let class = u8::try_from(code).ok().and_then(Class::from_code);
    let header = JournalHeader {
        id: JournalId::from_bytes(fixed(row, 1)?),
        tenant,
        position: row.get::<_, i64>(0) as u64,
        class: class.ok_or_else(|| StoreError::Corrupt(format!("a journal entry has the unknown class {code}")))?,
        kind: row.get(3),
        at: Timestamp(row.get(4)),
        actor: ActorRef { kind: actor_kind(row.get(5)), id: row.get(6) },
        correlation: row.get(7),
    };
    Ok(Entry { header, data: row.get(8), salt: optional(row, 9)?, data_hash: fixed(row, 10)?, leaf: fixed(row, 11)? })
}

struct Worker {
    pool: Pool,
    intake: Arc<Intake>,
    numbers: BTreeMap<TenantId, i32>,
    /// Partitions that are known to be there.
    parts: BTreeSet<Part>,
}

/// How a try went wrong.
enum Trouble {
    Nothing(StoreError),
    /// It is not known; the journal, place and leaf of the first entry tell.
    Unknown(StoreError, i32, u64, [u8; 32], Vec<u64>),
}

/// An entry with its place.
struct Placed<'a> {
    journal: i32,
    position: u64,
    entry: &'a NewEntry,
    data_hash: [u8; 32],
    leaf: [u8; 32],
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Item>) {
        while let Some(first) = inbox.recv().await {
            let batch = gather(first, &mut inbox).await;
            let (entries, bytes) = (batch.len(), batch.iter().map(|(entry, _)| entry.bytes()).sum());
            self.write(batch, inbox.is_closed()).await;
            self.intake.release(entries, bytes);
        }
    }

    /// Writes a batch, however long the database is away.
    async fn write(&mut self, mut batch: Batch, is_closing: bool) {
        let late = Instant::now() + PATIENCE;
        let unsaid = self.intake.take_unsaid();
        while !batch.is_empty() {
            let entries = with_gaps(&batch, &unsaid);
            let outcome = match self.attempt(&entries).await {
                Err(Trouble::Unknown(error, journal, position, leaf, positions)) => {
                    match self.is_there(journal, position, &leaf).await {
                        Ok(true) => Ok(positions),
                        Ok(false) => Err(error),
                        Err(error) => Err(error),
                    }
                }
                Err(Trouble::Nothing(error)) => Err(error),
                Ok(positions) => Ok(positions),
            };
            match outcome {
                Ok(positions) => {
                    self.intake.set_broken(None);
                    let said: BTreeSet<TenantId> = batch.iter().map(|(entry, _)| entry.tenant).collect();
                    self.intake.give_back_unsaid(unsaid.into_iter().filter(|(tenant, _)| !said.contains(tenant)));
                    for ((_, reply), position) in batch.into_iter().zip(own(&entries_gaps(&entries), &positions)) {
                        // Whoever asked may have gone away.
                        let _ = reply.map(|reply| reply.send(Ok(position)));
                    }
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the journal could not be written; trying again");
                    self.numbers.clear();
                    self.parts.clear();
                    if Instant::now() >= late {
                        self.intake.set_broken(Some(error.to_string()));
                        batch = self.without_those_who_wait(batch, &error, is_closing);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.intake.give_back_unsaid(unsaid);
    }

    /// Refuses the entries that somebody waits for; the others are kept for later, unless there is no later.
    fn without_those_who_wait(&self, batch: Batch, error: &StoreError, is_closing: bool) -> Batch {
        let mut kept = vec![];
        for (entry, reply) in batch {
            match reply {
                Some(reply) => {
                    self.intake.lose(entry.tenant);
                    let _ = reply.send(Err(error.clone()));
                }
                None if is_closing => self.intake.lose(entry.tenant),
                None => kept.push((entry, None)),
            }
        }
        kept
    }

    async fn is_there(&self, journal: i32, position: u64, leaf: &[u8; 32]) -> Result<bool, StoreError> {
        let client = self.pool.get().await.map_err(|e| unreachable(&e))?;
        let found = async {
            client.batch_execute("BEGIN").await?;
            client.execute("SELECT pg_advisory_xact_lock($1, $2)", &[&JOURNAL_LOCKS, &journal]).await?;
            let sql = "SELECT leaf FROM journal_entries WHERE journal = $1 AND position = $2";
            let row = client.query_opt(sql, &[&journal, &(position as i64)]).await?;
            client.batch_execute("COMMIT").await?;
            Ok(row.is_some_and(|row| row.get::<_, &[u8]>(0) == &leaf[..]))
        };
        found.await.map_err(|e: tokio_postgres::Error| failed(&e))
    }

    async fn attempt(&mut self, entries: &[(NewEntry, bool)]) -> Result<Vec<u64>, Trouble> {
        let nothing = |e: tokio_postgres::Error| Trouble::Nothing(failed(&e));
        let mut client = self.pool.get().await.map_err(|e| Trouble::Nothing(unreachable(&e)))?;
        let tenants: BTreeSet<TenantId> = entries.iter().map(|(entry, _)| entry.tenant).collect();
        for tenant in &tenants {
            if !self.numbers.contains_key(tenant) {
                self.numbers.insert(*tenant, number(&client, *tenant).await.map_err(nothing)?);
            }
        }
        let wanted: BTreeSet<Part> = entries.iter().map(|(entry, _)| contents::part(entry.class, entry.at)).collect();
        if !wanted.is_subset(&self.parts) {
            contents::make(&mut client, &wanted).await.map_err(nothing)?;
            self.parts.extend(wanted);
        }
        let mut journals: Vec<i32> = tenants.iter().filter_map(|tenant| self.numbers.get(tenant)).copied().collect();
        journals.sort_unstable();
        let heads = match lock_and_look(&client, &journals).await {
            Ok(heads) => heads,
            Err(error) => {
                drop(Object::take(client));
                return Err(nothing(error));
            }
        };
        let placed = place(entries, &self.numbers, heads);
        let positions = placed.iter().map(|p| p.position).collect();
        match insert(&client, &placed).await {
            Ok(()) => Ok(positions),
            Err(error) => {
                drop(Object::take(client));
                let trouble = StoreError::Unavailable(describe(&error));
                Err(match placed.first().filter(|_| is_lost(&error)) {
                    Some(first) => Trouble::Unknown(trouble, first.journal, first.position, first.leaf, positions),
                    None => Trouble::Nothing(failed(&error)),
                })
            }
        }
    }
}

/// Collects a batch: until somebody waits, until it is full, or until its first entry waited long enough.
async fn gather(first: Item, inbox: &mut mpsc::UnboundedReceiver<Item>) -> Batch {
    let until = Instant::now() + Duration::from_millis(BATCH_MS_MAX);
    let mut is_urgent = first.1.is_some();
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX {
        let next = match is_urgent {
            true => inbox.try_recv().ok(),
            false => tokio::time::timeout_at(until, inbox.recv()).await.ok().flatten(),
        };
        let Some(next) = next else { break };
        is_urgent |= next.1.is_some();
        batch.push(next);
    }
    batch
}

/// The entries to write: before a tenant's first one, what is missing is said. The flag tells such additions.
fn with_gaps(batch: &Batch, unsaid: &BTreeMap<TenantId, u64>) -> Vec<(NewEntry, bool)> {
    let mut said = BTreeSet::new();
    let mut entries = vec![];
    for (entry, _) in batch {
        if let Some(lost) = unsaid.get(&entry.tenant).filter(|_| said.insert(entry.tenant)) {
            entries.push((NewEntry::gap(entry, *lost), true));
        }
        entries.push((entry.clone(), false));
    }
    entries
}

fn entries_gaps(entries: &[(NewEntry, bool)]) -> Vec<bool> {
    entries.iter().map(|(_, is_gap)| *is_gap).collect()
}

/// The places of the batch's own entries.
fn own<'a>(gaps: &'a [bool], positions: &'a [u64]) -> impl Iterator<Item = u64> + 'a {
    gaps.iter().zip(positions).filter(|(is_gap, _)| !**is_gap).map(|(_, position)| *position)
}

fn place<'a>(
    entries: &'a [(NewEntry, bool)],
    numbers: &BTreeMap<TenantId, i32>,
    mut heads: BTreeMap<i32, u64>,
) -> Vec<Placed<'a>> {
    let mut placed = vec![];
    for (entry, _) in entries {
        let Some(journal) = numbers.get(&entry.tenant) else { continue };
        let position = heads.entry(*journal).or_default();
        *position += 1;
        let data_hash = entry.content.hash();
        let leaf = entry.header(*position).leaf(&data_hash);
        placed.push(Placed { journal: *journal, position: *position, entry, data_hash, leaf });
    }
    placed
}

async fn number(client: &Object, tenant: TenantId) -> Result<i32, tokio_postgres::Error> {
    let tenant = tenant.bytes().to_vec();
    client.execute("INSERT INTO journals (tenant) VALUES ($1) ON CONFLICT DO NOTHING", &[&tenant]).await?;
    Ok(client.query_one("SELECT number FROM journals WHERE tenant = $1", &[&tenant]).await?.get(0))
}

async fn lock_and_look(client: &Object, journals: &[i32]) -> Result<BTreeMap<i32, u64>, tokio_postgres::Error> {
    client.batch_execute("BEGIN").await?;
    let lock = client.prepare_cached("SELECT pg_advisory_xact_lock($1, $2)").await?;
    for journal in journals {
        client.execute(&lock, &[&JOURNAL_LOCKS, journal]).await?;
    }
    let sql = "SELECT j, coalesce((SELECT position FROM journal_entries e WHERE e.journal = j ORDER BY position DESC LIMIT 1), 0) FROM unnest($1::int[]) j";
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, &[&journals]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as u64)).collect())
}

const INSERT_ENTRIES: &str = "INSERT INTO journal_entries (journal, position, entry_id, class, kind, at, actor_kind, actor_id, correlation, \
     data_hash, leaf) SELECT * FROM unnest($1::int[], $2::bigint[], $3::bytea[], $4::int[], $5::text[], $6::bigint[], $7::text[], \
     $8::text[], $9::text[], $10::bytea[], $11::bytea[])";
const INSERT_CONTENTS: &str = "INSERT INTO journal_contents (journal, position, class, at, salt, data) \
     SELECT * FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bigint[], $5::bytea[], $6::bytea[])";
const UPSERT_VALUES: &str = "WITH n AS (SELECT * FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::bytea[]) AS n(journal, hash, used_at, bytes)), \
     renewed AS (UPDATE journal_values v SET used_at = greatest(v.used_at, n.used_at) FROM n WHERE v.journal = n.journal AND v.hash = n.hash) \
     INSERT INTO journal_values (journal, hash, used_at, bytes) SELECT * FROM n WHERE length(n.bytes) > 0 ON CONFLICT (journal, hash) DO NOTHING";

async fn insert(client: &Object, placed: &[Placed<'_>]) -> Result<(), tokio_postgres::Error> {
    fn of<'a, P: Borrow<Placed<'a>>, T: ToSql + Sync + Send + 'static>(placed: &[P], value: impl Fn(&Placed<'a>) -> T) -> Column {
        Box::new(placed.iter().map(|p| value(p.borrow())).collect::<Vec<T>>())
    }
    let whole: Vec<&Placed<'_>> = placed.iter().filter(|p| p.entry.content.bytes().is_some()).collect();
    let mut statements = vec![
        (
            INSERT_ENTRIES,
            vec![
                of(placed, |p| p.journal),
                of(placed, |p| p.position as i64),
                of(placed, |p| p.entry.id.bytes().to_vec()),
                of(placed, |p| i32::from(p.entry.class.code())),
                of(placed, |p| p.entry.kind.clone().into_owned()),
                of(placed, |p| p.entry.at.0),
                of(placed, |p| p.entry.actor.kind.as_str()),
                of(placed, |p| p.entry.actor.id.clone()),
                of(placed, |p| p.entry.correlation.clone()),
                of(placed, |p| p.data_hash.to_vec()),
                of(placed, |p| p.leaf.to_vec()),
            ],
        ),
        (
            INSERT_CONTENTS,
            vec![
                of(&whole, |p| p.journal),
                of(&whole, |p| p.position as i64),
                of(&whole, |p| i32::from(p.entry.class.code())),
                of(&whole, |p| p.entry.at.0),
                of(&whole, |p| p.entry.content.salt().map(<[u8]>::to_vec)),
                of(&whole, |p| p.entry.content.bytes().map(<[u8]>::to_vec)),
            ],
        ),
    ];
    statements.extend(value_statement(placed));
    let mut prepared = vec![];
    for (sql, columns) in statements {
        prepared.push((client.prepare_cached(sql).await?, columns));
    }
    let inserts = prepared.iter().map(|(statement, columns)| {
        let params: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
        async move { client.execute(statement, &params).await.map(|_| ()) }
    });
    try_join_all(inserts).await?;
    client.batch_execute("COMMIT").await
}

type Column = Box<dyn ToSql + Sync + Send>;

fn value_statement(placed: &[Placed<'_>]) -> Option<(&'static str, Vec<Column>)> {
    let mut values: BTreeMap<(i32, [u8; 32]), (i64, Vec<u8>)> = BTreeMap::new();
    for p in placed {
        for (hash, bytes) in &p.entry.values {
            let known = values.entry((p.journal, *hash)).or_insert_with(|| (p.entry.at.0, bytes.clone()));
            known.0 = known.0.max(p.entry.at.0);
            if known.1.is_empty() {
                known.1.clone_from(bytes);
            }
        }
    }
    if values.is_empty() {
        return None;
    }
    let journals: Vec<i32> = values.keys().map(|(journal, _)| *journal).collect();
    let hashes: Vec<Vec<u8>> = values.keys().map(|(_, hash)| hash.to_vec()).collect();
    let (used, bytes): (Vec<i64>, Vec<Vec<u8>>) = values.into_values().unzip();
    Some((UPSERT_VALUES, vec![Box::new(journals), Box::new(hashes), Box::new(used), Box::new(bytes)]))
}
