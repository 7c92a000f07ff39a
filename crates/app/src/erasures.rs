//! The erasure of a person. What is asked for is an event; removing everything is the work of whoever leads the log, and
//! may be done again after a crash: what is gone stays gone.

use crate::app::{App, Inner, internal};
use crate::errors::{of_handle, of_store};
use crate::identities::secrets_of;
use crate::workers::each;
use crate::{Answer, Caller, ListOrder, Page};
use async_trait::async_trait;
use domain::erasure::{Completed, Erased, Erasure, ErasureCommand, Requested, begins_own, is_by};
use domain::identity::mail::address_secret;
use domain::process::outstanding::{Effect, Erase, Outstanding};
use domain::task::{Task, TaskCommand};
use engine::{Context, Engine, Executor, Extras, HandleError, Handled, Step};
use kernel::event::ERASED;
use kernel::id::{ErasureId, TenantId, UserId};
use kernel::json::references;
use kernel::{Decider, IndexField, Kind, Recorded, Rejection};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use store::journal::{Journal, JournalQuery};
use store::{ScanFilter, StoreError};

/// Events and entries that are read at a time.
const PAGE: usize = 1_000;
/// Streams that lose their content in one transaction.
const STREAMS: usize = 64;
/// Journal entries that lose their content in one transaction.
const ENTRIES: usize = 500;
/// How often something is tried again because others wrote meanwhile.
const TRIES: usize = 100;
/// How long requests may still be under way that were admitted before.
const SETTLE_MS: u64 = 1_000;

impl App {
    /// Ends a person's account and begins to remove everything that the person said or did from log, journal and tables.
    pub async fn erase(&self, caller: &Caller, subject: &str) -> Answer<Handled<Erasure>> {
        if let Some(known) = self.earlier::<Erasure>(caller).await? {
            return Ok(known);
        }
        let id = match self.known_user(caller, subject).await {
            Ok(user) => {
                self.check_may_end(caller, &user)?;
                self.check_no_mightier(caller, &user).await?;
                if !user.state.is_deleted {
                    let caller = Caller { if_match: None, idempotency: None, ..caller.clone() };
                    self.delete_user(&caller, &user.stream).await?;
                }
                user.stream.parse().map_err(|_| internal("a user without an id".into()))?
            }
            // Something of a person who was erased may have come later, from a request that was under way.
            Err(rejection) => self.erased_before(caller, subject).await?.ok_or(rejection)?,
        };
        self.witness(caller, "audit.erasure.requested", &json!({ "subject": id })).await?;
        let erasure: ErasureId = self.env().id();
        let step = Step::new::<Erasure>(erasure, ErasureCommand::Request(Requested { subject: id }));
        self.execute::<Erasure>(caller, step, Extras::default()).await
    }

    /// Whether somebody of this id was erased before.
    async fn erased_before(&self, caller: &Caller, subject: &str) -> Answer<Option<UserId>> {
        let Ok(id) = subject.parse::<UserId>() else { return Ok(None) };
        let fields = [IndexField::new("subject", id.to_string())];
        let before = each::<Erasure>(self.engine(), caller.actor.tenant, &fields).await.map_err(of_store)?;
        Ok((!before.is_empty()).then_some(id))
    }

    /// One erasure.
    pub async fn erasure(&self, caller: &Caller, id: &str) -> Answer<Handled<Erasure>> {
        let found = match id.parse::<ErasureId>() {
            Ok(id) => self.read::<Erasure>(caller, &id.to_string()).await?,
            Err(_) => None,
        };
        found.ok_or_else(|| {
            let message = format!("There is no erasure '{id}' in this tenant.");
            Rejection::new(Kind::NotFound, "ERASURE_NOT_FOUND", message, "List erasures with GET /api/v1/erasures.")
                .with("searched_id", id)
        })
    }

