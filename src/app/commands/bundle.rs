//! `bundle export` and `bundle import`: models in one file, for machines without a network.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use super::pull::chosen;
use crate::catalog::id::Sha256;
use crate::cli::{ExportArgs, ImportArgs};
use crate::config::{self, ConfigError, Environment};
use crate::load::describe;
use crate::source::bundle::{self, Import};

/// Writes the models into one file, and prints its SHA-256 as `sha256sum` would.
pub(in crate::app) fn export(
    args: &ExportArgs,
    environment: &Environment,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let sources = config::source(&args.source, environment)?;
    let specs = chosen(&args.models, args.revision.as_deref(), &catalogue)?;
    let written = bundle::export(&specs, describe::judge_to_keep, &args.output, &sources, stop)
        .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", args.output.display()))?;
    tracing::info!(models = written.models.len(), bytes = written.bytes, "bundle is complete");
    writeln!(std::io::stdout(), "{}  {}", written.sha256, args.output.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Puts the models of a bundle into the caches, and prints each id with the folder it lies in.
pub(in crate::app) fn import(
    args: &ImportArgs,
    environment: &Environment,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let sources = config::source(&args.source, environment)?;
    let invalid = |error: crate::catalog::id::IdError| ConfigError::Invalid {
        flag: "--sha256",
        value: args.sha256.clone().unwrap_or_default(),
        reason: error.to_string(),
    };
    let sha256 = args.sha256.as_deref().map(Sha256::parse).transpose().map_err(invalid)?;
    let (bundle, sha256) = (&args.bundle, sha256.as_ref());
    let import = Import { bundle, sha256, catalogue: &catalogue, config: &sources, stop };
    // The messages hold their causes already.
    let read =
        bundle::import(import).map_err(|error| anyhow::anyhow!("cannot import {}: {error}", args.bundle.display()))?;
    tracing::info!(sha256 = read.sha256, bytes = read.bytes, models = read.models.len(), "bundle is imported");
    for model in &read.models {
        writeln!(std::io::stdout(), "{}  {}", model.id, model.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
