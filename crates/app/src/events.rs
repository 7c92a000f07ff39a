//! The log as it is read from outside.

use crate::app::App;
use crate::errors::of_store;
use crate::{Answer, Caller, Filter};
use kernel::id::{EventId, TenantId};
use kernel::{Kind, Recorded, Rejection};
use std::sync::Arc;
use store::{ScanFilter, Scanned};
use tokio::sync::watch;

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// What the store decides: type, stream, category.
    pub plain: ScanFilter,
    /// What an expression decides.
    pub filter: Option<Filter>,
}

/// Events of one look with an expression: at most this many are read at a time, ...
const PAGE_EVENTS: usize = 200;
/// ... this many are looked at, ...
const LOOK_EVENTS_MAX: usize = 2_000;
/// ... and about so much of their content; then the answer says how far it came.
const LOOK_BYTES_MAX: usize = 1024 * 1024;
/// Expressions that are evaluated before others get the thread.
const TURN_EVENTS: usize = 32;

impl App {
    /// Events of the caller's tenant after a position.
    pub async fn events(&self, caller: &Caller, after: u64, wanted: &Selection, limit: usize) -> Answer<Scanned> {
        self.select(caller.actor.tenant, after, wanted, limit).await
    }

    /// Events that a selection admits, for a subscription that was authorised when it began. Few may be found, or none:
    /// the position says how far was looked.
    pub async fn select(&self, tenant: TenantId, after: u64, wanted: &Selection, limit: usize) -> Answer<Scanned> {
        let Some(filter) = &wanted.filter else { return self.scan(tenant, after, wanted.plain.clone(), limit).await };
        let mut found = Scanned { events: vec![], position: after };
        let (mut looked_at, mut bytes) = (0, 0);
        loop {
            let page = self.scan(tenant, found.position, wanted.plain.clone(), PAGE_EVENTS).await?;
            let is_end = page.position <= found.position;
            for event in page.events {
                looked_at += 1;
                bytes += event.payload.as_ref().map_or(0, Vec::len);
                found.position = event.header.position;
                if filter.admits(&event) {
                    found.events.push(event);
                }
                if found.events.len() >= limit || looked_at >= LOOK_EVENTS_MAX || bytes >= LOOK_BYTES_MAX {
                    return Ok(found);
                }
                if looked_at % TURN_EVENTS == 0 {
                    tokio::task::yield_now().await;
                }
            }
            found.position = found.position.max(page.position);
            if is_end {
                return Ok(found);
            }
        }
    }

    /// Events of a tenant after a position.
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
