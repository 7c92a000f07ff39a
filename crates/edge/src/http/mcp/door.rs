//! What every version has in common: lists, requests that are handed on, built-in tools. Answers are texts of results; those of
//! servers are not read again.

use super::message::{Answer, INVALID_PARAMS, Params, RpcError, carried, shown};
use super::{Api, builtin, search};
use crate::http::state::EdgeState;
use app::Caller;
use app::mcp::{AskKind, Door, McpAsk, McpClient, McpOutcome, Note, OfferKind, View, task};
use axum::http::request::Parts;
use kernel::Json;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Entries of one page of a list.
const PAGE: usize = 1_000;
/// How long lists may be taken as they were; their changes are told, too.
const LIST_TTL_MS: u32 = 5_000;
const DISCOVER_TTL_MS: u32 = 60_000;
const INSTRUCTIONS: &str = "Tools named server__tool belong to servers behind Keiko. As an agent: take work with task_claim, keep it \
    with task_heartbeat well before claim.expires_at, end it with task_complete or task_fail, each with the claim's token.";

/// One client at one door, with one request.
pub(super) struct Visit {
    pub state: Arc<EdgeState>,
    pub api: Api,
    pub parts: Parts,
    pub caller: Caller,
    pub door: Door,
    /// The name in the path; empty for the door to everything.
    pub door_name: String,
    /// Whether the client speaks the newest version.
    pub is_modern: bool,
    /// Whether tools are found instead of listed.
    pub is_search: bool,
}

/// What came of a request that may be handed on.
pub(super) enum Done {
    Answer(Answer),
    /// The client is to be asked first.
    InputRequired {
        requests: Map<String, Value>,
        state: Option<String>,
    },
    /// The server made a task of it.
    Task(Map<String, Value>),
}

/// What this server can do.
pub(super) fn capabilities() -> Value {
    json!({ "tools": { "listChanged": true }, "prompts": { "listChanged": true }, "completions": {}, "logging": {},
        "resources": { "subscribe": true, "listChanged": true } })
}

pub(super) fn server_info() -> Value {
    json!({ "name": "keiko", "title": "Keiko", "version": env!("CARGO_PKG_VERSION") })
}

pub(super) fn instructions(door: Door) -> Option<&'static str> {
    (door == Door::All).then_some(INSTRUCTIONS)
}

impl Visit {
    /// Who came, as far as it matters whose something is.
    pub fn owner(&self) -> String {
        self.state.app.mcp_identity(&self.caller)
    }

    fn view(&self) -> Result<Arc<View>, RpcError> {
        self.state.app.mcp_view(&self.caller, self.door).map_err(|rejection| RpcError::of(&rejection, self.is_modern, false))
    }

    /// `server/discover`
    pub fn discover(&self) -> Answer {
        let mut capabilities = capabilities();
        capabilities["extensions"] = json!({ task::EXTENSION: {} });
        let mut result = json!({ "resultType": "complete", "supportedVersions": super::versions(), "capabilities": capabilities,
            "ttlMs": DISCOVER_TTL_MS, "cacheScope": "private",
            "_meta": { "io.modelcontextprotocol/serverInfo": server_info() } });
        if let Some(instructions) = instructions(self.door) {
            result["instructions"] = json!(instructions);
        }
        Ok(result.to_string())
    }

