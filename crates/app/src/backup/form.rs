//! The lines of a backup. What is written here must stay readable for ever: a new shape gets a new number.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kernel::event::payload_hash;
use kernel::id::{EventId, JournalId, TenantId, UserId};
use kernel::journal::{Class, JournalHeader};
use kernel::{ActorRef, Category, EventHeader, Recorded, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use store::journal::Entry;
use store::{Beside, Idempotent};

/// The number of this form.
pub(super) const FORM: u32 = 1;

/// One line. A log begins with its head; what follows belongs to it until the next head.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first line.
    Backup(Opening),
    /// A tenant's log begins.
    Log(Head),
    Event(Box<EventLine>),
    Idempotent {
        key: String,
        request_hash: Bytes,
        stream: String,
        position: u64,
    },
    Value(Bytes),
    Secret {
        name: String,
        sealed: Bytes,
    },
    View {
        view: String,
        version: u32,
        position: u64,
        is_active: bool,
    },
    Row {
        view: String,
        version: u32,
        key: String,
        row: Bytes,
    },
    /// A tenant's journal begins.
    Journal(Head),
    Entry(Box<EntryLine>),
    /// A large value that later entries refer to.
    EntryValue(Bytes),
    /// The last line.
    End(Closing),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Opening {
    pub form: u32,
    /// The version that made it.
    pub keiko: String,
    pub created_at: Timestamp,
    /// Tells the key files that belong to it from others.
    pub keys: Bytes,
    /// Every tenant, the default one first.
    pub tenants: Vec<TenantId>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub tenant: TenantId,
    /// How many events or entries follow.
    pub size: u64,
    /// The latest signed checkpoint; empty when there is none.
    pub checkpoint: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Closing {
    /// How many lines there are before this one.
    pub lines: u64,
    /// Over those lines, signed.
    pub note: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EventLine {
    id: EventId,
    kind: String,
    shape: u16,
    category: Category,
    stream: String,
    version: u64,
    pub position: u64,
    occurred_at: i64,
    pub recorded_at: i64,
    actor: ActorRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<UserId>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    correlation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    causation: Option<EventId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_parent: Option<String>,
    #[serde(flatten)]
    content: ContentLine,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EntryLine {
    id: JournalId,
    pub position: u64,
    class: Class,
    kind: String,
    pub at: i64,
    actor: ActorRef,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    correlation: String,
    #[serde(flatten)]
    content: ContentLine,
}

/// Salt and text, or the hash of both when they were erased.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ContentLine {
    Whole { salt: Bytes, text: String },
    Erased { hash: Bytes },
}

impl ContentLine {
    fn of(salt: Option<&[u8; 16]>, content: Option<&[u8]>, hash: &[u8; 32]) -> Result<Self, String> {
        match (salt, content) {
            (Some(salt), Some(content)) => {
                let text = String::from_utf8(content.to_vec()).map_err(|e| e.to_string())?;
                Ok(ContentLine::Whole { salt: Bytes(salt.to_vec()), text })
            }
            _ => Ok(ContentLine::Erased { hash: Bytes(hash.to_vec()) }),
        }
    }

    /// Salt, content, and the hash of both.
    #[expect(clippy::type_complexity, reason = "the three columns of a stored content")]
    fn parts(self) -> Result<(Option<[u8; 16]>, Option<Vec<u8>>, [u8; 32]), String> {
        Ok(match self {
            ContentLine::Whole { salt, text } => {
                let salt: [u8; 16] = salt.fixed()?;
                let hash = payload_hash(&salt, text.as_bytes());
                (Some(salt), Some(text.into_bytes()), hash)
            }
            ContentLine::Erased { hash } => (None, None, hash.fixed()?),
        })
    }
}

impl EventLine {
    pub fn of(event: &Recorded) -> Result<Self, String> {
        let h = &event.header;
        Ok(EventLine {
            id: h.id,
            kind: h.kind.clone(),
            shape: h.shape,
            category: h.category,
            stream: h.stream.clone(),
            version: h.version,
            position: h.position,
            occurred_at: h.occurred_at.0,
            recorded_at: h.recorded_at.0,
            actor: h.actor.clone(),
            user: h.user,
            correlation: h.correlation.clone(),
            causation: h.causation,
            trace_parent: h.trace_parent.clone(),
            content: ContentLine::of(event.salt.as_ref(), event.payload.as_deref(), &event.payload_hash)?,
        })
    }

    pub fn recorded(self, tenant: TenantId) -> Result<Recorded, String> {
        let header = EventHeader {
            id: self.id,
            kind: self.kind,
            shape: self.shape,
            category: self.category,
            tenant,
            stream: self.stream,
            version: self.version,
            position: self.position,
            occurred_at: Timestamp(self.occurred_at),
            recorded_at: Timestamp(self.recorded_at),
            actor: self.actor,
            user: self.user,
            correlation: self.correlation,
            causation: self.causation,
            trace_parent: self.trace_parent,
        };
        let (salt, payload, payload_hash) = self.content.parts()?;
        let leaf = header.leaf(&payload_hash);
        Ok(Recorded { header, salt, payload, payload_hash, leaf })
    }
}

impl EntryLine {
    pub fn of(entry: &Entry) -> Result<Self, String> {
        let h = &entry.header;
        Ok(EntryLine {
            id: h.id,
            position: h.position,
            class: h.class,
            kind: h.kind.clone(),
            at: h.at.0,
            actor: h.actor.clone(),
            correlation: h.correlation.clone(),
            content: ContentLine::of(entry.salt.as_ref(), entry.data.as_deref(), &entry.data_hash)?,
        })
    }

    pub fn entry(self, tenant: TenantId) -> Result<Entry, String> {
        let header = JournalHeader {
            id: self.id,
            tenant,
            position: self.position,
            class: self.class,
            kind: self.kind,
            at: Timestamp(self.at),
            actor: self.actor,
            correlation: self.correlation,
        };
        let (salt, data, data_hash) = self.content.parts()?;
        let leaf = header.leaf(&data_hash);
        Ok(Entry { header, data, salt, data_hash, leaf })
    }
}

impl Line {
    pub fn beside(thing: Beside) -> Self {
        match thing {
            Beside::Idempotent(key, known) => Line::Idempotent {
                key,
                request_hash: Bytes(known.request_hash.to_vec()),
                stream: known.stream,
                position: known.position,
            },
            Beside::Value(_, bytes) => Line::Value(Bytes(bytes)),
            Beside::Secret(name, sealed) => Line::Secret { name, sealed: Bytes(sealed) },
        }
    }

    /// What lies beside events, as the store takes it.
    pub fn thing(self) -> Result<Option<Beside>, String> {
        Ok(Some(match self {
            Line::Idempotent { key, request_hash, stream, position } => {
                Beside::Idempotent(key, Idempotent { request_hash: request_hash.fixed()?, stream, position })
            }
            Line::Value(bytes) => Beside::Value(bytes.sha256(), bytes.0),
            Line::Secret { name, sealed } => Beside::Secret(name, sealed.0),
            _ => return Ok(None),
        }))
    }
}

/// Bytes in base64.
pub(super) struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn fixed<const N: usize>(&self) -> Result<[u8; N], String> {
        self.0.as_slice().try_into().map_err(|_| format!("{} bytes where {N} are expected", self.0.len()))
    }

    pub fn sha256(&self) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest(&self.0).into()
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        STANDARD.decode(text.as_bytes()).map(Bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: backups are kept for years.
    #[test]
    fn the_lines_of_form_1_stay_readable() {
        let event = r#"{"event":{"id":"evt_01kb0000000000000000000000","kind":"tasks.task.submitted","shape":1,"category":"domain","stream":"task_01kb0000000000000000000000","version":1,"position":7,"occurred_at":1767225600000,"recorded_at":1767225600001,"actor":{"kind":"user","id":"user_1"},"salt":"AQEBAQEBAQEBAQEBAQEBAQ==","text":"{\"data\":{}}"}}"#;
        let erased = r#"{"entry":{"id":"jrn_01kb0000000000000000000000","position":1,"class":"tool_call","kind":"tools.tool.called","at":5,"actor":{"kind":"agent","id":"agent_1"},"hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}"#;
        let tenant = TenantId::from_bytes([2; 16]);
        let Ok(Line::Event(line)) = serde_json::from_str(event) else { panic!("an event") };
        let recorded = line.recorded(tenant).unwrap();
        assert_eq!(serde_json::to_string(&Line::Event(Box::new(EventLine::of(&recorded).unwrap()))).unwrap(), event);
        assert!(recorded.is_intact());
        let Ok(Line::Entry(line)) = serde_json::from_str(erased) else { panic!("an entry") };
        let entry = line.entry(tenant).unwrap();
        assert_eq!(serde_json::to_string(&Line::Entry(Box::new(EntryLine::of(&entry).unwrap()))).unwrap(), erased);
        assert_eq!((entry.data, entry.data_hash), (None, [0; 32]));
    }
}
