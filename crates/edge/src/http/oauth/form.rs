//! Forms and query strings of OAuth: unknown parameters are left alone, one that is there twice is an error.

use super::super::envelope::Failure;
use super::super::state::EdgeState;
use app::oauth::{ClientAuth, OauthError};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::json;
use std::sync::Arc;

/// Largest form.
const BYTES_MAX: usize = 64 * 1024;
/// Parameters of a form.
const FIELDS_MAX: usize = 64;

/// Parameters, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub fn parse(text: &[u8]) -> Self {
        Fields(form_urlencoded::parse(text).take(FIELDS_MAX).map(|(n, v)| (n.into_owned(), v.into_owned())).collect())
    }

    /// The value of a parameter; one without a value counts as left out (RFC 6749, 3.1).
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone())
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(n, v)| n == name && !v.is_empty()).map(|(_, v)| v.clone()).collect()
    }

    /// A parameter that is there twice, but for `resource` and `audience`, which may be.
    pub fn twice(&self) -> Option<String> {
        let many = |name: &str| matches!(name, "resource" | "audience");
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).filter(|name| !many(name)).collect();
        names.sort_unstable();
        names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0].chars().take(64).collect())
    }

    /// The parameters but some, as a query string.
    pub fn query_without(&self, left_out: &[&str]) -> String {
        let kept = self.0.iter().filter(|(name, _)| !left_out.contains(&name.as_str()));
        form_urlencoded::Serializer::new(String::new()).extend_pairs(kept).finish()
    }

    /// How the client says who it is.
    pub fn client_auth(&self, headers: &HeaderMap) -> Result<ClientAuth, OauthError> {
        let basic = match headers.get(header::AUTHORIZATION) {
            None => None,
            Some(value) => {
                Some(basic(value).ok_or_else(|| refusal("invalid_client", "The Authorization header is not understood."))?)
            }
        };
        let assertion = match (self.get("client_assertion_type"), self.get("client_assertion")) {
            (Some(kind), Some(assertion)) => Some((kind, assertion)),
            (None, None) => None,
            _ => return Err(refusal("invalid_request", "client_assertion and client_assertion_type go together.")),
        };
        Ok(ClientAuth { basic, client_id: self.get("client_id"), client_secret: self.get("client_secret"), assertion })
    }
}

fn refusal(code: &'static str, description: &str) -> OauthError {
    OauthError { code, description: description.to_owned(), retry_after_s: None }
}

/// Name and secret of a `Basic` header: each encoded like a form (RFC 6749, 2.3.1), which some libraries leave out.
fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    let encoded = scheme.eq_ignore_ascii_case("basic").then_some(encoded.trim())?;
    let bytes = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (name, secret) = text.split_once(':')?;
    let decoded = |text: &str| {
        let plus = text.replace('+', " ");
        percent_encoding::percent_decode_str(&plus).decode_utf8().ok().map(|text| text.into_owned())
    };
    Some((decoded(name)?, decoded(secret)?))
}

/// A form with the head of its request.
pub(super) struct Form {
    pub parts: Parts,
    pub fields: Fields,
}

impl FromRequest<Arc<EdgeState>> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, state: &Arc<EdgeState>) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let is_form = kind.split(';').next().is_some_and(|k| k.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
        let bytes: Result<Bytes, Failure> = super::super::body::read(Request::from_parts(parts.clone(), body), state).await;
        let bytes = bytes.map_err(IntoResponse::into_response)?;
        if !is_form && !bytes.is_empty() {
            return Err(told(&refusal("invalid_request", "The body must be a form: application/x-www-form-urlencoded.")));
        }
        if bytes.len() > BYTES_MAX {
            return Err(told(&refusal("invalid_request", "The form is too large.")));
        }
        let fields = Fields::parse(&bytes);
        match fields.twice() {
            Some(name) => Err(told(&refusal("invalid_request", &format!("The parameter '{name}' is there more than once.")))),
            None => Ok(Form { parts, fields }),
        }
    }
}

/// A refusal as OAuth writes it.
pub(super) fn told(error: &OauthError) -> Response {
    let status = match error.code {
        "invalid_client" => StatusCode::UNAUTHORIZED,
        "server_error" => StatusCode::INTERNAL_SERVER_ERROR,
        "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    let body = json!({ "error": error.code, "error_description": error.description });
    let mut response = no_store(status, &body);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"keiko\""));
    }
    if let Some(after) = error.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after));
    }
    response
}

/// JSON that nobody keeps.
pub(super) fn no_store(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    (status, headers, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_that_is_there_twice_is_found() {
        assert_eq!(Fields::parse(b"a=1&resource=x&resource=y&b=2").twice(), None);
        assert_eq!(Fields::parse(b"a=1&b=2&a=").twice().as_deref(), Some("a"));
        assert_eq!(Fields::parse(b"a=").get("a"), None);
    }

    #[test]
    fn both_spellings_of_a_basic_header_are_read() {
        let read = |text: &str| basic(&HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(text))).unwrap());
        let wanted = Some(("kc_a_b".to_owned(), "ks_x.y-z".to_owned()));
        assert_eq!(read("kc_a_b:ks_x.y-z"), wanted);
        assert_eq!(read("kc%5Fa%5Fb:ks%5Fx%2Ey%2Dz"), wanted);
        assert_eq!(read("nobody"), None);
        assert_eq!(basic(&HeaderValue::from_static("Basic %%%")), None);
        assert_eq!(basic(&HeaderValue::from_static("Bearer abc")), None);
    }
}
