//! What an administrator of the machine does on a stopped server.

use crate::{Parts, Settings};
use anyhow::bail;
use engine::Engine;

/// Sets a user's password. Answers the new one when it was made up here.
pub async fn reset_password(
    settings: &Settings,
    tenant: &str,
    username: &str,
    password: Option<String>,
    removes_mfa: bool,
) -> anyhow::Result<Option<String>> {
    if settings.database.is_none() && !settings.data_dir.join("FORMAT").exists() {
        bail!("there is no data directory at '{}'; give the server's with --data-dir", settings.data_dir.display());
    }
    let parts = Parts::open(settings).await?;
    let generated = password.is_none().then(|| app::fresh_secret(&parts.env)[..20].to_owned());
    let password = password.or_else(|| generated.clone()).unwrap_or_default();
    let engine = Engine::new(parts.store.clone(), parts.env.clone());
    let outcome = app::reset_password(&engine, &parts.keys, (tenant, username), &password, removes_mfa).await;
    parts.store.close().await;
    match outcome {
        Ok(()) => Ok(generated),
        Err(rejection) => bail!("{} {}", rejection.message, rejection.hint),
    }
}
