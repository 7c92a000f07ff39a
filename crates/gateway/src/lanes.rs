//! Connections to a server that belong to one party each, for servers of older versions that know a client by its connection:
//! what it can be asked, which levels of its log it wants to see, and whatever else the server remembers of it.

use crate::access::Holder;
use crate::mcp::{CallError, Client, Connection, Failure, Over};
use crate::{GatewaySettings, Route, Spec};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Connections of one server beside the common one: processes are dear.
const PROCESSES_MAX: usize = 16;
const STREAMS_MAX: usize = 64;
/// How long one is kept that nobody uses: of a session, and else.
const SESSION_IDLE_MAX: Duration = Duration::from_secs(1_800);
const IDLE_MAX: Duration = Duration::from_secs(120);

/// All of one server.
pub(crate) struct Lanes {
    route: Arc<Route>,
    settings: GatewaySettings,
    open: Arc<std::sync::Mutex<Vec<Entry>>>,
    /// One is opened at a time.
    opening: Mutex<()>,
    is_closed: AtomicBool,
}

struct Entry {
    lane: Arc<Line>,
    party: [u8; 32],
    owner: [u8; 32],
    holder: Holder,
    is_session: bool,
    /// How many requests run over it.
    users: usize,
    used: Instant,
}

struct Line {
    connection: Connection,
    held: Held,
    declared: serde_json::Map<String, serde_json::Value>,
    /// The tools that the server listed over it, with their hashes: it may be another version of the server.
    tools: BTreeMap<String, String>,
}

/// Ends what belongs to a connection when nobody holds it any more, whichever way that came.
struct Held(Over);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end("it is not used any more");
    }
}

/// A connection in use. Given back when it is dropped.
pub(crate) struct Lane {
    line: Arc<Line>,
    open: Arc<std::sync::Mutex<Vec<Entry>>>,
}

impl Lane {
    /// Whether the server lists a tool over this connection as it was approved.
    pub fn lists(&self, tool: &str, approved: &str) -> bool {
        self.line.tools.get(tool).is_some_and(|hash| hash == approved)
    }
}

impl Deref for Lane {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.line.connection
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = open.iter_mut().find(|entry| Arc::ptr_eq(&entry.lane, &self.line)) {
            entry.users = entry.users.saturating_sub(1);
            entry.used = Instant::now();
        }
    }
}

/// Why there is no connection.
pub(crate) enum Refused {
    /// All are in use.
    Busy,
    /// The server could not be reached, or lets nobody in.
    Trouble(Failure),
}

impl Refused {
    pub fn into_call_error(self) -> CallError {
        match self {
            Refused::Busy => CallError::Busy,
            Refused::Trouble(failure) => failure.into_call_error(),
        }
    }
}

impl Lanes {
    pub fn new(route: Arc<Route>, settings: GatewaySettings) -> Self {
        Lanes { route, settings, open: Arc::default(), opening: Mutex::new(()), is_closed: AtomicBool::new(false) }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that is this party's alone. Requests of a session share one; others have one each.
    pub async fn take(&self, client: &Client) -> Result<Lane, Refused> {
        if let Some(lane) = self.known(client) {
            return Ok(lane);
        }
        let _one = self.opening.lock().await;
        if let Some(lane) = self.known(client) {
            return Ok(lane);
        }
        self.make_room(client)?;
        let held = Held(Over::private());
        let connecting = async {
            let (route, settings) = (&self.route, &self.settings);
            let connection = Connection::open(route, settings, &held.0, &client.capabilities, true, &client.holder).await?;
            let tools = connection.tools().await?.into_iter().map(|tool| (tool.name, tool.hash)).collect();
            Ok((connection, tools))
        };
        let connected = match tokio::time::timeout(self.settings.start_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Failure::from("no answer to a further connection in time".to_owned())),
        };
        match connected {
            Ok((connection, tools)) => {
                let line = Arc::new(Line { connection, held, declared: client.capabilities.clone(), tools });
                let Client { party, owner, is_session, .. } = *client;
                let holder = client.holder.clone();
                let mut entries = self.entries();
                if self.is_closed.load(Ordering::Acquire) {
                    return Err(Refused::Trouble("it was stopped".to_owned().into()));
                }
                entries.push(Entry { lane: line.clone(), party, owner, holder, is_session, users: 1, used: Instant::now() });
                Ok(Lane { line, open: self.open.clone() })
            }
            Err(failure) => Err(Refused::Trouble(failure)),
        }
    }

