//! Giving out work: claim requests that wait, the dispatcher's commands, and what agents say of their claims.

use crate::app::App;
use crate::errors::{of_handle, of_store};
use crate::fleet::SharedFleet;
use crate::replicas::{Delivery, Replicas, Signal};
use crate::schema::Schemas;
use crate::tasks::{TaskView, check_said, lighter, offload, resolve};
use crate::workers::{TenantRuntime, handled_by};
use crate::{Answer, Caller};
use async_trait::async_trait;
use domain::agent::{Agent, AgentCommand};
use domain::process::dispatch::{ClaimDone, ClaimResult, Dispatch, DispatchCommand, DispatchSignal, LoadedTask, WaiterId};
use domain::task::{Decision, Holder, Message, Outcome, Status, Task, TaskCommand, TaskError, not_found};
use engine::{Context, Engine, Executor, Extras, HandleError, Handled, Step};
use kernel::id::{AgentId, ClaimId, TaskId, TenantId};
use kernel::{Decider, Json, Kind, Process, Rejection, Timestamp, limits};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// A task handed to an agent.
pub struct ClaimedTask {
    /// The task, values resolved.
    pub task: TaskView,
    /// Names the claim.
    pub claim_id: ClaimId,
    /// To be shown with every later write.
    pub token: u64,
    /// Until when it holds without a heartbeat.
    pub expires_at: Timestamp,
}

/// What an agent asks for.
#[derive(Clone, Copy, Debug)]
pub struct ClaimOrder {
    /// How many tasks at most.
    pub max: u32,
    /// How long to wait for the first.
    pub wait_ms: u64,
}

/// What an agent says of its work.
#[derive(Clone, Debug)]
pub enum TaskOutcome {
    /// Still at it.
    Heartbeat,
    /// How far.
    Progress {
        /// 0 to 100.
        percent: Option<f64>,
        /// For people.
        message: Option<String>,
    },
    /// It needs to know something from whoever submitted it.
    Ask {
        /// What.
        message: Message,
    },
    /// The agent, which is elsewhere, has taken it there.
    HandedOver {
        /// What it is called there.
        remote_id: String,
        /// How many messages of the submitter it has heard.
        heard: u32,
    },
    /// Not now.
    Release {
        /// Why.
        reason: String,
    },
    /// Done.
    Complete(Outcome),
    /// Not done.
    Fail {
        /// What went wrong.
        error: TaskError,
        /// Whether another attempt may help.
        is_retryable: bool,
    },
}

/// How often a request that waits for another replica asks again, in case its letter was lost.
const ASK_AGAIN_MS: u64 = 1_000;
/// How long after its time a request waits for the answer of another replica.
const ANSWER_LATE_MS_MAX: u64 = 2_000;

/// Claim requests that wait.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: WaiterId,
    open: BTreeMap<WaiterId, Place>,
}

/// Where a request waits.
enum Place {
    /// Here, until when.
    Here(oneshot::Sender<Vec<ClaimedTask>>, Timestamp),
    /// At another replica, with its number there.
    There(String, WaiterId, AgentId),
}