    /// All erasures.
    pub async fn erasures(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Erasure>> {
        self.list::<Erasure>(caller, order, vec![]).await
    }
}

/// Does what erasures ask for: all that run, one after another, and then makes room once.
pub(crate) struct EraseWorker {
    pub app: Weak<Inner>,
    pub engine: Engine,
    pub tenant: TenantId,
    pub turn: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Executor<Outstanding<Erase>> for EraseWorker {
    async fn execute(&self, id: ErasureId) -> Option<()> {
        let app = App(Weak::upgrade(&self.app)?);
        // Asked for again while it is being done.
        let _turn = self.turn.try_lock().ok()?;
        if let Err(error) = self.carry_out(&app).await {
            tracing::warn!(erasure = %id, %error, "an erasure could not be carried out; trying again");
        }
        None
    }
}

impl EraseWorker {
    async fn carry_out(&self, app: &App) -> Answer<()> {
        let running = [IndexField::new("status", "running")];
        let running = each::<Erasure>(&self.engine, self.tenant, &running).await.map_err(of_store)?;
        let mut done = vec![];
        for erasure in running {
            let id = erasure.stream.parse::<ErasureId>().map_err(|_| internal("an erasure without an id".into()))?;
            let subject = erasure.state.subject;
            let mut completed = remove(&self.engine, &app.0.journal, self.tenant, subject, Some(id)).await?;
            // Requests that were admitted before the account ended are over now.
            self.engine.env().sleep_ms(SETTLE_MS).await;
            completed.add(&remove(&self.engine, &app.0.journal, self.tenant, subject, Some(id)).await?);
            done.push((id, completed));
        }
        if done.is_empty() {
            return Ok(());
        }
        scrub(&self.engine, &app.0.journal).await?;
        app.0.sessions.forget(self.tenant);
        let context = Context::system(Erase::NAME);
        for (id, completed) in done {
            tracing::info!(erasure = %id, events = completed.events, entries = completed.entries, "an erasure is complete");
            let step = Step::on::<Erasure>(id, ErasureCommand::Complete(completed));
            self.engine.handle::<Erasure>(self.tenant, step, &context, Extras::default()).await.map_err(of_handle)?;
        }
        Ok(())
    }
}

/// Rewrites what is stored, so that nothing of what was removed is left in free space.
pub(crate) async fn scrub(engine: &Engine, journal: &Arc<dyn Journal>) -> Answer<()> {
    engine.store().scrub().await.map_err(of_store)?;
    journal.scrub().await.map_err(of_store)
}

type Values = BTreeSet<[u8; 32]>;

/// What of a log is a person's.
#[derive(Default)]
struct Found {
    /// Entities that begin with an event of the person.
    streams: BTreeSet<String>,
    /// Those of them that still say something, with the large values that they refer to.
    open: BTreeMap<String, Values>,
    events: u64,
    kept: u64,
    /// Large values that anything else refers to.
    other_values: Values,
    /// Everything up to here was looked at.
    position: u64,
}

impl Found {
    fn take(&mut self, subject: UserId, event: &Recorded) {
        let stream = &event.header.stream;
        if begins_own(subject, event) {
            self.streams.insert(stream.clone());
        }
        let is_own = self.streams.contains(stream);
        let Some(payload) = &event.payload else { return };
        let values = references(payload);
        if is_own && event.header.kind != ERASED {
            self.open.entry(stream.clone()).or_default().extend(values);
            self.events += 1;
        } else {
            self.kept += u64::from(is_by(subject, event));
            self.other_values.extend(values);
        }
    }

    /// Looks at what has been written since.
    async fn look(&mut self, engine: &Engine, tenant: TenantId, subject: UserId) -> Result<(), StoreError> {
        loop {
            let page = engine.store().scan(tenant, self.position, ScanFilter::default(), PAGE).await?;
            page.events.iter().for_each(|event| self.take(subject, event));
            if page.position <= self.position {
                return Ok(());
            }
            self.position = page.position;
        }
    }

