//! JSON-RPC 2.0: what is sent, what comes in, and how a connection ends.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An error that the server answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct RpcError {
    #[serde(default)]
    pub code: i64,
    #[serde(default)]
    pub message: String,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The connection ended.
    Over(String),
    /// This answer cannot be used; others may be.
    Unusable(String),
    /// The server refused.
    Rpc(RpcError),
}

/// A connection to a server.
#[async_trait]
pub(crate) trait Wire: Send + Sync {
    /// Asks and waits. Dropping the future forgets the request.
    async fn request(&self, id: u64, method: &str, params: &RawValue) -> Result<Box<RawValue>, WireError>;
    /// Tells, as far as that is possible.
    async fn notify(&self, method: &str, params: &RawValue);
    /// The version of the protocol, once it is agreed on.
    fn agreed(&self, version: &str);
    /// Tells the server that the connection ends, where the protocol has a word for it.
    async fn close(&self);
}

/// The state that all parts of a connection share: whether it is over, and whether the tools changed.
#[derive(Clone, Default)]
pub(crate) struct Over {
    token: CancellationToken,
    reason: Arc<Mutex<Option<String>>>,
    /// Told when the server says that its list of tools changed.
    pub tools_changed: Arc<Notify>,
    /// What runs until nothing of the connection is left.
    pub tasks: TaskTracker,
}

impl Over {
    /// Ends the connection; the first reason counts.
    pub fn end(&self, reason: impl Into<String>) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason.into());
        self.token.cancel();
    }

    /// Ends the connection and waits until nothing of it is left.
    pub async fn finish(&self, reason: &str) {
        self.end(reason);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Waits for the end, and says why.
    pub async fn ended(&self) -> String {
        self.token.cancelled().await;
        self.reason()
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Why it is over.
    pub fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(|| "the connection is closed".into())
    }
}

#[derive(Serialize)]
struct Outgoing<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    method: &'a str,
    params: &'a RawValue,
}

/// The text of a request, or of a notification when there is no id.
pub(crate) fn message(id: Option<u64>, method: &str, params: &RawValue) -> Vec<u8> {
    // Texts, numbers and checked JSON can always be written.
    serde_json::to_vec(&Outgoing { jsonrpc: "2.0", id, method, params }).unwrap_or_default()
}

/// Anything that a server sends.
#[derive(Deserialize)]
struct Incoming {
    id: Option<Box<RawValue>>,
    method: Option<String>,
    result: Option<Box<RawValue>>,
    error: Option<RpcError>,
}

/// What is to be done about what came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// A request of ours was answered.
    Answer,
    /// The server asks; this is our answer.
    Reply(Vec<u8>),
    /// The server tells.
    Notice,
    /// Not JSON-RPC.
    Garbage,
}

/// What a request that waits gets.
type Waiter = oneshot::Sender<Result<Box<RawValue>, WireError>>;

/// Requests that wait for their answers.
#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<HashMap<u64, Waiter>>>);

/// Forgets a request when nobody waits for it any more.
pub(crate) struct Forget<'a>(&'a Pending, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.map().remove(&self.1);
    }
}

impl Pending {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer with this id.
    pub fn wait(&self, id: u64) -> (oneshot::Receiver<Result<Box<RawValue>, WireError>>, Forget<'_>) {
        let (sender, receiver) = oneshot::channel();
        self.map().insert(id, sender);
        (receiver, Forget(self, id))
    }

    /// Nobody gets an answer any more.
    pub fn fail(&self, reason: &str) {
        for (_, waiter) in std::mem::take(&mut *self.map()) {
            // Whoever asked may have gone away.
            let _ = waiter.send(Err(WireError::Over(reason.to_owned())));
        }
    }

    /// Takes one message, or a batch of them.
    pub fn take(&self, text: &[u8], over: &Over) -> Vec<Taken> {
        if text.trim_ascii_start().first() == Some(&b'[') {
            let batch: Vec<Incoming> = serde_json::from_slice(text).unwrap_or_default();
            return batch.into_iter().map(|one| self.take_one(one, over)).collect();
        }
        match serde_json::from_slice::<Incoming>(text) {
            Ok(one) => vec![self.take_one(one, over)],
            Err(_) => vec![Taken::Garbage],
        }
    }

    fn take_one(&self, incoming: Incoming, over: &Over) -> Taken {
        match (incoming.method, incoming.id) {
            (Some(method), Some(id)) => Taken::Reply(reply(&method, &id)),
            (Some(method), None) => {
                if method == "notifications/tools/list_changed" {
                    over.tools_changed.notify_one();
                }
                Taken::Notice
            }
            (None, Some(id)) => {
                let answer = match (incoming.error, incoming.result) {
                    (Some(error), _) => Err(WireError::Rpc(error)),
                    (None, Some(result)) => Ok(result),
                    (None, None) => Err(WireError::Unusable("it has neither a result nor an error".into())),
                };
                let waiter = id.get().parse::<u64>().ok().and_then(|id| self.map().remove(&id));
                match waiter {
                    Some(waiter) => {
                        // Whoever asked may have gone away.
                        let _ = waiter.send(answer);
                        Taken::Answer
                    }
                    None => Taken::Notice,
                }
            }
            (None, None) => Taken::Garbage,
        }
    }
}

/// Keiko answers `ping`, and offers servers nothing else.
fn reply(method: &str, id: &RawValue) -> Vec<u8> {
    match method {
        "ping" => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#).into_bytes(),
        _ => format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"Method not found"}}}}"#).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_find_whoever_asked_and_nothing_else_does() {
        let (pending, over) = (Pending::default(), Over::default());
        let (waiting, _forget) = pending.wait(7);
        assert_eq!(pending.take(br#"{"jsonrpc":"2.0","id":8,"result":{}}"#, &over), [Taken::Notice]);
        assert_eq!(pending.take(br#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#, &over), [Taken::Answer]);
        assert_eq!(waiting.await.unwrap().unwrap().get(), r#"{"a":1}"#);
    }

    #[test]
    fn garbage_notices_and_requests_are_told_apart() {
        let (pending, over) = (Pending::default(), Over::default());
        for garbage in ["hello", "{}", "7", "{\"id\":", ""] {
            assert_eq!(pending.take(garbage.as_bytes(), &over), [Taken::Garbage], "{garbage}");
        }
        assert_eq!(pending.take(br#"{"method":"notifications/message","params":{}}"#, &over), [Taken::Notice]);
        let asked = pending.take(br#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#, &over);
        assert_eq!(asked, [Taken::Reply(br#"{"jsonrpc":"2.0","id":"x","result":{}}"#.to_vec())]);
    }

    #[tokio::test]
    async fn the_first_reason_for_an_end_counts() {
        let over = Over::default();
        over.end("first");
        over.end("second");
        assert_eq!(over.ended().await, "first");
    }
}
