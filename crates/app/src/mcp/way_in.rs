//! A client that can send a person to an address (URL elicitation) is asked to, when a server lets nobody in: the person connects the
//! server there, and the request goes on.

use super::identity;
use super::requests::McpAsk;
use crate::app::App;
use crate::{Answer, Caller};
use domain::credential::{Credential, credential_id};
use gateway::Holder;
use kernel::Rejection;
use kernel::id::McpServerId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The name of the one question.
const CONNECT: &str = "connect";
/// How long a person may take.
const GOOD_MS: u64 = 600_000;
/// How often it is looked whether the person has done it.
const LOOK_MS: u64 = 500;

/// What the request goes on with.
#[derive(Serialize, Deserialize)]
struct SentAway {
    until_ms: i64,
    /// How often there was a credential before.
    grants: u32,
}

impl App {
    /// The question for a client whose request met a locked door, with what it is to send back; nothing where it cannot be asked, or
    /// where the person could not open the door.
    pub(super) async fn way_in(
        &self,
        caller: &Caller,
        request: &str,
        server: McpServerId,
        capabilities: &Map<String, Value>,
        rejection: &Rejection,
    ) -> Answer<Option<(Map<String, Value>, String)>> {
        let can_open = capabilities.get("elicitation").is_some_and(|able| able.get("url").is_some());
        let Some(url) = rejection.details.get("connect_url").filter(|_| can_open && rejection.code == "CREDENTIAL_REQUIRED")
        else {
            return Ok(None);
        };
        let is_shared = self.account_of(caller, server) == Holder::Everybody;
        if is_shared && self.authorise(&caller.actor, "mcp-servers.update").is_err() {
            return Ok(None);
        }
        let sent = SentAway { until_ms: self.env().now().plus_ms(GOOD_MS).0, grants: self.grants(caller, server).await? };
        let sealed = self.seal_text(caller.actor.tenant, &place(caller, request), &sent)?;
        let params = json!({
            "mode": "url",
            "url": url,
            "message": format!("{} Connect it to an account, and go on here.", rejection.message),
            "elicitationId": kernel::text::hex(&self.env().bytes::<16>()),
        });
        let question = json!({ "method": "elicitation/create", "params": params });
        Ok(Some((Map::from_iter([(CONNECT.to_owned(), question)]), sealed)))
    }

    /// Whether a request comes back from there; then it is made anew, once the person has done it. Nobody is sent twice.
    pub(super) async fn came_back(&self, caller: &Caller, request: &str, server: McpServerId, ask: &mut McpAsk) -> Answer<bool> {
        let Some(sent) = ask.state.as_deref().and_then(|state| self.open_sent_away(caller, request, state)) else {
            return Ok(false);
        };
        let answer = ask.responses.take().and_then(|mut answers| answers.remove(CONNECT)).unwrap_or_default();
        (ask.state, ask.refused) = (None, vec![]);
        if answer["action"] == "accept" {
            // That the address was opened does not say that anything was done there.
            let timeout_ms = u64::try_from(self.0.gateway.settings().call_timeout.as_millis()).unwrap_or(GOOD_MS);
            let until = self.env().now().plus_ms(timeout_ms);
            while self.env().now() < until && self.grants(caller, server).await? == sent.grants {
                self.env().sleep_ms(LOOK_MS).await;
            }
        }
        Ok(true)
    }

    fn open_sent_away(&self, caller: &Caller, request: &str, state: &str) -> Option<SentAway> {
        let sent: SentAway = self.open_text(caller.actor.tenant, &place(caller, request), state)?;
        (self.env().now().0 <= sent.until_ms).then_some(sent)
    }

    /// How often an account was connected that a caller uses at a server.
    async fn grants(&self, caller: &Caller, server: McpServerId) -> Answer<u32> {
        let owner = match self.account_of(caller, server) {
            Holder::Everybody => None,
            Holder::Identity(id) => Some(id),
        };
        let id = credential_id(server, owner.as_deref()).to_string();
        let known = self.entity_even_ended::<Credential>(caller.actor.tenant, &id).await?;
        Ok(known.map_or(0, |known| known.state.grants))
    }
}

/// What a request is about; its answers are good for it and its caller alone.
fn place(caller: &Caller, request: &str) -> String {
    format!("mcp-connect/{}/{}", identity(caller), kernel::text::hex(&Sha256::digest(request)))
}
