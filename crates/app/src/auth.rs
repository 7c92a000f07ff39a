//! Who is calling: logins, sessions, access tokens, API keys.

use crate::app::{App, DEFAULT_TENANT, internal};
use crate::crypto::{fresh_secret, sha256_hex};
use crate::errors::{of_handle, of_store};
use crate::{Answer, Caller, passwords};
use domain::agent::Agent;
use domain::identity::key::{Key, hash_key};
use domain::identity::role::{Role, name_key as role_key};
use domain::identity::session::{Opened, Session, SessionCommand, ended};
use domain::identity::user::{User, UserKind, name_key, password_secret};
use domain::policy::{builtin_role, limited};
use engine::{Context, Extras, Handled, Step};
use kernel::id::{KeyId, SessionId, TenantId, UserId};
use kernel::{Actor, ActorKind, ActorRef, Kind, Origin, Rejection, text};
use std::sync::PoisonError;

/// Hash prefixes that are remembered.
const KEY_IDS_MAX: usize = 10_000;
/// A hash that no password has, so that an unknown user costs as much time as a known one.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$a2Vpa28ta2Vpa28ta2Vpaw$8wnpYb1b2bX1mS6y4z0cJ6n2T2q9c3J0m1r5s7t9u0A";

/// What a login gives.
pub struct TokenPair {
    /// JWT for `Authorization: Bearer`.
    pub access_token: String,
    /// Good once, for the next pair.
    pub refresh_token: String,
    /// How long the access token is good.
    pub expires_in_s: u64,
}

fn invalid_credentials() -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "INVALID_CREDENTIALS",
        "User name, password or tenant is wrong.",
        "Check all three; a forgotten password is set anew on the stopped server, see 'keiko admin --help'.",
    )
}

fn unauthenticated(code: &'static str, message: &str) -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        code,
        message,
        "Sign in with POST /api/v1/auth/login and send 'Authorization: Bearer <access_token>', or send an X-API-Key.",
    )
}

impl App {
    /// Opens a session.
    pub async fn login(&self, tenant: Option<&str>, username: &str, password: &str, mut context: Context) -> Answer<TokenPair> {
        let slug = tenant.unwrap_or(DEFAULT_TENANT);
        let known = self.tenant(slug);
        let log = known.as_ref().map_or(self.0.root, |t| t.id);
        // Hashed, so that its length is bounded whatever is sent.
        let throttle_key = sha256_hex(&format!("{slug}/{username}/{}", context.origin.address.as_deref().unwrap_or_default()));
        let wait_ms = self.0.throttle.wait_ms(&throttle_key, self.env().now());
        if wait_ms > 0 {
            let hint = "Wait for the time in Retry-After.";
            return Err(Rejection::new(
                Kind::Limited,
                "LOGIN_THROTTLED",
                "Too many failed logins for this account from this address.",
                hint,
            )
            .with("retry_after_s", wait_ms.div_ceil(1000)));
        }
        // Counted before the slow check and taken back after it, so that guesses at the same time count too.
        self.0.throttle.failed(throttle_key.clone(), self.env().now());
        let user = match known {
            Some(_) => self.user_by_name(log, username).await?,
            None => None,
        };
        let is_right = self.is_password_right(log, user.as_ref(), password).await?;
        let Some(user) = user.filter(|_| is_right) else {
            tracing::info!(tenant = slug, address = context.origin.address.as_deref(), "a login failed");
            return Err(invalid_credentials());
        };
        self.0.throttle.succeeded(&throttle_key);
        let user_id: UserId = user.stream.parse().map_err(|_| internal("a user without an id".into()))?;
        context.actor = ActorRef { kind: ActorKind::User, id: user.stream.clone() };
        context.user = Some(user_id);
        self.open_session(log, slug, user_id, &context).await
    }

    async fn open_session(&self, log: TenantId, slug: &str, user: UserId, context: &Context) -> Answer<TokenPair> {
        let session: SessionId = self.env().id();
        let refresh_token = refresh_token(slug, session, &fresh_secret(self.env()));
        let opened = Opened {
            user,
            refresh_sha256: sha256_hex(&refresh_token),
            expires_at: self.env().now().plus_ms(self.0.settings.session_ttl_ms),
        };
        let step = Step::new::<Session>(session, SessionCommand::Open(opened));
        self.0.engine.handle::<Session>(log, step, context, Extras::default()).await.map_err(of_handle)?;
        self.token_pair(log, user, session, refresh_token)
    }

