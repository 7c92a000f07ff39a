//! The way to the outside: mail servers ([`Postbox`]), and MCP servers, each in a supervisor of its own, so that none harms another.
//!
//! A server is connected to, its tools are listed, and calls go to it while it is ready. When it ends, or does not
//! answer, it is started again with growing pauses. What happens to it is told as [`Report`]s; this crate writes nothing
//! down and never touches the store.

mod document;
mod mcp;
mod postbox;
mod process;
mod target;
mod upstream;

pub use document::{Document, fetch};
pub use mcp::{CallError, ToolListing, ToolResult};
pub use postbox::{Letter, MailSettings, PostError, Postbox, Way, is_address, smtp_problem};
pub use target::check as check_target;

use kernel::id::{McpServerId, TenantId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
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
}

impl Default for GatewaySettings {
    fn default() -> Self {
        GatewaySettings {
            allow_private: false,
            allow_spawn: true,
            call_timeout: Duration::from_secs(60),
            start_timeout: Duration::from_secs(30),
            message_bytes_max: 16 * 1024 * 1024,
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
    },
}

impl Spec {
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
    /// It answered, or lists other tools than before.
    Ready(Introduction, Vec<ToolListing>),
    /// It could not be reached, or ended.
    Failed(String),
}

/// Every upstream. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    settings: GatewaySettings,
    reports: mpsc::Sender<Report>,
    upstreams: Mutex<BTreeMap<Key, Arc<Upstream>>>,
    /// Who changes a server now; one at a time.
    turns: Mutex<BTreeMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

/// Reports that wait to be written down; a server waits when there are more.
const REPORTS_MAX: usize = 64;

impl Gateway {
    /// No upstreams yet, and where they report to.
    pub fn new(settings: GatewaySettings) -> (Gateway, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(REPORTS_MAX);
        (Gateway(Arc::new(Inner { settings, reports, upstreams: Mutex::default(), turns: Mutex::default() })), receiver)
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

    /// Starts a server, after ending what ran under the same key. Call it within a [`Gateway::turn`].
    pub async fn put(&self, key: Key, spec: Spec) {
        self.remove(key).await;
        let upstream = Upstream::start(key, spec, self.0.settings.clone(), self.0.reports.clone());
        self.upstreams().insert(key, Arc::new(upstream));
    }

    /// Starts a server again at once.
    pub fn restart(&self, key: Key) {
        if let Some(upstream) = self.upstream(key) {
            upstream.restart();
        }
    }

    /// Ends a server and waits until its process is gone.
    pub async fn remove(&self, key: Key) {
        let removed = self.upstreams().remove(&key);
        if let Some(upstream) = removed {
            upstream.stop().await;
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

    /// Calls a tool, if its server lists it as it was approved. Dropping the future cancels the call.
    pub async fn call(
        &self,
        key: Key,
        tool: &str,
        hash: &str,
        arguments: &kernel::Json,
        timeout: Duration,
    ) -> Result<ToolResult, CallError> {
        let Some(upstream) = self.upstream(key) else {
            return Err(CallError::NotReady("it is not running".into()));
        };
        upstream.call(tool, hash, arguments, timeout.min(self.0.settings.call_timeout)).await
    }

    /// Ends every server.
    pub async fn close(&self) {
        let all = std::mem::take(&mut *self.upstreams());
        futures_util::future::join_all(all.values().map(|upstream| upstream.stop())).await;
    }

    fn upstream(&self, key: Key) -> Option<Arc<Upstream>> {
        self.upstreams().get(&key).cloned()
    }

    fn upstreams(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<Upstream>>> {
        self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_what_a_server_says() {
        let spec = Spec::Http { url: String::new(), headers: vec![("Authorization".into(), "Bearer s3cr3t-value".into())] };
        assert_eq!(spec.redact("got s3cr3t-value, and Bearer s3cr3t-value"), "got ********, and ********");
        let spec = Spec::Stdio { command: String::new(), args: vec![], env: vec![("TOKEN".into(), "abcd1234".into())] };
        assert_eq!(spec.redact("no such token: abcd1234"), "no such token: ********");
    }
}
