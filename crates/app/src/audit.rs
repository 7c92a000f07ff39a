//! The record that nobody can quietly change: seals the trees of log and journal, publishes them, and proves.

use crate::app::App;
use crate::crypto::check_ed25519;
use crate::errors::of_store;
use crate::{Answer, Caller};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use engine::tree::{consistency, edge, grow, inclusion};
use engine::verify::checkpoint_of;
use kernel::id::{EventId, TenantId};
use kernel::merkle::{Hash, verify_inclusion};
use kernel::note::{COSIGNATURE, Note, Signature, VerifierKey};
use kernel::tile::{Edge, Tile, WIDTH};
use kernel::{Kind, Problem, Rejection};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::journal::JournalQuery;
use store::tree::{Sealed, TreeStore};
use store::{ScanFilter, StoreError};

/// How often the trees are looked at: what is written is sealed within this time and the time of one write.
const SEAL_EVERY_MS: u64 = 200;
/// How long the end waits for the last entries of the journal, and how often it looks.
const LAST_ENTRIES_MS_MAX: u64 = 2_000;
const LAST_ENTRIES_LOOK_MS: u64 = 5;
/// Events that are looked at to find one by its id.
const FIND_EVENTS_MAX: usize = 10_000;

/// Which of a tenant's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tree {
    /// Facts.
    Log,
    /// Observations.
    Journal,
}

impl Tree {
    /// Both.
    pub const ALL: [Tree; 2] = [Tree::Log, Tree::Journal];

    /// The word in paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Tree::Log => "log",
            Tree::Journal => "journal",
        }
    }

    /// The tree of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Tree::ALL.into_iter().find(|tree| tree.as_str() == word)
    }
}

/// The name of a tree, and of the key that seals it.
pub fn origin(tenant: TenantId, tree: Tree) -> String {
    format!("keiko/{tenant}/{}", tree.as_str())
}

/// A proof with all that is needed to check it.
#[derive(Clone, Debug)]
pub struct AuditProof {
    /// Position of the entry, from 1; for consistency, the earlier size.
    pub position: u64,
    /// The entry's leaf; absent for consistency.
    pub leaf: Option<Hash>,
    /// The size of the tree that it is proved in.
    pub size: u64,
    /// The root of that tree.
    pub root: Hash,
    /// The hashes that lead there.
    pub hashes: Vec<Hash>,
    /// The latest signed checkpoint.
    pub checkpoint: String,
}

/// A proof of inclusion that a client has checked.
#[derive(Clone, Copy, Debug)]
pub struct CheckedProof {
    /// Position of the entry, from 1.
    pub position: u64,
    /// Entries of the tree.
    pub size: u64,
}

impl CheckedProof {
    /// Checks the attributes of a proof as the interface shows it, up to the checkpoint that the key has signed.
    pub fn of(attributes: &serde_json::Value, key: &VerifierKey) -> Result<Self, String> {
        let hash = |value: &serde_json::Value| -> Option<Hash> { STANDARD.decode(value.as_str()?).ok()?.try_into().ok() };
        let read = || {
            let hashes: Option<Vec<Hash>> = attributes["hashes"].as_array()?.iter().map(hash).collect();
            let (position, size) = (attributes["position"].as_u64()?, attributes["size"].as_u64()?);
            Some((position, size, hash(&attributes["leaf"])?, hash(&attributes["root"])?, hashes?))
        };
        let (position, size, leaf, root, hashes) = read().ok_or("it has not the form of a proof")?;
        let index = position.checked_sub(1).ok_or("positions begin at 1")?;
        verify_inclusion(&leaf, index, size, &hashes, &root).map_err(|e| e.to_string())?;
        let note = attributes["checkpoint"].as_str().unwrap_or_default();
        let checkpoint = checkpoint_of(note, key, &check_ed25519)?;
        if (checkpoint.size, checkpoint.root) != (size, root) {
            return Err("its root is not the one of the signed checkpoint".into());
        }
        Ok(CheckedProof { position, size })
    }
}

