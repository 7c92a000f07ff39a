//! Checks that every backend makes before it writes; only the look-up differs.

use crate::{StoreError, StreamWrite};
use kernel::{IndexField, UniqueChange};
use std::collections::BTreeMap;

/// Whether the unique keys of an append can be had, given who holds which key now. Changes count in their order, so a
/// key that is given up first can be taken by another stream of the same append.
pub(crate) fn unique_keys(
    writes: &[StreamWrite],
    mut stored: impl FnMut(&str) -> Result<Option<String>, StoreError>,
) -> Result<(), StoreError> {
    let mut pending: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for write in writes {
        for change in &write.unique {
            match change {
                UniqueChange::Free(key) => {
                    pending.insert(key, None);
                }
                UniqueChange::Take(key) => {
                    let holder = match pending.get(key.as_str()) {
                        Some(holder) => holder.map(str::to_owned),
                        None => stored(key)?,
                    };
                    if let Some(holder) = holder.filter(|h| *h != write.stream) {
                        return Err(StoreError::Taken { key: key.clone(), holder });
                    }
                    pending.insert(key, Some(&write.stream));
                }
            }
        }
    }
    Ok(())
}

/// The index fields of an entity as they are kept beside it: one per line, name and value apart by a tab. Neither may
/// contain a line end, so values are cleaned.
pub(crate) fn field_lines(kind: &str, index: &[IndexField]) -> Vec<String> {
    let mut lines: Vec<String> =
        index.iter().map(|f| format!("{kind}.{}\t{}", f.name, f.value.replace(['\n', '\r'], " "))).collect();
    lines.sort();
    lines.dedup();
    lines
}
