//! The authorization endpoint: what a request asks, who signs in, what the person allows, and the code that follows.

use super::clients::KnownClient;
use super::token::code;
use super::{Granted, OauthError, invalid_scope};
use crate::Answer;
use crate::app::App;
use crate::auth::{Authenticated, parse_handle};
use crate::crypto::{fresh_secret, sha256_hex};
use crate::identities::closing;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use domain::identity::client::{AuthMethod, GrantType};
use domain::identity::consent::{Consent, ConsentCommand, Granted as ConsentGranted, consent_id};
use domain::identity::oauth::{DEFAULT_SCOPES, IDENTITY_SCOPES, is_pkce, is_registered, scopes, within};
use domain::identity::session::{Code, Opened, Session, SessionCommand};
use domain::identity::user::User;
use engine::{Context, Extras, Handled, Step};
use kernel::id::{SessionId, TenantId, UserId};
use kernel::{ActorKind, ActorRef};
use serde::Deserialize;

/// Why sessions end.
const LOGOUT: &str = "logout";
/// How long a code is good.
const CODE_TTL_MS: u64 = 60_000;
/// How long a browser stays signed in.
const BROWSER_TTL_MS: u64 = 12 * 3_600_000;
/// What `prompt` may ask for.
const PROMPTS: [&str; 4] = ["none", "login", "consent", "select_account"];
/// Characters of `state` and `nonce`.
const TEXT_CHARS_MAX: usize = 2_000;
/// The form of a browser's cookie: `kb_<tenant>_<session>.<secret>`.
const COOKIE: &str = "kb_";

/// The parameters of a request, as they came; each at most once but for `resource`.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `client_id`
    pub client_id: Option<String>,
    /// `redirect_uri`
    pub redirect_uri: Option<String>,
    /// `response_type`
    pub response_type: Option<String>,
    /// `response_mode`
    pub response_mode: Option<String>,
    /// `scope`
    pub scope: Option<String>,
    /// `state`
    pub state: Option<String>,
    /// `nonce`
    pub nonce: Option<String>,
    /// `code_challenge`
    pub code_challenge: Option<String>,
    /// `code_challenge_method`
    pub code_challenge_method: Option<String>,
    /// `resource`
    pub resources: Vec<String>,
    /// `prompt`
    pub prompt: Option<String>,
    /// `max_age`
    pub max_age: Option<String>,
    /// `request` or `request_uri` are there, which are not supported.
    pub has_request_object: bool,
    /// A parameter that is there twice.
    pub twice: Option<String>,
}

/// A request that was found good.
#[derive(Debug)]
pub struct Request {
    /// Who asks.
    pub client: KnownClient,
    /// Where the answer goes.
    pub redirect_uri: String,
    /// What the client wants back.
    pub state: Option<String>,
    /// What it asks for; none for parts of Keiko.
    pub scopes: Option<Vec<String>>,
    resource: Option<String>,
    nonce: Option<String>,
    challenge: String,
    prompts: Vec<String>,
    max_age_s: Option<u64>,
}

/// A request that was refused.
#[derive(Debug)]
pub enum Refused {
    /// Nothing is known that the answer could be sent to: the person reads it.
    Page(String),
    /// The client is told.
    Redirect {
        /// Where.
        uri: String,
        /// What it wants back.
        state: Option<String>,
        /// What was wrong.
        error: OauthError,
    },
}

/// A browser in which somebody is signed in.
#[derive(Clone)]
pub struct Browser {
    /// The person's tenant.
    pub tenant: TenantId,
    /// Its slug.
    pub slug: String,
    /// Who.
    pub user: UserId,
    /// What the person is called.
    pub name: String,
    /// The login.
    pub id: SessionId,
    login: std::sync::Arc<Session>,
}

/// What somebody types to sign in.
pub struct Credentials<'a> {
    /// Slug of the tenant; empty for the default one.
    pub tenant: &'a str,
    /// User name.
    pub username: &'a str,
    /// Password.
    pub password: &'a str,
}

/// What a right password gives at a browser.
pub enum SignedIn {
    /// The secret of its cookie.
    Cookie(String),
    /// What to go on with: the second factor is still to be shown.
    Ticket(String),
}

/// What an ID token says of the login that led to it.
#[derive(Deserialize)]
pub struct Hint {
    iss: String,
    /// Who signed in.
    pub sub: String,
    /// For which client.
    pub aud: String,
    exp: i64,
    sid: Option<SessionId>,
    tenant: Option<String>,
}