    fn token_pair(&self, log: TenantId, user: UserId, session: SessionId, refresh_token: String) -> Answer<TokenPair> {
        let ttl_ms = self.0.settings.access_token_ttl_ms;
        let access_token =
            self.0.crypto.sign((user, log, session), self.env().id(), self.env().now(), ttl_ms).map_err(internal)?;
        Ok(TokenPair { access_token, refresh_token, expires_in_s: ttl_ms / 1000 })
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

    async fn password_hash(&self, log: TenantId, user: UserId) -> Answer<Option<String>> {
        let name = password_secret(&user);
        let sealed = self.0.engine.store().secret(log, &name).await.map_err(of_store)?;
        Ok(sealed.and_then(|sealed| String::from_utf8(self.0.crypto.sealer.open(log, &name, &sealed)?).ok()))
    }

    /// Replaces a refresh token by a new pair. An older token of the session ends it.
    pub async fn refresh(&self, token: &str, mut context: Context) -> Answer<TokenPair> {
        let (slug, session) = parse_refresh(token).ok_or_else(ended)?;
        let log = self.tenant(slug).ok_or_else(ended)?.id;
        let known = self.entity::<Session>(log, &session.to_string()).await?.ok_or_else(ended)?;
        context.actor = ActorRef { kind: ActorKind::User, id: known.state.user.to_string() };
        context.user = Some(known.state.user);
        if self.entity::<User>(log, &known.state.user.to_string()).await?.is_none() {
            return Err(ended());
        }
        let next = refresh_token(slug, session, &fresh_secret(self.env()));
        let command = SessionCommand::Refresh { presented_sha256: sha256_hex(token), next_sha256: sha256_hex(&next) };
        let step = Step::on::<Session>(session, command);
        let after = self.0.engine.handle::<Session>(log, step, &context, Extras::default()).await.map_err(of_handle)?;
        if after.state.closed.is_some() {
            tracing::warn!(session = %session, "an older refresh token was presented: the session has ended");
            return Err(ended());
        }
        self.token_pair(log, after.state.user, session, next)
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

    /// Who shows this access token.
    pub async fn authenticate_bearer(&self, token: &str) -> Answer<Actor> {
        let refused = || unauthenticated("TOKEN_INVALID", "The access token is not valid or has expired.");
        let claims = self.0.crypto.verify(token, self.env().now()).ok_or_else(refused)?;
        let actor = self.session_actor(claims.tid, claims.sid).await?;
        if actor.user == Some(claims.sub) { Ok(actor) } else { Err(refused()) }
    }

    async fn session_actor(&self, log: TenantId, id: SessionId) -> Answer<Actor> {
        let refused = || unauthenticated("TOKEN_INVALID", "The access token is not valid or has expired.");
        let session = self.entity::<Session>(log, &id.to_string()).await?.ok_or_else(refused)?;
        if !session.state.is_open(self.env().now()) {
            return Err(refused());
        }
        let user = self.entity::<User>(log, &session.state.user.to_string()).await?.ok_or_else(refused)?;
        let mut actor = self.user_actor(log, &user).await?;
        actor.session = Some(id);
        Ok(actor)
    }

    /// Who shows this API key.
    pub async fn authenticate_key(&self, presented: &str) -> Answer<Actor> {
        let refused = || unauthenticated("KEY_INVALID", "The API key is not valid, expired or revoked.");
        let slug = presented.strip_prefix("kk_").and_then(|rest| rest.split('_').next()).ok_or_else(refused)?;
        let log = self.tenant(slug).ok_or_else(refused)?.id;
        let id = self.key_id(log, &sha256_hex(presented)).await?.ok_or_else(refused)?;
        self.key_actor(log, slug, id).await
    }

    async fn key_actor(&self, log: TenantId, slug: &str, id: KeyId) -> Answer<Actor> {
        let refused = || unauthenticated("KEY_INVALID", "The API key is not valid, expired or revoked.");
        let key = self.entity::<Key>(log, &id.to_string()).await?.ok_or_else(refused)?;
        if !key.state.is_valid(self.env().now()) {
            return Err(refused());
        }
        let issued = &key.state.issued;
        let mut actor = match issued.owner.kind {
            ActorKind::Agent => {
                let agent = self.entity::<Agent>(log, &issued.owner.id).await?.ok_or_else(refused)?;
                self.agent_actor(log, slug, &agent)
            }
            _ => {
                let user = self.entity::<User>(log, &issued.owner.id).await?.ok_or_else(refused)?;
                self.user_actor(log, &user).await?
            }
        };
        actor.key = Some(id);
        if let Some(limit) = &issued.permissions {
            // Everybody may see their own profile, whatever the key is limited to.
            actor.permissions = limited(&actor.permissions, limit);
            actor.permissions.push("profile.*".into());
        }
        Ok(actor)
    }

    /// Whether somebody who was authenticated a while ago still is, and still holds a permission.
    pub async fn may_still(&self, actor: &Actor, permission: &str) -> bool {
        let now = match (actor.session, actor.key) {
            (Some(session), _) => self.session_actor(actor.tenant, session).await,
            (None, Some(key)) => self.key_actor(actor.tenant, &actor.tenant_slug, key).await,
            (None, None) => return false,
        };
        now.is_ok_and(|now| self.authorise(&now, permission).is_ok())
    }

    async fn key_id(&self, log: TenantId, sha256: &str) -> Answer<Option<KeyId>> {
        if let Some(id) = self.0.key_ids.lock().unwrap_or_else(PoisonError::into_inner).get(sha256) {
            return Ok(Some(*id));
        }
        let Some(id) = self.holder(log, &hash_key(sha256)).await?.and_then(|stream| stream.parse().ok()) else { return Ok(None) };
        let mut known = self.0.key_ids.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEY_IDS_MAX {
            known.clear();
        }
        known.insert(sha256.to_owned(), id);
        Ok(Some(id))
    }

    fn agent_actor(&self, log: TenantId, slug: &str, agent: &Handled<Agent>) -> Actor {
        Actor {
            tenant: log,
            tenant_slug: slug.to_owned(),
            who: ActorRef { kind: ActorKind::Agent, id: agent.stream.clone() },
            name: agent.state.profile.name.clone(),
            user: None,
            session: None,
            key: None,
            roles: vec!["agent".into()],
            permissions: builtin_role("agent").unwrap_or_default(),
        }
    }

    async fn user_actor(&self, log: TenantId, user: &Handled<User>) -> Answer<Actor> {
        let mut permissions = vec!["discovery.read".to_owned(), "profile.*".to_owned()];
        for role in &user.state.roles {
            permissions.extend(self.role_permissions(log, role).await?);
        }
        permissions.sort();
        permissions.dedup();
        let kind = match user.state.kind {
            UserKind::User => ActorKind::User,
            UserKind::Service => ActorKind::Service,
        };
        Ok(Actor {
            tenant: log,
            tenant_slug: self.slug_of(log).ok_or_else(|| internal("a user of a tenant that is not running".into()))?,
            who: ActorRef { kind, id: user.stream.clone() },
            name: user.state.name().to_owned(),
            user: user.stream.parse().ok(),
            session: None,
            key: None,
            roles: user.state.roles.clone(),
            permissions,
        })
    }

    fn slug_of(&self, log: TenantId) -> Option<String> {
        let tenants = self.0.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().find(|(_, t)| t.id == log).map(|(slug, _)| slug.clone())
    }

    /// The permissions of a role; none for one that does not exist (any more).
    pub(crate) async fn role_permissions(&self, log: TenantId, role: &str) -> Answer<Vec<String>> {
        if let Some(permissions) = builtin_role(role) {
            return Ok(permissions);
        }
        let Some(stream) = self.holder(log, &role_key(role)).await? else { return Ok(vec![]) };
        Ok(self.entity::<Role>(log, &stream).await?.map(|r| r.state.permissions.clone()).unwrap_or_default())
    }
}

impl App {
    /// The context of a request whose caller is not known yet.
    pub fn anonymous(origin: Origin, correlation: String) -> Context {
        Context { origin, correlation, ..Context::system("authentication") }
    }
}

/// `kr_<tenant>_<session>.<secret>`
fn refresh_token(slug: &str, session: SessionId, secret: &str) -> String {
    format!("kr_{slug}_{session}.{secret}")
}

fn parse_refresh(token: &str) -> Option<(&str, SessionId)> {
    let (slug, rest) = token.strip_prefix("kr_")?.split_once('_')?;
    let (session, secret) = rest.split_once('.')?;
    (!secret.is_empty() && text::is_slug(slug, kernel::limits::SLUG_CHARS_MAX)).then_some(())?;
    Some((slug, session.parse().ok()?))
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
