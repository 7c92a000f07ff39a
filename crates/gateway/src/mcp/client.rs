//! What Keiko asks of a server: to introduce itself, to list its tools, to call one, whether it is there.

use super::rpc::{Wire, WireError};
use super::{CallError, ToolListing, ToolResult};
use crate::Introduction;
use kernel::Json;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Versions of the protocol that are understood, newest first.
const VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// Tools of one server.
const TOOLS_MAX: usize = 1_000;
/// Bytes of one tool's entry, and of all of them: they are kept for ever.
const ENTRY_BYTES_MAX: usize = 128 * 1024;
const LISTING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Pages of a listing.
const PAGES_MAX: usize = 200;
const METHOD_NOT_FOUND: i64 = -32601;
const TOOL_NAME_CHARS_MAX: usize = 128;

/// A server that introduced itself.
pub(crate) struct Client {
    wire: Arc<dyn Wire>,
    ids: AtomicU64,
    running: AtomicUsize,
    has_tools: bool,
    /// What it said of itself.
    pub introduction: Introduction,
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

#[derive(Default, Deserialize)]
struct ServerInfo {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(rename = "nextCursor")]
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Called {
    #[serde(rename = "isError", default)]
    is_error: bool,
    content: Option<Json>,
    #[serde(rename = "structuredContent")]
    structured_content: Option<Json>,
}

impl Client {
    /// Agrees on a version with a server.
    pub async fn introduce(wire: Arc<dyn Wire>) -> Result<Client, String> {
        let hello = json!({ "protocolVersion": VERSIONS[0], "capabilities": {},
            "clientInfo": { "name": "keiko", "version": env!("CARGO_PKG_VERSION") } });
        let answer = wire.request(0, "initialize", &raw(&hello)).await.map_err(|e| reason(&e))?;
        let answer: Initialized =
            serde_json::from_str(answer.get()).map_err(|e| format!("its answer to 'initialize' cannot be used: {e}"))?;
        if !VERSIONS.contains(&answer.protocol_version.as_str()) {
            let version: String = answer.protocol_version.chars().take(40).collect();
            return Err(format!("it speaks version '{version}' of the protocol; known are {}", VERSIONS.join(", ")));
        }
        wire.agreed(&answer.protocol_version);
        wire.notify("notifications/initialized", &raw(&json!({}))).await;
        let short = |text: String| text.chars().take(200).collect::<String>();
        Ok(Client {
            wire,
            ids: AtomicU64::new(1),
            running: AtomicUsize::new(0),
            has_tools: answer.capabilities.get("tools").is_some_and(|tools| !tools.is_null()),
            introduction: Introduction {
                name: short(answer.server_info.name),
                version: short(answer.server_info.version),
                protocol_version: answer.protocol_version,
            },
        })
    }

    /// Every tool, whatever the number of pages.
    pub async fn tools(&self) -> Result<Vec<ToolListing>, String> {
        let mut tools: Vec<ToolListing> = vec![];
        let mut cursor: Option<String> = None;
        let mut bytes = 0;
        if !self.has_tools {
            return Ok(tools);
        }
        for _ in 0..PAGES_MAX {
            let params = cursor.as_ref().map_or_else(|| json!({}), |cursor| json!({ "cursor": cursor }));
            let page = self.ask("tools/list", &raw(&params)).await.map_err(|e| reason(&e))?;
            bytes += page.get().len();
            if bytes > LISTING_BYTES_MAX {
                return Err(format!("its list of tools has more than {LISTING_BYTES_MAX} bytes"));
            }
            let page: Page = serde_json::from_str(page.get()).map_err(|e| format!("its list of tools cannot be used: {e}"))?;
            for entry in page.tools {
                let tool = listing(entry)?;
                if tools.iter().any(|known| known.name == tool.name) {
                    return Err(format!("it lists the tool '{}' twice", tool.name));
                }
                tools.push(tool);
            }
            if tools.len() > TOOLS_MAX {
                return Err(format!("it lists more than {TOOLS_MAX} tools"));
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                tools.sort_by(|a, b| a.name.cmp(&b.name));
                return Ok(tools);
            }
        }
        Err(format!("its list of tools has more than {PAGES_MAX} pages"))
    }

