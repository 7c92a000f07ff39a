//! Slows down guessing: of passwords per account and address, so that nobody can lock somebody else out, and of codes. What
//! failed here counts on the other replicas too.

use crate::Answer;
use crate::app::App;
use crate::shared::gathered;
use kernel::{Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Failures that cost nothing.
const FREE_FAILURES: u32 = 5;
/// The first wait; doubled with each further failure.
const FIRST_WAIT_MS: u64 = 1_000;
/// The longest wait.
const WAIT_MS_MAX: u64 = 15 * 60_000;
/// Failures of one account from anywhere that cost nothing.
const FREE_FAILURES_ANYWHERE: u32 = 100;
/// The longest wait because of them: it slows guessing from many addresses, and shuts nobody out.
const WAIT_ANYWHERE_MS_MAX: u64 = 30_000;
/// Accounts that are remembered.
const ENTRIES_MAX: usize = 10_000;

#[derive(Default)]
pub(crate) struct Throttle(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    failures: BTreeMap<String, Failures>,
    /// What happened here and is not told yet.
    untold: BTreeMap<String, Tries>,
}

/// What happened with one key at a replica.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tries {
    /// Whether a try succeeded: failures from before it do not count any more.
    succeeded: bool,
    /// Failures after that.
    failed: u32,
}

struct Failures {
    count: u32,
    last: Timestamp,
}

impl Failures {
    fn wait_ms(&self) -> u64 {
        match self.count.checked_sub(FREE_FAILURES) {
            None => 0,
            Some(more) => (FIRST_WAIT_MS << more.min(20)).min(WAIT_MS_MAX),
        }
    }
}

impl Inner {
    fn failed(&mut self, key: String, now: Timestamp) {
        let failures = &mut self.failures;
        if failures.len() >= ENTRIES_MAX {
            failures.retain(|_, f| now.since_ms(f.last) < f.wait_ms().max(60_000));
        }
        if failures.len() >= ENTRIES_MAX {
            failures.pop_first();
        }
        let entry = failures.entry(key).or_insert(Failures { count: 0, last: now });
        let is_old = now.since_ms(entry.last) > WAIT_MS_MAX;
        entry.count = if is_old { 1 } else { entry.count.saturating_add(1) };
        entry.last = now;
    }
}

impl Throttle {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long this account has to wait at this address; 0 when it may try.
    fn wait_ms(&self, key: &str, now: Timestamp) -> u64 {
        self.inner().failures.get(key).map_or(0, |f| f.wait_ms().saturating_sub(now.since_ms(f.last)))
    }

    /// How long this account has to wait because of failures from everywhere together.
    fn wait_anywhere_ms(&self, key: &str, now: Timestamp) -> u64 {
        let wait = |f: &Failures| match f.count.checked_sub(FREE_FAILURES_ANYWHERE) {
            None => 0,
            Some(more) => (FIRST_WAIT_MS << more.min(20)).min(WAIT_ANYWHERE_MS_MAX),
        };
        self.inner().failures.get(key).map_or(0, |f| wait(f).saturating_sub(now.since_ms(f.last)))
    }

    /// A try failed.
    fn failed(&self, key: String, now: Timestamp, tells: bool) {
        let mut inner = self.inner();
        if tells {
            inner.untold.entry(key.clone()).or_default().failed += 1;
        }
        inner.failed(key, now);
    }

    /// A try succeeded.
    fn succeeded(&self, key: &str, tells: bool) {
        let mut inner = self.inner();
        if tells {
            inner.untold.insert(key.to_owned(), Tries { succeeded: true, failed: 0 });
        }
        inner.failures.remove(key);
    }

    /// What happened here and is not told yet.
    pub fn untold(&self) -> Vec<(String, Tries)> {
        gathered(&mut self.inner().untold)
    }

    /// What happened at another replica.
    pub fn hear(&self, told: Vec<(String, Tries)>, now: Timestamp) {
        let mut inner = self.inner();
        for (key, tries) in told {
            if tries.succeeded {
                inner.failures.remove(&key);
            }
            for _ in 0..tries.failed.min(FREE_FAILURES_ANYWHERE) {
                inner.failed(key.clone(), now);
            }
        }
    }
}

