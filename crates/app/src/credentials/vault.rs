//! The tokens that the gateway shows to servers: remembered, opened when they are wanted, and exchanged for the next ones before
//! they end, by one replica at a time.

use super::{GrantedTokens, Kept, holder_id, secret_of};
use crate::app::{App, Inner};
use async_trait::async_trait;
use domain::credential::{Credential, CredentialCommand, CredentialStatus, Renewed, Source, Witness, credential_id};
use domain::mcp_server::Grant;
use engine::{Context, Extras, HandleError, Handled, Step};
use gateway::oauth::{Challenge, ExchangeError, Tokens, exchange};
use gateway::{Holder, Key, Token};
use kernel::id::{CredentialId, McpServerId, TenantId};
use kernel::{Kind, Rejection, Timestamp, text};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::oneshot;

/// Who writes down what happens to credentials by themselves.
pub(crate) const VAULT: &str = "vault";
/// A token that is good for this long or less is not shown any more.
const LEAST_MS: u64 = 5_000;
/// A token is exchanged so long before it ends, or when a fifth of its time is left where that is less.
const EARLY_MS: u64 = 300_000;
/// How long whoever exchanges a token may take before somebody else tries.
const RENEWAL_MS: u64 = 30_000;
/// How often a renewal on another replica is looked at.
const LOOK_MS: u64 = 100;

type Id = (TenantId, CredentialId);

/// What is remembered of credentials.
#[derive(Default)]
pub(crate) struct Vault(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    known: BTreeMap<Id, Known>,
    /// One renews at a time.
    turns: BTreeMap<Id, Arc<tokio::sync::Mutex<()>>>,
    /// Raised whenever something is forgotten: what was read before is not remembered then.
    generation: u64,
}

#[derive(Clone)]
struct Known {
    /// What is shown; nothing where there is no credential.
    token: Option<Token>,
    /// Why it is not shown.
    problem: Option<String>,
    /// When it is to be exchanged.
    renew_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    /// The version of the credential that this was read of.
    version: u64,
    /// For which server, and where.
    server: McpServerId,
    url: String,
}

impl Known {
    fn is_good(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| end.since_ms(now) > LEAST_MS)
    }
}

impl Vault {
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: Id) -> Option<Known> {
        self.memory().known.get(&id).cloned()
    }

    /// What was read, unless something was forgotten since.
    fn remember(&self, id: Id, generation: u64, known: Known) {
        let mut memory = self.memory();
        if memory.generation == generation {
            memory.known.insert(id, known);
        }
    }

    fn turn(&self, id: Id) -> Arc<tokio::sync::Mutex<()>> {
        self.memory().turns.entry(id).or_default().clone()
    }

    /// What was known of a credential is looked up again.
    pub fn forget(&self, tenant: TenantId, id: CredentialId) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.known.remove(&(tenant, id));
        // Whoever waits for a turn holds it.
        memory.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    }

    /// A server is another one now.
    pub fn forget_server(&self, tenant: TenantId, server: McpServerId) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.known.retain(|(of, _), known| *of != tenant || known.server != server);
    }

    /// A tenant has ended here.
    pub fn forget_tenant(&self, tenant: TenantId) {
        let mut memory = self.memory();
        memory.generation += 1;
        memory.known.retain(|(of, _), _| *of != tenant);
    }
}

/// How the gateway gets at the tokens.
pub(crate) struct Tokenry(pub Weak<Inner>);

impl Tokenry {
    fn app(&self) -> Result<App, String> {
        self.0.upgrade().map(App).ok_or_else(|| "Keiko is stopping".to_owned())
    }
}

#[async_trait]
impl gateway::Vault for Tokenry {
    async fn token(&self, key: Key, url: &str, holder: &Holder) -> Result<Option<Token>, String> {
        self.app()?.token(key, url, holder).await
    }

    async fn instead(
        &self,
        key: Key,
        url: &str,
        holder: &Holder,
        refused: Option<&Token>,
        challenge: &Challenge,
    ) -> Result<Option<Token>, String> {
        let app = self.app()?;
        if app.token_instead(key, holder, refused, challenge).await?.is_none() {
            return Ok(None);
        }
        // What came may be for another place.
        app.token(key, url, holder).await.map(|now| now.filter(|now| Some(now) != refused))
    }
}

fn id_of(key: Key, holder: &Holder) -> Id {
    (key.tenant, credential_id(key.server, holder_id(holder)))
}

