//! MCP over streamable HTTP: each message is a POST, answered as JSON or as a stream of server-sent events.

use super::events::Events;
use super::mirror;
use super::reach::{Reach, Reached, Unreached, locked, refused};
use super::rpc::{AsideSender, Call, Over, Pending, Taken, Wire, WireError, message, response};
use crate::access::Holder;
use async_trait::async_trait;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

const RESPOND_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the stream of what nobody asked for may take to open before other things are asked.
const OPEN_PATIENCE: Duration = Duration::from_millis(500);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// The one request whose answer is a stream that does not end.
const LISTEN: &str = "subscriptions/listen";
const BOTH: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
/// Of the body of an error as much as is looked at.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Before a stream that broke off is asked for again, when its server says nothing; at least, and at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// A connection to a URL.
#[derive(Clone)]
pub(crate) struct HttpWire(Arc<Inner>);

struct Inner {
    reach: Reach,
    over: Over,
    pending: Pending,
    agreed: Mutex<Arc<Agreed>>,
    /// Follows what an older server says without being asked.
    listening: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Clone, Default)]
struct Agreed {
    headers: HeaderMap,
    is_modern: bool,
}

impl HttpWire {
    /// Nothing is sent yet.
    pub fn new(reach: Reach, over: Over) -> Self {
        HttpWire(Arc::new(Inner {
            reach,
            over,
            pending: Pending::default(),
            agreed: Mutex::default(),
            listening: Mutex::default(),
        }))
    }

    fn agreed_now(&self) -> Arc<Agreed> {
        self.0.agreed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn post(&self, body: Vec<u8>) -> RequestBuilder {
        let request = self.0.reach.request(Method::POST).header(CONTENT_TYPE, "application/json");
        request.header(ACCEPT, BOTH).headers(self.agreed_now().headers.clone()).body(body)
    }

    /// What is asked, in headers too.
    fn described(&self, request: RequestBuilder, call: &Call<'_>) -> RequestBuilder {
        if !self.agreed_now().is_modern {
            return request;
        }
        let mut headers = HeaderMap::new();
        headers.extend(HeaderValue::from_str(call.method).ok().map(|method| (METHOD, method)));
        headers.extend(call.name.and_then(encoded).map(|name| (NAME, name)));
        for (name, value) in call.mirrored {
            if let (Ok(name), Some(value)) = (format!("mcp-param-{name}").parse::<HeaderName>(), encoded(value)) {
                headers.insert(name, value);
            }
        }
        request.headers(headers)
    }

    /// A request on its way, for a holder.
    async fn send(&self, request: RequestBuilder, holder: Option<&Holder>) -> Result<Reached, WireError> {
        self.0.reach.send(request, holder).await.map_err(|error| self.unsent(error))
    }

    /// Tells something that is not worth a second try.
    async fn tell(&self, request: RequestBuilder, timeout: Duration) {
        let _ = self.0.reach.send(request.timeout(timeout), None).await;
    }

    /// Reads what was answered to a request until its stream ends.
    async fn read(&self, reached: Reached, call: &Call<'_>) -> Result<(), WireError> {
        let (id, is_bounded, holder) = (call.id, call.method != LISTEN, call.holder);
        let Reached { response: answered, shown } = reached;
        let status = answered.status();
        if status.is_redirection() {
            return Err(self.ended("it redirects, which is not followed"));
        }
        let session = answered.headers().get(SESSION).cloned();
        let had_session = self.agreed_now().headers.contains_key(SESSION);
        if status == StatusCode::NOT_FOUND && had_session {
            return Err(WireError::SessionGone);
        }
        if let Some(challenge) = refused(&answered) {
            return Err(WireError::Locked(locked(&challenge, shown.is_some())));
        }
        if !status.is_success() {
            return Err(refusal(answered).await);
        }
        if let Some(session) = session {
            let mut agreed = self.0.agreed.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::make_mut(&mut agreed).headers.insert(SESSION, session);
        }
        if !is_stream(&answered) {
            let body = whole(answered, self.0.reach.bytes_max).await?;
            self.take(&body, id).await;
            return Ok(());
        }
        let mut place = self.follow(answered, Some(id), is_bounded).await?;
        // A server of an older version may end the stream early and go on in another one.
        while let (Some(last), false) = (&place.last, self.agreed_now().is_modern) {
            tokio::time::sleep(place.retry.unwrap_or(RETRY)).await;
            let request = self.get().header(LAST_EVENT, last);
            let answered = self.send(request, holder).await?.response;
            if !answered.status().is_success() || !is_stream(&answered) {
                return Err(WireError::Status(answered.status().as_u16()));
            }
            let next = self.follow(answered, Some(id), is_bounded).await?;
            place = Place { last: next.last.or(place.last), retry: next.retry.or(place.retry) };
        }
        Ok(())
    }

    fn get(&self) -> RequestBuilder {
        let request = self.0.reach.request(Method::GET);
        request.header(ACCEPT, STREAM).headers(self.agreed_now().headers.clone())
    }

    /// Reads a stream to its end, and says where it ended. A stream of one request is bounded as a whole.
    async fn follow(&self, answered: Response, origin: Option<u64>, is_bounded: bool) -> Result<Place, WireError> {
        let bytes_max = self.0.reach.bytes_max;
        let mut events = Events::new(bytes_max);
        let mut stream = answered.bytes_stream();
        let mut place = Place::default();
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await {
            // What it sent before it broke off counts: an older version lets one go on from there.
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(_) if place.last.is_some() => break,
                Err(error) => return Err(WireError::Broken(format!("its answer broke off: {}", causes(&error)))),
            };
            bytes += chunk.len();
            if is_bounded && bytes > bytes_max {
                return Err(WireError::Unusable(format!("it has more than {bytes_max} bytes")));
            }
            for event in events.push(&chunk).map_err(WireError::Unusable)? {
                place.last = event.id.or(place.last);
                place.retry = event.retry_ms.map(|ms| Duration::from_millis(ms).min(RETRY_MAX)).or(place.retry);
                if let Some(id) = origin {
                    self.take(&event.data, id).await;
                } else {
                    self.reply(self.0.pending.take(&event.data, None, &self.0.over)).await;
                }
            }
        }
        Ok(place)
    }

