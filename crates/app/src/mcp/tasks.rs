//! Tasks that MCP servers make of calls, at the door: each has a name that says whose it is and where, sealed, so that it is of
//! use to one caller only and any replica finds it.

use super::requests::{Entry, Failure, Handed, Kind, gateway_client, of_ask, salient};
use super::{Door, McpAsk, McpClient, OfferKind, identity};
use crate::app::App;
use crate::journal::Values;
use crate::tools::{ToolResult, check_callable};
use crate::{Answer, Caller};
use domain::tool::Tool;
use gateway::mcp::tasks::{is_over, status};
use gateway::{Ask, Call, Client, Method, Outcome, Priority, Resume, Tasks};
use kernel::id::{CallId, McpServerId};
use kernel::journal::Class;
use kernel::{Json, Kind as Trouble, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

const NAME_BYTES_MAX: usize = 4 * 1024;

/// What is wanted of a task.
pub enum TaskAsk {
    /// How it is.
    Get,
    /// The same, for somebody who is told of it without asking: others go first.
    Follow,
    /// To be given answers to what it asks, by their names.
    Update(Map<String, Value>),
    /// To be called off.
    Cancel,
}

/// What the name of a task says.
#[derive(Serialize, Deserialize)]
struct Named {
    server: McpServerId,
    /// The tool that was called.
    tool: String,
    /// The call that it came of.
    call: CallId,
    /// The server's own id of it.
    id: String,
}

/// How a tool of a server of 2025-11-25 makes tasks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// When it is told to.
    Optional,
    /// Always.
    Required,
}

/// Whether a tool makes tasks, as version 2025-11-25 says it.
pub(super) fn support(tool: &Tool) -> Option<Support> {
    let more = &tool.manifest.more;
    if !more.text().contains("taskSupport") {
        return None;
    }
    match more.value()["execution"]["taskSupport"].as_str() {
        Some("optional") => Some(Support::Optional),
        Some("required") => Some(Support::Required),
        _ => None,
    }
}

/// What a server of 2025-11-25 is told so that it makes a task of a call; nothing where it is to make none.
pub(crate) fn wish(tool: &Tool, tasks: Tasks, asked: Option<&Json>) -> Option<Json> {
    let is_wanted = match support(tool)? {
        Support::Required => true,
        Support::Optional => tasks == Tasks::Followed,
    };
    is_wanted.then(|| asked.cloned().unwrap_or_else(Json::empty_object))
}

fn place(caller: &Caller, door: Door) -> String {
    format!("mcp-task/{}/{door:?}", identity(caller))
}

fn not_found() -> Rejection {
    let message = "There is no such task here: it is another's, of another door, or its tool is gone.";
    Rejection::new(Trouble::NotFound, "MCP_TASK_NOT_FOUND", message, "Call the tool again.")
}

impl App {
    /// A task as its client may see it, under a name that is good for this caller at this door.
    pub(super) fn named_task(&self, handed: &Handed<'_>, mut task: Map<String, Value>) -> Answer<Map<String, Value>> {
        let Handed { caller, door, way, id: call, .. } = *handed;
        let tool = way.tool.as_ref().map(|tool| tool.stream.clone()).unwrap_or_default();
        let id = task.get("taskId").and_then(Value::as_str).unwrap_or_default().to_owned();
        let named = Named { server: way.server, tool, call, id };
        let name = self.seal_text(caller.actor.tenant, &place(caller, door), &named)?;
        task.insert("taskId".to_owned(), Value::from(name));
        Ok(task)
    }

    fn task_named(&self, caller: &Caller, door: Door, name: &str) -> Option<Named> {
        (name.len() <= NAME_BYTES_MAX).then(|| self.open_text(caller.actor.tenant, &place(caller, door), name))?
    }

    /// Whether this is the name of a task that the caller was given at this door.
    pub fn is_task_name(&self, caller: &Caller, door: Door, name: &str) -> bool {
        self.task_named(caller, door, name).is_some()
    }