impl App {
    fn trees(&self, tree: Tree) -> Arc<dyn TreeStore> {
        match tree {
            Tree::Log => self.engine().store().clone(),
            Tree::Journal => self.0.journal.clone(),
        }
    }

    /// The public key that seals a tree of the caller's tenant, as `name+id+key`.
    pub fn audit_key(&self, caller: &Caller, tree: Tree) -> String {
        self.0.crypto.checkpoints.verifier(&origin(caller.actor.tenant, tree)).to_string()
    }

    /// The latest signed checkpoint, and the latest one that witnesses have signed too.
    pub async fn checkpoint(&self, caller: &Caller, tree: Tree) -> Answer<Sealed> {
        let sealed = self.trees(tree).sealed(caller.actor.tenant).await.map_err(of_store)?;
        sealed.ok_or_else(|| {
            let message = format!("The {} has no entry that is sealed yet.", tree.as_str());
            Rejection::new(Kind::NotFound, "CHECKPOINT_NOT_FOUND", message, "Entries are sealed within a second; ask again.")
        })
    }

    /// The bytes of a tile, or of a bundle of entries.
    pub async fn audit_tile(&self, caller: &Caller, tree: Tree, path: &str) -> Answer<Vec<u8>> {
        let not_found = || {
            let message = format!("The {} has no tile '{path}'.", tree.as_str());
            Rejection::new(Kind::NotFound, "TILE_NOT_FOUND", message, "Read the checkpoint: its size says which tiles there are.")
        };
        let tile = Tile::parse(path).ok_or_else(not_found)?;
        let size = self.checkpoint(caller, tree).await?.size;
        if !tile.is_in(size) {
            return Err(not_found());
        }
        let width = usize::from(tile.width);
        match tile.level {
            Some(level) => {
                let stored = self.trees(tree).tile(caller.actor.tenant, level, tile.index).await.map_err(of_store)?;
                let bytes = stored.and_then(|bytes| Some(bytes.get(..width * 32)?.to_vec()));
                bytes.ok_or_else(not_found)
            }
            None => self.bundle(caller.actor.tenant, tree, tile.index * WIDTH, width).await,
        }
    }

    /// What leaves are made of, each with its length in two bytes before it: headers and content hashes, no content.
    async fn bundle(&self, tenant: TenantId, tree: Tree, after: u64, count: usize) -> Answer<Vec<u8>> {
        let mut entries: Vec<Vec<u8>> = vec![];
        match tree {
            Tree::Log => {
                let found = self.engine().store().scan(tenant, after, ScanFilter::default(), count).await.map_err(of_store)?;
                entries.extend(found.events.iter().map(|e| [e.header.encode(), e.payload_hash.to_vec()].concat()));
            }
            Tree::Journal => {
                let query = JournalQuery { after, limit: count, ..JournalQuery::default() };
                let found = self.0.journal.entries(tenant, query).await.map_err(of_store)?;
                entries.extend(found.iter().map(|e| [e.header.encode(), e.data_hash.to_vec()].concat()));
            }
        }
        let mut bundle = vec![];
        for entry in entries {
            let length = u16::try_from(entry.len()).map_err(|_| crate::app::internal("an entry's header is too long".into()))?;
            bundle.extend(length.to_be_bytes());
            bundle.extend(entry);
        }
        Ok(bundle)
    }

