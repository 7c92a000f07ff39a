//! The way to the outside: mail servers ([`Postbox`]), and MCP servers, each in a supervisor of its own, so that none harms another.
//!
//! A server is connected to, its tools are listed, and calls go to it while it is ready. When it ends, or does not
//! answer, it is started again with growing pauses. What happens to it is told as [`Report`]s; this crate writes nothing
//! down and never touches the store.

mod a2a;
mod access;
mod addresses;
mod document;
mod lanes;
pub mod mcp;
pub mod oauth;
mod orphans;
mod postbox;
mod probe;
mod process;
mod resilience;
mod target;
mod upstream;
mod webhook;

pub use a2a::{AgentEndpoint, AgentTrouble, RemoteAgent};
pub use access::{Access, Holder, Token, Vault};
pub use document::{Document, fetch};
pub use mcp::{Answers, Ask, CallError, Client, Method, Note, Offer, Offers, Outcome, Resume, Tasks, ToolListing};
pub use postbox::{Letter, MailSettings, PostError, Postbox, Way, is_address, smtp_problem};
pub use probe::{Look, look, problem as look_problem};
pub use process::ProcessLimits;
pub use resilience::{AddressFigures, Call, Circuit, CircuitState, Figures, Priority, ToolTimes, Tuning};
pub use target::check as check_target;
pub use webhook::{Notice, tell};

use addresses::Addresses;
use kernel::id::{McpServerId, TenantId};
use resilience::{Shielded, State, Tags};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use upstream::Upstream;

/// What can be set.
#[derive(Clone, Debug)]
pub struct GatewaySettings {
    /// Whether private and link-local addresses may be reached.
    pub allow_private: bool,
    /// Whether processes may be started.
    pub allow_spawn: bool,
    /// How long a call may take when the caller says nothing, and at most.
    pub call_timeout: Duration,
    /// How long a server may take to start and to list its tools.
    pub start_timeout: Duration,
    /// Largest message that a server may send.
    pub message_bytes_max: usize,
    /// What each process of a server may use.
    pub process: ProcessLimits,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        GatewaySettings {
            allow_private: false,
            allow_spawn: true,
            call_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(30),
            message_bytes_max: 16 * 1024 * 1024,
            process: ProcessLimits::default(),
        }
    }
}

/// Which server of which tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub server: McpServerId,
}

/// How a server is reached, with its secrets.
#[derive(Clone)]
pub enum Spec {
    /// A process.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Its environment beside the few variables that every process gets.
        env: Vec<(String, String)>,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Sent along with every request.
        headers: Vec<(String, String)>,
        /// Tokens that are shown beside them.
        access: Option<Access>,
    },
}

impl Spec {
    /// Where it is, over HTTP.
    fn url(&self) -> Option<&str> {
        match self {
            Spec::Stdio { .. } => None,
            Spec::Http { url, .. } => Some(url),
        }
    }

    /// Replaces every secret value in a text that a server caused.
    fn redact(&self, text: &str) -> String {
        const SECRET_CHARS_MIN: usize = 4;
        let secrets = match self {
            Spec::Stdio { env, .. } => env,
            Spec::Http { headers, .. } => headers,
        };
        // A header is often `Bearer <secret>`: its parts are secret too.
        let parts = secrets.iter().flat_map(|(_, value)| std::iter::once(value.as_str()).chain(value.split_whitespace()));
        let long = parts.filter(|part| part.len() >= SECRET_CHARS_MIN && !part.eq_ignore_ascii_case("bearer"));
        long.fold(text.to_owned(), |text, secret| text.replace(secret, "********"))
    }
}

/// How a server is reached, with what all its connections share.
pub(crate) struct Route {
    pub spec: Spec,
    pub kept: target::Kept,
}

impl Route {
    pub fn new(spec: Spec) -> Self {
        Route { spec, kept: target::Kept::default() }
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Its name for itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the protocol that was agreed on.
    pub protocol_version: String,
}

/// What happened to a server.
#[derive(Debug)]
pub struct Report {
    /// Which.
    pub key: Key,
    /// What.
    pub what: Happening,
}

/// See [`Report`].
#[derive(Debug)]
pub enum Happening {
    /// It answered, or offers something else than before.
    Ready(Introduction, Arc<Offers>),
    /// It could not be reached, or ended.
    Failed {
        /// Why.
        reason: String,
        /// Whether it lets nobody in who has not more to show.
        is_locked: bool,
    },
    /// A circuit opened or closed; [`Gateway::circuits`] says which are open.
    Circuits,
}

/// Something that a server told, for whoever follows it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which server.
    pub key: Key,
    /// What changed.
    pub what: What,
}

