//! Repetition, only where it is safe, with growing pauses that differ, and never so often that it makes trouble worse.

use super::layer::{Aspect, Inner};
use super::{Answer, Call, State, add, locked};
use crate::mcp::CallError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first pause is at most this long, each further one twice as long.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Repetitions that are saved up.
const SAVED_MAX: f64 = 10.0;
/// One each ten seconds, however few calls there are.
const PER_SECOND: f64 = 0.1;

/// How many repetitions are allowed now: calls earn them, time earns a few.
#[derive(Debug)]
pub(super) struct Budget {
    saved: f64,
    at: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Budget { saved: SAVED_MAX, at: now }
    }

    fn earn(&mut self, percent: u32) {
        self.saved = (self.saved + f64::from(percent) / 100.0).min(SAVED_MAX);
    }

    fn spend(&mut self, now: Instant) -> bool {
        self.saved = (self.saved + now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND).min(SAVED_MAX);
        self.at = now;
        let is_enough = self.saved >= 1.0;
        if is_enough {
            self.saved -= 1.0;
        }
        is_enough
    }
}

/// Whether another attempt may do better: who is not there, refuses or has too much to do will not by being asked again.
fn is_passing(error: &CallError) -> bool {
    matches!(error, CallError::Lost(_) | CallError::Unreached(_) | CallError::Timeout(_))
}

/// Anything up to the longest pause of this attempt, so that callers who failed together do not come back together.
fn pause(attempt: u32, random: f64) -> Duration {
    (PAUSE * 2_u32.saturating_pow(attempt - 1)).min(PAUSE_MAX).mul_f64(random)
}

/// The layer.
#[derive(Clone)]
pub(super) struct Retry(pub Arc<State>);

impl Aspect for Retry {
    async fn around(self, mut call: Call, mut inner: impl Inner) -> Answer {
        let (begun, whole) = (Instant::now(), call.timeout);
        let tuning = self.0.tuning();
        locked(&self.0.budget).earn(tuning.retry_percent);
        let mut attempt = 1;
        let mut before: Option<CallError> = None;
        loop {
            let answer = inner.call(call.clone()).await;
            let Err(error) = &answer else { return answer };
            // That it could not be tried again does not say that it was never carried out.
            if let Some(before) = before.take().filter(|_| error.is_unsent()) {
                return Err(before);
            }
            let rest = pause(attempt, rand::random());
            let left = whole.saturating_sub(begun.elapsed()).saturating_sub(rest);
            let is_worth_it = attempt < tuning.attempts_max && is_passing(error) && call.is_safe_after(error) && !left.is_zero();
            if !is_worth_it || !locked(&self.0.budget).spend(Instant::now()) {
                return answer;
            }
            before = answer.err();
            add(&self.0.counts.retried);
            tokio::time::sleep(rest).await;
            call.timeout = left;
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Addresses;
    use crate::mcp::{Ask, Client, Method};
    use crate::resilience::{Tags, Tuning};
    use crate::{Changes, Key};
    use kernel::id::{McpServerId, TenantId};
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use tokio::sync::{broadcast, mpsc};
    use tower::service_fn;

    #[test]
    fn repetitions_are_a_part_of_the_calls_and_a_few_more() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert_eq!((0..100).filter(|_| budget.spend(now)).count(), 10, "what was saved up");
        let spent = (0..100).filter(|_| {
            budget.earn(20);
            budget.spend(now)
        });
        assert!((19..=20).contains(&spent.count()));
        assert!(!budget.spend(now + Duration::from_secs(5)));
        assert!(budget.spend(now + Duration::from_secs(16)));
        assert_eq!((0..100).filter(|_| budget.spend(now + Duration::from_secs(86_400))).count(), 10, "no more is saved");
    }

    fn state() -> Arc<State> {
        let key = Key { tenant: TenantId::from_bytes([0; 16]), server: McpServerId::from_bytes([0; 16]) };
        let changes = Changes { sender: broadcast::Sender::new(1), generation: AtomicU64::new(0) };
        let addresses = Arc::new(Addresses::new(key, vec![], mpsc::channel(1).0, Arc::new(changes)));
        Arc::new(State::new(addresses, Tags::new(&[]), Tuning::default(), Duration::from_secs(1)))
    }

    /// What a call says that may be repeated, when its attempts come to these.
    async fn said(attempts: &[CallError]) -> CallError {
        let left = Arc::new(Mutex::new(attempts.to_vec()));
        let inner = service_fn(move |_: Call| {
            let error = left.lock().unwrap().remove(0);
            async move { Err(error) }
        });
        let ask = Ask::of_task(Method::GetTask, "t".into(), None);
        let mut call = Call::new(ask, Client::default(), Duration::from_secs(5));
        call.is_repeatable = true;
        Retry(state()).around(call, inner).await.unwrap_err()
    }

    #[tokio::test]
    async fn an_attempt_that_was_none_does_not_make_a_lost_call_one_that_was_never_sent() {
        let lost = CallError::Lost("it ended".into());
        let open = CallError::Open { what: "it failed".into(), after: Duration::from_secs(1) };
        assert_eq!(said(&[lost.clone(), open.clone()]).await, lost);
        assert_eq!(said(&[lost.clone(), CallError::Busy]).await, lost);
        assert_eq!(said(std::slice::from_ref(&open)).await, open);
        let last = CallError::Timeout(7);
        assert_eq!(said(&[lost.clone(), lost, last.clone()]).await, last);
    }

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!([1, 2, 3, 9].map(|attempt| pause(attempt, 1.0).as_millis()), [100, 200, 400, 2_000]);
        assert_eq!(pause(40, 1.0), PAUSE_MAX);
        assert_eq!(pause(3, 0.0), Duration::ZERO);
    }
}
