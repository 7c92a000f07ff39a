//! Streams in use: their pending state, one lane each. Commands on a stream are decided in turn in its lane.
//!
//! Lanes are a cache. Whatever they hold is checked again by the store's expected version, so losing one costs a read.

use crate::plan::AnyState;
use kernel::{TenantId, Timestamp};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

/// Lanes that a generation holds; two generations are kept.
const GENERATION_LANES_MAX: usize = 4_096;

/// One stream.
#[derive(Default)]
pub(crate) struct Cell {
    pub lane: Arc<tokio::sync::Mutex<Lane>>,
    /// The version up to which everything is durable.
    pub durable: AtomicU64,
}

/// What is known of a stream, appends that are under way included.
#[derive(Default)]
pub(crate) struct Lane {
    pub is_loaded: bool,
    pub state: Option<AnyState>,
    pub version: u64,
    /// Version of the state that is stored.
    pub state_version: u64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Default)]
pub(crate) struct Lanes(Mutex<Generations>);

type Generation = BTreeMap<(TenantId, String), Arc<Cell>>;

#[derive(Default)]
struct Generations {
    young: Generation,
    old: Generation,
}

impl Lanes {
    /// The lane of a stream; one that was not used for a while is forgotten.
    pub fn of(&self, log: TenantId, stream: &str) -> Arc<Cell> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (log, stream.to_owned());
        if let Some(cell) = lanes.young.get(&key) {
            return cell.clone();
        }
        let cell = lanes.old.remove(&key).unwrap_or_default();
        if lanes.young.len() >= GENERATION_LANES_MAX {
            lanes.old = std::mem::take(&mut lanes.young);
        }
        lanes.young.insert(key, cell.clone());
        cell
    }
}
