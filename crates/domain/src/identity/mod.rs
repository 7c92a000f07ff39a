//! Who exists: tenants, users and services, custom roles, API keys, sessions.

pub mod key;
pub mod role;
pub mod session;
pub mod tenant;
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
