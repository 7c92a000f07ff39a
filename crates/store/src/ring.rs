//! The latest events of each log in memory, so that subscribers at the tail need no disk, and the tail itself.

use crate::{ScanFilter, Scanned};
use kernel::event::ERASED;
use kernel::{Recorded, TenantId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events that a log keeps in memory.
const EVENTS_MAX: usize = 4_096;
/// Payload bytes that a log keeps in memory.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// One log's recent past.
pub(crate) struct Ring {
    /// The latest position.
    pub tail: watch::Sender<u64>,
    recent: Mutex<Recent>,
}

struct Recent {
    events: VecDeque<Arc<Recorded>>,
    bytes: usize,
    tail: u64,
}

/// The rings of all logs.
#[derive(Clone)]
pub(crate) struct Rings(Arc<Mutex<BTreeMap<TenantId, Arc<Ring>>>>);

impl Rings {
    pub fn new(tails: Vec<(TenantId, u64)>) -> Self {
        Rings(Arc::new(Mutex::new(tails.into_iter().map(|(log, tail)| (log, Arc::new(Ring::new(tail)))).collect())))
    }

    /// How far every log is.
    pub fn heads(&self) -> BTreeMap<TenantId, u64> {
        lock(&self.0).iter().map(|(log, ring)| (*log, ring.known())).collect()
    }

    pub fn of(&self, log: TenantId) -> Arc<Ring> {
        lock(&self.0).entry(log).or_insert_with(|| Arc::new(Ring::new(0))).clone()
    }
}

impl Ring {
    fn new(tail: u64) -> Self {
        Ring { tail: watch::channel(tail).0, recent: Mutex::new(Recent { events: VecDeque::new(), bytes: 0, tail }) }
    }

    /// Takes in events that are durable now, then wakes whoever follows.
    pub fn push(&self, events: Vec<Arc<Recorded>>) {
        let tail = {
            let mut recent = lock(&self.recent);
            for event in events {
                if event.header.position <= recent.tail {
                    continue;
                }
                if event.header.position > recent.tail + 1 {
                    // Somebody else wrote what is between: readers find that in the store.
                    recent.clear();
                }
                if event.header.kind == ERASED {
                    // What is kept here of its stream is no more in the store.
                    recent.clear();
                }
                recent.bytes += size(&event);
                recent.tail = event.header.position;
                recent.events.push_back(event);
            }
            while recent.events.len() > EVENTS_MAX || recent.bytes > BYTES_MAX {
                let Some(oldest) = recent.events.pop_front() else { break };
                recent.bytes -= size(&oldest);
            }
            recent.tail
        };
        self.tail.send_replace(tail);
    }

    /// Takes note of a later position whose events are not in memory.
    pub fn raise(&self, tail: u64) {
        {
            let mut recent = lock(&self.recent);
            if tail <= recent.tail {
                return;
            }
            recent.clear();
            recent.tail = tail;
        }
        self.tail.send_replace(tail);
    }

    /// The latest position that is known here.
    pub fn known(&self) -> u64 {
        lock(&self.recent).tail
    }

    /// The events after a position, when memory holds all of them.
    pub fn recent(&self, after: u64, filter: &ScanFilter, limit: usize) -> Option<Scanned> {
        let recent = lock(&self.recent);
        if after >= recent.tail {
            return Some(Scanned { events: vec![], position: recent.tail });
        }
        let oldest = recent.events.front()?.header.position;
        let skipped = usize::try_from((after + 1).checked_sub(oldest)?).ok()?;
        let mut found = Scanned { events: vec![], position: after };
        for event in recent.events.iter().skip(skipped) {
            if found.events.len() == limit {
                break;
            }
            found.position = event.header.position;
            if filter.admits(event) {
                found.events.push(event.clone());
            }
        }
        Some(found)
    }
}

impl Recent {
    fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}

fn size(event: &Recorded) -> usize {
    512 + event.payload.as_ref().map_or(0, Vec::len)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing below panics between two changes, so a poisoned state is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
