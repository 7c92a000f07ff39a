//! How mails go out, and who may make an account by them.

use super::{Layers, Profile};
use anyhow::{Context, bail};
use app::Registration;
use gateway::{MailSettings, Way};
use std::path::{Path, PathBuf};

/// From whom mails in a folder are when nobody said.
const FROM_IN_FOLDER: &str = "Keiko <keiko@localhost>";

/// How mails go out, if they do.
pub(super) fn mail(
    layers: &Layers,
    data_dir: &Path,
    is_embedded: bool,
    profile: Profile,
) -> anyhow::Result<Option<MailSettings>> {
    let value = |key| layers.0[key].0.clone();
    let (url, from, authorities) = (value("mail.smtp_url"), value("mail.from"), value("mail.tls_ca"));
    if !url.is_empty() {
        if let Some(problem) = gateway::smtp_problem(&url) {
            // Without the value: it may hold a password.
            bail!("setting 'mail.smtp_url' ({}) {problem}", layers.place("mail.smtp_url"));
        }
        if from.is_empty() {
            bail!("'mail.smtp_url' needs 'mail.from': from whom mails are, such as Keiko <keiko@example.com>");
        }
        let authorities = match authorities.as_str() {
            "" => None,
            path => Some(std::fs::read(path).with_context(|| format!("setting 'mail.tls_ca': cannot read '{path}'"))?),
        };
        return Ok(Some(MailSettings { from, way: Way::Smtp { url, authorities } }));
    }
    let folder = match value("mail.folder").as_str() {
        "off" => None,
        "auto" => (is_embedded && profile == Profile::Development).then(|| data_dir.join("mails")),
        "" => bail!("setting 'mail.folder' ({}) is empty; it is a folder, off or auto", layers.place("mail.folder")),
        folder => Some(PathBuf::from(folder)),
    };
    let from = if from.is_empty() { FROM_IN_FOLDER.to_owned() } else { from };
    Ok(folder.map(|folder| MailSettings { from, way: Way::Folder(folder) }))
}

/// Who may make an account.
pub(super) fn registration(layers: &Layers, has_mail: bool) -> anyhow::Result<Registration> {
    let registration = layers.parsed("users.registration", |v| match v {
        "closed" => Ok(Registration::Closed),
        "invited" => Ok(Registration::Invited),
        "open" => Ok(Registration::Open),
        _ => Err("is none of closed, invited, open".to_owned()),
    })?;
    if registration == Registration::Open && !has_mail {
        bail!(
            "'users.registration' is open ({}), and no mail goes out: set 'mail.smtp_url' and 'mail.from'",
            layers.place("users.registration")
        );
    }
    Ok(registration)
}

/// What whoever registers may do.
pub(super) fn registration_roles(layers: &Layers) -> anyhow::Result<Vec<String>> {
    layers.parsed("users.registration_roles", |v| {
        let roles: Vec<String> = v.split(',').map(str::trim).filter(|role| !role.is_empty()).map(str::to_owned).collect();
        match roles.iter().any(|role| role == "admin") {
            true => Err("would make everybody an administrator".to_owned()),
            false => Ok(roles),
        }
    })
}
