//! The token endpoint: what each grant type gives.

use super::clients::KnownClient;
use super::{Granted, OauthError, invalid_grant, invalid_request, invalid_scope};
use crate::app::App;
use crate::auth::{NewToken, REFRESH, acr, parse_handle, refresh_token};
use crate::crypto::{fresh_secret, sha256_hex};
use crate::jose::b64;
use crate::watch::Seen;
use domain::identity::client::GrantType;
use domain::identity::oauth::{is_pkce, scopes, within};
use domain::identity::session::{Session, SessionCommand};
use engine::{Context, Extras, Handled, Step};
use kernel::id::{SessionId, TenantId};
use kernel::{ActorKind, ActorRef};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// A request to the token endpoint.
#[derive(Default)]
pub struct TokenRequest {
    /// `grant_type`
    pub grant_type: String,
    /// `code`
    pub code: Option<String>,
    /// `redirect_uri`
    pub redirect_uri: Option<String>,
    /// `code_verifier`
    pub code_verifier: Option<String>,
    /// `refresh_token`
    pub refresh_token: Option<String>,
    /// `scope`
    pub scope: Option<String>,
    /// `resource`, as often as it is there, and `audience`
    pub resources: Vec<String>,
    /// `device_code`
    pub device_code: Option<String>,
    /// `subject_token` and its type
    pub subject_token: Option<(String, String)>,
    /// `actor_token` and its type
    pub actor_token: Option<(String, String)>,
    /// `requested_token_type`
    pub requested_token_type: Option<String>,
}

/// What the token endpoint answers.
#[derive(Serialize)]
pub struct TokenAnswer {
    /// JWT for `Authorization: Bearer`.
    pub access_token: String,
    /// `Bearer`
    pub token_type: &'static str,
    /// Seconds that the access token is good.
    pub expires_in: u64,
    /// Good once, for the next tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Who signed in (OpenID Connect).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    /// What the access token is limited to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// What was made of another token (RFC 8693).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<&'static str>,
    /// Who may do what it allows.
    #[serde(skip)]
    pub(super) whose: Option<(TenantId, ActorRef)>,
}

/// An ID token. Times are seconds since 1970.
#[derive(Serialize)]
struct IdToken<'a> {
    iss: &'a str,
    sub: String,
    /// Slug of the person's tenant.
    tenant: String,
    aud: &'a str,
    iat: i64,
    exp: i64,
    auth_time: i64,
    acr: &'static str,
    amr: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
    at_hash: String,
    sid: SessionId,
}

const CODE: &str = "kg_";

/// A code: good once, for a minute.
pub(crate) fn code(slug: &str, session: SessionId, secret: &str) -> String {
    format!("{CODE}{slug}_{session}.{secret}")
}

/// The tenant that a code or a refresh token names; whether it is good is another question.
fn tenant_in(presented: &str) -> Option<&str> {
    parse_handle(CODE, presented).or_else(|| parse_handle(REFRESH, presented)).map(|(slug, _)| slug)
}

impl App {
    /// Tokens for a client that has proved who it is.
    pub async fn grant(&self, client: &KnownClient, request: TokenRequest, context: Context) -> Granted<TokenAnswer> {
        let grant_type = request.grant_type.clone();
        let presented = request.code.as_deref().or(request.refresh_token.as_deref()).and_then(tenant_in);
        let named = presented.and_then(|slug| self.tenant(slug)).map(|runtime| runtime.id);
        let (origin, correlation) = (context.origin.clone(), context.correlation.clone());
        let granted = self.granted(client, request, context).await;
        let (kind, how) = match &granted {
            Ok(_) => ("identity.token.issued", grant_type),
            // What a device asks again and again is no refusal.
            Err(error) if matches!(error.code, "authorization_pending" | "slow_down") => return granted,
            Err(error) => ("identity.token.refused", error.code.to_owned()),
        };
        let facts = BTreeMap::from([("client", client.name.clone()), ("how", how)]);
        // The record is that of whoever it is about, not of the client: many serve every tenant.
        let whose = granted.as_ref().ok().and_then(|answer| answer.whose.clone());
        let tenant = whose.as_ref().map(|(tenant, _)| *tenant).or(client.tenant).or(named).unwrap_or(self.0.root);
        let who = whose.as_ref().map(|(_, who)| who).or(client.profile.subject.as_ref());
        let seen = Seen { tenant, kind, who, origin: &origin, correlation: &correlation, facts };
        if granted.is_ok() {
            self.saw_counted(seen)
        } else {
            self.saw_refused(seen)
        }
        granted
    }

