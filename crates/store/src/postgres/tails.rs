//! How far each log is, on every replica: who commits tells the others, and everybody looks now and then.
//!
//! One connection listens and notifies. A notification carries no truth: it says "look". A lost one costs a quarter of a
//! second, after which all heads are read in one query.

use super::connect::{Session, Target, describe};
use super::read;
use crate::ring::Rings;
use crate::*;
use deadpool_postgres::Pool;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;

/// How often all heads are read.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Changes of so long go into one notification.
const GATHER: Duration = Duration::from_millis(5);
/// Pauses between tries to connect.
const BACK_OFF: [u64; 5] = [50, 100, 250, 500, 1_000];
/// Events that are brought into memory at most when a log has moved; beyond that, readers ask the database.
const FETCH_EVENTS_MAX: u64 = 2_000;
/// The channel.
const CHANNEL: &str = "keiko";
/// Bytes that one notification may carry; PostgreSQL refuses 8,000.
const PAYLOAD_BYTES_MAX: usize = 7_000;

/// The tails of all logs, and whether the database is there.
pub(super) struct Tails {
    rings: Rings,
    state: Mutex<State>,
    changed: Notify,
    mail: watch::Sender<u64>,
    is_ended: CancellationToken,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<i32, TenantId>,
    /// What the others are to be told.
    news: BTreeSet<News>,
    down: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    Log(TenantId),
    Mail,
}

impl Tails {
    pub fn new(heads: Vec<(TenantId, i32, u64)>) -> Arc<Self> {
        let tenants = heads.iter().map(|(tenant, number, _)| (*number, *tenant)).collect();
        let rings = Rings::new(heads.into_iter().map(|(tenant, _, head)| (tenant, head)).collect());
        let state = State { tenants, ..State::default() };
        Arc::new(Tails {
            rings,
            state: Mutex::new(state),
            changed: Notify::new(),
            mail: watch::channel(0).0,
            is_ended: CancellationToken::new(),
        })
    }

    pub fn rings(&self) -> &Rings {
        &self.rings
    }

    /// Why the database cannot be reached, when that is so.
    pub fn down(&self) -> Option<String> {
        self.lock().down.clone()
    }

    /// A wake-up for letters.
    pub fn mail(&self) -> watch::Receiver<u64> {
        self.mail.subscribe()
    }

    /// A log got its number.
    pub fn learn(&self, log: TenantId, number: i32) {
        self.lock().tenants.insert(number, log);
    }

    /// Takes in what this process has committed, and tells the others.
    pub fn wrote(&self, log: TenantId, events: Vec<Arc<Recorded>>) {
        if events.is_empty() {
            return;
        }
        self.rings.of(log).push(events);
        self.tell(News::Log(log));
    }

    /// Tells everybody that there are letters.
    pub fn posted(&self) {
        self.tell(News::Mail);
    }

    pub fn end(&self) {
        self.is_ended.cancel();
    }

