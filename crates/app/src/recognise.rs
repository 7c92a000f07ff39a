//! Who is calling: access tokens and API keys, and what they allow.

use crate::Answer;
use crate::app::{App, internal};
use crate::crypto::sha256_hex;
use crate::known::Recognised;
use crate::mfa::DANGEROUS;
use crate::oauth::clients::ClientName;
use domain::agent::Agent;
use domain::identity::client::Client;
use domain::identity::key::{Key, hash_key};
use domain::identity::oauth::narrowed;
use domain::identity::role::{Role, name_key as role_key};
use domain::identity::session::Session;
use domain::identity::token::Token;
use domain::identity::user::{User, UserKind};
use domain::policy::{builtin_role, limited};
use engine::Handled;
use kernel::id::{KeyId, TenantId};
use kernel::{Actor, ActorKind, ActorRef, Claims, Kind, Rejection, Timestamp};
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError};

/// Hash prefixes that are remembered.
const KEY_IDS_MAX: usize = 10_000;
/// The type of an access token (RFC 9068).
pub(crate) const ACCESS_TOKEN: &str = "at+jwt";

fn unauthenticated(code: &'static str, message: &str) -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        code,
        message,
        "Sign in with POST /api/v1/auth/login and send 'Authorization: Bearer <access_token>', or send an X-API-Key.",
    )
}

fn token_refused() -> Rejection {
    unauthenticated("TOKEN_INVALID", "The access token is not valid or has expired.")
}

fn key_refused() -> Rejection {
    unauthenticated("KEY_INVALID", "The API key is not valid, expired or revoked.")
}

/// A part of the server that tokens may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// The API.
    Api,
    /// The MCP endpoint.
    Mcp,
}

/// Whether a token is for a resource. One for the whole server is for each of its parts. Who made it was proved by its
/// signature; under which address it is known may change, and differ between replicas.
fn is_for(claims: &Claims, resource: Resource) -> bool {
    let part = claims.aud.strip_prefix(claims.iss.as_str());
    part == Some("") || (resource == Resource::Mcp && part == Some("/mcp"))
}

impl App {
    /// Who shows this access token at a resource.
    pub async fn authenticate_bearer(&self, token: &str, resource: Resource) -> Answer<Actor> {
        let hash = Sha256::digest(token.as_bytes()).into();
        let now = self.env().now();
        let recognised = match self.0.known.get(&hash) {
            Some(known) => {
                self.look_at_log(known.actor.tenant).await?;
                self.0.known.get(&hash)
            }
            None => None,
        };
        let recognised = match recognised {
            Some(known) => known,
            None => {
                let claims: Claims = self.verified(token, &[Some(ACCESS_TOKEN)]).await?.ok_or_else(token_refused)?;
                self.look_at_log(claims.tid).await?;
                let mark = self.0.known.mark();
                let found = Arc::new(self.recognised(Arc::new(claims)).await?);
                self.0.known.put(hash, found.clone(), mark);
                found
            }
        };
        let claims = recognised.actor.token.as_ref().ok_or_else(token_refused)?;
        if now >= recognised.until || !is_for(claims, resource) {
            return Err(token_refused());
        }
        Ok(recognised.actor.clone())
    }

