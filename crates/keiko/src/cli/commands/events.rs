//! `keiko events`: read the log, or follow it as it grows.
//!
//! Owns where a follower goes on after a lost connection: behind the last event that it showed. Never writes.

use super::replay;
use super::sse::{Message, Parser};
use crate::cli::Output;
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::error::is_passing;
use crate::cli::table::{self, Column, plain};
use crate::cli::{input, print};
use clap::Subcommand;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Shown below the help of `keiko events`.
pub const EXAMPLES: &str = "\
Examples:
  keiko events list --type tasks.task.completed
  keiko events list --after 4711 --limit 100
  keiko events replay task_01h...                 one task, step by step
  keiko events list --filter 'data.priority > 5'
  keiko events tail                               what happens from now on
  keiko events tail --after 0 --output json       everything, one JSON event on each line";

/// The columns of a list of events.
pub const COLUMNS: [Column; 6] = [
    Column::number("POSITION", "/position"),
    Column::time("TIME", "/timestamp"),
    Column::id("TYPE", "/type"),
    Column::id("STREAM", "/stream"),
    Column::text("SOURCE", "/source"),
    Column::brief("DATA", "/data"),
];

/// Pauses before a lost connection is tried again.
/// Events that are shown when nothing is said.
const LIMIT: u32 = 50;
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A stream that is silent for so long is taken for dead; the server sends comments more often.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What `keiko events` can do.
#[derive(Subcommand)]
pub enum EventsCommand {
    /// List events, oldest first
    List {
        /// Only those behind this log position
        #[arg(long, value_name = "POSITION")]
        after: Option<u64>,
        /// Only those of this type, for example tasks.task.completed
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Only those of this entity, by its id
        #[arg(long, value_name = "ID", value_parser = input::handle)]
        stream: Option<String>,
        /// Only those of which this expression in CEL is true, for example data.priority > 5
        #[arg(long, value_name = "EXPR")]
        filter: Option<String>,
        /// Events to show [default: 50]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: Option<u32>,
    },
    /// Tell one entity's story: each event, and what it changed
    Replay {
        /// Its id
        #[arg(value_name = "ID", value_parser = input::handle)]
        id: String,
    },
    /// Follow the log until interrupted, through lost connections
    Tail {
        /// Start behind this log position; 0 is the beginning [default: the end]
        #[arg(long, value_name = "POSITION")]
        after: Option<u64>,
        /// Only those of which this expression in CEL is true, for example data.priority > 5
        #[arg(long, value_name = "EXPR")]
        filter: Option<String>,
    },
}

/// Runs `keiko events`.
pub async fn run(command: EventsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        EventsCommand::List { after, kind, stream, filter, limit } => {
            let call = Call::get("events").query("type", kind).query("filter", filter).query("stream", stream);
            output.list(&list(call, after.unwrap_or(0), limit, client).await?, &COLUMNS)
        }
        EventsCommand::Replay { id } => replay::run(&id, client, output).await,
        EventsCommand::Tail { after, filter } => tail(after, filter.as_deref(), client, output).await,
    }
}

/// Events after a position, as many as are wanted. One answer looks at a part of the log only when there is a filter.
async fn list(call: Call, mut after: u64, limit: Option<u32>, client: &mut Client) -> anyhow::Result<Vec<Value>> {
    let wanted = limit.unwrap_or(LIMIT) as usize;
    let mut found: Vec<Value> = vec![];
    loop {
        let left = wanted - found.len();
        let answer = client.send(call.clone().query("after", Some(after)).query("limit", Some(left))).await?;
        found.extend_from_slice(answer.items());
        match answer.position() {
            Some(position) if position > after && found.len() < wanted => after = position,
            _ => return Ok(found),
        }
    }
}

async fn tail(after: Option<u64>, filter: Option<&str>, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let mut last = match after {
        Some(position) => Some(position),
        None => end_of_log(client).await?,
    };
    let mut pause = PAUSE_FIRST;
    let mut was_connected = false;
    loop {
        match follow(&mut last, filter, client, output).await {
            Ok(()) => {
                was_connected = true;
                pause = PAUSE_FIRST;
                print::note("The connection was lost; going on.");
            }
            Err(error) if was_connected && is_passing(&error) => print::note(&format!("{error:#}")),
            Err(error) => return Err(error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The position of the last event, so that following starts behind it whatever the stream's default is.
async fn end_of_log(client: &mut Client) -> anyhow::Result<Option<u64>> {
    Ok(client.send(Call::get("events").query("limit", Some(1))).await?.position())
}

/// Shows events until the connection ends. `last` is the last one shown.
async fn follow(last: &mut Option<u64>, filter: Option<&str>, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let call = Call::get("events/stream").stream_after(*last).query("filter", filter);
    let mut response = client.open(&call).await?;
    let mut parser = Parser::default();
    // A silent, broken or finished stream is one and the same here: connect again.
    while let Ok(Ok(Some(bytes))) = timeout(SILENCE_MAX, response.chunk()).await {
        for message in parser.feed(&bytes)? {
            show(message, last, output)?;
        }
    }
    Ok(())
}

fn show(message: Message, last: &mut Option<u64>, output: Output) -> anyhow::Result<()> {
    let event: Value = serde_json::from_str(&message.data)?;
    let id = message.id.and_then(|id| id.parse().ok());
    let position = id.or_else(|| event["position"].as_u64());
    if position.is_some() && position <= *last {
        // Shown before the connection was lost.
        return Ok(());
    }
    match output {
        Output::Json => print::line(&table::compact(&event))?,
        Output::Table => print::line(&one_line(&event))?,
    }
    *last = position.or(*last);
    Ok(())
}

fn one_line(event: &Value) -> String {
    let time = table::short_time(&plain(event.get("timestamp")));
    let [position, kind, stream, source] = ["position", "type", "stream", "source"].map(|name| plain(event.get(name)));
    format!("{position:>8}  {time}  {kind:<32}  {stream}  {source}  {}", table::brief(&plain(event.get("data"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_a_line_that_no_content_breaks() {
        let event = json!({"position": 7, "timestamp": "2026-01-31T12:00:00.000Z", "type": "tasks.task.completed",
                           "stream": "task_1", "source": "agent/a\n\u{1b}[2J", "data": {"x": 1}});
        let shown = one_line(&event);
        assert!(shown.starts_with("       7  2026-01-31 12:00:00  tasks.task.completed  "), "{shown}");
        assert!(!shown.contains('\n') && !shown.contains('\u{1b}'), "{shown:?}");
    }

    #[test]
    fn what_was_shown_is_not_shown_again() {
        let mut last = Some(7);
        let message = |id: &str| Message { id: Some(id.to_owned()), data: "{}".to_owned() };
        show(message("7"), &mut last, Output::Json).unwrap();
        assert_eq!(last, Some(7));
        show(message("8"), &mut last, Output::Json).unwrap();
        assert_eq!(last, Some(8));
    }
}
