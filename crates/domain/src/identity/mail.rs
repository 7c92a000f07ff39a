//! A mail to somebody's address: an invitation, a proof that the address is theirs, or the way to a new password. Address
//! and link are no part of any event: the address is sealed beside the log until the mail is over, the link is derived.

use kernel::id::{MailId, UserId};
use kernel::rules::Meta;
use kernel::{ActorRef, BlindIndex, Decider, Facts, IndexField, Kind, Rejection, Timestamp};
use serde::{Deserialize, Serialize};

/// What may be asked of a mail.
#[derive(Clone, Debug)]
pub enum MailCommand {
    /// Write it.
    Request(Requested),
    /// It was handed over.
    MarkSent,
    /// It cannot be handed over.
    Fail {
        /// Why, for administrators.
        reason: String,
    },
    /// Somebody showed its link.
    Use {
        /// By what they wanted with it.
        purpose: PurposeKind,
    },
    /// Let its link lead nowhere.
    Revoke,
}

/// What a mail is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Purpose {
    /// Somebody may make an account.
    Invitation {
        /// The account's id.
        user: UserId,
        /// Its roles by name.
        roles: Vec<String>,
        /// Whether they asked for it themselves.
        is_own_wish: bool,
    },
    /// A person wants to use the address.
    Verification {
        /// Who.
        user: UserId,
    },
    /// A person wants to set another password.
    Reset {
        /// Who.
        user: UserId,
    },
    /// Somebody wants to register with an address that a person has already. Leads nowhere.
    Known {
        /// Who has it.
        user: UserId,
    },
}

/// A purpose without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurposeKind {
    /// [`Purpose::Invitation`]
    Invitation,
    /// [`Purpose::Verification`]
    Verification,
    /// [`Purpose::Reset`]
    Reset,
    /// [`Purpose::Known`]
    Known,
}

impl PurposeKind {
    /// As it stands in events and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            PurposeKind::Invitation => "invitation",
            PurposeKind::Verification => "verification",
            PurposeKind::Reset => "reset",
            PurposeKind::Known => "known",
        }
    }

    /// How long its link is good. A mail that could not be handed over until then is given up.
    pub fn lifetime_ms(self) -> u64 {
        const HOUR_MS: u64 = 3_600_000;
        match self {
            PurposeKind::Invitation => 7 * 24 * HOUR_MS,
            PurposeKind::Verification | PurposeKind::Known => 24 * HOUR_MS,
            PurposeKind::Reset => HOUR_MS / 2,
        }
    }
}

impl Purpose {
    /// Without its details.
    pub fn kind(&self) -> PurposeKind {
        match self {
            Purpose::Invitation { .. } => PurposeKind::Invitation,
            Purpose::Verification { .. } => PurposeKind::Verification,
            Purpose::Reset { .. } => PurposeKind::Reset,
            Purpose::Known { .. } => PurposeKind::Known,
        }
    }

    /// Whom it is about.
    pub fn user(&self) -> UserId {
        match self {
            Purpose::Invitation { user, .. }
            | Purpose::Verification { user }
            | Purpose::Reset { user }
            | Purpose::Known { user } => *user,
        }
    }
}

/// `identity.mail.requested`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    /// What it is for.
    pub purpose: Purpose,
    /// By which the address is found.
    pub address_index: BlindIndex,
    /// Until when its link is good.
    pub expires_at: Timestamp,
    /// Whether whoever asked for it got the link, because there is no mail. Proves nothing about the address.
    pub is_by_hand: bool,
}

/// `identity.mail.sent`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sent {}

/// `identity.mail.failed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub reason: String,
}

/// `identity.mail.used`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Used {}

/// `identity.mail.revoked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revoked {}

kernel::events! {
    /// What happened to a mail.
    MailEvent {
        Requested(Requested) = "identity.mail.requested" @ 1,
        Sent(Sent) = "identity.mail.sent" @ 1,
        Failed(Failed) = "identity.mail.failed" @ 1,
        Used(Used) = "identity.mail.used" @ 1,
        Revoked(Revoked) = "identity.mail.revoked" @ 1,
    }
}

/// Where a mail stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is to be handed over.
    Queued,
    /// It was handed over, or its link was.
    Sent,
    /// It could not be handed over.
    Failed,
    /// Its link was used.
    Used,
    /// Its link leads nowhere.
    Revoked,
}

impl Status {
    /// As it stands in answers and lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Sent => "sent",
            Status::Failed => "failed",
            Status::Used => "used",
            Status::Revoked => "revoked",
        }
    }
}

/// A mail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mail {
    /// As it was asked for.
    pub requested: Requested,
    /// Who asked for it.
    pub by: ActorRef,
    /// Where it stands.
    pub status: Status,
    /// Why it could not be handed over.
    pub failure: Option<String>,
}

impl Mail {
    /// Whether its link is good.
    pub fn is_good(&self, now: Timestamp) -> bool {
        // It may arrive, and be used, before it is noted as handed over.
        matches!(self.status, Status::Queued | Status::Sent) && now < self.requested.expires_at
    }

