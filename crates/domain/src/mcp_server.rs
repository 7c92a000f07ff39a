//! An MCP server: an upstream whose tools can be called through Keiko.

use crate::agent::Nothing;
use kernel::id::McpServerId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a server is reached. Values of `env` and `headers` are secrets beside the log; only their names are here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Transport {
    /// A process of its own, spoken to over its standard input and output.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Names of its environment variables.
        env: Vec<String>,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Where else the same server is.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        other_urls: Vec<String>,
        /// Names of the headers that are sent along.
        headers: Vec<String>,
        /// How Keiko gets tokens for it, where that was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oauth: Option<Oauth>,
    },
}

/// How Keiko gets the tokens that it shows to a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oauth {
    /// Whose account there is used.
    pub per: Per,
    /// How a token is got.
    pub grant: Grant,
    /// What is asked for, in place of what the server names.
    pub scopes: Vec<String>,
    /// What Keiko is to its authorization server, where somebody registered it there by hand.
    pub client: Option<GivenClient>,
}

/// Whose account at a server its calls use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// One for everybody.
    #[default]
    Server,
    /// That of the person who calls, or for whom is called.
    User,
}

/// How a token is got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// A person allows it in a browser.
    #[default]
    AuthorizationCode,
    /// Keiko gets it for itself.
    ClientCredentials,
}

/// A client that somebody registered by hand. Its secret or key lies beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenClient {
    /// Its id there.
    pub id: String,
    /// How it shows who it is.
    pub auth: ClientAuth,
    /// Where it is known; where the server says first, when nothing is said.
    pub issuer: Option<String>,
}

/// How a client shows who it is to an authorization server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// Not at all.
    None,
    /// By a secret.
    Secret,
    /// By what it signs with a private key.
    PrivateKey,
}

impl GivenClient {
    /// The name of what lies beside the log for it. No header and no variable is called so.
    pub fn secret(&self) -> Option<&'static str> {
        (self.auth != ClientAuth::None).then_some("oauth:client")
    }
}

impl Transport {
    /// The names of the values that go with every request, or with the process.
    pub fn secrets(&self) -> &[String] {
        match self {
            Transport::Stdio { env, .. } => env,
            Transport::Http { headers, .. } => headers,
        }
    }

    /// How Keiko gets tokens for it, where that was said.
    pub fn oauth(&self) -> Option<&Oauth> {
        match self {
            Transport::Stdio { .. } => None,
            Transport::Http { oauth, .. } => oauth.as_ref(),
        }
    }

    /// Where it is, over HTTP.
    pub fn url(&self) -> Option<&str> {
        match self {
            Transport::Stdio { .. } => None,
            Transport::Http { url, .. } => Some(url),
        }
    }

    /// Everywhere it is, over HTTP.
    pub fn urls(&self) -> Vec<&str> {
        match self {
            Transport::Stdio { .. } => vec![],
            Transport::Http { url, other_urls, .. } => std::iter::once(url).chain(other_urls).map(String::as_str).collect(),
        }
    }

    /// Whose account there its calls use.
    pub fn per(&self) -> Per {
        self.oauth().map_or_else(Per::default, |oauth| oauth.per)
    }
}

/// What an administrator says of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerProfile {
    /// Unique name, the first part of its tools' names.
    pub name: String,
    /// How it is reached.
    pub transport: Transport,
}

/// How calls of a server are bounded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Calls that run at the same time.
    pub calls_max: u32,
    /// Calls that wait for one of these places.
    pub waiting_max: u32,
    /// How often a call is tried that may be repeated.
    pub attempts_max: u32,
    /// Repetitions allowed for each hundred calls.
    pub retry_percent: u32,
    /// Failures in a row that open a circuit.
    pub failures_max: u32,
    /// Part of the calls of ten seconds that opens a circuit when it fails.
    pub failure_percent: u32,
    /// How long a circuit is open at first.
    pub open_ms: u64,
    /// Whether calls get less time than the limit where they are usually quick.
    pub timeout_is_adaptive: bool,
    /// The least time that they get then.
    pub timeout_min_ms: u64,
    /// The server that is asked when this one does not answer.
    pub fallback: Option<McpServerId>,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            calls_max: 64,
            waiting_max: 256,
            attempts_max: 3,
            retry_percent: 20,
            failures_max: 5,
            failure_percent: 50,
            open_ms: 5_000,
            timeout_is_adaptive: true,
            timeout_min_ms: 10_000,
            fallback: None,
        }
    }
}

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    /// Being connected to.
    Starting,
    /// Its tools can be called.
    Ready,
    /// Not reachable; tried again with growing pauses.
    Failed,
}

