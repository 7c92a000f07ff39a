//! A person connects a server to an account: sent to the server's authorization server, and back with a code. What belongs to one
//! attempt travels sealed in `state`, good for that person only, so that any replica can go on with it.

use super::clients::{check_issuer, scopes_of, untold};
use super::{GrantedTokens, Kept, identity_of};
use crate::app::{App, internal};
use crate::crypto::fresh_secret;
use crate::jose::b64;
use crate::oauth::{Browser, with_query};
use crate::{Answer, Caller};
use domain::credential::{Credential, Source, credential_id};
use domain::identity::user::User;
use domain::mcp_server::{Grant, McpServer, Per, ServerStatus};
use engine::{Context, Handled};
use gateway::Key;
use gateway::oauth::{Authority, Challenge, discover, exchange, probe};
use kernel::id::McpServerId;
use kernel::{Actor, Kind, Rejection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long somebody may take at the authorization server.
const GOOD_MS: u64 = 600_000;
const STATE_BYTES_MAX: usize = 16 * 1024;

/// What is about to be connected, for the person to see.
pub struct ConnectPlan {
    /// The server's name here.
    pub server: String,
    /// Where it is.
    pub url: String,
    /// The authorization server that the person is sent to.
    pub issuer: String,
    /// The origin of its page.
    pub leads_to: String,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// Whether everybody's calls will use the account.
    pub is_for_everybody: bool,
    /// Tells this plan from any other.
    pub mark: String,
}

/// What comes back from an authorization server.
pub struct ConnectAnswer {
    /// The address that it sent the person to.
    pub back: String,
    /// What it was told to send back.
    pub state: String,
    /// What gets the tokens.
    pub code: Option<String>,
    /// Who answers.
    pub issuer: Option<String>,
    /// Why there is no code.
    pub error: Option<String>,
}

/// What was connected.
pub struct Connected {
    /// The server's name.
    pub server: String,
    /// Where somebody connects it for everybody, too, if its tools cannot be listed before.
    pub wants_everybody: Option<String>,
}

/// An attempt under way.
#[derive(Serialize, Deserialize)]
struct Underway {
    until_ms: i64,
    server: McpServerId,
    url: String,
    is_for_everybody: bool,
    verifier: String,
    client_id: String,
    /// Where people are sent back to: the authorization server that sent somebody elsewhere is another one.
    back: String,
    issuer: String,
    names_itself: bool,
    asked: Vec<String>,
    resource: String,
    token_endpoint: String,
    revocation_endpoint: Option<String>,
    auth_methods: Vec<String>,
}

/// Everything that is known before a person is sent away.
struct Prepared {
    server: Handled<McpServer>,
    authority: Authority,
    authorization_endpoint: String,
    asked: Vec<String>,
    is_for_everybody: bool,
}

impl Prepared {
    /// Tells what a person is shown from anything else.
    fn mark(&self) -> String {
        let endpoint = &self.authorization_endpoint;
        let shown = format!("{:?}", (&self.server.stream, &self.authority.issuer, endpoint, &self.asked, self.is_for_everybody));
        b64(&Sha256::digest(shown))
    }
}

impl App {
    /// What would be connected.
    pub async fn connect_plan(
        &self,
        browser: &Browser,
        context: Context,
        server: &str,
        for_everybody: bool,
    ) -> Answer<ConnectPlan> {
        let prepared = self.prepared(browser, &browser.context(context), server, for_everybody).await?;
        let profile = &prepared.server.state.profile;
        Ok(ConnectPlan {
            server: profile.name.clone(),
            url: profile.transport.url().unwrap_or_default().to_owned(),
            leads_to: prepared.authority.page_origin(),
            mark: prepared.mark(),
            issuer: prepared.authority.issuer,
            scopes: prepared.asked,
            is_for_everybody: prepared.is_for_everybody,
        })
    }

    /// Where the person goes on, who was shown the plan with this mark.
    pub async fn connect_begin(
        &self,
        browser: &Browser,
        context: Context,
        server: &str,
        for_everybody: bool,
        mark: &str,
    ) -> Answer<String> {
        let context = browser.context(context);
        let prepared = self.prepared(browser, &context, server, for_everybody).await?;
        if prepared.mark() != mark {
            return Err(untold("it says something else than a moment ago: look at the page again"));
        }
        let Prepared { server, authority, asked, is_for_everybody, .. } = prepared;
        let id: McpServerId = server.stream.parse().map_err(|_| internal("a server without an id".into()))?;
        let back = self.connect_back_of(&server, &authority);
        let client_id = self.known_client(Key { tenant: browser.tenant, server: id }, &server, &authority, &context).await?;
        let verifier = fresh_secret(self.env());
        let challenge = b64(&Sha256::digest(verifier.as_bytes()));
        let until_ms = self.env().now().plus_ms(GOOD_MS).0;
        let scope = asked.join(" ");
        let underway = Underway {
            until_ms,
            server: id,
            url: server.state.profile.transport.url().unwrap_or_default().to_owned(),
            is_for_everybody,
            verifier,
            client_id: client_id.clone(),
            back: back.clone(),
            issuer: authority.issuer,
            names_itself: authority.names_itself,
            asked,
            resource: authority.resource.clone(),
            token_endpoint: authority.token_endpoint,
            revocation_endpoint: authority.revocation_endpoint,
            auth_methods: authority.auth_methods,
        };
        let state = self.seal_underway(browser, &underway)?;
        let mut fields = vec![
            ("response_type", "code"),
            ("client_id", &client_id),
            ("redirect_uri", &back),
            ("state", &state),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
            ("resource", &authority.resource),
        ];
        fields.extend((!scope.is_empty()).then_some(("scope", scope.as_str())));
        Ok(with_query(&prepared.authorization_endpoint, fields.into_iter()))
    }

    /// Goes on with what an authorization server answered.
    pub async fn connect_finish(&self, browser: &Browser, context: Context, answer: ConnectAnswer) -> Answer<Connected> {
        let underway = self.open_underway(browser, &answer.state)?;
        // Before anything that it says is looked at: another one may have sent the person here.
        let is_its = match &answer.issuer {
            Some(issuer) => *issuer == underway.issuer,
            None => !underway.names_itself,
        };
        if !is_its || answer.back != underway.back {
            return Err(untold("another authorization server answered than was asked"));
        }
        let caller = self.browser_caller(self.actor_of(browser).await?, &browser.context(context));
        let server = self.mcp_server(&caller, &underway.server.to_string()).await?;
        self.check_may_connect(&caller, underway.is_for_everybody)?;
        if server.state.profile.transport.url() != Some(&underway.url) {
            return Err(untold("the server has another address since: begin again"));
        }
        let code = match (answer.code, answer.error) {
            (Some(code), None) => code,
            (_, error) => {
                let error: String = error.unwrap_or_else(|| "no code".into()).chars().take(200).collect();
                return Err(untold(&format!("its authorization server answered {error}")));
            }
        };
        let key = Key { tenant: browser.tenant, server: underway.server };
        let client = self.client_of(key, &underway.issuer, &underway.auth_methods).await?;
        if client.id != underway.client_id {
            return Err(untold("Keiko is another client there since: begin again"));
        }
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("redirect_uri", underway.back.as_str()),
            ("code_verifier", underway.verifier.as_str()),
            ("resource", underway.resource.as_str()),
        ];
        let allow_private = self.0.gateway.settings().allow_private;
        let tokens =
            exchange(&underway.token_endpoint, &client, &form, allow_private).await.map_err(|e| untold(&e.to_string()))?;
        let (owner, is_renewable) = (identity_of(&caller), tokens.refresh.is_some());
        let (scopes, expires_at) = (tokens.scopes.clone().unwrap_or_else(|| underway.asked.clone()), self.end_of(&tokens));
        let source = Source::Oauth {
            issuer: underway.issuer,
            client_id: client.id,
            grant: Grant::AuthorizationCode,
            asked: underway.asked,
            is_renewable,
        };
        let kept = Kept {
            url: underway.url,
            access: tokens.access,
            refresh: tokens.refresh,
            resource: underway.resource,
            token_endpoint: underway.token_endpoint,
            revocation_endpoint: underway.revocation_endpoint,
            auth_methods: underway.auth_methods,
        };
        let owner = (!underway.is_for_everybody).then_some(owner.as_str());
        self.keep_credential(&caller, &server, owner, GrantedTokens { kept, source, scopes, expires_at }).await?;
        // Who and what it is for may have been removed while the authorization server took its time.
        let is_left = self.identity(browser.tenant, &browser.user.to_string()).await?.is_some()
            && self.entity::<McpServer>(browser.tenant, &server.stream).await?.is_some();
        if !is_left {
            self.drop_credential(key, owner, &caller).await?;
            return Err(untold("you, or the server, were removed meanwhile"));
        }
        let name = server.state.profile.name.clone();
        let shared = credential_id(underway.server, None).to_string();
        let is_alone = owner.is_some() && self.entity::<Credential>(browser.tenant, &shared).await?.is_none();
        let is_unlisted = is_alone && server.state.status != ServerStatus::Ready;
        let wants_everybody = is_unlisted.then(|| format!("{}?for=everybody", self.connect_url(&name)));
        Ok(Connected { server: name, wants_everybody })
    }

    async fn prepared(&self, browser: &Browser, context: &Context, server: &str, for_everybody: bool) -> Answer<Prepared> {
        let caller = self.browser_caller(self.actor_of(browser).await?, context);
        let server = self.http_server(&caller, server).await?;
        let transport = &server.state.profile.transport;
        let is_for_everybody = for_everybody || transport.per() == Per::Server;
        self.check_may_connect(&caller, is_for_everybody)?;
        let (url, allow_private) = (transport.url().unwrap_or_default(), self.0.gateway.settings().allow_private);
        let challenge = probe(url, allow_private).await;
        let authority = discover(url, challenge.as_ref(), allow_private).await.map_err(|reason| untold(&reason))?;
        check_issuer(&server, &authority.issuer)?;
        if !authority.has_pkce {
            return Err(untold("its authorization server does not bind codes to whoever asked for them (PKCE with S256)"));
        }
        let Some(endpoint) = authority.authorization_endpoint.clone() else {
            return Err(untold("its authorization server has no page for people"));
        };
        let said = transport.oauth().map(|oauth| oauth.scopes.clone()).unwrap_or_default();
        let before = self.asked_before(&caller, &server, is_for_everybody, &authority.issuer).await?;
        let mut asked = scopes_of(&said, &challenge.unwrap_or_else(Challenge::default), &authority, before);
        if authority.has_offline_access && !asked.iter().any(|scope| scope == "offline_access") {
            asked.push("offline_access".into());
        }
        Ok(Prepared { server, authority, authorization_endpoint: endpoint, asked, is_for_everybody })
    }

    /// What was asked for before, and what the server wanted since.
    async fn asked_before(
        &self,
        caller: &Caller,
        server: &Handled<McpServer>,
        is_for_everybody: bool,
        issuer: &str,
    ) -> Answer<Vec<String>> {
        let owner = (!is_for_everybody).then(|| identity_of(caller));
        let Ok(server) = server.stream.parse::<McpServerId>() else { return Ok(vec![]) };
        let known = self.entity::<Credential>(caller.actor.tenant, &credential_id(server, owner.as_deref()).to_string()).await?;
        // What one authorization server knows another may not.
        let is_same = |known: &Handled<Credential>| match &known.state.granted.source {
            Source::Oauth { issuer: before, .. } => before == issuer,
            Source::Token => true,
        };
        Ok(known.filter(is_same).map(|known| known.state.scopes_to_ask()).unwrap_or_default())
    }

    fn check_may_connect(&self, caller: &Caller, is_for_everybody: bool) -> Answer<()> {
        let permission = if is_for_everybody { "mcp-servers.update" } else { "tools.call" };
        self.authorise(&caller.actor, permission).map(|_| ())
    }

    /// The person at a browser, with everything that it may do.
    async fn actor_of(&self, browser: &Browser) -> Answer<Actor> {
        let gone = || Rejection::new(Kind::Unauthenticated, "SESSION_ENDED", "Your login has ended.", "Sign in again.");
        let id = browser.user.to_string();
        let mut actor = self.identity(browser.tenant, &id).await?.ok_or_else(gone)?;
        let user = self.entity::<User>(browser.tenant, &id).await?.ok_or_else(gone)?;
        let is_admin = actor.permissions.iter().any(|held| held == "*");
        actor.proof = Some(Self::proof_of(browser.login(), &user.state, is_admin));
        actor.is_emergency = self.guard_of(browser.tenant).await?.emergency.is_some();
        Ok(actor)
    }

    fn seal_underway(&self, browser: &Browser, underway: &Underway) -> Answer<String> {
        self.seal_text(browser.tenant, &place(browser), underway)
    }

    fn open_underway(&self, browser: &Browser, state: &str) -> Answer<Underway> {
        let refused = || untold("this answer belongs to nothing that you began, or came too late");
        let opened = (state.len() <= STATE_BYTES_MAX).then(|| self.open_text(browser.tenant, &place(browser), state)).flatten();
        let underway: Underway = opened.ok_or_else(refused)?;
        if self.env().now().0 > underway.until_ms { Err(refused()) } else { Ok(underway) }
    }
}

/// Nobody goes on with what somebody else began: their account would become one's own.
fn place(browser: &Browser) -> String {
    format!("connect/{}", browser.user)
}
