//! Puts recorded events into an empty store, in order, and folds everything that is kept of them on the way: entities,
//! index fields and unique keys. For restoring a backup.

use crate::handle::later;
use crate::plan::{AnyState, decode, erased_row, fold, row};
use kernel::event::{Content, ERASED};
use kernel::{Decider, EventSet, NewEvent, Recorded, TenantId, UniqueChange};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;
use store::{Append, EntityQuery, EntityRow, NewRow, Store, StoreError, StreamWrite};

/// Events that are read at a time.
const PAGE_EVENTS: usize = 500;

/// The rules of one kind of entity, for folding without knowing its type.
pub trait Folds: Send + Sync {
    /// The prefix of its ids.
    fn kind(&self) -> &'static str;
    /// Every type of event that it can read.
    fn events(&self) -> Vec<&'static str>;
    /// The state in a row, with later events.
    fn load(&self, row: &EntityRow, later: &[Arc<Recorded>]) -> Result<Option<AnyState>, StoreError>;
    /// The state with one more event, and the keys that it takes or gives up.
    fn fold(&self, state: Option<&AnyState>, event: &Recorded) -> Result<(Option<AnyState>, Vec<UniqueChange>), String>;
    /// Whether two states are the same.
    fn is_same(&self, one: Option<&AnyState>, other: Option<&AnyState>) -> bool;
    /// What is kept of a state.
    fn row(&self, state: Option<&AnyState>, version: u64, state_version: u64) -> Result<NewRow, String>;
}

struct Of<D>(PhantomData<fn() -> D>);

impl<D: Decider> Folds for Of<D> {
    fn kind(&self) -> &'static str {
        D::KIND
    }

    fn events(&self) -> Vec<&'static str> {
        D::Event::known().into_iter().map(|(kind, _)| kind).collect()
    }

    fn load(&self, row: &EntityRow, later: &[Arc<Recorded>]) -> Result<Option<AnyState>, StoreError> {
        Ok(decode::<D>(row, later)?.map(|state| Arc::new(state) as AnyState))
    }

    fn fold(&self, state: Option<&AnyState>, event: &Recorded) -> Result<(Option<AnyState>, Vec<UniqueChange>), String> {
        let known = state.and_then(|state| state.downcast_ref::<D::State>());
        let unique = match event.header.kind == ERASED {
            true => vec![],
            false => D::Event::read(event)?.map(|data| D::unique(known, &data)).unwrap_or_default(),
        };
        let next = fold::<D>(known.cloned(), event)?;
        Ok((next.map(|state| Arc::new(state) as AnyState), unique))
    }

    fn is_same(&self, one: Option<&AnyState>, other: Option<&AnyState>) -> bool {
        let value = |state: Option<&AnyState>| {
            let state = state.and_then(|state| state.downcast_ref::<D::State>());
            serde_json::to_value(state).ok()
        };
        value(one) == value(other)
    }

    fn row(&self, state: Option<&AnyState>, version: u64, state_version: u64) -> Result<NewRow, String> {
        match state.and_then(|state| state.downcast_ref::<D::State>()) {
            Some(state) => row::<D>(state, version, state_version).map_err(|e| e.to_string()),
            None => Ok(erased_row(D::KIND)),
        }
    }
}

/// The rules of every kind of entity that a log may hold.
#[derive(Default)]
pub struct Kinds {
    by_kind: BTreeMap<&'static str, Box<dyn Folds>>,
    events: BTreeSet<&'static str>,
}

impl Kinds {
    /// The same with one kind more.
    pub fn and<D: Decider>(mut self) -> Self {
        let folds = Of::<D>(PhantomData);
        self.events.extend(folds.events());
        self.events.insert(ERASED);
        self.by_kind.insert(folds.kind(), Box::new(folds));
        self
    }

    /// The kind of entity that a stream is of.
    pub fn kind(&self, stream: &str) -> Result<&'static str, StoreError> {
        self.of(stream).map(|folds| folds.kind())
    }

    fn of(&self, stream: &str) -> Result<&dyn Folds, StoreError> {
        let kind = stream.rsplit_once('_').map_or(stream, |(kind, _)| kind);
        let unknown = || StoreError::Corrupt(format!("{stream} is of a kind that this version of Keiko does not know"));
        self.by_kind.get(kind).map(|folds| &**folds).ok_or_else(unknown)
    }

    /// The event to be written once more.
    fn again(&self, event: Recorded) -> Result<NewEvent, StoreError> {
        let header = event.header;
        let unknown = || {
            let position = header.position;
            StoreError::Corrupt(format!("position {position}: this version of Keiko does not know '{}'", header.kind))
        };
        let content = match (event.salt, event.payload) {
            (Some(salt), Some(bytes)) => Content::Whole { salt, bytes },
            _ => Content::Erased(event.payload_hash),
        };
        Ok(NewEvent {
            id: header.id,
            kind: self.events.get(header.kind.as_str()).ok_or_else(unknown)?,
            shape: header.shape,
            category: header.category,
            occurred_at: header.occurred_at,
            actor: header.actor,
            user: header.user,
            correlation: header.correlation,
            causation: header.causation,
            trace_parent: header.trace_parent,
            content,
        })
    }
}

