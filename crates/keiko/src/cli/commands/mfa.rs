//! `keiko mfa`: the caller's second factor.
//!
//! Owns the command's arguments. Never takes a code as an argument, where others could read it in time.

use crate::cli::answer::Answer;
use crate::cli::call::Call;
use crate::cli::client::Client;
use crate::cli::error::is_code;
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
    match given() {
        Some(code) => Ok(code),
        None => input::line("Code of your app (or a recovery code):", "set KEIKO_CODE"),
    }
}

fn given() -> Option<String> {
    std::env::var("KEIKO_CODE").ok().filter(|code| !code.is_empty())
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
        "Add this to your app, by hand or with a QR code that you make of the second line:\n\n  {}\n  {}\n",
        begun.text("secret")?,
        begun.text("uri")?
    ));
    let confirmed = confirm(client).await?;
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

/// Shows that the app works. The secret stays the same until a code is right, or nobody goes on.
async fn confirm(client: &mut Client) -> anyhow::Result<Answer> {
    loop {
        let typed = match given() {
            Some(code) => code,
            None => input::line("Code that the app shows now:", "run it on a terminal; programs use /api/v1/auth/mfa")?,
        };
        match client.send(Call::post("auth/mfa/actions/confirm", json!({ "code": typed }))).await {
            Err(error) if is_code(&error, "MFA_CODE_INVALID") && given().is_none() && !typed.is_empty() => {
                print::note("That is not the code of this secret and this moment. Try the one that the app shows now.");
            }
            answered => return answered,
        }
    }
}
