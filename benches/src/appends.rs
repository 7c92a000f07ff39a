//! Durable appends of the store in this process, beside a raw file with the same bytes, producers and queue.

use crate::Scale;
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use anyhow::Context;
use kernel::event::Content;
use kernel::{ActorRef, Category, EventId, IndexField, NewEvent, TaskId, TenantId, Timestamp};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use store::sqlite::{Directory, SqliteSettings, SqliteStore};
use store::{Append, IdempotencyKey, NewRow, Store, StreamWrite};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What one group of the raw file takes at most; the store's writer has the same limit.
const GROUP_MAX: usize = 1_024;
const PAYLOAD_BYTES: usize = 300;
const STATE_BYTES: usize = 500;
/// The goal with few producers: this share of the raw file, in percent.
const FEW_PERCENT: Goal = Goal::AtLeast(20.0);
/// The goal with many producers.
const MANY: Goal = Goal::AtLeast(30_000.0);

/// What was measured once.
struct Run {
    took: Duration,
    appends: usize,
    syncs: u64,
}

impl Run {
    fn rate(&self) -> f64 {
        self.appends as f64 / self.took.as_secs_f64()
    }

    fn per_sync(&self) -> f64 {
        self.appends as f64 / self.syncs.max(1) as f64
    }
}

/// Appends with few and with many producers.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let mut section = Section::new("Durable appends (in process)");
    for (producers, appends) in scale.appends {
        let (mut ours, mut raws) = (vec![], vec![]);
        // In turn, so that a slow moment of the disk meets both.
        for _ in 0..scale.runs {
            raws.push(raw_run(place, *producers, *appends).await?);
            ours.push(store_run(place, *producers, *appends).await?);
        }
        add(&mut section, *producers, &ours, &raws);
        let size = raw_bytes(&sample(0, 0)).len();
        section.note(format!(
            "{} producers: {} appends per run, {size} bytes each in the raw file.",
            number(*producers as f64),
            number(*appends as f64)
        ));
    }
    section.note(format!(
        "An append is an event ({PAYLOAD_BYTES} bytes of payload), a new entity's row ({STATE_BYTES} bytes of state), 2 index \
         fields and an idempotency key. Each producer waits for its append before the next; every run has a directory of its own."
    ));
    section.note(
        "The raw file: one writer thread takes what is queued, writes it to the end of one file, calls fdatasync once, \
         answers. It hashes, checks and indexes nothing.",
    );
    Ok(section)
}

