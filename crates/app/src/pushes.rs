//! Addresses that are told of a task: asked for by whoever sees the task, told where the log is led.
//!
//! Everything is told at least once, in order. What was told is not written down, so that whoever leads next begins again at
//! the version from which the address wanted to know.

use crate::a2a::Updates;
use crate::app::{App, Inner, internal};
use crate::errors::{Problems, of_handle, of_store};
use crate::tasks::is_own;
use crate::{Answer, Caller};
use async_trait::async_trait;
use domain::policy::Reach;
use domain::process::outstanding::{Effect, Notify, Outstanding};
use domain::push::{Configured, Ended, Push, PushCommand, Reason, address_secret, name_key_of, not_found};
use domain::task::Task;
use engine::{Context, Engine, Executor, Extras, Handled, Step};
use gateway::{Notice, PostError};
use kernel::id::{PushId, TaskId, TenantId};
use kernel::{Decider, IndexField, Kind, Rejection};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, Weak};

/// Addresses of one caller and task that go on.
const PER_TASK_MAX: usize = 8;
/// Addresses of one caller that go on.
const PER_CALLER_MAX: usize = 100;
/// Addresses of one tenant that go on.
const PER_TENANT_MAX: usize = 1_000;
/// Characters of an address, its credentials and its token.
const TEXT_CHARS_MAX: usize = 4_096;
/// How often one message is tried, with pauses that double from one second on.
const TRIES_MAX: u32 = 7;
/// After a look at the task, the next one is at least so much later.
const GATHER_MS: u64 = 100;

/// An address that wants to be told.
#[derive(Clone, Debug, Default)]
pub struct NewPush {
    /// What whoever asks calls it; its id when nothing is said.
    pub name: Option<String>,
    /// Where to.
    pub url: String,
    /// A token that goes with each message.
    pub token: Option<String>,
    /// Scheme and credentials of HTTP authentication.
    pub authentication: Option<(String, Option<String>)>,
}

/// What is sealed of it.
#[derive(Serialize, Deserialize)]
struct Address {
    url: String,
    token: Option<String>,
    scheme: Option<String>,
    credentials: Option<String>,
}

/// An address as it is shown: without its secrets.
#[derive(Clone, Debug)]
pub struct PushView {
    /// What it is called.
    pub name: String,
    /// Of which task.
    pub task: TaskId,
    /// Where to.
    pub url: String,
    /// The scheme of HTTP authentication.
    pub scheme: Option<String>,
}

impl App {
    /// Begins to tell an address of a task, from behind one of its versions. One of the same name is replaced.
    pub async fn configure_push(&self, caller: &Caller, task: &Handled<Task>, after: u64, new: NewPush) -> Answer<PushView> {
        let task_id: TaskId = task.stream.parse().map_err(|_| domain::task::not_found(&task.stream))?;
        self.check_push(&new)?;
        let tenant = caller.actor.tenant;
        let id: PushId = self.env().id();
        let name = new.name.clone().unwrap_or_else(|| id.to_string());
        if let Some(known) = self.holder(tenant, &name_key_of(&task_id, &caller.actor.who.id, &name)).await? {
            self.end_push(caller, &known).await?;
        }
        self.check_push_room(caller, &task.stream).await?;
        let (scheme, credentials) = new.authentication.map_or((None, None), |(scheme, credentials)| (Some(scheme), credentials));
        let host = gateway::check_target(&new.url, true).ok().and_then(|url| url.host_str().map(str::to_owned));
        let view = PushView { name: name.clone(), task: task_id, url: new.url.clone(), scheme: scheme.clone() };
        let address = Address { url: new.url, token: new.token, scheme, credentials };
        let place = address_secret(&id);
        let plain = serde_json::to_vec(&address).map_err(|e| internal(e.to_string()))?;
        let sealed = self.0.crypto.sealer.seal(tenant, &place, &plain, self.env().bytes()).map_err(internal)?;
        let configured = Configured { task_id, by: caller.actor.who.id.clone(), name, host: host.unwrap_or_default(), after };
        let step = Step::new::<Push>(id, PushCommand::Configure(configured));
        let extras = Extras { secrets: vec![(place, Some(sealed))], ..Extras::default() };
        let plain_caller = Caller { idempotency: None, if_match: None, ..caller.clone() };
        self.execute::<Push>(&plain_caller, step, extras).await?;
        Ok(view)
    }

    /// One address of a task that is told.
    pub async fn push(&self, caller: &Caller, task: &Handled<Task>, name: &str) -> Answer<PushView> {
        let push = self.named_push(caller, task, name).await?.ok_or_else(|| not_found(name))?;
        self.shown_push(caller.actor.tenant, &push).await
    }

    /// The caller's own addresses that are told of a task. Those of others are theirs: an address is often a secret.
    pub async fn pushes(&self, caller: &Caller, task: &Handled<Task>) -> Answer<Vec<PushView>> {
        let mut shown = vec![];
        let all = self.open_pushes(caller.actor.tenant, Some(&task.stream)).await?;
        for push in all.into_iter().filter(|push| push.state.configured.by == caller.actor.who.id) {
            shown.push(self.shown_push(caller.actor.tenant, &push).await?);
        }
        Ok(shown)
    }