/// What became of an answer.
pub(crate) enum Answered {
    /// The request got it.
    Yes,
    /// The request is gone.
    No,
    /// The request waits at another replica, with its number there.
    Elsewhere(String, WaiterId, AgentId),
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, until: Timestamp) -> (WaiterId, oneshot::Receiver<Vec<ClaimedTask>>) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.next += 1;
        let id = waiting.next;
        waiting.open.insert(id, Place::Here(sender, until));
        (id, receiver)
    }

    /// The number here of a request at another replica.
    pub fn open_for(&self, replica: &str, there: WaiterId, agent: AgentId) -> WaiterId {
        let mut waiting = self.lock();
        let is_same = |place: &Place| matches!(place, Place::There(name, id, _) if name == replica && *id == there);
        if let Some((id, _)) = waiting.open.iter().find(|(_, place)| is_same(place)) {
            return *id;
        }
        waiting.next += 1;
        let id = waiting.next;
        waiting.open.insert(id, Place::There(replica.to_owned(), there, agent));
        id
    }

    fn answer(&self, id: WaiterId, tasks: Vec<ClaimedTask>) -> Answered {
        match self.lock().open.remove(&id) {
            Some(Place::Here(sender, _)) => match sender.send(tasks) {
                Ok(()) => Answered::Yes,
                Err(_) => Answered::No,
            },
            Some(Place::There(replica, waiter, agent)) => Answered::Elsewhere(replica, waiter, agent),
            None => Answered::No,
        }
    }

    /// Until when a request waits here, if it does.
    pub fn waits_until(&self, id: WaiterId) -> Option<Timestamp> {
        match self.lock().open.get(&id) {
            Some(Place::Here(sender, until)) if !sender.is_closed() => Some(*until),
            _ => None,
        }
    }

    fn forget(&self, id: WaiterId) {
        self.lock().open.remove(&id);
    }

    /// Requests at other replicas ask their new leader again.
    pub fn forget_others(&self) {
        self.lock().open.retain(|_, place| matches!(place, Place::Here(..)));
    }

    pub fn count(&self) -> usize {
        self.lock().open.values().filter(|place| matches!(place, Place::Here(..))).count()
    }
}

/// Forgets a request that is given up: nothing is claimed for it any more.
struct Forget<'a>(&'a TenantRuntime, AgentId, WaiterId);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let Forget(runtime, agent, waiter) = *self;
        runtime.waiters.forget(waiter);
        // Where another replica leads, it stops believing in the request soon by itself.
        if let Some(lead) = runtime.lead() {
            lead.dispatch.tell(DispatchSignal::Left(agent, waiter));
        }
    }
}

impl App {
    /// Work for the agent that calls: claims that never reached it first, then new ones. Waits when there is none.
    /// The flag says that the agent is asked to restart.
    pub async fn claim(&self, caller: &Caller, order: ClaimOrder) -> Answer<(Vec<ClaimedTask>, bool)> {
        let agent = caller.agent()?;
        let runtime = self.runtime(caller)?;
        if self.take_restart(caller, agent).await? {
            return Ok((vec![], true));
        }
        let until = self.env().now().plus_ms(order.wait_ms.min(limits::WAIT_MS_MAX));
        let min_position = self.position(runtime.id);
        let (waiter, mut answer) = runtime.waiters.open(until);
        let _forget = Forget(&runtime, agent, waiter);
        let ask = |wait_ms| Signal::Ask {
            replica: self.0.replicas.as_ref().map(|replicas| replicas.name.clone()).unwrap_or_default(),
            waiter,
            agent,
            max: order.max.clamp(1, limits::CLAIM_TASKS_MAX) as usize,
            wait_ms,
            min_position,
        };
        self.tell(&runtime, Signal::Seen { agent, fill: None });
        let mut asked = runtime.leadership();
        self.tell(&runtime, ask(order.wait_ms.min(limits::WAIT_MS_MAX)));
        let mut seen_at = self.env().now();
        loop {
            tokio::select! {
                biased;
                tasks = &mut answer => return Ok((tasks.unwrap_or_default(), false)),
                () = self.0.draining.cancelled() => return Ok((vec![], false)),
                () = self.env().sleep_ms(ASK_AGAIN_MS.min(self.0.settings.agent_lease_ms / 3)) => {}
            }
            let now = self.env().now();
            // A waiting agent is a living agent.
            if now.since_ms(seen_at) >= self.0.settings.agent_lease_ms / 3 {
                seen_at = now;
                self.tell(&runtime, Signal::Seen { agent, fill: None });
            }
            // Whoever leads now may never have heard of this request.
            let leadership = runtime.leadership();
            if leadership != asked || leadership.is_elsewhere() {
                if now >= until.plus_ms(ANSWER_LATE_MS_MAX) {
                    return Ok((vec![], false));
                }
                asked = leadership;
                self.tell(&runtime, ask(until.since_ms(now)));
            }
        }
    }

