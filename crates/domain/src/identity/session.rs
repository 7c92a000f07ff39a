//! A login and everything refreshed from it. One refresh token is good at a time; presenting an older one ends it all.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// Earlier tokens that are recognised.
const EARLIER_MAX: usize = 100;

/// What may be asked of a session.
#[derive(Clone, Debug)]
pub enum SessionCommand {
    /// A login succeeded.
    Open(Opened),
    /// A refresh token was presented; `next_sha256` replaces it.
    Refresh {
        /// SHA-256 of what was presented.
        presented_sha256: String,
        /// SHA-256 of the next token.
        next_sha256: String,
    },
    /// End it.
    Close {
        /// Why, for the record.
        reason: String,
    },
}

/// `identity.session.opened`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Who signed in.
    pub user: UserId,
    /// SHA-256 of the refresh token, hexadecimal.
    pub refresh_sha256: String,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

/// `identity.session.refreshed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refreshed {
    /// SHA-256 of the new refresh token.
    pub refresh_sha256: String,
}

/// `identity.session.closed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// `logout`, `refresh_reused`, `password_changed`, `user_deleted`.
    pub reason: String,
}

kernel::events! {
    /// What happened to a session.
    SessionEvent {
        Opened(Opened) = "identity.session.opened" @ 1,
        Refreshed(Refreshed) = "identity.session.refreshed" @ 1,
        Closed(Closed) = "identity.session.closed" @ 1,
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Who signed in.
    pub user: UserId,
    /// The one good refresh token.
    pub refresh_sha256: String,
    /// Earlier refresh tokens, the latest last.
    #[serde(default)]
    pub earlier_sha256: Vec<String>,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// Why it ended.
    pub closed: Option<String>,
}

impl Session {
    /// Whether its tokens work at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.closed.is_none() && now < self.expires_at
    }
}

/// The answer to every refresh token that is not good; it does not say why.
pub fn ended() -> Rejection {
    Rejection::new(
        Kind::Unauthenticated,
        "SESSION_ENDED",
        "This session has ended or the refresh token is not valid.",
        "Sign in again with POST /api/v1/auth/login.",
    )
}

impl Decider for Session {
    const KIND: &'static str = "sess";
    type State = Session;
    type Command = SessionCommand;
    type Event = SessionEvent;

    fn decide(state: Option<&Session>, command: &SessionCommand, facts: &Facts) -> Result<Vec<SessionEvent>, Rejection> {
        match (command, state) {
            (SessionCommand::Open(opened), None) => Ok(vec![SessionEvent::Opened(opened.clone())]),
            (SessionCommand::Open(_), Some(_)) => Err(super::already("session")),
            (SessionCommand::Refresh { presented_sha256, next_sha256 }, Some(session)) if session.is_open(facts.now) => {
                if *presented_sha256 == session.refresh_sha256 {
                    Ok(vec![SessionEvent::Refreshed(Refreshed { refresh_sha256: next_sha256.clone() })])
                } else if session.earlier_sha256.contains(presented_sha256) {
                    // An older token means that two parties hold this family: nobody keeps it.
                    Ok(vec![SessionEvent::Closed(Closed { reason: "refresh_reused".into() })])
                } else {
                    // A token that was never given out says nothing about this session.
                    Err(ended())
                }
            }
            (SessionCommand::Refresh { .. }, _) => Err(ended()),
            (SessionCommand::Close { reason }, Some(session)) if session.closed.is_none() => {
                Ok(vec![SessionEvent::Closed(Closed { reason: reason.clone() })])
            }
            (SessionCommand::Close { .. }, _) => Ok(vec![]),
        }
    }

    fn evolve(state: Option<Session>, event: &SessionEvent, _: &Meta) -> Option<Session> {
        match event {
            SessionEvent::Opened(o) => Some(Session {
                user: o.user,
                refresh_sha256: o.refresh_sha256.clone(),
                earlier_sha256: vec![],
                expires_at: o.expires_at,
                closed: None,
            }),
            SessionEvent::Refreshed(r) => state.map(|mut s| {
                s.earlier_sha256.push(std::mem::replace(&mut s.refresh_sha256, r.refresh_sha256.clone()));
                let surplus = s.earlier_sha256.len().saturating_sub(EARLIER_MAX);
                s.earlier_sha256.drain(..surplus);
                s
            }),
            SessionEvent::Closed(c) => state.map(|s| Session { closed: Some(c.reason.clone()), ..s }),
        }
    }

    fn is_terminal(state: &Session) -> bool {
        state.closed.is_some()
    }

    fn is_deleted(state: &Session) -> bool {
        state.closed.is_some()
    }

    fn index(state: &Session) -> Vec<IndexField> {
        vec![IndexField::new("user", state.user.to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::ActorRef;

    fn facts(now: i64) -> Facts {
        Facts { now: Timestamp(now), actor: ActorRef::system("test"), random: 0, version: 1 }
    }

    fn open() -> Session {
        Session {
            user: UserId::from_bytes([1; 16]),
            refresh_sha256: "a".into(),
            earlier_sha256: vec!["older".into()],
            expires_at: Timestamp(100),
            closed: None,
        }
    }

    fn refresh(session: &Session, presented: &str, now: i64) -> Result<Vec<SessionEvent>, Rejection> {
        let command = SessionCommand::Refresh { presented_sha256: presented.into(), next_sha256: "b".into() };
        Session::decide(Some(session), &command, &facts(now))
    }

    #[test]
    fn given_an_open_session_when_its_token_is_presented_then_it_is_replaced() {
        let events = refresh(&open(), "a", 1).unwrap();
        assert_eq!(events, [SessionEvent::Refreshed(Refreshed { refresh_sha256: "b".into() })]);
    }

    #[test]
    fn given_an_open_session_when_an_older_token_is_presented_then_it_ends() {
        let events = refresh(&open(), "older", 1).unwrap();
        assert_eq!(events, [SessionEvent::Closed(Closed { reason: "refresh_reused".into() })]);
    }

    #[test]
    fn given_an_open_session_when_a_made_up_token_is_presented_then_it_stays_open() {
        assert_eq!(refresh(&open(), "made up", 1).unwrap_err().code, "SESSION_ENDED");
    }

    #[test]
    fn given_an_ended_or_expired_session_then_no_token_is_good() {
        let closed = Session { closed: Some("logout".into()), ..open() };
        assert_eq!(refresh(&closed, "a", 1).unwrap_err().code, "SESSION_ENDED");
        assert_eq!(refresh(&open(), "a", 100).unwrap_err().code, "SESSION_ENDED");
    }
}
