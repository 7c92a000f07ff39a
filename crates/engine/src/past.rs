//! How an entity was: folded from its stream up to a position.

use crate::handle::is_of;
use crate::plan::fold;
use crate::{Engine, Handled};
use kernel::{Decider, TenantId, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{ScanFilter, StoreError};

/// Events that are read at a time.
const PAGE_EVENTS: usize = 500;

impl Engine {
    /// Folds the next events of a log into the entities of a kind, up to a position. Answers how far it came.
    pub async fn fold_page<D: Decider>(
        &self,
        log: TenantId,
        after: u64,
        position: u64,
        entities: &mut BTreeMap<String, Handled<D::State>>,
    ) -> Result<u64, StoreError> {
        let page = self.store().scan(log, after, ScanFilter::default(), PAGE_EVENTS).await?;
        let is_of_kind = |stream: &str| stream.rsplit_once('_').is_some_and(|(kind, _)| kind == D::KIND);
        for event in page.events.iter().filter(|event| event.header.position <= position) {
            let header = &event.header;
            if !is_of_kind(&header.stream) {
                continue;
            }
            let known = entities.remove(&header.stream);
            let created_at = known.as_ref().map_or(header.occurred_at, |known| known.created_at);
            let state = known.map(|known| Arc::unwrap_or_clone(known.state));
            let Some(state) = fold::<D>(state, event).map_err(StoreError::Corrupt)? else { continue };
            let handled = Handled {
                stream: header.stream.clone(),
                state: Arc::new(state),
                version: header.version,
                position,
                created_at,
                updated_at: header.occurred_at,
            };
            entities.insert(header.stream.clone(), handled);
        }
        match page.position > after {
            true => Ok(page.position),
            false => Err(StoreError::Corrupt(format!("the log ends at {after}, before position {position}"))),
        }
    }

    /// An entity as of a position of the log; `None` when it did not exist then, or is of another kind.
    pub async fn entity_at<D: Decider>(
        &self,
        log: TenantId,
        stream: &str,
        position: u64,
    ) -> Result<Option<Handled<D::State>>, StoreError> {
        if !is_of::<D>(stream) {
            return Ok(None);
        }
        let mut state = None;
        let mut version = 0;
        let (mut created_at, mut updated_at) = (Timestamp(0), Timestamp(0));
        loop {
            let page = self.store().read(log, stream, version + 1, PAGE_EVENTS).await?;
            let count = page.len();
            let then: Vec<_> = page.into_iter().take_while(|event| event.header.position <= position).collect();
            for event in &then {
                let header = &event.header;
                state = fold::<D>(state, event).map_err(StoreError::Corrupt)?;
                created_at = if version == 0 { header.occurred_at } else { created_at };
                (version, updated_at) = (header.version, header.occurred_at);
            }
            if then.len() < count || count < PAGE_EVENTS {
                break;
            }
        }
        Ok(state.map(|state| Handled {
            stream: stream.to_owned(),
            state: Arc::new(state),
            version,
            position,
            created_at,
            updated_at,
        }))
    }
}
