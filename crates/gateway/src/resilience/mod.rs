//! What keeps trouble of one upstream from its callers, and a flood of callers from the upstream: tower layers around
//! [`Upstream`], each with its rules as a pure part of its own.
//!
//! From the outside in: [`retry`] repeats what is safe to repeat, within a budget; [`circuits`] stop calls to what does not
//! answer ([`breaker`]), and of several addresses pick one ([`balance`]); [`bulkhead`] bounds how many calls run and wait, and
//! sheds the least important; [`deadline`] learns how long calls take and lets none take much longer. All are tuned while they
//! run, and what they have seen is kept over a reconnect.

mod balance;
mod breaker;
mod bulkhead;
mod circuits;
mod deadline;
mod layer;
mod retry;

pub(crate) use balance::Tags;
pub use breaker::{Circuit, CircuitState};
pub use deadline::ToolTimes;

use crate::addresses::Addresses;
use crate::mcp::{Ask, CallError, Client, Method, Note, Offers, Outcome};
use crate::upstream::Upstream;
use bulkhead::Gate;
use circuits::Circuits;
use deadline::Latencies;
use layer::AspectLayer;
use retry::Budget;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};

/// What can be set of one upstream, also while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Calls that run at the same time.
    pub calls_max: usize,
    /// Calls that wait for one of these places.
    pub waiting_max: usize,
    /// How often a call is tried that may be repeated; 1 for no repetition.
    pub attempts_max: u32,
    /// Repetitions allowed for each hundred calls.
    pub retry_percent: u32,
    /// Failures in a row that open a circuit.
    pub failures_max: u32,
    /// Part of the calls of the last ten seconds that opens a circuit when it fails.
    pub failure_percent: u32,
    /// How long a circuit is open at first; doubled each time that the trial fails, up to a minute.
    pub open: Duration,
    /// Whether calls are given less time than the limit where they are usually quick.
    pub timeout_is_adaptive: bool,
    /// The least that an adaptive timeout gives.
    pub timeout_min: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            calls_max: 64,
            waiting_max: 256,
            attempts_max: 3,
            retry_percent: 20,
            failures_max: 5,
            failure_percent: 50,
            open: Duration::from_secs(5),
            timeout_is_adaptive: true,
            timeout_min: Duration::from_secs(10),
        }
    }
}

/// How much a call matters when not all can be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Waits behind all others, and is shed first.
    Low,
    /// The usual.
    #[default]
    Normal,
    /// Goes first, and takes the place of others that wait.
    High,
}

/// One call on its way through the layers.
#[derive(Clone)]
pub struct Call {
    /// What is asked.
    pub ask: Ask,
    /// The hash of the tool's listing that was approved: what the server lists now must be the same.
    pub approved: Option<String>,
    /// Who asks.
    pub client: Client,
    /// Where the server's notes go.
    pub notes: Option<mpsc::Sender<Note>>,
    /// How long it may take, all attempts together.
    pub timeout: Duration,
    /// Whether whoever calls wants this time and no other.
    pub timeout_is_wanted: bool,
    /// How much it matters.
    pub priority: Priority,
    /// Whether it may be carried out twice: it only reads, or says that a repetition changes nothing.
    pub is_repeatable: bool,
    /// Which of the server's addresses it goes to; picked on the way.
    address: usize,
    /// Those where it failed.
    tried: Tried,
}

/// Addresses where a call failed: all attempts know of them.
#[derive(Clone, Default)]
struct Tried(Arc<AtomicU64>);

impl Tried {
    fn put(&self, at: usize) {
        self.0.fetch_or(1 << at, Ordering::Relaxed);
    }

    fn has(&self, at: usize) -> bool {
        self.0.load(Ordering::Relaxed) & (1 << at) != 0
    }
}

impl Call {
    /// A usual call, which may not be carried out twice.
    pub fn new(ask: Ask, client: Client, timeout: Duration) -> Self {
        Call {
            ask,
            approved: None,
            client,
            notes: None,
            timeout,
            timeout_is_wanted: false,
            priority: Priority::Normal,
            is_repeatable: false,
            address: 0,
            tried: Tried::default(),
        }
    }

