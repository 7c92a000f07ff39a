//! Tasks over HTTP: how long one takes, and how many go through.

use crate::Scale;
use crate::fleet::{Agent, claim, complete, task};
use crate::http::{Connection, Credential, text};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use crate::stats::{Spread, percentile};
use anyhow::{Context, bail};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Rounds before the first measured one.
const WARM_UP: usize = 20;
const AGENTS: usize = 64;
const SUBMITTERS: usize = 16;
/// Tasks that one claim request of the throughput figure takes at most.
const CLAIM_MAX: u32 = 4;
const THROUGHPUT: f64 = 1_500.0;
/// A throughput run that takes longer has gone wrong.
const RUN_MAX: Duration = Duration::from_secs(180);

/// Times of one run, in milliseconds.
#[derive(Default)]
struct Steps {
    submit: Vec<f64>,
    claim: Vec<f64>,
    complete: Vec<f64>,
    whole: Vec<f64>,
}

/// Submit, claim, complete: one client, one agent, one connection.
pub(crate) async fn latency(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    let agent = Agent::register(&mut connection, &admin, "bench-agent", 10).await?;
    rounds(&mut connection, &admin, &agent, 0, WARM_UP).await?;
    let (mut runs, mut syncs) = (vec![], vec![]);
    for run in 1..=scale.runs {
        syncs.push(place.syncs()?.median_ms());
        runs.push(rounds(&mut connection, &admin, &agent, run, scale.rounds).await?);
    }
    server.stop()?;

    let of = |steps: fn(&Steps) -> &Vec<f64>, share| runs.iter().map(|r| percentile(steps(r), share)).collect::<Vec<_>>();
    let sync = Spread::of(&syncs).median;
    let floor = format!("3 × fsync = {} ms", number(3.0 * sync));
    let mut section = Section::new("Latency: submit, claim, complete");
    section.add(
        Figure::new("the three together, P50", "ms", &of(|s| &s.whole, 0.5)).goal(Goal::Below(3.0 * sync + 3.0)).limit(&floor),
    );
    section.add(Figure::new("the three together, P99", "ms", &of(|s| &s.whole, 0.99)).limit(&floor));
    let one = format!("fsync = {} ms", number(sync));
    section.add(Figure::new("submit, P50", "ms", &of(|s| &s.submit, 0.5)).limit(&one));
    section.add(Figure::new("claim, P50", "ms", &of(|s| &s.claim, 0.5)).limit(&one));
    section.add(Figure::new("complete, P50", "ms", &of(|s| &s.complete, 0.5)).limit(&one));
    section.note(format!(
        "Goal: 3 × fsync + 3 ms = 3 × {} + 3 = {} ms; fsync measured before each run (overwriting), its median taken.",
        number(sync),
        number(3.0 * sync + 3.0)
    ));
    section.note(format!(
        "{} rounds one after another per run, one keep-alive connection, `wait_ms` 5000; each of the three steps is durable.",
        scale.rounds
    ));
    Ok(section)
}

async fn rounds(
    connection: &mut Connection,
    admin: &Credential,
    agent: &Agent,
    run: usize,
    rounds: usize,
) -> anyhow::Result<Steps> {
    let mut steps = Steps::default();
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1_000.0;
    for round in 0..rounds {
        let body = task(run, round);
        let begun = Instant::now();
        let submitted = connection.post(admin, "/api/v1/tasks", &body).await?.data(201)?;
        let at_submitted = Instant::now();
        let claimed = claim(connection, agent, 1, 5_000).await?;
        let at_claimed = Instant::now();
        let [claimed] = &claimed[..] else { bail!("claimed {} tasks instead of 1 within 5 s", claimed.len()) };
        anyhow::ensure!(text(&submitted, "/id")? == claimed.id, "claimed another task than the submitted one");
        complete(connection, agent, claimed).await?;
        let at_completed = Instant::now();
        steps.submit.push(ms(begun, at_submitted));
        steps.claim.push(ms(at_submitted, at_claimed));
        steps.complete.push(ms(at_claimed, at_completed));
        steps.whole.push(ms(begun, at_completed));
    }
    Ok(steps)
}

/// What the workers of a run know of each other.
struct Progress {
    run: usize,
    wanted: usize,
    submitted: AtomicUsize,
    completed: AtomicUsize,
    finished: OnceLock<Instant>,
}

