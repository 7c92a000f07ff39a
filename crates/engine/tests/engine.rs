//! The engine's promises, on a counter as the smallest kind of entity.

use async_trait::async_trait;
use engine::{Context, Engine, Env, Executor, Extras, HandleError, Step, drive, project};
use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Process, Recorded, Rejection, TenantId, Timestamp, UniqueChange, View, ViewRow};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use store::faults::FaultyStore;
use store::memory::MemoryStore;
use store::sqlite::{Directory, SqliteSettings, SqliteStore};
use store::{ScanFilter, Store, StoreError, ViewApply};

const LOG: fn() -> TenantId = || TenantId::from_bytes([1; 16]);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Added {
    amount: i64,
    ballast: String,
}

kernel::events! {
    /// What happened to a counter.
    CounterEvent {
        Added(Added) = "test.counter.added" @ 1,
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    total: i64,
    ballast: String,
}

struct Add {
    amount: i64,
    ballast: usize,
    unique: bool,
}

fn add(amount: i64) -> Add {
    Add { amount, ballast: 0, unique: false }
}

impl Decider for Counter {
    const KIND: &'static str = "counter";
    type State = Counter;
    type Command = Add;
    type Event = CounterEvent;

    fn decide(state: Option<&Counter>, command: &Add, _: &Facts) -> Result<Vec<CounterEvent>, Rejection> {
        let total = state.map_or(0, |s| s.total) + command.amount;
        if total < 0 {
            return Err(Rejection::new(Kind::Refused, "BELOW_ZERO", "no", "no"));
        }
        if command.amount == 0 {
            return Ok(vec![]);
        }
        let ballast = if command.unique { "unique".into() } else { "x".repeat(command.ballast) };
        Ok(vec![CounterEvent::Added(Added { amount: command.amount, ballast })])
    }

    fn evolve(state: Option<Counter>, event: &CounterEvent, _: &Meta) -> Option<Counter> {
        let CounterEvent::Added(added) = event;
        let state = state.unwrap_or_default();
        Some(Counter { total: state.total + added.amount, ballast: added.ballast.clone() })
    }

    fn is_terminal(_: &Counter) -> bool {
        false
    }

    fn index(_: &Counter) -> Vec<IndexField> {
        vec![]
    }

    fn unique(_: Option<&Counter>, event: &CounterEvent) -> Vec<UniqueChange> {
        let CounterEvent::Added(added) = event;
        if added.ballast == "unique" { vec![UniqueChange::Take("the one".into())] } else { vec![] }
    }
}

async fn handle(engine: &Engine, stream: &str, command: Add) -> Result<i64, HandleError> {
    let step = Step::on::<Counter>(stream, command);
    engine.handle::<Counter>(LOG(), step, &Context::system("test"), Extras::default()).await.map(|h| h.state.total)
}

fn on_memory() -> Engine {
    Engine::new(Arc::new(MemoryStore::new()), Env::system())
}

fn on_sqlite(home: &tempfile::TempDir) -> (Engine, Arc<SqliteStore>) {
    let directory = Directory::open(home.path()).unwrap();
    let store = Arc::new(SqliteStore::open(directory, &SqliteSettings { disk_free_min_bytes: 0 }).unwrap());
    (Engine::new(store.clone(), Env::system()), store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_one_stream_are_decided_in_turn_and_acknowledged_together() {
    let home = tempfile::TempDir::new().unwrap();
    let (engine, store) = on_sqlite(&home);
    let tasks: Vec<_> = (0..300)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { handle(&engine, "counter_hot", add(1)).await.unwrap() })
        })
        .collect();
    let mut totals = vec![];
    for task in tasks {
        totals.push(task.await.unwrap());
    }
    totals.sort_unstable();
    assert!(totals.into_iter().eq(1..=300), "each command saw the one before it");
    let commits = store.health().commits;
    assert!(commits < 150, "{commits} commits for 300 commands on one stream");
}