impl App {
    /// What to show to a server now.
    async fn token(&self, key: Key, url: &str, holder: &Holder) -> Result<Option<Token>, String> {
        let id = id_of(key, holder);
        let mut known = match self.0.vault.known(id) {
            Some(known) => known,
            None => self.look_up(key, id).await?,
        };
        let now = self.env().now();
        if known.renew_at.is_some_and(|at| at <= now) {
            if known.is_good(now) {
                self.renew_beside(key, id, known.version);
            } else {
                known = self.renewed(key, id, known.version).await?;
            }
        }
        match (known.problem, known.token, holder) {
            (Some(problem), _, _) => Err(problem),
            (None, Some(_), _) if known.url != url => {
                Err("it is elsewhere than its credential was given for: connect it again".into())
            }
            (None, None, Holder::Identity(_)) => Err("you have not connected it to an account of yours".into()),
            (None, Some(_), _) if known.expires_at.is_some_and(|end| end <= now) => {
                Err("its token has ended, and there is no other yet: its authorization server does not answer".into())
            }
            (None, token, _) => Ok(token),
        }
    }

    /// Renews in time: nobody waits for it.
    fn renew_beside(&self, key: Key, id: Id, seen: u64) {
        if self.0.vault.turn(id).try_lock().is_err() {
            return;
        }
        let app = self.clone();
        self.env().spawn(async move { drop(app.renewed_now(key, id, seen).await) });
    }

    /// What to show to a server that did not accept `refused`.
    async fn token_instead(
        &self,
        key: Key,
        holder: &Holder,
        refused: Option<&Token>,
        challenge: &Challenge,
    ) -> Result<Option<Token>, String> {
        let id = id_of(key, holder);
        let (stream, now) = (id.1.to_string(), self.env().now());
        let Some(credential) = self.credential(id).await? else {
            return self.first_token(key, id, holder, challenge).await;
        };
        if challenge.wants_more() {
            let wanted = CredentialCommand::Want(challenge.scopes.clone());
            let after = self.told(key.tenant, &stream, wanted, Extras::default()).await?;
            let is_own = matches!(after.state.granted.source, Source::Oauth { grant: Grant::ClientCredentials, .. })
                && self.may_ask_for_more(key).await?;
            let is_new = after.version != credential.version;
            return if is_own && is_new { self.first_token(key, id, holder, challenge).await } else { Ok(None) };
        }
        // Somebody else got another one meanwhile.
        let known = match self.0.vault.known(id) {
            Some(known) => known,
            None => self.look_up(key, id).await?,
        };
        if let Some(problem) = known.problem {
            return Err(problem);
        }
        if known.token.is_some() && known.token.as_ref() != refused && known.is_good(now) {
            return Ok(known.token);
        }
        if credential.state.is_renewable() {
            // One that was got a moment ago and is not accepted either would not be followed by a better one.
            let known = self.renewed(key, id, credential.version).await?;
            return Ok(known.token.filter(|token| Some(token) != refused));
        }
        // A token that somebody put in may be good again; any other is got anew by connecting.
        let is_said = challenge.error.as_deref() == Some("invalid_token");
        if matches!(credential.state.granted.source, Source::Oauth { .. }) && known.token.as_ref() == refused && is_said {
            let reason = "its server does not accept it any more".to_owned();
            let refuse = CredentialCommand::Refuse { by: Witness::Shown(known.version), reason };
            self.told(key.tenant, &stream, refuse, Extras::default()).await?;
            self.0.vault.forget(key.tenant, id.1);
        }
        Ok(None)
    }

    async fn credential(&self, (tenant, id): Id) -> Result<Option<Handled<Credential>>, String> {
        self.entity::<Credential>(tenant, &id.to_string()).await.map_err(|rejection| rejection.message)
    }

    /// Reads a credential and remembers it.
    async fn look_up(&self, key: Key, id: Id) -> Result<Known, String> {
        let generation = self.0.vault.memory().generation;
        let known = match self.credential(id).await? {
            None => Known {
                token: None,
                problem: None,
                renew_at: None,
                expires_at: None,
                version: 0,
                server: key.server,
                url: String::new(),
            },
            Some(credential) => self.read_token(key, id, &credential).await?,
        };
        self.0.vault.remember(id, generation, known.clone());
        Ok(known)
    }