    /// That an entry is in the tree.
    pub async fn prove_inclusion(&self, caller: &Caller, tree: Tree, position: u64, size: Option<u64>) -> Answer<AuditProof> {
        let sealed = self.checkpoint(caller, tree).await?;
        let size = size.unwrap_or(sealed.size);
        self.check_size(size, sealed.size, "/size")?;
        let absent = || {
            let message = format!("The tree of {size} entries has no entry at position {position}.");
            let hint = "Entries are sealed within a second; the checkpoint says how many are.";
            Rejection::new(Kind::NotFound, "ENTRY_NOT_SEALED", message, hint)
        };
        let index = position.checked_sub(1).ok_or_else(absent)?;
        let (trees, tenant) = (self.trees(tree), caller.actor.tenant);
        let proof = inclusion(trees.as_ref(), tenant, index, size).await.map_err(of_store)?.ok_or_else(absent)?;
        let leaf = trees.leaves(tenant, index, 1).await.map_err(of_store)?.first().copied();
        Ok(AuditProof { position, leaf, size, root: proof.root, hashes: proof.hashes, checkpoint: sealed.note })
    }

    /// That the tree of an earlier size is the beginning of the tree of a later one.
    pub async fn prove_consistency(&self, caller: &Caller, tree: Tree, from: u64, to: Option<u64>) -> Answer<AuditProof> {
        let sealed = self.checkpoint(caller, tree).await?;
        let size = to.unwrap_or(sealed.size);
        self.check_size(size, sealed.size, "/to")?;
        self.check_size(from, size, "/from")?;
        let proof = consistency(self.trees(tree).as_ref(), caller.actor.tenant, from, size).await.map_err(of_store)?;
        let proof = proof.ok_or_else(|| crate::app::internal("a proof of sizes that were checked".into()))?;
        Ok(AuditProof { position: from, leaf: None, size, root: proof.root, hashes: proof.hashes, checkpoint: sealed.note })
    }

    fn check_size(&self, size: u64, most: u64, pointer: &str) -> Answer<()> {
        if size <= most {
            return Ok(());
        }
        let message = format!("is {size}, but the tree has {most} entries");
        Err(Rejection::invalid(&[Problem { pointer: pointer.into(), message }]))
    }

    /// The position of an event by its id. Ids sort by time, so it is looked for around its own.
    pub async fn position_of_event(&self, caller: &Caller, id: EventId) -> Answer<u64> {
        const SLACK_MS: i64 = 60_000;
        let tenant = caller.actor.tenant;
        let store = self.engine().store();
        let earliest = kernel::Timestamp(id.timestamp_ms() - SLACK_MS);
        let mut after = store.position_at(tenant, earliest).await.map_err(of_store)?;
        let mut looked_at = 0;
        while looked_at < FIND_EVENTS_MAX {
            let found = store.scan(tenant, after, ScanFilter::default(), 1_000).await.map_err(of_store)?;
            if let Some(event) = found.events.iter().find(|event| event.header.id == id) {
                return Ok(event.header.position);
            }
            let is_past = found.events.last().is_none_or(|last| last.header.recorded_at.0 > id.timestamp_ms() + SLACK_MS);
            if is_past {
                break;
            }
            (after, looked_at) = (found.position, looked_at + found.events.len());
        }
        let message = format!("There is no event '{id}' in this tenant.");
        Err(Rejection::new(Kind::NotFound, "EVENT_NOT_FOUND", message, "List events with GET /api/v1/events.")
            .with("searched_id", id))
    }

    /// Keeps a witness's signature on a checkpoint, once it is seen to be good.
    pub async fn cosign(&self, caller: &Caller, tree: Tree, rendered: &str) -> Answer<Sealed> {
        let refuse = |message: &str| {
            let hint = "Send a checkpoint of this tree as it was served, with a line of a witness in audit.witnesses added.";
            Err(Rejection::new(Kind::Refused, "COSIGNATURE_REFUSED", message, hint))
        };
        let Some(note) = Note::parse(rendered) else { return refuse("The body is no signed note.") };
        let own = self.0.crypto.checkpoints.verifier(&origin(caller.actor.tenant, tree));
        if note.signed_by(&own, check_ed25519).is_none() {
            return refuse("The note is not signed by this server.");
        }
        let witnesses = self.0.settings.witnesses.iter().filter(|key| key.kind == COSIGNATURE);
        let signed: BTreeSet<[u8; 4]> =
            witnesses.filter(|key| note.signed_by(key, check_ed25519).is_some()).map(|key| key.id()).collect();
        if signed.is_empty() {
            return refuse("The note has no good signature of a known witness.");
        }
        // Only signatures that were checked are kept.
        let kept = |signature: &Signature| signature.key_id == own.id() || signed.contains(&signature.key_id);
        let signatures = note.signatures.into_iter().filter(kept).collect();
        let kept = Note { text: note.text, signatures }.render();
        self.trees(tree).cosign(caller.actor.tenant, kept).await.map_err(of_store)?;
        self.checkpoint(caller, tree).await
    }
}