    /// Whoever the claims of a good token are about, unless one of those that it rests on has ended.
    async fn recognised(&self, claims: Arc<Claims>) -> Answer<Recognised> {
        let end = Timestamp(claims.exp.saturating_mul(1_000));
        let log = claims.tid;
        if self.env().now() >= end || self.slug_of(log).is_none() || self.is_suspended(log).await? {
            return Err(token_refused());
        }
        let tokens = claims.made_of.iter().chain([&claims.jti]).map(ToString::to_string);
        let mut rests_on: Vec<String> = tokens.chain([claims.sub.clone()]).collect();
        if let Some(client) = ClientName::parse(&claims.client_id) {
            rests_on.push(client.id.to_string());
            let tenant = self.tenant(client.slug).ok_or_else(token_refused)?.id;
            self.entity::<Client>(tenant, &client.id.to_string()).await?.ok_or_else(token_refused)?;
        }
        let (mut until, mut begun, mut opened) = (end, Timestamp(claims.iat.saturating_mul(1_000)), None);
        if let Some(sid) = claims.sid {
            let session = self.entity::<Session>(log, &sid.to_string()).await?.ok_or_else(token_refused)?;
            if !session.state.is_open(self.env().now()) || session.state.user.to_string() != claims.sub {
                return Err(token_refused());
            }
            until = until.min(session.state.expires_at);
            begun = session.created_at;
            opened = Some(session.state);
            rests_on.push(sid.to_string());
        }
        let is_emergency = self.check_called_back(&claims, begun).await?;
        let mut actor = self.identity(log, &claims.sub).await?.ok_or_else(token_refused)?;
        (actor.session, actor.is_emergency) = (claims.sid, is_emergency);
        if let Some(session) = opened
            && let Some(user) = self.entity::<User>(log, &claims.sub).await?
        {
            let is_admin = actor.permissions.iter().any(|held| held == "*");
            actor.proof = Some(Self::proof_of(&session, &user.state, is_admin));
        }
        // Whoever acts for another does so within what the other may do, and is who did it.
        for (depth, acting) in claims.actors().enumerate() {
            if ClientName::parse(acting).is_some() {
                continue;
            }
            rests_on.push(acting.to_owned());
            let acting = self.identity(log, acting).await?.ok_or_else(token_refused)?;
            if depth == 0 {
                (actor.who, actor.name) = (acting.who, acting.name);
            }
        }
        if let Some(scope) = &claims.scope {
            let held = std::mem::take(&mut actor.permissions);
            actor.permissions = narrowed(&held, scope.split(' '));
            // A client names its scopes itself, so they are no proof that somebody meant it to do what is dangerous.
            if self.0.settings.mfa_required && claims.sid.is_none() {
                actor.permissions.retain(|permission| !DANGEROUS.contains(&permission.as_str()) || held.contains(permission));
            }
            actor.permissions.push("profile.read".into());
        }
        actor.token = Some(claims);
        Ok(Recognised { actor, rests_on, until })
    }

    /// Refuses a token that was called back, or was begun before everything was. Answers whether there is an emergency.
    async fn check_called_back(&self, claims: &Claims, begun: Timestamp) -> Answer<bool> {
        let log = claims.tid;
        let guard = self.guard_of(log).await?;
        let is_before = guard.revoked_until.is_some_and(|until| begun <= until);
        if is_before {
            return Err(token_refused());
        }
        for token in claims.made_of.iter().chain([&claims.jti]) {
            if self.entity::<Token>(log, &token.to_string()).await?.is_some() {
                return Err(token_refused());
            }
        }
        Ok(guard.emergency.is_some())
    }

    /// An identity of a tenant with everything that it may do; `None` when it is gone.
    pub(crate) async fn identity(&self, log: TenantId, id: &str) -> Answer<Option<Actor>> {
        if id.starts_with("agent_") {
            let agent = self.entity::<Agent>(log, id).await?.filter(|agent| agent.state.suspended.is_none());
            let Some(agent) = agent else { return Ok(None) };
            let slug = self.slug_of(log).ok_or_else(token_refused)?;
            return Ok(Some(self.agent_actor(log, &slug, &agent)));
        }
        match self.entity::<User>(log, id).await?.filter(|user| user.state.suspended.is_none()) {
            Some(user) => self.user_actor(log, &user).await.map(Some),
            None => Ok(None),
        }
    }

