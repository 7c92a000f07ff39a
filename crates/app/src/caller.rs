//! Who calls a use case, with everything about the request that ends up in events.

use domain::policy::Reach;
use engine::Context;
use kernel::id::AgentId;
use kernel::{Actor, ActorKind, Kind, Origin, Rejection};
use store::IdempotencyKey;

/// An authorised request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub actor: Actor,
    /// How far the permission that the request needs reaches.
    pub reach: Reach,
    /// From where.
    pub origin: Origin,
    /// What belongs together.
    pub correlation: String,
    /// W3C `traceparent`.
    pub trace_parent: Option<String>,
    /// `Idempotency-Key` and the hash of the request.
    pub idempotency: Option<(String, [u8; 32])>,
    /// `If-Match`.
    pub if_match: Option<u64>,
    /// The position as of which entities are read; now when there is none.
    pub at: Option<u64>,
}

impl Caller {
    /// What events keep of it.
    pub(crate) fn context(&self) -> Context {
        Context {
            actor: self.actor.who.clone(),
            user: self.actor.user,
            origin: self.origin.clone(),
            correlation: self.correlation.clone(),
            causation: None,
            trace_parent: self.trace_parent.clone(),
            idempotency: self.idempotency_key(),
            if_match: self.if_match,
        }
    }

    /// The key as it is stored: scoped to the caller, so that nobody meets another's.
    pub(crate) fn idempotency_key(&self) -> Option<IdempotencyKey> {
        let (key, request_hash) = self.idempotency.as_ref()?;
        Some(IdempotencyKey { key: format!("{}:{key}", self.actor.who.id), request_hash: *request_hash })
    }

    /// Whether the caller sees everything of its tenant, or only what it created or is assigned to.
    pub(crate) fn sees_all(&self) -> bool {
        self.reach == Reach::All
    }

    /// The agent that calls.
    pub(crate) fn agent(&self) -> Result<AgentId, Rejection> {
        let agent = (self.actor.who.kind == ActorKind::Agent).then(|| self.actor.who.id.parse().ok()).flatten();
        agent.ok_or_else(|| {
            Rejection::new(
                Kind::Forbidden,
                "AGENT_REQUIRED",
                format!("Only an agent can do this; you are {}.", self.actor.who),
                "Use an agent's key: POST /api/v1/agents/{id}/actions/issue-key makes one.",
            )
        })
    }
}
