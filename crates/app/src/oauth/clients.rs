//! Clients: Keiko's own, those that a tenant made, those that registered themselves, and those that are a document at
//! their own address. And how they prove who they are.

use super::{Granted, OauthError};
use crate::app::App;
use crate::crypto::{fresh_secret, sha256_hex};
use crate::errors::Problems;
use crate::jose::{PublicKey, unverified, verify};
use crate::{Answer, Caller, ListOrder, Page};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use domain::agent::Agent;
use domain::identity::client::{AuthMethod, Client, ClientCommand, GrantType, Profile, Registered, Source};
use domain::identity::oauth::{is_redirect_uri, is_scope};
use domain::identity::user::{User, UserKind};
use engine::{Context, Extras, Handled, Step};
use kernel::id::{ClientId, TenantId};
use kernel::{ActorKind, ActorRef, Json, Kind, Rejection, Timestamp, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The command line, on the person's own machine.
const CLI: &str = "keiko-cli";
/// The console, in the browser.
const CONSOLE: &str = "keiko-console";
/// Addresses of one client.
const URIS_MAX: usize = 20;
/// Bytes of a client's key set.
const JWKS_BYTES_MAX: usize = 16 * 1024;
/// The type of a client's assertion.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longest life of an assertion.
const ASSERTION_S_MAX: i64 = 3_600;
/// How far clocks may differ.
const SKEW_S: i64 = 30;
/// Assertions of one client that are remembered so that none is good twice.
const ASSERTIONS_MAX: usize = 10_000;

/// The name of a client that is recorded here: `kc_<tenant>_<the id's last part>`.
pub(crate) struct ClientName<'a> {
    pub slug: &'a str,
    pub id: ClientId,
}

impl<'a> ClientName<'a> {
    pub fn parse(name: &'a str) -> Option<Self> {
        let (slug, rest) = name.strip_prefix("kc_")?.split_once('_')?;
        let id = format!("client_{rest}").parse().ok()?;
        text::is_slug(slug, kernel::limits::SLUG_CHARS_MAX).then_some(ClientName { slug, id })
    }

    /// The name of a client of a tenant.
    pub fn of(slug: &str, stream: &str) -> String {
        format!("kc_{slug}_{}", stream.trim_start_matches("client_"))
    }
}

/// Whether a name in a token is that of a part of Keiko.
pub(crate) fn is_part_of_keiko(name: &str) -> bool {
    matches!(name, CLI | CONSOLE | crate::auth::API)
}

/// A client, wherever it comes from.
#[derive(Clone, Debug)]
pub struct KnownClient {
    /// Its name in requests and tokens.
    pub name: String,
    /// The tenant whose people it serves; none for those that serve everybody.
    pub tenant: Option<TenantId>,
    /// What is known of it.
    pub profile: Profile,
    /// SHA-256 of its secret.
    pub(crate) secret_sha256: Option<String>,
    /// Whether it is a part of Keiko, which needs nobody's consent.
    pub is_own: bool,
    /// The host that vouches for it, when it is a document at its own address.
    pub host: Option<String>,
}

impl KnownClient {
    /// Whether it may get tokens in this way.
    pub(crate) fn check_grant(&self, grant: GrantType) -> Granted<()> {
        match self.profile.grant_types.contains(&grant) {
            true => Ok(()),
            false => Err(OauthError::new("unauthorized_client", "This client is not registered for this grant type.")),
        }
    }

    pub(crate) fn may_refresh(&self) -> bool {
        self.profile.grant_types.contains(&GrantType::RefreshToken)
    }

    /// Whether people of a tenant may use it.
    pub(crate) fn serves(&self, tenant: TenantId) -> bool {
        self.tenant.is_none_or(|own| own == tenant)
    }
}

/// How a client says who it is.
#[derive(Default)]
pub struct ClientAuth {
    /// Name and secret of the `Authorization` header.
    pub basic: Option<(String, String)>,
    /// `client_id` of the form.
    pub client_id: Option<String>,
    /// `client_secret` of the form.
    pub client_secret: Option<String>,
    /// `client_assertion_type` and `client_assertion` of the form.
    pub assertion: Option<(String, String)>,
}

/// A client to be made by somebody of a tenant.
pub struct NewClient {
    /// What is known of it; `subject` is set from below.
    pub profile: Profile,
    /// Who it is by itself, by id or name.
    pub subject: Option<String>,
}

/// Assertions that were shown, with when they end.
#[derive(Default)]
pub(crate) struct Assertions(Mutex<Shown>);

