//! What comes in: bodies, query strings, cursors, conditions. Checked as strictly as the document says.

use super::access::By;
use super::envelope::Failure;
use super::state::EdgeState;
use app::{Caller, ListOrder};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderMap, header, request::Parts};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kernel::{Kind, Problem, Rejection, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// A JSON body with the caller, whose `Idempotency-Key` covers method, path and body.
pub(crate) struct Input<T> {
    pub by: Caller,
    pub body: T,
}

/// A JSON body of an open route.
pub(crate) struct OpenInput<T>(pub T);

impl<T: DeserializeOwned + ToSchema> FromRequest<Arc<EdgeState>> for Input<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &Arc<EdgeState>) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let By(mut by) = By::from_request_parts(&mut parts, state).await?;
        let bytes = read(Request::from_parts(parts.clone(), body), state).await?;
        by.idempotency = idempotency(&parts, &bytes)?;
        Ok(Input { by, body: parse(&parts.headers, &bytes, state)? })
    }
}

impl<T: DeserializeOwned + ToSchema> FromRequest<Arc<EdgeState>> for OpenInput<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &Arc<EdgeState>) -> Result<Self, Failure> {
        let headers = request.headers().clone();
        let bytes = read(request, state).await?;
        parse(&headers, &bytes, state).map(OpenInput)
    }
}

async fn read(request: Request, state: &EdgeState) -> Result<Bytes, Failure> {
    let bytes_max = state.settings.body_bytes_max;
    match Limited::new(request.into_body(), bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let message = format!("The body has more than {bytes_max} bytes.");
            Err(Rejection::new(Kind::TooLarge, "BODY_TOO_LARGE", message, "Send less, or raise server.body_max.")
                .with("bytes_max", bytes_max)
                .into())
        }
        Err(_) => Err(invalid("BODY_INCOMPLETE", "The body did not arrive whole.", "Send it again.")),
    }
}

fn parse<T: DeserializeOwned + ToSchema>(headers: &HeaderMap, bytes: &Bytes, state: &EdgeState) -> Result<T, Failure> {
    // An action without a body stands for an empty object.
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(|v| {
        let kind = v.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    if is_json == Some(false) || (is_json.is_none() && bytes != b"{}") {
        return Err(Rejection::new(
            Kind::Invalid,
            "UNSUPPORTED_MEDIA_TYPE",
            "The body must be JSON.",
            "Send 'Content-Type: application/json'.",
        )
        .into());
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(invalid("INVALID_UTF8", "The body is not UTF-8.", "Send JSON in UTF-8."));
    };
    let depth_max = state.settings.json_depth_max;
    if depth(text) > depth_max {
        let message = format!("The JSON is nested deeper than {depth_max} levels.");
        return Err(Rejection::new(Kind::Invalid, "JSON_TOO_DEEP", message, "Send a flatter document.")
            .with("depth_max", depth_max)
            .into());
    }
    match serde_json::from_str::<T>(text) {
        Ok(value) => Ok(value),
        Err(error) if error.is_syntax() || error.is_eof() => {
            let message = format!("The body is not JSON: {error}.");
            Err(invalid("JSON_INVALID", &message, "Correct it at that place."))
        }
        Err(error) => Err(Rejection::invalid(&problems::<T>(text, &error, &state.document)).into()),
    }
}

/// Everything that the schema of `T` finds wrong; at least what stopped the parser.
fn problems<T: ToSchema>(text: &str, error: &serde_json::Error, document: &Value) -> Vec<Problem> {
    let schema =
        serde_json::json!({ "$ref": format!("#/components/schemas/{}", T::name()), "components": document["components"] });
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let found: Vec<Problem> = match jsonschema::options().offline().build(&schema) {
        Ok(validator) => validator
            .iter_errors(&value)
            .take(limits::ENTRIES_MAX)
            .map(|e| Problem { pointer: e.instance_path().to_string(), message: e.to_string() })
            .collect(),
        Err(e) => {
            tracing::error!(error = %e, schema = %T::name(), "the document's schema cannot be used");
            vec![]
        }
    };
    match found.is_empty() {
        true => vec![Problem { pointer: String::new(), message: error.to_string() }],
        false => found,
    }
}

/// How deep arrays and objects are nested, without parsing further.
fn depth(text: &str) -> usize {
    let (mut now, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for b in text.bytes() {
        match (in_text, b) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_text = false,
            (true, _) => {}
            (false, b'"') => in_text = true,
            (false, b'[' | b'{') => {
                now += 1;
                deepest = deepest.max(now);
            }
            (false, b']' | b'}') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn invalid(code: &'static str, message: &str, hint: &str) -> Failure {
    Rejection::new(Kind::Invalid, code, message, hint).into()
}

fn idempotency(parts: &Parts, body: &[u8]) -> Result<Option<(String, [u8; 32])>, Failure> {
    let Some(header) = parts.headers.get("idempotency-key").filter(|_| parts.method == "POST") else { return Ok(None) };
    let key = header.to_str().ok().filter(|k| (1..=limits::IDEMPOTENCY_KEY_CHARS_MAX).contains(&k.len()));
    let Some(key) = key else {
        let message = format!("Idempotency-Key must have 1 to {} printable ASCII characters.", limits::IDEMPOTENCY_KEY_CHARS_MAX);
        return Err(invalid("HEADER_INVALID", &message, "A UUID is a good key."));
    };
    let mut hash = Sha256::new();
    for part in [parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), body] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Ok(Some((key.to_owned(), hash.finalize().into())))
}

/// The version in `If-Match`.
pub(super) fn conditional(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.trim_start_matches("W/").trim_matches('"').parse();
    version.map(Some).map_err(|_| {
        invalid("HEADER_INVALID", "If-Match must be an ETag of this API, such as \"3\".", "Send the ETag of an earlier answer.")
    })
}

/// A query string, checked like a body.
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let query = parts.uri.query().unwrap_or_default();
        serde_urlencoded::from_str(query).map(Params).map_err(|e| {
            Rejection::invalid(&[Problem { pointer: String::new(), message: format!("in the query string: {e}") }]).into()
        })
    }
}

/// How a list is asked for.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// How many items; 50 when nothing is said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `meta.next_cursor` of the page before.
    cursor: Option<String>,
    /// `-created_at` (newest first, as when nothing is said) or `created_at`.
    #[param(inline)]
    sort: Option<Sort>,
    /// Shows deleted ones too.
    deleted: Option<bool>,
}

/// The orders in which lists come.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(crate) enum Sort {
    #[default]
    #[serde(rename = "-created_at")]
    Newest,
    #[serde(rename = "created_at")]
    Oldest,
}

