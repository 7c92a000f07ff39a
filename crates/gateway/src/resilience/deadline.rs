//! Timeouts that adapt: four times the longest of the last calls, and never more than the limit.

use super::layer::{Aspect, Inner};
use super::{Answer, Call, State, Tuning, locked};
use crate::mcp::{CallError, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls of a tool that are remembered.
const SAMPLES_MAX: usize = 64;
/// Calls before anything is concluded.
const SAMPLES_MIN: usize = 20;
const FACTOR: u32 = 4;
/// What a call may have waited on its way and still count as having its full time.
const PASSING: Duration = Duration::from_millis(50);
/// Tools whose times are known; a server lists no more.
const TOOLS_MAX: usize = 1_024;

/// How long calls of one tool take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolTimes {
    /// The tool or method.
    pub subject: String,
    /// Calls that this is known of, at most 64.
    pub samples: usize,
    /// Half of them took no longer.
    pub median: Duration,
    /// None of them took longer.
    pub longest: Duration,
    /// What a call is given that wants no time of its own.
    pub timeout: Duration,
}

/// How long the last calls took, in milliseconds.
#[derive(Default)]
struct Samples {
    ms: Vec<u32>,
    next: usize,
}

impl Samples {
    fn put(&mut self, took: Duration) {
        let ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        match self.ms.get_mut(self.next) {
            Some(oldest) => *oldest = ms,
            None => self.ms.push(ms),
        }
        self.next = (self.next + 1) % SAMPLES_MAX;
    }

    fn longest(&self) -> Duration {
        Duration::from_millis(self.ms.iter().copied().max().unwrap_or_default().into())
    }

    fn median(&self) -> Duration {
        let mut sorted = self.ms.clone();
        sorted.sort_unstable();
        Duration::from_millis(sorted.get(sorted.len() / 2).copied().unwrap_or_default().into())
    }

    /// What a call is given.
    fn timeout(&self, tuning: &Tuning, limit: Duration) -> Duration {
        if !tuning.timeout_is_adaptive || self.ms.len() < SAMPLES_MIN {
            return limit;
        }
        (self.longest() * FACTOR).max(tuning.timeout_min).min(limit)
    }
}

/// Of all tools.
#[derive(Default)]
pub(super) struct Latencies(BTreeMap<String, Samples>);

impl Latencies {
    fn timeout(&self, subject: &str, tuning: &Tuning, limit: Duration) -> Duration {
        self.0.get(subject).map_or(limit, |samples| samples.timeout(tuning, limit))
    }

    fn put(&mut self, subject: &str, took: Duration) {
        if let Some(samples) = self.0.get_mut(subject) {
            samples.put(took);
        } else if self.0.len() < TOOLS_MAX {
            self.0.entry(subject.to_owned()).or_default().put(took);
        }
    }

    pub fn times(&self, tuning: &Tuning, limit: Duration) -> Vec<ToolTimes> {
        let shown = self.0.iter().map(|(subject, samples)| ToolTimes {
            subject: subject.clone(),
            samples: samples.ms.len(),
            median: samples.median(),
            longest: samples.longest(),
            timeout: samples.timeout(tuning, limit),
        });
        shown.collect()
    }
}

/// How long a call counts as having taken; one that was cut off would have taken longer, so the next ones get more time.
fn sample(answer: &Answer, took: Duration) -> Option<Duration> {
    match answer {
        // That a task was made says nothing of how long it takes.
        Ok(Outcome::Task(_)) => None,
        Ok(_) | Err(CallError::Unusable(_)) => Some(took),
        Err(CallError::Timeout(_)) => Some(took * 2),
        Err(_) => None,
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Deadline(pub Arc<State>);

impl Aspect for Deadline {
    async fn around(self, mut call: Call, mut inner: impl Inner) -> Answer {
        let subject = call.subject().to_owned();
        let tuning = self.0.tuning();
        let usual = locked(&self.0.latencies).timeout(&subject, &tuning, self.0.call_timeout);
        // One that has less time than others, because its caller wants it so or it has waited, says nothing about the tool.
        let is_full_time = call.timeout + PASSING >= usual;
        if !call.timeout_is_wanted {
            call.timeout = call.timeout.min(usual);
        }
        let (begun, at) = (Instant::now(), call.address);
        // What is inside keeps to the time.
        let answer = match inner.call(call).await {
            Err(CallError::Timeout(ms)) if !is_full_time => Err(CallError::Impatient(ms)),
            answer => answer,
        };
        // What takes too long again at one of several addresses says nothing about the tool.
        let is_of_address = matches!(answer, Err(CallError::Timeout(_))) && locked(&self.0.circuits).is_slow(at, &subject);
        if let Some(took) = sample(&answer, begun.elapsed()).filter(|_| !is_of_address) {
            locked(&self.0.latencies).put(&subject, took);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMIT: Duration = Duration::from_secs(60);

    fn given(samples: impl IntoIterator<Item = Duration>) -> Latencies {
        let mut latencies = Latencies::default();
        samples.into_iter().for_each(|took| latencies.put("a", took));
        latencies
    }

    #[test]
    fn a_quick_tool_gets_four_times_its_longest_call_within_the_bounds() {
        let tuning = Tuning { timeout_min: 100 * MS, ..Tuning::default() };
        let timeout = |latencies: &Latencies| latencies.timeout("a", &tuning, LIMIT);
        assert_eq!(timeout(&given([500 * MS; 19])), LIMIT, "too few to conclude anything");
        assert_eq!(timeout(&given([500 * MS; 20])), 2_000 * MS);
        assert_eq!(timeout(&given([2 * MS; 20])), 100 * MS);
        assert_eq!(timeout(&given([40_000 * MS; 20])), LIMIT);
        assert_eq!(timeout(&given([9_000 * MS].into_iter().chain([2 * MS; 64]))), 100 * MS, "what is long ago is forgotten");
        let fixed = Tuning { timeout_is_adaptive: false, ..tuning };
        assert_eq!(given([2 * MS; 20]).timeout("a", &fixed, LIMIT), LIMIT);
    }

    #[test]
    fn a_call_that_was_cut_off_gives_the_next_ones_more_time() {
        let late: Answer = Err(CallError::Timeout(100));
        assert_eq!(sample(&late, 100 * MS), Some(200 * MS));
        assert_eq!(sample(&Err(CallError::Busy), 100 * MS), None);
    }

    #[test]
    fn no_more_tools_are_remembered_than_a_server_may_list() {
        let mut latencies = Latencies::default();
        (0..2_000).for_each(|n| latencies.put(&format!("t{n}"), MS));
        assert_eq!(latencies.0.len(), TOOLS_MAX);
    }
}