    /// Tells the agent once that it is asked to restart.
    pub(crate) async fn take_restart(&self, caller: &Caller, agent: AgentId) -> Answer<bool> {
        let entity = self
            .entity::<Agent>(caller.actor.tenant, &agent.to_string())
            .await?
            .ok_or_else(|| domain::agent::not_found(&agent.to_string()))?;
        if !entity.state.is_restart_requested {
            return Ok(false);
        }
        let context = Caller { idempotency: None, if_match: None, ..caller.clone() }.context();
        let step = Step::on::<Agent>(agent, AgentCommand::DeliverRestart);
        let told =
            self.0.engine.handle::<Agent>(caller.actor.tenant, step, &context, Extras::default()).await.map_err(of_handle)?;
        self.fleet(caller)?.write().put(agent, told);
        Ok(true)
    }

    /// An agent speaks of a task that it claimed. Answers the task, with the lease when the claim goes on.
    pub async fn report(
        &self,
        caller: &Caller,
        id: TaskId,
        token: &str,
        outcome: TaskOutcome,
    ) -> Answer<(TaskView, Option<Timestamp>)> {
        let agent = caller.agent()?;
        let runtime = self.runtime(caller)?;
        let task = self.entity::<Task>(runtime.id, &id.to_string()).await?.ok_or_else(|| not_found(&id.to_string()))?;
        // A token that is no number was never given out: it is as stale as any.
        let by = Holder { agent, token: token.parse().unwrap_or(0) };
        self.tell(&runtime, Signal::Seen { agent, fill: None });
        let goes_on = matches!(
            outcome,
            TaskOutcome::Heartbeat | TaskOutcome::Progress { .. } | TaskOutcome::Ask { .. } | TaskOutcome::HandedOver { .. }
        );
        let reported = match outcome {
            TaskOutcome::Heartbeat => heartbeat(task, by),
            other => {
                let (command, extras) = self.command(&runtime.fleet, &task, by, other)?;
                self.execute::<Task>(caller, Step::on::<Task>(id, command), extras).await
            }
        };
        let reported = match reported {
            Ok(task) => task,
            Err(rejection) => {
                if rejection.code == "CLAIM_STALE" {
                    self.note_stale(caller, id, by).await;
                }
                return Err(rejection);
            }
        };
        if goes_on {
            self.tell(&runtime, Signal::Renew { task: id, token: by.token });
        }
        let lease = goes_on.then(|| self.env().now().plus_ms(self.0.settings.claim_ttl_ms));
        let view = TaskView { entity: reported };
        // What was said is to be read here; input and context the agent has.
        match view.entity.state.messages.is_empty() {
            true => Ok((view, lease)),
            false => Ok((view.resolved(&self.0.engine, runtime.id).await?, lease)),
        }
    }

    fn command(
        &self,
        fleet: &SharedFleet,
        task: &Handled<Task>,
        by: Holder,
        outcome: TaskOutcome,
    ) -> Answer<(TaskCommand, Extras)> {
        let mut extras = Extras::default();
        let command = match outcome {
            TaskOutcome::Heartbeat => TaskCommand::Progress { by, percent: None, message: None },
            TaskOutcome::Progress { percent, message } => TaskCommand::Progress { by, percent, message },
            TaskOutcome::Ask { message } => {
                check_said(&message)?;
                TaskCommand::Ask { by, message: Box::new(lighter(message, &mut extras)) }
            }
            TaskOutcome::HandedOver { remote_id, heard } => TaskCommand::HandOver { by, remote_id, heard },
            TaskOutcome::Release { reason } => TaskCommand::Release { by, reason },
            TaskOutcome::Fail { error, is_retryable } => {
                TaskCommand::Fail { by, error, is_retryable, retry_delay_base_ms: self.0.settings.retry_delay_base_ms }
            }
            TaskOutcome::Complete(outcome) => {
                if task.state.status == Status::Claimed {
                    self.check_output(fleet, task, by.agent, &outcome.output)?;
                }
                let result = Outcome {
                    output: offload(outcome.output, &mut extras),
                    learned_patterns: outcome.learned_patterns.into_iter().map(|p| offload(p, &mut extras)).collect(),
                    metrics: offload(outcome.metrics, &mut extras),
                };
                TaskCommand::Complete { by, result: Box::new(result) }
            }
        };
        Ok((command, extras))
    }

