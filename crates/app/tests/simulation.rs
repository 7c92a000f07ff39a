//! The simulator: the real rules, engine and application on the memory store, behind a store that fails on purpose, on a
//! paused clock. A seed gives the same run each time; what must always hold is checked on the history.

use app::{App, AppSettings, Caller, ClaimOrder, Ground, KeyMaterial, NewMandate, NewTask, TaskOutcome, TaskView};
use domain::agent::{Capability, Profile};
use domain::policy::Reach;
use domain::task::{Collision, Outcome, Task, TaskError};
use engine::{Engine, Env};
use gateway::{Gateway, GatewaySettings};
use kernel::id::{AgentId, TaskId, TenantId};
use kernel::{Actor, Decider, Json, Kind, Origin, Recorded, Rejection, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use store::faults::FaultyStore;
use store::journal::MemoryJournal;
use store::memory::MemoryStore;
use store::{ScanFilter, Store};

/// Seeds that CI tries; `KEIKO_SIMULATION_SEEDS` tries more.
const SEEDS: u64 = 20;
const TASKS: usize = 24;
const AGENTS: usize = 4;
const PASSWORD: &str = "correct horse battery";

/// Keys are made by the system's randomness, and the public ones stand in the log: every run has the same.
static KEYS: LazyLock<KeyMaterial> =
    LazyLock::new(|| KeyMaterial::generate(&Env::simulated(Timestamp(1_767_225_600_000), 0)).unwrap());

fn caller(actor: Actor, idempotency: Option<String>) -> Caller {
    Caller {
        actor,
        reach: Reach::All,
        origin: Origin::default(),
        correlation: String::new(),
        trace_parent: None,
        idempotency: idempotency.map(|key| (key, [0; 32])),
        if_match: None,
        at: None,
    }
}

/// No MCP servers, and a journal in memory.
fn ground(engine: Engine) -> Ground {
    let (gateway, reports) = Gateway::new(GatewaySettings::default());
    Ground { engine, journal: Arc::new(MemoryJournal::default()), gateway, reports, postbox: None, membership: None }
}

/// Submits again with the same key while the outcome is not known, as a client would.
async fn submit(app: &App, by: &Caller, new: NewTask) -> Result<TaskView, Rejection> {
    loop {
        match app.submit(by, new.clone()).await {
            Err(rejection) if rejection.kind == Kind::Unavailable => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other,
        }
    }
}

fn profile(name: &str) -> Profile {
    Profile {
        name: name.into(),
        agent_type: "simulated".into(),
        description: String::new(),
        capabilities: vec![Capability {
            name: "work".into(),
            version: "1".into(),
            description: String::new(),
            input_schema: None,
            output_schema: None,
            domains: vec![],
            tags: vec![],
        }],
        max_concurrency: 2,
        cost_per_task: 0.0,
        labels: BTreeMap::new(),
    }
}

fn task(number: usize, collision: Collision) -> NewTask {
    NewTask {
        // Three tasks share a hash each.
        description: format!("work {}", number / 3),
        capability: "work".into(),
        input: Json::empty_object(),
        context: Json::empty_object(),
        priority: None,
        delay_ms: None,
        deadline: None,
        max_attempts: Some(20),
        queue: None,
        collision: Some(collision),
        agent: None,
        conversation: None,
        message: None,
    }
}

/// One agent: claims, works for a while, and completes, fails, forgets or comes too late.
async fn work(app: App, actor: Actor, env: Env) {
    loop {
        let order = ClaimOrder { max: 2, wait_ms: 5_000 };
        let claimed = match app.claim(&caller(actor.clone(), None), order).await {
            Ok((claimed, _)) => claimed,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        for task in claimed {
            let id: TaskId = task.task.entity.stream.parse().unwrap();
            let token = task.token.to_string();
            let fate = env.random() % 100;
            let pause_ms = if fate >= 92 { 45_000 } else { env.random() % 400 };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let outcome = match fate {
                0..80 => TaskOutcome::Complete(Outcome {
                    output: Json::of(&serde_json::json!({ "by": actor.who.id })).unwrap(),
                    learned_patterns: vec![],
                    metrics: Json::empty_object(),
                }),
                80..86 => {
                    TaskOutcome::Fail { error: TaskError { code: "E".into(), message: "simulated".into() }, is_retryable: true }
                }
                86..90 => TaskOutcome::Release { reason: "not now".into() },
                // It forgets the task, or comes back after its claim expired.
                90..92 => continue,
                _ => TaskOutcome::Complete(Outcome {
                    output: Json::empty_object(),
                    learned_patterns: vec![],
                    metrics: Json::empty_object(),
                }),
            };
            // A stale claim is refused; that is part of the run.
            while let Err(rejection) = app.report(&caller(actor.clone(), None), id, &token, outcome.clone()).await {
                if rejection.kind != Kind::Unavailable {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// A whole run; answers its history.
async fn run(seed: u64) -> Vec<Arc<Recorded>> {
    let env = Env::simulated(Timestamp(1_767_225_600_000), seed);
    let memory = Arc::new(FaultyStore::new(MemoryStore::new(), seed, 0, 0));
    let engine = Engine::new(memory.clone(), env.clone());
    let (app, _) = App::start(ground(engine), &KEYS, AppSettings::default(), Some(PASSWORD.into())).await.unwrap();
    let context = App::anonymous(Origin::default(), String::new());
    let tokens = app.login(None, "admin", PASSWORD, None, context).await.unwrap();
    let admin = app.authenticate_bearer(&tokens.access_token, app::Resource::Api).await.unwrap();
    let mut workers = vec![];
    for n in 0..AGENTS {
        let by = caller(admin.clone(), None);
        let agent = app.register_agent(&by, profile(&format!("agent-{n}")), NewMandate::default()).await.unwrap();
        let (_, key) = app.issue_agent_key(&by, &agent).await.unwrap();
        workers.push(app.authenticate_key(&key).await.unwrap());
    }
    memory.set(30, 30);
    let running: Vec<_> = workers.into_iter().map(|actor| tokio::spawn(work(app.clone(), actor, env.clone()))).collect();
    let mut submitted = BTreeSet::new();
    for n in 0..TASKS {
        let collision = if n % 2 == 0 { Collision::Strict } else { Collision::Lru };
        let by = caller(admin.clone(), Some(format!("task-{n}")));
        match submit(&app, &by, task(n, collision)).await {
            Ok(view) => drop(submitted.insert(view.entity.stream.clone())),
            Err(rejection) => assert_eq!(rejection.code, "NO_ELIGIBLE_AGENT"),
        }
        tokio::time::sleep(Duration::from_millis(env.random() % 300)).await;
    }
    wait_until_ended(&app, &admin, &submitted).await;
    running.iter().for_each(tokio::task::JoinHandle::abort);
    history(memory.as_ref(), admin.tenant).await
}

/// Waits until every task has ended, or waits visibly: a strict one that nobody tried, whose hash every agent handled.
async fn wait_until_ended(app: &App, admin: &Actor, submitted: &BTreeSet<String>) {
    let mut open = vec![];
    for _ in 0..3_600 {
        let mut tasks = vec![];
        for id in submitted {
            tasks.push(app.task(&caller(admin.clone(), None), id.parse().unwrap()).await.unwrap().entity.state);
        }
        let handled: BTreeSet<(String, AgentId)> =
            tasks.iter().flat_map(|t| t.handled.iter().map(|a| (t.submitted.task_hash.clone(), *a))).collect();
        let is_waiting = |task: &Task| {
            let by = handled.iter().filter(|(hash, _)| *hash == task.submitted.task_hash).count();
            task.submitted.collision == Collision::Strict && task.handled.is_empty() && by == AGENTS
        };
        open = tasks.into_iter().filter(|task| !Task::is_terminal(task) && !is_waiting(task)).collect();
        if open.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("after an hour of simulated time these tasks are still open: {open:#?}");
}

async fn history(store: &dyn Store, log: TenantId) -> Vec<Arc<Recorded>> {
    store.scan(log, 0, ScanFilter::default(), usize::MAX / 2).await.unwrap().events
}

/// What must hold in every history.
fn check(seed: u64, events: &[Arc<Recorded>]) {
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    let mut completed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut holder: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    let mut strict: BTreeMap<&str, String> = BTreeMap::new();
    let mut handled: BTreeSet<(String, String)> = BTreeSet::new();
    for (n, event) in events.iter().enumerate() {
        let h = &event.header;
        assert!(event.is_intact(), "seed {seed}: position {}", h.position);
        assert_eq!(h.position, n as u64 + 1, "seed {seed}: positions have a gap");
        let version = versions.entry(&h.stream).or_default();
        *version += 1;
        assert_eq!(h.version, *version, "seed {seed}: {} skips a version", h.stream);
        let data: serde_json::Value = serde_json::from_str(event.parts().unwrap().unwrap().data.get()).unwrap();
        let text = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
        match h.kind.as_str() {
            "tasks.task.submitted" if data["collision"] == "strict" => drop(strict.insert(&h.stream, text("task_hash"))),
            "tasks.task.claimed" => {
                let (agent, before) = (text("agent_id"), holder.get(h.stream.as_str()).map_or(0, |(_, token)| *token));
                assert!(h.version > before, "seed {seed}: tokens must rise");
                if let Some(hash) = strict.get(h.stream.as_str()) {
                    assert!(
                        !handled.contains(&(hash.clone(), agent.clone())),
                        "seed {seed}: {agent} got {hash} again under strict"
                    );
                }
                holder.insert(&h.stream, (agent, h.version));
            }
            "tasks.task.completed" => {
                let (agent, _) = holder.get(h.stream.as_str()).expect("completed only when claimed");
                assert_eq!(*agent, text("agent_id"), "seed {seed}: somebody else completed {}", h.stream);
                *completed.entry(&h.stream).or_default() += 1;
                handled.insert((text("task_hash"), text("agent_id")));
            }
            "tasks.task.attempt_failed" | "tasks.task.claim_expired" => {
                handled.insert((text("task_hash"), text("agent_id")));
            }
            _ => {}
        }
    }
    assert!(completed.values().all(|n| *n == 1), "seed {seed}: a task was completed twice");
    assert!(completed.len() >= TASKS / 2, "seed {seed}: only {} tasks were completed", completed.len());
    let agents: BTreeSet<&String> = handled.iter().map(|(_, agent)| agent).collect();
    assert!(agents.iter().all(|a| a.parse::<AgentId>().is_ok()) && agents.len() > 1, "seed {seed}: work was shared");
}

fn simulate(seed: u64) -> Vec<Arc<Recorded>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed))
}

#[test]
fn the_same_seed_gives_the_same_history_byte_for_byte() {
    let (once, again) = (simulate(7), simulate(7));
    assert_eq!(once.len(), again.len());
    for (a, b) in once.iter().zip(&again) {
        assert_eq!(a, b);
    }
    assert_ne!(format!("{once:?}"), format!("{:?}", simulate(8)));
}

#[test]
fn whatever_fails_nothing_is_lost_doubled_or_given_to_the_wrong_agent() {
    let seeds = std::env::var("KEIKO_SIMULATION_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let mut events = 0;
    for seed in 0..seeds {
        let history = simulate(seed);
        check(seed, &history);
        events += history.len();
    }
    println!("{seeds} seeds, {events} events");
}
