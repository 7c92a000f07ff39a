//! The commands, one module for each word of the command line.
//!
//! Owns what they share: the id argument, the paging of lists. A command's module turns arguments into calls and says
//! which columns people see; it never speaks HTTP itself.

pub mod account;
pub mod agents;
pub mod audit;
pub mod backup;
pub mod clients;
pub mod components;
pub mod discover;
pub mod drill;
pub mod erasures;
pub mod events;
pub mod groups;
pub mod keys;
pub mod login;
pub mod mails;
pub mod mcp;
pub mod mfa;
pub mod past;
pub mod queues;
pub mod security;
pub mod tasks;
pub mod teams;
pub mod tenants;
pub mod users;
pub mod views;

mod decision;
mod mcp_connect;
mod mcp_credentials;
mod replay;
mod sse;
mod submit;

use crate::cli::Output;
use crate::cli::call::{Call, path};
use crate::cli::client::Client;
use crate::cli::error::hinted;
use crate::cli::input;
use crate::cli::print;
use crate::cli::table::Column;
use clap::Args;
use serde_json::Value;

/// Entries that one request asks for when all are wanted; the most that the interface gives.
const PAGE_ITEMS_MAX: u32 = 500;

/// The resource that a command is about.
#[derive(Args)]
pub struct Target {
    /// Its id, or its name where names are unique
    #[arg(value_name = "ID", value_parser = input::handle)]
    id: String,
}

/// The resource that a command is about, as it is or as it was.
#[derive(Args)]
pub struct Past {
    /// Its id, or its name where names are unique
    #[arg(value_name = "ID", value_parser = input::handle)]
    id: String,
    /// How it was: a position of the log, or an instant such as 2026-01-01T00:00:00Z
    #[arg(long, value_name = "POSITION|TIME")]
    at: Option<String>,
}

/// How much of a list.
#[derive(Args)]
pub struct Paging {
    /// Entries to show [default: 50]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_ITEMS_MAX)))]
    limit: Option<u32>,
    /// Show every entry, however many there are
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

/// Ends when somebody interrupts the command, with what is to be said then.
async fn interrupted() -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async || -> std::io::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    };
    match wait().await {
        Ok(()) => hinted("Interrupted.", "what was begun is removed; run the command again"),
        Err(error) => error.into(),
    }
}

/// Asks for a list and shows it.
async fn show_list(client: &mut Client, call: Call, paging: &Paging, columns: &[Column], output: Output) -> anyhow::Result<()> {
    if paging.all {
        return output.list(&collect(client, call.query("limit", Some(PAGE_ITEMS_MAX))).await?, columns);
    }
    let answer = client.send(call.query("limit", paging.limit)).await?;
    output.list(answer.items(), columns)?;
    if answer.next_cursor().is_some() {
        print::note("There are more: --all shows every entry.");
    }
    Ok(())
}

/// Every entry of a list, page after page.
async fn collect(client: &mut Client, call: Call) -> anyhow::Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let answer = client.send(call.clone().query("cursor", cursor.as_ref())).await?;
        items.extend_from_slice(answer.items());
        let next = answer.next_cursor().map(str::to_owned);
        if next.is_none() {
            return Ok(items);
        }
        if next == cursor {
            return Err(hinted("The list does not go on: the server gave the same page again.", "report this"));
        }
        cursor = next;
    }
}

/// Shows a resource as it is, or as it was.
async fn show_past(client: &mut Client, kind: &str, what: &Past, output: Output) -> anyhow::Result<()> {
    show_one(client, Call::get(path(&[kind, &what.id])).query("at", what.at.as_ref()), output).await
}

/// Sends a call about one resource and shows the answer.
async fn show_one(client: &mut Client, call: Call, output: Output) -> anyhow::Result<()> {
    let answer = client.send(call).await?;
    output.one(answer.data())
}

/// Sends a call that creates a secret, and shows the answer with a clear word.
async fn show_secret(client: &mut Client, call: Call, output: Output) -> anyhow::Result<()> {
    show_one(client, call, output).await?;
    print::note("This is the only time that a key or secret is shown: Keiko keeps a hash of it. Store it now.");
    Ok(())
}
