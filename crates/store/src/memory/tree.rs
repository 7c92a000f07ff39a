//! Trees in memory.

use crate::StoreError;
use crate::tree::{Growth, Sealed};
use kernel::TenantId;
use std::collections::BTreeMap;

/// Tiles and checkpoints of every tenant.
#[derive(Default)]
pub(crate) struct Trees(BTreeMap<TenantId, Kept>);

#[derive(Default)]
struct Kept {
    tiles: BTreeMap<(u8, u64), Vec<u8>>,
    sealed: Option<Sealed>,
}

impl Trees {
    pub fn tile(&self, tenant: TenantId, level: u8, index: u64) -> Option<Vec<u8>> {
        self.0.get(&tenant)?.tiles.get(&(level, index)).cloned()
    }

    pub fn sealed(&self, tenant: TenantId) -> Option<Sealed> {
        self.0.get(&tenant)?.sealed.clone()
    }

    pub fn grow(&mut self, tenant: TenantId, growth: Growth) -> Result<(), StoreError> {
        let kept = self.0.entry(tenant).or_default();
        let size = kept.sealed.as_ref().map_or(0, |sealed| sealed.size);
        if size != growth.expected {
            return Err(StoreError::ViewMoved(size));
        }
        kept.tiles.extend(growth.tiles);
        let cosigned = kept.sealed.take().map_or_else(String::new, |sealed| sealed.cosigned);
        kept.sealed = Some(Sealed { size: growth.size, note: growth.note, cosigned });
        Ok(())
    }

    pub fn cosign(&mut self, tenant: TenantId, note: String) {
        if let Some(sealed) = self.0.get_mut(&tenant).and_then(|kept| kept.sealed.as_mut()) {
            sealed.cosigned = note;
        }
    }
}
