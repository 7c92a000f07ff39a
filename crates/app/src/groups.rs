//! The consumer groups of a tenant as this process knows them: a place in memory for each one's progress, whether it moves,
//! and the worker that raises the alert when it does not.
//!
//! The alert is raised where the tenant's log is led, once a second. Everything else here is soft.

use crate::app::App;
use crate::consumer_groups::GroupState;
use crate::group_progress::Cached;
use crate::workers::TenantRuntime;
use async_trait::async_trait;
use domain::consumer_group::{ConsumerGroup, GroupCommand, GroupEvent, Stalled};
use engine::{Context, Engine, Executor, Extras, Handled, Step};
use kernel::id::TenantId;
use kernel::{EventSet, Kind, Process, Recorded, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How often groups are looked after.
const LOOK_EVERY_MS: u64 = 1_000;

/// The groups of a tenant.
#[derive(Default)]
pub(crate) struct Groups {
    known: Mutex<BTreeMap<String, Known>>,
    cells: Mutex<BTreeMap<String, Arc<Cell>>>,
}

/// What is known of a group.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub name: String,
    pub is_stalled: bool,
    /// As it was last looked after; only where the log is led.
    pub state: Option<GroupState>,
}

/// A group as health checks and metrics show it.
pub struct GroupStatus {
    /// Short name of its tenant.
    pub tenant: String,
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Whether nothing moves although something waits.
    pub is_stalled: bool,
    /// How far it is, if its tenant's log is led here.
    pub state: Option<GroupState>,
}

/// The progress of one group in memory: held by one request at a time.
pub(crate) struct Cell {
    slot: tokio::sync::Mutex<Option<Cached>>,
    moved: watch::Sender<()>,
}

impl Cell {
    pub async fn lock(&self) -> tokio::sync::MutexGuard<'_, Option<Cached>> {
        self.slot.lock().await
    }

    /// Changes whenever something may have become free.
    pub fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    pub fn wake(&self) {
        self.moved.send_replace(());
    }
}

impl Groups {
    /// The actor of what happens by itself.
    pub const PART: &'static str = "consumer-groups";

    pub fn cell(&self, stream: &str) -> Arc<Cell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Arc::new(Cell { slot: tokio::sync::Mutex::default(), moved: watch::channel(()).0 });
        cells.entry(stream.to_owned()).or_insert_with(fresh).clone()
    }

    pub fn forget(&self, stream: &str) {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
    }

    pub fn put(&self, group: &Handled<ConsumerGroup>) {
        let (name, is_stalled) = (group.state.name.clone(), group.state.stalled_at.is_some());
        self.known().insert(group.stream.clone(), Known { name, is_stalled, state: None });
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> Vec<String> {
        self.known().keys().cloned().collect()
    }

    fn change(&self, stream: &str, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known().get_mut(stream) {
            change(known);
        }
    }

    fn forget_states(&self) {
        self.known().values_mut().for_each(|known| known.state = None);
    }
}

impl App {
    /// Every consumer group, for health checks and metrics.
    pub fn groups_status(&self) -> Vec<GroupStatus> {
        let mut found = vec![];
        for (tenant, runtime) in self.runtimes_by_slug() {
            let known = runtime.groups.known();
            found.extend(known.iter().map(|(id, known)| GroupStatus {
                tenant: tenant.clone(),
                id: id.clone(),
                name: known.name.clone(),
                is_stalled: known.is_stalled,
                state: known.state.clone(),
            }));
        }
        found
    }
}

/// Keeps in memory which groups there are and which are stalled, on every replica.
pub(crate) struct GroupFollower(pub Arc<Groups>);

impl Process for GroupFollower {
    const NAME: &'static str = Groups::PART;
    type Signal = ();
    type Command = ();

    fn react(&mut self, event: &Recorded, _: Timestamp) {
        if !event.header.kind.starts_with("events.group.") {
            return;
        }
        let (groups, stream) = (&self.0, event.header.stream.as_str());
        match GroupEvent::read(event) {
            Ok(Some(GroupEvent::Created(created))) => {
                let known = Known { name: created.name, is_stalled: false, state: None };
                groups.known().insert(stream.to_owned(), known);
            }
            Ok(Some(GroupEvent::Stalled(_))) => groups.change(stream, |known| known.is_stalled = true),
            Ok(Some(GroupEvent::Recovered(_))) => groups.change(stream, |known| known.is_stalled = false),
            Ok(Some(GroupEvent::Deleted(_))) => {
                groups.known().remove(stream);
                groups.forget(stream);
            }
            _ => {}
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, _: Timestamp, _: u64) -> Vec<()> {
        vec![]
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }
}

/// The follower wants nothing done.
pub(crate) struct Nothing;

#[async_trait]
impl Executor<GroupFollower> for Nothing {
    async fn execute(&self, (): ()) -> Option<()> {
        None
    }
}

/// Looks after the groups of a tenant as long as its log is led here.
pub(crate) async fn look_after(app: App, runtime: Arc<TenantRuntime>, engine: Engine) {
    loop {
        tokio::select! {
            biased;
            () = engine.env().stop().cancelled() => break,
            () = engine.env().sleep_ms(LOOK_EVERY_MS) => {}
        }
        if app.runtimes().iter().all(|known| known.id != runtime.id) {
            continue; // It is being started.
        }
        for stream in runtime.groups.streams() {
            look_at(&app, &runtime, &engine, &stream).await;
        }
    }
    runtime.groups.forget_states();
}

async fn look_at(app: &App, runtime: &TenantRuntime, engine: &Engine, stream: &str) {
    let (group, state) = match app.tend_group(engine, runtime.id, stream).await {
        Ok(tended) => tended,
        // It was deleted meanwhile.
        Err(rejection) if rejection.kind == Kind::NotFound => return,
        Err(rejection) => return tracing::warn!(group = %stream, %rejection, "a consumer group could not be looked after"),
    };
    let now = engine.env().now();
    let since = state.idle_since.filter(|since| now.since_ms(*since) > group.state.settings.stalled_after_ms);
    let command = match (since, group.state.stalled_at) {
        (Some(since), None) => Some(GroupCommand::MarkStalled(Stalled { since, lag_events: state.lag_events })),
        (None, Some(_)) => Some(GroupCommand::MarkRecovered),
        _ => None,
    };
    runtime.groups.change(stream, |known| known.state = Some(state));
    if let Some(command) = command {
        write(engine, runtime.id, &group, command).await;
    }
}

async fn write(engine: &Engine, log: TenantId, group: &Handled<ConsumerGroup>, command: GroupCommand) {
    if let GroupCommand::MarkStalled(stalled) = &command {
        let (name, lag_events, since) = (&group.state.name, stalled.lag_events, stalled.since);
        tracing::warn!(group = %group.stream, name, lag_events, %since, "a consumer group is stalled");
    }
    let step = Step::on::<ConsumerGroup>(&group.stream, command);
    let context = Context::system(Groups::PART);
    if let Err(error) = engine.handle::<ConsumerGroup>(log, step, &context, Extras::default()).await {
        tracing::warn!(group = %group.stream, %error, "the alert of a consumer group could not be written; trying again");
    }
}
