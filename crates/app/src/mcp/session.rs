//! Sessions of clients of older versions: what such a client said when it began, sealed into the session's id, so that any
//! replica can go on with it and none need remember it.

use super::identity;
use crate::app::App;
use crate::{Answer, Caller};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How long a session is good.
const GOOD_MS: i64 = 7 * 24 * 3_600_000;
const ID_BYTES_MAX: usize = 4 * 1024;

/// What a session is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// The version that was agreed on.
    pub version: String,
    /// What the client can be asked.
    pub capabilities: Map<String, Value>,
    /// Which process began it: servers may know the client by a connection that ended with it.
    pub home: String,
    /// When it began.
    pub began_ms: i64,
}

fn place(caller: &Caller, door: &str) -> String {
    format!("mcp-session/{}/{door}", identity(caller))
}

impl App {
    /// The name of this process: never the same twice.
    pub fn process_name(&self) -> &str {
        &self.0.process
    }

    /// Who a caller is at the doors of MCP: sessions and streams are this identity's.
    pub fn mcp_identity(&self, caller: &Caller) -> String {
        format!("{}/{}", caller.actor.tenant, identity(caller))
    }

    /// A name that nobody guesses.
    pub fn fresh_handle(&self) -> String {
        kernel::text::hex(&self.env().bytes::<16>())
    }

    /// An id for a session. It is of use to this caller, at this door.
    pub fn begin_mcp_session(
        &self,
        caller: &Caller,
        door: &str,
        version: &str,
        capabilities: Map<String, Value>,
    ) -> Answer<String> {
        let (home, began_ms) = (self.0.process.clone(), self.env().now().0);
        let facts = SessionFacts { version: version.to_owned(), capabilities, home, began_ms };
        self.seal_text(caller.actor.tenant, &place(caller, door), &facts)
    }

    /// What a session's id says, if it is this caller's, of this door, and can be gone on with.
    ///
    /// A client that can be asked something is known to servers by connections. When the process that held them has ended, the
    /// session has, too, and the client must begin again.
    pub fn mcp_session(&self, caller: &Caller, door: &str, id: &str) -> Option<SessionFacts> {
        if id.len() > ID_BYTES_MAX {
            return None;
        }
        let facts: SessionFacts = self.open_text(caller.actor.tenant, &place(caller, door), id)?;
        let is_there = || facts.home == self.0.process || self.0.replicas.as_ref().is_some_and(|all| all.is_live(&facts.home));
        let is_good = self.env().now().0 - facts.began_ms < GOOD_MS && (facts.capabilities.is_empty() || is_there());
        is_good.then_some(facts)
    }
}
