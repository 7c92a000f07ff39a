//! One address of a server under supervision: connect, list, serve, and again after it ended.

use crate::access::Holder;
use crate::addresses::{Addresses, Standing};
use crate::lanes::Lanes;
use crate::mcp::{self, ASIDE_MAX, Answers, Aside, Ask, CallError, Client, Connection, Conversations, Failure, Method, Note};
use crate::mcp::{Offers, Outcome, Over, Resume, Tasks, WireError, mirror};
use crate::resilience::{Call, State};
use crate::{GatewaySettings, Route, Spec, What, Wishes};
use kernel::Json;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a call waits for a server that is starting.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(5);
/// Pause before the first new start; doubled each time up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this long without trouble the pause is short again.
const STEADY: Duration = Duration::from_secs(60);
/// How often an idle server is asked whether it is there, and over HTTP for what it lists.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes of lists within this time are one.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks at lists that the server says have changed: each change is written down.
const RELIST_EVERY: Duration = Duration::from_secs(1);
const REASON_CHARS_MAX: usize = 1_000;
/// URIs of resources that changed and wait to be told; a flood is thinned out.
const UPDATES_MAX: usize = 256;

/// What a caller finds.
#[derive(Clone)]
enum Condition {
    Starting,
    Ready(Arc<Connection>),
    Failed(Failure),
}

/// What all parts of an upstream share.
struct Shared {
    /// Which of the server's addresses it is.
    at: usize,
    addresses: Arc<Addresses>,
    route: Arc<Route>,
    settings: GatewaySettings,
    condition: watch::Sender<Condition>,
    /// What it listed last, also while it is not there.
    offers: watch::Sender<Arc<Offers>>,
    /// Resources that somebody wants to be told about, and how many do.
    watched: Wishes,
    resilience: Arc<State>,
    lanes: Lanes,
    again: Notify,
    /// Told when a call had trouble: is the server still there?
    look: Notify,
    stop: CancellationToken,
}

