//! The client side of the command line: every command that talks to a running server over its public HTTP interface.
//!
//! Owns how arguments become requests and how answers are shown to people and programs. Never opens a data directory,
//! never calls a crate of the server: what it can do, any other client of the interface can do.

mod answer;
mod call;
mod client;
mod commands;
mod credentials;
mod error;
mod flags;
mod input;
mod oauth;
mod print;
mod server;
mod table;

pub use flags::SettingFlags;

pub(crate) use call::nonce;
pub(crate) use error::hinted;

use clap::{Args, Subcommand, ValueEnum};
use client::Client;
use commands::{
    account, agents, audit, backup, clients, components, discover, drill, erasures, events, groups, keys, login, mails, mcp, mfa,
    past, queues, security, tasks, teams, tenants, users, views,
};

/// Which server to ask, with which credential, and how to show the answer. Accepted before and after every command.
// No `Debug`: an API key must not end up in a log.
#[derive(Args, Clone)]
pub struct Connection {
    /// Address of the server [default: the one you last logged in to, else http://127.0.0.1:8080]
    #[arg(long, global = true, help_heading = "Connection", env = "KEIKO_SERVER", value_name = "URL")]
    server: Option<String>,
    /// API key to use in place of the stored login; better given by the environment, where process lists do not show it
    #[arg(long, global = true, help_heading = "Connection", env = "KEIKO_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Tables for people, or the answer's data as JSON for programs
    #[arg(long, global = true, help_heading = "Connection", value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Send credentials over plain http to another machine: only where nobody else can listen
    #[arg(long, global = true, help_heading = "Connection")]
    insecure_http: bool,
}

impl Connection {
    /// The same, to another server.
    fn at(&self, url: &str) -> Self {
        Connection { server: Some(url.to_owned()), ..self.clone() }
    }
}

/// How answers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people
    Table,
    /// The answer's `data` as JSON
    Json,
}

