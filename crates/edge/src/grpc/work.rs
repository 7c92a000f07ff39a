//! One agent's stream: it says how much it wants, gets tasks, and reports.

use super::caller::{authorised, caller, recognised, status};
use super::service::object;
use super::v1::work_request::What as Said;
use super::v1::work_response::What as Told;
use super::v1::{Assigned, Done, Refused, Stopping, WorkRequest, WorkResponse};
use app::{App, Caller, ClaimOrder, ClaimedTask, RouteClass, TaskOutcome};
use domain::task::{Outcome, TaskError};
use kernel::id::TaskId;
use kernel::{Json, Problem, Rejection, Timestamp, limits};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

/// What the agent must be allowed to.
const CLAIM: &str = "tasks.claim";
const WORK: &str = "tasks.work";
/// How long one look for work waits.
const WAIT_MS: u64 = 20_000;
/// Reports of one stream that are carried out at a time.
const REPORTS_MAX: usize = 256;
/// For how long it is known who the agent is, before it is asked again.
const KNOWN_FOR: Duration = Duration::from_millis(500);
/// Pause after a refusal that says "not now".
const PAUSE: Duration = Duration::from_millis(500);

/// A stream, shared by its parts.
pub(super) struct Session(Arc<Inner>);

struct Inner {
    app: App,
    metadata: MetadataMap,
    peer: Option<SocketAddr>,
    json_depth_max: usize,
    out: mpsc::Sender<Result<WorkResponse, Status>>,
    known: Mutex<(Instant, Caller)>,
    wanted: watch::Sender<u32>,
    /// Tasks that the agent holds from this stream.
    held: Mutex<BTreeSet<String>>,
    freed: Notify,
    reports: Arc<Semaphore>,
}

impl Session {
    /// Checks who it is.
    pub async fn open(
        app: App,
        metadata: MetadataMap,
        peer: Option<SocketAddr>,
        out: mpsc::Sender<Result<WorkResponse, Status>>,
        json_depth_max: usize,
    ) -> Result<Self, Rejection> {
        let agent = caller(&app, &metadata, peer, CLAIM).await?;
        app.authorise(&agent.actor, WORK)?;
        Ok(Session(Arc::new(Inner {
            app,
            metadata,
            peer,
            json_depth_max,
            out,
            known: Mutex::new((Instant::now(), agent)),
            wanted: watch::channel(0).0,
            held: Mutex::default(),
            freed: Notify::new(),
            reports: Arc::new(Semaphore::new(REPORTS_MAX)),
        })))
    }

