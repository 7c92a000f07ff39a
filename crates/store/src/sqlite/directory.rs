//! The data directory: its format number, its lock, and where things lie in it.
//!
//! `FORMAT` holds the number of the layout, `lock` is held by the one process that uses the directory, `keiko.db` is the
//! database, `journal.db` the journal, `keys/` holds key files that only the owner can read.

use super::connect::Database;
use crate::OpenError;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The layout that this version writes.
const FORMAT: u32 = 1;

/// A data directory that this process has for itself.
pub struct Directory {
    path: PathBuf,
    /// The VFS through which its databases are reached.
    vfs: &'static str,
    _lock: File,
}

impl Directory {
    /// Makes the directory when it is missing, checks its format and locks it.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let unusable = |e: std::io::Error| OpenError::Unusable { path: path.display().to_string(), reason: e.to_string() };
        make_private(path).map_err(unusable)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path.display().to_string())),
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
        }
        let directory = Directory { path: path.to_owned(), vfs: pages::NAME, _lock: lock };
        directory.check_format(unusable)?;
        make_private(&directory.keys()).map_err(unusable)?;
        Ok(directory)
    }

    fn check_format(&self, unusable: impl Fn(std::io::Error) -> OpenError) -> Result<(), OpenError> {
        let file = self.path.join("FORMAT");
        match fs::read_to_string(&file) {
            // A crash right after the first start can leave it empty.
            Ok(text) if text.is_empty() => self.write_format().map_err(unusable),
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(found) if found <= FORMAT => Ok(()),
                _ => Err(OpenError::Newer {
                    path: self.path.display().to_string(),
                    found: text.trim().chars().take(20).collect(),
                    known: FORMAT,
                }),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.write_format().map_err(unusable),
            Err(e) => Err(unusable(e)),
        }
    }

    /// Writes the number whole or not at all, and makes durable that it and the directory are there: what lies in a
    /// directory is only as durable as its own entry.
    fn write_format(&self) -> std::io::Result<()> {
        let new = self.path.join("FORMAT.new");
        let mut file = File::create(&new)?;
        file.write_all(format!("{FORMAT}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(new, self.path.join("FORMAT"))?;
        File::open(&self.path)?.sync_all()?;
        let whole = self.path.canonicalize()?;
        match whole.parent().map(File::open) {
            Some(Ok(parent)) => parent.sync_all(),
            // At the root there is no parent, and one that this user may not read cannot be synced.
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.path.join("keiko.db")
    }

    /// The journal's file.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal.db")
    }

    pub(super) fn open_database(&self) -> Database {
        Database::new(self.database(), self.vfs)
    }

    pub(super) fn open_journal(&self) -> Database {
        Database::new(self.journal(), self.vfs)
    }

    /// The same directory, with its databases on a disk that records and fails.
    #[cfg(test)]
    pub(super) fn on_faults(self) -> Self {
        Directory { vfs: pages::faults::NAME, ..self }
    }

    /// The folder of key files.
    pub fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }
}

/// Makes a folder that only its owner can enter; an existing one keeps its mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
