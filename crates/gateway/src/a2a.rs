//! An agent of somebody else that speaks A2A 1.0, over JSON-RPC or HTTP with JSON: its card, messages to it, its tasks.
//!
//! What it answers is read up to a limit and believed in nothing but its form. Credentials go to the origin of its card only.

use crate::target;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a card.
const CARD_BYTES_MAX: usize = 1024 * 1024;
/// Characters of a reason that an agent gives.
const REASON_CHARS_MAX: usize = 500;
const CARD_PATH: &str = "/.well-known/agent-card.json";
const VERSION: &str = "1.0";

/// Where an agent is, and what proves to it who asks.
#[derive(Clone)]
pub struct AgentEndpoint {
    /// The address of its card, or the one below which the card lies.
    pub url: String,
    /// Headers that go with every request; their values are secrets.
    pub headers: Vec<(String, String)>,
}

/// Why an agent did not do what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AgentTrouble {
    /// It is not there, or not well: later it may be.
    #[error("{0}")]
    Unreachable(String),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The name of the error in A2A, such as `TASK_NOT_FOUND`; empty when it is none of them.
        reason: String,
        /// In its words.
        message: String,
    },
    /// What it answers is not A2A, or not allowed.
    #[error("{0}")]
    Unusable(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Binding {
    JsonRpc,
    Http,
}

/// An agent that can be spoken to.
pub struct RemoteAgent {
    client: reqwest::Client,
    binding: Binding,
    url: String,
    tenant: Option<String>,
}

impl RemoteAgent {
    /// Reads the card of an agent and chooses how to speak to it. Answers the card too.
    pub async fn connect(endpoint: &AgentEndpoint, allow_private: bool) -> Result<(RemoteAgent, Value), AgentTrouble> {
        let of_card = card_url(&endpoint.url, allow_private)?;
        let client = client(endpoint, allow_private)?;
        let answer = exchange(client.get(of_card.clone()), CARD_BYTES_MAX).await?;
        let card = answer.map_err(|(status, _)| AgentTrouble::Unreachable(format!("its card cannot be read: {status}")))?;
        let (binding, interface) = interface(&card)?;
        let url = interface["url"].as_str().unwrap_or_default().trim_end_matches('/').to_owned();
        let checked =
            target::check(&url, allow_private).map_err(|e| AgentTrouble::Unusable(format!("the address in its card {e}")))?;
        if !endpoint.headers.is_empty() && checked.origin() != of_card.origin() {
            let message = format!(
                "its card names another origin ({}), to which the credentials do not belong",
                checked.origin().ascii_serialization()
            );
            return Err(AgentTrouble::Unusable(message));
        }
        let tenant = interface["tenant"].as_str().filter(|tenant| !tenant.is_empty()).map(str::to_owned);
        Ok((RemoteAgent { client, binding, url, tenant }, card))
    }

    /// Sends a message and does not wait for what comes of it. Answers `{"task": …}` or `{"message": …}`.
    pub async fn send(&self, message: Value) -> Result<Value, AgentTrouble> {
        let params = json!({ "message": message, "configuration": { "returnImmediately": true } });
        self.ask("SendMessage", Method::POST, "message:send", params).await
    }

    /// One of its tasks.
    pub async fn task(&self, id: &str) -> Result<Value, AgentTrouble> {
        self.ask("GetTask", Method::GET, &format!("tasks/{}", segment(id)), json!({ "id": id })).await
    }

    /// Asks it to call a task off.
    pub async fn cancel(&self, id: &str) -> Result<Value, AgentTrouble> {
        self.ask("CancelTask", Method::POST, &format!("tasks/{}:cancel", segment(id)), json!({ "id": id })).await
    }

    async fn ask(&self, method: &str, verb: Method, path: &str, mut params: Value) -> Result<Value, AgentTrouble> {
        if let Some(tenant) = &self.tenant {
            params["tenant"] = json!(tenant);
        }
        match self.binding {
            Binding::JsonRpc => {
                let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
                let request = self.client.post(&self.url).header(CONTENT_TYPE, "application/json").body(request.to_string());
                result(exchange(request, ANSWER_BYTES_MAX).await?)
            }
            Binding::Http => {
                let tenant = self.tenant.as_ref().map(|tenant| format!("{}/", segment(tenant))).unwrap_or_default();
                let mut request = self.client.request(verb.clone(), format!("{}/{tenant}{path}", self.url));
                if verb == Method::POST {
                    request = request.header(CONTENT_TYPE, "application/a2a+json").body(params.to_string());
                }
                exchange(request, ANSWER_BYTES_MAX).await?.map_err(|(status, body)| refused(status, &body["error"]))
            }
        }
    }
}

/// The result of an answer of JSON-RPC.
fn result(answer: Result<Value, (StatusCode, Value)>) -> Result<Value, AgentTrouble> {
    let mut body = match answer {
        Ok(body) => body,
        Err((status, body)) if body.get("error").is_none_or(|error| !error.is_object()) => {
            return Err(refused(status, &Value::Null));
        }
        Err((_, body)) => body,
    };
    match body.get("error").filter(|error| !error.is_null()) {
        Some(error) => Err(refused(StatusCode::OK, error)),
        None if body.get("result").is_some() => Ok(body["result"].take()),
        None => Err(AgentTrouble::Unusable("it answered no JSON-RPC".into())),
    }
}

/// What an error says, in either binding.
fn refused(status: StatusCode, error: &Value) -> AgentTrouble {
    let details = error.get("details").or(error.get("data")).and_then(Value::as_array);
    let named = details.into_iter().flatten().find_map(|detail| detail["reason"].as_str());
    let reason = match error["code"].as_i64() {
        Some(-32_001) => "TASK_NOT_FOUND",
        Some(-32_002) => "TASK_NOT_CANCELABLE",
        Some(-32_004) => "UNSUPPORTED_OPERATION",
        _ => named.unwrap_or_default(),
    };
    let said = error["message"].as_str().map_or_else(|| format!("it answered {}", status.as_u16()), str::to_owned);
    AgentTrouble::Refused { reason: reason.to_owned(), message: said.chars().take(REASON_CHARS_MAX).collect() }
}

fn card_url(url: &str, allow_private: bool) -> Result<Url, AgentTrouble> {
    let whole = if url.ends_with(".json") { url.to_owned() } else { format!("{}{CARD_PATH}", url.trim_end_matches('/')) };
    target::check(&whole, allow_private).map_err(|e| AgentTrouble::Unusable(format!("its address {e}")))
}

/// The first interface of a card that is spoken here.
fn interface(card: &Value) -> Result<(Binding, &Value), AgentTrouble> {
    let all = card["supportedInterfaces"].as_array().into_iter().flatten();
    let spoken = all
        .filter(|one| one["protocolVersion"].as_str().is_some_and(|version| version == VERSION || version.starts_with("1.0.")));
    let known = |one: &Value| match one["protocolBinding"].as_str() {
        Some("JSONRPC") => Some(Binding::JsonRpc),
        Some("HTTP+JSON") => Some(Binding::Http),
        _ => None,
    };
    let found = spoken.filter_map(|one| Some((known(one)?, one))).next();
    found.ok_or_else(|| AgentTrouble::Unusable("its card offers neither JSONRPC nor HTTP+JSON in version 1.0".into()))
}

fn client(endpoint: &AgentEndpoint, allow_private: bool) -> Result<reqwest::Client, AgentTrouble> {
    let mut headers = HeaderMap::new();
    headers.insert("a2a-version", HeaderValue::from_static(VERSION));
    headers.insert(ACCEPT, HeaderValue::from_static("application/a2a+json, application/json"));
    for (name, value) in &endpoint.headers {
        let wrong = || AgentTrouble::Unusable(format!("the header '{name}' cannot be sent"));
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(HeaderName::try_from(name).map_err(|_| wrong())?, value);
    }
    let builder = target::client(allow_private).timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).default_headers(headers);
    builder.build().map_err(|e| AgentTrouble::Unreachable(format!("no HTTP client could be made: {e}")))
}

