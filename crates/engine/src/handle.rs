//! The one way in which anything changes: load, decide, append, answer once it is durable.

use crate::lanes::{Cell, Lane, Lanes};
use crate::plan::{AnyState, Plan, Rules, Step, decode};
use crate::{Env, plan};
use kernel::event::Content;
use kernel::id::{EventId, TenantId, UserId};
use kernel::{ActorRef, Decider, EventSet, Facts, Kind, NewEvent, Origin, Recorded, Rejection, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use store::{Append, Authority, EntityRow, IdempotencyKey, Idempotent, Store, StoreError, StreamWrite};
use tokio::sync::OwnedMutexGuard;

/// How often a command is decided again after somebody else was faster.
const ATTEMPTS_MAX: usize = 16;

/// Runs commands. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    store: Arc<dyn Store>,
    env: Env,
    lanes: Arc<Lanes>,
    authority: Option<Authority>,
}

/// Where a command comes from.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who.
    pub actor: ActorRef,
    /// The person behind it.
    pub user: Option<UserId>,
    /// From where.
    pub origin: Origin,
    /// What belongs together.
    pub correlation: String,
    /// The event that caused it.
    pub causation: Option<EventId>,
    /// W3C `traceparent`.
    pub trace_parent: Option<String>,
    /// A client's key for this request.
    pub idempotency: Option<IdempotencyKey>,
    /// The version that the first stream must have.
    pub if_match: Option<u64>,
}

impl Context {
    /// A part of Keiko acts by itself.
    pub fn system(part: &str) -> Self {
        Context {
            actor: ActorRef::system(part),
            user: None,
            origin: Origin::default(),
            correlation: String::new(),
            causation: None,
            trace_parent: None,
            idempotency: None,
            if_match: None,
        }
    }

    pub(crate) fn event<E: EventSet>(&self, event: &E, facts: &Facts, env: &Env) -> Result<NewEvent, Rejection> {
        Ok(NewEvent {
            id: env.id(),
            kind: event.kind(),
            shape: event.shape(),
            category: event.category(),
            occurred_at: facts.now,
            actor: self.actor.clone(),
            user: self.user,
            correlation: self.correlation.clone(),
            causation: self.causation,
            trace_parent: self.trace_parent.clone(),
            content: Content::Whole { salt: env.bytes(), bytes: event.payload(&self.origin).map_err(|e| unwritable(&e))? },
        })
    }
}

pub(crate) fn unwritable(error: &serde_json::Error) -> Rejection {
    Rejection::new(
        Kind::Internal,
        "INTERNAL",
        format!("The change cannot be written as JSON: {error}."),
        "Report this with the request id.",
    )
}

/// Whether a stream is of a kind of entities.
pub(crate) fn is_of<D: Decider>(stream: &str) -> bool {
    stream.strip_prefix(D::KIND).is_some_and(|rest| rest.starts_with('_'))
}

fn changed(wanted: u64, actual: u64) -> Rejection {
    let message = format!("The resource has version {actual}, not {wanted} as If-Match says.");
    Rejection::new(
        Kind::Precondition,
        "VERSION_CONFLICT",
        message,
        "Read it again, apply your change to that, and send its ETag in If-Match.",
    )
    .with("version", actual)
}

/// What is stored in the same transaction beside the events.
#[derive(Default)]
pub struct Extras {
    /// Large values by hash; `None` removes one.
    pub values: Vec<([u8; 32], Option<Vec<u8>>)>,
    /// Sealed secrets by name.
    pub secrets: Vec<(String, Option<Vec<u8>>)>,
    /// The position that the log must still have.
    pub if_head: Option<u64>,
}

/// An entity after a command.
#[derive(Clone, Debug)]
pub struct Handled<S> {
    /// Its stream.
    pub stream: String,
    /// Its state.
    pub state: Arc<S>,
    /// Its version.
    pub version: u64,
    /// The log's position that this reflects.
    pub position: u64,
    /// Time of its first event.
    pub created_at: Timestamp,
    /// Time of its latest event.
    pub updated_at: Timestamp,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The rules say no.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The store says no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same request was carried out before.
    #[error("the request was carried out before")]
    Repeated(Idempotent),
}

