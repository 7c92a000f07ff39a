//! The work of the example agent: choosing files, and counting what is in them.
//!
//! Owns which files may be read: those that lie directly in one directory, and no link out of it. Never writes.

use anyhow::Context;
use serde_json::{Value, json};
use std::fs::{self, DirEntry, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files are not counted.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Where a byte of zero shows that a file is no text.
const PROBE_BYTES: u64 = 8 * 1024;

/// What is in a file, as `wc` counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Line ends.
    pub lines: u64,
    /// Runs of characters between white space.
    pub words: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counts {
    /// Counts.
    pub fn of(content: &[u8]) -> Self {
        let lines = content.iter().filter(|b| **b == b'\n').count();
        let words = content.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count();
        Counts { lines: lines as u64, words: words as u64, bytes: content.len() as u64 }
    }

    /// Reads a task's output.
    pub fn from_output(output: &Value) -> Option<Self> {
        let count = |name: &str| output[name].as_u64();
        Some(Counts { lines: count("lines")?, words: count("words")?, bytes: count("bytes")? })
    }

    /// A task's output.
    pub fn to_output(self) -> Value {
        json!({ "lines": self.lines, "words": self.words, "bytes": self.bytes })
    }
}

/// Why a file is not counted.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not in the agent's directory: another agent may have it.
    Elsewhere,
    /// It cannot be read; the reason.
    Unreadable(String),
}

/// The text files of a directory, by name, at most `files_max`. `dir` must be canonical.
pub fn choose(dir: &Path, files_max: usize) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read the directory {}", dir.display());
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        if is_candidate(&entry) && is_text(&entry.path()) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.truncate(files_max);
    Ok(found)
}

/// A regular file (no link), not hidden, not too large, with a name that JSON can hold.
fn is_candidate(entry: &DirEntry) -> bool {
    let is_named = entry.file_name().to_str().is_some_and(|name| !name.starts_with('.'));
    is_named && entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_BYTES_MAX)
}

fn is_text(path: &Path) -> bool {
    let mut beginning = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PROBE_BYTES).read_to_end(&mut beginning));
    read.is_ok() && !beginning.contains(&0)
}

/// Counts a file that a task names, if it lies directly in `dir`.
pub fn count(dir: &Path, path: &str) -> Result<Counts, Refusal> {
    let unreadable = |error: std::io::Error| Refusal::Unreadable(error.to_string());
    if Path::new(path).parent() != Some(dir) {
        return Err(Refusal::Elsewhere);
    }
    // A link may lead anywhere.
    let meta = fs::symlink_metadata(path).map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Refusal::Unreadable("it is not a regular file".to_owned()));
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(Refusal::Unreadable(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Counts::of(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_wc() {
        let text = "one two\n\n  three\tfour\nlast";
        assert_eq!(Counts::of(text.as_bytes()), Counts { lines: 3, words: 5, bytes: 26 });
        assert_eq!(Counts::of(b""), Counts::default());
        let counts = Counts { lines: 1, words: 2, bytes: 3 };
        assert_eq!(Counts::from_output(&counts.to_output()), Some(counts));
        assert_eq!(Counts::from_output(&json!({"lines": 1})), None);
    }

    #[test]
    fn only_visible_text_files_of_the_directory_are_chosen() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        for (name, content) in [("b.txt", "b"), ("a.txt", "a"), (".hidden", "h"), ("picture", "p\0g"), ("c.txt", "c")] {
            fs::write(dir.join(name), content).unwrap();
        }
        fs::create_dir(dir.join("below")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        assert_eq!(choose(&dir, 2).unwrap(), [dir.join("a.txt"), dir.join("b.txt")]);
        assert_eq!(choose(&dir, 50).unwrap().len(), 3);
    }

    #[test]
    fn a_task_cannot_make_the_agent_read_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        fs::write(dir.join("a"), "x y\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
        let named = |name: &str| count(&dir, &format!("{}/{name}", dir.display()));
        assert_eq!(named("a"), Ok(Counts { lines: 1, words: 2, bytes: 4 }));
        assert_eq!(count(&dir, "/etc/passwd"), Err(Refusal::Elsewhere));
        assert_eq!(named("../x"), Err(Refusal::Elsewhere));
        assert!(matches!(named("link"), Err(Refusal::Unreadable(_))));
        assert!(matches!(named("none"), Err(Refusal::Unreadable(_))));
    }
}
