//! How far a consumer group has come: which events are open, which are parked, where the next ones are looked for.
//!
//! Pure: time and random numbers are arguments. Progress is no event; it is kept as rows beside the log, and every change
//! here says by [`Progress::take_changes`] which rows it touched, so that one transaction stores it.
//!
//! What holds: an event that the group gets is delivered until it is acknowledged or parked. A delivery is named by a
//! token that no other delivery has, and that is good only until its deadline. In an ordered group no two events of a
//! stream are in delivery at once, and none is delivered before the earlier ones are acknowledged or parked.

use crate::consumer_group::{ConsumerGroup, Mode};
use kernel::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Parked events of one group. While there are so many, nothing more is parked: events are tried again instead.
pub const PARKED_MAX: usize = 10_000;
/// Why an event is parked that nobody acknowledged.
pub const NOT_ACKNOWLEDGED: &str = "not acknowledged in time";
/// Why an event is parked that was given back and nothing else was said.
pub const GIVEN_BACK: &str = "given back";

/// By which terms a group hands out events.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How events are handed out.
    pub mode: Mode,
    /// How long a delivery holds.
    pub ack_timeout_ms: u64,
    /// Deliveries after which an event is parked.
    pub max_attempts: u32,
    /// Events that may be open at a time.
    pub window: usize,
}

/// Due whatever the clock says: times of events do not run backwards with it.
const NOW: Timestamp = Timestamp(0);

impl Terms {
    /// Those of a group.
    pub fn of(group: &ConsumerGroup) -> Self {
        let settings = &group.settings;
        Terms {
            mode: group.mode,
            ack_timeout_ms: settings.ack_timeout_ms,
            max_attempts: settings.max_attempts,
            window: settings.window as usize,
        }
    }
}

/// An event that the group gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its position.
    pub position: u64,
    /// Its stream.
    pub stream: String,
    /// Its type.
    pub kind: String,
    /// When it was written.
    pub recorded_at: Timestamp,
}

/// What stands for itself beside open and parked events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Everything up to here was looked at.
    pub cursor: u64,
    /// The version of the group's stream that is followed so far.
    pub epoch: u64,
    /// Events that were parked, ever.
    pub parkings: u64,
    /// When something was acknowledged or parked by a consumer last, or the group was made or set to another place.
    pub moved_at: Timestamp,
    /// When something was delivered last.
    pub last_delivery_at: Option<Timestamp>,
}

/// A delivery under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Names the delivery.
    pub token: String,
    /// Who has it.
    pub consumer: String,
    /// Until when it holds.
    pub deadline: Timestamp,
}

/// An event that is neither acknowledged nor parked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Its stream.
    pub stream: String,
    /// Its type.
    pub kind: String,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// How often it was delivered.
    pub attempts: u32,
    /// The delivery under way.
    pub lease: Option<Lease>,
    /// Not delivered before.
    pub due: Timestamp,
}

/// An event that is put aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Counts what the group has parked.
    pub number: u64,
    /// Its stream.
    pub stream: String,
    /// Its type.
    pub kind: String,
    /// When it was written.
    pub recorded_at: Timestamp,
    /// How often it was delivered.
    pub attempts: u32,
    /// Why.
    pub reason: String,
    /// Who had it last.
    pub consumer: Option<String>,
    /// When it was parked.
    pub at: Timestamp,
}

/// An event handed to a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The event's position.
    pub position: u64,
    /// To be shown with every later word on it.
    pub token: String,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Until when it holds.
    pub deadline: Timestamp,
}

/// What became of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As was asked.
    Done,
    /// Given back once too often, so it is parked.
    Parked,
    /// No delivery in force has this token.
    Stale,
    /// Too many events are parked: the delivery is as it was.
    Full,
}

/// A row that is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// The head.
    Head,
    /// The open event at a position, or its absence.
    Open(u64),
    /// The parked event at a position, or its absence.
    Parked(u64),
}

/// How far a group has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    head: Head,
    open: BTreeMap<u64, Open>,
    parked: BTreeMap<u64, Parked>,
    touched: BTreeSet<Touched>,
}

impl Progress {
    /// At the beginning: after a position, as of version 1 of the group's stream.
    pub fn begin(start: u64, now: Timestamp) -> Self {
        let head = Head { cursor: start, epoch: 1, parkings: 0, moved_at: now, last_delivery_at: None };
        Progress { head, open: BTreeMap::new(), parked: BTreeMap::new(), touched: BTreeSet::new() }
    }

    /// As it was stored.
    pub fn stored(head: Head, open: BTreeMap<u64, Open>, parked: BTreeMap<u64, Parked>) -> Self {
        Progress { head, open, parked, touched: BTreeSet::new() }
    }

