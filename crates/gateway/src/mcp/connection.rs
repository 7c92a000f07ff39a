//! A server that introduced itself, whatever version it speaks: its lists, requests to it, whether it is there.

use super::http::HttpWire;
use super::legacy_sse::SseWire;
use super::listing::{self, ENTRIES_MAX, LISTING_BYTES_MAX, Offers, PAGES_MAX, Page};
use super::reach::Reach;
use super::rpc::{AsideSender, Call, METHOD_NOT_FOUND, Over, RpcError, Wire, WireError};
use super::stdio::StdioWire;
use super::tasks::EXTENSION;
use super::{Ask, CallError, Client, LEGACY, MODERN, Tasks, ToolListing};
use crate::access::Holder;
use crate::{GatewaySettings, Introduction, Route, Spec};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Errors that only a server of the newest version answers: of headers, capabilities, versions.
const MODERN_ERRORS: std::ops::RangeInclusive<i64> = -32_022..=-32_020;
const VERSION_UNSUPPORTED: i64 = -32_022;
/// A server over standard streams that is silent for so long is asked as one of an older version, too.
const PROBE_PATIENCE: Duration = Duration::from_millis(700);
const NAME_CHARS_MAX: usize = 200;

/// A connection to a server that introduced itself.
pub(crate) struct Connection {
    wire: Arc<dyn Wire>,
    ids: AtomicU64,
    running: AtomicUsize,
    is_modern: bool,
    over_http: bool,
    /// What Keiko says that it can be asked, where that is said once.
    declared: Map<String, Value>,
    capabilities: Value,
    /// How often it introduced itself; whoever finds the session gone lets one do it again for all.
    introductions: Mutex<u64>,
    /// Whether an introduction was begun and not ended: nothing else can be asked before.
    is_between: AtomicBool,
    /// Told of each new introduction: what the server was told before is forgotten.
    pub introduced: watch::Sender<u64>,
    log_level: Mutex<Option<String>>,
    /// What it said of itself.
    pub introduction: Introduction,
}

/// Why there is no connection.
#[derive(Clone)]
pub(crate) struct Failure {
    /// For people.
    pub reason: String,
    /// Whether the server lets nobody in who has not more to show.
    pub is_locked: bool,
}

impl Failure {
    pub fn locked(reason: String) -> Self {
        Failure { reason, is_locked: true }
    }

    /// What it means for whoever calls.
    pub fn into_call_error(self) -> CallError {
        if self.is_locked { CallError::Locked(self.reason) } else { CallError::NotReady(self.reason) }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Failure { reason, is_locked: false }
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Failure { is_locked: matches!(error, WireError::Locked(_)), reason: reason(&error) }
    }
}

#[derive(Deserialize)]
struct Initialized {
    #[serde(rename = "protocolVersion")]
    protocol_version: String,
    #[serde(default)]
    capabilities: Value,
    #[serde(rename = "serverInfo", default)]
    server_info: ServerInfo,
}

#[derive(Deserialize)]
struct Discovered {
    #[serde(rename = "supportedVersions", default)]
    supported_versions: Vec<String>,
    #[serde(default)]
    capabilities: Value,
    #[serde(rename = "_meta", default)]
    meta: DiscoveredMeta,
}

#[derive(Default, Deserialize)]
struct DiscoveredMeta {
    #[serde(rename = "io.modelcontextprotocol/serverInfo", default)]
    server_info: ServerInfo,
}

