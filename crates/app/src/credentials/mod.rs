//! How Keiko is let in at MCP servers: tokens for everybody or for one identity, put in by hand or got from the server's
//! authorization server. The secrets lie sealed beside the log; nobody reads them through an interface.

mod clients;
mod connect;
mod vault;

pub use connect::{ConnectAnswer, ConnectPlan, Connected};
pub(crate) use vault::{Tokenry, VAULT, Vault};

use crate::app::{App, internal};
use crate::errors::{Problems, of_store};
use crate::mcp_servers::of_server;
use crate::workers::each;
use crate::{Answer, Caller, ListOrder, Page};
use domain::credential::{Credential, CredentialCommand, CredentialStatus, Granted, Source, credential_id, not_found};
use domain::mcp_server::{McpServer, Per};
use engine::{Extras, Handled, Step};
use gateway::oauth::{Tokens, revoke};
use gateway::{Holder, Key};
use kernel::id::{CredentialId, McpServerId, TenantId};
use kernel::{IndexField, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// What lies beside the log of a credential.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    /// Where the server was when this was given: it is shown nowhere else.
    url: String,
    access: String,
    #[serde(default)]
    refresh: Option<String>,
    /// What the tokens are for, and where they come from; empty where somebody put them in.
    #[serde(default)]
    resource: String,
    #[serde(default)]
    token_endpoint: String,
    #[serde(default)]
    revocation_endpoint: Option<String>,
    #[serde(default)]
    auth_methods: Vec<String>,
}

/// What an authorization server gave, to be kept.
struct GrantedTokens {
    kept: Kept,
    source: Source,
    scopes: Vec<String>,
    expires_at: Option<Timestamp>,
}

/// Whose credential is meant.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// The caller's own.
    Me,
    /// The one that is for everybody.
    Everybody,
    /// That of an identity.
    Identity(&'a str),
}

impl<'a> Owner<'a> {
    /// `everybody`, or an id.
    pub fn of(text: &'a str) -> Self {
        if text == "everybody" { Owner::Everybody } else { Owner::Identity(text) }
    }

    fn not_found(self) -> Rejection {
        not_found(match self {
            Owner::Me => "me",
            Owner::Everybody => "everybody",
            Owner::Identity(id) => id,
        })
    }
}

/// A credential as it is shown.
pub struct CredentialView {
    /// The credential.
    pub credential: Handled<Credential>,
    /// `active`, `expired`, `refused`
    pub status: &'static str,
}

fn secret_of(id: CredentialId) -> String {
    format!("credential/{id}")
}

fn holder_id(holder: &Holder) -> Option<&str> {
    match holder {
        Holder::Everybody => None,
        Holder::Identity(id) => Some(id),
    }
}

/// Whose account a caller uses at a server: the person behind it, else its own.
fn identity_of(caller: &Caller) -> String {
    caller.actor.user.map_or_else(|| caller.actor.who.id.clone(), |user| user.to_string())
}

impl App {
    /// Whose account the calls of a caller use at a server.
    pub(crate) fn account_of(&self, caller: &Caller, server: McpServerId) -> Holder {
        let runtime = self.runtime(caller).ok();
        let per = runtime.and_then(|runtime| Some(runtime.catalogue.known().servers.get(&server)?.state.profile.transport.per()));
        match per.unwrap_or_default() {
            Per::Server => Holder::Everybody,
            Per::User => Holder::Identity(identity_of(caller).into()),
        }
    }

    /// Where a person connects a server to an account.
    pub fn connect_url(&self, server: &str) -> String {
        format!("{}/oauth/connect/{server}", self.issuer())
    }

    /// A refusal of a server that lets nobody in, with where to connect it.
    pub(crate) fn with_way_in(&self, caller: &Caller, id: McpServerId, server: &str, mut rejection: Rejection) -> Rejection {
        if rejection.code != "CREDENTIAL_REQUIRED" {
            return rejection;
        }
        let url = self.connect_url(server);
        let owner = if self.account_of(caller, id) == Holder::Everybody { "everybody" } else { "me" };
        rejection.hint =
            format!("Open {url} in a browser, or put a token in: PUT /api/v1/mcp-servers/{server}/credentials/{owner}.");
        rejection.with("connect_url", url)
    }

    /// The credentials for a server.
    pub async fn credentials(&self, caller: &Caller, server: &str, order: &ListOrder) -> Answer<Page<Credential>> {
        let server = self.server_id(caller, server).await?;
        self.list::<Credential>(caller, order, vec![of_server(server)]).await
    }

