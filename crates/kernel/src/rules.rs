//! The traits that rules are written against. Everything is a pure function over data.

use crate::actor::ActorRef;
use crate::actor::Origin;
use crate::event::{Category, Recorded};
use crate::reject::Rejection;
use crate::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// What a decision may know besides state and command.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now.
    pub now: Timestamp,
    /// Who commands.
    pub actor: ActorRef,
    /// 64 random bits.
    pub random: u64,
    /// Version of the stream before this decision; 0 when there is none.
    pub version: u64,
}

/// What `evolve` may know of an event besides its data.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Version of the stream with this event.
    pub version: u64,
    /// When it happened.
    pub at: Timestamp,
    /// Who caused it.
    pub actor: ActorRef,
}

/// The events of one kind of entity. Implemented by [`events!`](crate::events).
pub trait EventSet: Sized + Send + Sync + 'static {
    /// Full type, for example `tasks.task.submitted`.
    fn kind(&self) -> &'static str;
    /// Version of the payload's shape.
    fn shape(&self) -> u16;
    /// What the event is about.
    fn category(&self) -> Category;
    /// The payload's bytes.
    fn payload(&self, origin: &Origin) -> Result<Vec<u8>, serde_json::Error>;
    /// Reads stored data. Shapes older than the present one are upcast here.
    fn decode(kind: &str, shape: u16, data: &RawValue) -> Result<Self, String>;
    /// Every type and shape that this set can read.
    fn known() -> Vec<(&'static str, u16)>;

    /// Reads a stored event; `None` when its payload was erased.
    fn read(event: &Recorded) -> Result<Option<Self>, String> {
        match event.parts() {
            None => Ok(None),
            Some(Err(e)) => Err(format!("payload of position {}: {e}", event.header.position)),
            Some(Ok(parts)) => Self::decode(&event.header.kind, event.header.shape, parts.data).map(Some),
        }
    }
}

/// A field by which entities are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexField {
    /// Name, the same as in `filter[name]`.
    pub name: &'static str,
    /// Value.
    pub value: String,
}

impl IndexField {
    /// A field.
    pub fn new(name: &'static str, value: impl Into<String>) -> Self {
        IndexField { name, value: value.into() }
    }
}

/// A key that one entity of a log may hold at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UniqueChange {
    /// Hold it; refused when another entity does.
    Take(String),
    /// Give it up.
    Free(String),
}

/// The rules of one kind of entity.
pub trait Decider: Send + Sync + 'static {
    /// The prefix of its ids, for example `task`.
    const KIND: &'static str;
    /// The folded state. `None` stands for "not there yet".
    type State: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What may be asked.
    type Command: Send + Sync + 'static;
    /// What may follow.
    type Event: EventSet;

    /// Which events follow, or why none may. No events means: it is so already.
    fn decide(state: Option<&Self::State>, command: &Self::Command, facts: &Facts) -> Result<Vec<Self::Event>, Rejection>;
    /// The state with the event. Total and boring: it never refuses.
    fn evolve(state: Option<Self::State>, event: &Self::Event, meta: &Meta) -> Option<Self::State>;
    /// Whether nothing more is expected to happen.
    fn is_terminal(state: &Self::State) -> bool;
    /// Whether lists hide it.
    fn is_deleted(_state: &Self::State) -> bool {
        false
    }
    /// By what it is listed.
    fn index(state: &Self::State) -> Vec<IndexField>;
    /// Keys taken or given up with an event.
    fn unique(_state: Option<&Self::State>, _event: &Self::Event) -> Vec<UniqueChange> {
        Vec::new()
    }
}

/// A read model folded from events.
pub trait View: Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Raised when `fold` changes; the new version is built beside the old one, then swapped.
    const VERSION: u32;
    /// One row.
    type Row: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// The row that an event touches, if any.
    fn key(event: &Recorded) -> Option<String>;
    /// The row with the event; `None` removes it.
    fn fold(row: Option<Self::Row>, event: &Recorded) -> Option<Self::Row>;
}

/// Rules that turn events and soft signals into further commands. One instance per log; its state is `self`.
///
/// A command may be issued again after a restart, so carrying one out twice must change nothing.
pub trait Process: Send + 'static {
    /// Its name; the id of the system actor in events that it causes.
    const NAME: &'static str;
    /// What it hears that is no event: requests that wait, heartbeats, outcomes of its commands.
    type Signal: Send + 'static;
    /// What it wants done.
    type Command: Send + 'static;

    /// An event happened.
    fn react(&mut self, event: &Recorded, now: Timestamp);
    /// Something was heard.
    fn signal(&mut self, signal: Self::Signal, now: Timestamp);
    /// What is to be done now, timers that are due included. Called after each round of events and signals.
    fn decide(&mut self, now: Timestamp, random: u64) -> Vec<Self::Command>;
    /// When to be called again if nothing happens.
    fn due(&self) -> Option<Timestamp>;
}

/// A row of a view as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRow {
    /// Its key.
    pub key: String,
    /// Its content.
    pub row: Vec<u8>,
}

/// Declares the events of an entity: an enum over structs, their stored types and shapes.
///
/// `events! { TaskEvent { Submitted(Submitted) = "tasks.task.submitted" @ 1, } }`. The word `System` behind the shape puts
/// an event into that category; without a word it is `Domain`. Older shapes stand behind in brackets, each with its own
/// struct, from which the present one is made when such an event is read: `@ 2 [1: OldSubmitted]`.
#[macro_export]
macro_rules! events {
    (@category) => { $crate::Category::Domain };
    (@category $category:ident) => { $crate::Category::$category };
    ($(#[$doc:meta])* $name:ident { $($variant:ident($data:ty) = $kind:literal @ $shape:literal $($category:ident)? $([$($old:literal: $older:ty),+])?,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $(#[doc = concat!("`", $kind, "`")] $variant($data),)*
        }
        impl $crate::EventSet for $name {
            fn kind(&self) -> &'static str {
                match self { $($name::$variant(_) => $kind,)* }
            }
            fn shape(&self) -> u16 {
                match self { $($name::$variant(_) => $shape,)* }
            }
            fn category(&self) -> $crate::Category {
                match self { $($name::$variant(_) => $crate::events!(@category $($category)?),)* }
            }
            fn payload(&self, origin: &$crate::Origin) -> Result<Vec<u8>, serde_json::Error> {
                match self { $($name::$variant(data) => $crate::event::payload(data, origin),)* }
            }
            fn decode(kind: &str, shape: u16, data: &serde_json::value::RawValue) -> Result<Self, String> {
                match (kind, shape) {
                    $(($kind, $shape) => serde_json::from_str(data.get()).map($name::$variant).map_err(|e| format!("{kind} shape {shape}: {e}")),)*
                    $($($(($kind, $old) => serde_json::from_str::<$older>(data.get())
                        .map(|older| $name::$variant(older.into()))
                        .map_err(|e| format!("{kind} shape {shape}: {e}")),)+)?)*
                    _ => Err(format!("unknown event {kind} shape {shape}")),
                }
            }
            fn known() -> Vec<(&'static str, u16)> {
                vec![$(($kind, $shape), $($(($kind, $old),)+)?)*]
            }
        }
    };
}
