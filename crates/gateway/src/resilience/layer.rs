//! A tower layer that is one function around what is inside.

use super::{Answer, Call};
use crate::mcp::{CallError, Outcome};
use std::pin::Pin;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// What a layer wraps: always ready, cheap to clone.
pub(super) trait Inner:
    Service<Call, Response = Outcome, Error = CallError, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Inner for S where S: Service<Call, Response = Outcome, Error = CallError, Future: Send> + Clone + Send + Sync + 'static {}

/// What a layer does with a call.
pub(super) trait Aspect: Clone + Send + Sync + 'static {
    /// Hands the call on to `inner`, as often as it takes, or not at all.
    fn around(self, call: Call, inner: impl Inner) -> impl Future<Output = Answer> + Send;
}

/// The layer of an aspect.
pub(super) struct AspectLayer<A>(pub A);

impl<A: Aspect, S: Inner> Layer<S> for AspectLayer<A> {
    type Service = Around<A, S>;

    fn layer(&self, inner: S) -> Around<A, S> {
        Around { aspect: self.0.clone(), inner }
    }
}

/// See [`AspectLayer`].
#[derive(Clone)]
pub(super) struct Around<A, S> {
    aspect: A,
    inner: S,
}

impl<A: Aspect, S: Inner> Service<Call> for Around<A, S> {
    type Response = Outcome;
    type Error = CallError;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        Box::pin(self.aspect.clone().around(call, self.inner.clone()))
    }
}
