//! `keiko login` and `keiko logout`.
//!
//! Owns how a login starts and ends on this machine. Never prints a token and never takes a password as an argument,
//! where process lists and shell histories would show it.

use crate::cli::call::{Call, Fields};
use crate::cli::client::Client;
use crate::cli::credentials::{Login as Stored, Store};
use crate::cli::error::is_code;
use crate::cli::{Connection, Output, input, oauth, print, table};
use clap::Args;
use serde_json::{Map, json};

/// Shown below the help of `keiko login`.
pub const EXAMPLES: &str = "\
Examples:
  keiko login                                     signs in with the browser
  keiko login --device                            signs in with a browser on another machine, by a code
  keiko login admin                               asks for the password here
  keiko login admin --server https://keiko.example.com
  keiko login admin --password-stdin < password.txt
  KEIKO_PASSWORD=... keiko login admin            for scripts

The login is kept in $XDG_CONFIG_HOME/keiko/credentials.json, else in ~/.config/keiko/, readable by you alone.";

/// Arguments of `keiko login`.
#[derive(Args)]
pub struct Login {
    /// Who logs in with a password; without it, the browser is used
    username: Option<String>,
    /// Sign in with a browser on another machine, by a code
    #[arg(long, conflicts_with_all = ["username", "password_stdin", "browser"])]
    device: bool,
    /// Sign in with the browser on this machine, also where there is no terminal
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    browser: bool,
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
    let has_password = args.password_stdin || std::env::var("KEIKO_PASSWORD").is_ok_and(|password| !password.is_empty());
    let is_interactive = std::io::IsTerminal::is_terminal(&std::io::stdin());
    if args.device || args.browser || (args.username.is_none() && !has_password && is_interactive) {
        return with_browser(args.device, store, client, connection).await;
    }
    let username = match args.username {
        Some(name) => name,
        None => input::line("Username:", "name the user: keiko login USERNAME")?,
    };
    let password = match args.password_stdin {
        true => input::password_from_stdin()?,
        false => password("Password", "set KEIKO_PASSWORD, or use --password-stdin")?,
    };
    let body = Fields::default()
        .with("username", Some(username.as_str()))
        .with("password", Some(password))
        .with("tenant", Some(args.tenant.as_str()));
    let answer = match client.send(Call::post("auth/login", body.clone()).anonymous()).await {
        Err(error) if is_code(&error, "MFA_REQUIRED") => {
            let body = body.with("code", Some(super::mfa::code()?));
            client.send(Call::post("auth/login", body).anonymous()).await?
        }
        answered => answered?,
    };
    let token = |name| answer.text(name).map(str::to_owned);
    let (access_token, refresh_token) = (token("access_token")?, token("refresh_token")?);
    let login = Stored { access_token, refresh_token, username, tenant: args.tenant, client: None };
    keep(&store, client.base(), &login)?;
    tell(client.base(), &login, connection)
}

/// Signs in as an OAuth client, and finds out afterwards who it was.
async fn with_browser(is_device: bool, store: Store, client: &mut Client, connection: &Connection) -> anyhow::Result<()> {
    let (http, base) = (client.http().clone(), client.base().to_owned());
    let tokens = match is_device {
        true => oauth::with_device(&http, &base).await?,
        false => oauth::with_browser(&http, &base).await?,
    };
    let oauth::Tokens { access_token, refresh_token } = tokens;
    let client_name = Some(oauth::CLIENT.to_owned());
    let nobody = Stored { access_token, refresh_token, username: String::new(), tenant: String::new(), client: client_name };
    client.become_login(store.clone(), nobody.clone());
    let me = client.send(Call::get("auth/me")).await?;
    let login = Stored { username: me.text("name")?.to_owned(), tenant: me.text("tenant")?.to_owned(), ..nobody };
    keep(&store, &base, &login)?;
    tell(&base, &login, connection)
}

/// A password: of the environment, else asked for.
pub(super) fn password(prompt: &str, hint: &str) -> anyhow::Result<String> {
    match std::env::var("KEIKO_PASSWORD") {
        Ok(password) if !password.is_empty() => Ok(password),
        _ => input::password(prompt, hint),
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
    if stored.current.as_deref() == Some(client.base()) {
        // With one login left, that is the one that is meant from now on.
        stored.current = stored.logins.keys().next().filter(|_| stored.logins.len() == 1).cloned();
    }
    locked.save(&stored)?;
    if let Some(other) = &stored.current {
        print::note(&format!("Commands go to {other} now."));
    } else if !stored.logins.is_empty() {
        let others: Vec<&str> = stored.logins.keys().map(String::as_str).collect();
        print::note(&format!("Logins are left at {}; name one with --server.", others.join(", ")));
    }
    output.done(&format!("Logged out at {}.", client.base()))
}
