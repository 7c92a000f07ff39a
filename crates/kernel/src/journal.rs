//! The journal's entry: an observation, kept beside the log. Hashed like an event, so that it can be proved later.

use crate::actor::ActorRef;
use crate::event::put;
use crate::id::{JournalId, TenantId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Number of a stored header encoding.
const HEADER_ENCODING: u8 = 1;

/// What an entry is about. Decides how long its content is kept, and whether an action waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// A call of a tool, with arguments and result.
    ToolCall,
    /// A privileged action: it is refused when its entry cannot be written.
    Security,
    /// Entries that could not be kept.
    Gap,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 3] = [Class::ToolCall, Class::Security, Class::Gap];

    /// The word in answers and queries.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::ToolCall => "tool_call",
            Class::Security => "security",
            Class::Gap => "gap",
        }
    }

    /// The number in the stored header.
    pub fn code(self) -> u8 {
        match self {
            Class::ToolCall => 0,
            Class::Security => 1,
            Class::Gap => 2,
        }
    }

    /// The class of a stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        Class::ALL.into_iter().find(|class| class.code() == code)
    }

    /// The class of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Class::ALL.into_iter().find(|class| class.as_str() == word)
    }
}

/// Everything about an entry but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// Its id.
    pub id: JournalId,
    /// Whose.
    pub tenant: TenantId,
    /// Place in the tenant's journal, from 1, gapless.
    pub position: u64,
    /// What it is about.
    pub class: Class,
    /// `area.thing.happened`.
    pub kind: String,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: ActorRef,
    /// What belongs together.
    pub correlation: String,
}

impl JournalHeader {
    /// The bytes that are hashed: an encoding number, then the fields in this order, big endian, texts with a 32-bit
    /// length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![HEADER_ENCODING];
        out.extend(self.id.bytes());
        out.extend(self.tenant.bytes());
        out.extend(self.position.to_be_bytes());
        out.push(self.class.code());
        put(&mut out, Some(self.kind.as_bytes()));
        out.extend(self.at.0.to_be_bytes());
        put(&mut out, Some(self.actor.kind.as_str().as_bytes()));
        put(&mut out, Some(self.actor.id.as_bytes()));
        put(&mut out, Some(self.correlation.as_bytes()));
        out
    }

    /// The Merkle leaf of this header and a content hash (RFC 6962 leaf prefix).
    pub fn leaf(&self, data_hash: &[u8; 32]) -> [u8; 32] {
        Sha256::new().chain_update([0u8]).chain_update(self.encode()).chain_update(data_hash).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex;

    #[test]
    fn the_leaf_of_a_known_entry_never_changes() {
        let header = JournalHeader {
            id: JournalId::from_bytes([1; 16]),
            tenant: TenantId::from_bytes([2; 16]),
            position: 3,
            class: Class::Security,
            kind: "tools.tool.approved".into(),
            at: Timestamp(1_767_225_600_000),
            actor: ActorRef::system("test"),
            correlation: "c".into(),
        };
        assert_eq!(hex(&header.leaf(&[9; 32])), "13d57aa1d3ec6aaea7507e29e16e9bffefac1dc12f105aa9b350ce639c8fd980");
    }

    #[test]
    fn every_class_has_a_word_and_a_number_of_its_own() {
        for class in Class::ALL {
            assert_eq!(Class::parse(class.as_str()), Some(class));
            assert_eq!(Class::from_code(class.code()), Some(class));
        }
        assert_eq!(Class::from_code(99), None);
    }
}
