//! What takes longer the longer the record is: backups, restores, looking back, rebuilding a view.

use crate::Scale;
use crate::groups::fill;
use crate::http::{Connection, Credential, text};
use crate::machine::Place;
use crate::report::{Figure, Goal, Section, number};
use crate::server::{PASSWORD, Server, binary};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs behind each median: each takes seconds.
const RUNS: usize = 3;
/// RPO and RTO that are promised.
const RECOVERY_S: f64 = 15.0 * 60.0;

/// Fills a log with tasks, then does everything that reads all of it.
pub(crate) async fn measure(place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    let folder = place.fresh()?;
    let server = Server::start(folder.path(), &[])?;
    let admin = server.admin().await?;
    let tasks = scale.history;
    fill(server.address, &admin, tasks).await?;
    let url = format!("http://{}", server.address);
    keiko(folder.path(), &["login", "--server", &url, "admin", "--password-stdin"], PASSWORD)?;
    let [mut created, mut restored, mut drilled, mut back, mut rebuilt, mut verified] = [const { Vec::<f64>::new() }; 6];
    let mut bytes = 0;
    for run in 0..RUNS {
        let file = format!("{run}.backup");
        created.push(timed(|| keiko(folder.path(), &["backup", "create", &file], ""))?);
        bytes = std::fs::metadata(folder.path().join(&file))?.len();
        let target = format!("restored-{run}");
        let keys = ["--keys", "data/keys"];
        restored
            .push(timed(|| keiko(folder.path(), &["backup", "restore", &file, "--data-dir", &target, keys[0], keys[1]], ""))?);
        let drill = keiko(folder.path(), &["drill", "restore", "--from", &file, keys[0], keys[1], "--output", "json"], "")?;
        drilled.push(drill.pointer("/attributes/rto_s").and_then(Value::as_f64).context("a drill says its RTO")?);
        verified.push(timed(|| keiko(folder.path(), &["audit", "verify", "--from", &target, "--forget"], ""))?);
        back.push(look_back(server.address, &admin, run).await?);
        rebuilt.push(rebuild(server.address, &admin).await?);
    }
    server.stop()?;
    let events = number(tasks as f64);
    let mut section = Section::new("A long record");
    let in_s = |name: &str, all: &[f64]| Figure::new(name.to_owned(), "s", all);
    section.add(
        in_s("backup of a running server, read again and checked", &created)
            .limit(format!("{} MiB", number(bytes as f64 / 1_048_576.0))),
    );
    section.add(in_s("restore of it, checked before and after", &restored));
    section.add(in_s("drill: from the backup to a server that is ready", &drilled).goal(Goal::Below(RECOVERY_S)));
    section.add(in_s("audit verify of what was restored, log and journal", &verified));
    section.add(in_s("a list of the past, first page, until it answers", &back));
    section.add(in_s("rebuild of a view beside the one in use", &rebuilt));
    section.note(format!(
        "{events} events, each of a stream of its own with an entity to fold; the command line's processes are in the times."
    ));
    Ok(section)
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Runs a command of the binary in a folder, and reads what it prints if that is JSON.
fn keiko(folder: &Path, args: &[&str], input: &str) -> anyhow::Result<Value> {
    let mut command = Command::new(binary()?);
    command.args(args).current_dir(folder).env("HOME", folder).env("XDG_CONFIG_HOME", folder.join(".config"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a command takes input")?.write_all(input.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("keiko {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr));
    }
    Ok(serde_json::from_slice(&done.stdout).unwrap_or_default())
}

/// Each run asks for another moment, so that nothing is at hand.
async fn look_back(address: std::net::SocketAddr, admin: &Credential, run: usize) -> anyhow::Result<f64> {
    let mut connection = Connection::open(address).await?;
    let tenants = connection.get(admin, "/api/v1/tenants?limit=1").await?.whole(200)?;
    let head = tenants.pointer("/meta/position").and_then(Value::as_u64).context("a list says its position")?;
    let path = format!("/api/v1/tasks?limit=50&at={}", head - run as u64 - 1);
    let begun = Instant::now();
    loop {
        let answer = connection.get(admin, &path).await?;
        match answer.status {
            200 => return Ok(begun.elapsed().as_secs_f64()),
            503 => tokio::time::sleep(Duration::from_millis(50)).await,
            other => bail!("{path} answers {other}"),
        }
    }
}

async fn rebuild(address: std::net::SocketAddr, admin: &Credential) -> anyhow::Result<f64> {
    let mut connection = Connection::open(address).await?;
    let begun = Instant::now();
    let asked = connection.post(admin, "/api/v1/views/agent_stats/actions/rebuild", &json!({})).await?.data(202)?;
    let path = format!("/api/v1/rebuilds/{}", text(&asked, "/id")?);
    while text(&connection.get(admin, &path).await?.data(200)?, "/attributes/status")? != "completed" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(begun.elapsed().as_secs_f64())
}
