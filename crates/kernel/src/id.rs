//! TypeIDs: a prefix that says what is named, and a UUIDv7 in Crockford base32, so that ids sort by time.
//!
//! `task_01h455vb4pex5vsknk084sn02q` is a task. Format: TypeID specification 0.3 (26 characters, lower case).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SUFFIX_CHARS: usize = 26;

/// What an id can name. Implemented by empty marker types.
pub trait Named {
    /// The prefix before the underscore, for example `task`.
    const PREFIX: &'static str;
}

/// An id of one kind of thing. 16 bytes; ordered by time of creation.
pub struct Id<T>(u128, PhantomData<fn() -> T>);

/// Why a string is not an id of the wanted kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// The prefix is missing or another one.
    #[error("an id here starts with '{expected}_'")]
    Prefix {
        /// The prefix that was expected.
        expected: &'static str,
    },
    /// The part after the prefix is not 26 base32 characters of 128 bits.
    #[error("an id ends in 26 characters of 0-9 and a-z without i, l, o, u")]
    Suffix,
}

impl<T: Named> Id<T> {
    /// Builds an id from its moment (milliseconds since 1970, 48 bits are kept) and 10 random bytes (74 bits are kept).
    pub fn from_parts(unix_ms: i64, random: [u8; 10]) -> Self {
        let ms = (unix_ms.max(0) as u128) & 0xffff_ffff_ffff;
        let rand = random.iter().fold(0u128, |acc, b| (acc << 8) | u128::from(*b));
        let rand_a = (rand >> 62) & 0xfff;
        let rand_b = rand & 0x3fff_ffff_ffff_ffff;
        Id((ms << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b, PhantomData)
    }

    /// The id derived from bytes, the same each time (UUIDv8 layout): for things that a name or another id determines.
    pub fn derived(from: &[&[u8]]) -> Self {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(T::PREFIX.as_bytes());
        for part in from {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let raw = digest[..16].iter().fold(0u128, |acc, b| (acc << 8) | u128::from(*b));
        let cleared = raw & !(0xf << 76) & !(0b11 << 62);
        Id(cleared | (0x8 << 76) | (0b10 << 62), PhantomData)
    }

    /// When it was made, in milliseconds since 1970; of no meaning for derived ids.
    pub fn timestamp_ms(&self) -> i64 {
        let bytes = self.bytes();
        bytes[..6].iter().fold(0, |ms, byte| (ms << 8) | i64::from(*byte))
    }

    /// The 16 bytes, big endian.
    pub fn bytes(&self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// From 16 bytes, big endian.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Id(u128::from_be_bytes(bytes), PhantomData)
    }
}

impl<T: Named> fmt::Display for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut suffix = [0u8; SUFFIX_CHARS];
        let mut rest = self.0;
        for slot in suffix.iter_mut().rev() {
            *slot = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        write!(f, "{}_{}", T::PREFIX, std::str::from_utf8(&suffix).unwrap_or_default())
    }
}

impl<T: Named> FromStr for Id<T> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let suffix = text
            .strip_prefix(T::PREFIX)
            .and_then(|rest| rest.strip_prefix('_'))
            .ok_or(IdError::Prefix { expected: T::PREFIX })?;
        let bytes = suffix.as_bytes();
        // The first character holds only 3 bits: 26 * 5 = 130.
        if bytes.len() != SUFFIX_CHARS || !(b'0'..=b'7').contains(&bytes[0]) {
            return Err(IdError::Suffix);
        }
        let mut value = 0u128;
        for b in bytes {
            let digit = ALPHABET.iter().position(|a| a == b).ok_or(IdError::Suffix)?;
            value = (value << 5) | digit as u128;
        }
        Ok(Id(value, PhantomData))
    }
}

impl<T: Named> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<T> std::hash::Hash for Id<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<T: Named> Serialize for Id<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de, T: Named> Deserialize<'de> for Id<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $alias:ident = $marker:ident $prefix:literal;)*) => {$(
        #[doc = concat!("Marker of ids that start with `", $prefix, "_`.")]
        pub enum $marker {}
        impl Named for $marker {
            const PREFIX: &'static str = $prefix;
        }
        $(#[$doc])*
        pub type $alias = Id<$marker>;
    )*};
}

