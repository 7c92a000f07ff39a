//! Tools: list, find, approve, call. Every call is authorised, checked against the tool's schema, bounded, and recorded.

use crate::app::App;
use crate::journal::Values;
use crate::mcp::{owner_of, wish};
use crate::resilience::is_repeatable;
use crate::schema::Schemas;
use crate::{Answer, Caller};
use domain::mcp_server::{McpServer, ServerStatus};
use domain::scrutiny::{self, Finding, Names};
use domain::task::Task;
use domain::tool::{Tool, ToolCommand, name_key, not_found};
use engine::{Extras, Handled, Step};
use gateway::{Ask, Call, CallError, Client, Method, Outcome, Priority, Tasks};
use kernel::id::{AgentId, CallId, TaskId, TenantId, ToolId};
use kernel::journal::Class;
use kernel::{ActorKind, Json, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Whether a tool can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolStatus {
    /// It can.
    Ready,
    /// It is not what was approved.
    NeedsApproval,
    /// Its server is not ready.
    Unavailable,
    /// Its server lists it no more.
    Withdrawn,
}

impl ToolStatus {
    /// Of a tool whose server is so.
    pub(crate) fn of(tool: &Tool, server: Option<ServerStatus>) -> Self {
        match server {
            _ if !tool.is_listed => ToolStatus::Withdrawn,
            _ if !tool.is_approved() => ToolStatus::NeedsApproval,
            Some(ServerStatus::Ready) => ToolStatus::Ready,
            _ => ToolStatus::Unavailable,
        }
    }

    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            ToolStatus::Ready => "ready",
            ToolStatus::NeedsApproval => "needs_approval",
            ToolStatus::Unavailable => "unavailable",
            ToolStatus::Withdrawn => "withdrawn",
        }
    }
}

/// A tool and whether it can be called.
pub struct ListedTool {
    /// The tool.
    pub tool: Handled<Tool>,
    /// Whether it can be called.
    pub status: ToolStatus,
    /// What somebody should look at before approving it; nothing once it is, and in lists.
    pub findings: Vec<Finding>,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    /// Whether the tool says that it failed.
    #[serde(default)]
    pub is_error: bool,
    /// Content blocks, as they came.
    #[serde(default = "nothing")]
    pub content: Json,
    /// Structured result, as it came.
    pub structured_content: Option<Json>,
}

impl ToolResult {
    /// What a server's answer says.
    pub(crate) fn read(answer: &Json) -> Result<Self, String> {
        let result: ToolResult = serde_json::from_str(answer.text()).map_err(|e| e.to_string())?;
        if !result.content.text().starts_with('[') {
            return Err("its content is no list".into());
        }
        Ok(result)
    }

    /// An answer that is no result of a tool: handed on and recorded as it is.
    pub(crate) fn unread(answer: &Json) -> Self {
        ToolResult { is_error: false, content: answer.clone(), structured_content: None }
    }
}

fn nothing() -> Json {
    Json::of(&json!([])).unwrap_or_default()
}

/// A call that was answered.
pub struct ToolCall {
    /// Its id, also in the journal.
    pub id: CallId,
    /// Which tool.
    pub tool: Handled<Tool>,
    /// For which task.
    pub task_id: Option<TaskId>,
    /// What the tool answered.
    pub result: ToolResult,
    /// The server that answered in the place of the tool's own.
    pub answered_by: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
}

/// What is wanted of a tool.
pub struct NewCall {
    /// What it gets.
    pub arguments: Json,
    /// The task that it is for.
    pub task_id: Option<TaskId>,
    /// How long it may take.
    pub timeout_ms: Option<u64>,
    /// How much it matters.
    pub priority: Priority,
}

/// The entry of a call that is under way. One whose client leaves is written down, too: the tool may have run.
struct PendingCall<'a> {
    app: &'a App,
    caller: &'a Caller,
    id: CallId,
    tool: &'a Handled<Tool>,
    task_id: Option<TaskId>,
    arguments: &'a Json,
    begun: Timestamp,
    is_written: bool,
}

impl PendingCall<'_> {
    fn write(&mut self, outcome: Result<&ToolResult, &Rejection>, answered_by: Option<&str>) -> u64 {
        self.is_written = true;
        let duration_ms = self.app.env().now().since_ms(self.begun);
        let done =
            CallRecord { id: self.id, task_id: self.task_id, arguments: self.arguments, outcome, answered_by, duration_ms };
        self.app.record_call(self.caller, self.tool, &done);
        duration_ms
    }
}

