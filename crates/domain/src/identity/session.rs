//! A login, or what a client got from one, and everything refreshed from it. One refresh token is good at a time; an older
//! one ends it all, but for an honest client that did not hear the answer and repeats itself.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Kind, Rejection, SessionId, Timestamp, UserId};
use serde::{Deserialize, Serialize};

/// Earlier tokens that are recognised.
const EARLIER_MAX: usize = 100;
/// The word for a one-time code in the list of how a person was authenticated (RFC 8176).
pub const OTP: &str = "otp";
/// The word for a password in it.
pub const PASSWORD: &str = "pwd";

/// What may be asked of a session.
#[derive(Clone, Debug)]
pub enum SessionCommand {
    /// A login succeeded.
    Open(Box<Opened>),
    /// A client shows the code of the grant; a second time means that somebody has stolen it.
    Redeem {
        /// SHA-256 of what was presented.
        presented_sha256: String,
        /// SHA-256 of the first refresh token, if there is to be one.
        refresh_sha256: Option<String>,
    },
    /// A refresh token was presented; `next_sha256` replaces it.
    Refresh {
        /// SHA-256 of what was presented.
        presented_sha256: String,
        /// SHA-256 of the next token.
        next_sha256: String,
        /// How long the token before counts as a repetition.
        grace_ms: u64,
    },
    /// Another session comes of it. Changes nothing; refused when it has ended.
    Continue,
    /// The person was authenticated once more, and better.
    StepUp {
        /// How, in the words of RFC 8176.
        amr: Vec<String>,
    },
    /// End it.
    Close {
        /// Why, for the record.
        reason: String,
    },
}

/// A code that a client exchanges for tokens, once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// SHA-256 of the code, hexadecimal.
    pub sha256: String,
    /// Where it was sent, which the client repeats.
    pub redirect_uri: String,
    /// SHA-256 of what only the client knows, as it sent it (PKCE, S256).
    pub challenge: String,
    /// What the client wants to find in the ID token.
    pub nonce: Option<String>,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// `identity.session.opened`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// Who signed in.
    pub user: UserId,
    /// SHA-256 of the refresh token or of the browser's cookie, hexadecimal; none until the code is redeemed.
    pub refresh_sha256: Option<String>,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// The client that it was opened for; none for a login by password at the API.
    pub client: Option<String>,
    /// What the tokens are limited to; none for clients of Keiko's own.
    pub scopes: Option<Vec<String>>,
    /// The resource that the tokens are for; none for the whole server.
    pub resource: Option<String>,
    /// How the person was authenticated, in the words of RFC 8176.
    pub amr: Vec<String>,
    /// When the person was authenticated.
    pub authenticated_at: Timestamp,
    /// The browser's login that it came from.
    pub parent: Option<SessionId>,
    /// What the client exchanges for tokens.
    pub code: Option<Code>,
}

/// `identity.session.opened`, first shape: there was one kind of login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstOpened {
    /// Who signed in.
    pub user: UserId,
    /// SHA-256 of the refresh token, hexadecimal.
    pub refresh_sha256: String,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

impl From<FirstOpened> for Opened {
    fn from(first: FirstOpened) -> Self {
        Opened {
            user: first.user,
            refresh_sha256: Some(first.refresh_sha256),
            expires_at: first.expires_at,
            client: None,
            scopes: None,
            resource: None,
            amr: vec![PASSWORD.into()],
            // Not known, so long ago.
            authenticated_at: Timestamp(0),
            parent: None,
            code: None,
        }
    }
}

/// `identity.session.redeemed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Redeemed {
    /// SHA-256 of the refresh token, if one was given.
    pub refresh_sha256: Option<String>,
}

/// `identity.session.refreshed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refreshed {
    /// SHA-256 of the new refresh token.
    pub refresh_sha256: String,
}

/// `identity.session.stepped_up`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SteppedUp {
    /// How the person was authenticated, in the words of RFC 8176.
    pub amr: Vec<String>,
}

/// `identity.session.closed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// `logout`, `revoked`, `refresh_reused`, `code_reused`, `password_changed`, `mfa_enrolled`, `user_deleted`,
    /// `user_suspended`.
    pub reason: String,
}

/// Whether somebody who was authenticated like this showed a second factor.
pub fn is_multi_factor(amr: &[String]) -> bool {
    amr.iter().any(|method| method == OTP)
}

kernel::events! {
    /// What happened to a session.
    SessionEvent {
        Opened(Box<Opened>) = "identity.session.opened" @ 2 [1: BoxedFirst],
        Redeemed(Redeemed) = "identity.session.redeemed" @ 1,
        Refreshed(Refreshed) = "identity.session.refreshed" @ 1,
        SteppedUp(SteppedUp) = "identity.session.stepped_up" @ 1,
        Closed(Closed) = "identity.session.closed" @ 1,
    }
}

/// The first shape on its way to the present one.
#[derive(Deserialize)]
struct BoxedFirst(FirstOpened);

