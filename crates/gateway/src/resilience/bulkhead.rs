//! The bulkhead: so many calls run, so many wait, and of more the least important are turned away.

use super::layer::{Aspect, Inner};
use super::{Answer, Call, Priority, State, locked};
use crate::mcp::CallError;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::oneshot;

/// Places at an upstream, and who waits for one.
pub(super) struct Gate(Mutex<Places>);

#[derive(Default)]
struct Places {
    calls_max: usize,
    waiting_max: usize,
    running: usize,
    arrived: u64,
    /// The most important first, then by arrival.
    waiting: BTreeMap<Rank, Waiting>,
}

type Rank = (Reverse<Priority>, u64);

struct Waiting {
    owner: [u8; 32],
    turn: oneshot::Sender<Place>,
}

/// A place. It is free again when this is dropped.
pub(super) struct Place(Arc<Gate>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.free();
    }
}

/// Somebody who waits, until this is dropped.
struct Wait {
    gate: Arc<Gate>,
    rank: Rank,
    turn: oneshot::Receiver<Place>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        // Taken out first and dropped after the lock: nothing of it may free a place within.
        let gone = locked(&self.gate.0).waiting.remove(&self.rank);
        drop(gone);
    }
}

/// How a call gets in.
enum Entry {
    Now(Place),
    Later(Wait),
}

impl Gate {
    pub fn new(calls_max: usize, waiting_max: usize) -> Self {
        Gate(Mutex::new(Places { calls_max, waiting_max, ..Places::default() }))
    }

    pub fn resize(self: &Arc<Self>, calls_max: usize, waiting_max: usize) {
        {
            let mut places = locked(&self.0);
            (places.calls_max, places.waiting_max) = (calls_max, waiting_max);
        }
        self.seat();
    }

    /// How many run, and how many wait.
    pub fn counts(&self) -> (usize, usize) {
        let places = locked(&self.0);
        (places.running, places.waiting.len())
    }

    /// A place, a turn to wait for, or neither: nobody waits for more than half of what may wait, and whoever is less
    /// important makes room.
    fn enter(self: &Arc<Self>, priority: Priority, owner: [u8; 32]) -> Result<Entry, CallError> {
        let mut places = locked(&self.0);
        if places.running < places.calls_max && places.waiting.is_empty() {
            places.running += 1;
            return Ok(Entry::Now(Place(self.clone())));
        }
        let own = places.waiting.values().filter(|waiting| waiting.owner == owner).count();
        if own >= places.waiting_max.div_ceil(2) {
            return Err(CallError::Shed);
        }
        let mut shed = None;
        if places.waiting.len() >= places.waiting_max {
            let last = places.waiting.last_key_value().map(|(rank, _)| *rank);
            match last {
                Some(rank) if rank.0.0 < priority => shed = places.waiting.remove(&rank),
                _ => return Err(CallError::Shed),
            }
        }
        places.arrived += 1;
        let rank = (Reverse(priority), places.arrived);
        let (turn, coming) = oneshot::channel();
        places.waiting.insert(rank, Waiting { owner, turn });
        drop(places);
        // Whoever waited learns that nobody will call.
        drop(shed);
        Ok(Entry::Later(Wait { gate: self.clone(), rank, turn: coming }))
    }

    fn free(self: &Arc<Self>) {
        locked(&self.0).running -= 1;
        self.seat();
    }

