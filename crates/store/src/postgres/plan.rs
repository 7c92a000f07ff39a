//! What a group of appends comes to, as a pure function of what the database holds: who is refused, and what is written.

use crate::memory::record;
use crate::*;
use kernel::{IndexField, UniqueChange};
use std::collections::{BTreeMap, BTreeSet};

/// What the database holds of everything that a group touches; brought forward by each append of the group.
#[derive(Default)]
pub(super) struct Known {
    pub position: u64,
    pub recorded_at: Timestamp,
    pub entities: BTreeMap<String, Entity>,
    pub unique: BTreeMap<String, String>,
    pub idempotent: BTreeMap<String, Idempotent>,
    pub leases: BTreeMap<u16, u64>,
}

/// An entity as far as appends need it.
#[derive(Clone, Default)]
pub(super) struct Entity {
    pub version: u64,
    pub fields: Vec<String>,
}

/// An entity after the group.
pub(super) struct Changed {
    pub version: u64,
    /// With the version that it is of; absent when the stored one stays.
    pub state: Option<(Vec<u8>, u64)>,
    pub position: u64,
    pub is_deleted: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub fields: Vec<String>,
}

/// What is written in one transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub events: Vec<Arc<Recorded>>,
    pub entities: BTreeMap<String, Changed>,
    pub fields_removed: Vec<(String, String)>,
    pub fields_added: Vec<(String, String)>,
    pub unique: BTreeMap<String, Option<String>>,
    pub idempotent: Vec<(String, Idempotent)>,
    pub values: BTreeMap<[u8; 32], Option<Vec<u8>>>,
    pub secrets: BTreeMap<String, Option<Vec<u8>>>,
    /// Streams that lose the content that the database holds of them.
    pub erased: BTreeSet<String>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.unique.is_empty()
            && self.idempotent.is_empty()
            && self.values.is_empty()
            && self.secrets.is_empty()
    }
}

/// What has to be looked up for a group.
#[derive(Default)]
pub(super) struct Wanted {
    pub streams: BTreeSet<String>,
    pub unique: BTreeSet<String>,
    pub idempotent: BTreeSet<String>,
    pub buckets: BTreeSet<u16>,
}

impl Wanted {
    pub fn of(group: &[Append]) -> Self {
        let mut wanted = Wanted::default();
        for append in group {
            wanted.idempotent.extend(append.idempotency.iter().map(|key| key.key.clone()));
            wanted.buckets.extend(append.authority.map(|a| a.bucket));
            for write in &append.writes {
                wanted.streams.insert(write.stream.clone());
                wanted.unique.extend(write.unique.iter().filter_map(|change| match change {
                    UniqueChange::Take(key) => Some(key.clone()),
                    UniqueChange::Free(_) => None,
                }));
            }
        }
        wanted
    }
}

/// Decides a group, append by append, each on what those before it left.
pub(super) fn settle(mut known: Known, group: &[Append]) -> (Vec<Result<Appended, StoreError>>, Batch) {
    let before: BTreeMap<String, Vec<String>> =
        known.entities.iter().map(|(stream, entity)| (stream.clone(), entity.fields.clone())).collect();
    let mut batch = Batch::default();
    let outcomes = group.iter().map(|append| known.append(append, &mut batch)).collect();
    for (stream, changed) in &batch.entities {
        let old = before.get(stream).map_or(&[][..], Vec::as_slice);
        let pair = |line: &String| (line.clone(), stream.clone());
        batch.fields_removed.extend(old.iter().filter(|line| !changed.fields.contains(line)).map(pair));
        batch.fields_added.extend(changed.fields.iter().filter(|line| !old.contains(line)).map(pair));
    }
    (outcomes, batch)
}

impl Known {
    fn append(&mut self, append: &Append, batch: &mut Batch) -> Result<Appended, StoreError> {
        self.check(append)?;
        self.recorded_at = self.recorded_at.max(append.now);
        for write in &append.writes {
            if let Some(row) = &write.row {
                self.write(append.log, write, row, batch);
            }
        }
        batch.values.extend(append.values.iter().cloned());
        batch.secrets.extend(append.secrets.iter().cloned());
        if let (Some(key), Some(first)) = (&append.idempotency, append.writes.first()) {
            let stands_for = Idempotent { request_hash: key.request_hash, stream: first.stream.clone(), position: self.position };
            self.idempotent.insert(key.key.clone(), stands_for.clone());
            batch.idempotent.push((key.key.clone(), stands_for));
        }
        Ok(Appended { position: self.position })
    }

