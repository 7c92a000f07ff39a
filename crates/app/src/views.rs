//! Views: what is folded from the log for reading, where it stands, and building it anew.

use crate::app::App;
use crate::errors::{of_handle, of_store};
use crate::{Answer, Caller};
use async_trait::async_trait;
use domain::process::outstanding::{Effect, Outstanding, RebuildView};
use domain::rebuild::{Completed, Rebuild, RebuildCommand, Requested};
use domain::view::stats::AgentStatsView;
use engine::{Context, Engine, Executor, Extras, Handled, Projection, Step};
use kernel::id::{RebuildId, TenantId};
use kernel::{Kind, Rejection, View};

/// Every view that is kept.
const NAMES: [&str; 1] = [AgentStatsView::NAME];

/// Where a view stands.
#[derive(Clone, Debug)]
pub struct ViewStatus {
    /// Its name.
    pub name: String,
    /// The version of its rules.
    pub version: Option<u32>,
    /// How often it was rebuilt in that version.
    pub rebuilds: u32,
    /// Events up to here are folded in.
    pub position: u64,
    /// How far a rebuild has come, if one goes on.
    pub rebuilding: Option<u64>,
    /// The end of the log.
    pub head: u64,
}

impl App {
    /// Every view of the caller's tenant.
    pub async fn views(&self, caller: &Caller) -> Answer<Vec<ViewStatus>> {
        let tenant = caller.actor.tenant;
        let store = self.engine().store();
        let head = store.head(tenant).await.map_err(of_store)?;
        let mut found = vec![];
        for name in NAMES {
            let states = store.view_state(tenant, name).await.map_err(of_store)?;
            let live = states.iter().find(|state| state.is_active);
            found.push(ViewStatus {
                name: name.to_owned(),
                version: live.map(|live| engine::generation(live.version).0),
                rebuilds: live.map_or(0, |live| engine::generation(live.version).1),
                position: live.map_or(0, |live| live.position),
                rebuilding: states.iter().find(|state| !state.is_active).map(|state| state.position),
                head,
            });
        }
        Ok(found)
    }

    /// Begins to build a view anew.
    pub async fn rebuild_view(&self, caller: &Caller, name: &str) -> Answer<Handled<Rebuild>> {
        if let Some(known) = self.earlier::<Rebuild>(caller).await? {
            return Ok(known);
        }
        if !NAMES.contains(&name) {
            let message = format!("There is no view '{name}'.");
            return Err(Rejection::new(Kind::NotFound, "VIEW_NOT_FOUND", message, "List views with GET /api/v1/views.")
                .with("searched_id", name));
        }
        let id: RebuildId = self.env().id();
        let step = Step::new::<Rebuild>(id, RebuildCommand::Request(Requested { view: name.to_owned() }));
        self.execute::<Rebuild>(caller, step, Extras::default()).await
    }

    /// One rebuild of a view.
    pub async fn rebuild(&self, caller: &Caller, id: &str) -> Answer<Handled<Rebuild>> {
        let found = match id.parse::<RebuildId>() {
            Ok(id) => self.read::<Rebuild>(caller, &id.to_string()).await?,
            Err(_) => None,
        };
        found.ok_or_else(|| {
            let message = format!("There is no rebuild '{id}' in this tenant.");
            Rejection::new(
                Kind::NotFound,
                "REBUILD_NOT_FOUND",
                message,
                "Begin one with POST /api/v1/views/{view}/actions/rebuild.",
            )
            .with("searched_id", id)
        })
    }
}

/// Builds views anew where the log is led.
pub(crate) struct RebuildWorker {
    pub engine: Engine,
    pub tenant: TenantId,
    pub stats: Projection<AgentStatsView>,
    pub turn: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Executor<Outstanding<RebuildView>> for RebuildWorker {
    async fn execute(&self, id: RebuildId) -> Option<()> {
        // Asked for again while it is being done.
        let _turn = self.turn.try_lock().ok()?;
        if let Err(error) = self.carry_out(id).await {
            tracing::warn!(rebuild = %id, %error, "a view could not be rebuilt; trying again");
        }
        None
    }
}

impl RebuildWorker {
    async fn carry_out(&self, id: RebuildId) -> Answer<()> {
        let rebuild = self.engine.entity::<Rebuild>(self.tenant, &id.to_string()).await.map_err(of_store)?;
        let Some(rebuild) = rebuild.filter(|rebuild| rebuild.state.completed.is_none()) else { return Ok(()) };
        let done = match rebuild.state.view.as_str() {
            AgentStatsView::NAME => self.stats.rebuild().await,
            _ => None,
        };
        // The process ends, or another version knows the view: whoever leads next goes on.
        let Some(position) = done else { return Ok(()) };
        let step = Step::on::<Rebuild>(id, RebuildCommand::Complete(Completed { position }));
        let context = Context::system(RebuildView::NAME);
        self.engine.handle::<Rebuild>(self.tenant, step, &context, Extras::default()).await.map(|_| ()).map_err(of_handle)
    }
}