    /// One credential.
    pub async fn credential_of(&self, caller: &Caller, server: &str, owner: Owner<'_>) -> Answer<CredentialView> {
        let id = self.server_id(caller, server).await?;
        let holder = self.owner(caller, owner).await?;
        let found = self.read::<Credential>(caller, &credential_id(id, holder.as_deref()).to_string()).await?;
        found.map(|credential| self.credential_view(credential)).ok_or_else(|| owner.not_found())
    }

    /// Keeps a token that somebody got elsewhere.
    pub async fn put_credential(
        &self,
        caller: &Caller,
        server: &str,
        owner: Owner<'_>,
        token: String,
        expires_at: Option<Timestamp>,
    ) -> Answer<CredentialView> {
        let server = self.http_server(caller, server).await?;
        let holder = self.owner(caller, owner).await?;
        let mut problems = Problems::default();
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(|b| b.is_ascii_graphic()) {
            problems.add("/token", format!("must have 1 to {TOKEN_BYTES_MAX} visible characters of ASCII, without spaces"));
        }
        if expires_at.is_some_and(|end| end <= self.env().now()) {
            problems.add("/expires_at", "must lie in the future");
        }
        problems.refuse()?;
        let kept = Kept {
            url: server.state.profile.transport.url().unwrap_or_default().to_owned(),
            access: token,
            refresh: None,
            resource: String::new(),
            token_endpoint: String::new(),
            revocation_endpoint: None,
            auth_methods: vec![],
        };
        let granted = GrantedTokens { kept, source: Source::Token, scopes: vec![], expires_at };
        let credential = self.keep_credential(caller, &server, holder.as_deref(), granted).await?;
        Ok(self.credential_view(credential))
    }

    /// Forgets a credential, and gives its tokens back.
    pub async fn remove_credential(&self, caller: &Caller, server: &str, owner: Owner<'_>) -> Answer<()> {
        let server_id = self.server_id(caller, server).await?;
        let holder = self.owner(caller, owner).await?;
        let (tenant, id) = (caller.actor.tenant, credential_id(server_id, holder.as_deref()));
        let known = self.entity::<Credential>(tenant, &id.to_string()).await?.ok_or_else(|| owner.not_found())?;
        self.witness(caller, "mcp-servers.credential.removed", &json!({ "id": id, "server": server_id, "owner": holder }))
            .await?;
        let given_back = self.giving_back(Key { tenant, server: server_id }, &known).await;
        self.drop_credential(Key { tenant, server: server_id }, holder.as_deref(), caller).await?;
        if let Some(given_back) = given_back {
            self.env().spawn(given_back);
        }
        Ok(())
    }

    /// What removes every credential that an index field finds: of a server, or of an identity.
    pub(crate) async fn end_credentials(
        &self,
        tenant: TenantId,
        field: IndexField,
        steps: &mut Vec<Step>,
        secrets: &mut Vec<(String, Option<Vec<u8>>)>,
    ) -> Answer<()> {
        for known in each::<Credential>(self.engine(), tenant, &[field]).await.map_err(of_store)? {
            let id: CredentialId = known.stream.parse().map_err(|_| internal("a credential without an id".into()))?;
            steps.push(Step::on::<Credential>(id, CredentialCommand::Remove));
            secrets.push((secret_of(id), None));
        }
        Ok(())
    }

    /// A credential as it is shown.
    pub fn credential_view(&self, credential: Handled<Credential>) -> CredentialView {
        let state = &credential.state;
        let has_ended = state.granted.expires_at.is_some_and(|end| end <= self.env().now());
        let status = match state.status {
            CredentialStatus::Active if has_ended && !state.is_renewable() => "expired",
            status => status.as_str(),
        };
        CredentialView { status, credential }
    }

    async fn server_id(&self, caller: &Caller, server: &str) -> Answer<McpServerId> {
        let server = self.mcp_server(caller, server).await?;
        server.stream.parse().map_err(|_| internal("a server without an id".into()))
    }

    /// A server that can be shown a token.
    async fn http_server(&self, caller: &Caller, server: &str) -> Answer<Handled<McpServer>> {
        let found = self.mcp_server(&Caller { at: None, ..caller.clone() }, server).await?;
        if found.state.profile.transport.urls().len() > 1 {
            let message = format!("The server '{}' has several addresses: it is shown no token.", found.state.profile.name);
            let hint = "Give it one address, for example that of a load balancer before it.";
            return Err(Rejection::new(kernel::Kind::Refused, "CREDENTIAL_UNUSABLE", message, hint));
        }
        let hint = "Use an https URL; gateway.allow_private (KEIKO_GATEWAY_ALLOW_PRIVATE) allows others, too.";
        match found.state.profile.transport.url() {
            Some(url) if url.starts_with("https://") || self.0.gateway.settings().allow_private => return Ok(found),
            Some(url) => {
                let message = format!("A token would be sent to {url} in the clear.");
                return Err(Rejection::new(kernel::Kind::Refused, "CREDENTIAL_UNUSABLE", message, hint));
            }
            None => {}
        }
        let message =
            format!("The server '{}' is a process: it gets what it needs in its environment.", found.state.profile.name);
        let hint = "Give it in transport.env with PUT /api/v1/mcp-servers/{id}.";
        Err(Rejection::new(kernel::Kind::Refused, "CREDENTIAL_UNUSABLE", message, hint))
    }