/// A stream as far as it has been put back.
struct Stream {
    state: Option<AnyState>,
    state_version: u64,
}

/// Puts the next events of a log into a store that holds everything before them.
pub async fn replay(store: &dyn Store, kinds: &Kinds, log: TenantId, events: Vec<Recorded>) -> Result<(), StoreError> {
    let mut streams = load(store, kinds, log, &events).await?;
    // What is kept of an entity is written with the last of its events that is at hand.
    let last: BTreeMap<String, u64> = events.iter().map(|e| (e.header.stream.clone(), e.header.version)).collect();
    let mut answers = vec![];
    for event in events {
        let (position, version, now) = (event.header.position, event.header.version, event.header.recorded_at);
        let name = event.header.stream.clone();
        let folds = kinds.of(&name)?;
        let stream = streams.entry(name.clone()).or_insert(Stream { state: None, state_version: 0 });
        let corrupt = |e: String| StoreError::Corrupt(format!("position {position}: {e}"));
        let (state, unique) = folds.fold(stream.state.as_ref(), &event).map_err(corrupt)?;
        stream.state = state;
        let mut row = folds.row(stream.state.as_ref(), version, stream.state_version).map_err(corrupt)?;
        if stream.state.is_some() && last.get(&name) != Some(&version) {
            row.state = None;
        }
        if row.state.is_some() {
            stream.state_version = version;
        }
        let write = StreamWrite {
            stream: name,
            expected_version: version - 1,
            erases: event.header.kind == ERASED,
            events: vec![kinds.again(event)?],
            unique,
            row: Some(row),
        };
        let append = Append {
            log,
            writes: vec![write],
            idempotency: None,
            values: vec![],
            secrets: vec![],
            authority: None,
            if_head: None,
            now,
        };
        answers.push((position, store.append(append)));
    }
    for (position, answer) in answers {
        let appended = answer.await?;
        if appended.position != position {
            return Err(StoreError::Corrupt(format!("position {position} came to be {}", appended.position)));
        }
    }
    Ok(())
}

/// What came of holding entities against their history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// How many were looked at.
    pub entities: u64,
    /// The first that is not what its events say, and how.
    pub wrong: Option<(String, String)>,
}

/// Folds every entity of a log from its events, and holds what is stored of it against that.
pub async fn compare(store: &dyn Store, kinds: &Kinds, log: TenantId) -> Result<Compared, StoreError> {
    let mut compared = Compared::default();
    for folds in kinds.by_kind.values() {
        let mut query = EntityQuery { with_deleted: true, ..EntityQuery::all(folds.kind()) };
        loop {
            let page = store.entities(log, query.clone()).await?;
            for row in page.rows {
                compared.entities += 1;
                if let Some(problem) = differs(store, folds.as_ref(), log, &row).await? {
                    compared.wrong = Some((row.stream, problem));
                    return Ok(compared);
                }
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => break,
            }
        }
    }
    Ok(compared)
}

/// How an entity differs from what its events say.
async fn differs(store: &dyn Store, folds: &dyn Folds, log: TenantId, row: &EntityRow) -> Result<Option<String>, StoreError> {
    let (mut state, mut version) = (None, 0);
    loop {
        let page = store.read(log, &row.stream, version + 1, PAGE_EVENTS).await?;
        for event in &page {
            version = event.header.version;
            state = match folds.fold(state.as_ref(), event) {
                Ok((state, _)) => state,
                Err(problem) => return Ok(Some(format!("its event at position {}: {problem}", event.header.position))),
            };
        }
        if page.len() < PAGE_EVENTS {
            break;
        }
    }
    let stored = folds.load(row, &later(store, log, row).await?)?;
    let kept = folds.row(state.as_ref(), version, 0).map_err(StoreError::Corrupt)?;
    Ok(match () {
        () if version != row.version => Some(format!("it is stored as version {}, and has {version} events", row.version)),
        () if !folds.is_same(stored.as_ref(), state.as_ref()) => Some("what is stored is not what its events say".into()),
        () if kept.is_deleted != row.is_deleted => Some("lists show it, or hide it, against what its events say".into()),
        () => None,
    })
}

/// The streams that the store holds already.
async fn load(
    store: &dyn Store,
    kinds: &Kinds,
    log: TenantId,
    events: &[Recorded],
) -> Result<BTreeMap<String, Stream>, StoreError> {
    let (mut streams, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for event in events {
        let header = &event.header;
        if !seen.insert(&header.stream) || header.version == 1 {
            continue;
        }
        let missing =
            || StoreError::Corrupt(format!("position {}: events of {} are missing before it", header.position, header.stream));
        let row = store.entity(log, &header.stream).await?.ok_or_else(missing)?;
        let later = later(store, log, &row).await?;
        let state = kinds.of(&header.stream)?.load(&row, &later)?;
        streams.insert(header.stream.clone(), Stream { state, state_version: row.state_version });
    }
    Ok(streams)
}
