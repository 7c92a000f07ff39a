//! `keiko mcp`: MCP servers, their tools, virtual servers, and the way for clients that speak over standard streams only.
//!
//! Owns the commands' arguments and columns; [`connect`](super::mcp_connect) speaks MCP.

use super::mcp_connect::{self, Connect};
use super::mcp_credentials::{self, ConnectServer, Credentials, Disconnect, OauthArgs};
use super::{Paging, Past, Target, show_list, show_one, show_past};
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use crate::cli::{Output, input};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Shown below the help of `keiko mcp`.
pub const EXAMPLES: &str = "\
Examples:
  keiko mcp servers add git -- mcp-server-git
  keiko mcp servers add search --url https://tools.example/mcp --header 'Authorization=Bearer ...'
  keiko mcp servers add github --url https://api.githubcopilot.com/mcp --per-user
  keiko mcp servers connect github
  keiko mcp servers tune search --calls-max 8 --fallback search-standby
  keiko mcp tools list git log
  keiko mcp tools call git__git_log '{\"repo_path\": \"/srv/repo\"}'
  keiko mcp virtual create history --member git=git_log,git_show --bare
  keiko mcp connect --door history";

const SERVERS: [Column; 6] = [
    Column::id("ID", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("STATUS", "/attributes/status"),
    Column::text("TOOLS", "/attributes/tools"),
    Column::text("VERSION", "/attributes/protocol_version"),
    Column::text("REASON", "/attributes/reason"),
];

const TOOLS: [Column; 3] = [
    Column::id("NAME", "/attributes/name"),
    Column::text("STATUS", "/attributes/status"),
    Column::text("DESCRIPTION", "/attributes/description"),
];

/// How much longer than the server the command waits.
const SLACK: Duration = Duration::from_secs(10);

const VIRTUAL: [Column; 4] = [
    Column::id("ID", "/id"),
    Column::id("NAME", "/attributes/name"),
    Column::text("PATH", "/attributes/path"),
    Column::text("DESCRIPTION", "/attributes/description"),
];

/// What `keiko mcp` can do.
#[derive(Subcommand)]
pub enum McpCommand {
    /// Servers whose tools can be called
    Servers {
        /// What to do
        #[command(subcommand)]
        command: ServersCommand,
    },
    /// Tools of all servers
    Tools {
        /// What to do
        #[command(subcommand)]
        command: ToolsCommand,
    },
    /// Named selections of what servers offer
    Virtual {
        /// What to do
        #[command(subcommand)]
        command: VirtualCommand,
    },
    /// Be an MCP server over standard streams, for a client that knows no other way
    Connect(Connect),
}

/// What `keiko mcp servers` can do.
#[derive(Subcommand)]
pub enum ServersCommand {
    /// List servers
    List(Paging),
    /// Show one server
    Get(Past),
    /// Make a server known and start it
    Add(AddServer),
    /// Start a server again
    Restart(Target),
    /// Show how calls of a server are bounded, and how it does
    Resilience(Target),
    /// Bound the calls of a server otherwise, while it runs; what is not named stays
    Tune(Tune),
    /// Connect a server to an account there, in a browser
    Connect(ConnectServer),
    /// List what is shown to a server to be let in
    Credentials(Credentials),
    /// Forget a credential
    Disconnect(Disconnect),
    /// Remove a server with its tools
    Delete(Target),
}

/// Arguments of `keiko mcp servers add`.
#[derive(Args)]
pub struct AddServer {
    /// Unique name, the first part of its tools' names
    name: String,
    /// Where it is reached over HTTP
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    url: Option<String>,
    /// Where else the same server is, to share out its calls; may be repeated
    #[arg(long = "other-url", value_name = "URL", requires = "url", conflicts_with = "command")]
    other_urls: Vec<String>,
    /// A header that is sent with each request; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", conflicts_with = "command", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// How tokens for it are got
    #[command(flatten)]
    oauth: OauthArgs,
    /// A variable of the process's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", conflicts_with = "url", value_parser = pair)]
    env: Vec<(String, String)>,
    /// The program to start, and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Arguments of `keiko mcp servers tune`.
#[derive(Args)]
pub struct Tune {
    /// Id or name
    id: String,
    /// Calls that run at the same time
    #[arg(long, value_name = "NUMBER")]
    calls_max: Option<u32>,
    /// Calls that wait for a place
    #[arg(long, value_name = "NUMBER")]
    waiting_max: Option<u32>,
    /// How often a call is tried that may be repeated
    #[arg(long, value_name = "NUMBER")]
    attempts_max: Option<u32>,
    /// Repetitions allowed for each hundred calls
    #[arg(long, value_name = "NUMBER")]
    retry_percent: Option<u32>,
    /// Failures in a row that open a circuit
    #[arg(long, value_name = "NUMBER")]
    failures_max: Option<u32>,
    /// Part of the calls of ten seconds that opens a circuit when it fails
    #[arg(long, value_name = "NUMBER")]
    failure_percent: Option<u32>,
    /// How long a circuit is open at first
    #[arg(long, value_name = "MILLISECONDS")]
    open_ms: Option<u64>,
    /// Whether calls get less time where they are usually quick
    #[arg(long, value_name = "true|false")]
    timeout_is_adaptive: Option<bool>,
    /// The least time that they get then
    #[arg(long, value_name = "MILLISECONDS")]
    timeout_min_ms: Option<u64>,
    /// The server that answers when this one does not
    #[arg(long, value_name = "SERVER")]
    fallback: Option<String>,
    /// No server answers in its place
    #[arg(long, conflicts_with = "fallback")]
    no_fallback: bool,
}

/// What `keiko mcp tools` can do.
#[derive(Subcommand)]
pub enum ToolsCommand {
    /// List tools, or find them by words
    List {
        /// Words that name or description hold
        words: Vec<String>,
        /// How many
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one tool with its schemas
    Get(Past),
    /// Allow a tool as it is now
    Approve(Target),
    /// Call a tool
    Call {
        /// Its full name
        name: String,
        /// Its arguments as a JSON object
        #[arg(default_value = "{}")]
        arguments: String,
        /// How long it may take; no longer than the server allows (gateway.call_timeout)
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
}

/// What `keiko mcp virtual` can do.
#[derive(Subcommand)]
pub enum VirtualCommand {
    /// List virtual servers
    List(Paging),
    /// Show one virtual server
    Get(Past),
    /// Make a virtual server
    Create(Virtual),
    /// Replace what a virtual server is made of
    Set(Virtual),
    /// Remove a virtual server
    Delete(Target),
}

/// What a virtual server is made of.
#[derive(Args)]
pub struct Virtual {
    /// Unique name, the end of its address
    #[arg(value_parser = input::handle)]
    name: String,
    /// A server, with its tools or all of them; may be repeated
    #[arg(long = "member", value_name = "SERVER[=TOOL,...]", required = true)]
    members: Vec<String>,
    /// Names without their server's name in front
    #[arg(long)]
    bare: bool,
    /// Keiko's own tools too
    #[arg(long)]
    built_in: bool,
    /// For people
    #[arg(long, default_value = "")]
    description: String,
    /// Who may use it; may be repeated
    #[arg(long = "allow", value_name = "role:NAME|user:ID|agent:ID")]
    allowed: Vec<String>,
    /// Everybody may use it, also where it was for some before
    #[arg(long, conflicts_with = "allowed")]
    everybody: bool,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs `keiko mcp`.
pub async fn run(command: McpCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        McpCommand::Servers { command } => servers(command, client, output).await,
        McpCommand::Tools { command } => tools(command, client, output).await,
        McpCommand::Virtual { command } => virtuals(command, client, output).await,
        McpCommand::Connect(args) => mcp_connect::run(args, client).await,
    }
}

async fn servers(command: ServersCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ServersCommand::List(paging) => show_list(client, Call::get("mcp-servers"), &paging, &SERVERS, output).await,
        ServersCommand::Get(server) => show_past(client, "mcp-servers", &server, output).await,
        ServersCommand::Add(args) => show_one(client, Call::append("mcp-servers", described(args)?), output).await,
        ServersCommand::Restart(server) => {
            show_one(client, Call::action(&["mcp-servers", &server.id, "actions", "restart"]), output).await
        }
        ServersCommand::Resilience(server) => {
            show_one(client, Call::get(path(&["mcp-servers", &server.id, "resilience"])), output).await
        }
        ServersCommand::Tune(tune) => {
            let at = path(&["mcp-servers", &tune.id, "resilience"]);
            let known = client.send(Call::get(at.clone())).await?;
            let mut settings = known.attributes()["settings"].as_object().cloned().unwrap_or_default();
            settings.extend(tuned(tune));
            show_one(client, Call::put(at, Value::Object(settings)), output).await
        }
        ServersCommand::Connect(args) => mcp_credentials::connect(args, client, output).await,
        ServersCommand::Credentials(args) => mcp_credentials::list(args, client, output).await,
        ServersCommand::Disconnect(args) => mcp_credentials::disconnect(args, client, output).await,
        ServersCommand::Delete(server) => {
            client.send(Call::delete(path(&["mcp-servers", &server.id]))).await?;
            output.done(&format!("Removed the MCP server {} with its tools.", server.id))
        }
    }
}

/// What is to be another way than before.
fn tuned(tune: Tune) -> Map<String, Value> {
    let fallback = if tune.no_fallback { Some(Value::Null) } else { tune.fallback.map(Value::from) };
    let named = [
        ("calls_max", tune.calls_max.map(Value::from)),
        ("waiting_max", tune.waiting_max.map(Value::from)),
        ("attempts_max", tune.attempts_max.map(Value::from)),
        ("retry_percent", tune.retry_percent.map(Value::from)),
        ("failures_max", tune.failures_max.map(Value::from)),
        ("failure_percent", tune.failure_percent.map(Value::from)),
        ("open_ms", tune.open_ms.map(Value::from)),
        ("timeout_is_adaptive", tune.timeout_is_adaptive.map(Value::from)),
        ("timeout_min_ms", tune.timeout_min_ms.map(Value::from)),
        ("fallback", fallback),
    ];
    named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn described(args: AddServer) -> anyhow::Result<Value> {
    let object =
        |pairs: Vec<(String, String)>| pairs.into_iter().map(|(name, value)| (name, json!(value))).collect::<Map<_, _>>();
    let transport = match args.url {
        Some(url) => {
            let mut transport = json!({ "type": "http", "url": url, "headers": object(args.headers) });
            if !args.other_urls.is_empty() {
                transport["other_urls"] = json!(args.other_urls);
            }
            if let Some(oauth) = args.oauth.described()? {
                transport["oauth"] = oauth;
            }
            transport
        }
        None => {
            let (command, rest) = args.command.split_first().map_or(("", &[][..]), |(command, rest)| (command.as_str(), rest));
            json!({ "type": "stdio", "command": command, "args": rest, "env": object(args.env) })
        }
    };
    Ok(json!({ "name": args.name, "transport": transport }))
}

async fn tools(command: ToolsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ToolsCommand::List { words, paging } => {
            let words = (!words.is_empty()).then(|| words.join(" "));
            show_list(client, Call::get("tools").query("q", words), &paging, &TOOLS, output).await
        }
        ToolsCommand::Get(tool) => show_past(client, "tools", &tool, output).await,
        ToolsCommand::Approve(tool) => show_one(client, Call::action(&["tools", &tool.id, "actions", "approve"]), output).await,
        ToolsCommand::Call { name, arguments, timeout } => {
            let arguments: Map<String, Value> = serde_json::from_str(&arguments)
                .map_err(|e| hinted(format!("The arguments are no JSON object: {e}."), "for example '{\"path\": \"/srv\"}'"))?;
            let body = json!({ "arguments": arguments, "timeout_ms": timeout * 1_000 });
            let call = Call::post(path(&["tools", &name, "actions", "call"]), body);
            // The server says first that it took too long.
            let answer = client.send(call.waiting(Duration::from_secs(timeout) + SLACK)).await?;
            output.one(answer.data())?;
            match answer.data().pointer("/attributes/is_error") {
                Some(Value::Bool(true)) => Err(hinted("The tool says that it failed.", "its answer says why")),
                _ => Ok(()),
            }
        }
    }
}

async fn virtuals(command: VirtualCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        VirtualCommand::List(paging) => show_list(client, Call::get("virtual-servers"), &paging, &VIRTUAL, output).await,
        VirtualCommand::Get(server) => show_past(client, "virtual-servers", &server, output).await,
        VirtualCommand::Create(server) => show_one(client, Call::append("virtual-servers", selection(&server)), output).await,
        VirtualCommand::Set(server) => {
            check_opening(&server, client).await?;
            show_one(client, Call::put(path(&["virtual-servers", &server.name]), selection(&server)), output).await
        }
        VirtualCommand::Delete(server) => {
            client.send(Call::delete(path(&["virtual-servers", &server.id]))).await?;
            output.done(&format!("Removed the virtual server {}.", server.id))
        }
    }
}

/// What was for some is not opened to all by leaving something out.
async fn check_opening(server: &Virtual, client: &mut Client) -> anyhow::Result<()> {
    let known = client.send(Call::get(path(&["virtual-servers", &server.name]))).await?;
    let allowed = known.attributes()["allowed"].as_array().cloned().unwrap_or_default();
    if allowed.is_empty() || server.everybody || !server.allowed.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
    Err(hinted(
        format!("The virtual server {} is for {} only.", server.name, names.join(", ")),
        "name them again with --allow, or open it with --everybody",
    ))
}

fn selection(server: &Virtual) -> Value {
    let member = |text: &String| {
        let (name, tools) = text.split_once('=').map_or((text.as_str(), None), |(name, tools)| (name, Some(tools)));
        let mut member = json!({ "server": name });
        if let Some(tools) = tools {
            member["tools"] = tools.split(',').collect();
        }
        if server.bare {
            member["prefix"] = json!("");
        }
        member
    };
    let members: Vec<Value> = server.members.iter().map(member).collect();
    json!({ "name": server.name, "description": server.description, "members": members, "built_in": server.built_in,
        "allowed": server.allowed })
}
