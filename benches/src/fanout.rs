//! How soon an event reaches a thousand clients that follow the log, while a thousand events a second happen.
//!
//! The followers ask in HTTP/1.0, so that all of them are sent the very same bytes: one of them is read event by event, of the
//! others only bytes are counted, and what each had at what time follows.

use crate::Scale;
use crate::fleet::{CAPABILITY, task};
use crate::http::{Connection, Credential};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{interval, sleep};

const GOAL: Goal = Goal::Below(100.0);
/// How many are submitted before any is counted: everything is warm then.
const WARM_UP_SHARE: usize = 10;
/// Connections that submit.
const SUBMITTERS: usize = 32;
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the plain sockets are written to: as often as a follower is.
const FLUSH: Duration = Duration::from_millis(20);
const BUFFER: usize = 256 * 1024;
/// Files that both ends of all sockets need, and some.
const FILES: u64 = 4_096;

/// How much is followed.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    /// Followers.
    pub followers: usize,
    /// Events in a second.
    pub rate: usize,
    /// For how long.
    pub seconds: usize,
}

/// One run.
struct Run {
    latencies: Vec<f64>,
    bytes_per_second: f64,
    bytes_per_event: f64,
    lost: usize,
}

/// Follows, submits, and compares with sockets that carry the same bytes and do nothing else.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    raise_files()?;
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let mut connection = Connection::open(server.address).await?;
    let agent = json!({ "name": "bench-agent", "capabilities": [{ "name": CAPABILITY }] });
    crate::fleet::register(&mut connection, &admin, &agent).await?;
    let (mut runs, mut plain, crowd) = (vec![], vec![], scale.crowd);
    for run in 1..=scale.throughput_runs {
        let done = LocalSet::new().run_until(one_run(&server, &admin, crowd, run)).await?;
        ensure!(done.lost == 0, "{} of the events did not reach every follower", done.lost);
        let flushed = (done.bytes_per_event * crowd.rate as f64 * FLUSH.as_secs_f64()) as usize;
        plain.push(LocalSet::new().run_until(plain_sockets(crowd, flushed)).await?);
        runs.push(done);
    }
    let memory = server.resident_mib()?;
    server.stop()?;
    Ok(section(&runs, &plain, crowd, memory))
}

fn section(runs: &[Run], plain: &[Vec<f64>], crowd: Crowd, memory: f64) -> Section {
    use crate::stats::percentile;
    let of = |share| runs.iter().map(|run| percentile(&run.latencies, share)).collect::<Vec<_>>();
    let limit = |share| {
        let runs: Vec<f64> = plain.iter().map(|run| percentile(run, share)).collect();
        format!("plain sockets {} ms", number(crate::stats::Spread::of(&runs).median))
    };
    let rates: Vec<f64> = runs.iter().map(|run| run.bytes_per_second / 1e6).collect();
    let sizes: Vec<f64> = runs.iter().map(|run| run.bytes_per_event).collect();
    let mut section = Section::new("Event to many SSE clients");
    section.add(Figure::new("from the start of the submit, P50", "ms", &of(0.5)).limit(limit(0.5)));
    section.add(Figure::new("from the start of the submit, P99", "ms", &of(0.99)).goal(GOAL).limit(limit(0.99)));
    section.add(Figure::new("from the start of the submit, longest", "ms", &of(1.0)).limit(limit(1.0)));
    section.add(Figure::new("read by all followers together", "MB/s", &rates));
    section.add(Figure::new("an event as it is sent", "bytes", &sizes));
    section.add(Figure::new("the server's memory after the runs", "MiB", &[memory]));
    section.note(format!(
        "{} followers, {} events/s for {} s per run; every follower got every event. Submitting, following and serving share the cores.",
        crowd.followers, crowd.rate, crowd.seconds
    ));
    section.note(
        "Beside it: the same bytes written to as many plain loopback sockets every 20 ms, from the beginning of the round of \
         writes. A follower is written to at most every 20 ms as well, so half of that is waiting by design.",
    );
    section
}

/// What a follower had read by when.
type Progress = Rc<RefCell<Vec<(Instant, usize)>>>;

