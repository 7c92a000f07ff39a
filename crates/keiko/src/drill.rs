//! `keiko drill restore`: restores the newest backup to a place of its own, starts a server on it, and measures what a
//! disaster now would cost: how much would be lost (RPO), and how long until there is a server again (RTO).

use crate::backup::{Order, newest, own_key, restore_to};
use crate::cli::hinted;
use crate::{Settings, backup};
use anyhow::{Context, bail};
use app::Timestamp;
use app::backup::Until;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the restored server may take to be ready.
const READY_MAX: Duration = Duration::from_secs(600);
/// How long between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a drill found.
pub struct Drilled {
    /// The backup.
    pub path: PathBuf,
    /// When it was begun.
    pub created_at: Timestamp,
    /// Size of the default tenant's log in it.
    pub position: u64,
    /// Events restored.
    pub events: u64,
    /// Journal entries restored.
    pub entries: u64,
    /// Checking and restoring it.
    pub restore: Duration,
    /// From the beginning until the restored server was ready.
    pub ready: Duration,
}

/// Restores the newest backup of a path and starts a server on it. Nothing of the drill is left, but for a database that
/// was given in KEIKO_DRILL_DATABASE_URL.
pub async fn restore(path: &Path, keys: &Path) -> anyhow::Result<Drilled> {
    let began = Instant::now();
    let path = newest(path)?;
    let key = own_key(keys)?;
    let contents = backup::check(&path, &key)?;
    let home = Home::new()?;
    let database = std::env::var("KEIKO_DRILL_DATABASE_URL").ok();
    let settings = settings(&home.0, database.as_deref())?;
    let erased = backup::erasures(&path, None, &key)?;
    let order = Order { path: &path, keys: Some(keys), until: Until::End, erased };
    let restored = restore_to(&settings, &order, &mut |_| {}).await?;
    let restore = began.elapsed();
    serve(&home.0, database.as_deref()).await?;
    let root = contents.tenants.first().copied();
    Ok(Drilled {
        position: root.map_or(0, |root| contents.size(root, app::Tree::Log)),
        path,
        created_at: contents.created_at,
        events: restored.events,
        entries: restored.entries,
        restore,
        ready: began.elapsed(),
    })
}

/// A folder that goes away again.
struct Home(PathBuf);

impl Home {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("keiko-drill-{}-{}", std::process::id(), crate::cli::nonce()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make '{}'", path.display()))?;
        Ok(Home(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // It holds a copy of everything, so its being left is worth a word.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "what the drill restored could not be removed");
        }
    }
}

/// Settings of the restored server: nothing of the present one's surroundings, and no process is started for anybody.
fn variables(home: &Path, database: Option<&str>) -> Vec<(String, String)> {
    let text = |path: PathBuf| path.display().to_string();
    let mut variables = vec![
        ("KEIKO_DATA_DIR".to_owned(), text(home.join("data"))),
        ("KEIKO_KEYS_DIR".to_owned(), text(home.join("keys"))),
        ("KEIKO_SERVER_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
        ("KEIKO_GATEWAY_ALLOW_SPAWN".to_owned(), "false".to_owned()),
    ];
    variables.extend(database.map(|url| ("KEIKO_DATABASE_URL".to_owned(), url.to_owned())));
    variables
}

fn settings(home: &Path, database: Option<&str>) -> anyhow::Result<Settings> {
    let layers = crate::settings::Layers::read(&Default::default(), &variables(home, database).into_iter().collect())?;
    Settings::from_layers(&layers)
}

/// Starts a server on what was restored, and ends it when it is ready.
async fn serve(home: &Path, database: Option<&str>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("this program does not know where it lies")?;
    let mut server = Command::new(program)
        .arg("serve")
        .env_clear()
        .envs(variables(home, database))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir(home)
        .kill_on_drop(true)
        .spawn()
        .context("the restored server could not be started")?;
    let ready = tokio::time::timeout(READY_MAX, until_ready(&mut server)).await;
    server.kill().await?;
    ready.map_err(|_| hinted("The restored server did not become ready.", "restore it by hand and look at its log"))?
}

async fn until_ready(server: &mut Child) -> anyhow::Result<()> {
    let stdout = server.stdout.take().context("the restored server says nothing")?;
    let mut lines = BufReader::new(stdout).lines();
    let url = loop {
        match lines.next_line().await? {
            Some(line) => {
                if let Some(url) = line.strip_prefix("listening on ") {
                    break url.to_owned();
                }
            }
            None => bail!("the restored server ended before it was ready; restore it by hand and look at its log"),
        }
    };
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    loop {
        if http.get(format!("{url}/ready")).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
