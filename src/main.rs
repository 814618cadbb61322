//! Parse, run, map the outcome to an exit code; nothing else.

use std::process::ExitCode;

use clap::error::ErrorKind;
use embedserve::app;
use embedserve::cli::Cli;
use embedserve::config::Environment;
use embedserve::observe::log;

/// Response buffers of several megabytes come and go: mimalloc returns and reuses them without a system call each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits: what was typed cannot be run.
const USAGE: u8 = 64;

/// What a shell shows for a program that SIGPIPE ended.
const READER_LEFT: u8 = 128 + 13;

/// Whoever reads standard output has seen enough, as in `embedserve models list | head`: nothing to complain about.
fn reader_has_left(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    error.chain().count() == 1 && cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::read(&arguments, &|name| environment.is_blank(name)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr is no reason to fail differently.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    let _log = log::Unwritten;
    match app::run(cli, &environment) {
        Ok(code) => code,
        Err(error) => {
            if reader_has_left(&error) {
                return ExitCode::from(READER_LEFT);
            }
            let usage = error.is::<embedserve::config::ConfigError>();
            app::complain(&error);
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}