/// The commands that ask a server.
#[derive(Subcommand)]
pub enum ClientCommand {
    /// Log in and keep the login for later commands
    #[command(after_help = login::EXAMPLES)]
    Login(login::Login),
    /// End the stored login, here and on the server
    Logout,
    /// Register, inspect and steer agents
    #[command(after_help = agents::EXAMPLES)]
    Agents {
        /// What to do
        #[command(subcommand)]
        command: agents::AgentsCommand,
    },
    /// Submit, follow and steer tasks
    #[command(after_help = tasks::EXAMPLES)]
    Tasks {
        /// What to do
        #[command(subcommand)]
        command: tasks::TasksCommand,
    },
    /// Read the event log
    #[command(after_help = events::EXAMPLES)]
    Events {
        /// What to do
        #[command(subcommand)]
        command: events::EventsCommand,
    },
    /// Things whose health is followed, and what they need
    #[command(after_help = components::EXAMPLES)]
    Components {
        /// What to do
        #[command(subcommand)]
        command: components::ComponentsCommand,
    },
    /// Let several readers share events, and see how far they are
    #[command(after_help = groups::EXAMPLES)]
    Groups {
        /// What to do
        #[command(subcommand)]
        command: groups::GroupsCommand,
    },
    /// Manage the people of the tenant
    #[command(after_help = users::EXAMPLES)]
    Users {
        /// What to do
        #[command(subcommand)]
        command: users::UsersCommand,
    },
    /// See the mails that went out, and take links back
    #[command(after_help = mails::EXAMPLES)]
    Mails {
        /// What to do
        #[command(subcommand)]
        command: mails::MailsCommand,
    },
    /// Tool servers, their tools, and selections of them
    #[command(after_help = mcp::EXAMPLES)]
    Mcp {
        /// What to do
        #[command(subcommand)]
        command: mcp::McpCommand,
    },
    /// Your own password and address
    #[command(after_help = account::EXAMPLES)]
    Account {
        /// What to do
        #[command(subcommand)]
        command: account::AccountCommand,
    },
    /// Manage teams: roles for many at once
    #[command(after_help = teams::EXAMPLES)]
    Teams {
        /// What to do
        #[command(subcommand)]
        command: teams::TeamsCommand,
    },
    /// Explain why somebody may do something, or may not
    #[command(after_help = teams::EXPLAIN_EXAMPLES)]
    Explain(teams::Explain),
    /// Manage API keys
    #[command(after_help = keys::EXAMPLES)]
    Keys {
        /// What to do
        #[command(subcommand)]
        command: keys::KeysCommand,
    },
    /// Manage OAuth clients
    #[command(after_help = clients::EXAMPLES)]
    Clients {
        /// What to do
        #[command(subcommand)]
        command: clients::ClientsCommand,
    },
    /// Your second factor
    #[command(after_help = mfa::EXAMPLES)]
    Mfa {
        /// What to do
        #[command(subcommand)]
        command: mfa::MfaCommand,
    },
    /// See logins and refusals, and act in an emergency
    #[command(after_help = security::EXAMPLES)]
    Security {
        /// What to do
        #[command(subcommand)]
        command: security::SecurityCommand,
    },
    /// Manage tenants, as an administrator of the default tenant
    #[command(after_help = tenants::EXAMPLES)]
    Tenants {
        /// What to do
        #[command(subcommand)]
        command: tenants::TenantsCommand,
    },
    /// Look at queues and change how they hand out work
    #[command(after_help = queues::EXAMPLES)]
    Queues {
        /// What to do
        #[command(subcommand)]
        command: queues::QueuesCommand,
    },
    /// Check that nobody has changed the record
    #[command(after_help = audit::EXAMPLES)]
    Audit {
        /// What to do
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// Make backups, and restore them
    #[command(after_help = backup::EXAMPLES)]
    Backup {
        /// What to do
        #[command(subcommand)]
        command: backup::BackupCommand,
    },
    /// Try what would be done after a disaster, and measure it
    #[command(after_help = drill::EXAMPLES)]
    Drill {
        /// What to do
        #[command(subcommand)]
        command: drill::DrillCommand,
    },
    /// Look at views, and build them anew
    #[command(after_help = views::EXAMPLES)]
    Views {
        /// What to do
        #[command(subcommand)]
        command: views::ViewsCommand,
    },
    /// Show things as they were
    #[command(after_help = past::EXAMPLES)]
    At(past::At),
    /// Erase what is kept of a person
    #[command(after_help = erasures::EXAMPLES)]
    Erasures {
        /// What to do
        #[command(subcommand)]
        command: erasures::ErasuresCommand,
    },
    /// Find agents by what they can do
    #[command(after_help = discover::EXAMPLES)]
    Discover(discover::Discover),
}

/// Runs one command. An error's text already holds what is wrong and, on further lines, what to do about it.
pub async fn run(command: ClientCommand, connection: Connection) -> anyhow::Result<()> {
    match dispatch(command, connection).await {
        // The reader of our output (`head`, a pager) has seen enough.
        Err(error) if print::is_closed_pipe(&error) => Ok(()),
        other => other,
    }
}

async fn dispatch(command: ClientCommand, connection: Connection) -> anyhow::Result<()> {
    let output = connection.output;
    let client = &mut match command {
        ClientCommand::Login(_) | ClientCommand::Logout => Client::of_login(&connection),
        _ => Client::connect(&connection),
    }?;
    match command {
        ClientCommand::Login(args) => login::login(args, client, &connection).await,
        ClientCommand::Logout => login::logout(client, output).await,
        ClientCommand::Agents { command } => agents::run(command, client, output).await,
        ClientCommand::Tasks { command } => tasks::run(command, client, output).await,
        ClientCommand::Events { command } => events::run(command, client, output).await,
        ClientCommand::Components { command } => components::run(command, client, output).await,
        ClientCommand::Groups { command } => groups::run(command, client, output).await,
        ClientCommand::Users { command } => users::run(command, client, output).await,
        ClientCommand::Mails { command } => mails::run(command, client, output).await,
        ClientCommand::Account { command } => account::run(command, client, output).await,
        ClientCommand::Mcp { command } => mcp::run(command, client, output).await,
        ClientCommand::Teams { command } => teams::run(command, client, output).await,
        ClientCommand::Explain(args) => teams::explain(args, client, output).await,
        ClientCommand::Keys { command } => keys::run(command, client, output).await,
        ClientCommand::Clients { command } => clients::run(command, client, output).await,
        ClientCommand::Mfa { command } => mfa::run(command, client, output).await,
        ClientCommand::Security { command } => security::run(command, client, output).await,
        ClientCommand::Tenants { command } => tenants::run(command, client, output).await,
        ClientCommand::Queues { command } => queues::run(command, client, output).await,
        ClientCommand::Audit { command } => audit::run(command, client, &connection).await,
        ClientCommand::Backup { command } => backup::run(command, client, output).await,
        ClientCommand::Drill { command } => drill::run(command, client, output).await,
        ClientCommand::At(args) => past::run(args, client, output).await,
        ClientCommand::Views { command } => views::run(command, client, output).await,
        ClientCommand::Erasures { command } => erasures::run(command, client, output).await,
        ClientCommand::Discover(args) => discover::run(args, client, output).await,
    }
}
