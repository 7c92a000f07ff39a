//! What acts by itself: for each tenant the dispatcher, liveness, the fleet and the views; for all of them the
//! provisioner. This is the closed list of workers.

use crate::app::{App, Inner};
use crate::claims::{ClaimWorker, Waiters};
use crate::erasures::EraseWorker;
use crate::fleet::{Fleet, FleetFollower, FleetReader, SharedFleet};
use crate::groups::{self, GroupFollower, Groups};
use crate::mails::{MailWorker, end_old};
use crate::mcp::catalogue::{Catalogue, CatalogueFollower, CatalogueReader};
use crate::pushes::PushWorker;
use crate::removal::RemovalWorker;
use crate::tenants::ProvisionWorker;
use crate::views::RebuildWorker;
use crate::{audit, envoys, health, journal, mcp_servers, replicas};
use async_trait::async_trait;
use domain::agent::{Agent, AgentCommand};
use domain::component::Component;
use domain::consumer_group::ConsumerGroup;
use domain::erasure::Erasure;
use domain::identity::mail::{Mail, Status as MailStatus};
use domain::identity::tenant::Tenant;
use domain::mcp_server::McpServer;
use domain::process::dispatch::{Dispatch, DispatchSettings, LoadedTask};
use domain::process::liveness::{Liveness, LivenessCommand};
use domain::process::outstanding::{Erase, Notify, Outstanding, Provision, RebuildView, RemoveTenant, SendMail};
use domain::push::Push;
use domain::queue::Queue;
use domain::rebuild::Rebuild;
use domain::task::{Status, Task};
use domain::tool::Tool;
use domain::view::stats::{AgentStats, AgentStatsView};
use domain::virtual_server::VirtualServer;
use engine::{Context, Engine, Executor, Extras, Handle, Handled, Projection, Step, drive, project};
use gateway::Report;
use kernel::id::{AgentId, TenantId};
use kernel::{Decider, IndexField, Process, Recorded, Timestamp, View};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use store::{Authority, EntityQuery, StoreError};
use tokio::sync::mpsc::Receiver;

/// Records that are read at the start.
const STATS_ROWS_MAX: usize = 1_000_000;

/// The running parts of one tenant: what every replica needs, and what only the one that leads its log runs.
pub(crate) struct TenantRuntime {
    pub id: TenantId,
    pub fleet: SharedFleet,
    pub waiters: Arc<Waiters>,
    /// Consumer groups.
    pub groups: Arc<Groups>,
    /// What MCP servers offer.
    pub catalogue: Arc<Catalogue>,
    /// How far the catalogue has come.
    pub catalogued: Handle<CatalogueFollower>,
    /// How far the fleet has come.
    pub follower: Handle<FleetFollower>,
    lead: RwLock<Option<Arc<Lead>>>,
    /// Held by whoever begins or ends leading.
    pub turn: tokio::sync::Mutex<()>,
    /// Held by whoever makes one more of what the tenant may have only so many of.
    pub room: Arc<tokio::sync::Mutex<()>>,
    /// Runs what every replica runs for the tenant; ends before the rest when the tenant does.
    engine: Engine,
}

/// What runs where a tenant's log is led.
pub(crate) struct Lead {
    pub authority: Option<Authority>,
    pub dispatch: Handle<Dispatch>,
    pub liveness: Handle<Liveness>,
    /// Keeps the records of agents; what it holds is read when somebody begins to lead.
    _stats: Projection<AgentStatsView>,
    engine: Engine,
}

/// Who leads, as far as it is known here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// This process, with this token.
    Here(Option<Authority>),
    /// Another one.
    Elsewhere,
}

impl Leadership {
    pub fn is_elsewhere(self) -> bool {
        self == Leadership::Elsewhere
    }
}

impl TenantRuntime {
    /// What runs here because the log is led here.
    pub fn lead(&self) -> Option<Arc<Lead>> {
        self.lead.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn leadership(&self) -> Leadership {
        self.lead().map_or(Leadership::Elsewhere, |lead| Leadership::Here(lead.authority))
    }

    pub fn begin_lead(&self, lead: Lead) {
        *self.lead.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(lead));
    }

