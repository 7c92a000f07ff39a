//! `keiko mfa`: the caller's second factor.
//!
//! Owns the command's arguments. Never takes a code as an argument, where others could read it in time.

use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::{Output, input, print, table};
use clap::Subcommand;
use serde_json::json;

/// Shown below the help of `keiko mfa`.
pub const EXAMPLES: &str = "\
Examples:
  keiko mfa enrol        set up an app that shows codes
  keiko mfa step-up      prove that it is you, before a dangerous action

Codes are asked for; scripts give them in KEIKO_CODE.";

/// What `keiko mfa` can do.
#[derive(Subcommand)]
pub enum MfaCommand {
    /// Set up an app that shows codes; recovery codes are shown once
    Enrol,
    /// Prove that it is you: for a while this login may do what wants a fresh proof
    StepUp,
    /// Remove your second factor
    Remove,
}

/// A code: of the environment, else asked for.
pub fn code() -> anyhow::Result<String> {
    match std::env::var("KEIKO_CODE") {
        Ok(code) if !code.is_empty() => Ok(code),
        _ => input::line("Code of your app (or a recovery code):", "set KEIKO_CODE"),
    }
}

/// Runs `keiko mfa`.
pub async fn run(command: MfaCommand, client: &mut Client, output: Output) -> anyhow::Result<()> {
    match command {
        MfaCommand::Enrol => enrol(client, output).await,
        MfaCommand::StepUp => {
            client.send(Call::post("auth/mfa/actions/step-up", json!({ "code": code()? }))).await?;
            output.done("Proved. Dangerous actions are allowed for a while.")
        }
        MfaCommand::Remove => {
            client.send(Call::post("auth/mfa/actions/remove", json!({ "code": code()? }))).await?;
            output.done("Removed the second factor.")
        }
    }
}

async fn enrol(client: &mut Client, output: Output) -> anyhow::Result<()> {
    let begun = client.send(Call::post("auth/mfa/actions/begin", json!({}))).await?;
    print::note(&format!(
        "Add this to your app, by hand or as a QR code of the second line:\n\n  {}\n  {}\n",
        begun.text("secret")?,
        begun.text("uri")?
    ));
    let confirmed = client.send(Call::post("auth/mfa/actions/confirm", json!({ "code": code()? }))).await?;
    match output {
        Output::Json => output.one(confirmed.data())?,
        Output::Table => {
            let codes = confirmed.attributes()["recovery_codes"].as_array().cloned().unwrap_or_default();
            let lines: Vec<String> = codes.iter().filter_map(|code| code.as_str()).map(table::clean).collect();
            print::line(&lines.join("\n"))?;
        }
    }
    print::note("These recovery codes stand in for a lost app, each once. This is the only time they are shown.");
    Ok(())
}
