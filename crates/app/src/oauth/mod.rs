//! The authorization server: OAuth 2.1 and OpenID Connect. Its pure rules are in `domain::identity::oauth`.
//!
//! A grant is a session: what a client gets from a login, and everything refreshed from it.

mod authorize;
pub mod clients;
mod device;
mod documents;
mod exchange;
mod inspect;
mod token;

pub(crate) use authorize::with_query;
pub use authorize::{Asked, Browser, Credentials, Hint, Next, Refused, Request, SignedIn};
pub use clients::{ClientAuth, KnownClient, NewClient};
pub use device::{DeviceAnswer, DeviceStart};
pub use inspect::Userinfo;
pub use token::{TokenAnswer, TokenRequest};

pub(crate) use clients::{Assertions, ShownAssertion};
pub(crate) use device::Polls;
pub(crate) use documents::Documents;

use kernel::{Kind, Rejection};

/// A refusal in the words of OAuth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OauthError {
    /// The registered code.
    pub code: &'static str,
    /// For developers.
    pub description: String,
    /// Seconds after which a repetition makes sense, where it does.
    pub retry_after_s: Option<u64>,
}

/// What the authorization server answers.
pub type Granted<T> = Result<T, OauthError>;

impl OauthError {
    pub(crate) fn new(code: &'static str, description: impl Into<String>) -> Self {
        OauthError { code, description: description.into(), retry_after_s: None }
    }
}

pub(crate) fn invalid_request(description: impl Into<String>) -> OauthError {
    OauthError::new("invalid_request", description)
}

pub(crate) fn invalid_grant(description: impl Into<String>) -> OauthError {
    OauthError::new("invalid_grant", description)
}

pub(crate) fn invalid_scope() -> OauthError {
    OauthError::new(
        "invalid_scope",
        "A scope is a permission without wildcards, such as tasks.read, or one of openid, profile, email, offline_access.",
    )
}

impl From<Rejection> for OauthError {
    fn from(rejection: Rejection) -> Self {
        let after = rejection.details.get("retry_after_s").and_then(serde_json::Value::as_u64);
        let code = match rejection.kind {
            Kind::Unauthenticated => "invalid_grant",
            Kind::Forbidden => "access_denied",
            Kind::Limited | Kind::Unavailable => "temporarily_unavailable",
            Kind::Internal => "server_error",
            _ => "invalid_request",
        };
        let waits = matches!(rejection.kind, Kind::Limited | Kind::Unavailable);
        OauthError { code, description: rejection.message, retry_after_s: waits.then_some(after.unwrap_or(1)) }
    }
}

impl crate::App {
    /// The resource that a request names; none stands for the whole server.
    pub(crate) fn resource(&self, asked: &[String]) -> Granted<Option<String>> {
        let Some(first) = asked.first() else { return Ok(None) };
        let plain = |uri: &str| uri.strip_suffix('/').unwrap_or(uri).to_owned();
        let first_plain = plain(first);
        let known = [self.issuer().to_owned(), self.mcp_resource()];
        if asked.iter().any(|other| plain(other) != first_plain) || !known.contains(&first_plain) {
            let message = format!("The resource must be one of: {}.", known.join(", "));
            return Err(OauthError::new("invalid_target", message));
        }
        Ok((first_plain != self.issuer()).then_some(first_plain))
    }

    /// The MCP endpoint as a resource of its own.
    pub fn mcp_resource(&self) -> String {
        format!("{}/mcp", self.issuer())
    }
}