    /// Tells an address nothing more. Taking it back twice is taking it back.
    pub async fn delete_push(&self, caller: &Caller, task: &Handled<Task>, name: &str) -> Answer<()> {
        match self.named_push(caller, task, name).await? {
            Some(push) => self.end_push(caller, &push.stream).await,
            None => Ok(()),
        }
    }

    async fn named_push(&self, caller: &Caller, task: &Handled<Task>, name: &str) -> Answer<Option<Handled<Push>>> {
        let Ok(task_id) = task.stream.parse() else { return Ok(None) };
        match self.holder(caller.actor.tenant, &name_key_of(&task_id, &caller.actor.who.id, name)).await? {
            Some(stream) => self.entity::<Push>(caller.actor.tenant, &stream).await,
            None => Ok(None),
        }
    }

    async fn end_push(&self, caller: &Caller, stream: &str) -> Answer<()> {
        let Ok(id) = stream.parse::<PushId>() else { return Ok(()) };
        let extras = Extras { secrets: vec![(address_secret(&id), None)], ..Extras::default() };
        let step = Step::on::<Push>(id, PushCommand::End(Ended { reason: Reason::Deleted, detail: None }));
        let plain_caller = Caller { idempotency: None, if_match: None, ..caller.clone() };
        self.execute::<Push>(&plain_caller, step, extras).await.map(|_| ())
    }

    async fn shown_push(&self, tenant: TenantId, push: &Handled<Push>) -> Answer<PushView> {
        let configured = &push.state.configured;
        let address = match push.stream.parse() {
            Ok(id) => self.push_address(tenant, &id).await?,
            Err(_) => None,
        };
        let (url, scheme) = address.map_or((configured.host.clone(), None), |address| (address.url, address.scheme));
        Ok(PushView { name: configured.name.clone(), task: configured.task_id, url, scheme })
    }

    async fn push_address(&self, tenant: TenantId, id: &PushId) -> Answer<Option<Address>> {
        let place = address_secret(id);
        let opened = self.open_secret(tenant, &place).await?;
        Ok(opened.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    async fn open_pushes(&self, tenant: TenantId, task: Option<&str>) -> Answer<Vec<Handled<Push>>> {
        let mut fields = vec![IndexField::new("status", "open")];
        fields.extend(task.map(|task| IndexField::new("task", task)));
        crate::workers::each::<Push>(self.engine(), tenant, &fields).await.map_err(of_store)
    }

    /// Whether an address can be told at all.
    pub fn check_push(&self, new: &NewPush) -> Answer<()> {
        let mut problems = Problems::default();
        if let Err(problem) = gateway::check_target(&new.url, self.0.settings.fetch_private) {
            problems.add("/url", problem);
        }
        if let Some(name) = &new.name {
            problems.name("/id", name);
        }
        let (scheme, credentials) = new.authentication.as_ref().map_or((None, None), |(s, c)| (Some(s.as_str()), c.as_deref()));
        let is_token =
            |scheme: &str| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if scheme.is_some_and(|scheme| !is_token(scheme)) {
            problems.add("/authentication/scheme", "must be a scheme of HTTP authentication, such as Bearer");
        }
        let texts =
            [("/url", Some(new.url.as_str())), ("/token", new.token.as_deref()), ("/authentication/credentials", credentials)];
        for (pointer, text) in texts {
            if text.is_some_and(|text| text.len() > TEXT_CHARS_MAX || text.chars().any(|c| c.is_control() || !c.is_ascii())) {
                problems.add(pointer, format!("must have at most {TEXT_CHARS_MAX} characters, all of them printable ASCII"));
            }
        }
        problems.check()
    }

    /// Whether the caller may have one more address told. Nobody takes the places of others.
    async fn check_push_room(&self, caller: &Caller, task: &str) -> Answer<()> {
        let all = self.open_pushes(caller.actor.tenant, None).await?;
        let own = || all.iter().filter(|push| push.state.configured.by == caller.actor.who.id);
        let of_task = own().filter(|push| push.state.configured.task_id.to_string() == task).count();
        let limits = [
            (of_task, PER_TASK_MAX, "for you and this task"),
            (own().count(), PER_CALLER_MAX, "for you"),
            (all.len(), PER_TENANT_MAX, "in this tenant"),
        ];
        match limits.into_iter().find(|(count, max, _)| count >= max) {
            None => Ok(()),
            Some((_, max, whose)) => {
                let message = format!("At most {max} addresses are told at a time {whose}, and that many are.");
                let hint = "Take one back, or wait until a task ends.";
                Err(Rejection::new(Kind::Refused, "QUOTA_REACHED", message, hint).with("limit", max))
            }
        }
    }
}

/// Tells addresses of tasks, until the tasks have ended.
pub(crate) struct PushWorker {
    pub app: Weak<Inner>,
    pub engine: Engine,
    pub tenant: TenantId,
    /// Those that are being told: asked for again meanwhile, they are left alone.
    pub under_way: Mutex<BTreeSet<PushId>>,
}

#[async_trait]
impl Executor<Outstanding<Notify>> for PushWorker {
    async fn execute(&self, id: PushId) -> Option<()> {
        let is_first = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        if is_first {
            let stop = self.engine.env().stop().clone();
            let told = tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                told = self.tell_all(id) => told,
            };
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Err(error) = told {
                tracing::warn!(push = %id, %error, "an address could not be told of its task; trying again");
            }
        }
        None
    }
}

impl PushWorker {
    async fn tell_all(&self, id: PushId) -> Answer<()> {
        let mut seen = None;
        let mut tail = self.engine.store().tail(self.tenant);
        loop {
            tail.mark_unchanged();
            let push = self.engine.entity::<Push>(self.tenant, &id.to_string()).await.map_err(of_store)?;
            let Some(push) = push.filter(|push| push.state.ended.is_none()) else { return Ok(()) };
            let configured = &push.state.configured;
            let task = self.engine.entity::<Task>(self.tenant, &configured.task_id.to_string()).await.map_err(of_store)?;
            let Some(task) = task else { return self.end(id, Reason::Told, None).await };
            if seen.is_none_or(|seen| seen < task.version) {
                if !self.may_know(&configured.by, &task.state).await? {
                    return self.end(id, Reason::Revoked, None).await;
                }
                if let Err(PostError::Permanent(why) | PostError::Transient(why)) =
                    self.tell_new(id, seen.unwrap_or(configured.after), &task).await?
                {
                    return self.end(id, Reason::Undeliverable, Some(why)).await;
                }
                seen = Some(task.version);
            }
            if Task::is_terminal(&task.state) {
                return self.end(id, Reason::Told, None).await;
            }
            // Whoever holds the sender is the store, which ends after this.
            let _ = tail.changed().await;
            self.engine.env().sleep_ms(GATHER_MS).await;
        }
    }

