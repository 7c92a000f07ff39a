//! A tenant: owner of a log and everything in it. Its record lives in the log of the default tenant.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Personal, Rejection, UniqueChange, UserId};
use serde::{Deserialize, Serialize};

/// What may be asked of a tenant.
#[derive(Clone, Debug)]
pub enum TenantCommand {
    /// Found it.
    Create(Created),
    /// Its log is open and its administrator exists.
    MarkReady,
    /// Let nobody of it do anything until it is reinstated.
    Suspend {
        /// Why, for the record.
        reason: String,
    },
    /// Let it work again.
    Reinstate,
    /// Replace what it may use.
    SetLimits(TenantLimits),
    /// Let nobody of it do anything any more, and remove what it holds.
    Delete {
        /// Why, for the record.
        reason: String,
    },
    /// What it held is removed.
    MarkDeleted,
}

/// What a tenant may use; nothing said is what every tenant may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantLimits {
    /// Requests, such as `200/s`; else `limit.tenant`.
    pub requests: Option<String>,
    /// Users and services, those that were deleted not counted; else any number.
    pub users_max: Option<u32>,
    /// Agents, those that were deleted not counted; else any number.
    pub agents_max: Option<u32>,
}

/// `identity.tenant.created`. The administrator's password hash is a sealed secret named after `admin_user`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// Unique short name.
    pub slug: String,
    /// Name for people.
    pub name: String,
    /// The administrator to be made in the new log.
    pub admin_user: UserId,
    /// How that administrator signs in.
    pub admin_username: Personal<String>,
}

/// `identity.tenant.provisioned`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provisioned {}

/// `identity.tenant.suspended`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspended {
    /// Why.
    pub reason: String,
}

/// `identity.tenant.reinstated`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reinstated {}

/// `identity.tenant.limits_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitsChanged {
    /// All limits from now on.
    pub limits: TenantLimits,
}

/// `identity.tenant.deletion_requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionRequested {
    /// Why.
    pub reason: String,
}

/// `identity.tenant.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deleted {}

