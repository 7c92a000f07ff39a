//! Following a log live, whatever the interface: who wants the same of the same log stands in one room and shares its pages.
//!
//! Owns the pace (a room looks at the log at most every 20 ms) and what a follower is told of its place. A page is made when a
//! follower asks for it, so nothing is read ahead for one that does not read. Never knows how an event is written down.

use app::{Answer, App, Selection};
use bytes::Bytes;
use kernel::id::TenantId;
use kernel::{Actor, Recorded};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// What following a log needs.
pub(crate) const PERMISSION: &str = "events.read";
/// After a look at the log, the next one is at least so much later: what happens meanwhile goes out together.
const GATHER: Duration = Duration::from_millis(20);
/// For how long a follower that was allowed to read is not asked again.
const ALLOWED_FOR: Duration = Duration::from_millis(500);
/// A lost wake-up costs at most this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Events of a page.
const PAGE_EVENTS_MAX: usize = 200;
/// Content of a page; one event may be larger.
const PAGE_BYTES_MAX: usize = 256 * 1024;
/// The latest pages that a room keeps for its other followers, ...
const PAGES_MAX: usize = 4;
/// ... if they are no larger than this.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// For how long a page is given to others: what is erased meanwhile is seen no longer than this.
const KEPT_FOR: Duration = Duration::from_secs(1);
/// Events between a follower and the end of the log from which on it has fallen behind.
const BEHIND_EVENTS: u64 = 5_000;

/// The rooms in which somebody stands.
pub(crate) struct Rooms {
    app: App,
    open: Mutex<Vec<Weak<Room>>>,
}

impl Rooms {
    /// No room yet.
    pub fn new(app: App) -> Self {
        Rooms { app, open: Mutex::default() }
    }

    /// Follows a log from behind a position, or from now on, as long as the reader has the permission.
    pub async fn follow(
        &self,
        actor: Actor,
        permission: &'static str,
        wanted: Selection,
        after: Option<u64>,
        is_told: bool,
    ) -> Answer<Follower> {
        let tenant = actor.tenant;
        let after = match after {
            Some(after) => self.app.not_ahead(tenant, after).await?,
            None => self.app.position(tenant),
        };
        let room = self.room(tenant, wanted);
        let tail = self.app.tail(tenant);
        let status = is_told.then_some(Standing::Unknown);
        Ok(Follower {
            room,
            actor,
            permission,
            after,
            tail,
            allowed_at: None,
            is_asked_since: false,
            looks_anyway: false,
            status,
        })
    }

    fn room(&self, tenant: TenantId, wanted: Selection) -> Arc<Room> {
        let mut open = lock(&self.open);
        open.retain(|room| room.strong_count() > 0);
        let known = open.iter().filter_map(Weak::upgrade).find(|room| room.tenant == tenant && room.wanted == wanted);
        known.unwrap_or_else(|| {
            let tail = self.app.tail(tenant);
            let recent = Mutex::new(Recent { horizon: *tail.borrow(), moved_at: None, pages: VecDeque::new() });
            let room = Arc::new(Room { app: self.app.clone(), tenant, wanted, tail, recent });
            open.push(Arc::downgrade(&room));
            room
        })
    }
}

/// Those who want the same of the same log.
struct Room {
    app: App,
    tenant: TenantId,
    wanted: Selection,
    tail: watch::Receiver<u64>,
    recent: Mutex<Recent>,
}

struct Recent {
    /// Pages end here at the latest, so that whoever has come so far goes on together with the others.
    horizon: u64,
    moved_at: Option<Instant>,
    pages: VecDeque<Arc<Page>>,
}

/// Events after one position and up to another, shared.
pub(crate) struct Page {
    after: u64,
    position: u64,
    made_at: Instant,
    /// What there is.
    pub events: Vec<Arc<Recorded>>,
    /// The events as they were written down, in each form.
    written: [OnceLock<Bytes>; FORMS],
}

/// Forms in which events can be written down.
pub(crate) const FORMS: usize = 2;

impl Page {
    /// The events in a form, written down by whoever asks first.
    pub fn written(&self, form: usize, write: impl FnOnce(&[Arc<Recorded>]) -> Bytes) -> Bytes {
        match self.written.get(form) {
            Some(written) => written.get_or_init(|| write(&self.events)).clone(),
            None => write(&self.events),
        }
    }

