//! Who exists: tenants, users and services, custom roles, API keys, sessions; OAuth clients, what people allowed them, and
//! the keys that sign their tokens.

pub mod client;
pub mod consent;
pub mod device;
pub mod guard;
pub mod key;
pub mod keyring;
pub mod mail;
pub mod oauth;
pub mod role;
pub mod session;
pub mod team;
pub mod tenant;
pub mod token;
pub mod totp;
pub mod user;

use kernel::{Kind, Rejection};

pub(crate) fn already(what: &str) -> Rejection {
    Rejection::new(
        Kind::Conflict,
        "ALREADY_EXISTS",
        format!("This {what} exists already."),
        "Read it instead of creating it again.",
    )
}
