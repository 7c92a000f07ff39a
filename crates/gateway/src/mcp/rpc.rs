//! JSON-RPC 2.0: what is sent, what comes in, whom it is for, and how a connection ends.

use super::Note;
use crate::access::Holder;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Messages beside an answer that wait to be looked at; more are dropped.
pub(crate) const ASIDE_MAX: usize = 256;
/// Larger notes are dropped: many may wait.
const NOTE_BYTES_MAX: usize = 64 * 1024;
const URI_BYTES_MAX: usize = 8 * 1024;
/// So long after a request was given up something may come that is about it.
const LATE: Duration = Duration::from_secs(60);

/// An error that the server answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct RpcError {
    #[serde(default)]
    pub code: i64,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub data: Value,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The connection ended.
    Over(String),
    /// The connection ended before this was sent.
    Unsent(String),
    /// This answer broke off: what was asked may have been done or not.
    Broken(String),
    /// This answer cannot be used; others may be.
    Unusable(String),
    /// The server refused.
    Rpc(RpcError),
    /// The server does not know the session any more; it did nothing.
    SessionGone,
    /// The tool is not what was approved.
    Changed,
    /// Over HTTP: it lets nobody in who has not more to show; it did nothing.
    Locked(String),
    /// Over HTTP: it answered this status, and no JSON-RPC.
    Status(u16),
}

/// What a request consists of.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// Unique on the connection.
    pub id: u64,
    /// What is asked.
    pub method: &'a str,
    /// Everything else.
    pub params: &'a RawValue,
    /// What it is about (a tool's or prompt's name, a URI); said in a header too in the newest version.
    pub name: Option<&'a str>,
    /// Arguments that are said in headers too, with their names.
    pub mirrored: &'a [(String, String)],
    /// Whose account is used, where it is not that of the connection.
    pub holder: Option<&'a Holder>,
}

/// What comes before an answer, and belongs to it.
#[derive(Debug)]
pub(crate) enum Aside {
    /// To be told to whoever asked.
    Note(Note),
    /// The server asks something back; it waits for [`Wire::respond`].
    Question(Question),
}

/// A request of the server.
#[derive(Debug)]
pub(crate) struct Question {
    /// The server's id of it.
    pub id: Box<RawValue>,
    /// `elicitation/create` and the like.
    pub method: String,
    /// As they came.
    pub params: Value,
}

/// Where what belongs to a request goes.
pub(crate) type AsideSender = mpsc::Sender<Aside>;

/// A connection to a server.
#[async_trait]
pub(crate) trait Wire: Send + Sync {
    /// Asks and waits. What comes before the answer goes to `aside`. Dropping the future forgets the request.
    async fn request(&self, call: Call<'_>, aside: Option<&AsideSender>) -> Result<Box<RawValue>, WireError>;
    /// Tells, as far as that is possible.
    async fn notify(&self, method: &str, params: &RawValue);
    /// Answers a request of the server.
    async fn respond(&self, id: &RawValue, answer: Result<&Value, (i64, &str)>);
    /// The version of the protocol, once it is agreed on.
    fn agreed(&self, version: &str, is_modern: bool);
    /// Forgets the session, before a new one is opened.
    fn forget_session(&self);
    /// Tells the server that the connection ends, where the protocol has a word for it.
    async fn close(&self);
}

/// The state that all parts of a connection share: whether it is over, and what the server told of itself.
#[derive(Clone, Default)]
pub(crate) struct Over {
    token: CancellationToken,
    reason: Arc<Mutex<Option<String>>>,
    /// Told when the server says that a list changed.
    pub lists_changed: Arc<Notify>,
    /// Where URIs of resources go that changed.
    pub updates: Option<mpsc::Sender<String>>,
    /// Whether the connection is one party's alone: what comes late is for the same one.
    is_private: bool,
    /// What runs until nothing of the connection is left.
    pub tasks: TaskTracker,
}

impl Over {
    /// With a place for URIs of resources that changed.
    pub fn telling(updates: mpsc::Sender<String>) -> Self {
        Over { updates: Some(updates), ..Over::default() }
    }