#[derive(Default)]
struct Shown {
    clients: BTreeMap<String, BTreeMap<String, Timestamp>>,
    /// Shown here and not told yet.
    untold: Vec<ShownAssertion>,
}

/// An assertion that was shown at a replica.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ShownAssertion {
    client: String,
    /// SHA-256 of what it is called.
    name: String,
    end: Timestamp,
}

impl Shown {
    /// Whether this one is shown for the first time.
    fn is_new(&mut self, one: ShownAssertion, now: Timestamp) -> bool {
        self.clients.retain(|_, names| names.values().any(|end| now < *end));
        let names = self.clients.entry(one.client).or_default();
        names.retain(|_, end| now < *end);
        // Full of those that still count: nothing of this client can be told from a repetition any more.
        names.len() < ASSERTIONS_MAX && names.insert(one.name, one.end).is_none()
    }
}

impl Assertions {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_new(&self, one: ShownAssertion, now: Timestamp, tells: bool) -> bool {
        let mut shown = self.shown();
        let is_new = shown.is_new(one.clone(), now);
        if is_new && tells {
            shown.untold.push(one);
        }
        is_new
    }

    /// What was shown here and is not told yet.
    pub fn untold(&self) -> Vec<ShownAssertion> {
        std::mem::take(&mut self.shown().untold)
    }

    /// What was shown at another replica.
    pub fn hear(&self, told: Vec<ShownAssertion>, now: Timestamp) {
        let mut shown = self.shown();
        for one in told {
            shown.is_new(one, now);
        }
    }
}

#[derive(Deserialize)]
struct AssertionClaims {
    iss: String,
    sub: String,
    aud: Value,
    exp: i64,
    nbf: Option<i64>,
    iat: Option<i64>,
    jti: Option<String>,
}

fn invalid_client(description: &str) -> OauthError {
    OauthError::new("invalid_client", description)
}

fn unknown_client() -> OauthError {
    invalid_client("There is no such client, or it could not prove who it is.")
}

fn not_found(searched: &str) -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "CLIENT_NOT_FOUND",
        format!("There is no client '{searched}' in this tenant."),
        "List clients with GET /api/v1/clients.",
    )
    .with("searched_id", searched)
}

impl App {
    /// A client by its name; `None` when there is none.
    pub async fn client_by_name(&self, name: &str) -> Granted<Option<KnownClient>> {
        if let Some(own) = self.own_client(name) {
            return Ok(Some(own));
        }
        if name.starts_with("https://") || name.starts_with("http://") {
            return self.client_document(name).await.map(Some);
        }
        let Some(parsed) = ClientName::parse(name) else { return Ok(None) };
        let Some(runtime) = self.tenant(parsed.slug) else { return Ok(None) };
        let found = self.entity::<Client>(runtime.id, &parsed.id.to_string()).await?;
        Ok(found.map(|client| KnownClient {
            name: name.to_owned(),
            tenant: (client.state.source == Source::Admin).then_some(runtime.id),
            profile: client.state.profile.clone(),
            secret_sha256: client.state.secret_sha256.clone(),
            is_own: false,
            host: None,
        }))
    }

    /// The parts of Keiko that people sign in with.
    fn own_client(&self, name: &str) -> Option<KnownClient> {
        let (redirect_uris, logout, title) = match name {
            CLI => (vec!["http://127.0.0.1/callback".to_owned()], vec![], "Keiko command line"),
            CONSOLE => {
                let home = format!("{}/", self.issuer());
                (vec![home.clone()], vec![home], "Keiko console")
            }
            _ => return None,
        };
        let mut grant_types = vec![GrantType::AuthorizationCode, GrantType::RefreshToken];
        grant_types.extend((name == CLI).then_some(GrantType::DeviceCode));
        let profile = Profile {
            name: title.into(),
            redirect_uris,
            post_logout_redirect_uris: logout,
            grant_types,
            auth_method: AuthMethod::None,
            scopes: vec![],
            subject: None,
            jwks: None,
            client_uri: None,
        };
        Some(KnownClient { name: name.into(), tenant: None, profile, secret_sha256: None, is_own: true, host: None })
    }