/// A server and its supervisor.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    conversations: Arc<Conversations>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Upstream {
    /// Starts the supervisor. `at` says which of the server's addresses it is.
    pub fn start(
        at: usize,
        addresses: Arc<Addresses>,
        spec: Spec,
        settings: GatewaySettings,
        watched: Wishes,
        resilience: Arc<State>,
    ) -> Self {
        let conversations = Arc::<Conversations>::default();
        let route = Arc::new(Route::new(spec));
        let shared = Arc::new(Shared {
            at,
            addresses,
            lanes: Lanes::new(route.clone(), settings.clone()),
            route,
            settings,
            condition: watch::Sender::new(Condition::Starting),
            offers: watch::Sender::new(Arc::default()),
            watched,
            resilience,
            again: Notify::new(),
            look: Notify::new(),
            stop: CancellationToken::new(),
        });
        let supervisor = Supervisor { shared: shared.clone(), conversations: conversations.clone() };
        let running = tokio::spawn(supervisor.run());
        Upstream { shared, conversations, supervisor: Mutex::new(Some(running)) }
    }

    /// Whether it answers.
    pub fn is_ready(&self) -> bool {
        matches!(*self.shared.condition.borrow(), Condition::Ready(_))
    }

    /// Why it does not answer.
    pub fn trouble(&self) -> Option<String> {
        match &*self.shared.condition.borrow() {
            Condition::Failed(failure) => Some(failure.reason.clone()),
            Condition::Ready(_) | Condition::Starting => None,
        }
    }

    /// Whether it lists a tool as it was approved.
    pub fn lists(&self, tool: &str, approved: &str) -> bool {
        self.shared.offers.borrow().tools.iter().any(|listed| listed.name == tool && listed.hash == approved)
    }

    /// Whether a server of an older version answers, which knows its clients by their connections.
    pub fn knows_clients(&self) -> bool {
        matches!(&*self.shared.condition.borrow(), Condition::Ready(connection) if !connection.is_modern())
    }

    /// Whether a client has a connection of its own there.
    pub fn knows(&self, client: &Client) -> bool {
        self.shared.lanes.has(client.party)
    }

    /// Waits until it answers, or is known not to.
    pub async fn settled(&self) -> Result<(), ()> {
        let mut condition = self.shared.condition.subscribe();
        let settled = condition.wait_for(|condition| !matches!(condition, Condition::Starting)).await;
        settled.is_ok_and(|condition| matches!(*condition, Condition::Ready(_))).then_some(()).ok_or(())
    }

    /// Whether it keeps this work waiting.
    pub fn keeps(&self, id: u128) -> bool {
        self.conversations.keeps(id)
    }

    /// Hands a call on, whatever trouble there was before.
    pub async fn ask(&self, call: Call) -> Result<Outcome, CallError> {
        let outcome = self.asked(call).await;
        let is_trouble = |error: &CallError| {
            use CallError::{Interrupted, Lost, NotReady, Timeout, Unreached};
            matches!(error, Lost(_) | Unreached(_) | Interrupted(_) | NotReady(_) | Timeout(_))
        };
        if outcome.as_ref().is_err_and(is_trouble) {
            self.shared.look.notify_one();
        }
        let spec = &self.shared.route.spec;
        match outcome {
            Ok(Outcome::Task(task)) => Ok(Outcome::Task(mcp::tasks::redacted(task, spec))),
            outcome => outcome.map_err(|error| error.redacted(spec)),
        }
    }

    async fn asked(&self, call: Call) -> Result<Outcome, CallError> {
        let Call { ask, approved, client, notes, timeout, .. } = call;
        let begun = Instant::now();
        let connection = self.connection(timeout.min(START_PATIENCE), &client.holder).await?;
        let mirrored = self.mirrored(&ask, approved.as_deref())?;
        let left = || timeout.saturating_sub(begun.elapsed());
        // Whoever looks how it is comes with another request: it runs over the common connection, or that of the account.
        // Answers belong to what was asked before, and make nothing new.
        let makes_one = ask.answers.is_none() && ask.task.is_some() && connection.makes_tasks();
        let is_older_task = !connection.is_modern() && (ask.method.is_of_task() || makes_one);
        let client = if is_older_task { client.silent() } else { client };
        match &ask.answers {
            _ if is_older_task => self.ask_older(connection, &ask, approved.as_deref(), &client, left()).await,
            // It spoke the newest version when it made the task.
            Some(Answers { resume: Resume::Task { .. }, .. }) if !connection.is_modern() => Err(CallError::Gone),
            Some(Answers { resume: Resume::Waiting(id), .. }) => {
                let (id, answers) = (*id, ask.answers.clone().unwrap_or_default());
                self.conversations.resume(id, client.party, answers, notes, left()).await
            }
            _ if !connection.is_modern() && client.is_particular() => {
                self.conversations.make_room(client.owner).await;
                let taking = tokio::time::timeout(left(), self.shared.lanes.take(&client)).await;
                let Ok(taken) = taking else { return Err(CallError::Timeout(timeout.as_millis())) };
                let lane = taken.map_err(|reason| reason.into_call_error())?;
                if approved.as_ref().is_some_and(|hash| !lane.lists(&ask.name, hash)) {
                    return Err(CallError::Changed);
                }
                let party = client.party;
                let outcome = mcp::converse(lane, ask, approved, client, notes, left(), &self.conversations).await;
                self.of_lane(outcome, party)
            }
            _ => {
                let asked = ask_common(connection, &ask, approved.as_deref(), &mirrored, &client, notes);
                let answered = tokio::time::timeout(left(), asked).await;
                answered.unwrap_or(Err(CallError::Timeout(timeout.as_millis())))
            }
        }
    }

    /// What came of a request over a connection that is one party's alone.
    fn of_lane(&self, outcome: Result<Outcome, CallError>, party: [u8; 32]) -> Result<Outcome, CallError> {
        if let Err(CallError::Lost(_) | CallError::Unreached(_) | CallError::Timeout(_)) = outcome {
            // Whatever is wrong with it, the next request gets another one.
            self.shared.lanes.forget(party);
        }
        // It is this client's connection, which others may have ended: nothing follows for the server.
        outcome.map_err(|error| match error {
            CallError::Lost(reason) => CallError::Interrupted(reason),
            other => other,
        })
    }

    /// Has a server of an older version make a task, or asks it about one.
    async fn ask_older(
        &self,
        common: Arc<Connection>,
        ask: &Ask,
        approved: Option<&str>,
        client: &Client,
        timeout: Duration,
    ) -> Result<Outcome, CallError> {
        let asked = async {
            if !client.is_particular() {
                let outcome = mcp::tasks::ask_older(&common, ask, approved, client).await?;
                return awaited(common, outcome, client).await;
            }
            let lane = self.shared.lanes.take(client).await.map_err(|reason| reason.into_call_error())?;
            if approved.is_some_and(|hash| !lane.lists(&ask.name, hash)) {
                return Err(CallError::Changed);
            }
            let outcome = mcp::tasks::ask_older(&lane, ask, approved, client).await?;
            awaited(lane, outcome, client).await
        };
        let outcome = tokio::time::timeout(timeout, asked).await.unwrap_or(Err(CallError::Timeout(timeout.as_millis())));
        if client.is_particular() { self.of_lane(outcome, client.party) } else { outcome }
    }

    /// The connection, soon: one that is being opened is waited for.
    async fn connection(&self, patience: Duration, holder: &Holder) -> Result<Arc<Connection>, CallError> {
        let mut condition = self.shared.condition.subscribe();
        let opened = tokio::time::timeout(patience, condition.wait_for(|condition| !matches!(condition, Condition::Starting)));
        let settled = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => return Err(CallError::NotReady("it was stopped".into())),
            settled = opened => settled,
        };
        match settled.as_ref().map(|settled| settled.as_deref()) {
            Ok(Ok(Condition::Ready(connection))) => Ok(connection.clone()),
            // Whoever uses an account of their own can do nothing about it.
            Ok(Ok(Condition::Failed(failure))) if *holder != Holder::Everybody => {
                Err(CallError::NotReady(failure.reason.clone()))
            }
            Ok(Ok(Condition::Failed(failure))) => Err(failure.clone().into_call_error()),
            Ok(Ok(Condition::Starting) | Err(_)) | Err(_) => Err(CallError::Starting),
        }
    }

    /// The arguments that are said in headers, of a tool that is what was approved.
    fn mirrored(&self, ask: &Ask, approved: Option<&str>) -> Result<Vec<(String, String)>, CallError> {
        if ask.method != Method::CallTool {
            return Ok(vec![]);
        }
        let offers = self.shared.offers.borrow();
        let listed = offers.tools.iter().find(|tool| tool.name == ask.name);
        match listed {
            Some(tool) if approved.is_none_or(|hash| tool.hash == hash) && tool.mirrored.is_empty() => Ok(vec![]),
            Some(tool) if approved.is_none_or(|hash| tool.hash == hash) => {
                let arguments = ask.params.iter().find(|(name, _)| *name == "arguments").map(|(_, value)| value.value());
                Ok(mirror::values(&tool.mirrored, &arguments.unwrap_or_default()))
            }
            _ => Err(CallError::Changed),
        }
    }

    /// Ends the connection that belongs to a party.
    pub fn forget_party(&self, party: [u8; 32]) {
        self.shared.lanes.forget(party);
    }

    /// Ends the connections of a holder.
    pub fn forget_holder(&self, holder: &Holder) {
        self.shared.lanes.forget_holder(holder);
    }

    /// Connects anew at once.
    pub fn restart(&self) {
        self.shared.again.notify_one();
    }

    /// Ends it and waits until nothing of it is left.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.conversations.clear();
        self.shared.lanes.finish().await;
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            // A panic there was logged; nothing is left to wait for.
            let _ = supervisor.await;
        }
    }
}

