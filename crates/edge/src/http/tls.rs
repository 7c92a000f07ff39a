//! TLS of our own listener: version 1.3, with the hybrid post-quantum key exchange for every client that offers it first (as
//! browsers and rustls do). A certificate that is replaced on the disk is taken over without a restart.

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where certificate and key are, as PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, with those of its issuers behind it.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsFiles {
    fn config(&self) -> Result<Arc<ServerConfig>, String> {
        let unreadable = |path: &PathBuf, e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
        let certs: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_file_iter(&self.cert).and_then(Iterator::collect);
        let certs = certs.map_err(|e| unreadable(&self.cert, &e))?;
        if certs.is_empty() {
            return Err(format!("there is no certificate in {}", self.cert.display()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| unreadable(&self.key, &e))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(|e| e.to_string())?;
        let built = builder.with_no_client_auth().with_single_cert(certs, key);
        let mut config = built.map_err(|e| format!("certificate and key cannot be used: {e}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn changed_at(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let at = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        (at(&self.cert), at(&self.key))
    }
}

/// What new connections are accepted with.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Reads the files, and again when they change. Fails when they cannot be used.
    pub fn open(files: TlsFiles) -> Result<Tls, String> {
        let seen = files.changed_at();
        let tls = Tls(Arc::new(RwLock::new(files.config()?)));
        tokio::spawn(follow(files, seen, Arc::downgrade(&tls.0)));
        Ok(tls)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn follow(
    files: TlsFiles,
    mut seen: (Option<SystemTime>, Option<SystemTime>),
    config: std::sync::Weak<RwLock<Arc<ServerConfig>>>,
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(config) = config.upgrade() else { return };
        let now = files.changed_at();
        if now == seen {
            continue;
        }
        match files.config() {
            Ok(fresh) => {
                *config.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                seen = now;
                tracing::info!(cert = %files.cert.display(), "the certificate was replaced");
            }
            // Half of it may have been written; the old one is still good.
            Err(error) => tracing::warn!(%error, "the certificate on the disk cannot be used; going on with the old one"),
        }
    }
}
