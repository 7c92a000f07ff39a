//! What Keiko is to the authorization servers of MCP servers: somebody gave it a client there, it is known by its document, or it
//! registers itself. What belongs to one authorization server is never shown to another.

use super::{GrantedTokens, Kept};
use crate::app::{App, internal};
use crate::crypto::fresh_secret;
use crate::errors::of_handle;
use crate::jose::SigningKey;
use crate::mcp_servers::secret_name;
use crate::{Answer, Caller};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::credential::{Credential, Source, credential_id};
use domain::mcp_server::{ClientAuth, GivenClient, Grant, KnownClient, McpServer, McpServerCommand, issuer_changed, not_found};
use engine::{Context, Extras, Handled, Step};
use gateway::Key;
use gateway::oauth::{Authentication, Authority, Challenge, Client, Registration, Tokens, discover, exchange, register};
use kernel::{Kind, Rejection};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

/// How long an assertion is good.
const ASSERTION_S: i64 = 60;
/// Where what an authorization server gave at a registration lies.
const REGISTERED: &str = "oauth:registered";

/// What lies beside the log of a registration.
#[derive(Serialize, Deserialize)]
struct Registered {
    id: String,
    secret: Option<String>,
    method: String,
    redirect_uri: String,
}

impl App {
    /// Where authorization servers send people back to.
    pub(super) fn connect_back(&self) -> String {
        format!("{}/oauth/connect-back", self.issuer())
    }

    /// The same for one authorization server: where Keiko registers itself, each has an address of its own, so that a code of one is not
    /// taken for a code of another.
    pub(super) fn connect_back_of(&self, server: &Handled<McpServer>, authority: &Authority) -> String {
        if given(server).is_some() || self.takes_document(authority) {
            return self.connect_back();
        }
        let digest = Sha256::digest(authority.issuer.as_bytes());
        format!("{}/{}", self.connect_back(), kernel::text::hex(&digest[..8]))
    }

    /// Whether Keiko's document is shown there: only where answers name who gives them, for its address is the same everywhere.
    fn takes_document(&self, authority: &Authority) -> bool {
        authority.takes_documents && authority.names_itself && self.client_document_url().is_some()
    }

    /// The document that Keiko is known by, where everybody can read it.
    fn client_document_url(&self) -> Option<String> {
        let set = self.0.settings.client_document.clone();
        set.or_else(|| self.issuer().starts_with("https://").then(|| format!("{}/oauth/client.json", self.issuer())))
    }

    /// Keiko as a client of others' authorization servers, in its own words.
    pub fn own_client_document(&self) -> serde_json::Value {
        json!({
            "client_id": self.client_document_url().unwrap_or_else(|| format!("{}/oauth/client.json", self.issuer())),
            "client_name": "Keiko",
            "client_uri": self.issuer(),
            "redirect_uris": [self.connect_back()],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        })
    }

    /// What Keiko is to an authorization server: known already, or from now on.
    pub(super) async fn known_client(
        &self,
        key: Key,
        server: &Handled<McpServer>,
        authority: &Authority,
        context: &Context,
    ) -> Answer<String> {
        let issuer = authority.issuer.clone();
        if let Some(given) = given(server) {
            check_issuer(server, &issuer)?;
            let client = KnownClient { issuer, client_id: given.id.clone(), is_given: true };
            return self.know(key, client, None, context).await;
        }
        if let Some(known) = server.state.client.as_ref().filter(|known| known.issuer == issuer)
            && (self.is_document(&known.client_id) || self.leads_back(key, &self.connect_back_of(server, authority)).await?)
        {
            return Ok(known.client_id.clone());
        }
        if let Some(document) = self.client_document_url().filter(|_| self.takes_document(authority)) {
            return self.know(key, KnownClient { issuer, client_id: document, is_given: false }, None, context).await;
        }
        let Some(endpoint) = &authority.registration_endpoint else { return Err(client_needed(&issuer)) };
        let (back, allow_private) = (self.connect_back_of(server, authority), self.0.gateway.settings().allow_private);
        let made = register(endpoint, &back, &authority.auth_methods, self.issuer(), allow_private).await;
        let made = made.map_err(|reason| untold(&format!("the authorization server '{issuer}' has no use for it: {reason}")))?;
        let registered = Registered { id: made.id.clone(), secret: made.secret, method: made.method, redirect_uri: back };
        let plain = serde_json::to_vec(&registered).map_err(|e| internal(e.to_string()))?;
        self.know(key, KnownClient { issuer, client_id: made.id, is_given: false }, Some(plain), context).await
    }