/// What comes next in a browser.
pub enum Next {
    /// The person signs in.
    SignIn,
    /// The person is asked.
    Ask {
        /// What for: what is left of what the client asks; none for a part of Keiko, which gets everything.
        scopes: Option<Vec<String>>,
        /// Whether any program on the person's machine could be the client.
        is_local_only: bool,
    },
    /// The answer goes to the client.
    Done,
}

impl App {
    /// Checks a request to the authorization endpoint.
    pub async fn asked(&self, asked: Asked) -> Result<Request, Refused> {
        let page = |text: &str| Refused::Page(text.to_owned());
        let twice = asked.twice.as_deref();
        if matches!(twice, Some("client_id" | "redirect_uri")) {
            return Err(page("The request says more than once which client it comes from, or where the answer goes."));
        }
        let name = asked.client_id.ok_or_else(|| page("The request does not say which client it comes from."))?;
        let client = self.client_by_name(&name).await.map_err(|error| Refused::Page(error.description))?;
        let client = client.ok_or_else(|| page("This client is not known here, or was removed."))?;
        let known = &client.profile.redirect_uris;
        let redirect_uri = match (asked.redirect_uri, &known[..]) {
            (Some(uri), _) if is_registered(known, &uri) => uri,
            (Some(_), _) => return Err(page("The address that the answer would be sent to is not registered for this client.")),
            (None, [only]) => only.clone(),
            (None, _) => return Err(page("The request does not say where the answer is to be sent.")),
        };
        // From here on the client can be told.
        let state = asked.state.filter(|state| state.len() <= TEXT_CHARS_MAX && twice != Some("state"));
        let told = |error: OauthError| Refused::Redirect { uri: redirect_uri.clone(), state: state.clone(), error };
        let wrong = |text: &str| told(super::invalid_request(text));
        if let Some(twice) = twice {
            return Err(wrong(&format!("The parameter '{twice}' is there more than once.")));
        }
        client.check_grant(GrantType::AuthorizationCode).map_err(told)?;
        if asked.has_request_object {
            return Err(told(OauthError::new("request_not_supported", "Request objects are not supported.")));
        }
        match asked.response_type.as_deref() {
            Some("code") => {}
            None => return Err(wrong("response_type is missing.")),
            Some(_) => return Err(told(OauthError::new("unsupported_response_type", "The only response_type is 'code'."))),
        }
        if asked.response_mode.is_some_and(|mode| mode != "query") {
            return Err(wrong("The only response_mode is 'query'."));
        }
        let challenge = asked.code_challenge.ok_or_else(|| wrong("code_challenge is missing: every client uses PKCE."))?;
        if asked.code_challenge_method.as_deref() != Some("S256") {
            return Err(wrong("code_challenge_method must be S256."));
        }
        // SHA-256 in base64url has 43 characters.
        if challenge.len() != 43 || !is_pkce(&challenge) {
            return Err(wrong("code_challenge is no SHA-256 in base64url."));
        }
        if asked.nonce.as_ref().is_some_and(|nonce| nonce.len() > TEXT_CHARS_MAX) {
            return Err(wrong("nonce is too long."));
        }
        let resource = self.resource(&asked.resources).map_err(told)?;
        let scopes = requested(&client, asked.scope.as_deref()).map_err(told)?;
        let prompts: Vec<String> =
            asked.prompt.unwrap_or_default().split(' ').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        if prompts.iter().any(|prompt| !PROMPTS.contains(&prompt.as_str())) {
            return Err(wrong("prompt must be of none, login, consent, select_account."));
        }
        if prompts.iter().any(|prompt| prompt == "none") && prompts.len() > 1 {
            return Err(wrong("prompt=none goes with no other."));
        }
        let max_age_s =
            asked.max_age.map(|age| age.parse().map_err(|_| wrong("max_age is no number of seconds."))).transpose()?;
        let nonce = asked.nonce;
        Ok(Request {
            client,
            redirect_uri: redirect_uri.clone(),
            state: state.clone(),
            scopes,
            resource,
            nonce,
            challenge,
            prompts,
            max_age_s,
        })
    }

