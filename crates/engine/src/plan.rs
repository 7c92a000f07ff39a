//! One step of a command: decide on a state, and prepare what is to be stored.

use crate::{Context, Env};
use kernel::event::{Content, ERASED, payload};
use kernel::limits::{STATE_EVERY_EVENTS, STATE_INLINE_BYTES_MAX};
use kernel::rules::Meta;
use kernel::{Category, Decider, EventSet, Facts, NewEvent, Recorded, Rejection, UniqueChange};
use std::any::Any;
use std::sync::Arc;
use store::{EntityRow, NewRow, StoreError};

/// A state whose type only its rules know.
pub type AnyState = Arc<dyn Any + Send + Sync>;

/// A command for one stream, with its rules.
pub struct Step(pub(crate) Box<dyn Rules>);

impl Step {
    /// A command for a stream that may exist.
    pub fn on<D: Decider>(stream: impl ToString, command: D::Command) -> Self {
        Step(Box::new(Typed::<D> { stream: stream.to_string(), command, is_new: false }))
    }

    /// A command for a stream that does not exist yet: its id is fresh, so nothing is read.
    pub fn new<D: Decider>(stream: impl ToString, command: D::Command) -> Self {
        Step(Box::new(Typed::<D> { stream: stream.to_string(), command, is_new: true }))
    }
}

impl Step {
    /// Removes what a stream says, for ever. `data` goes into the event that says so.
    pub fn erase(kind: &'static str, stream: impl ToString, data: serde_json::Value) -> Self {
        Step(Box::new(Erasure { kind, stream: stream.to_string(), data }))
    }
}

/// What is kept of an entity that was erased.
pub(crate) fn erased_row(kind: &'static str) -> NewRow {
    NewRow { kind, state: Some(b"null".to_vec()), index: vec![], is_deleted: true }
}

struct Erasure {
    kind: &'static str,
    stream: String,
    data: serde_json::Value,
}

impl Rules for Erasure {
    fn stream(&self) -> &str {
        &self.stream
    }

    fn is_new(&self) -> bool {
        false
    }

    fn load(&self, _: &EntityRow, _: &[Arc<Recorded>]) -> Result<Option<AnyState>, StoreError> {
        Ok(None)
    }

    fn plan(&self, _: Option<&AnyState>, _: u64, facts: &Facts, context: &Context, env: &Env) -> Result<Plan, Rejection> {
        let event = NewEvent {
            id: env.id(),
            kind: ERASED,
            shape: 1,
            category: Category::System,
            occurred_at: facts.now,
            actor: context.actor.clone(),
            user: context.user,
            correlation: context.correlation.clone(),
            causation: context.causation,
            trace_parent: context.trace_parent.clone(),
            content: Content::Whole {
                salt: env.bytes(),
                bytes: payload(&self.data, &context.origin).map_err(|e| crate::handle::unwritable(&e))?,
            },
        };
        Ok(Plan { events: vec![event], row: Some(erased_row(self.kind)), erases: true, ..Plan::default() })
    }
}

/// What a step leads to.
#[derive(Default)]
pub(crate) struct Plan {
    pub events: Vec<NewEvent>,
    pub unique: Vec<UniqueChange>,
    pub state: Option<AnyState>,
    pub row: Option<NewRow>,
    pub erases: bool,
}

/// The rules of a step without their types.
pub(crate) trait Rules: Send + Sync {
    fn stream(&self) -> &str;
    fn is_new(&self) -> bool;
    fn load(&self, row: &EntityRow, later: &[Arc<Recorded>]) -> Result<Option<AnyState>, StoreError>;
    fn plan(
        &self,
        state: Option<&AnyState>,
        state_version: u64,
        facts: &Facts,
        context: &Context,
        env: &Env,
    ) -> Result<Plan, Rejection>;
}

struct Typed<D: Decider> {
    stream: String,
    command: D::Command,
    is_new: bool,
}

/// The state in a row, with later events folded in. `None` when the entity was erased.
pub fn decode<D: Decider>(row: &EntityRow, later: &[Arc<Recorded>]) -> Result<Option<D::State>, StoreError> {
    let corrupt = |e: String| StoreError::Corrupt(format!("{}: {e}", row.stream));
    let mut state = match row.state_version {
        0 => None,
        _ => serde_json::from_slice(&row.state).map_err(|e| corrupt(e.to_string()))?,
    };
    for event in later {
        state = fold::<D>(state, event).map_err(corrupt)?;
    }
    Ok(state)
}

/// The state with one more recorded event. Where content was erased there is no state any more.
pub(crate) fn fold<D: Decider>(state: Option<D::State>, event: &Recorded) -> Result<Option<D::State>, String> {
    if event.header.kind == ERASED {
        return Ok(None);
    }
    let header = &event.header;
    let meta = Meta { version: header.version, at: header.occurred_at, actor: header.actor.clone() };
    Ok(D::Event::read(event)?.and_then(|data| D::evolve(state, &data, &meta)))
}

impl<D: Decider> Rules for Typed<D> {
    fn stream(&self) -> &str {
        &self.stream
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    fn load(&self, row: &EntityRow, later: &[Arc<Recorded>]) -> Result<Option<AnyState>, StoreError> {
        Ok(decode::<D>(row, later)?.map(|state| Arc::new(state) as AnyState))
    }

    fn plan(
        &self,
        state: Option<&AnyState>,
        state_version: u64,
        facts: &Facts,
        context: &Context,
        env: &Env,
    ) -> Result<Plan, Rejection> {
        let known = state.and_then(|s| s.downcast_ref::<D::State>());
        let decided = D::decide(known, &self.command, facts)?;
        if decided.is_empty() {
            return Ok(Plan { state: state.cloned(), ..Plan::default() });
        }
        let mut plan = Plan::default();
        let mut next = known.cloned();
        let mut version = facts.version;
        for event in decided {
            version += 1;
            plan.unique.extend(D::unique(next.as_ref(), &event));
            plan.events.push(context.event(&event, facts, env)?);
            next = D::evolve(next, &event, &Meta { version, at: facts.now, actor: facts.actor.clone() });
        }
        if let Some(next) = next {
            plan.row = Some(row::<D>(&next, version, state_version).map_err(|e| crate::handle::unwritable(&e))?);
            plan.state = Some(Arc::new(next));
        }
        Ok(plan)
    }
}

/// What is kept of a state. A large one is written every so many events only.
pub(crate) fn row<D: Decider>(state: &D::State, version: u64, state_version: u64) -> serde_json::Result<NewRow> {
    let bytes = serde_json::to_vec(state)?;
    let is_due = bytes.len() <= STATE_INLINE_BYTES_MAX || version / STATE_EVERY_EVENTS > state_version / STATE_EVERY_EVENTS;
    Ok(NewRow { kind: D::KIND, state: is_due.then_some(bytes), index: D::index(state), is_deleted: D::is_deleted(state) })
}
