//! The VFS under SQLite: what is written has checksums, what is damaged is not read, and older databases go on.

use pages::{Corruption, NAME, last_corruption, register, reserve};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PAGE: usize = 4096;

fn try_open(path: &Path) -> rusqlite::Result<Connection> {
    register().unwrap();
    register().unwrap();
    Connection::open_with_flags_and_vfs(path, OpenFlags::default(), NAME)
}

fn open(path: &Path) -> Connection {
    try_open(path).unwrap()
}

/// A database with a few pages, closed.
fn made(home: &TempDir, is_reserved: bool, mode: &str) -> PathBuf {
    let path = home.path().canonicalize().unwrap().join("a.db");
    let c = open(&path);
    if is_reserved {
        reserve(&c).unwrap();
    }
    c.execute_batch(&format!("PRAGMA journal_mode = {mode}; CREATE TABLE t (n INTEGER PRIMARY KEY, x TEXT);")).unwrap();
    for n in 0..200 {
        c.execute("INSERT INTO t VALUES (?1, ?2)", (n, format!("{n}-").repeat(40))).unwrap();
    }
    path
}

/// Whether the last 8 bytes of each page are what the documented sums say, computed once more in the plainest way.
fn has_checksums(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.len() > 5 * PAGE && bytes.len().is_multiple_of(PAGE));
    bytes.chunks(PAGE).all(|page| {
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let (mut first, mut second) = (0_u32, 0_u32);
        for at in (0..PAGE - 8).step_by(8) {
            first = first.wrapping_add(word(at).wrapping_add(second));
            second = second.wrapping_add(word(at + 4).wrapping_add(first));
        }
        (word(PAGE - 8), word(PAGE - 4)) == (first, second)
    })
}

fn sum(c: &Connection) -> rusqlite::Result<i64> {
    c.query_row("SELECT sum(length(x)) FROM t", [], |row| row.get(0))
}

fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_page_has_its_checksum_with_a_write_ahead_log_and_with_a_journal() {
    for mode in ["WAL", "DELETE"] {
        let home = TempDir::new().unwrap();
        let path = made(&home, true, mode);
        assert!(has_checksums(&path), "{mode}");
        assert_eq!(sum(&open(&path)).unwrap(), sum(&Connection::open(&path).unwrap()).unwrap());
    }
}

#[test]
fn a_damaged_page_is_an_error_that_names_it() {
    let home = TempDir::new().unwrap();
    let path = made(&home, true, "WAL");
    damage(&path, 3 * PAGE + 2_000);
    let error = sum(&open(&path)).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
    assert_eq!(error.sqlite_error().unwrap().extended_code, rusqlite::ffi::SQLITE_IOERR_DATA);
    let found = last_corruption().unwrap();
    assert_eq!(found, Corruption { file: path.clone(), page: 4 });
    assert_eq!(found.to_string(), format!("page 4 of {} does not match its checksum", path.display()));
}

#[test]
fn the_byte_that_says_that_there_are_checksums_is_guarded_too() {
    let home = TempDir::new().unwrap();
    let path = made(&home, true, "WAL");
    damage(&path, 20);
    let error = try_open(&path).unwrap_err();
    assert_eq!(error.sqlite_error().unwrap().extended_code, rusqlite::ffi::SQLITE_IOERR_DATA);
    assert_eq!(last_corruption().unwrap().page, 1);
}

#[test]
fn a_database_without_reserved_bytes_works_unchecked() {
    let home = TempDir::new().unwrap();
    let path = made(&home, false, "WAL");
    assert!(!has_checksums(&path));
    let c = open(&path);
    reserve(&c).unwrap();
    c.execute("DELETE FROM t WHERE n = 7", []).unwrap();
    drop(c);
    damage(&path, 3 * PAGE + 2_000);
    sum(&open(&path)).unwrap();
    assert!(!has_checksums(&path), "a database keeps what it has");
}

#[test]
fn after_a_vacuum_an_older_database_has_checksums() {
    let home = TempDir::new().unwrap();
    let path = made(&home, false, "DELETE");
    let c = open(&path);
    reserve(&c).unwrap();
    c.execute_batch("VACUUM").unwrap();
    drop(c);
    assert!(has_checksums(&path));
}
