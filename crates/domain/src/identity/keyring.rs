//! The keys that sign tokens, and when they take over from one another. Private parts are sealed secrets beside the log;
//! events hold the public parts. There is one ring, in the log of the default tenant.

use kernel::id::KeyringId;
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Json, Rejection, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

/// How long a key is published before it signs: by then everybody who keeps a copy of the list has looked again.
pub const PUBLISHED_BEFORE_MS: u64 = 10 * 60_000;

/// What may be asked of the ring.
#[derive(Clone, Debug)]
pub enum KeyringCommand {
    /// Make the ring with its first key, unless there is one.
    Begin(Added),
    /// Publish a further key, which signs after a while.
    Add(Added),
    /// Forget a key that nobody needs any more.
    Retire {
        /// Which.
        kid: String,
    },
}

/// `identity.signing_key.added`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Added {
    /// Its name in tokens.
    pub kid: String,
    /// The public part as a JSON Web Key.
    pub jwk: Json,
}

/// `identity.signing_key.retired`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retired {
    /// Which.
    pub kid: String,
}

kernel::events! {
    /// What happened to the ring.
    KeyringEvent {
        Added(Added) = "identity.signing_key.added" @ 1,
        Retired(Retired) = "identity.signing_key.retired" @ 1,
    }
}

/// A key of the ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingKey {
    /// Its name in tokens.
    pub kid: String,
    /// The public part as a JSON Web Key.
    pub jwk: Json,
    /// When it was published.
    pub added_at: Timestamp,
}

/// The ring, oldest key first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Keyring {
    /// The keys that are published.
    pub keys: Vec<RingKey>,
}

impl Keyring {
    /// The key that signs: the newest one that was published long enough, or the first.
    pub fn signing(&self, now: Timestamp) -> Option<&RingKey> {
        let is_known = |key: &&RingKey| now.since_ms(key.added_at) >= PUBLISHED_BEFORE_MS;
        self.keys.iter().rev().find(is_known).or(self.keys.first())
    }

    /// Whether it is time for a further key.
    pub fn is_due(&self, now: Timestamp, lifetime_ms: u64) -> bool {
        self.keys.last().is_none_or(|key| now.since_ms(key.added_at) >= lifetime_ms)
    }

    /// Keys that another one took over from so long ago that no token of theirs works.
    pub fn over(&self, now: Timestamp, token_ttl_ms: u64) -> Vec<&str> {
        let followed = self.keys.iter().zip(self.keys.iter().skip(1));
        let is_over = |next: &RingKey| now.since_ms(next.added_at) >= PUBLISHED_BEFORE_MS + token_ttl_ms;
        followed.filter(|(_, next)| is_over(next)).map(|(key, _)| key.kid.as_str()).collect()
    }
}

/// The ring of an installation.
pub fn keyring_id(root: TenantId) -> KeyringId {
    KeyringId::derived(&[&root.bytes()])
}

/// The name of the sealed secret that holds a key's private part.
pub fn private_secret(kid: &str) -> String {
    format!("signing:{kid}")
}

impl Decider for Keyring {
    const KIND: &'static str = "ring";
    type State = Keyring;
    type Command = KeyringCommand;
    type Event = KeyringEvent;

    fn decide(state: Option<&Keyring>, command: &KeyringCommand, _: &Facts) -> Result<Vec<KeyringEvent>, Rejection> {
        let has = |kid: &str| state.is_some_and(|ring| ring.keys.iter().any(|key| key.kid == kid));
        Ok(match command {
            KeyringCommand::Begin(_) if state.is_some() => vec![],
            KeyringCommand::Add(added) if has(&added.kid) => vec![],
            KeyringCommand::Begin(added) | KeyringCommand::Add(added) => vec![KeyringEvent::Added(added.clone())],
            KeyringCommand::Retire { kid } if has(kid) => vec![KeyringEvent::Retired(Retired { kid: kid.clone() })],
            KeyringCommand::Retire { .. } => vec![],
        })
    }

    fn evolve(state: Option<Keyring>, event: &KeyringEvent, meta: &Meta) -> Option<Keyring> {
        let mut ring = state.unwrap_or_default();
        match event {
            KeyringEvent::Added(a) => {
                ring.keys.push(RingKey { kid: a.kid.clone(), jwk: a.jwk.clone(), added_at: meta.at });
            }
            KeyringEvent::Retired(r) => ring.keys.retain(|key| key.kid != r.kid),
        }
        Some(ring)
    }

    fn is_terminal(_: &Keyring) -> bool {
        false
    }

    fn index(_: &Keyring) -> Vec<IndexField> {
        vec![]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAD: i64 = PUBLISHED_BEFORE_MS as i64;

    fn ring(added: &[i64]) -> Keyring {
        let key = |(n, at): (usize, &i64)| RingKey {
            kid: format!("k{n}"),
            jwk: Json::of(&serde_json::json!({})).unwrap(),
            added_at: Timestamp(*at),
        };
        Keyring { keys: added.iter().enumerate().map(key).collect() }
    }

    fn signing(ring: &Keyring, now: i64) -> &str {
        &ring.signing(Timestamp(now)).unwrap().kid
    }

    #[test]
    fn a_new_key_is_published_before_it_signs_and_the_first_signs_at_once() {
        assert_eq!(signing(&ring(&[0]), 0), "k0");
        assert_eq!(signing(&ring(&[0, LEAD]), 2 * LEAD - 1), "k0");
        assert_eq!(signing(&ring(&[0, LEAD]), 2 * LEAD), "k1");
    }

    #[test]
    fn a_key_is_forgotten_when_the_last_token_that_it_signed_is_over() {
        let both = ring(&[0, 1_000]);
        assert!(both.over(Timestamp(1_000 + LEAD + 899), 900).is_empty());
        assert_eq!(both.over(Timestamp(1_000 + LEAD + 900), 900), ["k0"]);
        assert!(ring(&[0]).over(Timestamp(i64::MAX / 2), 900).is_empty(), "the last key stays");
    }

    #[test]
    fn a_further_key_is_due_when_the_newest_is_old() {
        assert!(!ring(&[0, 500]).is_due(Timestamp(1_499), 1_000));
        assert!(ring(&[0, 500]).is_due(Timestamp(1_500), 1_000));
    }
}
