//! What the store promises of a disk that crashes, fails, fills up or forgets: every crash point, failed syncs and
//! writes, flipped bytes. `KEIKO_FAULTS_LONG=1` tries all of them instead of a sample.

use super::*;
use crate::contract::{append, event, log, write};
use crate::memory::MemoryStore;
use kernel::{IndexField, UniqueChange};
use pages::faults::{Dice, Disk, Fault, Left, Op, What, crash};
use std::collections::BTreeSet;
use std::time::Duration;
use tempfile::TempDir;
use writer::Pace;

/// Logs of the workload.
const LOGS: [u8; 3] = [1, 2, 3];

fn is_long() -> bool {
    std::env::var_os("KEIKO_FAULTS_LONG").is_some()
}

/// Copies the log into the database every few commits.
fn brisk() -> Pace {
    Pace { wal_pages_max: 40, look_every: 2, idle: Duration::from_secs(600) }
}

fn open(path: &Path, pace: Pace) -> Result<SqliteStore, OpenError> {
    pages::faults::register().unwrap();
    let settings = SqliteSettings { disk_free_min_bytes: 0 };
    SqliteStore::open_at(directory(path)?.on_faults(), &settings, pace)
}

/// The directory of a store that was closed. A process that another test starts meanwhile has its lock, too, until it has begun.
fn directory(path: &Path) -> Result<Directory, OpenError> {
    for _ in 0..200 {
        match Directory::open(path) {
            Err(OpenError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened,
        }
    }
    Directory::open(path)
}

/// One thing that is asked of the store.
#[derive(Clone)]
enum Job {
    Append(Append),
    Apply(TenantId, ViewApply),
}

impl Job {
    fn log(&self) -> TenantId {
        match self {
            Job::Append(append) => append.log,
            Job::Apply(log, _) => *log,
        }
    }

    fn append(&self) -> Option<&Append> {
        match self {
            Job::Append(append) => Some(append),
            Job::Apply(..) => None,
        }
    }

    /// Asked now; the answer comes later.
    fn ask<'a>(&self, store: &'a dyn Store) -> BoxFuture<'a, Result<(), StoreError>> {
        match self.clone() {
            Job::Append(append) => {
                let answer = store.append(append);
                Box::pin(async move { answer.await.map(|_| ()) })
            }
            Job::Apply(log, apply) => store.apply(log, apply),
        }
    }
}

/// Batches of jobs; a batch is asked for at once. Every shape of append, on several streams of several logs.
fn workload(batches: usize) -> Vec<Vec<Job>> {
    let mut dice = Dice(7);
    let mut versions: BTreeMap<(u8, String), u64> = BTreeMap::new();
    let mut views: BTreeMap<u8, u64> = BTreeMap::new();
    let mut number = 0;
    let mut batch = |size: u64| {
        let jobs = (0..size).map(|_| {
            number += 1;
            Job::Append(some_append(number, &mut dice, &mut versions))
        });
        jobs.collect::<Vec<_>>()
    };
    let mut made = vec![];
    for n in 0..batches {
        made.push(batch([1, 1, 5, 2][n % 4]));
        if n % 3 == 0 {
            made.push(vec![some_apply(LOGS[n % LOGS.len()], &mut views)]);
        }
    }
    made
}

fn some_append(number: u64, dice: &mut Dice, versions: &mut BTreeMap<(u8, String), u64>) -> Append {
    let l = LOGS[dice.below(3) as usize];
    let first = dice.below(4);
    let mut made = append(l, vec![]);
    made.now = Timestamp(number as i64 * 10);
    // One in nine expects a version that the stream does not have, and is refused.
    let is_wrong = number.is_multiple_of(9);
    for stream in [first, first + 4].into_iter().take(1 + dice.below(2) as usize) {
        let stream = format!("thing_{stream}");
        let version = versions.entry((l, stream.clone())).or_default();
        let mut changed = write(&stream, *version + u64::from(is_wrong), 1 + dice.below(3) as usize, number as i64 * 10);
        changed.events[0] = event("test.thing.happened", &"x".repeat(dice.below(2_000) as usize), number as i64);
        changed.unique =
            vec![UniqueChange::Free(format!("{stream}:{version}")), UniqueChange::Take(format!("{stream}:{}", *version + 1))];
        let row = changed.row.as_mut().unwrap();
        row.state = Some(vec![number as u8; dice.below(3_000) as usize]);
        row.is_deleted = dice.below(10) == 0;
        if !is_wrong {
            *version += changed.events.len() as u64;
            changed.unique[1] = UniqueChange::Take(format!("{stream}:{version}"));
        }
        made.writes.push(changed);
    }
    made.idempotency = Some(IdempotencyKey { key: format!("key-{number}"), request_hash: [number as u8; 32] });
    if number.is_multiple_of(4) {
        made.values = vec![([number as u8; 32], Some(vec![number as u8; 9_000]))];
    }
    made.secrets = match number % 5 {
        0 => vec![("pw".into(), Some(vec![number as u8; 60]))],
        3 => vec![("pw".into(), None)],
        _ => vec![],
    };
    made
}