    /// What stands for itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Events that are neither acknowledged nor parked, by position.
    pub fn open(&self) -> &BTreeMap<u64, Open> {
        &self.open
    }

    /// Events that are put aside, by position.
    pub fn parked(&self) -> &BTreeMap<u64, Parked> {
        &self.parked
    }

    /// The rows that changed since they were asked for last.
    pub fn take_changes(&mut self) -> BTreeSet<Touched> {
        let mut changes = std::mem::take(&mut self.touched);
        if !changes.is_empty() {
            changes.insert(Touched::Head);
        }
        changes
    }

    /// Deliveries whose time is over are free again, or parked if they were tried often enough.
    pub fn sweep(&mut self, terms: &Terms, now: Timestamp) {
        let is_over = |open: &Open| open.lease.as_ref().is_some_and(|lease| lease.deadline <= now);
        let over: Vec<u64> = self.open.iter().filter(|(_, open)| is_over(open)).map(|(position, _)| *position).collect();
        for position in over {
            let Some(open) = self.open.get_mut(&position) else { continue };
            let consumer = open.lease.take().map(|lease| lease.consumer);
            self.touched.insert(Touched::Open(position));
            if open.attempts >= terms.max_attempts {
                self.put_aside(position, NOT_ACKNOWLEDGED, consumer, now);
            }
        }
    }

    /// How many events more may be open.
    pub fn room(&self, terms: &Terms) -> usize {
        terms.window.saturating_sub(self.open.len())
    }

    /// Takes in events that the group gets, behind everything that was looked at; now everything up to `looked` is.
    pub fn take_in(&mut self, found: Vec<Candidate>, looked: u64) {
        for candidate in found.into_iter().filter(|candidate| candidate.position > self.head.cursor) {
            let Candidate { position, stream, kind, recorded_at } = candidate;
            let open = Open { stream, kind, recorded_at, attempts: 0, lease: None, due: NOW };
            self.touched.insert(Touched::Open(position));
            self.open.insert(position, open);
        }
        if looked > self.head.cursor {
            self.head.cursor = looked;
            self.touched.insert(Touched::Head);
        }
    }

    /// The open events that may be delivered now, in order, at most `limit`.
    pub fn ready(&self, terms: &Terms, limit: usize, now: Timestamp) -> Vec<u64> {
        let is_free = |open: &&Open| open.lease.is_none() && open.due <= now;
        if terms.mode == Mode::Shared {
            return self.open.iter().filter(|(_, open)| is_free(open)).map(|(position, _)| *position).take(limit).collect();
        }
        // A parked event that comes again may lie before one of its stream that is in delivery.
        let in_delivery = self.open.values().filter(|open| open.lease.is_some());
        let mut busy: BTreeSet<&str> = in_delivery.map(|open| open.stream.as_str()).collect();
        let mut ready = vec![];
        for (position, open) in &self.open {
            if ready.len() == limit {
                break;
            }
            let is_first = busy.insert(&open.stream);
            if is_first && is_free(&open) {
                ready.push(*position);
            }
        }
        ready
    }

    /// Hands out events.
    pub fn deliver(&mut self, terms: &Terms, consumer: &str, limit: usize, now: Timestamp, random: u64) -> Vec<Delivery> {
        let ready = self.ready(terms, limit, now);
        let deadline = now.plus_ms(terms.ack_timeout_ms);
        let mut deliveries = Vec::with_capacity(ready.len());
        for position in ready {
            let Some(open) = self.open.get_mut(&position) else { continue };
            let token = format!("{position}-{random:016x}");
            open.attempts += 1;
            open.lease = Some(Lease { token: token.clone(), consumer: consumer.to_owned(), deadline });
            self.touched.insert(Touched::Open(position));
            deliveries.push(Delivery { position, token, attempt: open.attempts, deadline });
        }
        if !deliveries.is_empty() {
            self.head.last_delivery_at = Some(now);
        }
        deliveries
    }

    /// Done with these.
    pub fn ack(&mut self, tokens: &[String], now: Timestamp) -> Vec<Verdict> {
        let done = |progress: &mut Progress, position| {
            progress.open.remove(&position);
            progress.touched.insert(Touched::Open(position));
            progress.head.moved_at = now;
            Verdict::Done
        };
        self.each(tokens, now, done)
    }

    /// Not now: again after a while, or parked if it was tried often enough.
    pub fn nak(&mut self, terms: &Terms, tokens: &[String], delay_ms: u64, reason: Option<&str>, now: Timestamp) -> Vec<Verdict> {
        self.each(tokens, now, |progress, position| {
            let Some(open) = progress.open.get_mut(&position) else { return Verdict::Stale };
            let consumer = open.lease.take().map(|lease| lease.consumer);
            progress.touched.insert(Touched::Open(position));
            if delay_ms > 0 {
                open.due = now.plus_ms(delay_ms);
            }
            let is_last = open.attempts >= terms.max_attempts;
            if is_last && progress.put_aside(position, reason.unwrap_or(GIVEN_BACK), consumer, now) {
                progress.head.moved_at = now;
                return Verdict::Parked;
            }
            Verdict::Done
        })
    }

