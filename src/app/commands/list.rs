//! `models list`: the catalogue as a table, or as JSON for programs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::catalog::ModelSpec;
use crate::cli::ListArgs;
use crate::config::{self, Environment};
use crate::source::{self, ModelFolder};

const HEADER: [&str; 8] = ["MODEL", "ARCHITECTURE", "DTYPE", "DIMENSIONS", "TOKENS", "LICENCE", "SIZE", "CACHED"];

/// Prints every model of the catalogue and whether its files are on this machine.
pub(in crate::app) fn list(args: &ListArgs, environment: &Environment) -> anyhow::Result<ExitCode> {
    let catalogue = config::catalogue(args.source.catalog.as_deref())?;
    let sources = config::source(&args.source, environment)?;
    let models: Vec<(&ModelSpec, Option<ModelFolder>)> =
        catalogue.iter().map(|spec| (spec, source::cached(spec, &sources))).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let models: Vec<Value> = models.iter().map(|(spec, folder)| described(spec, folder.as_ref())).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&models)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(models.iter().map(|(spec, folder)| row(spec, folder.as_ref())));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(spec: &ModelSpec, folder: Option<&ModelFolder>) -> [String; HEADER.len()] {
    let number = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let text = |value: Option<&String>| value.map_or_else(|| "-".to_owned(), Clone::clone);
    [
        spec.id.clone(),
        text(spec.architecture.as_ref()),
        spec.precision().to_string(),
        number(spec.dimensions),
        number(spec.max_tokens),
        text(spec.license.as_ref()),
        folder.map_or_else(|| "-".to_owned(), |folder| size(bytes_in(&folder.path))),
        folder.map_or("no", |folder| folder.source).to_owned(),
    ]
}

fn described(spec: &ModelSpec, folder: Option<&ModelFolder>) -> Value {
    json!({
        "id": spec.id,
        "aliases": spec.aliases,
        "description": spec.description,
        "architecture": spec.architecture,
        "dtype": spec.precision().name(),
        "dimensions": spec.dimensions,
        "matryoshka_dimensions": spec.matryoshka_dimensions,
        "max_tokens": spec.max_tokens,
        "license": spec.license,
        "languages": spec.languages,
        "cached": folder.map(|folder| json!({
            "source": folder.source,
            "revision": folder.revision,
            "path": folder.path,
            "bytes": bytes_in(&folder.path),
        })),
    })
}

/// Bytes of the files below a folder; what cannot be read counts nothing, since a listing has no better answer.
pub(super) fn bytes_in(folder: &Path) -> u64 {
    /// Model folders have two levels; a link that leads back into its own folder must end somewhere.
    const DEPTH: usize = 4;
    fn below(folder: &Path, depth: usize) -> u64 {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let sizes = entries.map(|entry| match std::fs::metadata(entry.path()) {
            Ok(found) if found.is_dir() && depth > 0 => below(&entry.path(), depth - 1),
            Ok(found) if found.is_file() => found.len(),
            _ => 0,
        });
        sizes.sum()
    }
    below(folder, DEPTH)
}

/// Bytes as people say them: `87.4 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes >= 1024.0 { format!("{:.1} GiB", mebibytes / 1024.0) } else { format!("{mebibytes:.1} MiB") }
}
