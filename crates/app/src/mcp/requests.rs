//! One request through the door: found by its name, allowed, checked, handed on, recorded.

use super::{Door, OfferKind, View, identity, wish};
use crate::app::App;
use crate::journal::Values;
use crate::resilience::{is_repeatable, priority_of};
use crate::tools::{CallRecord, ToolResult, abandoned, check_callable, of_call, problems_of_arguments};
use crate::{Answer, Caller};
use domain::tool::Tool;
use engine::Handled;
use gateway::{Answers, Ask, Call, CallError, Client, Method, Note, Outcome, Resume, Tasks};
use kernel::id::{CallId, McpServerId};
use kernel::journal::Class;
use kernel::{Json, Kind as Trouble, Rejection, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To call a tool.
    Tool,
    /// To read a resource.
    Resource,
    /// To fill in a prompt.
    Prompt,
    /// To complete an argument of a prompt.
    CompletePrompt,
    /// To complete a part of a resource's template.
    CompleteTemplate,
}

/// A request of a client.
#[derive(Clone)]
pub struct McpAsk {
    /// What for.
    pub kind: Kind,
    /// Of what: a name or a URI, as it is offered here.
    pub name: String,
    /// Arguments, as they came.
    pub arguments: Option<Json>,
    /// Of a completion: what is known already.
    pub context: Option<Json>,
    /// The client's `_meta`, without what belongs to the protocol.
    pub meta: Map<String, Value>,
    /// Answers to what it was asked.
    pub responses: Option<Map<String, Value>>,
    /// The names of what it refused to answer.
    pub refused: Vec<String>,
    /// What it was told to send back.
    pub state: Option<String>,
    /// That a task is to be made of it, as version 2025-11-25 says it.
    pub task: Option<Json>,
}

/// Who asks, as servers see it.
#[derive(Clone, Debug, Default)]
pub struct McpClient {
    /// The session, where there is one.
    pub session: Option<String>,
    /// What it can be asked.
    pub capabilities: Map<String, Value>,
    /// From which level on it wants to see what servers log.
    pub log_level: Option<String>,
    /// What it does with a task in the place of an answer.
    pub tasks: Tasks,
}

/// What came of it.
pub enum McpOutcome {
    /// The server's result, as it came.
    Complete(Json),
    /// The client must be asked first.
    InputRequired {
        /// What, by names.
        requests: Map<String, Value>,
        /// To be sent back with the answers.
        state: Option<String>,
    },
    /// The server made a task of it, which the client may follow.
    Task(Map<String, Value>),
}

/// The journal's entry of a request that is no call of a tool, or of one that has no answer yet.
#[derive(Serialize)]
pub(super) struct Entry<'a> {
    pub call_id: CallId,
    pub name: &'a str,
    pub server: &'a str,
    pub arguments: Option<Json>,
    pub result: Option<Json>,
    pub error: Option<Failure<'a>>,
    pub duration_ms: u64,
}

#[derive(Serialize)]
pub(super) struct Failure<'a> {
    pub code: &'a str,
    pub message: &'a str,
}

/// The entry of a request that is under way. One whose client leaves is written down, too: the tool may have run.
struct Pending<'a> {
    app: &'a App,
    caller: &'a Caller,
    ask: &'a McpAsk,
    way: &'a Way,
    id: CallId,
    begun: Timestamp,
    /// The server that answered in the place of the one that was asked.
    answered_by: Option<String>,
    is_written: bool,
}

impl Pending<'_> {
    fn write(&mut self, outcome: &Answer<McpOutcome>) {
        self.is_written = true;
        let duration_ms = self.app.env().now().since_ms(self.begun);
        self.app.record(self, outcome, duration_ms);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(&Err(abandoned()));
        }
    }
}

/// Where a request goes.
pub(super) struct Way {
    pub server: McpServerId,
    server_name: String,
    /// Its name there.
    own: String,
    /// The tool, where it is one.
    pub tool: Option<Arc<Handled<Tool>>>,
}

/// A request that may be handed on.
#[derive(Clone, Copy)]
pub(super) struct Handed<'a> {
    pub caller: &'a Caller,
    pub door: Door,
    pub way: &'a Way,
    ask: &'a McpAsk,
    /// What it is about.
    request: &'a str,
    /// What it is called in the journal.
    pub id: CallId,
}