/// What is written down of a call.
pub(crate) struct CallRecord<'a> {
    pub id: CallId,
    pub task_id: Option<TaskId>,
    pub arguments: &'a Json,
    pub outcome: Result<&'a ToolResult, &'a Rejection>,
    /// The server that answered in the place of the tool's own.
    pub answered_by: Option<&'a str>,
    pub duration_ms: u64,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(Err(&abandoned()), None);
        }
    }
}

/// What is written down of a request whose client left.
pub(crate) fn abandoned() -> Rejection {
    Rejection::new(Kind::Unavailable, "ABANDONED", "The client did not wait for the answer.", "")
}

/// The journal's entry of a call.
#[derive(Serialize)]
struct CallEntry<'a> {
    call_id: CallId,
    tool: String,
    tool_id: &'a str,
    server: &'a str,
    task_id: Option<TaskId>,
    arguments: Json,
    result: Option<ResultEntry>,
    error: Option<ErrorEntry<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<&'a str>,
    duration_ms: u64,
}

#[derive(Serialize)]
struct ResultEntry {
    is_error: bool,
    content: Json,
    structured_content: Option<Json>,
}

#[derive(Serialize)]
struct ErrorEntry<'a> {
    code: &'a str,
    message: &'a str,
}

impl App {
    /// One tool, by id or full name.
    pub async fn tool(&self, caller: &Caller, id_or_name: &str) -> Answer<ListedTool> {
        let tool = self.tool_record(caller, id_or_name).await?;
        let server = self.read::<McpServer>(caller, &tool.state.server_id.to_string()).await?;
        let status = ToolStatus::of(&tool.state, server.as_ref().map(|server| server.state.status));
        let findings = self.findings(caller.actor.tenant, &tool.state);
        Ok(ListedTool { tool, status, findings })
    }

    /// What is odd about a tool that is not approved as it is now.
    fn findings(&self, tenant: TenantId, tool: &Tool) -> Vec<Finding> {
        if tool.is_approved() {
            return vec![];
        }
        let mut findings = scrutiny::of_manifest(&tool.manifest);
        findings.extend(self.tool_names(tenant).look_alike(tool.server_id, &tool.manifest.tool));
        findings
    }

    /// What servers call their tools.
    pub(crate) fn tool_names(&self, tenant: TenantId) -> Names {
        let mut names = Names::default();
        if let Some(runtime) = self.runtimes().into_iter().find(|runtime| runtime.id == tenant) {
            let known = runtime.catalogue.known();
            known.tools.values().for_each(|tool| names.put(tool.state.server_id, &tool.state.manifest.tool));
        }
        names
    }

