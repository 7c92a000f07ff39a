//! Log lines on standard error: text on a terminal, JSON otherwise.

use crate::settings::{LogFormat, Settings};
use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging for the rest of the process.
pub fn start(settings: &Settings) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&settings.log_level).with_context(|| format!("setting 'log.level': '{}'", settings.log_level))?;
    let is_text = match settings.log_format {
        LogFormat::Text => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if is_text { lines.try_init() } else { lines.json().flatten_event(true).try_init() };
    started.map_err(|e| anyhow::anyhow!("logging could not be started: {e}"))
}