    /// Gives free places to those who wait.
    fn seat(self: &Arc<Self>) {
        loop {
            let next = {
                let mut places = locked(&self.0);
                if places.running >= places.calls_max {
                    return;
                }
                let Some((_, waiting)) = places.waiting.pop_first() else { return };
                places.running += 1;
                waiting
            };
            // One who left meanwhile gives it back by dropping it.
            let _ = next.turn.send(Place(self.clone()));
        }
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Bulkhead(pub Arc<State>);

impl Aspect for Bulkhead {
    async fn around(self, mut call: Call, mut inner: impl Inner) -> Answer {
        let begun = Instant::now();
        let _place = match self.0.gate.enter(call.priority, call.client.owner)? {
            Entry::Now(place) => place,
            Entry::Later(mut wait) => match tokio::time::timeout(call.timeout, &mut wait.turn).await {
                Ok(Ok(place)) => place,
                // Somebody more important came.
                Ok(Err(_)) => return Err(CallError::Shed),
                Err(_) => return Err(CallError::Busy),
            },
        };
        call.timeout = call.timeout.saturating_sub(begun.elapsed());
        if call.timeout.is_zero() {
            return Err(CallError::Busy);
        }
        inner.call(call).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(calls_max: usize, waiting_max: usize) -> Arc<Gate> {
        Arc::new(Gate::new(calls_max, waiting_max))
    }

    fn wait(gate: &Arc<Gate>, priority: Priority, owner: u8) -> Option<Wait> {
        match gate.enter(priority, [owner; 32]) {
            Ok(Entry::Later(wait)) => Some(wait),
            Ok(Entry::Now(_)) => panic!("there is a place"),
            Err(_) => None,
        }
    }

    fn now(gate: &Arc<Gate>) -> Place {
        match gate.enter(Priority::Normal, [0; 32]) {
            Ok(Entry::Now(place)) => place,
            _ => panic!("there is no place"),
        }
    }

    fn is_called(wait: &mut Wait) -> Option<Place> {
        wait.turn.try_recv().ok()
    }

    #[test]
    fn the_most_important_go_first_and_then_the_earliest() {
        let gate = gate(1, 9);
        let mut place = Some(now(&gate));
        let (mut low, mut first) = (wait(&gate, Priority::Low, 1).unwrap(), wait(&gate, Priority::Normal, 2).unwrap());
        let (mut second, mut high) = (wait(&gate, Priority::Normal, 3).unwrap(), wait(&gate, Priority::High, 4).unwrap());
        for next in [&mut high, &mut first, &mut second, &mut low] {
            drop(place.take());
            place = is_called(next);
            assert!(place.is_some());
        }
        assert_eq!(gate.counts(), (1, 0));
        drop(place);
        assert_eq!(gate.counts(), (0, 0));
    }

    #[test]
    fn of_too_many_the_least_important_are_turned_away() {
        let gate = gate(1, 2);
        let _place = now(&gate);
        let (mut low, _normal) = (wait(&gate, Priority::Low, 1).unwrap(), wait(&gate, Priority::Normal, 2).unwrap());
        assert!(wait(&gate, Priority::Low, 3).is_none());
        let _high = wait(&gate, Priority::High, 4).unwrap();
        assert!(matches!(low.turn.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(wait(&gate, Priority::Normal, 5).is_none(), "who is as important does not push anybody out");
        assert_eq!(gate.counts(), (1, 2));
    }

    #[test]
    fn nobody_takes_all_the_places_to_wait() {
        let gate = gate(1, 4);
        let _place = now(&gate);
        let _own = [wait(&gate, Priority::High, 1).unwrap(), wait(&gate, Priority::High, 1).unwrap()];
        assert!(wait(&gate, Priority::High, 1).is_none());
        assert!(wait(&gate, Priority::Low, 2).is_some());
    }

    #[test]
    fn who_leaves_loses_no_place() {
        let gate = gate(1, 4);
        let place = now(&gate);
        let (left, mut next) = (wait(&gate, Priority::Normal, 1).unwrap(), wait(&gate, Priority::Normal, 2).unwrap());
        drop(left);
        drop(place);
        let place = is_called(&mut next).unwrap();
        let called = wait(&gate, Priority::Normal, 3).unwrap();
        drop(place);
        // It was called, and left before it looked.
        drop(called);
        assert_eq!(gate.counts(), (0, 0));
    }

    #[test]
    fn more_places_are_given_at_once_and_fewer_when_they_are_free() {
        let gate = gate(1, 4);
        let first = now(&gate);
        let mut second = wait(&gate, Priority::Normal, 1).unwrap();
        gate.resize(2, 4);
        let second = is_called(&mut second).unwrap();
        gate.resize(1, 4);
        let mut third = wait(&gate, Priority::Normal, 1).unwrap();
        drop(first);
        assert!(is_called(&mut third).is_none());
        drop(second);
        assert!(is_called(&mut third).is_some());
    }
}