    async fn granted(&self, client: &KnownClient, request: TokenRequest, context: Context) -> Granted<TokenAnswer> {
        match request.grant_type.as_str() {
            "authorization_code" => self.grant_code(client, request, context).await,
            "refresh_token" => self.grant_refresh(client, request, context).await,
            "client_credentials" => self.grant_own(client, request).await,
            "urn:ietf:params:oauth:grant-type:token-exchange" => self.exchange(client, request).await,
            "urn:ietf:params:oauth:grant-type:device_code" => self.grant_device(client, request, context).await,
            "" => Err(invalid_request("grant_type is missing.")),
            _ => Err(OauthError::new("unsupported_grant_type", "There is no such grant type; see grant_types_supported.")),
        }
    }

    async fn grant_code(&self, client: &KnownClient, request: TokenRequest, mut context: Context) -> Granted<TokenAnswer> {
        client.check_grant(GrantType::AuthorizationCode)?;
        let presented = request.code.ok_or_else(|| invalid_request("code is missing."))?;
        let verifier = request.code_verifier.ok_or_else(|| invalid_request("code_verifier is missing."))?;
        let refused = || invalid_grant("The code is not good: it was used, is too old, or belongs to another request.");
        let (slug, id) = parse_handle(CODE, &presented).ok_or_else(refused)?;
        let log = self.tenant(slug).ok_or_else(refused)?.id;
        let known = self.entity_even_ended::<Session>(log, &id.to_string()).await?.ok_or_else(refused)?;
        let (code, _) = known.state.code.as_ref().ok_or_else(refused)?;
        let challenge = b64(&Sha256::digest(verifier.as_bytes()));
        // OAuth 2.1 leaves redirect_uri out; whoever sends it sends the right one.
        let is_same_uri = request.redirect_uri.is_none_or(|uri| uri == code.redirect_uri);
        let is_clients = known.state.client.as_ref() == Some(&client.name);
        let presented_sha256 = sha256_hex(&presented);
        if !is_clients || !is_same_uri || !is_pkce(&verifier) || challenge != code.challenge || presented_sha256 != code.sha256 {
            return Err(refused());
        }
        let narrower = self.narrower(&known, &request.resources)?;
        self.check_session_holds(log, &known).await.map_err(|_| refused())?;
        context.actor = ActorRef { kind: ActorKind::User, id: known.state.user.to_string() };
        context.user = Some(known.state.user);
        let refresh = client.may_refresh().then(|| refresh_token(slug, id, &fresh_secret(self.env())));
        let command = SessionCommand::Redeem { presented_sha256, refresh_sha256: refresh.as_deref().map(sha256_hex) };
        let after = self.0.engine.handle::<Session>(log, Step::on::<Session>(id, command), &context, Extras::default()).await;
        let after = after.map_err(|error| match crate::errors::of_handle(error) {
            rejection if rejection.kind == kernel::Kind::Unauthenticated => refused(),
            rejection => rejection.into(),
        })?;
        if after.state.closed.is_some() {
            tracing::warn!(session = %id, "a code was presented twice: what it gave has ended");
            return Err(refused());
        }
        self.session_answer(client, log, id, &for_resource(after, narrower), refresh)
    }

    async fn grant_refresh(&self, client: &KnownClient, request: TokenRequest, context: Context) -> Granted<TokenAnswer> {
        client.check_grant(GrantType::RefreshToken)?;
        let presented = request.refresh_token.ok_or_else(|| invalid_request("refresh_token is missing."))?;
        // Checked before the token is spent.
        let asked = request.scope.as_deref().map(|text| scopes(text).ok_or_else(invalid_scope)).transpose()?;
        let mut narrower = None;
        let known = parse_handle(REFRESH, &presented).and_then(|(slug, id)| Some((self.tenant(slug)?.id, id)));
        if let Some((log, id)) = known
            && let Some(session) = self.entity::<Session>(log, &id.to_string()).await?
        {
            narrower = self.narrower(&session, &request.resources)?;
            let is_wider = |scope: &String| session.state.scopes.as_ref().is_some_and(|held| !held.contains(scope));
            if asked.iter().flatten().any(is_wider) {
                return Err(OauthError::new("invalid_scope", "A refresh cannot widen what was allowed."));
            }
        }
        let (log, id, session, next) = self.refreshed(&presented, Some(&client.name), context).await?;
        let session = for_resource(session, narrower);
        let answer = self.session_answer(client, log, id, &session, Some(next))?;
        let Some(asked) = asked.filter(|asked| !asked.is_empty()) else { return Ok(answer) };
        // Narrower for this access token only.
        let narrow = Session { scopes: Some(asked.clone()), ..session.state.as_ref().clone() };
        let narrow = Handled { state: std::sync::Arc::new(narrow), ..session };
        Ok(TokenAnswer { access_token: self.session_token(log, id, &narrow)?, scope: Some(asked.join(" ")), ..answer })
    }

    /// The resource that a token of a grant is for: that of the grant, or a part of it that is asked for.
    fn narrower(&self, session: &Handled<Session>, asked: &[String]) -> Granted<Option<String>> {
        let wanted = self.resource(asked)?;
        match &session.state.resource {
            Some(own) if !asked.is_empty() && wanted.as_ref() != Some(own) => {
                Err(OauthError::new("invalid_target", "The grant is for another resource."))
            }
            Some(own) => Ok(Some(own.clone())),
            None => Ok(wanted),
        }
    }