    /// The id of whose credential is meant; nothing for everybody's.
    async fn owner(&self, caller: &Caller, owner: Owner<'_>) -> Answer<Option<String>> {
        match owner {
            Owner::Me => Ok(Some(identity_of(caller))),
            Owner::Everybody => Ok(None),
            Owner::Identity(id) => {
                let known = self.identity(caller.actor.tenant, id).await?;
                known.map(|_| Some(id.to_owned())).ok_or_else(|| owner.not_found())
            }
        }
    }

    /// Forgets a credential at once.
    async fn drop_credential(&self, key: Key, owner: Option<&str>, caller: &Caller) -> Answer<()> {
        let id = credential_id(key.server, owner);
        let extras = Extras { secrets: vec![(secret_of(id), None)], ..Extras::default() };
        self.execute::<Credential>(caller, Step::on::<Credential>(id, CredentialCommand::Remove), extras).await?;
        self.0.vault.forget(key.tenant, id);
        Ok(())
    }

    /// Keeps what was given, in place of what was there.
    async fn keep_credential(
        &self,
        caller: &Caller,
        server: &Handled<McpServer>,
        owner: Option<&str>,
        granted: GrantedTokens,
    ) -> Answer<Handled<Credential>> {
        let server: McpServerId = server.stream.parse().map_err(|_| internal("a server without an id".into()))?;
        let (tenant, id) = (caller.actor.tenant, credential_id(server, owner));
        let told = json!({ "id": id, "server": server, "owner": owner, "source": granted.source, "scopes": granted.scopes });
        self.witness(caller, "mcp-servers.credential.granted", &told).await?;
        let (command, extras) = self.keeping(Key { tenant, server }, owner, granted)?;
        let kept = self.execute::<Credential>(caller, Step::on::<Credential>(id, command), extras).await?;
        self.0.vault.forget(tenant, id);
        Ok(kept)
    }

    /// The event and the secret of a credential.
    fn keeping(&self, key: Key, owner: Option<&str>, granted: GrantedTokens) -> Answer<(CredentialCommand, Extras)> {
        let id = credential_id(key.server, owner);
        let sealed = self.seal_kept(key.tenant, id, &granted.kept)?;
        let GrantedTokens { source, scopes, expires_at, .. } = granted;
        let granted = Granted { server_id: key.server, owner: owner.map(str::to_owned), source, scopes, expires_at };
        let extras = Extras { secrets: vec![(secret_of(id), Some(sealed))], ..Extras::default() };
        Ok((CredentialCommand::Keep(granted), extras))
    }

    /// When a token ends that came now.
    fn end_of(&self, tokens: &Tokens) -> Option<Timestamp> {
        tokens.expires_in.map(|left| self.env().now().plus_ms(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
    }

    fn seal_kept(&self, tenant: TenantId, id: CredentialId, kept: &Kept) -> Answer<Vec<u8>> {
        let plain = serde_json::to_vec(kept).map_err(|e| internal(e.to_string()))?;
        self.0.crypto.sealer.seal(tenant, &secret_of(id), &plain, self.env().bytes()).map_err(internal)
    }

    async fn open_kept(&self, tenant: TenantId, id: CredentialId) -> Answer<Option<Kept>> {
        let opened = self.open_secret(tenant, &secret_of(id)).await?;
        Ok(opened.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Gives the tokens of a credential back, where their authorization server takes them.
    async fn giving_back(&self, key: Key, known: &Handled<Credential>) -> Option<impl Future<Output = ()> + Send + use<>> {
        let Source::Oauth { issuer, .. } = &known.state.granted.source else { return None };
        let kept = self.open_kept(key.tenant, known.stream.parse().ok()?).await.ok()??;
        let client = self.client_of(key, issuer, &kept.auth_methods).await.ok()?;
        let (endpoint, token) = (kept.revocation_endpoint?, kept.refresh.unwrap_or(kept.access));
        let allow_private = self.0.gateway.settings().allow_private;
        Some(async move {
            if let Err(reason) = revoke(&endpoint, &client, &token, allow_private).await {
                tracing::warn!(%reason, "a token of an MCP server could not be given back; it ends by itself");
            }
        })
    }
}