fn some_apply(l: u8, views: &mut BTreeMap<u8, u64>) -> Job {
    let position = views.entry(l).or_default();
    let row = |key: u64| ViewRow { key: format!("k{key}"), row: vec![key as u8; 300] };
    let rows = vec![Ok(row(*position)), Ok(row(*position + 100)), Err(format!("k{}", *position + 99))];
    let apply = ViewApply { view: "v".into(), version: 1, expected: *position, position: *position + 1, rows, activate: true };
    *position += 1;
    Job::Apply(log(l), apply)
}

/// Everything that can be asked about a log.
#[derive(Debug, Default, PartialEq)]
struct Answers {
    events: Vec<Vec<Arc<Recorded>>>,
    pages: Vec<EntityPage>,
    rows: Vec<Option<EntityRow>>,
    positions: Vec<u64>,
    names: Vec<Option<String>>,
    bytes: Vec<Option<Vec<u8>>>,
    keys: Vec<Option<Idempotent>>,
    views: Vec<ViewState>,
    view_rows: Vec<ViewRow>,
}

async fn answers(s: &dyn Store, l: TenantId, jobs: &[Vec<Job>]) -> Result<Answers, StoreError> {
    let mut a = Answers::default();
    a.events.push(s.scan(l, 0, ScanFilter::default(), 10_000).await?.events);
    let all = EntityQuery { with_deleted: true, ..EntityQuery::all("thing") };
    a.pages.push(s.entities(l, all.clone()).await?);
    for status in ["odd", "even"] {
        a.pages.push(s.entities(l, EntityQuery { fields: vec![IndexField::new("status", status)], ..all.clone() }).await?);
    }
    a.names.extend(s.index_values(l, "thing", "status", "", 10).await?.into_iter().map(Some));
    a.views = s.view_state(l, "v").await?;
    a.view_rows = s.view_list(l, "v", 1, "", "", 1_000).await?;
    a.view_rows.extend(s.view_get(l, "v", 1, "k1").await?);
    a.bytes.push(s.secret(l, "pw").await?);
    for instant in [0, 55, 120, 10_000] {
        a.positions.push(s.position_at(l, Timestamp(instant)).await?);
    }
    for stream in (0..8).map(|n| format!("thing_{n}")) {
        a.rows.push(s.entity(l, &stream).await?);
        a.events.push(s.read(l, &stream, 1, 1_000).await?);
        let filter = ScanFilter { kind: Some("test.*".into()), stream: Some(stream), category: None };
        a.events.push(s.scan(l, 0, filter, 1_000).await?.events);
    }
    for append in jobs.iter().flatten().filter_map(Job::append).filter(|append| append.log == l) {
        for change in append.writes.iter().flat_map(|w| &w.unique) {
            let (UniqueChange::Take(key) | UniqueChange::Free(key)) = change;
            a.names.push(s.holder(l, key).await?);
        }
        for (hash, _) in &append.values {
            a.bytes.push(s.value(l, hash).await?);
        }
        if let Some(key) = &append.idempotency {
            a.keys.push(s.idempotent(l, &key.key).await?);
        }
    }
    Ok(a)
}

/// What a log answers after each of its jobs, as the memory store has it.
type Expected = BTreeMap<TenantId, Vec<Answers>>;

