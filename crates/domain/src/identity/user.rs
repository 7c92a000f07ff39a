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
    /// Make the identity of somebody who was invited, with the address that the invitation reached.
    Join(Registered, Option<EmailSet>),
    /// The sealed password hash was replaced.
    ChangePassword,
    /// Somebody signs in whose password was right while this was the version. Changes nothing.
    SignIn {
        /// [`User::password_version`] at that time.
        password_version: u64,
        /// Whether a second factor was shown too.
        is_multi_factor: bool,
    },
    /// Replace the roles.
    SetRoles(Vec<String>),
    /// The person showed that a mail to this address reaches them.
    SetEmail(EmailSet),
    /// It has no address any more.
    RemoveEmail,
    /// A second factor was set up, and shown to work.
    EnrolMfa(MfaEnrolled),
    /// The second factor is gone.
    RemoveMfa,
    /// A one-time code was shown.
    UseCode {
        /// The step that it belongs to.
        step: u64,
    },
    /// A recovery code was shown.
    UseRecovery {
        /// SHA-256 of the code, hexadecimal.
        sha256: String,
    },
    /// Let it do nothing until it is reinstated.
    Suspend {
        /// Why, for the record.
        reason: String,
    },
    /// Let it work again.
    Reinstate,
    /// Remove it.
    Delete,
}

/// `identity.user.email_set`: an address that the person showed to be theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmailSet {
    /// The address.
    pub email: Personal<String>,
    /// By which it is found.
    pub email_index: BlindIndex,
}

/// `identity.user.email_removed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmailRemoved {}

/// `identity.user.mfa_enrolled`. The secret is a sealed one beside the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MfaEnrolled {
    /// SHA-256 of each recovery code, hexadecimal.
    pub recovery_sha256: Vec<String>,
    /// The step of the code that showed that it works.
    pub step: u64,
}

/// `identity.user.mfa_removed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MfaRemoved {}

/// `identity.user.code_used`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CodeUsed {
    /// The step that the code belongs to: no code of it or before counts again.
    pub step: u64,
}

/// `identity.user.recovery_code_used`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoveryCodeUsed {
    /// SHA-256 of the code, hexadecimal.
    pub sha256: String,
}

/// `identity.user.suspended`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suspended {
    /// Why.
    pub reason: String,
}

/// `identity.user.reinstated`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reinstated {}

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
        EmailSet(EmailSet) = "identity.user.email_set" @ 1,
        EmailRemoved(EmailRemoved) = "identity.user.email_removed" @ 1,
        MfaEnrolled(MfaEnrolled) = "identity.user.mfa_enrolled" @ 1,
        MfaRemoved(MfaRemoved) = "identity.user.mfa_removed" @ 1,
        CodeUsed(CodeUsed) = "identity.user.code_used" @ 1,
        RecoveryCodeUsed(RecoveryCodeUsed) = "identity.user.recovery_code_used" @ 1,
        Suspended(Suspended) = "identity.user.suspended" @ 1,
        Reinstated(Reinstated) = "identity.user.reinstated" @ 1,
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
    /// The address that the person showed to be theirs.
    #[serde(default)]
    pub email: Option<EmailSet>,
    /// The version that changed the password last; 0 for the first one.
    #[serde(default)]
    pub password_version: u64,
    /// The second factor, if it has one.
    #[serde(default)]
    pub mfa: Option<Mfa>,
    /// Why it may do nothing for now.
    #[serde(default)]
    pub suspended: Option<String>,
    /// Whether it was removed.
    pub is_deleted: bool,
}

/// A second factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mfa {
    /// SHA-256 of the recovery codes that were not used.
    pub recovery_sha256: Vec<String>,
    /// The latest step whose code was used.
    pub step: u64,
}

/// The answer to every login that is refused; it does not say why.
pub fn invalid_credentials() -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "INVALID_CREDENTIALS",
        "User name, password or tenant is wrong.",
        "Check all three; a forgotten password is set anew by mail, or on the stopped server: see 'keiko admin --help'.",
    )
}

/// The answer to every code that is not good; it does not say why.
pub fn code_refused() -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "MFA_CODE_INVALID",
        "This code is not good, or was used already.",
        "Wait for the next code of your app, or use a recovery code.",
    )
}

impl User {
    fn second_factor(&self, command: &UserCommand) -> Result<Vec<UserEvent>, Rejection> {
        match (command, &self.mfa) {
            (UserCommand::EnrolMfa(_), Some(_)) => Err(super::already("second factor")),
            (UserCommand::EnrolMfa(enrolled), None) => Ok(vec![UserEvent::MfaEnrolled(enrolled.clone())]),
            (UserCommand::RemoveMfa, Some(_)) => Ok(vec![UserEvent::MfaRemoved(MfaRemoved {})]),
            // A code counts once: neither its step nor one before does again.
            (UserCommand::UseCode { step }, Some(mfa)) if *step > mfa.step => {
                Ok(vec![UserEvent::CodeUsed(CodeUsed { step: *step })])
            }
            (UserCommand::UseRecovery { sha256 }, Some(mfa)) if mfa.recovery_sha256.contains(sha256) => {
                Ok(vec![UserEvent::RecoveryCodeUsed(RecoveryCodeUsed { sha256: sha256.clone() })])
            }
            (UserCommand::UseCode { .. } | UserCommand::UseRecovery { .. }, _) => Err(code_refused()),
            _ => Ok(vec![]),
        }
    }

