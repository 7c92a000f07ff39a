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
/// How long a try may be under way: it counts as failed here, and is told to others only when it did not succeed by then.
const UNDER_WAY_MS: u64 = 1_000;
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
    /// When the last of them happened.
    #[serde(skip)]
    at: Timestamp,
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
            let tries = inner.untold.entry(key.clone()).or_default();
            (tries.failed, tries.at) = (tries.failed + 1, now);
        }
        inner.failed(key, now);
    }

    /// A try succeeded. Others need to know only if there were failures before it.
    fn succeeded(&self, key: &str, now: Timestamp, tells: bool) {
        let mut inner = self.inner();
        let had_failed = inner.failures.remove(key).is_some_and(|failures| failures.count > 1);
        inner.untold.remove(key);
        if tells && had_failed {
            inner.untold.insert(key.to_owned(), Tries { succeeded: true, failed: 0, at: now });
        }
    }

    /// What happened here, is not under way any more and not told yet.
    pub fn untold(&self, now: Timestamp) -> Vec<(String, Tries)> {
        let mut inner = self.inner();
        let is_settled = |tries: &Tries| tries.failed == 0 || now.since_ms(tries.at) >= UNDER_WAY_MS;
        let (mut settled, under_way) = std::mem::take(&mut inner.untold).into_iter().partition(|(_, tries)| is_settled(tries));
        inner.untold = under_way;
        gathered(&mut settled)
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
        self.0.throttle.succeeded(&self.throttle_key(key), self.env().now(), self.tells());
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
        throttle.succeeded("a", Timestamp(0), false);
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
        let tell = |now| there.hear(here.untold(Timestamp(now)), Timestamp(now));
        let wait_ms = |now| there.wait_ms("a", Timestamp(now));
        for _ in 0..5 {
            here.failed("a".into(), Timestamp(0), true);
        }
        tell(900);
        assert_eq!(wait_ms(900), 0, "they may be under way");
        tell(1_000);
        assert_eq!(wait_ms(1_000), 1_000);
        tell(1_100);
        assert_eq!(wait_ms(1_100), 900, "told once");
        here.succeeded("a", Timestamp(1_200), true);
        tell(1_200);
        assert_eq!(wait_ms(1_200), 0);
    }

    #[test]
    fn logins_that_succeed_count_nowhere() {
        let (here, there) = (Throttle::default(), Throttle::default());
        for now in (0..20).map(|n| Timestamp(n * 300)) {
            here.failed("a".into(), now, true);
            there.hear(here.untold(now), now);
            here.succeeded("a", now, true);
            there.hear(here.untold(now), now);
        }
        assert!(there.inner().failures.is_empty() && here.inner().untold.is_empty());
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
