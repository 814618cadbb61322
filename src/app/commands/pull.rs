//! `models pull`: fetches models before they are served.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use crate::catalog;
use crate::cli::SourceArgs;
use crate::config::{self, Environment};
use crate::observe::progress::LoadProgress;
use crate::source;

/// Fetches and verifies each model, and prints the folder it lies in.
pub(in crate::app) fn pull(
    models: &[String],
    args: &SourceArgs,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.catalog.as_deref())?;
    let sources = config::source(args, environment)?;
    for choice in models {
        let spec = catalog::resolve(choice, &catalogue).map_err(config::ConfigError::from)?;
        let folder = source::obtain(&spec, &sources, &LoadProgress::default(), &AtomicBool::new(false))
            .with_context(|| format!("cannot fetch {}", spec.id))?;
        writeln!(std::io::stdout(), "{}", folder.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