impl ServerStatus {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            ServerStatus::Starting => "starting",
            ServerStatus::Ready => "ready",
            ServerStatus::Failed => "failed",
        }
    }
}

/// `registry.mcp_server.became_ready`: what a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduced {
    /// Its name for itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the protocol that was agreed on.
    pub protocol_version: String,
    /// How many tools it lists.
    pub tools: u32,
}

/// What may be asked of a server.
#[derive(Clone, Debug)]
pub enum McpServerCommand {
    /// Make it known.
    Register(ServerProfile),
    /// Replace how it is reached; its secrets may have changed although nothing here shows it.
    Update(ServerProfile),
    /// It is being started.
    Start,
    /// It answered.
    MarkReady(Introduced),
    /// It could not be reached, or ended.
    MarkFailed {
        /// Why, for people, without secrets.
        reason: String,
        /// Whether it lets nobody in who has not more to show.
        is_locked: bool,
    },
    /// Bound its calls otherwise.
    Tune(Tuning),
    /// This is what Keiko is to its authorization server.
    KnowClient(KnownClient),
    /// These circuits are open now, with what opened each.
    MarkCircuits(BTreeMap<Part, String>),
    /// Remove it.
    Deregister,
}

/// `registry.mcp_server.registered`, `registry.mcp_server.updated`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// What is said of it.
    pub profile: ServerProfile,
}

/// `registry.mcp_server.failed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub reason: String,
    /// Whether it lets nobody in who has not more to show.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_locked: bool,
}

/// `registry.mcp_server.tuned`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuned {
    /// How its calls are bounded from now on.
    pub tuning: Tuning,
}

/// What of a server has a circuit; with neither, the server as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// One of its tools.
    pub tool: Option<String>,
    /// One of several addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// `registry.mcp_server.circuit_opened`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitOpened {
    /// Of what.
    #[serde(flatten)]
    pub part: Part,
    /// The failure that opened it.
    pub reason: String,
}

/// `registry.mcp_server.circuit_closed`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitClosed {
    /// Of what.
    #[serde(flatten)]
    pub part: Part,
}

/// `registry.mcp_server.client_known`: what Keiko is to the authorization server of a server. Its secret lies beside the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownClient {
    /// Which authorization server.
    pub issuer: String,
    /// Keiko's id there.
    pub client_id: String,
    /// Whether somebody gave it; otherwise Keiko registered itself, or is known by its document.
    pub is_given: bool,
}

