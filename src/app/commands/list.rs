//! `models list`: the catalogue as a table.

use std::io::Write;
use std::process::ExitCode;

use crate::cli::SourceArgs;
use crate::config::{self, Environment};
use crate::source;

/// Prints the catalogue as a table: id, dimensions, tokens, licence, and whether the files are cached.
pub(in crate::app) fn list(args: &SourceArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
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
