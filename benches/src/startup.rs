//! How soon the server is ready, and how much memory it holds when nothing happens.

use crate::Scale;
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::Server;
use anyhow::Context;
use kernel::event::Content;
use kernel::{ActorRef, Category, EventId, IndexField, NewEvent, TenantId, Timestamp};
use std::path::Path;
use std::time::{Duration, Instant};
use store::sqlite::{Directory, SqliteSettings, SqliteStore};
use store::{Append, NewRow, Store, StreamWrite};
use tempfile::TempDir;

const READY: Goal = Goal::Below(100.0);
const MEMORY: Goal = Goal::Below(40.0);
/// Events of each seeded stream: as many as a task has that goes well.
const STREAM_EVENTS: u64 = 3;
/// Appends that wait at a time while seeding.
const WINDOW: usize = 1_000;

/// One figure per run.
#[derive(Default)]
struct Runs {
    ready_ms: Vec<f64>,
    resident_mib: Vec<f64>,
}

impl Runs {
    /// Starts a server, leaves it alone, looks at it and stops it.
    async fn add(&mut self, folder: &Path, idle: Duration) -> anyhow::Result<()> {
        let server = Server::start(folder, &[])?;
        self.ready_ms.push(server.ready_after.as_secs_f64() * 1_000.0);
        tokio::time::sleep(idle).await;
        self.resident_mib.push(server.resident_mib()?);
        server.stop()
    }
}

/// Start and idle memory.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let (mut first, mut second, mut filled) = (Runs::default(), Runs::default(), Runs::default());
    for _ in 0..scale.runs {
        let folder = place.fresh()?;
        first.add(folder.path(), scale.idle).await?;
        second.add(folder.path(), scale.idle).await?;
    }
    let folder = filled_directory(place, scale).await?;
    for _ in 0..scale.runs {
        filled.add(folder.path(), scale.idle).await?;
    }
    let (process_ms, events) = (bare_process(scale)?, number(scale.seeded_events as f64));
    let limit = format!("{} ms for `keiko version`", number(process_ms));
    let ready =
        |name: &str, runs: &Runs| Figure::new(format!("exec to ready, {name}"), "ms", &runs.ready_ms).goal(READY).limit(&limit);
    let memory = |name: &str, runs: &Runs| Figure::new(format!("idle memory, {name}"), "MiB", &runs.resident_mib).goal(MEMORY);
    let mut section = Section::new("Start and idle memory");
    for (name, runs) in [("very first start", &first), ("empty directory", &second), (&format!("{events} events"), &filled)] {
        section.add(ready(name, runs));
        section.add(memory(name, runs));
    }
    section.note("From just before the process is made to the first 200 at `/ready`; files are in the page cache.");
    section.note(
        "The very first start makes keys, tenant and administrator and hashes the password (Argon2id); the empty \
         directory is started the second time.",
    );
    section.note(format!("Memory is `VmRSS` after {:?} without a request.", scale.idle));
    section.note(format!(
        "The {events} events lie in {} streams of a kind that the server does not know; it has started on them once before, so \
         that its views are up to date.",
        number((scale.seeded_events / STREAM_EVENTS) as f64)
    ));
    Ok(section)
}

/// The shortest life that the binary can have, in milliseconds: the median over the runs.
fn bare_process(scale: &Scale) -> anyhow::Result<f64> {
    let mut times = vec![];
    for _ in 0..scale.runs.max(3) {
        let begun = Instant::now();
        let done = std::process::Command::new(crate::server::binary()?).arg("version").output()?;
        anyhow::ensure!(done.status.success(), "keiko version ended with {}", done.status);
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(crate::stats::percentile(&times, 0.5))
}

/// A data directory with many events in the default tenant's log, on which the server has settled.
async fn filled_directory(place: &Place, scale: &Scale) -> anyhow::Result<TempDir> {
    let folder = place.fresh()?;
    Server::start(folder.path(), &[])?.stop()?;
    seed(&folder.path().join("data"), scale.seeded_events).await?;
    let server = Server::start(folder.path(), &[])?;
    tokio::time::sleep(scale.idle).await;
    server.stop()?;
    Ok(folder)
}

async fn seed(data: &Path, events: u64) -> anyhow::Result<()> {
    let store = SqliteStore::open(Directory::open(data)?, &SqliteSettings { disk_free_min_bytes: 0 })?;
    let log = *store.logs().await?.first().context("a started server has a log")?;
    let mut waiting = Vec::with_capacity(WINDOW);
    for stream in 0..events / STREAM_EVENTS {
        waiting.push(store.append(stream_of(log, stream)));
        if waiting.len() == WINDOW {
            for answer in waiting.drain(..) {
                answer.await?;
            }
        }
    }
    for answer in waiting {
        answer.await?;
    }
    store.close().await;
    Ok(())
}

fn stream_of(log: TenantId, stream: u64) -> Append {
    // A millisecond per stream, so that recorded times rise as they do in life.
    let now = Timestamp(1_767_225_600_000 + stream as i64);
    let event = |n: u64| NewEvent {
        id: EventId::from_parts(now.0, [n as u8; 10]),
        kind: "bench.item.written",
        shape: 1,
        category: Category::Domain,
        occurred_at: now,
        actor: ActorRef::system("bench"),
        user: None,
        correlation: format!("bench-{stream}"),
        causation: None,
        trace_parent: None,
        content: Content::Whole {
            salt: [n as u8; 16],
            bytes: format!("{{\"data\":{{\"step\":{n},\"text\":\"{}\"}}}}", "e".repeat(260)).into_bytes(),
        },
    };
    let row = NewRow {
        kind: "bench",
        state: Some(format!("{{\"stream\":{stream},\"text\":\"{}\"}}", "s".repeat(470)).into_bytes()),
        index: vec![IndexField::new("status", "done"), IndexField::new("owner", format!("owner-{}", stream % 64))],
        is_deleted: false,
    };
    let write = StreamWrite {
        stream: format!("bench_{stream:026}"),
        expected_version: 0,
        events: (1..=STREAM_EVENTS).map(event).collect(),
        unique: vec![],
        row: Some(row),
        erases: false,
    };
    Append { log, writes: vec![write], idempotency: None, values: vec![], secrets: vec![], authority: None, if_head: None, now }
}