    /// Asks the server about a task, for the caller who was given its name. Answers how it is, and nothing where it was told something.
    pub async fn mcp_task(
        &self,
        caller: &Caller,
        door: Door,
        name: &str,
        ask: TaskAsk,
        client: &McpClient,
    ) -> Answer<Map<String, Value>> {
        let named = self.task_named(caller, door, name).ok_or_else(not_found)?;
        let view = self.mcp_view(caller, door)?;
        let tool = view.tools.iter().find(|offered| offered.tool.stream == named.tool).ok_or_else(not_found)?;
        let (server, own) = tool.origin();
        self.check_use(caller, door, OfferKind::Tool, server, own)?;
        // Whoever follows a task may have come long ago.
        if !self.may_still_use(caller, door, OfferKind::Tool, server, own).await {
            return Err(not_found());
        }
        if !matches!(ask, TaskAsk::Cancel) {
            check_callable(&tool.tool.state, &tool.name)?;
        }
        let begun = self.env().now();
        let priority = if matches!(ask, TaskAsk::Follow) { Priority::Low } else { Priority::Normal };
        let (method, responses) = match ask {
            TaskAsk::Get | TaskAsk::Follow => (Method::GetTask, None),
            TaskAsk::Update(responses) => (Method::UpdateTask, Some(responses)),
            TaskAsk::Cancel => (Method::CancelTask, None),
        };
        let arguments = responses.as_ref().and_then(|responses| Json::of(responses).ok());
        let ask = Ask::of_task(method, named.id, responses);
        let mut call = self.call_of_task(ask, gateway_client(caller, door, client));
        call.priority = priority;
        let answered = self.ask_server(caller, named.server, call, None).await;
        let answered = answered.map(|answered| match answered.outcome {
            Outcome::Task(mut task) => {
                task.insert("taskId".to_owned(), Value::from(name));
                task
            }
            Outcome::Complete(_) | Outcome::InputRequired { .. } => Map::new(),
        });
        let answered = answered.map_err(|error| of_ask(Kind::Tool, &tool.name, server, error));
        if let Some(kind) = told(method, &answered) {
            let mut values = Values::default();
            let error = answered.as_ref().err().map(|refused| Failure { code: refused.code, message: &refused.message });
            let entry = Entry {
                call_id: named.call,
                name: &tool.name,
                server,
                arguments: arguments.as_ref().map(|value| values.put(value)),
                result: answered.as_ref().ok().and_then(|task| result_of(task, &mut values)),
                error,
                duration_ms: self.env().now().since_ms(begun),
            };
            self.observe(caller, Class::ToolCall, kind, &entry, values);
        }
        answered
    }

    /// Calls off what waits for answers that nobody will give: a task that is waited for in the client's place.
    pub async fn mcp_give_up(&self, caller: &Caller, door: Door, ask: &McpAsk, client: &McpClient) {
        let opened = ask.state.as_deref().and_then(|state| self.open_resume(caller, &salient(door, ask), state).ok());
        let Some(Resume::Task { id, .. }) = opened else { return };
        let Ok(way) = self.mcp_view(caller, door).and_then(|view| self.way(&view, ask)) else { return };
        let client = Client { tasks: Tasks::Followed, ..gateway_client(caller, door, client) };
        let call = self.call_of_task(Ask::of_task(Method::CancelTask, id, None), client);
        // It ends by itself otherwise, when its time is over.
        let _ = self.ask_server(caller, way.server, call, None).await;
    }

    fn call_of_task(&self, ask: Ask, client: Client) -> Call {
        let mut call = Call::new(ask, client, self.0.gateway.settings().call_timeout);
        // Asked, told or called off twice is the same as once.
        call.is_repeatable = true;
        call
    }
}

/// How a task came out, as it is written down; nothing of one that is told something.
fn result_of(task: &Map<String, Value>, values: &mut Values) -> Option<Json> {
    let mut written = json!({ "status": task.get("status")? });
    match task.get("result").and_then(|result| ToolResult::read(&Json::of(result).ok()?).ok()) {
        Some(result) => {
            written["is_error"] = result.is_error.into();
            written["content"] = values.put(&result.content).value();
            written["structured_content"] = result.structured_content.map(|value| values.put(&value).value()).into();
        }
        None => written["error"] = task.get("error").cloned().unwrap_or_default(),
    }
    Json::of(&written).ok()
}

/// What is written down of a request about a task; nothing of a look at one that is under way.
fn told(method: Method, answered: &Answer<Map<String, Value>>) -> Option<&'static str> {
    match (method, answered) {
        (_, Err(_)) => Some("tools.task.failed"),
        (Method::UpdateTask, _) => Some("tools.task.answered"),
        (Method::CancelTask, _) => Some("tools.task.cancelled"),
        (_, Ok(task)) => is_over(status(task)).then_some("tools.task.ended"),
    }
}
