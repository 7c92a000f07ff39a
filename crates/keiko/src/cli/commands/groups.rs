//! `keiko groups`: consumer groups, and reading events as one of a group's consumers.
//!
//! Owns the order of showing and acknowledging: an event is acknowledged after it was shown, never before. Never decides what
//! is delivered.

use super::{Paging, Target, show_list, show_one};
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::error::is_passing;
use crate::cli::table::{self, Column};
use crate::cli::{Output, input, print};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// Shown below the help of `keiko groups`.
pub const EXAMPLES: &str = "\
Examples:
  keiko groups create billing --type 'tasks.task.*' --start beginning
  keiko groups create audit --shared --filter 'data.priority > 5'
  keiko groups consume billing | while read -r event; do handle \"$event\"; done
  keiko groups list                               how far each group is
  keiko groups parked billing                     what failed too often, and why
  keiko groups replay billing --all
  keiko groups seek billing --time 2026-01-01T00:00:00Z";

const COLUMNS: [Column; 8] = [
    Column::id("NAME", "/attributes/name"),
    Column::text("MODE", "/attributes/mode"),
    Column::number("POSITION", "/attributes/state/position"),
    Column::number("LAG", "/attributes/state/lag_events"),
    Column::number("LAG SECONDS", "/attributes/state/lag_seconds"),
    Column::number("OPEN", "/attributes/state/open"),
    Column::number("PARKED", "/attributes/state/parked"),
    Column::text("STALLED", "/attributes/stalled"),
];

const PARKED: [Column; 6] = [
    Column::number("POSITION", "/position"),
    Column::id("TYPE", "/type"),
    Column::id("STREAM", "/stream"),
    Column::number("ATTEMPTS", "/attempts"),
    Column::text("CONSUMER", "/consumer"),
    Column::brief("REASON", "/reason"),
];

const DELIVERIES: [Column; 5] = [
    Column::id("TOKEN", "/token"),
    Column::number("ATTEMPT", "/attempt"),
    Column::id("TYPE", "/event/type"),
    Column::id("STREAM", "/event/stream"),
    Column::brief("DATA", "/event/data"),
];

const VERDICTS: [Column; 2] = [Column::id("TOKEN", "/token"), Column::text("RESULT", "/result")];

/// How long one request waits for events.
const WAIT_MS: u64 = 20_000;
/// The pause before a request that failed is sent again.
const PAUSE: Duration = Duration::from_secs(1);

