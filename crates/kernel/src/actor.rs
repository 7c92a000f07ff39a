//! Who does something, and from where.

use crate::id::{KeyId, SessionId, TenantId, TokenId, UserId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What kind of identity acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A person.
    User,
    /// An agent with an identity of its own.
    Agent,
    /// A program that is no agent.
    Service,
    /// Keiko itself.
    System,
}

impl ActorKind {
    /// The word used in events and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            ActorKind::User => "user",
            ActorKind::Agent => "agent",
            ActorKind::Service => "service",
            ActorKind::System => "system",
        }
    }
}

/// An actor as events keep it: no personal data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ActorRef {
    /// Which kind of identity.
    pub kind: ActorKind,
    /// Its id; for the system, the name of the part that acts.
    pub id: String,
}

impl ActorRef {
    /// A part of Keiko.
    pub fn system(part: &str) -> Self {
        ActorRef { kind: ActorKind::System, id: part.to_owned() }
    }
}

impl fmt::Display for ActorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.id)
    }
}

/// Network address and client string of a request: personal data, kept beside an event's data and erased with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Address of the peer, without the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What the client called itself (`User-Agent`), cut to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// An authenticated identity with what it may do.
#[derive(Clone, Debug)]
pub struct Actor {
    /// Whose data it may see.
    pub tenant: TenantId,
    /// The tenant's slug.
    pub tenant_slug: String,
    /// Who it is.
    pub who: ActorRef,
    /// What it is called, for people.
    pub name: String,
    /// The person behind it, where there is one.
    pub user: Option<UserId>,
    /// The session of a login.
    pub session: Option<SessionId>,
    /// The API key that was shown.
    pub key: Option<KeyId>,
    /// The access token that was shown.
    pub token: Option<Arc<Claims>>,
    /// How a person proved who it is, where a session says so.
    pub proof: Option<Proof>,
    /// Whether there is an emergency in its tenant, in which less is allowed.
    pub is_emergency: bool,
    /// Roles by name.
    pub roles: Vec<String>,
    /// Permissions, already cut to what the credential allows.
    pub permissions: Vec<String>,
}

/// How a person proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whether the account may do everything.
    pub is_admin: bool,
    /// Whether the account has a second factor.
    pub has_mfa: bool,
    /// Whether it was shown.
    pub is_multi_factor: bool,
    /// When.
    pub at: Timestamp,
}

/// What an access token says (RFC 9068). Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who made it.
    pub iss: String,
    /// For which resource.
    pub aud: String,
    /// Who may do what it allows: a user, a service or an agent.
    pub sub: String,
    /// Whose tenant.
    pub tid: TenantId,
    /// Which client got it.
    pub client_id: String,
    /// The session that it belongs to, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<SessionId>,
    /// Permissions that it is limited to, apart by blanks; everything that the subject may do when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Its name.
    pub jti: TokenId,
    /// When it was made.
    pub iat: i64,
    /// When it ends.
    pub exp: i64,
    /// How well the person was authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// When the person was authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    /// Who acts for the subject (RFC 8693).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Act>>,
    /// The tokens that it was made of, one after the other: it ends when one of them is called back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_of: Vec<TokenId>,
}

/// Somebody who acts for another, and through whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// Who acts.
    pub sub: String,
    /// Who acted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Act>>,
}

impl Claims {
    /// Everybody who acts for the subject, the present one first.
    pub fn actors(&self) -> impl Iterator<Item = &str> {
        let mut next = self.act.as_deref();
        std::iter::from_fn(move || {
            let act = next?;
            next = act.act.as_deref();
            Some(act.sub.as_str())
        })
    }
}
