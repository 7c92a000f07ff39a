//! At an authorization server: Keiko makes itself known, gets tokens, and gives them back.

use super::{TIMEOUT, challenge, checked, whole};
use crate::target;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// What stays as it is in a form (RFC 3986, unreserved).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longest token that is kept.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// How a client shows who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication {
    /// By its name alone.
    None,
    /// By a secret in a header.
    Basic(String),
    /// By a secret in the form.
    Post(String),
    /// By something that it signed.
    Assertion(String),
}

/// Keiko, as an authorization server knows it.
#[derive(Clone)]
pub struct Client {
    /// Its id there.
    pub id: String,
    /// How it shows who it is.
    pub authentication: Authentication,
}

/// What an authorization server gave.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Shown to the server.
    pub access: String,
    /// Gets the next one.
    pub refresh: Option<String>,
    /// How long it is good, if that is said.
    pub expires_in: Option<Duration>,
    /// What it allows, if that is not what was asked for.
    pub scopes: Option<Vec<String>>,
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// What was shown is no good any more, and will not be again.
    #[error("{0}")]
    Ended(String),
    /// The authorization server says no.
    #[error("its authorization server answered {0}")]
    Refused(String),
    /// This time it did not work.
    #[error("{0}")]
    Trouble(String),
}

/// What becomes of making oneself known.
#[derive(Clone, PartialEq, Eq)]
pub struct Registration {
    /// Keiko's id there.
    pub id: String,
    /// Its secret.
    pub secret: Option<String>,
    /// How it shows who it is: `none`, `client_secret_basic` or `client_secret_post`.
    pub method: String,
}

/// Sends a form to a token endpoint.
pub async fn exchange(
    endpoint: &str,
    client: &Client,
    form: &[(&str, &str)],
    allow_private: bool,
) -> Result<Tokens, ExchangeError> {
    let (status, body) = send(endpoint, client, form, allow_private).await.map_err(ExchangeError::Trouble)?;
    let secret = match &client.authentication {
        Authentication::None => "",
        Authentication::Basic(secret) | Authentication::Post(secret) | Authentication::Assertion(secret) => secret,
    };
    // It may repeat what it was shown.
    let shown: Vec<&str> = form.iter().map(|(_, value)| *value).chain([secret]).filter(|value| value.len() >= 16).collect();
    let clean = |text: String| shown.iter().fold(text, |text, value| text.replace(value, "********"));
    tokens(status, &body).map_err(|error| match error {
        ExchangeError::Ended(text) => ExchangeError::Ended(clean(text)),
        ExchangeError::Refused(text) => ExchangeError::Refused(clean(text)),
        ExchangeError::Trouble(text) => ExchangeError::Trouble(text),
    })
}

/// Gives a token back. Whoever does not take it lets it end by itself.
pub async fn revoke(endpoint: &str, client: &Client, token: &str, allow_private: bool) -> Result<(), String> {
    let (status, _) = send(endpoint, client, &[("token", token)], allow_private).await?;
    if (200..300).contains(&status) { Ok(()) } else { Err(format!("its authorization server answered {status}")) }
}

async fn send(endpoint: &str, client: &Client, form: &[(&str, &str)], allow_private: bool) -> Result<(u16, Vec<u8>), String> {
    let url = checked(endpoint, allow_private).map_err(|problem| format!("the address of its authorization server {problem}"))?;
    let mut fields = form.to_vec();
    let mut header = None;
    match &client.authentication {
        Authentication::Basic(secret) => {
            let pair = format!("{}:{}", encoded(&client.id), encoded(secret));
            header = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).ok();
        }
        Authentication::Post(secret) => fields.extend([("client_id", client.id.as_str()), ("client_secret", secret)]),
        Authentication::None => fields.push(("client_id", &client.id)),
        Authentication::Assertion(assertion) => fields.extend([
            ("client_id", client.id.as_str()),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", assertion),
        ]),
    }
    let body = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&");
    let http =
        target::client(allow_private).timeout(TIMEOUT).build().map_err(|e| format!("no HTTP client could be made: {e}"))?;
    let mut request = http.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").header(ACCEPT, "application/json");
    if let Some(mut header) = header {
        header.set_sensitive(true);
        request = request.header(AUTHORIZATION, header);
    }
    // The error's text would hold the address, and nothing else that helps.
    let answered = request.body(body).send().await.map_err(|_| "its authorization server cannot be reached")?;
    let status = answered.status().as_u16();
    Ok((status, whole(answered).await?))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Reads what a token endpoint answered.