    /// Signs somebody in at a browser with the password, and answers the secret of its cookie; or the ticket to go on with,
    /// when the account has a second factor.
    pub async fn sign_in(&self, credentials: Credentials<'_>, form_cookie: &str, context: Context) -> Answer<SignedIn> {
        let Credentials { tenant, username, password } = credentials;
        let tenant = Some(tenant.trim()).filter(|tenant| !tenant.is_empty());
        let (who, context) = self.authenticate_password(tenant, username, password, context).await?;
        match self.factors(&who, None, &context).await {
            Ok(amr) => self.open_browser(who, amr, &context).await.map(SignedIn::Cookie),
            Err(rejection) if rejection.code == "MFA_REQUIRED" => Ok(SignedIn::Ticket(self.ticket(&who, form_cookie))),
            Err(rejection) => Err(rejection),
        }
    }

    /// Goes on with a ticket and the code of the second factor. Answers the secret of the browser's cookie.
    pub async fn sign_in_with_code(&self, ticket: &str, form_cookie: &str, code: &str, mut context: Context) -> Answer<String> {
        let who = self.open_ticket(ticket, form_cookie).ok_or_else(|| {
            let hint = "Sign in again.";
            kernel::Rejection::new(kernel::Kind::Unauthenticated, "MFA_CODE_INVALID", "This took too long.", hint)
        })?;
        context.actor = ActorRef { kind: ActorKind::User, id: who.user.to_string() };
        context.user = Some(who.user);
        let amr = self.factors(&who, Some(code), &context).await?;
        self.open_browser(who, amr, &context).await
    }

    async fn open_browser(&self, who: Authenticated, amr: Vec<String>, context: &Context) -> Answer<String> {
        let id: SessionId = self.env().id();
        let cookie = format!("{COOKIE}{}_{id}.{}", who.slug, fresh_secret(self.env()));
        let opened = Opened {
            refresh_sha256: Some(sha256_hex(&cookie)),
            client: Some("keiko-browser".into()),
            amr,
            expires_at: self.env().now().plus_ms(BROWSER_TTL_MS.min(self.0.settings.session_ttl_ms)),
            ..self.login_of(who.user)
        };
        self.open_login(&who, id, opened, context).await?;
        Ok(cookie)
    }

    /// Who is signed in at a browser that shows this cookie.
    pub async fn browser(&self, cookie: &str) -> Answer<Option<Browser>> {
        let Some((slug, id)) = parse_handle(COOKIE, cookie) else { return Ok(None) };
        let Some(runtime) = self.tenant(slug) else { return Ok(None) };
        let tenant = runtime.id;
        let Some(login) = self.entity::<Session>(tenant, &id.to_string()).await? else { return Ok(None) };
        let known = login.state.refresh_sha256.as_deref().unwrap_or_default();
        let is_same = verify_slices_are_equal(known.as_bytes(), sha256_hex(cookie).as_bytes()).is_ok();
        if !is_same || !login.state.is_open(self.env().now()) || self.check_session_holds(tenant, &login).await.is_err() {
            return Ok(None);
        }
        let Some(user) = self.entity::<User>(tenant, &login.state.user.to_string()).await? else { return Ok(None) };
        let name = user.state.name().to_owned();
        Ok(Some(Browser { tenant, slug: slug.to_owned(), user: login.state.user, name, id, login: login.state }))
    }

    /// What comes next for a request in a browser.
    pub async fn next(&self, request: &Request, browser: Option<&Browser>) -> Result<Next, Refused> {
        let has = |word: &str| request.prompts.iter().any(|prompt| prompt == word);
        let Some(browser) = browser else {
            return if has("none") { Err(request.told("login_required", "Nobody is signed in.")) } else { Ok(Next::SignIn) };
        };
        if !request.client.serves(browser.tenant) {
            return Err(Refused::Page("This client belongs to another tenant than you.".into()));
        }
        let age_s = self.env().now().since_ms(browser.login.authenticated_at) / 1_000;
        let is_old = request.max_age_s.is_some_and(|max| age_s > max || max == 0);
        if is_old && has("none") {
            return Err(request.told("login_required", "The login is too old."));
        }
        if is_old || has("login") || has("select_account") {
            return Ok(Next::SignIn);
        }
        let scopes = self.left_of(request, browser).await?;
        // A program with a secret can be told from others.
        let profile = &request.client.profile;
        let is_local_only = profile.auth_method == AuthMethod::None
            && !request.redirect_uri.starts_with("https://")
            && !request.redirect_uri.starts_with(&format!("{}/", self.issuer()));
        if scopes.is_none() && !is_local_only {
            return Ok(Next::Done);
        }
        let consent = consent_id(browser.tenant, browser.user, &request.client.name);
        let known = self.entity::<Consent>(browser.tenant, &consent.to_string()).await.map_err(|e| request.failed(e))?;
        // A program on the person's machine cannot be told from another one there, so consent is never taken for granted.
        let is_allowed = !is_local_only && known.is_some_and(|known| known.state.covers(scopes.as_deref().unwrap_or_default()));
        if is_allowed && !has("consent") {
            return Ok(Next::Done);
        }
        match has("none") {
            true => Err(request.told("consent_required", "The person has not allowed this yet.")),
            false => Ok(Next::Ask { scopes, is_local_only }),
        }
    }