    fn with(self, status: Status) -> Mail {
        Mail { status, ..self }
    }
}

/// The answer to every link that is not good; it does not say why.
pub fn link_refused() -> Rejection {
    Rejection::new(
        Kind::Refused,
        "LINK_INVALID",
        "This link is not good: it was used already, it is too old, or something of it is missing.",
        "Ask for a new mail, and use the latest one.",
    )
}

impl Decider for Mail {
    const KIND: &'static str = "mail";
    type State = Mail;
    type Command = MailCommand;
    type Event = MailEvent;

    fn decide(state: Option<&Mail>, command: &MailCommand, facts: &Facts) -> Result<Vec<MailEvent>, Rejection> {
        let mail = match (command, state) {
            (MailCommand::Request(requested), None) => return Ok(vec![MailEvent::Requested(requested.clone())]),
            (MailCommand::Request(_), Some(_)) => return Err(super::already("mail")),
            (_, None) => return Err(link_refused()),
            (_, Some(mail)) => mail,
        };
        Ok(match command {
            MailCommand::Use { purpose } if mail.is_good(facts.now) && mail.requested.purpose.kind() == *purpose => {
                vec![MailEvent::Used(Used {})]
            }
            MailCommand::Use { .. } => return Err(link_refused()),
            MailCommand::MarkSent if mail.status == Status::Queued => vec![MailEvent::Sent(Sent {})],
            MailCommand::Fail { reason } if mail.status == Status::Queued => {
                vec![MailEvent::Failed(Failed { reason: reason.clone() })]
            }
            MailCommand::Revoke if !Mail::is_terminal(mail) => vec![MailEvent::Revoked(Revoked {})],
            _ => vec![],
        })
    }

    fn evolve(state: Option<Mail>, event: &MailEvent, meta: &Meta) -> Option<Mail> {
        match event {
            MailEvent::Requested(requested) => {
                let status = if requested.is_by_hand { Status::Sent } else { Status::Queued };
                Some(Mail { requested: requested.clone(), by: meta.actor.clone(), status, failure: None })
            }
            MailEvent::Sent(_) => state.map(|mail| mail.with(Status::Sent)),
            MailEvent::Failed(failed) => {
                state.map(|mail| Mail { failure: Some(failed.reason.clone()), ..mail.with(Status::Failed) })
            }
            MailEvent::Used(_) => state.map(|mail| mail.with(Status::Used)),
            MailEvent::Revoked(_) => state.map(|mail| mail.with(Status::Revoked)),
        }
    }

    fn is_terminal(state: &Mail) -> bool {
        matches!(state.status, Status::Failed | Status::Used | Status::Revoked)
    }

    fn index(state: &Mail) -> Vec<IndexField> {
        let purpose = state.requested.purpose.kind().as_str();
        vec![
            IndexField::new("status", state.status.as_str()),
            IndexField::new("purpose", purpose),
            IndexField::new("to", format!("{purpose}:{}", state.requested.address_index.0)),
            IndexField::new("user", state.requested.purpose.user().to_string()),
        ]
    }
}

/// The name of the sealed secret that holds a mail's address.
pub fn address_secret(mail: &MailId) -> String {
    format!("mail:{mail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(now: i64) -> Facts {
        Facts { now: Timestamp(now), actor: ActorRef::system("test"), random: 0, version: 1 }
    }

    fn mail(status: Status) -> Mail {
        let requested = Requested {
            purpose: Purpose::Reset { user: UserId::from_bytes([1; 16]) },
            address_index: BlindIndex("i".into()),
            expires_at: Timestamp(1_000),
            is_by_hand: false,
        };
        Mail { requested, by: ActorRef::system("test"), status, failure: None }
    }

    fn used(mail: &Mail, purpose: PurposeKind, now: i64) -> Result<usize, &'static str> {
        let events = Mail::decide(Some(mail), &MailCommand::Use { purpose }, &facts(now));
        events.map(|events| events.len()).map_err(|refused| refused.code)
    }

    #[test]
    fn a_link_is_good_once_in_time_and_for_what_it_was_written() {
        for status in [Status::Queued, Status::Sent] {
            assert_eq!(used(&mail(status), PurposeKind::Reset, 999), Ok(1));
            assert_eq!(used(&mail(status), PurposeKind::Reset, 1_000), Err("LINK_INVALID"));
            assert_eq!(used(&mail(status), PurposeKind::Verification, 999), Err("LINK_INVALID"));
        }
        for status in [Status::Failed, Status::Used, Status::Revoked] {
            assert_eq!(used(&mail(status), PurposeKind::Reset, 999), Err("LINK_INVALID"));
        }
    }

    #[test]
    fn what_is_over_is_not_sent_and_does_not_fail() {
        for command in [MailCommand::MarkSent, MailCommand::Fail { reason: "x".into() }, MailCommand::Revoke] {
            assert!(Mail::decide(Some(&mail(Status::Used)), &command, &facts(0)).unwrap().is_empty());
            assert_eq!(Mail::decide(Some(&mail(Status::Queued)), &command, &facts(0)).unwrap().len(), 1);
        }
    }
}
