//! Merkle trees over the logs: adds leaves, seals them with a signed checkpoint, and proves.

use kernel::TenantId;
use kernel::merkle::{self, Hash};
use kernel::tile::{Edge, node_in, place};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use store::StoreError;
use store::tree::{Growth, TreeStore};

/// Leaves that are added in one transaction.
const GROWTH_LEAVES_MAX: usize = 4_096;

/// The right edge of a tenant's tree as it is sealed.
pub async fn edge(trees: &dyn TreeStore, tenant: TenantId) -> Result<Edge, StoreError> {
    let size = trees.sealed(tenant).await?.map_or(0, |sealed| sealed.size);
    let mut tiles = BTreeMap::new();
    for (level, index, _) in Edge::needed(size) {
        if let Some(tile) = trees.tile(tenant, level, index).await? {
            tiles.insert((level, index), tile);
        }
    }
    Edge::of(size, &tiles).ok_or_else(|| StoreError::Corrupt(format!("tiles of the tree of {tenant} are missing")))
}

/// Adds leaves up to `size`, and seals each step with what `sign` makes of size and root.
pub async fn grow(
    trees: &dyn TreeStore,
    tenant: TenantId,
    edge: &mut Edge,
    size: u64,
    sign: &(dyn Fn(u64, Hash) -> String + Send + Sync),
) -> Result<(), StoreError> {
    while edge.size() < size {
        let expected = edge.size();
        let limit = GROWTH_LEAVES_MAX.min(usize::try_from(size - expected).unwrap_or(usize::MAX));
        let leaves = trees.leaves(tenant, expected, limit).await?;
        if leaves.is_empty() {
            return Ok(());
        }
        leaves.into_iter().for_each(|leaf| edge.push(leaf));
        let note = sign(edge.size(), edge.root());
        trees.grow(tenant, Growth { expected, size: edge.size(), tiles: edge.take_changed(), note }).await?;
    }
    Ok(())
}

/// What a proof shows, and the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The root of the tree of the size that was asked for.
    pub root: Hash,
    /// The hashes.
    pub hashes: Vec<Hash>,
}

/// That leaf `index` is in the tree of `size` leaves; `None` when it is not.
pub async fn inclusion(trees: &dyn TreeStore, tenant: TenantId, index: u64, size: u64) -> Result<Option<Proof>, StoreError> {
    proof(trees, tenant, size, |read| merkle::inclusion_proof(index, size, read)).await
}

/// That the tree of `new` leaves begins with the tree of `old` leaves; `None` when `old` is larger.
pub async fn consistency(trees: &dyn TreeStore, tenant: TenantId, old: u64, new: u64) -> Result<Option<Proof>, StoreError> {
    proof(trees, tenant, new, |read| merkle::consistency_proof(old, new, read)).await
}

/// Runs a proof twice: first to see which nodes it needs, then with them.
async fn proof(
    trees: &dyn TreeStore,
    tenant: TenantId,
    size: u64,
    prove: impl Fn(&mut dyn FnMut(u8, u64) -> Result<Hash, StoreError>) -> Result<Option<Vec<Hash>>, StoreError>,
) -> Result<Option<Proof>, StoreError> {
    let mut wanted = BTreeSet::new();
    let mut note = |level, index| {
        wanted.insert((level, index));
        Ok([0; 32])
    };
    if prove(&mut note)?.is_none() {
        return Ok(None);
    }
    merkle::Frontier::of(size, &mut note)?;
    let nodes = nodes(trees, tenant, wanted).await?;
    let missing = || StoreError::Corrupt(format!("a node of the tree of {tenant} is missing"));
    let mut read = |level, index| nodes.get(&(level, index)).copied().ok_or_else(missing);
    let hashes = prove(&mut read)?.ok_or_else(missing)?;
    Ok(Some(Proof { root: merkle::Frontier::of(size, &mut read)?.root(), hashes }))
}

async fn nodes(
    trees: &dyn TreeStore,
    tenant: TenantId,
    wanted: BTreeSet<(u8, u64)>,
) -> Result<BTreeMap<(u8, u64), Hash>, StoreError> {
    let mut tiles: BTreeMap<(u8, u64), Option<Vec<u8>>> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (level, index) in wanted {
        let (tile_level, number, _) = place(level, index);
        let tile = match tiles.entry((tile_level, number)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(trees.tile(tenant, tile_level, number).await?),
        };
        found.extend(tile.as_ref().and_then(|tile| node_in(tile, level, index)).map(|hash| ((level, index), hash)));
    }
    Ok(found)
}
