//! The circuit breaker: what fails again and again is left alone for a while, then tried with one call.

use super::Tuning;
use std::time::{Duration, Instant};

/// The longest that a circuit stays open before it is tried.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// Calls within the window before a part of them means something.
const CALLS_MIN: u32 = 20;
const WINDOW_S: usize = 10;
/// How long others wait for a trial that does not end before one of them is another trial.
const TRIAL_MAX: Duration = Duration::from_secs(5);

/// A circuit that is not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// The tool or method; `None` for the server, or its address, as a whole.
    pub subject: Option<String>,
    /// The address, of a server that has several; `None` for all of them.
    pub address: Option<String>,
    /// How it is.
    pub state: CircuitState,
    /// The failure that opened it.
    pub reason: String,
}

/// See [`Circuit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// Calls are refused for this long.
    Open(Duration),
    /// The next call is a trial, or one is under way.
    HalfOpen,
}

/// How one circuit is.
#[derive(Debug, Default)]
pub(super) enum Position {
    #[default]
    Closed,
    Open {
        until: Instant,
        /// How long it was open this time.
        lasts: Duration,
        reason: String,
        /// The trial that is under way, and since when.
        trial: Option<(Trial, Instant)>,
        /// The first of this time.
        first: Option<Trial>,
    },
}

/// Which trial: what an earlier one says decides nothing.
pub(super) type Trial = u64;

/// One circuit.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    pub position: Position,
    pub in_a_row: u32,
    pub window: Window,
}

/// Calls of the last ten seconds, by the second.
#[derive(Debug, Default)]
pub(super) struct Window {
    began: Option<Instant>,
    second: u64,
    counts: [(u32, u32); WINDOW_S],
}

impl Window {
    /// Forgets what is older than the window.
    fn age(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let second = now.saturating_duration_since(began).as_secs();
        for gone in (self.second + 1..=second).rev().take(WINDOW_S) {
            self.counts[(gone % WINDOW_S as u64) as usize] = (0, 0);
        }
        self.second = self.second.max(second);
    }

    fn put(&mut self, is_failure: bool, now: Instant) {
        self.age(now);
        let (calls, failures) = &mut self.counts[(self.second % WINDOW_S as u64) as usize];
        *calls += 1;
        *failures += u32::from(is_failure);
    }

    pub fn is_clean(&mut self, now: Instant) -> bool {
        self.age(now);
        self.counts.iter().all(|(_, failures)| *failures == 0)
    }

    fn is_failing(&self, percent: u32) -> bool {
        let (calls, failures) = self.counts.iter().fold((0, 0), |(c, f), (calls, failures)| (c + calls, f + failures));
        calls >= CALLS_MIN && u64::from(failures) * 100 >= u64::from(calls) * u64::from(percent)
    }
}

/// Whether a call may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Pass,
    /// It decides whether the circuit closes.
    Trial,
    Refuse {
        after: Duration,
        reason: String,
    },
}

impl Breaker {
    /// `number` is that of the trial that it may become.
    pub fn admit(&mut self, number: Trial, now: Instant) -> Admission {
        let admission = self.would_admit(now);
        if let (Admission::Trial, Position::Open { trial, first, .. }) = (&admission, &mut self.position) {
            *trial = Some((number, now));
            first.get_or_insert(number);
        }
        admission
    }

    pub fn would_admit(&self, now: Instant) -> Admission {
        match &self.position {
            Position::Closed => Admission::Pass,
            Position::Open { until, trial, .. } if now >= *until && trial.is_none_or(|(_, since)| now >= since + TRIAL_MAX) => {
                Admission::Trial
            }
            Position::Open { until, reason, .. } => {
                let after = until.saturating_duration_since(now).max(Duration::from_millis(100));
                Admission::Refuse { after, reason: reason.clone() }
            }
        }
    }

    /// Whether it is a trial of the time that the circuit has been open, perhaps one that took so long that there was another.
    fn is_of_now(&self, trial: Option<Trial>) -> bool {
        matches!((&self.position, trial), (Position::Open { first: Some(first), .. }, Some(number)) if number >= *first)
    }

    fn is_under_way(&self, trial: Option<Trial>) -> bool {
        matches!(self.position, Position::Open { trial: Some((number, _)), .. } if Some(number) == trial)
    }

    /// Whether it closed.
    pub fn succeeded(&mut self, trial: Option<Trial>, now: Instant) -> bool {
        let is_trial = self.is_under_way(trial);
        match self.position {
            Position::Closed => {
                self.in_a_row = 0;
                self.window.put(false, now);
                false
            }
            Position::Open { .. } if is_trial => {
                *self = Breaker::default();
                true
            }
            // It began before the trouble.
            Position::Open { .. } => false,
        }
    }