    async fn tool_record(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<Tool>> {
        let stream = match id_or_name.parse::<ToolId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<Tool>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// Tools by name; with a query those that have all its words, best first. Answers them and the position.
    pub async fn tools(&self, caller: &Caller, query: &str) -> Answer<(Vec<ListedTool>, u64)> {
        let position = self.position(caller.actor.tenant);
        let runtime = self.runtime(caller)?;
        runtime.catalogued.reaches(position).await;
        let words: Vec<String> = query.split_whitespace().map(str::to_lowercase).collect();
        let mut found = vec![];
        let known = runtime.catalogue.known();
        for tool in known.tools.values() {
            let Some(fit) = fit(&tool.state, &words) else { continue };
            let server = known.servers.get(&tool.state.server_id);
            let status = ToolStatus::of(&tool.state, server.map(|server| server.state.status));
            found.push((
                std::cmp::Reverse(fit),
                tool.state.name(),
                ListedTool { tool: (**tool).clone(), status, findings: vec![] },
            ));
        }
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        Ok((found.into_iter().map(|(_, _, tool)| tool).collect(), position))
    }

    /// Allows what a tool says of itself now.
    pub async fn approve_tool(&self, caller: &Caller, id_or_name: &str) -> Answer<ListedTool> {
        let tool = self.tool_record(caller, id_or_name).await?;
        let entry = json!({ "tool": tool.state.name(), "tool_id": tool.stream, "hash": tool.state.manifest.hash });
        self.witness(caller, "tools.tool.approved", &entry).await?;
        // What was looked at is approved, and nothing that came in between.
        let caller = Caller { if_match: Some(caller.if_match.unwrap_or(tool.version)), ..caller.clone() };
        let step = Step::on::<Tool>(&tool.stream, ToolCommand::Approve);
        let approved = self.execute::<Tool>(&caller, step, Extras::default()).await?;
        if let Ok(id) = approved.stream.parse() {
            self.runtime(&caller)?.catalogue.put_tool(id, approved);
        }
        self.tool(&caller, &tool.stream).await
    }

    /// Calls a tool.
    pub async fn call_tool(&self, caller: &Caller, id_or_name: &str, new: NewCall) -> Answer<ToolCall> {
        let tool = self.tool_record(caller, id_or_name).await?;
        let NewCall { arguments, task_id, .. } = &new;
        if let Some(task) = *task_id {
            self.check_holder(caller, task).await?;
        }
        let (id, task_id, begun) = (self.env().id(), *task_id, self.env().now());
        let mut entry = PendingCall { app: self, caller, id, tool: &tool, task_id, arguments, begun, is_written: false };
        let outcome = self.checked_call(caller, &tool, &new).await;
        let answered_by = outcome.as_ref().ok().and_then(|(_, by)| by.clone());
        let duration_ms = entry.write(outcome.as_ref().map(|(result, _)| result), answered_by.as_deref());
        drop(entry);
        let (result, _) = outcome.map_err(|e| e.with("call_id", id))?;
        Ok(ToolCall { id, result, answered_by, tool, task_id, duration_ms })
    }

    /// Writes a call down, whichever way it came.
    pub(crate) fn record_call(&self, caller: &Caller, tool: &Handled<Tool>, done: &CallRecord<'_>) {
        let &CallRecord { id, task_id, arguments, outcome, answered_by, duration_ms } = done;
        let mut values = Values::default();
        let entry = CallEntry {
            call_id: id,
            tool: tool.state.name(),
            tool_id: &tool.stream,
            server: &tool.state.server,
            task_id,
            arguments: values.put(arguments),
            result: outcome.ok().map(|result| ResultEntry {
                is_error: result.is_error,
                content: values.put(&result.content),
                structured_content: result.structured_content.as_ref().map(|value| values.put(value)),
            }),
            error: outcome.err().map(|e| ErrorEntry { code: e.code, message: &e.message }),
            answered_by,
            duration_ms,
        };
        let kind = if outcome.is_ok() { "tools.call.finished" } else { "tools.call.failed" };
        self.observe(caller, Class::ToolCall, kind, &entry, values);
    }

    /// An agent names only tasks that it holds.
    async fn check_holder(&self, caller: &Caller, id: TaskId) -> Answer<()> {
        let task = self.entity::<Task>(caller.actor.tenant, &id.to_string()).await?;
        let task = task.ok_or_else(|| domain::task::not_found(&id.to_string()))?;
        let agent = (caller.actor.who.kind == ActorKind::Agent).then(|| caller.actor.who.id.parse::<AgentId>().ok()).flatten();
        match agent {
            Some(agent) if task.state.claim.is_none_or(|claim| claim.agent_id != agent) => Err(Rejection::new(
                Kind::Conflict,
                "CLAIM_STALE",
                format!("You do not hold the task '{id}'."),
                "Drop the work, or leave out task_id.",
            )),
            _ => Ok(()),
        }
    }

    async fn checked_call(&self, caller: &Caller, tool: &Handled<Tool>, new: &NewCall) -> Answer<(ToolResult, Option<String>)> {
        let (state, name) = (&tool.state, tool.state.name());
        check_callable(state, &name)?;
        self.check_priority(caller, new.priority)?;
        problems_of_arguments(&self.0.schemas, state, &name, &new.arguments)?;
        let params = vec![("arguments", new.arguments.clone())];
        let (task, meta) = (wish(state, Tasks::Awaited, None), Default::default());
        let ask = Ask { method: Method::CallTool, name: state.manifest.tool.clone(), params, meta, answers: None, task };
        // Whoever calls over this interface cannot be asked back.
        let client = Client { owner: owner_of(caller), tasks: Tasks::Awaited, ..Client::default() };
        let timeout = new.timeout_ms.map_or(self.0.gateway.settings().call_timeout, Duration::from_millis);
        let mut call = Call::new(ask, client, timeout);
        call.approved = Some(state.manifest.hash.clone());
        (call.timeout_is_wanted, call.priority) = (new.timeout_ms.is_some(), new.priority);
        call.is_repeatable = is_repeatable(state);
        let asked = self.ask_server(caller, state.server_id, call, Some(state)).await;
        let answered = asked.map_err(|error| self.with_way_in(caller, state.server_id, &state.server, of_call(&name, error)))?;
        let Outcome::Complete(result) = answered.outcome else {
            return Err(of_call(&name, CallError::Unusable("it asks for more input".into())));
        };
        let result = ToolResult::read(&result).map_err(|problem| of_call(&name, CallError::Unusable(problem)))?;
        Ok((result, answered.by))
    }

    /// Whoever goes before others must be allowed to.
    pub(crate) fn check_priority(&self, caller: &Caller, priority: Priority) -> Answer<()> {
        if priority == Priority::High {
            self.authorise(&caller.actor, "tools.prioritise")?;
        }
        Ok(())
    }
}

/// A tool that is listed, as it was approved.
pub(crate) fn check_callable(tool: &Tool, name: &str) -> Answer<()> {
    if !tool.is_listed {
        return Err(unavailable(name, "its server does not list it any more"));
    }
    if !tool.is_approved() {
        return Err(not_approved(name));
    }
    Ok(())
}

/// Without what is `null` and need not be there: many models say so that they leave something out.
fn without_nulls(schema: &Json, arguments: serde_json::Value) -> serde_json::Value {
    let schema = schema.value();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    match arguments {
        serde_json::Value::Object(mut members) => {
            members.retain(|name, value| !value.is_null() || required.iter().any(|one| one == name));
            serde_json::Value::Object(members)
        }
        other => other,
    }
}

/// Arguments that meet a tool's schema. They are handed on as they came.
pub(crate) fn problems_of_arguments(schemas: &Schemas, tool: &Tool, name: &str, arguments: &Json) -> Answer<()> {
    let (schema, arguments) = (&tool.manifest.input_schema, arguments.value());
    let problems = schemas.problems(schema, &arguments, "/arguments");
    if problems.is_empty() || schemas.problems(schema, &without_nulls(schema, arguments), "/arguments").is_empty() {
        return Ok(());
    }
    let message = format!("The arguments do not meet the input schema of the tool '{name}'.");
    let hint = "Correct what details.errors names; GET /api/v1/tools/{id} shows the schema.";
    Err(Rejection::new(Kind::Refused, "ARGUMENTS_INVALID", message, hint).with("errors", problems))
}

/// What a failed call means to whoever called.
pub(crate) fn of_call(name: &str, error: CallError) -> Rejection {
    let upstream = |code, hint: &str| Rejection::new(Kind::Upstream, code, format!("The tool '{name}' failed: {error}."), hint);
    match &error {
        CallError::NotReady(reason) | CallError::Unreached(reason) => unavailable(name, reason),
        CallError::Busy | CallError::Shed | CallError::Starting => unavailable(name, &error.to_string()),
        CallError::Open { after, .. } => {
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            unavailable(name, &error.to_string()).with("reason", "circuit_open").with("retry_after_ms", after_ms)
        }
        CallError::Changed => not_approved(name),
        CallError::Timeout(_) | CallError::Impatient(_) => {
            upstream("TOOL_TIMEOUT", "It may have done its work: look before calling again, or give it more timeout_ms.")
        }
        CallError::Lost(_) | CallError::Interrupted(_) => {
            upstream("TOOL_LOST", "It may have done its work: look before calling again.")
        }
        CallError::Refused(..) => upstream("TOOL_REFUSED", "Correct the arguments; the message is the server's own."),
        CallError::Unusable(_) => upstream("TOOL_ANSWER_UNUSABLE", "Ask for less, for example in pages."),
        CallError::Gone => upstream("TOOL_LOST", "Call it again."),
        CallError::Locked(_) => {
            let message = format!("The server of '{name}' lets nobody in: {error}.");
            let hint = "Connect the server to an account: keiko mcp servers connect.";
            Rejection::new(Kind::Forbidden, "CREDENTIAL_REQUIRED", message, hint)
        }
    }
}

fn unavailable(name: &str, reason: &str) -> Rejection {
    let message = format!("The tool '{name}' cannot be called now: {reason}.");
    Rejection::new(
        Kind::Unavailable,
        "TOOL_UNAVAILABLE",
        message,
        "See GET /api/v1/mcp-servers/{id}/resilience for how its server does.",
    )
}

fn not_approved(name: &str) -> Rejection {
    let message = format!("The tool '{name}' is not what was approved; it cannot be called until somebody approves it.");
    let hint = "Compare it with what you expect, then POST /api/v1/tools/{id}/actions/approve.";
    Rejection::new(Kind::Conflict, "TOOL_NOT_APPROVED", message, hint)
}

/// How well a tool fits words: `None` when one is missing; a word in the name counts more than one in the description.
fn fit(tool: &Tool, words: &[String]) -> Option<usize> {
    let (name, description) = (tool.name().to_lowercase(), tool.manifest.description.to_lowercase());
    let score = |word: &String| match (name.contains(word.as_str()), description.contains(word.as_str())) {
        (true, _) => Some(3),
        (false, true) => Some(1),
        (false, false) => None,
    };
    words.iter().map(score).sum()
}