impl App {
    /// Hands a request of a client on. What the server tells meanwhile goes to `notes`.
    pub async fn mcp_ask(
        &self,
        caller: &Caller,
        door: Door,
        mut ask: McpAsk,
        client: &McpClient,
        notes: Option<mpsc::Sender<Note>>,
    ) -> Answer<McpOutcome> {
        let view = self.mcp_view(caller, door)?;
        let way = self.way(&view, &ask)?;
        let request = salient(door, &ask);
        let was_sent_away = self.came_back(caller, &request, way.server, &mut ask).await?;
        let begun = self.env().now();
        let id = self.env().id();
        let mut entry = Pending { app: self, caller, ask: &ask, way: &way, id, begun, answered_by: None, is_written: false };
        let outcome = match self.check(caller, door, &way, &ask) {
            Ok(()) => {
                let client = gateway_client(caller, door, client);
                let handed = Handed { caller, door, way: &way, ask: &ask, request: &request, id };
                self.handed_on(handed, client, notes).await
            }
            Err(rejection) => Err(rejection),
        };
        let outcome = match outcome {
            Err(rejection) if !was_sent_away => {
                match self.way_in(caller, &request, way.server, &client.capabilities, &rejection).await? {
                    Some((requests, state)) => Ok((McpOutcome::InputRequired { requests, state: Some(state) }, None)),
                    None => Err(rejection),
                }
            }
            outcome => outcome,
        };
        let outcome = outcome.map(|(outcome, by)| {
            entry.answered_by = by;
            outcome
        });
        entry.write(&outcome);
        outcome.map_err(|rejection| rejection.with("call_id", id))
    }

    /// Whether a request may be handed on, and is what the tool wants.
    fn check(&self, caller: &Caller, door: Door, way: &Way, ask: &McpAsk) -> Answer<()> {
        let Some(tool) = &way.tool else {
            let kind = match ask.kind {
                Kind::Prompt | Kind::CompletePrompt => OfferKind::Prompt,
                _ => OfferKind::Resource,
            };
            return self.check_use(caller, door, kind, &way.server_name, &ask.name);
        };
        let tool = &tool.state;
        self.check_use(caller, door, OfferKind::Tool, &tool.server, &tool.manifest.tool)?;
        check_callable(tool, &ask.name)?;
        let arguments = ask.arguments.clone().unwrap_or_default();
        problems_of_arguments(&self.0.schemas, tool, &ask.name, &arguments)
    }

    fn record(&self, entry: &Pending<'_>, outcome: &Answer<McpOutcome>, duration_ms: u64) {
        let Pending { caller, ask, way, id, .. } = *entry;
        let arguments = ask.arguments.clone().unwrap_or_default();
        if let Some(tool) = &way.tool {
            let answered_by = entry.answered_by.as_deref();
            let write = |outcome| {
                let done = CallRecord { id, task_id: None, arguments: &arguments, outcome, answered_by, duration_ms };
                self.record_call(caller, tool, &done);
            };
            match outcome {
                Ok(McpOutcome::Complete(result)) => {
                    return write(Ok(&ToolResult::read(result).unwrap_or_else(|_| ToolResult::unread(result))));
                }
                Err(rejection) => return write(Err(rejection)),
                Ok(McpOutcome::InputRequired { .. } | McpOutcome::Task(_)) => {}
            }
        }
        let (kind, result, error) = match outcome {
            Ok(McpOutcome::Complete(result)) => (finished(ask.kind), Some(result.clone()), None),
            Ok(McpOutcome::InputRequired { requests, .. }) => ("tools.input.required", Json::of(requests).ok(), None),
            Ok(McpOutcome::Task(task)) => ("tools.task.begun", Json::of(task).ok(), None),
            Err(rejection) => (failed(ask.kind), None, Some(Failure { code: rejection.code, message: &rejection.message })),
        };
        let mut values = Values::default();
        let entry = Entry {
            call_id: id,
            name: &ask.name,
            server: &way.server_name,
            arguments: ask.arguments.as_ref().map(|value| values.put(value)),
            result: result.as_ref().map(|value| values.put(value)),
            error,
            duration_ms,
        };
        self.observe(caller, Class::ToolCall, kind, &entry, values);
    }

