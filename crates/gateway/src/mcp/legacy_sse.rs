//! MCP over HTTP with server-sent events, as version 2024-11-05 has it: everything comes on one stream, and is sent to the
//! address that its first event names.

use super::connection::Failure;
use super::events::Events;
use super::http::{causes, is_stream, refusal};
use super::reach::{Reach, Unreached, locked, refused};
use super::rpc::{AsideSender, Call, Over, Pending, Taken, Wire, WireError, message, response};
use crate::access::Token;
use async_trait::async_trait;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response};
use serde_json::Value;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::sync::oneshot;
use url::Url;

const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to such a server.
#[derive(Clone)]
pub(crate) struct SseWire {
    reach: Reach,
    endpoint: Url,
    pending: Pending,
    over: Over,
}

impl SseWire {
    /// Opens the stream and learns where to send.
    pub async fn open(reach: Reach, over: Over) -> Result<Self, Failure> {
        let request = reach.request(Method::GET).header(ACCEPT, "text/event-stream");
        let reached = reach.send(request, None).await.map_err(|error| Failure::from(unreached(error)))?;
        let answered = reached.response;
        if let Some(challenge) = refused(&answered) {
            return Err(Failure::locked(locked(&challenge, reached.shown.is_some())));
        }
        if !answered.status().is_success() || !is_stream(&answered) {
            let problem = format!("it speaks no version of MCP over HTTP that is known: it answered {}", answered.status());
            return Err(problem.into());
        }
        let (told, endpoint) = oneshot::channel();
        let pending = Pending::default();
        over.tasks.spawn(follow(reach.clone(), answered, told, pending.clone(), over.clone()));
        let named = endpoint.await.map_err(|_| "its stream names no address to send to".to_owned())?;
        let endpoint = reach.url.join(&named).map_err(|e| format!("the address that it names is none: {e}"))?;
        if endpoint.origin() != reach.url.origin() {
            return Err("it names an address of another origin to send to, which is not followed".to_owned().into());
        }
        Ok(SseWire { reach, endpoint, pending, over })
    }

    async fn send(&self, body: Vec<u8>) -> Result<Option<Token>, WireError> {
        send(&self.reach, &self.endpoint, body, &self.over).await
    }
}

fn unreached(error: Unreached) -> WireError {
    match error {
        Unreached::Http(error) => WireError::Over(format!("it cannot be reached: {}", causes(&error))),
        Unreached::Locked(reason) => WireError::Locked(reason),
    }
}

/// Answers the token that was shown.
async fn send(reach: &Reach, endpoint: &Url, body: Vec<u8>, over: &Over) -> Result<Option<Token>, WireError> {
    let request = reach.request_to(Method::POST, endpoint.clone()).header(CONTENT_TYPE, "application/json");
    let reached = reach.send(request.body(body).timeout(SEND_TIMEOUT), None).await.map_err(unreached);
    let reached = reached.inspect_err(|error| {
        if let WireError::Over(reason) = error {
            over.end(reason);
        }
    })?;
    match (refused(&reached.response), reached.response) {
        (_, answered) if answered.status().is_success() => Ok(reached.shown),
        (Some(challenge), _) => Err(WireError::Locked(locked(&challenge, reached.shown.is_some()))),
        (None, answered) => Err(refusal(answered).await.without(reached.shown.as_ref())),
    }
}

async fn follow(reach: Reach, answered: Response, told: oneshot::Sender<String>, pending: Pending, over: Over) {
    let mut told = Some(told);
    let mut endpoint = None;
    let mut events = Events::new(reach.bytes_max);
    let mut stream = answered.bytes_stream();
    let reason = loop {
        let chunk = tokio::select! {
            reason = over.ended() => break reason,
            chunk = stream.next() => chunk,
        };
        let Some(Ok(chunk)) = chunk else { break "its stream ended".to_owned() };
        let found = match events.push(&chunk) {
            Ok(found) => found,
            Err(problem) => break format!("a message of its stream cannot be used: {problem}"),
        };
        for event in found {
            if let Some(told) = told.take_if(|_| event.kind.as_deref() == Some("endpoint")) {
                let named = String::from_utf8_lossy(&event.data).trim().to_owned();
                endpoint = reach.url.join(&named).ok().filter(|endpoint| endpoint.origin() == reach.url.origin());
                // Whoever opened the stream may have gone away.
                let _ = told.send(named);
                continue;
            }
            for taken in pending.take(&event.data, None, &over) {
                if let (Taken::Reply(reply), Some(endpoint)) = (taken, &endpoint) {
                    let _ = send(&reach, endpoint, reply, &over).await;
                }
            }
        }
    };
    over.end(&reason);
    pending.fail(&reason);
}

#[async_trait]
impl Wire for SseWire {
    async fn request(&self, call: Call<'_>, aside: Option<&AsideSender>) -> Result<Box<RawValue>, WireError> {
        let (answer, _forget) = self.pending.wait(call.id, aside);
        let shown = self.send(message(Some(call.id), call.method, call.params)).await?;
        if self.over.is_over() {
            return Err(WireError::Over(self.over.reason()));
        }
        let answer = answer.await.unwrap_or_else(|_| Err(WireError::Over(self.over.reason())));
        answer.map_err(|error| error.without(shown.as_ref()))
    }

    async fn notify(&self, method: &str, params: &RawValue) {
        // What cannot be told now is not worth a second try.
        let _ = self.send(message(None, method, params)).await;
    }

    async fn respond(&self, id: &RawValue, answer: Result<&Value, (i64, &str)>) {
        let _ = self.send(response(id, answer)).await;
    }

    fn agreed(&self, _: &str, _: bool) {}

    fn forget_session(&self) {}

    async fn close(&self) {
        // Leaving the stream says it.
    }
}