async fn one_run(server: &Server, admin: &Credential, crowd: Crowd, run: usize) -> anyhow::Result<Run> {
    let mut connection = Connection::open(server.address).await?;
    let answer = connection.get(admin, "/api/v1/agents?limit=1").await?.expect(200)?;
    let begin = position(&answer)?;
    let text = Rc::new(RefCell::new(Vec::new()));
    let mut readers = JoinSet::new();
    let mut progress: Vec<Progress> = vec![];
    for n in 0..crowd.followers {
        let socket = follow(server.address, admin, begin).await?;
        progress.push(Progress::default());
        readers.spawn_local(read(socket, progress[n].clone(), (n == 0).then(|| text.clone()), true));
    }
    let began = Instant::now();
    let submitted = submit(server.address, admin, crowd, run).await?;
    let took = began.elapsed();
    let last = submitted.keys().next_back().copied().unwrap_or_default();
    wait_for(&text, last).await?;
    settle(&progress).await?;
    readers.abort_all();
    let ends = ends(&text.borrow())?;
    let bytes: usize = progress.iter().map(|one| one.borrow().last().map_or(0, |(_, count)| *count)).sum();
    let counted: Vec<(usize, Instant)> =
        submitted.iter().skip(submitted.len() / WARM_UP_SHARE).filter_map(|(at, begun)| Some((*ends.get(at)?, *begun))).collect();
    let mut latencies = Vec::with_capacity(counted.len() * crowd.followers);
    for one in &progress {
        latencies.extend(arrivals(&one.borrow(), &counted));
    }
    Ok(Run {
        lost: counted.len() * crowd.followers - latencies.len()
            + (submitted.len() - submitted.len() / WARM_UP_SHARE - counted.len()),
        latencies,
        bytes_per_second: bytes as f64 / took.as_secs_f64(),
        bytes_per_event: text.borrow().len() as f64 / ends.len().max(1) as f64,
    })
}

/// Milliseconds from the beginning of each event to the read that completed it.
fn arrivals(progress: &[(Instant, usize)], events: &[(usize, Instant)]) -> Vec<f64> {
    let mut reads = progress.iter();
    let mut read = reads.next();
    let mut found = vec![];
    for (end, begun) in events {
        while read.is_some_and(|(_, count)| count < end) {
            read = reads.next();
        }
        let Some((at, _)) = read else { break };
        found.push(at.saturating_duration_since(*begun).as_secs_f64() * 1_000.0);
    }
    found
}

/// Where in the stream each event ends, by position.
fn ends(text: &[u8]) -> anyhow::Result<BTreeMap<u64, usize>> {
    let mut found = BTreeMap::new();
    let mut begin = 0;
    while let Some(length) = text[begin..].windows(2).position(|pair| pair == b"\n\n") {
        let end = begin + length + 2;
        if let Some(position) = position_of(&text[begin..end]) {
            found.insert(position, end);
        }
        begin = end;
    }
    ensure!(!found.is_empty(), "no event came");
    Ok(found)
}

fn position_of(block: &[u8]) -> Option<u64> {
    std::str::from_utf8(block).ok()?.strip_prefix("id: ")?.lines().next()?.parse().ok()
}

fn position(answer: &[u8]) -> anyhow::Result<u64> {
    let answer: Value = serde_json::from_slice(answer)?;
    answer["meta"]["position"].as_u64().context("an answer has no position")
}

async fn follow(address: SocketAddr, admin: &Credential, after: u64) -> anyhow::Result<TcpStream> {
    let (name, value) = admin.header().context("followers are somebody")?;
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /api/v1/events/stream?after={after} HTTP/1.0\r\n{name}: {}\r\n\r\n", value.to_str()?);
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

thread_local! {
    /// One for all readers: they read one after another.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Reads to the end; notes how much was there by when, behind the head of an answer if there is one.
async fn read(socket: TcpStream, progress: Progress, text: Option<Rc<RefCell<Vec<u8>>>>, has_head: bool) -> anyhow::Result<()> {
    let mut count = 0;
    let mut head = has_head.then(Vec::new);
    loop {
        socket.readable().await?;
        let came = READ.with_borrow_mut(|buffer| {
            let size = match socket.try_read(buffer) {
                Ok(0) => bail!("a stream ended"),
                Ok(size) => size,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error.into()),
            };
            let body = behind_head(&mut head, &buffer[..size])?;
            if let Some(text) = &text {
                text.borrow_mut().extend_from_slice(&buffer[size - body..size]);
            }
            Ok(body)
        })?;
        if came > 0 {
            count += came;
            progress.borrow_mut().push((Instant::now(), count));
        }
    }
}

/// How much of what came is behind the head.
fn behind_head(head: &mut Option<Vec<u8>>, came: &[u8]) -> anyhow::Result<usize> {
    let Some(seen) = head else { return Ok(came.len()) };
    seen.extend_from_slice(came);
    let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(0) };
    ensure!(
        seen.starts_with(b"HTTP/1.") && seen[8..].starts_with(b" 200"),
        "no stream: {}",
        String::from_utf8_lossy(&seen[..end])
    );
    let body = seen.len() - end - 4;
    *head = None;
    Ok(body)
}

