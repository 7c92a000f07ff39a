//! A person or a service. Password hashes are sealed secrets beside the log; events only name them.

use kernel::rules::Meta;
use kernel::{BlindIndex, Decider, Facts, IndexField, Kind, Personal, Rejection, UniqueChange};
use serde::{Deserialize, Serialize};

/// Whether an identity is a person or a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserKind {
    /// A person, who signs in with a password.
    User,
    /// A program, which has API keys only.
    Service,
}

/// What may be asked of a user.
#[derive(Clone, Debug)]
pub enum UserCommand {
    /// Make the identity.
    Register(Registered),
    /// The sealed password hash was replaced.
    ChangePassword,
    /// Replace the roles.
    SetRoles(Vec<String>),
    /// Remove it.
    Delete,
}

/// `identity.user.registered`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Person or service.
    pub kind: UserKind,
    /// How it signs in.
    pub username: Personal<String>,
    /// By which it is found.
    pub username_index: BlindIndex,
    /// Roles by name.
    pub roles: Vec<String>,
}

/// `identity.user.password_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PasswordChanged {}

/// `identity.user.roles_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolesChanged {
    /// All roles from now on.
    pub roles: Vec<String>,
}

/// `identity.user.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deleted {}

kernel::events! {
    /// What happened to a user.
    UserEvent {
        Registered(Registered) = "identity.user.registered" @ 1,
        PasswordChanged(PasswordChanged) = "identity.user.password_changed" @ 1,
        RolesChanged(RolesChanged) = "identity.user.roles_changed" @ 1,
        Deleted(Deleted) = "identity.user.deleted" @ 1,
    }
}

/// A user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Person or service.
    pub kind: UserKind,
    /// How it signs in.
    pub username: Personal<String>,
    /// By which it is found.
    pub username_index: BlindIndex,
    /// Roles by name.
    pub roles: Vec<String>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl User {
    /// What it is called; empty after erasure.
    pub fn name(&self) -> &str {
        self.username.get().map_or("", String::as_str)
    }
}

impl Decider for User {
    const KIND: &'static str = "user";
    type State = User;
    type Command = UserCommand;
    type Event = UserEvent;

    fn decide(state: Option<&User>, command: &UserCommand, _: &Facts) -> Result<Vec<UserEvent>, Rejection> {
        let user = match (command, state) {
            (UserCommand::Register(registered), None) => return Ok(vec![UserEvent::Registered(registered.clone())]),
            (UserCommand::Register(_), Some(_)) => return Err(super::already("user")),
            (_, Some(user)) if !user.is_deleted => user,
            (UserCommand::Delete, Some(_)) => return Ok(vec![]),
            _ => {
                return Err(Rejection::new(
                    Kind::NotFound,
                    "USER_NOT_FOUND",
                    "This user does not exist.",
                    "List users with GET /api/v1/users.",
                ));
            }
        };
        Ok(match command {
            UserCommand::Register(_) => vec![],
            UserCommand::ChangePassword if user.kind == UserKind::Service => {
                return Err(Rejection::new(
                    Kind::Refused,
                    "SERVICE_HAS_NO_PASSWORD",
                    "A service does not sign in with a password.",
                    "Give it an API key with POST /api/v1/api-keys.",
                ));
            }
            UserCommand::ChangePassword => vec![UserEvent::PasswordChanged(PasswordChanged {})],
            UserCommand::SetRoles(roles) if *roles == user.roles => vec![],
            UserCommand::SetRoles(roles) => vec![UserEvent::RolesChanged(RolesChanged { roles: roles.clone() })],
            UserCommand::Delete => vec![UserEvent::Deleted(Deleted {})],
        })
    }

    fn evolve(state: Option<User>, event: &UserEvent, _: &Meta) -> Option<User> {
        match event {
            UserEvent::Registered(r) => Some(User {
                kind: r.kind,
                username: r.username.clone(),
                username_index: r.username_index.clone(),
                roles: r.roles.clone(),
                is_deleted: false,
            }),
            UserEvent::PasswordChanged(_) => state,
            UserEvent::RolesChanged(r) => state.map(|u| User { roles: r.roles.clone(), ..u }),
            UserEvent::Deleted(_) => state.map(|u| User { is_deleted: true, ..u }),
        }
    }

    fn is_terminal(state: &User) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &User) -> bool {
        state.is_deleted
    }

    fn index(_: &User) -> Vec<IndexField> {
        vec![]
    }

    fn unique(state: Option<&User>, event: &UserEvent) -> Vec<UniqueChange> {
        match (event, state) {
            (UserEvent::Registered(r), _) => vec![UniqueChange::Take(name_key(&r.username_index))],
            (UserEvent::Deleted(_), Some(user)) => vec![UniqueChange::Free(name_key(&user.username_index))],
            _ => vec![],
        }
    }
}

/// The unique key of a user name.
pub fn name_key(index: &BlindIndex) -> String {
    format!("user.name:{}", index.0)
}

/// The name of the sealed secret that holds a user's password hash.
pub fn password_secret(user: &kernel::id::UserId) -> String {
    format!("password:{user}")
}