    /// The values that only these streams refer to.
    fn values(&self, streams: &[String]) -> Values {
        let own: Values = streams.iter().filter_map(|stream| self.open.get(stream)).flatten().copied().collect();
        own.into_iter().filter(|hash| !self.other_values.contains(hash)).collect()
    }
}

/// Removes what a person said and did from log, journal and tables. May be cut short anywhere and done again: what is
/// needed to find the rest goes last.
pub(crate) async fn remove(
    engine: &Engine,
    journal: &Arc<dyn Journal>,
    tenant: TenantId,
    subject: UserId,
    erasure: Option<ErasureId>,
) -> Answer<Completed> {
    let note = json!(Erased { erasure });
    let context = Context::system(Erase::NAME);
    let mut found = Found::default();
    found.look(engine, tenant, subject).await.map_err(of_store)?;
    call_off(engine, tenant, &found.open, &context).await?;
    // Calling off is an event too, which goes with the rest.
    found.look(engine, tenant, subject).await.map_err(of_store)?;
    let mut ids = found.streams.clone();
    ids.insert(subject.to_string());
    let (entries, entry_values) = remove_entries(journal, tenant, &ids).await.map_err(of_store)?;
    let mut completed = Completed { events: found.events, kept: found.kept, entries, values: entry_values, streams: 0 };
    let open: Vec<String> = found.open.keys().cloned().collect();
    for streams in open.chunks(STREAMS) {
        completed.values += erase_streams(engine, tenant, subject, streams, &mut found, &note, &context).await?;
        completed.streams += streams.len() as u64;
    }
    let secrets = secrets_of(&subject);
    engine.put_aside(tenant, Extras { secrets, ..Extras::default() }).await.map_err(of_store)?;
    Ok(completed)
}

/// Erases some streams together with the values that only they refer to, if nobody has begun to refer to them meanwhile.
async fn erase_streams(
    engine: &Engine,
    tenant: TenantId,
    subject: UserId,
    streams: &[String],
    found: &mut Found,
    note: &serde_json::Value,
    context: &Context,
) -> Answer<u64> {
    for _ in 0..TRIES {
        let values = found.values(streams);
        let extras = Extras {
            values: values.iter().map(|hash| (*hash, None)).collect(),
            if_head: (!values.is_empty()).then_some(found.position),
            secrets: streams.iter().filter_map(|stream| Some((address_secret(&stream.parse().ok()?), None))).collect(),
        };
        let steps: Vec<Step> = streams.iter().map(|stream| Step::erase(kind_of(stream), stream, note.clone())).collect();
        match engine.transact(tenant, &steps, context, extras).await {
            Ok(_) => return Ok(values.len() as u64),
            Err(HandleError::Store(StoreError::ViewMoved(_))) => found.look(engine, tenant, subject).await.map_err(of_store)?,
            Err(error) => return Err(of_handle(error)),
        }
    }
    Err(of_store(StoreError::Busy))
}

/// Calls off work that is still open, so that nobody goes on with it.
async fn call_off(engine: &Engine, tenant: TenantId, streams: &BTreeMap<String, Values>, context: &Context) -> Answer<()> {
    for stream in streams.keys().filter(|stream| kind_of(stream) == Task::KIND) {
        let step = Step::on::<Task>(stream, TaskCommand::Cancel { reason: None });
        match engine.handle::<Task>(tenant, step, context, Extras::default()).await {
            // It has ended already.
            Ok(_) | Err(HandleError::Rejected(_)) => {}
            Err(error) => return Err(of_handle(error)),
        }
    }
    Ok(())
}

/// The kind of entity that a stream is. Only those that a person can own.
fn kind_of(stream: &str) -> &'static str {
    use domain::identity::{consent::Consent, key::Key, mail::Mail, session::Session, user::User};
    let kinds = [Task::KIND, User::KIND, Session::KIND, Key::KIND, Consent::KIND, Mail::KIND];
    kinds.into_iter().find(|kind| stream.rsplit_once('_').is_some_and(|(of, _)| of == *kind)).unwrap_or(Task::KIND)
}

/// What of a journal is a person's.
#[derive(Default)]
struct FoundEntries {
    own: Vec<u64>,
    values: Values,
    other_values: Values,
    /// Everything up to here was looked at.
    position: u64,
}

impl FoundEntries {
    async fn look(&mut self, journal: &Arc<dyn Journal>, tenant: TenantId, ids: &BTreeSet<String>) -> Result<(), StoreError> {
        loop {
            let query = JournalQuery { after: self.position, limit: PAGE, ..JournalQuery::default() };
            let page = journal.entries(tenant, query).await?;
            for entry in &page {
                let Some(data) = &entry.data else { continue };
                let names = serde_json::from_slice(data).is_ok_and(|data| names(&data, ids));
                if names || ids.contains(&entry.header.actor.id) {
                    self.own.push(entry.header.position);
                    self.values.extend(references(data));
                } else {
                    self.other_values.extend(references(data));
                }
            }
            let Some(last) = page.last() else { return Ok(()) };
            self.position = last.header.position;
        }
    }
}

/// Removes the content of journal entries by the person, and of those that name the person or what was the person's.
/// Values first: without the content nobody would find them. Answers how many entries and values.
async fn remove_entries(journal: &Arc<dyn Journal>, tenant: TenantId, ids: &BTreeSet<String>) -> Result<(u64, u64), StoreError> {
    let mut found = FoundEntries::default();
    for _ in 0..TRIES {
        found.look(journal, tenant, ids).await?;
        let values: Vec<[u8; 32]> = found.values.difference(&found.other_values).copied().collect();
        let count = values.len() as u64;
        let erased = match values.is_empty() {
            true => Ok(()),
            false => journal.erase_values(tenant, values, found.position).await,
        };
        match erased {
            Err(StoreError::ViewMoved(_)) => continue,
            other => other?,
        }
        for positions in found.own.chunks(ENTRIES) {
            journal.erase(tenant, positions.to_vec()).await?;
        }
        return Ok((found.own.len() as u64, count));
    }
    Err(StoreError::Busy)
}

/// Whether a value names one of these anywhere.
fn names(value: &serde_json::Value, ids: &BTreeSet<String>) -> bool {
    match value {
        serde_json::Value::String(text) => ids.contains(text),
        serde_json::Value::Array(items) => items.iter().any(|item| names(item, ids)),
        serde_json::Value::Object(fields) => fields.iter().any(|(name, value)| ids.contains(name) || names(value, ids)),
        _ => false,
    }
}
