//! What acts by itself: for each tenant the dispatcher, liveness, the fleet and the views; for all of them the
//! provisioner. This is the closed list of workers.

use crate::app::App;
use crate::claims::{ClaimWorker, Waiters};
use crate::fleet::{Fleet, FleetFollower, FleetReader, SharedFleet};
use crate::tenants::ProvisionWorker;
use crate::{journal, mcp_servers};
use async_trait::async_trait;
use domain::agent::{Agent, AgentCommand};
use domain::identity::tenant::Tenant;
use domain::process::dispatch::{Dispatch, DispatchSettings, LoadedTask};
use domain::process::liveness::{Liveness, LivenessCommand};
use domain::process::provision::Provision;
use domain::queue::Queue;
use domain::task::{Status, Task};
use domain::view::stats::AgentStatsView;
use engine::{Context, Engine, Executor, Extras, Handle, Handled, Projection, Step, drive, project};
use gateway::Report;
use kernel::id::{AgentId, TenantId};
use kernel::{Decider, IndexField, Process};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use store::{EntityQuery, StoreError};
use tokio::sync::mpsc::Receiver;

/// Records that are read at the start.
const STATS_ROWS_MAX: usize = 1_000_000;

/// The running parts of one tenant.
pub(crate) struct TenantRuntime {
    pub id: TenantId,
    pub dispatch: Handle<Dispatch>,
    pub liveness: Handle<Liveness>,
    pub fleet: SharedFleet,
    pub waiters: Arc<Waiters>,
    /// Keeps the records of agents; what it holds is read at the next start.
    pub _stats: Projection<AgentStatsView>,
}

/// Starts the workers of every tenant that is ready, then the provisioner, which takes care of the others.
pub(crate) async fn start_all(app: &App, reports: Receiver<Report>) -> Result<(), StoreError> {
    let engine = app.engine();
    let position = app.position(app.0.root);
    let mut provision = Provision::default();
    for tenant in each::<Tenant>(engine, app.0.root, &[]).await? {
        let Ok(id) = tenant.stream.parse() else { continue };
        match tenant.state.is_ready {
            true => start_tenant(app, id, &tenant.state.created.slug).await?,
            false => provision.put(id),
        }
    }
    drive(engine, app.0.root, provision, position, Arc::new(ProvisionWorker { app: Arc::downgrade(&app.0) }));
    engine.env().spawn(mcp_servers::follow(app.clone(), reports));
    engine.env().spawn(journal::keep_to_retention(app.clone()));
    Ok(())
}

