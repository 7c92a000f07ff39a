//! Sessions of clients of older versions, as far as this process has to do with them. What a session is stands in its id; here
//! is what happens in it: requests that run, questions to the client, what it wants to be told.

use super::listen::Resources;
use crate::http::state::EdgeState;
use app::Caller;
use app::mcp::SessionFacts;
use kernel::{Kind, Rejection};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Sessions that are remembered, and for how long one is that does nothing. Forgetting one costs its client nothing but what it
/// asked to be told.
const SESSIONS_MAX: usize = 10_000;
const SESSIONS_OF_OWNER_MAX: usize = 4_000;
const STREAMS_OF_OWNER_MAX: usize = 4_000;
const IDLE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Ended sessions that are remembered.
const ENDED_MAX: usize = 10_000;

/// All sessions of this process.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Arc<Session>>>,
    ended: Mutex<VecDeque<String>>,
    /// Streams that are open, by whose they are.
    followed: Mutex<HashMap<String, usize>>,
}

/// A place for a stream, given back when it is dropped.
pub(super) struct Place {
    state: Arc<EdgeState>,
    owner: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut followed = lock(&self.state.mcp_sessions.followed);
        if let Some(count) = followed.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                followed.remove(&self.owner);
            }
        }
    }
}

/// One session.
pub(super) struct Session {
    pub id: String,
    pub facts: SessionFacts,
    owner: String,
    /// Ends with the session.
    pub over: CancellationToken,
    /// From which level on the client wants to see what servers log.
    pub log_level: Mutex<Option<String>>,
    /// What it asked to be told about.
    pub resources: Resources,
    questions: Mutex<HashMap<String, oneshot::Sender<Option<Value>>>>,
    running: Mutex<HashMap<String, CancellationToken>>,
    /// Where messages go that belong to no request: the stream that was opened last.
    stream: Mutex<Option<mpsc::Sender<String>>>,
    asked: AtomicU64,
    used: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// The session with this id, if it is this caller's at this door and not over.
    pub(super) fn find(&self, state: &EdgeState, caller: &Caller, door: &str, id: &str) -> Option<Arc<Session>> {
        let facts = state.app.mcp_session(caller, door, id)?;
        if lock(&self.ended).iter().any(|ended| ended == id) {
            return None;
        }
        let owner = state.app.mcp_identity(caller);
        let mut open = lock(&self.open);
        if !open.contains_key(id) {
            let own = open.values().filter(|session| session.owner == owner).count();
            if own >= SESSIONS_OF_OWNER_MAX || open.len() >= SESSIONS_MAX {
                forget_one(&mut open, (own >= SESSIONS_OF_OWNER_MAX).then_some(owner.as_str()));
            }
        }
        let session = open.entry(id.to_owned()).or_insert_with(|| Arc::new(Session::new(id, owner, facts)));
        *lock(&session.used) = Instant::now();
        Some(session.clone())
    }

    /// Ends a session.
    pub fn end(&self, id: &str) {
        if let Some(session) = lock(&self.open).remove(id) {
            session.over.cancel();
        }
        let mut ended = lock(&self.ended);
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(id.to_owned());
    }

    /// A place for one more stream of an owner.
    pub(super) fn follow(&self, state: &Arc<EdgeState>, owner: &str) -> Result<Place, Rejection> {
        let mut followed = lock(&self.followed);
        let count = followed.entry(owner.to_owned()).or_default();
        if *count >= STREAMS_OF_OWNER_MAX {
            let message = format!("You follow {STREAMS_OF_OWNER_MAX} streams already.");
            return Err(Rejection::new(Kind::Limited, "RATE_LIMITED", message, "Close one of them first."));
        }
        *count += 1;
        Ok(Place { state: state.clone(), owner: owner.to_owned() })
    }
}

/// Makes room: those that did nothing for long, else the one (of this owner) that did nothing for the longest.
fn forget_one(open: &mut HashMap<String, Arc<Session>>, of: Option<&str>) {
    let before = open.len();
    open.retain(|_, session| session.is_followed() || lock(&session.used).elapsed() < IDLE_MAX);
    if open.len() == before {
        let may_go = |session: &&Arc<Session>| !session.is_followed() && of.is_none_or(|owner| session.owner == owner);
        let oldest = open.values().filter(may_go).min_by_key(|session| *lock(&session.used));
        let oldest = oldest.map(|session| session.id.clone());
        oldest.map(|id| open.remove(&id));
    }
}

impl Session {
    fn new(id: &str, owner: String, facts: SessionFacts) -> Self {
        Session {
            id: id.to_owned(),
            facts,
            owner,
            over: CancellationToken::new(),
            log_level: Mutex::default(),
            resources: Resources::default(),
            questions: Mutex::default(),
            running: Mutex::default(),
            stream: Mutex::default(),
            asked: AtomicU64::new(1),
            used: Mutex::new(Instant::now()),
        }
    }

    /// The level that it wants to see.
    pub fn level(&self) -> Option<String> {
        lock(&self.log_level).clone()
    }

    /// Asks the client: the text of the request, and its answer; nothing when it refuses.
    pub fn question(&self, method: &str, params: Option<&Value>) -> (String, Asked<'_>) {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.questions).insert(number.to_string(), answer);
        let mut request = serde_json::json!({ "jsonrpc": "2.0", "id": number, "method": method });
        if let Some(params) = params {
            request["params"] = params.clone();
        }
        (request.to_string(), Asked { session: self, id: number.to_string(), answered })
    }

    /// Takes an answer of the client; one that nobody waits for is dropped.
    pub fn answered(&self, id: &str, answer: Option<Value>) {
        if let Some(waiting) = lock(&self.questions).remove(id.trim_matches('"')) {
            // Whoever asked may have gone away.
            let _ = waiting.send(answer);
        }
    }

    /// Notes that a request runs, until the guard is dropped.
    pub fn run(self: &Arc<Self>, id: &str) -> Running {
        let token = CancellationToken::new();
        lock(&self.running).insert(id.to_owned(), token.clone());
        Running { session: self.clone(), id: id.to_owned(), token }
    }

    /// Calls a request off.
    pub fn cancel(&self, id: &str) {
        if let Some(token) = lock(&self.running).get(id) {
            token.cancel();
        }
    }

    /// Messages that belong to no request go here from now on.
    pub fn set_stream(&self, out: mpsc::Sender<String>) {
        *lock(&self.stream) = Some(out);
    }

    /// Where messages go that belong to no request.
    pub fn stream(&self) -> Option<mpsc::Sender<String>> {
        lock(&self.stream).clone().filter(|out| !out.is_closed())
    }

    fn is_followed(&self) -> bool {
        self.stream().is_some() || !lock(&self.running).is_empty()
    }
}

/// A question that waits for its answer.
pub(super) struct Asked<'a> {
    session: &'a Session,
    id: String,
    answered: oneshot::Receiver<Option<Value>>,
}

impl Asked<'_> {
    /// The answer; nothing when the client refused, or took too long.
    pub async fn answer(mut self, patience: Duration) -> Option<Value> {
        match tokio::time::timeout(patience, &mut self.answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.session.questions).remove(&self.id);
    }
}

/// A request that runs.
pub(super) struct Running {
    session: Arc<Session>,
    id: String,
    /// Ends when the client calls it off.
    pub token: CancellationToken,
}

impl Running {
    /// Waits for the end of the session.
    pub async fn over(&self) {
        self.session.over.cancelled().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.session.running).remove(&self.id);
    }
}
