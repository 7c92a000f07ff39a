//! The `keiko` command.

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use keiko::cli::{ClientCommand, Connection, Output, SettingFlags};
use keiko::settings::{DECLARED, Layers, flag};
use keiko::{Keiko, Parts, Settings, admin, doctor, logs};
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

/// The backbone of a fleet of AI agents: identity, registry, tasks, record.
#[derive(Parser)]
#[command(name = "keiko", version, arg_required_else_help = true, propagate_version = true)]
#[command(after_help = "Start with 'keiko serve', then 'keiko login' in another terminal.")]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: KeikoCommand,
}

#[derive(Subcommand)]
enum KeikoCommand {
    /// Start the server
    #[command(after_help = "Every setting is a flag, an environment variable and a line in a file: see 'keiko config show'.")]
    Serve(SettingFlags),
    /// Look at a data directory: disk, keys, and whether the record is whole
    Doctor {
        /// Look also at the seals of the record, and at every entity against its history; takes longer
        #[arg(long)]
        deep: bool,
        #[command(flatten)]
        settings: SettingFlags,
    },
    /// Work on a stopped server's data
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Show settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version
    Version,
    /// Print completions for a shell
    #[command(after_help = "bash: source <(keiko completions bash)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the API document (OpenAPI 3.1)
    Openapi,
    /// Print every route with its permission and the roles that hold it
    Permissions,
    #[command(flatten)]
    Client(ClientCommand),
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Set a user's password; the server must be stopped
    #[command(
        after_help = "Reads the password from --password-stdin or KEIKO_ADMIN_PASSWORD; otherwise makes one up and prints it once."
    )]
    ResetPassword {
        /// Whose
        #[arg(long, default_value = "admin")]
        username: String,
        /// In which tenant
        #[arg(long, default_value = "default")]
        tenant: String,
        /// Read the password from standard input
        #[arg(long)]
        password_stdin: bool,
        /// Remove the second factor too, for somebody who has lost it
        #[arg(long)]
        remove_mfa: bool,
        #[command(flatten)]
        settings: SettingFlags,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every setting with its value and where that comes from; secrets are masked
    Show(SettingFlags),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let is_json = matches!(cli.connection.output, Output::Json);
    match cli.command {
        KeikoCommand::Serve(flags) => block_on(serve(flags.settings()?))?,
        KeikoCommand::Doctor { deep, settings } => return examine(&settings.settings()?, deep, is_json),
        KeikoCommand::Admin(AdminCommand::ResetPassword { username, tenant, password_stdin, remove_mfa, settings }) => {
            block_on(reset_password(settings.settings()?, (&tenant, &username), password_stdin, remove_mfa))?;
        }
        KeikoCommand::Config(ConfigCommand::Show(flags)) => {
            let layers = flags.layers()?;
            show(&layers, is_json)?;
            Settings::from_layers(&layers)?;
        }
        KeikoCommand::Version => println!("keiko {}", env!("CARGO_PKG_VERSION")),
        KeikoCommand::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "keiko", &mut std::io::stdout())
        }
        KeikoCommand::Openapi => print!("{}", edge::http::document().map_err(anyhow::Error::msg)?),
        KeikoCommand::Permissions => print!("{}", edge::http::permission_table().map_err(anyhow::Error::msg)?),
        KeikoCommand::Client(command) => block_on(keiko::cli::run(command, cli.connection))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads could be started")?;
    let outcome = runtime.block_on(work);
    // Blocking work that is left, such as a name lookup, must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    outcome
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    logs::start(&settings)?;
    let parts = Parts::open(&settings).await?;
    let keiko = Keiko::start(&settings, parts).await?;
    if let Some(password) = keiko.bootstrap().and_then(|b| b.generated_password.as_ref()) {
        println!("first start: sign in as 'admin' of tenant 'default'; password: {password}\n(it is shown only now)");
    }
    let (scheme, over) = if settings.tls.is_some() { ("https", " over TLS") } else { ("http", "") };
    println!("listening on {scheme}://{}", keiko.address()?);
    if let Some(address) = keiko.grpc_address()? {
        println!("gRPC{over} on {address}");
    }
    std::io::stdout().flush()?;
    keiko.run(stopped()?).await;
    Ok(())
}

/// Ends at SIGTERM or Ctrl-C.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn reset_password(settings: Settings, who: (&str, &str), from_stdin: bool, removes_mfa: bool) -> anyhow::Result<()> {
    let (tenant, username) = who;
    let mut given = settings.admin_password.as_ref().map(|secret| secret.0.clone());
    if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        given = Some(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    match admin::reset_password(&settings, tenant, username, given, removes_mfa).await? {
        Some(password) => {
            println!("user '{username}' of tenant '{tenant}' has a new password: {password}\n(it is shown only now)")
        }
        None => println!("user '{username}' of tenant '{tenant}' has the new password"),
    }
    Ok(())
}

fn examine(settings: &Settings, is_deep: bool, is_json: bool) -> anyhow::Result<ExitCode> {
    let checks = block_on(async { Ok(doctor::examine(settings, is_deep).await) })?;
    if is_json {
        println!("{}", serde_json::to_string_pretty(&checks)?);
    } else {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(["", "CHECK", "FINDING"]);
        for check in &checks {
            table.add_row([if check.is_ok { "ok" } else { "WRONG" }, check.name, &check.finding]);
        }
        println!("{table}");
    }
    Ok(if checks.iter().all(|check| check.is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(layers: &Layers, is_json: bool) -> anyhow::Result<()> {
    let rows = layers.shown();
    if is_json {
        let rows: Vec<_> =
            rows.iter().map(|(key, value, source)| serde_json::json!({ "key": key, "value": value, "source": source })).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["SETTING", "VALUE", "FROM", "ENVIRONMENT", "FLAG"]);
    for (key, value, source) in rows {
        let is_secret = DECLARED.iter().any(|d| d.key == key && d.is_secret);
        let flag = if is_secret { String::new() } else { format!("--{}", flag(key)) };
        table.add_row([key.to_owned(), value, source, keiko::settings::variable(key), flag]);
    }
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    println!("{table}");
    Ok(())
}
