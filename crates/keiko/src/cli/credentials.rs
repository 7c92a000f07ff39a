//! Stored logins: one for each server, in a file that only its owner can read.
//!
//! Owns `$XDG_CONFIG_HOME/keiko/credentials.json` (else `~/.config/keiko/`). The file is replaced as a whole, so that a
//! reader never sees half of it, and only under a lock, so that two commands never spend one refresh token. Never talks
//! to a server.

use super::error::hinted;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A login on one server.
// No `Debug`: tokens must not end up in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Shown with each request; short-lived.
    pub access_token: String,
    /// Exchanged for the next pair; good once.
    pub refresh_token: String,
    /// Who logged in.
    pub username: String,
    /// The tenant's slug.
    pub tenant: String,
    /// The OAuth client that signed in, when it was done with a browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

/// All stored logins.
#[derive(Default, Serialize, Deserialize)]
pub struct Credentials {
    /// The server of the last login.
    pub current: Option<String>,
    /// Logins by the server's address.
    #[serde(default)]
    pub logins: BTreeMap<String, Login>,
}

/// Where logins are stored.
#[derive(Clone)]
pub struct Store {
    dir: PathBuf,
}

/// The store while nobody else writes to it.
pub struct Locked {
    store: Store,
    // Held for its lock, which ends when the file is closed.
    _lock: File,
}

impl Store {
    /// The store of the user that runs this command.
    pub fn of_user() -> anyhow::Result<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        let dir = config.ok_or_else(|| {
            hinted("There is no place for logins: neither HOME nor XDG_CONFIG_HOME is set.", "set one, or KEIKO_API_KEY")
        })?;
        Ok(Store { dir: dir.join("keiko") })
    }

    /// Where checkpoints of records are kept that were found whole.
    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints")
    }

    /// Reads what is stored; nothing stored is no error.
    pub fn load(&self) -> anyhow::Result<Credentials> {
        let path = self.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        // The parser's own message could repeat a part of a token.
        serde_json::from_slice(&text).map_err(|_| {
            let file = path.display();
            hinted(format!("The stored logins in {file} are damaged."), format!("rm {file} and log in again: keiko login"))
        })
    }

    /// Waits until nobody else writes.
    pub fn lock(&self) -> anyhow::Result<Locked> {
        self.make_dir().with_context(|| format!("cannot use {}", self.dir.display()))?;
        let path = self.dir.join("credentials.lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = open.and_then(|file| file.lock().map(|()| file));
        let lock = lock.with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Locked { store: self.clone(), _lock: lock })
    }

    fn path(&self) -> PathBuf {
        self.dir.join("credentials.json")
    }

    fn make_dir(&self) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::set_permissions(&self.dir, Permissions::from_mode(0o700))
    }
}

impl Locked {
    /// Reads what is stored.
    pub fn load(&self) -> anyhow::Result<Credentials> {
        self.store.load()
    }

    /// Replaces what is stored.
    pub fn save(&self, credentials: &Credentials) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(credentials)?;
        let path = self.store.path();
        let draft = self.store.dir.join("credentials.json.new");
        write_private(&draft, &text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Writes a new file that only its owner can read, down to the disk.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // What a killed command left behind; under the lock nobody else is writing it.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(token: &str) -> Login {
        let text = |t: &str| t.to_owned();
        Login {
            access_token: text(token),
            refresh_token: text("r"),
            username: text("admin"),
            tenant: text("default"),
            client: None,
        }
    }

    #[test]
    fn a_login_is_kept_where_only_its_owner_reads_it() {
        let home = tempfile::tempdir().unwrap();
        let store = Store { dir: home.path().join("config/keiko") };
        assert!(store.load().unwrap().logins.is_empty());

        for token in ["one", "two"] {
            let locked = store.lock().unwrap();
            let mut credentials = locked.load().unwrap();
            credentials.logins.insert("http://a".into(), login(token));
            locked.save(&credentials).unwrap();
        }

        assert!(store.load().unwrap().logins["http://a"] == login("two"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path()), 0o600);
        assert_eq!(mode(&store.dir), 0o700);
    }

    #[test]
    fn a_damaged_file_says_what_to_do_and_nothing_of_its_content() {
        let home = tempfile::tempdir().unwrap();
        let store = Store { dir: home.path().to_owned() };
        fs::write(store.path(), "\"secret").unwrap();
        let error = store.load().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("keiko login") && !error.contains("secret"), "{error}");
    }
}