async fn expected(jobs: &[Vec<Job>]) -> Expected {
    let model = MemoryStore::new();
    let mut expected = Expected::new();
    for l in LOGS.map(log) {
        expected.insert(l, vec![answers(&model, l, jobs).await.unwrap()]);
    }
    for job in jobs.iter().flatten() {
        let refusal = job.ask(&model).await.err();
        assert!(refusal.is_none_or(|e| matches!(e, StoreError::Conflict { .. })));
        expected.get_mut(&job.log()).unwrap().push(answers(&model, job.log(), jobs).await.unwrap());
    }
    expected
}

/// When a job was asked for and when it was answered, in operations of the disk.
struct Mark {
    log: TenantId,
    /// Never, for a job that was refused because the store was read-only: it must not be there.
    asked: usize,
    answered: usize,
}

const NEVER: usize = usize::MAX;

/// Which of a log's jobs may be there when the disk stopped after `ops` operations: at least those answered, at most
/// those asked for.
fn bounds(marks: &[Mark], l: TenantId, ops: usize) -> std::ops::RangeInclusive<usize> {
    let up_to_last = |is_so: fn(&Mark, usize) -> bool| {
        let of_log = marks.iter().filter(|mark| mark.log == l).enumerate();
        of_log.filter(|(_, mark)| is_so(mark, ops)).last().map_or(0, |(at, _)| at + 1)
    };
    let answered = up_to_last(|mark, ops| mark.answered <= ops && mark.answered != NEVER);
    let asked = up_to_last(|mark, ops| mark.asked < ops);
    answered..=asked.max(answered)
}

/// Asks for batches and notes when. Answers say how it went.
async fn run(store: &SqliteStore, disk: &Disk, jobs: &[Vec<Job>], marks: &mut Vec<Mark>) -> Vec<Result<(), StoreError>> {
    let mut outcomes = vec![];
    for batch in jobs {
        let mut answers = vec![];
        for job in batch {
            let asked = disk.ops();
            answers.push((job.log(), asked, job.ask(store)));
        }
        for (log, asked, answer) in answers {
            let outcome = answer.await;
            let is_settled = matches!(outcome, Ok(()) | Err(StoreError::Conflict { .. }));
            marks.push(Mark {
                log,
                asked: if matches!(outcome, Err(StoreError::ReadOnly(_))) { NEVER } else { asked },
                answered: if is_settled { disk.ops() } else { NEVER },
            });
            outcomes.push(outcome);
        }
    }
    outcomes
}

/// Opens what is in a folder and compares it with what it must hold.
async fn check(home: &Path, jobs: &[Vec<Job>], expected: &Expected, marks: &[Mark], ops: usize, what: &str) {
    // Followed, so that syncs cost nothing.
    let _disk = Disk::follow(home).unwrap();
    let store = open(home, Pace::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    for l in LOGS.map(log) {
        let found = answers(&store, l, jobs).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let allowed = bounds(marks, l, ops);
        let is_one = expected[&l][allowed.clone()].contains(&found);
        assert!(
            is_one,
            "{what}: {l} is not as after {allowed:?} of its jobs, but as after {:?}",
            expected[&l].iter().position(|e| *e == found)
        );
        let tail = *store.tail(l).borrow();
        let further = store.append(Append { log: l, ..append(1, vec![write("thing_further", 0, 1, 0)]) }).await;
        assert_eq!(further, Ok(Appended { position: tail + 1 }), "{what}");
    }
    let verified = SqliteStore::verify(&store._directory).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(verified.findings.is_empty(), "{what}: {:?}", verified.findings);
    assert_eq!(verified.logs, LOGS.len(), "{what}");
    store.close().await;
}

/// Makes a folder with these files.
fn folder(files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join("FORMAT"), "1\n").unwrap();
    for (name, bytes) in files {
        std::fs::write(home.path().join(name), bytes).unwrap();
    }
    home
}

/// Where to stop: beside everything but writes, and at a sample of the writes.
fn crash_points(record: &[Op]) -> BTreeSet<usize> {
    if is_long() {
        return (0..=record.len()).collect();
    }
    let mut dice = Dice(3);
    let special = |op: &Op| !matches!(op.what, What::Write(..));
    let beside = record.iter().enumerate().filter(|(_, op)| special(op)).flat_map(|(at, _)| [at, at + 1]);
    let sample = (0..200).map(|_| dice.below(record.len() as u64 + 1) as usize);
    beside.chain(sample).chain([record.len()]).collect()
}

