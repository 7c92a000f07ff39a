//! `keiko queues`: how work is handed out.
//!
//! Owns the change of single settings over an interface that replaces them all. Never reorders tasks.

use super::{collect, show_one};
use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::input;
use crate::cli::table::Column;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

/// Shown below the help of `keiko queues`.
pub const EXAMPLES: &str = "\
Examples:
  keiko queues list
  keiko queues set default --pause                nothing of it is claimed until --resume
  keiko queues set default --max-concurrency 10 --rate-per-s 5
  keiko queues set default --weight load=0.5 --weight success=0.3
  keiko queues set default --rate-per-s none      no limit";

const COLUMNS: [Column; 5] = [
    Column::id("NAME", "/attributes/name"),
    Column::text("PAUSED", "/attributes/paused"),
    Column::number("MAX CONCURRENCY", "/attributes/max_concurrency"),
    Column::number("RATE PER S", "/attributes/rate_per_s"),
    Column::text("WEIGHTS", "/attributes/weights"),
];

/// The settings that a write replaces.
const SETTINGS: [&str; 4] = ["paused", "weights", "max_concurrency", "rate_per_s"];

/// What `keiko queues` can do.
#[derive(Subcommand)]
pub enum QueuesCommand {
    /// List queues with their settings
    List,
    /// Change settings of a queue; what is not named stays as it is
    Set(Set),
}

/// Arguments of `keiko queues set`.
#[derive(Args)]
pub struct Set {
    /// The queue
    #[arg(value_parser = input::handle)]
    name: String,
    /// Hand out nothing of it
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Hand out its tasks again
    #[arg(long)]
    resume: bool,
    /// Tasks of it that may be claimed at one time, or none for no limit
    #[arg(long, value_name = "N|none", value_parser = whole_limit)]
    max_concurrency: Option<Value>,
    /// Tasks of it that may be claimed in a second, or none for no limit
    #[arg(long, value_name = "N|none", value_parser = limit)]
    rate_per_s: Option<Value>,
    /// How much a score counts when an agent is chosen; may be repeated
    #[arg(long = "weight", value_name = "NAME=NUMBER", value_parser = input::weight)]
    weights: Vec<(String, f64)>,
}

/// Runs `keiko queues`.
pub async fn run(command: QueuesCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        QueuesCommand::List => {
            let queues = collect(client, Call::get("queues")).await?;
            output.list(&queues, &COLUMNS)
        }
        QueuesCommand::Set(change) => set(change, client, output).await,
    }
}

/// The write replaces every setting, so those that are not named go with it as they are.
async fn set(change: Set, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let queues = collect(client, Call::get("queues")).await?;
    let queue = queues.iter().find(|queue| names(queue, &change.name));
    let settings = queue.map(present).unwrap_or_default();
    let call = Call::put(path(&["queues", &change.name]), change.apply(settings)?);
    show_one(client, call, output).await
}

fn names(queue: &Value, name: &str) -> bool {
    queue["attributes"]["name"] == name || queue["id"] == name
}

/// The settings of a queue as they are.
fn present(queue: &Value) -> Map<String, Value> {
    let set = |name: &&str| Some((name.to_string(), queue["attributes"].get(*name)?.clone()));
    SETTINGS.iter().filter_map(set).filter(|(_, value)| !value.is_null()).collect()
}

impl Set {
    /// The settings with this change.
    fn apply(self, mut settings: Map<String, Value>) -> anyhow::Result<Value> {
        let mut changes: Vec<(&str, Value)> = Vec::new();
        if self.pause || self.resume {
            changes.push(("paused", json!(self.pause)));
        }
        changes.extend(self.max_concurrency.map(|limit| ("max_concurrency", limit)));
        changes.extend(self.rate_per_s.map(|limit| ("rate_per_s", limit)));
        if !self.weights.is_empty() {
            let mut weights = settings.get("weights").and_then(Value::as_object).cloned().unwrap_or_default();
            weights.extend(self.weights.into_iter().map(|(name, weight)| (name, json!(weight))));
            changes.push(("weights", Value::Object(weights)));
        }
        if changes.is_empty() {
            return Err(hinted("Nothing was named to change.", "see: keiko queues set --help"));
        }
        settings.extend(changes.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Ok(Value::Object(settings))
    }
}

/// A whole number from 1, or `none`.
fn whole_limit(text: &str) -> Result<Value, String> {
    match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(json!(number)),
        _ if text == "none" => Ok(Value::Null),
        _ => Err("a limit is a whole number from 1, or none".to_owned()),
    }
}

/// A number above 0, or `none`.
fn limit(text: &str) -> Result<Value, String> {
    match text.parse::<f64>() {
        _ if text == "none" => Ok(Value::Null),
        // Whole numbers stay whole.
        Ok(_) if whole_limit(text).is_ok() => whole_limit(text),
        Ok(number) if number.is_finite() && number > 0.0 => Ok(json!(number)),
        _ => Err("a limit is a number above 0, or none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> Set {
        let name = "default".to_owned();
        Set { name, pause: false, resume: false, max_concurrency: None, rate_per_s: None, weights: Vec::new() }
    }

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let queue = json!({"id": "queue_1", "attributes": {"name": "default", "paused": true, "rate_per_s": null,
            "max_concurrency": 4, "weights": {"load": 1.0, "cost": 0.5}, "created_at": "2026-01-01T00:00:00.000Z"}});
        let set = Set { resume: true, weights: vec![("load".to_owned(), 0.25)], ..change() };
        let body = set.apply(present(&queue)).unwrap();
        let weights = json!({"load": 0.25, "cost": 0.5});
        assert_eq!(body, json!({"paused": false, "max_concurrency": 4, "weights": weights}));
    }

    #[test]
    fn a_limit_is_set_and_lifted() {
        assert_eq!(whole_limit("3"), Ok(json!(3)));
        assert_eq!(limit("3"), Ok(json!(3)));
        assert_eq!(limit("0.5"), Ok(json!(0.5)));
        assert_eq!(limit("none"), Ok(Value::Null));
        for bad in ["0", "-1", "inf", "NaN", "x"] {
            assert!(limit(bad).is_err() && whole_limit(bad).is_err(), "{bad}");
        }
        let lifted = Set { max_concurrency: Some(Value::Null), ..change() };
        assert_eq!(lifted.apply(Map::new()).unwrap(), json!({"max_concurrency": null}));
        assert!(change().apply(Map::new()).is_err());
    }
}
