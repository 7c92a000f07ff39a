//! Rules that watch the log and soft signals and say what is to be done next.

pub mod dispatch;
pub mod liveness;
mod matching;
pub mod outstanding;
mod slots;
