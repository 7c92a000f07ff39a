//! The event, as it is stored for ever.
//!
//! An event is a header without personal data and a payload. The payload's bytes are kept exactly as they were hashed.
//! The Merkle leaf is `H(0x00 ‖ header ‖ H(salt ‖ payload))`, so erasing payload and salt keeps every proof valid.
//! The header's encoding is fixed by [`EventHeader::encode`] and its golden test; it can never change.

use crate::actor::{ActorKind, ActorRef, Origin};
use crate::id::{EventId, TenantId, UserId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Number of a stored header encoding.
const HEADER_ENCODING: u8 = 1;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// A change inside Keiko.
    Domain,
    /// A fact from or for another system.
    Integration,
    /// A change of Keiko's own condition.
    System,
}

impl Category {
    /// The number in the stored header.
    pub fn code(self) -> u8 {
        match self {
            Category::Domain => 0,
            Category::Integration => 1,
            Category::System => 2,
        }
    }

    /// The category of a stored number; unknown ones read as `System`.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Category::Domain,
            1 => Category::Integration,
            _ => Category::System,
        }
    }
}

/// Everything about an event but its payload and its place in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Its id.
    pub id: EventId,
    /// `domain.entity.action`, past tense.
    pub kind: &'static str,
    /// Version of the payload's shape.
    pub shape: u16,
    /// What it is about.
    pub category: Category,
    /// When it happened, by the engine's clock.
    pub occurred_at: Timestamp,
    /// Who caused it.
    pub actor: ActorRef,
    /// The person behind the actor.
    pub user: Option<UserId>,
    /// What belongs together (W3C trace id or request id).
    pub correlation: String,
    /// The event that caused it.
    pub causation: Option<EventId>,
    /// W3C `traceparent` of the request.
    pub trace_parent: Option<String>,
    /// What it says.
    pub content: Content,
}

/// What an event or an entry says, as far as it is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Whole {
        /// 16 random bytes that make erased content unguessable.
        salt: [u8; 16],
        /// The exact bytes; of an event see [`payload`].
        bytes: Vec<u8>,
    },
    /// It was erased; its hash is left. Only what is put back from a backup comes like this.
    Erased([u8; 32]),
}

impl Content {
    /// `H(salt ‖ bytes)`.
    pub fn hash(&self) -> [u8; 32] {
        match self {
            Content::Whole { salt, bytes } => payload_hash(salt, bytes),
            Content::Erased(hash) => *hash,
        }
    }

    /// The salt, if it is there.
    pub fn salt(&self) -> Option<&[u8]> {
        match self {
            Content::Whole { salt, .. } => Some(salt),
            Content::Erased(_) => None,
        }
    }

    /// The bytes, if they are there.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Content::Whole { bytes, .. } => Some(bytes),
            Content::Erased(_) => None,
        }
    }

    /// Salt and bytes, if they are there.
    pub fn parts(self) -> (Option<[u8; 16]>, Option<Vec<u8>>) {
        match self {
            Content::Whole { salt, bytes } => (Some(salt), Some(bytes)),
            Content::Erased(_) => (None, None),
        }
    }
}

/// The type of the event that says that the content of its stream was erased. It belongs to any entity.
pub const ERASED: &str = "audit.payload.erased";

/// An event's header as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct EventHeader {
    /// Its id.
    pub id: EventId,
    /// `domain.entity.action`, past tense.
    pub kind: String,
    /// Version of the payload's shape.
    pub shape: u16,
    /// What it is about.
    pub category: Category,
    /// The log.
    pub tenant: TenantId,
    /// The entity.
    pub stream: String,
    /// Place in the stream, from 1, gapless.
    pub version: u64,
    /// Place in the log, from 1, gapless.
    pub position: u64,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// When it was written; never runs backwards within a log.
    pub recorded_at: Timestamp,
    /// Who caused it.
    pub actor: ActorRef,
    /// The person behind the actor.
    pub user: Option<UserId>,
    /// What belongs together.
    pub correlation: String,
    /// The event that caused it.
    pub causation: Option<EventId>,
    /// W3C `traceparent`.
    pub trace_parent: Option<String>,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The header.
    pub header: EventHeader,
    /// The salt; `None` after erasure.
    pub salt: Option<[u8; 16]>,
    /// The payload's bytes; `None` after erasure.
    pub payload: Option<Vec<u8>>,
    /// `H(salt ‖ payload)`, kept after erasure.
    pub payload_hash: [u8; 32],
    /// The Merkle leaf.
    pub leaf: [u8; 32],
}

/// `H(salt ‖ payload)`.
pub fn payload_hash(salt: &[u8; 16], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(payload).finalize().into()
}

impl EventHeader {
    /// The bytes that are hashed: an encoding number, then each field in this order, big endian, texts and options with
    /// a 32-bit length (`0xffffffff` for none).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.push(HEADER_ENCODING);
        out.extend(self.id.bytes());
        put(&mut out, Some(self.kind.as_bytes()));
        out.extend(self.shape.to_be_bytes());
        out.push(self.category.code());
        out.extend(self.tenant.bytes());
        put(&mut out, Some(self.stream.as_bytes()));
        out.extend(self.version.to_be_bytes());
        out.extend(self.position.to_be_bytes());
        out.extend(self.occurred_at.0.to_be_bytes());
        out.extend(self.recorded_at.0.to_be_bytes());
        put(&mut out, Some(self.actor.kind.as_str().as_bytes()));
        put(&mut out, Some(self.actor.id.as_bytes()));
        put(&mut out, self.user.map(|u| u.bytes()).as_ref().map(|b| &b[..]));
        put(&mut out, Some(self.correlation.as_bytes()));
        put(&mut out, self.causation.map(|c| c.bytes()).as_ref().map(|b| &b[..]));
        put(&mut out, self.trace_parent.as_ref().map(|t| t.as_bytes()));
        out
    }

    /// The Merkle leaf of this header and a payload hash (RFC 6962 leaf prefix).
    pub fn leaf(&self, payload_hash: &[u8; 32]) -> [u8; 32] {
        Sha256::new().chain_update([0u8]).chain_update(self.encode()).chain_update(payload_hash).finalize().into()
    }

    /// `source` of the event as shown: who caused it.
    pub fn source(&self) -> String {
        self.actor.to_string()
    }
}