    /// The same for another server.
    pub(crate) fn anew(self) -> Self {
        Call { tried: Tried::default(), ..self }
    }

    /// What its circuit and its times are known by: the tool, or the method.
    fn subject(&self) -> &str {
        if self.ask.method == Method::CallTool { &self.ask.name } else { self.ask.method.as_str() }
    }

    /// Whether it may be carried out after it failed so, here or elsewhere: it never reached the server, or may be repeated. A
    /// call that goes on with an earlier one belongs to the server that has that.
    pub fn is_safe_after(&self, error: &CallError) -> bool {
        let is_lost = matches!(error, CallError::Lost(_) | CallError::Timeout(_));
        self.ask.answers.is_none() && (error.is_unsent() || (is_lost && self.is_repeatable))
    }
}

/// What came of a call.
pub(crate) type Answer = Result<Outcome, CallError>;

/// What the layers of one upstream know.
pub(crate) struct State {
    addresses: Arc<Addresses>,
    tags: Tags,
    /// The most that a call may take.
    call_timeout: Duration,
    tuning: RwLock<Tuning>,
    circuits: Mutex<Circuits>,
    budget: Mutex<Budget>,
    gate: Arc<Gate>,
    latencies: Mutex<Latencies>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    retried: AtomicU64,
    shed: AtomicU64,
    refused: AtomicU64,
}

/// How an upstream has been doing since it is known here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Calls that run.
    pub running: usize,
    /// Calls that wait for a place.
    pub waiting: usize,
    /// Calls that were answered, also with an error of the tool's own.
    pub answered: u64,
    /// Calls that had no usable answer, after all attempts.
    pub failed: u64,
    /// Those among them that took too long.
    pub timed_out: u64,
    /// Attempts after the first.
    pub retried: u64,
    /// Calls that were turned away because too many waited.
    pub shed: u64,
    /// Calls that were refused because a circuit was open.
    pub refused: u64,
    /// Circuits that are not closed.
    pub circuits: Vec<Circuit>,
    /// Its addresses, where it has several.
    pub addresses: Vec<AddressFigures>,
    /// What is known of the time that calls take.
    pub times: Vec<ToolTimes>,
}

/// How one address of an upstream has been doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressFigures {
    /// Where.
    pub url: String,
    /// Whether it is connected to.
    pub is_ready: bool,
    /// Why it is not.
    pub reason: Option<String>,
    /// Calls that it has.
    pub running: usize,
    /// How long calls took there lately; what is long ago counts less and less.
    pub usual: Duration,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub fn new(addresses: Arc<Addresses>, tags: Tags, tuning: Tuning, call_timeout: Duration) -> Self {
        State {
            tags,
            call_timeout,
            tuning: RwLock::new(tuning),
            circuits: Mutex::new(Circuits::new(addresses.urls().len().max(1))),
            addresses,
            budget: Mutex::new(Budget::new(Instant::now())),
            gate: Arc::new(Gate::new(tuning.calls_max, tuning.waiting_max)),
            latencies: Mutex::default(),
            counts: Counts::default(),
        }
    }

    fn tuning(&self) -> Tuning {
        *self.tuning.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the server listed last, also while it is not there.
    pub fn offers(&self) -> Arc<Offers> {
        self.addresses.offers()
    }

    pub fn tune(&self, tuning: Tuning) {
        *self.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        self.gate.resize(tuning.calls_max, tuning.waiting_max);
    }

    /// Whoever answers there now is not the one that had the trouble.
    pub fn is_connected_anew(&self, at: usize) {
        let was_open = locked(&self.circuits).close_address(at);
        if was_open {
            self.tell_circuits();
        }
    }

    /// Forgets what nobody asks for any more.
    pub fn sweep(&self) {
        let is_less = locked(&self.circuits).sweep(Instant::now());
        if is_less {
            self.tell_circuits();
        }
    }

    /// Tells that a circuit opened or closed; which, is read when it is written down.
    pub fn tell_circuits(&self) {
        let addresses = self.addresses.clone();
        tokio::spawn(async move { addresses.tell_circuits().await });
    }

    fn count(&self, answer: &Answer) {
        match answer {
            Ok(_) | Err(CallError::Refused(..) | CallError::Changed | CallError::Gone) => add(&self.counts.answered),
            Err(error) => {
                add(&self.counts.failed);
                match error {
                    CallError::Timeout(_) | CallError::Impatient(_) => add(&self.counts.timed_out),
                    CallError::Shed => add(&self.counts.shed),
                    CallError::Open { .. } => add(&self.counts.refused),
                    _ => {}
                }
            }
        }
    }

    fn circuits(&self) -> Vec<Circuit> {
        locked(&self.circuits).open(|at| self.addresses.url(at), Instant::now())
    }

    fn figures(&self) -> Figures {
        let (running, waiting) = self.gate.counts();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        Figures {
            running,
            waiting,
            answered: read(&counts.answered),
            failed: read(&counts.failed),
            timed_out: read(&counts.timed_out),
            retried: read(&counts.retried),
            shed: read(&counts.shed),
            refused: read(&counts.refused),
            circuits: vec![],
            addresses: vec![],
            times: locked(&self.latencies).times(&self.tuning(), self.call_timeout),
        }
    }
}

