//! The circuits of a server. Each of its addresses has one for losing calls, and one for each tool that takes too long there: a slow
//! tool does not take the others with it, nor one address the others. What a tool answers, also an error, opens no circuit.

use super::balance::{self, Load};
use super::breaker::{Admission, Breaker, Circuit, Position, Trial};
use super::layer::{Aspect, Inner};
use super::{Answer, Call, State, Tuning, locked};
use crate::mcp::{CallError, Method, Resume};
use crate::upstream::{START_PATIENCE, Upstream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One address, with circuits of its own.
#[derive(Debug, Default)]
struct Address {
    /// For losing calls.
    whole: Breaker,
    /// For taking too long; of tools that failed since they last answered.
    tools: BTreeMap<String, Breaker>,
    load: Load,
}

impl Address {
    /// Whether a call may go there, of both circuits together.
    fn would_admit(&self, subject: &str, now: Instant) -> Admission {
        let tool = self.tools.get(subject).map_or(Admission::Pass, |breaker| breaker.would_admit(now));
        match (self.whole.would_admit(now), tool) {
            (Admission::Refuse { after, reason }, _) => {
                Admission::Refuse { after, reason: format!("its server failed repeatedly: {reason}") }
            }
            (_, Admission::Refuse { after, reason }) => {
                Admission::Refuse { after, reason: format!("it failed repeatedly: {reason}") }
            }
            (Admission::Pass, Admission::Pass) => Admission::Pass,
            _ => Admission::Trial,
        }
    }

    /// Whether a trial of it would be worth a call that others could answer: nobody came for long who may be sent twice.
    fn is_overdue(&self, subject: &str, now: Instant) -> bool {
        self.whole.is_forgotten(now) || self.tools.get(subject).is_some_and(|breaker| breaker.is_forgotten(now))
    }
}

/// Where a call may go.
struct Among<'a> {
    /// The best ones first: the next are for when none of these takes it.
    stages: &'a [Vec<usize>],
    /// A client that stays where it is known.
    home: Option<Home<'a>>,
    /// Whether it may be carried out twice, and so may try an address that failed.
    is_repeatable: bool,
    random: u64,
}

/// See [`Among`].
struct Home<'a> {
    party: &'a [u8; 32],
    /// Where it has a connection of its own.
    known_at: Option<usize>,
}

/// All circuits of a server.
pub(super) struct Circuits {
    /// Trials so far.
    trials: Trial,
    /// One at least.
    addresses: Vec<Address>,
}

/// What a call that may go is to the circuits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trials {
    at: usize,
    whole: Option<Trial>,
    tool: Option<Trial>,
}

impl Circuits {
    /// Of a server with so many addresses.
    pub fn new(addresses: usize) -> Self {
        Circuits { trials: 0, addresses: (0..addresses).map(|_| Address::default()).collect() }
    }