pub(crate) fn put(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => out.extend(u32::MAX.to_be_bytes()),
        Some(bytes) => {
            // Fields are far below 4 GiB: bodies are limited to 1 MiB.
            out.extend((bytes.len() as u32).to_be_bytes());
            out.extend(bytes);
        }
    }
}

/// The stored payload: the event's data, and the origin of the request that goes with it.
#[derive(Serialize)]
struct PayloadShape<'a, D> {
    data: &'a D,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
}

/// The bytes to store for `data` and where it came from.
pub fn payload<D: Serialize>(data: &D, origin: &Origin) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&PayloadShape { data, address: origin.address.as_deref(), client: origin.client.as_deref() })
}

/// The parts of a stored payload; `data` is borrowed, not parsed.
#[derive(Deserialize)]
pub struct PayloadParts<'a> {
    /// The event's data.
    #[serde(borrow)]
    pub data: &'a RawValue,
    /// Address of the peer.
    #[serde(default)]
    pub address: Option<String>,
    /// Client string.
    #[serde(default)]
    pub client: Option<String>,
}

impl Recorded {
    /// Splits the payload; `None` when it was erased.
    pub fn parts(&self) -> Option<Result<PayloadParts<'_>, serde_json::Error>> {
        self.payload.as_deref().map(serde_json::from_slice)
    }

    /// Whether hashes and content agree. An erased payload is covered by its kept hash.
    pub fn is_intact(&self) -> bool {
        let payload_ok = match (&self.salt, &self.payload) {
            (Some(salt), Some(payload)) => payload_hash(salt, payload) == self.payload_hash,
            (None, None) => true,
            _ => false,
        };
        payload_ok && self.header.leaf(&self.payload_hash) == self.leaf
    }
}

/// The actor kind of a stored word; unknown ones read as `System`.
pub fn actor_kind(word: &str) -> ActorKind {
    match word {
        "user" => ActorKind::User,
        "agent" => ActorKind::Agent,
        "service" => ActorKind::Service,
        _ => ActorKind::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex;

    fn header() -> EventHeader {
        EventHeader {
            id: EventId::from_bytes([1; 16]),
            kind: "tasks.task.submitted".into(),
            shape: 1,
            category: Category::Domain,
            tenant: TenantId::from_bytes([2; 16]),
            stream: "task_01h455vb4pex5vsknk084sn02q".into(),
            version: 1,
            position: 42,
            occurred_at: Timestamp(1_767_225_600_000),
            recorded_at: Timestamp(1_767_225_600_001),
            actor: ActorRef { kind: ActorKind::User, id: "user_1".into() },
            user: Some(UserId::from_bytes([3; 16])),
            correlation: "req_1".into(),
            causation: None,
            trace_parent: None,
        }
    }

    /// Golden: a change here would break every stored proof.
    #[test]
    fn the_leaf_of_a_known_event_never_changes() {
        let inner = payload_hash(&[7; 16], b"{\"data\":{}}");
        assert_eq!(hex(&header().leaf(&inner)), GOLDEN_LEAF);
    }

    const GOLDEN_LEAF: &str = "07592812e0c76a6abfe46e99394a60e1463c9f310c002ec3c56cdb3ba5b75c6d";

    #[test]
    fn every_header_field_is_covered_by_the_leaf() {
        let inner = [9; 32];
        let base = header().leaf(&inner);
        let changes: Vec<fn(&mut EventHeader)> = vec![
            |h| h.id = EventId::from_bytes([8; 16]),
            |h| h.kind = "tasks.task.completed".into(),
            |h| h.shape = 2,
            |h| h.category = Category::System,
            |h| h.tenant = TenantId::from_bytes([8; 16]),
            |h| h.stream.push('x'),
            |h| h.version += 1,
            |h| h.position += 1,
            |h| h.occurred_at.0 += 1,
            |h| h.recorded_at.0 += 1,
            |h| h.actor.kind = ActorKind::Agent,
            |h| h.actor.id.push('x'),
            |h| h.user = None,
            |h| h.correlation.push('x'),
            |h| h.causation = Some(EventId::from_bytes([0; 16])),
            |h| h.trace_parent = Some(String::new()),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = header();
            change(&mut other);
            assert_ne!(other.leaf(&inner), base, "field {i}");
        }
    }

    #[test]
    fn a_payload_keeps_data_and_origin_apart() {
        let origin = Origin { address: Some("127.0.0.1".into()), client: None };
        let bytes = payload(&serde_json::json!({"a": 1}), &origin).unwrap();
        let parts: PayloadParts<'_> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(parts.data.get(), r#"{"a":1}"#);
        assert_eq!(parts.address.as_deref(), Some("127.0.0.1"));
        assert_eq!(parts.client, None);
    }
}
