//! Given events and deliveries, when consumers take, acknowledge, give back, park, then nothing is lost, doubled or out of order.

use super::*;
use proptest::prelude::*;

const TERMS: Terms = Terms { mode: Mode::Ordered, ack_timeout_ms: 1_000, max_attempts: 3, window: 100 };

fn shared() -> Terms {
    Terms { mode: Mode::Shared, ..TERMS }
}

fn candidate(position: u64, stream: u64) -> Candidate {
    Candidate { position, stream: format!("s{stream}"), kind: "a.b.c".into(), recorded_at: Timestamp(0) }
}

/// A group that has taken in events of these streams, at positions 1, 2, …
fn given(streams: &[u64]) -> Progress {
    let mut progress = Progress::begin(0, Timestamp(0));
    let found = streams.iter().zip(1..).map(|(stream, position)| candidate(position, *stream)).collect();
    progress.take_in(found, streams.len() as u64);
    progress
}

fn positions(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| delivery.position).collect()
}

fn tokens(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| delivery.token.clone()).collect()
}

fn at(ms: i64) -> Timestamp {
    Timestamp(ms)
}

fn parked_number(progress: &Progress) -> Option<u64> {
    progress.parked().values().map(|parked| parked.number).max()
}

#[test]
fn given_an_ordered_group_then_a_stream_goes_on_only_after_its_acknowledgement() {
    let mut progress = given(&[1, 1, 2, 1]);
    let first = progress.deliver(&TERMS, "a", 10, at(0), 1);
    assert_eq!(positions(&first), [1, 3]);
    assert_eq!(positions(&progress.deliver(&TERMS, "b", 10, at(0), 2)), [] as [u64; 0]);
    assert_eq!(progress.ack(&tokens(&first)[..1], at(1)), [Verdict::Done]);
    assert_eq!(positions(&progress.deliver(&TERMS, "b", 10, at(1), 3)), [2]);
}

#[test]
fn given_a_shared_group_then_everything_is_delivered_at_once_but_never_twice() {
    let mut progress = given(&[1, 1, 2]);
    assert_eq!(positions(&progress.deliver(&shared(), "a", 2, at(0), 1)), [1, 2]);
    assert_eq!(positions(&progress.deliver(&shared(), "b", 2, at(0), 2)), [3]);
}

#[test]
fn given_a_delivery_that_is_over_then_its_token_is_worth_nothing_and_the_next_one_has_another() {
    let mut progress = given(&[1]);
    let first = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 1));
    assert_eq!(progress.ack(&first, at(1_000)), [Verdict::Stale], "before anybody else has it");
    progress.sweep(&TERMS, at(1_000));
    let second = progress.deliver(&TERMS, "b", 1, at(1_000), 2);
    assert_eq!(second[0].attempt, 2);
    for verdicts in [
        progress.ack(&first, at(1_001)),
        progress.nak(&TERMS, &first, 0, None, at(1_001)),
        progress.extend(&first, 1, at(1_001)),
        progress.park(&first, "x", at(1_001)),
        progress.ack(&["".into(), "1".into(), "1-x".into(), "x-1".into()], at(1_001)),
    ] {
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Stale));
    }
    assert_eq!(progress.ack(&tokens(&second), at(1_001)), [Verdict::Done]);
    assert_eq!(progress.ack(&tokens(&second), at(1_001)), [Verdict::Stale], "once is enough");
}

#[test]
fn given_a_delivery_that_is_extended_then_it_holds_longer() {
    let mut progress = given(&[1]);
    let held = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 1));
    assert_eq!(progress.extend(&held, 5_000, at(900)), [Verdict::Done]);
    progress.sweep(&TERMS, at(5_899));
    assert_eq!(progress.ack(&held, at(5_899)), [Verdict::Done]);
}

#[test]
fn given_an_event_that_is_given_back_then_it_comes_after_the_delay_and_holds_up_its_stream_only() {
    let mut progress = given(&[1, 1, 2]);
    let first = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 1));
    assert_eq!(progress.nak(&TERMS, &first, 500, None, at(10)), [Verdict::Done]);
    assert_eq!(progress.next_due(at(10)), Some(at(510)));
    assert_eq!(progress.ready(&TERMS, 10, at(509)), [3]);
    assert_eq!(progress.ready(&TERMS, 10, at(510)), [1, 3]);
}