    /// Until the agent closes its side and everything is answered.
    pub async fn run(self, mut incoming: Streaming<WorkRequest>) {
        let inner = self.0;
        let claiming = tokio::spawn(inner.clone().claim());
        loop {
            let message = tokio::select! {
                biased;
                () = inner.out.closed() => break,
                message = incoming.message() => message,
            };
            let Ok(Some(WorkRequest { number, what })) = message else { break };
            match what {
                Some(Said::Want(want)) => drop(inner.wanted.send_replace(want.tasks)),
                Some(said) => {
                    // The semaphore is never closed.
                    let Ok(place) = inner.reports.clone().acquire_owned().await else { break };
                    inner.pace().await;
                    let inner = inner.clone();
                    tokio::spawn(async move {
                        inner.report(number, said).await;
                        drop(place);
                    });
                }
                None => inner.refuse(number, &invalid("/what", "says nothing that is known")).await,
            }
        }
        claiming.abort();
        // What was taken in is answered.
        let _ = inner.reports.acquire_many(REPORTS_MAX as u32).await;
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent, looked at again now and then: a key that was revoked ends the stream's work.
    async fn agent(&self) -> Result<Caller, Rejection> {
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.0.elapsed() < KNOWN_FOR {
                return Ok(known.1.clone());
            }
        }
        let (actor, origin) = recognised(&self.app, &self.metadata, self.peer).await?;
        let agent = authorised(&self.app, &self.metadata, actor, origin, CLAIM)?;
        self.app.authorise(&agent.actor, WORK)?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), agent.clone());
        Ok(agent)
    }

    /// Counts what comes next against the agent's rate, and waits until there is room: a stream is slowed down where single
    /// requests are refused, and its sender with it.
    async fn pace(&self) {
        let actor = self.known.lock().unwrap_or_else(PoisonError::into_inner).1.actor.clone();
        tokio::select! {
            biased;
            () = self.app.admit_in_time(&actor, RouteClass::Write) => {}
            // What was said before the end is still heard.
            () = self.app.draining().cancelled() => {}
            () = self.out.closed() => {}
        }
    }

    async fn tell(&self, what: Told) {
        // Whoever left needs no answer.
        let _ = self.out.send(Ok(WorkResponse { what: Some(what) })).await;
    }

    async fn refuse(&self, number: u64, rejection: &Rejection) {
        self.tell(Told::Refused(Refused {
            number,
            code: rejection.code.to_owned(),
            message: rejection.message.clone(),
            hint: rejection.hint.clone(),
            details_json: serde_json::to_string(&rejection.details).unwrap_or_default(),
        }))
        .await;
    }

    /// Takes work while the agent has room, until the server stops.
    async fn claim(self: Arc<Self>) {
        let mut wanted = self.wanted.subscribe();
        let draining = self.app.draining().clone();
        loop {
            let room = (*wanted.borrow_and_update() as usize).saturating_sub(self.held().len());
            if room == 0 {
                tokio::select! {
                    biased;
                    () = draining.cancelled() => break,
                    changed = wanted.changed() => if changed.is_err() { return },
                    () = self.freed.notified() => {}
                }
                continue;
            }
            let max = u32::try_from(room).unwrap_or(u32::MAX).min(limits::CLAIM_TASKS_MAX);
            self.pace().await;
            let claimed = match self.agent().await {
                Ok(agent) => self.app.claim(&agent, ClaimOrder { max, wait_ms: WAIT_MS }).await,
                Err(rejection) => Err(rejection),
            };
            match claimed {
                Ok((_, true)) => {
                    return self.tell(Told::Stopping(Stopping { reason: "restart".into() })).await;
                }
                Ok((tasks, false)) => {
                    for task in tasks {
                        self.assign(task).await;
                    }
                }
                Err(rejection) if rejection.kind == kernel::Kind::Unavailable => tokio::time::sleep(PAUSE).await,
                Err(rejection) => {
                    // Whoever left needs no answer.
                    let _ = self.out.send(Err(status(&rejection))).await;
                    return;
                }
            }
            if draining.is_cancelled() {
                break;
            }
        }
        self.tell(Told::Stopping(Stopping { reason: "shutdown".into() })).await;
    }

    async fn assign(&self, claimed: ClaimedTask) {
        let ClaimedTask { task, claim_id, token, expires_at } = claimed;
        let submitted = &task.entity.state.submitted;
        self.held().insert(task.entity.stream.clone());
        self.tell(Told::Assigned(Assigned {
            claim_id: claim_id.to_string(),
            claim_token: token.to_string(),
            expires_at_ms: expires_at.0,
            description: submitted.description.clone(),
            capability: submitted.capability.clone(),
            input_json: submitted.input.text().to_owned(),
            context_json: submitted.context.text().to_owned(),
            attempt: task.entity.state.attempt(),
            task_id: task.entity.stream.clone(),
        }))
        .await;
    }

    async fn report(&self, number: u64, said: Said) {
        match self.carried_out(said).await {
            Ok((task_id, status, expires_at)) => {
                if expires_at.is_none() {
                    self.free(&task_id);
                }
                let expires_at_ms = expires_at.map(|at| at.0);
                self.tell(Told::Done(Done { number, task_id, status, expires_at_ms })).await;
            }
            Err((task_id, rejection)) => {
                // Whatever else was wrong can be said again; a claim that is over is over.
                if matches!(rejection.code, "CLAIM_STALE" | "TASK_NOT_OPEN" | "TASK_NOT_FOUND") {
                    self.free(&task_id);
                }
                self.refuse(number, &rejection).await;
            }
        }
    }

    fn free(&self, task_id: &str) {
        if self.held().remove(task_id) {
            self.freed.notify_one();
        }
    }

    async fn carried_out(&self, said: Said) -> Result<(String, String, Option<Timestamp>), (String, Rejection)> {
        let (task_id, token, outcome) = self.understood(said)?;
        let carried_out = async {
            let id: TaskId = task_id.parse().map_err(|_| domain::task::not_found(&task_id))?;
            let agent = self.agent().await?;
            self.app.report(&agent, id, &token, outcome).await
        };
        match carried_out.await {
            Ok((task, lease)) => Ok((task_id, task.entity.state.status.as_str().to_owned(), lease)),
            Err(rejection) => Err((task_id, rejection)),
        }
    }

    fn understood(&self, said: Said) -> Result<(String, String, TaskOutcome), (String, Rejection)> {
        match said {
            // Taken before it comes here.
            Said::Want(_) => Err((String::new(), invalid("/want", "is not answered"))),
            Said::Heartbeat(beat) => Ok((beat.task_id, beat.claim_token, TaskOutcome::Heartbeat)),
            Said::Progress(progress) => {
                let (percent, message) = (progress.percent, progress.message);
                if percent.is_some_and(|p| !(0.0..=100.0).contains(&p)) {
                    return Err((progress.task_id, invalid("/progress/percent", "must be 0 to 100")));
                }
                let message = match message.map(|text| short(text, "/progress/message")).transpose() {
                    Ok(message) => message,
                    Err(rejection) => return Err((progress.task_id, rejection)),
                };
                Ok((progress.task_id, progress.claim_token, TaskOutcome::Progress { percent, message }))
            }
            Said::Complete(complete) => match object(&complete.output_json, "/complete/output_json", self.json_depth_max) {
                Ok(output) => {
                    let outcome = Outcome { output, learned_patterns: vec![], metrics: Json::empty_object() };
                    Ok((complete.task_id, complete.claim_token, TaskOutcome::Complete(outcome)))
                }
                Err(rejection) => Err((complete.task_id, rejection)),
            },
            Said::Fail(fail) => {
                let code = if fail.code.is_empty() { "FAILED".to_owned() } else { fail.code };
                match (short(code, "/fail/code"), short(fail.message, "/fail/message")) {
                    (Ok(code), Ok(message)) => {
                        let error = TaskError { code, message };
                        Ok((fail.task_id, fail.claim_token, TaskOutcome::Fail { error, is_retryable: !fail.is_final }))
                    }
                    (Err(rejection), _) | (_, Err(rejection)) => Err((fail.task_id, rejection)),
                }
            }
            Said::Release(release) => match short(release.reason, "/release/reason") {
                Ok(reason) => Ok((release.task_id, release.claim_token, TaskOutcome::Release { reason })),
                Err(rejection) => Err((release.task_id, rejection)),
            },
        }
    }
}

fn invalid(pointer: &str, message: &str) -> Rejection {
    Rejection::invalid(&[Problem { pointer: pointer.to_owned(), message: message.to_owned() }])
}

fn short(text: String, pointer: &str) -> Result<String, Rejection> {
    if text.chars().count() <= limits::DESCRIPTION_CHARS_MAX {
        return Ok(text);
    }
    Err(invalid(pointer, &format!("must have at most {} characters", limits::DESCRIPTION_CHARS_MAX)))
}