#[tokio::test]
async fn every_crash_prefix_reopens_with_the_acknowledged_prefix() {
    let jobs = workload(12);
    let expected = expected(&jobs).await;
    let home = TempDir::new().unwrap();
    let disk = Disk::follow(home.path()).unwrap();
    let mut marks = vec![];
    let half = jobs.len() / 2;
    let store = open(home.path(), brisk()).unwrap();
    run(&store, &disk, &jobs[..half], &mut marks).await;
    store.close().await;
    drop(store);
    // The second time the log is emptied as soon as there is nothing to do.
    let store = open(home.path(), Pace { idle: Duration::from_millis(1), ..brisk() }).unwrap();
    for batch in jobs[half..].chunks(2) {
        run(&store, &disk, batch, &mut marks).await;
    }
    store.close().await;
    let record = disk.record();
    assert!(record.iter().filter(|op| matches!(op.what, What::Truncate(_))).count() > 0, "the log was never emptied");
    let points = crash_points(&record);
    let mut variants = 0;
    for at in &points {
        for left in [Left::All, Left::Synced, Left::Some, Left::Torn] {
            let mut dice = Dice(*at as u64);
            let files = crash(&record[..*at], left, &mut dice);
            let what = format!("after {at} of {} operations, {left:?}", record.len());
            check(folder(&files).path(), &jobs, &expected, &marks, *at, &what).await;
            variants += 1;
        }
    }
    println!("crash points tried: {}, variants: {variants}", points.len());
}

/// Lets one thing go wrong in the middle of the workload and checks what is acknowledged, read and found again.
/// Says whether it came to that.
async fn fail_once(fault: Fault, jobs: &[Vec<Job>], expected: &Expected) -> bool {
    let what = format!("{fault:?}");
    let home = TempDir::new().unwrap();
    let disk = Disk::follow(home.path()).unwrap();
    disk.fail(fault);
    let mut marks = vec![];
    if let Ok(store) = open(home.path(), brisk()) {
        let is_open_in_time = disk.failed_at().is_none();
        assert!(is_open_in_time, "{what}: opened although it failed");
        for batch in jobs {
            let had_failed = disk.failed_at().is_some();
            for outcome in run(&store, &disk, std::slice::from_ref(batch), &mut marks).await {
                let has_failed = disk.failed_at().is_some();
                match outcome {
                    Ok(()) | Err(StoreError::Conflict { .. }) => assert!(!had_failed, "{what}: answered after the failure"),
                    Err(StoreError::ReadOnly(_)) => assert!(has_failed, "{what}"),
                    Err(StoreError::Unknown(_)) => assert!(has_failed && !had_failed, "{what}"),
                    Err(other) => panic!("{what}: {other}"),
                }
            }
        }
        for l in LOGS.map(log) {
            let found = answers(&store, l, jobs).await.unwrap_or_else(|e| panic!("{what}: reading ended: {e}"));
            assert!(expected[&l][bounds(&marks, l, NEVER)].contains(&found), "{what}: read something else");
        }
        if disk.failed_at().is_some() {
            let reason = store.health().read_only.unwrap_or_else(|| panic!("{what}: nobody noticed"));
            assert!(reason.contains("disk"), "{what}: {reason}");
        }
        store.close().await;
        drop(store);
        assert_eq!(disk.asked_after(), 0, "{what}: something was written or synced after the failure");
    }
    let has_failed = disk.failed_at().is_some();
    let record = disk.record();
    drop(disk);
    // As the files are, and as they are when the machine went down too.
    check(home.path(), jobs, expected, &marks, NEVER, &what).await;
    let synced = folder(&crash(&record, Left::Synced, &mut Dice(1)));
    check(synced.path(), jobs, expected, &marks, NEVER, &format!("{what}, then a crash")).await;
    has_failed
}

