//! The circuit breaker: what fails again and again is left alone for a while, then tried with one call.
//!
//! A server has one circuit for losing calls, and one for each tool that takes too long: a slow tool does not take the others
//! with it. What a tool answers, also an error, closes no circuit and opens none.

use super::layer::{Aspect, Inner};
use super::{Answer, Call, State, Tuning, locked};
use crate::mcp::CallError;
use std::collections::BTreeMap;
use std::sync::Arc;
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
    /// The tool or method; `None` for the server as a whole.
    pub subject: Option<String>,
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
enum Position {
    #[default]
    Closed,
    Open {
        until: Instant,
        /// How long it was open this time.
        lasts: Duration,
        reason: String,
        /// The trial that is under way, and since when.
        trial: Option<(Trial, Instant)>,
    },
}

/// Which trial: what an earlier one says decides nothing.
type Trial = u64;

/// One circuit.
#[derive(Debug, Default)]
struct Breaker {
    position: Position,
    in_a_row: u32,
    window: Window,
}

/// Calls of the last ten seconds, by the second.
#[derive(Debug, Default)]
struct Window {
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

    fn is_clean(&mut self, now: Instant) -> bool {
        self.age(now);
        self.counts.iter().all(|(_, failures)| *failures == 0)
    }

    fn is_failing(&self, percent: u32) -> bool {
        let (calls, failures) = self.counts.iter().fold((0, 0), |(c, f), (calls, failures)| (c + calls, f + failures));
        calls >= CALLS_MIN && u64::from(failures) * 100 >= u64::from(calls) * u64::from(percent)
    }
}

