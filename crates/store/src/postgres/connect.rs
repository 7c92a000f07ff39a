//! Connections: where the database is, TLS, limits, and what the server promises.

use crate::{OpenError, StoreError};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The oldest server that is used.
const SERVER_VERSION_MIN: i32 = 140_000;
/// How long making a connection, or waiting for one, may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// What every connection is set to. A replica that stops in the middle of a transaction loses it, and with it the log's
/// lock, after two seconds; nothing waits longer for a lock than five. Every query and every join goes by an
/// index: a plan that was made while a table was empty, and is kept, must not read all of it when it has grown.
const SESSION: &str = "-c idle_in_transaction_session_timeout=2000 -c lock_timeout=5000 -c statement_timeout=30000 \
     -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c client_min_messages=warning \
     -c standard_conforming_strings=on -c timezone=UTC -c enable_seqscan=off \
     -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off";

/// A connection of its own.
pub(super) type Session = tokio_postgres::Client;

/// What can be set.
#[derive(Clone)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database?sslmode=require`. Holds a password: never shown.
    pub url: String,
    /// Connections at most, of this process.
    pub connections_max: usize,
    /// Certificate authorities to trust instead of the system's, as PEM.
    pub tls_ca: Option<PathBuf>,
    /// Size of the database in bytes from which on writes are refused.
    pub size_max_bytes: Option<u64>,
}

impl std::fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSettings").field("connections_max", &self.connections_max).finish_non_exhaustive()
    }
}

/// How to connect, understood.
#[derive(Clone)]
pub(super) struct Target {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
}

/// What an acknowledged write has survived, by the server's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It is synced to the server's disk.
    LocalSync,
    /// It is synced to the server's disk and by standbys; the text says which.
    Quorum(String),
    /// It may be lost; the text says why.
    Asynchronous(String),
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Promise::LocalSync => {
                f.write_str("every acknowledged write is synced to the database server's disk; no standby confirms it")
            }
            Promise::Quorum(standbys) => {
                write!(
                    f,
                    "every acknowledged write is synced to the database server's disk and confirmed by standbys ({standbys})"
                )
            }
            Promise::Asynchronous(why) => {
                write!(f, "acknowledged writes can be LOST when the database server crashes: {why}")
            }
        }
    }
}

impl Target {
    pub fn new(settings: &PostgresSettings) -> Result<Self, OpenError> {
        let wrong = |problem: String| OpenError::Database(format!("database.url {problem}"));
        let (url, verified) = without_verify(&settings.url);
        let mut config = tokio_postgres::Config::from_str(&url)
            .map_err(|e| wrong(format!("is no address such as postgres://user:password@host:5432/keiko: {}", describe(&e))))?;
        let is_local = config.get_hosts().iter().all(is_local);
        match (config.get_ssl_mode(), verified || settings.tls_ca.is_some()) {
            (SslMode::Prefer, false) if is_local => {}
            (SslMode::Disable, true) => return Err(wrong("says sslmode=disable, but database.tls_ca asks for TLS".into())),
            (SslMode::Disable, false) if !is_local => {
                tracing::warn!("the connection to the database is not encrypted: sslmode=disable");
            }
            (SslMode::Disable, false) => {}
            // Another machine is spoken to with TLS unless somebody says otherwise.
            _ => {
                config.ssl_mode(SslMode::Require);
            }
        }
        if config.get_application_name().is_none() {
            config.application_name("keiko");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_MAX);
        }
        config.tcp_user_timeout(Duration::from_secs(10)).keepalives_idle(Duration::from_secs(10));
        let options = config.get_options().map(|given| format!("{given} {SESSION}")).unwrap_or_else(|| SESSION.to_owned());
        config.options(options);
        Ok(Target { config, tls: MakeRustlsConnect::new(tls(settings)?) })
    }

    pub fn pool(&self, connections: usize) -> Result<Pool, OpenError> {
        let manager = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        Pool::builder(Manager::from_config(self.config.clone(), self.tls.clone(), manager))
            .max_size(connections)
            .timeouts(Timeouts { wait: Some(CONNECT_MAX), create: Some(CONNECT_MAX), recycle: Some(CONNECT_MAX) })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|e| OpenError::Database(e.to_string()))
    }

    /// One connection beside the pool; messages that the server sends by itself go to `heard`.
    pub async fn session(
        &self,
        heard: tokio::sync::mpsc::UnboundedSender<tokio_postgres::AsyncMessage>,
    ) -> Result<Session, tokio_postgres::Error> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = futures_util::StreamExt::next(&mut messages).await {
                if heard.send(message).is_err() {
                    // Nobody listens, but requests on the connection go on.
                    continue;
                }
            }
        });
        Ok(client)
    }

    /// Where it is, without the password.
    pub fn place(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".into(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        format!("{host}:{port}/{}", self.config.get_dbname().unwrap_or("postgres"))
    }
}

/// libpq's `verify-ca` and `verify-full` mean what is always done here when TLS is used.
fn without_verify(url: &str) -> (String, bool) {
    let plain = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
    let verified = plain != url;
    (plain, verified)
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
    }
}

