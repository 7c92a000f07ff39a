//! The settings as flags of commands that work without a server.

use crate::Settings;
use crate::settings::{DECLARED, Layers, flag};
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;

/// One flag per setting, made from the table of settings.
pub struct SettingFlags(BTreeMap<String, String>);

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        DECLARED.iter().filter(|d| !d.is_secret).fold(command, |command, d| {
            let help = if d.default.is_empty() { d.help.to_owned() } else { format!("{} [default: {}]", d.help, d.default) };
            command.arg(Arg::new(d.key).long(flag(d.key)).value_name("VALUE").help(help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = DECLARED.iter().filter(|d| !d.is_secret);
        Ok(SettingFlags(given.filter_map(|d| Some((d.key.to_owned(), matches.get_one::<String>(d.key)?.clone()))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl SettingFlags {
    /// The settings by layer.
    pub fn layers(&self) -> anyhow::Result<Layers> {
        Layers::read(&self.0, &std::env::vars().collect())
    }

    /// The settings.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        Settings::from_layers(&self.layers()?)
    }
}
