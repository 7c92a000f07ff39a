//! Keiko, put together: settings, keys, store, application, server. The binary is a thin face of this library.

pub mod admin;
pub mod assembly;
pub mod audit;
pub mod cli;
pub mod doctor;
pub mod keys;
pub mod logs;
pub mod settings;

pub use assembly::{Keiko, Parts};
pub use settings::Settings;
