//! The erasure of a person. What is asked for is an event; removing everything is the work of whoever leads the log, and
//! may be done again after a crash: what is gone stays gone.

use crate::app::{App, Inner, internal};
use crate::errors::{of_handle, of_store};
use crate::{Answer, Caller, ListOrder, Page};
use async_trait::async_trait;
use domain::erasure::{Completed, Erased, Erasure, ErasureCommand, Requested, begins_own, is_by};
use domain::identity::user::password_secret;
use domain::process::outstanding::{Effect, Erase, Outstanding};
use domain::task::{Task, TaskCommand};
use engine::{Context, Engine, Executor, Extras, HandleError, Handled, Step};
use kernel::event::ERASED;
use kernel::id::{ErasureId, TenantId, UserId};
use kernel::json::references;
use kernel::{Decider, Kind, Recorded, Rejection};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use store::journal::{Journal, JournalQuery};
use store::{ScanFilter, StoreError};

/// Events and entries that are read at a time.
const PAGE: usize = 1_000;
/// Streams that lose their content in one transaction.
const STREAMS: usize = 64;
/// Journal entries that lose their content in one transaction.
const ENTRIES: usize = 500;

impl App {
    /// Ends a person's account and begins to remove everything that the person said or did from log, journal and tables.
    pub async fn erase(&self, caller: &Caller, subject: &str) -> Answer<Handled<Erasure>> {
        if let Some(known) = self.earlier::<Erasure>(caller).await? {
            return Ok(known);
        }
        let user = self.known_user(caller, subject).await?;
        let id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        if !user.state.is_deleted {
            let caller = Caller { if_match: None, idempotency: None, ..caller.clone() };
            self.delete_user(&caller, &user.stream).await?;
        }
        self.witness(caller, "audit.erasure.requested", &json!({ "subject": id })).await?;
        let erasure: ErasureId = self.env().id();
        let step = Step::new::<Erasure>(erasure, ErasureCommand::Request(Requested { subject: id }));
        self.execute::<Erasure>(caller, step, Extras::default()).await
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

/// Does what erasures ask for, one at a time.
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
        if let Err(error) = self.carry_out(&app, id).await {
            tracing::warn!(erasure = %id, %error, "an erasure could not be carried out; trying again");
        }
        None
    }
}

impl EraseWorker {
    async fn carry_out(&self, app: &App, id: ErasureId) -> Answer<()> {
        let erasure = self.engine.entity::<Erasure>(self.tenant, &id.to_string()).await.map_err(of_store)?;
        let Some(erasure) = erasure.filter(|erasure| erasure.state.completed.is_none()) else { return Ok(()) };
        let subject = erasure.state.subject;
        let completed = remove(&self.engine, &app.0.journal, self.tenant, subject, Some(id)).await?;
        app.0.sessions.forget(self.tenant);
        tracing::info!(erasure = %id, events = completed.events, entries = completed.entries, "an erasure is complete");
        let step = Step::on::<Erasure>(id, ErasureCommand::Complete(completed));
        let context = Context::system(Erase::NAME);
        self.engine.handle::<Erasure>(self.tenant, step, &context, Extras::default()).await.map(|_| ()).map_err(of_handle)
    }
}

/// What of a log or journal is a person's.
#[derive(Default)]
struct Found {
    /// Entities that begin with an event of the person.
    streams: BTreeSet<String>,
    /// Those of them that still say something.
    open: BTreeSet<String>,
    events: u64,
    kept: u64,
    /// Large values that these refer to, and those that anything else does.
    own_values: BTreeSet<[u8; 32]>,
    other_values: BTreeSet<[u8; 32]>,
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
            self.open.insert(stream.clone());
            self.events += 1;
            self.own_values.extend(values);
        } else {
            self.kept += u64::from(is_by(subject, event));
            self.other_values.extend(values);
        }
    }

    fn values(&self) -> Vec<[u8; 32]> {
        self.own_values.difference(&self.other_values).copied().collect()
    }
}