kernel::events! {
    /// What happened to a server.
    McpServerEvent {
        Registered(Described) = "registry.mcp_server.registered" @ 1,
        Updated(Described) = "registry.mcp_server.updated" @ 1,
        Started(Nothing) = "registry.mcp_server.started" @ 1,
        BecameReady(Introduced) = "registry.mcp_server.became_ready" @ 1,
        Failed(Failed) = "registry.mcp_server.failed" @ 1,
        Tuned(Tuned) = "registry.mcp_server.tuned" @ 1,
        CircuitOpened(CircuitOpened) = "registry.mcp_server.circuit_opened" @ 1,
        CircuitClosed(CircuitClosed) = "registry.mcp_server.circuit_closed" @ 1,
        ClientKnown(KnownClient) = "registry.mcp_server.client_known" @ 1,
        Deregistered(Nothing) = "registry.mcp_server.deregistered" @ 1,
    }
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct McpServer {
    /// What is said of it.
    pub profile: ServerProfile,
    /// How it is.
    pub status: ServerStatus,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether it failed because it lets nobody in who has not more to show.
    #[serde(default)]
    pub is_locked: bool,
    /// What it said of itself last.
    pub introduced: Option<Introduced>,
    /// How its calls are bounded.
    #[serde(default)]
    pub tuning: Tuning,
    /// Circuits that are open.
    #[serde(default)]
    pub circuits: Vec<CircuitOpened>,
    /// What Keiko is to its authorization server.
    #[serde(default)]
    pub client: Option<KnownClient>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl McpServer {
    /// What it takes until these circuits are open and no others.
    fn turned(&self, open: &BTreeMap<Part, String>) -> Vec<McpServerEvent> {
        let is_known = |part: &Part| self.circuits.iter().any(|circuit| circuit.part == *part);
        let closed = self.circuits.iter().filter(|circuit| !open.contains_key(&circuit.part));
        let closed = closed.map(|circuit| McpServerEvent::CircuitClosed(CircuitClosed { part: circuit.part.clone() }));
        let opened = open.iter().filter(|(part, _)| !is_known(part));
        let opened = opened
            .map(|(part, reason)| McpServerEvent::CircuitOpened(CircuitOpened { part: part.clone(), reason: reason.clone() }));
        closed.chain(opened).collect()
    }
}

impl Decider for McpServer {
    const KIND: &'static str = "mcp";
    type State = McpServer;
    type Command = McpServerCommand;
    type Event = McpServerEvent;

    fn decide(state: Option<&McpServer>, command: &McpServerCommand, _: &Facts) -> Result<Vec<McpServerEvent>, Rejection> {
        let server = match (command, state) {
            (McpServerCommand::Register(profile), None) => {
                return Ok(vec![McpServerEvent::Registered(Described { profile: profile.clone() })]);
            }
            (McpServerCommand::Deregister, Some(server)) if server.is_deleted => return Ok(vec![]),
            (_, Some(server)) if !server.is_deleted => server,
            _ => return Err(not_found("")),
        };
        Ok(match command {
            McpServerCommand::Register(_) => {
                let hint = "Change it with PUT /api/v1/mcp-servers/{id}.";
                return Err(Rejection::new(Kind::Conflict, "ALREADY_EXISTS", "This server exists already.", hint));
            }
            McpServerCommand::Update(profile) if profile.name != server.profile.name => {
                let message = format!("The name '{}' is part of its tools' names and cannot change.", server.profile.name);
                return Err(Rejection::new(Kind::Refused, "NAME_FIXED", message, "Register another server, delete this one."));
            }
            McpServerCommand::Update(profile) => vec![McpServerEvent::Updated(Described { profile: profile.clone() })],
            McpServerCommand::Start if server.status == ServerStatus::Starting && server.circuits.is_empty() => vec![],
            McpServerCommand::Start => vec![McpServerEvent::Started(Nothing {})],
            McpServerCommand::MarkReady(introduced)
                if server.status == ServerStatus::Ready && server.introduced.as_ref() == Some(introduced) =>
            {
                vec![]
            }
            McpServerCommand::MarkReady(introduced) => vec![McpServerEvent::BecameReady(introduced.clone())],
            McpServerCommand::MarkFailed { reason, .. } if server.reason.as_ref() == Some(reason) => vec![],
            McpServerCommand::MarkFailed { reason, is_locked } => {
                vec![McpServerEvent::Failed(Failed { reason: reason.clone(), is_locked: *is_locked })]
            }
            McpServerCommand::Tune(tuning) if server.tuning == *tuning => vec![],
            McpServerCommand::Tune(tuning) => vec![McpServerEvent::Tuned(Tuned { tuning: tuning.clone() })],
            McpServerCommand::MarkCircuits(open) => server.turned(open),
            McpServerCommand::KnowClient(client) if server.client.as_ref() == Some(client) => vec![],
            McpServerCommand::KnowClient(client) => match &server.client {
                // Whoever gave it gave it for that one: another one may be somebody's who wants to have its secret.
                Some(known) if known.is_given && client.is_given && known.issuer != client.issuer => {
                    return Err(issuer_changed(&known.issuer, &client.issuer));
                }
                _ => vec![McpServerEvent::ClientKnown(client.clone())],
            },
            McpServerCommand::Deregister => vec![McpServerEvent::Deregistered(Nothing {})],
        })
    }

    fn evolve(state: Option<McpServer>, event: &McpServerEvent, _: &Meta) -> Option<McpServer> {
        if let McpServerEvent::Registered(described) = event {
            let profile = described.profile.clone();
            return Some(McpServer {
                profile,
                status: ServerStatus::Starting,
                reason: None,
                is_locked: false,
                introduced: None,
                tuning: Tuning::default(),
                circuits: vec![],
                client: None,
                is_deleted: false,
            });
        }
        let mut server = state?;
        match event {
            McpServerEvent::Registered(_) => {}
            McpServerEvent::Updated(described) => {
                let (before, now) = (&server.profile.transport, &described.profile.transport);
                let given = |transport: &Transport| transport.oauth().and_then(|oauth| oauth.client.clone());
                if before.url() != now.url() || given(before) != given(now) {
                    server.client = None;
                }
                server.profile = described.profile.clone();
                server.status = ServerStatus::Starting;
                server.reason = None;
                server.circuits.clear();
            }
            McpServerEvent::Started(_) => {
                server.status = ServerStatus::Starting;
                server.reason = None;
                server.circuits.clear();
            }
            McpServerEvent::BecameReady(introduced) => {
                server.status = ServerStatus::Ready;
                server.reason = None;
                server.is_locked = false;
                server.introduced = Some(introduced.clone());
            }
            McpServerEvent::Failed(failed) => {
                server.status = ServerStatus::Failed;
                server.reason = Some(failed.reason.clone());
                server.is_locked = failed.is_locked;
            }
            McpServerEvent::Tuned(tuned) => server.tuning = tuned.tuning.clone(),
            McpServerEvent::CircuitOpened(opened) => server.circuits.push(opened.clone()),
            McpServerEvent::CircuitClosed(closed) => server.circuits.retain(|circuit| circuit.part != closed.part),
            McpServerEvent::ClientKnown(client) => server.client = Some(client.clone()),
            McpServerEvent::Deregistered(_) => server.is_deleted = true,
        }
        Some(server)
    }

    fn is_terminal(state: &McpServer) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &McpServer) -> bool {
        state.is_deleted
    }

    fn index(state: &McpServer) -> Vec<IndexField> {
        vec![IndexField::new("status", state.status.as_str())]
    }

    fn unique(state: Option<&McpServer>, event: &McpServerEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (McpServerEvent::Registered(described), _) => vec![UniqueChange::Take(name_key(&described.profile.name))],
            (McpServerEvent::Deregistered(_), Some(server)) => vec![UniqueChange::Free(name_key(&server.profile.name))],
            _ => vec![],
        }
    }
}