    /// Whether the tenant has ended here.
    pub fn is_over(&self) -> bool {
        self.engine.env().stop().is_cancelled()
    }

    pub fn end_lead(&self) {
        let ended = self.lead.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lead) = ended {
            lead.engine.env().stop().cancel();
            self.waiters.forget_others();
        }
    }
}

/// Starts the workers of every tenant that is ready; the provisioner, where the root log is led, takes care of the others.
pub(crate) async fn start_all(app: &App, reports: Receiver<Report>) -> Result<(), StoreError> {
    let engine = app.engine();
    let position = app.position(app.0.root);
    for tenant in each::<Tenant>(engine, app.0.root, &[]).await? {
        if let (true, Ok(id)) = (tenant.state.is_ready && tenant.state.deleting.is_none(), tenant.stream.parse()) {
            app.apply_limits(id, &tenant.state);
            start_tenant(app, id, &tenant.state.created.slug).await?;
        }
    }
    drive(engine, app.0.root, TenantFollower::default(), position, Arc::new(TenantStarter { app: Arc::downgrade(&app.0) }));
    engine.env().spawn(mcp_servers::follow(app.clone(), reports));
    engine.env().spawn(journal::keep_to_retention(app.clone()));
    engine.env().spawn(audit::seal_trees(app.clone()));
    engine.env().spawn(replicas::follow_leases(app.clone()));
    engine.env().spawn(replicas::read_letters(app.clone()));
    engine.env().spawn(crate::signing::keep_ring(app.clone()));
    engine.env().spawn(crate::watch::keep_counts(app.clone()));
    engine.env().spawn(crate::shared::keep_shared(app.clone()));
    Ok(())
}

/// Starts what every replica runs for a tenant, unless it runs already, and takes the lead if it is this one's.
pub(crate) async fn start_tenant(app: &App, id: TenantId, slug: &str) -> Result<(), StoreError> {
    let _turn = app.0.starting.lock().await;
    match app.tenant(slug) {
        Some(runtime) if runtime.id == id => return Ok(()),
        // The name was free again before this process heard that its tenant is deleted.
        Some(runtime) => end_runtime(app, runtime.id).await,
        None => {}
    }
    let engine = &app.engine().scoped(None);
    let tail = app.position(id);
    let states = engine.store().view_state(id, AgentStatsView::NAME).await?;
    let stats_position = states.iter().find(|state| state.is_active).map_or(0, |state| state.position);
    let mut fleet = Fleet::with_stats(stats(engine, id).await?);
    for agent in each::<Agent>(engine, id, &[]).await? {
        if let Ok(agent_id) = agent.stream.parse() {
            fleet.put(agent_id, agent);
        }
    }
    let fleet = share(fleet);
    let groups = Arc::<Groups>::default();
    for group in each::<ConsumerGroup>(engine, id, &[]).await? {
        groups.put(&group);
    }
    let catalogue = catalogue(app, engine, id).await?;
    let catalogue_reader = Arc::new(CatalogueReader { engine: engine.clone(), log: id, catalogue: catalogue.clone() });
    let follower = FleetFollower { fleet: fleet.clone(), commands: vec![] };
    let reader = Arc::new(FleetReader { engine: engine.clone(), log: id, fleet: fleet.clone() });
    let runtime = Arc::new(TenantRuntime {
        id,
        fleet,
        waiters: Arc::default(),
        groups: groups.clone(),
        catalogue,
        catalogued: drive(engine, id, CatalogueFollower::default(), tail, catalogue_reader),
        follower: drive(engine, id, follower, tail.min(stats_position), reader),
        lead: RwLock::default(),
        turn: tokio::sync::Mutex::default(),
        room: Arc::default(),
        engine: engine.clone(),
    });
    drive(engine, id, GroupFollower(groups), tail, Arc::new(groups::Nothing));
    app.take_lead(&runtime).await?;
    let servers = mcp_servers::ServerFollower::default();
    drive(engine, id, servers, tail, Arc::new(mcp_servers::ServerKeeper { app: Arc::downgrade(&app.0), tenant: id }));
    app.0.tenants.write().unwrap_or_else(PoisonError::into_inner).insert(slug.to_owned(), runtime);
    engine.env().spawn(mcp_servers::start_all(app.clone(), id));
    Ok(())
}