    fn freed_email(&self) -> Option<UniqueChange> {
        self.email.as_ref().map(|had| UniqueChange::Free(email_key(&had.email_index)))
    }

    /// The address that the person showed to be theirs.
    pub fn address(&self) -> Option<&str> {
        self.email.as_ref().and_then(|set| set.email.get()).map(String::as_str)
    }

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
            (UserCommand::Join(registered, email), None) => {
                let email = email.clone().map(UserEvent::EmailSet);
                return Ok(std::iter::once(UserEvent::Registered(registered.clone())).chain(email).collect());
            }
            (UserCommand::Register(_) | UserCommand::Join(..), Some(_)) => return Err(super::already("user")),
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
            UserCommand::Register(_) | UserCommand::Join(..) => vec![],
            UserCommand::ChangePassword if user.kind == UserKind::Service => {
                return Err(Rejection::new(
                    Kind::Refused,
                    "SERVICE_HAS_NO_PASSWORD",
                    "A service does not sign in with a password.",
                    "Give it an API key with POST /api/v1/api-keys.",
                ));
            }
            UserCommand::ChangePassword => vec![UserEvent::PasswordChanged(PasswordChanged {})],
            UserCommand::SignIn { password_version, is_multi_factor } => {
                let is_same = *password_version == user.password_version && user.suspended.is_none();
                let is_enough = *is_multi_factor || user.mfa.is_none();
                return if is_same && is_enough { Ok(vec![]) } else { Err(invalid_credentials()) };
            }
            UserCommand::SetEmail(_) if user.kind == UserKind::Service => vec![],
            UserCommand::SetEmail(set) if user.email.as_ref().is_some_and(|had| had.email_index == set.email_index) => vec![],
            UserCommand::SetEmail(set) => vec![UserEvent::EmailSet(set.clone())],
            UserCommand::RemoveEmail if user.email.is_none() => vec![],
            UserCommand::RemoveEmail => vec![UserEvent::EmailRemoved(EmailRemoved {})],
            UserCommand::SetRoles(roles) if *roles == user.roles => vec![],
            UserCommand::SetRoles(roles) => vec![UserEvent::RolesChanged(RolesChanged { roles: roles.clone() })],
            UserCommand::Delete => vec![UserEvent::Deleted(Deleted {})],
            UserCommand::Suspend { .. } if user.suspended.is_some() => vec![],
            UserCommand::Suspend { reason } => vec![UserEvent::Suspended(Suspended { reason: reason.clone() })],
            UserCommand::Reinstate if user.suspended.is_none() => vec![],
            UserCommand::Reinstate => vec![UserEvent::Reinstated(Reinstated {})],
            _ => return user.second_factor(command),
        })
    }

    fn evolve(state: Option<User>, event: &UserEvent, meta: &Meta) -> Option<User> {
        match event {
            UserEvent::Registered(r) => Some(User {
                kind: r.kind,
                username: r.username.clone(),
                username_index: r.username_index.clone(),
                roles: r.roles.clone(),
                email: None,
                password_version: 0,
                mfa: None,
                suspended: None,
                is_deleted: false,
            }),
            UserEvent::EmailSet(set) => state.map(|u| User { email: Some(set.clone()), ..u }),
            UserEvent::EmailRemoved(_) => state.map(|u| User { email: None, ..u }),
            UserEvent::PasswordChanged(_) => state.map(|u| User { password_version: meta.version, ..u }),
            UserEvent::MfaEnrolled(e) => {
                state.map(|u| User { mfa: Some(Mfa { recovery_sha256: e.recovery_sha256.clone(), step: e.step }), ..u })
            }
            UserEvent::MfaRemoved(_) => state.map(|u| User { mfa: None, ..u }),
            UserEvent::CodeUsed(c) => state.map(|u| User { mfa: u.mfa.clone().map(|mfa| Mfa { step: c.step, ..mfa }), ..u }),
            UserEvent::RecoveryCodeUsed(r) => state.map(|mut u| {
                u.mfa.iter_mut().for_each(|mfa| mfa.recovery_sha256.retain(|known| *known != r.sha256));
                u
            }),
            UserEvent::Suspended(s) => state.map(|u| User { suspended: Some(s.reason.clone()), ..u }),
            UserEvent::Reinstated(_) => state.map(|u| User { suspended: None, ..u }),
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
            (UserEvent::Deleted(_), Some(user)) => {
                std::iter::once(UniqueChange::Free(name_key(&user.username_index))).chain(user.freed_email()).collect()
            }
            (UserEvent::EmailSet(set), Some(user)) => {
                user.freed_email().into_iter().chain([UniqueChange::Take(email_key(&set.email_index))]).collect()
            }
            (UserEvent::EmailRemoved(_), Some(user)) => user.freed_email().into_iter().collect(),
            _ => vec![],
        }
    }
}

