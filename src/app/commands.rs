//! The commands that do not serve: `models list`, `models pull`, `health`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;

use crate::catalog;
use crate::cli::{HealthArgs, SourceArgs};
use crate::config::{self, Environment};
use crate::kernel::Isa;
use crate::load::verify::against_candle;
use crate::observe::progress::LoadProgress;
use crate::source;
use crate::threads::{self, Threads};

/// A health check that takes longer than this has failed.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the catalogue as a table: id, dimensions, tokens, licence, and whether the files are cached.
pub(super) fn list(args: &SourceArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.catalog.as_deref())?;
    let sources = config::source(args, environment)?;
    let mut rows = vec![["MODEL", "DIMENSIONS", "TOKENS", "LICENCE", "CACHED"].map(str::to_owned)];
    for spec in &catalogue {
        let number = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let cached = source::cached(spec, &sources).map_or("no", |folder| folder.source);
        let license = spec.license.as_deref().unwrap_or("-");
        rows.push([
            spec.id.clone(),
            number(spec.dimensions),
            number(spec.max_tokens),
            license.to_owned(),
            cached.to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = std::io::stdout().lock();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches and verifies each model, and prints the folder it lies in.
pub(super) fn pull(models: &[String], args: &SourceArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
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

/// Compares each model with candle's own implementation and prints how far they are apart.
pub(super) fn verify(models: &[String], args: &SourceArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
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

/// Asks `/readyz`: exit 0 when the answer is 200, 1 otherwise.
pub(super) fn health(args: &HealthArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let port = args.port.map_or_else(|| config::health_port(environment), Ok)?;
    let address = config::addresses(&args.host, port)?;
    let address = address.first().context("no address")?;
    let mut stream = TcpStream::connect_timeout(address, HEALTH_TIMEOUT)
        .with_context(|| format!("no server answers on {address}"))?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // The status line is enough; the rest is read so that the server's write does not fail.
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    let ready = answer.starts_with(b"HTTP/1.1 200");
    let body = String::from_utf8_lossy(&answer);
    let body = body.split("\r\n\r\n").nth(1).unwrap_or_default().trim();
    writeln!(std::io::stdout(), "{body}")?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