    pub(super) fn way(&self, view: &View, ask: &McpAsk) -> Answer<Way> {
        let part_name = |server| view.part(server).map(|part| part.name.clone()).unwrap_or_default();
        let way = match ask.kind {
            Kind::Tool => {
                let offered = view.tool(&ask.name).ok_or_else(|| domain::tool::not_found(&ask.name))?;
                let tool = &offered.tool.state;
                return Ok(Way {
                    server: tool.server_id,
                    server_name: tool.server.clone(),
                    own: tool.manifest.tool.clone(),
                    tool: Some(offered.tool.clone()),
                });
            }
            Kind::Prompt | Kind::CompletePrompt => {
                let found = view.prompt(&ask.name).ok_or_else(|| nothing("prompt", &ask.name))?;
                Way { server: found.server, server_name: part_name(found.server), own: found.own.clone(), tool: None }
            }
            Kind::Resource => {
                let (server, own) = view.resource(&ask.name).ok_or_else(|| nothing("resource", &ask.name))?;
                Way { server, server_name: part_name(server), own, tool: None }
            }
            Kind::CompleteTemplate => {
                let found = view.template(&ask.name).ok_or_else(|| nothing("template", &ask.name))?;
                Way { server: found.server, server_name: part_name(found.server), own: found.own.clone(), tool: None }
            }
        };
        Ok(way)
    }

    /// Where a resource lies.
    pub(super) fn resource_of(&self, caller: &Caller, door: Door, uri: &str) -> Answer<(McpServerId, String)> {
        let view = self.mcp_view(caller, door)?;
        let (server, own) = view.resource(uri).ok_or_else(|| nothing("resource", uri))?;
        let name = view.part(server).map(|part| part.name.clone()).unwrap_or_default();
        self.check_use(caller, door, OfferKind::Resource, &name, uri)?;
        Ok((server, own))
    }

    async fn handed_on(
        &self,
        handed: Handed<'_>,
        client: Client,
        notes: Option<mpsc::Sender<Note>>,
    ) -> Answer<(McpOutcome, Option<String>)> {
        let Handed { caller, way, ask, request, .. } = handed;
        let resume = ask.state.as_deref().map(|state| self.open_resume(caller, request, state)).transpose()?;
        let answers = (resume.is_some() || ask.responses.is_some()).then(|| Answers {
            responses: ask.responses.clone().unwrap_or_default(),
            refused: ask.refused.clone(),
            resume: resume.unwrap_or(Resume::State(None)),
        });
        let (method, params) = parameters(ask, way);
        let mut meta = ask.meta.clone();
        let priority = priority_of(&mut meta)?;
        self.check_priority(caller, priority)?;
        let tool = way.tool.as_ref().map(|tool| &*tool.state);
        let task = tool.and_then(|tool| wish(tool, client.tasks, ask.task.as_ref()));
        let ask_server = Ask { method, name: way.own.clone(), params, meta, answers, task };
        let timeout = self.0.gateway.settings().call_timeout.max(Duration::from_millis(1));
        let mut call = Call::new(ask_server, client, timeout);
        call.approved = tool.map(|tool| tool.manifest.hash.clone());
        (call.notes, call.priority) = (notes, priority);
        call.is_repeatable = tool.is_none_or(is_repeatable);
        let answered = self.ask_server(caller, way.server, call, tool).await;
        let refused =
            |error| self.with_way_in(caller, way.server, &way.server_name, of_ask(ask.kind, &ask.name, &way.server_name, error));
        let answered = answered.map_err(refused)?;
        let outcome = match answered.outcome {
            Outcome::Complete(result) => McpOutcome::Complete(result),
            Outcome::InputRequired { requests, resume } => {
                McpOutcome::InputRequired { requests, state: self.seal_resume(caller, request, resume)? }
            }
            Outcome::Task(task) => McpOutcome::Task(self.named_task(&handed, task)?),
        };
        Ok((outcome, answered.by))
    }

    /// Ends the connections that servers know a session by.
    pub fn end_mcp_session(&self, caller: &Caller, door: Door, session: &str) {
        let client = McpClient { session: Some(session.to_owned()), ..McpClient::default() };
        self.0.gateway.forget_party(caller.actor.tenant, gateway_client(caller, door, &client).party);
    }
}