    async fn take(&self, message: &[u8], id: u64) {
        let taken = self.0.pending.take(message, Some(id), &self.0.over);
        self.reply(taken).await;
    }

    async fn reply(&self, taken: Vec<Taken>) {
        for one in taken {
            if let Taken::Reply(reply) = one {
                self.tell(self.post(reply), CLOSE_TIMEOUT).await;
            }
        }
    }

    /// A server that cannot be connected to is gone; one that drops a connection may answer others.
    fn unsent(&self, error: Unreached) -> WireError {
        let error = match error {
            Unreached::Http(error) => error,
            Unreached::Locked(reason) => return WireError::Locked(reason),
        };
        let reason = format!("it cannot be reached: {}", causes(&error));
        if !error.is_connect() {
            return WireError::Broken(reason);
        }
        self.0.over.end(&reason);
        WireError::Unsent(reason)
    }

    fn ended(&self, reason: &str) -> WireError {
        self.0.over.end(reason);
        WireError::Over(reason.to_owned())
    }

    /// What a server of an older version says without being asked, until the connection is over.
    ///
    /// `opened` is dropped when the server has answered for the first time: what it asks before is lost.
    async fn listen(self, opened: oneshot::Sender<()>) {
        let mut opened = Some(opened);
        let mut place = Place::default();
        loop {
            let mut request = self.get();
            if let Some(last) = &place.last {
                request = request.header(LAST_EVENT, last);
            }
            let answered = self.0.reach.send(request, None).await;
            drop(opened.take());
            match answered.map(|reached| reached.response) {
                Ok(answered) if answered.status().is_success() && is_stream(&answered) => {
                    if let Ok(next) = self.follow(answered, None, false).await {
                        place = Place { last: next.last.or(place.last), retry: next.retry.or(place.retry) };
                    }
                }
                // It has nothing to say that way.
                Ok(answered) if answered.status().is_client_error() => return,
                Ok(_) | Err(_) => {}
            }
            tokio::time::sleep(place.retry.unwrap_or(RETRY).max(Duration::from_millis(10))).await;
        }
    }
}

/// Where a stream ended.
#[derive(Default)]
struct Place {
    last: Option<String>,
    retry: Option<Duration>,
}