    /// The output has to meet the schema of the agent's capability; otherwise nothing happens and the claim stays.
    fn check_output(&self, fleet: &SharedFleet, task: &Handled<Task>, agent: AgentId, output: &Json) -> Answer<()> {
        let capability = &task.state.submitted.capability;
        let schema = fleet.read().get(&agent).and_then(|a| a.state.capability(capability)?.output_schema.clone());
        let Some(schema) = schema else { return Ok(()) };
        let problems = self.0.schemas.problems(&schema, &output.value(), "/output");
        if problems.is_empty() {
            return Ok(());
        }
        let message =
            format!("The output does not meet the output schema of the capability '{}'.", task.state.submitted.capability);
        Err(Rejection::new(
            Kind::Refused,
            "OUTPUT_INVALID",
            message,
            "Correct what details.errors names and complete again; the claim still holds.",
        )
        .with("errors", problems))
    }

    async fn note_stale(&self, caller: &Caller, id: TaskId, by: Holder) {
        let context = Caller { idempotency: None, if_match: None, ..caller.clone() }.context();
        let step = Step::on::<Task>(id, TaskCommand::NoteStale { by });
        if let Err(error) = self.0.engine.handle::<Task>(caller.actor.tenant, step, &context, Extras::default()).await {
            tracing::warn!(task = %id, %error, "a stale write could not be recorded");
        }
    }
}

fn heartbeat(task: Handled<Task>, by: Holder) -> Answer<Handled<Task>> {
    // Deciding nothing still checks token and agent; a renewed lease is no event.
    let facts =
        kernel::Facts { now: Timestamp(0), actor: kernel::ActorRef::system("heartbeat"), random: 0, version: task.version };
    let command = TaskCommand::Progress { by, percent: None, message: None };
    Task::decide(Some(&task.state), &command, &facts)?;
    Ok(task)
}

/// Carries out what the dispatcher wants.
pub(crate) struct ClaimWorker {
    pub engine: Engine,
    pub runtime: Arc<TenantRuntime>,
    pub schemas: Arc<Schemas>,
    pub replicas: Option<Arc<Replicas>>,
    pub claim_ttl_ms: u64,
}

impl ClaimWorker {
    async fn claim(&self, agent: AgentId, agent_type: String, waiter: WaiterId, tasks: Vec<(TaskId, Decision)>) -> ClaimDone {
        let claims = tasks.into_iter().map(|(id, decision)| self.claim_one(agent, &agent_type, id, decision));
        let mut results = vec![];
        let mut ids = vec![];
        let mut claimed = vec![];
        for (id, result, task) in futures_util::future::join_all(claims).await {
            ids.extend(matches!(result, ClaimResult::Claimed(_)).then_some(id));
            results.push((id, result));
            claimed.extend(task);
        }
        let is_delivered = claimed.is_empty() || self.answer(waiter, ids, claimed);
        ClaimDone { agent, waiter, results, is_delivered }
    }

    /// Whether the request got its answer, or is about to get it from the replica that it waits at.
    fn answer(&self, waiter: WaiterId, tasks: Vec<TaskId>, claimed: Vec<ClaimedTask>) -> bool {
        match (self.runtime.waiters.answer(waiter, claimed), &self.replicas) {
            (Answered::Yes, _) => true,
            (Answered::Elsewhere(replica, waiter, agent), Some(replicas)) => {
                replicas.deliver(&replica, &Delivery { tenant: self.runtime.id, waiter, agent, tasks });
                true
            }
            (Answered::No | Answered::Elsewhere(..), _) => false,
        }
    }