impl From<BoxedFirst> for Box<Opened> {
    fn from(first: BoxedFirst) -> Self {
        Box::new(first.0.into())
    }
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Who signed in.
    pub user: UserId,
    /// The one good refresh token; none before the code is redeemed, and where none was asked for.
    pub refresh_sha256: Option<String>,
    /// Earlier refresh tokens, the latest last.
    #[serde(default)]
    pub earlier_sha256: Vec<String>,
    /// When the good one took the place of the one before.
    #[serde(default = "long_ago")]
    pub refreshed_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Timestamp,
    /// The client that it was opened for.
    #[serde(default)]
    pub client: Option<String>,
    /// What the tokens are limited to.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// The resource that the tokens are for.
    #[serde(default)]
    pub resource: Option<String>,
    /// How the person was authenticated.
    #[serde(default)]
    pub amr: Vec<String>,
    /// When the person was authenticated.
    #[serde(default = "long_ago")]
    pub authenticated_at: Timestamp,
    /// The browser's login that it came from.
    #[serde(default)]
    pub parent: Option<SessionId>,
    /// The code, with whether it was redeemed.
    #[serde(default)]
    pub code: Option<(Code, bool)>,
    /// Why it ended.
    pub closed: Option<String>,
}

fn long_ago() -> Timestamp {
    Timestamp(0)
}