fn tls(settings: &PostgresSettings) -> Result<rustls::ClientConfig, OpenError> {
    let mut roots = rustls::RootCertStore::empty();
    match &settings.tls_ca {
        Some(path) => {
            let wrong = |e: String| OpenError::Database(format!("database.tls_ca '{}' {e}", path.display()));
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|e| wrong(format!("is no PEM file: {e}")))?;
                roots.add(certificate).map_err(|e| wrong(format!("holds no usable certificate: {e}")))?;
            }
            if roots.is_empty() {
                return Err(wrong("holds no certificate".into()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            tracing::debug!(added, "certificate authorities of the system");
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| OpenError::Database(e.to_string()))?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// Refuses a server that cannot keep what Keiko promises, and says what this one promises.
pub(super) async fn examine(session: &Session) -> Result<Promise, OpenError> {
    let failed = |e: tokio_postgres::Error| OpenError::Database(describe(&e));
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), \
               pg_encoding_to_char(encoding), current_setting('fsync'), current_setting('full_page_writes'), \
               current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), \
               has_database_privilege(current_database(), 'CONNECT') AND has_schema_privilege(current_schema(), 'USAGE'), \
               current_schema() IS NOT NULL \
               FROM pg_database WHERE datname = current_database()";
    let row = session.query_one(sql, &[]).await.map_err(failed)?;
    let refuse = |text: String| Err(OpenError::Database(text));
    let (version, shown): (i32, String) = (row.get(0), row.get(1));
    if version < SERVER_VERSION_MIN {
        return refuse(format!("the database server is PostgreSQL {shown}; Keiko needs 14 or newer"));
    }
    if row.get::<_, bool>(2) {
        return refuse("the database server is a standby that cannot be written to; give the primary in database.url".into());
    }
    let encoding: String = row.get(3);
    if encoding != "UTF8" {
        return refuse(format!(
            "the database has the encoding {encoding}; Keiko needs UTF8: CREATE DATABASE keiko TEMPLATE template0 ENCODING 'UTF8'"
        ));
    }
    if !row.get::<_, Option<bool>>(9).unwrap_or(false) || !row.get::<_, Option<bool>>(8).unwrap_or(false) {
        return refuse(
            "the database user may not use a schema of this database; GRANT it USAGE and CREATE on one in its search_path".into(),
        );
    }
    let (fsync, full_pages, commit, standbys): (String, String, String, String) =
        (row.get(4), row.get(5), row.get(6), row.get(7));
    Ok(promise(&fsync, &full_pages, &commit, &standbys))
}

fn promise(fsync: &str, full_pages: &str, commit: &str, standbys: &str) -> Promise {
    let because = |text: &str| Promise::Asynchronous(text.to_owned());
    match (fsync, full_pages, commit, standbys.trim()) {
        ("off", ..) => because("fsync = off"),
        (_, "off", ..) => because("full_page_writes = off"),
        (_, _, "off", _) => because("synchronous_commit = off"),
        (_, _, _, "") | (_, _, "local", _) => Promise::LocalSync,
        (_, _, commit, standbys) => {
            Promise::Quorum(format!("synchronous_commit = {commit}, synchronous_standby_names = {standbys}"))
        }
    }
}

/// An error with everything that caused it, in one line. The server's messages name objects, never passwords.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let hint = match *db.code() {
            SqlState::INSUFFICIENT_PRIVILEGE => {
                "; the user needs CREATE on the schema: GRANT USAGE, CREATE ON SCHEMA public TO <user>"
            }
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                "; check user and password in database.url"
            }
            SqlState::INVALID_CATALOG_NAME => "; make it with: CREATE DATABASE",
            _ => "",
        };
        return format!("the database says: {}{hint}", db.message());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Whether the connection or the server is in trouble, not the statement.
pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => true,
        Some(code) => {
            let code = code.code();
            // Connection, operator intervention, too many connections, a standby after a fail-over, a deadlock, a lock
            // that was not had, a transaction that idled too long.
            code.starts_with("08")
                || code.starts_with("57P")
                || matches!(code, "53300" | "25006" | "40P01" | "40001" | "55P03" | "25P03" | "57014")
        }
    }
}

/// What the store says of a failed reading.
pub(super) fn failed(error: &tokio_postgres::Error) -> StoreError {
    match error.code() {
        Some(code) if *code == SqlState::DISK_FULL => StoreError::DiskLow,
        Some(code) if code.code().starts_with("XX") => StoreError::Corrupt(describe(error)),
        _ if is_lost(error) => StoreError::Unavailable(describe(error)),
        _ => StoreError::Io(describe(error)),
    }
}

/// What the store says when no connection was to be had.
pub(super) fn unreachable(error: &deadpool_postgres::PoolError) -> StoreError {
    match error {
        deadpool_postgres::PoolError::Backend(error) => StoreError::Unavailable(describe(error)),
        deadpool_postgres::PoolError::Timeout(_) => StoreError::Unavailable("no connection was free in time".into()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_follows_the_servers_settings() {
        assert_eq!(promise("on", "on", "on", ""), Promise::LocalSync);
        assert_eq!(promise("on", "on", "local", "a"), Promise::LocalSync);
        assert!(matches!(promise("on", "on", "on", "ANY 1 (a, b)"), Promise::Quorum(_)));
        for (fsync, pages, commit) in [("off", "on", "on"), ("on", "off", "on"), ("on", "on", "off")] {
            assert!(matches!(promise(fsync, pages, commit, "a"), Promise::Asynchronous(_)));
        }
    }

    #[test]
    fn another_machine_is_spoken_to_with_tls() {
        let mode = |url: &str| {
            let settings = PostgresSettings { url: url.into(), connections_max: 1, tls_ca: None, size_max_bytes: None };
            Target::new(&settings).map(|t| t.config.get_ssl_mode())
        };
        assert!(matches!(mode("postgres://u@db.example/k"), Ok(SslMode::Require)));
        assert!(matches!(mode("postgres://u@db.example/k?sslmode=verify-full"), Ok(SslMode::Require)));
        assert!(matches!(mode("postgres://u@db.example/k?sslmode=disable"), Ok(SslMode::Disable)));
        assert!(matches!(mode("postgres://u@127.0.0.1/k"), Ok(SslMode::Prefer)));
        assert!(mode("mysql://u@h/k").is_err());
    }
}
