//! One visit at a door: who comes, what is asked, and what it comes to. The same in every binding.

use super::errors::{A2aError, Asked, Named};
use super::request::{List, Operation, Params, Send, token};
use crate::follow::{Follower, Step};
use crate::http::state::EdgeState;
use app::a2a::{AVAILABILITY, Door, Updates, VERSION, is_at_rest, is_last, push_json, task_json};
use app::{Caller, EventFilter, Selection};
use axum::http::{HeaderMap, Uri};
use domain::task::Task;
use engine::Handled;
use kernel::{Decider, Kind, Rejection};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// After so much silence a stream says that it is there.
const SILENCE: Duration = Duration::from_secs(15);
/// A page of a list ends behind the task with which it has so much.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What sees a task and follows it.
const READ: &str = "tasks.read";

/// Somebody at a door.
pub(super) struct Visit {
    pub state: Arc<EdgeState>,
    pub caller: Caller,
    pub door: Door,
    /// Whether the client wants to know with each task whether its agent can take more.
    pub wants_availability: bool,
}

/// What an operation comes to.
pub(super) enum Outcome {
    /// One answer.
    One(Value),
    /// A task, and what happens to it.
    Stream(Box<Telling>),
}

impl Visit {
    /// Carries an operation out.
    pub async fn perform(self, operation: Operation) -> Result<Outcome, A2aError> {
        let asked = if matches!(operation, Operation::Cancel { .. }) { Asked::Cancel } else { Asked::Anything };
        let done = match operation {
            Operation::Send(send) => self.send(*send).await.map(Outcome::One),
            Operation::SendStreaming(send) => return self.stream(*send).await,
            Operation::Subscribe { id } => return self.subscribe(&id).await,
            Operation::Get { id, history_max } => self.get(&id, history_max).await.map(Outcome::One),
            Operation::List(list) => self.list(*list).await.map(Outcome::One),
            Operation::Cancel { id } => self.cancel(&id).await.map(Outcome::One),
            Operation::Card => self.card().await.map(Outcome::One),
            of_push => self.push(of_push).await.map(Outcome::One),
        };
        done.map_err(|rejection| A2aError::of(asked, rejection))
    }

    /// The caller with what a permission reaches.
    fn may(&self, permission: &str) -> Result<Caller, Rejection> {
        let reach = self.state.app.authorise(&self.caller.actor, permission)?;
        Ok(Caller { reach, ..self.caller.clone() })
    }

    /// Takes a message, and with it an address that wants to be told.
    async fn take(&self, send: &mut Send) -> Result<Handled<Task>, Rejection> {
        let app = &self.state.app;
        let permission = if send.order.task.is_some() { "tasks.update" } else { "tasks.create" };
        // What would be refused afterwards is refused before anything is done.
        if let Some(push) = &send.push {
            app.check_push(push)?;
        }
        if send.push.is_some() || !send.is_immediate {
            self.may(READ)?;
        }
        let task = app.a2a_send(&self.may(permission)?, &self.door, send.order.clone()).await?;
        if let Some(push) = send.push.take() {
            app.configure_push(&self.may(READ)?, &task, task.version, push).await?;
        }
        Ok(task)
    }

    async fn send(&self, mut send: Send) -> Result<Value, Rejection> {
        let mut task = self.take(&mut send).await?;
        if !send.is_immediate && !is_at_rest(&task.state) {
            let mut telling = self.follow(task.clone()).await?;
            while telling.next().await.is_some() {}
            task = self.state.app.a2a_task(&self.may(READ)?, &self.door, &task.stream).await?;
        }
        Ok(json!({ "task": self.shown(&task, send.history_max, true).await? }))
    }

    async fn stream(&self, mut send: Send) -> Result<Outcome, A2aError> {
        let of = |rejection| A2aError::of(Asked::Anything, rejection);
        self.may(READ).map_err(of)?;
        let task = self.take(&mut send).await.map_err(of)?;
        let first = self.shown(&task, send.history_max, true).await.map_err(of)?;
        Ok(Outcome::Stream(Box::new(self.follow(task).await.map_err(of)?.beginning_with(first))))
    }