/// A task that a call became, waited for where nobody else does.
async fn awaited<C>(connection: C, outcome: Outcome, client: &Client) -> Result<Outcome, CallError>
where
    C: Deref<Target = Connection> + Send + Sync + 'static,
{
    match outcome {
        Outcome::Task(task) if client.tasks != Tasks::Followed => mcp::tasks::wait(connection, task, client).await,
        outcome => Ok(outcome),
    }
}

/// Hands a request on over the common connection.
async fn ask_common(
    connection: Arc<Connection>,
    ask: &Ask,
    approved: Option<&str>,
    mirrored: &[(String, String)],
    client: &Client,
    notes: Option<mpsc::Sender<Note>>,
) -> Result<Outcome, CallError> {
    if let Some(Answers { resume: Resume::Task { .. }, .. }) = ask.answers {
        return mcp::tasks::resume(connection, ask, client).await;
    }
    let answer = hand_on(&connection, ask, approved, mirrored, client, notes.clone()).await;
    let answer = match answer {
        Err(error) if client.tasks == Tasks::Awaited && mcp::tasks::is_wanted(&error) => {
            let follower = Client { tasks: Tasks::Followed, ..client.clone() };
            let answer = hand_on(&connection, ask, approved, mirrored, &follower, notes).await?;
            let outcome = outcome(ask, &answer, &connection, &follower)?;
            return awaited(connection, outcome, client).await;
        }
        answer => answer?,
    };
    outcome(ask, &answer, &connection, client)
}

