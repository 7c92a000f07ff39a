//! A role that a tenant made for itself.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// What may be asked of a role.
#[derive(Clone, Debug)]
pub enum RoleCommand {
    /// Make it.
    Create(Created),
    /// Replace its permissions.
    SetPermissions(Vec<String>),
    /// Remove it.
    Delete,
}

/// `identity.role.created`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    /// Unique name.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<String>,
}

/// `identity.role.permissions_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PermissionsChanged {
    /// All permissions from now on.
    pub permissions: Vec<String>,
}

/// `identity.role.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deleted {}

kernel::events! {
    /// What happened to a role.
    RoleEvent {
        Created(Created) = "identity.role.created" @ 1,
        PermissionsChanged(PermissionsChanged) = "identity.role.permissions_changed" @ 1,
        Deleted(Deleted) = "identity.role.deleted" @ 1,
    }
}

/// A custom role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Role {
    /// Unique name.
    pub name: String,
    /// What it allows.
    pub permissions: Vec<String>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Decider for Role {
    const KIND: &'static str = "role";
    type State = Role;
    type Command = RoleCommand;
    type Event = RoleEvent;

    fn decide(state: Option<&Role>, command: &RoleCommand, _: &Facts) -> Result<Vec<RoleEvent>, Rejection> {
        match (command, state) {
            (RoleCommand::Create(created), None) => Ok(vec![RoleEvent::Created(created.clone())]),
            (RoleCommand::Create(_), Some(_)) => Err(super::already("role")),
            (RoleCommand::Delete, Some(role)) if role.is_deleted => Ok(vec![]),
            (RoleCommand::Delete, Some(_)) => Ok(vec![RoleEvent::Deleted(Deleted {})]),
            (RoleCommand::SetPermissions(p), Some(role)) if !role.is_deleted => match *p == role.permissions {
                true => Ok(vec![]),
                false => Ok(vec![RoleEvent::PermissionsChanged(PermissionsChanged { permissions: p.clone() })]),
            },
            _ => Err(Rejection::new(
                Kind::NotFound,
                "ROLE_NOT_FOUND",
                "This role does not exist.",
                "List roles with GET /api/v1/roles.",
            )),
        }
    }

    fn evolve(state: Option<Role>, event: &RoleEvent, _: &Meta) -> Option<Role> {
        match event {
            RoleEvent::Created(c) => Some(Role { name: c.name.clone(), permissions: c.permissions.clone(), is_deleted: false }),
            RoleEvent::PermissionsChanged(c) => state.map(|r| Role { permissions: c.permissions.clone(), ..r }),
            RoleEvent::Deleted(_) => state.map(|r| Role { is_deleted: true, ..r }),
        }
    }

    fn is_terminal(state: &Role) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Role) -> bool {
        state.is_deleted
    }

    fn index(_: &Role) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&Role>, event: &RoleEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (RoleEvent::Created(c), _) => vec![UniqueChange::Take(name_key(&c.name))],
            (RoleEvent::Deleted(_), Some(role)) => vec![UniqueChange::Free(name_key(&role.name))],
            _ => vec![],
        }
    }
}

/// The unique key of a role's name.
pub fn name_key(name: &str) -> String {
    format!("role.name:{name}")
}