    /// Of a connection that is one party's alone.
    pub fn private() -> Self {
        Over { is_private: true, ..Over::default() }
    }

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

/// The text of an answer to a request of the server.
pub(crate) fn response(id: &RawValue, answer: Result<&Value, (i64, &str)>) -> Vec<u8> {
    let rest = match answer {
        Ok(result) => format!(r#""result":{result}"#),
        Err((code, message)) => format!(r#""error":{}"#, serde_json::json!({ "code": code, "message": message })),
    };
    format!(r#"{{"jsonrpc":"2.0","id":{},{rest}}}"#, id.get()).into_bytes()
}

/// Anything that a server sends.
#[derive(Deserialize)]
struct Incoming {
    id: Option<Box<RawValue>>,
    method: Option<String>,
    params: Option<Box<RawValue>>,
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
    /// The server asks, and somebody looks at it.
    Asked,
    /// The server tells.
    Notice,
    /// Not JSON-RPC.
    Garbage,
}

/// What a request that waits gets.
struct Waiter {
    answer: oneshot::Sender<Result<Box<RawValue>, WireError>>,
    aside: Option<AsideSender>,
}

/// Requests that wait for their answers.
#[derive(Clone, Default)]
pub(crate) struct Pending {
    waiting: Arc<Mutex<HashMap<u64, Waiter>>>,
    /// When a request was given up last: what comes late may still be about it.
    given_up: Arc<Mutex<Option<Instant>>>,
}

/// Forgets a request when nobody waits for it any more.
pub(crate) struct Forget<'a>(&'a Pending, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let given_up = self.0.map().remove(&self.1);
        if given_up.is_some_and(|waiter| waiter.aside.is_some()) {
            *self.0.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }
}

impl Pending {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer with this id.
    pub fn wait(
        &self,
        id: u64,
        aside: Option<&AsideSender>,
    ) -> (oneshot::Receiver<Result<Box<RawValue>, WireError>>, Forget<'_>) {
        let (answer, receiver) = oneshot::channel();
        self.map().insert(id, Waiter { answer, aside: aside.cloned() });
        (receiver, Forget(self, id))
    }

    /// Nobody gets an answer any more.
    pub fn fail(&self, reason: &str) {
        for (_, waiter) in std::mem::take(&mut *self.map()) {
            // Whoever asked may have gone away.
            let _ = waiter.answer.send(Err(WireError::Over(reason.to_owned())));
        }
    }

    /// Takes one message, or a batch of them. `origin` is the request on whose stream it came, where there is such a thing.
    pub fn take(&self, text: &[u8], origin: Option<u64>, over: &Over) -> Vec<Taken> {
        if text.trim_ascii_start().first() == Some(&b'[') {
            let batch: Vec<Incoming> = serde_json::from_slice(text).unwrap_or_default();
            return batch.into_iter().map(|one| self.take_one(one, origin, over)).collect();
        }
        match serde_json::from_slice::<Incoming>(text) {
            Ok(one) => vec![self.take_one(one, origin, over)],
            Err(_) => vec![Taken::Garbage],
        }
    }

    fn take_one(&self, incoming: Incoming, origin: Option<u64>, over: &Over) -> Taken {
        match (incoming.method, incoming.id) {
            (Some(method), Some(id)) => self.asked(method, id, incoming.params, origin, over),
            (Some(method), None) => {
                self.told(&method, incoming.params, origin, over);
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
                        let _ = waiter.answer.send(answer);
                        Taken::Answer
                    }
                    None => Taken::Notice,
                }
            }
            (None, None) => Taken::Garbage,
        }
    }

    /// Whose request something belongs to that came with no word about that: the one on whose stream it came, or the only one
    /// that listens, and did of late.
    fn listener(&self, origin: Option<u64>, over: &Over) -> Option<AsideSender> {
        let map = self.map();
        if let Some(waiter) = origin.and_then(|id| map.get(&id)) {
            return waiter.aside.clone();
        }
        let given_up = *self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        if !over.is_private && given_up.is_some_and(|at| at.elapsed() < LATE) {
            return None;
        }
        // Whoever does not listen has not asked to be told anything.
        let mut listening = map.values().filter_map(|waiter| waiter.aside.as_ref());
        match (listening.next(), listening.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    fn asked(&self, method: String, id: Box<RawValue>, params: Option<Box<RawValue>>, origin: Option<u64>, over: &Over) -> Taken {
        if method == "ping" {
            return Taken::Reply(response(&id, Ok(&Value::Object(serde_json::Map::new()))));
        }
        let params = params.and_then(|params| serde_json::from_str(params.get()).ok()).unwrap_or_default();
        let Some(listener) = self.listener(origin, over) else {
            return Taken::Reply(response(&id, Err((METHOD_NOT_FOUND, "Nobody here can be asked that."))));
        };
        match listener.try_send(Aside::Question(Question { id, method, params })) {
            Ok(()) => Taken::Asked,
            Err(
                mpsc::error::TrySendError::Full(Aside::Question(question))
                | mpsc::error::TrySendError::Closed(Aside::Question(question)),
            ) => Taken::Reply(response(&question.id, Err((INTERNAL_ERROR, "Too many questions at a time.")))),
            Err(_) => Taken::Notice,
        }
    }

    fn told(&self, method: &str, params: Option<Box<RawValue>>, origin: Option<u64>, over: &Over) {
        match method {
            "notifications/tools/list_changed"
            | "notifications/prompts/list_changed"
            | "notifications/resources/list_changed" => over.lists_changed.notify_one(),
            "notifications/resources/updated" => {
                let params = params.as_deref().filter(|params| params.get().len() <= URI_BYTES_MAX);
                let uri = params.and_then(|p| serde_json::from_str::<Updated>(p.get()).ok());
                if let (Some(updated), Some(updates)) = (uri, &over.updates) {
                    // A flood is thinned out: whoever reads the resource sees how it is then.
                    let _ = updates.try_send(updated.uri);
                }
            }
            "notifications/progress" | "notifications/message" => {
                let is_usable = |params: &RawValue| params.get().len() <= NOTE_BYTES_MAX && params.get().starts_with('{');
                let Some(params) = params.filter(|params| is_usable(params)) else { return };
                let listener = if method == "notifications/progress" {
                    let token = serde_json::from_str::<Progress>(params.get()).ok().and_then(|p| p.token);
                    token.and_then(|token| self.map().get(&token).and_then(|waiter| waiter.aside.clone()))
                } else {
                    self.listener(origin, over)
                };
                let params = serde_json::from_str(params.get()).unwrap_or_default();
                if let Some(listener) = listener {
                    // A client that reads slowly misses some of it, and nobody waits for it.
                    let _ = listener.try_send(Aside::Note(Note { method: method.to_owned(), params }));
                }
            }
            _ => {}
        }
    }
}

pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
const INTERNAL_ERROR: i64 = -32603;

#[derive(Deserialize)]
struct Updated {
    uri: String,
}

/// Keiko's tokens of progress are the numbers of its requests.
#[derive(Deserialize)]
struct Progress {
    #[serde(rename = "progressToken")]
    token: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_find_whoever_asked_and_nothing_else_does() {
        let (pending, over) = (Pending::default(), Over::default());
        let (waiting, _forget) = pending.wait(7, None);
        assert_eq!(pending.take(br#"{"jsonrpc":"2.0","id":8,"result":{}}"#, None, &over), [Taken::Notice]);
        assert_eq!(pending.take(br#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#, None, &over), [Taken::Answer]);
        assert_eq!(waiting.await.unwrap().unwrap().get(), r#"{"a":1}"#);
    }

    #[test]
    fn garbage_notices_and_requests_are_told_apart() {
        let (pending, over) = (Pending::default(), Over::default());
        for garbage in ["hello", "{}", "7", "{\"id\":", "", "\u{0}"] {
            assert_eq!(pending.take(garbage.as_bytes(), None, &over), [Taken::Garbage], "{garbage}");
        }
        assert_eq!(pending.take(br#"{"method":"notifications/message","params":{}}"#, None, &over), [Taken::Notice]);
        let asked = pending.take(br#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#, None, &over);
        assert_eq!(asked, [Taken::Reply(br#"{"jsonrpc":"2.0","id":"x","result":{}}"#.to_vec())]);
    }

    #[tokio::test]
    async fn what_belongs_to_a_request_goes_to_it_and_is_refused_where_that_cannot_be_told() {
        let (pending, over) = (Pending::default(), Over::default());
        let ask = br#"{"id":"q","method":"elicitation/create","params":{"message":"?"}}"#;
        assert!(matches!(pending.take(ask, None, &over)[..], [Taken::Reply(_)]), "nobody listens");
        let (one, mut first) = mpsc::channel(4);
        let (two, mut second) = mpsc::channel(4);
        let (_a, forget_a) = pending.wait(1, Some(&one));
        assert_eq!(pending.take(ask, None, &over), [Taken::Asked]);
        assert!(matches!(first.recv().await, Some(Aside::Question(question)) if question.params["message"] == "?"));
        let (_b, _forget_b) = pending.wait(2, Some(&two));
        assert!(matches!(pending.take(ask, None, &over)[..], [Taken::Reply(_)]), "it could be for either");
        assert_eq!(pending.take(ask, Some(2), &over), [Taken::Asked]);
        let progress = br#"{"method":"notifications/progress","params":{"progressToken":1,"progress":3}}"#;
        assert_eq!(pending.take(progress, None, &over), [Taken::Notice]);
        assert!(matches!(first.recv().await, Some(Aside::Note(note)) if note.params["progress"] == 3));
        assert!(matches!(second.recv().await, Some(Aside::Question(_))));
        assert!(second.try_recv().is_err());
        drop(forget_a);
        assert!(matches!(pending.take(ask, None, &over)[..], [Taken::Reply(_)]), "it could be about what was given up");
    }

    #[tokio::test]
    async fn the_first_reason_for_an_end_counts() {
        let over = Over::default();
        over.end("first");
        over.end("second");
        assert_eq!(over.ended().await, "first");
    }
}
