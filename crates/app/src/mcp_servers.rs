//! MCP servers: register, change, remove, start again; and what the gateway tells of them becomes events.

use crate::app::{App, Inner, internal};
use crate::credentials::{Tokenry, VAULT};
use crate::errors::{Problems, of_handle, of_store};
use crate::resilience::tuning;
use crate::workers::{TenantRuntime, each};
use crate::{Answer, Caller, ListOrder, Page};
use async_trait::async_trait;
use domain::credential::Credential;
use domain::mcp_server::{
    ClientAuth, GivenClient, Grant, Introduced, McpServer, McpServerCommand, Oauth, Part, Per, ServerProfile, Transport,
};
use domain::mcp_server::{name_key, not_found};
use domain::tool::{Manifest, Tool, ToolCommand, tool_id};
use engine::{Context, Executor, Extras, HandleError, Handled, Step};
use gateway::{Access, Happening, Holder, Introduction, Offers, Report, Spec, ToolListing};
use kernel::id::{CredentialId, McpServerId, TenantId};
use kernel::{ActorRef, IndexField, Kind, Process, Recorded, Rejection, Timestamp, limits};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use tokio::sync::mpsc::Receiver;

const COMMAND_CHARS_MAX: usize = 1_024;
const ARG_CHARS_MAX: usize = 4_096;
const SECRET_BYTES_MAX: usize = 8 * 1024;
const NAME_CHARS_MAX: usize = 64;
/// Of each address of a server.
const URL_BYTES_MAX: usize = 2_048;
/// Addresses of a server beside its first.
const OTHER_URLS_MAX: usize = 15;
/// Headers that belong to the protocol.
const HEADERS_RESERVED: [&str; 9] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "mcp-protocol-version",
    "mcp-session-id",
    "te",
    "transfer-encoding",
];

/// A server as somebody describes it.
pub struct NewServer {
    /// Unique name.
    pub name: String,
    /// How it is reached.
    pub transport: NewTransport,
}

/// Secret values by name; `None` keeps the value that is known already.
type NewSecrets = BTreeMap<String, Option<String>>;

/// Sealed secrets by their place; `None` removes one.
type SealedSecrets = Vec<(String, Option<Vec<u8>>)>;

/// See [`NewServer`].
pub enum NewTransport {
    /// A process.
    Stdio {
        /// The program.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Its environment.
        env: NewSecrets,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Where else the same server is.
        other_urls: Vec<String>,
        /// Sent along.
        headers: NewSecrets,
        /// How Keiko gets tokens for it, where that is said.
        oauth: Option<NewOauth>,
    },
}

/// How Keiko gets tokens for a server.
pub struct NewOauth {
    /// Whose account there is used.
    pub per: Per,
    /// How a token is got.
    pub grant: Grant,
    /// What is asked for, in place of what the server names.
    pub scopes: Vec<String>,
    /// A client that somebody registered by hand.
    pub client: Option<NewClient>,
}

/// A client of an authorization server.
pub struct NewClient {
    /// What is said of it.
    pub given: GivenClient,
    /// Its secret or private key; the known one stays when nothing is said.
    pub secret: Option<String>,
}

impl NewTransport {
    fn secrets(&self) -> &NewSecrets {
        match self {
            NewTransport::Stdio { env, .. } => env,
            NewTransport::Http { headers, .. } => headers,
        }
    }

    fn described(&self) -> Transport {
        let names = |secrets: &NewSecrets| secrets.keys().cloned().collect();
        match self {
            NewTransport::Stdio { command, args, env } => {
                Transport::Stdio { command: command.clone(), args: args.clone(), env: names(env) }
            }
            NewTransport::Http { url, other_urls, headers, oauth } => {
                let oauth = oauth.as_ref().map(|oauth| Oauth {
                    per: oauth.per,
                    grant: oauth.grant,
                    scopes: oauth.scopes.clone(),
                    client: oauth.client.as_ref().map(|client| client.given.clone()),
                });
                Transport::Http { url: url.clone(), other_urls: other_urls.clone(), headers: names(headers), oauth }
            }
        }
    }