/// What is known of MCP servers.
async fn catalogue(app: &App, engine: &Engine, id: TenantId) -> Result<Arc<Catalogue>, StoreError> {
    let catalogue = Arc::new(Catalogue::new(id, app.0.gateway.clone()));
    for server in each::<McpServer>(engine, id, &[]).await? {
        server.stream.parse().into_iter().for_each(|id| catalogue.put_server(id, server.clone()));
    }
    for tool in each::<Tool>(engine, id, &[]).await? {
        tool.stream.parse().into_iter().for_each(|id| catalogue.put_tool(id, tool.clone()));
    }
    for server in each::<VirtualServer>(engine, id, &[]).await? {
        server.stream.parse().into_iter().for_each(|id| catalogue.put_virtual(id, server.clone()));
    }
    for component in each::<Component>(engine, id, &[]).await? {
        component.stream.parse().into_iter().for_each(|id| catalogue.put_component(id, component.clone()));
    }
    Ok(catalogue)
}

/// Ends what runs here for a tenant, if anything does.
pub(crate) async fn stop_tenant(app: &App, id: TenantId) {
    {
        let _turn = app.0.starting.lock().await;
        end_runtime(app, id).await;
    }
    app.0.gateway.remove_all(id).await;
    app.0.vault.forget_tenant(id);
    app.set_tenant_rate(id, None);
}

async fn end_runtime(app: &App, id: TenantId) {
    let Some(slug) = app.slug_of(id) else { return };
    let removed = app.0.tenants.write().unwrap_or_else(PoisonError::into_inner).remove(&slug);
    if let Some(runtime) = removed {
        let _turn = runtime.turn.lock().await;
        runtime.end_lead();
        runtime.engine.env().stop().cancel();
    }
}

async fn stats(engine: &Engine, id: TenantId) -> Result<BTreeMap<String, AgentStats>, StoreError> {
    let states = engine.store().view_state(id, AgentStatsView::NAME).await?;
    let Some(state) = states.into_iter().find(|state| state.is_active) else { return Ok(BTreeMap::new()) };
    let rows = engine.store().view_list(id, AgentStatsView::NAME, state.version, "", "", STATS_ROWS_MAX).await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.key, serde_json::from_slice(&row.row).ok()?))).collect())
}

