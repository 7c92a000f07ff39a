//! An answer over HTTP: JSON when it is there first, else a stream of what comes before it, and then it.

use super::message::whole;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// Messages before an answer that wait to be read.
pub(super) const ASIDE_MAX: usize = 256;
/// A comment is sent after so much silence.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const COMMENT: Bytes = Bytes::from_static(b":\n\n");

/// What a request comes to: the status and text of its answer; nothing when it was called off.
pub(super) type Work = Pin<Box<dyn Future<Output = Option<(StatusCode, String)>> + Send>>;

/// Answers with whatever comes first. The work ends when the client leaves.
pub(super) async fn answer(mut work: Work, mut aside: mpsc::Receiver<String>, may_stream: bool) -> Response {
    if !may_stream {
        drop(aside);
        return match work.await {
            Some((status, text)) => whole(status, text),
            None => StatusCode::ACCEPTED.into_response(),
        };
    }
    tokio::select! {
        biased;
        Some(first) = aside.recv() => streamed(Some(first), aside, Some(work)),
        done = &mut work => match done {
            Some((status, text)) if aside.is_empty() => whole(status, text),
            Some((_, text)) => {
                let last: Work = Box::pin(std::future::ready(Some((StatusCode::OK, text))));
                streamed(None, aside, Some(last))
            }
            None => streamed(None, aside, None),
        },
    }
}

struct Running {
    first: Option<String>,
    aside: mpsc::Receiver<String>,
    work: Option<Work>,
    last: Option<String>,
}

/// What comes aside, and the work's answer at the end.
pub(super) fn streamed(first: Option<String>, aside: mpsc::Receiver<String>, work: Option<Work>) -> Response {
    event_stream(unfolded(Running { first, aside, work, last: None }).map(Ok::<_, Infallible>))
}

/// Messages as server-sent events, while the work runs.
pub(super) fn pieces(aside: mpsc::Receiver<String>, work: Work) -> impl Stream<Item = Bytes> + Send {
    unfolded(Running { first: None, aside, work: Some(work), last: None })
}

fn unfolded(running: Running) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(running, |mut running| async move { Some((running.next().await?, running)) })
}

/// A response that is a stream of server-sent events.
pub(in crate::http) fn event_stream(pieces: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(event(&first));
        }
        loop {
            let Some(work) = &mut self.work else {
                let message = self.aside.try_recv().ok().or_else(|| self.last.take())?;
                return Some(event(&message));
            };
            tokio::select! {
                biased;
                Some(message) = self.aside.recv() => return Some(event(&message)),
                done = work => {
                    self.work = None;
                    self.last = done.map(|(_, text)| text);
                }
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(COMMENT),
            }
        }
    }
}

/// A message as a server-sent event. JSON has no line ends outside of its texts, and there they are escaped.
fn event(message: &str) -> Bytes {
    let lines = message.replace(['\r', '\n'], " ");
    Bytes::from(format!("event: message\ndata: {lines}\n\n"))
}
