//! `make bench`: measures the server from outside and the store from inside, and prints a Markdown report in which each
//! figure stands beside its goal and the physical limit.
//!
//! `keiko-bench [--quick] [--only NAME]... [--dir DIR] [--list]`. The server under test is `KEIKO_BIN`, else
//! `target/release/keiko`. The report goes to standard output, progress to standard error. A missed goal is reported as
//! such and is no failure; the exit status is 1 only when something could not be measured.

mod appends;
mod discovery;
mod fanout;
mod fleet;
mod gateway;
mod groups;
mod grpc;
mod history;
mod http;
mod identity;
mod machine;
mod postgres;
mod report;
mod sealing;
mod server;
mod sse;
mod startup;
mod stats;
mod tools;
mod work;

use anyhow::{Context, bail};
use machine::Place;
use report::Section;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: keiko-bench [--quick] [--only NAME]... [--dir DIR] [--list]

  --quick      small sizes and few runs: a smoke test, no figures to quote
  --only NAME  only this group of figures; may be repeated
  --dir DIR    where data directories are made (default: target); decides which disk is measured
  --list       print the names of the groups

KEIKO_BIN names the server under test (default: target/release/keiko).";

/// The groups of figures, in the order of the report.
const GROUPS: &[&str] = &[
    "startup",
    "latency",
    "throughput",
    "grpc",
    "tools",
    "gateway",
    "discovery",
    "identity",
    "sse",
    "fanout",
    "groups",
    "history",
    "appends",
    "sealing",
    "postgres",
];

/// How much is measured.
pub(crate) struct Scale {
    /// Runs behind each median.
    pub runs: usize,
    /// Runs behind the median of the throughput.
    pub throughput_runs: usize,
    /// How long a server is left alone before its memory is read.
    pub idle: Duration,
    /// Events of the filled directory.
    pub seeded_events: u64,
    /// Submit-claim-complete rounds of a run.
    pub rounds: usize,
    /// Tasks of a long record.
    pub history: usize,
    /// Tasks of a throughput run.
    pub tasks: usize,
    /// Agents among which discovery looks.
    pub registered: usize,
    /// Discovery requests of a run.
    pub requests: usize,
    /// How long calls are made through the door to tools.
    pub door: Duration,
    /// Sessions that are opened.
    pub sessions: usize,
    /// Events of an SSE run.
    pub followed: usize,
    /// Followers of a fan-out run.
    pub crowd: fanout::Crowd,
    /// Producers, and appends of a run.
    pub appends: &'static [(usize, usize)],
}

impl Scale {
    const FULL: Scale = Scale {
        runs: 5,
        throughput_runs: 3,
        idle: Duration::from_secs(3),
        seeded_events: 1_000_000,
        rounds: 300,
        tasks: 10_000,
        history: 100_000,
        registered: 10_000,
        requests: 2_000,
        door: Duration::from_secs(5),
        sessions: 100_000,
        followed: 500,
        crowd: fanout::Crowd { followers: 1_000, rate: 1_000, seconds: 10 },
        appends: &[(64, 20_000), (1_024, 60_000)],
    };
    const QUICK: Scale = Scale {
        runs: 2,
        throughput_runs: 1,
        idle: Duration::from_secs(1),
        seeded_events: 5_000,
        rounds: 50,
        history: 500,
        tasks: 1_000,
        registered: 500,
        requests: 200,
        door: Duration::from_secs(1),
        sessions: 500,
        followed: 50,
        crowd: fanout::Crowd { followers: 100, rate: 200, seconds: 2 },
        appends: &[(64, 2_000), (1_024, 8_000)],
    };
}

struct Arguments {
    is_quick: bool,
    only: Vec<String>,
    directory: PathBuf,
}

impl Arguments {
    /// `None` when the question was answered.
    fn read(mut given: impl Iterator<Item = String>) -> anyhow::Result<Option<Arguments>> {
        let mut read = Arguments { is_quick: false, only: vec![], directory: server::repository().join("target") };
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--quick" => read.is_quick = true,
                "--only" => read.only.push(given.next().context("--only needs a name")?),
                "--dir" => read.directory = given.next().context("--dir needs a directory")?.into(),
                "--list" => {
                    println!("{}", GROUPS.join("\n"));
                    return Ok(None);
                }
                "--help" | "-h" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other => bail!("unknown argument '{other}'\n\n{USAGE}"),
            }
        }
        if let Some(unknown) = read.only.iter().find(|name| !GROUPS.contains(&name.as_str())) {
            bail!("there is no group '{unknown}'; the groups are {}", GROUPS.join(", "));
        }
        Ok(Some(read))
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

// One thread: the client shares the cores with the server, so it should be cheap rather than wide.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let outcome = match Arguments::read(std::env::args().skip(1)) {
        Ok(Some(arguments)) => run(&arguments).await,
        Ok(None) => Ok(true),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints. Answers whether everything could be measured.
async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let scale = if arguments.is_quick { &Scale::QUICK } else { &Scale::FULL };
    let place = Place::new(&arguments.directory)?;
    print!("{}", head(arguments, scale, &place)?);
    let mut is_complete = true;
    for group in GROUPS.iter().filter(|group| arguments.wants(group)) {
        eprintln!("measuring: {group}");
        match measure(group, &place, scale).await {
            Ok(section) => print!("{section}"),
            Err(error) => {
                is_complete = false;
                println!("\n## {group}\n\n**Not measured:** {error:#}");
            }
        }
    }
    Ok(is_complete)
}

async fn measure(group: &str, place: &Place, scale: &Scale) -> anyhow::Result<Section> {
    match group {
        "startup" => startup::measure(place, scale).await,
        "latency" => work::latency(place, scale).await,
        "throughput" => work::throughput(place, scale).await,
        "grpc" => grpc::measure(place, scale).await,
        "tools" => tools::measure(place, scale).await,
        "gateway" => gateway::measure(place, scale).await,
        "discovery" => discovery::measure(place, scale).await,
        "identity" => identity::measure(place, scale).await,
        "sse" => sse::measure(place, scale).await,
        "fanout" => fanout::measure(place, scale).await,
        "groups" => groups::measure(place, scale).await,
        "history" => history::measure(place, scale).await,
        "appends" => appends::measure(place, scale).await,
        "sealing" => sealing::measure(place, scale).await,
        "postgres" => postgres::measure(scale).await,
        other => bail!("there is no group '{other}'"),
    }
}

fn head(arguments: &Arguments, scale: &Scale, place: &Place) -> anyhow::Result<String> {
    let mut text = String::from("# Benchmarks\n\n");
    if arguments.is_quick {
        text += "**Smoke test (`--quick`): small sizes and few runs. Not to be quoted.**\n\n";
    }
    if cfg!(debug_assertions) {
        text +=
            "**The bench itself is a debug build: its client, and the store measured in it, are slow. Not to be quoted.**\n\n";
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    text += &format!("Command: `keiko-bench {}`; server: `{}`.\n", arguments.join(" "), server::binary()?.display());
    text += &format!(
        "Each figure is the median of {} runs with (minimum–maximum), unless it says otherwise; it meets its goal when the \
         median does. Client and server share the cores; the client runs on one thread.\n\n",
        scale.runs
    );
    text += &machine::describe(place)?;
    Ok(text)
}
