//! How consumer groups hand out events. The rules are in `domain::progress`; here they meet the log and the store.
//!
//! Progress is rows of a view of its own beside the log, moved by compare-and-set on a counter. So any replica serves any
//! request, nothing rests on a leader, and whoever was slower reads again. What people decide (`sought`, `replayed`) is
//! followed from the group's stream in the same transaction that stores the progress: once, whatever dies in between.

use crate::app::{App, internal};
use crate::consumer_groups::GroupState;
use crate::errors::{of_handle, of_store};
use crate::groups::{Cell, Groups};
use crate::{Answer, Caller, Filter, Selection};
use domain::consumer_group::{ConsumerGroup, DeliveryParked, GroupCommand, GroupEvent, GroupFilter, Mode, not_found};
use domain::progress::{Candidate, Delivery, Head, Open, Parked, Progress, Terms, Touched, Verdict};
use engine::{Context, Engine, Extras, HandleError, Handled, Step};
use kernel::id::TenantId;
use kernel::{EventSet, Kind, Recorded, Rejection, Timestamp, ViewRow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{ScanFilter, StoreError, ViewApply};
use tokio::sync::MutexGuard;

/// The version of the rows' shape.
const VERSION: u32 = 1;
/// The row of what stands for itself.
const HEAD: &str = "head";
/// Rows that are read at a time.
const ROWS: usize = 1_000;
/// How often a change is decided again after another replica was faster.
const ATTEMPTS_MAX: u32 = 32;
/// From this attempt on, replicas step out of each other's way.
const PATIENT_ATTEMPTS: u32 = 3;
/// Events that are looked at together at most, and at least.
const PAGE_EVENTS: usize = 500;
const PAGE_EVENTS_MIN: usize = 64;
/// Looks for events in one turn; then others get theirs, and whoever waits looks again.
const LOOKS_MAX: usize = 16;
/// Events without a match after which the place is stored all the same, so that a restart has little to look at again.
const STORE_EVERY_EVENTS: u64 = 10_000;
/// How long a waiting request relies on wake-ups: another replica's acknowledgements wake nobody here.
const LOOK_AGAIN_MS: u64 = 5_000;
const LOOK_AGAIN_SHARED_MS: u64 = 250;
/// What reading events takes, and what consuming takes, checked again whenever a request has waited.
const PERMISSIONS: [&str; 2] = ["events.read", "consumer-groups.consume"];

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct FetchOrder {
    /// Who it says it is.
    pub consumer: String,
    /// How many events at most.
    pub limit: usize,
    /// How long to wait for the first.
    pub wait_ms: u64,
}

/// An event handed to a consumer.
pub struct Delivered {
    /// Token, attempt, deadline.
    pub delivery: Delivery,
    /// The event.
    pub event: Arc<Recorded>,
}

/// What a consumer says of deliveries.
#[derive(Clone, Debug)]
pub enum Word {
    /// Done.
    Ack,
    /// Not now.
    Nak {
        /// When it may come again.
        delay_ms: u64,
        /// Why.
        reason: Option<String>,
    },
    /// Still at it.
    Extend {
        /// How long it holds from now on; as long as a new delivery when nothing is said.
        by_ms: Option<u64>,
    },
    /// Put aside.
    Park {
        /// Why.
        reason: String,
    },
}

/// Progress as it was read, with what is known beside it.
pub(crate) struct Cached {
    /// Counts what was stored.
    revision: u64,
    progress: Progress,
    /// Events up to here are not the group's, or were taken in; at or behind the stored cursor.
    looked: u64,
    /// The compiled expression.
    filter: Option<Filter>,
}

/// A group with its progress, for one turn.
pub(crate) struct Loaded {
    pub group: Handled<ConsumerGroup>,
    pub terms: Terms,
    cached: Cached,
}

impl Loaded {
    pub fn progress(&self) -> &Progress {
        &self.cached.progress
    }

    pub fn looked(&self) -> u64 {
        self.cached.looked
    }

    pub fn look_past(&mut self, position: u64) {
        self.cached.looked = self.cached.looked.max(position);
    }

    pub fn is_filtered(&self) -> bool {
        self.group.state.settings.filter != GroupFilter::default()
    }

    /// The events that the group gets, and those about itself.
    pub fn wanted(&self) -> Selection {
        let GroupFilter { kind, stream, category, .. } = self.group.state.settings.filter.clone();
        Selection { plain: ScanFilter { kind, stream, category }, filter: self.cached.filter.clone() }
    }

    /// Whether an event is about the group itself: such are never delivered to it, or it would feed on its own alerts.
    pub fn is_own(&self, event: &Recorded) -> bool {
        event.header.stream == self.group.stream
    }

    fn sweep(&mut self, now: Timestamp) {
        self.cached.progress.sweep(&self.terms, now);
    }
}

impl App {
    /// Events for a consumer; waits for the first.
    pub async fn fetch_deliveries(&self, caller: &Caller, handle: &str, order: &FetchOrder) -> Answer<(Vec<Delivered>, u64)> {
        self.may_consume(caller)?;
        let log = caller.actor.tenant;
        let stream = self.group_entity(log, handle).await?.stream;
        let cell = self.runtime(caller)?.groups.cell(&stream);
        let (mut tail, mut moved) = (self.tail(log), cell.moved());
        let until = self.env().now().plus_ms(order.wait_ms);
        loop {
            tail.mark_unchanged();
            moved.mark_unchanged();
            let (deliveries, position, due) = self.try_fetch(caller, &cell, &stream, order).await?;
            let now = self.env().now();
            if !deliveries.is_empty() || now >= until || self.draining().is_cancelled() {
                return Ok((deliveries, position));
            }
            let look_again = if self.engine().store().is_shared() { LOOK_AGAIN_SHARED_MS } else { LOOK_AGAIN_MS };
            let wake_at = due.unwrap_or(until).min(until).min(now.plus_ms(look_again));
            tokio::select! {
                biased;
                () = self.draining().cancelled() => {}
                _ = tail.changed() => {}
                _ = moved.changed() => {}
                () = self.env().sleep_until(wake_at) => {}
            }
            for permission in PERMISSIONS {
                if !self.may_still(&caller.actor, permission).await {
                    return Ok((vec![], position));
                }
            }
        }
    }

    /// What a consumer says of deliveries. Refused when none of them is in force.
    pub async fn settle_deliveries(
        &self,
        caller: &Caller,
        handle: &str,
        tokens: &[String],
        word: &Word,
    ) -> Answer<(Vec<Verdict>, u64)> {
        self.may_consume(caller)?;
        let log = caller.actor.tenant;
        let stream = self.group_entity(log, handle).await?.stream;
        let told = self.with_group(log, &stream, |loaded, now| {
            let (terms, progress) = (loaded.terms, &mut loaded.cached.progress);
            let verdicts = match word {
                Word::Ack => progress.ack(tokens, now),
                Word::Nak { delay_ms, reason } => progress.nak(&terms, tokens, *delay_ms, reason.as_deref(), now),
                Word::Extend { by_ms } => progress.extend(tokens, by_ms.unwrap_or(terms.ack_timeout_ms), now),
                Word::Park { reason } => progress.park(tokens, reason, now),
            };
            (verdicts, progress.settled(), unnoted(loaded))
        });
        let (verdicts, position, unnoted) = told.await?;
        let context = Context { idempotency: None, if_match: None, ..caller.context() };
        self.note_parked(self.engine(), log, &stream, unnoted, &context).await;
        self.wake_group(log, &stream);
        if verdicts.iter().any(|verdict| *verdict != Verdict::Stale) {
            return Ok((verdicts, position));
        }
        let message = match tokens {
            [one] => format!("The delivery '{one}' is not, or no longer, in force."),
            _ => "None of these deliveries is, or is still, in force.".to_owned(),
        };
        let hint = "Drop this work: its time was over, it was settled before, or the group was set to another place. What is not settled comes again with the next fetch.";
        Err(Rejection::new(Kind::Conflict, "DELIVERY_STALE", message, hint).with("tokens", tokens))
    }

    /// A group and how far it is.
    pub(crate) async fn group_state(&self, log: TenantId, stream: &str) -> Answer<(Handled<ConsumerGroup>, GroupState)> {
        let cell = self.cell(log, stream)?;
        let mut slot = cell.lock().await;
        let mut loaded = self.load(log, stream, &mut slot).await?;
        let now = self.env().now();
        let state = self.measure(log, &mut loaded, now).await?;
        *slot = Some(loaded.cached);
        Ok((loaded.group, state))
    }

    /// Looks after a group that nobody may be reading: deliveries that are over, what is not written down, how far it is.
    pub(crate) async fn tend_group(
        &self,
        engine: &Engine,
        log: TenantId,
        stream: &str,
    ) -> Answer<(Handled<ConsumerGroup>, GroupState)> {
        let swept = |loaded: &mut Loaded, now| {
            loaded.sweep(now);
            unnoted(loaded)
        };
        let unnoted = self.with_group(log, stream, swept).await?;
        self.note_parked(engine, log, stream, unnoted, &Context::system(Groups::PART)).await;
        self.group_state(log, stream).await
    }

    /// Lets `act` look at a group and change its progress; answers once that is durable.
    pub(crate) async fn with_group<T>(
        &self,
        log: TenantId,
        stream: &str,
        mut act: impl FnMut(&mut Loaded, Timestamp) -> T,
    ) -> Answer<T> {
        let cell = self.cell(log, stream)?;
        let mut slot = cell.lock().await;
        for attempt in 0..ATTEMPTS_MAX {
            let mut loaded = self.load(log, stream, &mut slot).await?;
            let told = act(&mut loaded, self.env().now());
            if self.store(log, loaded, &mut slot).await? {
                return Ok(told);
            }
            self.step_aside(attempt).await;
        }
        Err(of_store(StoreError::Busy))
    }

    /// Wakes whoever waits here for a group.
    pub(crate) fn wake_group(&self, log: TenantId, stream: &str) {
        if let Ok(cell) = self.cell(log, stream) {
            cell.wake();
        }
    }

    /// Removes the rows of a group that is deleted. The counter stays, so that nobody takes it for one that has not begun.
    pub(crate) async fn forget_progress(&self, log: TenantId, stream: &str) -> Answer<()> {
        let cell = self.cell(log, stream)?;
        let mut slot = cell.lock().await;
        *slot = None;
        for _ in 0..ATTEMPTS_MAX {
            let (revision, rows) = self.rows(log, stream).await?;
            let rows = rows.into_iter().map(|row| Err(row.key)).collect();
            match self.engine().store().apply(log, apply(stream, revision, rows)).await {
                Ok(()) => {
                    cell.wake();
                    self.forget_cell(log, stream);
                    return Ok(());
                }
                Err(StoreError::ViewMoved(_)) => {}
                Err(error) => return Err(of_store(error)),
            }
        }
        Err(of_store(StoreError::Busy))
    }

    /// One look: what can be handed out now, and when to look again.
    async fn try_fetch(
        &self,
        caller: &Caller,
        cell: &Cell,
        stream: &str,
        order: &FetchOrder,
    ) -> Answer<(Vec<Delivered>, u64, Option<Timestamp>)> {
        let log = caller.actor.tenant;
        let mut slot = cell.lock().await;
        for attempt in 0..ATTEMPTS_MAX {
            let mut loaded = self.load(log, stream, &mut slot).await?;
            let now = self.env().now();
            loaded.sweep(now);
            let (mut seen, is_end) = self.take_in(log, &mut loaded, order.limit, now).await?;
            let (terms, progress) = (loaded.terms, &mut loaded.cached.progress);
            let deliveries = progress.deliver(&terms, &order.consumer, order.limit, now, self.env().random());
            let (position, due) = (progress.settled(), if is_end { progress.next_due(now) } else { Some(now) });
            self.read_rest(log, &deliveries, &mut seen).await?;
            let unnoted = unnoted(&loaded);
            if self.store(log, loaded, &mut slot).await? {
                drop(slot);
                self.note_parked(self.engine(), log, stream, unnoted, &Context::system(Groups::PART)).await;
                let delivered = deliveries.into_iter().map(|delivery| {
                    let event = seen.get(&delivery.position).cloned();
                    event.map(|event| Delivered { delivery, event })
                });
                return Ok((delivered.flatten().collect(), position, due));
            }
            self.step_aside(attempt).await;
        }
        Err(of_store(StoreError::Busy))
    }

    /// Takes in events until there are enough, no room, or no more. Answers those that were read, and whether that was all.
    async fn take_in(
        &self,
        log: TenantId,
        loaded: &mut Loaded,
        limit: usize,
        now: Timestamp,
    ) -> Answer<(BTreeMap<u64, Arc<Recorded>>, bool)> {
        let mut seen = BTreeMap::new();
        for _ in 0..LOOKS_MAX {
            let progress = &loaded.cached.progress;
            let missing = limit.saturating_sub(progress.ready(&loaded.terms, limit, now).len());
            let room = progress.room(&loaded.terms);
            let after = loaded.cached.looked;
            if missing == 0 || room == 0 {
                return Ok((seen, true));
            }
            let page = missing.clamp(PAGE_EVENTS_MIN, PAGE_EVENTS);
            let scanned = self.select(log, after, &loaded.wanted(), page).await?;
            let mut looked = scanned.position.max(after);
            let mut found: Vec<_> = scanned.events.into_iter().filter(|event| !loaded.is_own(event)).collect();
            let most = match loaded.terms.mode {
                Mode::Shared => room.min(missing),
                Mode::Ordered => room,
            };
            if found.len() > most {
                found.truncate(most);
                looked = found.last().map_or(after, |event| event.header.position);
            }
            loaded.cached.looked = looked;
            if !found.is_empty() || looked - loaded.cached.progress.head().cursor >= STORE_EVERY_EVENTS {
                loaded.cached.progress.take_in(found.iter().map(|event| candidate(event)).collect(), looked);
            }
            seen.extend(found.into_iter().map(|event| (event.header.position, event)));
            if looked == after {
                return Ok((seen, true));
            }
        }
        Ok((seen, false))
    }

    /// Reads the events of deliveries that were taken in earlier.
    async fn read_rest(&self, log: TenantId, deliveries: &[Delivery], seen: &mut BTreeMap<u64, Arc<Recorded>>) -> Answer<()> {
        for delivery in deliveries {
            if seen.contains_key(&delivery.position) {
                continue;
            }
            let page = deliveries.len().min(PAGE_EVENTS_MIN);
            let scanned = self.scan(log, delivery.position - 1, ScanFilter::default(), page).await?;
            seen.extend(scanned.events.into_iter().map(|event| (event.header.position, event)));
            if !seen.contains_key(&delivery.position) {
                return Err(internal(format!("the event at position {} is gone", delivery.position)));
            }
        }
        Ok(())
    }

    fn may_consume(&self, caller: &Caller) -> Answer<()> {
        PERMISSIONS.iter().try_for_each(|permission| self.authorise(&caller.actor, permission).map(drop))
    }

    fn cell(&self, log: TenantId, stream: &str) -> Answer<Arc<Cell>> {
        let runtime = self.runtimes().into_iter().find(|runtime| runtime.id == log);
        let runtime = runtime.ok_or_else(|| internal("the tenant is not running".into()))?;
        Ok(runtime.groups.cell(stream))
    }

    fn forget_cell(&self, log: TenantId, stream: &str) {
        if let Some(runtime) = self.runtimes().into_iter().find(|runtime| runtime.id == log) {
            runtime.groups.forget(stream);
        }
    }

    async fn step_aside(&self, attempt: u32) {
        if attempt >= PATIENT_ATTEMPTS {
            self.env().sleep_ms(self.env().random() % u64::from(attempt * 4)).await;
        }
    }

    /// Takes the progress out of its place; whoever does not put it back has it read again.
    async fn load(&self, log: TenantId, stream: &str, slot: &mut MutexGuard<'_, Option<Cached>>) -> Answer<Loaded> {
        let group = self.entity::<ConsumerGroup>(log, stream).await?.ok_or_else(|| not_found(stream))?;
        let cached = match slot.take() {
            Some(cached) if !self.engine().store().is_shared() => cached,
            Some(cached) if self.revision(log, stream).await? == cached.revision => cached,
            _ => self.read_progress(log, &group).await?,
        };
        let terms = Terms::of(&group.state);
        let mut loaded = Loaded { group, terms, cached };
        compile(&mut loaded)?;
        self.follow(log, &mut loaded).await?;
        Ok(loaded)
    }

    /// Does what the group's stream says since the progress followed it last.
    async fn follow(&self, log: TenantId, loaded: &mut Loaded) -> Answer<()> {
        let now = self.env().now();
        let progress = &mut loaded.cached.progress;
        while progress.head().epoch < loaded.group.version {
            let from = progress.head().epoch + 1;
            let events = self.engine().store().read(log, &loaded.group.stream, from, ROWS).await.map_err(of_store)?;
            let Some(last) = events.last() else { return Ok(()) };
            for event in &events {
                match GroupEvent::read(event).map_err(internal)? {
                    Some(GroupEvent::Sought(sought)) => progress.seek(sought.position, now),
                    Some(GroupEvent::Replayed(replayed)) => progress.replay(replayed.positions.as_deref(), now),
                    _ => {}
                }
            }
            progress.follow(last.header.version);
            // What was looked at before may be wanted now.
            loaded.cached.looked = progress.head().cursor;
        }
        Ok(())
    }

    /// Stores what changed and puts the progress back. Answers whether nobody else was faster.
    async fn store(&self, log: TenantId, mut loaded: Loaded, slot: &mut MutexGuard<'_, Option<Cached>>) -> Answer<bool> {
        let touched = loaded.cached.progress.take_changes();
        if touched.is_empty() {
            **slot = Some(loaded.cached);
            return Ok(true);
        }
        let rows: Result<Vec<_>, _> = touched.into_iter().map(|touched| row(&loaded.cached.progress, touched)).collect();
        let rows = rows.map_err(|error| internal(format!("progress cannot be written as JSON: {error}")))?;
        match self.engine().store().apply(log, apply(&loaded.group.stream, loaded.cached.revision, rows)).await {
            Ok(()) => {
                loaded.cached.revision += 1;
                **slot = Some(loaded.cached);
                Ok(true)
            }
            Err(StoreError::ViewMoved(_)) => Ok(false),
            Err(error) => Err(of_store(error)),
        }
    }

    async fn revision(&self, log: TenantId, stream: &str) -> Answer<u64> {
        let states = self.engine().store().view_state(log, &view(stream)).await.map_err(of_store)?;
        Ok(states.iter().find(|state| state.version == VERSION).map_or(0, |state| state.position))
    }

    /// All rows as of one revision.
    async fn rows(&self, log: TenantId, stream: &str) -> Answer<(u64, Vec<ViewRow>)> {
        let store = self.engine().store();
        let mut revision = self.revision(log, stream).await?;
        loop {
            let mut rows: Vec<ViewRow> = vec![];
            loop {
                let after = rows.last().map_or("", |row| row.key.as_str());
                let page = store.view_list(log, &view(stream), VERSION, "", after, ROWS).await.map_err(of_store)?;
                let is_last = page.len() < ROWS;
                rows.extend(page);
                if is_last {
                    break;
                }
            }
            // Read in several steps: what moved meanwhile does not fit together.
            let now = self.revision(log, stream).await?;
            if now == revision {
                return Ok((revision, rows));
            }
            revision = now;
        }
    }

    async fn read_progress(&self, log: TenantId, group: &Handled<ConsumerGroup>) -> Answer<Cached> {
        let (revision, rows) = self.rows(log, &group.stream).await?;
        if revision == 0 {
            let progress = Progress::begin(group.state.start, self.env().now());
            return Ok(Cached { revision, looked: progress.head().cursor, progress, filter: None });
        }
        let (mut head, mut open, mut parked) = (None, BTreeMap::new(), BTreeMap::new());
        for row in &rows {
            match row.key.split_once(':') {
                Some(("open", position)) => drop(open.insert(number(position)?, parsed::<Open>(row)?)),
                Some(("parked", position)) => drop(parked.insert(number(position)?, parsed::<Parked>(row)?)),
                _ => head = Some(parsed::<Head>(row)?),
            }
        }
        // Its rows were removed: it is deleted, though the entity that was read does not say so yet.
        let head = head.ok_or_else(|| not_found(&group.stream))?;
        let progress = Progress::stored(head, open, parked);
        Ok(Cached { revision, looked: progress.head().cursor, progress, filter: None })
    }

    /// Writes down what was parked. What fails here is written by whoever tends the group.
    async fn note_parked(&self, engine: &Engine, log: TenantId, stream: &str, parked: Vec<DeliveryParked>, context: &Context) {
        if parked.is_empty() {
            return;
        }
        let step = Step::on::<ConsumerGroup>(stream, GroupCommand::NoteParked(parked));
        match engine.handle::<ConsumerGroup>(log, step, context, Extras::default()).await {
            Ok(_) => {}
            // It was deleted meanwhile.
            Err(HandleError::Rejected(rejection)) if rejection.kind == Kind::NotFound => {}
            Err(error) => {
                let rejection = of_handle(error);
                tracing::warn!(group = %stream, %rejection, "parked deliveries could not be written down; trying again");
            }
        }
    }
}

/// Compiles the group's expression, unless it was.
fn compile(loaded: &mut Loaded) -> Answer<()> {
    let text = loaded.group.state.settings.filter.expression.as_deref();
    if loaded.cached.filter.as_ref().map(Filter::text) != text {
        loaded.cached.filter = text.map(Filter::compile).transpose()?;
    }
    Ok(())
}

/// What is parked and not written down, in the order of its numbers.
fn unnoted(loaded: &Loaded) -> Vec<DeliveryParked> {
    if loaded.progress().head().parkings <= loaded.group.state.parked_noted {
        return vec![];
    }
    let parked = loaded.progress().parked().iter();
    let fresh = parked.filter(|(_, parked)| parked.number > loaded.group.state.parked_noted);
    let mut noted: Vec<DeliveryParked> = fresh.map(|(position, parked)| noted(*position, parked)).collect();
    noted.sort_by_key(|parked| parked.number);
    noted
}

fn noted(position: u64, parked: &Parked) -> DeliveryParked {
    DeliveryParked {
        number: parked.number,
        position,
        stream: parked.stream.clone(),
        attempts: parked.attempts,
        reason: parked.reason.clone(),
        consumer: parked.consumer.clone(),
    }
}

fn candidate(event: &Recorded) -> Candidate {
    let header = &event.header;
    Candidate {
        position: header.position,
        stream: header.stream.clone(),
        kind: header.kind.clone(),
        recorded_at: header.recorded_at,
    }
}

/// How the names of views begin that hold the progress of groups.
const VIEWS: &str = "group:";

/// The view that holds a group's progress.
fn view(stream: &str) -> String {
    format!("{VIEWS}{stream}")
}

/// Whether a view holds the progress of a group, which no event tells.
pub(crate) fn is_progress(view: &str) -> bool {
    view.starts_with(VIEWS)
}

fn apply(stream: &str, revision: u64, rows: Vec<Result<ViewRow, String>>) -> ViewApply {
    ViewApply { view: view(stream), version: VERSION, expected: revision, position: revision + 1, rows, activate: revision == 0 }
}

/// A row to write, or the key of one to remove.
fn row(progress: &Progress, touched: Touched) -> serde_json::Result<Result<ViewRow, String>> {
    match touched {
        Touched::Head => written(HEAD.to_owned(), Some(progress.head())),
        Touched::Open(position) => written(format!("open:{position:020}"), progress.open().get(&position)),
        Touched::Parked(position) => written(format!("parked:{position:020}"), progress.parked().get(&position)),
    }
}

fn written(key: String, row: Option<&impl Serialize>) -> serde_json::Result<Result<ViewRow, String>> {
    Ok(match row {
        Some(row) => Ok(ViewRow { row: serde_json::to_vec(row)?, key }),
        None => Err(key),
    })
}

fn parsed<T: DeserializeOwned>(row: &ViewRow) -> Answer<T> {
    serde_json::from_slice(&row.row).map_err(|error| internal(format!("progress row {}: {error}", row.key)))
}

fn number(position: &str) -> Answer<u64> {
    position.parse().map_err(|_| internal(format!("progress row of position '{position}'")))
}
