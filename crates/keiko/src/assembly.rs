//! The assembly: from settings to a server that runs. The same for the binary and for whoever embeds Keiko.

use crate::{Settings, keys, tls};
use anyhow::Context;
use app::{App, Bootstrap, Ground, Membership};
use edge::http::{Readiness, Server, Tls, bind};
use engine::{Engine, Env};
use gateway::{Gateway, Postbox};
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use store::journal::Journal;
use store::postgres::{PostgresJournal, PostgresSettings, PostgresStore, Promise};
use store::sqlite::{Directory, SqliteJournal, SqliteSettings, SqliteStore};

/// The components that a server is made of.
pub struct Parts {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// Clock and randomness.
    pub env: Env,
    /// Signing, sealing and index keys.
    pub keys: app::KeyMaterial,
    /// Observations.
    pub journal: Arc<dyn Journal>,
    /// How this process belongs to others on the same store, if it does.
    pub membership: Option<Membership>,
    /// What an acknowledged write has survived, in words, and whether that is little.
    pub promise: (String, bool),
}

impl Parts {
    /// The parts that the settings ask for: PostgreSQL, or SQLite in the data directory.
    pub async fn open(settings: &Settings) -> anyhow::Result<Parts> {
        match &settings.database {
            Some(database) => Self::on_postgres(settings, database).await,
            None => Self::embedded(settings).await,
        }
    }

    /// SQLite and key files in the data directory.
    async fn embedded(settings: &Settings) -> anyhow::Result<Parts> {
        let env = Env::system();
        let directory = Directory::open(&settings.data_dir)?;
        let sqlite = SqliteSettings { disk_free_min_bytes: settings.disk_free_min_bytes };
        let journal = SqliteJournal::open(&directory, &sqlite)?;
        let store = SqliteStore::open(directory, &sqlite)?;
        let has_log = !store.logs().await?.is_empty();
        let keys = keys::load(&settings.keys_dir, has_log, &env)?;
        let promise = "every acknowledged write is synced to the local disk; there is no copy on another machine".to_owned();
        let (store, journal) = (Arc::new(store), Arc::new(journal));
        Ok(Parts { store, env, keys, journal, membership: None, promise: (promise, false) })
    }

    /// A database that other replicas may use too. Only key files lie in the data directory.
    async fn on_postgres(settings: &Settings, database: &PostgresSettings) -> anyhow::Result<Parts> {
        let env = Env::system();
        let store = Arc::new(PostgresStore::open(database).await?);
        let journal = Arc::new(PostgresJournal::open(database, &store)?);
        let has_log = !store.logs().await?.is_empty();
        let keys = keys::load(&settings.keys_dir, has_log, &env)?;
        let replica = format!("replica-{:016x}", env.random());
        let promise = (format!("{} ({})", store.promise(), store.place()), matches!(store.promise(), Promise::Asynchronous(_)));
        let membership = Membership { cluster: store.clone(), replica, lease_ms: settings.lease_ms };
        Ok(Parts { store, env, keys, journal, membership: Some(membership), promise })
    }
}

/// A server that is ready to run.
pub struct Keiko {
    app: App,
    server: Server,
    grpc: Option<Server>,
    store: Arc<dyn Store>,
    journal: Arc<dyn Journal>,
    gateway: Gateway,
    env: Env,
    grace: Duration,
    bootstrap: Option<Bootstrap>,
}

impl Keiko {
    /// Starts everything up to the open port.
    pub async fn start(settings: &Settings, parts: Parts) -> anyhow::Result<Keiko> {
        let Parts { store, env, keys, journal, membership, promise } = parts;
        say(&promise, membership.as_ref().map(|m| m.replica.as_str()));
        let listener = bind(settings.listen).await.map_err(anyhow::Error::msg)?;
        let mut app_settings = settings.app.clone();
        if app_settings.public_url.is_empty() {
            app_settings.public_url = own_url(settings.tls.is_some(), listener.local_addr()?);
            if membership.is_some() || listener.local_addr()?.ip().is_unspecified() {
                tracing::warn!(
                    public_url = app_settings.public_url,
                    "set server.public_url: sign-in leads clients to this address"
                );
            }
        }
        let tls = tls::files(settings)?.map(Tls::open).transpose().map_err(anyhow::Error::msg)?;
        let grpc_listener = match settings.grpc_listen {
            Some(address) => Some(bind(address).await.map_err(anyhow::Error::msg)?),
            None => None,
        };
        let engine = Engine::new(store.clone(), env.clone());
        let password = settings.admin_password.as_ref().map(|secret| secret.0.clone());
        let (gateway, reports) = Gateway::new(settings.gateway.clone());
        let postbox = postbox(settings)?;
        let ground = Ground { engine, journal: journal.clone(), gateway: gateway.clone(), reports, postbox, membership };
        let (app, bootstrap) = App::start(ground, &keys, app_settings, password)
            .await
            .map_err(|r| anyhow::anyhow!("{} {}", r.message, r.hint))
            .context("the application could not start")?;
        let readiness = Arc::new(StoreReadiness(store.clone(), journal.clone()));
        let made = Server::new(listener, app.clone(), readiness, settings.http.clone(), tls.clone());
        let server = made.map_err(anyhow::Error::msg)?;
        let grpc = match grpc_listener {
            Some(listener) => {
                Some(edge::grpc::server(listener, app.clone(), &settings.http, tls).await.map_err(anyhow::Error::msg)?)
            }
            None => None,
        };
        Ok(Keiko { app, server, grpc, store, journal, gateway, env, grace: settings.shutdown_timeout, bootstrap })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.server.address()
    }

