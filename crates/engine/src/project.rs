//! Builds a view of a log and keeps it up to date. Rows and checkpoint move in one transaction.
//!
//! A new version of a view is built beside the one in use and takes its place when it has caught up. So is a rebuild: a
//! further generation of the same version, while the one in use goes on.

use crate::Engine;
use kernel::{Recorded, TenantId, View, ViewRow};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use store::{ScanFilter, StoreError, ViewApply, ViewState};
use tokio::sync::{mpsc, oneshot, watch};

/// Events folded in one transaction at most.
const PAGE_EVENTS: usize = 1_000;
/// Events without rows after which the checkpoint is stored all the same, so that a restart has little to read again.
const CHECKPOINT_EVENTS: u64 = 10_000;
/// A lost wake-up, or a failure, costs this long.
const LOOK_AGAIN_MS: u64 = 1_000;

/// What is stored as a view's version: the version that its rules have, and above it how often it was rebuilt.
const GENERATION_BITS: u32 = 16;

/// The version of a view's rules and how often it was rebuilt, of what is stored as its version.
pub fn generation(stored: u32) -> (u32, u32) {
    (stored & ((1 << GENERATION_BITS) - 1), stored >> GENERATION_BITS)
}

/// Who waits for a rebuild.
type Rebuilt = oneshot::Sender<u64>;

/// A view that is kept up to date.
pub struct Projection<V: View> {
    engine: Engine,
    log: TenantId,
    state: watch::Receiver<Option<ViewState>>,
    rebuilds: mpsc::UnboundedSender<Rebuilt>,
    view: PhantomData<fn() -> V>,
}

impl<V: View> Clone for Projection<V> {
    fn clone(&self) -> Self {
        let (state, rebuilds) = (self.state.clone(), self.rebuilds.clone());
        Projection { engine: self.engine.clone(), log: self.log, state, rebuilds, view: PhantomData }
    }
}

/// Starts keeping a view of a log up to date.
pub async fn project<V: View>(engine: &Engine, log: TenantId) -> Result<Projection<V>, StoreError> {
    let (states, state) = watch::channel(active(engine, log, V::NAME).await?);
    let (rebuilds, asked) = mpsc::unbounded_channel();
    let runner = Runner::<V> { engine: engine.clone(), log, states, waiting: vec![], view: PhantomData };
    engine.env().spawn(runner.run(asked));
    Ok(Projection { engine: engine.clone(), log, state, rebuilds, view: PhantomData })
}

async fn active(engine: &Engine, log: TenantId, view: &str) -> Result<Option<ViewState>, StoreError> {
    let states = engine.store().view_state(log, view).await?;
    Ok(states.into_iter().find(|state| state.is_active))
}

impl<V: View> Projection<V> {
    /// The position that readers see.
    pub fn position(&self) -> u64 {
        self.state.borrow().map_or(0, |state| state.position)
    }

    /// Builds the view anew beside the one in use, and answers the position at which it took its place. `None` when this
    /// process no longer keeps the view.
    pub async fn rebuild(&self) -> Option<u64> {
        let (sender, done) = oneshot::channel();
        self.rebuilds.send(sender).ok()?;
        done.await.ok()
    }

    /// All rows whose key starts with `prefix`, up to `limit`, with the position that they reflect. Rows of an older
    /// version whose shape can no longer be read are left out until the new version has taken over.
    pub async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, V::Row)>, u64), StoreError> {
        let Some(state) = *self.state.borrow() else { return Ok((vec![], 0)) };
        let rows = self.engine.store().view_list(self.log, V::NAME, state.version, prefix, "", limit).await?;
        Ok((rows.into_iter().filter_map(|row| Some((row.key, serde_json::from_slice(&row.row).ok()?))).collect(), state.position))
    }
}

struct Runner<V> {
    engine: Engine,
    log: TenantId,
    states: watch::Sender<Option<ViewState>>,
    waiting: Vec<Rebuilt>,
    view: PhantomData<fn() -> V>,
}

/// How far a generation of the view has come.
#[derive(Clone, Copy)]
struct Progress {
    /// Where it stands in memory.
    state: ViewState,
    /// Where it stands in the store; behind `state` while events without rows pass by.
    stored: u64,
}

/// The generations of this version: the one in use, and the one that is being built.
#[derive(Clone, Copy, Default)]
struct Generations {
    live: Option<Progress>,
    next: Option<Progress>,
}

