//! An API key: 256 random bits, of which the log keeps the SHA-256 only.

use kernel::rules::Meta;
use kernel::{ActorRef, Decider, Facts, IndexField, Rejection, Timestamp, UniqueChange};
use serde::{Deserialize, Serialize};

/// What may be asked of a key.
#[derive(Clone, Debug)]
pub enum KeyCommand {
    /// Make it.
    Issue(Issued),
    /// End it.
    Revoke,
}

/// `identity.key.issued`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Issued {
    /// Name for people.
    pub name: String,
    /// Who acts with it.
    pub owner: ActorRef,
    /// What it allows at most; `None` is everything that its owner may do at the time of use.
    pub permissions: Option<Vec<String>>,
    /// The first characters, by which people tell keys apart.
    pub prefix: String,
    /// SHA-256 of the whole key, hexadecimal.
    pub sha256: String,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
}

/// `identity.key.revoked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revoked {}

kernel::events! {
    /// What happened to a key.
    KeyEvent {
        Issued(Issued) = "identity.key.issued" @ 1,
        Revoked(Revoked) = "identity.key.revoked" @ 1,
    }
}

/// An API key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// As it was issued.
    pub issued: Issued,
    /// Whether it was ended.
    pub is_revoked: bool,
}

impl Key {
    /// Whether it works at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        !self.is_revoked && self.issued.expires_at.is_none_or(|end| now < end)
    }
}

impl Decider for Key {
    const KIND: &'static str = "key";
    type State = Key;
    type Command = KeyCommand;
    type Event = KeyEvent;

    fn decide(state: Option<&Key>, command: &KeyCommand, _: &Facts) -> Result<Vec<KeyEvent>, Rejection> {
        match (command, state) {
            (KeyCommand::Issue(issued), None) => Ok(vec![KeyEvent::Issued(issued.clone())]),
            (KeyCommand::Issue(_), Some(_)) => Err(super::already("key")),
            (KeyCommand::Revoke, Some(key)) if !key.is_revoked => Ok(vec![KeyEvent::Revoked(Revoked {})]),
            (KeyCommand::Revoke, _) => Ok(vec![]),
        }
    }

    fn evolve(state: Option<Key>, event: &KeyEvent, _: &Meta) -> Option<Key> {
        match event {
            KeyEvent::Issued(issued) => Some(Key { issued: issued.clone(), is_revoked: false }),
            KeyEvent::Revoked(_) => state.map(|k| Key { is_revoked: true, ..k }),
        }
    }

    fn is_terminal(state: &Key) -> bool {
        state.is_revoked
    }

    fn is_deleted(state: &Key) -> bool {
        state.is_revoked
    }

    fn index(state: &Key) -> Vec<IndexField> {
        vec![IndexField::new("owner", &state.issued.owner.id)]
    }

    fn unique(_: Option<&Key>, event: &KeyEvent) -> Vec<UniqueChange> {
        match event {
            KeyEvent::Issued(issued) => vec![UniqueChange::Take(hash_key(&issued.sha256))],
            KeyEvent::Revoked(_) => vec![],
        }
    }
}

/// The unique key by which a presented API key is found.
pub fn hash_key(sha256: &str) -> String {
    format!("key.sha256:{sha256}")
}
