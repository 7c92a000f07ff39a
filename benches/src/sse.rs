//! How soon an event reaches a client that follows the log.

use crate::Scale;
use crate::fleet::{CAPABILITY, task};
use crate::http::{Connection, Credential, text};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use crate::stats::percentile;
use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const GOAL: Goal = Goal::Below(50.0);
/// An event that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events before the first measured one.
const WARM_UP: usize = 20;

/// An event that arrived: its stream, and when.
type Arrival = (String, Instant);

/// Times of one run, in milliseconds.
#[derive(Default)]
struct Times {
    from_answer: Vec<f64>,
    from_request: Vec<f64>,
}

/// Submits tasks and waits for the events of each.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    // A capability must exist; the agent never reports, so the tasks stay where they are.
    let agent = json!({ "name": "bench-agent", "capabilities": [{ "name": CAPABILITY }] });
    crate::fleet::register(&mut connection, &admin, &agent).await?;
    let follower = Connection::open(server.address).await?;
    let body = follower.stream(&admin, "/api/v1/events/stream?type=tasks.task.submitted").await?;
    let (sender, mut arrivals) = unbounded_channel();
    let following = tokio::spawn(follow(body, sender));
    rounds(&mut connection, &admin, &mut arrivals, 0, WARM_UP).await?;
    let mut runs = vec![];
    for run in 1..=scale.runs {
        runs.push(rounds(&mut connection, &admin, &mut arrivals, run, scale.followed).await?);
    }
    following.abort();
    server.stop()?;

    let sync = format!("fsync = {} ms", number(place.syncs()?.median_ms()));
    let of = |times: fn(&Times) -> &Vec<f64>, share| runs.iter().map(|r| percentile(times(r), share)).collect::<Vec<_>>();
    let mut section = Section::new("Event to SSE client");
    section.add(Figure::new("from the answer of the submit, P50", "ms", &of(|t| &t.from_answer, 0.5)));
    section.add(Figure::new("from the answer of the submit, P99", "ms", &of(|t| &t.from_answer, 0.99)).goal(GOAL));
    section.add(Figure::new("from the start of the submit, P50", "ms", &of(|t| &t.from_request, 0.5)).limit(&sync));
    section.add(Figure::new("from the start of the submit, P99", "ms", &of(|t| &t.from_request, 0.99)).goal(GOAL).limit(&sync));
    section.note(format!(
        "{} submits one after another per run, one follower. An event that arrives before the answer counts as \
         0 from the answer.",
        scale.followed
    ));
    section.note("From the start of the submit includes parsing, deciding and the fsync that makes the event durable.");
    Ok(section)
}

async fn rounds(
    connection: &mut Connection,
    admin: &Credential,
    arrivals: &mut UnboundedReceiver<Arrival>,
    run: usize,
    rounds: usize,
) -> anyhow::Result<Times> {
    let mut times = Times::default();
    for round in 0..rounds {
        let body = task(run, round);
        let begun = Instant::now();
        let answer = connection.post(admin, "/api/v1/tasks", &body).await?;
        let answered = Instant::now();
        let made = answer.data(201)?;
        let arrived = arrival(arrivals, text(&made, "/id")?).await?;
        times.from_answer.push(arrived.saturating_duration_since(answered).as_secs_f64() * 1_000.0);
        times.from_request.push((arrived - begun).as_secs_f64() * 1_000.0);
    }
    Ok(times)
}

/// When the event of a stream arrived.
async fn arrival(arrivals: &mut UnboundedReceiver<Arrival>, stream: &str) -> anyhow::Result<Instant> {
    let wanted = async {
        while let Some((found, at)) = arrivals.recv().await {
            if found == stream {
                return Ok(at);
            }
        }
        anyhow::bail!("the event stream ended")
    };
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .with_context(|| format!("the event of {stream} did not arrive in {PATIENCE:?}"))?
}

/// Reads the event stream; tells of each event with the time at which its last byte came.
async fn follow(mut body: Incoming, arrivals: UnboundedSender<Arrival>) -> anyhow::Result<()> {
    let mut unread = Vec::new();
    while let Some(frame) = body.frame().await {
        let at = Instant::now();
        unread.extend_from_slice(frame?.data_ref().map(|data| &data[..]).unwrap_or_default());
        while let Some(end) = unread.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = unread.drain(..end + 2).collect();
            if let Some(stream) = stream_of(std::str::from_utf8(&block)?)? {
                arrivals.send((stream, at))?;
            }
        }
    }
    Ok(())
}

/// The stream of the event in a block of lines; a comment has none.
fn stream_of(block: &str) -> anyhow::Result<Option<String>> {
    let data: Vec<&str> =
        block.lines().filter_map(|line| line.strip_prefix("data:")).map(|d| d.strip_prefix(' ').unwrap_or(d)).collect();
    if data.is_empty() {
        return Ok(None);
    }
    let event: Value = serde_json::from_str(&data.join("\n"))?;
    Ok(Some(text(&event, "/stream")?.to_owned()))
}