#[test]
fn given_an_event_that_fails_again_and_again_then_it_is_parked_with_the_reason_and_its_stream_goes_on() {
    let mut progress = given(&[1, 1]);
    for attempt in 1..=3 {
        let held = tokens(&progress.deliver(&TERMS, "a", 1, at(0), attempt));
        let expected = if attempt == 3 { Verdict::Parked } else { Verdict::Done };
        assert_eq!(progress.nak(&TERMS, &held, 0, Some("broken"), at(0)), [expected]);
    }
    let parked = &progress.parked()[&1];
    assert_eq!((parked.reason.as_str(), parked.attempts, parked.consumer.as_deref()), ("broken", 3, Some("a")));
    assert_eq!(progress.ready(&TERMS, 10, at(0)), [2]);
    progress.replay(None, at(0));
    let again = progress.deliver(&TERMS, "a", 10, at(0), 9);
    assert_eq!(positions(&again), [1], "it holds up its stream again");
    assert_eq!(parked_number(&progress), None);
    progress.park(&tokens(&again), "again", at(0));
    assert_eq!(parked_number(&progress), Some(2), "each parking has a number of its own");
}

#[test]
fn given_an_event_that_nobody_acknowledges_then_it_is_parked_by_itself() {
    let mut progress = given(&[1]);
    for attempt in 0..3 {
        assert_eq!(progress.deliver(&TERMS, "a", 1, at(attempt * 1_000), 1).len(), 1);
        progress.sweep(&TERMS, at(attempt * 1_000 + 1_000));
    }
    assert_eq!(progress.parked()[&1].reason, NOT_ACKNOWLEDGED);
    assert_eq!(progress.settled(), 1);
}

#[test]
fn given_a_replayed_event_before_one_in_delivery_then_the_stream_is_never_in_delivery_twice() {
    let mut progress = given(&[1, 1]);
    let first = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 1));
    assert_eq!(progress.park(&first, "later", at(0)), [Verdict::Done]);
    let second = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 2));
    progress.replay(Some(&[1, 77]), at(0));
    assert_eq!(progress.ready(&TERMS, 10, at(0)), [] as [u64; 0]);
    progress.ack(&second, at(0));
    assert_eq!(progress.ready(&TERMS, 10, at(0)), [1]);
}

