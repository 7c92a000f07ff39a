//! How fast a consumer group hands out events, and takes word of them.

use crate::Scale;
use crate::fleet::{CAPABILITY, register, task};
use crate::http::{Connection, Credential};
use crate::machine::Place;
use crate::report::{Figure, Section, number};
use crate::server::Server;
use crate::stats::percentile;
use anyhow::Context;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Instant;
use tokio::task::JoinSet;

/// Events that are taken, and acknowledged, in one request.
const BATCH: usize = 100;
/// Connections that submit tasks, so that there are events.
const WRITERS: usize = 32;

/// One run of one group.
struct Run {
    per_second: f64,
    fetches_ms: Vec<f64>,
    acks_ms: Vec<f64>,
}

/// Fills a log, then lets one consumer of a new group take and acknowledge all of it, again and again.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    fill(server.address, &admin, scale.tasks).await?;
    let mut connection = Connection::open(server.address).await?;
    let mut section = Section::new("Consumer groups");
    let sync = format!("fsync = {} ms", number(place.syncs()?.median_ms()));
    for mode in ["ordered", "shared"] {
        let mut runs = vec![];
        for n in 0..scale.runs {
            let name = format!("{mode}-{n}");
            let body = json!({ "name": name, "mode": mode, "start": "beginning", "filter": { "type": "tasks.task.submitted" } });
            connection.post(&admin, "/api/v1/consumer-groups", &body).await?.expect(201)?;
            runs.push(consume(&mut connection, &admin, &name, scale.tasks).await?);
        }
        let all: Vec<f64> = runs.iter().map(|run| run.per_second).collect();
        let middle = |times: fn(&Run) -> &Vec<f64>| runs.iter().map(|run| percentile(times(run), 0.5)).collect::<Vec<_>>();
        section.add(Figure::new(format!("{mode}: events delivered and acknowledged"), "/s", &all));
        section.add(Figure::new(format!("{mode}: fetch of {BATCH}, P50"), "ms", &middle(|r| &r.fetches_ms)).limit(&sync));
        section.add(Figure::new(format!("{mode}: ack of {BATCH}, P50"), "ms", &middle(|r| &r.acks_ms)).limit(&sync));
    }
    server.stop()?;
    section.note(format!(
        "{} events, each of a stream of its own; one consumer, batches of {BATCH}, each request durable before its answer.",
        number(scale.tasks as f64)
    ));
    Ok(section)
}

pub(crate) async fn fill(address: SocketAddr, admin: &Credential, tasks: usize) -> anyhow::Result<()> {
    let mut first = Connection::open(address).await?;
    register(&mut first, admin, &json!({ "name": "bench-agent", "capabilities": [{ "name": CAPABILITY }] })).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let admin = admin.clone();
        writers.spawn(async move {
            let mut connection = Connection::open(address).await?;
            for n in (writer..tasks).step_by(WRITERS) {
                connection.post(&admin, "/api/v1/tasks", &task(0, n)).await?.expect(201)?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}

async fn consume(connection: &mut Connection, admin: &Credential, name: &str, events: usize) -> anyhow::Result<Run> {
    let path = |verb: &str| format!("/api/v1/consumer-groups/{name}/actions/{verb}");
    let mut run = Run { per_second: 0.0, fetches_ms: vec![], acks_ms: vec![] };
    let (begun, mut taken) = (Instant::now(), 0);
    loop {
        let asked = Instant::now();
        let answer = connection.post(admin, &path("fetch"), &json!({ "consumer": "bench", "limit": BATCH })).await?;
        run.fetches_ms.push(asked.elapsed().as_secs_f64() * 1_000.0);
        let deliveries = answer.data(200)?;
        let tokens: Vec<&Value> = deliveries.as_array().context("no list")?.iter().map(|d| &d["token"]).collect();
        if tokens.is_empty() {
            break;
        }
        taken += tokens.len();
        let asked = Instant::now();
        connection.post(admin, &path("ack"), &json!({ "tokens": tokens })).await?.expect(200)?;
        run.acks_ms.push(asked.elapsed().as_secs_f64() * 1_000.0);
    }
    anyhow::ensure!(taken == events, "{taken} events were delivered, not {events}");
    run.per_second = taken as f64 / begun.elapsed().as_secs_f64();
    Ok(run)
}
