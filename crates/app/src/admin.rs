//! What an administrator of the machine does on a stopped server.

use crate::crypto::{KeyMaterial, Sealer};
use crate::errors::{of_handle, of_store};
use crate::identities::{Ending, PASSWORD_CHANGED};
use crate::{Answer, passwords};
use domain::identity::tenant::slug_key;
use domain::identity::user::{User, UserCommand, name_key, totp_secret};
use engine::{Context, Engine, Extras, Step};
use kernel::id::{TenantId, UserId};
use kernel::{Kind, Rejection};

/// Sets a user's password and ends the user's sessions; removes the second factor too, for somebody who has lost it.
pub async fn reset_password(
    engine: &Engine,
    keys: &KeyMaterial,
    (tenant, username): (&str, &str),
    password: &str,
    removes_mfa: bool,
) -> Answer<()> {
    let missing = |what: String| Rejection::new(Kind::NotFound, "USER_NOT_FOUND", what, "Check --tenant and --username.");
    passwords::check(password, username, passwords::PASSWORD_CHARS_MIN)?;
    let logs = engine.store().logs().await.map_err(of_store)?;
    let root = *logs.first().ok_or_else(|| missing("This data directory has no users yet; start the server first.".into()))?;
    let stream = engine.store().holder(root, &slug_key(tenant)).await.map_err(of_store)?;
    let log: TenantId = stream.and_then(|s| s.parse().ok()).ok_or_else(|| missing(format!("There is no tenant '{tenant}'.")))?;
    let sealer = Sealer::new(&keys.sealing, &keys.index).map_err(crate::app::internal)?;
    let index = sealer.blind(log, "username", username);
    let stream = engine.store().holder(log, &name_key(&index)).await.map_err(of_store)?;
    let user: UserId = stream
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| missing(format!("There is no user '{username}' in tenant '{tenant}'.")))?;
    let (name, sealed) =
        passwords::set_password_hash(&sealer, engine.env(), log, user, password).map_err(crate::app::internal)?;
    let (steps, mut secrets) = Ending::of(user, UserCommand::ChangePassword, PASSWORD_CHANGED).plan(engine, log).await?;
    secrets.push((name, Some(sealed)));
    if removes_mfa {
        secrets.push((totp_secret(&user), None));
    }
    let context = Context::system("admin");
    engine.transact(log, &steps, &context, Extras { secrets, ..Extras::default() }).await.map_err(of_handle)?;
    if removes_mfa {
        // After the rest: a stream is written once in a transaction.
        let step = Step::on::<User>(user, UserCommand::RemoveMfa);
        engine.transact(log, &[step], &context, Extras::default()).await.map_err(of_handle)?;
    }
    Ok(())
}