#[derive(Default, Deserialize)]
struct ServerInfo {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

impl Connection {
    /// Reaches a server and agrees on a version with it. `declared` is what Keiko can be asked on behalf of a client.
    pub async fn open(
        route: &Route,
        settings: &GatewaySettings,
        over: &Over,
        declared: &Map<String, Value>,
        is_known_legacy: bool,
        holder: &Holder,
    ) -> Result<Self, Failure> {
        let bytes_max = settings.message_bytes_max;
        match &route.spec {
            Spec::Stdio { .. } if !settings.allow_spawn => {
                Err("starting processes is switched off (gateway.allow_spawn)".to_owned().into())
            }
            Spec::Stdio { command, args, env } => {
                let wire = Arc::new(StdioWire::start(command, args, env, settings, over.clone())?);
                if is_known_legacy { initialized(wire, declared, false).await } else { over_streams(wire, declared).await }
            }
            Spec::Http { url, headers, access } => {
                let reach = Reach::new(&route.kept, url, headers, settings.allow_private, bytes_max)?
                    .with(access.clone(), holder.clone());
                over_http(reach, over, declared, is_known_legacy).await
            }
        }
    }

    /// Whether each request says what the client can be asked.
    pub fn is_modern(&self) -> bool {
        self.is_modern
    }

    /// Everything that it offers.
    pub async fn offers(&self) -> Result<Offers, Failure> {
        Ok(Offers {
            tools: self.tools().await?,
            prompts: listing::offers(self.list("prompts", "prompts/list", "prompts").await?, "name"),
            resources: listing::offers(self.list("resources", "resources/list", "resources").await?, "uri"),
            templates: listing::offers(
                self.list("resources", "resources/templates/list", "resourceTemplates").await?,
                "uriTemplate",
            ),
        })
    }

    /// Every tool, as the server lists it now.
    pub async fn tools(&self) -> Result<Vec<ToolListing>, Failure> {
        let listed = self.list("tools", "tools/list", "tools").await?;
        listing::tools(listed, self.over_http && self.is_modern).map_err(Failure::from)
    }

    /// Whether it is a server of 2025-11-25 that makes tasks of calls when it is told to.
    pub fn makes_tasks(&self) -> bool {
        !self.is_modern && self.capabilities["tasks"]["requests"]["tools"]["call"].is_object()
    }

    /// What came of a task, from a server of 2025-11-25.
    pub async fn task_result(&self, id: &str) -> Result<Box<RawValue>, WireError> {
        self.ask("tasks/result", Map::from_iter([("taskId".to_owned(), json!(id))])).await
    }

    fn has(&self, capability: &str) -> bool {
        self.capabilities.get(capability).is_some_and(|value| !value.is_null())
    }

    /// Every entry of a list, whatever the number of pages.
    async fn list(&self, capability: &str, method: &str, field: &str) -> Result<Vec<Value>, Failure> {
        let mut entries = vec![];
        let mut cursor: Option<String> = None;
        let mut bytes = 0;
        if !self.has(capability) {
            return Ok(entries);
        }
        for _ in 0..PAGES_MAX {
            let params = cursor.as_ref().map_or_else(Map::new, |cursor| Map::from_iter([("cursor".into(), json!(cursor))]));
            let page = match self.ask(method, params).await {
                // Not every server that has resources knows templates.
                Err(WireError::Rpc(error)) if error.code == METHOD_NOT_FOUND && field != "tools" => return Ok(entries),
                page => page?,
            };
            bytes += page.get().len();
            if bytes > LISTING_BYTES_MAX {
                return Err(format!("its answer to '{method}' has more than {LISTING_BYTES_MAX} bytes").into());
            }
            let page = serde_json::from_str(page.get());
            let mut page: Page = page.map_err(|e| format!("its answer to '{method}' cannot be used: {e}"))?;
            entries.append(&mut page.entries(field));
            if entries.len() > ENTRIES_MAX {
                return Err(format!("it lists more than {ENTRIES_MAX} {field}").into());
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(entries);
            }
        }
        Err(format!("its answer to '{method}' has more than {PAGES_MAX} pages").into())
    }