/// A lane that this command holds.
struct Held {
    cell: Arc<Cell>,
    lane: OwnedMutexGuard<Lane>,
}

/// A stream after a command, before its type is known.
struct Outcome {
    stream: String,
    state: Option<AnyState>,
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Engine {
    /// An engine on a store.
    pub fn new(store: Arc<dyn Store>, env: Env) -> Self {
        Engine { store, env, lanes: Arc::default(), authority: None }
    }

    /// The same engine for a part that may be stopped before the rest, and whose changes rest on leadership.
    pub fn scoped(&self, authority: Option<Authority>) -> Self {
        Engine { env: self.env.scoped(), authority, ..self.clone() }
    }

    /// The store, for reading.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The surroundings.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Carries out one command on one stream.
    pub async fn handle<D: Decider>(
        &self,
        log: TenantId,
        step: Step,
        context: &Context,
        extras: Extras,
    ) -> Result<Handled<D::State>, HandleError> {
        let (mut outcomes, position) = self.run(log, &[step], context, extras).await?;
        let outcome = outcomes.pop().ok_or_else(|| StoreError::Corrupt("a command without an outcome".into()))?;
        let state = outcome.state.and_then(|s| s.downcast::<D::State>().ok());
        let state = state.ok_or_else(|| StoreError::Corrupt(format!("{} has no state", outcome.stream)))?;
        Ok(Handled {
            stream: outcome.stream,
            state,
            version: outcome.version,
            position,
            created_at: outcome.created_at,
            updated_at: outcome.updated_at,
        })
    }

    /// Carries out commands on several streams of one log: all of them or none. Answers the log's position.
    pub async fn transact(&self, log: TenantId, steps: &[Step], context: &Context, extras: Extras) -> Result<u64, HandleError> {
        self.run(log, steps, context, extras).await.map(|(_, position)| position)
    }

    /// An entity as of the last durable change; `None` when it does not exist, or is of another kind.
    pub async fn entity<D: Decider>(&self, log: TenantId, stream: &str) -> Result<Option<Handled<D::State>>, StoreError> {
        if !is_of::<D>(stream) {
            return Ok(None);
        }
        if self.store.is_shared() {
            // What is known here may be old.
            return self.stored::<D>(log, stream).await;
        }
        let cell = self.lanes.of(log, stream);
        let mut lane = cell.lane.lock().await;
        if lane.is_loaded && lane.version > cell.durable.load(Ordering::Acquire) {
            // An append is under way: what is not durable is not shown.
            drop(lane);
            return self.stored::<D>(log, stream).await;
        }
        if !lane.is_loaded {
            let Some(handled) = self.stored::<D>(log, stream).await? else { return Ok(None) };
            *lane = Lane {
                is_loaded: true,
                state: Some(handled.state.clone()),
                version: handled.version,
                state_version: 0,
                created_at: handled.created_at,
                updated_at: handled.updated_at,
            };
            cell.durable.fetch_max(handled.version, Ordering::AcqRel);
            return Ok(Some(handled));
        }
        let Some(state) = lane.state.clone().and_then(|s| s.downcast::<D::State>().ok()) else { return Ok(None) };
        Ok(Some(Handled {
            stream: stream.to_owned(),
            state,
            version: lane.version,
            position: *self.store.tail(log).borrow(),
            created_at: lane.created_at,
            updated_at: lane.updated_at,
        }))
    }

    async fn stored<D: Decider>(&self, log: TenantId, stream: &str) -> Result<Option<Handled<D::State>>, StoreError> {
        match self.store.entity(log, stream).await? {
            Some(row) => self.folded::<D>(log, row).await,
            None => Ok(None),
        }
    }

    /// The entity in a row, with the events folded in that its stored state lacks.
    pub async fn folded<D: Decider>(&self, log: TenantId, row: EntityRow) -> Result<Option<Handled<D::State>>, StoreError> {
        let later = later(self.store.as_ref(), log, &row).await?;
        let state = decode::<D>(&row, &later)?;
        Ok(state.map(|state| Handled {
            stream: row.stream,
            state: Arc::new(state),
            version: row.version,
            position: row.position,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }))
    }

    /// Changes what lies beside the events of a log, without an event.
    pub async fn put_aside(&self, log: TenantId, extras: Extras) -> Result<(), StoreError> {
        let Extras { values, secrets, if_head } = extras;
        let (authority, now) = (self.authority, self.env.now());
        let append = Append { log, writes: vec![], idempotency: None, values, secrets, authority, if_head, now };
        self.store.append(append).await.map(|_| ())
    }

    async fn run(
        &self,
        log: TenantId,
        steps: &[Step],
        context: &Context,
        extras: Extras,
    ) -> Result<(Vec<Outcome>, u64), HandleError> {
        let streams: BTreeSet<&str> = steps.iter().map(|step| step.0.stream()).collect();
        if streams.len() < steps.len() {
            // It would wait for its own lane for ever.
            let message = "One change would take two steps on the same stream.";
            return Err(Rejection::new(Kind::Internal, "INTERNAL", message, "Report this with the request id.").into());
        }
        for attempt in 0..ATTEMPTS_MAX {
            let mut held = self.hold(log, steps, attempt > 0).await?;
            let plans = match self.plan(steps, &held, context) {
                Ok(plans) => plans,
                Err(rejection) => {
                    // A refusal may rest on a change that is not durable yet: it is answered once that is.
                    match self.settle(log, steps, held).await? {
                        Some(_) => return Err(rejection.into()),
                        None => continue,
                    }
                }
            };
            if plans.iter().all(|plan| plan.events.is_empty()) {
                let outcomes = held.iter().zip(steps).map(|(h, s)| outcome(s.0.as_ref(), &h.lane)).collect();
                match self.settle(log, steps, held).await? {
                    Some(position) => return Ok((outcomes, position)),
                    None => continue,
                }
            }
            let append = self.append(log, steps, &mut held, plans, context, &extras);
            let outcomes: Vec<Outcome> = held.iter().zip(steps).map(|(h, s)| outcome(s.0.as_ref(), &h.lane)).collect();
            // The append takes its place here, while the lanes are held: the log's order is the order of the decisions.
            let answer = self.store.append(append);
            let cells: Vec<Arc<Cell>> = held.into_iter().map(|h| h.cell).collect();
            match answer.await {
                Ok(appended) => {
                    for (cell, outcome) in cells.iter().zip(&outcomes) {
                        cell.durable.fetch_max(outcome.version, Ordering::AcqRel);
                    }
                    return Ok((outcomes, appended.position));
                }
                Err(error) => {
                    forget(&cells).await;
                    match error {
                        StoreError::Conflict { .. } => {}
                        StoreError::Repeated(known) => return Err(HandleError::Repeated(known)),
                        other => return Err(other.into()),
                    }
                }
            }
        }
        Err(StoreError::Busy.into())
    }

    /// Takes the lanes of all streams, in the order of their names so that two commands never wait for each other.
    async fn hold(&self, log: TenantId, steps: &[Step], is_again: bool) -> Result<Vec<Held>, StoreError> {
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|i| steps[*i].0.stream());
        let mut held: Vec<(usize, Held)> = vec![];
        for i in order {
            let rules = steps[i].0.as_ref();
            let cell = self.lanes.of(log, rules.stream());
            let mut lane = cell.lane.clone().lock_owned().await;
            if !lane.is_loaded && rules.is_new() && !is_again {
                lane.is_loaded = true;
            }
            if !lane.is_loaded {
                self.load(log, rules, &cell, &mut lane).await?;
            }
            held.push((i, Held { cell, lane }));
        }
        held.sort_by_key(|(i, _)| *i);
        Ok(held.into_iter().map(|(_, held)| held).collect())
    }

