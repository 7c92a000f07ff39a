//! What a person allowed a client to do. One for each person and client.

use kernel::id::ConsentId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Rejection, TenantId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What may be asked of a consent.
#[derive(Clone, Debug)]
pub enum ConsentCommand {
    /// Allow these too.
    Grant(Granted),
    /// Take everything back.
    Revoke,
}

/// `identity.consent.granted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// Who allows.
    pub user: UserId,
    /// To whom.
    pub client: String,
    /// What, beside what was allowed before.
    pub scopes: Vec<String>,
}

/// `identity.consent.revoked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revoked {}

kernel::events! {
    /// What happened to a consent.
    ConsentEvent {
        Granted(Granted) = "identity.consent.granted" @ 1,
        Revoked(Revoked) = "identity.consent.revoked" @ 1,
    }
}

/// A consent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Consent {
    /// Who allows.
    pub user: UserId,
    /// To whom.
    pub client: String,
    /// What.
    pub scopes: BTreeSet<String>,
    /// Whether it was taken back.
    pub is_revoked: bool,
}

impl Consent {
    /// Whether all of these are allowed.
    pub fn covers(&self, scopes: &[String]) -> bool {
        !self.is_revoked && scopes.iter().all(|scope| self.scopes.contains(scope))
    }
}

/// The consent of a person for a client.
pub fn consent_id(tenant: TenantId, user: UserId, client: &str) -> ConsentId {
    ConsentId::derived(&[&tenant.bytes(), &user.bytes(), client.as_bytes()])
}

impl Decider for Consent {
    const KIND: &'static str = "consent";
    type State = Consent;
    type Command = ConsentCommand;
    type Event = ConsentEvent;

    fn decide(state: Option<&Consent>, command: &ConsentCommand, _: &Facts) -> Result<Vec<ConsentEvent>, Rejection> {
        Ok(match (command, state) {
            (ConsentCommand::Grant(granted), Some(consent)) if consent.covers(&granted.scopes) => vec![],
            (ConsentCommand::Grant(granted), _) => vec![ConsentEvent::Granted(granted.clone())],
            (ConsentCommand::Revoke, Some(consent)) if !consent.is_revoked => vec![ConsentEvent::Revoked(Revoked {})],
            (ConsentCommand::Revoke, _) => vec![],
        })
    }

    fn evolve(state: Option<Consent>, event: &ConsentEvent, _: &Meta) -> Option<Consent> {
        match event {
            ConsentEvent::Granted(g) => {
                let mut scopes = state.filter(|c| !c.is_revoked).map(|c| c.scopes).unwrap_or_default();
                scopes.extend(g.scopes.iter().cloned());
                Some(Consent { user: g.user, client: g.client.clone(), scopes, is_revoked: false })
            }
            ConsentEvent::Revoked(_) => state.map(|c| Consent { scopes: BTreeSet::new(), is_revoked: true, ..c }),
        }
    }

    fn is_terminal(_: &Consent) -> bool {
        false
    }

    fn is_deleted(state: &Consent) -> bool {
        state.is_revoked
    }

    fn index(state: &Consent) -> Vec<IndexField> {
        vec![IndexField::new("user", state.user.to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn folded(events: &[ConsentEvent]) -> Option<Consent> {
        let meta = Meta { version: 1, at: Timestamp(0), actor: ActorRef::system("test") };
        events.iter().fold(None, |state, event| Consent::evolve(state, event, &meta))
    }

    fn granted(scopes: &[&str]) -> ConsentEvent {
        let scopes = scopes.iter().map(|s| (*s).to_owned()).collect();
        ConsentEvent::Granted(Granted { user: UserId::from_bytes([1; 16]), client: "c".into(), scopes })
    }

    #[test]
    fn what_was_allowed_adds_up_and_is_taken_back_as_a_whole() {
        let both = folded(&[granted(&["a.b"]), granted(&["c.d"])]).unwrap();
        assert!(both.covers(&["a.b".into(), "c.d".into()]));
        assert!(!both.covers(&["a.b".into(), "e.f".into()]));
        let again = folded(&[granted(&["a.b"]), ConsentEvent::Revoked(Revoked {}), granted(&["c.d"])]).unwrap();
        assert!(!again.covers(&["a.b".into()]), "what was taken back does not come back with the next consent");
        assert!(!folded(&[granted(&["a.b"]), ConsentEvent::Revoked(Revoked {})]).unwrap().covers(&[]));
    }
}