    /// Hands a request of a client on. What comes before the answer goes to `aside`. A server that forgot its session may be another
    /// one now: the tool must still have the hash `approved`.
    pub async fn hand_on(
        &self,
        ask: &Ask,
        approved: Option<&str>,
        mirrored: &[(String, String)],
        client: &Client,
        aside: Option<&AsideSender>,
    ) -> Result<Box<RawValue>, WireError> {
        let _running = Running::new(&self.running);
        let before = *self.introductions.lock().await;
        if self.is_between.load(Ordering::Acquire) {
            self.introduce_again(before).await?;
        }
        self.set_log_level(client).await;
        match self.send(ask, mirrored, client, aside).await {
            Err(WireError::SessionGone) => {
                self.introduce_again(before).await?;
                if let Some(approved) = approved {
                    let tools = self.tools().await.map_err(|failure| WireError::Unusable(failure.reason))?;
                    if !tools.iter().any(|tool| tool.name == ask.name && tool.hash == approved) {
                        return Err(WireError::Changed);
                    }
                }
                self.send(ask, mirrored, client, aside).await
            }
            answer => answer,
        }
    }

    async fn send(
        &self,
        ask: &Ask,
        mirrored: &[(String, String)],
        client: &Client,
        aside: Option<&AsideSender>,
    ) -> Result<Box<RawValue>, WireError> {
        let id = self.next_id();
        let params = self.params(ask, client, aside.map(|_| id)).map_err(|e| WireError::Unusable(e.to_string()))?;
        let name = ask.method.name_field().map(|_| ask.name.as_str());
        let mut cancel = Cancel { wire: &self.wire, id, is_armed: !(self.is_modern && self.over_http) };
        let call = Call {
            id,
            method: ask.method.as_str(),
            params: &params,
            name,
            mirrored,
            holder: self.is_modern.then_some(&client.holder),
        };
        let answer = self.wire.request(call, aside).await;
        cancel.is_armed = false;
        answer
    }

    /// The parameters as this server wants them.
    fn params(&self, ask: &Ask, client: &Client, progress: Option<u64>) -> serde_json::Result<Box<RawValue>> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Member<'a> {
            Raw(&'a kernel::Json),
            Value(Value),
            Object(&'a Map<String, Value>),
        }
        let mut params: Vec<(&str, Member<'_>)> = vec![];
        params.extend(ask.method.name_field().map(|field| (field, Member::Value(json!(ask.name)))));
        params.extend(ask.params.iter().map(|(name, value)| (*name, Member::Raw(value))));
        let mut meta = ask.meta.clone();
        meta.extend(progress.map(|id| ("progressToken".to_owned(), json!(id))));
        if self.is_modern {
            meta.append(&mut protocol_meta(declared(client)));
            meta.extend(client.log_level.iter().map(|level| ("io.modelcontextprotocol/logLevel".to_owned(), json!(level))));
            if let Some(answers) = &ask.answers {
                params.push(("inputResponses", Member::Object(&answers.responses)));
                if let super::Resume::State(Some(state)) = &answers.resume {
                    params.push(("requestState", Member::Value(json!(state))));
                }
            }
        }
        params.extend(ask.task.iter().filter(|_| self.makes_tasks()).map(|task| ("task", Member::Raw(task))));
        if !meta.is_empty() {
            params.push(("_meta", Member::Value(Value::Object(meta))));
        }
        struct Ordered<'a>(Vec<(&'a str, Member<'a>)>);
        impl Serialize for Ordered<'_> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
            }
        }
        to_raw_value(&Ordered(params))
    }

    /// An older version is told once which levels are wanted, the newest with each request.
    async fn set_log_level(&self, client: &Client) {
        if self.is_modern || !self.has("logging") || client.log_level.is_none() {
            return;
        }
        let mut level = self.log_level.lock().await;
        if *level != client.log_level {
            // A server that does not take it logs as it likes.
            let _ = self.ask("logging/setLevel", Map::from_iter([("level".to_owned(), json!(client.log_level))])).await;
            level.clone_from(&client.log_level);
        }
    }