    /// What was found, no further than the horizon and no larger than a page may be.
    fn cut(after: u64, found: app::ScannedEvents, horizon: u64) -> Page {
        let (mut events, mut position) = (found.events, found.position.clamp(after, horizon.max(after)));
        let mut bytes = 0;
        let left_out = events.iter().position(|event| {
            let is_full = bytes >= PAGE_BYTES_MAX;
            bytes += size(event);
            is_full || event.header.position > horizon
        });
        if let Some(first) = left_out {
            position = position.min(events[first].header.position - 1);
            events.truncate(first);
        }
        Page { after, position, made_at: Instant::now(), events, written: Default::default() }
    }

    fn is_kept(&self, horizon: u64) -> bool {
        let bytes: usize = self.events.iter().map(|event| size(event)).sum();
        self.position == horizon && bytes <= KEPT_BYTES_MAX
    }
}

fn size(event: &Recorded) -> usize {
    event.payload.as_ref().map_or(0, Vec::len)
}

impl Room {
    /// How far pages go at present.
    fn horizon(&self) -> u64 {
        let tail = *self.tail.borrow();
        let mut recent = lock(&self.recent);
        if recent.horizon < tail && recent.moved_at.is_none_or(|at| at.elapsed() >= GATHER) {
            recent.horizon = tail;
            recent.moved_at = Some(Instant::now());
        }
        recent.horizon
    }

    /// When pages may go further.
    fn opens_at(&self) -> Option<Instant> {
        lock(&self.recent).moved_at.map(|at| at + GATHER)
    }

    async fn page(&self, after: u64, horizon: u64) -> Answer<Arc<Page>> {
        let is_fresh = |page: &&Arc<Page>| page.after == after && page.made_at.elapsed() < KEPT_FOR;
        if let Some(page) = lock(&self.recent).pages.iter().find(is_fresh) {
            return Ok(page.clone());
        }
        let found = self.app.select(self.tenant, after, &self.wanted, PAGE_EVENTS_MAX).await?;
        let page = Arc::new(Page::cut(after, found, horizon));
        if page.position > after && page.is_kept(horizon) {
            let mut recent = lock(&self.recent);
            recent.pages.push_back(page.clone());
            if recent.pages.len() > PAGES_MAX {
                recent.pages.pop_front();
            }
        }
        Ok(page)
    }
}

/// Where one follower stands.
pub(crate) struct Follower {
    room: Arc<Room>,
    actor: Actor,
    /// What it needs, checked again and again.
    permission: &'static str,
    after: u64,
    tail: watch::Receiver<u64>,
    allowed_at: Option<Instant>,
    /// Whether everything that was shown was shown after the latest check.
    is_asked_since: bool,
    looks_anyway: bool,
    /// What the follower was told of its place, if it wants to be told.
    status: Option<Standing>,
}

/// What a follower is told: events, something of its place, or both.
pub(crate) struct Step {
    /// Events; never an empty page.
    pub page: Option<Arc<Page>>,
    /// What has changed of its place.
    pub place: Option<Place>,
}

/// A follower's place in the log.
pub(crate) struct Place {
    /// Everything up to here was looked at.
    pub position: u64,
    /// Events that lie ahead.
    pub behind: u64,
    /// Whether nothing lies ahead; else it has fallen behind.
    pub is_caught_up: bool,
}

/// Where a follower stands, as it was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unknown,
    CaughtUp,
    FellBehind,
}

impl Follower {
    /// What is next; ends when the server drains, the log cannot be read, or the reader may not read any more. May be
    /// dropped while it waits and asked again.
    pub async fn next(&mut self) -> Option<Step> {
        loop {
            if !self.may_still_read().await {
                return None;
            }
            let horizon = if std::mem::take(&mut self.looks_anyway) { u64::MAX } else { self.room.horizon() };
            let page = match self.after < horizon {
                true => Some(self.room.page(self.after, horizon).await.ok()?),
                false => None,
            };
            let position = page.as_ref().map_or(self.after, |page| page.position);
            let is_progress = position > self.after;
            self.after = position;
            let page = page.filter(|page| !page.events.is_empty());
            let end = horizon.min(*self.tail.borrow());
            let place = self.place(end, is_progress);
            if page.is_some() || place.is_some() {
                self.is_asked_since = false;
                return Some(Step { page, place });
            }
            if !is_progress && !self.wait().await {
                return None;
            }
        }
    }