    async fn subscribe(&self, id: &str) -> Result<Outcome, A2aError> {
        let of = |rejection| A2aError::of(Asked::Anything, rejection);
        let task = self.state.app.a2a_task(&self.may(READ).map_err(of)?, &self.door, id).await.map_err(of)?;
        if Task::is_terminal(&task.state) {
            let message = format!("The task is {}: nothing more happens to it.", task.state.status.as_str());
            let rejection = Rejection::new(Kind::Conflict, "TASK_NOT_OPEN", message, "Read it with GetTask.");
            return Err(A2aError::new(Named::UnsupportedOperation, rejection));
        }
        let first = self.shown(&task, None, true).await.map_err(of)?;
        let mut telling = self.follow(task).await.map_err(of)?.beginning_with(first);
        // Whoever comes while the task waits for an answer wants to know what comes of it.
        telling.is_over = false;
        Ok(Outcome::Stream(Box::new(telling)))
    }

    async fn follow(&self, task: Handled<Task>) -> Result<Telling, Rejection> {
        let wanted =
            Selection { plain: EventFilter { stream: Some(task.stream.clone()), ..EventFilter::default() }, filter: None };
        let actor = self.caller.actor.clone();
        let tenant = actor.tenant;
        let follower = self.state.rooms.follow(actor, READ, wanted, Some(task.position), false).await?;
        let (updates, is_over) = (Updates::of_task(tenant, &task), is_at_rest(&task.state));
        Ok(Telling { state: self.state.clone(), follower, updates, waiting: VecDeque::new(), is_over })
    }

    async fn get(&self, id: &str, history_max: Option<usize>) -> Result<Value, Rejection> {
        let task = self.state.app.a2a_task(&self.may(READ)?, &self.door, id).await?;
        self.shown(&task, history_max, true).await
    }

    async fn cancel(&self, id: &str) -> Result<Value, Rejection> {
        let task = self.state.app.a2a_cancel(&self.may("tasks.update")?, &self.door, id).await?;
        self.shown(&task, None, true).await
    }

    async fn list(&self, list: List) -> Result<Value, Rejection> {
        let found = self.state.app.a2a_tasks(&self.may(READ)?, &self.door, &list.filter).await?;
        let (mut tasks, mut bytes, mut next) = (vec![], 0, found.next);
        // A list shows messages only where they are asked for, and ends early when it grows large.
        let history_max = list.history_max.unwrap_or(0);
        for task in found.tasks {
            if bytes > LIST_BYTES_MAX {
                break;
            }
            let place = (task.updated_at, task.stream.clone());
            let is_plain = history_max == 0 && !list.with_artifacts;
            let task = if is_plain { task } else { self.state.app.a2a_whole(&self.caller, task).await? };
            let mut shown = task_json(&task, Some(history_max), list.with_artifacts);
            if list.with_artifacts && shown.get("artifacts").is_none() {
                shown["artifacts"] = json!([]);
            }
            bytes += if is_plain { 0 } else { shown.to_string().len() };
            if bytes > LIST_BYTES_MAX {
                next = Some(place);
            }
            tasks.push(shown);
        }
        Ok(json!({
            "tasks": tasks, "nextPageToken": token(next.as_ref()), "pageSize": list.filter.limit, "totalSize": found.total,
        }))
    }

    async fn card(&self) -> Result<Value, Rejection> {
        self.state.app.a2a_card(&self.may("discovery.read")?, &self.door).await
    }

    async fn push(&self, operation: Operation) -> Result<Value, Rejection> {
        let (app, caller) = (&self.state.app, self.may(READ)?);
        let task = async |id: &str| app.a2a_task(&caller, &self.door, id).await;
        match operation {
            Operation::CreatePush { task: id, push } => {
                let task = task(&id).await?;
                Ok(push_json(&app.configure_push(&caller, &task, task.version, push).await?))
            }
            Operation::GetPush { task: id, id: name } => Ok(push_json(&app.push(&caller, &task(&id).await?, &name).await?)),
            Operation::ListPushes { task: id } => {
                let pushes = app.pushes(&caller, &task(&id).await?).await?;
                Ok(json!({ "configs": pushes.iter().map(push_json).collect::<Vec<_>>() }))
            }
            Operation::DeletePush { task: id, id: name } => {
                app.delete_push(&caller, &task(&id).await?, &name).await?;
                Ok(json!({}))
            }
            // The others are carried out elsewhere.
            _ => Ok(Value::Null),
        }
    }