/// Submits at the wanted rate; when each was begun, by its position.
async fn submit(address: SocketAddr, admin: &Credential, crowd: Crowd, run: usize) -> anyhow::Result<BTreeMap<u64, Instant>> {
    let mut submitters = JoinSet::new();
    let pause = Duration::from_secs_f64(SUBMITTERS as f64 / crowd.rate as f64);
    for submitter in 0..SUBMITTERS {
        let (admin, mut connection) = (admin.clone(), Connection::open(address).await?);
        submitters.spawn_local(async move {
            sleep(pause.mul_f64(submitter as f64 / SUBMITTERS as f64)).await;
            let mut pace = interval(pause);
            let mut found = vec![];
            for number in 0..crowd.rate * crowd.seconds / SUBMITTERS {
                pace.tick().await;
                let begun = Instant::now();
                let body = task(run, number * SUBMITTERS + submitter);
                let answer = connection.post(&admin, "/api/v1/tasks", &body).await?.expect(201)?;
                found.push((position(&answer)?, begun));
            }
            anyhow::Ok(found)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(found) = submitters.join_next().await {
        all.extend(found??);
    }
    Ok(all)
}

/// Until the one that is read event by event has the last one.
async fn wait_for(text: &RefCell<Vec<u8>>, last: u64) -> anyhow::Result<()> {
    let wanted = format!("id: {last}\n");
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let is_there = {
            let text = text.borrow();
            let tail = &text[text.len().saturating_sub(4 * BUFFER)..];
            tail.windows(wanted.len()).any(|part| part == wanted.as_bytes())
        };
        if is_there {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("event {last} did not arrive in {PATIENCE:?}")
}

/// Until everybody has as much as the first.
async fn settle(progress: &[Progress]) -> anyhow::Result<()> {
    let count = |one: &Progress| one.borrow().last().map_or(0, |(_, count)| *count);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        sleep(Duration::from_millis(50)).await;
        let first = count(&progress[0]);
        if progress.iter().all(|one| count(one) == first) {
            return Ok(());
        }
    }
    bail!("not every follower had everything after {PATIENCE:?}")
}

/// The same bytes, at the same pace, over sockets with nothing behind them.
async fn plain_sockets(crowd: Crowd, bytes: usize) -> anyhow::Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut readers = JoinSet::new();
    let (mut progress, mut writers): (Vec<Progress>, Vec<std::net::TcpStream>) = (vec![], vec![]);
    for n in 0..crowd.followers {
        let socket = TcpStream::connect(listener.local_addr()?).await?;
        let writer = listener.accept().await?.0.into_std()?;
        writer.set_nonblocking(false)?;
        writers.push(writer);
        progress.push(Progress::default());
        readers.spawn_local(read(socket, progress[n].clone(), None, false));
    }
    let rounds = crowd.seconds * 1_000 / FLUSH.as_millis() as usize;
    let writing = std::thread::spawn(move || {
        let chunk = vec![b'x'; bytes.max(1)];
        let mut begun = vec![];
        for _ in 0..rounds {
            let now = Instant::now();
            begun.push(now);
            for writer in &mut writers {
                writer.write_all(&chunk)?;
            }
            std::thread::sleep(FLUSH.saturating_sub(now.elapsed()));
        }
        // Closed at the end of the thread would be an error for the readers.
        anyhow::Ok((begun, writers))
    });
    while !writing.is_finished() {
        sleep(Duration::from_millis(20)).await;
    }
    let (begun, _writers) = writing.join().map_err(|_| anyhow::anyhow!("the writer failed"))??;
    settle(&progress).await?;
    readers.abort_all();
    let rounds: Vec<(usize, Instant)> = begun.iter().enumerate().map(|(n, at)| ((n + 1) * bytes.max(1), *at)).collect();
    Ok(progress.iter().flat_map(|one| arrivals(&one.borrow(), &rounds)).collect())
}

/// A thousand followers are a thousand files here and a thousand at the server, which inherits the limit.
pub(crate) fn raise_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|files| files >= FILES) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|files| files >= FILES),
        "{FILES} files are needed and {:?} allowed: ulimit -n",
        limit.maximum
    );
    setrlimit(Resource::Nofile, Rlimit { current: Some(FILES), maximum: limit.maximum }).context("the limit of files")
}