    /// Who shows this API key.
    pub async fn authenticate_key(&self, presented: &str) -> Answer<Actor> {
        let slug = presented.strip_prefix("kk_").and_then(|rest| rest.split('_').next()).ok_or_else(key_refused)?;
        let log = self.tenant(slug).ok_or_else(key_refused)?.id;
        let hash = Sha256::digest(presented.as_bytes()).into();
        self.look_at_log(log).await?;
        if let Some(known) = self.0.known.get(&hash).filter(|known| self.env().now() < known.until) {
            return Ok(known.actor.clone());
        }
        let mark = self.0.known.mark();
        let id = self.key_id(log, &sha256_hex(presented)).await?.ok_or_else(key_refused)?;
        let (actor, until) = self.key_actor(log, id).await?;
        let rests_on = vec![id.to_string(), actor.who.id.clone()];
        self.0.known.put(hash, Arc::new(Recognised { actor: actor.clone(), rests_on, until }), mark);
        Ok(actor)
    }

    async fn key_actor(&self, log: TenantId, id: KeyId) -> Answer<(Actor, Timestamp)> {
        let key = self.entity::<Key>(log, &id.to_string()).await?.ok_or_else(key_refused)?;
        let guard = self.guard_of(log).await?;
        if self.is_suspended(log).await? {
            return Err(key_refused());
        }
        let is_before = guard.keys_revoked_until.is_some_and(|until| key.created_at <= until);
        if is_before || !key.state.is_valid(self.env().now()) {
            return Err(key_refused());
        }
        let issued = &key.state.issued;
        let mut actor = self.identity(log, &issued.owner.id).await?.ok_or_else(key_refused)?;
        (actor.key, actor.is_emergency) = (Some(id), guard.emergency.is_some());
        if let Some(limit) = &issued.permissions {
            // Everybody may see their own profile, whatever the key is limited to.
            actor.permissions = limited(&actor.permissions, limit);
            actor.permissions.push("profile.*".into());
        }
        Ok((actor, issued.expires_at.unwrap_or(Timestamp(i64::MAX))))
    }

    /// Whether somebody who was authenticated a while ago still is, and still holds a permission. What was begun with a
    /// token of a session goes on while the session does.
    pub async fn may_still(&self, actor: &Actor, permission: &str) -> bool {
        let now = match (&actor.token, actor.key) {
            (Some(claims), _) if claims.sid.is_some() && claims.act.is_none() => {
                let lasting = Claims { exp: i64::MAX / 1_000, ..claims.as_ref().clone() };
                self.recognised(Arc::new(lasting)).await.map(|found| found.actor)
            }
            (Some(claims), _) => self.recognised(claims.clone()).await.map(|found| found.actor),
            (None, Some(key)) => self.key_actor(actor.tenant, key).await.map(|(actor, _)| actor),
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

    /// An agent as it acts.
    pub(crate) fn agent_actor(&self, log: TenantId, slug: &str, agent: &Handled<Agent>) -> Actor {
        Actor {
            tenant: log,
            tenant_slug: slug.to_owned(),
            who: ActorRef { kind: ActorKind::Agent, id: agent.stream.clone() },
            name: agent.state.profile.name.clone(),
            user: None,
            session: None,
            key: None,
            token: None,
            proof: None,
            is_emergency: false,
            roles: vec!["agent".into()],
            permissions: builtin_role("agent").unwrap_or_default(),
        }
    }

    async fn user_actor(&self, log: TenantId, user: &Handled<User>) -> Answer<Actor> {
        let mut permissions = vec!["discovery.read".to_owned(), "profile.*".to_owned()];
        let mut roles = user.state.roles.clone();
        roles.extend(self.teams_of(log, &user.stream).await?.into_iter().flat_map(|team| team.state.roles.clone()));
        roles.sort();
        roles.dedup();
        for role in &roles {
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
            token: None,
            proof: None,
            is_emergency: false,
            roles,
            permissions,
        })
    }

    pub(crate) fn slug_of(&self, log: TenantId) -> Option<String> {
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
