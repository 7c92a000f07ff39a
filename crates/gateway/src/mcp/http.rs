//! MCP over streamable HTTP: each message is a POST, answered as JSON or as a stream of server-sent events.

use super::rpc::{Over, Pending, Wire, WireError, message};
use crate::target::{self, PublicOnly};
use async_trait::async_trait;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::value::RawValue;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// A connection to a URL.
pub(crate) struct HttpWire {
    client: Client,
    url: Url,
    bytes_max: usize,
    over: Over,
    /// Session and protocol version, once they are known.
    agreed: Mutex<HeaderMap>,
}

impl HttpWire {
    /// Checks the target; nothing is sent yet.
    pub fn new(
        url: &str,
        headers: &[(String, String)],
        allow_private: bool,
        bytes_max: usize,
        over: Over,
    ) -> Result<Self, String> {
        let url = target::check(url, allow_private).map_err(|problem| format!("the URL {problem}"))?;
        let mut fixed = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().map_err(|_| format!("'{name}' is no header name"))?;
            let mut value: HeaderValue = value.parse().map_err(|_| format!("the value of header '{name}' cannot be sent"))?;
            value.set_sensitive(true);
            fixed.append(name, value);
        }
        let mut builder = Client::builder()
            .default_headers(fixed)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("keiko/", env!("CARGO_PKG_VERSION")));
        if !allow_private {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        let client = builder.build().map_err(|e| format!("no HTTP client could be made: {e}"))?;
        Ok(HttpWire { client, url, bytes_max, over, agreed: Mutex::default() })
    }

    fn post(&self, body: Vec<u8>) -> RequestBuilder {
        self.client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, text/event-stream")
            .headers(self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .body(body)
    }

    async fn answer(&self, response: Response, id: u64) -> Result<Box<RawValue>, WireError> {
        let status = response.status();
        if let Some(session) = response.headers().get(SESSION) {
            self.agreed.lock().unwrap_or_else(PoisonError::into_inner).insert(SESSION, session.clone());
        }
        if status.is_redirection() {
            return Err(self.ended("it redirects, which is not followed"));
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        if !status.is_success() && !kind.starts_with("application/json") {
            return Err(self.failed(status));
        }
        let pending = Pending::default();
        let (mut waiting, _forget) = pending.wait(id);
        let mut messages = Messages::new(kind.starts_with("text/event-stream"));
        let mut stream = response.bytes_stream();
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| self.ended(&format!("its answer broke off: {}", causes(&e))))?;
            bytes += chunk.len();
            if bytes > self.bytes_max {
                return Err(WireError::Unusable(format!("it has more than {} bytes", self.bytes_max)));
            }
            for message in messages.push(&chunk) {
                pending.take(&message, &self.over);
            }
            if let Ok(answer) = waiting.try_recv() {
                return answer;
            }
        }
        pending.take(&messages.rest(), &self.over);
        match waiting.try_recv() {
            Ok(answer) => answer,
            Err(_) if !status.is_success() => Err(self.failed(status)),
            Err(_) => Err(WireError::Unusable("it holds no answer to the request".into())),
        }
    }

    /// A status that is no answer. A session that the server forgot needs a new connection.
    fn failed(&self, status: StatusCode) -> WireError {
        self.ended(&format!("it answered {status}"))
    }

    fn ended(&self, reason: &str) -> WireError {
        self.over.end(reason);
        WireError::Over(reason.to_owned())
    }
}

#[async_trait]
impl Wire for HttpWire {
    async fn request(&self, id: u64, method: &str, params: &RawValue) -> Result<Box<RawValue>, WireError> {
        let sent = self.post(message(Some(id), method, params)).send().await;
        let response = sent.map_err(|e| self.ended(&format!("it cannot be reached: {}", causes(&e))))?;
        self.answer(response, id).await
    }

    async fn notify(&self, method: &str, params: &RawValue) {
        // What cannot be told now is not worth a second try.
        let _ = self.post(message(None, method, params)).timeout(CLOSE_TIMEOUT).send().await;
    }

    fn agreed(&self, version: &str) {
        if let Ok(version) = version.parse() {
            self.agreed.lock().unwrap_or_else(PoisonError::into_inner).insert(PROTOCOL, version);
        }
    }

    async fn close(&self) {
        let agreed = self.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if agreed.contains_key(SESSION) {
            let _ = self.client.delete(self.url.clone()).headers(agreed).timeout(CLOSE_TIMEOUT).send().await;
        }
    }
}

/// The innermost cause says what happened; the outer ones repeat the URL.
fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Cuts a body into messages: all of it, or one per server-sent event.
struct Messages {
    is_stream: bool,
    buffer: Vec<u8>,
    data: Vec<u8>,
}

impl Messages {
    fn new(is_stream: bool) -> Self {
        Messages { is_stream, buffer: vec![], data: vec![] }
    }

    /// The messages that are whole.
    fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        self.buffer.extend_from_slice(chunk);
        if !self.is_stream {
            return vec![];
        }
        let mut whole = vec![];
        let mut from = 0;
        while let Some(end) = self.buffer[from..].iter().position(|b| *b == b'\n') {
            let line = &self.buffer[from..from + end];
            from += end + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                whole.extend((!self.data.is_empty()).then(|| std::mem::take(&mut self.data)));
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            }
        }
        self.buffer.drain(..from);
        whole
    }

    /// What is left at the end of the body.
    fn rest(&mut self) -> Vec<u8> {
        if self.is_stream { std::mem::take(&mut self.data) } else { std::mem::take(&mut self.buffer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_across_chunks() {
        let mut messages = Messages::new(true);
        assert!(messages.push(b"event: message\r\nda").is_empty());
        assert_eq!(
            messages.push(b"ta: {\"a\":\r\ndata: 1}\r\n\r\n: comment\n\ndata:x\n\nda"),
            [b"{\"a\":\n1}".to_vec(), b"x".to_vec()]
        );
        assert!(messages.push(b"ta: rest\n").is_empty());
        assert_eq!(messages.rest(), b"rest");
    }

    #[test]
    fn a_body_that_is_no_stream_is_one_message() {
        let mut messages = Messages::new(false);
        assert!(messages.push(b"{\n\n").is_empty() && messages.push(b"}").is_empty());
        assert_eq!(messages.rest(), b"{\n\n}");
    }
}