impl Session {
    /// Whether its tokens work at `now`.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.closed.is_none() && now < self.expires_at
    }

    /// Whether the person showed a second factor.
    pub fn is_multi_factor(&self) -> bool {
        is_multi_factor(&self.amr)
    }

    fn redeem(&self, presented_sha256: &str, refresh_sha256: Option<&String>, now: Timestamp) -> Result<SessionEvent, Rejection> {
        match &self.code {
            Some((code, was_redeemed)) if code.sha256 == presented_sha256 => match was_redeemed {
                true => Ok(SessionEvent::Closed(Closed { reason: "code_reused".into() })),
                false if now < code.expires_at => {
                    Ok(SessionEvent::Redeemed(Redeemed { refresh_sha256: refresh_sha256.cloned() }))
                }
                false => Err(ended()),
            },
            _ => Err(ended()),
        }
    }

    fn refresh(&self, presented: &str, next: &str, grace_ms: u64, now: Timestamp) -> Result<Vec<SessionEvent>, Rejection> {
        if self.refresh_sha256.as_deref() == Some(presented) {
            return Ok(vec![SessionEvent::Refreshed(Refreshed { refresh_sha256: next.to_owned() })]);
        }
        let is_latest_but_one = self.earlier_sha256.last().is_some_and(|last| last == presented);
        let is_repetition = self.refresh_sha256.as_deref() == Some(next) && now.since_ms(self.refreshed_at) <= grace_ms;
        if is_latest_but_one && is_repetition {
            // The answer was lost on its way: the next token follows from the one presented, so it is given again.
            Ok(vec![])
        } else if self.earlier_sha256.iter().any(|earlier| earlier == presented) {
            // An older token means that two parties hold this family: nobody keeps it.
            Ok(vec![SessionEvent::Closed(Closed { reason: "refresh_reused".into() })])
        } else {
            // A token that was never given out says nothing about this session.
            Err(ended())
        }
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
        let session = match (command, state) {
            (SessionCommand::Open(opened), None) => return Ok(vec![SessionEvent::Opened(opened.clone())]),
            (SessionCommand::Open(_), Some(_)) => return Err(super::already("session")),
            (SessionCommand::Close { reason }, Some(session)) if session.closed.is_none() => {
                return Ok(vec![SessionEvent::Closed(Closed { reason: reason.clone() })]);
            }
            (SessionCommand::Close { .. }, _) => return Ok(vec![]),
            (_, Some(session)) if session.is_open(facts.now) => session,
            _ => return Err(ended()),
        };
        match command {
            SessionCommand::Redeem { presented_sha256, refresh_sha256 } => {
                session.redeem(presented_sha256, refresh_sha256.as_ref(), facts.now).map(|event| vec![event])
            }
            SessionCommand::Refresh { presented_sha256, next_sha256, grace_ms } => {
                session.refresh(presented_sha256, next_sha256, *grace_ms, facts.now)
            }
            SessionCommand::StepUp { amr } => Ok(vec![SessionEvent::SteppedUp(SteppedUp { amr: amr.clone() })]),
            SessionCommand::Continue | SessionCommand::Open(_) | SessionCommand::Close { .. } => Ok(vec![]),
        }
    }

    fn evolve(state: Option<Session>, event: &SessionEvent, meta: &Meta) -> Option<Session> {
        match event {
            SessionEvent::Opened(o) => Some(Session {
                user: o.user,
                refresh_sha256: o.refresh_sha256.clone(),
                earlier_sha256: vec![],
                refreshed_at: meta.at,
                expires_at: o.expires_at,
                client: o.client.clone(),
                scopes: o.scopes.clone(),
                resource: o.resource.clone(),
                amr: o.amr.clone(),
                authenticated_at: o.authenticated_at,
                parent: o.parent,
                code: o.code.clone().map(|code| (code, false)),
                closed: None,
            }),
            SessionEvent::Redeemed(r) => state.map(|s| Session {
                refresh_sha256: r.refresh_sha256.clone(),
                refreshed_at: meta.at,
                code: s.code.clone().map(|(code, _)| (code, true)),
                ..s
            }),
            SessionEvent::Refreshed(r) => state.map(|mut s| {
                s.earlier_sha256.extend(s.refresh_sha256.replace(r.refresh_sha256.clone()));
                s.refreshed_at = meta.at;
                let surplus = s.earlier_sha256.len().saturating_sub(EARLIER_MAX);
                s.earlier_sha256.drain(..surplus);
                s
            }),
            SessionEvent::SteppedUp(u) => state.map(|s| Session { amr: u.amr.clone(), authenticated_at: meta.at, ..s }),
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
        let mut fields = vec![IndexField::new("user", state.user.to_string())];
        fields.extend(state.client.as_ref().map(|client| IndexField::new("client", client)));
        fields.extend(state.parent.map(|parent| IndexField::new("parent", parent.to_string())));
        fields
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
            refresh_sha256: Some("a".into()),
            earlier_sha256: vec!["oldest".into(), "older".into()],
            refreshed_at: Timestamp(10),
            expires_at: Timestamp(100),
            client: None,
            scopes: None,
            resource: None,
            amr: vec![PASSWORD.into()],
            authenticated_at: Timestamp(0),
            parent: None,
            code: None,
            closed: None,
        }
    }

    fn with_code(was_redeemed: bool) -> Session {
        let code = Code {
            sha256: "code".into(),
            redirect_uri: "https://client.example/back".into(),
            challenge: "c".into(),
            nonce: None,
            expires_at: Timestamp(60),
        };
        Session { code: Some((code, was_redeemed)), refresh_sha256: None, ..open() }
    }

    fn refresh(session: &Session, presented: &str, next: &str, now: i64) -> Result<Vec<SessionEvent>, Rejection> {
        let (presented_sha256, next_sha256) = (presented.into(), next.into());
        Session::decide(Some(session), &SessionCommand::Refresh { presented_sha256, next_sha256, grace_ms: 20 }, &facts(now))
    }

    fn redeem(session: &Session, presented: &str, now: i64) -> Result<Vec<SessionEvent>, Rejection> {
        let command = SessionCommand::Redeem { presented_sha256: presented.into(), refresh_sha256: Some("r".into()) };
        Session::decide(Some(session), &command, &facts(now))
    }

    fn closed(reason: &str) -> Vec<SessionEvent> {
        vec![SessionEvent::Closed(Closed { reason: reason.into() })]
    }

    #[test]
    fn given_an_open_session_when_its_token_is_presented_then_it_is_replaced() {
        let events = refresh(&open(), "a", "b", 11).unwrap();
        assert_eq!(events, [SessionEvent::Refreshed(Refreshed { refresh_sha256: "b".into() })]);
    }

    #[test]
    fn given_a_refresh_when_the_same_client_repeats_it_at_once_then_nothing_changes() {
        assert_eq!(refresh(&open(), "older", "a", 30).unwrap(), []);
    }

    #[test]
    fn given_a_refresh_when_the_token_before_comes_late_then_the_session_ends() {
        assert_eq!(refresh(&open(), "older", "a", 31).unwrap(), closed("refresh_reused"));
    }

    #[test]
    fn given_an_open_session_when_an_even_older_token_is_presented_then_it_ends() {
        assert_eq!(refresh(&open(), "oldest", "older", 11).unwrap(), closed("refresh_reused"));
    }

    #[test]
    fn given_an_open_session_when_a_made_up_token_is_presented_then_it_stays_open() {
        assert_eq!(refresh(&open(), "made up", "b", 11).unwrap_err().code, "SESSION_ENDED");
    }

    #[test]
    fn given_an_ended_or_expired_session_then_no_token_is_good() {
        let closed = Session { closed: Some("logout".into()), ..open() };
        assert_eq!(refresh(&closed, "a", "b", 11).unwrap_err().code, "SESSION_ENDED");
        assert_eq!(refresh(&open(), "a", "b", 100).unwrap_err().code, "SESSION_ENDED");
    }

    #[test]
    fn given_a_grant_when_its_code_is_redeemed_twice_then_it_ends() {
        let events = redeem(&with_code(false), "code", 59).unwrap();
        assert_eq!(events, [SessionEvent::Redeemed(Redeemed { refresh_sha256: Some("r".into()) })]);
        assert_eq!(redeem(&with_code(true), "code", 59).unwrap(), closed("code_reused"));
    }

    #[test]
    fn given_a_grant_when_the_code_is_late_or_made_up_then_it_is_refused() {
        for (presented, now) in [("code", 60), ("made up", 1)] {
            assert_eq!(redeem(&with_code(false), presented, now).unwrap_err().code, "SESSION_ENDED");
        }
        assert_eq!(redeem(&open(), "code", 1).unwrap_err().code, "SESSION_ENDED", "a session without a code");
    }
}
