//! What guards a tenant as a whole: everything called back at once, and an emergency in which less is allowed. One for
//! each tenant.

use kernel::id::GuardId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Rejection, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

/// What may be asked of a guard.
#[derive(Clone, Debug)]
pub enum GuardCommand {
    /// Call back every session and token, and API keys too if they are meant.
    RevokeAll {
        /// Whether API keys end too.
        keys: bool,
    },
    /// Allow less.
    Declare {
        /// Why.
        reason: String,
    },
    /// Allow as much as before.
    Lift,
}

/// `identity.guard.all_revoked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllRevoked {
    /// Everything that was made up to here has ended.
    pub until: Timestamp,
    /// Whether API keys have ended too.
    pub keys: bool,
}

/// `identity.guard.emergency_declared`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmergencyDeclared {
    /// Why.
    pub reason: String,
}

/// `identity.guard.emergency_lifted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmergencyLifted {}

kernel::events! {
    /// What happened to a guard.
    GuardEvent {
        AllRevoked(AllRevoked) = "identity.guard.all_revoked" @ 1,
        EmergencyDeclared(EmergencyDeclared) = "identity.guard.emergency_declared" @ 1,
        EmergencyLifted(EmergencyLifted) = "identity.guard.emergency_lifted" @ 1,
    }
}

/// A tenant's guard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Sessions and tokens that were made up to here have ended.
    pub revoked_until: Option<Timestamp>,
    /// API keys that were made up to here have ended.
    pub keys_revoked_until: Option<Timestamp>,
    /// Why less is allowed.
    pub emergency: Option<String>,
}

/// The guard of a tenant.
pub fn guard_id(tenant: TenantId) -> GuardId {
    GuardId::derived(&[&tenant.bytes()])
}

impl Decider for Guard {
    const KIND: &'static str = "guard";
    type State = Guard;
    type Command = GuardCommand;
    type Event = GuardEvent;

    fn decide(state: Option<&Guard>, command: &GuardCommand, facts: &Facts) -> Result<Vec<GuardEvent>, Rejection> {
        let emergency = state.and_then(|guard| guard.emergency.as_ref());
        Ok(match command {
            GuardCommand::RevokeAll { keys } => vec![GuardEvent::AllRevoked(AllRevoked { until: facts.now, keys: *keys })],
            GuardCommand::Declare { reason } if emergency == Some(reason) => vec![],
            GuardCommand::Declare { reason } => vec![GuardEvent::EmergencyDeclared(EmergencyDeclared { reason: reason.clone() })],
            // The first word about a tenant's guard is written down, even when it changes nothing.
            GuardCommand::Lift if state.is_some() && emergency.is_none() => vec![],
            GuardCommand::Lift => vec![GuardEvent::EmergencyLifted(EmergencyLifted {})],
        })
    }

    fn evolve(state: Option<Guard>, event: &GuardEvent, _: &Meta) -> Option<Guard> {
        let guard = state.unwrap_or_default();
        Some(match event {
            GuardEvent::AllRevoked(a) => Guard {
                revoked_until: Some(a.until),
                keys_revoked_until: if a.keys { Some(a.until) } else { guard.keys_revoked_until },
                ..guard
            },
            GuardEvent::EmergencyDeclared(e) => Guard { emergency: Some(e.reason.clone()), ..guard },
            GuardEvent::EmergencyLifted(_) => Guard { emergency: None, ..guard },
        })
    }

    fn is_terminal(_: &Guard) -> bool {
        false
    }

    fn index(_: &Guard) -> Vec<IndexField> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::ActorRef;

    #[test]
    fn what_was_called_back_once_stays_so_and_keys_end_only_when_they_are_meant() {
        let meta = Meta { version: 1, at: Timestamp(0), actor: ActorRef::system("test") };
        let revoked = |until, keys| GuardEvent::AllRevoked(AllRevoked { until: Timestamp(until), keys });
        let guard = [revoked(5, true), revoked(9, false)].iter().fold(None, |state, event| Guard::evolve(state, event, &meta));
        let guard = guard.unwrap();
        assert_eq!((guard.revoked_until, guard.keys_revoked_until), (Some(Timestamp(9)), Some(Timestamp(5))));
    }
}
