//! Logins and sessions: passwords are checked, sessions opened, refreshed and ended.

use crate::app::{App, DEFAULT_TENANT, internal};
use crate::crypto::{fresh_secret, sha256_hex};
use crate::errors::of_handle;
use crate::limits::network;
use crate::recognise::ACCESS_TOKEN;
use crate::watch::Seen;
use crate::{Answer, Caller, passwords};
use domain::identity::session::{Opened, PASSWORD, Session, SessionCommand, ended, is_multi_factor};
use domain::identity::user::{User, UserCommand, UserKind, invalid_credentials, name_key, password_secret};
use engine::{Context, Extras, Handled, Step};
use kernel::id::{SessionId, TenantId, TokenId, UserId};
use kernel::{Act, ActorKind, ActorRef, Claims, Kind, Origin, Rejection, Timestamp, text};
use std::collections::BTreeMap;

/// A hash that no password has, so that an unknown user costs as much time as a known one.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$a2Vpa28ta2Vpa28ta2Vpaw$8wnpYb1b2bX1mS6y4z0cJ6n2T2q9c3J0m1r5s7t9u0A";
/// The client of a login by password at the API.
pub(crate) const API: &str = "keiko-api";

/// What a login gives.
pub struct TokenPair {
    /// JWT for `Authorization: Bearer`.
    pub access_token: String,
    /// Good once, for the next pair.
    pub refresh_token: String,
    /// How long the access token is good.
    pub expires_in_s: u64,
}

/// A token to be made.
pub(crate) struct NewToken {
    pub tenant: TenantId,
    /// Who may do what it allows.
    pub subject: String,
    /// Who gets it.
    pub client: String,
    /// For which resource; the whole server when there is none.
    pub resource: Option<String>,
    /// What it is limited to.
    pub scopes: Option<Vec<String>>,
    /// The session that it belongs to.
    pub session: Option<(SessionId, std::sync::Arc<Session>)>,
    /// Who acts for the subject.
    pub act: Option<Box<Act>>,
    /// The tokens that it is made of.
    pub made_of: Vec<TokenId>,
    /// When it ends at the latest.
    pub until: Option<Timestamp>,
}

/// Somebody whose password was right.
pub(crate) struct Authenticated {
    pub log: TenantId,
    pub slug: String,
    pub user: UserId,
    /// Which password it was.
    pub password_version: u64,
}

impl App {
    /// Who makes tokens: the address under which everybody knows this server.
    pub fn issuer(&self) -> &str {
        &self.0.settings.public_url
    }

    /// Opens a session.
    pub async fn login(
        &self,
        tenant: Option<&str>,
        username: &str,
        password: &str,
        code: Option<&str>,
        context: Context,
    ) -> Answer<TokenPair> {
        let (who, context) = self.authenticate_password(tenant, username, password, context).await?;
        let amr = self.factors(&who, code, &context).await?;
        let session: SessionId = self.env().id();
        let refresh_token = refresh_token(&who.slug, session, &fresh_secret(self.env()));
        let opened = Opened { refresh_sha256: Some(sha256_hex(&refresh_token)), amr, ..self.login_of(who.user) };
        let opened = self.open_login(&who, session, opened, &context).await?;
        self.token_pair(who.log, session, &opened, refresh_token)
    }

    /// A login by password, now.
    pub(crate) fn login_of(&self, user: UserId) -> Opened {
        let now = self.env().now();
        Opened {
            user,
            refresh_sha256: None,
            expires_at: now.plus_ms(self.0.settings.session_ttl_ms),
            client: None,
            scopes: None,
            resource: None,
            amr: vec![PASSWORD.into()],
            authenticated_at: now,
            parent: None,
            code: None,
        }
    }

    /// Opens a session that comes of a login, if that one still holds.
    pub(crate) async fn open_session(
        &self,
        log: TenantId,
        session: SessionId,
        opened: Opened,
        context: &Context,
    ) -> Answer<Handled<Session>> {
        let login = opened.parent.map(|login| Step::on::<Session>(login, SessionCommand::Continue));
        let open = Step::new::<Session>(session, SessionCommand::Open(Box::new(opened)));
        let steps: Vec<Step> = [open].into_iter().chain(login).collect();
        self.opened(log, session, &steps, context).await
    }

