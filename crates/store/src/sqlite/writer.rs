//! The one thread that writes: it groups what is queued, commits once, answers, and checkpoints.

use super::{LogNumbers, connect, free_bytes, read, tree, write};
use crate::ring::Rings;
use crate::tree::Growth;
use crate::*;
use futures_util::FutureExt;
use rusqlite::Connection;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Items that may wait. More are refused with [`StoreError::Busy`].
const QUEUE_MAX: usize = 65_536;
/// Items that one transaction takes at most.
const GROUP_MAX: usize = 1_024;
/// Items that one log may add to a group before the others had their turn.
const TURN_MAX: usize = 64;
/// How often the disk is looked at.
const DISK_CHECK: Duration = Duration::from_secs(1);

/// When the write-ahead log is copied into the database.
pub(super) struct Pace {
    /// Pages in it from which on it is copied.
    pub wal_pages_max: i64,
    /// Commits between two looks at its length.
    pub look_every: usize,
    /// After this long without work it is emptied.
    pub idle: Duration,
}

impl Default for Pace {
    /// From 64 MiB on, looked at every 16 commits, and after two seconds without work.
    fn default() -> Self {
        Pace { wal_pages_max: 16 * 1024, look_every: 16, idle: Duration::from_secs(2) }
    }
}

/// The disk, and how much of it must stay free.
pub(super) struct Disk {
    pub directory: PathBuf,
    pub free_min_bytes: u64,
}

/// What the writer knows of a log.
pub(crate) struct LogState {
    pub number: i64,
    pub position: u64,
    pub recorded_at: Timestamp,
}

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Append(Append, Reply<Appended>),
    Change(TenantId, Change, Reply<()>),
    Scrub(Reply<()>),
    Close(oneshot::Sender<()>),
}

/// What is written beside appends.
pub(super) enum Change {
    /// Rows and checkpoint of a view.
    Apply(ViewApply),
    /// Leaves of a tree.
    Grow(Growth),
    /// Signatures of witnesses.
    Cosign(String),
    /// What lay beside the events of a log that is put back.
    Beside(Vec<Beside>),
}

/// Handle of the writer thread.
pub(super) struct Writer {
    jobs: Mutex<Option<Sender<Job>>>,
    status: Arc<Status>,
}

#[derive(Default)]
struct Status {
    read_only: Mutex<Option<String>>,
    is_disk_low: AtomicBool,
    queued: AtomicUsize,
    commits: AtomicU64,
    events: AtomicU64,
}

