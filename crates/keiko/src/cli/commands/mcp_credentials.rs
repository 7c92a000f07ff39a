//! `keiko mcp servers connect|credentials|disconnect`: what is shown to a server to be let in.
//!
//! Owns waiting for a person who is at a browser, and reading secrets from files.

use super::{Paging, show_list, show_one};
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::table::Column;
use crate::cli::{Output, input, print};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CREDENTIALS: [Column; 6] = [
    Column::id("OWNER", "/attributes/owner"),
    Column::text("SOURCE", "/attributes/source"),
    Column::text("STATUS", "/attributes/status"),
    Column::text("SCOPES", "/attributes/scopes"),
    Column::text("EXPIRES", "/attributes/expires_at"),
    Column::text("REASON", "/attributes/reason"),
];

/// How often it is looked whether the person is back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `keiko mcp servers connect`.
#[derive(Args)]
pub struct ConnectServer {
    /// Id or name of the server
    #[arg(value_parser = input::handle)]
    id: String,
    /// The account serves everybody, also where each person uses their own
    #[arg(long)]
    everybody: bool,
    /// A token that was got elsewhere, in a file, or - for standard input: no browser is needed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long to wait for the browser
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = input::duration_ms)]
    timeout: u64,
}

/// Arguments of `keiko mcp servers credentials`.
#[derive(Args)]
pub struct Credentials {
    /// Id or name of the server
    #[arg(value_parser = input::handle)]
    id: String,
    /// How many
    #[command(flatten)]
    paging: Paging,
}

/// Arguments of `keiko mcp servers disconnect`.
#[derive(Args)]
pub struct Disconnect {
    /// Id or name of the server
    #[arg(value_parser = input::handle)]
    id: String,
    /// Whose credential: me, everybody, or the id of an identity
    #[arg(long, default_value = "me")]
    owner: String,
}

/// How Keiko gets tokens for a server, as `keiko mcp servers add` has it.
#[derive(Args)]
pub struct OauthArgs {
    /// Each person uses an account of their own there
    #[arg(long, conflicts_with = "command")]
    per_user: bool,
    /// What is asked for, in place of what the server names; may be repeated
    #[arg(long = "scope", conflicts_with = "command")]
    scopes: Vec<String>,
    /// Keiko's id at the server's authorization server, where somebody registered it by hand
    #[arg(long, value_name = "ID", conflicts_with = "command")]
    client_id: Option<String>,
    /// Its secret, in a file, or - for standard input
    #[arg(long, value_name = "FILE", requires = "client_id")]
    client_secret_file: Option<PathBuf>,
    /// Its private key (PKCS#8 in PEM), in a file
    #[arg(long, value_name = "FILE", requires = "client_id", conflicts_with = "client_secret_file")]
    client_key_file: Option<PathBuf>,
    /// The authorization server that knows it
    #[arg(long, value_name = "URL", requires = "client_id")]
    issuer: Option<String>,
    /// Keiko gets tokens for itself: no person is needed
    #[arg(long, requires = "client_id", conflicts_with = "per_user")]
    client_credentials: bool,
}

/// A secret in a file, without the end of its last line.
fn secret(file: &Path) -> anyhow::Result<String> {
    let text = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| hinted(format!("cannot read {}: {error}", file.display()), "name a file with the secret"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl OauthArgs {
    /// What is said of it; nothing where nothing is.
    pub fn described(self) -> anyhow::Result<Option<Value>> {
        let mut oauth = Map::new();
        if self.per_user {
            oauth.insert("per".into(), json!("user"));
        }
        if self.client_credentials {
            oauth.insert("grant".into(), json!("client_credentials"));
        }
        if !self.scopes.is_empty() {
            oauth.insert("scopes".into(), json!(self.scopes));
        }
        if let Some(id) = self.client_id {
            let authentication = match (&self.client_secret_file, &self.client_key_file) {
                (Some(file), _) => json!({ "type": "secret", "secret": secret(file)? }),
                (_, Some(file)) => json!({ "type": "private_key", "private_key": secret(file)? }),
                _ => json!({ "type": "none" }),
            };
            let client = json!({ "id": id, "authentication": authentication });
            oauth.insert("client".into(), client);
            if let Some(issuer) = self.issuer {
                oauth["client"]["issuer"] = json!(issuer);
            }
        }
        Ok((!oauth.is_empty()).then_some(Value::Object(oauth)))
    }
}

/// Runs `keiko mcp servers credentials`.
pub async fn list(args: Credentials, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let call = Call::get(path(&["mcp-servers", &args.id, "credentials"]));
    show_list(client, call, &args.paging, &CREDENTIALS, output).await
}

/// Runs `keiko mcp servers disconnect`.
pub async fn disconnect(args: Disconnect, client: &mut Client, output: Output) -> anyhow::Result<()> {
    client.send(Call::delete(path(&["mcp-servers", &args.id, "credentials", &args.owner]))).await?;
    output.done(&format!("Removed the credential of {} for the MCP server {}.", args.owner, args.id))
}

/// Runs `keiko mcp servers connect`.
pub async fn connect(args: ConnectServer, client: &mut Client, output: Output) -> anyhow::Result<()> {
    let server = client.send(Call::get(path(&["mcp-servers", &args.id]))).await?;
    let attributes = server.attributes();
    let is_shared = args.everybody || attributes["transport"]["oauth"]["per"] != "user";
    let at = path(&["mcp-servers", &args.id, "credentials", if is_shared { "everybody" } else { "me" }]);
    if let Some(file) = &args.token_file {
        let put = Call::put(at, json!({ "token": secret(file)? }));
        note_unlisted(client, &args.id, is_shared).await?;
        return show_one(client, put, output).await;
    }
    let Some(url) = attributes["connect_url"].as_str() else {
        let problem = format!("The server {} is a process: it gets what it needs in its environment.", args.id);
        return Err(hinted(problem, "change it with PUT /api/v1/mcp-servers/{id}"));
    };
    let url = if args.everybody { format!("{url}?for=everybody") } else { url.to_owned() };
    let before = version(client, &at).await;
    print::note(&format!(
        "Open this page in a browser, and go on there:\n\n  {url}\n\nWaiting until the server is connected ..."
    ));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(args.timeout) {
        tokio::time::sleep(LOOK_EVERY).await;
        if version(client, &at).await > before {
            note_unlisted(client, &args.id, is_shared).await?;
            return show_one(client, Call::get(at), output).await;
        }
    }
    Err(hinted(format!("The server {} was not connected in time.", args.id), "run the command again; --timeout gives more time"))
}

/// Whoever connected an account of their own to a server that nobody has connected for everybody is told what is missing.
async fn note_unlisted(client: &mut Client, id: &str, is_shared: bool) -> anyhow::Result<()> {
    let server = client.send(Call::get(path(&["mcp-servers", id]))).await?;
    if !is_shared && server.attributes()["status"] == "failed" {
        print::note(&format!(
            "Its tools cannot be called yet: they are listed with an account for everybody (keiko mcp servers connect {id} --everybody)."
        ));
    }
    Ok(())
}

/// Counts the changes of a credential; nothing where there is none.
async fn version(client: &mut Client, at: &str) -> Option<u64> {
    let known = client.send(Call::get(at.to_owned())).await.ok()?;
    let is_usable = known.attributes()["status"] == "active";
    known.attributes()["version"].as_u64().filter(|_| is_usable)
}
