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
use jsonschema::Validator;
use kernel::{Kind, Problem, Rejection, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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
        // A body may take long, and the tenant may be deleted meanwhile.
        state.app.check_running(&by)?;
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

pub(super) async fn read(request: Request, state: &EdgeState) -> Result<Bytes, Failure> {
    let bytes_max = state.settings.body_bytes_max;
    /// How long a body may take to arrive.
    const BODY_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(60);
    let reading = Limited::new(request.into_body(), bytes_max).collect();
    let Ok(read) = tokio::time::timeout(BODY_TIME_MAX, reading).await else {
        return Err(invalid("BODY_INCOMPLETE", "The body did not arrive in time.", "Send it again, faster."));
    };
    match read {
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
    let value = open_json(bytes, state)?;
    let problems = state.bodies.problems::<T>(&value, &state.document)?;
    if !problems.is_empty() {
        return Err(Rejection::invalid(&problems).into());
    }
    // From the text again: a field that is there twice shows only there.
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        // What the schema takes and the type does not, such as a number beyond 64 bits. Values are not repeated.
        let is_twice = error.inner().to_string().contains("duplicate field");
        let message = if is_twice { "has a field twice" } else { "is out of range, or not of the documented form" };
        Rejection::invalid(&[Problem { pointer: pointer(&error.path().to_string()), message: message.into() }]).into()
    })
}

/// JSON in UTF-8 that is not nested too deep.
pub(super) fn open_json(bytes: &[u8], state: &EdgeState) -> Result<Value, Failure> {
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
    serde_json::from_str(text).map_err(|error| {
        let message = format!("The body is not JSON: line {}, column {}.", error.line(), error.column());
        invalid("JSON_INVALID", &message, "Correct it at that place.")
    })
}

/// The schemas of bodies, compiled when they are first needed.
#[derive(Default)]
pub(crate) struct Bodies(Mutex<BTreeMap<String, Arc<Validator>>>);

impl Bodies {
    /// Everything that is wrong with a body; values are not repeated, they may be secret.
    fn problems<T: ToSchema>(&self, value: &Value, document: &Value) -> Result<Vec<Problem>, Failure> {
        let validator = self.validator(&T::name(), document)?;
        if validator.is_valid(value) {
            return Ok(vec![]);
        }
        let errors = validator.iter_errors(value).take(limits::ENTRIES_MAX);
        Ok(errors.map(|e| Problem { pointer: e.instance_path().to_string(), message: e.masked().to_string() }).collect())
    }

    fn validator(&self, name: &str, document: &Value) -> Result<Arc<Validator>, Failure> {
        let mut compiled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = compiled.get(name) {
            return Ok(known.clone());
        }
        let schema = serde_json::json!({ "$ref": format!("#/components/schemas/{name}"), "components": document["components"] });
        let built = jsonschema::options().offline().should_validate_formats(true).build(&schema);
        let validator = Arc::new(built.map_err(|e| {
            tracing::error!(error = %e, schema = name, "the document's schema cannot be used");
            Failure::internal()
        })?);
        compiled.insert(name.to_owned(), validator.clone());
        Ok(validator)
    }
}

/// `a.b[0]` as a JSON pointer.
fn pointer(path: &str) -> String {
    if path == "." { String::new() } else { format!("/{}", path.replace(['.', '['], "/").replace(']', "")) }
}

/// A whole number that may be left out; `3.0` is 3, as JSON knows one kind of number only.
pub(crate) fn whole<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: serde::Deserializer<'de>,
    N: TryFrom<u64>,
{
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    integer(&number).map(Some).ok_or_else(|| serde::de::Error::custom("is no whole number in range"))
}

/// A whole number, in the same way.
pub(crate) fn number<'de, D, N>(deserializer: D) -> Result<N, D::Error>
where
    D: serde::Deserializer<'de>,
    N: TryFrom<u64>,
{
    let number = serde_json::Number::deserialize(deserializer)?;
    integer(&number).ok_or_else(|| serde::de::Error::custom("is no whole number in range"))
}

/// Whole numbers, in the same way.
pub(crate) fn wholes<'de, D, N>(deserializer: D) -> Result<Option<Vec<N>>, D::Error>
where
    D: serde::Deserializer<'de>,
    N: TryFrom<u64>,
{
    let Some(numbers) = Option::<Vec<serde_json::Number>>::deserialize(deserializer)? else { return Ok(None) };
    let whole: Option<Vec<N>> = numbers.iter().map(integer).collect();
    whole.map(Some).ok_or_else(|| serde::de::Error::custom("holds a number that is not whole or not in range"))
}

fn integer<N: TryFrom<u64>>(number: &serde_json::Number) -> Option<N> {
    let integral = |f: f64| (f.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&f)).then_some(f as u64);
    let value = number.as_u64().or_else(|| number.as_f64().and_then(integral));
    value.and_then(|value| N::try_from(value).ok())
}

/// How deep arrays and objects are nested, without parsing further.
pub(crate) fn depth(text: &str) -> usize {
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
        let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(pairs).map(Params).map_err(|e| {
            let pointer = format!("/{}", e.path());
            Rejection::invalid(&[Problem { pointer, message: format!("in the query string: {}", query_problem(e.inner())) }])
                .into()
        })
    }
}

/// What is wrong, without the value: it may be secret.
fn query_problem(error: &serde_urlencoded::de::Error) -> String {
    let text = error.to_string();
    match text.split_once("expected") {
        Some((before, expected)) if before.contains("unknown") => format!("unknown, expected{expected}"),
        _ if text.starts_with("missing") => text,
        _ => "is not of the documented form".to_owned(),
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
    /// As it was: a position of the log, or an instant such as `2026-01-01T00:00:00Z`.
    at: Option<String>,
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
    pub fn new(limit: Option<u32>, cursor: Option<String>, sort: Option<Sort>, deleted: Option<bool>) -> Self {
        ListParams { limit, cursor, sort, deleted, at: None }
    }

    /// For lists that have no past.
    pub fn now(self) -> Result<Self, Failure> {
        match self.at {
            None => Ok(self),
            Some(_) => {
                let message = "is not for this list, which shows how things are now".to_owned();
                Err(Rejection::invalid(&[Problem { pointer: "/at".into(), message }]).into())
            }
        }
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

pub(crate) fn open_cursor(cursor: &str) -> Result<String, Failure> {
    let opened = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let is_stream = |s: &String| (1..=64).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
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
            assert!(open_cursor(bad).is_err(), "{bad}");
        }
    }
}