    async fn claim_one(
        &self,
        agent: AgentId,
        agent_type: &str,
        id: TaskId,
        decision: Decision,
    ) -> (TaskId, ClaimResult, Option<ClaimedTask>) {
        match self.is_fit(agent, id).await {
            Ok(true) => {}
            Ok(false) => return (id, ClaimResult::Unfit, None),
            Err(error) => {
                tracing::warn!(task = %id, %error, "the task could not be read for its claim");
                return (id, ClaimResult::Lost, None);
            }
        }
        let command = TaskCommand::Claim { agent, agent_type: agent_type.to_owned(), decision: Box::new(decision) };
        match self.handle(id, command).await {
            Ok(task) => {
                let token = task.state.claim.map_or(task.version, |claim| claim.token);
                (id, ClaimResult::Claimed(token), self.claimed(id, task).await)
            }
            Err(error) => {
                tracing::debug!(task = %id, %error, "the claim was lost");
                (id, ClaimResult::Lost, None)
            }
        }
    }

    /// Whether the agent's own schema takes the task's input: agents may declare the same capability differently.
    async fn is_fit(&self, agent: AgentId, id: TaskId) -> Result<bool, Rejection> {
        let Some(task) = self.engine.entity::<Task>(self.runtime.id, &id.to_string()).await.map_err(of_store)? else {
            return Ok(true);
        };
        let capability = &task.state.submitted.capability;
        let schema = self.runtime.fleet.read().get(&agent).and_then(|a| a.state.capability(capability)?.input_schema.clone());
        let Some(schema) = schema else { return Ok(true) };
        let input = resolve(&self.engine, self.runtime.id, &task.state.submitted.input).await?;
        Ok(self.schemas.problems(&schema, &input.value(), "").is_empty())
    }

    async fn handle(&self, id: TaskId, command: TaskCommand) -> Result<Handled<Task>, HandleError> {
        self.engine
            .handle::<Task>(self.runtime.id, Step::on::<Task>(id, command), &Context::system(Dispatch::NAME), Extras::default())
            .await
    }

    async fn claimed(&self, id: TaskId, task: Handled<Task>) -> Option<ClaimedTask> {
        handed(&self.engine, self.runtime.id, self.claim_ttl_ms, id, task).await
    }

    async fn deliver(&self, agent: AgentId, waiter: WaiterId, tasks: Vec<TaskId>) -> Option<DispatchSignal> {
        let claimed = held_by(&self.engine, self.runtime.id, self.claim_ttl_ms, agent, &tasks).await;
        let is_delivered = self.answer(waiter, tasks.clone(), claimed);
        (!is_delivered && !tasks.is_empty()).then_some(DispatchSignal::Undelivered(agent, tasks))
    }

    /// Reads a task for the dispatcher. It must not be forgotten, so a failed reading is repeated.
    async fn load_task(&self, id: TaskId) -> DispatchSignal {
        loop {
            match self.read_open(id).await {
                Ok(loaded) => return DispatchSignal::TaskLoaded(id, loaded),
                Err(error) if self.goes_on_after(&error).await => {}
                Err(_) => return DispatchSignal::TaskLoaded(id, None),
            }
        }
    }