    fn check(&self, append: &Append) -> Result<(), StoreError> {
        if append.if_head.is_some_and(|wanted| wanted != self.position) {
            return Err(StoreError::ViewMoved(self.position));
        }
        if append.authority.is_some_and(|a| self.leases.get(&a.bucket) != Some(&a.token)) {
            return Err(StoreError::Fenced);
        }
        if let Some(known) = append.idempotency.as_ref().and_then(|key| self.idempotent.get(&key.key)) {
            return Err(StoreError::Repeated(known.clone()));
        }
        for write in &append.writes {
            let actual = self.entities.get(&write.stream).map_or(0, |e| e.version);
            if actual != write.expected_version {
                return Err(StoreError::Conflict { stream: write.stream.clone(), expected: write.expected_version, actual });
            }
        }
        checks::unique_keys(&append.writes, |key| Ok(self.unique.get(key).cloned()))
    }

    fn write(&mut self, log: TenantId, write: &StreamWrite, row: &NewRow, batch: &mut Batch) {
        if write.erases {
            self.erase(&write.stream, batch);
        }
        for change in &write.unique {
            let (key, holder) = match change {
                UniqueChange::Take(key) => (key, Some(write.stream.clone())),
                UniqueChange::Free(key) => (key, None),
            };
            match &holder {
                Some(stream) => self.unique.insert(key.clone(), stream.clone()),
                None => self.unique.remove(key),
            };
            batch.unique.insert(key.clone(), holder);
        }
        let entity = self.entities.entry(write.stream.clone()).or_default();
        let first = write.events.first().map_or(self.recorded_at, |event| event.occurred_at);
        let last = write.events.last().map_or(self.recorded_at, |event| event.occurred_at);
        for event in &write.events {
            entity.version += 1;
            self.position += 1;
            let recorded = record(event.clone(), log, &write.stream, entity.version, self.position, self.recorded_at);
            batch.events.push(Arc::new(recorded));
        }
        entity.fields = checks::field_lines(row.kind, &row.index);
        let known = batch.entities.remove(&write.stream);
        let created_at = known.as_ref().map_or(first, |known| known.created_at);
        let state = row.state.clone().map(|state| (state, entity.version)).or(known.and_then(|known| known.state));
        batch.entities.insert(
            write.stream.clone(),
            Changed {
                version: entity.version,
                state,
                position: self.position,
                is_deleted: row.is_deleted,
                created_at,
                updated_at: last,
                fields: entity.fields.clone(),
            },
        );
    }
}

impl Known {
    /// Removes the content of a stream, and the keys that stand for it, also from what this group is about to write.
    fn erase(&mut self, stream: &str, batch: &mut Batch) {
        self.unique.retain(|_, holder| holder != stream);
        self.idempotent.retain(|_, known| known.stream != stream);
        batch.unique.retain(|_, holder| holder.as_deref() != Some(stream));
        batch.idempotent.retain(|(_, known)| known.stream != stream);
        for event in batch.events.iter_mut().filter(|event| event.header.stream == stream) {
            let event = Arc::make_mut(event);
            (event.salt, event.payload) = (None, None);
        }
        batch.erased.insert(stream.to_owned());
    }
}

/// PostgreSQL's text holds everything but NUL, so that becomes the replacement character, on writing as on asking.
pub(super) fn clean(text: &str) -> std::borrow::Cow<'_, str> {
    match text.contains('\0') {
        false => text.into(),
        true => text.replace('\0', "\u{fffd}").into(),
    }
}

/// Cleans every text of an append that is stored as text.
pub(super) fn cleaned(mut append: Append) -> Append {
    let fix = |text: &mut String| {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
    };
    if let Some(key) = &mut append.idempotency {
        fix(&mut key.key);
    }
    append.secrets.iter_mut().for_each(|(name, _)| fix(name));
    for write in &mut append.writes {
        fix(&mut write.stream);
        write.unique.iter_mut().for_each(|change| match change {
            UniqueChange::Take(key) | UniqueChange::Free(key) => fix(key),
        });
        for event in &mut write.events {
            fix(&mut event.correlation);
            fix(&mut event.actor.id);
            event.trace_parent.iter_mut().for_each(fix);
        }
        let fields: &mut [IndexField] = write.row.as_mut().map_or(&mut [], |row| &mut row.index);
        fields.iter_mut().for_each(|field| fix(&mut field.value));
    }
    append
}