    /// Circuits that are not closed; `url` says where an address is.
    pub fn open<'a>(&self, url: impl Fn(usize) -> Option<&'a str>, now: Instant) -> Vec<Circuit> {
        let shown = self.addresses.iter().enumerate().flat_map(|(at, address)| {
            let url = url(at);
            let tools = address.tools.iter().filter_map(move |(tool, breaker)| breaker.shown(Some(tool), url, now));
            address.whole.shown(None, url, now).into_iter().chain(tools)
        });
        shown.collect()
    }

    /// How many calls an address has, and how long it takes.
    pub fn load(&self, at: usize, now: Instant) -> (usize, Duration) {
        let load = &self.addresses[at].load;
        (load.running, Duration::from_secs_f64(load.usual_ms(now) / 1_000.0))
    }

    /// Whether there are others, and the last call of a tool took too long at this address.
    pub fn is_slow(&self, at: usize, subject: &str) -> bool {
        self.addresses.len() > 1 && self.addresses[at].tools.get(subject).is_some_and(|breaker| breaker.in_a_row > 0)
    }

    /// Closes that of an address; whether it was open.
    pub fn close_address(&mut self, at: usize) -> bool {
        matches!(std::mem::take(&mut self.addresses[at].whole).position, Position::Open { .. })
    }

    /// The address of these that a call goes to, if one takes it: where its client is known; else one that is to be tried; else the one
    /// that will probably answer sooner.
    fn pick(&self, addresses: &[usize], subject: &str, among: &Among<'_>, now: Instant) -> Option<usize> {
        let admits = |at: usize| self.addresses[at].would_admit(subject, now);
        let well: Vec<usize> = addresses.iter().copied().filter(|at| admits(*at) == Admission::Pass).collect();
        let mut due = addresses.iter().copied().filter(|at| admits(*at) == Admission::Trial);
        if let Some(Home { party, known_at }) = among.home {
            return known_at.filter(|at| well.contains(at)).or_else(|| balance::home(&well, party)).or_else(|| due.next());
        }
        let may_try = |at: &usize| well.is_empty() || among.is_repeatable || self.addresses[*at].is_overdue(subject, now);
        due.find(may_try).or_else(|| {
            let costs: Vec<(usize, f64)> = well.iter().map(|at| (*at, self.addresses[*at].load.cost(now))).collect();
            balance::cheaper(&costs, among.random)
        })
    }

    /// What a call is told that no address takes.
    fn refusal(&self, subject: &str, among: &Among<'_>, now: Instant) -> CallError {
        let refusals = among.stages.iter().flatten().filter_map(|at| match self.addresses[*at].would_admit(subject, now) {
            Admission::Refuse { after, reason } => Some((after, reason)),
            Admission::Pass | Admission::Trial => None,
        });
        let (after, what) = refusals.min_by_key(|(after, _)| *after).unwrap_or_default();
        CallError::Open { what, after }
    }

    fn admit(&mut self, subject: &str, among: &Among<'_>, now: Instant) -> Result<Trials, CallError> {
        let picked = among.stages.iter().find_map(|stage| self.pick(stage, subject, among, now));
        let Some(at) = picked else { return Err(self.refusal(subject, among, now)) };
        self.trials += 1;
        let number = self.trials;
        let address = &mut self.addresses[at];
        let trial = |breaker: &mut Breaker| (breaker.admit(number, now) == Admission::Trial).then_some(number);
        let whole = trial(&mut address.whole);
        let tool = address.tools.get_mut(subject).and_then(trial);
        address.load.running += 1;
        Ok(Trials { at, whole, tool })
    }

    /// Takes in what came of a call; whether a circuit opened or closed.
    fn take(&mut self, subject: &str, trials: Trials, verdict: &Verdict, took: Duration, tuning: &Tuning, now: Instant) -> bool {
        let others = self.usual_elsewhere(trials.at, now);
        let address = &mut self.addresses[trials.at];
        let turned = match verdict {
            Verdict::Works => {
                address.load.answered(took, now);
                let whole = address.whole.succeeded(trials.whole, now);
                let tool = address.tools.get_mut(subject).is_some_and(|breaker| breaker.succeeded(trials.tool, now));
                let is_clean =
                    |breaker: &mut Breaker| matches!(breaker.position, Position::Closed) && breaker.window.is_clean(now);
                if address.tools.get_mut(subject).is_some_and(is_clean) {
                    address.tools.remove(subject);
                }
                whole || tool
            }
            Verdict::ServerFails(reason) => {
                address.load.failed(others, now);
                address.whole.failed(trials.whole, reason, tuning, now)
            }
            Verdict::ToolFails(reason) => {
                address.load.failed(others, now);
                address.tools.entry(subject.to_owned()).or_default().failed(trials.tool, reason, tuning, now)
            }
            Verdict::Odd => {
                address.load.failed(took.max(others), now);
                false
            }
            Verdict::Nothing => false,
        };
        self.release(subject, trials);
        turned
    }

    /// How long the slowest of the other addresses takes: one that does not answer is no better.
    fn usual_elsewhere(&self, at: usize, now: Instant) -> Duration {
        let others = self.addresses.iter().enumerate().filter(|(other, _)| *other != at);
        let usual_ms = others.map(|(_, other)| other.load.usual_ms(now)).fold(0.0, f64::max);
        Duration::from_secs_f64(usual_ms / 1_000.0)
    }

    /// A call is over; what it was a trial of, and did not say, another one may.
    fn release(&mut self, subject: &str, trials: Trials) {
        let address = &mut self.addresses[trials.at];
        address.load.running -= 1;
        address.whole.undecided(trials.whole);
        if let Some(breaker) = address.tools.get_mut(subject) {
            breaker.undecided(trials.tool);
        }
    }

    /// Forgets circuits that nobody asks for any more; whether there were any. Where there is one address, that one's own stays.
    pub fn sweep(&mut self, now: Instant) -> bool {
        let are_several = self.addresses.len() > 1;
        let mut is_less = false;
        for address in &mut self.addresses {
            let before = address.tools.len();
            address.tools.retain(|_, breaker| !breaker.is_forgotten(now));
            is_less |= address.tools.len() < before;
            if are_several && address.whole.is_forgotten(now) {
                address.whole = Breaker::default();
                is_less = true;
            }
        }
        is_less
    }
}

