//! A store in memory: the model that the other backends are held against, and the ground of the simulator.

mod cluster;
pub(crate) mod tree;

use crate::tree::{Growth, Sealed};
use crate::*;
use kernel::merkle::Hash;
use kernel::{EventHeader, IndexField, NewEvent, UniqueChange};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Everything in memory. Durable as long as the value lives.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    is_shared: bool,
}

#[derive(Default)]
struct Inner {
    logs: BTreeMap<TenantId, Log>,
    order: Vec<TenantId>,
    commits: u64,
    events: u64,
    shared: cluster::Shared,
    trees: tree::Trees,
}

/// Rows of a view version by key.
type ViewRows = BTreeMap<String, Vec<u8>>;

struct Log {
    events: Vec<Arc<Recorded>>,
    streams: BTreeMap<String, Vec<u64>>,
    rows: BTreeMap<String, (EntityRow, Vec<IndexField>)>,
    unique: BTreeMap<String, String>,
    idempotent: BTreeMap<String, Idempotent>,
    values: BTreeMap<[u8; 32], Vec<u8>>,
    secrets: BTreeMap<String, Vec<u8>>,
    views: BTreeMap<(String, u32), (ViewState, ViewRows)>,
    tail: watch::Sender<u64>,
}

impl Log {
    fn new() -> Self {
        Log {
            events: vec![],
            streams: BTreeMap::new(),
            rows: BTreeMap::new(),
            unique: BTreeMap::new(),
            idempotent: BTreeMap::new(),
            values: BTreeMap::new(),
            secrets: BTreeMap::new(),
            views: BTreeMap::new(),
            tail: watch::channel(0).0,
        }
    }

    fn version(&self, stream: &str) -> u64 {
        self.rows.get(stream).map_or(0, |(row, _)| row.version)
    }

    fn check(&self, append: &Append) -> Result<(), StoreError> {
        let head = self.events.len() as u64;
        if append.if_head.is_some_and(|wanted| wanted != head) {
            return Err(StoreError::ViewMoved(head));
        }
        if let Some(known) = append.idempotency.as_ref().and_then(|i| self.idempotent.get(&i.key)) {
            return Err(StoreError::Repeated(known.clone()));
        }
        for write in &append.writes {
            let actual = self.version(&write.stream);
            if actual != write.expected_version {
                return Err(StoreError::Conflict { stream: write.stream.clone(), expected: write.expected_version, actual });
            }
        }
        checks::unique_keys(&append.writes, |key| Ok(self.unique.get(key).cloned()))
    }

    fn write(&mut self, append: Append) -> u64 {
        for write in append.writes {
            let Some(row) = write.row else { continue };
            if write.erases {
                self.erase(&write.stream);
            }
            self.change_unique(&write.stream, &write.unique);
            self.write_stream(append.log, append.now, &write.stream, write.expected_version, write.events, row);
            if let Some(key) = append.idempotency.as_ref().filter(|i| !self.idempotent.contains_key(&i.key)) {
                let known = Idempotent { request_hash: key.request_hash, stream: write.stream, position: 0 };
                self.idempotent.insert(key.key.clone(), known);
            }
        }
        let position = self.events.len() as u64;
        if let Some(known) = append.idempotency.and_then(|i| self.idempotent.get_mut(&i.key)) {
            known.position = position;
        }
        for (hash, value) in append.values {
            match value {
                Some(bytes) => self.values.insert(hash, bytes),
                None => self.values.remove(&hash),
            };
        }
        for (name, secret) in append.secrets {
            match secret {
                Some(sealed) => self.secrets.insert(name, sealed),
                None => self.secrets.remove(&name),
            };
        }
        position
    }

    /// Removes the content of a stream, and the keys that stand for it.
    fn erase(&mut self, stream: &str) {
        for position in self.streams.get(stream).into_iter().flatten() {
            let event = Arc::make_mut(&mut self.events[*position as usize - 1]);
            (event.salt, event.payload) = (None, None);
        }
        self.unique.retain(|_, holder| holder != stream);
        self.idempotent.retain(|_, known| known.stream != stream);
    }

