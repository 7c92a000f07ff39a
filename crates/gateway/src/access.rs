//! How Keiko is let in at a server: whose account there is used, and the tokens that show it. Where they come from is the
//! business of whoever implements [`Vault`].

use crate::Key;
use crate::oauth::Challenge;
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;

/// Whose account at a server a request uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    /// The one that serves everybody.
    #[default]
    Everybody,
    /// That of one identity.
    Identity(Arc<str>),
}

/// A secret that is shown to a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// A token as it is sent.
    pub fn new(text: &str) -> Self {
        Token(text.into())
    }

    /// What is sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(********)")
    }
}

/// Keeps the tokens that are shown to servers, and gets others in time.
#[async_trait]
pub trait Vault: Send + Sync {
    /// What to show now; nothing where nothing is needed as far as is known. The error says why there must be something and is not.
    /// It is for the server at this URL and no other.
    async fn token(&self, key: Key, url: &str, holder: &Holder) -> Result<Option<Token>, String>;

    /// A server did not let in whoever showed `refused`. What to show in its place; nothing where there is nothing better. The error
    /// says what people must do.
    async fn instead(
        &self,
        key: Key,
        url: &str,
        holder: &Holder,
        refused: Option<&Token>,
        challenge: &Challenge,
    ) -> Result<Option<Token>, String>;
}

/// The tokens of one server.
#[derive(Clone)]
pub struct Access {
    /// Which server.
    pub key: Key,
    /// Where it is.
    pub url: String,
    /// Where they are.
    pub vault: Arc<dyn Vault>,
}

impl Access {
    pub(crate) async fn token(&self, holder: &Holder) -> Result<Option<Token>, String> {
        self.vault.token(self.key, &self.url, holder).await
    }

    pub(crate) async fn instead(
        &self,
        holder: &Holder,
        refused: Option<&Token>,
        challenge: &Challenge,
    ) -> Result<Option<Token>, String> {
        self.vault.instead(self.key, &self.url, holder, refused, challenge).await
    }
}
