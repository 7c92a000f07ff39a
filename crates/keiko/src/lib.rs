//! Keiko, put together: settings, keys, store, application, server. The binary is a thin face of this library.

pub mod admin;
pub mod assembly;
pub mod audit;
pub mod backup;
pub mod cli;
pub mod doctor;
pub mod drill;
pub mod keys;
pub mod logs;
pub mod settings;
mod tls;

pub use assembly::{Keiko, Parts};
pub use settings::Settings;