    async fn read_token(&self, key: Key, id: Id, credential: &Handled<Credential>) -> Result<Known, String> {
        let state = &credential.state;
        let expires_at = state.granted.expires_at;
        let problem = match state.status {
            CredentialStatus::Refused => {
                let reason = state.reason.clone().unwrap_or_default();
                Some(format!("its credential is no good any more ({reason}): connect it again"))
            }
            _ if !state.is_renewable() && expires_at.is_some_and(|end| end.since_ms(self.env().now()) <= LEAST_MS) => {
                Some("its credential has ended: connect it again".to_owned())
            }
            _ => None,
        };
        let kept = self.open_kept(id.0, id.1).await.map_err(|rejection| rejection.message)?;
        let kept = kept.ok_or("its credential cannot be opened: connect it again")?;
        let lifetime_ms = expires_at.map(|end| end.since_ms(credential.updated_at));
        let early_ms = lifetime_ms.map_or(0, |lifetime| (lifetime / 5).min(EARLY_MS));
        let renew_at = expires_at.filter(|_| state.is_renewable()).map(|end| end.minus_ms(early_ms.max(LEAST_MS)));
        // What did not work is not tried again at once.
        let renew_at = renew_at.map(|at| state.rests_until.map_or(at, |until| at.max(until)));
        Ok(Known {
            token: Some(Token::new(&kept.access)),
            problem,
            renew_at,
            expires_at,
            version: credential.version,
            server: key.server,
            url: kept.url,
        })
    }

    /// The same in a task of its own: whoever waits for it may leave, and a refresh token that was used must not be lost with them.
    async fn renewed(&self, key: Key, id: Id, seen: u64) -> Result<Known, String> {
        let (told, done) = oneshot::channel();
        let app = self.clone();
        self.env().spawn(async move {
            // Nobody may wait any more.
            let _ = told.send(app.renewed_now(key, id, seen).await);
        });
        done.await.unwrap_or_else(|_| Err("Keiko is stopping".into()))
    }

    /// Exchanges a token for the next one, unless something has happened to the credential since it was `seen`.
    async fn renewed_now(&self, key: Key, id: Id, seen: u64) -> Result<Known, String> {
        let turn = self.0.vault.turn(id);
        let _turn = turn.lock().await;
        if let Some(credential) = self.credential(id).await?.filter(|credential| credential.version == seen) {
            let by = format!("{}/{}", self.0.process, text::hex(&self.env().bytes::<8>()));
            let until = self.env().now().plus_ms(RENEWAL_MS);
            // Without replicas nobody is there but this process: another one has ended in the middle.
            let earlier = credential.state.renewing.as_ref().map(|renewing| renewing.by.clone());
            let gone = earlier.filter(|by| self.0.replicas.is_none() && !by.starts_with(&self.0.process));
            let begin = CredentialCommand::BeginRenewal { by: by.clone(), until, gone };
            let credential = self.told(id.0, &id.1.to_string(), begin, Extras::default()).await?;
            match &credential.state.renewing {
                Some(renewing) if renewing.by == by => self.renew(key, id, &credential, &by).await?,
                Some(_) => self.awaited(id).await?,
                // It is no good any more, or rests.
                None => {}
            }
        }
        self.0.vault.forget(id.0, id.1);
        self.look_up(key, id).await
    }

