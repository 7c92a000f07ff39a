//! The data directory: its format number, its lock, and where things lie in it.
//!
//! `FORMAT` holds the number of the layout, `lock` is held by the one process that uses the directory, `keiko.db` is the
//! database, `journal.db` the journal, `keys/` holds key files that only the owner can read.

use super::connect::Database;
use crate::OpenError;
use std::fs::{self, File, OpenOptions, TryLockError};
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
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(found) if found <= FORMAT => Ok(()),
                _ => Err(OpenError::Newer {
                    path: self.path.display().to_string(),
                    found: text.trim().chars().take(20).collect(),
                    known: FORMAT,
                }),
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => fs::write(&file, format!("{FORMAT}\n")).map_err(unusable),
            Err(e) => Err(unusable(e)),
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