    /// Whether it opened.
    pub fn failed(&mut self, trial: Option<Trial>, reason: &str, tuning: &Tuning, now: Instant) -> bool {
        let is_trial = self.is_of_now(trial);
        match &mut self.position {
            Position::Closed => {
                self.in_a_row += 1;
                self.window.put(true, now);
                let opens = self.in_a_row >= tuning.failures_max || self.window.is_failing(tuning.failure_percent);
                if opens {
                    let lasts = tuning.open.min(OPEN_MAX);
                    let reason = reason.to_owned();
                    self.position = Position::Open { until: now + lasts, lasts, reason, trial: None, first: None };
                }
                opens
            }
            Position::Open { until, lasts, trial, .. } if is_trial => {
                *lasts = (*lasts * 2).min(OPEN_MAX);
                *until = now + *lasts;
                *trial = None;
                false
            }
            Position::Open { .. } => false,
        }
    }

    /// The trial said nothing about the circuit: another one may.
    pub fn undecided(&mut self, number: Option<Trial>) {
        if self.is_under_way(number)
            && let Position::Open { trial, .. } = &mut self.position
        {
            *trial = None;
        }
    }

    /// Whether it is open and nobody has tried it for long: nobody asks for it any more.
    pub fn is_forgotten(&self, now: Instant) -> bool {
        matches!(&self.position, Position::Open { until, trial: None, .. } if now >= *until + OPEN_MAX)
    }

    pub fn shown(&self, subject: Option<&str>, address: Option<&str>, now: Instant) -> Option<Circuit> {
        let Position::Open { until, reason, .. } = &self.position else { return None };
        let left = until.saturating_duration_since(now);
        let state = if left.is_zero() { CircuitState::HalfOpen } else { CircuitState::Open(left) };
        let (subject, address) = (subject.map(str::to_owned), address.map(str::to_owned));
        Some(Circuit { subject, address, state, reason: reason.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn tuning() -> Tuning {
        Tuning { failures_max: 3, failure_percent: 50, open: 5 * S, ..Tuning::default() }
    }

    fn given_open(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        let opened = [0, 1, 2].map(|_| breaker.failed(None, "lost", &tuning(), now));
        assert_eq!(opened, [false, false, true]);
        breaker
    }

    #[test]
    fn failures_in_a_row_open_a_circuit_and_one_answer_among_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            assert!(!breaker.failed(None, "lost", &Tuning { failure_percent: 100, ..tuning() }, now));
            assert!(!breaker.failed(None, "lost", &Tuning { failure_percent: 100, ..tuning() }, now));
            assert!(!breaker.succeeded(None, now));
        }
        assert_eq!(breaker.admit(1, now), Admission::Pass);
        let refused = given_open(now).admit(1, now + S);
        assert_eq!(refused, Admission::Refuse { after: 4 * S, reason: "lost".into() });
    }

    #[test]
    fn half_of_the_calls_of_ten_seconds_open_it_and_what_is_older_does_not_count() {
        let now = Instant::now();
        let fill = |breaker: &mut Breaker, from: Instant| {
            (0..10).any(|_| {
                breaker.succeeded(None, from);
                breaker.failed(None, "lost", &tuning(), from)
            })
        };
        assert!(fill(&mut Breaker::default(), now));
        let mut breaker = Breaker::default();
        for _ in 0..9 {
            breaker.succeeded(None, now);
            assert!(!breaker.failed(None, "lost", &tuning(), now));
        }
        let later = now + 11 * S;
        breaker.succeeded(None, later);
        assert!(!breaker.failed(None, "lost", &tuning(), later), "two calls are no part of anything");
    }

    #[test]
    fn a_trial_that_takes_longer_than_others_wait_for_it_still_counts_when_it_fails() {
        let now = Instant::now();
        let mut breaker = given_open(now);
        assert_eq!(breaker.admit(1, now + 5 * S), Admission::Trial);
        assert_eq!(breaker.admit(2, now + 10 * S), Admission::Trial, "nobody waits for it");
        assert!(!breaker.failed(Some(1), "no answer", &tuning(), now + 15 * S));
        assert!(matches!(breaker.admit(3, now + 24 * S), Admission::Refuse { .. }), "it is left alone for longer");
        assert_eq!(breaker.admit(4, now + 25 * S), Admission::Trial);
    }

    #[test]
    fn an_open_circuit_is_tried_once_and_closes_or_stays_open_twice_as_long() {
        let now = Instant::now();
        let mut breaker = given_open(now);
        assert_eq!(breaker.admit(1, now + 5 * S), Admission::Trial);
        assert!(matches!(breaker.admit(2, now + 5 * S), Admission::Refuse { .. }), "one trial at a time");
        assert!(!breaker.failed(Some(1), "lost", &tuning(), now + 6 * S));
        assert!(matches!(breaker.admit(3, now + 15 * S), Admission::Refuse { .. }));
        assert_eq!(breaker.admit(4, now + 16 * S), Admission::Trial);
        breaker.undecided(Some(4));
        assert_eq!(breaker.admit(5, now + 17 * S), Admission::Trial, "a trial whose caller left decides nothing");
        assert!(!breaker.succeeded(None, now + 17 * S), "an answer from before the trouble decides nothing");
        assert!(!breaker.succeeded(Some(4), now + 17 * S), "and neither does an earlier trial");
        assert_eq!(breaker.admit(6, now + 22 * S), Admission::Trial, "nobody waits for a trial that does not end");
        assert!(breaker.succeeded(Some(6), now + 23 * S));
        assert_eq!(breaker.admit(7, now + 23 * S), Admission::Pass);
    }
}