ids! {
    /// A tenant, and with it a log.
    TenantId = TenantTag "tnt";
    /// A person.
    UserId = UserTag "user";
    /// A custom role.
    RoleId = RoleTag "role";
    /// An API key.
    KeyId = KeyTag "key";
    /// A login and what was refreshed from it.
    SessionId = SessionTag "sess";
    /// A program that gets tokens for somebody: an OAuth client.
    ClientId = ClientTag "client";
    /// What a person allowed a client.
    ConsentId = ConsentTag "consent";
    /// A device that waits until somebody signs in for it.
    DeviceId = DeviceTag "device";
    /// An access token.
    TokenId = TokenTag "tok";
    /// A mail to somebody's address.
    MailId = MailTag "mail";
    /// People and services that hold roles together.
    TeamId = TeamTag "team";
    /// What guards a tenant as a whole.
    GuardId = GuardTag "guard";
    /// The keys that sign tokens.
    KeyringId = KeyringTag "ring";
    /// An agent.
    AgentId = AgentTag "agent";
    /// A unit of work.
    TaskId = TaskTag "task";
    /// One claim on a task.
    ClaimId = ClaimTag "claim";
    /// A queue's settings.
    QueueId = QueueTag "queue";
    /// A message about a task.
    MessageId = MessageTag "msg";
    /// Tasks and messages that belong together.
    ConversationId = ConversationTag "conv";
    /// Where somebody wants to be told of a task.
    PushId = PushTag "push";
    /// A consumer group.
    GroupId = GroupTag "group";
    /// An MCP server whose tools can be called.
    McpServerId = McpServerTag "mcp";
    /// What Keiko shows to a server to be let in.
    CredentialId = CredentialTag "cred";
    /// Something whose health is followed.
    ComponentId = ComponentTag "comp";
    /// A selection of what servers offer.
    VirtualServerId = VirtualServerTag "vsrv";
    /// A tool of a server.
    ToolId = ToolTag "tool";
    /// One call of a tool.
    CallId = CallTag "call";
    /// An entry of the journal.
    JournalId = JournalTag "jrn";
    /// The erasure of a person.
    ErasureId = ErasureTag "erasure";
    /// The rebuild of a view.
    RebuildId = RebuildTag "rebuild";
    /// An event.
    EventId = EventTag "evt";
    /// One request at the edge.
    RequestId = RequestTag "req";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_printing_and_parsing() {
        let id = TaskId::from_parts(1_767_225_600_000, [0xab; 10]);
        let text = id.to_string();
        assert_eq!(text.len(), "task_".len() + 26);
        assert_eq!(text.parse::<TaskId>().unwrap(), id);
        assert_eq!(uuid::Uuid::from_bytes(id.bytes()).get_version_num(), 7);
    }

    #[test]
    fn the_published_typeid_vector_is_met() {
        // TypeID specification, valid.yml: "prefix_01h455vb4pex5vsknk084sn02q" is 01890a5d-ac96-774b-bcce-b302099a8057.
        let uuid = uuid::Uuid::parse_str("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let id = TaskId::from_bytes(*uuid.as_bytes());
        assert_eq!(id.to_string(), "task_01h455vb4pex5vsknk084sn02q");
    }

    #[test]
    fn another_kind_and_garbage_are_refused() {
        let text = TaskId::from_parts(1, [0; 10]).to_string();
        assert_eq!(text.parse::<AgentId>(), Err(IdError::Prefix { expected: "agent" }));
        for bad in
            ["task_", "task_8zzzzzzzzzzzzzzzzzzzzzzzzz", "task_01h455vb4pex5vsknk084sn02u", "task_01H455VB4PEX5VSKNK084SN02Q"]
        {
            assert_eq!(bad.parse::<TaskId>(), Err(IdError::Suffix), "{bad}");
        }
    }

    #[test]
    fn later_ids_sort_later_as_text_too() {
        let a = TaskId::from_parts(1_000, [0xff; 10]).to_string();
        let b = TaskId::from_parts(1_001, [0; 10]).to_string();
        assert!(a < b);
    }

    #[test]
    fn derived_ids_depend_on_every_part_and_nothing_else() {
        let a = QueueId::derived(&[b"tenant", b"default"]);
        assert_eq!(a, QueueId::derived(&[b"tenant", b"default"]));
        assert_ne!(a, QueueId::derived(&[b"tenantd", b"efault"]));
        assert_eq!(uuid::Uuid::from_bytes(a.bytes()).get_version_num(), 8);
    }
}
