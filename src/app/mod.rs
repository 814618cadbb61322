//! Builds everything from the configuration and owns the order in which it starts and stops.
//!
//! Start: logs, configuration, socket, engine (every model loading), server, then the models: one thread obtains their
//! files, another loads them, one after the other. The socket answers from the first moment: live, not ready, 503 with progress.
//! While it serves, a watchdog looks at every device thread; when one fails for good, the process ends with
//! [`DEVICE_FAILED`].
//! Stop: SIGTERM or SIGINT makes the server say that it is not ready; after the drain delay it accepts nothing more;
//! what was accepted finishes within the grace period; then queues close and device threads end. A second signal
//! ends the process at once, unless it is an echo of the first.

mod commands;
mod interrupt;
mod keys;
mod loading;
mod memory;
mod serve;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use crate::cli::{BundleCommand, Cli, Command, ModelsCommand};
use crate::config::{self, Environment};
use crate::observe::log::{self, LogFormat};

pub use serve::{End, Running, start};
pub use watch::{Alarm, Watch};

/// `EX_SOFTWARE` of sysexits: a device failed while serving, and only a new process helps.
pub const DEVICE_FAILED: u8 = 70;

/// Logs where a panic happened. What it said is left out: library messages may quote the text they choked on.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(place, thread, "panic");
    }));
}

/// A write beyond `RLIMIT_FSIZE` raises a signal that ends the process without a word. With a handler in its place the
/// write fails instead, and is reported with the file's name. The handler stays when the runtime is gone.
fn outlive_file_size_limit() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    let kind = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    tokio::signal::unix::signal(kind).map(drop)
}

/// Runs the command that was typed.
///
/// # Errors
/// Whatever ended it, with the advice a person needs.
pub fn run(cli: Cli, environment: &Environment) -> anyhow::Result<ExitCode> {
    outlive_file_size_limit()?;
    let Cli { command, serve } = cli;
    let environment = environment.clone();
    match command {
        None => serve::run(&serve, &environment),
        Some(Command::Serve(args)) => serve::run(&args, &environment),
        Some(Command::Health(args)) => commands::health(&args, &environment),
        Some(Command::Bench(args)) => {
            log::init(&config::log_from("warn", &args.logs, &environment));
            interrupt::run(move |stop| commands::bench(&args, &serve, &environment, stop))
        }
        Some(Command::Bundle(command)) => {
            log::init(&config::log(&serve.logs, &environment));
            interrupt::run(move |stop| match command {
                BundleCommand::Export(args) => commands::export(&args, &environment, stop),
                BundleCommand::Import(args) => commands::import(&args, &environment, stop),
            })
        }
        Some(Command::Models(command)) => {
            log::init(&config::log(&serve.logs, &environment));
            match command {
                ModelsCommand::List(args) => commands::list(&args, &environment),
                ModelsCommand::Show(args) => commands::show(&args, &serve, &environment),
                ModelsCommand::Verify(args) => {
                    interrupt::run(move |stop| commands::verify(&args, &serve, &environment, stop))
                }
                ModelsCommand::Pull(args) => interrupt::run(move |stop| commands::pull(&args, &environment, stop)),
            }
        }
    }
}

/// Says why the process ends, the causes after colons: to a program as a line of the log, to a person as it is.
pub fn complain(error: &anyhow::Error) {
    if log::format() == Some(LogFormat::Json) && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(error = format!("{error:#}"), "stopped");
        return;
    }
    // A closed stderr must not turn an error into a panic.
    let _ = writeln!(std::io::stderr(), "embedserve: {error:#}");
}