    /// The client that is given with it.
    fn client(&self) -> Option<&NewClient> {
        match self {
            NewTransport::Stdio { .. } => None,
            NewTransport::Http { oauth, .. } => oauth.as_ref()?.client.as_ref(),
        }
    }
}

impl App {
    /// Makes a server known and starts it.
    pub async fn register_mcp_server(&self, caller: &Caller, new: NewServer) -> Answer<Handled<McpServer>> {
        if let Some(known) = self.earlier::<McpServer>(caller).await? {
            return Ok(known);
        }
        self.check_server(caller, &new, None)?;
        let id: McpServerId = self.env().id();
        let (profile, secrets) = self.sealed_server(caller, id, new, None)?;
        self.witness(caller, "mcp-servers.server.registered", &json!({ "id": id, "profile": profile })).await?;
        let step = Step::new::<McpServer>(id, McpServerCommand::Register(profile));
        let server = self.execute::<McpServer>(caller, step, Extras { secrets, ..Extras::default() }).await?;
        Ok(server)
    }

    /// One server, by id or name.
    pub async fn mcp_server(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<McpServer>> {
        let stream = match id_or_name.parse::<McpServerId>() {
            Ok(id) => Some(id.to_string()),
            Err(_) => self.holder(caller.actor.tenant, &name_key(id_or_name)).await?,
        };
        let found = match stream {
            Some(stream) => self.read::<McpServer>(caller, &stream).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id_or_name))
    }

