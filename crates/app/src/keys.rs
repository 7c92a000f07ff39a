//! API keys: shown once, stored as a hash, limited, expiring, revocable.

use crate::app::App;
use crate::crypto::{fresh_secret, sha256_hex};
use crate::errors::Problems;
use crate::identities::check_permissions;
use crate::{Answer, Caller, ListOrder, Page};
use domain::agent::Agent;
use domain::identity::key::{Issued, Key, KeyCommand};
use domain::identity::user::UserKind;
use engine::{Extras, Handled, Step};
use kernel::id::KeyId;
use kernel::{ActorKind, ActorRef, Kind, Rejection, Timestamp};

/// A key to be made.
pub struct NewKey {
    /// Name for people.
    pub name: String,
    /// What it allows at most; `None` is everything that its owner may do.
    pub permissions: Option<Vec<String>>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// Who acts with it, by id or name; `None` is the caller.
    pub owner: Option<String>,
}

fn not_found(searched: &str) -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "KEY_NOT_FOUND",
        format!("There is no API key '{searched}' in this tenant."),
        "List keys with GET /api/v1/api-keys.",
    )
    .with("searched_id", searched)
}

impl App {
    /// Makes a key; the second value is the key itself, shown only here.
    pub async fn create_key(&self, caller: &Caller, new: NewKey) -> Answer<(Handled<Key>, String)> {
        let mut problems = Problems::default();
        problems.name("/name", &new.name);
        problems.check()?;
        let mut problems = Problems::default();
        if new.expires_at.is_some_and(|end| end <= self.env().now()) {
            problems.add("/expires_at", "must be in the future");
        }
        problems.refuse()?;
        check_permissions(caller, new.permissions.as_deref().unwrap_or_default())?;
        let owner = match &new.owner {
            None => caller.actor.who.clone(),
            Some(owner) => self.key_owner(caller, owner).await?,
        };
        let (permissions, expires_at) = self.within_own_key(caller, new.permissions, new.expires_at).await?;
        let (prefix, sha256) = (String::new(), String::new());
        self.issue(caller, Issued { name: new.name, owner, permissions, prefix, sha256, expires_at }).await
    }

    /// A key makes no key that may do more, or lives longer, than itself.
    async fn within_own_key(
        &self,
        caller: &Caller,
        permissions: Option<Vec<String>>,
        expires_at: Option<Timestamp>,
    ) -> Answer<(Option<Vec<String>>, Option<Timestamp>)> {
        if caller.actor.token.as_ref().is_some_and(|token| token.scope.is_some() || token.act.is_some()) {
            return Err(Rejection::new(
                Kind::Forbidden,
                "KEY_OWNER_REFUSED",
                "A token that is limited by scopes, or acts for somebody, makes no keys: they would outlive it.",
                "Sign in without a client in between, with 'keiko login'.",
            ));
        }
        let Some(own) = caller.actor.key else { return Ok((permissions, expires_at)) };
        let own = self.key(caller, &own.to_string()).await?;
        let end = match (expires_at, own.state.issued.expires_at) {
            (Some(asked), Some(own)) => Some(asked.min(own)),
            (asked, own) => asked.or(own),
        };
        Ok((permissions.or_else(|| Some(caller.actor.permissions.clone())), end))
    }

    /// A key for somebody else lets the caller act as them: only for services, and for those who hold no more.
    async fn key_owner(&self, caller: &Caller, owner: &str) -> Answer<ActorRef> {
        let user = self.user(caller, owner).await?;
        if user.state.kind != UserKind::Service && user.stream != caller.actor.who.id {
            let message = "A key of another person can be made by that person only.";
            return Err(Rejection::new(
                Kind::Forbidden,
                "KEY_OWNER_REFUSED",
                message,
                "Make a service with POST /api/v1/users {\"kind\": \"service\"} and give it the key.",
            ));
        }
        self.check_no_mightier(caller, &user).await?;
        let kind = if user.state.kind == UserKind::Service { ActorKind::Service } else { ActorKind::User };
        Ok(ActorRef { kind, id: user.stream })
    }

    /// A key that lets an agent act as itself.
    pub async fn issue_agent_key(&self, caller: &Caller, agent: &Handled<Agent>) -> Answer<(Handled<Key>, String)> {
        let owner = ActorRef { kind: ActorKind::Agent, id: agent.stream.clone() };
        let name = format!("{} (agent)", agent.state.profile.name);
        self.issue(
            caller,
            Issued { name, owner, permissions: None, prefix: String::new(), sha256: String::new(), expires_at: None },
        )
        .await
    }

    async fn issue(&self, caller: &Caller, issued: Issued) -> Answer<(Handled<Key>, String)> {
        let secret = fresh_secret(self.env());
        let key = format!("kk_{}_{secret}", caller.actor.tenant_slug);
        let prefix = format!("kk_{}_{}", caller.actor.tenant_slug, &secret[..6]);
        let id: KeyId = self.env().id();
        let step = Step::new::<Key>(id, KeyCommand::Issue(Issued { prefix, sha256: sha256_hex(&key), ..issued }));
        let caller = Caller { idempotency: None, if_match: None, ..caller.clone() };
        Ok((self.execute::<Key>(&caller, step, Extras::default()).await?, key))
    }

    /// One key.
    pub async fn key(&self, caller: &Caller, id: &str) -> Answer<Handled<Key>> {
        let found = match id.parse::<KeyId>() {
            Ok(id) => self.read::<Key>(caller, &id.to_string()).await?,
            Err(_) => None,
        };
        found.ok_or_else(|| not_found(id))
    }

    /// All keys that work.
    pub async fn keys(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Key>> {
        self.list::<Key>(caller, order, vec![]).await
    }

    /// Ends a key at once.
    pub async fn revoke_key(&self, caller: &Caller, id: &str) -> Answer<()> {
        let key = self.key(caller, id).await?;
        self.execute::<Key>(caller, Step::on::<Key>(key.stream, KeyCommand::Revoke), Extras::default()).await.map(|_| ())
    }
}
