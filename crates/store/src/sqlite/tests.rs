//! The contract on SQLite, and what only a store on a disk can show.

use super::*;
use crate::contract::{self, Subject, append, log, write};
use proptest::prelude::*;
use rusqlite::OpenFlags;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

const SETTINGS: SqliteSettings = SqliteSettings { disk_free_min_bytes: 0 };

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(Directory::open(path).unwrap(), &SETTINGS).unwrap()
}

/// Another connection, as another program with the same VFS would have.
pub(super) fn other(file: &Path) -> Connection {
    Connection::open_with_flags_and_vfs(file, OpenFlags::default(), pages::NAME).unwrap()
}

#[tokio::test]
async fn the_contract_holds() {
    let home = TempDir::new().unwrap();
    let count = AtomicUsize::new(0);
    contract::check(|| async {
        let path = home.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(open(&path)) as Subject
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_give_what_the_model_gives(operations in contract::operations()) {
        let home = TempDir::new().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            contract::model(Arc::new(open(home.path())), &operations).await;
        });
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_opening_again() {
    let home = TempDir::new().unwrap();
    let store = open(home.path());
    store.append(append(1, vec![write("thing_a", 0, 3, 0)])).await.unwrap();
    store.close().await;
    drop(store);
    let store = open(home.path());
    assert_eq!(*store.tail(log(1)).borrow(), 3);
    assert_eq!(store.append(append(1, vec![write("thing_a", 3, 1, 0)])).await.unwrap().position, 4);
    assert_eq!(store.read(log(1), "thing_a", 1, 10).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_in_use() {
    let home = TempDir::new().unwrap();
    let _first = open(home.path());
    // A second open file has a lock of its own, as another process would.
    assert!(matches!(Directory::open(home.path()), Err(OpenError::InUse(_))));
}

#[test]
fn a_newer_format_and_newer_tables_are_refused() {
    let home = TempDir::new().unwrap();
    drop(open(home.path()));
    std::fs::write(home.path().join("FORMAT"), "999\n").unwrap();
    assert!(matches!(Directory::open(home.path()), Err(OpenError::Newer { .. })));
    std::fs::write(home.path().join("FORMAT"), "1\n").unwrap();
    let c = other(&home.path().join("keiko.db"));
    c.execute_batch("PRAGMA user_version = 999").unwrap();
    drop(c);
    let refused = SqliteStore::open(Directory::open(home.path()).unwrap(), &SETTINGS);
    assert!(matches!(refused, Err(OpenError::Newer { .. })));
}

#[test]
fn a_format_that_a_crash_left_empty_is_written_again() {
    let home = TempDir::new().unwrap();
    let format = home.path().join("FORMAT");
    std::fs::write(&format, "").unwrap();
    drop(Directory::open(home.path()).unwrap());
    assert_eq!(std::fs::read_to_string(format).unwrap(), "1\n");
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_writes_and_still_reads() {
    let home = TempDir::new().unwrap();
    let settings = SqliteSettings { disk_free_min_bytes: u64::MAX };
    let store = SqliteStore::open(Directory::open(home.path()).unwrap(), &settings).unwrap();
    assert_eq!(store.append(append(1, vec![write("thing_a", 0, 1, 0)])).await, Err(StoreError::DiskLow));
    assert_eq!(store.entity(log(1), "thing_a").await.unwrap(), None);
    assert!(store.health().is_disk_low);
}

#[tokio::test]
async fn a_failed_write_makes_the_store_read_only_and_nothing_is_acknowledged_after_it() {
    let home = TempDir::new().unwrap();
    let store = open(home.path());
    store.append(append(1, vec![write("thing_a", 0, 1, 0)])).await.unwrap();
    // A table that vanishes under the writer is a failed write like any other.
    other(&home.path().join("keiko.db")).execute_batch("ALTER TABLE stream_events RENAME TO gone").unwrap();
    assert!(matches!(store.append(append(1, vec![write("thing_b", 0, 1, 0)])).await, Err(StoreError::ReadOnly(_))));
    other(&home.path().join("keiko.db")).execute_batch("ALTER TABLE gone RENAME TO stream_events").unwrap();
    assert!(matches!(store.append(append(1, vec![write("thing_c", 0, 1, 0)])).await, Err(StoreError::ReadOnly(_))));
    assert!(store.health().read_only.is_some());
    assert_eq!(store.entity(log(1), "thing_a").await.unwrap().unwrap().version, 1, "reading goes on");
    store.close().await;
    drop(store);
    let store = open(home.path());
    assert_eq!(*store.tail(log(1)).borrow(), 1, "what was refused did not happen");
}

#[tokio::test]
async fn a_changed_event_is_found_by_its_position() {
    let home = TempDir::new().unwrap();
    let store = open(home.path());
    store.append(append(1, vec![write("thing_a", 0, 3, 0)])).await.unwrap();
    store.close().await;
    drop(store);
    let directory = Directory::open(home.path()).unwrap();
    let whole = SqliteStore::verify(&directory).unwrap();
    assert_eq!((whole.logs, whole.events, whole.findings.len()), (1, 3, 0));
    let c = other(&directory.database());
    c.execute_batch("UPDATE events SET actor_id = 'somebody else' WHERE version = 2").unwrap();
    let found = SqliteStore::verify(&directory).unwrap().findings;
    assert_eq!(found.iter().map(|f| f.position).collect::<Vec<_>>(), [Some(2)]);
}

#[tokio::test]
async fn a_damaged_page_is_named_with_its_file() {
    let home = TempDir::new().unwrap();
    let file = home.path().canonicalize().unwrap().join("keiko.db");
    let store = open(home.path());
    store.append(append(1, vec![write("thing_a", 0, 3, 0)])).await.unwrap();
    let root: usize =
        other(&file).query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'events'", [], |r| r.get(0)).unwrap();
    store.close().await;
    drop(store);
    assert!(!home.path().join("keiko.db-wal").exists(), "a clean close leaves no log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[root * 4_096 - 100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let named = format!("page {root} of {} does not match its checksum", file.display());
    assert_eq!(SqliteStore::verify(&Directory::open(home.path()).unwrap()).err(), Some(StoreError::Corrupt(named.clone())));
    let refused = SqliteStore::open(Directory::open(home.path()).unwrap(), &SETTINGS).err().unwrap();
    assert!(refused.to_string().contains(&named), "{refused}");
}

#[tokio::test]
async fn a_database_from_before_the_checksums_goes_on() {
    let home = TempDir::new().unwrap();
    let file = home.path().join("keiko.db");
    Connection::open(&file).unwrap().execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE first (x)").unwrap();
    let store = open(home.path());
    store.append(append(1, vec![write("thing_a", 0, 3, 0)])).await.unwrap();
    store.close().await;
    drop(store);
    assert_eq!(std::fs::read(&file).unwrap()[20], 0, "no bytes are reserved");
    let store = open(home.path());
    assert_eq!(store.read(log(1), "thing_a", 1, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn many_waiting_appends_share_few_commits() {
    let home = TempDir::new().unwrap();
    let store = open(home.path());
    let waiting: Vec<_> = (0..500).map(|n| store.append(append(1, vec![write(&format!("thing_{n}"), 0, 1, 0)]))).collect();
    for appended in waiting {
        appended.await.unwrap();
    }
    assert!(store.health().commits < 100, "{} commits for 500 appends", store.health().commits);
}

/// A store whose process died: its files as they were, with everything in the write-ahead log.
async fn died(home: &Path) -> Vec<Arc<Recorded>> {
    let store = open(home);
    for n in 0..6 {
        store.append(append(1, vec![write(&format!("thing_{n}"), 0, 2, n)])).await.unwrap();
    }
    let events = store.scan(log(1), 0, ScanFilter::default(), 100).await.unwrap().events;
    let copy = home.join("died");
    std::fs::create_dir(&copy).unwrap();
    for name in ["FORMAT", "keiko.db", "keiko.db-wal"] {
        std::fs::copy(home.join(name), copy.join(name)).unwrap();
    }
    store.close().await;
    events
}

/// Any byte of the write-ahead log that is flipped after a crash is found, or only what was written last is missing.
#[tokio::test]
async fn a_flipped_byte_in_the_log_of_a_crash_is_found_unless_it_could_be_its_torn_end() {
    let home = TempDir::new().unwrap();
    let events = died(home.path()).await;
    let died = home.path().join("died");
    let whole = std::fs::read(died.join("keiko.db-wal")).unwrap();
    assert!(whole.len() > 20_000);
    let every = if std::env::var_os("KEIKO_FAULTS_LONG").is_some() { 11 } else { 97 };
    let (mut found, mut shorter, mut tried) = (0, 0, 0);
    // A damaged header cannot be told from one that was torn when a new round began.
    for at in (32..whole.len()).step_by(every) {
        let again = home.path().join("again");
        std::fs::create_dir(&again).unwrap();
        for name in ["FORMAT", "keiko.db"] {
            std::fs::copy(died.join(name), again.join(name)).unwrap();
        }
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(again.join("keiko.db-wal"), flipped).unwrap();
        tried += 1;
        let opened = Directory::open(&again)
            .and_then(|directory| SqliteStore::open(directory, &SqliteSettings { disk_free_min_bytes: 0 }));
        match opened {
            Err(error) => {
                assert!(error.to_string().contains("damaged") || error.to_string().contains("page"), "byte {at}: {error}");
                found += 1;
            }
            Ok(store) => {
                let left = store.scan(log(1), 0, ScanFilter::default(), 100).await.unwrap().events;
                assert!(
                    left.len() >= events.len() - 2 && left == events[..left.len()],
                    "byte {at}: {} of {}",
                    left.len(),
                    events.len()
                );
                shorter += usize::from(left.len() < events.len());
                store.close().await;
            }
        }
        std::fs::remove_dir_all(&again).unwrap();
    }
    println!("{tried} bytes of a write-ahead log flipped: {found} found, {shorter} like a torn end");
    assert!(found > tried / 2);
}

#[test]
fn a_log_that_was_torn_by_a_crash_is_no_damage() {
    let home = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(died(home.path()));
    let path = home.path().join("died/keiko.db-wal");
    let whole = std::fs::read(&path).unwrap();
    let torn = home.path().join("torn");
    for length in (0..whole.len()).step_by(499) {
        std::fs::write(&torn, &whole[..length]).unwrap();
        assert_eq!(wal::damaged(&torn).unwrap(), None, "{length}");
    }
    assert_eq!(wal::damaged(&home.path().join("none")).unwrap(), None);
}