    async fn know(&self, key: Key, client: KnownClient, secret: Option<Vec<u8>>, context: &Context) -> Answer<String> {
        let place = secret_name(key.server, REGISTERED);
        let sealed = secret.map(|plain| self.0.crypto.sealer.seal(key.tenant, &place, &plain, self.env().bytes()));
        let secrets = sealed.transpose().map_err(internal)?.map(|sealed| (place, Some(sealed)));
        let extras = Extras { secrets: secrets.into_iter().collect(), ..Extras::default() };
        let id = client.client_id.clone();
        let step = Step::on::<McpServer>(key.server, McpServerCommand::KnowClient(client));
        self.engine().handle::<McpServer>(key.tenant, step, context, extras).await.map_err(of_handle)?;
        Ok(id)
    }

    fn is_document(&self, client_id: &str) -> bool {
        self.client_document_url().as_deref() == Some(client_id)
    }

    /// What a registration gave.
    async fn registered(&self, key: Key) -> Answer<Option<Registered>> {
        let opened = self.open_secret(key.tenant, &secret_name(key.server, REGISTERED)).await?;
        Ok(opened.and_then(|plain| serde_json::from_slice(&plain).ok()))
    }

    /// Whether a registration leads people back here: this server may have had another address then.
    async fn leads_back(&self, key: Key, back: &str) -> Answer<bool> {
        Ok(self.registered(key).await?.is_some_and(|registered| registered.redirect_uri == back))
    }

    /// Keiko as it shows itself to an authorization server, which must be the one that it is known at.
    pub(super) async fn client_of(&self, key: Key, issuer: &str, methods: &[String]) -> Answer<Client> {
        let server = self.entity::<McpServer>(key.tenant, &key.server.to_string()).await?;
        let server = server.ok_or_else(|| not_found(&key.server.to_string()))?;
        let known = server.state.client.as_ref().filter(|known| known.issuer == issuer);
        let known = known.ok_or_else(|| untold(&format!("Keiko is not known at '{issuer}' any more: connect it again")))?;
        let id = known.client_id.clone();
        if let Some(given) = given(&server) {
            return Ok(Client { id, authentication: self.client_proof(key, given, issuer, methods).await? });
        }
        if self.is_document(&id) {
            return Ok(Client { id, authentication: Authentication::None });
        }
        let registered = self.registered(key).await?.filter(|registered| registered.id == id);
        let registered = registered.ok_or_else(|| untold("its registration cannot be opened: connect it again"))?;
        Ok(Registration { id: registered.id, secret: registered.secret, method: registered.method }.client())
    }

    /// How a client that was given shows who it is.
    async fn client_proof(&self, key: Key, given: &GivenClient, issuer: &str, methods: &[String]) -> Answer<Authentication> {
        let Some(name) = given.secret() else { return Ok(Authentication::None) };
        let opened = self.open_secret(key.tenant, &secret_name(key.server, name)).await?;
        let secret = opened.and_then(|plain| String::from_utf8(plain).ok());
        let secret = secret.ok_or_else(|| untold("the client's secret cannot be opened: give it again"))?;
        if given.auth == ClientAuth::Secret {
            return Ok(Authentication::by_secret(secret, methods));
        }
        let signing = private_key(&secret).map_err(|problem| untold(&format!("the client's private key {problem}")))?;
        let now_s = self.env().now().0.div_euclid(1_000);
        let claims = json!({
            "iss": given.id, "sub": given.id, "aud": issuer, "jti": fresh_secret(self.env()), "iat": now_s, "exp": now_s + ASSERTION_S,
        });
        signing.sign("JWT", &claims).map(Authentication::Assertion).map_err(internal)
    }

    /// Whether more may be asked for than somebody said: only where nothing was said.
    pub(super) async fn may_ask_for_more(&self, key: Key) -> Result<bool, String> {
        let server =
            self.entity::<McpServer>(key.tenant, &key.server.to_string()).await.map_err(|rejection| rejection.message)?;
        Ok(server.is_some_and(|server| server.state.profile.transport.oauth().is_some_and(|oauth| oauth.scopes.is_empty())))
    }