fn tokens(status: u16, body: &[u8]) -> Result<Tokens, ExchangeError> {
    #[derive(Deserialize)]
    struct Body {
        access_token: String,
        token_type: Option<String>,
        refresh_token: Option<String>,
        expires_in: Option<Value>,
        scope: Option<String>,
    }
    #[derive(Deserialize)]
    struct Problem {
        error: String,
        #[serde(default)]
        error_description: String,
    }
    if !(200..300).contains(&status) {
        // A server that has trouble now may answer as it should later.
        return Err(match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if status < 500 && status != 429 => {
                let said: String = format!("{} {}", problem.error, problem.error_description).chars().take(300).collect();
                let said = said.trim().to_owned();
                // Anything else may be mended there without anybody's help here.
                match problem.error.as_str() {
                    "invalid_grant" => ExchangeError::Ended(format!("its authorization server answered {said}")),
                    _ => ExchangeError::Refused(said),
                }
            }
            _ => ExchangeError::Trouble(format!("its authorization server answered HTTP {status}")),
        });
    }
    let unusable = |why: &str| ExchangeError::Trouble(format!("what its authorization server answered cannot be used: {why}"));
    let body: Body = serde_json::from_slice(body).map_err(|_| unusable("it holds no token"))?;
    let is_token =
        |token: &str| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && token.bytes().all(|b| b.is_ascii_graphic());
    if !body.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return Err(unusable("the token is of a kind that is not known"));
    }
    if !is_token(&body.access_token) || !body.refresh_token.as_deref().is_none_or(is_token) {
        return Err(unusable("the token cannot be sent"));
    }
    // Some write numbers as text.
    let seconds = body.expires_in.and_then(|value| value.as_u64().or_else(|| value.as_str()?.parse().ok()));
    Ok(Tokens {
        access: body.access_token,
        refresh: body.refresh_token,
        expires_in: seconds.map(|seconds| Duration::from_secs(seconds.min(10 * 365 * 86_400))),
        scopes: body.scope.map(|scope| challenge::scopes(&scope)),
    })
}

/// Makes Keiko known to an authorization server (RFC 7591).
pub async fn register(
    endpoint: &str,
    redirect_uri: &str,
    methods: &[String],
    uri: &str,
    allow_private: bool,
) -> Result<Registration, String> {
    let url = checked(endpoint, allow_private).map_err(|problem| format!("the address for registrations {problem}"))?;
    let method = method_of(methods);
    let is_local = redirect_uri.starts_with("http://");
    let body = json!({
        "client_name": "Keiko",
        "client_uri": uri,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
        "application_type": if is_local { "native" } else { "web" },
    });
    let http =
        target::client(allow_private).timeout(TIMEOUT).build().map_err(|e| format!("no HTTP client could be made: {e}"))?;
    let sent = http.post(url).header(ACCEPT, "application/json").json(&body).send().await;
    let answered = sent.map_err(|_| "it cannot be reached to register there")?;
    let status = answered.status().as_u16();
    registration(status, &whole(answered).await?, method)
}

