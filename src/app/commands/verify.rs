//! `models verify`: whether a model's vectors are right on the machine at hand.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use crate::catalog;
use crate::cli::SourceArgs;
use crate::config::{self, Environment};
use crate::kernel::Isa;
use crate::load::verify::against_candle;
use crate::observe::progress::LoadProgress;
use crate::source;
use crate::threads::{self, Threads};

/// Compares each model with candle's own implementation and prints how far they are apart.
pub(in crate::app) fn verify(
    models: &[String],
    args: &SourceArgs,
    environment: &Environment,
) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.catalog.as_deref())?;
    let sources = config::source(args, environment)?;
    let default = [config::DEFAULT_MODEL.to_owned()];
    let models = if models.is_empty() { &default } else { models };
    let threads = Threads::new(threads::available())?;
    let isa = Isa::detect();
    let mut good = true;
    for choice in models {
        let spec = catalog::resolve(choice, &catalogue).map_err(config::ConfigError::from)?;
        let folder = source::obtain(&spec, &sources, &LoadProgress::default(), &AtomicBool::new(false))
            .with_context(|| format!("cannot fetch {}", spec.id))?;
        let compared =
            against_candle(&folder.path, &threads, isa).with_context(|| format!("cannot verify {}", spec.id))?;
        good &= compared.is_good();
        writeln!(
            std::io::stdout(),
            "{}  f32  {isa}  {} texts  max error {:.1e}  min cosine {:.9}  {}",
            spec.id,
            compared.texts,
            compared.max_error,
            compared.min_cosine,
            if compared.is_good() { "ok" } else { "DIFFERS" },
        )?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
