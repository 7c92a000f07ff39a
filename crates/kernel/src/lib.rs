//! The vocabulary of Keiko: ids, names, time, actors, events, limits, and the traits that rules are written against.
//!
//! Everything here is plain data and arithmetic. This crate never does I/O, never reads a clock, never draws a random
//! number and has no `async`: whatever depends on the outside is an argument.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod actor;
pub mod event;
pub mod id;
pub mod journal;
pub mod json;
pub mod limits;
pub mod merkle;
pub mod note;
pub mod personal;
pub mod reject;
pub mod rules;
pub mod taskhash;
pub mod text;
pub mod tile;
pub mod time;

pub use actor::{Act, Actor, ActorKind, ActorRef, Claims, Origin, Proof};
pub use event::{Category, EventHeader, NewEvent, Recorded};
pub use id::{AgentId, ClaimId, EventId, Id, IdError, KeyId, QueueId, RequestId, RoleId, SessionId, TaskId, TenantId, UserId};
pub use json::Json;
pub use personal::{BlindIndex, Personal};
pub use reject::{Kind, Problem, Rejection};
pub use rules::{Decider, EventSet, Facts, IndexField, Process, UniqueChange, View, ViewRow};
pub use time::Timestamp;
