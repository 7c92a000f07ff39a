//! Builds a view of a log and keeps it up to date. Rows and checkpoint move in one transaction.
//!
//! A new version of a view is built beside the one in use and takes its place when it has caught up.

use crate::Engine;
use kernel::{Recorded, TenantId, View, ViewRow};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use store::{ScanFilter, StoreError, ViewApply, ViewState};
use tokio::sync::watch;

/// Events folded in one transaction at most.
const PAGE_EVENTS: usize = 1_000;
/// Events without rows after which the checkpoint is stored all the same, so that a restart has little to read again.
const CHECKPOINT_EVENTS: u64 = 10_000;
/// A lost wake-up, or a failure, costs this long.
const LOOK_AGAIN_MS: u64 = 1_000;

/// A view that is kept up to date.
pub struct Projection<V: View> {
    engine: Engine,
    log: TenantId,
    state: watch::Receiver<Option<ViewState>>,
    view: PhantomData<fn() -> V>,
}

impl<V: View> Clone for Projection<V> {
    fn clone(&self) -> Self {
        Projection { engine: self.engine.clone(), log: self.log, state: self.state.clone(), view: PhantomData }
    }
}

/// Starts keeping a view of a log up to date.
pub async fn project<V: View>(engine: &Engine, log: TenantId) -> Result<Projection<V>, StoreError> {
    let (states, state) = watch::channel(active(engine, log, V::NAME).await?);
    let runner = Runner::<V> { engine: engine.clone(), log, states, view: PhantomData };
    engine.env().spawn(runner.run());
    Ok(Projection { engine: engine.clone(), log, state, view: PhantomData })
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
    view: PhantomData<fn() -> V>,
}

/// How far the version that is being built has come.
#[derive(Clone, Copy)]
struct Progress {
    /// Where it stands in memory.
    state: ViewState,
    /// Where it stands in the store; behind `state` while events without rows pass by.
    stored: u64,
}

impl<V: View> Runner<V> {
    async fn run(self) {
        let env = self.engine.env().clone();
        let mut tail = self.engine.store().tail(self.log);
        let mut progress = None;
        loop {
            tail.mark_unchanged();
            match self.catch_up(progress).await {
                Ok(reached) => progress = Some(reached),
                Err(error) => {
                    tracing::warn!(view = V::NAME, %error, "the view could not be moved; trying again");
                    progress = None;
                    env.sleep_ms(LOOK_AGAIN_MS).await;
                }
            }
            tokio::select! {
                biased;
                () = env.stop().cancelled() => return,
                _ = tail.changed() => {}
                () = env.sleep_ms(LOOK_AGAIN_MS) => {}
            }
        }
    }

    async fn start(&self) -> Result<Progress, StoreError> {
        let known = self.engine.store().view_state(self.log, V::NAME).await?;
        let fresh = ViewState { version: V::VERSION, position: 0, is_active: false };
        let state = known.into_iter().find(|s| s.version == V::VERSION).unwrap_or(fresh);
        Ok(Progress { state, stored: state.position })
    }

    async fn catch_up(&self, progress: Option<Progress>) -> Result<Progress, StoreError> {
        let mut progress = match progress {
            Some(progress) => progress,
            None => self.start().await?,
        };
        loop {
            let state = &mut progress.state;
            let scanned = self.engine.store().scan(self.log, state.position, ScanFilter::default(), PAGE_EVENTS).await?;
            let is_caught_up = scanned.position >= *self.engine.store().tail(self.log).borrow();
            let rows = self.fold(&scanned.events).await?;
            let activate = is_caught_up && !state.is_active;
            state.position = scanned.position;
            if !rows.is_empty() || activate || state.position - progress.stored >= CHECKPOINT_EVENTS {
                let (view, version, expected, position) = (V::NAME.to_owned(), V::VERSION, progress.stored, state.position);
                self.engine.store().apply(self.log, ViewApply { view, version, expected, position, rows, activate }).await?;
                progress.stored = position;
                state.is_active |= activate;
            }
            if state.is_active {
                self.states.send_replace(Some(*state));
            }
            if is_caught_up {
                return Ok(progress);
            }
        }
    }

    async fn fold(&self, events: &[Arc<Recorded>]) -> Result<Vec<Result<ViewRow, String>>, StoreError> {
        let mut rows: BTreeMap<String, Option<V::Row>> = BTreeMap::new();
        for event in events {
            let Some(key) = V::key(event) else { continue };
            let row = match rows.remove(&key) {
                Some(row) => row,
                None => self.stored(&key).await?,
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

    async fn stored(&self, key: &str) -> Result<Option<V::Row>, StoreError> {
        let row = self.engine.store().view_get(self.log, V::NAME, V::VERSION, key).await?;
        row.map(|row| serde_json::from_slice(&row.row).map_err(|e| StoreError::Corrupt(format!("view {}: {e}", V::NAME))))
            .transpose()
    }
}
