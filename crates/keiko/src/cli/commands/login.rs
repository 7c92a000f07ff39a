//! `keiko login` and `keiko logout`.
//!
//! Owns how a login starts and ends on this machine. Never prints a token and never takes a password as an argument,
//! where process lists and shell histories would show it.

use crate::cli::call::{Call, Fields};
use crate::cli::client::Client;
use crate::cli::credentials::{Login as Stored, Store};
use crate::cli::{Connection, Output, input, print, table};
use clap::Args;
use serde_json::{Map, json};

/// Shown below the help of `keiko login`.
pub const EXAMPLES: &str = "\
Examples:
  keiko login                                     asks for name and password
  keiko login admin --server https://keiko.example.com
  keiko login admin --password-stdin < password.txt
  KEIKO_PASSWORD=... keiko login admin            for scripts

The login is kept in $XDG_CONFIG_HOME/keiko/credentials.json, else in ~/.config/keiko/, readable by you alone.";

/// Arguments of `keiko login`.
#[derive(Args)]
pub struct Login {
    /// Who logs in; asked for when left out
    username: Option<String>,
    /// The tenant's slug
    #[arg(long, default_value = "default")]
    tenant: String,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

/// Logs in and stores the login.
pub async fn login(args: Login, client: &mut Client, connection: &Connection) -> anyhow::Result<()> {
    // Before the password is asked for: a login that cannot be kept is of no use.
    let store = Store::of_user()?;
    let username = match args.username {
        Some(name) => name,
        None => input::line("Username:", "name the user: keiko login USERNAME")?,
    };
    let password = password(args.password_stdin)?;
    let body = Fields::default()
        .with("username", Some(username.as_str()))
        .with("password", Some(password))
        .with("tenant", Some(args.tenant.as_str()));
    let answer = client.send(Call::post("auth/login", body).anonymous()).await?;
    let token = |name| answer.text(name).map(str::to_owned);
    let (access_token, refresh_token) = (token("access_token")?, token("refresh_token")?);
    let login = Stored { access_token, refresh_token, username, tenant: args.tenant };
    keep(&store, client.base(), &login)?;
    tell(client.base(), &login, connection)
}

fn password(from_stdin: bool) -> anyhow::Result<String> {
    if from_stdin {
        return input::password_from_stdin();
    }
    match std::env::var("KEIKO_PASSWORD") {
        Ok(password) if !password.is_empty() => Ok(password),
        _ => input::password("Password", "set KEIKO_PASSWORD, or use --password-stdin"),
    }
}

fn keep(store: &Store, base: &str, login: &Stored) -> anyhow::Result<()> {
    let locked = store.lock()?;
    let mut stored = locked.load()?;
    stored.current = Some(base.to_owned());
    stored.logins.insert(base.to_owned(), login.clone());
    locked.save(&stored)
}

fn tell(base: &str, login: &Stored, connection: &Connection) -> anyhow::Result<()> {
    if connection.api_key.as_deref().is_some_and(|key| !key.trim().is_empty()) {
        print::note("An API key is set as well; commands use the key, not this login, until KEIKO_API_KEY is unset.");
    }
    let Stored { username, tenant, .. } = login;
    match connection.output {
        Output::Json => print::line(&table::pretty(&json!({ "server": base, "username": username, "tenant": tenant }))),
        Output::Table => print::line(&table::clean(&format!("Logged in at {base} as {username} (tenant {tenant})."))),
    }
}

/// Ends the stored login here, and on the server when it can be reached.
pub async fn logout(client: &mut Client, output: Output) -> anyhow::Result<()> {
    let Some((store, _)) = client.login() else {
        return output.done(&format!("Nobody is logged in at {}.", client.base()));
    };
    let store = store.clone();
    if let Err(error) = client.send(Call::post("auth/logout", Map::new())).await {
        print::note(&format!("The server did not end the session, it ends by itself later: {error:#}"));
    }
    let locked = store.lock()?;
    let mut stored = locked.load()?;
    stored.logins.remove(client.base());
    stored.current = stored.current.filter(|current| current != client.base());
    locked.save(&stored)?;
    output.done(&format!("Logged out at {}.", client.base()))
}