/// Starts what only the replica that leads a log runs. Everything it changes rests on that leadership.
pub(crate) async fn start_lead(
    app: &App,
    runtime: &Arc<TenantRuntime>,
    authority: Option<Authority>,
) -> Result<Lead, StoreError> {
    let engine = &app.engine().scoped(authority);
    let (id, settings) = (runtime.id, &app.0.settings);
    let now = engine.env().now();
    let tail = engine.store().head(id).await?;
    let stats_view = project::<AgentStatsView>(engine, id).await?;
    let (rows, stats_position) = stats_view.list("", STATS_ROWS_MAX).await?;
    // From here the processes count by themselves; what they see twice of tasks and agents changes nothing.
    let position = tail.min(stats_position);
    let dispatch_settings = DispatchSettings { claim_ttl_ms: settings.claim_ttl_ms, lru_patience_ms: settings.agent_lease_ms };
    let mut dispatch = Dispatch::new(dispatch_settings, position, rows.into_iter().collect());
    let mut liveness = Liveness::new(settings.agent_lease_ms);
    for agent in each::<Agent>(engine, id, &[]).await? {
        let Ok(agent_id) = agent.stream.parse() else { continue };
        dispatch.put_agent(agent_id, agent.version, &agent.state, now);
        liveness.put(agent_id, &agent.state, now);
    }
    for queue in each::<Queue>(engine, id, &[]).await? {
        dispatch.configure(queue.state.as_ref().clone());
    }
    for status in [Status::Pending, Status::Claimed] {
        for task in each::<Task>(engine, id, &[IndexField::new("status", status.as_str())]).await? {
            let Ok(task_id) = task.stream.parse() else { continue };
            let handled = handled_by(engine, id, &task.state.submitted.task_hash).await?;
            let loaded = LoadedTask { version: task.version, task: Box::new(task.state.as_ref().clone()), handled };
            dispatch.put_task(task_id, loaded, now);
        }
    }
    if id == app.0.root {
        start_provisioner(app, engine, tail).await?;
        start_remover(app, engine, tail).await?;
    }
    start_eraser(app, engine, id, tail).await?;
    start_postman(app, engine, id, tail).await?;
    start_notifier(app, engine, id, tail).await?;
    start_rebuilder(engine, id, tail, stats_view.clone()).await?;
    let worker = ClaimWorker {
        engine: engine.clone(),
        runtime: runtime.clone(),
        schemas: app.0.schemas.clone(),
        replicas: app.0.replicas.clone(),
        claim_ttl_ms: settings.claim_ttl_ms,
    };
    let marker = LivenessWorker { engine: engine.clone(), log: id, fleet: runtime.fleet.clone() };
    engine.env().spawn(envoys::look_after(app.clone(), runtime.clone(), engine.clone()));
    engine.env().spawn(mcp_servers::tell_circuits(app.clone(), runtime.clone()));
    engine.env().spawn(health::look_after(app.clone(), runtime.clone(), engine.clone()));
    engine.env().spawn(groups::look_after(app.clone(), runtime.clone(), engine.clone()));
    Ok(Lead {
        authority,
        dispatch: drive(engine, id, dispatch, position, Arc::new(worker)),
        liveness: drive(engine, id, liveness, tail, Arc::new(marker)),
        _stats: stats_view,
        engine: engine.clone(),
    })
}

async fn start_provisioner(app: &App, engine: &Engine, position: u64) -> Result<(), StoreError> {
    let mut provision = Outstanding::<Provision>::default();
    for tenant in each::<Tenant>(engine, app.0.root, &[]).await? {
        if let (false, Ok(id)) = (tenant.state.is_ready, tenant.stream.parse()) {
            provision.put(id);
        }
    }
    drive(engine, app.0.root, provision, position, Arc::new(ProvisionWorker { app: Arc::downgrade(&app.0) }));
    Ok(())
}

async fn start_remover(app: &App, engine: &Engine, position: u64) -> Result<(), StoreError> {
    let mut removing = Outstanding::<RemoveTenant>::default();
    // Also those that are marked: their record goes last.
    let all = EntityQuery { with_deleted: true, ..EntityQuery::all(Tenant::KIND) };
    for tenant in each_of::<Tenant>(engine, app.0.root, all).await? {
        if let (true, Ok(id)) = (tenant.state.deleting.is_some(), tenant.stream.parse()) {
            removing.put(id);
        }
    }
    let worker = RemovalWorker { app: Arc::downgrade(&app.0), turn: tokio::sync::Mutex::default() };
    drive(engine, app.0.root, removing, position, Arc::new(worker));
    Ok(())
}

async fn start_eraser(app: &App, engine: &Engine, tenant: TenantId, position: u64) -> Result<(), StoreError> {
    let mut erase = Outstanding::<Erase>::default();
    for erasure in each::<Erasure>(engine, tenant, &[IndexField::new("status", "running")]).await? {
        if let Ok(id) = erasure.stream.parse() {
            erase.put(id);
        }
    }
    let worker = EraseWorker { app: Arc::downgrade(&app.0), engine: engine.clone(), tenant, turn: tokio::sync::Mutex::default() };
    drive(engine, tenant, erase, position, Arc::new(worker));
    Ok(())
}

