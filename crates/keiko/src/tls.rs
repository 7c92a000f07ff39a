//! The certificate for development: made at the first start, kept beside the data, trusted by nobody but whoever says so.

use crate::Settings;
use crate::settings::Tls;
use anyhow::Context;
use edge::http::TlsFiles;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

/// Certificate and key, made if they are to be and are not there yet.
pub(crate) fn files(settings: &Settings) -> anyhow::Result<Option<TlsFiles>> {
    match &settings.tls {
        None => Ok(None),
        Some(Tls::Files(files)) => Ok(Some(files.clone())),
        Some(Tls::SelfSigned) => self_signed(settings).map(Some),
    }
}

fn self_signed(settings: &Settings) -> anyhow::Result<TlsFiles> {
    let folder = settings.data_dir.join("tls");
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot make '{}'", folder.display()))?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = settings.listen.ip();
    if !own.is_unspecified() && !own.is_loopback() {
        names.push(IpAddr::to_string(&own));
    }
    let made = rcgen::generate_simple_self_signed(names).context("no certificate could be made")?;
    write(&files.key, &made.signing_key.serialize_pem(), 0o600)?;
    write(&files.cert, &made.cert.pem(), 0o644)?;
    tracing::warn!(cert = %files.cert.display(), "made a certificate for development; clients trust it only if they are told to");
    Ok(files)
}

fn write(path: &std::path::Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    let mut file = open.with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}
