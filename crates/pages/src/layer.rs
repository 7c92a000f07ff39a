//! What the checksum VFS does with a database file: it stamps what is written and checks what is read.

use crate::checksum;
use crate::vfs::{Below, Kind, Layer};
use rusqlite::ffi;
use std::cell::RefCell;
use std::ffi::c_int;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where the header of a database says how many bytes of each page are reserved.
const RESERVED_AT: usize = 20;
/// The bytes of the header that SQLite reads when it opens a file.
const HEADER_BYTES: usize = 100;

thread_local! {
    static LAST: RefCell<Option<Corruption>> = const { RefCell::new(None) };
}

/// A page that does not match its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The database file.
    pub file: PathBuf,
    /// The page's number, from 1.
    pub page: u64,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of {} does not match its checksum", self.page, self.file.display())
    }
}

/// The latest page that this thread read and that did not match its checksum. SQLite reads on the thread that asks, so
/// after `SQLITE_IOERR_DATA` this is the page that the error speaks of.
pub fn last_corruption() -> Option<Corruption> {
    LAST.with_borrow(Clone::clone)
}

/// The layer with checksums.
pub(crate) struct Checksums;

/// A database file that is open.
pub(crate) struct Checked {
    path: PathBuf,
    /// Whether its pages have checksums.
    is_on: bool,
}

impl Checked {
    fn corrupt(&self, page: u64) -> c_int {
        LAST.set(Some(Corruption { file: self.path.clone(), page }));
        ffi::SQLITE_IOERR_DATA
    }
}

impl Layer for Checksums {
    type File = Checked;

    fn open(&self, path: &Path, kind: Kind) -> Option<Checked> {
        (kind == Kind::Database).then(|| Checked { path: path.to_owned(), is_on: false })
    }

    fn check(&self, file: &mut Checked, below: &mut Below, bytes: &[u8], offset: u64) -> c_int {
        if let Some(is_reserved) = reservation(bytes, offset) {
            file.is_on = is_reserved;
            if !is_reserved && has_lost_its_reservation(below, bytes) {
                return file.corrupt(1);
            }
        }
        if file.is_on && checksum::is_page(bytes.len()) && !checksum::holds(bytes) {
            return file.corrupt(offset / bytes.len() as u64 + 1);
        }
        ffi::SQLITE_OK
    }

    fn write(&self, file: &mut Checked, below: &mut Below, bytes: &[u8], offset: u64) -> c_int {
        if let Some(is_reserved) = reservation(bytes, offset) {
            file.is_on = is_reserved;
        }
        if !file.is_on || !checksum::is_page(bytes.len()) {
            return below.write(bytes, offset);
        }
        let mut page = bytes.to_vec();
        checksum::stamp(&mut page);
        below.write(&page, offset)
    }

    fn characteristics(&self, below: c_int) -> c_int {
        // A part of a page cannot be checked.
        below & !ffi::SQLITE_IOCAP_SUBPAGE_READ
    }
}

/// Whether 8 bytes of each page are reserved, when these bytes begin with a database's header.
fn reservation(bytes: &[u8], offset: u64) -> Option<bool> {
    let is_header = offset == 0 && bytes.len() >= HEADER_BYTES && bytes.starts_with(b"SQLite format 3\0");
    is_header.then(|| usize::from(bytes[RESERVED_AT]) == checksum::BYTES)
}

/// Whether the first page has the checksum that it had if 8 bytes were reserved: then the very byte that says so is
/// damaged, and nothing else would notice.
fn has_lost_its_reservation(below: &mut Below, header: &[u8]) -> bool {
    let bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        bytes => usize::from(bytes),
    };
    let mut page = vec![0; bytes];
    if !checksum::is_page(bytes) || below.read(&mut page, 0) != ffi::SQLITE_OK {
        return false;
    }
    page[RESERVED_AT] = checksum::BYTES as u8;
    checksum::holds(&page)
}