/// Lets each write or sync of the workload go wrong, or a sample of them; answers how many did.
async fn fail_each(count: fn(&Disk) -> usize, fault: fn(usize) -> Fault) -> String {
    let jobs = workload(12);
    let expected = expected(&jobs).await;
    let all = {
        let home = TempDir::new().unwrap();
        let disk = Disk::follow(home.path()).unwrap();
        let store = open(home.path(), brisk()).unwrap();
        run(&store, &disk, &jobs, &mut vec![]).await;
        let copied = disk.record().iter().filter(|op| op.file == "keiko.db" && matches!(op.what, What::Sync(_))).count();
        assert!(copied > 2, "the log was not copied into the database while it ran");
        store.close().await;
        count(&disk)
    };
    let step = if is_long() { 1 } else { all.div_ceil(60) };
    let (mut tried, mut failed) = (0, 0);
    for n in (1..=all).step_by(step) {
        tried += 1;
        failed += usize::from(fail_once(fault(n), &jobs, &expected).await);
    }
    // How many there are depends on which appends share a commit.
    assert!(failed * 3 > tried, "only {failed} of {tried} came to pass");
    format!("{failed} of {all}")
}

#[tokio::test]
async fn a_failing_sync_makes_the_store_read_only() {
    println!("syncs failed: {}", fail_each(|disk| disk.writes_and_syncs().1, Fault::Sync).await);
}

#[tokio::test]
async fn a_full_disk_makes_the_store_read_only() {
    println!("disks full at a write: {}", fail_each(|disk| disk.writes_and_syncs().0, Fault::Full).await);
}

#[tokio::test]
async fn a_short_write_makes_the_store_read_only() {
    println!("writes cut short: {}", fail_each(|disk| disk.writes_and_syncs().0, Fault::Short).await);
}

/// Everything the store answers, or that something is wrong.
async fn everything(home: &Path, jobs: &[Vec<Job>]) -> Result<Vec<Answers>, String> {
    let store = open(home, Pace::default()).map_err(|e| e.to_string())?;
    let asked = ask_everything(&store, jobs).await;
    store.close().await;
    asked
}

async fn ask_everything(store: &SqliteStore, jobs: &[Vec<Job>]) -> Result<Vec<Answers>, String> {
    let logs = store.logs().await.map_err(|e| e.to_string())?;
    let mut found = vec![];
    for l in logs {
        found.push(answers(store, l, jobs).await.map_err(|e| e.to_string())?);
    }
    let verified = SqliteStore::verify(&store._directory).map_err(|e| e.to_string())?;
    if verified.findings.is_empty() { Ok(found) } else { Err(format!("{:?}", verified.findings)) }
}

/// Which bytes are flipped: all, or all of the first page and a sample of the others.
fn bytes_to_flip(count: usize) -> BTreeSet<usize> {
    let mut dice = Dice(11);
    match is_long() {
        true => (0..count).collect(),
        false => (0..4_096).chain((0..1_500).map(|_| dice.below(count as u64) as usize)).collect(),
    }
}

#[tokio::test]
async fn a_flipped_byte_is_detected_or_harmless() {
    let jobs = workload(4);
    let home = TempDir::new().unwrap();
    let _disk = Disk::follow(home.path()).unwrap();
    let store = open(home.path(), Pace::default()).unwrap();
    for job in jobs.iter().flatten() {
        let refusal = job.ask(&store).await.err();
        assert!(refusal.is_none_or(|e| matches!(e, StoreError::Conflict { .. })));
    }
    store.close().await;
    drop(store);
    let file = home.path().join("keiko.db");
    let whole = std::fs::read(&file).unwrap();
    let wanted = everything(home.path(), &jobs).await.unwrap();
    let mut dice = Dice(5);
    let (mut detected, mut harmless) = (0, 0);
    let flipped = bytes_to_flip(whole.len());
    for at in &flipped {
        let mut bytes = whole.clone();
        bytes[*at] ^= 1 << dice.below(8);
        for name in ["keiko.db-wal", "keiko.db-shm"] {
            // Mostly there is none.
            let _ = std::fs::remove_file(home.path().join(name));
        }
        std::fs::write(&file, bytes).unwrap();
        match everything(home.path(), &jobs).await {
            Err(_) => detected += 1,
            Ok(found) => {
                assert!(found == wanted, "byte {at} changes an answer and nobody notices");
                harmless += 1;
            }
        }
    }
    println!("bytes flipped: {}, detected: {detected}, harmless: {harmless}", flipped.len());
}