    /// Reads an agent for the dispatcher, in the same way.
    async fn load_agent(&self, id: AgentId) -> Option<DispatchSignal> {
        loop {
            match self.engine.entity::<Agent>(self.runtime.id, &id.to_string()).await {
                Ok(agent) => {
                    let agent = agent?;
                    return Some(DispatchSignal::AgentLoaded(id, agent.version, Box::new(agent.state.as_ref().clone())));
                }
                Err(error) if self.goes_on_after(&error).await => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits before another try; false when the server stops.
    async fn goes_on_after(&self, error: &store::StoreError) -> bool {
        const TRY_AGAIN_MS: u64 = 1_000;
        tracing::error!(%error, "the dispatcher could not read an entity; trying again");
        tokio::select! {
            biased;
            () = self.engine.env().stop().cancelled() => false,
            () = self.engine.env().sleep_ms(TRY_AGAIN_MS) => true,
        }
    }

    async fn read_open(&self, id: TaskId) -> Result<Option<LoadedTask>, store::StoreError> {
        let Some(task) = self.engine.entity::<Task>(self.runtime.id, &id.to_string()).await? else { return Ok(None) };
        let handled = handled_by(&self.engine, self.runtime.id, &task.state.submitted.task_hash).await?;
        Ok(Some(LoadedTask { version: task.version, task: Box::new(task.state.as_ref().clone()), handled }))
    }

    async fn end(&self, id: TaskId, command: TaskCommand) {
        if let Err(error) = self.handle(id, command).await {
            // Asked again while it is due.
            tracing::warn!(task = %id, %error, "the task could not be moved on");
        }
    }
}

/// A task as it is handed over.
async fn handed(engine: &Engine, log: TenantId, ttl_ms: u64, id: TaskId, task: Handled<Task>) -> Option<ClaimedTask> {
    let claim = task.state.claim?;
    let expires_at = engine.env().now().plus_ms(ttl_ms);
    let claim_id = claim_id(id, claim.token);
    let task = TaskView { entity: task }.resolved(engine, log).await.ok()?;
    Some(ClaimedTask { task, claim_id, token: claim.token, expires_at })
}

/// Those of the tasks that the agent holds.
async fn held_by(engine: &Engine, log: TenantId, ttl_ms: u64, agent: AgentId, tasks: &[TaskId]) -> Vec<ClaimedTask> {
    let mut claimed = vec![];
    for id in tasks {
        if let Ok(Some(task)) = engine.entity::<Task>(log, &id.to_string()).await
            && task.state.claim.is_some_and(|claim| claim.agent_id == agent)
        {
            claimed.extend(handed(engine, log, ttl_ms, *id, task).await);
        }
    }
    claimed
}

/// Gives claims that another replica has made to the request that waits here. Whether it was there.
pub(crate) async fn deliver(
    engine: &Engine,
    runtime: &TenantRuntime,
    waiter: WaiterId,
    agent: AgentId,
    tasks: &[TaskId],
    ttl_ms: u64,
) -> bool {
    match runtime.waiters.waits_until(waiter) {
        None => return false,
        // The leader stopped waiting for a sign of life, which is on its way.
        Some(until) if tasks.is_empty() && engine.env().now() < until => return true,
        Some(_) => {}
    }
    let claimed = held_by(engine, runtime.id, ttl_ms, agent, tasks).await;
    matches!(runtime.waiters.answer(waiter, claimed), Answered::Yes)
}

/// The name of a claim: the same each time it is handed over.
pub fn claim_id(task: TaskId, token: u64) -> ClaimId {
    ClaimId::derived(&[&task.bytes(), &token.to_be_bytes()])
}

#[async_trait]
impl Executor<Dispatch> for ClaimWorker {
    async fn execute(&self, command: DispatchCommand) -> Option<DispatchSignal> {
        match command {
            DispatchCommand::LoadTask(id) => Some(self.load_task(id).await),
            DispatchCommand::LoadAgent(id) => self.load_agent(id).await,
            DispatchCommand::Claim { agent, agent_type, waiter, tasks } => {
                Some(DispatchSignal::ClaimDone(self.claim(agent, agent_type, waiter, tasks).await))
            }
            DispatchCommand::Deliver { agent, waiter, tasks } => self.deliver(agent, waiter, tasks).await,
            DispatchCommand::Expire(id, token) => {
                self.end(id, TaskCommand::Expire { token }).await;
                None
            }
            DispatchCommand::GiveUp(id, error) => {
                self.end(id, TaskCommand::GiveUp(error)).await;
                None
            }
            DispatchCommand::MissDeadline(id) => {
                self.end(id, TaskCommand::MissDeadline).await;
                None
            }
        }
    }
}