/// The answer for a client that was given for one authorization server, when the server names another one.
pub fn issuer_changed(known: &str, named: &str) -> Rejection {
    let message = format!(
        "The client that was given is known at '{known}', but the server now names '{named}' as its authorization server."
    );
    let hint = "Make sure that this is right; then give a client of the new one with PUT /api/v1/mcp-servers/{id}.";
    Rejection::new(Kind::Refused, "ISSUER_CHANGED", message, hint).with("known", known).with("named", named)
}

/// The unique key of a server's name.
pub fn name_key(name: &str) -> String {
    format!("mcp-server.name:{name}")
}

/// The answer for a server that is not there or not the caller's.
pub fn not_found(searched: &str) -> Rejection {
    let message = format!("There is no MCP server '{searched}' in this tenant.");
    Rejection::new(Kind::NotFound, "MCP_SERVER_NOT_FOUND", message, "List servers with GET /api/v1/mcp-servers.")
        .with("searched_id", searched)
}

#[cfg(test)]
mod tests {
    use super::McpServerCommand::*;
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn profile(name: &str) -> ServerProfile {
        ServerProfile {
            name: name.into(),
            transport: Transport::Http { url: "https://tools.example".into(), other_urls: vec![], headers: vec![], oauth: None },
        }
    }

    fn introduced(tools: u32) -> Introduced {
        Introduced { name: "s".into(), version: "1".into(), protocol_version: "2025-06-18".into(), tools }
    }