    /// Where the gRPC interface listens, if it does.
    pub fn grpc_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.grpc.as_ref().map(Server::address).transpose()
    }

    /// What the first start made, if this was the first.
    pub fn bootstrap(&self) -> Option<&Bootstrap> {
        self.bootstrap.as_ref()
    }

    /// Serves until `stop` ends, then drains: no new claims, waiting requests are answered, running ones finish within
    /// the grace time, and everything that was taken in is durable.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let app = self.app.clone();
        let draining = async move {
            stop.await;
            tracing::info!("draining: no new claims, running requests finish");
            app.drain();
        };
        let stopping = self.app.draining().clone();
        let grpc = async {
            if let Some(grpc) = self.grpc {
                grpc.run(stopping.cancelled(), self.grace).await;
            }
        };
        tokio::join!(self.server.run(draining, self.grace), grpc);
        if tokio::time::timeout(self.grace, self.env.shut_down()).await.is_err() {
            tracing::warn!("background work did not end within the grace time");
        }
        self.gateway.close().await;
        self.journal.close().await;
        self.store.close().await;
        tracing::info!("stopped");
    }
}

/// The address of a listener as browsers write it. Where it listens everywhere, this machine is the one that surely reaches it.
fn own_url(is_tls: bool, mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let plain = format!("{}://{address}", if is_tls { "https" } else { "http" });
    url::Url::parse(&plain).map_or(plain, |url| url.origin().ascii_serialization())
}

/// The way of mails, if there is one.
fn postbox(settings: &Settings) -> anyhow::Result<Option<Postbox>> {
    let Some(mail) = &settings.mail else { return Ok(None) };
    let postbox = Postbox::new(mail).map_err(anyhow::Error::msg)?;
    if let Some(folder) = postbox.folder() {
        tracing::info!(folder = %folder.display(), "mails are not sent; they are put into a folder");
    }
    Ok(Some(postbox))
}

/// Says what an acknowledged write has survived.
fn say((promise, is_little): &(String, bool), replica: Option<&str>) {
    match is_little {
        true => tracing::warn!(replica, "{promise}"),
        false => tracing::info!(replica, "{promise}"),
    }
}

/// What health checks see of the store.
struct StoreReadiness(Arc<dyn Store>, Arc<dyn Journal>);

impl Readiness for StoreReadiness {
    fn dependencies(&self) -> Vec<(&'static str, Option<String>)> {
        let health = self.0.health();
        let disk = health.is_disk_low.then(|| "less free space than store.disk_free_min; writes are refused".to_owned());
        vec![("store", health.read_only), ("disk", disk), ("journal", self.1.health().broken)]
    }

    fn store(&self) -> (usize, u64, u64) {
        let health = self.0.health();
        (health.queued, health.commits, health.events)
    }
}

#[cfg(test)]
mod tests {
    use super::own_url;

    #[test]
    fn a_listener_is_known_as_browsers_write_it() {
        let known = |is_tls, address: &str| own_url(is_tls, address.parse().unwrap());
        assert_eq!(known(false, "127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(known(true, "10.0.0.5:443"), "https://10.0.0.5");
        assert_eq!(known(true, "10.0.0.5:80"), "https://10.0.0.5:80");
        assert_eq!(known(false, "0.0.0.0:80"), "http://127.0.0.1");
        assert_eq!(known(false, "[::]:8080"), "http://[::1]:8080");
    }
}
