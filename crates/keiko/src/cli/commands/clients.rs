//! `keiko clients`: OAuth clients.
//!
//! Owns the command's arguments and columns. Never stores a secret: it is shown once.

use super::{Paging, Past, Target, show_list, show_past, show_secret};
use crate::cli::Output;
use crate::cli::call::{Call, Fields, path};
use crate::cli::client::Client;
use crate::cli::table::Column;
use clap::{Args, Subcommand};
use serde_json::json;

/// Shown below the help of `keiko clients`.
pub const EXAMPLES: &str = "\
Examples:
  keiko clients create --name portal --redirect-uri https://portal.example.com/back
  keiko clients create --name ci --subject ci-service --grant client_credentials --scope tasks.create
  keiko clients change-secret kc_default_01h...

People sign in with a client that has a redirect URI; a client with a subject gets tokens for that service or agent.";

const COLUMNS: [Column; 6] = [
    Column::id("ID", "/id"),
    Column::id("CLIENT_ID", "/attributes/client_id"),
    Column::text("NAME", "/attributes/name"),
    Column::text("METHOD", "/attributes/token_endpoint_auth_method"),
    Column::text("SOURCE", "/attributes/source"),
    Column::time("CREATED", "/attributes/created_at"),
];

/// What `keiko clients` can do.
#[derive(Subcommand)]
pub enum ClientsCommand {
    /// List clients
    List(Paging),
    /// Show one client
    Get(Past),
    /// Create a client; its secret is shown once
    Create(Create),
    /// Give a client another secret; the old one stops working at once
    ChangeSecret(Target),
    /// Remove a client; its tokens stop working at once
    Delete(Target),
}

/// Arguments of `keiko clients create`.
#[derive(Args)]
pub struct Create {
    /// Name for people
    #[arg(long)]
    name: String,
    /// Where answers may be sent; may be repeated
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// How it gets tokens; may be repeated [default: authorization_code and refresh_token]
    #[arg(long = "grant", value_name = "GRANT_TYPE")]
    grants: Vec<String>,
    /// How it proves who it is: none, client_secret_basic, client_secret_post, private_key_jwt
    #[arg(long, value_name = "METHOD", default_value = "client_secret_basic")]
    method: String,
    /// Something it may ask for; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Who it is by itself: a service by name or id, or an agent by id
    #[arg(long)]
    subject: Option<String>,
    /// Its public keys, as JSON, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    jwks: Option<String>,
}

/// Runs `keiko clients`.
pub async fn run(command: ClientsCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        ClientsCommand::List(paging) => show_list(client, Call::get("clients"), &paging, &COLUMNS, output).await,
        ClientsCommand::Get(target) => show_past(client, "clients", &target, output).await,
        ClientsCommand::Create(args) => {
            let jwks = args.jwks.as_deref().map(crate::cli::input::json).transpose()?;
            let body = Fields::default()
                .with("name", Some(args.name))
                .with_list("redirect_uris", args.redirect_uris)
                .with_list("grant_types", args.grants)
                .with("token_endpoint_auth_method", Some(args.method))
                .with_list("scopes", args.scopes)
                .with("subject", args.subject)
                .with("jwks", jwks);
            show_secret(client, Call::post("clients", body), output).await
        }
        ClientsCommand::ChangeSecret(target) => {
            let call = Call::post(path(&["clients", &target.id, "actions", "change-secret"]), json!({}));
            show_secret(client, call, output).await
        }
        ClientsCommand::Delete(target) => {
            client.send(Call::delete(path(&["clients", &target.id]))).await?;
            output.done(&format!("Removed the client {}.", target.id))
        }
    }
}