/// Removes what a person said and did from log, journal and tables.
pub(crate) async fn remove(
    engine: &Engine,
    journal: &Arc<dyn Journal>,
    tenant: TenantId,
    subject: UserId,
    erasure: Option<ErasureId>,
) -> Answer<Completed> {
    let note = json!(Erased { erasure });
    let found = search(engine, tenant, subject).await.map_err(of_store)?;
    let context = Context::system(Erase::NAME);
    call_off(engine, tenant, &found.open, &context).await?;
    // Calling off is an event too, which goes with the rest.
    let found = search(engine, tenant, subject).await.map_err(of_store)?;
    let open: Vec<&String> = found.open.iter().collect();
    for streams in open.chunks(STREAMS) {
        let steps: Vec<Step> = streams.iter().map(|stream| Step::erase(kind_of(stream), stream, note.clone())).collect();
        engine.transact(tenant, &steps, &context, Extras::default()).await.map_err(of_handle)?;
    }
    let values = found.values();
    let mut ids = found.streams.clone();
    ids.insert(subject.to_string());
    let journaled = remove_entries(journal, tenant, &ids).await.map_err(of_store)?;
    let secrets = vec![(password_secret(&subject), None)];
    let gone = Extras { values: values.iter().map(|hash| (*hash, None)).collect(), secrets };
    engine.put_aside(tenant, gone).await.map_err(of_store)?;
    engine.store().scrub().await.map_err(of_store)?;
    journal.scrub().await.map_err(of_store)?;
    Ok(Completed {
        streams: open.len() as u64,
        events: found.events,
        entries: journaled.0,
        values: values.len() as u64 + journaled.1,
        kept: found.kept,
    })
}

async fn search(engine: &Engine, tenant: TenantId, subject: UserId) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let mut after = 0;
    loop {
        let page = engine.store().scan(tenant, after, ScanFilter::default(), PAGE).await?;
        page.events.iter().for_each(|event| found.take(subject, event));
        if page.events.is_empty() {
            return Ok(found);
        }
        after = page.position;
    }
}

/// Calls off work that is still open, so that nobody goes on with it.
async fn call_off(engine: &Engine, tenant: TenantId, streams: &BTreeSet<String>, context: &Context) -> Answer<()> {
    for stream in streams.iter().filter(|stream| kind_of(stream) == Task::KIND) {
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
    use domain::identity::{key::Key, session::Session, user::User};
    let kinds = [Task::KIND, User::KIND, Session::KIND, Key::KIND];
    kinds.into_iter().find(|kind| stream.rsplit_once('_').is_some_and(|(of, _)| of == *kind)).unwrap_or(Task::KIND)
}

/// Removes the content of journal entries by the person, and of those that name the person or what was the person's.
/// Answers how many entries and values.
async fn remove_entries(journal: &Arc<dyn Journal>, tenant: TenantId, ids: &BTreeSet<String>) -> Result<(u64, u64), StoreError> {
    let (mut own, mut values, mut other_values) = (vec![], BTreeSet::new(), BTreeSet::new());
    let mut after = 0;
    loop {
        let page = journal.entries(tenant, JournalQuery { after, limit: PAGE, ..JournalQuery::default() }).await?;
        for entry in &page {
            let Some(data) = &entry.data else { continue };
            let is_own = ids.contains(&entry.header.actor.id) || serde_json::from_slice(data).is_ok_and(|data| names(&data, ids));
            if is_own {
                own.push(entry.header.position);
                values.extend(references(data));
            } else {
                other_values.extend(references(data));
            }
        }
        let Some(last) = page.last() else { break };
        after = last.header.position;
    }
    for positions in own.chunks(ENTRIES) {
        journal.erase(tenant, positions.to_vec(), vec![]).await?;
    }
    let values: Vec<[u8; 32]> = values.difference(&other_values).copied().collect();
    journal.erase(tenant, vec![], values.clone()).await?;
    Ok((own.len() as u64, values.len() as u64))
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