    /// The client's own identity.
    async fn grant_own(&self, client: &KnownClient, request: TokenRequest) -> Granted<TokenAnswer> {
        client.check_grant(GrantType::ClientCredentials)?;
        let (Some(tenant), Some(subject)) = (client.tenant, &client.profile.subject) else {
            return Err(OauthError::new("unauthorized_client", "This client has no identity of its own."));
        };
        let resource = self.resource(&request.resources)?;
        let who = self.identity(tenant, &subject.id).await?;
        let who = who.ok_or_else(|| invalid_grant("The identity of this client is gone."))?;
        let granted = self.own_scopes(client, &request, &who.permissions)?;
        let access_token = self.access_token(NewToken {
            tenant,
            subject: subject.id.clone(),
            client: client.name.clone(),
            resource,
            scopes: granted.clone(),
            session: None,
            act: None,
            made_of: vec![],
            until: None,
        })?;
        Ok(TokenAnswer { whose: Some((tenant, subject.clone())), ..self.answer(access_token, granted) })
    }

    /// What a client gets for itself: what it asks for, else what it is registered for, else all that its identity may do.
    fn own_scopes(&self, client: &KnownClient, request: &TokenRequest, held: &[String]) -> Granted<Option<Vec<String>>> {
        let asked = scopes(request.scope.as_deref().unwrap_or_default()).ok_or_else(invalid_scope)?;
        let registered = &client.profile.scopes;
        if !registered.is_empty() && asked.iter().any(|scope| !registered.contains(scope)) {
            return Err(OauthError::new("invalid_scope", "This client is not registered for every scope that it asks for."));
        }
        let wanted = if asked.is_empty() { registered } else { &asked };
        Ok((!wanted.is_empty()).then(|| within(held, wanted)))
    }

    pub(super) fn answer(&self, access_token: String, scopes: Option<Vec<String>>) -> TokenAnswer {
        TokenAnswer {
            access_token,
            token_type: "Bearer",
            expires_in: self.0.settings.access_token_ttl_ms / 1000,
            refresh_token: None,
            id_token: None,
            scope: scopes.map(|scopes| scopes.join(" ")),
            issued_token_type: None,
            whose: None,
        }
    }

    /// The tokens of a session.
    pub(super) fn session_answer(
        &self,
        client: &KnownClient,
        log: TenantId,
        id: SessionId,
        session: &Handled<Session>,
        refresh_token: Option<String>,
    ) -> Granted<TokenAnswer> {
        let access_token = self.session_token(log, id, session)?;
        // Parts of Keiko name no scope, and need it to sign out.
        let wants_id =
            client.is_own || session.state.scopes.as_ref().is_some_and(|scopes| scopes.iter().any(|scope| scope == "openid"));
        let id_token = match wants_id {
            true => Some(self.id_token(client, (log, id), &session.state, &access_token)?),
            false => None,
        };
        let scopes = session.state.scopes.clone();
        let whose = Some((log, ActorRef { kind: ActorKind::User, id: session.state.user.to_string() }));
        Ok(TokenAnswer { refresh_token, id_token, whose, ..self.answer(access_token, scopes) })
    }

    fn id_token(
        &self,
        client: &KnownClient,
        (log, id): (TenantId, SessionId),
        session: &Session,
        access_token: &str,
    ) -> Granted<String> {
        let now = self.env().now();
        let token = IdToken {
            iss: self.issuer(),
            sub: session.user.to_string(),
            tenant: self.slug_of(log).unwrap_or_default(),
            aud: &client.name,
            iat: now.0.div_euclid(1000),
            exp: now.plus_ms(self.0.settings.access_token_ttl_ms).0.div_euclid(1000),
            auth_time: session.authenticated_at.0.div_euclid(1000),
            acr: acr(session),
            amr: &session.amr,
            nonce: session.code.as_ref().and_then(|(code, _)| code.nonce.as_deref()),
            at_hash: self.at_hash(access_token),
            sid: id,
        };
        Ok(self.sign("JWT", &token)?)
    }

    /// The left half of the token's hash, by the hash of the algorithm that signs: SHA-512 for Ed25519.
    fn at_hash(&self, access_token: &str) -> String {
        match self.signing_algorithm() {
            crate::jose::Algorithm::Es256 => b64(&Sha256::digest(access_token.as_bytes())[..16]),
            crate::jose::Algorithm::Ed25519 => b64(&sha2::Sha512::digest(access_token.as_bytes())[..32]),
        }
    }
}

/// A session as it is for one token: for a resource that may be a part of its own.
fn for_resource(session: Handled<Session>, resource: Option<String>) -> Handled<Session> {
    let state = std::sync::Arc::new(Session { resource, ..session.state.as_ref().clone() });
    Handled { state, ..session }
}
