//! Writing to the terminal: answers to standard output, remarks to standard error.
//!
//! Owns the two streams. Never panics when nobody reads them.

use super::Output;
use super::table;
use serde_json::Value;
use std::io::{self, Write};

/// Writes a line (or several) of the answer.
pub fn line(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Writes a remark for people. Nobody reading it is no error.
pub fn note(text: &str) {
    let safe: Vec<String> = text.lines().map(table::clean).collect();
    let _ = writeln!(io::stderr().lock(), "{}", safe.join("\n"));
}

/// Whether an error means that nobody reads standard output any more.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

impl Output {
    /// Shows a list.
    pub fn list(self, items: &[Value], columns: &[table::Column]) -> anyhow::Result<()> {
        match self {
            Output::Json => line(&table::pretty(&Value::from(items))),
            Output::Table if items.is_empty() => {
                note("Nothing found.");
                Ok(())
            }
            Output::Table => line(&table::list(items, columns)),
        }
    }

    /// Shows one resource.
    pub fn one(self, data: &Value) -> anyhow::Result<()> {
        match self {
            Output::Json => line(&table::pretty(data)),
            Output::Table => line(&table::details(data)),
        }
    }

    /// Says what was done where the answer has no content. Programs see it by the exit code.
    pub fn done(self, sentence: &str) -> anyhow::Result<()> {
        match self {
            Output::Json => Ok(()),
            Output::Table => line(&table::clean(sentence)),
        }
    }
}
