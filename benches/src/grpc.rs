//! Tasks over gRPC: many agents, each with one stream, and submitters.

use crate::Scale;
use crate::fleet::{Agent, CAPABILITY};
use crate::http::{Connection, Credential};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use anyhow::Context;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};
use v1::worker_client::WorkerClient;
use v1::{Complete, SubmitRequest, Want, WorkRequest, work_request, work_response};

/// Generated from `proto/`; held against it by the edge's test.
#[expect(clippy::allow_attributes_without_reason, reason = "generated, and not all of it is measured")]
mod v1 {
    include!("generated/keiko.worker.v1.rs");
}

const AGENTS: usize = 64;
const SUBMITTERS: usize = 64;
/// Tasks that an agent holds at a time.
const WANTED: u32 = 8;
const THROUGHPUT: f64 = 2_000.0;
/// A run that takes longer has gone wrong.
const RUN_MAX: Duration = Duration::from_secs(180);

/// Submit, claim and complete, all over gRPC.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let listen = free_address()?;
    let server = Server::start(folder.path(), &[("KEIKO_GRPC_LISTEN", &listen.to_string())])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    let mut agents = vec![];
    for n in 0..AGENTS {
        agents.push(Arc::new(Agent::register(&mut connection, &admin, &format!("bench-agent-{n}"), WANTED).await?));
    }
    one_run(listen, &admin, &agents, 0, AGENTS * 4).await?;
    let mut rates = vec![];
    for run in 1..=scale.throughput_runs {
        rates.push(one_run(listen, &admin, &agents, run, scale.tasks).await?);
    }
    server.stop()?;
    let sync = place.syncs()?.median_ms();
    let mut section = Section::new("Throughput over gRPC");
    let limit = format!("{} tasks/s with an fsync per step, without groups", number(1_000.0 / (3.0 * sync)));
    section.add(
        Figure::new("tasks submitted, claimed and completed", "tasks/s", &rates).goal(Goal::AtLeast(THROUGHPUT)).limit(limit),
    );
    section.note(format!(
        "{} runs of {} tasks, after a warm-up: from the first submit to the last answered completion. {AGENTS} agents, each with \
         its own key, connection and stream, holding at most {WANTED} tasks; {SUBMITTERS} submits at a time over 4 connections.",
        scale.throughput_runs,
        number(scale.tasks as f64)
    ));
    Ok(section)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn connect(listen: SocketAddr) -> anyhow::Result<Channel> {
    Ok(Endpoint::from_shared(format!("http://{listen}"))?.tcp_nodelay(true).connect().await?)
}

fn signed<T>(message: T, credential: &Credential) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    if let Some((name, value)) = credential.header() {
        let headers = request.metadata_mut().as_mut();
        headers.insert(name.clone(), value.clone());
    }
    Ok(request)
}

async fn one_run(listen: SocketAddr, admin: &Credential, agents: &[Arc<Agent>], run: usize, tasks: usize) -> anyhow::Result<f64> {
    let (completed, submitted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (mut workers, mut submitters) = (JoinSet::new(), JoinSet::new());
    for agent in agents {
        let channel = connect(listen).await?;
        workers.spawn(work(channel, agent.clone(), completed.clone(), tasks));
    }
    let mut channels = vec![];
    for _ in 0..4 {
        channels.push(connect(listen).await?);
    }
    let begun = Instant::now();
    for n in 0..SUBMITTERS {
        submitters.spawn(submit(channels[n % channels.len()].clone(), admin.clone(), submitted.clone(), run, tasks));
    }
    let ended = tokio::time::timeout(RUN_MAX, async {
        while let Some(joined) = submitters.join_next().await {
            joined??;
        }
        let mut done = BTreeSet::new();
        while let Some(joined) = workers.join_next().await {
            for id in joined?? {
                anyhow::ensure!(done.insert(id), "a task was completed by two agents");
            }
        }
        anyhow::Ok(done.len())
    });
    let done = ended
        .await
        .with_context(|| format!("{} of {tasks} tasks were done in {RUN_MAX:?}", completed.load(Ordering::Relaxed)))??;
    anyhow::ensure!(done == tasks, "{done} of {tasks} tasks were completed");
    Ok(tasks as f64 / begun.elapsed().as_secs_f64())
}

async fn submit(
    channel: Channel,
    admin: Credential,
    submitted: Arc<AtomicUsize>,
    run: usize,
    tasks: usize,
) -> anyhow::Result<()> {
    let mut client = WorkerClient::new(channel);
    loop {
        let number = submitted.fetch_add(1, Ordering::Relaxed);
        if number >= tasks {
            return Ok(());
        }
        let message = SubmitRequest {
            description: format!("bench run {run} task {number}"),
            capability: CAPABILITY.to_owned(),
            input_json: format!("{{\"number\":{number}}}"),
            idempotency_key: format!("bench-{run}-{number}"),
            ..SubmitRequest::default()
        };
        client.submit(signed(message, &admin)?).await?;
    }
}

/// An agent's stream until all tasks are done; answers which ones it did.
async fn work(
    channel: Channel,
    agent: Arc<Agent>,
    completed: Arc<AtomicUsize>,
    tasks: usize,
) -> anyhow::Result<BTreeSet<String>> {
    let (say, said) = mpsc::channel(64);
    let what = work_request::What::Want(Want { tasks: WANTED });
    say.send(WorkRequest { number: 0, what: Some(what) }).await?;
    let request = signed(ReceiverStream::new(said), &agent.credential)?;
    let mut told = WorkerClient::new(channel).work(request).await?.into_inner();
    let mut done = BTreeSet::new();
    loop {
        let next = tokio::time::timeout(Duration::from_millis(50), told.message()).await;
        match next {
            Ok(message) => match message?.and_then(|message| message.what).context("the stream ended")? {
                work_response::What::Assigned(task) => {
                    let complete = Complete { task_id: task.task_id, claim_token: task.claim_token, output_json: String::new() };
                    say.send(WorkRequest { number: 1, what: Some(work_request::What::Complete(complete)) }).await?;
                }
                work_response::What::Done(one) => {
                    if done.insert(one.task_id) {
                        completed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                work_response::What::Refused(refused) => anyhow::bail!("refused: {} {}", refused.code, refused.message),
                work_response::What::Stopping(_) => anyhow::bail!("the server stops"),
            },
            Err(_) if completed.load(Ordering::Relaxed) >= tasks => return Ok(done),
            Err(_) => {}
        }
        if completed.load(Ordering::Relaxed) >= tasks {
            return Ok(done);
        }
    }
}