impl ListParams {
    pub fn new(limit: Option<u32>, cursor: Option<String>, sort: Option<Sort>) -> Self {
        ListParams { limit, cursor, sort, deleted: None }
    }

    pub fn order(&self) -> Result<ListOrder, Failure> {
        Ok(ListOrder {
            limit: limit(self.limit)?,
            after: self.cursor.as_deref().map(open_cursor).transpose()?,
            is_descending: matches!(self.sort.unwrap_or_default(), Sort::Newest),
            with_deleted: self.deleted.unwrap_or(false),
        })
    }
}

/// The number of items asked for.
pub(crate) fn limit(asked: Option<u32>) -> Result<usize, Failure> {
    let asked = asked.map_or(limits::PAGE_ITEMS_DEFAULT, |n| n as usize);
    if (1..=limits::PAGE_ITEMS_MAX).contains(&asked) {
        return Ok(asked);
    }
    let message = format!("must be 1 to {}", limits::PAGE_ITEMS_MAX);
    Err(Rejection::invalid(&[Problem { pointer: "/limit".into(), message }]).into())
}

/// An opaque cursor.
pub(crate) fn cursor(stream: &str) -> String {
    URL_SAFE_NO_PAD.encode(stream)
}

fn open_cursor(cursor: &str) -> Result<String, Failure> {
    let opened = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let is_stream = |s: &String| s.len() <= 64 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    opened.filter(is_stream).ok_or_else(|| {
        Rejection::invalid(&[Problem { pointer: "/cursor".into(), message: "is no cursor of this API".into() }]).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_nesting_and_not_text() {
        assert_eq!(depth("1"), 0);
        assert_eq!(depth(r#"{"a":[1,{"b":2}]}"#), 3);
        assert_eq!(depth(r#"{"a":"[[[[\"[[["}"#), 1);
        assert_eq!(depth(&"[".repeat(70)), 70);
    }

    #[test]
    fn cursors_are_opaque_and_checked() {
        assert_eq!(open_cursor(&cursor("task_1")).unwrap(), "task_1");
        for bad in ["", "!", "Li4v"] {
            assert!(open_cursor(bad).is_err() || bad.is_empty(), "{bad}");
        }
    }
}