/// Starts the workers of one tenant, unless they run already.
pub(crate) async fn start_tenant(app: &App, id: TenantId, slug: &str) -> Result<(), StoreError> {
    if app.tenant(slug).is_some() {
        return Ok(());
    }
    let engine = app.engine();
    let settings = &app.0.settings;
    let now = engine.env().now();
    let tail = app.position(id);
    let stats_view = project::<AgentStatsView>(engine, id).await?;
    let (rows, stats_position) = stats_view.list("", STATS_ROWS_MAX).await?;
    let stats: BTreeMap<_, _> = rows.into_iter().collect();
    // From here the processes count by themselves; what they see twice of tasks and agents changes nothing.
    let position = tail.min(stats_position);

    let dispatch_settings = DispatchSettings { claim_ttl_ms: settings.claim_ttl_ms, lru_patience_ms: settings.agent_lease_ms };
    let mut dispatch = Dispatch::new(dispatch_settings, position, stats.clone());
    let mut liveness = Liveness::new(settings.agent_lease_ms);
    let mut fleet = Fleet::with_stats(stats);
    for agent in each::<Agent>(engine, id, &[]).await? {
        let Ok(agent_id) = agent.stream.parse() else { continue };
        dispatch.put_agent(agent_id, agent.version, &agent.state, now);
        liveness.put(agent_id, &agent.state, now);
        fleet.put(agent_id, agent);
    }
    for queue in each::<Queue>(engine, id, &[]).await? {
        dispatch.configure(queue.state.as_ref().clone());
    }
    for status in [Status::Pending, Status::Claimed] {
        for task in each::<Task>(engine, id, &[IndexField::new("status", status.as_str())]).await? {
            let Ok(task_id) = task.stream.parse() else { continue };
            let handled = handled_by(engine, id, &task.state.submitted.task_hash).await?;
            dispatch.put_task(
                task_id,
                LoadedTask { version: task.version, task: Box::new(task.state.as_ref().clone()), handled },
                now,
            );
        }
    }

    let fleet = share(fleet);
    let waiters = Arc::new(Waiters::default());
    let worker =
        ClaimWorker::new(engine.clone(), id, waiters.clone(), fleet.clone(), app.0.schemas.clone(), settings.claim_ttl_ms);
    let follower = FleetFollower { fleet: fleet.clone(), commands: vec![] };
    drive(engine, id, follower, position, Arc::new(FleetReader { engine: engine.clone(), log: id, fleet: fleet.clone() }));
    let runtime = TenantRuntime {
        id,
        dispatch: drive(engine, id, dispatch, position, Arc::new(worker)),
        liveness: drive(
            engine,
            id,
            liveness,
            tail,
            Arc::new(LivenessWorker { engine: engine.clone(), log: id, fleet: fleet.clone() }),
        ),
        fleet,
        waiters,
        _stats: stats_view,
    };
    app.0.tenants.write().unwrap_or_else(PoisonError::into_inner).insert(slug.to_owned(), Arc::new(runtime));
    engine.env().spawn(mcp_servers::start_all(app.clone(), id));
    Ok(())
}

fn share(fleet: Fleet) -> SharedFleet {
    let shared = SharedFleet::default();
    *shared.write() = fleet;
    shared
}

/// Every entity of a kind with these fields that is not deleted, whatever the number.
pub(crate) async fn each<D: Decider>(
    engine: &Engine,
    log: TenantId,
    fields: &[IndexField],
) -> Result<Vec<Handled<D::State>>, StoreError> {
    let mut found = vec![];
    let mut query = EntityQuery { fields: fields.to_vec(), ..EntityQuery::all(D::KIND) };
    loop {
        let page = engine.store().entities(log, query.clone()).await?;
        for row in page.rows {
            found.extend(engine.folded::<D>(log, row).await?);
        }
        match page.next {
            Some(next) => query.after = Some(next),
            None => return Ok(found),
        }
    }
}

/// The agents that handled a task hash, in any task.
pub(crate) async fn handled_by(engine: &Engine, log: TenantId, task_hash: &str) -> Result<Vec<AgentId>, StoreError> {
    const AGENTS_MAX: usize = 100_000;
    let prefix = format!("{task_hash}:");
    let values = engine.store().index_values(log, Task::KIND, "handled", &prefix, AGENTS_MAX).await?;
    Ok(values.iter().filter_map(|value| value.strip_prefix(&prefix)?.parse().ok()).collect())
}

/// Writes down which agents are there.
struct LivenessWorker {
    engine: Engine,
    log: TenantId,
    fleet: SharedFleet,
}

#[async_trait]
impl Executor<Liveness> for LivenessWorker {
    async fn execute(&self, command: LivenessCommand) -> Option<<Liveness as Process>::Signal> {
        let (agent, command) = match command {
            LivenessCommand::MarkUp(agent) => (agent, AgentCommand::MarkUp),
            LivenessCommand::MarkDegraded(agent, reason) => (agent, AgentCommand::MarkDegraded { reason }),
            LivenessCommand::MarkDown(agent) => (agent, AgentCommand::MarkDown),
        };
        let context = Context::system(Liveness::NAME);
        match self.engine.handle::<Agent>(self.log, Step::on::<Agent>(agent, command), &context, Extras::default()).await {
            Ok(marked) => self.fleet.write().put(agent, marked),
            // Asked again in a second if it still holds.
            Err(error) => tracing::warn!(%agent, %error, "the agent's condition could not be written"),
        }
        None
    }
}
