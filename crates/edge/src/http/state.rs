//! What every handler can reach.

use super::access::Access;
use super::body::Bodies;
use super::metrics::Metrics;
use super::sse::Frames;
use crate::follow::Rooms;
use app::App;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What can be set.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest body.
    pub body_bytes_max: usize,
    /// Deepest JSON.
    pub json_depth_max: usize,
    /// How long a request may wait for `Keiko-Min-Position`.
    pub position_wait_ms_max: u64,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings { body_bytes_max: 1024 * 1024, json_depth_max: 64, position_wait_ms_max: 5_000 }
    }
}

/// Whether the server can serve, told by whoever put it together.
pub trait Readiness: Send + Sync + 'static {
    /// Each dependency with its state; `None` is well.
    fn dependencies(&self) -> Vec<(&'static str, Option<String>)>;
    /// Figures of the store, for metrics: queued appends, commits, events.
    fn store(&self) -> (usize, u64, u64);
}

/// The state of the HTTP interface.
pub(crate) struct EdgeState {
    pub app: App,
    pub readiness: Arc<dyn Readiness>,
    pub settings: HttpSettings,
    /// What each route asks of its caller.
    pub access: BTreeMap<(String, String), Access>,
    /// What each route takes in its query string.
    pub query_names: BTreeMap<(String, String), Vec<String>>,
    /// The API document, as it is served and as schemas are taken from it.
    pub document: Value,
    pub document_text: String,
    /// Compiled schemas of bodies.
    pub bodies: Bodies,
    pub metrics: Metrics,
    /// Who follows which log.
    pub rooms: Rooms,
    /// Entries of Keiko's own tools in lists of MCP.
    pub built_in_tools: Vec<String>,
    /// Sessions of MCP clients of older versions.
    pub mcp_sessions: super::mcp::Sessions,
    /// Streams of MCP clients of the oldest version.
    pub mcp_streams: super::mcp::Streams,
    /// Events as they were lately written down for followers.
    pub frames: Arc<Frames>,
}

impl EdgeState {
    pub fn new(
        app: App,
        readiness: Arc<dyn Readiness>,
        settings: HttpSettings,
        access: BTreeMap<(String, String), Access>,
        document: Value,
    ) -> Result<Self, String> {
        let document_text = openapi_text(&document)?;
        let query_names = super::access::query_names(&document);
        Ok(EdgeState {
            rooms: Rooms::new(app.clone()),
            frames: Arc::default(),
            built_in_tools: super::mcp::built_in_tools(&document),
            mcp_sessions: Default::default(),
            mcp_streams: Default::default(),
            app,
            readiness,
            settings,
            access,
            query_names,
            document,
            document_text,
            bodies: Bodies::default(),
            metrics: Metrics::new(),
        })
    }
}

/// The document as it is committed: indented, with a line end.
pub(crate) fn openapi_text(document: &Value) -> Result<String, String> {
    let text = serde_json::to_string_pretty(document).map_err(|e| e.to_string())?;
    // The router's way to write a parameter that takes the rest of a path.
    Ok(text.replace("{*", "{") + "\n")
}
