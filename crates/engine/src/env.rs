//! Time, randomness and spawning: the only place where they enter.

use kernel::id::{Id, Named};
use kernel::{Timestamp, id};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The surroundings of a run. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<Inner>, CancellationToken);

struct Inner {
    clock: Clock,
    random: Mutex<StdRng>,
    tasks: TaskTracker,
    /// Takes heavy work one by one. On a thread of its own, so that the memory it needs is reused.
    heavy: Mutex<Option<Sender<Work>>>,
}

type Work = Box<dyn FnOnce() + Send>;

enum Clock {
    System,
    /// Runs with tokio's clock, which a test pauses.
    Simulated {
        origin: Timestamp,
        start: tokio::time::Instant,
    },
}

#[expect(clippy::disallowed_methods, reason = "this is where time and spawning enter")]
impl Env {
    /// The real clock and a random seed from the system.
    pub fn system() -> Self {
        Self::with(Clock::System, StdRng::from_rng(&mut rand::rng()))
    }

    /// A clock that follows tokio's, and numbers that follow the seed.
    pub fn simulated(origin: Timestamp, seed: u64) -> Self {
        Self::with(Clock::Simulated { origin, start: tokio::time::Instant::now() }, StdRng::seed_from_u64(seed))
    }

    fn with(clock: Clock, random: StdRng) -> Self {
        let inner = Inner { clock, random: Mutex::new(random), tasks: TaskTracker::new(), heavy: Mutex::new(None) };
        Env(Arc::new(inner), CancellationToken::new())
    }

    /// The same surroundings for a part that may be stopped before the rest.
    pub fn scoped(&self) -> Self {
        Env(self.0.clone(), self.1.child_token())
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        match &self.0.clock {
            Clock::System => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Clock::Simulated { origin, start } => origin.plus_ms(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Timestamp) {
        self.sleep_ms(at.since_ms(self.now())).await;
    }

    /// Waits.
    pub async fn sleep_ms(&self, ms: u64) {
        tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
    }

    /// Random bytes, fit for secrets.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        bytes
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }

    /// A new id.
    pub fn id<T: Named>(&self) -> Id<T> {
        id::Id::from_parts(self.now().0, self.bytes())
    }

    /// Runs a future beside the others until it ends; it should watch [`Env::stop`].
    pub fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.tasks.spawn(future);
    }

    /// Does work that needs much time and memory, such as hashing a password: one piece after another.
    pub async fn heavy<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if let Clock::Simulated { .. } = &self.0.clock {
            return work();
        }
        let (reply, done) = tokio::sync::oneshot::channel();
        let piece: Work = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // Whoever asked may have gone away.
            drop(reply.send(outcome));
        });
        let sent = self.0.heavy.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(heavy_thread).send(piece);
        debug_assert!(sent.is_ok(), "the thread lives as long as its sender");
        match done.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => std::panic::resume_unwind(Box::new("the thread for heavy work is gone")),
        }
    }

    /// Ends when everything, or this part, is to stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.1
    }

    /// Stops what was spawned and waits for it.
    pub async fn shut_down(&self) {
        self.1.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// A thread that does what it is sent, until nobody can send any more.
#[expect(clippy::disallowed_methods, reason = "this is where spawning enters")]
fn heavy_thread() -> Sender<Work> {
    let (sender, work) = channel::<Work>();
    std::thread::spawn(move || work.into_iter().for_each(|piece| piece()));
    sender
}