    fn tell(&self, news: News) {
        self.lock().news.insert(news);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_down(&self, reason: Option<String>) {
        let was_down = std::mem::replace(&mut self.lock().down, reason.clone()).is_some();
        match (was_down, reason) {
            (false, Some(reason)) => {
                tracing::error!(%reason, "the database cannot be reached; requests are refused until it can")
            }
            (true, None) => tracing::info!("the database can be reached again"),
            _ => {}
        }
    }

    /// Listens, tells and looks until the end.
    pub async fn follow(self: Arc<Self>, target: Target, pool: Pool) {
        let mut tries = 0;
        loop {
            let (heard, mut hears) = mpsc::unbounded_channel();
            let outcome = match target.session(heard).await {
                Ok(session) => tokio::select! {
                    () = self.is_ended.cancelled() => return,
                    outcome = self.serve(&session, &pool, &mut hears, &mut tries) => outcome,
                },
                Err(error) => Err(StoreError::Unavailable(describe(&error))),
            };
            if let Err(error) = outcome {
                // A connection that was cut is made again at once; only when that fails the database is gone.
                if tries > 0 {
                    self.set_down(Some(error.to_string()));
                }
            }
            let pause = BACK_OFF[tries.min(BACK_OFF.len() - 1)];
            tries += 1;
            tokio::select! {
                () = self.is_ended.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    async fn serve(
        &self,
        session: &Session,
        pool: &Pool,
        hears: &mut mpsc::UnboundedReceiver<AsyncMessage>,
        tries: &mut usize,
    ) -> Result<(), StoreError> {
        let lost = |e: tokio_postgres::Error| StoreError::Unavailable(describe(&e));
        session.batch_execute(&format!("LISTEN {CHANNEL}")).await.map_err(lost)?;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let heads = tokio::time::timeout(Duration::from_secs(2), read::heads(session)).await;
                    let heads = heads.map_err(|_| StoreError::Unavailable("it does not answer".into()))?.map_err(lost)?;
                    *tries = 0;
                    self.set_down(None);
                    self.look_at(&heads, pool).await;
                    self.mail.send_modify(|n| *n += 1);
                }
                message = hears.recv() => {
                    let Some(message) = message else { return Err(StoreError::Unavailable("the connection ended".into())) };
                    self.hear(message, hears, pool).await;
                }
                () = self.changed.notified() => {
                    tokio::time::sleep(GATHER).await;
                    self.publish(session).await.map_err(lost)?;
                }
            }
        }
    }

    async fn publish(&self, session: &Session) -> Result<(), tokio_postgres::Error> {
        let news = std::mem::take(&mut self.lock().news);
        let numbers: BTreeMap<TenantId, i32> = self.lock().tenants.iter().map(|(number, log)| (*log, *number)).collect();
        let mut words = vec![];
        for one in news {
            match one {
                News::Mail => words.push("m".to_owned()),
                News::Log(log) => {
                    if let Some(number) = numbers.get(&log) {
                        words.push(format!("{number}:{}", self.rings.of(log).known()));
                    }
                }
            }
        }
        let mut payload = String::new();
        for (i, word) in words.iter().enumerate() {
            payload += word;
            payload.push(' ');
            if payload.len() > PAYLOAD_BYTES_MAX || i + 1 == words.len() {
                session.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &payload]).await?;
                payload.clear();
            }
        }
        Ok(())
    }

    async fn hear(&self, first: AsyncMessage, hears: &mut mpsc::UnboundedReceiver<AsyncMessage>, pool: &Pool) {
        let mut heads: BTreeMap<i32, u64> = BTreeMap::new();
        let mut is_mail = false;
        let mut next = Some(first);
        while let Some(message) = next {
            if let AsyncMessage::Notification(notification) = message {
                for word in notification.payload().split_ascii_whitespace() {
                    match word.split_once(':').and_then(|(log, head)| Some((log.parse().ok()?, head.parse().ok()?))) {
                        Some((log, head)) => {
                            let known = heads.entry(log).or_insert(head);
                            *known = head.max(*known);
                        }
                        None => is_mail = true,
                    }
                }
            }
            next = hears.try_recv().ok();
        }
        if is_mail {
            self.mail.send_modify(|n| *n += 1);
        }
        let known: Vec<(TenantId, i32, u64)> = {
            let state = self.lock();
            heads.into_iter().filter_map(|(number, head)| Some((*state.tenants.get(&number)?, number, head))).collect()
        };
        self.look_at(&known, pool).await;
    }

    /// Brings the events of logs that have moved into memory, or at least their position.
    async fn look_at(&self, heads: &[(TenantId, i32, u64)], pool: &Pool) {
        for (log, number, head) in heads {
            self.lock().tenants.entry(*number).or_insert(*log);
            let ring = self.rings.of(*log);
            let known = ring.known();
            if *head <= known {
                continue;
            }
            let is_near = head - known <= FETCH_EVENTS_MAX;
            match if is_near { read::after(pool, *log, *number, known).await } else { Ok(vec![]) } {
                Ok(events) if !events.is_empty() => ring.push(events),
                _ => ring.raise(*head),
            }
        }
    }
}
