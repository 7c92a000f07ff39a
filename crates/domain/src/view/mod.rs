//! Read models folded from events.

pub mod stats;
