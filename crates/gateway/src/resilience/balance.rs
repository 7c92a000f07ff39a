//! Which address of a server a call goes to: of two at random the one that will probably answer sooner. A client that servers know
//! by its connection stays where it is, as long as that address answers; and what goes on with something earlier goes where that is.

use super::{Answer, Call};
use crate::mcp::{CallError, Outcome, Resume};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// What is known of the time that an address takes counts half after this long: one that was slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// The part that the last answer has in the time that an address is known to take.
const LAST_PART: f64 = 0.2;
/// What is quicker than this is as quick as anything.
const USUAL_MS_MIN: f64 = 5.0;
/// Costs that differ by less are the same: chance decides.
const NOISE: f64 = 1.25;
/// What a text begins with that says where it is from, and the hexadecimal characters that say it.
const MARK: &str = "~";
const TAG_CHARS: usize = 8;

/// How busy an address is, and how long it takes.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub running: usize,
    usual_ms: f64,
    at: Option<Instant>,
}

impl Load {
    /// What it takes to answer, as far as is known.
    pub fn usual_ms(&self, now: Instant) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.usual_ms * 0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    /// What one more call would wait for, roughly.
    pub fn cost(&self, now: Instant) -> f64 {
        (self.running as f64 + 1.0) * self.usual_ms(now).max(USUAL_MS_MIN)
    }

    /// Takes in that there was no answer of use: it takes no less than `at_least`, so that what fails quickly draws no calls.
    pub fn failed(&mut self, at_least: Duration, now: Instant) {
        (self.usual_ms, self.at) = (self.usual_ms(now).max(at_least.as_secs_f64() * 1_000.0), Some(now));
    }

    /// Takes in an answer.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let took_ms = took.as_secs_f64() * 1_000.0;
        let before = if self.at.is_some() { self.usual_ms(now) } else { took_ms };
        (self.usual_ms, self.at) = (before * (1.0 - LAST_PART) + took_ms * LAST_PART, Some(now));
    }
}

/// Of two at random the one that is clearly cheaper, or any.
pub(super) fn cheaper(costs: &[(usize, f64)], random: u64) -> Option<usize> {
    let count = costs.len() as u64;
    if count < 2 {
        return costs.first().map(|(at, _)| *at);
    }
    let first = random % count;
    let second = (first + 1 + (random / count) % (count - 1)) % count;
    let (one, other) = (costs[first as usize], costs[second as usize]);
    Some(if other.1 * NOISE < one.1 { other.0 } else { one.0 })
}

/// The address of a party among those that can be had: the same again and again, and few parties move when one is gone.
pub(super) fn home(among: &[usize], party: &[u8; 32]) -> Option<usize> {
    let weight = |at: usize| Sha256::new().chain_update(party).chain_update(at.to_be_bytes()).finalize();
    among.iter().copied().max_by_key(|at| weight(*at))
}

/// The names of addresses in what is handed out: those of tasks, and what a server wants to be told again.
pub(crate) struct Tags(Vec<String>);

impl Tags {
    /// Of addresses, in their order.
    pub fn new(urls: &[String]) -> Self {
        Tags(urls.iter().map(|url| kernel::text::hex(&Sha256::digest(url))[..TAG_CHARS].to_owned()).collect())
    }

    /// Which address handed this out, and what it is there. What has no tag is from before there were tags. That of an address which
    /// is none any more is gone, unless there is only one: that was given another URL.
    fn open(&self, text: &mut String) -> Result<usize, CallError> {
        let tagged = text.strip_prefix(MARK).and_then(|text| text.split_at_checked(TAG_CHARS));
        let Some((tag, rest)) = tagged.and_then(|(tag, rest)| Some((tag, rest.strip_prefix('.')?))) else { return Ok(0) };
        let at = match self.0.iter().position(|known| known == tag) {
            Some(at) => at,
            None if self.0.len() < 2 => 0,
            None => return Err(CallError::Gone),
        };
        *text = rest.to_owned();
        Ok(at)
    }

    fn close(&self, at: usize, text: &mut String) {
        if let Some(tag) = self.0.get(at) {
            *text = format!("{MARK}{tag}.{text}");
        }
    }

    /// The address that a call belongs to, because it goes on with what that has. The call is in that one's own words then.
    pub fn unpin(&self, call: &mut Call) -> Result<Option<usize>, CallError> {
        if call.ask.method.is_of_task() {
            return self.open(&mut call.ask.name).map(Some);
        }
        match call.ask.answers.as_mut().map(|answers| &mut answers.resume) {
            Some(Resume::State(Some(text)) | Resume::Task { id: text, .. }) => self.open(text).map(Some),
            Some(Resume::Waiting(_) | Resume::State(None)) | None => Ok(None),
        }
    }

