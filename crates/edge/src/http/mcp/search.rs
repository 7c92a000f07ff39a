//! A door where tools are found instead of listed: `?tools=search`. Two tools stand for all: one that finds, one that calls.

use super::door::Visit;
use super::message::{INVALID_PARAMS, RpcError};
use app::mcp::{AskKind, McpAsk, OfferKind, OfferedTool, View, found_json};
use axum::http::Uri;
use kernel::Json;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::LazyLock;
use utoipa::IntoParams;

const FIND: &str = "find_tools";
const CALL: &str = "call_tool";
/// Tools that one search answers when nothing is said, and at most.
const FOUND_DEFAULT: usize = 5;
const FOUND_MAX: usize = 25;

/// How tools are offered.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SearchParams {
    /// `search`: two tools that find and call stand for all others.
    #[serde(rename = "tools")]
    #[param(rename = "tools")]
    _tools: Option<String>,
}

/// Whether an address asks for it.
pub(super) fn is_wanted(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).any(|(name, value)| name == "tools" && value == "search")
}

/// The entries of the two in a list.
pub(super) static ENTRIES: LazyLock<[String; 2]> = LazyLock::new(|| {
    let find = json!({
        "name": FIND, "title": "Find tools",
        "description": "Finds tools by words: what you want to do, in English. Answers the best ones with their schemas; call them with call_tool.",
        "inputSchema": { "type": "object", "required": ["query"], "additionalProperties": false, "properties": {
            "query": { "type": "string", "description": "What you want to do", "maxLength": 1000 },
            "limit": { "type": "integer", "minimum": 1, "maximum": FOUND_MAX, "description": "How many at most; 5 when nothing is said" },
        } },
        "annotations": { "readOnlyHint": true, "openWorldHint": false },
    });
    let call = json!({
        "name": CALL, "title": "Call a tool",
        "description": "Calls a tool that find_tools has answered, with arguments as its inputSchema says.",
        "inputSchema": { "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
            "name": { "type": "string", "description": "The tool's name, as find_tools answered it" },
            "arguments": { "type": "object", "description": "What the tool's inputSchema says" },
        } },
    });
    [find.to_string(), call.to_string()]
});

impl Visit {
    /// A call of the tool that calls is a call of the tool that it names.
    pub fn unwrapped(&self, mut ask: McpAsk) -> Result<McpAsk, RpcError> {
        if !self.is_search || ask.kind != AskKind::Tool || ask.name != CALL {
            return Ok(ask);
        }
        let arguments = ask.arguments.as_ref().map(Json::value).unwrap_or_default();
        let wrong =
            |what: &str| RpcError::new(INVALID_PARAMS, format!("'{what}' of {CALL} is missing, or not of the right type."));
        let name = arguments["name"].as_str().filter(|name| !name.is_empty() && *name != CALL && *name != FIND);
        ask.name = name.ok_or_else(|| wrong("name"))?.to_owned();
        ask.arguments = match arguments.get("arguments") {
            None | Some(Value::Null) => None,
            Some(inner) if inner.is_object() => Some(Json::of(inner).map_err(|_| wrong("arguments"))?),
            Some(_) => return Err(wrong("arguments")),
        };
        Ok(ask)
    }

    /// The answer of the tool that finds, if it is the one that is called.
    pub fn found(&self, view: &View, ask: &McpAsk) -> Option<Value> {
        if !self.is_search || ask.kind != AskKind::Tool || ask.name != FIND {
            return None;
        }
        let arguments = ask.arguments.as_ref().map(Json::value).unwrap_or_default();
        let Some(query) = arguments["query"].as_str().filter(|query| !query.trim().is_empty()) else {
            let said = "'query' must say what you want to do.";
            return Some(json!({ "content": [{ "type": "text", "text": said }], "isError": true }));
        };
        let limit = arguments["limit"].as_u64().map_or(FOUND_DEFAULT, |limit| (limit as usize).clamp(1, FOUND_MAX));
        let app = &self.state.app;
        let all = app.may_use_all(&self.caller, self.door);
        let may_use = |tool: &OfferedTool| {
            let (server, own) = tool.origin();
            tool.is_offered() && (all || app.may_use(&self.caller, self.door, OfferKind::Tool, server, own))
        };
        let found = view.find(query).into_iter().filter(|(tool, _)| may_use(tool)).take(limit);
        let tools: Vec<Value> = found.map(|(tool, score)| found_json(tool.entry.get(), score)).collect();
        let result = json!({ "tools": tools });
        Some(
            json!({ "content": [{ "type": "text", "text": result.to_string() }], "structuredContent": result, "isError": false }),
        )
    }
}