fn add(section: &mut Section, producers: usize, ours: &[Run], raws: &[Run]) {
    let rates = |runs: &[Run]| runs.iter().map(Run::rate).collect::<Vec<_>>();
    let many = producers >= 1_024;
    let limit = format!("raw file {} appends/s", number(crate::stats::Spread::of(&rates(raws)).median));
    let share: Vec<f64> = ours.iter().zip(raws).map(|(o, r)| 100.0 * o.rate() / r.rate()).collect();
    let name = |what: &str| format!("{} producers: {what}", number(producers as f64));
    let rate = Figure::new(name("store"), "appends/s", &rates(ours)).limit(limit);
    section.add(if many { rate.goal(MANY) } else { rate });
    section.add(Figure::new(name("raw file"), "appends/s", &rates(raws)));
    let share = Figure::new(name("store / raw file"), "%", &share).limit("100 %");
    section.add(if many { share } else { share.goal(FEW_PERCENT) });
    type Column = (&'static str, fn(&Run) -> f64);
    let figures: [Column; 2] = [("fsyncs", |r| r.syncs as f64), ("appends per fsync", Run::per_sync)];
    for (what, of) in figures {
        section.add(Figure::new(name(&format!("store, {what}")), "", &ours.iter().map(of).collect::<Vec<_>>()));
        section.add(Figure::new(name(&format!("raw file, {what}")), "", &raws.iter().map(of).collect::<Vec<_>>()));
    }
}

async fn store_run(place: &Place, producers: usize, appends: usize) -> anyhow::Result<Run> {
    let folder = place.fresh()?;
    let store = SqliteStore::open(Directory::open(folder.path())?, &SqliteSettings { disk_free_min_bytes: 0 })?;
    let store = Arc::new(store);
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for producer in 0..producers {
        let store = store.clone();
        running.spawn(async move {
            for n in share_of(producer, producers, appends) {
                store.append(sample(producer, n)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(joined) = running.join_next().await {
        joined??;
    }
    let took = begun.elapsed();
    let health = store.health();
    anyhow::ensure!(health.events == appends as u64, "{} events instead of {appends} are durable", health.events);
    store.close().await;
    Ok(Run { took, appends, syncs: health.commits })
}

/// Numbers of a producer's appends: all producers together make `appends`.
pub(crate) fn share_of(producer: usize, producers: usize, appends: usize) -> std::ops::Range<usize> {
    0..appends / producers + usize::from(producer < appends % producers)
}

/// The append number `n` of a producer, with ids as the server makes them: entities sort by time, keys are random.
pub(crate) fn sample(producer: usize, n: usize) -> Append {
    let now = Timestamp(1_767_225_600_000 + n as i64);
    let random = random(producer, n);
    let stream = TaskId::from_parts(now.0, random[..10].try_into().unwrap_or_default()).to_string();
    let event = NewEvent {
        id: EventId::from_parts(now.0, random[6..].try_into().unwrap_or_default()),
        kind: "bench.item.written",
        shape: 1,
        category: Category::Domain,
        occurred_at: now,
        actor: ActorRef::system("bench"),
        user: None,
        correlation: format!("req-{producer}-{n}"),
        causation: None,
        trace_parent: None,
        content: Content::Whole { salt: random, bytes: json_of(&stream, PAYLOAD_BYTES) },
    };
    let row = NewRow {
        kind: "bench",
        state: Some(json_of(&stream, STATE_BYTES)),
        index: vec![IndexField::new("status", "pending"), IndexField::new("owner", format!("owner-{}", producer % 64))],
        is_deleted: false,
    };
    let key = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let write = StreamWrite { stream, expected_version: 0, events: vec![event], unique: vec![], row: Some(row), erases: false };
    Append {
        log: TenantId::from_bytes([1; 16]),
        writes: vec![write],
        idempotency: Some(IdempotencyKey { key, request_hash: [7; 32] }),
        values: vec![],
        secrets: vec![],
        now,
        authority: None,
        if_head: None,
    }
}

/// A JSON object of about this many bytes.
fn json_of(stream: &str, bytes: usize) -> Vec<u8> {
    let frame = format!("{{\"data\":{{\"stream\":\"{stream}\",\"text\":\"\"}}}}").len();
    format!("{{\"data\":{{\"stream\":\"{stream}\",\"text\":\"{}\"}}}}", "x".repeat(bytes.saturating_sub(frame))).into_bytes()
}

/// 16 bytes that look random and are the same each time (SplitMix64).
fn random(producer: usize, n: usize) -> [u8; 16] {
    let mixed = |seed: u64| {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let seed = mixed(((producer as u64) << 32) | n as u64);
    ((u128::from(seed) << 64) | u128::from(mixed(seed))).to_be_bytes()
}

/// Everything that an append brings, one field after another.
fn raw_bytes(append: &Append) -> Vec<u8> {
    let mut out = Vec::with_capacity(1_200);
    for write in &append.writes {
        out.extend(write.stream.as_bytes());
        out.extend(write.expected_version.to_be_bytes());
        for event in &write.events {
            out.extend(event.id.bytes());
            out.extend(event.kind.as_bytes());
            out.extend(event.shape.to_be_bytes());
            out.push(event.category.code());
            out.extend(event.occurred_at.0.to_be_bytes());
            out.extend(event.actor.id.as_bytes());
            out.extend(event.correlation.as_bytes());
            out.extend(event.content.salt().unwrap_or_default());
            out.extend(event.content.bytes().unwrap_or_default());
        }
        if let Some(row) = &write.row {
            out.extend(row.kind.as_bytes());
            out.extend(row.state.as_deref().unwrap_or_default());
            row.index.iter().for_each(|field| out.extend([field.name.as_bytes(), field.value.as_bytes()].concat()));
        }
    }
    if let Some(key) = &append.idempotency {
        out.extend(key.key.as_bytes());
        out.extend(key.request_hash);
    }
    out
}

/// What waits for the raw file's writer.
type Job = (Vec<u8>, oneshot::Sender<()>);

async fn raw_run(place: &Place, producers: usize, appends: usize) -> anyhow::Result<Run> {
    let folder = place.fresh()?;
    let path = folder.path().join("raw");
    let (jobs, inbox) = channel();
    let writer = std::thread::spawn(move || write_groups(&path, &inbox));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for producer in 0..producers {
        running.spawn(produce_raw(jobs.clone(), producer, share_of(producer, producers, appends)));
    }
    drop(jobs);
    let mut outcome = Ok(());
    while let Some(joined) = running.join_next().await {
        outcome = outcome.and(joined?);
    }
    let took = begun.elapsed();
    let syncs = writer.join().map_err(|_| anyhow::anyhow!("the raw file's writer panicked"))??;
    outcome?;
    Ok(Run { took, appends, syncs })
}

async fn produce_raw(jobs: Sender<Job>, producer: usize, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
    for n in numbers {
        let (reply, answer) = oneshot::channel();
        jobs.send((raw_bytes(&sample(producer, n)), reply)).ok().context("the raw file's writer ended")?;
        answer.await.context("the raw file's writer ended")?;
    }
    Ok(())
}

/// Writes what is queued, syncs once, answers; until nobody is left who could ask. Answers how often it synced.
fn write_groups(path: &Path, inbox: &Receiver<Job>) -> std::io::Result<u64> {
    let mut file = File::create_new(path)?;
    let (mut syncs, mut bytes, mut replies) = (0, Vec::new(), Vec::new());
    while let Ok(first) = inbox.recv() {
        let mut next = Some(first);
        while let Some((job, reply)) = next {
            bytes.extend(job);
            replies.push(reply);
            next = if replies.len() < GROUP_MAX { inbox.try_recv().ok() } else { None };
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        syncs += 1;
        bytes.clear();
        // A producer that is gone does not ask any more.
        for reply in replies.drain(..) {
            let _ = reply.send(());
        }
    }
    Ok(syncs)
}