    /// The client that a request comes from, proved by what it shows.
    pub async fn authenticate_client(&self, auth: ClientAuth) -> Granted<KnownClient> {
        let shown = [auth.basic.is_some(), auth.client_secret.is_some(), auth.assertion.is_some()];
        if shown.iter().filter(|shown| **shown).count() > 1 {
            return Err(super::invalid_request("A client proves itself in one way at a time."));
        }
        let asserted = auth.assertion.as_ref().and_then(|(_, token)| unverified::<AssertionClaims>(token)).map(|c| c.sub);
        let name = auth.basic.as_ref().map(|(name, _)| name.clone()).or(asserted).or(auth.client_id.clone());
        let name = name.ok_or_else(|| invalid_client("The client does not say who it is."))?;
        if auth.client_id.as_ref().is_some_and(|named| *named != name) {
            return Err(super::invalid_request("client_id names another client than the one that is proved."));
        }
        let client = self.client_by_name(&name).await?.ok_or_else(unknown_client)?;
        if let Some(tenant) = client.tenant
            && self.is_suspended(tenant).await?
        {
            return Err(unknown_client());
        }
        match (client.profile.auth_method, auth.basic, auth.client_secret, auth.assertion) {
            (AuthMethod::None, None, None, None) => {}
            // Both ways to send a secret are as good: some libraries know only one of them.
            (method, Some((_, secret)), ..) | (method, _, Some(secret), _) if method.is_secret() => {
                let known = client.secret_sha256.as_deref().unwrap_or_default();
                let presented = sha256_hex(&secret);
                verify_slices_are_equal(known.as_bytes(), presented.as_bytes()).map_err(|_| unknown_client())?;
            }
            (AuthMethod::PrivateKeyJwt, None, None, Some((kind, token))) if kind == JWT_BEARER => {
                self.check_assertion(&client, &token)?;
            }
            _ => return Err(unknown_client()),
        }
        Ok(client)
    }

