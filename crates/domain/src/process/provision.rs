//! Opens the log of every new tenant and makes its administrator: work outside the log that the tenant was created in,
//! at least once, with an outcome that comes back as an event.

use crate::identity::tenant::Tenant;
use kernel::id::TenantId;
use kernel::{Decider, Process, Recorded, Timestamp};
use std::collections::BTreeMap;

/// When an effect without an outcome is tried again.
const TRY_AGAIN_MS: u64 = 5_000;

/// Tenants that are not ready, with when to work on them.
#[derive(Default)]
pub struct Provision {
    open: BTreeMap<TenantId, Timestamp>,
}

impl Provision {
    /// Takes in a tenant that was not ready at the start.
    pub fn put(&mut self, tenant: TenantId) {
        self.open.insert(tenant, Timestamp(0));
    }
}

impl Process for Provision {
    const NAME: &'static str = "provisioner";
    type Signal = ();
    /// Open this tenant's log.
    type Command = TenantId;

    fn react(&mut self, event: &Recorded, now: Timestamp) {
        if !event.header.stream.starts_with(Tenant::KIND) {
            return;
        }
        let Ok(tenant) = event.header.stream.parse() else { return };
        match event.header.kind.as_str() {
            "identity.tenant.created" => self.open.insert(tenant, now),
            "identity.tenant.provisioned" => self.open.remove(&tenant),
            _ => None,
        };
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, now: Timestamp, _random: u64) -> Vec<TenantId> {
        let due: Vec<TenantId> = self.open.iter().filter(|(_, at)| **at <= now).map(|(tenant, _)| *tenant).collect();
        for tenant in &due {
            self.open.insert(*tenant, now.plus_ms(TRY_AGAIN_MS));
        }
        due
    }

    fn due(&self) -> Option<Timestamp> {
        self.open.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_created_tenant_then_its_log_is_opened_until_that_is_recorded() {
        let tenant = TenantId::from_bytes([1; 16]);
        let event = |kind: &str| crate::golden::recorded(kind, &tenant.to_string(), 1, 1, serde_json::json!({}));
        let mut provision = Provision::default();
        provision.react(&event("identity.tenant.created"), Timestamp(0));
        assert_eq!(provision.decide(Timestamp(0), 0), [tenant]);
        assert_eq!(provision.decide(Timestamp(1), 0), []);
        assert_eq!(provision.decide(Timestamp(5_000), 0), [tenant], "an effect without outcome is tried again");
        provision.react(&event("identity.tenant.provisioned"), Timestamp(5_001));
        assert_eq!(provision.decide(Timestamp(60_000), 0), []);
        assert_eq!(provision.due(), None);
    }
}