    /// An answer whose sequel finds the address again.
    pub fn pin(&self, at: usize, answer: Answer) -> Answer {
        match answer {
            Ok(Outcome::Task(mut task)) => {
                if let Some(serde_json::Value::String(id)) = task.get_mut("taskId") {
                    self.close(at, id);
                }
                Ok(Outcome::Task(task))
            }
            Ok(Outcome::InputRequired { requests, mut resume }) => {
                if let Resume::State(Some(text)) | Resume::Task { id: text, .. } = &mut resume {
                    self.close(at, text);
                }
                Ok(Outcome::InputRequired { requests, resume })
            }
            answer => answer,
        }
    }
}

/// Whether another address may be asked at once: this one had nothing of the call.
pub(super) fn is_elsewhere(error: &CallError) -> bool {
    matches!(error, CallError::NotReady(_) | CallError::Unreached(_) | CallError::Starting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_slow_and_the_busy_one_get_fewer_calls() {
        let now = Instant::now();
        let (mut quick, mut slow) = (Load::default(), Load::default());
        quick.answered(10 * MS, now);
        slow.answered(200 * MS, now);
        assert!(quick.cost(now) < slow.cost(now));
        quick.running = 30;
        assert!(quick.cost(now) > slow.cost(now));
    }

    #[test]
    fn what_was_slow_is_tried_again_in_time() {
        let now = Instant::now();
        let mut load = Load::default();
        load.answered(1_000 * MS, now);
        assert!(load.cost(now) > 900.0);
        let later = now + Duration::from_secs(120);
        assert!(load.cost(later) <= USUAL_MS_MIN);
        load.answered(MS, later);
        assert!(load.cost(later) <= USUAL_MS_MIN);
    }

    #[test]
    fn of_two_the_cheaper_one_is_taken_and_every_pair_comes_up() {
        assert_eq!(cheaper(&[], 7), None);
        assert_eq!(cheaper(&[(4, 9.0)], 7), Some(4));
        let costs = [(0, 3.0), (1, 1.0), (2, 2.0)];
        let taken: Vec<usize> = (0..6).filter_map(|random| cheaper(&costs, random)).collect();
        assert_eq!(taken.iter().filter(|at| **at == 1).count(), 4, "{taken:?}");
        assert_eq!(taken.iter().filter(|at| **at == 2).count(), 2, "the dearest is never taken: {taken:?}");
        assert_eq!([0, 1].map(|random| cheaper(&[(0, 1.0), (1, 1.1)], random)), [Some(0), Some(1)], "that is noise");
        let even: std::collections::BTreeSet<usize> =
            (0..6).filter_map(|n| cheaper(&[(0, 1.0), (1, 1.0), (2, 1.0)], n)).collect();
        assert_eq!(even.len(), 3);
    }

    #[test]
    fn a_party_stays_and_only_those_of_an_address_that_is_gone_move() {
        let parties: Vec<[u8; 32]> = (0..90).map(|n| [n; 32]).collect();
        let all: Vec<usize> = parties.iter().filter_map(|party| home(&[0, 1, 2], party)).collect();
        for at in 0..3 {
            assert!(all.iter().filter(|home| **home == at).count() > 10, "{all:?}");
        }
        for (party, before) in parties.iter().zip(&all) {
            let now = home(&[0, 2], party).unwrap();
            assert!(now == *before || *before == 1);
        }
    }

    #[test]
    fn what_is_handed_out_finds_its_address_again() {
        let tags = Tags::new(&["http://a".into(), "http://b".into()]);
        let task = Map::from_iter([("taskId".to_owned(), json!("x.y"))]);
        let Ok(Outcome::Task(task)) = tags.pin(1, Ok(Outcome::Task(task))) else { unreachable!() };
        let mut id = task["taskId"].as_str().unwrap().to_owned();
        assert_ne!(id, "x.y");
        let mut other = id.clone();
        assert_eq!((tags.open(&mut id), id.as_str()), (Ok(1), "x.y"));
        assert_eq!((tags.open(&mut id), id.as_str()), (Ok(0), "x.y"), "it is from before there were tags");
        assert_eq!(Tags::new(&["http://a".into(), "http://c".into()]).open(&mut other), Err(CallError::Gone));
        assert_eq!((Tags::new(&["http://c".into()]).open(&mut other), other.as_str()), (Ok(0), "x.y"));
        for odd in ["~", "~a", "~1234567ä.x", "~12345678", ""] {
            assert_eq!(tags.open(&mut odd.to_owned()), Ok(0), "{odd}");
        }
    }
}
