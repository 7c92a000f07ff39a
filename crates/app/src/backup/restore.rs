//! Restores a backup into an empty store: everything, or as it was at a position or an instant.

use super::BackupError;
use super::form::{Bytes, Line};
use super::read::{Contents, Lines, own, read};
use crate::crypto::{KeyMaterial, SealingKey};
use crate::{Tree, audit, erasures};
use engine::tree::{edge, grow};
use engine::{Engine, Env, Kinds, replay};
use futures_util::future::join_all;
use kernel::event::Content;
use kernel::id::{TenantId, UserId};
use kernel::json::references;
use kernel::tile::Edge;
use kernel::{Recorded, Timestamp, ViewRow};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use store::journal::{Entry, Journal, NewEntry};
use store::tree::TreeStore;
use store::{Beside, Store, ViewApply};

/// Events or entries that are put back at a time.
const PAGE: usize = 1_000;
/// Bytes that are held at most before they are put back.
const PAGE_BYTES: usize = 8 * 1024 * 1024;

/// Where a backup is restored to. Both must be empty.
pub struct Target {
    /// Log and entities.
    pub store: Arc<dyn Store>,
    /// Observations.
    pub journal: Arc<dyn Journal>,
    /// Clock and randomness.
    pub env: Env,
    /// The key files that belong to the backup.
    pub keys: KeyMaterial,
}

/// Up to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Everything.
    End,
    /// A position of the default tenant's log; the other logs up to the instant at which it was written.
    Position(u64),
    /// What was written at or before an instant.
    Time(Timestamp),
}

/// What was restored.
#[derive(Debug, Default)]
pub struct Restored {
    /// Tenants.
    pub tenants: u64,
    /// Events of all logs.
    pub events: u64,
    /// Entries of all journals.
    pub entries: u64,
    /// When the latest of these events was written.
    pub last_at: Timestamp,
    /// People whose erasure was applied again.
    pub erased: u64,
}

/// Checks the whole backup, then puts it into the target, and checks what came to be. `erased` are people whose erasure
/// became known after the backup was made.
pub async fn restore(
    path: &Path,
    target: &Target,
    until: Until,
    erased: &BTreeSet<(TenantId, UserId)>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Restored, BackupError> {
    if !target.store.logs().await?.is_empty() {
        return Err(BackupError::Refused(
            "there is a record already where the backup should go; restore into an empty place".into(),
        ));
    }
    let sealing = SealingKey::new(&target.keys.checkpoint_pkcs8).map_err(BackupError::Refused)?;
    let (contents, cut) = check(path, &sealing, &target.keys.fingerprint(), until)?;
    let mut work = Work { target, cut, kinds: crate::kinds(), restored: Restored::default(), progress, values: BTreeSet::new() };
    // The file is read a second time: only if it is still the same, what came of it is sealed.
    if work.run(path).await? != contents.hash {
        return Err(BackupError::Damaged("it is not the file any more that was checked".into()));
    }
    seal(target, &sealing).await?;
    let mut restored = work.restored;
    restored.erased = apply_erasures(target, contents.erasures.union(erased)).await?;
    seal(target, &sealing).await?;
    Ok(restored)
}

/// Where each log is cut off.
#[derive(Clone, Copy)]
struct Cut {
    /// Nothing written later.
    time: Timestamp,
    /// Nothing of the default tenant's log behind this.
    root: u64,
    is_whole: bool,
}

fn check(path: &Path, sealing: &SealingKey, keys: &[u8], until: Until) -> Result<(Contents, Cut), BackupError> {
    let mut written_at = None;
    let mut root = None;
    let mut began_at = Timestamp(i64::MAX);
    let mut look = |event: &Recorded| {
        let header = &event.header;
        let root = *root.get_or_insert(header.tenant);
        began_at = began_at.min(header.recorded_at);
        if header.tenant == root && until == Until::Position(header.position) {
            written_at = Some(header.recorded_at);
        }
    };
    if Lines::open(path)?.1.keys.0 != keys {
        let why = "the key files are not those that belong to this backup; give the folder that holds them with --keys";
        return Err(BackupError::Refused(why.into()));
    }
    let contents = read(path, &mut |name| Ok(own(sealing, name)), &mut look)?;
    for tree in &contents.trees {
        if let Some(wrong) = &tree.verified.wrong {
            let place = wrong.position.map(|position| format!(" at position {position}")).unwrap_or_default();
            let name = audit::origin(tree.tenant, tree.tree);
            return Err(BackupError::Damaged(format!("{name}{place}: {}", wrong.problem)));
        }
    }
    let cut = match until {
        Until::End => Cut { time: Timestamp(i64::MAX), root: u64::MAX, is_whole: true },
        Until::Position(position) => {
            let end = contents.tenants.first().map_or(0, |root| contents.size(*root, Tree::Log));
            let beyond =
                || BackupError::Refused(format!("the backup holds positions 1 to {end}; there is no position {position} in it"));
            Cut { time: written_at.ok_or_else(beyond)?, root: position, is_whole: false }
        }
        Until::Time(time) if time > contents.created_at => {
            let why = format!("the backup was made at {}; nothing after that is in it", contents.created_at);
            return Err(BackupError::Refused(why));
        }
        Until::Time(time) if time < began_at => {
            return Err(BackupError::Refused(format!("the record begins at {began_at}; there is nothing before that")));
        }
        Until::Time(time) => Cut { time, root: u64::MAX, is_whole: false },
    };
    Ok((contents, cut))
}

/// Large values by hash.
type Values = Vec<([u8; 32], Vec<u8>)>;

/// A tree while it is put back.
struct Part {
    tenant: TenantId,
    tree: Tree,
    events: Vec<Recorded>,
    entries: Vec<(Entry, Values)>,
    things: Vec<Beside>,
    rows: Vec<Result<ViewRow, String>>,
    view: Option<(String, u32, u64)>,
    bytes: usize,
    edge: Edge,
    is_over: bool,
    /// Values that the next entry brings.
    entry_values: BTreeMap<[u8; 32], Vec<u8>>,
    /// Values that the backup holds.
    known_values: BTreeSet<[u8; 32]>,
}

struct Work<'a> {
    target: &'a Target,
    cut: Cut,
    kinds: Kinds,
    restored: Restored,
    progress: &'a mut (dyn FnMut(u64) + Send),
    /// Values that restored events refer to; only asked for when something is cut off.
    values: BTreeSet<[u8; 32]>,
}

