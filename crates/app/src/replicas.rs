//! This process among others on the same store: what it leads, and letters between the replica that serves a request and
//! the one that leads the log. Letters are soft. A lost one costs time: whoever waits asks again.

use crate::app::App;
use crate::claims::deliver;
use crate::shared::Told;
use crate::workers::{TenantRuntime, start_lead};
use domain::process::dispatch::{Ask, DispatchSignal, WaiterId};
use domain::process::liveness::LivenessSignal;
use engine::{BUCKET_OF_ALL, Held, bucket_of, lead};
use kernel::id::{AgentId, TaskId, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::Authority;
use store::cluster::{Cluster, Letter};
use tokio::sync::{mpsc, watch};

/// Letters that are sent together at most.
const LETTERS_MAX: usize = 1_000;
/// How often leadership is looked at, in case that taking it over failed.
const LOOK_AGAIN_MS: u64 = 1_000;
/// How long a request at another replica is believed to wait. It asks every second.
const SIGN_OF_LIFE_MS_MAX: u64 = 3_000;

/// How this process belongs to others.
pub struct Membership {
    /// What is shared.
    pub cluster: Arc<dyn Cluster>,
    /// The name of this process: never the same twice.
    pub replica: String,
    /// How long others wait for this one before they take over.
    pub lease_ms: u64,
}

/// The running parts of a membership.
pub(crate) struct Replicas {
    cluster: Arc<dyn Cluster>,
    pub name: String,
    pub held: watch::Receiver<Held>,
    /// Every replica that is there.
    live: watch::Receiver<Vec<String>>,
    outbox: mpsc::UnboundedSender<Letter>,
    /// When an agent was last said to be there, so that not every call sends a letter.
    seen: Mutex<BTreeMap<AgentId, kernel::Timestamp>>,
}

/// What whoever leads a log is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(crate) enum Signal {
    /// An agent asks for work.
    Ask { replica: String, waiter: WaiterId, agent: AgentId, max: usize, wait_ms: u64, min_position: u64 },
    /// Claims could not be handed over.
    Undelivered { agent: AgentId, tasks: Vec<TaskId> },
    /// The holder of a claim gave a sign of life.
    Renew { task: TaskId, token: u64 },
    /// An agent says how full it is.
    Reported { agent: AgentId, fill: f64 },
    /// An agent called.
    Seen { agent: AgentId, fill: Option<f64> },
}

/// What the replica that serves a request is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Delivery {
    pub tenant: TenantId,
    pub waiter: WaiterId,
    pub agent: AgentId,
    pub tasks: Vec<TaskId>,
}

fn leader_of(tenant: TenantId) -> String {
    format!("log:{tenant}")
}

fn to_replica(name: &str) -> String {
    format!("replica:{name}")
}

impl Replicas {
    /// Joins the others.
    pub fn join(env: &engine::Env, membership: Membership) -> Self {
        let Membership { cluster, replica, lease_ms } = membership;
        let (held, live) = lead(env, cluster.clone(), &replica, lease_ms);
        let (outbox, letters) = mpsc::unbounded_channel();
        env.spawn(send_letters(env.clone(), cluster.clone(), letters));
        Replicas { cluster, name: replica, held, live, outbox, seen: Mutex::default() }
    }

    /// Whether a process is there.
    pub fn is_live(&self, name: &str) -> bool {
        self.live.borrow().iter().any(|live| live == name)
    }

    /// Hands claims to the replica whose request they answer.
    pub fn deliver(&self, replica: &str, delivery: &Delivery) {
        self.send(to_replica(replica), delivery);
    }

    /// Tells every other replica.
    pub fn tell_others(&self, what: &impl Serialize) {
        for other in self.live.borrow().iter().filter(|other| **other != self.name) {
            self.send(to_replica(other), what);
        }
    }

    fn send(&self, recipient: String, what: &impl Serialize) {
        // These types always have a JSON form. After the end nobody reads letters any more.
        if let Ok(body) = serde_json::to_vec(what) {
            let _ = self.outbox.send(Letter { recipient, body });
        }
    }

    /// Tells whoever leads a log, if it is worth a letter.
    fn tell(&self, tenant: TenantId, signal: &Signal, now: kernel::Timestamp, lease_ms: u64) {
        if let Signal::Seen { agent, fill: None } = signal {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.get(agent).is_some_and(|at| now.since_ms(*at) < lease_ms / 6) {
                return;
            }
            seen.insert(*agent, now);
        }
        self.send(leader_of(tenant), signal);
    }
}

async fn send_letters(env: engine::Env, cluster: Arc<dyn Cluster>, mut letters: mpsc::UnboundedReceiver<Letter>) {
    let mut batch = vec![];
    loop {
        tokio::select! {
            biased;
            count = letters.recv_many(&mut batch, LETTERS_MAX) => if count == 0 { return },
            () = env.stop().cancelled() => return,
        }
        if let Err(error) = cluster.post(std::mem::take(&mut batch)).await {
            tracing::debug!(%error, "letters to other replicas were lost");
        }
    }
}

impl App {
    /// Tells the dispatcher or the liveness process of a tenant, wherever it runs.
    pub(crate) fn tell(&self, runtime: &TenantRuntime, signal: Signal) {
        match (runtime.lead(), &self.0.replicas) {
            (Some(_), _) => self.hear(runtime, signal),
            (None, Some(replicas)) => {
                replicas.tell(runtime.id, &signal, self.env().now(), self.0.settings.agent_lease_ms);
            }
            // A single process that leads nothing has just started or is about to end.
            (None, None) => {}
        }
    }