    async fn load(&self, log: TenantId, rules: &dyn Rules, cell: &Cell, lane: &mut Lane) -> Result<(), StoreError> {
        // Put together first and taken over at the end: a reading that fails or is given up must leave nothing behind.
        let mut loaded = Lane { is_loaded: true, ..Lane::default() };
        if let Some(row) = self.store.entity(log, rules.stream()).await? {
            let later = later(self.store.as_ref(), log, &row).await?;
            loaded.state = rules.load(&row, &later)?;
            loaded.version = row.version;
            loaded.state_version = row.state_version;
            loaded.created_at = row.created_at;
            loaded.updated_at = row.updated_at;
        }
        *lane = loaded;
        cell.durable.fetch_max(lane.version, Ordering::AcqRel);
        Ok(())
    }

    fn plan(&self, steps: &[Step], held: &[Held], context: &Context) -> Result<Vec<Plan>, Rejection> {
        let now = self.env.now();
        if let (Some(wanted), Some(first)) = (context.if_match, held.first())
            && first.lane.version != wanted
        {
            return Err(changed(wanted, first.lane.version));
        }
        let each = steps.iter().zip(held).map(|(step, held)| {
            let facts = Facts { now, actor: context.actor.clone(), random: self.env.random(), version: held.lane.version };
            step.0.plan(held.lane.state.as_ref(), held.lane.state_version, &facts, context, &self.env)
        });
        each.collect()
    }

