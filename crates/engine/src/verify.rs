//! Verifies a whole record: every hash, every place, the tree and its signed checkpoint. Reads only.

use kernel::TenantId;
use kernel::id::{EventId, JournalId};
use kernel::merkle::{self, Hash};
use kernel::note::{Checkpoint, Note, VerifierKey};
use kernel::tile::{Edge, WIDTH};
use std::collections::BTreeMap;
use store::journal::{Journal, JournalQuery};
use store::tree::TreeStore;
use store::{ScanFilter, Store, StoreError};

/// Entries that are read at a time.
const PAGE: usize = 1_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that were looked at.
    pub entries: u64,
    /// Of those, how many have lost their content by erasure or retention; their hashes are whole.
    pub erased: u64,
    /// How many are under the signed checkpoint.
    pub sealed: u64,
    /// The root of those.
    pub root: Option<Hash>,
    /// The first thing that is wrong.
    pub wrong: Option<Wrong>,
}

/// The first thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Where, if it can be told.
    pub position: Option<u64>,
    /// Which entry, if it can be told.
    pub id: Option<String>,
    /// What.
    pub problem: String,
}

/// Checks an Ed25519 signature: public key, message, signature.
pub type Check = dyn Fn(&[u8], &[u8], &[u8]) -> bool + Send + Sync;

/// One entry, as far as it concerns the tree.
pub struct Leaf {
    /// Its place, from 1.
    pub position: u64,
    /// Its id.
    pub id: String,
    /// The leaf, from its header and the hash of its content.
    pub hash: Hash,
    /// Why it is not what it says it is.
    pub problem: Option<String>,
    /// Whether its content is gone.
    pub is_erased: bool,
}

/// Takes entries in order and holds them against the tiles and the checkpoint.
pub struct Verifier {
    checkpoint: Option<Checkpoint>,
    /// What was seen and believed before.
    known: Vec<Checkpoint>,
    edge: Edge,
    found: Verified,
    /// Whether something else vouches for entries without a checkpoint.
    is_vouched: bool,
}

impl Verifier {
    /// For a tree whose checkpoint is this note. A note that the key did not sign is wrong from the start. The tree must
    /// also contain what was seen before.
    pub fn new(note: Option<&str>, known: Vec<Checkpoint>, key: &VerifierKey, check: &Check) -> Self {
        let mut found = Verified::default();
        let checkpoint = match note.map(|note| checkpoint_of(note, key, check)) {
            None => None,
            Some(Ok(checkpoint)) => Some(checkpoint),
            Some(Err(problem)) => {
                found.wrong = Some(Wrong { position: None, id: None, problem });
                None
            }
        };
        found.sealed = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
        Verifier { checkpoint, known, edge: Edge::default(), found, is_vouched: false }
    }

    /// The same where something else vouches for entries that no checkpoint covers.
    pub fn vouched(self) -> Self {
        Verifier { is_vouched: true, ..self }
    }

    /// How many entries are under the checkpoint.
    pub fn sealed(&self) -> u64 {
        self.found.sealed
    }