/// See [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// One of its lists.
    List(mcp::ListKind),
    /// The resource with this URI.
    Resource(String),
}

/// Every upstream. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    settings: GatewaySettings,
    reports: mpsc::Sender<Report>,
    changes: Arc<Changes>,
    /// Resources that somebody wants to be told about, and how many do; kept while a server is exchanged.
    watched: Mutex<BTreeMap<Key, Wishes>>,
    upstreams: Mutex<BTreeMap<Key, Arc<Shielded>>>,
    /// Who changes a server now; one at a time.
    turns: Mutex<BTreeMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// How many want to be told of which resource of a server.
type Wishes = watch::Sender<BTreeMap<String, usize>>;

/// What servers tell, and how often that was something new about their lists.
struct Changes {
    sender: broadcast::Sender<Change>,
    generation: AtomicU64,
}

impl Changes {
    fn tell(&self, change: Change) {
        if let What::List(_) = change.what {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        // Nobody may be listening.
        let _ = self.sender.send(change);
    }
}

/// Reports that wait to be written down; a server waits when there are more.
const REPORTS_MAX: usize = 64;
/// Changes that a slow follower may be behind; it misses what is older.
const CHANGES_MAX: usize = 1_024;

impl Gateway {
    /// No upstreams yet, and where they report to.
    pub fn new(settings: GatewaySettings) -> (Gateway, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(REPORTS_MAX);
        let inner = Inner {
            settings,
            reports,
            changes: Arc::new(Changes { sender: broadcast::Sender::new(CHANGES_MAX), generation: AtomicU64::new(0) }),
            watched: Mutex::default(),
            upstreams: Mutex::default(),
            turns: Mutex::default(),
        };
        (Gateway(Arc::new(inner)), receiver)
    }

    /// The settings.
    pub fn settings(&self) -> &GatewaySettings {
        &self.0.settings
    }

    /// A turn to change a server: whoever reads how it is to be reached inside of it, and then calls [`Gateway::put`], never
    /// puts something older than another did.
    pub async fn turn(&self, key: Key) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
        turn.lock_owned().await
    }

    /// Starts a server, after ending what ran under the same key. Each of `specs` says how one of its addresses is reached: there is
    /// one at least, and several only over HTTP. Call it within a [`Gateway::turn`].
    pub async fn put(&self, key: Key, specs: Vec<Spec>, tuning: Tuning) {
        self.remove(key).await;
        let Inner { settings, reports, changes, .. } = &*self.0;
        let mut urls: Vec<String> = specs.iter().filter_map(Spec::url).map(str::to_owned).collect();
        let tags = Tags::new(&urls);
        if specs.len() == 1 {
            urls.clear();
        }
        let addresses = Arc::new(Addresses::new(key, urls, reports.clone(), changes.clone()));
        let state = Arc::new(State::new(addresses.clone(), tags, tuning, settings.call_timeout));
        let upstreams = specs
            .into_iter()
            .enumerate()
            .map(|(at, spec)| Upstream::start(at, addresses.clone(), spec, settings.clone(), self.wishes(key), state.clone()));
        self.upstreams().insert(key, Arc::new(Shielded::new(upstreams.collect(), state.clone())));
        // What was open before is not any more.
        state.tell_circuits();
        self.0.changes.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Starts a server again at once.
    pub fn restart(&self, key: Key) {
        if let Some(shielded) = self.shielded(key) {
            shielded.upstreams.iter().for_each(Upstream::restart);
        }
    }

    /// Changes how a server's calls are bounded; those under way go on as they began.
    pub fn tune(&self, key: Key, tuning: Tuning) {
        if let Some(shielded) = self.shielded(key) {
            shielded.state.tune(tuning);
        }
    }

    /// How a server has been doing here.
    pub fn figures(&self, key: Key) -> Option<Figures> {
        Some(self.shielded(key)?.figures())
    }

    /// The circuits of a server that are not closed.
    pub fn circuits(&self, key: Key) -> Vec<Circuit> {
        self.shielded(key).map(|shielded| shielded.circuits()).unwrap_or_default()
    }

    /// Ends a server and waits until its process is gone.
    pub async fn remove(&self, key: Key) {
        let removed = self.upstreams().remove(&key);
        self.0.changes.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(shielded) = removed {
            shielded.stop().await;
        }
    }

    /// Ends every server of a tenant, after whoever changes one now.
    pub async fn remove_all(&self, tenant: TenantId) {
        let known = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ends = known.into_keys().filter(|key| key.tenant == tenant).map(async |key| {
            let _turn = self.turn(key).await;
            self.remove(key).await;
        });
        futures_util::future::join_all(ends).await;
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.tenant != tenant);
    }

