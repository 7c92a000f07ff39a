//! `keiko mcp connect`: an MCP server over standard streams that hands every message on to a Keiko server, in whichever version
//! the client speaks.
//!
//! What comes on standard input is sent, what is answered goes to standard output, one message a line. A session that the server
//! has ended is begun again with what the client said at its beginning.

use crate::cli::client::Client;
use crate::cli::error::{ApiError, hinted};
use clap::Args;
use gateway::mcp::events::Events;
use gateway::mcp::mirror::{self, Mirrored};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

const META: &str = "io.modelcontextprotocol/protocolVersion";
const SESSION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
/// Largest message in either direction.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What runs at a time; further input waits.
const RUNNING_MAX: usize = 64;
const END_PATIENCE: Duration = Duration::from_secs(5);
const HEADER_MISMATCH: i64 = -32_020;
const INTERNAL_ERROR: i64 = -32_603;

/// Arguments of `keiko mcp connect`.
#[derive(Args)]
pub struct Connect {
    /// A virtual server; everything when nothing is said
    #[arg(long, value_name = "VIRTUAL_SERVER", value_parser = crate::cli::input::handle)]
    door: Option<String>,
}

/// The way between the streams and the server.
struct Bridge {
    url: String,
    http: reqwest::Client,
    client: Mutex<Client>,
    out: mpsc::Sender<String>,
    state: Mutex<State>,
}

/// What is remembered of the client's session and of the tools that it saw.
#[derive(Default)]
struct State {
    initialize: Option<Value>,
    session: Option<String>,
    version: Option<String>,
    mirrored: BTreeMap<String, Vec<Mirrored>>,
    running: BTreeMap<String, AbortHandle>,
    following: Option<AbortOnDropHandle<()>>,
}