    async fn opened(&self, log: TenantId, session: SessionId, steps: &[Step], context: &Context) -> Answer<Handled<Session>> {
        self.0.engine.transact(log, steps, context, Extras::default()).await.map_err(of_handle)?;
        let opened = self.entity::<Session>(log, &session.to_string()).await?;
        opened.ok_or_else(|| internal("a session without a record".into()))
    }

    /// Opens a session by a password, if it is still the password, and still enough: that may have changed meanwhile.
    pub(crate) async fn open_login(
        &self,
        who: &Authenticated,
        session: SessionId,
        opened: Opened,
        context: &Context,
    ) -> Answer<Handled<Session>> {
        let is_multi_factor = is_multi_factor(&opened.amr);
        let sign_in = UserCommand::SignIn { password_version: who.password_version, is_multi_factor };
        let steps = [Step::new::<Session>(session, SessionCommand::Open(Box::new(opened))), Step::on::<User>(who.user, sign_in)];
        self.opened(who.log, session, &steps, context).await
    }

    /// Who has this name and password, with the context of whatever they do next.
    pub(crate) async fn authenticate_password(
        &self,
        tenant: Option<&str>,
        username: &str,
        password: &str,
        mut context: Context,
    ) -> Answer<(Authenticated, Context)> {
        let slug = tenant.unwrap_or(DEFAULT_TENANT);
        let known = self.tenant(slug);
        let log = known.as_ref().map_or(self.0.root, |t| t.id);
        let from = network(context.origin.address.as_deref().unwrap_or_default());
        let throttle_key = format!("{slug}/{username}/{from}");
        let anywhere_key = format!("{slug}/{username}");
        let here = self.not_throttled(&throttle_key, "Too many failed logins for this account from this address.");
        let anywhere =
            || self.not_throttled_anywhere(&anywhere_key, "Too many failed logins for this account from many addresses.");
        if let Err(refused) = here.and_then(|()| anywhere()) {
            self.saw_login(log, "identity.login.refused", None, &context, refused.code);
            return Err(refused);
        }
        // Counted before the slow check and taken back after it, so that guesses at the same time count too.
        self.count_try(&throttle_key);
        self.count_try(&anywhere_key);
        let user = match known {
            Some(_) if self.is_suspended(log).await? => None,
            Some(_) => self.user_by_name(log, username).await?.filter(|user| user.state.suspended.is_none()),
            None => None,
        };
        let is_right = self.is_password_right(log, user.as_ref(), password).await?;
        // Not what was typed: that may be a password in the wrong field.
        let known_user = user.as_ref().map(|user| ActorRef { kind: ActorKind::User, id: user.stream.clone() });
        let Some(user) = user.filter(|_| is_right) else {
            tracing::info!(tenant = slug, address = context.origin.address.as_deref(), "a login failed");
            self.saw_login(log, "identity.login.refused", known_user.as_ref(), &context, "INVALID_CREDENTIALS");
            return Err(invalid_credentials());
        };
        self.try_succeeded(&throttle_key);
        self.try_succeeded(&anywhere_key);
        let user_id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        context.actor = ActorRef { kind: ActorKind::User, id: user.stream.clone() };
        context.user = Some(user_id);
        let password_version = user.state.password_version;
        Ok((Authenticated { log, slug: slug.to_owned(), user: user_id, password_version }, context))
    }

    /// A login succeeded or was refused, and how or why.
    pub(crate) fn saw_login(&self, tenant: TenantId, kind: &'static str, who: Option<&ActorRef>, context: &Context, how: &str) {
        let facts = BTreeMap::from([("how", how.to_owned())]);
        let seen = Seen { tenant, kind, who, origin: &context.origin, correlation: &context.correlation, facts };
        if kind == "identity.login.refused" { self.saw_refused(seen) } else { self.saw(seen) }
    }

    fn token_pair(&self, log: TenantId, id: SessionId, session: &Handled<Session>, refresh_token: String) -> Answer<TokenPair> {
        let access_token = self.session_token(log, id, session)?;
        Ok(TokenPair { access_token, refresh_token, expires_in_s: self.0.settings.access_token_ttl_ms / 1000 })
    }

    /// An access token of a session.
    pub(crate) fn session_token(&self, log: TenantId, id: SessionId, session: &Handled<Session>) -> Answer<String> {
        let state = &session.state;
        self.access_token(NewToken {
            tenant: log,
            subject: state.user.to_string(),
            client: state.client.clone().unwrap_or_else(|| API.to_owned()),
            resource: state.resource.clone(),
            scopes: state.scopes.clone(),
            session: Some((id, state.clone())),
            act: None,
            made_of: vec![],
            until: Some(state.expires_at),
        })
    }