/// Sends a request. What is answered with an error status comes back with it; an agent that is not well is unreachable.
async fn exchange(
    request: reqwest::RequestBuilder,
    bytes_max: usize,
) -> Result<Result<Value, (StatusCode, Value)>, AgentTrouble> {
    let unreachable = |what: &str| AgentTrouble::Unreachable(what.to_owned());
    let mut response = request.send().await.map_err(|_| unreachable("it could not be reached"))?;
    let status = response.status();
    // Credentials that are not taken can be mended, as what is not there can come back.
    let is_passing = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    );
    if status.is_server_error() || is_passing {
        return Err(unreachable(&format!("it answered {}", status.as_u16())));
    }
    let mut body = vec![];
    while let Some(chunk) = response.chunk().await.map_err(|_| unreachable("its answer broke off"))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(AgentTrouble::Unusable(format!("its answer has more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    let parsed = serde_json::from_slice(&body);
    match (status.is_success(), parsed) {
        (true, Ok(value)) => Ok(Ok(value)),
        (true, Err(_)) => Err(AgentTrouble::Unusable("it answered no JSON".into())),
        (false, value) => Ok(Err((status, value.unwrap_or_default()))),
    }
}

/// A text as one segment of a path.
fn segment(text: &str) -> String {
    let Ok(mut url) = Url::parse("http://x/") else { return String::new() };
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.push(text);
    }
    url.path().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_interface_that_is_spoken_is_used() {
        let one = |binding: &str, version: &str| json!({ "url": "https://a.example", "protocolBinding": binding, "protocolVersion": version });
        let card = json!({ "supportedInterfaces": [one("GRPC", "1.0"), one("JSONRPC", "0.3"), one("HTTP+JSON", "1.0"), one("JSONRPC", "1.0")] });
        assert!(interface(&card).is_ok_and(|(binding, _)| binding == Binding::Http));
        for card in [json!({}), json!({ "supportedInterfaces": [one("GRPC", "1.0")] }), json!({ "supportedInterfaces": "x" })] {
            assert!(matches!(interface(&card), Err(AgentTrouble::Unusable(_))), "{card}");
        }
    }

    #[test]
    fn errors_of_both_bindings_are_told_in_the_same_words() {
        let rpc = json!({ "code": -32001, "message": "gone" });
        let http = json!({ "code": 404, "message": "gone", "details": [{ "reason": "TASK_NOT_FOUND" }] });
        assert_eq!(refused(StatusCode::OK, &rpc), refused(StatusCode::NOT_FOUND, &http));
        assert!(
            matches!(result(Err((StatusCode::GONE, json!("no")))), Err(AgentTrouble::Refused { message, .. }) if message.contains("410"))
        );
        assert!(matches!(result(Ok(json!([]))), Err(AgentTrouble::Unusable(_))));
    }

    #[test]
    fn a_name_never_leaves_its_place_in_a_path() {
        assert_eq!(segment("a/../b?c#d"), "a%2F..%2Fb%3Fc%23d");
        assert_eq!(segment(".."), "", "what a path cannot hold is nothing");
    }

    #[test]
    fn private_addresses_are_refused_before_anything_is_sent() {
        for url in ["http://127.0.0.1:1", "http://169.254.169.254/latest", "file:///etc/passwd"] {
            assert!(matches!(card_url(url, false), Err(AgentTrouble::Unusable(_))), "{url}");
        }
        assert_eq!(card_url("https://a.example/x/", false).unwrap().as_str(), "https://a.example/x/.well-known/agent-card.json");
        assert_eq!(card_url("https://a.example/card.json", false).unwrap().path(), "/card.json");
    }
}
