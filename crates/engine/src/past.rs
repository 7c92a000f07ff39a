//! How an entity was: folded from its stream up to a position.

use crate::plan::fold;
use crate::{Engine, Handled};
use kernel::{Decider, TenantId, Timestamp};
use std::sync::Arc;
use store::StoreError;

/// Events that are read at a time.
const PAGE_EVENTS: usize = 500;

impl Engine {
    /// An entity as of a position of the log; `None` when it did not exist then.
    pub async fn entity_at<D: Decider>(
        &self,
        log: TenantId,
        stream: &str,
        position: u64,
    ) -> Result<Option<Handled<D::State>>, StoreError> {
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