    fn decide(state: Option<&McpServer>, command: &McpServerCommand) -> Result<Vec<McpServerEvent>, Rejection> {
        McpServer::decide(state, command, &Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 })
    }

    fn given(commands: &[McpServerCommand]) -> Option<McpServer> {
        commands.iter().fold(None, |state, command| {
            let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
            decide(state.as_ref(), command).unwrap().iter().fold(state, |s, e| McpServer::evolve(s, e, &meta))
        })
    }

    #[test]
    fn given_a_server_then_it_starts_gets_ready_fails_and_starts_again() {
        let failed = MarkFailed { reason: "it ended".into(), is_locked: false };
        let steps = [Register(profile("a")), MarkReady(introduced(2)), failed, Start];
        let words: Vec<_> = (1..=4).map(|n| given(&steps[..n]).unwrap().status.as_str()).collect();
        assert_eq!(words, ["starting", "ready", "failed", "starting"]);
        assert_eq!(given(&steps[..3]).unwrap().reason.as_deref(), Some("it ended"));
        assert_eq!(given(&steps).unwrap().reason, None);
    }

    #[test]
    fn given_the_same_trouble_again_then_the_log_does_not_grow() {
        let failed = MarkFailed { reason: "it ended".into(), is_locked: false };
        let server = given(&[Register(profile("a")), failed.clone()]);
        assert_eq!(decide(server.as_ref(), &failed), Ok(vec![]));
        assert_eq!(decide(server.as_ref(), &MarkFailed { reason: "another".into(), is_locked: false }).unwrap().len(), 1);
    }

    #[test]
    fn given_a_server_when_its_name_changes_then_that_is_refused() {
        let server = given(&[Register(profile("a"))]);
        assert_eq!(decide(server.as_ref(), &Update(profile("b"))).unwrap_err().code, "NAME_FIXED");
    }

    #[test]
    fn given_circuits_then_each_is_written_when_it_opens_and_when_it_closes() {
        let open = |circuits: &[(&Part, &str)]| {
            MarkCircuits(circuits.iter().map(|(part, reason)| ((*part).clone(), (*reason).to_owned())).collect())
        };
        let server = Part::default();
        let tool = Part { tool: Some("slow".into()), address: None };
        let address = Part { tool: None, address: Some("https://other.example".into()) };
        let known = given(&[Register(profile("a")), open(&[(&server, "lost")])]);
        assert_eq!(decide(known.as_ref(), &open(&[(&server, "lost again")])), Ok(vec![]), "it is open already");
        for part in [tool.clone(), address] {
            let turned = decide(known.as_ref(), &open(&[(&part, "no answer")])).unwrap();
            let closed = McpServerEvent::CircuitClosed(CircuitClosed { part: server.clone() });
            let opened = CircuitOpened { part, reason: "no answer".into() };
            assert_eq!(turned, [closed, McpServerEvent::CircuitOpened(opened)]);
        }
        let both = open(&[(&server, "lost"), (&tool, "no answer")]);
        let left = given(&[Register(profile("a")), both.clone(), open(&[(&tool, "no answer")])]).unwrap().circuits;
        assert_eq!(left.iter().map(|circuit| &circuit.part).collect::<Vec<_>>(), [&tool], "the other one closed");
        let started = given(&[Register(profile("a")), both, Start]).unwrap();
        assert!(started.circuits.is_empty(), "whoever starts anew knows of none");
    }

    #[test]
    fn given_a_client_that_somebody_gave_then_it_stays_with_its_authorization_server() {
        let with = |id: &str, scopes: &[&str]| {
            let client = GivenClient { id: id.into(), auth: ClientAuth::Secret, issuer: None };
            let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
            let oauth = Some(Oauth { client: Some(client), scopes, ..Oauth::default() });
            let transport = Transport::Http { url: "https://tools.example".into(), other_urls: vec![], headers: vec![], oauth };
            ServerProfile { name: "a".into(), transport }
        };
        let at = |issuer: &str| KnowClient(KnownClient { issuer: issuer.into(), client_id: "k".into(), is_given: true });
        let known = [Register(with("k", &[])), at("https://first.example")];
        let server = given(&known);
        assert_eq!(decide(server.as_ref(), &at("https://first.example")), Ok(vec![]));
        assert_eq!(decide(server.as_ref(), &at("https://other.example")).unwrap_err().code, "ISSUER_CHANGED");
        let kept = given(&[known[0].clone(), known[1].clone(), Update(with("k", &["read"]))]);
        assert!(kept.unwrap().client.is_some(), "what else changes is no reason to trust another one");
        let another = given(&[known[0].clone(), known[1].clone(), Update(with("l", &[]))]);
        assert_eq!(decide(another.as_ref(), &at("https://other.example")).unwrap().len(), 1);
    }

    #[test]
    fn given_other_bounds_then_they_are_written_once() {
        let tuning = Tuning { calls_max: 2, ..Tuning::default() };
        let server = given(&[Register(profile("a")), Tune(tuning.clone())]);
        assert_eq!(server.as_ref().unwrap().tuning.calls_max, 2);
        assert_eq!(decide(server.as_ref(), &Tune(tuning)), Ok(vec![]));
    }

    #[test]
    fn given_a_removed_server_then_nothing_changes_it() {
        let server = given(&[Register(profile("a")), Deregister]);
        assert_eq!(decide(server.as_ref(), &Start).unwrap_err().code, "MCP_SERVER_NOT_FOUND");
        assert_eq!(decide(server.as_ref(), &Deregister), Ok(vec![]));
    }
}