impl Status {
    fn read_only(&self) -> Option<String> {
        self.read_only.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Writer {
    pub fn start(connection: Connection, rings: Rings, disk: Disk, pace: Pace) -> Self {
        let (jobs, inbox) = channel();
        let status = Arc::new(Status::default());
        let thread = Thread {
            connection,
            rings,
            disk,
            pace,
            status: status.clone(),
            logs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            scrubs: vec![],
            unchecked: 0,
            disk_checked_at: None,
        };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || thread.run(&inbox))
            // Without a thread there is no store; the process has just started and says so.
            .expect("a thread for the store's writer");
        Writer { jobs: Mutex::new(Some(jobs)), status }
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        if let Some(reason) = self.status.read_only() {
            return Err(StoreError::ReadOnly(reason));
        }
        if self.status.queued.fetch_add(1, Ordering::Relaxed) >= QUEUE_MAX {
            self.status.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(StoreError::Busy);
        }
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().ok_or(StoreError::Closed)?.send(job).map_err(|_| StoreError::Closed)
    }

    pub fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, StoreError>> {
        let (reply, answer) = oneshot::channel();
        match self.send(Job::Append(append, reply)) {
            Ok(()) => answer.map(|a| a.unwrap_or_else(|_| Err(StoreError::Unknown("the writer stopped".into())))).boxed(),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    pub async fn change(&self, log: TenantId, change: Change) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Change(log, change, reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the writer stopped".into())))
    }

    /// Rewrites the file, so that nothing of what was removed is left in its free space.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Scrub(reply))?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the writer stopped".into())))
    }

    pub fn health(&self) -> Health {
        Health {
            read_only: self.status.read_only(),
            is_disk_low: self.status.is_disk_low.load(Ordering::Relaxed),
            queued: self.status.queued.load(Ordering::Relaxed),
            commits: self.status.commits.load(Ordering::Relaxed),
            events: self.status.events.load(Ordering::Relaxed),
        }
    }

    pub async fn close(&self) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (reply, done) = oneshot::channel();
        if jobs.is_some_and(|jobs| jobs.send(Job::Close(reply)).is_ok()) {
            // An error means that the thread is gone, which is what was wanted.
            let _ = done.await;
        }
    }
}

struct Thread {
    connection: Connection,
    rings: Rings,
    disk: Disk,
    pace: Pace,
    status: Arc<Status>,
    logs: LogNumbers,
    /// What is queued, by log, so that a busy one does not hold up the others.
    waiting: BTreeMap<TenantId, VecDeque<Job>>,
    /// Who waits for the file to be rewritten.
    scrubs: Vec<Reply<()>>,
    /// Commits since the last look at the write-ahead log; 0 when everything is checkpointed.
    unchecked: usize,
    disk_checked_at: Option<Instant>,
}

/// What a group did, to be answered after its commit.
#[derive(Default)]
struct Done {
    appends: Vec<(Reply<Appended>, Result<Appended, StoreError>)>,
    others: Vec<(Reply<()>, Result<(), StoreError>)>,
    written: BTreeMap<TenantId, Vec<Arc<Recorded>>>,
    changes: usize,
}

impl Thread {
    fn run(mut self, inbox: &Receiver<Job>) {
        match read::log_ends(&self.connection) {
            Ok(ends) => {
                let states = ends
                    .into_iter()
                    .map(|(log, number, position, recorded_at)| (log, LogState { number, position, recorded_at }));
                self.logs = states.collect();
            }
            Err(e) => self.fail(&e),
        }
        let mut closing = None;
        while closing.is_none() {
            match inbox.recv_timeout(self.pace.idle) {
                Ok(job) => self.queue(job, &mut closing),
                Err(RecvTimeoutError::Timeout) => self.checkpoint("TRUNCATE"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while let Ok(job) = inbox.try_recv() {
                self.queue(job, &mut closing);
            }
            while !self.waiting.is_empty() {
                self.write_group();
                // What came in meanwhile joins the next group.
                while let Ok(job) = inbox.try_recv() {
                    self.queue(job, &mut closing);
                }
            }
            self.scrub();
        }
        self.checkpoint("TRUNCATE");
        match self.status.read_only() {
            None => connect::let_go(self.connection),
            Some(_) => drop(self.connection),
        }
        if let Some(reply) = closing {
            // Nobody waits any more: that is fine.
            let _ = reply.send(());
        }
    }

    fn queue(&mut self, job: Job, closing: &mut Option<oneshot::Sender<()>>) {
        let log = match &job {
            Job::Append(append, _) => append.log,
            Job::Change(log, ..) => *log,
            Job::Close(_) | Job::Scrub(_) => {
                match job {
                    Job::Close(reply) => *closing = Some(reply),
                    Job::Scrub(reply) => self.scrubs.push(reply),
                    _ => {}
                }
                return;
            }
        };
        self.waiting.entry(log).or_default().push_back(job);
    }

    /// The next items, in turn over the logs; the order within a log is kept.
    fn next_group(&mut self) -> Vec<Job> {
        let mut group = vec![];
        while group.len() < GROUP_MAX && !self.waiting.is_empty() {
            for queue in self.waiting.values_mut() {
                let room = GROUP_MAX.saturating_sub(group.len()).min(TURN_MAX).min(queue.len());
                group.extend(queue.drain(..room));
            }
            self.waiting.retain(|_, queue| !queue.is_empty());
        }
        self.status.queued.fetch_sub(group.len(), Ordering::Relaxed);
        group
    }

    fn write_group(&mut self) {
        let group = self.next_group();
        let refusal =
            self.status.read_only().map(StoreError::ReadOnly).or_else(|| self.is_disk_low().then_some(StoreError::DiskLow));
        if let Some(refusal) = refusal {
            return group.into_iter().for_each(|job| refuse(job, &refusal));
        }
        if let Err(e) = self.connection.execute_batch("BEGIN IMMEDIATE") {
            self.fail(&e);
            let refusal = StoreError::ReadOnly(connect::reason(&e));
            return group.into_iter().for_each(|job| refuse(job, &refusal));
        }
        let mut done = Done::default();
        let mut jobs = group.into_iter();
        for job in jobs.by_ref() {
            if let Err(e) = self.write(job, &mut done) {
                self.fail(&e);
                break;
            }
        }
        let failure = match self.status.read_only() {
            Some(reason) => Some(StoreError::ReadOnly(reason)),
            None => self.commit(&mut done),
        };
        if let Some(failure) = failure {
            // Before the commit nothing was written; at the commit it is not known.
            let _ = self.connection.execute_batch("ROLLBACK");
            jobs.for_each(|job| refuse(job, &failure));
            done.appends.into_iter().for_each(|(reply, _)| drop(reply.send(Err(failure.clone()))));
            done.others.into_iter().for_each(|(reply, _)| drop(reply.send(Err(failure.clone()))));
            return;
        }
        self.answer(done);
    }

    fn commit(&mut self, done: &mut Done) -> Option<StoreError> {
        match self.connection.execute_batch("COMMIT") {
            Ok(()) => {
                self.status.commits.fetch_add(u64::from(done.changes > 0), Ordering::Relaxed);
                None
            }
            Err(e) => {
                self.fail(&e);
                Some(StoreError::Unknown(connect::reason(&e)))
            }
        }
    }

    fn answer(&mut self, done: Done) {
        for (log, events) in done.written {
            self.status.events.fetch_add(events.len() as u64, Ordering::Relaxed);
            self.rings.of(log).push(events);
        }
        // Whoever asked may have gone away; the change stands all the same.
        done.appends.into_iter().for_each(|(reply, outcome)| drop(reply.send(outcome)));
        done.others.into_iter().for_each(|(reply, outcome)| drop(reply.send(outcome)));
        self.unchecked += usize::from(done.changes > 0);
        if self.unchecked >= self.pace.look_every && self.wal_pages() >= self.pace.wal_pages_max {
            self.checkpoint("PASSIVE");
        }
    }

    fn write(&mut self, job: Job, done: &mut Done) -> rusqlite::Result<()> {
        match job {
            Job::Append(append, reply) => {
                let tenant = append.log;
                let log = log_state(&self.connection, &mut self.logs, tenant)?;
                done.changes += append.writes.len();
                let written = done.written.entry(tenant).or_default();
                match settled(write::append(&self.connection, log, append, written)) {
                    Ok(outcome) => done.appends.push((reply, outcome)),
                    Err(e) => {
                        drop(reply.send(Err(StoreError::ReadOnly(connect::reason(&e)))));
                        return Err(e);
                    }
                }
            }
            Job::Change(tenant, change, reply) => {
                let log = log_state(&self.connection, &mut self.logs, tenant)?;
                done.changes += 1;
                let outcome = match change {
                    Change::Apply(apply) => settled(write::apply(&self.connection, log, &apply))?,
                    Change::Grow(growth) => settled(tree::grow(&self.connection, log.number, &growth))?,
                    Change::Cosign(note) => Ok(tree::cosign(&self.connection, log.number, &note)?),
                    Change::Beside(things) => Ok(write::put_beside(&self.connection, log.number, &things)?),
                };
                done.others.push((reply, outcome));
            }
            Job::Scrub(_) | Job::Close(_) => {}
        }
        Ok(())
    }

    /// Rewrites the file for whoever waits for that, and empties the write-ahead log.
    fn scrub(&mut self) {
        let waiting = std::mem::take(&mut self.scrubs);
        if waiting.is_empty() {
            return;
        }
        self.status.queued.fetch_sub(waiting.len(), Ordering::Relaxed);
        let outcome = match self.status.read_only() {
            Some(reason) => Err(StoreError::ReadOnly(reason)),
            None => connect::rewrite(&self.connection, &self.disk.directory, self.disk.free_min_bytes).unwrap_or_else(|e| {
                self.fail(&e);
                Err(StoreError::Unknown(connect::reason(&e)))
            }),
        };
        // Whoever asked may have gone away.
        waiting.into_iter().for_each(|reply| drop(reply.send(outcome.clone())));
    }

    /// Pages that wait in the write-ahead log.
    fn wal_pages(&mut self) -> i64 {
        self.unchecked = 1;
        let pages = self.connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1));
        pages.unwrap_or_else(|error| {
            self.fail(&error);
            0
        })
    }