    fn check_assertion(&self, client: &KnownClient, token: &str) -> Granted<()> {
        let refused = || invalid_client("The client's assertion is not good.");
        let keys = client.profile.jwks.as_ref().map(|set| PublicKey::of_set(&set.value())).unwrap_or_default();
        let types = [None, Some("jwt"), Some("client-authentication+jwt")];
        let claims: AssertionClaims = verify(token, &types, &keys).ok_or_else(refused)?;
        let audiences: Vec<&str> = match &claims.aud {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let token_endpoint = format!("{}/oauth/token", self.issuer());
        let is_for_us = audiences.iter().any(|aud| *aud == self.issuer() || *aud == token_endpoint);
        let now = self.env().now();
        let now_s = now.0.div_euclid(1_000);
        let is_in_time = claims.exp > now_s - SKEW_S
            && claims.exp <= now_s + ASSERTION_S_MAX + SKEW_S
            && claims.nbf.into_iter().chain(claims.iat).all(|begin| begin <= now_s + SKEW_S);
        if claims.iss != client.name || claims.sub != client.name || !is_for_us || !is_in_time {
            return Err(refused());
        }
        // Without a name of its own, the assertion as a whole is the name.
        let name = sha256_hex(claims.jti.as_deref().unwrap_or(token));
        let one = ShownAssertion { client: client.name.clone(), name, end: Timestamp((claims.exp + SKEW_S) * 1_000) };
        match self.0.assertions.is_new(one, now, self.tells()) {
            true => Ok(()),
            false => Err(refused()),
        }
    }

    /// Makes a client; the second value is its secret, shown only here.
    pub async fn create_client(&self, caller: &Caller, new: NewClient) -> Answer<(Handled<Client>, Option<String>)> {
        let subject = match &new.subject {
            Some(subject) => Some(self.client_subject(caller, subject).await?),
            None => None,
        };
        let profile = Profile { subject, ..new.profile };
        check_profile(&profile)?;
        let caller = Caller { idempotency: None, if_match: None, ..caller.clone() };
        let (step, secret) = self.new_client(profile, Source::Admin);
        Ok((self.execute::<Client>(&caller, step, Extras::default()).await?, secret))
    }

    fn new_client(&self, profile: Profile, source: Source) -> (Step, Option<String>) {
        let id: ClientId = self.env().id();
        let secret = profile.auth_method.is_secret().then(|| format!("ks_{}", fresh_secret(self.env())));
        let registered = Registered { profile, secret_sha256: secret.as_deref().map(sha256_hex), source };
        (Step::new::<Client>(id, ClientCommand::Register(Box::new(registered))), secret)
    }

    /// A client for an identity lets whoever holds it act as that: only for what holds no more than the caller.
    async fn client_subject(&self, caller: &Caller, subject: &str) -> Answer<ActorRef> {
        if subject.starts_with("agent_") {
            // The same power as making a key for the agent.
            self.authorise(&caller.actor, "agents.keys")?;
            let agent = self.read::<Agent>(caller, subject).await?;
            let agent = agent.ok_or_else(|| {
                Rejection::new(
                    Kind::NotFound,
                    "AGENT_NOT_FOUND",
                    format!("There is no agent '{subject}' in this tenant."),
                    "List agents with GET /api/v1/agents.",
                )
            })?;
            return Ok(ActorRef { kind: ActorKind::Agent, id: agent.stream });
        }
        let user = self.user(caller, subject).await?;
        self.check_no_mightier(caller, &user).await?;
        match user.state.kind {
            UserKind::Service => Ok(ActorRef { kind: ActorKind::Service, id: user.stream }),
            UserKind::User => Err(Rejection::new(
                Kind::Refused,
                "CLIENT_SUBJECT_REFUSED",
                "A client cannot be a person; people sign in themselves.",
                "Name a service (POST /api/v1/users {\"kind\": \"service\"}) or an agent.",
            )),
        }
    }

    /// A client that registers itself (RFC 7591). It belongs to the default tenant and serves people of every tenant.
    pub async fn register_client(&self, profile: Profile, context: &Context) -> Granted<(Handled<Client>, Option<String>)> {
        check_profile(&profile).map_err(|refused| {
            let text = refused.details.get("errors").map_or(refused.message.clone(), Value::to_string);
            let code = if text.contains("redirect_uris") { "invalid_redirect_uri" } else { "invalid_client_metadata" };
            OauthError::new(code, text)
        })?;
        let (step, secret) = self.new_client(profile, Source::Dynamic);
        let made = self.0.engine.handle::<Client>(self.0.root, step, context, Extras::default()).await;
        Ok((made.map_err(crate::errors::of_handle)?, secret))
    }

    /// Whether clients may register themselves.
    pub fn allows_registration(&self) -> bool {
        self.0.settings.client_registration
    }

    /// The name of a recorded client in requests and tokens.
    pub fn client_name(&self, slug: &str, client: &Handled<Client>) -> String {
        ClientName::of(slug, &client.stream)
    }

    /// The name of a client that registered itself.
    pub fn registered_name(&self, client: &Handled<Client>) -> String {
        ClientName::of(crate::app::DEFAULT_TENANT, &client.stream)
    }

    /// One client, by id or by its name in requests.
    pub async fn client(&self, caller: &Caller, id: &str) -> Answer<Handled<Client>> {
        let named = ClientName::parse(id).filter(|name| name.slug == caller.actor.tenant_slug).map(|name| name.id);
        let found = match named.or_else(|| id.parse().ok()) {
            Some(id) => self.read::<Client>(caller, &id.to_string()).await?,
            None => None,
        };
        found.ok_or_else(|| not_found(id))
    }

    /// All clients.
    pub async fn clients(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Client>> {
        self.list::<Client>(caller, order, vec![]).await
    }

    /// Replaces what is known of a client, but not who it is.
    pub async fn update_client(&self, caller: &Caller, id: &str, profile: Profile) -> Answer<Handled<Client>> {
        let client = self.client(caller, id).await?;
        let known = &client.state.profile;
        if client.state.source == Source::Dynamic {
            return Err(Rejection::new(
                Kind::Refused,
                "CLIENT_FIXED",
                "A client that registered itself serves people of every tenant and cannot be changed.",
                "Delete it; it can register itself again.",
            ));
        }
        if let Some(subject) = &known.subject {
            // Whoever changes its keys acts as the subject.
            self.client_subject(caller, &subject.id).await?;
        }
        if profile.auth_method != known.auth_method {
            return Err(Rejection::new(
                Kind::Refused,
                "AUTH_METHOD_FIXED",
                "How a client proves who it is cannot change.",
                "Make another client and delete this one.",
            ));
        }
        let profile = Profile { subject: known.subject.clone(), ..profile };
        check_profile(&profile)?;
        let command = ClientCommand::Update(Box::new(profile));
        self.execute::<Client>(caller, Step::on::<Client>(client.stream, command), Extras::default()).await
    }

    /// Gives a client another secret; the old one stops working at once.
    pub async fn change_client_secret(&self, caller: &Caller, id: &str) -> Answer<(Handled<Client>, String)> {
        let client = self.client(caller, id).await?;
        if !client.state.profile.auth_method.is_secret() {
            let hint = "Only clients with client_secret_basic or client_secret_post have one.";
            return Err(Rejection::new(Kind::Refused, "CLIENT_HAS_NO_SECRET", "This client has no secret.", hint));
        }
        if let Some(subject) = &client.state.profile.subject {
            // Whoever has the secret acts as the subject.
            self.client_subject(caller, &subject.id).await?;
        }
        let secret = format!("ks_{}", fresh_secret(self.env()));
        let caller = Caller { idempotency: None, ..caller.clone() };
        let step = Step::on::<Client>(client.stream, ClientCommand::ChangeSecret { sha256: sha256_hex(&secret) });
        Ok((self.execute::<Client>(&caller, step, Extras::default()).await?, secret))
    }

    /// Removes a client; its tokens stop working at once.
    pub async fn delete_client(&self, caller: &Caller, id: &str) -> Answer<()> {
        let client = self.client(caller, id).await?;
        let step = Step::on::<Client>(client.stream, ClientCommand::Delete);
        self.execute::<Client>(caller, step, Extras::default()).await.map(|_| ())
    }

    /// The subject of a client as it is shown: by name.
    pub async fn client_subject_name(&self, tenant: TenantId, subject: &ActorRef) -> Answer<Option<String>> {
        match subject.kind {
            ActorKind::Agent => {
                Ok(self.entity::<Agent>(tenant, &subject.id).await?.map(|agent| agent.state.profile.name.clone()))
            }
            _ => Ok(self.entity::<User>(tenant, &subject.id).await?.map(|user| user.state.name().to_owned())),
        }
    }
}

/// What is wrong with what is said of a client.
fn check_profile(profile: &Profile) -> Answer<()> {
    let mut problems = Problems::default();
    problems.name("/name", &profile.name);
    for (field, uris) in
        [("redirect_uris", &profile.redirect_uris), ("post_logout_redirect_uris", &profile.post_logout_redirect_uris)]
    {
        if uris.len() > URIS_MAX {
            problems.add(format!("/{field}"), format!("must have at most {URIS_MAX} entries"));
        }
        for (i, _) in uris.iter().enumerate().filter(|(_, uri)| !is_redirect_uri(uri)) {
            problems.add(
                format!("/{field}/{i}"),
                "must be an https URL, an http URL of 127.0.0.1, [::1] or localhost, or a scheme of the app's own; without fragment, user and wildcard",
            );
        }
    }
    for (i, scope) in profile.scopes.iter().enumerate().filter(|(_, scope)| !is_scope(scope)) {
        problems
            .add(format!("/scopes/{i}"), format!("'{scope}' is no scope such as tasks.read or openid; there are no wildcards"));
    }
    if profile.client_uri.as_ref().is_some_and(|uri| !uri.starts_with("https://") || uri.len() > 2_000) {
        problems.add("/client_uri", "must be an https URL");
    }
    check_keys(profile.jwks.as_ref(), profile.auth_method, &mut problems);
    problems.check()?;
    let mut problems = Problems::default();
    let has = |grant| profile.grant_types.contains(&grant);
    if has(GrantType::AuthorizationCode) && profile.redirect_uris.is_empty() {
        problems.add("/redirect_uris", "is needed for the grant type authorization_code");
    }
    if has(GrantType::ClientCredentials) && profile.auth_method == AuthMethod::None {
        problems.add("/grant_types", "client_credentials needs a client that can prove who it is");
    }
    if has(GrantType::ClientCredentials) && profile.subject.is_none() {
        problems.add("/subject", "is needed for the grant type client_credentials: a service or an agent");
    }
    problems.refuse()
}

fn check_keys(jwks: Option<&Json>, method: AuthMethod, problems: &mut Problems) {
    let count = jwks.map(|set| PublicKey::of_set(&set.value()).len());
    match (method, count) {
        (AuthMethod::PrivateKeyJwt, None | Some(0)) => {
            problems.add("/jwks", "needs a key: P-256, Ed25519, or RSA of 2048 to 4096 bits");
        }
        (_, Some(_)) if jwks.is_some_and(|set| set.text().len() > JWKS_BYTES_MAX) => {
            problems.add("/jwks", format!("must have at most {JWKS_BYTES_MAX} bytes"));
        }
        _ => {}
    }
    let has_private = |key: &Value| ["d", "k", "p", "q"].iter().any(|part| key.get(part).is_some());
    let keys = jwks.map(Json::value);
    if keys.as_ref().and_then(|set| set["keys"].as_array()).is_some_and(|keys| keys.iter().any(has_private)) {
        problems.add("/jwks", "holds a private key; send public keys only, and throw this one away");
    }
}