#[tokio::test]
async fn a_refusal_changes_nothing_and_no_events_mean_it_is_so_already() {
    let engine = on_memory();
    assert_eq!(handle(&engine, "counter_a", add(2)).await.unwrap(), 2);
    let refused = handle(&engine, "counter_a", add(-3)).await.unwrap_err();
    assert!(matches!(refused, HandleError::Rejected(r) if r.code == "BELOW_ZERO"));
    assert_eq!(handle(&engine, "counter_a", add(0)).await.unwrap(), 2);
    assert_eq!(*engine.store().tail(LOG()).borrow(), 1);
}

#[tokio::test]
async fn several_streams_change_together_or_not_at_all() {
    let engine = on_memory();
    let transact = async |a: i64, b: i64| {
        let steps = [Step::on::<Counter>("counter_b", add(b)), Step::on::<Counter>("counter_a", add(a))];
        engine.transact(LOG(), &steps, &Context::system("test"), Extras::default()).await
    };
    assert_eq!(transact(5, 1).await.unwrap(), 2);
    assert!(transact(-2, -2).await.is_err());
    assert_eq!(handle(&engine, "counter_a", add(0)).await.unwrap(), 5);
    assert_eq!(handle(&engine, "counter_b", add(0)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_change_that_would_wait_for_itself_is_refused() {
    let engine = on_memory();
    let steps = [Step::on::<Counter>("counter_a", add(1)), Step::on::<Counter>("counter_a", add(2))];
    let refused = engine.transact(LOG(), &steps, &Context::system("test"), Extras::default()).await.unwrap_err();
    assert!(matches!(refused, HandleError::Rejected(rejection) if rejection.code == "INTERNAL"));
    assert_eq!(handle(&engine, "counter_a", add(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_conditional_command_meets_its_version_or_is_refused() {
    let engine = on_memory();
    handle(&engine, "counter_a", add(1)).await.unwrap();
    let at = async |version| {
        let context = Context { if_match: Some(version), ..Context::system("test") };
        engine.handle::<Counter>(LOG(), Step::on::<Counter>("counter_a", add(1)), &context, Extras::default()).await
    };
    assert_eq!(at(1).await.unwrap().version, 2);
    assert!(matches!(at(1).await, Err(HandleError::Rejected(r)) if r.code == "VERSION_CONFLICT"));
}

#[tokio::test]
async fn a_taken_key_is_refused_and_the_stream_goes_on_from_what_is_stored() {
    let engine = on_memory();
    let unique = |amount| Add { unique: true, ..add(amount) };
    handle(&engine, "counter_a", unique(1)).await.unwrap();
    assert!(matches!(handle(&engine, "counter_b", unique(7)).await, Err(HandleError::Store(StoreError::Taken { .. }))));
    assert_eq!(handle(&engine, "counter_b", add(1)).await.unwrap(), 1, "the refused change left no trace in memory");
}

#[tokio::test]
async fn an_answer_that_is_lost_leaves_no_wrong_state_behind() {
    for (before, after) in [(1_000, 0), (0, 1_000)] {
        let store = Arc::new(FaultyStore::new(MemoryStore::new(), 1, 0, 0));
        let engine = Engine::new(store.clone(), Env::system());
        handle(&engine, "counter_a", add(1)).await.unwrap();
        store.set(before, after);
        assert!(matches!(handle(&engine, "counter_a", add(10)).await, Err(HandleError::Store(StoreError::Unknown(_)))));
        store.set(0, 0);
        let expected = if after > 0 { 111 } else { 101 };
        assert_eq!(handle(&engine, "counter_a", add(100)).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_large_state_is_stored_now_and_then_and_read_whole_each_time() {
    let home = tempfile::TempDir::new().unwrap();
    let (engine, store) = on_sqlite(&home);
    let large = || Add { ballast: 20_000, ..add(1) };
    for _ in 0..60 {
        handle(&engine, "counter_big", large()).await.unwrap();
    }
    let row = store.entity(LOG(), "counter_big").await.unwrap().unwrap();
    assert_eq!((row.version, row.state_version), (60, 50));
    // A new engine has nothing in memory: it folds what the stored state lacks.
    let fresh = Engine::new(store.clone(), Env::system());
    assert_eq!(fresh.entity::<Counter>(LOG(), "counter_big").await.unwrap().unwrap().state.total, 60);
    assert_eq!(handle(&fresh, "counter_big", large()).await.unwrap(), 61);
}

#[tokio::test]
async fn a_repeated_request_is_recognised() {
    let engine = on_memory();
    let key = store::IdempotencyKey { key: "k".into(), request_hash: [1; 32] };
    let context = Context { idempotency: Some(key), ..Context::system("test") };
    let once =
        async || engine.handle::<Counter>(LOG(), Step::on::<Counter>("counter_a", add(1)), &context, Extras::default()).await;
    assert_eq!(once().await.unwrap().state.total, 1);
    assert!(matches!(once().await, Err(HandleError::Repeated(known)) if known.stream == "counter_a"));
    assert_eq!(handle(&engine, "counter_a", add(0)).await.unwrap(), 1);
}

/// Sums all counters; the second version doubles.
struct Sum<const VERSION: u32>;

impl<const VERSION: u32> View for Sum<VERSION> {
    const NAME: &'static str = "sum";
    const VERSION: u32 = VERSION;
    type Row = i64;

    fn key(event: &Recorded) -> Option<String> {
        (event.header.stream != "counter_silent").then(|| event.header.stream.clone())
    }

    fn fold(row: Option<i64>, event: &Recorded) -> Option<i64> {
        let CounterEvent::Added(added) = kernel::EventSet::read(event).ok()??;
        Some(row.unwrap_or(0) + added.amount * i64::from(VERSION))
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_view_follows_the_log_and_a_new_version_takes_over_when_it_has_caught_up() {
    let engine = on_memory();
    let first = project::<Sum<1>>(&engine, LOG()).await.unwrap();
    for n in 1..=5 {
        handle(&engine, "counter_a", add(n)).await.unwrap();
    }
    let rows = eventually("the first version is at 5", async || {
        let (rows, position) = first.list("", 10).await.unwrap();
        (position == 5).then_some(rows)
    })
    .await;
    assert_eq!(rows, [("counter_a".to_owned(), 15)]);
    engine.env().shut_down().await;

    let again = Engine::new(engine.store().clone(), Env::system());
    let second = project::<Sum<2>>(&again, LOG()).await.unwrap();
    let rows = eventually("the second version is at 5", async || {
        let (rows, _) = second.list("", 10).await.unwrap();
        (rows == [("counter_a".to_owned(), 30)]).then_some(rows)
    })
    .await;
    assert_eq!(rows.len(), 1);
    let states = again.store().view_state(LOG(), "sum").await.unwrap();
    assert_eq!(states.iter().map(|s| (s.version, s.is_active)).collect::<Vec<_>>(), [(2, true)], "the old version is gone");
}

#[tokio::test]
async fn a_rebuild_takes_over_when_it_has_caught_up_and_the_view_in_use_goes_on_meanwhile() {
    let engine = on_memory();
    let view = project::<Sum<1>>(&engine, LOG()).await.unwrap();
    for n in 1..=3 {
        handle(&engine, "counter_a", add(n)).await.unwrap();
    }
    eventually("the view is at 3", async || (view.position() == 3).then_some(())).await;
    // Rows that are wrong, as after a mistake that was mended since.
    let wrong = ViewRow { key: "counter_a".into(), row: b"999".to_vec() };
    let spoiled = ViewApply { view: "sum".into(), version: 1, expected: 3, position: 3, rows: vec![Ok(wrong)], activate: false };
    engine.store().apply(LOG(), spoiled).await.unwrap();
    assert_eq!(view.list("", 10).await.unwrap().0, [("counter_a".to_owned(), 999)]);
    // Several that ask get one rebuild each, or share one.
    let (one, other) = tokio::join!(view.rebuild(), view.rebuild());
    assert_eq!((one, other), (Some(3), Some(3)));
    assert_eq!(view.list("", 10).await.unwrap().0, [("counter_a".to_owned(), 6)]);
    let states = engine.store().view_state(LOG(), "sum").await.unwrap();
    assert!(states.len() == 1 && states[0].is_active && states[0].version > 1 << 16, "the old rows are gone: {states:?}");
    handle(&engine, "counter_a", add(4)).await.unwrap();
    eventually("the view follows", async || (view.list("", 10).await.unwrap().0[0].1 == 10).then_some(())).await;
    // After a restart the rebuilt one is in use.
    engine.env().shut_down().await;
    let again = Engine::new(engine.store().clone(), Env::system());
    let view = project::<Sum<1>>(&again, LOG()).await.unwrap();
    assert_eq!(view.list("", 10).await.unwrap(), (vec![("counter_a".to_owned(), 10)], 4));
}

#[tokio::test]
async fn a_rebuild_that_was_cut_short_goes_on_after_a_restart() {
    let engine = on_memory();
    for n in 1..=3 {
        handle(&engine, "counter_a", add(n)).await.unwrap();
    }
    let view = project::<Sum<1>>(&engine, LOG()).await.unwrap();
    eventually("the view is at 3", async || (view.position() == 3).then_some(())).await;
    engine.env().shut_down().await;
    let begun =
        |position, rows| ViewApply { view: "sum".into(), version: 1 | 1 << 16, expected: 0, position, rows, activate: false };
    let row = ViewRow { key: "counter_a".into(), row: b"1".to_vec() };
    engine.store().apply(LOG(), begun(1, vec![Ok(row)])).await.unwrap();
    let again = Engine::new(engine.store().clone(), Env::system());
    let view = project::<Sum<1>>(&again, LOG()).await.unwrap();
    assert_eq!(view.list("", 10).await.unwrap().0, [("counter_a".to_owned(), 6)], "the one in use serves at once");
    eventually("the other has taken over", async || {
        let states = again.store().view_state(LOG(), "sum").await.unwrap();
        (states.len() == 1 && states[0].version == 1 | 1 << 16).then_some(())
    })
    .await;
    assert_eq!(view.list("", 10).await.unwrap().0, [("counter_a".to_owned(), 6)]);
}

#[tokio::test]
async fn events_without_rows_move_a_view_in_memory_only() {
    let engine = on_memory();
    let view = project::<Sum<1>>(&engine, LOG()).await.unwrap();
    for n in 1..=20 {
        handle(&engine, "counter_silent", add(1)).await.unwrap();
        eventually("the view has seen it", async || (view.position() == n).then_some(())).await;
    }
    assert_eq!(engine.store().view_state(LOG(), "sum").await.unwrap()[0].position, 1, "stored when it was first caught up");
}

/// Answers every event of counter a by a command on counter b, and adds one more when its timer is due.
struct Echo {
    pending: Vec<u64>,
    due: Option<Timestamp>,
}

impl Process for Echo {
    const NAME: &'static str = "echo";
    type Signal = ();
    type Command = u64;

    fn react(&mut self, event: &Recorded, now: Timestamp) {
        if event.header.stream == "counter_a" {
            self.pending.push(event.header.position);
            self.due = Some(now.plus_ms(30));
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, now: Timestamp, _: u64) -> Vec<u64> {
        let is_due = self.due.is_some_and(|at| at <= now);
        if is_due {
            self.due = None;
        }
        self.pending.drain(..).chain(is_due.then_some(1_000)).collect()
    }

    fn due(&self) -> Option<Timestamp> {
        self.due
    }
}

struct Adder(Engine);

#[async_trait]
impl Executor<Echo> for Adder {
    async fn execute(&self, amount: u64) -> Option<()> {
        handle(&self.0, "counter_b", add(amount as i64)).await.unwrap();
        None
    }
}

#[tokio::test]
async fn a_process_turns_events_and_timers_into_commands() {
    let engine = on_memory();
    drive(&engine, LOG(), Echo { pending: vec![], due: None }, 0, Arc::new(Adder(engine.clone())));
    handle(&engine, "counter_a", add(1)).await.unwrap();
    eventually("the event and the timer were answered", async || {
        let total = engine.entity::<Counter>(LOG(), "counter_b").await.unwrap()?.state.total;
        (total == 1_001).then_some(())
    })
    .await;
    let all = engine.store().scan(LOG(), 0, ScanFilter::default(), 10).await.unwrap().events;
    assert_eq!(all.len(), 3);
    engine.env().shut_down().await;
}
