//! What guards a tenant as a whole.

use crate::app::App;
use crate::{Answer, Caller};
use domain::identity::guard::{Guard, GuardCommand, guard_id};
use engine::{Extras, Handled, Step};
use kernel::id::TenantId;

impl App {
    /// What guards the caller's tenant.
    pub async fn guard(&self, caller: &Caller) -> Answer<Guard> {
        self.guard_of(caller.actor.tenant).await
    }

    pub(crate) async fn guard_of(&self, tenant: TenantId) -> Answer<Guard> {
        let known = self.entity::<Guard>(tenant, &guard_id(tenant).to_string()).await?;
        Ok(known.map(|known| known.state.as_ref().clone()).unwrap_or_default())
    }

    async fn guarded(&self, caller: &Caller, command: GuardCommand) -> Answer<Handled<Guard>> {
        let step = Step::on::<Guard>(guard_id(caller.actor.tenant), command);
        self.execute::<Guard>(caller, step, Extras::default()).await
    }

    /// Calls back every session and token of the tenant, the caller's own too, and API keys if they are meant.
    pub async fn revoke_all(&self, caller: &Caller, keys: bool) -> Answer<Handled<Guard>> {
        self.witness(caller, "identity.all.revoked", &serde_json::json!({ "keys": keys })).await?;
        self.guarded(caller, GuardCommand::RevokeAll { keys }).await
    }

    /// Allows less until it is lifted.
    pub async fn declare_emergency(&self, caller: &Caller, reason: String) -> Answer<Handled<Guard>> {
        self.witness(caller, "identity.emergency.declared", &serde_json::json!({ "reason": reason })).await?;
        self.guarded(caller, GuardCommand::Declare { reason }).await
    }

    /// Allows as much as before.
    pub async fn lift_emergency(&self, caller: &Caller) -> Answer<Handled<Guard>> {
        self.witness(caller, "identity.emergency.lifted", &serde_json::json!({})).await?;
        self.guarded(caller, GuardCommand::Lift).await
    }
}
