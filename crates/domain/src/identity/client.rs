//! An OAuth client: a program that gets tokens, for the people who sign in with it or for the identity that it is.

use kernel::rules::Meta;
use kernel::{ActorRef, Decider, Facts, IndexField, Json, Kind, Rejection, TenantId};
use serde::{Deserialize, Serialize};

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// It cannot keep a secret: an app on a person's machine.
    None,
    /// A secret in the `Authorization` header.
    ClientSecretBasic,
    /// A secret in the form.
    ClientSecretPost,
    /// A signed assertion (RFC 7523).
    PrivateKeyJwt,
}

impl AuthMethod {
    /// The registered word.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::None => "none",
            AuthMethod::ClientSecretBasic => "client_secret_basic",
            AuthMethod::ClientSecretPost => "client_secret_post",
            AuthMethod::PrivateKeyJwt => "private_key_jwt",
        }
    }

    /// Whether it is a secret that both sides know.
    pub fn is_secret(self) -> bool {
        matches!(self, AuthMethod::ClientSecretBasic | AuthMethod::ClientSecretPost)
    }
}

/// How a client gets tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GrantType {
    /// A person signs in with a browser.
    #[serde(rename = "authorization_code")]
    AuthorizationCode,
    /// The next tokens of a session.
    #[serde(rename = "refresh_token")]
    RefreshToken,
    /// The client's own identity.
    #[serde(rename = "client_credentials")]
    ClientCredentials,
    /// A token for another, narrower one (RFC 8693).
    #[serde(rename = "urn:ietf:params:oauth:grant-type:token-exchange")]
    TokenExchange,
    /// A person signs in on another machine (RFC 8628).
    #[serde(rename = "urn:ietf:params:oauth:grant-type:device_code")]
    DeviceCode,
}

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Somebody of the tenant made it.
    Admin,
    /// It registered itself (RFC 7591).
    Dynamic,
}

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Name for people.
    pub name: String,
    /// Where answers may be sent.
    pub redirect_uris: Vec<String>,
    /// Where the browser may be sent after a logout.
    pub post_logout_redirect_uris: Vec<String>,
    /// How it gets tokens.
    pub grant_types: Vec<GrantType>,
    /// How it proves who it is.
    pub auth_method: AuthMethod,
    /// What it may ask for; anything that its users hold when the list is empty.
    pub scopes: Vec<String>,
    /// Who it is by itself: a service or an agent.
    pub subject: Option<ActorRef>,
    /// Its public keys, as a JSON Web Key Set.
    pub jwks: Option<Json>,
    /// A page about it.
    pub client_uri: Option<String>,
}

/// What may be asked of a client.
#[derive(Clone, Debug)]
pub enum ClientCommand {
    /// Make it known.
    Register(Box<Registered>),
    /// Replace what is known of it.
    Update(Box<Profile>),
    /// Give it another secret.
    ChangeSecret {
        /// SHA-256 of the secret, hexadecimal.
        sha256: String,
    },
    /// Remove it.
    Delete,
}

/// `identity.client.registered`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// What is known of it.
    pub profile: Profile,
    /// SHA-256 of its secret, hexadecimal.
    pub secret_sha256: Option<String>,
    /// Where it comes from.
    pub source: Source,
}

/// `identity.client.updated`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Updated {
    /// What is known of it from now on.
    pub profile: Profile,
}

/// `identity.client.secret_changed`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SecretChanged {
    /// SHA-256 of the secret, hexadecimal.
    pub sha256: String,
}

/// `identity.client.deleted`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deleted {}

kernel::events! {
    /// What happened to a client.
    ClientEvent {
        Registered(Box<Registered>) = "identity.client.registered" @ 1,
        Updated(Box<Updated>) = "identity.client.updated" @ 1,
        SecretChanged(SecretChanged) = "identity.client.secret_changed" @ 1,
        Deleted(Deleted) = "identity.client.deleted" @ 1,
    }
}

/// A client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// What is known of it.
    pub profile: Profile,
    /// SHA-256 of its secret.
    pub secret_sha256: Option<String>,
    /// Where it comes from.
    pub source: Source,
    /// Whether it was removed.
    pub is_deleted: bool,
}

impl Client {
    /// Whether people of a tenant may sign in with it: one that registered itself serves everybody.
    pub fn serves(&self, own: TenantId, asked: TenantId) -> bool {
        self.source == Source::Dynamic || own == asked
    }
}

impl Decider for Client {
    const KIND: &'static str = "client";
    type State = Client;
    type Command = ClientCommand;
    type Event = ClientEvent;

    fn decide(state: Option<&Client>, command: &ClientCommand, _: &Facts) -> Result<Vec<ClientEvent>, Rejection> {
        let client = match (command, state) {
            (ClientCommand::Register(registered), None) => return Ok(vec![ClientEvent::Registered(registered.clone())]),
            (ClientCommand::Register(_), Some(_)) => return Err(super::already("client")),
            (ClientCommand::Delete, Some(client)) if client.is_deleted => return Ok(vec![]),
            (_, Some(client)) if !client.is_deleted => client,
            _ => {
                return Err(Rejection::new(
                    Kind::NotFound,
                    "CLIENT_NOT_FOUND",
                    "This client does not exist.",
                    "List clients with GET /api/v1/clients.",
                ));
            }
        };
        Ok(match command {
            ClientCommand::Update(profile) if **profile == client.profile => vec![],
            ClientCommand::Update(profile) => {
                vec![ClientEvent::Updated(Box::new(Updated { profile: profile.as_ref().clone() }))]
            }
            ClientCommand::ChangeSecret { sha256 } => vec![ClientEvent::SecretChanged(SecretChanged { sha256: sha256.clone() })],
            ClientCommand::Delete => vec![ClientEvent::Deleted(Deleted {})],
            ClientCommand::Register(_) => vec![],
        })
    }

    fn evolve(state: Option<Client>, event: &ClientEvent, _: &Meta) -> Option<Client> {
        match event {
            ClientEvent::Registered(r) => Some(Client {
                profile: r.profile.clone(),
                secret_sha256: r.secret_sha256.clone(),
                source: r.source,
                is_deleted: false,
            }),
            ClientEvent::Updated(u) => state.map(|c| Client { profile: u.profile.clone(), ..c }),
            ClientEvent::SecretChanged(s) => state.map(|c| Client { secret_sha256: Some(s.sha256.clone()), ..c }),
            ClientEvent::Deleted(_) => state.map(|c| Client { is_deleted: true, ..c }),
        }
    }

    fn is_terminal(state: &Client) -> bool {
        state.is_deleted
    }

    fn is_deleted(state: &Client) -> bool {
        state.is_deleted
    }

    fn index(state: &Client) -> Vec<IndexField> {
        state.profile.subject.iter().map(|subject| IndexField::new("subject", &subject.id)).collect()
    }
}
