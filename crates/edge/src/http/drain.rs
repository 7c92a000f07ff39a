//! Bodies that nobody read: a refused request's body is read to its end and thrown away, so that the connection can be
//! used again. One that is long or slow closes its connection instead.

use axum::body::{Body, Bytes};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What is thrown away at most.
const DRAIN_BYTES_MAX: usize = 256 * 1024;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_millis(500);

/// Where a body goes back to when it is dropped.
#[derive(Clone, Default)]
pub(super) struct Leftover(Arc<Mutex<Option<Body>>>);

/// A body that goes back when it is dropped.
struct Lent {
    body: Option<Body>,
    leftover: Leftover,
}

impl Leftover {
    /// Lends a body out.
    pub fn lend(&self, body: Body) -> Body {
        Body::new(Lent { body: Some(body), leftover: self.clone() })
    }

    /// Reads what is left. Answers whether the connection can be used again.
    pub async fn drain(&self) -> bool {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = left.filter(|body| !body.is_end_stream()) else { return true };
        let reading = Limited::new(body, DRAIN_BYTES_MAX).collect();
        matches!(tokio::time::timeout(DRAIN_TIME_MAX, reading).await, Ok(Ok(_)))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.leftover.0.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}