/// Hands a request on over a connection that others use too: nobody can be asked back over it, unless each request says who.
async fn hand_on(
    connection: &Connection,
    ask: &Ask,
    approved: Option<&str>,
    mirrored: &[(String, String)],
    client: &Client,
    notes: Option<mpsc::Sender<Note>>,
) -> Result<Box<RawValue>, WireError> {
    let Some(notes) = notes else { return connection.hand_on(ask, approved, mirrored, client, None).await };
    let (aside, mut came) = mpsc::channel(ASIDE_MAX);
    let mut request = std::pin::pin!(connection.hand_on(ask, approved, mirrored, client, Some(&aside)));
    loop {
        tokio::select! {
            biased;
            Some(aside) = came.recv() => match aside {
                // A client that reads slowly misses some of it.
                Aside::Note(note) => drop(notes.try_send(note)),
                Aside::Question(question) => {
                    connection.respond(&question.id, Err((-32_601, "Nobody can be asked over this connection."))).await;
                }
            },
            done = &mut request => {
                // What came before the answer may have come in the same moment.
                while let Ok(Aside::Note(note)) = came.try_recv() {
                    let _ = notes.try_send(note);
                }
                return done;
            }
        }
    }
}

/// What an answer means: it is complete, asks the client, or is a task.
fn outcome(ask: &Ask, answer: &RawValue, connection: &Connection, client: &Client) -> Result<Outcome, CallError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Peek<'a> {
        #[serde(borrow)]
        result_type: Option<Cow<'a, str>>,
        #[serde(default)]
        input_requests: Map<String, Value>,
        request_state: Option<String>,
    }
    let unusable = |problem: String| CallError::Unusable(problem);
    let whole = || Json::parse(answer.get().to_owned()).map(Outcome::Complete).map_err(|e| unusable(e.to_string()));
    if !connection.is_modern() {
        return mcp::complete(answer).map(Outcome::Complete);
    }
    if !answer.get().starts_with('{') {
        return Err(unusable("its result is no object".into()));
    }
    let peek: Peek<'_> = serde_json::from_str(answer.get()).map_err(|e| unusable(e.to_string()))?;
    match peek.result_type.as_deref() {
        // Some say that what they answer here is a task, too.
        None | Some("complete" | "task") if ask.method == Method::GetTask => {
            mcp::tasks::read(answer, Some(&ask.name), client).map(Outcome::Task)
        }
        None | Some("complete") => whole(),
        Some("task") if ask.method == Method::CallTool && client.tasks == Tasks::Followed => {
            mcp::tasks::read(answer, None, client).map(Outcome::Task)
        }
        Some("input_required") => {
            let method = |request: &Value| request["method"].as_str().unwrap_or_default().to_owned();
            if let Some(asked) = peek.input_requests.values().map(method).find(|method| !mcp::can_be_asked(client, method)) {
                let shown: String = asked.chars().take(100).collect();
                return Err(unusable(format!("it asks for '{shown}', which this client cannot be asked")));
            }
            if peek.input_requests.is_empty() && peek.request_state.is_none() {
                return Err(unusable("it wants input, and says neither which nor for what".into()));
            }
            Ok(Outcome::InputRequired { requests: peek.input_requests, resume: Resume::State(peek.request_state) })
        }
        Some(other) => Err(unusable(format!(
            "its result is of the type '{}', which is not known",
            other.chars().take(40).collect::<String>()
        ))),
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    conversations: Arc<Conversations>,
}