    /// Tokens that Keiko gets without anybody's help, where it was said that it should.
    pub(super) async fn own_tokens(&self, key: Key, challenge: &Challenge) -> Answer<Option<GrantedTokens>> {
        let Some((tokens, kept, issuer, asked)) = self.own_exchange(key, challenge, None).await? else { return Ok(None) };
        let (scopes, expires_at) = (tokens.scopes.clone().unwrap_or_else(|| asked.clone()), self.end_of(&tokens));
        let (issuer, client_id) = issuer;
        let source = Source::Oauth { issuer, client_id, grant: Grant::ClientCredentials, asked, is_renewable: true };
        Ok(Some(GrantedTokens { kept, source, scopes, expires_at }))
    }

    /// The same as it comes: with the issuer and Keiko's id there, and what was asked for (`scopes`, or what is wanted).
    pub(super) async fn own_exchange(
        &self,
        key: Key,
        challenge: &Challenge,
        scopes: Option<Vec<String>>,
    ) -> Answer<Option<(Tokens, Kept, (String, String), Vec<String>)>> {
        let Some(server) = self.entity::<McpServer>(key.tenant, &key.server.to_string()).await? else { return Ok(None) };
        let transport = &server.state.profile.transport;
        let (Some(url), Some(oauth)) = (transport.url(), transport.oauth()) else { return Ok(None) };
        if oauth.grant != Grant::ClientCredentials {
            return Ok(None);
        }
        let allow_private = self.0.gateway.settings().allow_private;
        let authority = discover(url, Some(challenge), allow_private).await.map_err(|reason| untold(&reason))?;
        let client_id = self.known_client(key, &server, &authority, &Context::system("vault")).await?;
        let client = self.client_of(key, &authority.issuer, &authority.auth_methods).await?;
        let before = self.entity::<Credential>(key.tenant, &credential_id(key.server, None).to_string()).await?;
        let before = before.filter(|_| oauth.scopes.is_empty()).map(|before| before.state.scopes_to_ask()).unwrap_or_default();
        let asked = scopes.unwrap_or_else(|| scopes_of(&oauth.scopes, challenge, &authority, before));
        let scope = asked.join(" ");
        let mut form = vec![("grant_type", "client_credentials"), ("resource", authority.resource.as_str())];
        form.extend((!scope.is_empty()).then_some(("scope", scope.as_str())));
        let tokens =
            exchange(&authority.token_endpoint, &client, &form, allow_private).await.map_err(|e| untold(&e.to_string()))?;
        let kept = Kept::of(url, tokens.clone(), &authority);
        Ok(Some((tokens, kept, (authority.issuer, client_id), asked)))
    }

    /// Whether a secret can be what a client shows who it is with.
    pub(crate) fn check_client_secret(&self, given: &GivenClient, secret: &str) -> Result<(), String> {
        match given.auth {
            ClientAuth::None => Ok(()),
            ClientAuth::Secret if secret.is_empty() || secret.len() > 4_096 => Err("must have 1 to 4096 bytes".into()),
            ClientAuth::Secret => Ok(()),
            ClientAuth::PrivateKey => private_key(secret).map(drop),
        }
    }

    /// Whoever is asked to connect a server must be able to.
    pub(super) fn browser_caller(&self, actor: kernel::Actor, context: &Context) -> Caller {
        Caller {
            actor,
            reach: domain::policy::Reach::All,
            origin: context.origin.clone(),
            correlation: context.correlation.clone(),
            trace_parent: context.trace_parent.clone(),
            idempotency: None,
            if_match: None,
            at: None,
        }
    }
}

impl Kept {
    pub(super) fn of(url: &str, tokens: gateway::oauth::Tokens, authority: &Authority) -> Self {
        Kept {
            url: url.to_owned(),
            access: tokens.access,
            refresh: tokens.refresh,
            resource: authority.resource.clone(),
            token_endpoint: authority.token_endpoint.clone(),
            revocation_endpoint: authority.revocation_endpoint.clone(),
            auth_methods: authority.auth_methods.clone(),
        }
    }
}