#[async_trait]
impl Wire for HttpWire {
    async fn request(&self, call: Call<'_>, aside: Option<&AsideSender>) -> Result<Box<RawValue>, WireError> {
        // Before it is sent: an older server may ask on another stream before it answers on this one.
        let (mut answer, _forget) = self.0.pending.wait(call.id, aside);
        let request = self.described(self.post(message(Some(call.id), call.method, call.params)), &call);
        let reached = tokio::select! {
            biased;
            reason = self.0.over.ended() => return Err(WireError::Over(reason)),
            reached = self.send(request, call.holder) => reached?,
        };
        let shown = reached.shown.clone();
        let read = tokio::select! {
            biased;
            answer = &mut answer => {
                let answer = answer.unwrap_or_else(|_| Err(WireError::Over(self.0.over.reason())));
                return answer.map_err(|error| error.without(shown.as_ref()));
            }
            reason = self.0.over.ended() => Err(WireError::Over(reason)),
            read = self.read(reached, &call) => read,
        };
        let answer = match (answer.try_recv(), read) {
            (Ok(answer), _) => answer,
            (Err(_), Err(error)) => Err(error),
            (Err(_), Ok(())) => Err(WireError::Broken("its answer ended without a result".into())),
        };
        answer.map_err(|error| error.without(shown.as_ref()))
    }

    async fn notify(&self, method: &str, params: &RawValue) {
        self.tell(self.post(message(None, method, params)), CLOSE_TIMEOUT).await;
        if method == "notifications/initialized" && !self.0.over.is_over() {
            let (inner, over) = (Arc::downgrade(&self.0), self.0.over.clone());
            let (opened, is_opened) = oneshot::channel();
            let listening = tokio::spawn(async move {
                let Some(wire) = inner.upgrade().map(HttpWire) else { return };
                tokio::select! {
                    _ = over.ended() => {}
                    () = wire.listen(opened) => {}
                }
            });
            *self.0.listening.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(listening));
            // Some say nothing until there is something to say.
            let _ = tokio::time::timeout(OPEN_PATIENCE, is_opened).await;
        }
    }

    async fn respond(&self, id: &RawValue, answer: Result<&Value, (i64, &str)>) {
        self.tell(self.post(response(id, answer)), RESPOND_TIMEOUT).await;
    }

    fn agreed(&self, version: &str, is_modern: bool) {
        if let Ok(version) = version.parse() {
            let mut agreed = self.0.agreed.lock().unwrap_or_else(PoisonError::into_inner);
            let agreed = Arc::make_mut(&mut agreed);
            agreed.headers.insert(PROTOCOL, version);
            agreed.is_modern = is_modern;
        }
    }

    fn forget_session(&self) {
        *self.0.listening.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.0.agreed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    async fn close(&self) {
        let headers = self.agreed_now().headers.clone();
        if headers.contains_key(SESSION) {
            self.tell(self.0.reach.request(Method::DELETE).headers(headers), CLOSE_TIMEOUT).await;
        }
    }
}

fn encoded(value: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&mirror::written(value)).ok()
}

pub(crate) fn is_stream(answered: &Response) -> bool {
    let kind = answered.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    kind.to_ascii_lowercase().starts_with("text/event-stream")
}

/// All of a body within its bound.
async fn whole(answered: Response, bytes_max: usize) -> Result<Vec<u8>, WireError> {
    let mut stream = answered.bytes_stream();
    let mut body = vec![];
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| WireError::Broken(format!("its answer broke off: {}", causes(&e))))?;
        if body.len() + chunk.len() > bytes_max {
            return Err(WireError::Unusable(format!("it has more than {bytes_max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A status that is no success: a JSON-RPC error where the body holds one, whatever its id.
pub(crate) async fn refusal(answered: Response) -> WireError {
    #[derive(Deserialize)]
    struct Body {
        error: super::rpc::RpcError,
    }
    let status = answered.status().as_u16();
    let body = whole(answered, ERROR_BYTES_MAX).await.unwrap_or_default();
    match serde_json::from_slice::<Body>(&body) {
        Ok(body) if body.error.code != 0 => WireError::Rpc(body.error),
        _ => WireError::Status(status),
    }
}

/// The innermost cause says what happened; the outer ones repeat the URL.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
