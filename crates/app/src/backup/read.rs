//! Reads a backup and checks all of it: that it is whole, that it was signed, and that the record in it is what was sealed.

use super::BackupError;
use super::form::{FORM, Head, Line, Opening};
use crate::audit;
use crate::{Tree, check_ed25519};
use domain::erasure::ErasureEvent;
use engine::verify::{Leaf, Trust, Verified, Verifier, checkpoint_of};
use flate2::bufread::GzDecoder;
use kernel::id::{TenantId, UserId};
use kernel::{EventSet, Recorded, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use store::journal::Entry;

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// When a backup was begun, as its first line says.
pub fn created_at(path: &Path) -> Result<Timestamp, BackupError> {
    Ok(Lines::open(path)?.1.created_at)
}

/// The name under which a backup is signed.
pub fn origin(root: TenantId) -> String {
    format!("keiko/{root}/backup")
}

/// What a backup holds.
pub struct Contents {
    /// The version of Keiko that made it.
    pub keiko: String,
    /// When it was begun.
    pub created_at: Timestamp,
    /// Every tenant, the default one first.
    pub tenants: Vec<TenantId>,
    /// Every tree, as it was found.
    pub trees: Vec<TreeContents>,
    /// When its latest event was written.
    pub last_at: Timestamp,
    /// People whose erasure it knows of.
    pub erasures: BTreeSet<(TenantId, UserId)>,
    /// Over all its lines but the last: what was signed.
    pub(crate) hash: [u8; 32],
}

/// A tree in a backup.
pub struct TreeContents {
    /// Whose.
    pub tenant: TenantId,
    /// Log or journal.
    pub tree: Tree,
    /// Its latest checkpoint; empty when there is none.
    pub checkpoint: String,
    /// What was found.
    pub verified: Verified,
}

impl Contents {
    /// How many entries a tree has.
    pub fn size(&self, tenant: TenantId, tree: Tree) -> u64 {
        let of = self.trees.iter().find(|t| t.tenant == tenant && t.tree == tree);
        of.map_or(0, |t| t.verified.entries)
    }
}

/// The lines of a backup, with what has been read so far.
pub(super) struct Lines {
    reader: BufReader<GzDecoder<BufReader<File>>>,
    hash: Sha256,
    count: u64,
}

impl Lines {
    pub fn open(path: &Path) -> Result<(Self, Opening), BackupError> {
        let file = File::open(path).map_err(|error| BackupError::Unreadable(path.display().to_string(), error))?;
        let reader = BufReader::new(GzDecoder::new(BufReader::new(file)));
        let mut lines = Lines { reader, hash: Sha256::new(), count: 0 };
        match lines.next() {
            Ok(Line::Backup(opening)) if opening.form == FORM => Ok((lines, opening)),
            Ok(Line::Backup(opening)) => Err(BackupError::Refused(format!(
                "the backup has form {}, this keiko reads form {FORM}; use keiko {} or newer",
                opening.form, opening.keiko
            ))),
            _ => Err(BackupError::Damaged(format!("'{}' does not begin like a backup of Keiko", path.display()))),
        }
    }

    /// The next line; the last one is [`Line::End`].
    pub fn next(&mut self) -> Result<Line, BackupError> {
        let mut text = vec![];
        let read = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
        let lines = self.count;
        let cut = |why: &dyn std::fmt::Display| BackupError::Damaged(format!("it cannot be read after line {lines}: {why}"));
        read.map_err(|e| cut(&e))?;
        if text.last() != Some(&b'\n') {
            return Err(cut(&"it is cut short"));
        }
        let line = serde_json::from_slice(&text).map_err(|e| cut(&e))?;
        if !matches!(line, Line::End(_)) {
            self.hash.update(&text);
            self.count += 1;
        }
        Ok(line)
    }

    /// Over all lines so far but the last.
    pub fn hash(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// Checks what the last line says of the others, and that nothing follows it.
    fn end(mut self, note: &str, lines: u64, trust: &Trust<'_>) -> Result<[u8; 32], BackupError> {
        let hash = self.hash();
        let signed = checkpoint_of(note, &trust.key, trust.check).map_err(BackupError::Damaged)?;
        if lines != self.count || signed.size != self.count || signed.root != hash {
            return Err(BackupError::Damaged("its lines are not those that were signed".into()));
        }
        let rest = self.reader.read(&mut [0]).map_err(|e| BackupError::Damaged(e.to_string()))?;
        let after = self.reader.into_inner().into_inner().fill_buf()?.len();
        match rest + after {
            0 => Ok(hash),
            _ => Err(BackupError::Damaged("something follows its end".into())),
        }
    }
}

/// A tree while it is read.
struct Reading {
    tenant: TenantId,
    tree: Tree,
    size: u64,
    checkpoint: String,
    verifier: Verifier,
}

impl Reading {
    fn begin(head: Head, tree: Tree, trust: &Trust<'_>) -> Self {
        let note = Some(head.checkpoint.as_str()).filter(|note| !note.is_empty());
        // The signature at the end of the backup vouches for what was not sealed yet.
        let verifier = trust.verifier(note).vouched();
        Reading { tenant: head.tenant, tree, size: head.size, checkpoint: head.checkpoint, verifier }
    }

    fn push(&mut self, leaf: Leaf) {
        let hash = leaf.hash;
        // A backup has no tiles: entries are held against the signed root alone.
        self.verifier.push(leaf, Some(&hash));
    }

    fn end(self) -> Result<TreeContents, BackupError> {
        let Reading { tenant, tree, size, checkpoint, verifier } = self;
        let verified = verifier.end();
        if verified.entries != size {
            let name = audit::origin(tenant, tree);
            return Err(BackupError::Damaged(format!("{name} should have {size} entries and has {}", verified.entries)));
        }
        Ok(TreeContents { tenant, tree, checkpoint, verified })
    }
}

/// Reads and checks a whole backup. `trust` says which key must have signed what; `look` sees every event. What is wrong
/// with the record in it is in the trees; what is wrong with the backup itself is an error.
pub fn read(
    path: &Path,
    trust: &mut dyn FnMut(&str) -> Result<Trust<'static>, BackupError>,
    look: &mut dyn FnMut(&Recorded),
) -> Result<Contents, BackupError> {
    let (mut lines, opening) = Lines::open(path)?;
    let root = *opening.tenants.first().ok_or_else(|| BackupError::Damaged("it has no tenant".into()))?;
    let mut contents = Contents {
        keiko: opening.keiko,
        created_at: opening.created_at,
        tenants: opening.tenants,
        trees: vec![],
        last_at: Timestamp(0),
        erasures: BTreeSet::new(),
        hash: [0; 32],
    };
    let mut reading: Option<Reading> = None;
    loop {
        match lines.next()? {
            Line::Log(head) => begin(&mut reading, head, Tree::Log, &mut contents, trust)?,
            Line::Journal(head) => begin(&mut reading, head, Tree::Journal, &mut contents, trust)?,
            Line::Event(line) => {
                let reading = reading.as_mut().filter(|r| r.tree == Tree::Log).ok_or_else(misplaced)?;
                let event = line.recorded(reading.tenant).map_err(BackupError::Damaged)?;
                contents.take(&event);
                look(&event);
                reading.push(leaf_of(&event));
            }
            Line::Entry(line) => {
                let reading = reading.as_mut().filter(|r| r.tree == Tree::Journal).ok_or_else(misplaced)?;
                let entry = line.entry(reading.tenant).map_err(BackupError::Damaged)?;
                reading.push(leaf_of_entry(&entry));
            }
            Line::Backup(_) => return Err(misplaced()),
            Line::End(end) => {
                contents.trees.extend(reading.map(Reading::end).transpose()?);
                contents.hash = lines.end(&end.note, end.lines, &trust(&origin(root))?)?;
                return Ok(contents);
            }
            // Their bytes are covered by the signature at the end.
            Line::Idempotent { .. }
            | Line::Value(_)
            | Line::Secret { .. }
            | Line::View { .. }
            | Line::Row { .. }
            | Line::EntryValue(_) => {}
        }
    }
}

fn misplaced() -> BackupError {
    BackupError::Damaged("its lines are not in order".into())
}

fn begin(
    reading: &mut Option<Reading>,
    head: Head,
    tree: Tree,
    contents: &mut Contents,
    trust: &mut dyn FnMut(&str) -> Result<Trust<'static>, BackupError>,
) -> Result<(), BackupError> {
    let believed = trust(&audit::origin(head.tenant, tree))?;
    let next = Reading::begin(head, tree, &believed);
    contents.trees.extend(reading.replace(next).map(Reading::end).transpose()?);
    Ok(())
}

impl Contents {
    fn take(&mut self, event: &Recorded) {
        self.last_at = self.last_at.max(event.header.recorded_at);
        if let Ok(Some(ErasureEvent::Requested(requested))) = ErasureEvent::read(event) {
            self.erasures.insert((event.header.tenant, requested.subject));
        }
    }
}

fn leaf_of(event: &Recorded) -> Leaf {
    Leaf {
        position: event.header.position,
        id: event.header.id.to_string(),
        hash: event.leaf,
        problem: None,
        is_erased: event.payload.is_none(),
    }
}

fn leaf_of_entry(entry: &Entry) -> Leaf {
    Leaf {
        position: entry.header.position,
        id: entry.header.id.to_string(),
        hash: entry.leaf,
        problem: None,
        is_erased: entry.data.is_none(),
    }
}

/// What is trusted when the key that signs is at hand.
pub(super) fn own(sealing: &crate::SealingKey, name: &str) -> Trust<'static> {
    Trust { key: sealing.verifier(name), known: vec![], check: &check_ed25519 }
}
