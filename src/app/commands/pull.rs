//! `models pull`: fetches models before they are served.
//!
//! Each model's folder is printed to stdout as soon as it is complete. A model that cannot be fetched costs one line on
//! stderr and the exit code, and the others nothing.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use crate::catalog::{self, ModelSpec};
use crate::cli::PullArgs;
use crate::config::{self, ConfigError, Environment};
use crate::load::describe;
use crate::observe::progress::LoadProgress;
use crate::source;

/// Fetches and verifies each model, and prints the folder it lies in.
pub(in crate::app) fn pull(args: &PullArgs, environment: &Environment, stop: &AtomicBool) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let sources = config::source(&args.source, environment)?;
    let specs = chosen(&args.models, args.revision.as_deref(), &catalogue)?;
    let mut failed = 0;
    for spec in &specs {
        match source::obtain(spec, describe::judge_to_keep, &sources, &LoadProgress::default(), stop) {
            Ok(folder) => writeln!(std::io::stdout(), "{}", folder.path.display())?,
            Err(error) => {
                failed += 1;
                writeln!(std::io::stderr(), "embedserve: cannot fetch {}: {error}", spec.id)?;
            }
        }
    }
    if specs.len() > 1 {
        writeln!(std::io::stderr(), "embedserve: {} of {} models are complete", specs.len() - failed, specs.len())?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was typed, all of it understood before anything is fetched.
pub(super) fn chosen(
    models: &[String],
    revision: Option<&str>,
    catalogue: &[ModelSpec],
) -> Result<Vec<ModelSpec>, ConfigError> {
    let resolve = |choice: &String| {
        let spec = catalog::resolve(choice, catalogue)?;
        revision.map_or(Ok(spec.clone()), |revision| config::at_revision(spec, revision, models.len()))
    };
    models.iter().map(resolve).collect()
}