impl App {
    /// What is kept and told of a key, which may hold whatever somebody typed.
    fn throttle_key(&self, key: &str) -> String {
        self.0.crypto.sealer.derived("throttle", key)
    }

    /// How long something that failed too often lately has to wait.
    pub(crate) fn try_wait_ms(&self, key: &str) -> u64 {
        self.0.throttle.wait_ms(&self.throttle_key(key), self.env().now())
    }

    /// Refuses what failed too often lately.
    pub(crate) fn not_throttled(&self, key: &str, message: &str) -> Answer<()> {
        waits(self.try_wait_ms(key), message)
    }

    /// The same for failures from everywhere together.
    pub(crate) fn not_throttled_anywhere(&self, key: &str, message: &str) -> Answer<()> {
        waits(self.0.throttle.wait_anywhere_ms(&self.throttle_key(key), self.env().now()), message)
    }

    /// Counts a try as failed before it is known how it ends, so that guesses at the same time count too.
    pub(crate) fn count_try(&self, key: &str) {
        self.0.throttle.failed(self.throttle_key(key), self.env().now(), self.tells());
    }

    /// Takes it back, with those before it.
    pub(crate) fn try_succeeded(&self, key: &str) {
        self.0.throttle.succeeded(&self.throttle_key(key), self.tells());
    }
}

fn waits(wait_ms: u64, message: &str) -> Answer<()> {
    match wait_ms {
        0 => Ok(()),
        wait_ms => {
            let wait_s = wait_ms.div_ceil(1_000);
            let hint = format!("Try again in {wait_s} s.");
            Err(Rejection::new(Kind::Limited, "LOGIN_THROTTLED", message, hint).with("retry_after_s", wait_s))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_gets_slower_and_a_success_clears_it() {
        let throttle = Throttle::default();
        for _ in 0..4 {
            throttle.failed("a".into(), Timestamp(0), false);
        }
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 0);
        throttle.failed("a".into(), Timestamp(0), false);
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 1_000);
        throttle.failed("a".into(), Timestamp(0), false);
        assert_eq!(throttle.wait_ms("a", Timestamp(500)), 1_500);
        assert_eq!(throttle.wait_ms("b", Timestamp(0)), 0, "others are not slowed down");
        throttle.succeeded("a", false);
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 0);
    }

    #[test]
    fn guessing_from_everywhere_is_slowed_down_and_shuts_nobody_out() {
        let throttle = Throttle::default();
        for _ in 0..FREE_FAILURES_ANYWHERE {
            assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), 0);
            throttle.failed("a".into(), Timestamp(0), false);
        }
        assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), 1_000);
        for _ in 0..1_000 {
            throttle.failed("a".into(), Timestamp(0), false);
        }
        assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), WAIT_ANYWHERE_MS_MAX);
    }

    #[test]
    fn what_happened_at_one_counts_at_another() {
        let (here, there) = (Throttle::default(), Throttle::default());
        let tell = || there.hear(here.untold(), Timestamp(0));
        for _ in 0..5 {
            here.failed("a".into(), Timestamp(0), true);
        }
        tell();
        assert_eq!(there.wait_ms("a", Timestamp(0)), 1_000);
        tell();
        assert_eq!(there.wait_ms("a", Timestamp(0)), 1_000, "told once");
        here.succeeded("a", true);
        here.failed("a".into(), Timestamp(0), true);
        tell();
        assert_eq!(there.wait_ms("a", Timestamp(0)), 0);
        for _ in 0..4 {
            there.failed("a".into(), Timestamp(0), true);
        }
        assert_eq!(there.wait_ms("a", Timestamp(0)), 1_000, "the one after the success counts");
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::default();
        for n in 0..ENTRIES_MAX + 50 {
            throttle.failed(format!("{n}"), Timestamp(0), false);
        }
        assert!(throttle.inner().failures.len() <= ENTRIES_MAX);
    }
}
