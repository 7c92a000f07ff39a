//! A disk for tests: it records what SQLite does to the files of a folder, fails when it is told to, and says what could
//! be on it after a crash.
//!
//! [`NAME`] is the VFS with checksums over one that records. Files of folders that nobody follows pass through. Syncs of
//! followed files are recorded and not carried out: what is durable is for the record to say, and tests are faster.

use crate::layer::Checksums;
use crate::vfs::{self, Below, Kind, Layer};
use rusqlite::ffi;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The name of the VFS.
pub const NAME: &str = "keiko-faults";

/// Sectors that a disk writes whole.
const SECTOR_BYTES: u64 = 512;

/// Folders that are followed.
static FOLLOWED: Mutex<BTreeMap<PathBuf, Arc<Mutex<State>>>> = Mutex::new(BTreeMap::new());

/// One thing done to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The file's name in its folder.
    pub file: String,
    /// What was done.
    pub what: What,
}

/// What is done to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// These bytes were written there.
    Write(u64, Vec<u8>),
    /// The length was set.
    Truncate(u64),
    /// What was written before is durable; with `true` also which files there are.
    Sync(bool),
    /// The file was removed.
    Delete,
}

/// What is to go wrong, once. Numbers count from 1, from the beginning of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This sync fails; what it should have made durable may be lost.
    Sync(usize),
    /// From this write on the disk is full.
    Full(usize),
    /// Of this write only the first half is done.
    Short(usize),
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    writes: usize,
    syncs: usize,
    fault: Option<Fault>,
    /// How many operations there were when the fault happened.
    failed_at: Option<usize>,
    /// What was asked for after that.
    asked_after: usize,
}

impl State {
    fn record(&mut self, file: &str, what: What) {
        self.ops.push(Op { file: file.to_owned(), what });
    }

    fn ask(&mut self) {
        self.asked_after += usize::from(self.failed_at.is_some());
    }

    fn fail(&mut self, code: c_int) -> c_int {
        self.failed_at.get_or_insert(self.ops.len());
        code
    }
}

/// A folder whose files are followed, until this is dropped.
pub struct Disk {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// Follows the files that are opened in a folder from now on, through the VFS [`NAME`].
    pub fn follow(folder: &Path) -> std::io::Result<Disk> {
        let folder = folder.canonicalize()?;
        let state = Arc::new(Mutex::new(State::default()));
        lock(&FOLLOWED).insert(folder.clone(), state.clone());
        Ok(Disk { folder, state })
    }

    /// Makes something go wrong.
    pub fn fail(&self, fault: Fault) {
        lock(&self.state).fault = Some(fault);
    }

    /// How many operations were recorded.
    pub fn ops(&self) -> usize {
        lock(&self.state).ops.len()
    }

    /// How many writes and how many syncs were asked for.
    pub fn writes_and_syncs(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.writes, state.syncs)
    }

    /// How many operations there were when the fault happened, once it did.
    pub fn failed_at(&self) -> Option<usize> {
        lock(&self.state).failed_at
    }

    /// How many changes and syncs were asked for after the fault.
    pub fn asked_after(&self) -> usize {
        lock(&self.state).asked_after
    }

    /// The record.
    pub fn record(&self) -> Vec<Op> {
        lock(&self.state).ops.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        lock(&FOLLOWED).remove(&self.folder);
    }
}

/// Makes the VFS known to SQLite.
pub fn register() -> rusqlite::Result<()> {
    vfs::register(c"keiko-recorder", None, Recorder)?;
    vfs::register(c"keiko-faults", Some(c"keiko-recorder"), Checksums)
}

struct Recorder;

struct Recorded {
    name: String,
    state: Arc<Mutex<State>>,
    /// Whether the next sync also makes durable that the file is there, as the unix VFS does for journals.
    is_new: bool,
}

fn followed(path: &Path) -> Option<(String, Arc<Mutex<State>>)> {
    let state = lock(&FOLLOWED).get(path.parent()?)?.clone();
    Some((path.file_name()?.to_string_lossy().into_owned(), state))
}