    /// Still at it: these hold for so long from now on.
    pub fn extend(&mut self, tokens: &[String], by_ms: u64, now: Timestamp) -> Vec<Verdict> {
        self.each(tokens, now, |progress, position| {
            let lease = progress.open.get_mut(&position).and_then(|open| open.lease.as_mut());
            let Some(lease) = lease else { return Verdict::Stale };
            lease.deadline = now.plus_ms(by_ms);
            progress.touched.insert(Touched::Open(position));
            Verdict::Done
        })
    }

    /// Puts these aside.
    pub fn park(&mut self, tokens: &[String], reason: &str, now: Timestamp) -> Vec<Verdict> {
        self.each(tokens, now, |progress, position| {
            let consumer = progress.open.get(&position).and_then(|open| open.lease.as_ref()).map(|lease| lease.consumer.clone());
            if !progress.put_aside(position, reason, consumer, now) {
                return Verdict::Full;
            }
            progress.head.moved_at = now;
            Verdict::Done
        })
    }

    /// Parked events are delivered again, as if for the first time; all of them when nothing is said.
    pub fn replay(&mut self, positions: Option<&[u64]>, now: Timestamp) {
        let wanted: Vec<u64> = match positions {
            Some(positions) => positions.to_vec(),
            None => self.parked.keys().copied().collect(),
        };
        for position in wanted {
            let Some(Parked { stream, kind, recorded_at, .. }) = self.parked.remove(&position) else { continue };
            self.open.insert(position, Open { stream, kind, recorded_at, attempts: 0, lease: None, due: now });
            self.touched.extend([Touched::Open(position), Touched::Parked(position)]);
            self.head.moved_at = now;
        }
    }

    /// Goes on after another position. What is open is forgotten; what was parked behind that position comes by itself.
    pub fn seek(&mut self, position: u64, now: Timestamp) {
        self.touched.extend(std::mem::take(&mut self.open).into_keys().map(Touched::Open));
        self.touched.extend(self.parked.split_off(&position.saturating_add(1)).into_keys().map(Touched::Parked));
        self.touched.insert(Touched::Head);
        self.head.cursor = position;
        self.head.moved_at = now;
    }

    /// Now the group's stream is followed up to this version.
    pub fn follow(&mut self, version: u64) {
        self.head.epoch = version;
    }

    /// Everything up to here is acknowledged, parked or not the group's, as far as was looked.
    pub fn settled(&self) -> u64 {
        self.open.keys().next().map_or(self.head.cursor, |first| first - 1)
    }

    /// When something may become ready by itself.
    pub fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let at = |open: &Open| open.lease.as_ref().map_or(open.due, |lease| lease.deadline);
        self.open.values().map(at).filter(|at| *at > now).min()
    }

    /// Since when something open could have been dealt with.
    pub fn waits_since(&self) -> Option<Timestamp> {
        self.open.values().map(|open| open.recorded_at.max(open.due)).min()
    }

    /// Since when nothing moved although something waited, of which the oldest that is not open yet is `behind`.
    pub fn idle_since(&self, behind: Option<Timestamp>) -> Option<Timestamp> {
        let oldest = self.waits_since().into_iter().chain(behind).min()?;
        Some(oldest.max(self.head.moved_at))
    }

    /// Does something with each delivery that is in force.
    fn each(&mut self, tokens: &[String], now: Timestamp, mut act: impl FnMut(&mut Progress, u64) -> Verdict) -> Vec<Verdict> {
        tokens.iter().map(|token| self.holder(token, now).map_or(Verdict::Stale, |position| act(self, position))).collect()
    }

    /// The position of the delivery in force with this token.
    fn holder(&self, token: &str, now: Timestamp) -> Option<u64> {
        let position = token.split_once('-')?.0.parse().ok()?;
        let lease = self.open.get(&position)?.lease.as_ref()?;
        (lease.token == token && lease.deadline > now).then_some(position)
    }

    fn put_aside(&mut self, position: u64, reason: &str, consumer: Option<String>, now: Timestamp) -> bool {
        if self.parked.len() >= PARKED_MAX {
            return false;
        }
        let Some(Open { stream, kind, recorded_at, attempts, .. }) = self.open.remove(&position) else { return false };
        self.head.parkings += 1;
        let (number, reason) = (self.head.parkings, reason.to_owned());
        self.parked.insert(position, Parked { number, stream, kind, recorded_at, attempts, reason, consumer, at: now });
        self.touched.extend([Touched::Open(position), Touched::Parked(position)]);
        true
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
