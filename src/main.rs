//! Parse, run, map the outcome to an exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use embedserve::app;
use embedserve::cli::Cli;

/// Response buffers of several megabytes come and go: mimalloc returns and reuses them without a system call each.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `EX_USAGE` of sysexits: what was typed cannot be run.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stdout or stderr is no reason to fail differently.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    match app::run(cli) {
        Ok(code) => code,
        Err(error) => {
            let usage = error.is::<embedserve::config::ConfigError>();
            app::complain(&error);
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}
