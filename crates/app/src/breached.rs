//! Passwords that are known to everybody: a file of them, looked into without reading it whole.
//!
//! The file is either a sorted list of SHA-1 hashes in hexadecimal, each perhaps followed by `:` and a count (the form in
//! which the lists of leaked passwords are given out, of any size), or a plain list of passwords of at most 64 MiB.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use kernel::text;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Characters of a SHA-1 in hexadecimal.
const HASH_CHARS: usize = 40;
/// Largest plain list, which is kept in memory.
const PLAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A list of passwords that nobody may have.
#[derive(Debug)]
pub struct Breached(List);

#[derive(Debug)]
enum List {
    /// SHA-1 hashes in order, on the disk.
    Sorted(PathBuf),
    /// Hashes of a plain list.
    Plain(BTreeSet<[u8; 20]>),
}

fn sha1(text: &[u8]) -> [u8; 20] {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, text);
    std::array::from_fn(|n| hash.as_ref()[n])
}

impl Breached {
    /// Opens a list, or says what is wrong with it.
    pub fn open(path: &Path) -> Result<Breached, String> {
        let told = |e: io::Error| format!("cannot read {}: {e}", path.display());
        let file = File::open(path).map_err(told)?;
        let bytes = file.metadata().map_err(told)?.len();
        let mut reader = BufReader::new(file);
        let mut first = String::new();
        // The first line tells the form; a line that is no text is a plain list's.
        let is_text = reader.read_line(&mut first).is_ok();
        if is_text && hash_of(&first).is_some() {
            return Ok(Breached(List::Sorted(path.to_owned())));
        }
        if bytes > PLAIN_BYTES_MAX {
            return Err(format!("{} is too large for a plain list; use one of sorted SHA-1 hashes", path.display()));
        }
        reader.rewind().map_err(told)?;
        let mut hashes = BTreeSet::new();
        for line in reader.split(b'\n') {
            let line = line.map_err(told)?;
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if !line.is_empty() {
                hashes.insert(sha1(line));
            }
        }
        Ok(Breached(List::Plain(hashes)))
    }

    /// Whether a password is in the list. Reads from the disk.
    pub fn has(&self, password: &str) -> io::Result<bool> {
        let hash = sha1(password.as_bytes());
        match &self.0 {
            List::Plain(hashes) => Ok(hashes.contains(&hash)),
            List::Sorted(path) => search(path, &text::hex(&hash).to_ascii_uppercase()),
        }
    }
}

/// The hash at the beginning of a line.
fn hash_of(line: &str) -> Option<String> {
    let hash = line.get(..HASH_CHARS)?;
    let ends = line.get(HASH_CHARS..).is_none_or(|rest| rest.is_empty() || rest.starts_with([':', '\r', '\n']));
    (ends && hash.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hash.to_ascii_uppercase())
}

/// Halves the file again and again: a dozen reads find a hash among a billion.
fn search(path: &Path, wanted: &str) -> io::Result<bool> {
    let file = File::open(path)?;
    let (mut low, mut high) = (0, file.metadata()?.len());
    let mut reader = BufReader::with_capacity(256, file);
    // The lines that begin in [low, high) are left to look at.
    while low < high {
        let middle = low + (high - low) / 2;
        let begin = line_from(&mut reader, middle)?;
        let mut line = String::new();
        if begin >= high || reader.read_line(&mut line)? == 0 {
            high = middle;
            continue;
        }
        match hash_of(&line).unwrap_or_default().as_str().cmp(wanted) {
            std::cmp::Ordering::Equal => return Ok(true),
            std::cmp::Ordering::Less => low = begin + line.len() as u64,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(false)
}

/// Goes to the first line that begins at `at` or later. Answers where that is.
fn line_from(reader: &mut BufReader<File>, at: u64) -> io::Result<u64> {
    if at == 0 {
        reader.seek(SeekFrom::Start(0))?;
        return Ok(0);
    }
    // From the byte before: if that ends a line, the next one begins here.
    reader.seek(SeekFrom::Start(at - 1))?;
    let mut skipped = vec![];
    let count = reader.read_until(b'\n', &mut skipped)?;
    Ok(at - 1 + count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn every_hash_of_a_sorted_list_is_found_and_no_other() {
        for (count, end) in [(1, "\n"), (2, "\n"), (1_000, "\r\n"), (999, "\n")] {
            let hash = |n: usize| text::hex(&sha1(format!("password {n}").as_bytes())).to_ascii_uppercase();
            let mut lines: Vec<String> = (0..count).map(|n| format!("{}:{}", hash(n), n * 7)).collect();
            lines.sort();
            let list = file(&(lines.join(end) + end));
            let breached = Breached::open(list.path()).unwrap();
            assert!(matches!(breached.0, List::Sorted(_)));
            for n in 0..count {
                assert!(breached.has(&format!("password {n}")).unwrap(), "{n} of {count}");
            }
            for n in count..count + 200 {
                assert!(!breached.has(&format!("password {n}")).unwrap(), "{n} of {count}");
            }
        }
    }

    #[test]
    fn a_plain_list_is_taken_line_by_line() {
        let list = file("123456\r\npassword\n\nqwertz uiop\n");
        let breached = Breached::open(list.path()).unwrap();
        for known in ["123456", "password", "qwertz uiop"] {
            assert!(breached.has(known).unwrap(), "{known}");
        }
        assert!(!breached.has("").unwrap() && !breached.has("pass").unwrap());
        assert!(Breached::open(Path::new("/nowhere/at/all")).is_err());
    }
}