    /// Agrees with a server that forgot its session, once for all who noticed.
    async fn introduce_again(&self, before: u64) -> Result<(), WireError> {
        let mut introductions = self.introductions.lock().await;
        if *introductions != before && !self.is_between.load(Ordering::Acquire) {
            return Ok(());
        }
        self.is_between.store(true, Ordering::Release);
        self.wire.forget_session();
        initialize(&self.wire, &self.declared, self.next_id()).await?;
        *introductions += 1;
        *self.log_level.lock().await = None;
        self.is_between.store(false, Ordering::Release);
        self.introduced.send_replace(*introductions);
        tracing::info!(server = %self.introduction.name, "an MCP server forgot its session; a new one was opened");
        Ok(())
    }

    /// Follows what a server of the newest version tells of its lists and of resources, until it ends that.
    pub async fn follow_changes(&self, resources: &[String]) -> Result<(), String> {
        let wanted = |capability: &str| self.capabilities[capability]["listChanged"] == true;
        let mut filter = Map::new();
        for (capability, field) in
            [("tools", "toolsListChanged"), ("prompts", "promptsListChanged"), ("resources", "resourcesListChanged")]
        {
            filter.extend(wanted(capability).then(|| (field.to_owned(), json!(true))));
        }
        if self.capabilities["resources"]["subscribe"] == true && !resources.is_empty() {
            filter.insert("resourceSubscriptions".into(), json!(resources));
        }
        if filter.is_empty() {
            return std::future::pending().await;
        }
        let params = Map::from_iter([("notifications".to_owned(), Value::Object(filter))]);
        self.ask("subscriptions/listen", params).await.map(drop).map_err(|error| reason(&error))
    }