fn finished(kind: Kind) -> &'static str {
    match kind {
        Kind::Tool => "tools.call.finished",
        Kind::Resource => "tools.resource.read",
        Kind::Prompt => "tools.prompt.got",
        Kind::CompletePrompt | Kind::CompleteTemplate => "tools.completion.got",
    }
}

fn failed(kind: Kind) -> &'static str {
    match kind {
        Kind::Tool => "tools.call.failed",
        Kind::Resource => "tools.resource.failed",
        Kind::Prompt => "tools.prompt.failed",
        Kind::CompletePrompt | Kind::CompleteTemplate => "tools.completion.failed",
    }
}

/// What a request is about: answers belong to this and nothing else.
pub(super) fn salient(door: Door, ask: &McpAsk) -> String {
    let arguments = ask.arguments.as_ref().map(Json::text).unwrap_or_default();
    format!("{door:?}\n{:?}\n{}\n{arguments}", ask.kind, ask.name)
}

fn parameters(ask: &McpAsk, way: &Way) -> (Method, Vec<(&'static str, Json)>) {
    let arguments = ask.arguments.clone();
    let reference = |kind: &str, field: &str| {
        let value = Map::from_iter([("type".to_owned(), Value::from(kind)), (field.to_owned(), Value::from(way.own.clone()))]);
        Json::of(&value).unwrap_or_default()
    };
    let completion = |reference: Json| {
        let mut params = vec![("ref", reference), ("argument", arguments.clone().unwrap_or_default())];
        params.extend(ask.context.clone().map(|context| ("context", context)));
        (Method::Complete, params)
    };
    match ask.kind {
        Kind::Tool => (Method::CallTool, vec![("arguments", arguments.clone().unwrap_or_default())]),
        Kind::Resource => (Method::ReadResource, vec![]),
        Kind::Prompt => (Method::GetPrompt, arguments.clone().map(|value| ("arguments", value)).into_iter().collect()),
        Kind::CompletePrompt => completion(reference("ref/prompt", "name")),
        Kind::CompleteTemplate => completion(reference("ref/resource", "uri")),
    }
}

fn hash_of(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Who calls, as the gateway tells callers apart.
pub(crate) fn owner_of(caller: &Caller) -> [u8; 32] {
    hash_of(&[&caller.actor.tenant.to_string(), &identity(caller)])
}

/// The caller with its session: nobody shares a connection with anybody else.
pub(super) fn gateway_client(caller: &Caller, door: Door, client: &McpClient) -> Client {
    let (tenant, who) = (caller.actor.tenant.to_string(), identity(caller));
    Client {
        party: hash_of(&[&tenant, &who, &format!("{door:?}"), client.session.as_deref().unwrap_or_default()]),
        owner: owner_of(caller),
        is_session: client.session.is_some(),
        capabilities: client.capabilities.clone(),
        log_level: client.log_level.clone(),
        tasks: client.tasks,
        ..Client::default()
    }
}

fn nothing(what: &str, name: &str) -> Rejection {
    let shown: String = name.chars().take(200).collect();
    let message = format!("There is no {what} '{shown}' here.");
    Rejection::new(Trouble::NotFound, "OFFER_NOT_FOUND", message, "List what is offered, and use a name from there.")
}

/// What a failure means to whoever asked, with the server's name: of a tool, or of something else.
pub(super) fn of_ask(kind: Kind, name: &str, server: &str, error: CallError) -> Rejection {
    if let CallError::Gone = error {
        let message = "What waited for these answers has ended, or waits at another replica.";
        return Rejection::new(
            Trouble::Invalid,
            "REQUEST_STATE_INVALID",
            message,
            "Make the request again without requestState.",
        );
    }
    let refused = match &error {
        CallError::Refused(code, message, data) => Some((*code, message.clone(), data.clone())),
        _ => None,
    };
    let mut rejection = of_call(name, error).with("server", server);
    if kind != Kind::Tool {
        rejection.message = rejection.message.replacen("The tool", "The request for", 1);
    }
    match refused {
        Some((code, message, data)) => {
            rejection.with("upstream", serde_json::json!({ "code": code, "message": message, "data": *data }))
        }
        None => rejection,
    }
}