/// A client that somebody gave belongs to the authorization server that they said, or to the first one.
pub(super) fn check_issuer(server: &Handled<McpServer>, issuer: &str) -> Answer<()> {
    let Some(given) = given(server) else { return Ok(()) };
    let first = server.state.client.as_ref().filter(|known| known.is_given).map(|known| &known.issuer);
    match given.issuer.as_ref().or(first) {
        Some(wanted) if wanted != issuer => Err(issuer_changed(wanted, issuer)),
        _ => Ok(()),
    }
}

fn given(server: &Handled<McpServer>) -> Option<&GivenClient> {
    server.state.profile.transport.oauth()?.client.as_ref()
}

/// What to ask for: what was said; else what the server wants for what was asked, else what it names for all. Beside that, what was
/// asked for before.
pub(super) fn scopes_of(said: &[String], challenge: &Challenge, authority: &Authority, before: Vec<String>) -> Vec<String> {
    let wanted = match (said, challenge.scopes.as_slice()) {
        ([], []) => authority.scopes.clone().unwrap_or_default(),
        ([], wanted) => wanted.to_vec(),
        (said, _) => said.to_vec(),
    };
    let mut scopes: Vec<String> = vec![];
    for scope in wanted.into_iter().chain(before) {
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes
}

/// A private key in PEM (PKCS#8): P-256 or Ed25519.
fn private_key(pem: &str) -> Result<SigningKey, String> {
    let is_inside = |line: &&str| !line.starts_with("-----");
    let text: String = pem.lines().map(str::trim).filter(is_inside).collect();
    let bytes = STANDARD.decode(text).map_err(|_| "is no PEM")?;
    SigningKey::new(&bytes).map_err(|_| "must be a P-256 or Ed25519 key, PKCS#8 in PEM (BEGIN PRIVATE KEY)".to_owned())
}

fn client_needed(issuer: &str) -> Rejection {
    let message = format!("The authorization server '{issuer}' lets nobody register by themselves.");
    let hint =
        "Register Keiko there by hand, and give its id and secret in transport.oauth.client with PUT /api/v1/mcp-servers/{id}.";
    Rejection::new(Kind::Refused, "CLIENT_NEEDED", message, hint).with("issuer", issuer)
}

/// A connection that could not be made.
pub(super) fn untold(reason: &str) -> Rejection {
    let message = format!("The server could not be connected: {reason}.");
    let hint = "Look whether its URL is right, and whether it and its authorization server can be reached.";
    Rejection::new(Kind::Upstream, "CONNECT_FAILED", message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(scopes: Option<&[&str]>) -> Authority {
        Authority {
            issuer: String::new(),
            resource: String::new(),
            authorization_endpoint: None,
            token_endpoint: String::new(),
            registration_endpoint: None,
            revocation_endpoint: None,
            scopes: scopes.map(|scopes| scopes.iter().map(|scope| (*scope).to_owned()).collect()),
            auth_methods: vec![],
            has_pkce: true,
            names_itself: false,
            takes_documents: false,
            has_offline_access: false,
        }
    }

    #[test]
    fn what_is_asked_for_is_no_more_than_is_wanted_and_no_less_than_before() {
        let all = authority(Some(&["a", "b"]));
        let wants = |scopes: &[&str]| Challenge {
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            ..Challenge::default()
        };
        assert_eq!(scopes_of(&[], &wants(&["a"]), &all, vec![]), ["a"]);
        assert_eq!(scopes_of(&[], &wants(&[]), &all, vec![]), ["a", "b"]);
        assert_eq!(scopes_of(&["x".into()], &wants(&["a"]), &all, vec![]), ["x"]);
        assert_eq!(scopes_of(&[], &wants(&["write"]), &all, vec!["read".into(), "write".into()]), ["write", "read"]);
        assert!(scopes_of(&[], &wants(&[]), &authority(None), vec![]).is_empty());
    }

    #[test]
    fn private_keys_are_read_from_pem() {
        let bytes = crate::jose::fresh_key(crate::jose::Algorithm::Es256).unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(bytes));
        assert!(private_key(&pem).is_ok());
        for bad in ["", "secret", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            assert!(private_key(bad).is_err(), "{bad}");
        }
    }
}