    /// Whether there is one of a party.
    pub fn has(&self, party: [u8; 32]) -> bool {
        self.entries().iter().any(|entry| entry.party == party && !entry.lane.held.0.is_over())
    }

    fn known(&self, client: &Client) -> Option<Lane> {
        let mut entries = self.entries();
        let fits = |entry: &&mut Entry| {
            entry.party == client.party
                && entry.holder == client.holder
                && entry.is_session == client.is_session
                // What is asked or told over it belongs to a request only if there is no other.
                && (entry.is_session || entry.users == 0 || !client.has_a_say())
                && entry.lane.declared == client.capabilities
                && !entry.lane.held.0.is_over()
        };
        let entry = entries.iter_mut().find(fits)?;
        entry.users += 1;
        Some(Lane { line: entry.lane.clone(), open: self.open.clone() })
    }

    /// Ends the one that was idle for the longest, where there are as many as may be, in all or of one owner.
    fn make_room(&self, client: &Client) -> Result<(), Refused> {
        let most = if matches!(self.route.spec, Spec::Stdio { .. }) { PROCESSES_MAX } else { STREAMS_MAX };
        let mut entries = self.entries();
        let mut ended: Vec<Entry> = entries.extract_if(.., |entry| entry.users == 0 && entry.lane.held.0.is_over()).collect();
        let of_owner = entries.iter().filter(|entry| entry.owner == client.owner).count();
        // Nobody takes more than half of the places.
        let own_only = of_owner >= most / 2;
        if own_only || entries.len() >= most {
            let may_go = |entry: &Entry| entry.users == 0 && (!own_only || entry.owner == client.owner);
            let idle = entries.iter().enumerate().filter(|(_, entry)| may_go(entry)).min_by_key(|(_, entry)| entry.used);
            let Some(at) = idle.map(|(at, _)| at) else { return Err(Refused::Busy) };
            ended.push(entries.remove(at));
        }
        // A server that is slow to say good-bye holds nobody up.
        tokio::spawn(finish(ended));
        Ok(())
    }

    /// Ends what belongs to a party.
    pub fn forget(&self, party: [u8; 32]) {
        let ended = self.entries().extract_if(.., |entry| entry.party == party).collect();
        tokio::spawn(finish(ended));
    }

    /// Ends what belongs to a holder: its account may be another one.
    pub fn forget_holder(&self, holder: &Holder) {
        let ended = self.entries().extract_if(.., |entry| entry.holder == *holder).collect();
        tokio::spawn(finish(ended));
    }

    /// Ends what nobody uses any more.
    pub async fn sweep(&self) {
        let is_left = |entry: &mut Entry| {
            let patience = if entry.is_session { SESSION_IDLE_MAX } else { IDLE_MAX };
            entry.users == 0 && (entry.used.elapsed() > patience || entry.lane.held.0.is_over())
        };
        let ended = self.entries().extract_if(.., is_left).collect();
        finish(ended).await;
    }

    /// Ends all: the server is another one from now on.
    pub fn renew(&self) {
        let ended = std::mem::take(&mut *self.entries());
        tokio::spawn(finish(ended));
    }

    /// Ends all, and opens no more.
    pub async fn finish(&self) {
        self.is_closed.store(true, Ordering::Release);
        let ended = std::mem::take(&mut *self.entries());
        finish(ended).await;
    }
}

async fn finish(ended: Vec<Entry>) {
    let ends = ended.into_iter().map(async |entry| {
        let over = &entry.lane.held.0;
        over.end("it is not used any more");
        entry.lane.connection.close().await;
        over.finish("it is not used any more").await;
    });
    futures_util::future::join_all(ends).await;
}