    /// A signed access token.
    pub(crate) fn access_token(&self, new: NewToken) -> Answer<String> {
        let now = self.env().now();
        let end = now.plus_ms(self.0.settings.access_token_ttl_ms);
        let end = new.until.map_or(end, |until| end.min(until));
        let claims = Claims {
            iss: self.issuer().to_owned(),
            aud: new.resource.unwrap_or_else(|| self.issuer().to_owned()),
            sub: new.subject,
            tid: new.tenant,
            client_id: new.client,
            sid: new.session.as_ref().map(|(id, _)| *id),
            scope: new.scopes.map(|scopes| scopes.join(" ")),
            jti: self.env().id(),
            iat: now.0.div_euclid(1000),
            exp: end.0.div_euclid(1000),
            acr: new.session.as_ref().map(|(_, session)| acr(session).to_owned()),
            auth_time: new.session.as_ref().map(|(_, session)| session.authenticated_at.0.div_euclid(1000)),
            act: new.act,
            made_of: new.made_of,
        };
        self.sign(ACCESS_TOKEN, &claims)
    }

    async fn user_by_name(&self, log: TenantId, username: &str) -> Answer<Option<Handled<User>>> {
        let index = self.0.crypto.sealer.blind(log, "username", username);
        match self.holder(log, &name_key(&index)).await? {
            Some(stream) => self.entity::<User>(log, &stream).await,
            None => Ok(None),
        }
    }

    /// Hashes in any case, so that time does not tell whether the user exists.
    async fn is_password_right(&self, log: TenantId, user: Option<&Handled<User>>, password: &str) -> Answer<bool> {
        let hash = match user.filter(|u| u.state.kind == UserKind::User).and_then(|u| u.stream.parse().ok()) {
            Some(id) => self.password_hash(log, id).await?,
            None => None,
        };
        let _place = self.hashing_place()?;
        let is_known = hash.is_some();
        let password = password.chars().take(passwords::PASSWORD_CHARS_MAX + 1).collect::<String>();
        let is_right = self.env().heavy(move || passwords::verify(&password, hash.as_deref().unwrap_or(NOBODY))).await;
        Ok(is_known && is_right)
    }

    /// Whether the caller knows the present password. Guessing is slowed down for each account.
    pub(crate) async fn prove_password(&self, caller: &Caller, user: &Handled<User>, password: &str) -> Answer<()> {
        let throttle_key = format!("password/{}", user.stream);
        self.not_throttled(&throttle_key, "Too many wrong passwords for this account.")?;
        self.count_try(&throttle_key);
        if !self.is_password_right(caller.actor.tenant, Some(user), password).await? {
            return Err(Rejection::new(
                Kind::Forbidden,
                "PASSWORD_WRONG",
                "The present password is wrong.",
                "Try again; an administrator can set another one.",
            ));
        }
        self.try_succeeded(&throttle_key);
        Ok(())
    }

    async fn password_hash(&self, log: TenantId, user: UserId) -> Answer<Option<String>> {
        let name = password_secret(&user);
        Ok(self.open_secret(log, &name).await?.and_then(|opened| String::from_utf8(opened).ok()))
    }

    /// Replaces a refresh token of a login by a new pair. An older token of the session ends it.
    pub async fn refresh(&self, token: &str, context: Context) -> Answer<TokenPair> {
        let (log, id, session, next) = self.refreshed(token, None, context).await?;
        self.token_pair(log, id, &session, next)
    }