/// Why serving ended.
enum End {
    Stopped,
    Restart,
    Trouble(Failure),
}

impl Supervisor {
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        loop {
            let begun = Instant::now();
            match self.serve_once().await {
                End::Stopped => return,
                End::Restart => {
                    self.shared.condition.send_replace(Condition::Starting);
                    pause = PAUSE_MIN;
                    continue;
                }
                End::Trouble(failure) => self.fail(&failure).await,
            }
            if begun.elapsed() >= STEADY {
                pause = PAUSE_MIN;
            }
            // Half to one and a half, so that servers which failed together do not come back together.
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>());
            tokio::select! {
                () = self.shared.stop.cancelled() => return,
                () = self.shared.again.notified() => pause = PAUSE_MIN,
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    async fn fail(&self, failure: &Failure) {
        let reason: String = self.shared.route.spec.redact(&failure.reason).chars().take(REASON_CHARS_MAX).collect();
        let Shared { at, addresses, .. } = &*self.shared;
        tracing::warn!(server = %addresses.key.server, url = addresses.url(*at), %reason, "an MCP server failed; it is started again");
        let failure = Failure { reason, is_locked: failure.is_locked };
        self.shared.condition.send_replace(Condition::Failed(failure.clone()));
        addresses.hear(*at, Standing::Failed(failure)).await;
    }

    async fn serve_once(&self) -> End {
        // Whoever knew the server before knew another one.
        self.conversations.clear();
        self.shared.lanes.renew();
        let (updates, updated) = mpsc::channel(UPDATES_MAX);
        let over = Over::telling(updates);
        let connecting = tokio::time::timeout(self.shared.settings.start_timeout, self.connect(&over));
        let connected = tokio::select! {
            () = self.shared.stop.cancelled() => Err(End::Stopped),
            connected = connecting => connected.unwrap_or_else(|_| {
                Err(format!("no answer within {} s of its start", self.shared.settings.start_timeout.as_secs()).into())
            }).map_err(End::Trouble),
        };
        let end = match connected {
            Ok((connection, offers)) => self.serve(connection, &over, updated, offers).await,
            Err(end) => end,
        };
        over.finish("it was stopped").await;
        end
    }

    async fn connect(&self, over: &Over) -> Result<(Connection, Offers), Failure> {
        let (route, settings) = (&self.shared.route, &self.shared.settings);
        let connection = Connection::open(route, settings, over, &Map::new(), false, &Holder::Everybody).await?;
        let offers = connection.offers().await?;
        Ok((connection, offers))
    }

    async fn serve(&self, connection: Connection, over: &Over, updated: mpsc::Receiver<String>, offers: Offers) -> End {
        let connection = Arc::new(connection);
        self.shared.resilience.is_connected_anew(self.shared.at);
        self.list(&connection, offers).await;
        let end = tokio::select! {
            end = self.watch(&connection, over) => end,
            end = self.follow(&connection, updated) => end,
        };
        self.shared.condition.send_replace(match &end {
            End::Trouble(failure) => Condition::Failed(Failure {
                reason: self.shared.route.spec.redact(&failure.reason),
                is_locked: failure.is_locked,
            }),
            End::Restart | End::Stopped => Condition::Starting,
        });
        connection.close().await;
        end
    }

    /// What the server lists is what may be asked for, and is told.
    async fn list(&self, connection: &Arc<Connection>, offers: Offers) {
        let offers = Arc::new(offers);
        self.shared.offers.send_replace(offers.clone());
        self.shared.condition.send_replace(Condition::Ready(connection.clone()));
        self.shared.addresses.hear(self.shared.at, Standing::Ready(connection.introduction.clone(), offers)).await;
    }

    /// Keeps the server told which resources are watched, and tells what changed. Ends only in trouble.
    async fn follow(&self, connection: &Connection, mut updated: mpsc::Receiver<String>) -> End {
        let mut watched = self.shared.watched.subscribe();
        let mut told: BTreeSet<String> = BTreeSet::new();
        let mut introduced = connection.introduced.subscribe();
        loop {
            let wanted: BTreeSet<String> = watched.borrow_and_update().keys().cloned().collect();
            if !connection.is_modern() {
                for uri in wanted.symmetric_difference(&told) {
                    connection.subscribe(uri, wanted.contains(uri)).await;
                }
            }
            told = wanted;
            let uris: Vec<String> = told.iter().cloned().collect();
            let following = async {
                if connection.is_modern() { connection.follow_changes(&uris).await } else { std::future::pending().await }
            };
            let mut following = std::pin::pin!(following);
            loop {
                tokio::select! {
                    changed = watched.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return End::Stopped,
                    },
                    Ok(()) = introduced.changed() => {
                        told.clear();
                        break;
                    }
                    Some(uri) = updated.recv() => if told.contains(&uri) {
                        self.shared.addresses.tell(What::Resource(uri));
                    },
                    ended = &mut following => {
                        if let Err(reason) = ended {
                            tracing::debug!(server = %self.shared.addresses.key.server, %reason, "it tells no more what changed");
                        }
                        tokio::time::sleep(RELIST_EVERY).await;
                        break;
                    }
                }
            }
        }
    }

