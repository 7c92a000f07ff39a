//! Runs any decider, process and view against a store. Owns the clock, the ids and the random numbers.
//!
//! It names no context: what it runs is a type parameter. Everything that depends on the outside (time, randomness,
//! spawning) goes through [`Env`], so a seed replays a whole run.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod drive;
mod env;
mod handle;
mod lanes;
mod lead;
mod past;
mod plan;
mod project;
mod replay;
pub mod tree;
pub mod verify;

pub use drive::{Executor, Handle, drive};
pub use env::Env;
pub use handle::{Context, Engine, Extras, HandleError, Handled};
pub use lead::{BUCKET_OF_ALL, Held, bucket_of, lead};
pub use plan::{Step, decode};
pub use project::{Projection, generation, project};
pub use replay::{Compared, Folds, Kinds, compare, replay};