    /// A task as it is shown, with whether its agent can take more where the client wants to know.
    async fn shown(&self, task: &Handled<Task>, history_max: Option<usize>, with_artifacts: bool) -> Result<Value, Rejection> {
        let mut shown = task_json(task, history_max, with_artifacts);
        if self.wants_availability
            && let Some(availability) = self.state.app.a2a_availability(&self.caller, &self.door).await?
        {
            shown["metadata"][AVAILABILITY] = availability;
        }
        Ok(shown)
    }
}

/// What happens to a task, as it happens.
pub(super) struct Telling {
    state: Arc<EdgeState>,
    follower: Follower,
    updates: Updates,
    waiting: VecDeque<Value>,
    is_over: bool,
}

impl Telling {
    fn beginning_with(mut self, task: Value) -> Self {
        self.waiting.push_back(json!({ "task": task }));
        self
    }

    /// What is next, or nothing after a long silence; ends with the task, when it waits for somebody, when the server drains, or
    /// when the caller may not see it any more.
    pub async fn next(&mut self) -> Option<Option<Value>> {
        loop {
            if let Some(update) = self.waiting.pop_front() {
                self.is_over |= is_last(&update);
                return Some(Some(update));
            }
            if self.is_over {
                return None;
            }
            // Only waiting is given up: what was taken out is told.
            let Ok(step) = timeout(SILENCE, self.follower.next()).await else { return Some(None) };
            let Step { page, .. } = step?;
            for event in page.iter().flat_map(|page| &page.events) {
                self.waiting.extend(self.updates.of(&self.state.app, event).await.ok()?);
            }
        }
    }
}

/// Whether the version of the protocol is one that is spoken. Nothing said is 0.3, by the specification.
pub(super) fn check_version(headers: &HeaderMap, uri: &Uri) -> Result<(), A2aError> {
    let in_query = || {
        let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("a2a-version")).map(|(_, value)| value.into_owned())
    };
    let header = headers.get("a2a-version").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let version = header.or_else(in_query).filter(|version| !version.trim().is_empty()).unwrap_or_else(|| "0.3".into());
    let is_spoken = version.trim() == VERSION || version.trim().starts_with(&format!("{VERSION}."));
    if is_spoken {
        return Ok(());
    }
    let version: String = version.chars().take(32).collect();
    let message = format!("A2A {version} is not spoken here; {VERSION} is. Without an A2A-Version header, 0.3 is meant.");
    let hint = format!("Send 'A2A-Version: {VERSION}'.");
    let rejection = Rejection::new(Kind::Invalid, "VERSION_UNSUPPORTED", message, hint);
    Err(A2aError::new(Named::VersionNotSupported, rejection))
}

/// Whether a client asks for an extension.
pub(super) fn wants(headers: &HeaderMap, extension: &str) -> bool {
    let all = headers.get_all("a2a-extensions").into_iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|list| list.split(',')).any(|name| name.trim() == extension)
}

/// Whether the tenant that a request names is the caller's.
pub(super) fn check_tenant(params: &Params, caller: &Caller) -> Result<(), A2aError> {
    match params.tenant() {
        Some(tenant) if tenant != caller.actor.tenant_slug => {
            let message = format!("These credentials are not of the tenant '{}'.", tenant.chars().take(64).collect::<String>());
            let hint = "Leave the tenant away: the credentials say it.";
            Err(A2aError::of(Asked::Anything, Rejection::new(Kind::Forbidden, "PERMISSION_DENIED", message, hint)))
        }
        _ => Ok(()),
    }
}