    fn checkpoint(&mut self, mode: &str) {
        if self.unchecked == 0 || self.status.read_only().is_some() {
            return;
        }
        self.unchecked = 0;
        let outcome = self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
        if let Err(e) = outcome {
            self.fail(&e);
        }
    }

    fn is_disk_low(&mut self) -> bool {
        if self.disk_checked_at.is_none_or(|at| at.elapsed() >= DISK_CHECK) {
            self.disk_checked_at = Some(Instant::now());
            let is_low = free_bytes(&self.disk.directory).is_some_and(|free| free < self.disk.free_min_bytes);
            if is_low != self.status.is_disk_low.swap(is_low, Ordering::Relaxed) {
                tracing::warn!(
                    is_low,
                    disk_free_min_bytes = self.disk.free_min_bytes,
                    "free disk space crossed store.disk_free_min"
                );
            }
        }
        self.status.is_disk_low.load(Ordering::Relaxed)
    }

    fn fail(&self, error: &rusqlite::Error) {
        let reason = connect::reason(error);
        tracing::error!(error = %reason, "a write failed: the store is read-only until the server is started again");
        self.status.read_only.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }
}

/// Separates what concerns one item from what breaks the transaction.
fn settled<T>(outcome: Result<T, write::Failure>) -> rusqlite::Result<Result<T, StoreError>> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(write::Failure::Refused(refusal)) => Ok(Err(refusal)),
        Err(write::Failure::Broken(error)) => Err(error),
    }
}

fn log_state<'a>(c: &Connection, logs: &'a mut LogNumbers, tenant: TenantId) -> rusqlite::Result<&'a mut LogState> {
    use std::collections::btree_map::Entry;
    match logs.entry(tenant) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(new) => {
            c.execute("INSERT INTO logs (tenant) VALUES (?1)", [&tenant.bytes()[..]])?;
            Ok(new.insert(LogState { number: c.last_insert_rowid(), position: 0, recorded_at: Timestamp(0) }))
        }
    }
}

fn refuse(job: Job, error: &StoreError) {
    match job {
        Job::Append(_, reply) => drop(reply.send(Err(error.clone()))),
        Job::Change(_, _, reply) | Job::Scrub(reply) => drop(reply.send(Err(error.clone()))),
        Job::Close(_) => {}
    }
}