    /// Hands a call on to a server. A tool must be listed as it was approved. Dropping the future cancels the request.
    pub async fn ask(&self, key: Key, mut call: Call) -> Result<Outcome, CallError> {
        call.timeout = call.timeout.min(self.0.settings.call_timeout);
        let shielded = match self.shielded(key) {
            Some(shielded) => shielded,
            // Perhaps it is being exchanged.
            None => {
                let _ = tokio::time::timeout(call.timeout, self.turn(key)).await;
                self.shielded(key).ok_or_else(|| CallError::NotReady("it is not running".into()))?
            }
        };
        shielded.ask(call.anew()).await
    }

    /// What a server listed last, also while it is not there.
    pub fn offers(&self, key: Key) -> Arc<Offers> {
        self.shielded(key).map(|shielded| shielded.state.offers()).unwrap_or_default()
    }

    /// Everything that servers tell from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.0.changes.sender.subscribe()
    }

    /// Raised whenever a server offers something else than before.
    pub fn generation(&self) -> u64 {
        self.0.changes.generation.load(Ordering::Acquire)
    }

    /// Wants to be told of changes of a resource, until what is returned is dropped.
    pub fn watch_resource(&self, key: Key, uri: &str) -> Watched {
        self.wish(key, uri, true);
        Watched { gateway: self.clone(), key, uri: uri.to_owned() }
    }

    fn wishes(&self, key: Key) -> Wishes {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }

    fn wish(&self, key: Key, uri: &str, is_wanted: bool) {
        self.wishes(key).send_if_modified(|watched| {
            let before = watched.get(uri).copied().unwrap_or_default();
            let now = if is_wanted { before + 1 } else { before.saturating_sub(1) };
            if now == 0 {
                watched.remove(uri)
            } else {
                watched.insert(uri.to_owned(), now)
            };
            (before == 0) != (now == 0)
        });
    }

    /// Ends the connections of a server that use one holder's account.
    pub fn forget_holder(&self, key: Key, holder: &Holder) {
        if let Some(shielded) = self.shielded(key) {
            shielded.upstreams.iter().for_each(|upstream| upstream.forget_holder(holder));
        }
    }

    /// Ends every connection that belongs to a party alone.
    pub fn forget_party(&self, tenant: TenantId, party: [u8; 32]) {
        let own: Vec<_> = self.upstreams().iter().filter(|(key, _)| key.tenant == tenant).map(|(_, u)| u.clone()).collect();
        own.iter().flat_map(|shielded| shielded.upstreams.iter()).for_each(|upstream| upstream.forget_party(party));
    }

    /// Ends every server.
    pub async fn close(&self) {
        let all = std::mem::take(&mut *self.upstreams());
        futures_util::future::join_all(all.values().map(|shielded| shielded.stop())).await;
    }

    fn shielded(&self, key: Key) -> Option<Arc<Shielded>> {
        self.upstreams().get(&key).cloned()
    }

    fn upstreams(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<Shielded>>> {
        self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wish to be told of changes of a resource; see [`Gateway::watch_resource`].
pub struct Watched {
    gateway: Gateway,
    key: Key,
    uri: String,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.gateway.wish(self.key, &self.uri, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_what_a_server_says() {
        let spec = Spec::Http {
            url: String::new(),
            headers: vec![("Authorization".into(), "Bearer s3cr3t-value".into())],
            access: None,
        };
        assert_eq!(spec.redact("got s3cr3t-value, and Bearer s3cr3t-value"), "got ********, and ********");
        let spec = Spec::Stdio { command: String::new(), args: vec![], env: vec![("TOKEN".into(), "abcd1234".into())] };
        assert_eq!(spec.redact("no such token: abcd1234"), "no such token: ********");
    }
}
