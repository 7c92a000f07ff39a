//! One server under supervision: connect, list, serve, and again after it ended.

use crate::mcp::{CallError, Client, HttpWire, Over, StdioWire, ToolListing, ToolResult};
use crate::{GatewaySettings, Happening, Key, Report, Spec};
use kernel::Json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Calls of one server at a time; more wait.
const CALLS_MAX: usize = 64;
/// Pause before the first new start; doubled each time up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this long without trouble the pause is short again.
const STEADY: Duration = Duration::from_secs(60);
/// How often an idle server is asked whether it is there, and over HTTP for its tools.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes of the list of tools within this time are one.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks at a list that the server says has changed: each change is written down.
const RELIST_EVERY: Duration = Duration::from_secs(5);
const REASON_CHARS_MAX: usize = 1_000;

/// What a caller finds.
#[derive(Clone)]
enum Condition {
    Starting,
    Ready(Arc<Client>, Arc<Vec<ToolListing>>),
    Failed(String),
}

/// A server and its supervisor.
pub(crate) struct Upstream {
    condition: watch::Receiver<Condition>,
    spec: Arc<Spec>,
    places: Semaphore,
    again: Arc<Notify>,
    stop: CancellationToken,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Upstream {
    /// Starts the supervisor.
    pub fn start(key: Key, spec: Spec, settings: GatewaySettings, reports: mpsc::Sender<Report>) -> Self {
        let (condition, shown) = watch::channel(Condition::Starting);
        let (again, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let spec = Arc::new(spec);
        let supervisor =
            Supervisor { key, spec: spec.clone(), settings, reports, condition, again: again.clone(), stop: stop.clone() };
        let running = tokio::spawn(supervisor.run());
        Upstream { condition: shown, spec, places: Semaphore::new(CALLS_MAX), again, stop, supervisor: Mutex::new(Some(running)) }
    }

    /// Calls a tool.
    ///
    /// `hash` is the listing that was approved: what the server lists now must be the same.
    pub async fn call(&self, tool: &str, hash: &str, arguments: &Json, timeout: Duration) -> Result<ToolResult, CallError> {
        let begun = Instant::now();
        let place = tokio::time::timeout(timeout, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(CallError::Busy) };
        let condition = self.condition.borrow().clone();
        match condition {
            Condition::Ready(client, listed) => match listed.iter().find(|listing| listing.name == tool) {
                Some(listing) if listing.hash == hash => {
                    let called = client.call(tool, arguments, timeout.saturating_sub(begun.elapsed())).await;
                    called.map_err(|error| error.redacted(&self.spec))
                }
                _ => Err(CallError::Changed),
            },
            Condition::Starting => Err(CallError::NotReady("it is starting".into())),
            Condition::Failed(reason) => Err(CallError::NotReady(reason)),
        }
    }

    /// Connects anew at once.
    pub fn restart(&self) {
        self.again.notify_one();
    }

    /// Ends it and waits until nothing of it is left.
    pub async fn stop(&self) {
        self.stop.cancel();
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            // A panic there was logged; nothing is left to wait for.
            let _ = supervisor.await;
        }
    }
}

struct Supervisor {
    key: Key,
    spec: Arc<Spec>,
    settings: GatewaySettings,
    reports: mpsc::Sender<Report>,
    condition: watch::Sender<Condition>,
    again: Arc<Notify>,
    stop: CancellationToken,
}

/// Why serving ended.
enum End {
    Stopped,
    Restart,
    Trouble(String),
}

impl Supervisor {
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            match self.serve_once().await {
                End::Stopped => return,
                End::Restart => {
                    self.condition.send_replace(Condition::Starting);
                    pause = PAUSE_MIN;
                    continue;
                }
                End::Trouble(reason) => self.fail(&reason).await,
            }
            if begun.elapsed() >= STEADY {
                pause = PAUSE_MIN;
            }
            // Half to one and a half, so that servers which failed together do not come back together.
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>());
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.again.notified() => pause = PAUSE_MIN,
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    async fn fail(&self, reason: &str) {
        let reason: String = self.spec.redact(reason).chars().take(REASON_CHARS_MAX).collect();
        tracing::warn!(server = %self.key.server, %reason, "an MCP server failed; it is started again");
        self.condition.send_replace(Condition::Failed(reason.clone()));
        self.report(Happening::Failed(reason)).await;
    }

