//! The command line and its variables, read together.
//!
//! clap takes an empty variable for a value and one that is set for typed. Here an empty one is one that is not set, as
//! a compose file's `${KEY:-}` means it, and what is typed wins over any variable.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, Command, CommandFactory, FromArgMatches};

use crate::cli::Cli;

impl Cli {
    /// Reads `arguments`, of which the first is the program. `is_blank` tells of a variable whether it is set and empty.
    ///
    /// # Errors
    /// What cannot be understood, and requests for help, ready to be printed.
    pub fn read(arguments: &[OsString], is_blank: &dyn Fn(&str) -> bool) -> Result<Self, clap::Error> {
        let named = |arg: &Arg| arg.get_env().and_then(|name| name.to_str()).map(str::to_owned);
        let command = without_variables(Self::command(), &|arg| named(arg).is_some_and(|name| is_blank(&name)));
        match parse(command.clone(), arguments) {
            // The one argument that says the same as a flag with a variable.
            Err(error) if error.kind() == ErrorKind::ArgumentConflict => {
                let command = without_variables(command, &|arg| arg.get_id() == "model");
                parse(command, arguments).map_err(|_| error)
            }
            read => read,
        }
    }
}

fn parse(mut command: Command, arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The command and its subcommands, where arguments that are `deaf` hear of no variable.
fn without_variables(command: Command, deaf: &dyn Fn(&Arg) -> bool) -> Command {
    let command = command.mut_args(|arg| if deaf(&arg) { arg.env(None::<&str>) } else { arg });
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names
        .into_iter()
        .fold(command, |command, name| command.mut_subcommand(name, |inner| without_variables(inner, deaf)))
}
