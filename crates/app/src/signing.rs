//! The keys that sign tokens, as this process holds them: read from the ring in the root log, and rotated by whoever leads.

use crate::Answer;
use crate::app::{App, internal};
use crate::errors::of_handle;
use crate::jose::{Algorithm, PublicKey, SigningKey, fresh_key, verify};
use domain::identity::keyring::{Added, Keyring, KeyringCommand, keyring_id, private_secret};
use engine::{Context, Extras, Step};
use kernel::Json;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// How often the ring is looked at. A new key is published much longer before it signs.
const LOOK_EVERY_MS: u64 = 60_000;
/// How often it is looked at because of a token that names an unknown key.
const LOOK_AGAIN_MS: u64 = 1_000;

/// The ring as it was read last.
#[derive(Default)]
pub(crate) struct Ring(RwLock<Arc<Loaded>>);

#[derive(Default)]
struct Loaded {
    ring: Keyring,
    private: BTreeMap<String, SigningKey>,
    public: Vec<PublicKey>,
    read_at: kernel::Timestamp,
}

impl App {
    fn ring(&self) -> Arc<Loaded> {
        self.0.ring.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the ring at the first start, and reads it.
    pub(crate) async fn begin_ring(&self) -> Answer<()> {
        let first = SigningKey::new(&self.0.crypto.first_signing).map_err(internal)?;
        self.change_ring(KeyringCommand::Begin(added(&first)?), Extras::default()).await?;
        self.read_ring().await
    }

    async fn change_ring(&self, command: KeyringCommand, extras: Extras) -> Answer<()> {
        let (root, context) = (self.0.root, Context::system("signing-keys"));
        let step = Step::on::<Keyring>(keyring_id(root), command);
        self.0.engine.handle::<Keyring>(root, step, &context, extras).await.map(|_| ()).map_err(of_handle)
    }

    /// Reads the ring and the private parts of its keys.
    async fn read_ring(&self) -> Answer<()> {
        let root = self.0.root;
        let known = self.entity::<Keyring>(root, &keyring_id(root).to_string()).await?;
        let ring = known.map(|known| known.state.as_ref().clone()).unwrap_or_default();
        let first = SigningKey::new(&self.0.crypto.first_signing).map_err(internal)?;
        let mut private = BTreeMap::from([(first.kid.clone(), first)]);
        for key in &ring.keys {
            if private.contains_key(&key.kid) {
                continue;
            }
            let name = private_secret(&key.kid);
            let opened = self.open_secret(root, &name).await?;
            match opened.map(|bytes| SigningKey::new(&bytes)) {
                Some(Ok(signing)) => drop(private.insert(key.kid.clone(), signing)),
                _ => tracing::error!(kid = key.kid, "a key that signs tokens cannot be opened"),
            }
        }
        let public = ring.keys.iter().filter_map(|key| PublicKey::of_jwk(&key.jwk.value())).collect();
        let loaded = Loaded { ring, private, public, read_at: self.env().now() };
        *self.0.ring.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(())
    }

    /// The public keys that verify tokens, as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        json!({ "keys": self.ring().ring.keys.iter().map(|key| key.jwk.value()).collect::<Vec<_>>() })
    }

    /// The algorithms of the published keys.
    pub fn signing_algorithms(&self) -> Vec<String> {
        let keys = self.jwks();
        let named = keys["keys"].as_array().into_iter().flatten().filter_map(|key| key["alg"].as_str().map(str::to_owned));
        named.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// The algorithm of the key that signs now.
    pub(crate) fn signing_algorithm(&self) -> Algorithm {
        let loaded = self.ring();
        let current = loaded.ring.signing(self.env().now()).and_then(|key| loaded.private.get(&key.kid));
        current.map_or(Algorithm::Es256, SigningKey::algorithm)
    }

    /// A signed token.
    pub(crate) fn sign(&self, typ: &str, claims: &impl Serialize) -> Answer<String> {
        self.with_signing_key(|key| key.sign(typ, claims))
    }

    /// Bytes that are signed, with more in the header: its three parts.
    pub(crate) fn sign_bytes(&self, header: Value, payload: &[u8]) -> Answer<String> {
        self.with_signing_key(|key| key.sign_bytes(header, payload))
    }

    fn with_signing_key(&self, sign: impl FnOnce(&SigningKey) -> Result<String, String>) -> Answer<String> {
        let loaded = self.ring();
        let current = loaded.ring.signing(self.env().now()).and_then(|key| loaded.private.get(&key.kid));
        let key = current.ok_or_else(|| internal("there is no key to sign tokens with".into()))?;
        sign(key).map_err(internal)
    }

    /// The claims of a token that this installation signed, whatever time it is.
    pub(crate) async fn verified<T: for<'de> Deserialize<'de>>(&self, token: &str, types: &[Option<&str>]) -> Answer<Option<T>> {
        let loaded = self.ring();
        if let Some(claims) = verify(token, types, &loaded.public) {
            return Ok(Some(claims));
        }
        // Perhaps another replica has made a key since.
        if self.env().now().since_ms(loaded.read_at) < LOOK_AGAIN_MS {
            return Ok(None);
        }
        self.read_ring().await?;
        Ok(verify(token, types, &self.ring().public))
    }

    async fn rotate(&self) -> Answer<()> {
        let (now, settings, loaded) = (self.env().now(), &self.0.settings, self.ring());
        if loaded.ring.is_due(now, settings.signing_key_lifetime_ms) {
            let pkcs8 = fresh_key(settings.token_algorithm).map_err(internal)?;
            let key = SigningKey::new(&pkcs8).map_err(internal)?;
            let name = private_secret(&key.kid);
            let sealed = self.0.crypto.sealer.seal(self.0.root, &name, &pkcs8, self.env().bytes()).map_err(internal)?;
            let extras = Extras { secrets: vec![(name, Some(sealed))], ..Extras::default() };
            self.change_ring(KeyringCommand::Add(added(&key)?), extras).await?;
            tracing::info!(kid = key.kid, "a further key was made that will sign tokens");
        }
        for kid in loaded.ring.over(now, settings.access_token_ttl_ms) {
            let extras = Extras { secrets: vec![(private_secret(kid), None)], ..Extras::default() };
            self.change_ring(KeyringCommand::Retire { kid: kid.to_owned() }, extras).await?;
        }
        Ok(())
    }
}

fn added(key: &SigningKey) -> Answer<Added> {
    let jwk = Json::of(&key.jwk()).map_err(|e| internal(e.to_string()))?;
    Ok(Added { kid: key.kid.clone(), jwk })
}

/// Follows the ring, and rotates it where everything is led, until the server stops.
pub(crate) async fn keep_ring(app: App) {
    loop {
        let mut kept = Ok(());
        if app.leads_all() {
            kept = app.rotate().await;
        }
        if let Err(error) = kept.and(app.read_ring().await) {
            tracing::warn!(%error, "the keys that sign tokens could not be looked at; trying again");
        }
        tokio::select! {
            biased;
            () = app.env().stop().cancelled() => return,
            () = app.env().sleep_ms(LOOK_EVERY_MS) => {}
        }
    }
}
