//! An access token that was called back before its time. A token that works leaves no trace in the log.

use kernel::rules::Meta;
use kernel::{Decider, Facts, IndexField, Rejection, Timestamp};
use serde::{Deserialize, Serialize};

/// What may be asked of a token.
#[derive(Clone, Debug)]
pub enum TokenCommand {
    /// Call it back.
    Revoke(Revoked),
}

/// `identity.token.revoked`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revoked {
    /// Whose it was.
    pub subject: String,
    /// When it would have ended by itself.
    pub expires_at: Timestamp,
}

kernel::events! {
    /// What happened to a token.
    TokenEvent {
        Revoked(Revoked) = "identity.token.revoked" @ 1,
    }
}

/// A token that was called back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// As it was called back.
    pub revoked: Revoked,
}

impl Decider for Token {
    const KIND: &'static str = "tok";
    type State = Token;
    type Command = TokenCommand;
    type Event = TokenEvent;

    fn decide(state: Option<&Token>, command: &TokenCommand, _: &Facts) -> Result<Vec<TokenEvent>, Rejection> {
        let TokenCommand::Revoke(revoked) = command;
        Ok(if state.is_some() { vec![] } else { vec![TokenEvent::Revoked(revoked.clone())] })
    }

    fn evolve(_: Option<Token>, event: &TokenEvent, _: &Meta) -> Option<Token> {
        let TokenEvent::Revoked(revoked) = event;
        Some(Token { revoked: revoked.clone() })
    }

    fn is_terminal(_: &Token) -> bool {
        true
    }

    fn index(_: &Token) -> Vec<IndexField> {
        vec![]
    }
}
