//! Tells an address of somebody else's something by HTTP POST, with the same care as everything outside: private addresses
//! are refused, redirects are not followed, of the answer only its status counts.

use crate::PostError;
use crate::target;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;

/// How long an address may take to answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What is told, and to whom.
pub struct Notice<'a> {
    /// The address.
    pub url: &'a str,
    /// Headers that go with it; their values are secrets.
    pub headers: &'a [(&'a str, String)],
    /// The media type of the body.
    pub media_type: &'static str,
    /// What is told.
    pub body: String,
}

/// Tells it once. An address that answers 2xx has taken it.
pub async fn tell(notice: Notice<'_>, allow_private: bool) -> Result<(), PostError> {
    let url = target::check(notice.url, allow_private).map_err(PostError::Permanent)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(notice.media_type));
    for (name, value) in notice.headers {
        let name = HeaderName::try_from(*name).map_err(|_| PostError::Permanent("a header's name is none".into()))?;
        let mut value =
            HeaderValue::from_str(value).map_err(|_| PostError::Permanent(format!("the header '{name}' cannot be sent")))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let client = target::client(allow_private)
        .timeout(TIMEOUT)
        .build()
        .map_err(|e| PostError::Transient(format!("no HTTP client could be made: {e}")))?;
    let answer = client.post(url).headers(headers).body(notice.body).send().await;
    // The error's text may hold the address, which may be a secret.
    let status = answer.map_err(|_| PostError::Transient("could not be reached".into()))?.status();
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(refused(PostError::Transient, status)),
        status if status.is_client_error() || status.is_redirection() => Err(refused(PostError::Permanent, status)),
        status => Err(refused(PostError::Transient, status)),
    }
}

fn refused(kind: impl Fn(String) -> PostError, status: StatusCode) -> PostError {
    kind(format!("answered {}", status.as_u16()))
}