async fn start_postman(app: &App, engine: &Engine, tenant: TenantId, position: u64) -> Result<(), StoreError> {
    let mut send = Outstanding::<SendMail>::default();
    for mail in each::<Mail>(engine, tenant, &[IndexField::new("status", MailStatus::Queued.as_str())]).await? {
        if let Ok(id) = mail.stream.parse() {
            send.put(id);
        }
    }
    let (under_way, handed_over) = Default::default();
    let worker = MailWorker { app: Arc::downgrade(&app.0), engine: engine.clone(), tenant, under_way, handed_over };
    drive(engine, tenant, send, position, Arc::new(worker));
    engine.env().spawn(end_old(engine.clone(), tenant));
    Ok(())
}

async fn start_notifier(app: &App, engine: &Engine, tenant: TenantId, position: u64) -> Result<(), StoreError> {
    let mut notify = Outstanding::<Notify>::default();
    for push in each::<Push>(engine, tenant, &[IndexField::new("status", "open")]).await? {
        if let Ok(id) = push.stream.parse() {
            notify.put(id);
        }
    }
    let worker = PushWorker { app: Arc::downgrade(&app.0), engine: engine.clone(), tenant, under_way: Default::default() };
    drive(engine, tenant, notify, position, Arc::new(worker));
    Ok(())
}

async fn start_rebuilder(
    engine: &Engine,
    tenant: TenantId,
    position: u64,
    stats: Projection<AgentStatsView>,
) -> Result<(), StoreError> {
    let mut rebuild = Outstanding::<RebuildView>::default();
    for running in each::<Rebuild>(engine, tenant, &[IndexField::new("status", "running")]).await? {
        if let Ok(id) = running.stream.parse() {
            rebuild.put(id);
        }
    }
    let worker = RebuildWorker { engine: engine.clone(), tenant, stats, turn: tokio::sync::Mutex::default() };
    drive(engine, tenant, rebuild, position, Arc::new(worker));
    Ok(())
}

/// Hears of tenants that become ready, get other limits or are to be deleted, on whichever replica.
#[derive(Default)]
struct TenantFollower(Vec<TenantId>);

impl Process for TenantFollower {
    const NAME: &'static str = "tenants";
    type Signal = ();
    /// Start or stop this tenant's workers, as its record says; apply its limits.
    type Command = TenantId;

    fn react(&mut self, event: &Recorded, _: Timestamp) {
        let kind = event.header.kind.as_str();
        if matches!(kind, "identity.tenant.provisioned" | "identity.tenant.limits_changed" | "identity.tenant.deletion_requested")
        {
            self.0.extend(event.header.stream.parse::<TenantId>());
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, _: Timestamp, _: u64) -> Vec<TenantId> {
        std::mem::take(&mut self.0)
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }
}

struct TenantStarter {
    app: Weak<Inner>,
}

#[async_trait]
impl Executor<TenantFollower> for TenantStarter {
    async fn execute(&self, tenant: TenantId) -> Option<()> {
        const TRY_AGAIN_MS: u64 = 1_000;
        let app = App(self.app.upgrade()?);
        loop {
            let started = async {
                let known = app.engine().entity::<Tenant>(app.0.root, &tenant.to_string()).await?;
                // Its record goes last: where there is none it is deleted already.
                let Some(known) = known.filter(|known| known.state.deleting.is_none()) else {
                    stop_tenant(&app, tenant).await;
                    return Ok(());
                };
                app.apply_limits(tenant, &known.state);
                match known.state.is_ready {
                    true => start_tenant(&app, tenant, &known.state.created.slug).await,
                    false => Ok(()),
                }
            };
            let Err(error) = started.await else { return None };
            tracing::warn!(%tenant, %error, "a tenant's workers could not be started; trying again");
            tokio::select! {
                biased;
                () = app.env().stop().cancelled() => return None,
                () = app.env().sleep_ms(TRY_AGAIN_MS) => {}
            }
        }
    }
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
    each_of::<D>(engine, log, EntityQuery { fields: fields.to_vec(), ..EntityQuery::all(D::KIND) }).await
}

async fn each_of<D: Decider>(
    engine: &Engine,
    log: TenantId,
    mut query: EntityQuery,
) -> Result<Vec<Handled<D::State>>, StoreError> {
    let mut found = vec![];
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