impl Work<'_> {
    /// Answers the hash of what was read.
    async fn run(&mut self, path: &Path) -> Result<[u8; 32], BackupError> {
        let (mut lines, opening) = Lines::open(path)?;
        let root = opening.tenants.first().copied();
        let mut part: Option<Part> = None;
        loop {
            let line = lines.next()?;
            let begins = match &line {
                Line::Log(head) => Some((head.tenant, Tree::Log)),
                Line::Journal(head) => Some((head.tenant, Tree::Journal)),
                Line::End(_) => {
                    if let Some(part) = part {
                        self.end(part).await?;
                    }
                    return Ok(lines.hash());
                }
                _ => None,
            };
            if let Some((tenant, tree)) = begins {
                if let Some(part) = part.replace(Part::begin(tenant, tree)) {
                    self.end(part).await?;
                }
                self.values.clear();
            } else if let Some(part) = &mut part {
                self.take(part, line, root).await?;
            }
        }
    }

    async fn take(&mut self, part: &mut Part, line: Line, root: Option<TenantId>) -> Result<(), BackupError> {
        match line {
            Line::Event(line) => {
                let is_behind =
                    line.recorded_at > self.cut.time.0 || (root == Some(part.tenant) && line.position > self.cut.root);
                part.is_over |= is_behind;
                if !part.is_over {
                    let event = line.recorded(part.tenant).map_err(BackupError::Damaged)?;
                    self.take_event(part, event).await?;
                }
            }
            Line::Entry(line) => {
                part.is_over |= line.at > self.cut.time.0;
                if !part.is_over {
                    let entry = line.entry(part.tenant).map_err(BackupError::Damaged)?;
                    self.take_entry(part, entry).await?;
                }
            }
            Line::EntryValue(_) if part.is_over => {}
            Line::EntryValue(bytes) => {
                let hash = bytes.sha256();
                part.known_values.insert(hash);
                part.entry_values.insert(hash, bytes.0);
            }
            Line::View { view, version, position, .. } if self.cut.is_whole => {
                self.put_rows(part).await?;
                part.view = Some((view, version, position));
                // Also a view without rows has its place.
                self.put_view(part).await?;
            }
            Line::Row { key, row: Bytes(row), .. } if self.cut.is_whole => {
                part.bytes += row.len();
                part.rows.push(Ok(ViewRow { key, row }));
                if part.is_full(part.rows.len()) {
                    self.put_rows(part).await?;
                }
            }
            other => {
                let size = self.restored_size(part);
                if let Some(thing) = other.thing().map_err(BackupError::Damaged)?.filter(|thing| self.keeps(thing, size)) {
                    self.put_events(part).await?;
                    part.bytes += if let Beside::Value(_, bytes) = &thing { bytes.len() } else { 64 };
                    part.things.push(thing);
                    if part.is_full(part.things.len()) {
                        self.put_things(part).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn restored_size(&self, part: &Part) -> u64 {
        part.edge.size()
    }

    /// Whether something beside the events belongs to what is restored.
    fn keeps(&self, thing: &Beside, size: u64) -> bool {
        match thing {
            Beside::Idempotent(_, known) => known.position <= size,
            Beside::Value(hash, _) => self.cut.is_whole || self.values.contains(hash),
            Beside::Secret(..) => true,
        }
    }

    async fn take_event(&mut self, part: &mut Part, event: Recorded) -> Result<(), BackupError> {
        let payload = event.payload.as_deref().unwrap_or_default();
        if !self.cut.is_whole {
            self.values.extend(references(payload));
        }
        part.bytes += payload.len();
        part.edge.push(event.leaf);
        let _ = part.edge.take_changed();
        self.restored.last_at = self.restored.last_at.max(event.header.recorded_at);
        part.events.push(event);
        match part.is_full(part.events.len()) {
            true => self.put_events(part).await,
            false => Ok(()),
        }
    }

    async fn take_entry(&mut self, part: &mut Part, entry: Entry) -> Result<(), BackupError> {
        let hashes = references(entry.data.as_deref().unwrap_or_default());
        // What was brought before is only named again; what the backup does not hold is not made up.
        let brought: Vec<[u8; 32]> = hashes.into_iter().filter(|hash| part.known_values.contains(hash)).collect();
        let values: Values =
            brought.into_iter().map(|hash| (hash, part.entry_values.remove(&hash).unwrap_or_default())).collect();
        part.bytes += entry.data.as_ref().map_or(0, Vec::len) + values.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        part.edge.push(entry.leaf);
        let _ = part.edge.take_changed();
        part.entries.push((entry, values));
        match part.is_full(part.entries.len()) {
            true => self.put_entries(part).await,
            false => Ok(()),
        }
    }

    async fn put_events(&mut self, part: &mut Part) -> Result<(), BackupError> {
        part.bytes = 0;
        let events = std::mem::take(&mut part.events);
        if events.is_empty() {
            return Ok(());
        }
        self.restored.events += events.len() as u64;
        replay(self.target.store.as_ref(), &self.kinds, part.tenant, events).await?;
        (self.progress)(self.restored.events + self.restored.entries);
        Ok(())
    }

    async fn put_entries(&mut self, part: &mut Part) -> Result<(), BackupError> {
        part.bytes = 0;
        let entries = std::mem::take(&mut part.entries);
        self.restored.entries += entries.len() as u64;
        let expected: Vec<u64> = entries.iter().map(|(entry, _)| entry.header.position).collect();
        let recorded =
            join_all(entries.into_iter().map(|(entry, values)| self.target.journal.record(again(entry, values)))).await;
        for (position, recorded) in expected.into_iter().zip(recorded) {
            if recorded? != position {
                return Err(BackupError::Refused(format!("entry {position} of the journal did not come to its place")));
            }
        }
        (self.progress)(self.restored.events + self.restored.entries);
        Ok(())
    }

    async fn put_things(&mut self, part: &mut Part) -> Result<(), BackupError> {
        part.bytes = 0;
        let things = std::mem::take(&mut part.things);
        match things.is_empty() {
            true => Ok(()),
            false => Ok(self.target.store.put_beside(part.tenant, things).await?),
        }
    }

    async fn put_rows(&mut self, part: &mut Part) -> Result<(), BackupError> {
        match part.rows.is_empty() {
            true => Ok(()),
            false => self.put_view(part).await,
        }
    }

    async fn put_view(&mut self, part: &mut Part) -> Result<(), BackupError> {
        part.bytes = 0;
        let Some((view, version, position)) = part.view.clone() else { return Ok(()) };
        let known = self.target.store.view_state(part.tenant, &view).await?;
        let expected = known.iter().find(|state| state.version == version).map_or(0, |state| state.position);
        let rows = std::mem::take(&mut part.rows);
        let apply = ViewApply { view, version, expected, position, rows, activate: true };
        Ok(self.target.store.apply(part.tenant, apply).await?)
    }

    /// Puts back what is left of a tree, and checks that it came to be what it was.
    async fn end(&mut self, mut part: Part) -> Result<(), BackupError> {
        self.put_events(&mut part).await?;
        self.put_things(&mut part).await?;
        self.put_rows(&mut part).await?;
        self.put_entries(&mut part).await?;
        let trees: &dyn TreeStore = match part.tree {
            Tree::Log => self.target.store.as_ref(),
            Tree::Journal => self.target.journal.as_ref(),
        };
        self.restored.tenants += u64::from(part.tree == Tree::Log && part.edge.size() > 0);
        let mut found = Edge::default();
        loop {
            let leaves = trees.leaves(part.tenant, found.size(), PAGE).await?;
            if leaves.is_empty() {
                break;
            }
            leaves.into_iter().for_each(|leaf| found.push(leaf));
            let _ = found.take_changed();
        }
        if (found.size(), found.root()) != (part.edge.size(), part.edge.root()) {
            let name = audit::origin(part.tenant, part.tree);
            return Err(BackupError::Refused(format!("{name} did not come to be what it was; report this")));
        }
        Ok(())
    }
}

impl Part {
    fn begin(tenant: TenantId, tree: Tree) -> Self {
        Part {
            tenant,
            tree,
            events: vec![],
            entries: vec![],
            things: vec![],
            rows: vec![],
            view: None,
            bytes: 0,
            edge: Edge::default(),
            is_over: false,
            entry_values: BTreeMap::new(),
            known_values: BTreeSet::new(),
        }
    }

    fn is_full(&self, count: usize) -> bool {
        count >= PAGE || self.bytes >= PAGE_BYTES
    }
}

/// The entry to be written once more.
fn again(entry: Entry, values: Values) -> NewEntry {
    let header = entry.header;
    let content = match (entry.salt, entry.data) {
        (Some(salt), Some(bytes)) => Content::Whole { salt, bytes },
        _ => Content::Erased(entry.data_hash),
    };
    NewEntry {
        id: header.id,
        tenant: header.tenant,
        class: header.class,
        kind: Cow::Owned(header.kind),
        at: header.at,
        actor: header.actor,
        correlation: header.correlation,
        content,
        values,
    }
}

/// Seals what is not sealed yet.
async fn seal(target: &Target, sealing: &SealingKey) -> Result<(), BackupError> {
    for tree in Tree::ALL {
        let trees: &dyn TreeStore = match tree {
            Tree::Log => target.store.as_ref(),
            Tree::Journal => target.journal.as_ref(),
        };
        for (tenant, size) in trees.sizes().await? {
            let name = audit::origin(tenant, tree);
            let mut known = edge(trees, tenant).await?;
            grow(trees, tenant, &mut known, size, &|size, root| sealing.seal(&name, size, root)).await?;
        }
    }
    Ok(())
}

/// Removes people whose erasure is known, where something of them came back.
async fn apply_erasures<'a>(target: &Target, people: impl Iterator<Item = &'a (TenantId, UserId)>) -> Result<u64, BackupError> {
    let engine = Engine::new(target.store.clone(), target.env.clone());
    let tenants = target.store.logs().await?;
    let mut erased = 0;
    for (tenant, person) in people.filter(|(tenant, _)| tenants.contains(tenant)) {
        let removed = erasures::remove(&engine, &target.journal, *tenant, *person, None).await;
        let removed = removed.map_err(|rejection| BackupError::Refused(format!("{} {}", rejection.message, rejection.hint)))?;
        erased += u64::from(removed.streams + removed.entries > 0);
    }
    if erased > 0 {
        let scrubbed = erasures::scrub(&engine, &target.journal).await;
        scrubbed.map_err(|rejection| BackupError::Refused(format!("{} {}", rejection.message, rejection.hint)))?;
    }
    Ok(erased)
}