/// What `keiko groups` can do.
#[derive(Subcommand)]
pub enum GroupsCommand {
    /// List groups and how far they are
    List {
        /// How much of it
        #[command(flatten)]
        paging: Paging,
    },
    /// Make a group
    Create(Create),
    /// Show a group
    Get(Target),
    /// Remove a group with its progress
    Delete(Target),
    /// Print events as JSON lines, and acknowledge each after it was printed, until interrupted
    Consume(Consume),
    /// Take events without acknowledging them
    Fetch {
        /// Its id or name
        #[arg(value_parser = input::handle)]
        group: String,
        /// Events to take [default: 100]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: Option<u32>,
        /// Who takes them
        #[arg(long, default_value = "cli", value_name = "NAME")]
        consumer: String,
    },
    /// Acknowledge deliveries
    Ack(Tokens),
    /// Give deliveries back
    Nak {
        /// Which
        #[command(flatten)]
        tokens: Tokens,
        /// When they may come again
        #[arg(long, default_value_t = 0, value_name = "MS")]
        delay_ms: u64,
    },
    /// Put deliveries aside
    Park {
        /// Which
        #[command(flatten)]
        tokens: Tokens,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// List events that were put aside
    Parked {
        /// Its id or name
        #[arg(value_parser = input::handle)]
        group: String,
        /// Only behind this position
        #[arg(long, value_name = "POSITION")]
        after: Option<u64>,
    },
    /// Deliver parked events again
    Replay {
        /// Its id or name
        #[arg(value_parser = input::handle)]
        group: String,
        /// Their positions
        #[arg(value_name = "POSITION", required_unless_present = "all", conflicts_with = "all")]
        positions: Vec<u64>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Go on at another place
    Seek {
        /// Its id or name
        #[arg(value_parser = input::handle)]
        group: String,
        /// Behind this position; 0 is the beginning
        #[arg(long, value_name = "POSITION", required_unless_present = "time", conflicts_with = "time")]
        position: Option<u64>,
        /// Behind everything that was written up to this instant
        #[arg(long, value_name = "TIME")]
        time: Option<String>,
    },
}

/// Arguments of `keiko groups create`.
#[derive(Args)]
pub struct Create {
    /// Its name
    #[arg(value_parser = input::handle)]
    name: String,
    /// Deliver every event as soon as somebody asks, without order
    #[arg(long)]
    shared: bool,
    /// Only events of this type, or of a prefix ending in .*
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only events of this entity, by its id
    #[arg(long, value_name = "ID")]
    stream: Option<String>,
    /// Only events of this category
    #[arg(long, value_enum)]
    category: Option<CategoryWord>,
    /// Only events of which this CEL expression is true
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// beginning, now, behind a position, or behind an instant [default: now]
    #[arg(long, value_name = "PLACE")]
    start: Option<String>,
    /// How long a delivery holds without an acknowledgement [default: 30000]
    #[arg(long, value_name = "MS")]
    ack_timeout_ms: Option<u64>,
    /// Deliveries of one event after which it is parked [default: 5]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Events that may be open at a time [default: 1000]
    #[arg(long, value_name = "N")]
    window: Option<u32>,
    /// How long nothing may be acknowledged before an alert
    #[arg(long, value_name = "MS")]
    stalled_after_ms: Option<u64>,
}

/// What events are about.
#[derive(Clone, Copy, ValueEnum)]
pub enum CategoryWord {
    /// A change inside Keiko
    Domain,
    /// A fact from or for another system
    Integration,
    /// A change of Keiko's own condition
    System,
}

/// Arguments of `keiko groups consume`.
#[derive(Args)]
pub struct Consume {
    /// Its id or name
    #[arg(value_parser = input::handle)]
    group: String,
    /// Who consumes
    #[arg(long, default_value = "cli", value_name = "NAME")]
    consumer: String,
    /// End after so many events
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// End when nothing is left for now
    #[arg(long)]
    once: bool,
}

/// Deliveries of a group.
#[derive(Args)]
pub struct Tokens {
    /// Its id or name
    #[arg(value_parser = input::handle)]
    group: String,
    /// Their tokens
    #[arg(value_name = "TOKEN", required = true)]
    tokens: Vec<String>,
}

/// Runs `keiko groups`.
pub async fn run(command: GroupsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        GroupsCommand::List { paging } => show_list(client, Call::get("consumer-groups"), &paging, &COLUMNS, output).await,
        GroupsCommand::Create(group) => show_one(client, Call::append("consumer-groups", group.body()), output).await,
        GroupsCommand::Get(target) => show_one(client, Call::get(path(&["consumer-groups", &target.id])), output).await,
        GroupsCommand::Delete(target) => {
            client.send(Call::delete(path(&["consumer-groups", &target.id]))).await?;
            print::note("Deleted.");
            Ok(())
        }
        GroupsCommand::Consume(consume) => consume.run(client).await,
        GroupsCommand::Fetch { group, limit, consumer } => {
            let body = Fields::default().with("consumer", Some(consumer)).with("limit", limit);
            let answer = client.send(Call::post(action(&group, "fetch"), body)).await?;
            output.list(answer.items(), &DELIVERIES)
        }
        GroupsCommand::Ack(tokens) => tokens.say("ack", Fields::default(), client, output).await,
        GroupsCommand::Nak { tokens, delay_ms } => {
            tokens.say("nak", Fields::default().with("delay_ms", Some(delay_ms)), client, output).await
        }
        GroupsCommand::Park { tokens, reason } => {
            tokens.say("park", Fields::default().with("reason", Some(reason)), client, output).await
        }
        GroupsCommand::Parked { group, after } => {
            let answer = client.send(Call::get(path(&["consumer-groups", &group, "parked"])).query("after", after)).await?;
            output.list(answer.items(), &PARKED)?;
            if let Some(position) = answer.position() {
                print::note(&format!("There are more: --after {position} goes on."));
            }
            Ok(())
        }
        GroupsCommand::Replay { group, positions, all } => {
            let body = if all { json!({ "all": true }) } else { json!({ "positions": positions }) };
            show_one(client, Call::append(action(&group, "replay"), body), output).await
        }
        GroupsCommand::Seek { group, position, time } => {
            let body = Fields::default().with("position", position).with("time", time);
            show_one(client, Call::append(action(&group, "seek"), body), output).await
        }
    }
}

fn action(group: &str, verb: &str) -> String {
    path(&["consumer-groups", group, "actions", verb])
}

impl Create {
    fn body(self) -> Value {
        let category = self.category.map(|word| match word {
            CategoryWord::Domain => "domain",
            CategoryWord::Integration => "integration",
            CategoryWord::System => "system",
        });
        let filter = Fields::default()
            .with("type", self.kind)
            .with("stream", self.stream)
            .with("category", category)
            .with("expression", self.filter);
        let body = Fields::default()
            .with("name", Some(self.name))
            .with("mode", self.shared.then_some("shared"))
            .with("filter", Some(Value::from(filter)))
            .with("start", self.start)
            .with("ack_timeout_ms", self.ack_timeout_ms)
            .with("max_attempts", self.max_attempts)
            .with("window", self.window)
            .with("stalled_after_ms", self.stalled_after_ms);
        body.into()
    }
}

impl Tokens {
    async fn say(self, verb: &str, body: Fields, client: &mut Client, output: Output) -> anyhow::Result<()> {
        let body = body.with_list("tokens", self.tokens);
        let answer = client.send(Call::post(action(&self.group, verb), body)).await?;
        output.list(answer.items(), &VERDICTS)
    }
}

impl Consume {
    async fn run(self, client: &mut Client) -> anyhow::Result<()> {
        const LIMIT: u64 = 100;
        let mut shown = 0;
        let mut seen = None;
        loop {
            let left = self.max.map_or(LIMIT, |max| max.saturating_sub(shown).min(LIMIT));
            if left == 0 {
                return Ok(());
            }
            let wait_ms = if self.once { 0 } else { WAIT_MS };
            let body = json!({ "consumer": self.consumer, "limit": left, "wait_ms": wait_ms });
            let (deliveries, at) = match client.send(Call::post(action(&self.group, "fetch"), body)).await {
                Ok(answer) => (answer.items().to_vec(), answer.position()),
                Err(error) if !self.once && is_passing(&error) => {
                    print::note(&format!("{error:#}"));
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if deliveries.is_empty() && self.once {
                // A filter may leave out more than one look takes in.
                if seen == Some(at) {
                    return Ok(());
                }
                seen = Some(at);
            }
            shown += deliveries.len() as u64;
            self.show(&deliveries, client).await?;
        }
    }

    /// Prints events, then acknowledges those that were printed. When the reader went away in between, the others are given back.
    async fn show(&self, deliveries: &[Value], client: &mut Client) -> anyhow::Result<()> {
        let mut printed = vec![];
        let mut outcome = Ok(());
        for delivery in deliveries {
            outcome = print::line(&table::compact(&delivery["event"]));
            if outcome.is_err() {
                break;
            }
            printed.push(delivery["token"].clone());
        }
        let left: Vec<Value> = deliveries.iter().skip(printed.len()).map(|delivery| delivery["token"].clone()).collect();
        for (verb, tokens) in [("ack", printed), ("nak", left)] {
            if tokens.is_empty() {
                continue;
            }
            match client.send(Call::post(action(&self.group, verb), json!({ "tokens": tokens }))).await {
                Err(error) if is_passing(&error) => print::note(&format!("{error:#}")),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        outcome
    }
}
