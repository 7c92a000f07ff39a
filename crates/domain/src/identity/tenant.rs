//! A tenant: owner of a log and everything in it. Its record lives in the log of the default tenant.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Personal, Rejection, UniqueChange, UserId};
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

kernel::events! {
    /// What happened to a tenant.
    TenantEvent {
        Created(Created) = "identity.tenant.created" @ 1,
        Provisioned(Provisioned) = "identity.tenant.provisioned" @ 1,
        Suspended(Suspended) = "identity.tenant.suspended" @ 1,
        Reinstated(Reinstated) = "identity.tenant.reinstated" @ 1,
        LimitsChanged(LimitsChanged) = "identity.tenant.limits_changed" @ 1,
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
            (TenantCommand::Suspend { .. } | TenantCommand::Reinstate | TenantCommand::SetLimits(_), _) => Ok(vec![]),
        }
    }

    fn evolve(state: Option<Tenant>, event: &TenantEvent, _: &Meta) -> Option<Tenant> {
        match event {
            TenantEvent::Created(created) => {
                let limits = TenantLimits::default();
                Some(Tenant { created: created.clone(), is_ready: false, suspended: None, limits })
            }
            TenantEvent::Provisioned(_) => state.map(|t| Tenant { is_ready: true, ..t }),
            TenantEvent::Suspended(s) => state.map(|t| Tenant { suspended: Some(s.reason.clone()), ..t }),
            TenantEvent::Reinstated(_) => state.map(|t| Tenant { suspended: None, ..t }),
            TenantEvent::LimitsChanged(changed) => state.map(|t| Tenant { limits: changed.limits.clone(), ..t }),
        }
    }

    fn is_terminal(_: &Tenant) -> bool {
        false
    }

    fn index(_: &Tenant) -> Vec<IndexField> {
        vec![]
    }

    fn unique(_: Option<&Tenant>, event: &TenantEvent) -> Vec<UniqueChange> {
        match event {
            TenantEvent::Created(created) => vec![UniqueChange::Take(slug_key(&created.slug))],
            _ => vec![],
        }
    }
}

/// The unique key of a slug.
pub fn slug_key(slug: &str) -> String {
    format!("tenant.slug:{slug}")
}
