//! Finding agents among many.

use crate::Scale;
use crate::fleet;
use crate::http::{Connection, Credential};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use crate::stats::percentile;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::task::JoinSet;

/// Connections that register agents.
const REGISTRARS: usize = 32;
const CAPABILITIES: usize = 100;
const TAGS: usize = 50;
const DOMAINS: usize = 40;
/// Words that descriptions are made of, and how many each has.
const WORDS: usize = 200;
const DESCRIPTION_WORDS: usize = 8;
const GOAL: Goal = Goal::Below(2.0);
/// The kinds of requests, in turn.
const KINDS: [&str; 4] = ["capability", "capability, healthy", "two words", "tag"];

/// Times of one run in milliseconds, by kind.
type Times = [Vec<f64>; KINDS.len()];

/// Discovery among many agents.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    // A long lease: the agents are up without a heartbeat every few seconds beside the figures.
    let server = Server::start(folder.path(), &[("KEIKO_AGENT_LEASE", "1h")])?;
    let admin = server.admin().await?;
    let begun = Instant::now();
    register_all(server.address, &admin, scale.registered).await?;
    let registered_in = begun.elapsed();
    let mut connection = Connection::open(server.address).await?;
    for n in 0..KINDS.len() * 25 {
        let found = connection.get(&admin, &query(n)).await?.data(200)?;
        anyhow::ensure!(found.as_array().is_some_and(|f| !f.is_empty()), "nobody was found: {}", query(n));
    }
    let mut runs = vec![];
    for run in 0..scale.runs {
        runs.push(one_run(&mut connection, &admin, run, scale.requests).await?);
    }
    let floor = format!("{} ms for `/health`", number(floor(&mut connection, &admin).await?));
    let resident = server.resident_mib()?;
    server.stop()?;

    let agents = number(scale.registered as f64);
    let mut section = Section::new("Discovery");
    let all = |share| runs.iter().map(|times| percentile(&times.concat(), share)).collect::<Vec<_>>();
    section.add(Figure::new(format!("all kinds mixed, P99, {agents} agents"), "ms", &all(0.99)).goal(GOAL).limit(floor));
    section.add(Figure::new("all kinds mixed, P50", "ms", &all(0.5)));
    for (kind, name) in KINDS.iter().enumerate() {
        let one: Vec<f64> = runs.iter().map(|times| percentile(&times[kind], 0.99)).collect();
        section.add(Figure::new(format!("{name}, P99"), "ms", &one));
    }
    section.note(format!(
        "{} requests per run on one connection, the four kinds in turn, answers of at most 50 agents (the default) read to the \
         end but not parsed.",
        number(scale.requests as f64)
    ));
    section.note(format!(
        "Each agent has 2 of {CAPABILITIES} capabilities with 2 of {TAGS} tags and one of {DOMAINS} domains each, and \
         {DESCRIPTION_WORDS} of {WORDS} words as description; all are up (agent.lease 1h). Registering them with a heartbeat \
         each took {} s over {REGISTRARS} connections; the server held {} MiB at the end.",
        number(registered_in.as_secs_f64()),
        number(resident)
    ));
    Ok(section)
}

async fn one_run(connection: &mut Connection, admin: &Credential, run: usize, requests: usize) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for n in 0..requests {
        let path = query(run * requests + n);
        let begun = Instant::now();
        connection.get(admin, &path).await?.expect(200)?;
        times[n % KINDS.len()].push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times)
}

/// What a request costs that asks for nothing: the P99 in milliseconds.
async fn floor(connection: &mut Connection, admin: &Credential) -> anyhow::Result<f64> {
    const REQUESTS: usize = 500;
    let mut times = vec![];
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        connection.get(admin, "/health").await?.expect(200)?;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(percentile(&times, 0.99))
}

/// Request number `n`: of kind `n % 4`, with arguments that differ from request to request.
fn query(n: usize) -> String {
    let pick = |among: usize, salt: usize| mixed(n / KINDS.len() * 7 + salt) % among;
    let condition = match n % KINDS.len() {
        0 => format!("capability=capability-{}", pick(CAPABILITIES, 1)),
        1 => format!("capability=capability-{}&healthy=true", pick(CAPABILITIES, 2)),
        2 => format!("q=word{}+word{}", pick(WORDS, 3), pick(WORDS, 4)),
        _ => format!("tag=tag-{}", pick(TAGS, 5)),
    };
    format!("/api/v1/discovery?{condition}")
}

async fn register_all(address: SocketAddr, admin: &Credential, agents: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut registrars = JoinSet::new();
    for _ in 0..REGISTRARS {
        registrars.spawn(register(Connection::open(address).await?, admin.clone(), next.clone(), agents));
    }
    while let Some(joined) = registrars.join_next().await {
        joined??;
    }
    Ok(())
}

async fn register(mut connection: Connection, admin: Credential, next: Arc<AtomicUsize>, agents: usize) -> anyhow::Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= agents {
            return Ok(());
        }
        let id = fleet::register(&mut connection, &admin, &profile(number)).await?;
        fleet::report(&mut connection, &admin, &id).await?;
    }
}

/// What agent `n` says of itself.
fn profile(n: usize) -> Value {
    let pick = |among: usize, salt: usize| mixed(n * 31 + salt) % among;
    let description: Vec<String> = (0..DESCRIPTION_WORDS).map(|i| format!("word{}", pick(WORDS, i))).collect();
    // In step with `n`, so that every capability has agents in a small fleet, too; the two always differ.
    let first = n % CAPABILITIES;
    let second = (first + 1 + pick(CAPABILITIES - 1, 10)) % CAPABILITIES;
    let capability = |name: usize, salt: usize| {
        let (tag, other) = ((n + salt) % TAGS, pick(TAGS, salt));
        json!({
            "name": format!("capability-{name}"),
            "description": format!("does {}", description[salt % DESCRIPTION_WORDS]),
            "tags": [format!("tag-{tag}"), format!("tag-{other}")],
            "domains": [format!("domain-{}", pick(DOMAINS, salt + 1))],
        })
    };
    json!({
        "name": format!("agent-{n}"),
        "description": description.join(" "),
        "capabilities": [capability(first, 20), capability(second, 30)],
    })
}

/// A number that looks random and is the same each time (SplitMix64).
fn mixed(n: usize) -> usize {
    let mut z = (n as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 1) as usize
}