/// Runs `keiko mcp connect`, until standard input ends.
pub async fn run(args: Connect, client: &mut Client) -> anyhow::Result<()> {
    let door = args.door.map(|door| format!("/{door}")).unwrap_or_default();
    if client.credential().is_none() {
        return Err(hinted(
            format!("Nobody is logged in at {}.", client.base()),
            "log in with: keiko login (or set KEIKO_API_KEY)",
        ));
    }
    let (out, told) = mpsc::channel(RUNNING_MAX);
    let writing = tokio::spawn(write(told));
    let bridge = Arc::new(Bridge {
        url: format!("{}/mcp{door}", client.base().trim_end_matches('/')),
        http: client.http().clone(),
        client: Mutex::new(client.clone()),
        out,
        state: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        if line.trim().is_empty() {
            continue;
        }
        while tasks.len() >= RUNNING_MAX {
            tasks.join_next().await;
        }
        bridge.clone().take(line, &mut tasks).await;
        while tasks.try_join_next().is_some() {}
    }
    // What was asked before the end is answered, if that takes no longer than a client waits.
    let _ = tokio::time::timeout(END_PATIENCE, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.shutdown().await;
    bridge.end().await;
    let following = bridge.state.lock().await.following.take();
    drop((bridge, following));
    writing.await?;
    Ok(())
}

async fn write(mut told: mpsc::Receiver<String>) {
    let mut output = tokio::io::stdout();
    while let Some(mut line) = told.recv().await {
        // JSON has line ends between its parts only.
        line = line.replace(['\r', '\n'], " ") + "\n";
        if output.write_all(line.as_bytes()).await.is_err() || output.flush().await.is_err() {
            return;
        }
    }
}

fn is_modern(message: &Value) -> bool {
    message["params"]["_meta"].get(META).is_some()
}

fn failure(id: &Value, code: i64, text: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": text } }).to_string()
}

impl Bridge {
    /// Hands one message on. Requests run side by side; what a session begins with runs before anything else.
    async fn take(self: Arc<Self>, line: String, tasks: &mut JoinSet<()>) {
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            return self.say(failure(&Value::Null, -32_700, "This is not JSON.")).await;
        };
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        if method == "notifications/cancelled" {
            let id = message["params"]["requestId"].to_string();
            let mut state = self.state.lock().await;
            // Leaving is how the newest version says it; older ones say it.
            if state.session.is_none()
                && let Some(running) = state.running.remove(&id)
            {
                return running.abort();
            }
        }
        if method == "initialize" {
            self.state.lock().await.initialize = Some(message.clone());
            return self.hand_on(message).await;
        }
        let id = message.get("id").filter(|_| message.get("method").is_some()).map(Value::to_string);
        let bridge = self.clone();
        let key = id.clone();
        let handle = tasks.spawn(async move {
            bridge.clone().hand_on(message).await;
            if let Some(key) = key {
                bridge.state.lock().await.running.remove(&key);
            }
        });
        if let Some(id) = id {
            self.state.lock().await.running.insert(id, handle);
        }
        if method == "notifications/initialized" {
            let bridge = self.clone();
            let following = tokio::spawn(async move { bridge.follow().await });
            self.state.lock().await.following = Some(AbortOnDropHandle::new(following));
        }
    }

    async fn say(&self, line: String) {
        // After the end nobody reads.
        let _ = self.out.send(line).await;
    }

    async fn hand_on(self: Arc<Self>, message: Value) {
        let id = message.get("id").cloned().unwrap_or_default();
        let is_request = message.get("method").is_some() && !id.is_null();
        if let Err(error) = self.exchanged(&message).await
            && is_request
        {
            self.say(failure(&id, INTERNAL_ERROR, &error.to_string())).await;
        }
    }

    async fn exchanged(&self, message: &Value) -> anyhow::Result<()> {
        let mut response = self.send(message).await?;
        if response.status() == StatusCode::NOT_FOUND && !is_modern(message) && self.begin_again(message).await? {
            response = self.send(message).await?;
        }
        if message["method"] == "initialize" {
            self.remember_session(&response).await;
        }
        self.relay(response, message).await
    }

    /// Sends a message with the credential, renewed once.
    async fn send(&self, message: &Value) -> anyhow::Result<Response> {
        let headers = self.headers(message).await;
        loop {
            let credential = self.client.lock().await.credential();
            let mut request = self.http.post(&self.url).json(message).header("accept", "application/json, text/event-stream");
            for (name, value) in
                headers.iter().map(|(name, value)| (name.as_str(), value)).chain(credential.iter().map(|(n, v)| (*n, v)))
            {
                request = request.header(name, value);
            }
            let response = request.send().await?;
            let is_refused = response.status() == StatusCode::UNAUTHORIZED;
            if !is_refused || !self.client.lock().await.renew_after(credential.as_ref()).await? {
                return Ok(response);
            }
        }
    }

    /// What the version of a message wants in headers.
    async fn headers(&self, message: &Value) -> Vec<(String, String)> {
        let state = self.state.lock().await;
        let mut headers = vec![];
        if !is_modern(message) {
            let known = [(SESSION, &state.session), (VERSION, &state.version)];
            let is_first = message["method"] == "initialize";
            headers.extend(
                known.into_iter().filter(|_| !is_first).filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))),
            );
            return headers;
        }
        let params = &message["params"];
        let method = message["method"].as_str().unwrap_or_default();
        headers.push((VERSION.to_owned(), params["_meta"][META].as_str().unwrap_or_default().to_owned()));
        headers.push(("mcp-method".to_owned(), method.to_owned()));
        let name = match method {
            "tools/call" | "prompts/get" => params["name"].as_str(),
            "resources/read" => params["uri"].as_str(),
            _ => None,
        };
        headers.extend(name.map(|name| ("mcp-name".to_owned(), mirror::written(name))));
        if let Some(mirrored) = name.filter(|_| method == "tools/call").and_then(|name| state.mirrored.get(name)) {
            let values = mirror::values(mirrored, &params["arguments"]);
            headers.extend(values.into_iter().map(|(name, value)| (format!("mcp-param-{name}"), mirror::written(&value))));
        }
        headers
    }

    async fn remember_session(&self, response: &Response) {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut state = self.state.lock().await;
        state.session = header(SESSION);
        state.version = None;
    }

    /// Opens a new session in place of one that is over. `false` where there was none.
    async fn begin_again(&self, message: &Value) -> anyhow::Result<bool> {
        let initialize = {
            let state = self.state.lock().await;
            if state.session.is_none() || message["method"] == "initialize" {
                return Ok(false);
            }
            state.initialize.clone()
        };
        let Some(initialize) = initialize else { return Ok(false) };
        let response = self.send(&initialize).await?;
        let is_begun = response.status().is_success();
        self.remember_session(&response).await;
        let body: Value = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        self.state.lock().await.version = body["result"]["protocolVersion"].as_str().map(str::to_owned);
        if is_begun {
            self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await?;
        }
        Ok(is_begun)
    }

    /// Writes down what was answered.
    async fn relay(&self, mut response: Response, message: &Value) -> anyhow::Result<()> {
        let status = response.status();
        let kind = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        if kind.starts_with("text/event-stream") {
            let mut events = Events::new(MESSAGE_BYTES_MAX);
            while let Some(piece) = response.chunk().await? {
                for event in events.push(&piece).map_err(anyhow::Error::msg)? {
                    self.say(String::from_utf8_lossy(&event.data).into_owned()).await;
                }
            }
            return Ok(());
        }
        let body = response.bytes().await?;
        if body.is_empty() {
            return Ok(());
        }
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if answer.get("jsonrpc").is_none() {
            return Err(ApiError::read(status.as_u16(), &body).into());
        }
        self.learn(message, &answer).await;
        if answer["error"]["code"] == HEADER_MISMATCH && message["method"] == "tools/call" && self.learn_tools(message).await? {
            let again = self.send(message).await?;
            return Box::pin(self.relay(again, &Value::Null)).await;
        }
        self.say(String::from_utf8_lossy(&body).into_owned()).await;
        Ok(())
    }

    async fn learn(&self, message: &Value, answer: &Value) {
        let mut state = self.state.lock().await;
        if message["method"] == "initialize" {
            state.version = answer["result"]["protocolVersion"].as_str().map(str::to_owned);
        }
        for tool in answer["result"]["tools"].as_array().into_iter().flatten() {
            let mirrored = mirror::of_schema(&tool["inputSchema"]).unwrap_or_default();
            if let Some(name) = tool["name"].as_str() {
                state.mirrored.insert(name.to_owned(), mirrored);
            }
        }
    }

    /// Looks which arguments are to be said in headers. `false` when there is nothing new.
    async fn learn_tools(&self, message: &Value) -> anyhow::Result<bool> {
        let before = self.state.lock().await.mirrored.clone();
        let list =
            json!({ "jsonrpc": "2.0", "id": 0, "method": "tools/list", "params": { "_meta": message["params"]["_meta"] } });
        let body = self.send(&list).await?.bytes().await?;
        self.learn(&list, &serde_json::from_slice(&body).unwrap_or_default()).await;
        Ok(self.state.lock().await.mirrored != before)
    }

    /// Relays what an older version says without being asked, until the end.
    async fn follow(&self) {
        const PAUSE: Duration = Duration::from_secs(1);
        loop {
            let (session, version) = {
                let state = self.state.lock().await;
                (state.session.clone(), state.version.clone())
            };
            let (Some(session), Some(version)) = (session, version) else { return };
            let credential = self.client.lock().await.credential();
            let mut request =
                self.http.get(&self.url).header("accept", "text/event-stream").header(SESSION, session).header(VERSION, version);
            if let Some((name, value)) = credential {
                request = request.header(name, value);
            }
            if let Ok(response) = request.send().await
                && response.status().is_success()
            {
                // It is opened again when it breaks off.
                let _ = self.relay(response, &Value::Null).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn end(&self) {
        let session = self.state.lock().await.session.take();
        let credential = self.client.lock().await.credential();
        if let (Some(session), Some((name, value))) = (session, credential) {
            let request = self.http.delete(&self.url).header(SESSION, session).header(name, value);
            // The server forgets it by itself in time.
            let _ = request.timeout(Duration::from_secs(2)).send().await;
        }
    }
}