    /// All servers.
    pub async fn mcp_servers(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<McpServer>> {
        self.list::<McpServer>(caller, order, vec![]).await
    }

    /// Replaces how a server is reached and starts it anew.
    pub async fn update_mcp_server(&self, caller: &Caller, id_or_name: &str, new: NewServer) -> Answer<Handled<McpServer>> {
        let known = self.mcp_server(caller, id_or_name).await?;
        self.check_server(caller, &new, Some(&known.state.profile.transport))?;
        let id: McpServerId = known.stream.parse().map_err(|_| not_found(id_or_name))?;
        if new.transport.described().urls().len() > 1 {
            self.check_has_no_account(caller, id).await?;
        }
        let (profile, secrets) = self.sealed_server(caller, id, new, Some(&known.state.profile.transport))?;
        self.witness(caller, "mcp-servers.server.updated", &json!({ "id": id, "profile": profile })).await?;
        let step = Step::on::<McpServer>(id, McpServerCommand::Update(profile));
        let server = self.execute::<McpServer>(caller, step, Extras { secrets, ..Extras::default() }).await?;
        Ok(server)
    }

    /// A server at several addresses is shown no tokens: those that it has must be given back first.
    async fn check_has_no_account(&self, caller: &Caller, id: McpServerId) -> Answer<()> {
        let known = each::<Credential>(self.engine(), caller.actor.tenant, &[of_server(id)]).await.map_err(of_store)?;
        let mut problems = Problems::default();
        if !known.is_empty() {
            problems.add(
                "/transport/other_urls",
                "must be empty while the server is connected to an account: a token is for one address",
            );
        }
        problems.refuse()
    }

    /// Removes a server with its tools and secrets, and ends its process.
    pub async fn delete_mcp_server(&self, caller: &Caller, id_or_name: &str) -> Answer<()> {
        let server = self.mcp_server(caller, id_or_name).await?;
        let id: McpServerId = server.stream.parse().map_err(|_| not_found(id_or_name))?;
        let tenant = caller.actor.tenant;
        let tools = each::<Tool>(self.engine(), tenant, &[of_server(id)]).await.map_err(of_store)?;
        let mut steps = vec![Step::on::<McpServer>(id, McpServerCommand::Deregister)];
        steps.extend(tools.into_iter().map(|tool| Step::on::<Tool>(tool.stream, ToolCommand::Remove)));
        let names = server.state.profile.transport.secrets().iter().map(String::as_str);
        let names = names.chain(["oauth:client", "oauth:registered"]);
        let mut secrets = names.map(|name| (secret_name(id, name), None)).collect();
        self.end_credentials(tenant, of_server(id), &mut steps, &mut secrets).await?;
        let extras = Extras { secrets, ..Extras::default() };
        self.engine().transact(tenant, &steps, &caller.context(), extras).await.map_err(of_handle)?;
        Ok(())
    }

    /// Starts a server again.
    pub async fn restart_mcp_server(&self, caller: &Caller, id_or_name: &str) -> Answer<Handled<McpServer>> {
        let server = self.mcp_server(caller, id_or_name).await?;
        if let Transport::Stdio { .. } = server.state.profile.transport {
            self.authorise(&caller.actor, "mcp-servers.spawn")?;
        }
        let step = Step::on::<McpServer>(&server.stream, McpServerCommand::Start);
        let server = self.execute::<McpServer>(caller, step, Extras::default()).await?;
        Ok(server)
    }

    /// Reads the server again: of two changes that meet here, the later one counts.
    async fn put_server(&self, tenant: TenantId, stream: &str) -> Answer<()> {
        let id: McpServerId = stream.parse().map_err(|_| not_found(stream))?;
        let key = gateway::Key { tenant, server: id };
        let _turn = self.0.gateway.turn(key).await;
        // Of a tenant that has ended here nothing is started.
        let known = match self.slug_of(tenant) {
            Some(_) => self.entity::<McpServer>(tenant, stream).await?,
            None => None,
        };
        self.0.vault.forget_server(tenant, id);
        let Some(server) = known else {
            self.0.gateway.remove(key).await;
            return Ok(());
        };
        let specs = self.specs(tenant, id, server.state.profile.transport.clone()).await?;
        self.0.gateway.put(key, specs, tuning(&server.state.tuning)).await;
        Ok(())
    }

    /// Bounds a server's calls as is said now.
    async fn tune_server(&self, tenant: TenantId, stream: &str) -> Answer<()> {
        let id: McpServerId = stream.parse().map_err(|_| not_found(stream))?;
        let key = gateway::Key { tenant, server: id };
        let _turn = self.0.gateway.turn(key).await;
        if let Some(server) = self.entity::<McpServer>(tenant, stream).await? {
            self.0.gateway.tune(key, tuning(&server.state.tuning));
        }
        Ok(())
    }

    /// What is remembered of a credential is looked up again; a server that is shown another one is connected anew.
    async fn follow_credential(&self, tenant: TenantId, stream: &str, is_other: bool) -> Answer<()> {
        let id: CredentialId = stream.parse().map_err(|_| internal(format!("'{stream}' is no credential")))?;
        self.0.vault.forget(tenant, id);
        let known = self.entity_even_ended::<Credential>(tenant, stream).await?.filter(|_| is_other);
        if let Some(granted) = known.map(|known| known.state.granted.clone()) {
            let key = gateway::Key { tenant, server: granted.server_id };
            match granted.owner {
                None => self.0.gateway.restart(key),
                Some(owner) => self.0.gateway.forget_holder(key, &Holder::Identity(owner.into())),
            }
        }
        Ok(())
    }

    /// How each of a server's addresses is reached.
    async fn specs(&self, tenant: TenantId, id: McpServerId, transport: Transport) -> Answer<Vec<Spec>> {
        let mut secrets = vec![];
        for name in transport.secrets() {
            let place = secret_name(id, name);
            let opened = self.open_secret(tenant, &place).await?;
            let value = opened.and_then(|value| String::from_utf8(value).ok());
            secrets.push((name.clone(), value.ok_or_else(|| internal(format!("the secret '{name}' cannot be opened")))?));
        }
        Ok(match transport {
            Transport::Stdio { command, args, .. } => vec![Spec::Stdio { command, args, env: secrets }],
            Transport::Http { url, other_urls, .. } => {
                let vault = Arc::new(Tokenry(Arc::downgrade(&self.0)));
                let access = Access { key: gateway::Key { tenant, server: id }, url: url.clone(), vault };
                // Tokens are for the address that they were got for.
                let others = other_urls.into_iter().map(|url| Spec::Http { url, headers: secrets.clone(), access: None });
                let first = Spec::Http { url, headers: secrets.clone(), access: Some(access) };
                std::iter::once(first).chain(others).collect()
            }
        })
    }

    fn sealed_server(
        &self,
        caller: &Caller,
        id: McpServerId,
        new: NewServer,
        known: Option<&Transport>,
    ) -> Answer<(ServerProfile, SealedSecrets)> {
        let tenant = caller.actor.tenant;
        let mut secrets = vec![];
        let values = new.transport.secrets().iter().filter_map(|(name, value)| Some((name.as_str(), value.as_ref()?)));
        let client = new.transport.client().and_then(|client| Some((client.given.secret()?, client.secret.as_ref()?)));
        for (name, value) in values.chain(client) {
            let place = secret_name(id, name);
            let sealed = self.0.crypto.sealer.seal(tenant, &place, value.as_bytes(), self.env().bytes()).map_err(internal)?;
            secrets.push((place, Some(sealed)));
        }
        let known_names = known.map(Transport::secrets).unwrap_or_default();
        let gone = known_names.iter().filter(|name| !new.transport.secrets().contains_key(*name));
        secrets.extend(gone.map(|name| (secret_name(id, name), None)));
        let has_client = new.transport.client().is_some_and(|client| client.given.secret().is_some());
        let had_client = known.and_then(known_client).and_then(GivenClient::secret);
        secrets.extend(had_client.filter(|_| !has_client).map(|name| (secret_name(id, name), None)));
        Ok((ServerProfile { transport: new.transport.described(), name: new.name }, secrets))
    }

    fn check_server(&self, caller: &Caller, new: &NewServer, known: Option<&Transport>) -> Answer<()> {
        // What was given for one address is not shown at another one.
        let described = new.transport.described();
        let is_known_there =
            |known: &&Transport| known.url() == described.url() && described.urls().iter().all(|url| known.urls().contains(url));
        let known = known.filter(is_known_there);
        let mut problems = Problems::default();
        if !is_server_name(&new.name) {
            let message =
                format!("must be 1 to {NAME_CHARS_MAX} of A-Z, a-z, 0-9, '-', '_', without '__' and without '_' at its end");
            problems.add("/name", message);
        }
        problems.check()?;
        let mut problems = Problems::default();
        match &new.transport {
            NewTransport::Stdio { command, args, .. } => {
                if !is_argument(command, COMMAND_CHARS_MAX) || command.is_empty() {
                    problems.add("/transport/command", format!("must have 1 to {COMMAND_CHARS_MAX} characters"));
                }
                for (i, arg) in args.iter().enumerate().filter(|(_, arg)| !is_argument(arg, ARG_CHARS_MAX)) {
                    let message =
                        format!("must have at most {ARG_CHARS_MAX} characters and no NUL, but has {}", arg.chars().count());
                    problems.add(format!("/transport/args/{i}"), message);
                }
            }
            NewTransport::Http { url, other_urls, headers, oauth } => {
                self.check_others(url, other_urls, oauth.is_some(), &mut problems);
                if let Some(oauth) = oauth {
                    let has_header = headers.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
                    self.check_oauth(oauth, has_header, known.and_then(known_client), &mut problems);
                }
            }
        }
        self.check_secrets(&new.transport, known, &mut problems);
        problems.refuse()?;
        match &new.transport {
            NewTransport::Stdio { .. } => {
                self.authorise(&caller.actor, "mcp-servers.spawn")?;
                if !self.0.gateway.settings().allow_spawn {
                    return Err(Rejection::new(
                        Kind::Refused,
                        "SPAWN_DISABLED",
                        "This server starts no processes: gateway.allow_spawn is off.",
                        "Use an MCP server over HTTP, or set KEIKO_GATEWAY_ALLOW_SPAWN=true.",
                    ));
                }
            }
            NewTransport::Http { .. } => described.urls().into_iter().try_for_each(|url| self.check_url(url))?,
        }
        Ok(())
    }

    fn check_url(&self, url: &str) -> Answer<()> {
        let checked = gateway::check_target(url, self.0.gateway.settings().allow_private);
        checked.map(|_| ()).map_err(|problem| {
            let hint = "Use a public http or https URL; gateway.allow_private (KEIKO_GATEWAY_ALLOW_PRIVATE) allows private ones.";
            Rejection::new(Kind::Refused, "TARGET_REFUSED", format!("The URL {problem}."), hint).with("url", url)
        })
    }

    fn check_others(&self, url: &str, others: &[String], has_oauth: bool, problems: &mut Problems) {
        if others.len() > OTHER_URLS_MAX {
            problems.add("/transport/other_urls", format!("must have at most {OTHER_URLS_MAX} entries"));
        }
        for (i, _) in others.iter().enumerate().filter(|(_, other)| other.len() > URL_BYTES_MAX) {
            problems.add(format!("/transport/other_urls/{i}"), format!("must have at most {URL_BYTES_MAX} bytes"));
        }
        if has_oauth && !others.is_empty() {
            problems.add("/transport/other_urls", "must be empty where oauth is: a token is for one address");
        }
        let read = |text: &str| gateway::check_target(text, true).map_or_else(|_| text.to_owned(), String::from);
        let mut known = vec![read(url)];
        for (i, other) in others.iter().enumerate() {
            let other = read(other);
            if known.contains(&other) {
                problems.add(format!("/transport/other_urls/{i}"), "is there already");
            }
            known.push(other);
        }
    }

    fn check_oauth(&self, oauth: &NewOauth, has_header: bool, known: Option<&GivenClient>, problems: &mut Problems) {
        let at = |field: &str| format!("/transport/oauth/{field}");
        if has_header {
            problems.add("/transport/headers/Authorization", "is what oauth is for: leave one of them out");
        }
        if oauth.scopes.len() > 50 || !oauth.scopes.iter().all(|scope| gateway::oauth::is_scope(scope)) {
            problems.add(at("scopes"), "must be at most 50 of 1 to 200 visible characters of ASCII, without '\"' and '\\'");
        }
        if oauth.grant == Grant::ClientCredentials && oauth.per == Per::User {
            problems.add(at("per"), "must be 'server' where Keiko gets tokens for itself: nobody is there to say who they are");
        }
        let Some(client) = &oauth.client else {
            if oauth.grant == Grant::ClientCredentials {
                problems.add(at("client"), "is needed where Keiko gets tokens for itself");
            }
            return;
        };
        if oauth.grant == Grant::ClientCredentials && client.given.issuer.is_none() && client.given.secret().is_some() {
            problems.add(at("client/issuer"), "is needed where Keiko gets tokens for itself: nobody sees whom the server names");
        }
        if client.given.id.is_empty() || client.given.id.len() > 2_048 || client.given.id.chars().any(char::is_control) {
            problems.add(at("client/id"), "must have 1 to 2048 characters");
        }
        match &client.secret {
            Some(secret) => {
                if let Err(problem) = self.check_client_secret(&client.given, secret) {
                    let field = if client.given.auth == ClientAuth::PrivateKey { "client/private_key" } else { "client/secret" };
                    problems.add(at(field), problem);
                }
            }
            None if client.given.secret().is_some() && known.is_none_or(|known| *known != client.given) => {
                problems.add(at("client"), "has no value yet that could be kept");
            }
            None => {}
        }
    }

    fn check_secrets(&self, transport: &NewTransport, known: Option<&Transport>, problems: &mut Problems) {
        let (field, is_name): (_, fn(&str) -> bool) = match transport {
            NewTransport::Stdio { .. } => ("env", is_variable),
            NewTransport::Http { .. } => ("headers", is_header),
        };
        let same_kind = matches!(
            (transport, known),
            (NewTransport::Stdio { .. }, Some(Transport::Stdio { .. }))
                | (NewTransport::Http { .. }, Some(Transport::Http { .. }))
        );
        if transport.secrets().len() > limits::ENTRIES_MAX {
            problems.add(format!("/transport/{field}"), format!("must have at most {} entries", limits::ENTRIES_MAX));
        }
        for (name, value) in transport.secrets() {
            let at = format!("/transport/{field}/{name}");
            if !is_name(name) {
                problems.add(&at, "is no name that can be used here");
            }
            match value {
                Some(value) if value.len() > SECRET_BYTES_MAX || value.contains(['\0', '\r', '\n']) => {
                    problems.add(&at, format!("must have at most {SECRET_BYTES_MAX} bytes, in one line"));
                }
                None if !same_kind || !known.is_some_and(|known| known.secrets().contains(name)) => {
                    problems.add(&at, "has no value yet that could be kept");
                }
                Some(_) | None => {}
            }
        }
    }
}

fn is_server_name(name: &str) -> bool {
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !name.contains("__")
        && !name.ends_with('_')
        && name.parse::<McpServerId>().is_err()
}

fn is_argument(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && !text.contains('\0')
}

fn is_variable(name: &str) -> bool {
    let is_start = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.len() <= 128 && name.bytes().next().is_some_and(is_start) && name.bytes().all(|b| is_start(b) || b.is_ascii_digit())
}

fn is_header(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        && !HEADERS_RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

fn known_client(transport: &Transport) -> Option<&GivenClient> {
    transport.oauth()?.client.as_ref()
}

pub(crate) fn secret_name(id: McpServerId, name: &str) -> String {
    format!("mcp-server/{id}/{name}")
}

/// The index field of a server's tools.
pub(crate) fn of_server(id: McpServerId) -> IndexField {
    IndexField::new("server", id.to_string())
}

/// Starts every server of a tenant.
pub(crate) async fn start_all(app: App, tenant: TenantId) {
    let servers = match each::<McpServer>(app.engine(), tenant, &[]).await {
        Ok(servers) => servers,
        Err(error) => return tracing::error!(%tenant, %error, "the MCP servers could not be read"),
    };
    for server in servers {
        if app.leads(tenant) {
            let step = Step::on::<McpServer>(&server.stream, McpServerCommand::Start);
            let started = app.engine().handle::<McpServer>(tenant, step, &Context::system(GATEWAY), Extras::default()).await;
            if let Err(error) = started {
                tracing::error!(server = %server.stream, %error, "the start of an MCP server could not be written");
            }
        }
        if let Err(rejection) = app.put_server(tenant, &server.stream).await {
            tracing::error!(server = %server.stream, %rejection, "an MCP server could not be handed to the gateway");
        }
    }
}

/// Who writes down what happens to servers by themselves.
const GATEWAY: &str = "gateway";

/// Hears which servers somebody has made known, changed, removed or started again, on whichever replica.
#[derive(Default)]
pub(crate) struct ServerFollower(Vec<ServerChange>);

/// What somebody did with a server, by its stream.
#[derive(Debug)]
pub(crate) enum ServerChange {
    /// It is to be handed to the gateway as it is now.
    Put(String),
    /// Its calls are bounded otherwise.
    Tune(String),
    /// Something happened to a credential; whether it is another one now.
    Credential(String, bool),
}

impl Process for ServerFollower {
    const NAME: &'static str = "mcp-servers";
    type Signal = ();
    type Command = ServerChange;

    fn react(&mut self, event: &Recorded, _: Timestamp) {
        let header = &event.header;
        if header.kind.starts_with("registry.credential.") {
            // What the vault got for itself is shown from now on without anybody's help.
            let is_other = header.actor != ActorRef::system(VAULT)
                && matches!(header.kind.as_str(), "registry.credential.granted" | "registry.credential.removed");
            self.0.push(ServerChange::Credential(header.stream.clone(), is_other));
            return;
        }
        if header.actor == ActorRef::system(GATEWAY) {
            return;
        }
        let stream = header.stream.clone();
        match header.kind.as_str() {
            "registry.mcp_server.registered"
            | "registry.mcp_server.updated"
            | "registry.mcp_server.started"
            | "registry.mcp_server.deregistered" => self.0.push(ServerChange::Put(stream)),
            "registry.mcp_server.tuned" => self.0.push(ServerChange::Tune(stream)),
            _ => {}
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, _: Timestamp, _: u64) -> Vec<ServerChange> {
        std::mem::take(&mut self.0)
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }
}

/// Hands servers to the gateway.
pub(crate) struct ServerKeeper {
    pub app: Weak<Inner>,
    pub tenant: TenantId,
}

#[async_trait]
impl Executor<ServerFollower> for ServerKeeper {
    async fn execute(&self, change: ServerChange) -> Option<()> {
        let app = App(self.app.upgrade()?);
        let done = match &change {
            ServerChange::Put(stream) => app.put_server(self.tenant, stream).await,
            ServerChange::Tune(stream) => app.tune_server(self.tenant, stream).await,
            ServerChange::Credential(stream, is_other) => app.follow_credential(self.tenant, stream, *is_other).await,
        };
        if let Err(rejection) = done {
            tracing::error!(?change, %rejection, "an MCP server could not be handed to the gateway");
        }
        None
    }
}

/// Writes down what the gateway tells, until the server stops. Of several replicas the one that leads the tenant's log
/// writes; another one keeps what it was told last and writes it when it leads.
pub(crate) async fn follow(app: App, mut reports: Receiver<Report>) {
    const LOOK_AGAIN_MS: u64 = 1_000;
    // Of each server the last of what it became, and whether its circuits are to be looked at.
    let mut kept: BTreeMap<(gateway::Key, bool), Report> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            report = reports.recv() => {
                let Some(report) = report else { return };
                kept.insert((report.key, matches!(report.what, Happening::Circuits)), report);
            }
            () = app.env().sleep_ms(LOOK_AGAIN_MS), if !kept.is_empty() => {}
        }
        let led: Vec<_> = kept.keys().filter(|(key, _)| app.leads(key.tenant)).copied().collect();
        for of in led {
            match write_down(&app, &kept[&of]).await {
                Ok(()) => drop(kept.remove(&of)),
                Err(error) => {
                    tracing::error!(server = %of.0.server, %error, "what happened to an MCP server could not be written; trying again");
                }
            }
        }
    }
}

/// Whoever begins to lead a log says which circuits are open here: what was said before is of another replica's.
pub(crate) async fn tell_circuits(app: App, runtime: Arc<TenantRuntime>) {
    let known: Vec<McpServerId> = {
        let known = runtime.catalogue.known();
        known.servers.iter().filter(|(_, server)| !server.state.circuits.is_empty()).map(|(id, _)| *id).collect()
    };
    for server in known {
        let report = Report { key: gateway::Key { tenant: runtime.id, server }, what: Happening::Circuits };
        if let Err(error) = write_down(&app, &report).await {
            tracing::error!(%server, %error, "the circuits of an MCP server could not be written");
        }
    }
}

async fn write_down(app: &App, report: &Report) -> Result<(), HandleError> {
    let (tenant, id) = (report.key.tenant, report.key.server);
    let Some(server) = app.engine().entity::<McpServer>(tenant, &id.to_string()).await.map_err(HandleError::Store)? else {
        return Ok(());
    };
    if server.state.is_deleted {
        return Ok(());
    }
    let mut steps = vec![];
    let command = match &report.what {
        Happening::Failed { reason, is_locked } => McpServerCommand::MarkFailed { reason: reason.clone(), is_locked: *is_locked },
        Happening::Circuits => {
            let open = app.0.gateway.circuits(report.key);
            let part = |circuit: &gateway::Circuit| Part { tool: circuit.subject.clone(), address: circuit.address.clone() };
            McpServerCommand::MarkCircuits(open.into_iter().map(|circuit| (part(&circuit), circuit.reason)).collect())
        }
        Happening::Ready(introduction, offers) => {
            let Offers { tools, .. } = &**offers;
            steps = changes(app, tenant, id, &server.state, tools).await?;
            McpServerCommand::MarkReady(introduced(introduction, tools.len()))
        }
    };
    steps.push(Step::on::<McpServer>(id, command));
    match app.engine().transact(tenant, &steps, &Context::system(GATEWAY), Extras::default()).await {
        // It was removed meanwhile.
        Err(HandleError::Rejected(rejection)) if rejection.kind == Kind::NotFound => Ok(()),
        outcome => outcome.map(|_| ()),
    }
}

/// What a listing means for the tools that are known.
async fn changes(
    app: &App,
    tenant: TenantId,
    id: McpServerId,
    server: &McpServer,
    listed: &[ToolListing],
) -> Result<Vec<Step>, HandleError> {
    let known = each::<Tool>(app.engine(), tenant, &[of_server(id)]).await.map_err(HandleError::Store)?;
    let names = app.tool_names(tenant);
    let mut steps = vec![];
    for listing in listed {
        let stream = tool_id(id, &listing.name).to_string();
        let is_as_known =
            |tool: &Handled<Tool>| tool.stream == stream && tool.state.is_listed && tool.state.manifest == manifest(listing);
        if !known.iter().any(is_as_known) {
            let command = ToolCommand::Observe {
                server_id: id,
                server: server.profile.name.clone(),
                manifest: manifest(listing),
                is_first_listing: server.introduced.is_none(),
                is_look_alike: names.look_alike(id, &listing.name).is_some(),
            };
            steps.push(Step::on::<Tool>(stream, command));
        }
    }
    let is_gone = |tool: &&Handled<Tool>| !listed.iter().any(|listing| listing.name == tool.state.manifest.tool);
    steps.extend(known.iter().filter(is_gone).map(|tool| Step::on::<Tool>(&tool.stream, ToolCommand::Withdraw)));
    Ok(steps)
}

fn manifest(listing: &ToolListing) -> Manifest {
    Manifest {
        tool: listing.name.clone(),
        description: listing.description.clone(),
        input_schema: listing.input_schema.clone(),
        output_schema: listing.output_schema.clone(),
        more: listing.more.clone(),
        hash: listing.hash.clone(),
    }
}

fn introduced(introduction: &Introduction, tools: usize) -> Introduced {
    Introduced {
        name: introduction.name.clone(),
        version: introduction.version.clone(),
        protocol_version: introduction.protocol_version.clone(),
        tools: u32::try_from(tools).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_part_cleanly_from_their_tools() {
        for good in ["git", "a-b", "a_b", "_a", "A1"] {
            assert!(is_server_name(good), "{good}");
        }
        for bad in ["", "a__b", "a_", "a b", "ä", "a/b", &"x".repeat(65), &McpServerId::from_bytes([0; 16]).to_string()] {
            assert!(!is_server_name(bad), "{bad}");
        }
    }

    #[test]
    fn headers_of_the_protocol_cannot_be_set() {
        assert!(is_header("Authorization") && is_header("X-Api-Key"));
        for bad in ["Host", "content-length", "Mcp-Session-Id", "", "a b", "a:b"] {
            assert!(!is_header(bad), "{bad}");
        }
    }
}
