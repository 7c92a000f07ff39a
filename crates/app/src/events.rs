//! The log as it is read from outside.

use crate::app::App;
use crate::errors::of_store;
use crate::{Answer, Caller};
use kernel::id::TenantId;
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

    /// Wakes whoever follows a tenant's log.
    pub fn tail(&self, tenant: TenantId) -> watch::Receiver<u64> {
        self.0.engine.store().tail(tenant)
    }
}