/// What an answer says about who gave it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Works,
    ServerFails(String),
    ToolFails(String),
    /// No answer that is of use, for a reason that may be the caller's: no circuit opens, and nobody is drawn there.
    Odd,
    /// It was not carried out there.
    Nothing,
}

fn verdict(answer: &Answer) -> Verdict {
    match answer {
        Ok(_) | Err(CallError::Refused(..) | CallError::Unusable(_)) => Verdict::Works,
        Err(CallError::Lost(reason) | CallError::Unreached(reason)) => Verdict::ServerFails(reason.clone()),
        Err(error @ CallError::Timeout(_)) => Verdict::ToolFails(error.to_string()),
        Err(CallError::Impatient(_) | CallError::Interrupted(_) | CallError::Locked(_) | CallError::Changed) => Verdict::Odd,
        Err(_) => Verdict::Nothing,
    }
}

/// The layer.
#[derive(Clone)]
pub(super) struct Breaking {
    pub state: Arc<State>,
    pub upstreams: Arc<[Upstream]>,
}

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
    async fn around(self, mut call: Call, mut inner: impl Inner) -> Answer {
        let pinned = self.state.tags.unpin(&mut call)?.or_else(|| self.keeper(&call));
        if self.upstreams.len() == 1 {
            let (_, answer) = self.at_one_of(&[vec![0]], call, &mut inner).await;
            return self.state.tags.pin(0, answer);
        }
        let (begun, whole) = (Instant::now(), call.timeout);
        let mut left: Vec<usize> = pinned.map_or_else(|| (0..self.upstreams.len()).collect(), |at| vec![at]);
        self.until_ready(&left, whole).await;
        loop {
            call.timeout = whole.saturating_sub(begun.elapsed());
            let (at, answer) = self.at_one_of(&self.stages(&left, &call), call.clone(), &mut inner).await;
            let Some(at) = at else { return answer };
            left.retain(|other| *other != at);
            if answer.is_err() {
                call.tried.put(at);
            }
            let are_others_ready = left.iter().any(|at| self.upstreams[*at].is_ready());
            match answer {
                Err(error) if are_others_ready && begun.elapsed() < whole && balance::is_elsewhere(&error) => {}
                answer => return self.state.tags.pin(at, answer),
            }
        }
    }
}

impl Breaking {
    /// The address that keeps what a call goes on with.
    fn keeper(&self, call: &Call) -> Option<usize> {
        let Some(Resume::Waiting(id)) = call.ask.answers.as_ref().map(|answers| &answers.resume) else { return None };
        self.upstreams.iter().position(|upstream| upstream.keeps(*id))
    }

    /// Waits for the first of some addresses that answers, or until it is known that none does.
    async fn until_ready(&self, among: &[usize], timeout: Duration) {
        if among.iter().any(|at| self.upstreams[*at].is_ready()) {
            return;
        }
        let settling = among.iter().map(|at| Box::pin(self.upstreams[*at].settled()));
        let first = futures_util::future::select_ok(settling);
        let _ = tokio::time::timeout(timeout.min(START_PATIENCE), first).await;
    }