    async fn report(&self, what: Happening) {
        // Nobody listens any more when the server stops.
        let _ = self.reports.send(Report { key: self.key, what }).await;
    }

    async fn serve_once(&self) -> End {
        let over = Over::default();
        let connecting = tokio::time::timeout(self.settings.start_timeout, self.connect(&over));
        let connected = tokio::select! {
            () = self.stop.cancelled() => Err(End::Stopped),
            connected = connecting => connected.unwrap_or_else(|_| {
                Err(format!("no answer within {} s of its start", self.settings.start_timeout.as_secs()))
            }).map_err(End::Trouble),
        };
        let end = match connected {
            Ok((client, tools)) => self.serve(client, &over, tools).await,
            Err(end) => end,
        };
        over.finish("it was stopped").await;
        end
    }

    async fn serve(&self, client: Client, over: &Over, tools: Vec<ToolListing>) -> End {
        let client = Arc::new(client);
        let end = self.watch(&client, over, tools).await;
        self.condition.send_replace(match &end {
            End::Trouble(reason) => Condition::Failed(self.spec.redact(reason)),
            End::Restart | End::Stopped => Condition::Starting,
        });
        client.close().await;
        end
    }

    /// What the server lists is what may be called, and is told.
    async fn list(&self, client: &Arc<Client>, tools: &[ToolListing]) {
        self.condition.send_replace(Condition::Ready(client.clone(), Arc::new(tools.to_vec())));
        self.report(Happening::Ready(client.introduction.clone(), tools.to_vec())).await;
    }

    async fn connect(&self, over: &Over) -> Result<(Client, Vec<ToolListing>), String> {
        let bytes_max = self.settings.message_bytes_max;
        let client = match self.spec.as_ref() {
            Spec::Stdio { .. } if !self.settings.allow_spawn => {
                return Err("starting processes is switched off (gateway.allow_spawn)".into());
            }
            Spec::Stdio { command, args, env } => {
                Client::introduce(Arc::new(StdioWire::start(command, args, env, bytes_max, over.clone())?)).await?
            }
            Spec::Http { url, headers } => {
                let wire = HttpWire::new(url, headers, self.settings.allow_private, bytes_max, over.clone())?;
                Client::introduce(Arc::new(wire)).await?
            }
        };
        let tools = client.tools().await?;
        Ok((client, tools))
    }

    /// Until the connection is over, or is to be.
    async fn watch(&self, client: &Arc<Client>, over: &Over, mut tools: Vec<ToolListing>) -> End {
        let is_http = matches!(*self.spec, Spec::Http { .. });
        self.list(client, &tools).await;
        let mut looked_at: Option<Instant> = None;
        loop {
            let relist = tokio::select! {
                () = self.stop.cancelled() => return End::Stopped,
                () = self.again.notified() => return End::Restart,
                reason = over.ended() => return End::Trouble(reason),
                () = over.tools_changed.notified() => {
                    let rest = looked_at.map_or(Duration::ZERO, |at| RELIST_EVERY.saturating_sub(at.elapsed()));
                    tokio::select! {
                        () = self.stop.cancelled() => return End::Stopped,
                        reason = over.ended() => return End::Trouble(reason),
                        () = tokio::time::sleep(rest.max(SETTLE)) => true,
                    }
                }
                () = tokio::time::sleep(LOOK_EVERY) => {
                    if !client.is_busy() && !client.ping(PING_TIMEOUT).await {
                        let reason = if over.is_over() { over.reason() } else { "it does not answer any more".into() };
                        return End::Trouble(reason);
                    }
                    // Over HTTP nothing tells of a change.
                    is_http
                }
            };
            if !relist {
                continue;
            }
            looked_at = Some(Instant::now());
            match tokio::time::timeout(self.settings.start_timeout, client.tools()).await {
                Ok(Ok(listed)) if listed == tools => {}
                Ok(Ok(listed)) => {
                    tools = listed;
                    self.list(client, &tools).await;
                }
                Ok(Err(reason)) => return End::Trouble(reason),
                Err(_) => return End::Trouble("it does not list its tools any more".into()),
            }
        }
    }
}