    fn change_unique(&mut self, stream: &str, changes: &[UniqueChange]) {
        for change in changes {
            match change {
                UniqueChange::Take(key) => self.unique.insert(key.clone(), stream.to_owned()),
                UniqueChange::Free(key) => self.unique.remove(key),
            };
        }
    }

    fn write_stream(&mut self, log: TenantId, now: Timestamp, stream: &str, version: u64, events: Vec<NewEvent>, row: NewRow) {
        let recorded_at = self.events.last().map_or(now, |last| last.header.recorded_at.max(now));
        let mut version = version;
        for event in events {
            version += 1;
            let position = self.events.len() as u64 + 1;
            self.events.push(Arc::new(record(event, log, stream, version, position, recorded_at)));
            self.streams.entry(stream.to_owned()).or_default().push(position);
        }
        let first = self.streams.get(stream).and_then(|p| p.first()).map(|p| self.events[*p as usize - 1].header.occurred_at);
        let updated_at = self.events.last().map_or(now, |e| e.header.occurred_at);
        let old = self.rows.remove(stream).map(|(row, _)| row);
        let (state, state_version) = match (row.state, old) {
            (Some(state), _) => (state, version),
            (None, Some(old)) => (old.state, old.state_version),
            (None, None) => (vec![], 0),
        };
        let stored = EntityRow {
            stream: stream.to_owned(),
            version,
            state,
            state_version,
            position: self.events.len() as u64,
            is_deleted: row.is_deleted,
            created_at: first.unwrap_or(now),
            updated_at,
        };
        self.rows.insert(stream.to_owned(), (stored, row.index));
    }
}