/// Many agents, many submitters.
pub(crate) async fn throughput(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    let mut agents = vec![];
    for n in 0..AGENTS {
        agents.push(Arc::new(Agent::register(&mut connection, &admin, &format!("bench-agent-{n}"), 4 * CLAIM_MAX).await?));
    }
    one_run(&server, &admin, &agents, 0, AGENTS * 4).await?;
    let (mut rates, mut groups) = (vec![], vec![]);
    for run in 1..=scale.throughput_runs {
        let before = counters(&mut connection, &admin).await?;
        rates.push(one_run(&server, &admin, &agents, run, scale.tasks).await?);
        let after = counters(&mut connection, &admin).await?;
        groups.push((after.events - before.events) / (after.commits - before.commits).max(1.0));
    }
    server.stop()?;
    let sync = place.syncs()?.median_ms();
    let mut section = Section::new("Throughput over HTTP");
    // Without group commit every step would wait for a sync of its own.
    let limit = format!("{} tasks/s with an fsync per step, without groups", number(1_000.0 / (3.0 * sync)));
    section.add(
        Figure::new("tasks submitted, claimed and completed", "tasks/s", &rates).goal(Goal::AtLeast(THROUGHPUT)).limit(limit),
    );
    section.add(Figure::new("events per commit (one fsync each)", "events", &groups));
    section.note(format!(
        "{} runs of {} tasks, after a warm-up: from the first submit to the last completion. {AGENTS} agents, each with its own \
         key and connection (`max` {CLAIM_MAX}, `wait_ms` 1000); {SUBMITTERS} submitters, each request with an Idempotency-Key.",
        scale.throughput_runs,
        number(scale.tasks as f64)
    ));
    section.note("All three steps are durable before they are answered. Every task was completed exactly once (checked).");
    Ok(section)
}

/// Tasks per second of one run.
async fn one_run(server: &Server, admin: &Credential, agents: &[Arc<Agent>], run: usize, tasks: usize) -> anyhow::Result<f64> {
    let progress = Arc::new(Progress {
        run,
        wanted: tasks,
        submitted: AtomicUsize::new(0),
        completed: AtomicUsize::new(0),
        finished: OnceLock::new(),
    });
    let (mut workers, mut submitters) = (JoinSet::new(), JoinSet::new());
    for agent in agents {
        let connection = Connection::open(server.address).await?;
        workers.spawn(work(connection, agent.clone(), progress.clone()));
    }
    let mut connections = vec![];
    for _ in 0..SUBMITTERS {
        connections.push(Connection::open(server.address).await?);
    }
    let begun = Instant::now();
    for connection in connections {
        submitters.spawn(submit(connection, admin.clone(), progress.clone()));
    }
    let ended = tokio::time::timeout(RUN_MAX, async {
        while let Some(joined) = submitters.join_next().await {
            joined??;
        }
        let mut done = BTreeSet::new();
        while let Some(joined) = workers.join_next().await {
            for id in joined?? {
                anyhow::ensure!(!done.contains(&id), "the task {id} was completed by two agents");
                done.insert(id);
            }
        }
        anyhow::Ok(done.len())
    });
    let done = ended
        .await
        .with_context(|| format!("{} of {tasks} tasks were done in {RUN_MAX:?}", progress.completed.load(Ordering::Relaxed)))??;
    anyhow::ensure!(done == tasks, "{done} of {tasks} tasks were completed");
    let finished = progress.finished.get().context("nobody completed the last task")?;
    Ok(tasks as f64 / (*finished - begun).as_secs_f64())
}

async fn submit(mut connection: Connection, admin: Credential, progress: Arc<Progress>) -> anyhow::Result<()> {
    loop {
        let number = progress.submitted.fetch_add(1, Ordering::Relaxed);
        if number >= progress.wanted {
            return Ok(());
        }
        let key = format!("bench-{}-{number}", progress.run);
        connection.post_once(&admin, "/api/v1/tasks", &task(progress.run, number), &key).await?.expect(201)?;
    }
}

/// An agent's loop until all tasks are done; answers which ones it did.
async fn work(mut connection: Connection, agent: Arc<Agent>, progress: Arc<Progress>) -> anyhow::Result<BTreeSet<String>> {
    let mut done = BTreeSet::new();
    while progress.completed.load(Ordering::Relaxed) < progress.wanted {
        for task in claim(&mut connection, &agent, CLAIM_MAX, 1_000).await? {
            complete(&mut connection, &agent, &task).await?;
            // A claim may be handed over twice; its task counts once.
            if done.insert(task.id) && progress.completed.fetch_add(1, Ordering::Relaxed) + 1 == progress.wanted {
                progress.finished.get_or_init(Instant::now);
            }
        }
    }
    Ok(done)
}

/// What the store has written since the server started.
struct Counters {
    commits: f64,
    events: f64,
}

async fn counters(connection: &mut Connection, admin: &Credential) -> anyhow::Result<Counters> {
    let body = connection.get(admin, "/metrics").await?.expect(200)?;
    let page = std::str::from_utf8(&body)?;
    let value = |name: &str| -> anyhow::Result<f64> {
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(found.with_context(|| format!("/metrics has no {name}"))?.trim().parse()?)
    };
    Ok(Counters { commits: value("keiko_store_commits_total")?, events: value("keiko_store_events_total")? })
}
