//! The log as it is read from outside.

use crate::app::App;
use crate::errors::of_store;
use crate::{Answer, Caller};
use kernel::id::{EventId, TenantId};
use kernel::{Kind, Recorded, Rejection};
use std::sync::Arc;
use store::{ScanFilter, Scanned};
use tokio::sync::watch;

impl App {
    /// Events of the caller's tenant after a position.
    pub async fn events(&self, caller: &Caller, after: u64, filter: ScanFilter, limit: usize) -> Answer<Scanned> {
        self.scan(caller.actor.tenant, after, filter, limit).await
    }

    /// Events of a tenant after a position, for a subscription that was authorised when it began.
    pub async fn scan(&self, tenant: TenantId, after: u64, filter: ScanFilter, limit: usize) -> Answer<Scanned> {
        self.0.engine.store().scan(tenant, after, filter, limit).await.map_err(of_store)
    }

    /// One event of the caller's tenant, by id or position.
    pub async fn event(&self, caller: &Caller, handle: &str) -> Answer<Arc<Recorded>> {
        let position = match (handle.parse::<u64>(), handle.parse::<EventId>()) {
            (Ok(position), _) => Some(position),
            (_, Ok(id)) => Some(self.position_of_event(caller, id).await?),
            _ => None,
        };
        let after = position.and_then(|position| position.checked_sub(1));
        let found = match after {
            Some(after) => self.scan(caller.actor.tenant, after, ScanFilter::default(), 1).await?.events.pop(),
            None => None,
        };
        found.filter(|event| Some(event.header.position) == position).ok_or_else(|| {
            let message = format!("There is no event '{handle}' in this tenant.");
            Rejection::new(Kind::NotFound, "EVENT_NOT_FOUND", message, "List events with GET /api/v1/events.")
                .with("searched_id", handle)
        })
    }

    /// A position to go on from, refused when the log has not come that far: whoever asks has read another log.
    pub async fn not_ahead(&self, tenant: TenantId, after: u64) -> Answer<u64> {
        let head = self.0.engine.store().head(tenant).await.map_err(of_store)?;
        if after <= head {
            return Ok(after);
        }
        let message = format!("The log is at position {head}, so nothing can follow position {after} yet.");
        let hint = "Begin at a position that the log has; after a restore of an older backup, begin anew.";
        Err(Rejection::new(Kind::Refused, "POSITION_AHEAD", message, hint).with("position", head))
    }

    /// Wakes whoever follows a tenant's log.
    pub fn tail(&self, tenant: TenantId) -> watch::Receiver<u64> {
        self.0.engine.store().tail(tenant)
    }
}