impl Layer for Recorder {
    type File = Recorded;

    fn open(&self, path: &Path, kind: Kind) -> Option<Recorded> {
        let (name, state) = followed(path)?;
        let is_new = matches!(kind, Kind::Wal | Kind::Journal) && !path.exists();
        (kind != Kind::Other).then_some(Recorded { name, state, is_new })
    }

    fn write(&self, file: &mut Recorded, below: &mut Below, bytes: &[u8], offset: u64) -> c_int {
        let mut state = lock(&file.state);
        state.ask();
        state.writes += 1;
        let (done, code) = match state.fault {
            Some(Fault::Full(n)) if state.writes >= n => (0, state.fail(ffi::SQLITE_FULL)),
            Some(Fault::Short(n)) if state.writes == n => (bytes.len() / 2, state.fail(ffi::SQLITE_IOERR_WRITE)),
            _ => (bytes.len(), ffi::SQLITE_OK),
        };
        if done == 0 {
            return code;
        }
        state.record(&file.name, What::Write(offset, bytes[..done].to_vec()));
        match below.write(&bytes[..done], offset) {
            ffi::SQLITE_OK => code,
            broken => broken,
        }
    }

    fn truncate(&self, file: &mut Recorded, below: &mut Below, bytes: u64) -> c_int {
        let mut state = lock(&file.state);
        state.ask();
        state.record(&file.name, What::Truncate(bytes));
        below.truncate(bytes)
    }

    fn sync(&self, file: &mut Recorded, _: &mut Below, _: c_int) -> c_int {
        let mut state = lock(&file.state);
        state.ask();
        state.syncs += 1;
        if state.fault == Some(Fault::Sync(state.syncs)) {
            return state.fail(ffi::SQLITE_IOERR_FSYNC);
        }
        state.record(&file.name, What::Sync(std::mem::take(&mut file.is_new)));
        ffi::SQLITE_OK
    }

    fn delete(&self, path: &Path) -> c_int {
        if let Some((name, state)) = followed(path) {
            let mut state = lock(&state);
            state.ask();
            state.record(&name, What::Delete);
        }
        ffi::SQLITE_OK
    }
}

/// What is left of the operations that no sync made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// All of them.
    All,
    /// None of them.
    Synced,
    /// All, and the last one in part.
    Torn,
    /// Any of them, some in part.
    Some,
}

/// The files as they can be after a crash at the end of `ops`.
pub fn crash(ops: &[Op], left: Left, dice: &mut Dice) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<&str, File<'_>> = BTreeMap::new();
    for op in ops {
        files.entry(&op.file).or_default().pending.push(&op.what);
        if let What::Sync(with_folder) = op.what {
            files.get_mut(op.file.as_str()).map(File::settle);
            if with_folder {
                files.values_mut().for_each(File::settle_removal);
            }
        }
    }
    let last = ops.last().map(|op| op.file.as_str());
    for (name, file) in &mut files {
        file.end(left, last == Some(name), dice);
    }
    files.into_iter().filter_map(|(name, file)| Some((name.to_owned(), file.content?))).collect()
}

/// A file on the disk, and what is on its way there.
#[derive(Default)]
struct File<'a> {
    content: Option<Vec<u8>>,
    pending: Vec<&'a What>,
}

