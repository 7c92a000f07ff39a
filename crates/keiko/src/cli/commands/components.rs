//! `keiko components`: things whose health is followed, and what they need.

use super::{Paging, Past, Target, show_list, show_one, show_past};
use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Map, Value, json};

/// Shown below the help of `keiko components`.
pub const EXAMPLES: &str = "\
Examples:
  keiko components add orders-db --postgres db.example:5432
  keiko components add shop-api --http https://shop.example/health --every 5 --needs orders-db
  keiko components add search --mcp-server search --needs shop-api --likes cache
  keiko components list --status down
  keiko components impact orders-db               who is hit when it is down";

const COLUMNS: [Column; 6] = [
    Column::id("NAME", "/attributes/name"),
    Column::text("KIND", "/attributes/subject/type"),
    Column::text("STATUS", "/attributes/status"),
    Column::time("SINCE", "/attributes/since"),
    Column::text("CAUSE", "/attributes/cause/component"),
    Column::brief("REASON", "/attributes/cause/reason"),
];

/// What `keiko components` can do.
#[derive(Subcommand)]
pub enum ComponentsCommand {
    /// List components and how they are
    List {
        /// Only those that are so: up, degraded, down, unknown
        #[arg(long)]
        status: Option<String>,
        /// How many
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one component, and what makes it so
    Get(Past),
    /// Make a component known
    Add(Component),
    /// Replace what is said of a component
    Set(Component),
    /// Show who is hit when a component is down
    Impact(Target),
    /// Remove a component
    Delete(Target),
}

/// What is said of a component.
#[derive(Args)]
#[command(group = ArgGroup::new("subject").required(true))]
pub struct Component {
    /// Unique name
    name: String,
    /// It is an agent
    #[arg(long, value_name = "ID", group = "subject")]
    agent: Option<String>,
    /// It is an MCP server
    #[arg(long, value_name = "NAME", group = "subject")]
    mcp_server: Option<String>,
    /// It answers a GET with 200 to 299
    #[arg(long, value_name = "URL", group = "subject")]
    http: Option<String>,
    /// It takes connections
    #[arg(long, value_name = "HOST:PORT", group = "subject")]
    tcp: Option<String>,
    /// It is a Redis server
    #[arg(long, value_name = "HOST:PORT", group = "subject")]
    redis: Option<String>,
    /// It is a PostgreSQL server
    #[arg(long, value_name = "HOST:PORT", group = "subject")]
    postgres: Option<String>,
    /// It is as healthy as what it needs
    #[arg(long, group = "subject")]
    of_others: bool,
    /// A component that nothing goes without; may be repeated
    #[arg(long, value_name = "COMPONENT")]
    needs: Vec<String>,
    /// A component without which it works less well; may be repeated
    #[arg(long, value_name = "COMPONENT")]
    likes: Vec<String>,
    /// How often it is looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    every: u64,
    /// How long an answer may take
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2_000)]
    timeout_ms: u64,
    /// Failures in a row before it counts as down
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    failures: u32,
    /// Answers in a row before it counts as up again
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    successes: u32,
    /// For people
    #[arg(long, default_value = "")]
    description: String,
}

/// Runs `keiko components`.
pub async fn run(command: ComponentsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ComponentsCommand::List { status, paging } => {
            show_list(client, Call::get("components").query("filter[status]", status), &paging, &COLUMNS, output).await
        }
        ComponentsCommand::Get(component) => show_past(client, "components", &component, output).await,
        ComponentsCommand::Add(component) => show_one(client, Call::append("components", described(component)), output).await,
        ComponentsCommand::Set(component) => {
            let at = path(&["components", &component.name]);
            show_one(client, Call::put(at, described(component)), output).await
        }
        ComponentsCommand::Impact(component) => {
            show_one(client, Call::get(path(&["components", &component.id, "impact"])), output).await
        }
        ComponentsCommand::Delete(component) => {
            client.send(Call::delete(path(&["components", &component.id]))).await?;
            output.done(&format!("Removed the component {}.", component.id))
        }
    }
}

fn described(component: Component) -> Value {
    let Component { every, timeout_ms, failures, successes, .. } = component;
    let probes = [
        ("http", "url", component.http),
        ("tcp", "address", component.tcp),
        ("redis", "address", component.redis),
        ("postgres", "address", component.postgres),
    ];
    let probe = probes.into_iter().find_map(|(kind, field, value)| {
        let probe = Map::from_iter([("type".to_owned(), json!(kind)), (field.to_owned(), json!(value?))]);
        let every_ms = every.saturating_mul(1_000);
        Some(json!({ "type": "probe", "probe": probe, "every_ms": every_ms, "timeout_ms": timeout_ms,
                     "failures": failures, "successes": successes }))
    });
    let subject = match (component.agent, component.mcp_server, probe) {
        (Some(agent), ..) => json!({ "type": "agent", "agent": agent }),
        (_, Some(server), _) => json!({ "type": "mcp_server", "mcp_server": server }),
        (.., Some(probe)) => probe,
        _ => json!({ "type": "group" }),
    };
    let need = |is_required: bool| move |name: String| json!({ "component": name, "is_required": is_required });
    let needs = component.needs.into_iter().map(need(true)).chain(component.likes.into_iter().map(need(false)));
    json!({
        "name": component.name,
        "description": component.description,
        "subject": subject,
        "needs": needs.collect::<Vec<_>>(),
    })
}