/// The unique key of a user name.
pub fn name_key(index: &BlindIndex) -> String {
    format!("user.name:{}", index.0)
}

/// The unique key of an address.
pub fn email_key(index: &BlindIndex) -> String {
    format!("user.email:{}", index.0)
}

/// The name of the sealed secret that holds a user's password hash.
pub fn password_secret(user: &kernel::id::UserId) -> String {
    format!("password:{user}")
}

/// The name of the sealed secret that a user's one-time codes follow from.
pub fn totp_secret(user: &kernel::id::UserId) -> String {
    format!("totp:{user}")
}

/// The name of the same, until it was shown to work.
pub fn pending_totp_secret(user: &kernel::id::UserId) -> String {
    format!("totp-pending:{user}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::{ActorRef, Timestamp};

    fn user(mfa: Option<Mfa>) -> User {
        let username = Personal::new("user_1", "ada".to_owned());
        let username_index = BlindIndex("i".into());
        User {
            kind: UserKind::User,
            username,
            username_index,
            roles: vec![],
            email: None,
            password_version: 0,
            mfa,
            suspended: None,
            is_deleted: false,
        }
    }

    fn enrolled() -> User {
        user(Some(Mfa { recovery_sha256: vec!["r1".into(), "r2".into()], step: 7 }))
    }

    #[test]
    fn a_sign_in_counts_while_the_password_is_what_it_was() {
        let meta = Meta { version: 7, at: Timestamp(0), actor: ActorRef::system("test") };
        let changed = User::evolve(Some(user(None)), &UserEvent::PasswordChanged(PasswordChanged {}), &meta).unwrap();
        let sign_in =
            |user: &User, password_version| decided(user, &UserCommand::SignIn { password_version, is_multi_factor: false });
        assert_eq!(sign_in(&user(None), 0), Ok(vec![]));
        assert_eq!(sign_in(&changed, 7), Ok(vec![]));
        assert_eq!(sign_in(&changed, 0).unwrap_err().code, "INVALID_CREDENTIALS");
        let with_code = |user: &User, is_multi_factor| {
            decided(user, &UserCommand::SignIn { password_version: 0, is_multi_factor }).map_err(|refused| refused.code)
        };
        assert_eq!(with_code(&enrolled(), true), Ok(vec![]));
        assert_eq!(with_code(&enrolled(), false), Err("INVALID_CREDENTIALS"), "set up while the password was looked at");
        let suspended = User { suspended: Some("left".into()), ..changed };
        assert_eq!(sign_in(&suspended, 7).unwrap_err().code, "INVALID_CREDENTIALS");
    }

    fn decided(user: &User, command: &UserCommand) -> Result<Vec<UserEvent>, Rejection> {
        let facts = Facts { now: Timestamp(0), actor: ActorRef::system("test"), random: 0, version: 1 };
        User::decide(Some(user), command, &facts)
    }

    #[test]
    fn a_code_counts_once_and_none_before_it() {
        assert_eq!(decided(&enrolled(), &UserCommand::UseCode { step: 8 }).unwrap().len(), 1);
        for step in [7, 6, 0] {
            assert_eq!(decided(&enrolled(), &UserCommand::UseCode { step }).unwrap_err().code, "MFA_CODE_INVALID");
        }
        assert_eq!(decided(&user(None), &UserCommand::UseCode { step: 8 }).unwrap_err().code, "MFA_CODE_INVALID");
    }

    #[test]
    fn a_recovery_code_counts_once() {
        let used = UserCommand::UseRecovery { sha256: "r1".into() };
        let events = decided(&enrolled(), &used).unwrap();
        let meta = Meta { version: 2, at: Timestamp(0), actor: ActorRef::system("test") };
        let after = User::evolve(Some(enrolled()), &events[0], &meta).unwrap();
        assert_eq!(decided(&after, &used).unwrap_err().code, "MFA_CODE_INVALID");
        assert!(decided(&after, &UserCommand::UseRecovery { sha256: "r2".into() }).is_ok());
    }

    #[test]
    fn a_second_factor_is_not_replaced_without_being_removed() {
        let again = UserCommand::EnrolMfa(MfaEnrolled { recovery_sha256: vec![], step: 1 });
        assert_eq!(decided(&enrolled(), &again).unwrap_err().code, "ALREADY_EXISTS");
    }
}