impl File<'_> {
    /// Everything is durable.
    fn settle(&mut self) {
        std::mem::take(&mut self.pending).into_iter().for_each(|what| self.apply(what, 0..u64::MAX));
    }

    /// A removal is durable, with what was before it.
    fn settle_removal(&mut self) {
        if let Some(at) = self.pending.iter().rposition(|what| **what == What::Delete) {
            self.pending.drain(..=at);
            self.content = None;
        }
    }

    fn end(&mut self, left: Left, is_last: bool, dice: &mut Dice) {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len();
        for (at, what) in pending.into_iter().enumerate() {
            let part = match left {
                Left::All => 0..u64::MAX,
                Left::Synced => 0..0,
                Left::Torn if is_last && at + 1 == count => part(what, dice),
                Left::Torn => 0..u64::MAX,
                Left::Some => match dice.below(3) {
                    0 => 0..0,
                    1 => part(what, dice),
                    _ => 0..u64::MAX,
                },
            };
            // What came after a removal went to another file, which is there only if the removal is.
            if *what == What::Delete && part.is_empty() {
                return;
            }
            self.apply(what, part);
        }
    }

    /// Does it, as far as it lies in this part of the file.
    fn apply(&mut self, what: &What, part: std::ops::Range<u64>) {
        match what {
            _ if part.is_empty() => {}
            What::Write(offset, bytes) => {
                let (from, to) = (part.start.max(*offset), part.end.min(offset + bytes.len() as u64));
                let content = self.content.get_or_insert_default();
                if from < to {
                    content.resize(content.len().max(to as usize), 0);
                    let (first, last) = ((from - offset) as usize, (to - offset) as usize);
                    content[from as usize..to as usize].copy_from_slice(&bytes[first..last]);
                }
            }
            What::Truncate(bytes) => self.content.get_or_insert_default().resize(*bytes as usize, 0),
            What::Sync(_) => {}
            What::Delete => self.content = None,
        }
    }
}

/// A part of a write that ends or begins with a sector; all or nothing of anything else.
fn part(what: &What, dice: &mut Dice) -> std::ops::Range<u64> {
    let What::Write(offset, bytes) = what else { return 0..u64::MAX * dice.below(2) };
    let (first, last) = (offset / SECTOR_BYTES, (offset + bytes.len() as u64).div_ceil(SECTOR_BYTES));
    let cut = (first + dice.below(last - first)) * SECTOR_BYTES;
    match dice.below(4) {
        0 => cut..u64::MAX,
        _ => 0..cut,
    }
}

/// Pseudo-random numbers, the same for the same seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    /// The next number, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(file: &str, what: What) -> Op {
        Op { file: file.into(), what }
    }

    #[test]
    fn only_what_was_synced_is_sure_to_be_left() {
        let ops = [
            op("a", What::Write(0, vec![1; 1024])),
            op("a", What::Sync(false)),
            op("a", What::Write(1024, vec![2; 1024])),
            op("b", What::Write(0, vec![3; 4])),
        ];
        let files = |left| crash(&ops, left, &mut Dice(1));
        assert_eq!(files(Left::Synced), BTreeMap::from([("a".into(), vec![1; 1024])]));
        assert_eq!(files(Left::All)["a"].len(), 2048);
        assert_eq!(files(Left::All)["b"], [3; 4]);
        let torn = crash(&ops[..3], Left::Torn, &mut Dice(5));
        assert!([1024, 1536, 2048].contains(&torn["a"].len()), "{}", torn["a"].len());
        assert!((0..50).all(|seed| crash(&ops, Left::Some, &mut Dice(seed))["a"].starts_with(&[1; 1024])));
    }

    #[test]
    fn a_removal_is_durable_with_the_folder_and_what_came_after_belongs_to_another_file() {
        let ops = [
            op("w", What::Write(0, vec![1])),
            op("w", What::Sync(true)),
            op("w", What::Delete),
            op("w", What::Write(0, vec![2])),
            op("j", What::Sync(true)),
        ];
        assert_eq!(crash(&ops[..4], Left::Synced, &mut Dice(1))["w"], [1]);
        assert!(!crash(&ops, Left::Synced, &mut Dice(1)).contains_key("w"));
        assert_eq!(crash(&ops, Left::All, &mut Dice(1))["w"], [2]);
        for seed in 0..50 {
            assert!([Some(&vec![1]), Some(&vec![2]), None].contains(&crash(&ops[..4], Left::Some, &mut Dice(seed)).get("w")));
        }
    }
}