    /// The next entry, with the leaf that the tiles hold at its place, if they hold one.
    pub fn push(&mut self, leaf: Leaf, in_tile: Option<&[u8]>) {
        let next = self.edge.size() + 1;
        let mut problem = leaf.problem;
        if leaf.position != next {
            problem = Some(format!("position {next} is missing before it"));
        } else if problem.is_none() && leaf.position <= self.found.sealed && in_tile != Some(&leaf.hash[..]) {
            problem = Some("it is not what was sealed: its leaf is another one in the tree's tiles".into());
        }
        if let (Some(problem), None) = (problem, &self.found.wrong) {
            self.found.wrong = Some(Wrong { position: Some(leaf.position), id: Some(leaf.id), problem });
        }
        self.found.entries += 1;
        self.found.erased += u64::from(leaf.is_erased);
        self.edge.push(leaf.hash);
        let _ = self.edge.take_changed();
        if self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.size == self.edge.size()) {
            self.compare();
        }
        let size = self.edge.size();
        if self.found.wrong.is_none() && self.known.iter().any(|known| known.size == size && known.root != self.edge.root()) {
            let problem = format!("the first {size} entries are others than those that were sealed when they were seen before");
            self.found.wrong = Some(Wrong { position: None, id: None, problem });
        }
    }

    fn compare(&mut self) {
        let root = self.edge.root();
        self.found.root = Some(root);
        let is_right = self.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.root == root);
        if !is_right && self.found.wrong.is_none() {
            let problem = format!(
                "the first {} entries lead to another root than the signed one: the tree was rewritten",
                self.edge.size()
            );
            self.found.wrong = Some(Wrong { position: None, id: None, problem });
        }
    }

    /// What was found when there are no more entries.
    pub fn end(mut self) -> Verified {
        let size = self.edge.size();
        if self.checkpoint.is_none() && size > 0 && self.found.wrong.is_none() && !self.is_vouched {
            let problem = "it has entries and no signed checkpoint: nothing says that they are all".to_owned();
            self.found.wrong = Some(Wrong { position: None, id: None, problem });
        }
        if size < self.found.sealed && self.found.wrong.is_none() {
            let problem = format!("entries {} to {} were sealed and are missing", size + 1, self.found.sealed);
            self.found.wrong = Some(Wrong { position: Some(size + 1), id: None, problem });
        }
        let seen = self.known.iter().map(|known| known.size).max().unwrap_or(0);
        if size < seen && self.found.wrong.is_none() {
            let problem = format!("there were {seen} entries when it was seen before, now there are {size}");
            self.found.wrong = Some(Wrong { position: Some(size + 1), id: None, problem });
        }
        self.found
    }
}

/// The checkpoint in a note that a key has signed.
pub fn checkpoint_of(note: &str, key: &VerifierKey, check: &Check) -> Result<Checkpoint, String> {
    let note = Note::parse(note).ok_or("the checkpoint is no signed note")?;
    if note.signed_by(key, check).is_none() {
        return Err(format!("the checkpoint is not signed by {key}"));
    }
    let checkpoint = Checkpoint::parse(&note.text).ok_or("the signed note is no checkpoint")?;
    match checkpoint.origin == key.name {
        true => Ok(checkpoint),
        false => Err(format!("the checkpoint is of '{}', not of '{}'", checkpoint.origin, key.name)),
    }
}

/// What a verification rests on.
pub struct Trust<'a> {
    /// The key that seals the tree, under the tree's name.
    pub key: VerifierKey,
    /// Checkpoints that were seen and believed before.
    pub known: Vec<Checkpoint>,
    /// Checks signatures.
    pub check: &'a Check,
}

impl Trust<'_> {
    /// A verifier for a tree with this checkpoint.
    pub fn verifier(&self, note: Option<&str>) -> Verifier {
        Verifier::new(note, self.known.clone(), &self.key, self.check)
    }
}

/// The tiles of leaves, one at a time.
struct Tiles<'a> {
    trees: &'a dyn TreeStore,
    tenant: TenantId,
    number: Option<u64>,
    tile: Vec<u8>,
}

impl Tiles<'_> {
    async fn leaf(&mut self, position: u64) -> Result<Option<&[u8]>, StoreError> {
        let index = position.saturating_sub(1);
        if self.number != Some(index / WIDTH) {
            self.tile = self.trees.tile(self.tenant, 0, index / WIDTH).await?.unwrap_or_default();
            self.number = Some(index / WIDTH);
        }
        let first = (index % WIDTH) as usize * 32;
        Ok(self.tile.get(first..first + 32))
    }
}