    /// What the person can give of what is asked; none for parts of Keiko, which get everything.
    async fn left_of(&self, request: &Request, browser: &Browser) -> Result<Option<Vec<String>>, Refused> {
        let Some(scopes) = request.scopes.as_ref().filter(|_| !request.client.is_own) else { return Ok(None) };
        let who = self.identity(browser.tenant, &browser.user.to_string()).await.map_err(|e| request.failed(e))?;
        Ok(Some(within(&who.map(|who| who.permissions).unwrap_or_default(), scopes)))
    }

    /// The person says yes: remembered, and answered with a code. Answers where the browser goes.
    pub async fn allow(&self, request: &Request, browser: &Browser, context: Context) -> Result<String, Refused> {
        let context = browser.context(context);
        let scopes = match self.left_of(request, browser).await? {
            // A part of Keiko gets an ID token in any case, and is not limited by asking for it.
            None => request.scopes.clone().filter(|scopes| scopes.iter().any(|s| !IDENTITY_SCOPES.contains(&s.as_str()))),
            Some(scopes) => {
                self.remember(request, browser, &scopes, &context).await.map_err(|error| request.failed(error))?;
                Some(scopes)
            }
        };
        let id: SessionId = self.env().id();
        let code_text = code(&browser.slug, id, &fresh_secret(self.env()));
        let now = self.env().now();
        let opened = Opened {
            client: Some(request.client.name.clone()),
            scopes,
            resource: request.resource.clone(),
            amr: browser.login.amr.clone(),
            authenticated_at: browser.login.authenticated_at,
            parent: Some(browser.id),
            code: Some(Code {
                sha256: sha256_hex(&code_text),
                redirect_uri: request.redirect_uri.clone(),
                challenge: request.challenge.clone(),
                nonce: request.nonce.clone(),
                expires_at: now.plus_ms(CODE_TTL_MS),
            }),
            ..self.login_of(browser.user)
        };
        self.open_session(browser.tenant, id, opened, &context).await.map_err(|error| request.failed(error))?;
        Ok(self.answer_uri(&request.redirect_uri, &[("code", &code_text)], request.state.as_deref()))
    }

    async fn remember(&self, request: &Request, browser: &Browser, scopes: &[String], context: &Context) -> Answer<()> {
        let name = &request.client.name;
        let granted = ConsentGranted { user: browser.user, client: name.clone(), scopes: scopes.to_vec() };
        let step = Step::on::<Consent>(consent_id(browser.tenant, browser.user, name), ConsentCommand::Grant(granted));
        let done = self.0.engine.handle::<Consent>(browser.tenant, step, context, Extras::default()).await;
        done.map(|_| ()).map_err(crate::errors::of_handle)
    }

    /// Where the browser goes with an answer: everything says who answers (RFC 9207).
    fn answer_uri(&self, redirect_uri: &str, fields: &[(&str, &str)], state: Option<&str>) -> String {
        let state = state.map(|state| ("state", state));
        with_query(redirect_uri, fields.iter().copied().chain(state).chain([("iss", self.issuer())]))
    }

    /// Where the browser goes with a refusal.
    pub fn refusal_uri(&self, uri: &str, state: Option<&str>, error: &OauthError) -> String {
        self.answer_uri(uri, &[("error", error.code), ("error_description", &error.description)], state)
    }

    /// Ends the login at a browser, with everything that clients got from it and that does not outlive it.
    pub async fn sign_out(&self, browser: &Browser, context: Context) -> Answer<()> {
        self.end_login(browser.tenant, browser.id, browser.context(context)).await
    }

    /// The same for the login that led to an ID token, at whatever browser it is. An old token may have got into many hands:
    /// it ends nothing by itself.
    pub async fn sign_out_hinted(&self, hint: &Hint, mut context: Context) -> Answer<()> {
        let is_over = hint.exp <= self.env().now().0.div_euclid(1_000);
        let (Some(runtime), Some(id), false) = (hint.tenant.as_deref().and_then(|slug| self.tenant(slug)), hint.sid, is_over)
        else {
            return Ok(());
        };
        let session = self.entity_even_ended::<Session>(runtime.id, &id.to_string()).await?;
        let Some(session) = session.filter(|session| session.state.user.to_string() == hint.sub) else { return Ok(()) };
        context.actor = ActorRef { kind: ActorKind::User, id: hint.sub.clone() };
        context.user = Some(session.state.user);
        self.end_login(runtime.id, session.state.parent.unwrap_or(id), context).await
    }