    /// Calls a tool.
    pub async fn call(&self, tool: &str, arguments: &Json, timeout: Duration) -> Result<ToolResult, CallError> {
        #[derive(serde::Serialize)]
        struct Params<'a> {
            name: &'a str,
            arguments: &'a Json,
        }
        let params = to_raw_value(&Params { name: tool, arguments }).map_err(|e| CallError::Unusable(e.to_string()))?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let _running = Running::new(&self.running);
        let mut cancel = Cancel { wire: &self.wire, id, is_armed: true };
        let answer = tokio::time::timeout(timeout, self.wire.request(id, "tools/call", &params)).await;
        let Ok(answer) = answer else { return Err(CallError::Timeout(timeout.as_millis())) };
        cancel.is_armed = false;
        let called: Called = serde_json::from_str(answer?.get()).map_err(|e| CallError::Unusable(e.to_string()))?;
        let empty = || Json::of(&json!([])).unwrap_or_default();
        let content = called.content.unwrap_or_else(empty);
        if !content.text().starts_with('[') {
            return Err(CallError::Unusable("its content is no list".into()));
        }
        Ok(ToolResult { is_error: called.is_error, content, structured_content: called.structured_content })
    }

    /// Whether it answers. A server that does not know `ping` answers too.
    pub async fn ping(&self, timeout: Duration) -> bool {
        match tokio::time::timeout(timeout, self.ask("ping", &raw(&json!({})))).await {
            Ok(Ok(_)) => true,
            Ok(Err(WireError::Rpc(error))) => error.code == METHOD_NOT_FOUND,
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Whether calls are running.
    pub fn is_busy(&self) -> bool {
        self.running.load(Ordering::Relaxed) > 0
    }

    /// Ends the connection.
    pub async fn close(&self) {
        self.wire.close().await;
    }

    async fn ask(&self, method: &str, params: &RawValue) -> Result<Box<RawValue>, WireError> {
        self.wire.request(self.ids.fetch_add(1, Ordering::Relaxed), method, params).await
    }
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
        WireError::Over(reason) | WireError::Unusable(reason) => reason.clone(),
        WireError::Rpc(error) => {
            format!("it answered error {}: {}", error.code, error.message.chars().take(300).collect::<String>())
        }
    }
}

/// One entry of a listing, with the hash of all of it.
fn listing(entry: Value) -> Result<ToolListing, String> {
    let canonical = serde_json_canonicalizer::to_vec(&entry).map_err(|e| format!("a tool's entry cannot be used: {e}"))?;
    if canonical.len() > ENTRY_BYTES_MAX {
        return Err(format!("it lists a tool whose entry has more than {ENTRY_BYTES_MAX} bytes"));
    }
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text("name");
    let is_name = |name: &str| {
        (1..=TOOL_NAME_CHARS_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
    };
    if !is_name(&name) {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(format!(
            "it lists a tool with the name '{shown}'; names have 1 to {TOOL_NAME_CHARS_MAX} of A-Z, a-z, 0-9, _ - . /"
        ));
    }
    let schema = |field: &str| entry.get(field).filter(|v| !v.is_null()).map(Json::of).transpose().map_err(|e| e.to_string());
    Ok(ToolListing {
        description: text("description"),
        input_schema: schema("inputSchema")?.unwrap_or_default(),
        output_schema: schema("outputSchema")?,
        hash: kernel::text::hex(&Sha256::digest(&canonical)),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_every_field_and_not_their_order() {
        let of = |text: &str| listing(serde_json::from_str(text).unwrap()).unwrap().hash;
        let a = of(r#"{"name":"t","description":"d","annotations":{"readOnlyHint":true}}"#);
        assert_eq!(a, of(r#"{"annotations":{"readOnlyHint":true},"description":"d","name":"t"}"#));
        assert_ne!(a, of(r#"{"name":"t","description":"d","annotations":{"readOnlyHint":false}}"#));
    }

    #[test]
    fn odd_names_are_refused() {
        for bad in [r#"{"name":""}"#, r#"{"name":"a b"}"#, r#"{"name":7}"#, r#"{"name":"\u0000"}"#, "{}"] {
            assert!(listing(serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }
}