/// Seals the trees of the logs that this replica leads, until the end.
pub(crate) async fn seal_trees(app: App) {
    let mut edges: BTreeMap<(Tree, TenantId), Edge> = BTreeMap::new();
    loop {
        let led: BTreeSet<TenantId> = app.runtimes().iter().filter(|r| r.lead().is_some()).map(|r| r.id).collect();
        edges.retain(|(_, tenant), _| led.contains(tenant));
        for tree in Tree::ALL {
            if let Err(error) = seal_grown(&app, tree, &led, &mut edges).await {
                tracing::debug!(tree = tree.as_str(), %error, "the record could not be sealed; trying again");
            }
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => break,
            () = app.env().sleep_ms(SEAL_EVERY_MS) => {}
        }
    }
    // What was written last is sealed too, once it is durable.
    app.write_counts();
    let late = app.env().now().plus_ms(LAST_ENTRIES_MS_MAX);
    while app.0.journal.health().waiting > 0 && app.env().now() < late {
        app.env().sleep_ms(LAST_ENTRIES_LOOK_MS).await;
    }
    // The leases may be gone by now: who seals does not matter, the tree is the same.
    for tree in Tree::ALL {
        let led: BTreeSet<TenantId> = edges.keys().map(|(_, tenant)| *tenant).collect();
        if let Err(error) = seal_grown(&app, tree, &led, &mut edges).await {
            tracing::debug!(tree = tree.as_str(), %error, "the last entries were not sealed");
        }
    }
}

/// Seals what one tree has grown by, whoever leads its log.
pub(crate) async fn seal_once(app: &App, tree: Tree, tenant: TenantId) -> Result<(), StoreError> {
    let trees = app.trees(tree);
    let Some(size) = trees.sizes().await?.get(&tenant).copied() else { return Ok(()) };
    let mut known = edge(trees.as_ref(), tenant).await?;
    seal(app, tree, tenant, size, &mut known).await
}

async fn seal(app: &App, tree: Tree, tenant: TenantId, size: u64, known: &mut Edge) -> Result<(), StoreError> {
    let name = origin(tenant, tree);
    let sign = |size, root| app.0.crypto.checkpoints.seal(&name, size, root);
    grow(app.trees(tree).as_ref(), tenant, known, size, &sign).await
}

async fn seal_grown(
    app: &App,
    tree: Tree,
    led: &BTreeSet<TenantId>,
    edges: &mut BTreeMap<(Tree, TenantId), Edge>,
) -> Result<(), StoreError> {
    let trees = app.trees(tree);
    for (tenant, size) in trees.sizes().await?.into_iter().filter(|(tenant, _)| led.contains(tenant)) {
        let key = (tree, tenant);
        let mut known = match edges.remove(&key) {
            Some(known) => known,
            None => edge(trees.as_ref(), tenant).await?,
        };
        // One that could not grow is read again next time.
        match seal(app, tree, tenant, size, &mut known).await {
            Ok(()) => drop(edges.insert(key, known)),
            Err(error) => tracing::debug!(%tenant, %error, "a tree could not be sealed; trying again"),
        }
    }
    Ok(())
}
