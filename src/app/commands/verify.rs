//! `models verify`: whether a model's vectors are right, on the machine at hand.
//!
//! One line for each comparison, then what is beyond its bar. Exit 1 when a model differs, cannot be loaded, or has
//! nothing to be compared with.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use crate::catalog::reference::Reference;
use crate::catalog::{self, ModelSpec};
use crate::cli::{ServeArgs, SourceArgs, VerifyArgs};
use crate::config::{self, BatchConfig, Environment, RequestConfig, SourceConfig};
use crate::load::verify::second::{Second, against_candle};
use crate::load::verify::{Comparison, golden, published};
use crate::load::{self, Loaded, Seat, Settings, Shared, describe};
use crate::observe::metrics::Metrics;
use crate::observe::progress::LoadProgress;
use crate::source::{self, notes::Notes};
use crate::threads::Threads;
use crate::tokenize::workers::Workers;

/// What every model of one call shares.
struct Verifier {
    sources: SourceConfig,
    requests: RequestConfig,
    batch: BatchConfig,
    runtime: tokio::runtime::Runtime,
}

/// What was found for one model.
struct Verdict {
    comparisons: Vec<Comparison>,
    notes: Vec<String>,
}

/// Verifies each model; all of them, also after one that differs.
pub(in crate::app) fn verify(
    args: &VerifyArgs,
    serve: &ServeArgs,
    environment: &Environment,
    stop: &AtomicBool,
) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let references = references(&args.reference, &args.models)?;
    let verifier = Verifier::new(serve, &args.source, environment)?;
    let default = [config::DEFAULT_MODEL.to_owned()];
    let models = if args.models.is_empty() { &default } else { args.models.as_slice() };
    // All of what was typed is understood before minutes are spent on the first of them.
    let chosen = |choice: &String| -> anyhow::Result<ModelSpec> {
        let spec = catalog::resolve(choice, &catalogue).map_err(config::ConfigError::from)?;
        let mut spec = config::in_dtype(spec, args.dtype.as_deref())?;
        spec.references.extend_from_slice(&references);
        Ok(spec)
    };
    let specs = models.iter().map(chosen).collect::<anyhow::Result<Vec<_>>>()?;
    let mut good = true;
    for spec in specs {
        match verifier.verify(&spec, stop) {
            Ok(verdict) => good &= report(&spec, &verifier.computes_on(), &verdict)?,
            Err(error) => {
                writeln!(std::io::stdout(), "{}  FAILED  {error:#}", spec.id)?;
                good = false;
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Files of references speak of one model, so there must be one.
fn references(files: &[PathBuf], models: &[String]) -> anyhow::Result<Vec<Reference>> {
    if !files.is_empty() && models.len() != 1 {
        let reason = "name the one model that it speaks of".to_owned();
        let value = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(config::ConfigError::Invalid { flag: "--reference", value, reason }.into());
    }
    let mut references = Vec::new();
    for file in files {
        references.extend(golden::read(file)?);
    }
    Ok(references)
}

impl Verifier {
    fn new(serve: &ServeArgs, source: &SourceArgs, environment: &Environment) -> anyhow::Result<Self> {
        let (mut requests, batch) = (config::requests(serve)?, config::batch(serve)?);
        // References may hold an empty text; serving refuses those for the clients' sake.
        requests.allow_empty_input = true;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { sources: config::source(source, environment)?, requests, batch, runtime })
    }

    /// The instruction set, or the devices.
    fn computes_on(&self) -> String {
        let BatchConfig { device_choice, isa, .. } = &self.batch;
        if device_choice.is_cpu() { isa.name().to_owned() } else { device_choice.label() }
    }

    fn verify(&self, spec: &ModelSpec, stop: &AtomicBool) -> anyhow::Result<Verdict> {
        let progress = LoadProgress::default();
        let folder = source::obtain(spec, describe::judge, &self.sources, &progress, stop).context("cannot fetch")?;
        let metrics = Metrics::new(std::slice::from_ref(&spec.id));
        let threads = Arc::new(Threads::new(self.batch.threads)?);
        let shared = Shared {
            seats: Seat::all(&self.batch.device_choice.targets, &threads),
            threads,
            workers: Workers::new(self.batch.threads, &metrics)?,
            metrics,
            isa: self.batch.isa,
            notes: Notes::new(&self.sources),
            memory_limit: None,
        };
        let settings = Settings { requests: &self.requests, batch: &self.batch };
        let loaded = load::load(spec, &folder, settings, &shared, &progress).context("cannot load")?;
        let Loaded { served, threads: device_threads, .. } = loaded;
        let compared = self.runtime.block_on(async {
            let published = published::against_published(&served, &spec.references, spec.precision()).await?;
            let second = against_candle(&served, spec, &folder.path, self.batch.isa).await?;
            anyhow::Ok((published, second))
        });
        // The next model needs the memory of this one.
        served.queue.close();
        for thread in device_threads {
            // A panic of it has been answered as a failed batch, and logged.
            let _ = thread.join();
        }
        let (mut comparisons, second) = compared?;
        let mut notes = Vec::new();
        match second {
            Second::Compared(comparison) => comparisons.push(comparison),
            Second::None(reason) => notes.push(format!("no second implementation: {reason}")),
        }
        Ok(Verdict { comparisons, notes })
    }
}

/// Prints what was found; whether all of it is good, and there was something to find.
fn report(spec: &ModelSpec, computed_on: &str, verdict: &Verdict) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    for comparison in &verdict.comparisons {
        let Comparison { against, texts, max_error, min_cosine, bar, .. } = comparison;
        let verdict = if comparison.is_good() { "ok" } else { "DIFFERS" };
        let shown = |cosine: Option<f64>| cosine.map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.9}"));
        let (cosine, mean, dtype) = (shown(*min_cosine), shown(comparison.mean_cosine()), spec.precision());
        let plural = if *texts == 1 { "text" } else { "texts" };
        writeln!(
            out,
            "{}  {dtype}  {computed_on}  {texts} {plural}  max error {max_error:.1e}  min cosine {cosine}  mean {mean}  bar {bar}  \
             {verdict}  ({against})",
            spec.id,
        )?;
        for line in &comparison.differences {
            writeln!(out, "  differs: {line}")?;
        }
        for line in &comparison.notes {
            writeln!(out, "  note: {line}")?;
        }
    }
    for note in &verdict.notes {
        writeln!(out, "{}  note: {note}", spec.id)?;
    }
    if verdict.comparisons.is_empty() {
        writeln!(
            out,
            "{}  NOTHING TO COMPARE WITH: give vectors of a reference implementation with --reference",
            spec.id
        )?;
    }
    Ok(!verdict.comparisons.is_empty() && verdict.comparisons.iter().all(Comparison::is_good))
}