/// Verifies a tenant's log.
pub async fn verify_log(
    store: &dyn Store,
    tenant: TenantId,
    trust: &Trust<'_>,
    mut progress: impl FnMut(u64) + Send,
) -> Result<Verified, StoreError> {
    let sealed = store.sealed(tenant).await?;
    let mut verifier = trust.verifier(sealed.as_ref().map(|sealed| sealed.note.as_str()));
    let mut tiles = Tiles { trees: store, tenant, number: None, tile: vec![] };
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let (mut after, mut recorded_at) = (0, kernel::Timestamp(i64::MIN));
    loop {
        let page = store.scan(tenant, after, ScanFilter::default(), PAGE).await?;
        for event in &page.events {
            let header = &event.header;
            let version = versions.entry(header.stream.clone()).or_default();
            *version += 1;
            let hash = header.leaf(&event.payload_hash);
            let problem = if !event.is_intact() {
                Some("its content does not match its hash")
            } else if header.version != *version {
                Some("versions of its stream are missing before it")
            } else if header.recorded_at < recorded_at {
                Some("its time is before the previous event's")
            } else {
                None
            };
            recorded_at = header.recorded_at;
            let leaf = Leaf {
                position: header.position,
                id: header.id.to_string(),
                hash,
                problem: problem.map(str::to_owned),
                is_erased: event.payload.is_none(),
            };
            let in_tile = tiles.leaf(header.position).await?;
            verifier.push(leaf, in_tile);
        }
        let Some(last) = page.events.last() else { return Ok(verifier.end()) };
        after = last.header.position;
        progress(after);
    }
}

/// Verifies a tenant's journal.
pub async fn verify_journal(
    journal: &dyn Journal,
    tenant: TenantId,
    trust: &Trust<'_>,
    mut progress: impl FnMut(u64) + Send,
) -> Result<Verified, StoreError> {
    let sealed = journal.sealed(tenant).await?;
    let mut verifier = trust.verifier(sealed.as_ref().map(|sealed| sealed.note.as_str()));
    let mut tiles = Tiles { trees: journal, tenant, number: None, tile: vec![] };
    let mut after = 0;
    loop {
        let page = journal.entries(tenant, JournalQuery { after, limit: PAGE, ..JournalQuery::default() }).await?;
        for entry in &page {
            let leaf = Leaf {
                position: entry.header.position,
                id: entry.header.id.to_string(),
                hash: entry.header.leaf(&entry.data_hash),
                problem: (!entry.is_intact()).then(|| "its content does not match its hash".to_owned()),
                is_erased: entry.data.is_none(),
            };
            let in_tile = tiles.leaf(leaf.position).await?;
            verifier.push(leaf, in_tile);
        }
        let Some(last) = page.last() else { return Ok(verifier.end()) };
        after = last.header.position;
        progress(after);
    }
}

/// The leaf of an entry as bundles publish it: a header and a content hash. `None` when it is no entry.
pub fn published(entry: &[u8], is_log: bool) -> Option<Leaf> {
    let id: [u8; 16] = entry.get(1..17)?.try_into().ok()?;
    let mut at = 17;
    if is_log {
        at += 4 + length(entry, at)?; // kind
        at += 2 + 1 + 16; // shape, category, tenant
        at += 4 + length(entry, at)?; // stream
        at += 8; // version
    } else {
        at += 16; // tenant
    }
    let position = u64::from_be_bytes(entry.get(at..at + 8)?.try_into().ok()?);
    let id = match is_log {
        true => EventId::from_bytes(id).to_string(),
        false => JournalId::from_bytes(id).to_string(),
    };
    Some(Leaf { position, id, hash: merkle::leaf(entry), problem: None, is_erased: false })
}

fn length(entry: &[u8], at: usize) -> Option<usize> {
    let bytes: [u8; 4] = entry.get(at..at.checked_add(4)?)?.try_into().ok()?;
    let length = u32::from_be_bytes(bytes) as usize;
    (length <= entry.len()).then_some(length)
}

/// Splits a bundle into its entries; `None` when it is cut short.
pub fn split_bundle(mut bundle: &[u8]) -> Option<Vec<&[u8]>> {
    let mut entries = vec![];
    while !bundle.is_empty() {
        let (length, rest) = bundle.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        entries.push(entry);
        bundle = rest;
    }
    Some(entries)
}