/// The event as it is stored at its place.
pub(crate) fn record(
    event: NewEvent,
    log: TenantId,
    stream: &str,
    version: u64,
    position: u64,
    recorded_at: Timestamp,
) -> Recorded {
    let payload_hash = event.content.hash();
    let header = EventHeader {
        id: event.id,
        kind: event.kind.to_owned(),
        shape: event.shape,
        category: event.category,
        tenant: log,
        stream: stream.to_owned(),
        version,
        position,
        occurred_at: event.occurred_at,
        recorded_at,
        actor: event.actor,
        user: event.user,
        correlation: event.correlation,
        causation: event.causation,
        trace_parent: event.trace_parent,
    };
    let leaf = header.leaf(&payload_hash);
    let (salt, payload) = event.content.parts();
    Recorded { header, salt, payload, payload_hash, leaf }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that several replicas use.
    pub fn shared() -> Self {
        MemoryStore { is_shared: true, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing below panics between two changes, so a poisoned state is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T: Default>(&self, log: TenantId, read: impl FnOnce(&Log) -> T) -> T {
        self.lock().logs.get(&log).map(read).unwrap_or_default()
    }
}

impl Inner {
    fn log(&mut self, log: TenantId) -> &mut Log {
        if !self.logs.contains_key(&log) {
            self.order.push(log);
        }
        self.logs.entry(log).or_insert_with(Log::new)
    }

    fn append(&mut self, append: Append) -> Result<Appended, StoreError> {
        let count: u64 = append.writes.iter().map(|w| w.events.len() as u64).sum();
        let is_led = |a: &Authority| self.shared.leases.get(&a.bucket).is_some_and(|lease| lease.token == a.token);
        if append.authority.as_ref().is_some_and(|a| !is_led(a)) {
            return Err(StoreError::Fenced);
        }
        let log = self.log(append.log);
        log.check(&append)?;
        let position = log.write(append);
        log.tail.send_replace(position);
        self.commits += 1;
        self.events += count;
        Ok(Appended { position })
    }
}

#[async_trait]
impl crate::tree::TreeStore for MemoryStore {
    async fn sizes(&self) -> Result<BTreeMap<TenantId, u64>, StoreError> {
        Ok(self.lock().logs.iter().map(|(tenant, log)| (*tenant, log.events.len() as u64)).collect())
    }

    async fn leaves(&self, tenant: TenantId, from: u64, limit: usize) -> Result<Vec<Hash>, StoreError> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        Ok(self.with(tenant, |log| log.events.iter().skip(from).take(limit).map(|event| event.leaf).collect()))
    }

    async fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().trees.tile(tenant, level, index))
    }

    async fn sealed(&self, tenant: TenantId) -> Result<Option<Sealed>, StoreError> {
        Ok(self.lock().trees.sealed(tenant))
    }

    async fn grow(&self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        self.lock().trees.grow(tenant, growth)
    }

    async fn cosign(&self, tenant: TenantId, note: String) -> Result<(), StoreError> {
        self.lock().trees.cosign(tenant, note);
        Ok(())
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        let outcome = self.lock().append(append);
        Box::pin(std::future::ready(outcome))
    }

    async fn entity(&self, log: TenantId, stream: &str) -> Result<Option<EntityRow>, StoreError> {
        Ok(self.with(log, |l| l.rows.get(stream).map(|(row, _)| row.clone())))
    }

    async fn entities(&self, log: TenantId, query: EntityQuery) -> Result<EntityPage, StoreError> {
        let prefix = format!("{}_", query.kind);
        let fits = |row: &EntityRow, index: &[IndexField]| {
            let is_beyond = query.after.as_deref().is_none_or(|after| match query.is_descending {
                true => row.stream.as_str() < after,
                false => row.stream.as_str() > after,
            });
            is_beyond && (query.with_deleted || !row.is_deleted) && query.fields.iter().all(|f| index.contains(f))
        };
        let mut rows: Vec<EntityRow> = self.with(log, |l| {
            let of_kind = l.rows.range(prefix.clone()..).take_while(|(stream, _)| stream.starts_with(&prefix));
            of_kind.filter(|(_, (row, index))| fits(row, index)).map(|(_, (row, _))| row.clone()).collect()
        });
        if query.is_descending {
            rows.reverse();
        }
        let is_more = rows.len() > query.limit;
        rows.truncate(query.limit);
        let next = rows.last().filter(|_| is_more).map(|row| row.stream.clone());
        Ok(EntityPage { rows, next })
    }

    async fn index_values(
        &self,
        log: TenantId,
        kind: &str,
        field: &str,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let of_kind = format!("{kind}_");
        let mut values: Vec<String> = self.with(log, |l| {
            let rows = l.rows.iter().filter(|(stream, _)| stream.starts_with(&of_kind));
            let fields = rows.flat_map(|(_, (_, index))| index.iter());
            fields.filter(|f| f.name == field && f.value.starts_with(prefix)).map(|f| f.value.clone()).collect()
        });
        values.sort();
        values.dedup();
        values.truncate(limit);
        Ok(values)
    }

    async fn holder(&self, log: TenantId, key: &str) -> Result<Option<String>, StoreError> {
        Ok(self.with(log, |l| l.unique.get(key).cloned()))
    }

    async fn idempotent(&self, log: TenantId, key: &str) -> Result<Option<Idempotent>, StoreError> {
        Ok(self.with(log, |l| l.idempotent.get(key).cloned()))
    }

    async fn read(&self, log: TenantId, stream: &str, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, StoreError> {
        Ok(self.with(log, |l| {
            let positions = l.streams.get(stream).map_or(&[][..], Vec::as_slice);
            let skipped = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
            positions.iter().skip(skipped).take(limit).map(|p| l.events[*p as usize - 1].clone()).collect()
        }))
    }

    async fn scan(&self, log: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Result<Scanned, StoreError> {
        let tail = self.with(log, |l| l.events.len() as u64);
        let mut found = Scanned { events: vec![], position: after.min(tail) };
        let rest =
            self.with(log, |l| l.events.iter().skip(usize::try_from(after).unwrap_or(usize::MAX)).cloned().collect::<Vec<_>>());
        for event in rest {
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

    fn tail(&self, log: TenantId) -> watch::Receiver<u64> {
        self.lock().log(log).tail.subscribe()
    }

    async fn position_at(&self, log: TenantId, instant: Timestamp) -> Result<u64, StoreError> {
        Ok(self.with(log, |l| l.events.partition_point(|e| e.header.recorded_at <= instant) as u64))
    }

    async fn value(&self, log: TenantId, hash: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.with(log, |l| l.values.get(hash).cloned()))
    }

    async fn secret(&self, log: TenantId, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.with(log, |l| l.secrets.get(name).cloned()))
    }

    async fn view_state(&self, log: TenantId, view: &str) -> Result<Vec<ViewState>, StoreError> {
        Ok(self.with(log, |l| l.views.iter().filter(|((name, _), _)| name == view).map(|(_, (state, _))| *state).collect()))
    }

    async fn apply(&self, log: TenantId, apply: ViewApply) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let views = &mut inner.log(log).views;
        let key = (apply.view.clone(), apply.version);
        let stands_at = views.get(&key).map_or(0, |(state, _)| state.position);
        if stands_at != apply.expected {
            return Err(StoreError::ViewMoved(stands_at));
        }
        let fresh = ViewState { version: apply.version, position: 0, is_active: false };
        let (state, rows) = views.entry(key).or_insert((fresh, BTreeMap::new()));
        state.position = apply.position;
        for row in apply.rows {
            match row {
                Ok(row) => rows.insert(row.key, row.row),
                Err(key) => rows.remove(&key),
            };
        }
        if apply.activate {
            state.is_active = true;
            views.retain(|(name, version), _| *name != apply.view || *version == apply.version);
        }
        Ok(())
    }

    async fn view_get(&self, log: TenantId, view: &str, version: u32, key: &str) -> Result<Option<ViewRow>, StoreError> {
        Ok(self.with(log, |l| {
            let (_, rows) = l.views.get(&(view.to_owned(), version))?;
            rows.get(key).map(|row| ViewRow { key: key.to_owned(), row: row.clone() })
        }))
    }

    async fn view_list(
        &self,
        log: TenantId,
        view: &str,
        version: u32,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<ViewRow>, StoreError> {
        Ok(self.with(log, |l| {
            let Some((_, rows)) = l.views.get(&(view.to_owned(), version)) else { return vec![] };
            let found = rows.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after);
            found.take(limit).map(|(key, row)| ViewRow { key: key.clone(), row: row.clone() }).collect()
        }))
    }

    async fn views(&self, log: TenantId) -> Result<Vec<(String, ViewState)>, StoreError> {
        Ok(self.with(log, |l| l.views.iter().map(|((name, _), (state, _))| (name.clone(), *state)).collect()))
    }

    async fn beside(&self, log: TenantId, kind: BesideKind, after: Vec<u8>, limit: usize) -> Result<Vec<Beside>, StoreError> {
        let all: Vec<Beside> = self.with(log, |l| match kind {
            BesideKind::Idempotent => {
                l.idempotent.iter().map(|(key, known)| Beside::Idempotent(key.clone(), known.clone())).collect()
            }
            BesideKind::Value => l.values.iter().map(|(hash, bytes)| Beside::Value(*hash, bytes.clone())).collect(),
            BesideKind::Secret => l.secrets.iter().map(|(name, sealed)| Beside::Secret(name.clone(), sealed.clone())).collect(),
        });
        Ok(all.into_iter().filter(|thing| thing.place() > after).take(limit).collect())
    }

    async fn put_beside(&self, log: TenantId, things: Vec<Beside>) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let log = inner.log(log);
        for thing in things {
            match thing {
                Beside::Idempotent(key, known) => drop(log.idempotent.insert(key, known)),
                Beside::Value(hash, bytes) => drop(log.values.insert(hash, bytes)),
                Beside::Secret(name, sealed) => drop(log.secrets.insert(name, sealed)),
            }
        }
        Ok(())
    }

    async fn scrub(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn logs(&self) -> Result<Vec<TenantId>, StoreError> {
        let inner = self.lock();
        Ok(inner.order.iter().filter(|log| inner.logs.get(log).is_some_and(|l| !l.events.is_empty())).copied().collect())
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn health(&self) -> Health {
        let inner = self.lock();
        Health { read_only: None, is_disk_low: false, queued: 0, commits: inner.commits, events: inner.events }
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_contract_holds() {
        crate::contract::check(|| async { std::sync::Arc::new(super::MemoryStore::new()) as crate::contract::Subject }).await;
    }

    #[tokio::test]
    async fn the_contract_of_replicas_holds() {
        use crate::contract::SharedSubject;
        let open = || async {
            let store = std::sync::Arc::new(super::MemoryStore::shared());
            let subject: SharedSubject = (store.clone(), store);
            subject
        };
        crate::contract::check_cluster(open, 100, || async { kernel::Timestamp(100) }).await;
    }
}
