//! The rules of Keiko, one file per context: command, event, state, decide, evolve.
//!
//! Pure functions over data. No `async`, no SQL, no HTTP, no clock, no randomness: what depends on them arrives as
//! [`kernel::Facts`] or inside a command.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod agent;
pub mod component;
pub mod consumer_group;
pub mod credential;
pub mod erasure;
pub mod health;
pub mod identity;
pub mod limit;
pub mod mcp_server;
pub mod message;
pub mod policy;
pub mod process;
pub mod progress;
pub mod push;
pub mod queue;
pub mod rebuild;
pub mod scrutiny;
pub mod task;
pub mod tool;
pub mod view;
pub mod virtual_server;

/// Reads an event of any context back and writes it again: the check that every stored shape stays readable.
#[cfg(test)]
mod golden;