    /// A signal for a log that this replica leads.
    fn hear(&self, runtime: &TenantRuntime, signal: Signal) {
        let Some(lead) = runtime.lead() else { return };
        match signal {
            Signal::Ask { replica, waiter, agent, max, wait_ms, min_position } => {
                let is_own = self.0.replicas.as_ref().is_none_or(|replicas| replicas.name == replica);
                let (waiter, wait_ms) = match is_own {
                    // It may have been answered since it asked by a letter.
                    true if runtime.waiters.waits_until(waiter).is_none() => return,
                    true => (waiter, wait_ms),
                    // One at another replica says again and again that it waits; when it does not, its replica is gone.
                    false => (runtime.waiters.open_for(&replica, waiter, agent), wait_ms.min(SIGN_OF_LIFE_MS_MAX)),
                };
                let until = self.env().now().plus_ms(wait_ms);
                lead.dispatch.tell(DispatchSignal::Ask(Ask { waiter, agent, max, until, min_position }));
            }
            Signal::Undelivered { agent, tasks } => lead.dispatch.tell(DispatchSignal::Undelivered(agent, tasks)),
            Signal::Renew { task, token } => lead.dispatch.tell(DispatchSignal::Renew(task, token)),
            Signal::Reported { agent, fill } => lead.dispatch.tell(DispatchSignal::Reported(agent, fill)),
            Signal::Seen { agent, fill } => lead.liveness.tell(LivenessSignal::Seen(agent, fill)),
        }
    }

    /// Whether this process does what is done once for all logs.
    pub(crate) fn leads_all(&self) -> bool {
        self.0.replicas.as_ref().is_none_or(|replicas| replicas.held.borrow().contains_key(&BUCKET_OF_ALL))
    }

    /// Whether this process leads a tenant's log.
    pub(crate) fn leads(&self, tenant: TenantId) -> bool {
        self.runtimes().iter().any(|runtime| runtime.id == tenant && runtime.lead().is_some())
    }

    /// The leadership of a tenant's log that this process should have: `None` when another one has it.
    fn wanted(&self, tenant: TenantId) -> Option<Option<Authority>> {
        let Some(replicas) = &self.0.replicas else { return Some(None) };
        let bucket = bucket_of(tenant);
        let token = replicas.held.borrow().get(&bucket).copied()?;
        Some(Some(Authority { bucket, token }))
    }

    /// Starts or stops leading a tenant's log, as the leases say.
    pub(crate) async fn take_lead(&self, runtime: &Arc<TenantRuntime>) -> Result<(), store::StoreError> {
        let _turn = runtime.turn.lock().await;
        if runtime.is_over() {
            return Ok(());
        }
        let wanted = self.wanted(runtime.id);
        let present = runtime.lead().map(|lead| lead.authority);
        if wanted == present {
            return Ok(());
        }
        runtime.end_lead();
        if let Some(authority) = wanted {
            let lead = start_lead(self, runtime, authority).await?;
            runtime.begin_lead(lead);
            if authority.is_some() {
                tracing::info!(tenant = %runtime.id, "this replica leads the tenant's log now");
            }
        }
        Ok(())
    }
}

/// Follows the leases until the end.
pub(crate) async fn follow_leases(app: App) {
    let Some(replicas) = &app.0.replicas else { return };
    let mut held = replicas.held.clone();
    loop {
        held.mark_unchanged();
        for runtime in app.runtimes() {
            if let Err(error) = app.take_lead(&runtime).await {
                tracing::warn!(tenant = %runtime.id, %error, "a log could not be taken over; trying again");
            }
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            _ = held.changed() => {}
            () = app.env().sleep_ms(LOOK_AGAIN_MS) => {}
        }
    }
}

/// Reads the letters to this replica and to the logs that it leads, until the end.
pub(crate) async fn read_letters(app: App) {
    let Some(replicas) = &app.0.replicas else { return };
    let own = to_replica(&replicas.name);
    let mut mail = replicas.cluster.mail();
    loop {
        mail.mark_unchanged();
        let runtimes = app.runtimes();
        let led: BTreeMap<String, Arc<TenantRuntime>> =
            runtimes.into_iter().filter(|r| r.lead().is_some()).map(|r| (leader_of(r.id), r)).collect();
        let recipients: Vec<String> = led.keys().cloned().chain([own.clone()]).collect();
        match replicas.cluster.collect(&recipients).await {
            Ok(letters) => {
                for letter in letters {
                    match led.get(&letter.recipient) {
                        Some(runtime) => match serde_json::from_slice(&letter.body) {
                            Ok(signal) => app.hear(runtime, signal),
                            Err(error) => tracing::debug!(%error, "a letter of another version was not understood"),
                        },
                        None => receive(&app, &letter.body),
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "letters could not be read"),
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            _ = mail.changed() => {}
            () = app.env().sleep_ms(LOOK_AGAIN_MS) => {}
        }
    }
}

/// What happened at another replica, or claims for a request that waits here.
fn receive(app: &App, body: &[u8]) {
    if let Ok(told) = serde_json::from_slice::<Told>(body) {
        return app.hear_told(told);
    }
    let Ok(delivery) = serde_json::from_slice::<Delivery>(body) else { return };
    let Some(runtime) = app.runtimes().into_iter().find(|runtime| runtime.id == delivery.tenant) else { return };
    let app = app.clone();
    app.env().clone().spawn(async move {
        let Delivery { waiter, agent, tasks, .. } = delivery;
        if !deliver(app.engine(), &runtime, waiter, agent, &tasks, app.0.settings.claim_ttl_ms).await && !tasks.is_empty() {
            app.tell(&runtime, Signal::Undelivered { agent, tasks });
        }
    });
}