/// An upstream behind its layers: a server with one address, or several.
pub(crate) struct Shielded {
    pub upstreams: Arc<[Upstream]>,
    pub state: Arc<State>,
    service: BoxCloneSyncService<Call, Outcome, CallError>,
}

impl Shielded {
    pub fn new(upstreams: Arc<[Upstream]>, state: Arc<State>) -> Self {
        let inside = upstreams.clone();
        let service = service_fn(move |call: Call| {
            let upstreams = inside.clone();
            async move { upstreams[call.address].ask(call).await }
        });
        let service = AspectLayer(deadline::Deadline(state.clone())).layer(service);
        let service = AspectLayer(bulkhead::Bulkhead(state.clone())).layer(service);
        let service = AspectLayer(circuits::Breaking { state: state.clone(), upstreams: upstreams.clone() }).layer(service);
        let service = AspectLayer(retry::Retry(state.clone())).layer(service);
        Shielded { upstreams, state, service: BoxCloneSyncService::new(service) }
    }

    /// Hands a call on, through all layers.
    pub async fn ask(&self, call: Call) -> Answer {
        let answer = self.service.clone().oneshot(call).await;
        self.state.count(&answer);
        answer
    }

    /// What calls are not let through to: circuits that are not closed, and those of several addresses that are not connected.
    pub fn circuits(&self) -> Vec<Circuit> {
        let mut circuits = self.state.circuits();
        for (at, url) in self.state.addresses.urls().iter().enumerate() {
            let is_known = circuits.iter().any(|circuit| circuit.address.as_ref() == Some(url));
            if let (false, Some(reason)) = (is_known, self.upstreams[at].trouble()) {
                let state = CircuitState::Open(Duration::ZERO);
                circuits.push(Circuit { subject: None, address: Some(url.clone()), state, reason });
            }
        }
        circuits
    }

    pub fn figures(&self) -> Figures {
        let addresses = self.state.addresses.urls().iter().zip(&*self.upstreams).enumerate().map(|(at, (url, upstream))| {
            let (running, usual) = locked(&self.state.circuits).load(at, Instant::now());
            AddressFigures { url: url.clone(), is_ready: upstream.is_ready(), reason: upstream.trouble(), running, usual }
        });
        Figures { circuits: self.circuits(), addresses: addresses.collect(), ..self.state.figures() }
    }

    /// Ends it and waits until nothing of it is left.
    pub async fn stop(&self) {
        futures_util::future::join_all(self.upstreams.iter().map(Upstream::stop)).await;
    }
}