    /// Asks a server of an older version to tell when a resource changes, or no longer to.
    pub async fn subscribe(&self, uri: &str, is_wanted: bool) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let method = if is_wanted { "resources/subscribe" } else { "resources/unsubscribe" };
        // Whoever follows sees the resource as it is when it is read.
        let _ = tokio::time::timeout(PATIENCE, self.ask(method, Map::from_iter([("uri".to_owned(), json!(uri))]))).await;
    }

    /// Whether it answers. A server that does not know the question answers too.
    pub async fn ping(&self, timeout: Duration) -> bool {
        let method = if self.is_modern { "server/discover" } else { "ping" };
        let before = *self.introductions.lock().await;
        match tokio::time::timeout(timeout, self.ask(method, Map::new())).await {
            Ok(Ok(_)) => true,
            Ok(Err(WireError::Rpc(error))) => error.code == METHOD_NOT_FOUND,
            Ok(Err(WireError::SessionGone)) => self.introduce_again(before).await.is_ok(),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Whether calls are running.
    pub fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Answers what the server asked.
    pub async fn respond(&self, id: &RawValue, answer: Result<&Value, (i64, &str)>) {
        self.wire.respond(id, answer).await;
    }

    /// Ends the connection.
    pub async fn close(&self) {
        self.wire.close().await;
    }

    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    async fn ask(&self, method: &str, mut params: Map<String, Value>) -> Result<Box<RawValue>, WireError> {
        if self.is_modern {
            params.insert("_meta".into(), Value::Object(protocol_meta(Map::new())));
        }
        let params = raw(&Value::Object(params));
        let id = self.next_id();
        let mut cancel = Cancel { wire: &self.wire, id, is_armed: !(self.is_modern && self.over_http) };
        let answer = self.wire.request(Call { id, method, params: &params, name: None, mirrored: &[], holder: None }, None).await;
        cancel.is_armed = false;
        answer
    }
}

/// What a client can do, as the newest version says it.
fn declared(client: &Client) -> Map<String, Value> {
    let mut capabilities = client.capabilities.clone();
    if client.tasks == Tasks::Followed {
        capabilities.insert("extensions".to_owned(), json!({ EXTENSION: {} }));
    }
    capabilities
}

/// What each request of the newest version says of the client.
fn protocol_meta(capabilities: Map<String, Value>) -> Map<String, Value> {
    Map::from_iter([
        ("io.modelcontextprotocol/protocolVersion".to_owned(), json!(MODERN)),
        ("io.modelcontextprotocol/clientInfo".to_owned(), keiko()),
        ("io.modelcontextprotocol/clientCapabilities".to_owned(), Value::Object(capabilities)),
    ])
}

fn keiko() -> Value {
    json!({ "name": "keiko", "version": env!("CARGO_PKG_VERSION") })
}

/// Over HTTP: as the newest version has it; else as the older ones; else as the oldest.
async fn over_http(
    reach: Reach,
    over: &Over,
    declared: &Map<String, Value>,
    is_known_legacy: bool,
) -> Result<Connection, Failure> {
    let wire = Arc::new(HttpWire::new(reach.clone(), over.clone()));
    if !is_known_legacy {
        wire.agreed(MODERN, true);
        match discover(wire.as_ref()).await {
            Ok(found) => return modern(wire, found, true),
            Err(WireError::Rpc(error)) if is_of_modern(&error) => return Err(version_refused(&error).into()),
            Err(error @ (WireError::Over(_) | WireError::Unsent(_) | WireError::Locked(_))) => return Err(error.into()),
            Err(_) => wire.forget_session(),
        }
    }
    match initialize(&(wire.clone() as Arc<dyn Wire>), declared, 1).await {
        Ok(answer) => legacy(wire, answer, declared, true),
        Err(WireError::Status(400 | 404 | 405)) => {
            let wire = SseWire::open(reach, over.clone()).await?;
            initialized(Arc::new(wire), declared, true).await
        }
        Err(error) => Err(error.into()),
    }
}

/// Over standard streams: whichever it answers to first, and the newest version when it knows that.
async fn over_streams(wire: Arc<StdioWire>, declared: &Map<String, Value>) -> Result<Connection, Failure> {
    let mut discovering = Box::pin(discover(wire.as_ref()));
    let probed = match tokio::time::timeout(PROBE_PATIENCE, &mut discovering).await {
        Ok(probed) => Some(probed),
        // It is slow, or does not answer what it does not know.
        Err(_) => {
            let dynamic = wire.clone() as Arc<dyn Wire>;
            tokio::select! {
                biased;
                probed = &mut discovering => Some(probed),
                answer = initialize(&dynamic, declared, 1) => {
                    return legacy(wire.clone(), answer?, declared, false);
                }
            }
        }
    };
    drop(discovering);
    match probed {
        Some(Ok(found)) => modern(wire, found, false),
        Some(Err(WireError::Rpc(error))) if is_of_modern(&error) => Err(version_refused(&error).into()),
        Some(Err(WireError::Over(reason))) => Err(reason.into()),
        _ => initialized(wire, declared, false).await,
    }
}

async fn initialized(wire: Arc<dyn Wire>, declared: &Map<String, Value>, over_http: bool) -> Result<Connection, Failure> {
    let answer = initialize(&wire, declared, 1).await?;
    legacy(wire, answer, declared, over_http)
}

async fn discover(wire: &dyn Wire) -> Result<Discovered, WireError> {
    let params = raw(&json!({ "_meta": protocol_meta(Map::new()) }));
    let answer = wire
        .request(Call { id: 0, method: "server/discover", params: &params, name: None, mirrored: &[], holder: None }, None)
        .await?;
    let found: Discovered = serde_json::from_str(answer.get())
        .map_err(|e| WireError::Unusable(format!("its answer to 'server/discover' cannot be used: {e}")))?;
    if !found.supported_versions.iter().any(|version| version == MODERN) {
        return Err(WireError::Unusable("it names no version that is known".into()));
    }
    Ok(found)
}

async fn initialize(wire: &Arc<dyn Wire>, declared: &Map<String, Value>, id: u64) -> Result<Initialized, WireError> {
    let hello = raw(&json!({ "protocolVersion": LEGACY[0], "capabilities": declared, "clientInfo": keiko() }));
    let answer =
        wire.request(Call { id, method: "initialize", params: &hello, name: None, mirrored: &[], holder: None }, None).await?;
    let unusable = |problem: String| WireError::Unusable(format!("its answer to 'initialize' cannot be used: {problem}"));
    let answer: Initialized = serde_json::from_str(answer.get()).map_err(|e| unusable(e.to_string()))?;
    if !LEGACY.contains(&answer.protocol_version.as_str()) {
        let version: String = answer.protocol_version.chars().take(40).collect();
        let known = format!("it speaks version '{version}' of the protocol; known are {MODERN}, {}", LEGACY.join(", "));
        return Err(WireError::Unusable(known));
    }
    wire.agreed(&answer.protocol_version, false);
    wire.notify("notifications/initialized", &raw(&json!({}))).await;
    Ok(answer)
}

fn is_of_modern(error: &RpcError) -> bool {
    MODERN_ERRORS.contains(&error.code)
}

fn version_refused(error: &RpcError) -> String {
    let supported = error.data.get("supported").filter(|_| error.code == VERSION_UNSUPPORTED);
    match supported {
        Some(versions) => format!("it speaks other versions of the protocol: {}", short(versions.to_string(), NAME_CHARS_MAX)),
        None => reason(&WireError::Rpc(error.clone())),
    }
}

fn modern(wire: Arc<dyn Wire>, found: Discovered, over_http: bool) -> Result<Connection, Failure> {
    wire.agreed(MODERN, true);
    let said = Said { info: found.meta.server_info, version: MODERN.into() };
    Ok(connection(wire, said, found.capabilities, Map::new(), true, over_http))
}

fn legacy(
    wire: Arc<dyn Wire>,
    answer: Initialized,
    declared: &Map<String, Value>,
    over_http: bool,
) -> Result<Connection, Failure> {
    let said = Said { info: answer.server_info, version: answer.protocol_version };
    Ok(connection(wire, said, answer.capabilities, declared.clone(), false, over_http))
}

struct Said {
    info: ServerInfo,
    version: String,
}

fn connection(
    wire: Arc<dyn Wire>,
    said: Said,
    capabilities: Value,
    declared: Map<String, Value>,
    is_modern: bool,
    over_http: bool,
) -> Connection {
    Connection {
        wire,
        // Smaller ones were used for the introduction.
        ids: AtomicU64::new(2),
        running: AtomicUsize::new(0),
        is_modern,
        over_http,
        declared,
        capabilities,
        introductions: Mutex::new(0),
        is_between: AtomicBool::new(false),
        introduced: watch::Sender::new(0),
        log_level: Mutex::new(None),
        introduction: Introduction {
            name: short(said.info.name, NAME_CHARS_MAX),
            version: short(said.info.version, NAME_CHARS_MAX),
            protocol_version: said.version,
        },
    }
}

fn short(text: String, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}

/// Counts a call while it runs.
struct Running<'a>(&'a AtomicUsize);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Running(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the server when nobody waits for a call any more.
struct Cancel<'a> {
    wire: &'a Arc<dyn Wire>,
    id: u64,
    is_armed: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        if self.is_armed {
            let (wire, id) = (self.wire.clone(), self.id);
            let params = raw(&json!({ "requestId": id, "reason": "the caller does not wait any longer" }));
            tokio::spawn(async move { wire.notify("notifications/cancelled", &params).await });
        }
    }
}

fn raw(value: &Value) -> Box<RawValue> {
    // A value in memory can always be written.
    to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn reason(error: &WireError) -> String {
    match error {
        WireError::Over(reason)
        | WireError::Unsent(reason)
        | WireError::Unusable(reason)
        | WireError::Broken(reason)
        | WireError::Locked(reason) => reason.clone(),
        WireError::Rpc(error) => {
            format!("it answered error {}: {}", error.code, error.message.chars().take(300).collect::<String>())
        }
        WireError::Changed => "its tool is not what was approved".into(),
        WireError::SessionGone => "it does not know its own session any more".into(),
        WireError::Status(status) => format!("it answered HTTP {status}"),
    }
}