    /// Waits until another replica has exchanged a token.
    async fn awaited(&self, id: Id) -> Result<(), String> {
        for _ in 0..RENEWAL_MS / LOOK_MS {
            tokio::select! {
                () = self.env().stop().cancelled() => return Ok(()),
                () = self.env().sleep_ms(LOOK_MS) => {}
            }
            let under_way = self.credential(id).await?.is_some_and(|credential| credential.state.renewing.is_some());
            if !under_way {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whoever began it: asks the authorization server, and writes down what came of it.
    async fn renew(&self, key: Key, id: Id, credential: &Handled<Credential>, by: &str) -> Result<(), String> {
        let (by, stream, asked) = (by.to_owned(), id.1.to_string(), credential.state.granted.scopes.clone());
        let command = match self.exchanged(key, id, credential).await {
            Ok((tokens, kept)) => {
                let (renewed, secret) = self.renewed_by(id, &tokens, kept, asked).map_err(|rejection| rejection.message)?;
                return self.keep_renewed(id.0, &stream, &CredentialCommand::Renew { by, renewed }, &secret).await;
            }
            Err(ExchangeError::Ended(reason)) => CredentialCommand::Refuse { by: Witness::Renewer(by), reason },
            Err(error) => {
                tracing::warn!(credential = %id.1, reason = %error, "a token for an MCP server could not be renewed; trying again");
                CredentialCommand::EndRenewal { by }
            }
        };
        self.told(id.0, &stream, command, Extras::default()).await.map(|_| ())
    }

    /// Writes down what was got, also where the store is away for a moment: there is no other copy of it.
    async fn keep_renewed(
        &self,
        tenant: TenantId,
        stream: &str,
        command: &CredentialCommand,
        secret: &(String, Option<Vec<u8>>),
    ) -> Result<(), String> {
        let until = self.env().now().plus_ms(RENEWAL_MS);
        loop {
            let extras = Extras { secrets: vec![secret.clone()], ..Extras::default() };
            let step = Step::on::<Credential>(stream, command.clone());
            match self.engine().handle::<Credential>(tenant, step, &Context::system(VAULT), extras).await {
                Ok(_) => return Ok(()),
                Err(HandleError::Store(error)) if self.env().now() < until => {
                    tracing::warn!(credential = stream, %error, "a renewed token could not be written down; trying again");
                    self.env().sleep_ms(LOOK_MS).await;
                }
                Err(error) => return Err(format!("its credential could not be written: {error}")),
            }
        }
    }

    async fn exchanged(&self, key: Key, id: Id, credential: &Handled<Credential>) -> Result<(Tokens, Kept), ExchangeError> {
        let trouble = |rejection: Rejection| ExchangeError::Trouble(rejection.message);
        let kept = self.open_kept(id.0, id.1).await.map_err(trouble)?;
        let kept = kept.ok_or_else(|| ExchangeError::Ended("it cannot be opened".into()))?;
        let Source::Oauth { issuer, client_id, grant, .. } = &credential.state.granted.source else {
            return Err(ExchangeError::Ended("nobody makes another one".into()));
        };
        if *grant == Grant::ClientCredentials {
            let scopes = credential.state.granted.scopes.clone();
            let got = self.own_exchange(key, &Challenge::default(), Some(scopes)).await.map_err(trouble)?;
            return got
                .map(|(tokens, kept, ..)| (tokens, kept))
                .ok_or_else(|| ExchangeError::Ended("nobody says so any more".into()));
        }
        let client = self.client_of(key, issuer, &kept.auth_methods).await.ok().filter(|client| client.id == *client_id);
        let client = client.ok_or_else(|| ExchangeError::Ended("Keiko is another client there since".into()))?;
        let Some(refresh) = kept.refresh.as_deref() else {
            return Err(ExchangeError::Ended("no refresh token came with it".into()));
        };
        let form = [("resource", kept.resource.as_str()), ("grant_type", "refresh_token"), ("refresh_token", refresh)];
        let allow_private = self.0.gateway.settings().allow_private;
        let tokens = exchange(&kept.token_endpoint, &client, &form, allow_private).await?;
        Ok((tokens, kept))
    }

    /// What comes of a renewal: the event and the secret.
    #[allow(clippy::type_complexity, reason = "a secret is a name and perhaps bytes, as the store takes it")]
    fn renewed_by(
        &self,
        (tenant, id): Id,
        tokens: &Tokens,
        kept: Kept,
        asked: Vec<String>,
    ) -> Result<(Renewed, (String, Option<Vec<u8>>)), Rejection> {
        // A server that gives no other refresh token lets the one that it gave be used again.
        let refresh = tokens.refresh.clone().or(kept.refresh);
        let is_renewable = refresh.is_some();
        let kept = Kept { access: tokens.access.clone(), refresh, ..kept };
        let expires_at = self.end_of(tokens);
        let scopes = tokens.scopes.clone().unwrap_or(asked);
        Ok((Renewed { scopes, expires_at, is_renewable }, (secret_of(id), Some(self.seal_kept(tenant, id, &kept)?))))
    }

    /// Gets a token where Keiko needs nobody for that.
    async fn first_token(&self, key: Key, id: Id, holder: &Holder, challenge: &Challenge) -> Result<Option<Token>, String> {
        if *holder != Holder::Everybody {
            return Ok(None);
        }
        let seen = self.credential(id).await?.map(|known| known.version);
        let turn = self.0.vault.turn(id);
        let _turn = turn.lock().await;
        // Somebody else got one meanwhile.
        if self.credential(id).await?.map(|known| known.version) != seen {
            return Ok(self.look_up(key, id).await?.token);
        }
        let granted: Option<GrantedTokens> =
            self.own_tokens(key, challenge).await.map_err(|rejection| format!("no token could be got: {}", rejection.message))?;
        let Some(granted) = granted else { return Ok(None) };
        let token = Token::new(&granted.kept.access);
        let (command, extras) = self.keeping(key, None, granted).map_err(|rejection| rejection.message)?;
        self.told(key.tenant, &id.1.to_string(), command, extras).await?;
        self.0.vault.forget(key.tenant, id.1);
        Ok(Some(token))
    }

    /// Carries out a command as the vault.
    async fn told(
        &self,
        tenant: TenantId,
        stream: &str,
        command: CredentialCommand,
        extras: Extras,
    ) -> Result<Handled<Credential>, String> {
        let step = Step::on::<Credential>(stream, command);
        match self.engine().handle::<Credential>(tenant, step, &Context::system(VAULT), extras).await {
            Ok(handled) => Ok(handled),
            Err(HandleError::Rejected(rejection)) if rejection.kind == Kind::NotFound => Err("its credential was removed".into()),
            Err(error) => Err(format!("its credential could not be written: {error}")),
        }
    }
}
