//! Builds everything from the configuration and owns the order in which it starts and stops.
//!
//! Start: logs, configuration, socket, engine (every model loading), server, then the models: one thread obtains their
//! files, another loads them, one after the other. The socket answers from the first moment: live, not ready, 503 with progress.
//! Stop: SIGTERM or SIGINT makes the server say that it is not ready; after the drain delay it accepts nothing more;
//! what was accepted finishes within the grace period; then queues close and device threads end. A second signal
//! ends the process at once.

mod commands;
mod loading;
mod serve;

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{Cli, Command, ModelsCommand};
use crate::config::{self, Environment};
use crate::observe::log;

pub use serve::{Running, start};

/// Logs where a panic happened. What it said is left out: library messages may quote the text they choked on.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(place, thread, "panic");
    }));
}

/// Runs the command that was typed.
///
/// # Errors
/// Whatever ended it, with the advice a person needs.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let environment = Environment::of_process();
    match cli.command {
        None => serve::run(&cli.serve, &environment),
        Some(Command::Serve(args)) => serve::run(&args, &environment),
        Some(Command::Health(args)) => commands::health(&args, &environment),
        Some(Command::Models(command)) => {
            log::init(&config::log(&cli.serve.logs, &environment));
            match command {
                ModelsCommand::List(args) => commands::list(&args, &environment),
                ModelsCommand::Show(args) => commands::show(&args, &cli.serve, &environment),
                ModelsCommand::Verify(args) => commands::verify(&args, &cli.serve, &environment),
                ModelsCommand::Pull { models, source } => commands::pull(&models, &source, &environment),
            }
        }
    }
}

/// Tells the person at the terminal why the process ends: one line, the causes after colons.
pub fn complain(error: &anyhow::Error) {
    // A closed stderr must not turn an error into a panic.
    let _ = writeln!(std::io::stderr(), "embedserve: {error:#}");
}