/// Whether a call may go.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
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
    fn admit(&mut self, number: Trial, now: Instant) -> Admission {
        match &mut self.position {
            Position::Closed => Admission::Pass,
            Position::Open { until, trial, .. } if now >= *until && trial.is_none_or(|(_, since)| now >= since + TRIAL_MAX) => {
                *trial = Some((number, now));
                Admission::Trial
            }
            Position::Open { until, reason, .. } => {
                let after = until.saturating_duration_since(now).max(Duration::from_millis(100));
                Admission::Refuse { after, reason: reason.clone() }
            }
        }
    }

    fn is_under_way(&self, trial: Option<Trial>) -> bool {
        matches!(self.position, Position::Open { trial: Some((number, _)), .. } if Some(number) == trial)
    }

    /// Whether it closed.
    fn succeeded(&mut self, trial: Option<Trial>, now: Instant) -> bool {
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
    fn failed(&mut self, trial: Option<Trial>, reason: &str, tuning: &Tuning, now: Instant) -> bool {
        let is_trial = self.is_under_way(trial);
        match &mut self.position {
            Position::Closed => {
                self.in_a_row += 1;
                self.window.put(true, now);
                let opens = self.in_a_row >= tuning.failures_max || self.window.is_failing(tuning.failure_percent);
                if opens {
                    let lasts = tuning.open.min(OPEN_MAX);
                    self.position = Position::Open { until: now + lasts, lasts, reason: reason.to_owned(), trial: None };
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
    fn undecided(&mut self, number: Option<Trial>) {
        if self.is_under_way(number)
            && let Position::Open { trial, .. } = &mut self.position
        {
            *trial = None;
        }
    }

    /// Whether it is open and nobody has tried it for long: nobody asks for it any more.
    fn is_forgotten(&self, now: Instant) -> bool {
        matches!(&self.position, Position::Open { until, trial: None, .. } if now >= *until + OPEN_MAX)
    }

    fn shown(&self, subject: Option<&str>, now: Instant) -> Option<Circuit> {
        let Position::Open { until, reason, .. } = &self.position else { return None };
        let left = until.saturating_duration_since(now);
        let state = if left.is_zero() { CircuitState::HalfOpen } else { CircuitState::Open(left) };
        Some(Circuit { subject: subject.map(str::to_owned), state, reason: reason.clone() })
    }
}

/// All circuits of a server.
#[derive(Default)]
pub(super) struct Circuits {
    /// Trials so far.
    trials: Trial,
    server: Breaker,
    /// Of tools that failed since they last answered.
    tools: BTreeMap<String, Breaker>,
}

/// What a call that may go is to the circuits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trials {
    server: Option<Trial>,
    tool: Option<Trial>,
}

impl Circuits {
    /// Circuits that are not closed.
    pub fn open(&self, now: Instant) -> Vec<Circuit> {
        let tools = self.tools.iter().filter_map(|(tool, breaker)| breaker.shown(Some(tool), now));
        self.server.shown(None, now).into_iter().chain(tools).collect()
    }

    /// Closes the server's own; whether it was open.
    pub fn close_server(&mut self) -> bool {
        matches!(std::mem::take(&mut self.server).position, Position::Open { .. })
    }

    fn admit(&mut self, subject: &str, now: Instant) -> Result<Trials, CallError> {
        let refusal = |what: String, after: Duration| CallError::Open { what, after };
        self.trials += 1;
        let number = self.trials;
        let server = match self.server.admit(number, now) {
            Admission::Pass => None,
            Admission::Trial => Some(number),
            Admission::Refuse { after, reason } => return Err(refusal(format!("its server failed repeatedly: {reason}"), after)),
        };
        let tool = match self.tools.get_mut(subject).map(|breaker| breaker.admit(number, now)) {
            None | Some(Admission::Pass) => None,
            Some(Admission::Trial) => Some(number),
            Some(Admission::Refuse { after, reason }) => {
                self.server.undecided(server);
                return Err(refusal(format!("it failed repeatedly: {reason}"), after));
            }
        };
        Ok(Trials { server, tool })
    }

    /// Takes in what came of a call; whether a circuit opened or closed.
    fn take(&mut self, subject: &str, trials: Trials, verdict: &Verdict, tuning: &Tuning, now: Instant) -> bool {
        match verdict {
            Verdict::Works => {
                let server = self.server.succeeded(trials.server, now);
                let Some(breaker) = self.tools.get_mut(subject) else { return server };
                let tool = breaker.succeeded(trials.tool, now);
                if matches!(breaker.position, Position::Closed) && breaker.window.is_clean(now) {
                    self.tools.remove(subject);
                }
                server || tool
            }
            Verdict::ServerFails(reason) => {
                self.release(subject, Trials { server: None, ..trials });
                self.server.failed(trials.server, reason, tuning, now)
            }
            Verdict::ToolFails(reason) => {
                self.release(subject, Trials { tool: None, ..trials });
                self.tools.entry(subject.to_owned()).or_default().failed(trials.tool, reason, tuning, now)
            }
            Verdict::Nothing => {
                self.release(subject, trials);
                false
            }
        }
    }

    /// Trials that said nothing.
    fn release(&mut self, subject: &str, trials: Trials) {
        self.server.undecided(trials.server);
        if let Some(breaker) = self.tools.get_mut(subject) {
            breaker.undecided(trials.tool);
        }
    }

    /// Forgets tools that nobody asks for any more; whether there were any.
    pub fn sweep(&mut self, now: Instant) -> bool {
        let before = self.tools.len();
        self.tools.retain(|_, breaker| !breaker.is_forgotten(now));
        self.tools.len() < before
    }
}

/// What an answer says about who gave it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Works,
    ServerFails(String),
    ToolFails(String),
    Nothing,
}

fn verdict(answer: &Answer) -> Verdict {
    match answer {
        Ok(_) | Err(CallError::Refused(..) | CallError::Unusable(_)) => Verdict::Works,
        Err(CallError::Lost(reason)) => Verdict::ServerFails(reason.clone()),
        Err(error @ CallError::Timeout(_)) => Verdict::ToolFails(error.to_string()),
        Err(_) => Verdict::Nothing,
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Breaking(pub Arc<State>);

/// A call that was let through. One that is dropped frees the trial that it was.
struct Passage<'a> {
    state: &'a State,
    subject: &'a str,
    trials: Trials,
    is_over: bool,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            locked(&self.state.circuits).release(self.subject, self.trials);
        }
    }
}

impl Aspect for Breaking {
    async fn around(self, call: Call, mut inner: impl Inner) -> Answer {
        let subject = call.subject().to_owned();
        let trials = locked(&self.0.circuits).admit(&subject, Instant::now())?;
        let mut passage = Passage { state: &self.0, subject: &subject, trials, is_over: false };
        let tuning = self.0.tuning();
        let answer = inner.call(call).await;
        passage.is_over = true;
        let verdict = verdict(&answer);
        if locked(&self.0.circuits).take(&subject, trials, &verdict, &tuning, Instant::now()) {
            tracing::warn!(server = %self.0.key.server, subject, ?verdict, "a circuit opened or closed");
            self.0.tell_circuits();
        }
        answer
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

    #[test]
    fn a_slow_tool_does_not_take_the_others_with_it_and_a_lost_server_does() {
        let now = Instant::now();
        let mut circuits = Circuits::default();
        for _ in 0..3 {
            let trials = circuits.admit("slow", now).unwrap();
            circuits.take("slow", trials, &Verdict::ToolFails("no answer".into()), &tuning(), now);
        }
        assert!(circuits.admit("slow", now).is_err());
        assert_eq!(circuits.admit("quick", now), Ok(Trials::default()));
        for _ in 0..3 {
            circuits.take("quick", Trials::default(), &Verdict::ServerFails("lost".into()), &tuning(), now);
        }
        assert!(circuits.admit("quick", now).is_err());
        assert_eq!(circuits.open(now).len(), 2);
        assert!(circuits.close_server());
        assert_eq!(circuits.admit("quick", now), Ok(Trials::default()));
    }

    #[test]
    fn a_tool_that_answers_is_forgotten() {
        let now = Instant::now();
        let mut circuits = Circuits::default();
        circuits.take("a", Trials::default(), &Verdict::ToolFails("no answer".into()), &tuning(), now);
        assert_eq!(circuits.tools.len(), 1);
        circuits.take("a", Trials::default(), &Verdict::Works, &tuning(), now + S);
        assert_eq!(circuits.tools.len(), 1, "what failed a moment ago still counts");
        circuits.take("a", Trials::default(), &Verdict::Works, &tuning(), now + 12 * S);
        assert!(circuits.tools.is_empty());
    }

    #[test]
    fn half_of_the_calls_of_a_tool_open_its_circuit_too() {
        let now = Instant::now();
        let mut circuits = Circuits::default();
        let opened = (0..10).any(|_| {
            circuits.take("a", Trials::default(), &Verdict::Works, &tuning(), now);
            circuits.take("a", Trials::default(), &Verdict::ToolFails("no answer".into()), &tuning(), now)
        });
        let more = (0..10).any(|_| {
            circuits.take("a", Trials::default(), &Verdict::Works, &tuning(), now);
            circuits.take("a", Trials::default(), &Verdict::ToolFails("no answer".into()), &tuning(), now)
        });
        assert!(opened || more);
    }

    #[test]
    fn the_circuit_of_a_tool_that_nobody_asks_for_is_forgotten() {
        let now = Instant::now();
        let mut circuits = Circuits::default();
        for _ in 0..3 {
            circuits.take("a", Trials::default(), &Verdict::ToolFails("no answer".into()), &tuning(), now);
        }
        assert!(!circuits.sweep(now + 60 * S) && circuits.sweep(now + 65 * S) && circuits.open(now).is_empty());
    }

    #[test]
    fn who_gives_a_call_no_time_opens_no_circuit_for_others() {
        assert_eq!(verdict(&Err(CallError::Impatient(1))), Verdict::Nothing);
        assert!(matches!(verdict(&Err(CallError::Timeout(1))), Verdict::ToolFails(_)));
        assert_eq!(verdict(&Err(CallError::Interrupted("HTTP 413".into()))), Verdict::Nothing);
        assert_eq!(verdict(&Err(CallError::Refused(-32_603, "no".into(), Box::default()))), Verdict::Works);
        assert_eq!(verdict(&Err(CallError::Shed)), Verdict::Nothing);
    }
}