    /// Whoever signed out, or lost the key or the permission, sees nothing more after half a second.
    async fn may_still_read(&mut self) -> bool {
        if self.allowed_at.is_some_and(|at| at.elapsed() < ALLOWED_FOR) {
            return true;
        }
        let is_allowed = self.room.app.may_still(&self.actor, self.permission).await;
        (self.allowed_at, self.is_asked_since) = (Some(Instant::now()), true);
        is_allowed
    }

    /// Until there is something to look at; false when the server drains.
    async fn wait(&mut self) -> bool {
        let draining = self.room.app.draining().clone();
        let after = self.after;
        let asked_again = self.allowed_at.filter(|_| !self.is_asked_since).map(|at| at + ALLOWED_FOR);
        let looked_again = Instant::now() + LOOK_AGAIN;
        tokio::select! {
            biased;
            () = draining.cancelled() => return false,
            changed = self.tail.wait_for(|tail| *tail > after) => if changed.is_err() { return false },
            () = tokio::time::sleep_until(asked_again.unwrap_or(looked_again)) => {
                self.looks_anyway = asked_again.is_none();
                return true;
            }
        }
        if let Some(opens_at) = self.room.opens_at() {
            tokio::time::sleep_until(opens_at).await;
        }
        true
    }

    /// What is to be said of the place, if that has changed.
    fn place(&mut self, end: u64, is_progress: bool) -> Option<Place> {
        let known = self.status?;
        let behind = end.saturating_sub(self.after);
        let now = match (behind, is_progress) {
            (0, _) | (_, false) => Standing::CaughtUp,
            (BEHIND_EVENTS.., true) => Standing::FellBehind,
            _ => known,
        };
        self.status = Some(now);
        let is_new = now != known && now != Standing::Unknown;
        is_new.then(|| Place { position: self.after, behind, is_caught_up: now == Standing::CaughtUp })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below panics between two changes, so a poisoned state is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use app::ScannedEvents;
    use kernel::id::EventId;
    use kernel::{ActorRef, Category, EventHeader, Timestamp};

    /// An event with a payload.
    pub(crate) fn event(position: u64, payload: Vec<u8>) -> Arc<Recorded> {
        let header = EventHeader {
            id: EventId::from_bytes([0; 16]),
            kind: "test.thing.made".into(),
            shape: 1,
            category: Category::Domain,
            tenant: TenantId::from_bytes([0; 16]),
            stream: "thing".into(),
            version: position,
            position,
            occurred_at: Timestamp(0),
            recorded_at: Timestamp(0),
            actor: ActorRef::system("test"),
            user: None,
            correlation: String::new(),
            causation: None,
            trace_parent: None,
        };
        Arc::new(Recorded { header, salt: None, payload: Some(payload), payload_hash: [0; 32], leaf: [0; 32] })
    }

    fn cut(after: u64, positions: &[u64], bytes: usize, looked_to: u64, horizon: u64) -> (u64, Vec<u64>) {
        let events = positions.iter().map(|at| event(*at, vec![0; bytes])).collect();
        let page = Page::cut(after, ScannedEvents { events, position: looked_to }, horizon);
        (page.position, page.events.iter().map(|event| event.header.position).collect())
    }

    #[test]
    fn given_more_than_the_horizon_when_cut_then_a_page_ends_there() {
        assert_eq!(cut(3, &[4, 5, 6], 1, 6, 6), (6, vec![4, 5, 6]));
        assert_eq!(cut(3, &[4, 5, 6], 1, 6, 5), (5, vec![4, 5]));
        assert_eq!(cut(3, &[4, 9], 1, 9, 7), (7, vec![4]), "what lies between did not pass the filter");
        assert_eq!(cut(3, &[4], 1, 9, 7), (7, vec![4]));
        assert_eq!(cut(3, &[], 1, 9, 7), (7, vec![]));
        assert_eq!(cut(9, &[], 1, 9, 7), (9, vec![]), "nobody goes back");
    }

    #[test]
    fn given_large_events_when_cut_then_a_page_is_bounded_and_has_at_least_one() {
        assert_eq!(cut(0, &[1, 2, 3, 4], PAGE_BYTES_MAX / 2, 4, 4), (2, vec![1, 2]));
        assert_eq!(cut(0, &[1, 3], PAGE_BYTES_MAX * 2, 3, 3), (2, vec![1]), "up to the one that is left out");
    }
}
