//! Slows down guessing of passwords: per account and address, so that nobody can lock somebody else out.

use kernel::Timestamp;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

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
pub(crate) struct Throttle(Mutex<BTreeMap<String, Failures>>);

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

impl Throttle {
    /// How long this account has to wait at this address; 0 when it may try.
    pub fn wait_ms(&self, key: &str, now: Timestamp) -> u64 {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(key).map_or(0, |f| f.wait_ms().saturating_sub(now.since_ms(f.last)))
    }

    /// How long this account has to wait because of failures from everywhere together.
    pub fn wait_anywhere_ms(&self, key: &str, now: Timestamp) -> u64 {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |f: &Failures| match f.count.checked_sub(FREE_FAILURES_ANYWHERE) {
            None => 0,
            Some(more) => (FIRST_WAIT_MS << more.min(20)).min(WAIT_ANYWHERE_MS_MAX),
        };
        failures.get(key).map_or(0, |f| wait(f).saturating_sub(now.since_ms(f.last)))
    }

    /// A try failed.
    pub fn failed(&self, key: String, now: Timestamp) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// A try succeeded.
    pub fn succeeded(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_gets_slower_and_a_success_clears_it() {
        let throttle = Throttle::default();
        for _ in 0..4 {
            throttle.failed("a".into(), Timestamp(0));
        }
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 0);
        throttle.failed("a".into(), Timestamp(0));
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 1_000);
        throttle.failed("a".into(), Timestamp(0));
        assert_eq!(throttle.wait_ms("a", Timestamp(500)), 1_500);
        assert_eq!(throttle.wait_ms("b", Timestamp(0)), 0, "others are not slowed down");
        throttle.succeeded("a");
        assert_eq!(throttle.wait_ms("a", Timestamp(0)), 0);
    }

    #[test]
    fn guessing_from_everywhere_is_slowed_down_and_shuts_nobody_out() {
        let throttle = Throttle::default();
        for _ in 0..FREE_FAILURES_ANYWHERE {
            assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), 0);
            throttle.failed("a".into(), Timestamp(0));
        }
        assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), 1_000);
        for _ in 0..1_000 {
            throttle.failed("a".into(), Timestamp(0));
        }
        assert_eq!(throttle.wait_anywhere_ms("a", Timestamp(0)), WAIT_ANYWHERE_MS_MAX);
    }

    #[test]
    fn memory_is_bounded() {
        let throttle = Throttle::default();
        for n in 0..ENTRIES_MAX + 50 {
            throttle.failed(format!("{n}"), Timestamp(0));
        }
        assert!(throttle.0.lock().unwrap().len() <= ENTRIES_MAX);
    }
}