fn registration(status: u16, body: &[u8], asked: &str) -> Result<Registration, String> {
    #[derive(Default, Deserialize)]
    struct Body {
        #[serde(default)]
        client_id: String,
        client_secret: Option<String>,
        token_endpoint_auth_method: Option<String>,
        #[serde(default)]
        error: String,
        #[serde(default)]
        error_description: String,
    }
    let body: Body = serde_json::from_slice(body).unwrap_or_default();
    if !(200..300).contains(&status) || body.client_id.is_empty() || body.client_id.len() > 2_048 {
        let said: String = format!("{} {}", body.error, body.error_description).chars().take(300).collect();
        return Err(format!("it does not let Keiko register: HTTP {status} {}", said.trim()).trim_end().to_owned());
    }
    let method = body.token_endpoint_auth_method.unwrap_or_else(|| asked.to_owned());
    let method = if body.client_secret.is_none() { "none".to_owned() } else { method };
    if !["none", "client_secret_basic", "client_secret_post"].contains(&method.as_str()) {
        return Err(format!(
            "it wants Keiko to authenticate by '{}', which it cannot",
            method.chars().take(60).collect::<String>()
        ));
    }
    Ok(Registration { id: body.client_id, secret: body.client_secret, method })
}

/// How to authenticate, of what a server takes; nothing said means the first.
fn method_of(methods: &[String]) -> &'static str {
    let known = ["client_secret_basic", "client_secret_post", "none"];
    if methods.is_empty() {
        return known[0];
    }
    known.into_iter().find(|known| methods.iter().any(|method| method == known)).unwrap_or(known[0])
}

impl Authentication {
    /// By a secret, as the authorization server wants to have it.
    pub fn by_secret(secret: String, methods: &[String]) -> Self {
        if method_of(methods) == "client_secret_post" { Authentication::Post(secret) } else { Authentication::Basic(secret) }
    }
}

impl Registration {
    /// As it is shown.
    pub fn client(self) -> Client {
        let authentication = match (self.method.as_str(), self.secret) {
            ("client_secret_basic", Some(secret)) => Authentication::Basic(secret),
            ("client_secret_post", Some(secret)) => Authentication::Post(secret),
            _ => Authentication::None,
        };
        Client { id: self.id, authentication }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_with_what_they_allow_and_how_long() {
        let body = br#"{"access_token":"a","token_type":"bearer","expires_in":"3600","refresh_token":"r","scope":"x y"}"#;
        let found = tokens(200, body).ok().unwrap();
        assert_eq!((found.access.as_str(), found.refresh.as_deref()), ("a", Some("r")));
        assert_eq!(found.expires_in, Some(Duration::from_secs(3_600)));
        assert_eq!(found.scopes.unwrap(), ["x", "y"]);
    }

    #[test]
    fn a_refusal_is_told_from_trouble() {
        let refused = tokens(400, br#"{"error":"invalid_grant","error_description":"revoked"}"#).err().unwrap();
        assert_eq!(refused, ExchangeError::Ended("its authorization server answered invalid_grant revoked".into()));
        assert!(
            matches!(tokens(401, br#"{"error":"invalid_client"}"#), Err(ExchangeError::Refused(_))),
            "its secret may be mended"
        );
        for (status, body) in [
            (503, &br#"{"error":"temporarily_unavailable"}"#[..]),
            (429, br#"{"error":"slow_down"}"#),
            (400, b"<html>"),
            (200, b"{}"),
            (200, br#"{"access_token":"a b"}"#),
            (200, br#"{"access_token":"a\r\nX: y"}"#),
            (200, br#"{"access_token":"a","token_type":"mac"}"#),
        ] {
            assert!(matches!(tokens(status, body), Err(ExchangeError::Trouble(_))), "{status} {body:?}");
        }
    }

    #[test]
    fn the_method_is_what_both_know() {
        let of = |methods: &[&str]| method_of(&methods.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), "client_secret_basic");
        assert_eq!(of(&["none", "client_secret_post"]), "client_secret_post");
        assert_eq!(of(&["none"]), "none");
        let registered = registration(201, br#"{"client_id":"a","client_secret":"s"}"#, "client_secret_post").unwrap();
        assert_eq!(registered.method, "client_secret_post");
        assert_eq!(registration(201, br#"{"client_id":"a"}"#, "client_secret_basic").unwrap().method, "none");
        assert!(
            registration(400, br#"{"error":"invalid_redirect_uri"}"#, "none").err().unwrap().contains("invalid_redirect_uri")
        );
        assert!(
            registration(201, br#"{"client_id":"a","client_secret":"s","token_endpoint_auth_method":"tls_client_auth"}"#, "none")
                .is_err()
        );
    }
}