    /// Any of the lists, by its method.
    pub async fn list(&self, method: &str, params: &Params) -> Answer {
        if let Err(rejection) = self.state.app.mcp_is_current(&self.caller).await {
            return Err(RpcError::of(&rejection, self.is_modern, false));
        }
        let view = self.view()?;
        let (field, entries) = match method {
            "tools/list" => ("tools", self.tools(&view)),
            "prompts/list" => ("prompts", self.allowed(OfferKind::Prompt, &view, &view.prompts)),
            "resources/list" => ("resources", self.allowed(OfferKind::Resource, &view, &view.resources)),
            _ => ("resourceTemplates", self.allowed(OfferKind::Resource, &view, &view.templates)),
        };
        let from = match params.cursor.as_deref().map(str::parse::<usize>) {
            None => 0,
            Some(Ok(from)) if from <= entries.len() => from,
            Some(_) => return Err(RpcError::new(INVALID_PARAMS, "This is no cursor of this list.")),
        };
        let page = &entries[from..entries.len().min(from + PAGE)];
        let mut text = String::with_capacity(page.iter().map(|entry| entry.len() + 1).sum::<usize>() + 200);
        let _ = write!(text, r#"{{"{field}":[{}]"#, page.join(","));
        if from + PAGE < entries.len() {
            let _ = write!(text, r#","nextCursor":"{}""#, from + PAGE);
        }
        if self.is_modern {
            let _ = write!(text, r#","resultType":"complete","ttlMs":{LIST_TTL_MS},"cacheScope":"private""#);
        }
        if let Some(meta) = self.list_meta(&view) {
            let _ = write!(text, r#","_meta":{meta}"#);
        }
        text.push('}');
        Ok(text)
    }

    /// Who answers, and which servers behind the door do not answer now: what they offer is shown as it was last.
    fn list_meta(&self, view: &View) -> Option<Value> {
        let mut meta = Map::new();
        if self.is_modern {
            meta.insert("io.modelcontextprotocol/serverInfo".into(), server_info());
        }
        let away = view.parts.iter().filter(|part| part.status.as_str() != "ready" && self.may_use_some(view, &part.name));
        // Why is for those who look after servers.
        let sees_why = self.state.app.authorise(&self.caller.actor, "mcp-servers.read").is_ok();
        let shown = |part: &app::mcp::Part| {
            let reason = part.reason.as_ref().filter(|_| sees_why);
            json!({ "server": part.name, "status": part.status.as_str(), "reason": reason })
        };
        let away: Vec<Value> = away.map(shown).collect();
        if !away.is_empty() {
            meta.insert("keiko/unavailable".into(), Value::Array(away));
        }
        (!meta.is_empty()).then_some(Value::Object(meta))
    }

    /// Whether the caller may use any tool of a server.
    fn may_use_some(&self, view: &View, server: &str) -> bool {
        let app = &self.state.app;
        let may_use = |(server, tool): (&str, &str)| app.may_use(&self.caller, self.door, OfferKind::Tool, server, tool);
        let mut own = view.tools.iter().map(app::mcp::OfferedTool::origin).filter(|(of, _)| *of == server);
        app.may_use_all(&self.caller, self.door) || own.any(may_use)
    }

    fn tools<'a>(&'a self, view: &'a View) -> Vec<&'a str> {
        let own = self.state.built_in_tools.iter().filter(|_| view.built_in).map(String::as_str);
        if self.is_search {
            return search::ENTRIES.iter().map(String::as_str).chain(own).collect();
        }
        let app = &self.state.app;
        let may_use = |(server, tool): (&str, &str)| app.may_use(&self.caller, self.door, OfferKind::Tool, server, tool);
        // Whoever may use all is asked once.
        let all = app.may_use_all(&self.caller, self.door);
        let offered = view.tools.iter().filter(|tool| tool.is_offered() && (all || may_use(tool.origin())));
        own.chain(offered.map(|tool| tool.entry.get())).collect()
    }

    fn allowed<'a>(&self, kind: OfferKind, view: &View, offers: &'a [app::mcp::Offered]) -> Vec<&'a str> {
        let app = &self.state.app;
        let all = app.may_use_all(&self.caller, self.door);
        let is_allowed =
            |offer: &&app::mcp::Offered| all || app.may_use(&self.caller, self.door, kind, view.server_of(offer), &offer.name);
        offers.iter().filter(is_allowed).map(|offer| offer.entry.get()).collect()
    }

    /// What a request that is handed on asks for. An error when it is not well-formed.
    pub fn asked(&self, method: &str, params: &Params) -> Result<McpAsk, RpcError> {
        let missing = |what: &str| RpcError::new(INVALID_PARAMS, format!("'{what}' is missing."));
        let arguments = params.arguments.as_deref().filter(|raw| raw.get() != "null");
        let (kind, name, arguments) = match method {
            "tools/call" => (AskKind::Tool, params.name.clone().ok_or_else(|| missing("name"))?, arguments.map(carried)),
            "prompts/get" => (AskKind::Prompt, params.name.clone().ok_or_else(|| missing("name"))?, arguments.map(carried)),
            "resources/read" => (AskKind::Resource, params.uri.clone().ok_or_else(|| missing("uri"))?, None),
            _ => {
                let reference = params.reference.as_ref().ok_or_else(|| missing("ref"))?;
                let text = |field: &str| reference.get(field).and_then(Value::as_str).map(str::to_owned);
                let (kind, name) = match text("type").as_deref() {
                    Some("ref/prompt") => (AskKind::CompletePrompt, text("name")),
                    Some("ref/resource") => (AskKind::CompleteTemplate, text("uri")),
                    _ => return Err(RpcError::new(INVALID_PARAMS, "'ref' is neither a prompt nor a resource.")),
                };
                let argument = params.argument.as_deref().map(carried).ok_or_else(|| missing("argument"))?;
                (kind, name.ok_or_else(|| missing("ref"))?, Some(argument))
            }
        };
        if arguments.as_ref().is_some_and(|arguments: &Json| !arguments.text().starts_with('{')) {
            return Err(RpcError::new(INVALID_PARAMS, "The arguments must be an object."));
        }
        self.unwrapped(McpAsk {
            kind,
            name,
            arguments,
            context: params.context.as_deref().map(carried),
            meta: params.foreign_meta(),
            responses: params.input_responses.clone(),
            refused: vec![],
            state: params.request_state.clone(),
            task: None,
        })
    }

    /// Carries a request out that has no answer in Keiko itself, or a built-in tool.
    pub async fn hand_on(&self, ask: McpAsk, client: &McpClient, notes: Option<mpsc::Sender<Note>>) -> Done {
        if let (AskKind::Tool, Some(builtin)) = (ask.kind, builtin::find(&ask.name))
            && self.view().is_ok_and(|view| view.built_in)
        {
            return Done::Answer(self.built_in(builtin, &ask).await);
        }
        if let Some(found) = self.view().ok().and_then(|view| self.found(&view, &ask)) {
            return Done::Answer(Ok(self.complete(&found.to_string(), false)));
        }
        let (kind, name) = (ask.kind, ask.name.clone());
        if self.is_new_here(&ask) {
            // It may have been made a moment ago.
            let _ = self.state.app.mcp_is_current(&self.caller).await;
        }
        match self.state.app.mcp_ask(&self.caller, self.door, ask, client, notes).await {
            Ok(McpOutcome::Complete(result)) => Done::Answer(Ok(self.told(kind, &result))),
            Ok(McpOutcome::InputRequired { requests, state }) => Done::InputRequired { requests, state },
            Ok(McpOutcome::Task(task)) => Done::Task(task),
            Err(rejection) => Done::Answer(self.refusal(kind, &name, &rejection)),
        }
    }

    fn is_new_here(&self, ask: &McpAsk) -> bool {
        ask.kind == AskKind::Tool && self.view().is_ok_and(|view| view.tool(&ask.name).is_none())
    }

    async fn built_in(&self, builtin: &builtin::Builtin, ask: &McpAsk) -> Answer {
        let arguments = match ask.arguments.as_ref().map(Json::value) {
            Some(Value::Object(arguments)) => arguments,
            _ => Map::new(),
        };
        match builtin::call(&self.api, &self.parts, &self.caller, builtin, arguments).await {
            Ok(result) => Ok(self.complete(&result.to_string(), false)),
            Err(_) => Err(RpcError::new(super::message::INTERNAL_ERROR, "Something went wrong inside the server.")),
        }
    }

    /// A server's result as the client's version has it.
    fn told(&self, kind: AskKind, result: &Json) -> String {
        self.complete(result.text(), kind == AskKind::Resource)
    }

    /// With what the newest version wants in every result, where it is not there.
    fn complete(&self, result: &str, is_cacheable: bool) -> String {
        if !self.is_modern {
            return result.to_owned();
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Peek {
            result_type: Option<serde::de::IgnoredAny>,
            ttl_ms: Option<serde::de::IgnoredAny>,
            cache_scope: Option<serde::de::IgnoredAny>,
        }
        let Ok(peek) = serde_json::from_str::<Peek>(result) else { return result.to_owned() };
        let mut added = String::new();
        if peek.result_type.is_none() {
            added.push_str(r#""resultType":"complete","#);
        }
        if is_cacheable && peek.ttl_ms.is_none() {
            added.push_str(r#""ttlMs":0,"#);
        }
        if is_cacheable && peek.cache_scope.is_none() {
            added.push_str(r#""cacheScope":"private","#);
        }
        let rest = result.trim_start().strip_prefix('{').unwrap_or_default().trim_start();
        if rest.starts_with('}') {
            added.pop();
        }
        format!("{{{added}{rest}")
    }

    /// A refusal. One of a tool is a result, so that a model can read it, unless there is no such tool or its server says so.
    fn refusal(&self, kind: AskKind, name: &str, rejection: &kernel::Rejection) -> Answer {
        let is_of_protocol = kind != AskKind::Tool
            || rejection.details.contains_key("upstream")
            || matches!(rejection.code, "TOOL_NOT_FOUND" | "REQUEST_STATE_INVALID");
        if rejection.code == "TOOL_NOT_FOUND" {
            return Err(RpcError::new(INVALID_PARAMS, format!("There is no tool '{}'.", shown(name))));
        }
        if is_of_protocol {
            let mut error = RpcError::of(rejection, self.is_modern, kind == AskKind::Resource);
            if kind == AskKind::Resource
                && let Some(data) = error.data.get_or_insert_with(|| json!({})).as_object_mut()
            {
                data.entry("uri").or_insert_with(|| json!(name));
            }
            return Err(error);
        }
        let said =
            json!({ "code": rejection.code, "message": rejection.message, "details": rejection.details, "hint": rejection.hint });
        let result = json!({ "content": [{ "type": "text", "text": said.to_string() }], "isError": true });
        Ok(self.complete(&result.to_string(), false))
    }
}