kernel::events! {
    /// What happened to a tenant.
    TenantEvent {
        Created(Created) = "identity.tenant.created" @ 1,
        Provisioned(Provisioned) = "identity.tenant.provisioned" @ 1,
        Suspended(Suspended) = "identity.tenant.suspended" @ 1,
        Reinstated(Reinstated) = "identity.tenant.reinstated" @ 1,
        LimitsChanged(LimitsChanged) = "identity.tenant.limits_changed" @ 1,
        DeletionRequested(DeletionRequested) = "identity.tenant.deletion_requested" @ 1,
        Deleted(Deleted) = "identity.tenant.deleted" @ 1,
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// As it was created.
    pub created: Created,
    /// Whether it can be used.
    pub is_ready: bool,
    /// Why nobody of it may do anything for now.
    #[serde(default)]
    pub suspended: Option<String>,
    /// What it may use.
    #[serde(default)]
    pub limits: TenantLimits,
    /// Why it is being deleted.
    #[serde(default)]
    pub deleting: Option<String>,
    /// Whether what it held is removed.
    #[serde(default)]
    pub is_deleted: bool,
}

impl Tenant {
    /// Whether nobody of it may do anything.
    pub fn is_stopped(&self) -> bool {
        self.suspended.is_some() || self.deleting.is_some()
    }
}

impl Decider for Tenant {
    const KIND: &'static str = "tnt";
    type State = Tenant;
    type Command = TenantCommand;
    type Event = TenantEvent;

    fn decide(state: Option<&Tenant>, command: &TenantCommand, _: &Facts) -> Result<Vec<TenantEvent>, Rejection> {
        match (command, state) {
            (TenantCommand::Create(created), None) => Ok(vec![TenantEvent::Created(created.clone())]),
            (TenantCommand::Create(_), Some(_)) => Err(super::already("tenant")),
            (TenantCommand::MarkReady, Some(tenant)) if !tenant.is_ready => Ok(vec![TenantEvent::Provisioned(Provisioned {})]),
            (TenantCommand::MarkReady, _) => Ok(vec![]),
            (TenantCommand::Suspend { reason }, Some(tenant)) if tenant.suspended.is_none() => {
                Ok(vec![TenantEvent::Suspended(Suspended { reason: reason.clone() })])
            }
            (TenantCommand::Reinstate, Some(tenant)) if tenant.suspended.is_some() => {
                Ok(vec![TenantEvent::Reinstated(Reinstated {})])
            }
            (TenantCommand::SetLimits(limits), Some(tenant)) if *limits != tenant.limits => {
                Ok(vec![TenantEvent::LimitsChanged(LimitsChanged { limits: limits.clone() })])
            }
            (TenantCommand::Delete { .. }, Some(tenant)) if !tenant.is_ready => Err(Rejection::new(
                Kind::Refused,
                "RULE_VIOLATED",
                "This tenant is not open yet.",
                "Delete it once its status is 'ready'.",
            )),
            (TenantCommand::Delete { reason }, Some(tenant)) if tenant.deleting.is_none() => {
                Ok(vec![TenantEvent::DeletionRequested(DeletionRequested { reason: reason.clone() })])
            }
            (TenantCommand::MarkDeleted, Some(tenant)) if tenant.deleting.is_some() && !tenant.is_deleted => {
                Ok(vec![TenantEvent::Deleted(Deleted {})])
            }
            (
                TenantCommand::Suspend { .. }
                | TenantCommand::Reinstate
                | TenantCommand::SetLimits(_)
                | TenantCommand::Delete { .. }
                | TenantCommand::MarkDeleted,
                _,
            ) => Ok(vec![]),
        }
    }

    fn evolve(state: Option<Tenant>, event: &TenantEvent, _: &Meta) -> Option<Tenant> {
        match event {
            TenantEvent::Created(created) => {
                let limits = TenantLimits::default();
                let created = created.clone();
                Some(Tenant { created, is_ready: false, suspended: None, limits, deleting: None, is_deleted: false })
            }
            TenantEvent::Provisioned(_) => state.map(|t| Tenant { is_ready: true, ..t }),
            TenantEvent::Suspended(s) => state.map(|t| Tenant { suspended: Some(s.reason.clone()), ..t }),
            TenantEvent::Reinstated(_) => state.map(|t| Tenant { suspended: None, ..t }),
            TenantEvent::DeletionRequested(d) => state.map(|t| Tenant { deleting: Some(d.reason.clone()), ..t }),
            TenantEvent::Deleted(_) => state.map(|t| Tenant { is_deleted: true, ..t }),
            TenantEvent::LimitsChanged(changed) => state.map(|t| Tenant { limits: changed.limits.clone(), ..t }),
        }
    }

    fn is_terminal(state: &Tenant) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Tenant) -> bool {
        state.is_deleted
    }

    fn index(_: &Tenant) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&Tenant>, event: &TenantEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (TenantEvent::Created(created), _) => vec![UniqueChange::Take(slug_key(&created.slug))],
            (TenantEvent::Deleted(_), Some(tenant)) => vec![UniqueChange::Free(slug_key(&tenant.created.slug))],
            _ => vec![],
        }
    }
}

/// The unique key of a slug.
pub fn slug_key(slug: &str) -> String {
    format!("tenant.slug:{slug}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn given(commands: &[TenantCommand]) -> Option<Tenant> {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 0 };
        let meta = Meta { version: 0, at: Timestamp(0), actor: ActorRef::system("test") };
        commands.iter().fold(None, |state: Option<Tenant>, command| {
            let events = Tenant::decide(state.as_ref(), command, &facts).unwrap_or_default();
            events.iter().fold(state, |state, event| Tenant::evolve(state, event, &meta))
        })
    }

    fn create() -> TenantCommand {
        let admin_user = UserId::from_bytes([1; 16]);
        let admin_username = Personal::new(admin_user, "ada".to_owned());
        TenantCommand::Create(Created { slug: "research".into(), name: "Research".into(), admin_user, admin_username })
    }

    fn delete() -> TenantCommand {
        TenantCommand::Delete { reason: "moved away".into() }
    }

    #[test]
    fn given_a_tenant_that_is_being_deleted_then_nothing_lets_it_work_again() {
        let deleting = given(&[create(), TenantCommand::MarkReady, delete(), TenantCommand::Reinstate]).unwrap();
        assert!(deleting.is_stopped() && !deleting.is_deleted);
        let deleted = given(&[create(), TenantCommand::MarkReady, delete(), TenantCommand::MarkDeleted]);
        assert!(deleted.as_ref().unwrap().is_deleted);
        let freed = Tenant::unique(deleted.as_ref(), &TenantEvent::Deleted(Deleted {}));
        assert_eq!(freed, [UniqueChange::Free("tenant.slug:research".into())]);
    }

    #[test]
    fn given_a_tenant_that_is_not_open_or_not_to_be_deleted_then_it_is_not() {
        assert_eq!(given(&[create(), delete()]).unwrap().deleting, None);
        assert!(!given(&[create(), TenantCommand::MarkReady, TenantCommand::MarkDeleted]).unwrap().is_deleted);
    }
}