    /// The session of a refresh token, with the next token, for the client that the token was given to.
    ///
    /// The next token follows from the one presented: a client that did not hear the answer and asks again gets the same.
    pub(crate) async fn refreshed(
        &self,
        token: &str,
        client: Option<&str>,
        mut context: Context,
    ) -> Answer<(TenantId, SessionId, Handled<Session>, String)> {
        let (slug, id) = parse_refresh(token).ok_or_else(ended)?;
        let log = self.tenant(slug).ok_or_else(ended)?.id;
        let known = self.entity::<Session>(log, &id.to_string()).await?.ok_or_else(ended)?;
        if known.state.client.as_deref() != client {
            return Err(ended());
        }
        context.actor = ActorRef { kind: ActorKind::User, id: known.state.user.to_string() };
        context.user = Some(known.state.user);
        self.check_session_holds(log, &known).await?;
        let next = refresh_token(slug, id, &self.0.crypto.sealer.derived("refresh", token));
        let command = SessionCommand::Refresh {
            presented_sha256: sha256_hex(token),
            next_sha256: sha256_hex(&next),
            grace_ms: self.0.settings.refresh_grace_ms,
        };
        let step = Step::on::<Session>(id, command);
        let after = self.0.engine.handle::<Session>(log, step, &context, Extras::default()).await.map_err(of_handle)?;
        if after.state.closed.is_some() {
            tracing::warn!(session = %id, "an older refresh token was presented: the session has ended");
            self.saw_login(log, "identity.login.refused", Some(&context.actor), &context, "REFRESH_REUSED");
            return Err(ended());
        }
        Ok((log, id, after, next))
    }

    /// Whether a session still rests on somebody who is there, and was not called back with all others.
    pub(crate) async fn check_session_holds(&self, log: TenantId, session: &Handled<Session>) -> Answer<()> {
        let guard = self.guard_of(log).await?;
        let is_before = guard.revoked_until.is_some_and(|until| session.created_at <= until);
        let user = self.entity::<User>(log, &session.state.user.to_string()).await?;
        let user = user.filter(|user| user.state.suspended.is_none());
        if is_before || user.is_none() || self.is_suspended(log).await? { Err(ended()) } else { Ok(()) }
    }

    /// Ends the caller's session.
    pub async fn logout(&self, caller: &Caller) -> Answer<()> {
        let Some(session) = caller.actor.session else {
            return Err(Rejection::new(
                Kind::Refused,
                "NO_SESSION",
                "An API key has no session to end.",
                "Revoke the key with DELETE /api/v1/api-keys/{id}.",
            ));
        };
        let step = Step::on::<Session>(session, SessionCommand::Close { reason: "logout".into() });
        self.execute::<Session>(caller, step, Extras::default()).await.map(|_| ())
    }
}

/// How well the person of a session was authenticated, in one word.
pub(crate) fn acr(session: &Session) -> &'static str {
    if session.is_multi_factor() { "mfa" } else { "pwd" }
}

impl App {
    /// The context of a request whose caller is not known yet.
    pub fn anonymous(origin: Origin, correlation: String) -> Context {
        Context { origin, correlation, ..Context::system("authentication") }
    }
}

/// What refresh tokens begin with.
pub(crate) const REFRESH: &str = "kr_";

/// `kr_<tenant>_<session>.<secret>`
pub(crate) fn refresh_token(slug: &str, session: SessionId, secret: &str) -> String {
    format!("{REFRESH}{slug}_{session}.{secret}")
}

fn parse_refresh(token: &str) -> Option<(&str, SessionId)> {
    parse_handle(REFRESH, token)
}

/// A secret of a session.
pub(crate) fn parse_handle<'a>(prefix: &str, token: &'a str) -> Option<(&'a str, SessionId)> {
    parse_secret(prefix, token)
}

/// A secret that names its tenant and what it is of: `<prefix><tenant>_<id>.<secret>`.
pub(crate) fn parse_secret<'a, I: std::str::FromStr>(prefix: &str, token: &'a str) -> Option<(&'a str, I)> {
    let (slug, rest) = token.strip_prefix(prefix)?.split_once('_')?;
    let (id, secret) = rest.split_once('.')?;
    (!secret.is_empty() && text::is_slug(slug, kernel::limits::SLUG_CHARS_MAX)).then_some(())?;
    Some((slug, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_names_its_tenant_and_session() {
        let session = SessionId::from_bytes([1; 16]);
        let token = refresh_token("team-7", session, "s.e.cret");
        assert_eq!(parse_refresh(&token), Some(("team-7", session)));
        for bad in ["", "kr_", "kr_team-7", "kk_team-7_sess_1.x", "kr_Team_sess_01h455vb4pex5vsknk084sn02q.x"] {
            assert_eq!(parse_refresh(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hash_of_nobody_takes_a_full_computation_and_matches_nothing() {
        assert!(argon2::password_hash::phc::PasswordHash::new(NOBODY).is_ok());
        assert!(!passwords::verify("anything", NOBODY));
    }
}