    /// Whether the server is still there; why not, otherwise. One that works may have no time to answer.
    async fn look(&self, connection: &Connection, over: &Over) -> Option<End> {
        if connection.is_busy() || connection.ping(PING_TIMEOUT).await {
            return None;
        }
        let reason = if over.is_over() { over.reason() } else { "it does not answer any more".into() };
        Some(End::Trouble(Failure::from(reason)))
    }

    /// Until the connection is over, or is to be.
    async fn watch(&self, connection: &Arc<Connection>, over: &Over) -> End {
        let is_http = matches!(self.shared.route.spec, Spec::Http { .. });
        let mut looked_at: Option<Instant> = None;
        let mut introduced = connection.introduced.subscribe();
        loop {
            let relist = tokio::select! {
                Ok(()) = introduced.changed() => true,
                () = self.shared.stop.cancelled() => return End::Stopped,
                () = self.shared.again.notified() => return End::Restart,
                reason = over.ended() => return End::Trouble(reason.into()),
                () = over.lists_changed.notified() => {
                    let rest = looked_at.map_or(Duration::ZERO, |at| RELIST_EVERY.saturating_sub(at.elapsed()));
                    tokio::select! {
                        () = self.shared.stop.cancelled() => return End::Stopped,
                        reason = over.ended() => return End::Trouble(reason.into()),
                        () = tokio::time::sleep(rest.max(SETTLE)) => true,
                    }
                }
                () = self.shared.look.notified() => {
                    if let Some(end) = self.look(connection, over).await {
                        return end;
                    }
                    // Troubles within this time are one.
                    tokio::time::sleep(SETTLE).await;
                    false
                }
                () = tokio::time::sleep(LOOK_EVERY) => {
                    self.conversations.sweep();
                    self.shared.resilience.sweep();
                    self.shared.lanes.sweep().await;
                    if let Some(end) = self.look(connection, over).await {
                        return end;
                    }
                    // Over HTTP not every server tells of a change.
                    is_http
                }
            };
            if !relist {
                continue;
            }
            looked_at = Some(Instant::now());
            match tokio::time::timeout(self.shared.settings.start_timeout, connection.offers()).await {
                Ok(Ok(offers)) if offers == **self.shared.offers.borrow() => {}
                Ok(Ok(offers)) => self.list(connection, offers).await,
                Ok(Err(failure)) => return End::Trouble(failure),
                Err(_) => return End::Trouble("it does not list its tools any more".to_owned().into()),
            }
        }
    }
}