    /// Whether whoever asked may still see the task.
    async fn may_know(&self, by: &str, task: &Task) -> Answer<bool> {
        let Some(app) = self.app.upgrade().map(App) else { return Ok(true) };
        if app.is_suspended(self.tenant).await? {
            return Ok(false);
        }
        let Some(actor) = app.identity(self.tenant, by).await? else { return Ok(false) };
        let reach = app.authorise(&actor, "tasks.read");
        Ok(reach.is_ok_and(|reach| reach == Reach::All || is_own(task, by)))
    }

    /// Tells what happened to a task behind one of its versions and up to this one.
    async fn tell_new(&self, id: PushId, after: u64, task: &Handled<Task>) -> Answer<Result<(), PostError>> {
        let Some(app) = self.app.upgrade().map(App) else { return Ok(Ok(())) };
        let Some(address) = app.push_address(self.tenant, &id).await? else {
            return Ok(Err(PostError::Permanent("its address cannot be opened".into())));
        };
        let mut updates = Updates::behind(&app, self.tenant, task, after).await?;
        let events = self.engine.store().read(self.tenant, &task.stream, after + 1, (task.version - after) as usize).await;
        for event in events.map_err(of_store)?.iter().filter(|event| event.header.version <= task.version) {
            for update in updates.of(&app, event).await? {
                if let Err(error) = self.tell(&address, &update.to_string(), app.0.settings.fetch_private).await {
                    return Ok(Err(error));
                }
            }
        }
        Ok(Ok(()))
    }

    async fn tell(&self, address: &Address, body: &str, allow_private: bool) -> Result<(), PostError> {
        let mut headers = vec![];
        if let Some(scheme) = &address.scheme {
            let credentials = address.credentials.as_deref().unwrap_or_default();
            headers.push(("authorization", format!("{scheme} {credentials}").trim().to_owned()));
        }
        headers.extend(address.token.iter().map(|token| ("x-a2a-notification-token", token.clone())));
        let mut tries = 1;
        loop {
            let notice =
                Notice { url: &address.url, headers: &headers, media_type: "application/a2a+json", body: body.to_owned() };
            match gateway::tell(notice, allow_private).await {
                Err(PostError::Transient(_)) if tries < TRIES_MAX => {
                    self.engine.env().sleep_ms(1_000 << (tries - 1)).await;
                    tries += 1;
                }
                told => return told,
            }
        }
    }

    async fn end(&self, id: PushId, reason: Reason, detail: Option<String>) -> Answer<()> {
        let extras = Extras { secrets: vec![(address_secret(&id), None)], ..Extras::default() };
        let step = Step::on::<Push>(id, PushCommand::End(Ended { reason, detail }));
        let context = Context::system(Notify::NAME);
        self.engine.handle::<Push>(self.tenant, step, &context, extras).await.map(|_| ()).map_err(of_handle)
    }
}