#[test]
fn given_another_place_then_what_was_open_or_parked_behind_it_comes_from_the_log_only() {
    let mut progress = given(&[1, 2, 3, 4]);
    let held = tokens(&progress.deliver(&TERMS, "a", 4, at(0), 1));
    progress.park(&[held[0].clone(), held[3].clone()], "x", at(0));
    progress.seek(2, at(5));
    assert_eq!(progress.ack(&held, at(5)), [Verdict::Stale; 4]);
    assert_eq!((progress.head().cursor, progress.open().len()), (2, 0));
    assert_eq!(progress.parked().keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(progress.head().moved_at, at(5));
}

#[test]
fn given_more_parked_events_than_there_may_be_then_nothing_is_dropped() {
    let mut progress = given(&[1]);
    for position in 0..PARKED_MAX as u64 {
        let Candidate { stream, kind, recorded_at, .. } = candidate(position + 10, 1);
        let parked =
            Parked { number: 0, stream, kind, recorded_at, attempts: 1, reason: String::new(), consumer: None, at: at(0) };
        progress.parked.insert(position + 10, parked);
    }
    let held = tokens(&progress.deliver(&TERMS, "a", 1, at(0), 1));
    assert_eq!(progress.park(&held, "x", at(0)), [Verdict::Full]);
    for attempt in 1..9 {
        progress.sweep(&TERMS, at(attempt * 1_000));
        assert_eq!(progress.deliver(&TERMS, "a", 1, at(attempt * 1_000), 1).len(), 1);
    }
}

#[test]
fn given_nothing_that_waits_then_a_group_is_not_idle() {
    let mut progress = given(&[1, 2]);
    assert_eq!(progress.idle_since(None), Some(at(0)));
    let held = tokens(&progress.deliver(&TERMS, "a", 2, at(0), 1));
    progress.ack(&held[..1], at(40));
    assert_eq!(progress.idle_since(None), Some(at(40)), "the clock starts anew");
    progress.nak(&TERMS, &held[1..], 500, None, at(50));
    assert_eq!(progress.idle_since(None), Some(at(550)), "what is put off does not wait");
    let again = tokens(&progress.deliver(&TERMS, "a", 2, at(550), 2));
    progress.ack(&again, at(551));
    assert_eq!(progress.idle_since(None), None);
    assert_eq!(progress.idle_since(Some(at(600))), Some(at(600)));
}

/// One thing that may happen to a group.
#[derive(Clone, Debug)]
enum Op {
    Wait(i64),
    Deliver(usize),
    Ack(usize),
    Nak(usize, u64),
    Extend(usize),
    Park(usize),
    Replay,
    /// The process dies: what is in memory is read again.
    Crash,
    /// The process dies after it has decided and before it has stored.
    Undone(Box<Op>),
}

fn op() -> impl Strategy<Value = Op> {
    let simple = prop_oneof![
        3 => (0..900i64).prop_map(Op::Wait),
        5 => (1..6usize).prop_map(Op::Deliver),
        5 => (0..8usize).prop_map(Op::Ack),
        3 => ((0..8usize), (0..700u64)).prop_map(|(n, delay)| Op::Nak(n, delay)),
        1 => (0..8usize).prop_map(Op::Extend),
        1 => (0..8usize).prop_map(Op::Park),
        1 => Just(Op::Replay),
        1 => Just(Op::Crash),
    ];
    let boxed = simple.clone().prop_map(|op| Op::Undone(Box::new(op)));
    prop_oneof![8 => simple, 1 => boxed]
}

/// Rows as a store keeps them.
#[derive(Clone, Default)]
struct Rows {
    head: Option<Head>,
    open: BTreeMap<u64, Open>,
    parked: BTreeMap<u64, Parked>,
}

impl Rows {
    fn write(&mut self, progress: &mut Progress) {
        for touched in progress.take_changes() {
            match touched {
                Touched::Head => self.head = Some(progress.head().clone()),
                Touched::Open(p) => put(&mut self.open, p, progress.open().get(&p)),
                Touched::Parked(p) => put(&mut self.parked, p, progress.parked().get(&p)),
            }
        }
    }

    fn read(&self) -> Progress {
        match &self.head {
            Some(head) => Progress::stored(head.clone(), self.open.clone(), self.parked.clone()),
            None => Progress::begin(0, Timestamp(0)),
        }
    }
}

fn put<T: Clone>(rows: &mut BTreeMap<u64, T>, position: u64, row: Option<&T>) {
    match row {
        Some(row) => drop(rows.insert(position, row.clone())),
        None => drop(rows.remove(&position)),
    }
}

/// A log, a group on it, its stored rows, and what consumers hold.
struct World {
    terms: Terms,
    log: Vec<u64>,
    rows: Rows,
    progress: Progress,
    now: Timestamp,
    random: u64,
    held: Vec<(Delivery, bool)>,
    acked: BTreeSet<u64>,
}

impl World {
    fn new(terms: Terms, log: Vec<u64>) -> Self {
        let rows = Rows::default();
        let progress = rows.read();
        World { terms, log, rows, progress, now: Timestamp(0), random: 0, held: vec![], acked: BTreeSet::new() }
    }

    fn stream(&self, position: u64) -> u64 {
        self.log[position as usize - 1]
    }

    fn in_force(&self) -> Vec<&Delivery> {
        self.held.iter().filter(|(d, is_open)| *is_open && d.deadline > self.now).map(|(d, _)| d).collect()
    }

    fn run(&mut self, op: &Op) {
        self.progress.sweep(&self.terms, self.now);
        match op {
            Op::Wait(ms) => self.now = Timestamp(self.now.0 + ms),
            Op::Deliver(limit) => self.deliver(*limit),
            Op::Ack(n) => self.on(*n, |progress, tokens, now, _| progress.ack(tokens, now)),
            Op::Nak(n, delay) => self.on(*n, |progress, tokens, now, terms| progress.nak(terms, tokens, *delay, None, now)),
            Op::Extend(n) => self.on(*n, |progress, tokens, now, _| progress.extend(tokens, 500, now)),
            Op::Park(n) => self.on(*n, |progress, tokens, now, _| progress.park(tokens, "x", now)),
            Op::Replay => self.progress.replay(None, self.now),
            Op::Crash => self.progress = self.rows.read(),
            Op::Undone(inner) => {
                let (rows, held, acked) = (self.rows.clone(), self.held.clone(), self.acked.clone());
                self.run(inner);
                (self.rows, self.held, self.acked) = (rows, held, acked);
                self.progress = self.rows.read();
            }
        }
        self.rows.write(&mut self.progress);
        assert_eq!(self.rows.read(), self.progress, "what is stored is what is there");
    }

    fn deliver(&mut self, limit: usize) {
        let after = self.progress.head().cursor;
        let room = self.progress.room(&self.terms);
        let found: Vec<_> = (after + 1..=self.log.len() as u64).take(room.min(3)).map(|p| candidate(p, self.stream(p))).collect();
        let looked = found.last().map_or(after, |candidate| candidate.position);
        self.progress.take_in(found, looked);
        self.random += 1;
        let deliveries = self.progress.deliver(&self.terms, "c", limit, self.now, self.random);
        if self.terms.mode == Mode::Ordered {
            self.check_order(&deliveries);
        }
        for delivery in deliveries {
            let position = delivery.position;
            assert!(!self.acked.contains(&position), "{position} was acknowledged and comes again");
            assert!(self.in_force().iter().all(|held| held.position != position), "{position} is delivered twice at once");
            self.held.push((delivery, true));
        }
    }

    fn check_order(&self, deliveries: &[Delivery]) {
        for delivery in deliveries {
            let stream = self.stream(delivery.position);
            let same = |position: u64| position != delivery.position && self.stream(position) == stream;
            assert!(self.in_force().iter().all(|held| !same(held.position)), "two of a stream at once");
            assert!(deliveries.iter().all(|other| !same(other.position)), "two of a stream at once");
            for earlier in (1..delivery.position).filter(|earlier| same(*earlier)) {
                let is_settled = self.acked.contains(&earlier) || self.progress.parked().contains_key(&earlier);
                assert!(is_settled, "{} is delivered before {earlier}", delivery.position);
            }
        }
    }

    fn on(&mut self, n: usize, act: impl Fn(&mut Progress, &[String], Timestamp, &Terms) -> Vec<Verdict>) {
        if n >= self.held.len() {
            return;
        }
        let index = self.held.len() - 1 - n;
        let delivery = self.held[index].0.clone();
        let before = self.progress.clone();
        let verdict = act(&mut self.progress, std::slice::from_ref(&delivery.token), self.now, &self.terms)[0];
        let is_known =
            before.open().get(&delivery.position).and_then(|o| o.lease.as_ref()).is_some_and(|l| l.token == delivery.token);
        assert_eq!(verdict == Verdict::Stale, !is_known, "{delivery:?}");
        if verdict != Verdict::Stale {
            match self.progress.open().get(&delivery.position).and_then(|open| open.lease.as_ref()) {
                Some(lease) => self.held[index].0.deadline = lease.deadline,
                None => self.held[index].1 = false,
            }
        }
        if verdict == Verdict::Done
            && !self.progress.open().contains_key(&delivery.position)
            && !self.progress.parked().contains_key(&delivery.position)
        {
            self.acked.insert(delivery.position);
        }
    }

    /// Everything is delivered and acknowledged in the end.
    fn finish(&mut self) {
        for _ in 0..self.log.len() * 4 + 20 {
            self.run(&Op::Wait(1_000));
            self.run(&Op::Deliver(3));
            let mine: Vec<String> = self.in_force().iter().map(|delivery| delivery.token.clone()).collect();
            self.acked.extend(self.in_force().iter().map(|delivery| delivery.position).collect::<Vec<_>>());
            assert!(self.progress.ack(&mine, self.now).iter().all(|verdict| *verdict == Verdict::Done));
            self.held.clear();
            self.rows.write(&mut self.progress);
        }
        let parked: BTreeSet<u64> = self.progress.parked().keys().copied().collect();
        assert!(self.progress.open().is_empty());
        assert_eq!(self.progress.head().cursor, self.log.len() as u64);
        let all: BTreeSet<u64> = (1..=self.log.len() as u64).collect();
        assert_eq!(self.acked.union(&parked).copied().collect::<BTreeSet<_>>(), all, "nothing is skipped");
        assert!(self.acked.is_disjoint(&parked), "nothing acknowledged is parked");
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_lost_doubled_or_out_of_order(
        is_ordered in any::<bool>(),
        window in 1..12usize,
        log in prop::collection::vec(0..4u64, 0..30),
        ops in prop::collection::vec(op(), 0..80),
    ) {
        let mode = if is_ordered { Mode::Ordered } else { Mode::Shared };
        let mut world = World::new(Terms { mode, window, ..TERMS }, log);
        for op in &ops {
            world.run(op);
        }
        world.finish();
    }
}