impl<V: View> Runner<V> {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Rebuilt>) {
        let env = self.engine.env().clone();
        let mut tail = self.engine.store().tail(self.log);
        let mut generations = None;
        loop {
            tail.mark_unchanged();
            match self.catch_up(generations, &mut asked).await {
                Ok(reached) => generations = Some(reached),
                Err(error) => {
                    tracing::warn!(view = V::NAME, %error, "the view could not be moved; trying again");
                    generations = None;
                    env.sleep_ms(LOOK_AGAIN_MS).await;
                }
            }
            tokio::select! {
                biased;
                () = env.stop().cancelled() => return,
                _ = tail.changed() => {}
                Some(rebuilt) = asked.recv() => self.waiting.push(rebuilt),
                () = env.sleep_ms(LOOK_AGAIN_MS) => {}
            }
        }
    }

    /// What the store holds of this version.
    async fn start(&self) -> Result<Generations, StoreError> {
        let known = self.engine.store().view_state(self.log, V::NAME).await?;
        let of_version = || known.iter().filter(|state| generation(state.version).0 == V::VERSION);
        let progress = |state: &ViewState| Progress { state: *state, stored: state.position };
        let live = of_version().find(|state| state.is_active).map(progress);
        let next = of_version().filter(|state| !state.is_active).max_by_key(|state| state.version).map(progress);
        Ok(Generations { live, next })
    }

    async fn catch_up(
        &mut self,
        generations: Option<Generations>,
        asked: &mut mpsc::UnboundedReceiver<Rebuilt>,
    ) -> Result<Generations, StoreError> {
        let mut generations = match generations {
            Some(generations) => generations,
            None => self.start().await?,
        };
        loop {
            while let Ok(rebuilt) = asked.try_recv() {
                self.waiting.push(rebuilt);
            }
            if generations.next.is_none() && (generations.live.is_none() || !self.waiting.is_empty()) {
                generations.next = Some(self.begin(generations.live).await?);
            }
            // The one in use first: a rebuild holds nobody up.
            if let Some(live) = &mut generations.live {
                while !self.step(live).await? {}
                self.states.send_replace(Some(live.state));
            }
            let Some(next) = &mut generations.next else { return Ok(generations) };
            if self.step(next).await? {
                self.activate(next).await?;
                generations = Generations { live: generations.next, next: None };
                let position = generations.live.map_or(0, |live| live.state.position);
                for rebuilt in self.waiting.drain(..) {
                    // Whoever asked may have gone away.
                    let _ = rebuilt.send(position);
                }
                return Ok(generations);
            }
        }
    }

    /// A further generation, beside the one in use.
    async fn begin(&self, live: Option<Progress>) -> Result<Progress, StoreError> {
        let next = live.map_or(0, |live| generation(live.state.version).1 + 1);
        let version = V::VERSION | next << GENERATION_BITS;
        let progress = Progress { state: ViewState { version, position: 0, is_active: false }, stored: 0 };
        // What is begun is there for all to see, also before its first row.
        self.apply(&progress, vec![], false).await?;
        Ok(progress)
    }

    /// Folds the next events into a generation. Answers whether it has reached the end of the log.
    async fn step(&self, progress: &mut Progress) -> Result<bool, StoreError> {
        let after = progress.state.position;
        let scanned = self.engine.store().scan(self.log, after, ScanFilter::default(), PAGE_EVENTS).await?;
        let rows = self.fold(&scanned.events, progress.state.version).await?;
        progress.state.position = scanned.position;
        if !rows.is_empty() || scanned.position.saturating_sub(progress.stored) >= CHECKPOINT_EVENTS {
            self.apply(progress, rows, false).await?;
            progress.stored = scanned.position;
        }
        Ok(scanned.position >= *self.engine.store().tail(self.log).borrow())
    }

    /// Makes a generation the one that is used.
    async fn activate(&self, progress: &mut Progress) -> Result<(), StoreError> {
        self.apply(progress, vec![], true).await?;
        progress.stored = progress.state.position;
        progress.state.is_active = true;
        self.states.send_replace(Some(progress.state));
        Ok(())
    }

    async fn apply(&self, progress: &Progress, rows: Vec<Result<ViewRow, String>>, activate: bool) -> Result<(), StoreError> {
        let (view, expected) = (V::NAME.to_owned(), progress.stored);
        let ViewState { version, position, .. } = progress.state;
        self.engine.store().apply(self.log, ViewApply { view, version, expected, position, rows, activate }).await
    }

    async fn fold(&self, events: &[Arc<Recorded>], version: u32) -> Result<Vec<Result<ViewRow, String>>, StoreError> {
        let mut rows: BTreeMap<String, Option<V::Row>> = BTreeMap::new();
        for event in events {
            let Some(key) = V::key(event) else { continue };
            let row = match rows.remove(&key) {
                Some(row) => row,
                None => self.stored(&key, version).await?,
            };
            rows.insert(key, V::fold(row, event));
        }
        let written = rows.into_iter().map(|(key, row)| match row {
            None => Ok(Err(key)),
            Some(row) => match serde_json::to_vec(&row) {
                Ok(row) => Ok(Ok(ViewRow { key, row })),
                Err(e) => Err(StoreError::Corrupt(format!("view {}: {e}", V::NAME))),
            },
        });
        written.collect()
    }

    async fn stored(&self, key: &str, version: u32) -> Result<Option<V::Row>, StoreError> {
        let row = self.engine.store().view_get(self.log, V::NAME, version, key).await?;
        row.map(|row| serde_json::from_slice(&row.row).map_err(|e| StoreError::Corrupt(format!("view {}: {e}", V::NAME))))
            .transpose()
    }
}