    /// Those that answer, the best first: where the call did not fail before, and the tool is what was approved, for while a server is
    /// replaced, some may be ahead; then where it failed; then the others.
    fn stages(&self, among: &[usize], call: &Call) -> Vec<Vec<usize>> {
        let ready: Vec<usize> = among.iter().copied().filter(|at| self.upstreams[*at].is_ready()).collect();
        if ready.is_empty() {
            return vec![among.to_vec()];
        }
        let lists = |at: &usize| match (&call.approved, call.ask.method) {
            (Some(approved), Method::CallTool) => self.upstreams[*at].lists(&call.ask.name, approved),
            _ => true,
        };
        let (alike, others): (Vec<usize>, Vec<usize>) = ready.into_iter().partition(lists);
        if alike.is_empty() {
            return vec![others];
        }
        let (tried, untried) = alike.into_iter().partition(|at| call.tried.has(*at));
        vec![untried, tried]
    }

    /// Where a client stays that servers know by its connection.
    fn home<'a>(&self, stages: &[Vec<usize>], call: &'a Call) -> Option<Home<'a>> {
        let mut all = stages.iter().flatten().copied();
        if !call.client.is_particular() || !all.clone().any(|at| self.upstreams[at].knows_clients()) {
            return None;
        }
        Some(Home { party: &call.client.party, known_at: all.find(|at| self.upstreams[*at].knows(&call.client)) })
    }

    /// Hands a call on to one of these addresses; which, and what came of it.
    async fn at_one_of(&self, stages: &[Vec<usize>], mut call: Call, inner: &mut impl Inner) -> (Option<usize>, Answer) {
        let (state, subject, begun) = (&self.state, call.subject().to_owned(), Instant::now());
        let (is_repeatable, random) = (call.is_repeatable, rand::random());
        let among = Among { stages, home: self.home(stages, &call), is_repeatable, random };
        let admitted = locked(&state.circuits).admit(&subject, &among, begun);
        let trials = match admitted {
            Ok(trials) => trials,
            Err(error) => return (None, Err(error)),
        };
        let mut passage = Passage { state, subject: &subject, trials, is_over: false };
        let tuning = state.tuning();
        call.address = trials.at;
        let answer = inner.call(call).await;
        passage.is_over = true;
        let (verdict, now) = (verdict(&answer), Instant::now());
        if locked(&state.circuits).take(&subject, trials, &verdict, now - begun, &tuning, now) {
            let url = state.addresses.url(trials.at);
            tracing::warn!(server = %state.addresses.key.server, url, subject, ?verdict, "a circuit opened or closed");
            state.tell_circuits();
        }
        (Some(trials.at), answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn tuning() -> Tuning {
        Tuning { failures_max: 3, failure_percent: 50, open: 5 * S, ..Tuning::default() }
    }

    fn among<'a>(stages: &'a [Vec<usize>], party: Option<&'a [u8; 32]>) -> Among<'a> {
        let home = party.map(|party| Home { party, known_at: None });
        Among { stages, home, is_repeatable: true, random: rand::random() }
    }

    fn admit(circuits: &mut Circuits, subject: &str, addresses: &[usize], now: Instant) -> Result<Trials, CallError> {
        circuits.admit(subject, &among(&[addresses.to_vec()], None), now)
    }

    /// A call at one address; whether a circuit opened or closed.
    fn call(circuits: &mut Circuits, subject: &str, at: usize, verdict: &Verdict, now: Instant) -> bool {
        let trials = admit(circuits, subject, &[at], now).unwrap();
        circuits.take(subject, trials, verdict, Duration::from_millis(1), &tuning(), now)
    }

    /// Where so many calls go, one after another.
    fn taken(circuits: &mut Circuits, count: usize, among: &Among<'_>, now: Instant) -> Vec<usize> {
        let taken = (0..count).map(|_| {
            let trials = circuits.admit("a", among, now).unwrap();
            circuits.release("a", trials);
            trials.at
        });
        taken.collect()
    }

    fn slow() -> Verdict {
        Verdict::ToolFails("no answer".into())
    }

    fn lost() -> Verdict {
        Verdict::ServerFails("lost".into())
    }

    #[test]
    fn a_slow_tool_does_not_take_the_others_with_it_and_a_lost_server_does() {
        let now = Instant::now();
        let mut circuits = Circuits::new(1);
        assert_eq!([0; 3].map(|at| call(&mut circuits, "slow", at, &slow(), now)), [false, false, true]);
        assert!(admit(&mut circuits, "slow", &[0], now).is_err());
        assert_eq!([0; 3].map(|at| call(&mut circuits, "quick", at, &lost(), now)), [false, false, true]);
        assert!(admit(&mut circuits, "quick", &[0], now).is_err());
        assert_eq!(circuits.open(|_| None, now).len(), 2);
        assert!(circuits.close_address(0));
        assert!(admit(&mut circuits, "quick", &[0], now).is_ok());
    }

    #[test]
    fn an_address_that_loses_calls_is_left_alone_and_tried_again() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        assert_eq!([1; 3].map(|at| call(&mut circuits, "a", at, &lost(), now)), [false, false, true]);
        let shown = circuits.open(|at| ["x", "y"].get(at).copied(), now);
        assert_eq!((shown.len(), shown[0].address.as_deref()), (1, Some("y")));
        assert_eq!(taken(&mut circuits, 20, &among(&[vec![0, 1]], None), now), [0; 20]);
        let later = now + 5 * S;
        let trials = admit(&mut circuits, "a", &[0, 1], later).unwrap();
        assert_eq!(trials.at, 1, "its trial is due");
        assert_eq!(admit(&mut circuits, "a", &[0, 1], later).map(|trials| trials.at), Ok(0), "one is enough");
        assert!(circuits.take("a", trials, &Verdict::Works, S, &tuning(), later));
        assert!(circuits.open(|_| None, later).is_empty());
    }

    #[test]
    fn what_may_not_be_done_twice_is_no_trial_while_others_answer_unless_nobody_else_came_for_long() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        assert_eq!([1; 3].map(|at| call(&mut circuits, "a", at, &lost(), now)), [false, false, true]);
        let stages = [vec![0, 1]];
        let once = Among { is_repeatable: false, ..among(&stages, None) };
        assert_eq!(taken(&mut circuits, 5, &once, now + 6 * S), [0; 5]);
        assert_eq!(taken(&mut circuits, 1, &once, now + 66 * S), [1]);
        assert!(circuits.sweep(now + 66 * S), "and what nobody tries is forgotten");
        assert!(circuits.open(|_| None, now + 66 * S).is_empty());
    }

    #[test]
    fn when_all_addresses_are_left_alone_calls_are_refused_until_the_first_is_tried() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        for at in [0, 0, 0, 1, 1, 1] {
            call(&mut circuits, "a", at, &lost(), now + S * u32::try_from(at).unwrap());
        }
        let Err(CallError::Open { after, .. }) = admit(&mut circuits, "a", &[0, 1], now + 2 * S) else {
            panic!("it is let through")
        };
        assert_eq!(after, 3 * S);
    }

    #[test]
    fn a_tool_that_is_slow_at_one_address_is_called_at_the_others() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        assert_eq!([1; 3].map(|at| call(&mut circuits, "a", at, &slow(), now)), [false, false, true]);
        let shown = circuits.open(|at| ["x", "y"].get(at).copied(), now);
        assert_eq!((shown[0].subject.as_deref(), shown[0].address.as_deref()), (Some("a"), Some("y")));
        assert_eq!(taken(&mut circuits, 20, &among(&[vec![0, 1]], None), now), [0; 20]);
        assert!(admit(&mut circuits, "b", &[1], now).is_ok(), "its other tools may be well");
    }

    #[test]
    fn an_address_where_it_failed_is_asked_again_when_no_other_takes_it() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        assert_eq!([1; 3].map(|at| call(&mut circuits, "a", at, &lost(), now)), [false, false, true]);
        assert_eq!(taken(&mut circuits, 1, &among(&[vec![1], vec![0]], None), now), [0]);
    }

    #[test]
    fn what_answers_nothing_of_use_draws_no_calls() {
        let now = Instant::now();
        let mut circuits = Circuits::new(2);
        let trials = admit(&mut circuits, "a", &[0], now).unwrap();
        circuits.take("a", trials, &Verdict::Works, S, &tuning(), now);
        let trials = admit(&mut circuits, "a", &[1], now).unwrap();
        circuits.take("a", trials, &Verdict::Odd, Duration::ZERO, &tuning(), now);
        let costs = [0, 1].map(|at| circuits.addresses[at].load.cost(now));
        assert!(costs[1] >= costs[0], "{costs:?}");
    }

    #[test]
    fn a_client_that_is_known_by_its_connection_stays_at_its_address() {
        let now = Instant::now();
        let mut circuits = Circuits::new(3);
        let (party, all) = ([7; 32], [vec![0, 1, 2]]);
        let home = taken(&mut circuits, 1, &among(&all, Some(&party)), now)[0];
        assert_eq!(taken(&mut circuits, 20, &among(&all, Some(&party)), now), [home; 20]);
        for _ in 0..3 {
            call(&mut circuits, "a", home, &lost(), now);
        }
        let other = taken(&mut circuits, 1, &among(&all, Some(&party)), now)[0];
        assert!(other != home);
        let there = Among { home: Some(Home { party: &party, known_at: Some(other) }), ..among(&all, None) };
        let later = now + 6 * S;
        assert_eq!(taken(&mut circuits, 20, &there, later), [other; 20], "it is no trial of the first one");
        circuits.close_address(home);
        assert_eq!(taken(&mut circuits, 20, &there, later), [other; 20], "and stays where it is known");
    }

    #[test]
    fn a_tool_that_answers_is_forgotten() {
        let now = Instant::now();
        let mut circuits = Circuits::new(1);
        call(&mut circuits, "a", 0, &slow(), now);
        assert_eq!(circuits.addresses[0].tools.len(), 1);
        call(&mut circuits, "a", 0, &Verdict::Works, now + S);
        assert_eq!(circuits.addresses[0].tools.len(), 1, "what failed a moment ago still counts");
        call(&mut circuits, "a", 0, &Verdict::Works, now + 12 * S);
        assert!(circuits.addresses[0].tools.is_empty());
    }

    #[test]
    fn half_of_the_calls_of_a_tool_open_its_circuit_too() {
        let now = Instant::now();
        let mut circuits = Circuits::new(1);
        let opened = (0..20).any(|_| {
            call(&mut circuits, "a", 0, &Verdict::Works, now);
            call(&mut circuits, "a", 0, &slow(), now)
        });
        assert!(opened);
    }

    #[test]
    fn the_circuit_of_a_tool_that_nobody_asks_for_is_forgotten() {
        let now = Instant::now();
        let mut circuits = Circuits::new(1);
        for _ in 0..3 {
            call(&mut circuits, "a", 0, &slow(), now);
        }
        assert!(!circuits.sweep(now + 60 * S) && circuits.sweep(now + 65 * S) && circuits.open(|_| None, now).is_empty());
    }

    #[test]
    fn who_gives_a_call_no_time_opens_no_circuit_for_others() {
        assert_eq!(verdict(&Err(CallError::Impatient(1))), Verdict::Odd);
        assert!(matches!(verdict(&Err(CallError::Timeout(1))), Verdict::ToolFails(_)));
        assert_eq!(verdict(&Err(CallError::Interrupted("HTTP 413".into()))), Verdict::Odd);
        assert_eq!(verdict(&Err(CallError::Refused(-32_603, "no".into(), Box::default()))), Verdict::Works);
        assert_eq!(verdict(&Err(CallError::Shed)), Verdict::Nothing);
    }
}