    /// Ends a login and what came of it, and once more what came of it meanwhile: of one that has ended nothing comes.
    async fn end_login(&self, tenant: TenantId, login: SessionId, context: Context) -> Answer<()> {
        for _ in 0..2 {
            self.end_what_is_open(tenant, login, &context).await?;
        }
        Ok(())
    }

    async fn end_what_is_open(&self, tenant: TenantId, login: SessionId, context: &Context) -> Answer<()> {
        let fields = [kernel::IndexField::new("parent", login.to_string())];
        let ends = |session: &Handled<Session>| !outlives_login(&session.state);
        let mut steps = closing(&self.0.engine, tenant, &fields, LOGOUT, ends).await?;
        let itself = self.entity::<Session>(tenant, &login.to_string()).await?.filter(ends);
        steps.extend(itself.map(|login| Step::on::<Session>(login.stream, SessionCommand::Close { reason: LOGOUT.into() })));
        if steps.is_empty() {
            return Ok(());
        }
        let done = self.0.engine.transact(tenant, &steps, context, Extras::default()).await;
        done.map(|_| ()).map_err(crate::errors::of_handle)
    }

    /// Who signed in and for which client, by an ID token of any age.
    pub async fn id_token_hint(&self, token: &str) -> Answer<Option<Hint>> {
        let hint: Option<Hint> = self.verified(token, &[Some("jwt")]).await?;
        Ok(hint.filter(|hint| hint.iss == self.issuer()))
    }

    /// What a form carries so that no page of another site can send it: it follows from a cookie that only we set.
    pub fn form_secret(&self, cookie: &str) -> String {
        self.0.crypto.sealer.derived("form", cookie)
    }
}

/// An address with more in its query.
pub(crate) fn with_query<'a>(uri: &str, fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let query: Vec<String> = fields.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}{}", query.join("&"))
}

impl Browser {
    /// The login itself.
    pub(crate) fn login(&self) -> &Session {
        &self.login
    }

    /// The context of what the person does here.
    pub(crate) fn context(&self, mut context: Context) -> Context {
        context.actor = ActorRef { kind: ActorKind::User, id: self.user.to_string() };
        context.user = Some(self.user);
        context
    }
}

impl Request {
    fn told(&self, code: &'static str, text: &str) -> Refused {
        Refused::Redirect { uri: self.redirect_uri.clone(), state: self.state.clone(), error: OauthError::new(code, text) }
    }

    fn failed(&self, rejection: kernel::Rejection) -> Refused {
        Refused::Redirect { uri: self.redirect_uri.clone(), state: self.state.clone(), error: rejection.into() }
    }

    /// The person says no.
    pub fn denied(&self) -> Refused {
        self.told("access_denied", "The person said no.")
    }
}

/// What a client asks for: by itself, or what it is registered for, or the little that everybody gets. Parts of Keiko that
/// name nothing are not limited.
pub(crate) fn requested(client: &KnownClient, scope: Option<&str>) -> Granted<Option<Vec<String>>> {
    let asked = scopes(scope.unwrap_or_default()).ok_or_else(invalid_scope)?;
    let registered = &client.profile.scopes;
    if client.is_own {
        return Ok((!asked.is_empty()).then_some(asked));
    }
    if asked.is_empty() {
        let usual = || DEFAULT_SCOPES.iter().map(|scope| (*scope).to_owned()).collect();
        return Ok(Some(if registered.is_empty() { usual() } else { registered.clone() }));
    }
    let is_registered =
        |scope: &String| registered.is_empty() || registered.contains(scope) || IDENTITY_SCOPES.contains(&scope.as_str());
    match asked.iter().all(is_registered) {
        true => Ok(Some(asked)),
        false => Err(OauthError::new("invalid_scope", "This client is not registered for every scope that it asks for.")),
    }
}

/// Whether what a client got goes on when the person signs out at the browser.
fn outlives_login(session: &Session) -> bool {
    session.scopes.as_ref().is_some_and(|scopes| scopes.iter().any(|scope| scope == "offline_access"))
}

/// Percent-encoded for a query string.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
