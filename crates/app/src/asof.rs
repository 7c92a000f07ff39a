//! Lists as they were: a session folds every entity of a kind up to a position, and serves pages of that for a while.

use crate::app::App;
use crate::errors::of_store;
use crate::{Answer, Caller, ListOrder, Page};
use engine::{Engine, Handled};
use kernel::id::TenantId;
use kernel::{Decider, IndexField, Kind, Rejection};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::StoreError;
use tokio::sync::watch;

/// Sessions that are kept.
const SESSIONS_MAX: usize = 8;
/// Sessions that are put together at a time.
const BUILDING_MAX: usize = 2;
/// For how long one is kept once it is ready: so long at most it shows what was erased meanwhile.
const KEPT_MS: u64 = 60_000;
/// How long a request waits for its session.
const PATIENCE_MS: u64 = 2_000;
/// Entities that all sessions hold together.
const ENTITIES_MAX: usize = 500_000;

/// What a session is of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Of {
    tenant: TenantId,
    kind: &'static str,
    position: u64,
}

/// The entities of a session, by stream; or why there are none.
type Outcome = Option<Result<Arc<dyn Any + Send + Sync>, StoreError>>;

struct Session {
    of: Of,
    looked_at: Arc<AtomicU64>,
    entities: Arc<AtomicUsize>,
    outcome: watch::Receiver<Outcome>,
}

/// The sessions of this process, oldest first.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Vec<Arc<Session>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Session>>> {
        // Nothing below panics between two changes, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is held of a tenant.
    pub fn forget(&self, tenant: TenantId) {
        self.lock().retain(|session| session.of.tenant != tenant);
    }
}

impl App {
    /// Entities of the caller's tenant as they were at a position.
    pub(crate) async fn list_at<D: Decider>(
        &self,
        caller: &Caller,
        position: u64,
        order: &ListOrder,
        fields: &[IndexField],
    ) -> Answer<Page<D::State>> {
        let session = self.session::<D>(Of { tenant: caller.actor.tenant, kind: D::KIND, position })?;
        let mut outcome = session.outcome.clone();
        tokio::select! {
            biased;
            // The sender is kept until it has said something.
            _ = outcome.wait_for(Option::is_some) => {}
            () = self.env().sleep_ms(PATIENCE_MS) => return Err(building(&session)),
        }
        let ready = outcome.borrow().clone();
        match ready {
            None => Err(building(&session)),
            Some(Err(StoreError::Busy)) => Err(too_large()),
            Some(Err(error)) => Err(of_store(error)),
            Some(Ok(entities)) => match entities.downcast::<Entities<D>>() {
                Ok(entities) => Ok(page::<D>(&entities, order, fields, position)),
                Err(_) => Err(crate::app::internal("an as-of session of another kind".into())),
            },
        }
    }

    fn session<D: Decider>(&self, of: Of) -> Answer<Arc<Session>> {
        let mut sessions = self.0.sessions.lock();
        if let Some(known) = sessions.iter().find(|session| session.of == of) {
            return Ok(known.clone());
        }
        let is_building = |session: &&Arc<Session>| session.outcome.borrow().is_none();
        if sessions.iter().filter(is_building).count() >= BUILDING_MAX {
            let message = "Too many lists of the past are being put together.";
            return Err(Rejection::new(Kind::Unavailable, "BUSY", message, "Try again after the time in Retry-After."));
        }
        let held = |sessions: &[Arc<Session>]| sessions.iter().map(|s| s.entities.load(Ordering::Relaxed)).sum::<usize>();
        while sessions.len() >= SESSIONS_MAX || held(&sessions) > ENTITIES_MAX {
            let Some(oldest) = sessions.iter().position(|session| session.outcome.borrow().is_some()) else { break };
            sessions.remove(oldest);
        }
        let (sender, outcome) = watch::channel(None);
        let session = Arc::new(Session { of, looked_at: Arc::default(), entities: Arc::default(), outcome });
        sessions.push(session.clone());
        let (app, kept) = (Arc::downgrade(&self.0), Arc::downgrade(&session));
        let (engine, looked_at, entities) = (self.engine().clone(), session.looked_at.clone(), session.entities.clone());
        self.env().spawn(async move {
            let stop = engine.env().stop().clone();
            let built = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                built = build::<D>(&engine, of, &looked_at, &entities) => built,
            };
            sender.send_replace(Some(built));
            // What was built is held by the session alone, and goes with it.
            drop(sender);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = engine.env().sleep_ms(KEPT_MS) => {}
            }
            if let (Some(inner), Some(kept)) = (app.upgrade(), kept.upgrade()) {
                inner.sessions.lock().retain(|session| !Arc::ptr_eq(session, &kept));
            }
        });
        Ok(session)
    }
}

type Entities<D> = BTreeMap<String, Handled<<D as Decider>::State>>;

async fn build<D: Decider>(
    engine: &Engine,
    of: Of,
    looked_at: &AtomicU64,
    count: &AtomicUsize,
) -> Result<Arc<dyn Any + Send + Sync>, StoreError> {
    let mut entities = Entities::<D>::new();
    let mut after = 0;
    while after < of.position {
        after = engine.fold_page::<D>(of.tenant, after, of.position, &mut entities).await?;
        looked_at.store(after, Ordering::Relaxed);
        count.store(entities.len(), Ordering::Relaxed);
        if entities.len() > ENTITIES_MAX {
            return Err(StoreError::Busy);
        }
    }
    Ok(Arc::new(entities))
}

fn page<D: Decider>(entities: &Entities<D>, order: &ListOrder, fields: &[IndexField], position: u64) -> Page<D::State> {
    let fits = |entity: &&Handled<D::State>| {
        let is_shown = order.with_deleted || !D::is_deleted(&entity.state);
        is_shown
            && (fields.is_empty() || {
                let index = D::index(&entity.state);
                fields.iter().all(|field| index.contains(field))
            })
    };
    let is_beyond = |stream: &str| {
        order.after.as_deref().is_none_or(|after| if order.is_descending { stream < after } else { stream > after })
    };
    let count = order.limit + 1;
    let found: Vec<&Handled<D::State>> = match order.is_descending {
        true => entities.values().rev().filter(|e| is_beyond(&e.stream)).filter(fits).take(count).collect(),
        false => entities.values().filter(|e| is_beyond(&e.stream)).filter(fits).take(count).collect(),
    };
    let next = (found.len() == count).then(|| found.get(order.limit - 1).map(|e| e.stream.clone())).flatten();
    let items = found.into_iter().take(order.limit).map(|entity| Handled { position, ..entity.clone() }).collect();
    Page { items, next, position }
}

fn building(session: &Session) -> Rejection {
    let (done, of) = (session.looked_at.load(Ordering::Relaxed), session.of.position);
    let message = format!("The list as it was then is being put together: {done} of {of} events so far.");
    Rejection::new(Kind::Unavailable, "AS_OF_BUILDING", message, "Ask again after the time in Retry-After.")
        .with("retry_after_s", 1)
        .with("events_done", done)
        .with("events", of)
}

fn too_large() -> Rejection {
    let message = format!("There were more than {ENTITIES_MAX} of these, which is more than a list of the past may hold.");
    let hint = "Read single ones with ?at=, or restore a backup up to that time with 'keiko backup restore --until'.";
    Rejection::new(Kind::Refused, "AS_OF_TOO_LARGE", message, hint)
}