    fn append(
        &self,
        log: TenantId,
        steps: &[Step],
        held: &mut [Held],
        plans: Vec<Plan>,
        context: &Context,
        extras: &Extras,
    ) -> Append {
        let now = self.env.now();
        let mut writes = vec![];
        for ((step, held), plan) in steps.iter().zip(held).zip(plans) {
            let lane = &mut *held.lane;
            let expected_version = lane.version;
            if let Some(first) = plan.events.first() {
                lane.version += plan.events.len() as u64;
                lane.created_at = if expected_version == 0 { first.occurred_at } else { lane.created_at };
                lane.updated_at = first.occurred_at;
                lane.state = plan.state;
                if plan.row.as_ref().is_some_and(|row| row.state.is_some()) {
                    lane.state_version = lane.version;
                }
            }
            let stream = step.0.stream().to_owned();
            let Plan { events, unique, row, erases, .. } = plan;
            writes.push(StreamWrite { stream, expected_version, events, unique, row, erases });
        }
        let (values, secrets) = (extras.values.clone(), extras.secrets.clone());
        Append {
            log,
            writes,
            idempotency: context.idempotency.clone(),
            values,
            secrets,
            authority: self.authority,
            if_head: extras.if_head,
            now,
        }
    }

    /// Waits until everything that the lanes show is durable. Answers the log's position, or `None` when the lanes showed
    /// something that did not come to be.
    async fn settle(&self, log: TenantId, steps: &[Step], held: Vec<Held>) -> Result<Option<u64>, StoreError> {
        let is_durable = held.iter().all(|h| h.lane.version <= h.cell.durable.load(Ordering::Acquire));
        if is_durable && !self.store.is_shared() {
            return Ok(Some(*self.store.tail(log).borrow()));
        }
        // Writes without events check their versions behind everything that was queued before them.
        let checks = steps.iter().zip(&held).map(|(step, held)| StreamWrite {
            stream: step.0.stream().to_owned(),
            expected_version: held.lane.version,
            events: vec![],
            unique: vec![],
            row: None,
            erases: false,
        });
        let now = self.env.now();
        let check = Append {
            log,
            writes: checks.collect(),
            idempotency: None,
            values: vec![],
            secrets: vec![],
            authority: None,
            if_head: None,
            now,
        };
        let answer = self.store.append(check);
        let cells: Vec<Arc<Cell>> = held.into_iter().map(|h| h.cell).collect();
        match answer.await {
            Ok(appended) => Ok(Some(appended.position)),
            Err(error) => {
                forget(&cells).await;
                if matches!(error, StoreError::Conflict { .. }) { Ok(None) } else { Err(error) }
            }
        }
    }
}

/// The events that the state in a row lacks.
pub(crate) async fn later(store: &dyn Store, log: TenantId, row: &EntityRow) -> Result<Vec<Arc<Recorded>>, StoreError> {
    if row.state_version == row.version {
        return Ok(vec![]);
    }
    let count = usize::try_from(row.version - row.state_version).unwrap_or(usize::MAX);
    store.read(log, &row.stream, row.state_version + 1, count).await
}

async fn forget(cells: &[Arc<Cell>]) {
    for cell in cells {
        cell.lane.lock().await.is_loaded = false;
    }
}

fn outcome(rules: &dyn plan::Rules, lane: &Lane) -> Outcome {
    Outcome {
        stream: rules.stream().to_owned(),
        state: lane.state.clone(),
        version: lane.version,
        created_at: lane.created_at,
        updated_at: lane.updated_at,
    }
}
